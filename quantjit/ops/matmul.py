"""Matrix product with NumPy's broadcasting of the leading dimensions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.kernels import gemm
from quantjit.ops import Arrays, Op, Request, Runner, Shape


@dataclass(frozen=True, slots=True)
class MatMulAttrs:
    """constant_index: which operand (0 or 1) is ``weights["weight"]``; -1: both are blobs."""

    constant_index: int = -1


def _operands(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, Shape]:
    shapes = list(inputs)
    if node.attrs.constant_index >= 0:
        weight = node.weights.get("weight")
        if weight is None:
            raise GraphError(f"node {node.name!r}", "has no weight")
        shapes.insert(node.attrs.constant_index, weight.shape)
    if len(shapes) != 2 or min(map(len, shapes)) < 2 or shapes[0][-1] != shapes[1][-2]:
        raise GraphError(f"node {node.name!r}", f"cannot multiply shapes {shapes}")
    return shapes[0], shapes[1]


def _infer_shape(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    left, right = _operands(node, inputs)
    try:
        leading = np.broadcast_shapes(left[:-2], right[:-2])
    except ValueError:
        raise GraphError(
            f"node {node.name!r}", f"cannot broadcast {left[:-2]} and {right[:-2]}"
        ) from None
    return ((*leading, left[-2], right[-1]),)


def _macs(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    return math.prod(outputs[0]) * _operands(node, inputs)[0][-1]


def _required(attrs: MatMulAttrs) -> tuple[str, ...]:
    return ("weight",) if attrs.constant_index >= 0 else ()


def _matrix_numbers(shape: Shape, out_shape: Shape) -> list[int]:
    """Which matrix of an operand each matrix of the result reads, after broadcasting."""
    leading = shape[:-2]
    numbers = np.arange(math.prod(leading)).reshape(leading)
    return [int(number) for number in np.broadcast_to(numbers, out_shape[:-2]).flat]


def _prepare_float(request: Request) -> Runner:
    node = request.node
    left_shape, right_shape = _operands(node, request.input_shapes)
    out_shape = request.output_shapes[0]
    index = node.attrs.constant_index
    constant = np.array(node.weights["weight"], np.float32, order="C") if index >= 0 else None
    lefts = _matrix_numbers(left_shape, out_shape)
    rights = _matrix_numbers(right_shape, out_shape)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        operands = list(inputs)
        if constant is not None:
            operands.insert(index, constant)
        left = operands[0].reshape(-1, *left_shape[-2:])
        right = operands[1].reshape(-1, *right_shape[-2:])
        out = outputs[0].reshape(-1, *out_shape[-2:])
        out[:] = 0
        for product, a, b in zip(out, lefts, rights, strict=True):
            gemm.multiply_float_into(left[a], right[b], 0, 0, out_shape[-1], product)

    return run


OPS = (
    Op(
        "matmul",
        MatMulAttrs,
        _infer_shape,
        _prepare_float,
        None,
        _macs,
        _required,
    ),
)
