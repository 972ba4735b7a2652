"""How each op is said in ONNX, opset 17, in float.

What TNN and ONNX say differently (padding that depends on the input, TNN's constants that are
placed by their length, layers that ONNX has no operator for) is written out with what the shapes
tell, so that any runtime computes what `quantjit.executor` does.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from quantjit.formats._onnx_write_call import Call, Shape, Translation

OPSET = 17
"""The newest operators used: LayerNormalization; runtimes have it since 2022."""

_FIRST = -(2**63) + 1  # a slice that runs backwards, to the first element


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


# ------------------------------------------------------------------ elementwise


def _binary(op: str) -> Translation:
    def write(call: Call) -> None:
        inputs = list(call.inputs)
        if len(inputs) == 1:
            constant = call.array("constant")
            fitted = constant.reshape(_constant_shape(constant.shape, call.shape()))
            inputs.insert(call.attrs.constant_index, call.constant("constant", fitted))
        left = inputs[0]
        for number, right in enumerate(inputs[1:-1]):
            left = call.step(op, [left, right], f"part{number}")
        call.finish(op, [left, inputs[-1]])

    return write


def _constant_shape(constant: Shape, shape: Shape) -> Shape:
    """Where TNN places a vector: one a channel first, then one an element, a column, a pixel."""
    count = math.prod(constant)
    if len(constant) > 1 or count == 1 or len(shape) < 2:
        return constant
    channel = (shape[1], *(1 for _ in shape[2:]))
    for fitting in (channel, shape[1:], shape[-1:], shape[2:]):
        if count == math.prod(fitting):
            return fitting
    return constant


def _plain(op: str) -> Translation:
    return lambda call: call.finish(op)


def _clip(low: float | None = None, high: float | None = None) -> Translation:
    def write(call: Call) -> None:
        bounds = (
            call.attrs.minimum if low is None else low,
            call.attrs.maximum if high is None else high,
        )
        names = [
            call.number(role, bound) if math.isfinite(bound) else ""
            for role, bound in zip(("low", "high"), bounds, strict=True)
        ]
        while names and not names[-1]:
            names.pop()
        call.finish("Clip", [call.inputs[0], *names])

    return write


def _swish(call: Call) -> None:
    call.finish("Mul", [call.inputs[0], call.step("Sigmoid", call.inputs[:1], "sigmoid")])


def _gelu(call: Call) -> None:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), TNN's form."""
    x = call.inputs[0]
    cube = call.step("Pow", [x, call.number("three", 3)], "cube")
    small = call.step("Mul", [cube, call.number("factor", 0.044715)], "small")
    inner = call.step("Add", [x, small], "inner")
    scaled = call.step("Mul", [inner, call.number("root", math.sqrt(2 / math.pi))], "scaled")
    bent = call.step("Tanh", [scaled], "tanh")
    share = call.step("Add", [bent, call.number("one", 1)], "share")
    half = call.step("Mul", [x, call.number("half", 0.5)], "halved")
    call.finish("Mul", [half, share])


def _power(call: Call) -> None:
    attrs, x = call.attrs, call.inputs[0]
    if attrs.scale != 1:
        x = call.step("Mul", [x, call.number("scale", attrs.scale)], "scaled")
    if attrs.shift != 0:
        x = call.step("Add", [x, call.number("shift", attrs.shift)], "shifted")
    call.finish("Pow", [x, call.number("exponent", attrs.exponent)])


def _hard_sigmoid(call: Call) -> None:
    call.finish("HardSigmoid", alpha=float(call.attrs.alpha), beta=float(call.attrs.beta))


def _hard_swish(call: Call) -> None:
    attrs = call.attrs
    gate = call.step(
        "HardSigmoid", call.inputs[-1:], "gate", alpha=float(attrs.alpha), beta=float(attrs.beta)
    )
    call.finish("Mul", [call.inputs[0], gate])


def _prelu(call: Call) -> None:
    slope = call.array("slope").reshape(-1)
    if call.attrs.channel_shared or slope.size == 1:
        call.finish("LeakyRelu", alpha=float(slope[0]))
        return
    shaped = slope.reshape(-1, *(1 for _ in call.shape()[2:]))
    call.finish("PRelu", [call.inputs[0], call.constant("slope", shaped)])


def _elu(call: Call) -> None:
    call.finish("Elu", alpha=float(call.attrs.alpha))


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


# ------------------------------------------------------------------ shapes


