"""ONNX layers with weights or windows: convolution, matrix products, pooling, normalization."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from quantjit.formats._onnx_read_call import Call, MalformedError, RefusedError, Translation
from quantjit.ops.activation import PowerAttrs
from quantjit.ops.convolution import ConvolutionAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.ops.inner_product import InnerProductAttrs
from quantjit.ops.matmul import MatMulAttrs
from quantjit.ops.normalization import (
    GroupNormAttrs,
    InstanceNormAttrs,
    LayerNormAttrs,
    LrnAttrs,
)
from quantjit.ops.pooling import PoolingAttrs
from quantjit.ops.reduce import ReduceAttrs
from quantjit.ops.shape import AxesAttrs, PermuteAttrs, ReshapeAttrs
from quantjit.ops.softmax import SoftmaxAttrs

Shape = tuple[int, ...]
Pair = tuple[int, int]
Pads = tuple[int, int, int, int]

_AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def _planes(call: Call) -> Shape:
    """Return the shape of the input, which must be NCHW."""
    shape = call.shape()
    if len(shape) != 4:
        raise RefusedError(f"its input has shape {shape}; only NCHW, two spatial axes, is run")
    return shape


@dataclass(frozen=True, slots=True)
class _Window:
    """Kernel, strides and dilations, each (h, w), and pads: top, bottom, left, right."""

    kernel: Pair
    strides: Pair
    dilations: Pair
    pads: Pads
    auto_pad: str

    def reach(self, axis: int) -> int:
        """Input pixels from the first tap to the last."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1


def _pair(call: Call, name: str) -> Pair:
    values = call.integers(name) or (1, 1)
    if len(values) != 2 or min(values) < 1:
        raise MalformedError(f"{name} {values} are not two positive numbers")
    return values[0], values[1]


def _window(call: Call, kernel: Shape) -> _Window:
    """Read the window; "same" and "valid" pads are those of its input's size."""
    strides, dilations = _pair(call, "strides"), _pair(call, "dilations")
    auto_pad = call.text("auto_pad", "NOTSET") or "NOTSET"
    if auto_pad not in _AUTO_PADS:
        raise MalformedError(f"auto_pad {auto_pad!r} is none of {', '.join(_AUTO_PADS)}")
    if len(kernel) != 2 or min(kernel) < 1:
        raise MalformedError(f"kernel {kernel} is not two positive numbers")
    pads = call.integers("pads") or (0, 0, 0, 0)
    if len(pads) != 4:
        raise MalformedError(f"pads {pads} are not four numbers")
    top, left, bottom, right = pads if auto_pad == "NOTSET" else (0, 0, 0, 0)
    return _Window((kernel[0], kernel[1]), strides, dilations, (top, bottom, left, right), auto_pad)


