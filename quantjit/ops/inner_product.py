"""Inner product (fully connected), float and int8 (``cpu_inner_product_layer_acc.cc`` in TNN)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantjit.errors import GraphError
from quantjit.graph import Array, Node
from quantjit.kernels import convolution, gemm, tiling
from quantjit.ops import Arrays, Op, Request, Runner, Shape
from quantjit.ops.convolution import (
    check_sums,
    checked_bias,
    checked_weight,
    requantization_factor,
    rounding,
    spread,
)


@dataclass(frozen=True, slots=True)
class InnerProductAttrs:
    """out_features; has_bias; transpose (weights stored (K, out)); axis from which to flatten."""

    out_features: int
    has_bias: bool = True
    transpose: bool = False
    axis: int = 1


def _infer_shape(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    """Return (batch, out_features, 1, 1 ...): TNN keeps the rank of its input."""
    shape, axis = inputs[0], node.attrs.axis
    if not 0 < axis < len(shape):
        raise GraphError(f"node {node.name!r}", f"cannot flatten {shape} from axis {axis}")
    ones = (1,) * (len(shape) - axis - 1)
    return ((*shape[:axis], node.attrs.out_features, *ones),)


def _macs(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    del outputs
    return math.prod(inputs[0]) * int(node.attrs.out_features)


def _required(attrs: InnerProductAttrs) -> tuple[str, ...]:
    return ("weight", "bias") if attrs.has_bias else ("weight",)


def _checked(node: Node, depth: int) -> Array:
    """Return the weight as (out_features, depth)."""
    attrs: InnerProductAttrs = node.attrs
    if attrs.transpose:
        return checked_weight(node, "weight", (depth, attrs.out_features)).T
    return checked_weight(node, "weight", (attrs.out_features, depth))


def _rows(request: Request) -> tuple[int, int]:
    shape, axis = request.input_shapes[0], request.node.attrs.axis
    return math.prod(shape[:axis]), math.prod(shape[axis:])


def _prepare_float(request: Request) -> Runner:
    rows, depth = _rows(request)
    transposed = np.array(_checked(request.node, depth).T, np.float32, order="C")
    bias = checked_bias(request.node, request.node.attrs.out_features, np.float32)
    count = request.node.attrs.out_features
    if request.uses_vectors:
        weight = np.ascontiguousarray(transposed.T)
        owner = tiling.Owner(request.node.weights["weight"])
        return tiling.prepare_product_float(rows, weight, bias, request.threads, owner)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        out = outputs[0].reshape(rows, -1)
        out[:] = 0
        gemm.multiply_float_into(inputs[0].reshape(rows, depth), transposed, 0, 0, count, out)
        out += bias

    return run


def _prepare_int8(request: Request) -> Runner:
    node, quant = request.node, request.node.quant
    if quant is None:
        raise GraphError(f"node {node.name!r}", "is not quantized")
    rows, depth = _rows(request)
    source, target = request.input_quant[0], request.output_quant[0]
    if source.per_channel or target.per_channel:
        raise GraphError(f"node {node.name!r}", "an int8 inner product has per-tensor blobs only")
    count = node.attrs.out_features
    zeros = spread(quant.weight_zero_point, count, 1).reshape(-1, 1)
    weight = _checked(node, depth).astype(np.int16) - zeros.astype(np.int16)
    check_sums(node, weight.astype(np.int32), source.zero_point)
    transposed = np.array(weight.T, order="C")
    bias = checked_bias(node, count, np.int32)
    factor = spread(requantization_factor(quant.weight_scale, target.scale), count, 1)[0]
    zero_point = spread(target.zero_point, count, 1)[0]
    input_zero = np.int32(source.zero_point[0])
    if request.uses_vectors and tiling.fits(weight.astype(np.int32), bias):
        empty = np.zeros(count, np.float32)
        finish = tiling.Requantization(
            factor, zero_point.astype(np.float32), empty + 127, empty, empty, empty, empty,
            -np.inf, rounding(request), adds=False,
        )  # fmt: skip
        codes = np.ascontiguousarray(weight, np.int32)
        return tiling.prepare_product_int8(
            rows, codes, bias, int(input_zero), finish, request.threads,
            tiling.Owner(node.weights["weight"], quant.weight_zero_point.tobytes()),
        )  # fmt: skip
    x = np.empty((rows, depth), np.int32)
    sums = np.empty((rows, count), np.int32)
    nothing, no_factor = np.zeros((1, 1), np.int8), np.zeros(1, np.float32)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        sums[:] = 0
        np.subtract(inputs[0].reshape(rows, depth), input_zero, out=x, dtype=np.int32)
        gemm.multiply_int_into(x, transposed, count, sums)
        out = outputs[0].reshape(rows, count)
        for row in range(rows):
            convolution.finish_int8_into(
                sums[row].reshape(count, 1), 0, 1, bias, factor, zero_point, zero_point,
                convolution.NONE, request.is_onnx, convolution.NO_ADD, nothing, no_factor,
                nothing[0], out[row].reshape(count, 1),
            )  # fmt: skip

    return run


OPS = (
    Op(
        "inner_product",
        InnerProductAttrs,
        _infer_shape,
        _prepare_float,
        _prepare_int8,
        _macs,
        _required,
    ),
)
