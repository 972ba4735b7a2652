"""Reductions over axes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.kernels import reduce as kernels
from quantjit.ops import Arrays, Op, Request, Runner, Shape


@dataclass(frozen=True, slots=True)
class ReduceAttrs:
    """axes to reduce, none: all; keep_dims: keep them with size 1."""

    axes: tuple[int, ...]
    keep_dims: bool = True


def _axes(node: Node, shape: Shape) -> tuple[int, ...]:
    rank = len(shape)
    wrong = [axis for axis in node.attrs.axes if not -rank <= axis < rank]
    if wrong:
        raise GraphError(f"node {node.name!r}", f"axis {wrong[0]} is not one of the blob {shape}")
    return tuple(sorted({axis % rank for axis in node.attrs.axes})) or tuple(range(rank))


def _infer_shape(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    axes = _axes(node, inputs[0])
    if node.attrs.keep_dims:
        return (tuple(1 if i in axes else size for i, size in enumerate(inputs[0])),)
    return (tuple(size for i, size in enumerate(inputs[0]) if i not in axes),)


def _prepare(code: int) -> Callable[[Request], Runner]:
    def prepare(request: Request) -> Runner:
        shape = request.input_shapes[0]
        axes = _axes(request.node, shape)
        adjoin = axes == tuple(range(axes[0], axes[-1] + 1))
        kept = tuple(axis for axis in range(len(shape)) if axis not in axes)
        moved = np.empty(0 if adjoin else [shape[axis] for axis in (*kept, *axes)], np.float32)
        reduced = prod(shape[axis] for axis in axes)
        inner = prod(shape[axes[-1] + 1 :]) if adjoin else 1
        view = (prod(shape) // (reduced * inner), reduced, inner)
        out_view = (view[0], view[2])
        work = np.empty((2, view[2]), np.float64)

        def run(inputs: Arrays, outputs: Arrays) -> None:
            x = inputs[0]
            if not adjoin:
                moved[...] = x.transpose(*kept, *axes)
                x = moved
            kernels.reduce_into(code, x.reshape(view), work, outputs[0].reshape(out_view))

        return run

    return prepare


_CODES = {
    "reduce_mean": kernels.MEAN,
    "reduce_max": kernels.MAX,
    "reduce_min": kernels.MIN,
    "reduce_sum": kernels.SUM,
    "reduce_prod": kernels.PROD,
    "reduce_l1": kernels.L1,
    "reduce_l2": kernels.L2,
    "reduce_log_sum": kernels.LOG_SUM,
    "reduce_log_sum_exp": kernels.LOG_SUM_EXP,
    "reduce_sum_square": kernels.SUM_SQUARE,
}

OPS = tuple(Op(name, ReduceAttrs, _infer_shape, _prepare(code)) for name, code in _CODES.items())
