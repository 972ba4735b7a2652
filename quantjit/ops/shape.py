"""Ops that move or select elements: reshape, permute, slice, pad ...

They are moves of NumPy views, of any element type; shapes follow TNN's ``DimsFunctionUtils``
(``source/tnn/utils/dims_function_utils.cc``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.ops import Arrays, Op, Request, Runner, Shape, moves_all


@dataclass(frozen=True, slots=True)
class ReshapeAttrs:
    """shape: 0 copies the input's dimension, one -1 is inferred.

    axis, num_axes: as in the file (TNN).  layout: "nchw", or "nhwc" for TensorFlow semantics.
    """

    shape: tuple[int, ...]
    axis: int = 0
    num_axes: int = -1
    layout: str = "nchw"


@dataclass(frozen=True, slots=True)
class FlattenAttrs:
    """Axis: dimensions before it are merged into one, and those from it on into another."""

    axis: int = 1


@dataclass(frozen=True, slots=True)
class PermuteAttrs:
    """order: output dimension i is input dimension order[i]."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AxesAttrs:
    """``squeeze`` and ``unsqueeze``: the axes to drop (none: all of size 1) or to insert.

    Axes are inserted one after the other, each counted in the shape so far (TNN).
    """

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PadAttrs:
    """``pad``, ``pad_v2``: begins and ends of the first dimensions, negative ones crop.

    kind: "constant", "reflect" or "edge"; value: of the constant.
    """

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    kind: str = "constant"
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class SliceAttrs:
    """begins, ends (exclusive, 0 = to the end in TNN's V1), strides for each of `axes`.

    axes empty: the first dimensions in order.  ``strided_slice`` is TNN's V1: with two inputs the
    second gives the size.  ``strided_slice_v2`` takes any end <= -2**31 as "before the first".
    """

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    axes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ConstantAttrs:
    """``constant``: the dimensions of ``weights["value"]``."""

    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CastAttrs:
    """``cast``: target element type, a NumPy dtype name.

    Blobs are float32, so the values are rounded to what the type can hold: integers drop the
    fraction, float16 its digits.
    """

    dtype: str


@dataclass(frozen=True, slots=True)
class TileAttrs:
    """``tile``: repeats per dimension."""

    repeats: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GatherAttrs:
    """``gather`` along axis; which operands are in ``weights`` ("data", "indices")."""

    axis: int = 0
    data_in_resource: bool = False
    indices_in_resource: bool = True


def _copy(request: Request) -> Runner:
    """Move the elements in order; only the shape changes."""
    shape = request.input_shapes[0]

    def run(inputs: Arrays, outputs: Arrays) -> None:
        outputs[0].reshape(shape)[...] = inputs[0]

    return run