def _reshape(call: Call) -> None:
    attrs, shape, out = call.attrs, call.shape(), call.out_shape()
    plain = attrs.axis == 0 and attrs.num_axes in (-1, len(attrs.shape))
    sizes = attrs.shape if plain else out
    if attrs.layout == "nchw" or (len(shape) < 2 and len(out) < 2):
        call.finish("Reshape", [call.inputs[0], call.sizes("shape", sizes)])
        return
    x, last = call.inputs[0], (0, *range(2, len(shape)), 1)
    if len(shape) > 1:
        x = call.step("Transpose", [x], "channels_last", perm=last)
    if len(out) < 2:
        call.finish("Reshape", [x, call.sizes("shape", out)])
        return
    moved = (out[0], *out[2:], out[1])
    x = call.step("Reshape", [x, call.sizes("shape", moved)], "reshaped")
    call.finish("Transpose", [x], perm=[0, len(out) - 1, *range(1, len(out) - 1)])


def _permute(call: Call) -> None:
    rank = len(call.shape())
    given = tuple(call.attrs.order)
    order = given + tuple(axis for axis in range(rank) if axis not in given)
    call.finish("Transpose", call.inputs[:1], perm=list(order))


def _squeeze(call: Call) -> None:
    shape = call.shape()
    axes = {axis % len(shape) for axis in call.attrs.axes}
    axes = axes or {axis for axis, size in enumerate(shape) if size == 1}
    if not axes:
        call.finish("Identity", call.inputs[:1])
        return
    call.finish("Squeeze", [call.inputs[0], call.sizes("axes", sorted(axes))])


def _unsqueeze(call: Call) -> None:
    """Axes inserted one after the other become axes of the result."""
    places = [False] * len(call.shape())
    for axis in call.attrs.axes:
        places.insert(axis % (len(places) + 1), True)
    axes = [axis for axis, is_new in enumerate(places) if is_new]
    call.finish("Unsqueeze", [call.inputs[0], call.sizes("axes", axes)])


def _pad(call: Call) -> None:
    attrs = call.attrs
    missing = (0,) * (len(call.shape()) - len(attrs.begins))
    pads = (*attrs.begins, *missing, *attrs.ends, *missing)
    inputs = [call.inputs[0], call.sizes("pads", pads)]
    if attrs.kind == "constant":
        inputs.append(call.number("value", attrs.value))
    call.finish("Pad", inputs, mode=attrs.kind)


def _slice(call: Call) -> None:
    """Begins and ends counted from the first element, as the shapes have them."""
    attrs, shape, out = call.attrs, call.shape(), call.out_shape()
    axes = [axis % len(shape) for axis in attrs.axes or range(len(attrs.begins))]
    begins, ends = [], []
    for axis, begin, stride in zip(axes, attrs.begins, attrs.strides, strict=True):
        start = begin + shape[axis] if begin < 0 else begin
        start = min(max(start, 0), shape[axis] - (1 if stride < 0 else 0))
        stop = start + out[axis] * stride
        begins.append(start)
        ends.append(_FIRST if stop < 0 else min(stop, shape[axis]))
    parts = {"begins": begins, "ends": ends, "axes": axes, "strides": attrs.strides}
    names = [call.sizes(role, values) for role, values in parts.items()]
    call.finish("Slice", [call.inputs[0], *names])


def _split_v(call: Call) -> None:
    axis = call.attrs.axis
    sizes = [call.out_shape(i)[axis] for i in range(len(call.outputs))]
    call.finish("Split", [call.inputs[0], call.sizes("sizes", sizes)], axis=axis)


def _split(call: Call) -> None:
    for output in call.outputs:
        call.model.add("Identity", call.inputs[:1], [output], f"{call.node.name}:{output}")


