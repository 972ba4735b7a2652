"""ONNX operators that move, select or resample elements."""

from collections.abc import Mapping

import numpy as np

from quantjit.formats._onnx_read_call import Call, MalformedError, RefusedError, Translation
from quantjit.ops.concat import ConcatAttrs, ShuffleAttrs, SplitAttrs
from quantjit.ops.resize import ResizeAttrs, UpsampleAttrs
from quantjit.ops.shape import (
    AxesAttrs,
    FlattenAttrs,
    GatherAttrs,
    PadAttrs,
    PermuteAttrs,
    ReshapeAttrs,
    SliceAttrs,
    TileAttrs,
)

Shape = tuple[int, ...]

_BEFORE_FIRST = -(2**31)  # how strided_slice_v2 says it
_LARGEST_SIDE = 2**16  # pixels
_PAD_KINDS = ("constant", "reflect", "edge")


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise MalformedError(f"axis {axis} is not one of {rank} dimensions")
    return axis % rank


# ------------------------------------------------------------------ shapes only


def _reshape(call: Call) -> None:
    shape = call.int_constant(1, "shape")
    if call.integer("allowzero", 0) and 0 in shape:
        raise RefusedError("a blob of no elements is not run")
    if not shape:
        call.emit("squeeze", attrs=AxesAttrs(()))
    else:
        call.emit("reshape", attrs=ReshapeAttrs(shape))


def _flatten(call: Call) -> None:
    call.emit("flatten", attrs=FlattenAttrs(call.integer("axis", 1)))


def _squeeze(call: Call) -> None:
    call.emit("squeeze", attrs=AxesAttrs(call.listed("axes", 1, 13, "list of axes") or ()))


def _unsqueeze(call: Call) -> None:
    axes = call.listed("axes", 1, 13, "list of axes")
    if axes is None:
        raise MalformedError("it has no axes")
    rank = len(call.shape()) + len(axes)
    call.emit("unsqueeze", attrs=AxesAttrs(tuple(sorted(_axis(axis, rank) for axis in axes))))


def _transpose(call: Call) -> None:
    rank = len(call.shape())
    order = call.integers("perm")
    if order is None:
        order = tuple(reversed(range(rank)))
    if sorted(order) != list(range(rank)):
        raise MalformedError(f"perm {order} does not permute {rank} dimensions")
    call.emit("permute", attrs=PermuteAttrs(order))