def _axis(node: Node, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise GraphError(f"node {node.name!r}", f"axis {axis} is not one of {rank} dimensions")
    return axis % rank


# ------------------------------------------------------------------ reshape and its kin


def _infer_reshape(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    attrs: ReshapeAttrs = node.attrs
    place, shape = f"node {node.name!r}", inputs[0]
    if not attrs.shape:
        raise GraphError(place, "the shape to reshape to is not in the node")
    if attrs.axis < 0 or attrs.axis > len(shape) or attrs.shape.count(-1) > 1:
        raise GraphError(place, f"{shape} cannot be reshaped to {attrs.shape} from {attrs.axis}")
    sizes = list(shape[: attrs.axis])
    count = len(attrs.shape) if attrs.num_axes < 0 else attrs.num_axes
    for axis, size in enumerate(attrs.shape[:count], start=attrs.axis):
        if size == 0 and axis >= len(shape):
            raise GraphError(place, f"dimension {axis} to copy is not in {shape}")
        sizes.append(shape[axis] if size == 0 else size)
    sizes += [1] * (len(attrs.shape) - count)
    known = prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = prod(shape) // known if known else 0
    if prod(sizes) != prod(shape) or min(sizes) < 1:
        raise GraphError(place, f"{shape} does not have the elements of {tuple(sizes)}")
    return (tuple(sizes),)


def _prepare_reshape(request: Request) -> Runner:
    if request.node.attrs.layout == "nchw":
        return _copy(request)
    (shape,), (out_shape,) = request.input_shapes, request.output_shapes
    channels_last = (out_shape[0], *out_shape[2:], *out_shape[1:2])

    def run(inputs: Arrays, outputs: Arrays) -> None:
        pixels = np.moveaxis(inputs[0], 1, -1) if len(shape) > 1 else inputs[0]
        moved = pixels.reshape(channels_last)
        outputs[0][...] = np.moveaxis(moved, -1, 1) if len(out_shape) > 1 else moved

    return run


def _infer_flatten(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    shape, axis = inputs[0], node.attrs.axis
    if not -len(shape) <= axis <= len(shape):
        raise GraphError(f"node {node.name!r}", f"axis {axis} is not one of the blob {shape}")
    axis += len(shape) if axis < 0 else 0
    return ((prod(shape[:axis]), prod(shape[axis:])),)


def _order(node: Node, rank: int) -> tuple[int, ...]:
    """Return the order, completed by the axes that it leaves out (TNN)."""
    given = tuple(node.attrs.order)
    order = given + tuple(axis for axis in range(rank) if axis not in given)
    if sorted(order) != list(range(rank)):
        raise GraphError(f"node {node.name!r}", f"order {given} does not permute {rank} dimensions")
    return order


def _infer_permute(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    return (tuple(inputs[0][axis] for axis in _order(node, len(inputs[0]))),)


def _prepare_permute(request: Request) -> Runner:
    order = _order(request.node, len(request.input_shapes[0]))

    def run(inputs: Arrays, outputs: Arrays) -> None:
        outputs[0][...] = inputs[0].transpose(order)

    return run


def _infer_squeeze(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    shape = inputs[0]
    axes = {_axis(node, axis, len(shape)) for axis in node.attrs.axes}
    axes = axes or {axis for axis, size in enumerate(shape) if size == 1}
    if any(shape[axis] != 1 for axis in axes):
        raise GraphError(f"node {node.name!r}", f"axes {sorted(axes)} of {shape} are not of size 1")
    return (tuple(size for axis, size in enumerate(shape) if axis not in axes),)


def _infer_unsqueeze(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    sizes = list(inputs[0])
    for axis in node.attrs.axes:
        sizes.insert(_axis(node, axis, len(sizes) + 1), 1)
    return (tuple(sizes),)


# ------------------------------------------------------------------ pad


def _pads(node: Node, shape: Shape) -> list[tuple[int, int]]:
    attrs: PadAttrs = node.attrs
    if len(attrs.begins) != len(attrs.ends) or len(attrs.begins) > len(shape):
        raise GraphError(
            f"node {node.name!r}", f"pads {attrs.begins}, {attrs.ends} do not fit {shape}"
        )
    missing = len(shape) - len(attrs.begins)
    return [*zip(attrs.begins, attrs.ends, strict=True), *[(0, 0)] * missing]


def _infer_pad(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    place, shape, pads = f"node {node.name!r}", inputs[0], _pads(node, inputs[0])
    kind = node.attrs.kind
    if kind not in {"constant", "reflect", "edge"}:
        raise GraphError(place, f"pad kind {kind!r} is none of constant, reflect, edge")
    if kind == "reflect" and any(max(pad) >= size for pad, size in zip(pads, shape, strict=True)):
        raise GraphError(place, f"pads {pads} reflect more than {shape} has")
    out = tuple(size + sum(pad) for size, pad in zip(shape, pads, strict=True))
    if min(out, default=1) < 1:
        raise GraphError(place, f"pads {pads} leave nothing of {shape}")
    return (out,)


def _sources(kind: str, pads: tuple[int, int], size: int) -> NDArray[np.intp]:
    """Source index of each output index along one axis; as in ONNX, TNN's edge has faults."""
    index = np.arange(-pads[0], size + pads[1])
    if kind == "edge":
        return np.clip(index, 0, size - 1)
    index = np.abs(index)
    return np.where(index >= size, 2 * (size - 1) - index, index)


def _prepare_pad(request: Request) -> Runner:
    attrs: PadAttrs = request.node.attrs
    shape = request.input_shapes[0]
    pads = _pads(request.node, shape)
    if attrs.kind != "constant":
        axes = zip(pads, shape, strict=True)
        sources = np.ix_(*(_sources(attrs.kind, pad, size) for pad, size in axes))

        def run_indexed(inputs: Arrays, outputs: Arrays) -> None:
            outputs[0][...] = inputs[0][sources]

        return run_indexed
    read = tuple(
        slice(max(-begin, 0), size - max(-end, 0))
        for (begin, end), size in zip(pads, shape, strict=True)
    )
    written = tuple(
        slice(max(begin, 0), size - max(end, 0))
        for (begin, end), size in zip(pads, request.output_shapes[0], strict=True)
    )

    def run(inputs: Arrays, outputs: Arrays) -> None:
        outputs[0][...] = attrs.value
        outputs[0][written] = inputs[0][read]

    return run


# ------------------------------------------------------------------ slices


def _slices(
    node: Node, inputs: Sequence[Shape], one: Callable[[int, int, int, int], slice]
) -> tuple[slice, ...]:
    """Return a slice for each dimension; one(size, begin, end, stride) makes the named ones."""
    attrs: SliceAttrs = node.attrs
    shape = inputs[0]
    axes = attrs.axes or tuple(range(len(attrs.begins)))
    if len({len(axes), len(attrs.begins), len(attrs.ends), len(attrs.strides)}) > 1:
        raise GraphError(f"node {node.name!r}", "begins, ends, strides and axes differ in number")
    if 0 in attrs.strides:
        raise GraphError(f"node {node.name!r}", "a stride is 0")
    found = [slice(0, size) for size in shape]
    for axis, begin, end, stride in zip(axes, attrs.begins, attrs.ends, attrs.strides, strict=True):
        place = _axis(node, axis, len(shape))
        found[place] = one(shape[place], begin, end, stride)
    return tuple(found)


def _slice_v1(size: int, begin: int, end: int, stride: int) -> slice:
    begin += size if begin < 0 else 0
    end += size if end <= 0 else 0
    return slice(max(begin, 0), max(end, 0), stride)


def _slice_v2(size: int, begin: int, end: int, stride: int) -> slice:
    begin += size if begin < 0 else 0
    if stride > 0:
        end += size if end < 0 else 0
        return slice(max(begin, 0), max(end, 0), stride)
    if end < 0:
        end = -1 if end <= -(2**31) else end + size
    return slice(max(begin, 0), end if end >= 0 else None, stride)


def _slices_v1(node: Node, inputs: Sequence[Shape]) -> tuple[slice, ...]:
    if len(inputs) == 1:
        return _slices(node, inputs, _slice_v1)
    wanted = iter(inputs[1])  # as large as the second input, from begin on (ncnn's crop)
    return _slices(node, inputs, lambda _, begin, __, ___: slice(begin, begin + next(wanted)))


def _slices_v2(node: Node, inputs: Sequence[Shape]) -> tuple[slice, ...]:
    return _slices(node, inputs, _slice_v2)


_Slices = Callable[[Node, Sequence[Shape]], tuple[slice, ...]]


def _slice_op(name: str, slices: _Slices) -> Op:
    def infer(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
        places = zip(slices(node, inputs), inputs[0], strict=True)
        out = tuple(len(range(*place.indices(size))) for place, size in places)
        if min(out, default=1) < 1 or (
            name == "strided_slice" and len(inputs) > 1 and out != inputs[1]
        ):
            raise GraphError(f"node {node.name!r}", f"nothing or too little of {inputs[0]} is left")
        return (out,)

    def prepare(request: Request) -> Runner:
        places = slices(request.node, request.input_shapes)

        def run(inputs: Arrays, outputs: Arrays) -> None:
            outputs[0][...] = inputs[0][places]

        return run

    return Op(name, SliceAttrs, infer, prepare)


# ------------------------------------------------------------------ constant, cast, gather, tile


def _infer_constant(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    del inputs
    value, shape = node.weights.get("value"), tuple(node.attrs.shape)
    if value is not None and value.size != prod(shape):
        raise GraphError(f"node {node.name!r}", f"{value.size} values do not fill {shape}")
    return (shape,)


def _prepare_constant(request: Request) -> Runner:
    value = np.asarray(request.node.weights["value"], np.float32).reshape(request.output_shapes[0])

    def run(inputs: Arrays, outputs: Arrays) -> None:
        del inputs
        outputs[0][...] = value

    return run


def _infer_cast(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    known = ("float32", "float16", "int8", "int32", "int64", "uint32")
    if node.attrs.dtype not in known:
        raise GraphError(
            f"node {node.name!r}", f"cast to {node.attrs.dtype!r} is none of {', '.join(known)}"
        )
    return (inputs[0],)


def _prepare_cast(request: Request) -> Runner:
    dtype = request.node.attrs.dtype

    def run(inputs: Arrays, outputs: Arrays) -> None:
        if dtype == "float32":
            outputs[0][...] = inputs[0]
        elif dtype == "float16":
            with np.errstate(over="ignore"):  # too large for half is infinite
                outputs[0][...] = inputs[0].astype(np.float16)
        else:
            np.trunc(inputs[0], out=outputs[0])

    return run


def _gather_weight(node: Node, role: str) -> NDArray[Any]:
    try:
        return node.weights[role]
    except KeyError:
        raise GraphError(f"node {node.name!r}", f"weight {role!r} is missing") from None


def _infer_gather(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    attrs: GatherAttrs = node.attrs
    data = _gather_weight(node, "data").shape if attrs.data_in_resource else inputs[0]
    axis = _axis(node, attrs.axis, len(data))
    if attrs.indices_in_resource:
        indices = _gather_weight(node, "indices")
        if indices.size and not -data[axis] <= indices.min() <= indices.max() < data[axis]:
            raise GraphError(f"node {node.name!r}", f"an index is not within axis {axis} of {data}")
        picked: Shape = indices.shape
    else:
        picked = inputs[-1]
    return ((*data[:axis], *picked, *data[axis + 1 :]),)


def _prepare_gather(request: Request) -> Runner:
    node = request.node
    attrs: GatherAttrs = node.attrs
    kept: dict[str, NDArray[Any]] = {}
    if attrs.data_in_resource:
        kept["data"] = np.asarray(node.weights["data"], np.float32)
    if attrs.indices_in_resource:
        kept["indices"] = np.asarray(node.weights["indices"], np.intp)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        data = kept["data"] if "data" in kept else inputs[0]
        indices = kept["indices"] if "indices" in kept else inputs[-1].astype(np.intp)
        np.take(data, indices, axis=attrs.axis, out=outputs[0])

    return run


def _gather_weights(attrs: GatherAttrs) -> tuple[str, ...]:
    roles = {"data": attrs.data_in_resource, "indices": attrs.indices_in_resource}
    return tuple(role for role, is_weight in roles.items() if is_weight)


def _infer_tile(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    repeats, shape = tuple(node.attrs.repeats), inputs[0]
    if min(repeats, default=1) < 1:
        raise GraphError(f"node {node.name!r}", f"repeats {repeats} are below 1")
    rank = max(len(repeats), len(shape))
    sizes = zip(
        (1,) * (rank - len(shape)) + shape, (1,) * (rank - len(repeats)) + repeats, strict=True
    )
    return (tuple(size * repeat for size, repeat in sizes),)


def _prepare_tile(request: Request) -> Runner:
    repeats = tuple(request.node.attrs.repeats)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        outputs[0][...] = np.tile(inputs[0], repeats)

    return run


OPS = (
    Op(
        "reshape",
        ReshapeAttrs,
        _infer_reshape,
        _prepare_reshape,
        _prepare_reshape,
        moves=lambda request: moves_all(request) if request.node.attrs.layout == "nchw" else None,
    ),
    Op("flatten", FlattenAttrs, _infer_flatten, _copy, _copy, moves=moves_all),
    Op("permute", PermuteAttrs, _infer_permute, _prepare_permute, _prepare_permute),
    Op("squeeze", AxesAttrs, _infer_squeeze, _copy, moves=moves_all),
    Op("unsqueeze", AxesAttrs, _infer_unsqueeze, _copy, moves=moves_all),
    Op("pad", PadAttrs, _infer_pad, _prepare_pad),
    Op("pad_v2", PadAttrs, _infer_pad, _prepare_pad),
    _slice_op("strided_slice", _slices_v1),
    _slice_op("strided_slice_v2", _slices_v2),
    Op(
        "constant",
        ConstantAttrs,
        _infer_constant,
        _prepare_constant,
        required_weights=lambda _: ("value",),
    ),
    Op("cast", CastAttrs, _infer_cast, _prepare_cast),
    Op(
        "gather",
        GatherAttrs,
        _infer_gather,
        _prepare_gather,
        required_weights=_gather_weights,
    ),
    Op("tile", TileAttrs, _infer_tile, _prepare_tile),
)
