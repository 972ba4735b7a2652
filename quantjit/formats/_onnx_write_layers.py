"""Layers with weights or windows in ONNX, opset 17: convolution, pooling, products, normalization.

What TNN and ONNX say differently (padding that depends on the input, layers that ONNX has no
operator for) is written out with what the shapes tell, so that any runtime computes what
`quantjit.executor` does.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from quantjit.formats._onnx_write_call import Call, Shape, Translation

# ------------------------------------------------------------------ convolution


def _window_pads(size: int, out: int, reach: int, stride: int, given: Sequence[int]) -> list[int]:
    """Return pads for `out` windows along one side: TNN puts an odd pixel of "same" at the end."""
    total = max((out - 1) * stride + reach - size, 0)
    return [total // 2, total - total // 2] if not given else list(given)


def write_convolution(call: Call, *, activate: bool = True) -> None:
    """Write a convolution; activate: with the activation that is fused into it."""
    attrs = call.attrs
    if attrs.fusion != "none":
        raise call.error("it has an add fused into it, which exists in memory only")
    explicit = attrs.pad_mode == "explicit"
    top, bottom, left, right = attrs.pads
    shape, out = call.shape(), call.out_shape()
    reach_h = (attrs.kernel_h - 1) * attrs.dilation_h + 1
    reach_w = (attrs.kernel_w - 1) * attrs.dilation_w + 1
    rows = _window_pads(
        shape[2], out[2], reach_h, attrs.stride_h, (top, bottom) if explicit else ()
    )
    columns = _window_pads(
        shape[3], out[3], reach_w, attrs.stride_w, (left, right) if explicit else ()
    )
    options = {
        "group": attrs.group,
        "kernel_shape": [attrs.kernel_h, attrs.kernel_w],
        "strides": [attrs.stride_h, attrs.stride_w],
        "dilations": [attrs.dilation_h, attrs.dilation_w],
        "pads": [rows[0], columns[0], rows[1], columns[1]],
    }
    _convolve(call, "Conv", options, activate=activate)


def _convolve(call: Call, op: str, options: dict[str, Any], *, activate: bool) -> None:
    inputs = [call.inputs[0], call.weight("weight")]
    if call.attrs.has_bias:
        inputs.append(call.weight("bias"))
    activation = call.attrs.activation if activate else "none"
    if activation == "none":
        call.finish(op, inputs, **options)
        return
    linear = call.model.fresh(f"{call.outputs[0]}:linear")
    call.model.add(op, inputs, [linear], call.node.name, **options)
    write_activation(call, activation, linear)


def write_activation(call: Call, activation: str, source: str) -> None:
    """Write the activation of a convolution, from `source` to the node's output."""
    name = f"{call.node.name}:{activation}"
    if activation == "relu":
        call.model.add("Relu", [source], call.outputs, name)
    elif activation == "relu6":
        bounds = [call.number("low", 0), call.number("high", 6)]
        call.model.add("Clip", [source, *bounds], call.outputs, name)
    elif activation == "swish":
        chance = call.step("Sigmoid", [source], "sigmoid")
        call.model.add("Mul", [source, chance], call.outputs, name)
    else:
        raise call.error(f"its activation {activation!r} is unknown")


def _deconvolution(call: Call) -> None:
    attrs = call.attrs
    top, bottom, left, right = attrs.pads
    shape, out = call.shape(), call.out_shape()
    rows = _scatter_pads(
        call, (shape[2], out[2]), attrs.kernel_h, attrs.stride_h, attrs.dilation_h, (top, bottom)
    )
    columns = _scatter_pads(
        call, (shape[3], out[3]), attrs.kernel_w, attrs.stride_w, attrs.dilation_w, (left, right)
    )
    options = {
        "group": attrs.group,
        "kernel_shape": [attrs.kernel_h, attrs.kernel_w],
        "strides": [attrs.stride_h, attrs.stride_w],
        "dilations": [attrs.dilation_h, attrs.dilation_w],
        "pads": [rows[0], columns[0], rows[1], columns[1]],
        "output_padding": [rows[2], columns[2]],
    }
    _convolve(call, "ConvTranspose", options, activate=True)