def _expand(call: Call) -> None:
    shape = call.shape()
    target = tuple(np.broadcast_shapes(shape, call.int_constant(1, "shape")))
    if target == shape:
        call.alias(call.blob())
        return
    full = (1,) * (len(target) - len(shape)) + shape
    call.emit("tile", attrs=TileAttrs(tuple(a // b for a, b in zip(target, full, strict=True))))


def _tile(call: Call) -> None:
    call.emit("tile", attrs=TileAttrs(call.int_constant(1, "list of repeats")))


# ------------------------------------------------------------------ parts and wholes


def _concat(call: Call) -> None:
    blobs = tuple(call.blob(index) for index in range(len(call.proto.input)))
    axis = _axis(call.integer("axis", 1), len(call.shape()))
    call.emit("concat", blobs, ConcatAttrs(axis))


def _split(call: Call) -> None:
    shape, outputs = call.shape(), tuple(call.proto.output)
    axis = _axis(call.integer("axis", 0), len(shape))
    sizes = call.listed("split", 1, 13, "list of sizes")
    if sizes is None:
        each = -(-shape[axis] // len(outputs))
        sizes = (each,) * (len(outputs) - 1)
        sizes = (*sizes, shape[axis] - sum(sizes))
    call.emit("split_v", attrs=SplitAttrs(axis, sizes), outputs=outputs)


def _slice_lists(call: Call) -> tuple[Shape, Shape, Shape, Shape]:
    """Return starts, ends, axes and steps."""
    if call.opset < 10:
        starts, ends = call.integers("starts"), call.integers("ends")
        axes, steps = call.integers("axes"), None
    else:
        starts, ends = call.int_constant(1, "list of starts"), call.int_constant(2, "list of ends")
        axes = call.int_constant(3, "list of axes") if call.has(3) else None
        steps = call.int_constant(4, "list of steps") if call.has(4) else None
    if starts is None or ends is None:
        raise MalformedError("it has no starts or no ends")
    axes = tuple(range(len(starts))) if axes is None else axes
    return starts, ends, axes, (1,) * len(starts) if steps is None else steps


def _slice(call: Call) -> None:
    shape = call.shape()
    begins, ends, axes = [], [], []
    lists = _slice_lists(call)
    for start, end, axis, step in zip(*lists, strict=True):
        place = _axis(axis, len(shape))
        begin, stop, _ = slice(start, end, step).indices(shape[place])
        begins.append(begin)
        ends.append(_BEFORE_FIRST if stop < 0 else stop)
        axes.append(place)
    attrs = SliceAttrs(tuple(begins), tuple(ends), tuple(axes), lists[3])
    call.emit("strided_slice_v2", attrs=attrs)


def _gather(call: Call) -> None:
    indices = call.constant(1, "list of indices")
    axis = _axis(call.integer("axis", 0), len(call.shape()))
    weights = {"indices": np.asarray(indices, np.int32)}
    call.emit("gather", attrs=GatherAttrs(axis), weights=weights)


def _pad(call: Call) -> None:
    rank = len(call.shape())
    pads = call.listed("pads", 1, 11, "list of pads")
    kind = call.text("mode", "constant")
    if pads is None or len(pads) % 2:
        raise MalformedError(f"pads {pads} are not pairs")
    if kind not in _PAD_KINDS:
        raise RefusedError(f"mode {kind!r} is not run")
    value = call.real("value", 0.0)
    if call.opset >= 11 and call.has(2):
        value = float(call.float_constant(2, "constant").reshape(-1)[0])
    axes = call.int_constant(3, "list of axes") if call.has(3) else tuple(range(rank))
    if 2 * len(axes) != len(pads):
        raise MalformedError(f"{len(pads)} pads do not fit {len(axes)} axes")
    begins, ends = [0] * rank, [0] * rank
    for number, axis in enumerate(axes):
        begins[_axis(axis, rank)] = pads[number]
        ends[_axis(axis, rank)] = pads[number + len(axes)]
    call.emit("pad_v2", attrs=PadAttrs(tuple(begins), tuple(ends), kind, value))


# ------------------------------------------------------------------ shuffles


def _blocks(call: Call) -> tuple[Shape, int]:
    shape, block = call.shape(), call.integer("blocksize", 0)
    if len(shape) != 4 or block < 1:
        raise MalformedError(f"blocks of {block} do not fit the blob {shape}")
    return shape, block


def _depth_to_space(call: Call) -> None:
    (n, c, h, w), block = _blocks(call)
    mode = call.text("mode", "DCR")
    if c % (block * block):
        raise MalformedError(f"{c} channels are not blocks of {block}")
    if mode == "CRD":
        call.emit("pixel_shuffle", attrs=ShuffleAttrs(block))
        return
    split = ReshapeAttrs((n, block, block, c // (block * block), h, w))
    parts = call.emit("reshape", attrs=split, suffix="blocks")
    moved = call.emit("permute", (parts,), PermuteAttrs((0, 3, 4, 1, 5, 2)), suffix="moved")
    whole = ReshapeAttrs((n, c // (block * block), h * block, w * block))
    call.emit("reshape", (moved,), whole)


def _space_to_depth(call: Call) -> None:
    (n, c, h, w), block = _blocks(call)
    if h % block or w % block:
        raise MalformedError(f"{h} x {w} pixels are not blocks of {block}")
    split = ReshapeAttrs((n, c, h // block, block, w // block, block))
    parts = call.emit("reshape", attrs=split, suffix="blocks")
    blocks_first = call.text("mode", "DCR") != "CRD"
    order = (0, 3, 5, 1, 2, 4) if blocks_first else (0, 1, 3, 5, 2, 4)
    moved = call.emit("permute", (parts,), PermuteAttrs(order), suffix="moved")
    call.emit("reshape", (moved,), ReshapeAttrs((n, c * block * block, h // block, w // block)))


# ------------------------------------------------------------------ resize

_MODES = {"nearest": "nearest", "linear": "bilinear", "bilinear": "bilinear", "cubic": "cubic"}


def _full(call: Call, values: tuple[float, ...], rank: int) -> list[float]:
    """Return values for H and W; the other axes must keep their sizes."""
    axes = call.integers("axes") or tuple(range(rank))
    if len(axes) != len(values):
        raise MalformedError(f"{len(values)} scales or sizes do not fit {len(axes)} axes")
    full = [0.0] * rank
    for axis, value in zip(axes, values, strict=True):
        full[_axis(axis, rank)] = value
    return full


def _resized(call: Call, shape: Shape) -> tuple[list[float], Shape]:
    """Return the scales of H and W, and the output's sizes."""
    rank = len(shape)
    index = 2 if call.opset >= 11 else 1
    scales: tuple[float, ...] | None = None
    if call.opset < 9:
        scales = call.reals("scales")
    elif call.has(index) and call.constant(index, "list of scales").size:
        scales = tuple(float(value) for value in call.constant(index, "scales").ravel())
    if scales is not None:
        full = _full(call, scales, rank)
        factors = [factor or 1.0 for factor in full]
        sizes = tuple(int(np.floor(np.float64(a) * b)) for a, b in zip(shape, factors, strict=True))
        return factors[2:], _only_planes(shape, sizes)
    wanted = [int(value) for value in _full(call, call.int_constant(3, "list of sizes"), rank)]
    sizes = tuple(new or old for new, old in zip(wanted, shape, strict=True))
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        ratios = [new / old for new, old in zip(wanted, shape, strict=True) if new]
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        sizes = tuple(
            int(np.floor(ratio * old + 0.5)) if new else old
            for new, old in zip(wanted, shape, strict=True)
        )
        factors = [ratio if new else 1.0 for new in wanted]
        return factors[2:], _only_planes(shape, sizes)
    return [sizes[axis] / shape[axis] for axis in (2, 3)], _only_planes(shape, sizes)


def _only_planes(shape: Shape, sizes: Shape) -> Shape:
    if sizes[:2] != shape[:2]:
        raise RefusedError(f"it resizes {shape} to {sizes}; only H and W are resized")
    return sizes[2:]


def _resize(call: Call) -> None:
    shape = call.shape()
    if len(shape) != 4:
        raise RefusedError(f"its input has shape {shape}; only NCHW is resized")
    scales, sizes = _resized(call, shape)
    if max(sizes) > _LARGEST_SIDE:
        raise RefusedError(f"its output of {sizes[0]} x {sizes[1]} pixels is too large")
    mode = _MODES.get(call.text("mode", "nearest"))
    if mode is None:
        raise RefusedError(f"mode {call.text('mode', '')!r} is not run")
    if call.integer("antialias", 0) and min(scales) < 1:
        raise RefusedError("antialias is not run")
    modern = call.op == "Resize" and call.opset >= 11
    coordinates = "half_pixel" if modern else "asymmetric"
    coordinates = call.text("coordinate_transformation_mode", coordinates)
    nearest = call.text("nearest_mode", "round_prefer_floor" if modern else "floor")
    attrs = ResizeAttrs(
        mode,
        scales[0],
        scales[1],
        sizes[0],
        sizes[1],
        coordinates,
        nearest,
        call.real("cubic_coeff_a", -0.75),
        bool(call.integer("exclude_outside", 0)),
    )
    if coordinates == "tf_crop_and_resize":
        raise RefusedError("coordinate_transformation_mode tf_crop_and_resize is not run")
    if _is_upsample(attrs, shape):
        aligned = coordinates == "align_corners"
        call.emit(
            "upsample", attrs=UpsampleAttrs(mode, scales[0], scales[1], aligned, sizes[0], sizes[1])
        )
    else:
        call.emit("resize", attrs=attrs)


def _is_upsample(attrs: ResizeAttrs, shape: Shape) -> bool:
    """Whether TNN's upsample takes the same source pixels."""
    sizes = (attrs.output_h, attrs.output_w)
    scales = (attrs.scale_h, attrs.scale_w)
    exact = all(
        np.float32(size) * np.float32(scale) == out
        for size, scale, out in zip(shape[2:], scales, sizes, strict=True)
    )
    if not exact or min(sizes) < 2:
        return False
    if attrs.mode == "nearest":
        picks = all(map(_picks_the_same, shape[2:], sizes))
        return picks and (attrs.coordinates, attrs.nearest) == ("asymmetric", "floor")
    if attrs.mode == "cubic" and (attrs.cubic_a, attrs.exclude_outside) != (-0.75, False):
        return False
    return attrs.coordinates in {"half_pixel", "pytorch_half_pixel", "align_corners"}


def _picks_the_same(size: int, out: int) -> bool:
    """Whether the product of float32 with which TNN finds a pixel rounds down as it should."""
    pixels = np.arange(out)
    return bool(
        (
            np.float32(size) / np.float32(out) * pixels.astype(np.float32) // 1
            == pixels * size // out
        ).all()
    )


TRANSLATIONS: Mapping[str, Translation] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _resize,
    "Upsample": _resize,
}
