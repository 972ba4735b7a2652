"""Binary ops with broadcasting: add, sub, mul, div, maximum, minimum.

More than two inputs are combined from left to right, as in TNN's ``CPU_ELEWISE``
(``source/tnn/device/cpu/acc/compute/compute_elewise.cc``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import GraphError
from quantjit.graph import Array, Node
from quantjit.kernels import elementwise as kernels
from quantjit.kernels.codes import (
    add_even_int8_into,
    add_int8_into,
    dequantize_into,
    requantize_into,
)
from quantjit.kernels.wrapped import prepare_add, prepare_add_even_int8
from quantjit.ops import Arrays, Op, Request, Runner, Shape
from quantjit.ops.reformat import channel_view
from quantjit.quant import QuantParams


@dataclass(frozen=True, slots=True)
class BinaryAttrs:
    """constant_index: which operand (0 or 1) is ``weights["constant"]``; -1: both are blobs."""

    constant_index: int = -1


def _has_constant(node: Node) -> bool:
    # TNN's default index is 1 even where both operands are blobs: the inputs decide
    return node.attrs.constant_index >= 0 and len(node.inputs) == 1


def _constant_shape(constant: Array, shape: Shape) -> Shape:
    """How a constant of few dimensions lies against a blob of that shape.

    A vector is placed by its length, as TNN does with a buffer that has no dimensions
    (``source/tnn/layer/multidir_broadcast_layer.cc``): one a channel first, then one an element,
    one a column, one a pixel.  All else is aligned at the last dimension, as in NumPy.
    """
    if constant.ndim > 1 or constant.size == 1 or len(shape) < 2:
        return constant.shape
    channel = (shape[1], *(1 for _ in shape[2:]))
    for fitting in (channel, shape[1:], shape[-1:], shape[2:]):
        if constant.size == prod(fitting):
            return fitting
    return constant.shape


def _operand_shapes(node: Node, inputs: Sequence[Shape]) -> list[Shape]:
    shapes = list(inputs)
    if _has_constant(node):
        constant = node.weights.get("constant")
        # a structure without weights: the constant is taken to fit its operand
        fitting = () if constant is None else _constant_shape(constant, inputs[0])
        shapes.insert(node.attrs.constant_index, fitting)
    return shapes


def _infer_shape(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    shapes = _operand_shapes(node, inputs)
    if len(shapes) < 2:
        raise GraphError(f"node {node.name!r}", f"{node.op} needs two operands or a constant")
    try:
        return (tuple(np.broadcast_shapes(*shapes)),)
    except ValueError:
        listed = " and ".join(str(shape) for shape in shapes)
        raise GraphError(f"node {node.name!r}", f"{listed} cannot be broadcast") from None


@dataclass(frozen=True, slots=True)
class _Walk:
    """How two operands are walked in the order of the output; arrays of int64 (rank,)."""

    shape: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    index: NDArray[np.int64]


def _strides(shape: Shape, out: Shape) -> list[int]:
    """Strides of a contiguous operand in elements, by the dimensions of out; 0: repeated."""
    full = (1,) * (len(out) - len(shape)) + tuple(shape)
    return [0 if size == 1 else prod(full[axis + 1 :]) for axis, size in enumerate(full)]


def _walk(left: Shape, right: Shape, out: Shape) -> _Walk:
    """Merge the dimensions that can be walked as one, so that rows are as long as possible."""
    merged: list[tuple[int, int, int]] = []
    axes = zip(out, _strides(left, out), _strides(right, out), strict=True)
    for size, step_left, step_right in axes:
        if size == 1:
            continue
        if merged:
            outer, outer_left, outer_right = merged[-1]
            if (outer_left, outer_right) == (step_left * size, step_right * size):
                merged[-1] = (outer * size, step_left, step_right)
                continue
        merged.append((size, step_left, step_right))
    sizes, lefts, rights = np.array(merged or [(1, 1, 1)], np.int64).T.copy()
    return _Walk(sizes, lefts, rights, np.zeros_like(sizes))


def _prepare_float(code: int) -> Callable[[Request], Runner]:
    def prepare(request: Request) -> Runner:
        node, out = request.node, request.output_shapes[0]
        shapes = _operand_shapes(node, request.input_shapes)
        constants: list[NDArray[np.float32]] = []
        if _has_constant(node):
            constants.append(np.ascontiguousarray(node.weights["constant"], np.float32).ravel())
        adds_two = (code, len(request.input_shapes)) == (kernels.ADD, 2) and len(shapes) == 2
        if adds_two and shapes[0] == shapes[1] and request.uses_vectors:
            return prepare_add(prod(out), request.threads)
        walks = [_walk(shapes[0], shapes[1], out)]
        walks += [_walk(out, shape, out) for shape in shapes[2:]]

        def run(inputs: Arrays, outputs: Arrays) -> None:
            operands = [x.reshape(-1) for x in inputs]
            for constant in constants:
                operands.insert(node.attrs.constant_index, constant)
            result = outputs[0].reshape(-1)
            left = operands[0]
            for walk, right in zip(walks, operands[1:], strict=True):
                kernels.combine_into(
                    code, left, right, walk.shape, walk.left, walk.right, walk.index, result
                )
                left = result

        return run

    return prepare


def _by_channel(params: QuantParams, channels: int) -> QuantParams:
    """Scales of one blob for that many channels."""
    if channels == 1:  # TNN lets the first input decide; of the others it reads entry 0
        return QuantParams(params.scale[:1], params.zero_point[:1])
    return QuantParams(
        np.broadcast_to(params.scale, channels), np.broadcast_to(params.zero_point, channels)
    )


def _prepare_add_int8(request: Request) -> Runner:
    node, shapes = request.node, (*request.input_shapes, *request.output_shapes)
    if len(request.input_shapes) < 2 or any(a != b for a, b in pairwise(shapes)):
        raise GraphError(f"node {node.name!r}", "int8 add needs blobs of one shape")
    if request.is_onnx:
        return _prepare_add_onnx(request)
    channels = request.input_quant[0].scale.size
    view = channel_view(node, shapes[0], channels)
    sources = [_by_channel(params, channels) for params in request.input_quant]
    target = _by_channel(request.output_quant[0], channels)
    if len(sources) == 2:
        scales = np.stack([params.scale for params in (*sources, target)])
        zero_points = np.stack([params.zero_point for params in (*sources, target)])

        def run_two(inputs: Arrays, outputs: Arrays) -> None:
            left, right, out = (x.reshape(view) for x in (*inputs, outputs[0]))
            add_int8_into(left, right, scales, zero_points, out)

        return run_two
    total = np.empty(view, np.float32)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        for position, (codes, params) in enumerate(zip(inputs, sources, strict=True)):
            dequantize_into(
                codes.reshape(view), params.scale, params.zero_point, position > 0, total
            )
        requantize_into(total, target.scale, target.zero_point, outputs[0].reshape(view))

    return run


def _prepare_add_onnx(request: Request) -> Runner:
    """As QLinearAdd of onnxruntime: quotients of scales, the zero points in one shift."""
    if len(request.input_quant) != 2:
        raise GraphError(f"node {request.node.name!r}", "ONNX adds two int8 blobs, no more")
    target = request.output_quant[0]
    if any(params.per_channel for params in (*request.input_quant, target)):
        raise GraphError(f"node {request.node.name!r}", "ONNX has one scale a blob")
    factors = np.array(
        [params.scale[0] / target.scale[0] for params in request.input_quant], np.float32
    )
    offset = request.code_offset
    zeros = [
        np.float32(int(params.zero_point[0]) + offset) for params in (*request.input_quant, target)
    ]
    # float32 but for one product, which a compiler fuses into the sum
    product = np.float64(factors[0]) * np.float64(zeros[0])
    shift = zeros[2] - np.float32(product + np.float64(factors[1] * zeros[1]))
    if request.uses_vectors:
        size = prod(request.output_shapes[0])
        return prepare_add_even_int8(size, factors, shift, offset, request.threads)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        left, right, out = (x.reshape(-1) for x in (*inputs, outputs[0]))
        add_even_int8_into(left, right, factors, shift, offset, out)

    return run


def _weights(attrs: BinaryAttrs) -> tuple[str, ...]:
    return ("constant",) if attrs.constant_index >= 0 else ()


def _op(name: str, code: int, prepare_int8: Callable[[Request], Runner] | None = None) -> Op:
    return Op(
        name,
        BinaryAttrs,
        _infer_shape,
        _prepare_float(code),
        prepare_int8,
        required_weights=_weights,
    )


OPS = (
    _op("add", kernels.ADD, _prepare_add_int8),
    _op("sub", kernels.SUB),
    _op("mul", kernels.MUL),
    _op("div", kernels.DIV),
    _op("maximum", kernels.MAXIMUM),
    _op("minimum", kernels.MINIMUM),
)
