"""Concat, split and channel shuffles."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.kernels.codes import translate_into
from quantjit.kernels.schedule import Chain
from quantjit.kernels.tables import PERMUTES, prepare_translation
from quantjit.ops import Arrays, NoAttrs, Op, Request, Runner, Shape
from quantjit.ops.reformat import CODES, code_tables
from quantjit.quant import QuantParams


@dataclass(frozen=True, slots=True)
class ConcatAttrs:
    """Axis: along which the inputs are joined."""

    axis: int = 1


@dataclass(frozen=True, slots=True)
class SplitAttrs:
    """``split_v``: axis and the size of each piece; no sizes: equal pieces."""

    axis: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShuffleAttrs:
    """``shuffle_channel``: number of groups; ``pixel_shuffle``: the upscale factor."""

    group: int = 1


def _axis(node: Node, shape: Shape) -> int:
    axis: int = node.attrs.axis
    if not -len(shape) <= axis < len(shape):
        raise GraphError(f"node {node.name!r}", f"axis {axis} is not one of the blob {shape}")
    return axis % len(shape)


# ------------------------------------------------------------------ concat


def _infer_concat(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    first = inputs[0]
    axis = _axis(node, first)
    for shape in inputs[1:]:
        if (*shape[:axis], *shape[axis + 1 :]) != (*first[:axis], *first[axis + 1 :]) or len(
            shape
        ) != len(first):
            raise GraphError(
                f"node {node.name!r}", f"{first} and {shape} cannot be joined along axis {axis}"
            )
    return ((*first[:axis], sum(shape[axis] for shape in inputs), *first[axis + 1 :]),)


def _prepare_concat(request: Request) -> Runner:
    """Move the elements, of any type."""
    axis = _axis(request.node, request.input_shapes[0])
    ends = accumulate(shape[axis] for shape in request.input_shapes)
    places = [
        (*(slice(None),) * axis, slice(end - shape[axis], end))
        for end, shape in zip(ends, request.input_shapes, strict=True)
    ]

    def run(inputs: Arrays, outputs: Arrays) -> None:
        for x, place in zip(inputs, places, strict=True):
            outputs[0][place] = x

    return run


def _prepare_concat_int8(request: Request) -> Runner:
    """Requantize to the output scale; plain bytes if any input has a scale a channel (TNN).

    rnd((q - zero_point) * scale / output scale + output zero point), one table an input
    (``source/tnn/device/cpu/acc/cpu_concat_layer_acc.cc``; onnxruntime's QLinearConcat rounds half
    to even and copies codes whose scale is that of the output).
    """
    if any(params.per_channel for params in request.input_quant):
        return _prepare_concat(request)
    axis = _axis(request.node, request.input_shapes[0])
    target = request.output_quant[0]
    tables = []
    for params in request.input_quant:
        reals = (CODES - params.zero_point.astype(np.float32)) * params.scale
        tables.append(
            code_tables(
                reals[None],
                QuantParams(target.scale[:1], target.zero_point[:1]),
                half_even=request.is_onnx,
            )
        )
    views = [(prod(s[:axis]), 1, prod(s[axis:])) for s in request.input_shapes]
    out_view = (views[0][0], 1, sum(view[2] for view in views))
    offsets = [
        end - view[2] for end, view in zip(accumulate(v[2] for v in views), views, strict=True)
    ]

    if request.uses_vectors and PERMUTES:
        pieces = enumerate(zip(views, tables, offsets, strict=True))
        return Chain(
            tuple(
                prepare_translation(
                    table[0], view[0], view[2], (out_view[2], offset), index, request.threads
                )
                for index, (view, table, offset) in pieces
            )
        )

    def run(inputs: Arrays, outputs: Arrays) -> None:
        out = outputs[0].reshape(out_view)
        for x, view, table, offset in zip(inputs, views, tables, offsets, strict=True):
            translate_into(x.reshape(view), table, offset, out)

    return run


def _moves(request: Request) -> tuple[int, ...] | None:
    """One behind the other, where no other axis comes first and no scale changes."""
    shapes = request.input_shapes
    if prod(shapes[0][: _axis(request.node, shapes[0])]) != 1:
        return None
    quant = request.input_quant
    rescales = any(params != request.output_quant[0] for params in quant if request.output_quant)
    if rescales and not any(params.per_channel for params in quant):
        return None
    ends = list(accumulate(prod(shape) for shape in shapes))
    return (0, *ends[:-1])


# ------------------------------------------------------------------ split


def _sizes(node: Node, shape: Shape) -> tuple[int, ...]:
    sizes: tuple[int, ...] = node.attrs.sizes
    pieces = len(node.outputs)
    return sizes or (shape[_axis(node, shape)] // pieces,) * pieces


def _infer_split_v(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    shape = inputs[0]
    axis, sizes = _axis(node, shape), _sizes(node, shape)
    if sum(sizes) != shape[axis] or len(sizes) != len(node.outputs):
        raise GraphError(
            f"node {node.name!r}",
            f"pieces {sizes} do not make up axis {axis} of {shape} in {len(node.outputs)} outputs",
        )
    return tuple((*shape[:axis], size, *shape[axis + 1 :]) for size in sizes)


def _prepare_split_v(request: Request) -> Runner:
    shape = request.input_shapes[0]
    axis, sizes = _axis(request.node, shape), _sizes(request.node, shape)
    places = [
        (*(slice(None),) * axis, slice(end - size, end))
        for end, size in zip(accumulate(sizes), sizes, strict=True)
    ]

    def run(inputs: Arrays, outputs: Arrays) -> None:
        for out, place in zip(outputs, places, strict=True):
            out[...] = inputs[0][place]

    return run


def _infer_split(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    return (inputs[0],) * len(node.outputs)


def _prepare_split(request: Request) -> Runner:
    """Copy the input to every output (Caffe's split)."""
    del request

    def run(inputs: Arrays, outputs: Arrays) -> None:
        for out in outputs:
            out[...] = inputs[0]

    return run


# ------------------------------------------------------------------ shuffles


def _infer_shuffle_channel(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    shape, group = inputs[0], node.attrs.group
    if len(shape) < 2 or group < 1 or shape[1] % group:
        raise GraphError(f"node {node.name!r}", f"{group} groups do not divide the blob {shape}")
    return (shape,)


def _prepare_shuffle_channel(request: Request) -> Runner:
    """Channel i of group j goes to place i * groups + j."""
    shape, group = request.input_shapes[0], request.node.attrs.group
    view = (shape[0], group, shape[1] // group, prod(shape[2:]))
    out_view = (view[0], view[2], view[1], view[3])

    def run(inputs: Arrays, outputs: Arrays) -> None:
        outputs[0].reshape(out_view)[...] = inputs[0].reshape(view).swapaxes(1, 2)

    return run


def _infer_pixel_shuffle(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    shape, factor = inputs[0], node.attrs.group
    if len(shape) != 4 or factor < 1 or shape[1] % (factor * factor):
        raise GraphError(
            f"node {node.name!r}", f"factor {factor} cannot upscale a blob of shape {shape}"
        )
    n, c, h, w = shape
    return ((n, c // (factor * factor), h * factor, w * factor),)


def _prepare_pixel_shuffle(request: Request) -> Runner:
    """Channel c * r * r + i * r + j goes to pixel (h * r + i, w * r + j) of channel c."""
    (n, c, h, w), factor = request.input_shapes[0], request.node.attrs.group
    view = (n, c // (factor * factor), factor, factor, h, w)
    out_view = (n, view[1], h, factor, w, factor)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        outputs[0].reshape(out_view)[...] = inputs[0].reshape(view).transpose(0, 1, 4, 2, 5, 3)

    return run


OPS = (
    Op(
        "concat",
        ConcatAttrs,
        _infer_concat,
        _prepare_concat,
        _prepare_concat_int8,
        moves=_moves,
    ),
    Op("split_v", SplitAttrs, _infer_split_v, _prepare_split_v),
    Op("split", NoAttrs, _infer_split, _prepare_split),
    Op("shuffle_channel", ShuffleAttrs, _infer_shuffle_channel, _prepare_shuffle_channel),
    Op("pixel_shuffle", ShuffleAttrs, _infer_pixel_shuffle, _prepare_pixel_shuffle),
)
