"""Elementwise functions of exported networks: mish, exact GELU, SELU ..., rounding, power of blobs.

They run in float only: TNN has no int8 form of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.kernels import curves as kernels
from quantjit.ops import Arrays, NoAttrs, Op, Request, Runner, Shape
from quantjit.ops.reformat import same_shape


@dataclass(frozen=True, slots=True)
class CurveAttrs:
    """The parameters of a function, where it has any; see `quantjit.kernels.curves.curve_into`."""

    alpha: float = 0.0
    beta: float = 0.0


def _infer_curve(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    if node.op == "celu" and node.attrs.alpha == 0:
        raise GraphError(f"node {node.name!r}", "alpha of celu is 0")
    return (inputs[0],)


def _curve(code: int) -> Callable[[Request], Runner]:
    def prepare(request: Request) -> Runner:
        alpha, beta = float(request.node.attrs.alpha), float(request.node.attrs.beta)

        def run(inputs: Arrays, outputs: Arrays) -> None:
            kernels.curve_into(code, inputs[0].reshape(-1), alpha, beta, outputs[0].reshape(-1))

        return run

    return prepare


def _ufunc(function: Any) -> Callable[[Request], Runner]:
    """Run a NumPy function of one or two blobs, with broadcasting."""

    def prepare(request: Request) -> Runner:
        del request

        def run(inputs: Arrays, outputs: Arrays) -> None:
            with np.errstate(all="ignore"):  # infinities and NaN are results here
                function(*inputs, out=outputs[0])

        return run

    return prepare


def _infer_pow(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    if len(inputs) != 2:
        raise GraphError(f"node {node.name!r}", "pow needs two operands")
    try:
        return (tuple(np.broadcast_shapes(*inputs)),)
    except ValueError:
        raise GraphError(
            f"node {node.name!r}", f"{inputs[0]} and {inputs[1]} cannot be broadcast"
        ) from None


_CURVES = {
    "mish": kernels.MISH,
    "gelu_erf": kernels.GELU_ERF,
    "scaled_swish": kernels.SCALED_SWISH,
    "selu": kernels.SELU,
    "celu": kernels.CELU,
    "softsign": kernels.SOFTSIGN,
    "thresholded_relu": kernels.THRESHOLDED_RELU,
}
_UFUNCS = {"round": np.rint, "sign": np.sign, "sin": np.sin, "cos": np.cos}

OPS = (
    *(Op(name, CurveAttrs, _infer_curve, _curve(code)) for name, code in _CURVES.items()),
    *(Op(name, NoAttrs, same_shape, _ufunc(function)) for name, function in _UFUNCS.items()),
    Op("pow", NoAttrs, _infer_pow, _ufunc(np.power)),
)