def _shuffle_channel(call: Call) -> None:
    shape, group = call.shape(), call.attrs.group
    split = call.sizes("split", (0, group, shape[1] // group, -1))
    grouped = call.step("Reshape", [call.inputs[0], split], "grouped")
    swapped = call.step("Transpose", [grouped], "swapped", perm=[0, 2, 1, 3])
    call.finish("Reshape", [swapped, call.sizes("whole", (0, *shape[1:]))])


def _pixel_shuffle(call: Call) -> None:
    call.finish("DepthToSpace", blocksize=call.attrs.group, mode="CRD")


def _constant(call: Call) -> None:
    value = call.array("value").reshape(tuple(call.attrs.shape))
    call.finish("Constant", [], value=onnx.numpy_helper.from_array(np.array(value, order="C")))


def _cast(call: Call) -> None:
    """Blobs are float32: values are rounded to what the type holds and come back."""
    if call.attrs.dtype == "float32":
        call.finish("Identity")
        return
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(call.attrs.dtype))
    there = call.step("Cast", call.inputs, "cast", to=kind)
    call.finish("Cast", [there], to=onnx.TensorProto.FLOAT)


def _gather(call: Call) -> None:
    attrs = call.attrs
    data = call.weight("data") if attrs.data_in_resource else call.inputs[0]
    if attrs.indices_in_resource:
        indices = call.constant("indices", np.asarray(call.node.weights["indices"], np.int64))
    else:
        indices = call.step("Cast", [call.inputs[-1]], "indices", to=onnx.TensorProto.INT64)
    call.finish("Gather", [data, indices], axis=attrs.axis)


def _tile(call: Call) -> None:
    repeats, shape = tuple(call.attrs.repeats), call.shape()
    x = call.inputs[0]
    if len(repeats) > len(shape):
        full = (1,) * (len(repeats) - len(shape)) + shape
        x = call.step("Reshape", [x, call.sizes("shape", full)], "full")
    repeats = (1,) * (len(shape) - len(repeats)) + repeats
    call.finish("Tile", [x, call.sizes("repeats", repeats)])


def _reduce(op: str) -> Translation:
    def write(call: Call) -> None:
        attrs, rank = call.attrs, len(call.shape())
        axes = sorted({axis % rank for axis in attrs.axes}) or list(range(rank))
        keep = int(attrs.keep_dims)
        if op == "ReduceSum":  # its axes are an input since opset 13
            call.finish(op, [call.inputs[0], call.sizes("axes", axes)], keepdims=keep)
        else:
            call.finish(op, call.inputs[:1], axes=axes, keepdims=keep)

    return write


def _upsample(call: Call) -> None:
    attrs = call.attrs
    options: dict[str, Any]
    if attrs.mode == "nearest":
        options = {
            "mode": "nearest",
            "nearest_mode": "floor",
            "coordinate_transformation_mode": "asymmetric",
        }
    else:
        corners = "align_corners" if attrs.align_corners else "pytorch_half_pixel"
        mode = "linear" if attrs.mode == "bilinear" else "cubic"
        options = {"mode": mode, "coordinate_transformation_mode": corners}
        if mode == "cubic":
            options["cubic_coeff_a"] = -0.75
    sizes = call.sizes("sizes", call.out_shape())
    call.finish("Resize", [call.inputs[0], "", "", sizes], **options)


def _along_axis(op: str) -> Translation:
    return lambda call: call.finish(op, axis=call.attrs.axis)


TRANSLATIONS: dict[str, Translation] = {
    "convolution": write_convolution,
    "deconvolution": _deconvolution,
    "pooling": write_pooling,
    "inner_product": write_inner_product,
    "matmul": _matmul,
    "add": _binary("Add"),
    "sub": _binary("Sub"),
    "mul": _binary("Mul"),
    "div": _binary("Div"),
    "maximum": _binary("Max"),
    "minimum": _binary("Min"),
    "relu": _plain("Relu"),
    "relu6": _clip(0.0, 6.0),
    "clip": _clip(),
    "sigmoid": _plain("Sigmoid"),
    "tanh": _plain("Tanh"),
    "swish": _swish,
    "exp": _plain("Exp"),
    "elu": _elu,
    "softplus": _plain("Softplus"),
    "erf": _plain("Erf"),
    "gelu": _gelu,
    "abs": _plain("Abs"),
    "neg": _plain("Neg"),
    "log": _plain("Log"),
    "sqrt": _plain("Sqrt"),
    "floor": _plain("Floor"),
    "ceil": _plain("Ceil"),
    "reciprocal": _plain("Reciprocal"),
    "power": _power,
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": _hard_swish,
    "prelu": _prelu,
    "batch_norm": _batch_norm,
    "scale": _batch_norm,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "lrn": _lrn,
    "softmax": _along_axis("Softmax"),
    "log_softmax": _along_axis("LogSoftmax"),
    "concat": _along_axis("Concat"),
    "split_v": _split_v,
    "split": _split,
    "shuffle_channel": _shuffle_channel,
    "pixel_shuffle": _pixel_shuffle,
    "reshape": _reshape,
    "flatten": _along_axis("Flatten"),
    "permute": _permute,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "pad": _pad,
    "pad_v2": _pad,
    "strided_slice": _slice,
    "strided_slice_v2": _slice,
    "constant": _constant,
    "cast": _cast,
    "gather": _gather,
    "tile": _tile,
    "upsample": _upsample,
    "reduce_mean": _reduce("ReduceMean"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_l1": _reduce("ReduceL1"),
    "reduce_l2": _reduce("ReduceL2"),
    "reduce_log_sum": _reduce("ReduceLogSum"),
    "reduce_log_sum_exp": _reduce("ReduceLogSumExp"),
    "reduce_sum_square": _reduce("ReduceSumSquare"),
}
