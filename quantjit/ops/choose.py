"""Comparisons, choices by element, places of extremes.

Truth is a float32 blob of ones and zeros, a place one of whole numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.ops import Arrays, NoAttrs, Op, Request, Runner, Shape


@dataclass(frozen=True, slots=True)
class ExtremeAttrs:
    """``argmax``, ``argmin``: along axis, kept with size 1 or dropped; the first or the last."""

    axis: int = 0
    keep_dims: bool = True
    select_last: bool = False


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


def _infer_extreme(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    attrs: ExtremeAttrs = node.attrs
    shape = inputs[0]
    if not -len(shape) <= attrs.axis < len(shape):
        raise GraphError(f"node {node.name!r}", f"axis {attrs.axis} is not one of the blob {shape}")
    axis = attrs.axis % len(shape)
    return ((*shape[:axis], *(1,) * attrs.keep_dims, *shape[axis + 1 :]),)


def _extreme(function: Any) -> Callable[[Request], Runner]:
    def prepare(request: Request) -> Runner:
        attrs: ExtremeAttrs = request.node.attrs
        last = request.input_shapes[0][attrs.axis] - 1

        def run(inputs: Arrays, outputs: Arrays) -> None:
            x = np.flip(inputs[0], attrs.axis) if attrs.select_last else inputs[0]
            places = function(x, axis=attrs.axis, keepdims=attrs.keep_dims)
            outputs[0][...] = last - places if attrs.select_last else places

        return run

    return prepare


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
    Op("argmax", ExtremeAttrs, _infer_extreme, _extreme(np.argmax)),
    Op("argmin", ExtremeAttrs, _infer_extreme, _extreme(np.argmin)),
)
