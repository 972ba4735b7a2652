"""ONNX's QuantizeLinear and DequantizeLinear in float: codes are float32 blobs of whole numbers.

Every code of up to 16 bits is exact in float32, so an int8 or uint8 network of the QDQ form
computes what it does on its device, whatever type its codes have.  Rounding is half to even, as
ONNX says; `quantjit.ops.reformat` is TNN's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.ops import Arrays, Op, Request, Runner, Shape


@dataclass(frozen=True, slots=True)
class CodesAttrs:
    """axis: that of the scales where there are several; low, high: the range of codes."""

    axis: int = 1
    low: int = -128
    high: int = 127


def _infer_shape(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    shape, axis = inputs[0], node.attrs.axis
    for role in ("scale", "zero_point"):
        weight = node.weights.get(role)
        if weight is None or weight.size == 1:
            continue
        if not 0 <= axis < len(shape) or weight.size != shape[axis]:
            raise GraphError(
                f"node {node.name!r}", f"{weight.size} values of {role} do not fit {shape}"
            )
    return (shape,)


def _along(request: Request, role: str) -> NDArray[np.float32]:
    """Return a weight as float32, in a shape that is broadcast against the blob."""
    values = np.asarray(request.node.weights[role], np.float32).reshape(-1)
    shape = [1] * len(request.input_shapes[0])
    if values.size > 1:
        shape[request.node.attrs.axis] = values.size
    return values.reshape(shape)


def _prepare_quantize(request: Request) -> Runner:
    scale, zero = _along(request, "scale"), _along(request, "zero_point")
    low, high = np.float32(request.node.attrs.low), np.float32(request.node.attrs.high)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        out = outputs[0]
        with np.errstate(all="ignore"):
            np.divide(inputs[0], scale, out=out)
            np.rint(out, out=out)
            np.add(out, zero, out=out)
            np.clip(out, low, high, out=out)

    return run


def _prepare_dequantize(request: Request) -> Runner:
    scale, zero = _along(request, "scale"), _along(request, "zero_point")

    def run(inputs: Arrays, outputs: Arrays) -> None:
        np.subtract(inputs[0], zero, out=outputs[0])
        np.multiply(outputs[0], scale, out=outputs[0])

    return run


def _required(attrs: CodesAttrs) -> tuple[str, ...]:
    del attrs
    return ("scale", "zero_point")


OPS = (
    Op(
        "quantize_linear",
        CodesAttrs,
        _infer_shape,
        _prepare_quantize,
        required_weights=_required,
    ),
    Op(
        "dequantize_linear",
        CodesAttrs,
        _infer_shape,
        _prepare_dequantize,
        required_weights=_required,
    ),
)