def _same_pads(window: _Window, sizes: Shape) -> Pads:
    """Return pads for an output of ceil(size / stride), where asked for."""
    if not window.auto_pad.startswith("SAME"):
        return window.pads
    pads: list[int] = []
    for axis, size in enumerate(sizes):
        stride = window.strides[axis]
        total = max((-(-size // stride) - 1) * stride + window.reach(axis) - size, 0)
        smaller, larger = total // 2, total - total // 2
        pads += (smaller, larger) if window.auto_pad == "SAME_UPPER" else (larger, smaller)
    return pads[0], pads[1], pads[2], pads[3]


# ------------------------------------------------------------------ convolution


def _filters(call: Call) -> NDArray[np.float32]:
    weight = call.float_constant(1, "weight")
    if weight.ndim != 4:
        raise RefusedError(f"its weight has shape {weight.shape}; only 2-D convolution is run")
    kernel = call.integers("kernel_shape")
    if kernel is not None and kernel != weight.shape[2:]:
        raise MalformedError(f"kernel_shape {kernel} is not that of the weight {weight.shape}")
    return weight


def _with_bias(
    call: Call, weight: NDArray[np.float32], channels: int
) -> dict[str, NDArray[np.float32]]:
    if not call.has(2):
        return {"weight": weight}
    bias = call.float_constant(2, "bias").reshape(-1)
    if bias.size != channels:
        raise MalformedError(f"a bias of {bias.size} values for {channels} channels")
    return {"weight": weight, "bias": bias}


def _attrs(
    window: _Window, group: int, channels: Pair, pads: Pads, *, has_bias: bool
) -> ConvolutionAttrs:
    return ConvolutionAttrs(
        group,
        *channels,
        *window.kernel,
        *window.strides,
        pads=pads,
        dilation_h=window.dilations[0],
        dilation_w=window.dilations[1],
        has_bias=has_bias,
    )


def _conv(call: Call) -> None:
    shape, weight = _planes(call), _filters(call)
    group = call.integer("group", 1)
    window = _window(call, weight.shape[2:])
    pads = _same_pads(window, shape[2:])
    channels = (weight.shape[1] * group, weight.shape[0])
    attrs = _attrs(window, group, channels, pads, has_bias=call.has(2))
    call.emit("convolution", attrs=attrs, weights=_with_bias(call, weight, channels[1]))


def _conv_transpose(call: Call) -> None:
    shape, weight = _planes(call), _filters(call)
    group = call.integer("group", 1)
    window = _window(call, weight.shape[2:])
    extra = call.integers("output_padding") or (0, 0)
    wanted = call.integers("output_shape")
    if len(extra) != 2 or (wanted is not None and len(wanted) < 2):
        raise MalformedError("output_padding or output_shape is not two numbers")
    pads: list[int] = []
    for axis in range(2):
        size, stride = shape[2 + axis], window.strides[axis]
        spread = (size - 1) * stride + window.reach(axis) + extra[axis]
        if wanted is None and window.auto_pad in {"NOTSET", "VALID"}:
            before, after = window.pads[2 * axis], window.pads[2 * axis + 1]
        else:
            target = size * stride if wanted is None else wanted[len(wanted) - 2 + axis]
            total = spread - target
            smaller, larger = total // 2, total - total // 2
            upper = window.auto_pad == "SAME_UPPER"
            before, after = (smaller, larger) if upper else (larger, smaller)
        pads += [before, after - extra[axis]]
    channels = (weight.shape[0], weight.shape[1] * group)
    attrs = _attrs(
        window, group, channels, (pads[0], pads[1], pads[2], pads[3]), has_bias=call.has(2)
    )
    call.emit("deconvolution", attrs=attrs, weights=_with_bias(call, weight, channels[1]))


# ------------------------------------------------------------------ matrix products


def _gemm(call: Call) -> None:
    alpha, beta = np.float32(call.real("alpha", 1.0)), np.float32(call.real("beta", 1.0))
    if call.value(1) is None:
        raise RefusedError("its second operand is computed from the input; use MatMul and Add")
    weight = call.float_constant(1, "weight") * alpha
    if weight.ndim != 2:
        raise MalformedError(f"its weight has shape {weight.shape}, not two dimensions")
    if not call.integer("transB", 0):
        weight = weight.T
    source, shape = call.blob(), call.shape()
    if len(shape) != 2:
        raise MalformedError(f"its first operand has shape {shape}, not two dimensions")
    if call.integer("transA", 0):
        source, shape = _transposed(call, source), shape[::-1]
    weights = {"weight": weight}
    bias = call.value(2)
    fits = bias is not None and prod(bias.shape[:-1]) == 1
    if bias is not None and fits:
        values = np.asarray(bias, np.float32).reshape(-1) * beta
        weights["bias"] = np.array(np.broadcast_to(values, len(weight)))
    attrs = InnerProductAttrs(len(weight), has_bias="bias" in weights)
    if not call.has(2) or fits:
        call.emit("inner_product", (source,), attrs, weights)
        return
    product = call.emit("inner_product", (source,), attrs, weights, suffix="product")
    _add_scaled(call, product, beta)


def _transposed(call: Call, source: str) -> str:
    return call.emit("permute", (source,), PermuteAttrs((1, 0)), suffix="transposed")


def _add_scaled(call: Call, product: str, beta: np.float32) -> None:
    """Add beta times the third operand of Gemm."""
    addend = call.blob(2)
    if beta != 1:
        weights = {"constant": np.array(beta)}
        addend = call.emit("mul", (addend,), BinaryAttrs(1), weights, suffix="addend")
    call.emit("add", (product, addend), BinaryAttrs())


def _matmul_of_vector(call: Call, left: Shape, right: Shape) -> None:
    """Multiply with a vector: a matrix of one row or column, whose dimension is dropped again."""
    operands = [call.blob(0), call.blob(1)]
    dropped: list[int] = []
    for index, (shape, axis) in enumerate(((left, 0), (right, 1))):
        if len(shape) == 1:
            operands[index] = call.emit(
                "unsqueeze", (operands[index],), AxesAttrs((axis,)), suffix=f"operand{index}"
            )
            dropped.append(-2 if index == 0 else -1)
    product = call.emit("matmul", tuple(operands), MatMulAttrs(), suffix="product")
    call.emit("squeeze", (product,), AxesAttrs(tuple(dropped)))


def _matmul(call: Call) -> None:
    left, right = call.shape(0), call.shape(1)
    if min(len(left), len(right)) < 2:
        _matmul_of_vector(call, left, right)
        return
    left_value, right_value = call.value(0), call.value(1)
    if right_value is not None and len(left) == 2 and len(right) == 2:
        weight = call.float_constant(1, "weight").T
        attrs = InnerProductAttrs(len(weight), has_bias=False)
        call.emit("inner_product", attrs=attrs, weights={"weight": weight})
    elif right_value is not None:
        weights = {"weight": call.float_constant(1, "weight")}
        call.emit("matmul", attrs=MatMulAttrs(1), weights=weights)
    elif left_value is not None:
        weights = {"weight": call.float_constant(0, "weight")}
        call.emit("matmul", (call.blob(1),), MatMulAttrs(0), weights)
    else:
        call.emit("matmul", (call.blob(0), call.blob(1)), MatMulAttrs())


# ------------------------------------------------------------------ pooling


def _rounded_up(call: Call, window: _Window, sizes: Shape) -> tuple[Pads, bool]:
    """Return the pads and ceil_mode of TNN's pooling that make ONNX's windows.

    ONNX drops a last window that starts behind the input and its pad before; TNN does not.
    """
    given = _same_pads(window, sizes)
    if not call.integer("ceil_mode", 0):
        return given, False
    pads = list(given)
    agrees, counts = True, []
    for axis, size in enumerate(sizes):
        stride = window.strides[axis]
        before, after = pads[2 * axis : 2 * axis + 2]
        last = -(-(size + before + after - window.reach(axis)) // stride)
        counts.append(last + 1 if last * stride < size + before else last)
        agrees = agrees and counts[-1] == last + 1
    if agrees:
        return given, True
    for axis, size in enumerate(sizes):  # rounded down, with pads that make as many windows
        spread = (counts[axis] - 1) * window.strides[axis] + window.reach(axis)
        missing = spread - size - sum(pads[2 * axis : 2 * axis + 2])
        if missing > 0 and call.integer("count_include_pad", 0):
            raise RefusedError("ceil_mode with count_include_pad adds windows on one side only")
        pads[2 * axis + 1] += max(missing, 0)
    return (pads[0], pads[1], pads[2], pads[3]), False


def _pool(kind: str) -> Translation:
    def translate(call: Call) -> None:
        shape = _planes(call)
        kernel = call.integers("kernel_shape")
        if kernel is None:
            raise MalformedError("it has no kernel_shape")
        window = _window(call, kernel)
        if kind == "max" and call.wants(1):
            raise RefusedError("its second output, the indices, is not computed")
        if call.integer("storage_order", 0) and call.wants(1):
            raise RefusedError("storage_order 1 is not run")
        pads, ceil_mode = _rounded_up(call, window, shape[2:])
        attrs = PoolingAttrs(
            kind,
            *window.kernel,
            *window.strides,
            pads=pads,
            ceil_mode=ceil_mode,
            count_include_pad=kind == "average" and bool(call.integer("count_include_pad", 0)),
        )
        if window.dilations != (1, 1):
            raise RefusedError("dilated windows are not run")
        call.emit("pooling", attrs=attrs)

    return translate


def _global_pool(kind: str) -> Translation:
    reduction = {"max": "reduce_max", "average": "reduce_mean"}[kind]

    def translate(call: Call) -> None:
        rank = len(call.shape())
        if rank == 4:
            call.emit("pooling", attrs=PoolingAttrs(kind, 0, 0))
        else:
            call.emit(reduction, attrs=ReduceAttrs(tuple(range(2, rank))))

    return translate


# ------------------------------------------------------------------ normalization


def _batch_normalization(call: Call) -> None:
    if call.integer("training_mode", 0) or (call.opset < 14 and any(map(call.wants, range(1, 5)))):
        raise RefusedError("it is in training mode; export the network for inference")
    if call.integer("spatial", 1) != 1:
        raise RefusedError("spatial 0 is not run")
    scale, bias, mean, variance = (
        np.asarray(call.constant(index, what), np.float64)
        for index, what in enumerate(("scale", "bias", "mean", "variance"), start=1)
    )
    if {array.shape for array in (scale, bias, mean, variance)} != {call.shape()[1:2]}:
        raise MalformedError(f"its vectors do not fit the channels of {call.shape()}")
    gain = scale / np.sqrt(variance + call.real("epsilon", 1e-5))
    weights = {"scale": gain.astype(np.float32), "bias": (bias - mean * gain).astype(np.float32)}
    call.emit("batch_norm", weights=weights)


def _instance_normalization(call: Call) -> None:
    weights = {"scale": call.float_constant(1, "scale"), "bias": call.float_constant(2, "bias")}
    channels = call.shape()[1]
    attrs = InstanceNormAttrs(channels, call.real("epsilon", 1e-5))
    call.emit("instance_norm", attrs=attrs, weights=weights)


def _axis(call: Call, default: int) -> int:
    rank, axis = len(call.shape()), call.integer("axis", default)
    if not -rank <= axis < rank:
        raise MalformedError(f"axis {axis} is not one of {rank} dimensions")
    return axis % rank


def _layer_normalization(call: Call) -> None:
    shape, axis = call.shape(), _axis(call, -1)
    row = shape[axis:]
    weights = {}
    for index, role, default in ((1, "scale", 1.0), (2, "bias", 0.0)):
        given = call.float_constant(index, role) if call.has(index) else np.array(default)
        weights[role] = np.array(np.broadcast_to(given, row), np.float32)
    attrs = LayerNormAttrs(len(row), call.real("epsilon", 1e-5))
    call.emit("layer_norm", attrs=attrs, weights=weights)
    if call.wants(1) or call.wants(2):
        _layer_statistics(call, tuple(range(axis, len(shape))), attrs.epsilon)


def _layer_statistics(call: Call, axes: Shape, epsilon: float) -> None:
    """Compute the second and third output: the mean, and one over the standard deviation."""
    names = [*call.proto.output, ""][1:3]
    mean = names[0] if call.wants(1) else f"{call.output()}:mean"
    over = ReduceAttrs(axes)
    call.emit("reduce_mean", attrs=over, outputs=(mean,))
    if call.wants(2):
        centred = call.emit("sub", (call.blob(), mean), BinaryAttrs(), suffix="centred")
        square = call.emit("power", (centred,), PowerAttrs(2.0), suffix="square")
        variance = call.emit("reduce_mean", (square,), over, suffix="variance")
        inverse = PowerAttrs(-0.5, 1.0, epsilon)
        call.emit("power", (variance,), inverse, outputs=(names[1],))


def _group_normalization(call: Call) -> None:
    shape, group = call.shape(), call.integer("num_groups", 1)
    if len(shape) < 2 or group < 1 or shape[1] % group:
        raise MalformedError(f"{group} groups do not divide the blob {shape}")
    weights = {}
    for index, role in ((1, "scale"), (2, "bias")):
        given = call.float_constant(index, role)
        per_group = call.opset < 21 and given.size == group
        weights[role] = given.repeat(shape[1] // group) if per_group else given
    call.emit(
        "group_norm", attrs=GroupNormAttrs(group, call.real("epsilon", 1e-5)), weights=weights
    )


def _lrn(call: Call) -> None:
    size = call.integer("size", 1)
    if size % 2 == 0:
        raise RefusedError(f"an even size, {size}, is not run")
    attrs = LrnAttrs(
        call.real("alpha", 1e-4), call.real("beta", 0.75), call.real("bias", 1.0), size
    )
    call.emit("lrn", attrs=attrs)


# ------------------------------------------------------------------ softmax


def _softmax(op: str) -> Translation:
    def translate(call: Call) -> None:
        shape = call.shape()
        if call.opset >= 13:
            call.emit(op, attrs=SoftmaxAttrs(_axis(call, -1)))
            return
        axis = _axis(call, 1)
        if prod(shape[axis + 1 :]) == 1:
            call.emit(op, attrs=SoftmaxAttrs(axis))
            return
        # before opset 13 the sum runs over all axes from that one on
        flat = ReshapeAttrs((prod(shape[:axis]), prod(shape[axis:])))
        rows = call.emit("reshape", attrs=flat, suffix="rows")
        chances = call.emit(op, (rows,), SoftmaxAttrs(1), suffix="flat")
        call.emit("reshape", (chances,), ReshapeAttrs(shape))

    return translate


TRANSLATIONS: Mapping[str, Translation] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MaxPool": _pool("max"),
    "AveragePool": _pool("average"),
    "GlobalMaxPool": _global_pool("max"),
    "GlobalAveragePool": _global_pool("average"),
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "GroupNormalization": _group_normalization,
    "LRN": _lrn,
    "Softmax": _softmax("softmax"),
    "LogSoftmax": _softmax("log_softmax"),
}
