"""Softmax and log-softmax."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.kernels.softmax import softmax_into
from quantjit.ops import Arrays, Op, Request, Runner, Shape


@dataclass(frozen=True, slots=True)
class SoftmaxAttrs:
    """Axis: over which the outputs sum to one."""

    axis: int = 1


def _infer_shape(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    rank = len(inputs[0])
    if not -rank <= node.attrs.axis < rank:
        raise GraphError(
            f"node {node.name!r}", f"axis {node.attrs.axis} is not one of the blob {inputs[0]}"
        )
    return (inputs[0],)


def _prepare(*, is_log: bool) -> Callable[[Request], Runner]:
    def prepare(request: Request) -> Runner:
        shape = request.input_shapes[0]
        axis = request.node.attrs.axis % len(shape)
        view = (prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))
        work = np.empty((2, view[2]), np.float32)

        def run(inputs: Arrays, outputs: Arrays) -> None:
            softmax_into(inputs[0].reshape(view), is_log, work, outputs[0].reshape(view))

        return run

    return prepare


OPS = (
    Op("softmax", SoftmaxAttrs, _infer_shape, _prepare(is_log=False)),
    Op("log_softmax", SoftmaxAttrs, _infer_shape, _prepare(is_log=True)),
)
