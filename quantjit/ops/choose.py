"""Comparisons and choices by element; truth is a float32 blob of ones and zeros."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.ops import Arrays, NoAttrs, Op, Request, Runner, Shape


def _infer(count: int) -> Callable[[Node, Sequence[Shape]], tuple[Shape, ...]]:
    def infer(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
        if len(inputs) != count:
            raise GraphError(f"node {node.name!r}", f"{node.op} needs {count} operands")
        try:
            return (tuple(np.broadcast_shapes(*inputs)),)
        except ValueError:
            listed = " and ".join(str(shape) for shape in inputs)
            raise GraphError(f"node {node.name!r}", f"{listed} cannot be broadcast") from None

    return infer


def _ufunc(function: Any) -> Callable[[Request], Runner]:
    def prepare(request: Request) -> Runner:
        del request

        def run(inputs: Arrays, outputs: Arrays) -> None:
            function(*inputs, out=outputs[0])

        return run

    return prepare


def _prepare_where(request: Request) -> Runner:
    """Take the second input where the first is not 0, else the third."""
    del request

    def run(inputs: Arrays, outputs: Arrays) -> None:
        condition, chosen, other = inputs
        outputs[0][...] = other
        np.copyto(outputs[0], chosen, where=condition != 0)

    return run


_COMPARISONS = {
    "less": np.less,
    "greater": np.greater,
    "less_or_equal": np.less_equal,
    "greater_or_equal": np.greater_equal,
    "equal": np.equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
}

OPS = (
    *(Op(name, NoAttrs, _infer(2), _ufunc(function)) for name, function in _COMPARISONS.items()),
    Op("logical_not", NoAttrs, _infer(1), _ufunc(np.logical_not)),
    Op("where", NoAttrs, _infer(3), _prepare_where),
)
