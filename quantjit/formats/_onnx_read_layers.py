"""ONNX layers of whole rows and channels: matrix products, normalization, softmax."""

from collections.abc import Mapping
from math import prod

import numpy as np

from quantjit.formats._onnx_read_call import Call, MalformedError, RefusedError, Translation
from quantjit.ops.activation import PowerAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.ops.inner_product import InnerProductAttrs
from quantjit.ops.matmul import MatMulAttrs
from quantjit.ops.normalization import (
    GroupNormAttrs,
    InstanceNormAttrs,
    LayerNormAttrs,
    LrnAttrs,
)
from quantjit.ops.reduce import ReduceAttrs
from quantjit.ops.shape import AxesAttrs, PermuteAttrs, ReshapeAttrs
from quantjit.ops.softmax import SoftmaxAttrs

Shape = tuple[int, ...]

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
    mean = names[0] if call.wants(1) else call.sink.unused(f"{call.output()}:mean")
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
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "GroupNormalization": _group_normalization,
    "LRN": _lrn,
    "Softmax": _softmax("softmax"),
    "LogSoftmax": _softmax("log_softmax"),
}
