"""Quantize and dequantize blobs, and what int8 ops share: views by channel, tables of codes.

``quantize`` reads float32 and writes int8, ``dequantize`` the reverse; both are float nodes
(``node.quant`` is None) and take the blob's scale from the request.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.kernels.codes import (
    dequantize_into,
    quantize_even_into,
    quantize_into,
    requantize_into,
)
from quantjit.kernels.wrapped import prepare_dequantize, prepare_quantize
from quantjit.ops import Arrays, NoAttrs, Op, Request, Runner, Shape
from quantjit.quant import QuantParams

CODES: NDArray[np.float32] = np.arange(-128, 128, dtype=np.float32)
"""Every int8 code, in order."""


def same_shape(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    """Shape inference of an op that keeps its input's shape."""
    del node
    return (inputs[0],)


def channel_view(node: Node, shape: Shape, channels: int) -> Shape:
    """Shape (n, channels, size) by which a kernel walks a blob; (1, 1, all) for one scale."""
    if channels == 1:
        return (1, 1, prod(shape))
    if len(shape) < 2 or shape[1] != channels:
        raise GraphError(
            f"node {node.name!r}", f"{channels} scales do not fit a blob of shape {shape}"
        )
    return (shape[0], channels, prod(shape[2:]))


def code_tables(
    reals: NDArray[np.float32], target: QuantParams, *, half_even: bool = False
) -> NDArray[np.int8]:
    """Codes of real numbers, as the int8 ops of TNN round them, or half to even as ONNX.

    reals: float32 (channels, 256), the value of each code; returns int8, same shape.
    """
    channels = reals.shape[0]
    tables: NDArray[np.int8] = np.empty(reals.shape, np.int8)
    # TNN's clamp sends what is not a number to 127; infinity takes the same way
    finite = np.where(np.isnan(reals), np.float32(np.inf), reals)
    quantize = quantize_even_into if half_even else requantize_into
    quantize(
        finite.reshape(1, channels, -1),
        np.ascontiguousarray(np.broadcast_to(target.scale, channels)),
        np.ascontiguousarray(np.broadcast_to(target.zero_point, channels)),
        tables.reshape(1, channels, -1),
    )
    return tables


def _scale(node: Node, scales: tuple[QuantParams, ...]) -> QuantParams:
    if not scales:
        raise GraphError(f"node {node.name!r}", "its int8 blob has no scale")
    return scales[0]


def _prepare_quantize(request: Request) -> Runner:
    params = _scale(request.node, request.output_quant)
    view = channel_view(request.node, request.input_shapes[0], params.scale.size)
    if request.uses_vectors:
        return prepare_quantize(
            view, params.scale, params.zero_point, request.threads, half_even=request.is_onnx
        )
    quantize = quantize_even_into if request.is_onnx else quantize_into

    def run(inputs: Arrays, outputs: Arrays) -> None:
        quantize(inputs[0].reshape(view), params.scale, params.zero_point, outputs[0].reshape(view))

    return run


def _prepare_dequantize(request: Request) -> Runner:
    params = _scale(request.node, request.input_quant)
    view = channel_view(request.node, request.input_shapes[0], params.scale.size)
    if request.uses_vectors:
        return prepare_dequantize(view, params.scale, params.zero_point, request.threads)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        dequantize_into(
            inputs[0].reshape(view),
            params.scale,
            params.zero_point,
            False,
            outputs[0].reshape(view),
        )

    return run


OPS = (
    Op("quantize", NoAttrs, same_shape, _prepare_quantize),
    Op("dequantize", NoAttrs, same_shape, _prepare_dequantize),
)
