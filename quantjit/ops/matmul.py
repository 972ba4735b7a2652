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


def _prepare_float(request: Request) -> Runner:
    node = request.node
    left_shape, right_shape = _operands(node, request.input_shapes)
    leading = request.output_shapes[0][:-2]
    index = node.attrs.constant_index
    constant = np.asarray(node.weights["weight"], np.float32) if index >= 0 else None

    def run(inputs: Arrays, outputs: Arrays) -> None:
        operands = list(inputs)
        if constant is not None:
            operands.insert(index, constant)
        left = np.broadcast_to(operands[0], (*leading, *left_shape[-2:]))
        right = np.broadcast_to(operands[1], (*leading, *right_shape[-2:]))
        for place in np.ndindex(leading):
            out = outputs[0][place]
            out[:] = 0
            gemm.multiply_rows_float_into(
                np.ascontiguousarray(left[place]), np.ascontiguousarray(right[place]), out
            )

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