def _scatter_pads(
    call: Call, sizes: tuple[int, int], kernel: int, stride: int, dilation: int, pads: Sequence[int]
) -> tuple[int, int, int]:
    """Return pad before, pad after and output padding of one side of a deconvolution."""
    reach = (kernel - 1) * dilation + 1
    total = (sizes[0] - 1) * stride + reach - sizes[1]
    before = {
        "explicit": pads[0],
        "valid": 0,
        "full": reach - 1,
        "same": max(total, 0) // 2,
        "output": max(total, 0) - max(total, 0) // 2,
    }[call.attrs.pad_mode]
    after = total - before
    if after < 0 and -after >= max(stride, dilation):
        raise call.error(f"its output of {sizes[1]} pixels reaches {-after} behind its last tap")
    return before, max(after, 0), max(-after, 0)


# ------------------------------------------------------------------ pooling


def write_pooling(call: Call) -> None:
    """Write a pooling; a window that lies behind the input altogether is refused."""
    attrs, shape, out = call.attrs, call.shape(), call.out_shape()
    kind = {"max": "Max", "average": "Average"}[attrs.kind]
    if attrs.adaptive:
        if out[2:] == (1, 1):
            call.finish("GlobalAveragePool")
            return
        if shape[2] % out[2] or shape[3] % out[3]:
            raise call.error(f"adaptive windows of {shape[2:]} to {out[2:]} overlap")
        steps = [shape[2] // out[2], shape[3] // out[3]]
        call.finish("AveragePool", kernel_shape=steps, strides=steps)
        return
    kernel = [attrs.kernel_h or shape[2], attrs.kernel_w or shape[3]]
    if attrs.kernel_index_h >= 0:
        kernel[0] = shape[attrs.kernel_index_h]
    if attrs.kernel_index_w >= 0:
        kernel[1] = shape[attrs.kernel_index_w]
    if kernel == list(shape[2:]) and out[2:] == (1, 1) and not any(attrs.pads):
        call.finish(f"Global{kind}Pool")
        return
    strides = (attrs.stride_h, attrs.stride_w)
    given = (attrs.pads[:2], attrs.pads[2:])
    spans = [
        _pool_pads(call, shape[2 + i], out[2 + i], kernel[i], strides[i], given[i]) for i in (0, 1)
    ]
    cropped = _crop(call, spans)
    pads = [max(spans[i][side], 0) for side in (0, 1) for i in (0, 1)]
    padded_average = attrs.kind == "average" and attrs.count_include_pad
    if attrs.ceil_mode and padded_average:  # pads that are counted may not be made larger
        pads = [attrs.pads[0], attrs.pads[2], attrs.pads[1], attrs.pads[3]]
    call.finish(
        f"{kind}Pool",
        [cropped],
        kernel_shape=kernel,
        strides=list(strides),
        pads=pads,
        ceil_mode=1 if attrs.ceil_mode and padded_average else None,
        count_include_pad=1 if padded_average else None,
    )


def _pool_pads(
    call: Call, size: int, out: int, kernel: int, stride: int, given: Sequence[int]
) -> tuple[int, int]:
    """Return pads for exactly `out` windows; a negative one before: pixels to leave out."""
    needed = (out - 1) * stride + kernel - size
    if call.attrs.pad_mode == "explicit":
        before = given[0]
    else:  # C's division, as TNN centres what is over
        before = needed // 2 if needed >= 0 else -(-needed // 2)
    after = needed - before
    if (out - 1) * stride - before >= size or max(before, after) >= kernel:
        raise call.error("a window lies in the padding altogether")
    if call.attrs.pad_mode == "explicit" and not call.attrs.ceil_mode:
        after = max(given[1], after)  # as in the file
    return before, after


def _crop(call: Call, spans: Sequence[tuple[int, int]]) -> str:
    begins = [max(-before, 0) for before, _ in spans]
    if not any(begins):
        return call.inputs[0]
    shape = call.shape()
    parts = [
        call.sizes(role, values)
        for role, values in (("begins", begins), ("ends", shape[2:]), ("axes", (2, 3)))
    ]
    return call.step("Slice", [call.inputs[0], *parts], "crop")


# ------------------------------------------------------------------ products


def write_inner_product(call: Call) -> None:
    """Write a Gemm between what flattens its input and gives its output TNN's rank."""
    attrs, shape, out = call.attrs, call.shape(), call.out_shape()
    axis = attrs.axis
    flat = call.inputs[0]
    if len(shape) != 2 or axis != 1:
        flat = call.step("Flatten", [flat], "flat", axis=axis)
    inputs = [flat, call.weight("weight")]
    if attrs.has_bias:
        inputs.append(call.weight("bias"))
    trans = 0 if attrs.transpose else 1
    if out == (math.prod(shape[:axis]), attrs.out_features):
        call.finish("Gemm", inputs, transB=trans)
        return
    product = call.model.fresh(f"{call.outputs[0]}:product")
    call.model.add("Gemm", inputs, [product], call.node.name, transB=trans)
    restore_rank(call, product)


def restore_rank(call: Call, product: str) -> None:
    """Reshape a product to the shape of the node's output."""
    out, axis = call.out_shape(), call.attrs.axis
    sizes = (0, *out[1:]) if axis == 1 else out
    call.model.add(
        "Reshape", [product, call.sizes("shape", sizes)], call.outputs, f"{call.node.name}:shape"
    )


def _matmul(call: Call) -> None:
    inputs = list(call.inputs)
    if call.attrs.constant_index >= 0 and len(inputs) == 1:
        inputs.insert(call.attrs.constant_index, call.weight("weight"))
    call.finish("MatMul", inputs)


# ------------------------------------------------------------------ normalization


def _spread(call: Call, role: str, count: int, default: float) -> np.ndarray:
    given = call.array(role) if role in call.node.weights else np.full(1, default, np.float32)
    return np.array(np.broadcast_to(given.reshape(-1), (count,)))


def _batch_norm(call: Call) -> None:
    """Mean 0, variance 1 and epsilon 0: the statistics are folded into scale and bias."""
    channels = call.shape()[1]
    values = {
        "scale": _spread(call, "scale", channels, 1),
        "bias": _spread(call, "bias", channels, 0),
        "mean": np.zeros(channels, np.float32),
        "variance": np.ones(channels, np.float32),
    }
    names = [call.constant(role, array) for role, array in values.items()]
    call.finish("BatchNormalization", [call.inputs[0], *names], epsilon=0.0)


def _instance_norm(call: Call) -> None:
    channels = call.shape()[1]
    names = [
        call.constant(role, _spread(call, role, channels, default))
        for role, default in (("scale", 1.0), ("bias", 0.0))
    ]
    call.finish(
        "InstanceNormalization", [call.inputs[0], *names], epsilon=float(call.attrs.epsilon)
    )


def _affine(call: Call, role: str, count: int, default: float, shape: Shape) -> str:
    """Gain or bias, from the weights or from the second or third input."""
    index = 1 if role == "scale" else 2
    if len(call.inputs) > index:
        sizes = call.sizes(f"{role}_shape", shape)
        return call.step("Reshape", [call.inputs[index], sizes], role)
    return call.constant(role, _spread(call, role, count, default).reshape(shape))


def _group_norm(call: Call) -> None:
    shape, group = call.shape(), call.attrs.group
    grouped = call.step(
        "Reshape", [call.inputs[0], call.sizes("groups", (0, group, -1))], "grouped"
    )
    ones = call.constant("ones", np.ones(group, np.float32))
    zeros = call.constant("zeros", np.zeros(group, np.float32))
    normal = call.step(
        "InstanceNormalization",
        [grouped, ones, zeros],
        "normal",
        epsilon=float(call.attrs.epsilon),
    )
    whole = call.step("Reshape", [normal, call.sizes("whole", (0, *shape[1:]))], "whole")
    channel = (shape[1], *(1 for _ in shape[2:]))
    gain = call.step("Mul", [whole, _affine(call, "scale", shape[1], 1.0, channel)], "scaled")
    call.finish("Add", [gain, _affine(call, "bias", shape[1], 0.0, channel)])


def _layer_norm(call: Call) -> None:
    attrs, shape = call.attrs, call.shape()
    dims = attrs.reduce_dims
    if not dims:
        dims = len(call.shape(1)) if len(call.inputs) > 1 else call.array("scale").ndim
    row = shape[-dims:]
    count = math.prod(row)
    names = [
        _affine(call, role, count, default, row)
        for role, default in (("scale", 1.0), ("bias", 0.0))
    ]
    call.finish(
        "LayerNormalization",
        [call.inputs[0], *names],
        axis=-dims,
        epsilon=float(attrs.epsilon),
    )


def _lrn(call: Call) -> None:
    attrs = call.attrs
    if attrs.size % 2 == 0:
        raise call.error("TNN reaches equally far to both sides of an even size, ONNX does not")
    call.finish(
        "LRN",
        alpha=float(attrs.alpha),
        beta=float(attrs.beta),
        bias=float(attrs.bias),
        size=attrs.size,
    )


TRANSLATIONS: dict[str, Translation] = {
    "convolution": write_convolution,
    "deconvolution": _deconvolution,
    "pooling": write_pooling,
    "inner_product": write_inner_product,
    "matmul": _matmul,
    "batch_norm": _batch_norm,
    "scale": _batch_norm,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "lrn": _lrn,
}
