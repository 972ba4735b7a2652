"""Prepares a convolution for `tiled`: packs the weights once, lays out scratch, cuts into tasks."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import depthwise, simd, tiled, winograd
from quantjit.kernels.schedule import Prepared, TaskFunction
from quantjit.kernels.tiled import BY_CHANNEL, BY_TAP, IN_PLACE, UNIT

Longs = NDArray[np.int64]
Floats = NDArray[np.float32]

_NEAR_CACHE = 320 * 1024
"""Bytes of a task's laid-out input: it stays in a core's own cache while all weights pass."""
_SHARES = 2
"""Tasks of a node for each thread: none waits long for another."""
_MANY = 12
"""Channels from which on transforming squares pays."""
_LARGEST = 6
_SMALLEST = 4


@dataclass(frozen=True, slots=True)
class Window:
    """Shapes of a convolution; channels are totals over all groups."""

    images: int
    groups: int
    channels: int
    height: int
    width: int
    out_channels: int
    out_h: int
    out_w: int
    kernel_h: int
    kernel_w: int
    stride_h: int = 1
    stride_w: int = 1
    pad_top: int = 0
    pad_left: int = 0
    dilation_h: int = 1
    dilation_w: int = 1

    @property
    def reads_all(self) -> bool:
        """Whether the input, as it lies, is what a 1 x 1 kernel multiplies."""
        return (
            self.kernel_h == self.kernel_w == self.stride_h == self.stride_w == 1
            and self.pad_top == self.pad_left == 0
            and (self.out_h, self.out_w) == (self.height, self.width)
        )

    @property
    def depthwise(self) -> tuple[int, int, int]:
        """(kernel_h, kernel_w, stride) if each channel has its own filter, else (0, 0, 0)."""
        if (
            self.groups == self.channels == self.out_channels
            and self.stride_h == self.stride_w
            and self.dilation_h == self.dilation_w == 1
        ):
            return self.kernel_h, self.kernel_w, self.stride_h
        return 0, 0, 0

    @property
    def pixels(self) -> int:
        """Output pixels of an image."""
        return self.out_h * self.out_w

    @property
    def has_few_pixels(self) -> bool:
        """Whether an image fills no vector."""
        return self.pixels < simd.LANES


@dataclass(frozen=True, slots=True, eq=False)
class Requantization:
    """What becomes of int32 sums; all arrays float32 (out_channels,).

    factor: weight scale / output scale.  zero, high: zero point and highest code.
    before, before_zero, after, after_zero: scale / output scale of an addend, and that times its
    zero point, where it is added before or after the clamp to `floor`; 0 where it is not.
    mode: simd.AWAY or simd.EVEN.  adds: whether there is an addend.
    """

    factor: Floats
    zero: Floats
    high: Floats
    before: Floats
    before_zero: Floats
    after: Floats
    after_zero: Floats
    floor: float
    mode: int
    adds: bool

    @property
    def ending(self) -> int:
        """The mode, or the shorter one that gives the same codes."""
        if self.mode != simd.AWAY or self.adds or self.zero.any():
            return self.mode
        return simd.RECTIFIED if self.floor >= 0 else simd.CENTERED

    @property
    def terms(self) -> tuple[Floats, ...]:
        """The arrays in the order of `tiled`."""
        return (
            self.factor, self.zero, self.high, self.before, self.before_zero, self.after,
            self.after_zero,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """Whose weights are packed: what is made of them is made once, as long as the array lives.

    array: the weights of a network.  salt: what else the packed ones depend on.
    """

    array: NDArray[Any]
    salt: bytes = b""


_Key = tuple[int, bytes, tuple[Any, ...]]
_packed: dict[_Key, tuple["weakref.ref[NDArray[Any]]", NDArray[Any]]] = {}


def _once(
    owner: Owner | None, kind: tuple[Any, ...], pack: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """Return what `pack` makes, or what it made for the same owner and kind before."""
    if owner is None:
        return pack()
    key = (id(owner.array), owner.salt, kind)
    known = _packed.get(key)
    if known is not None and known[0]() is owner.array:
        return known[1]
    made = pack()
    made.setflags(write=False)
    _packed[key] = weakref.ref(owner.array, lambda _: _packed.pop(key, None)), made
    return made


def blocks(channels: int) -> list[tuple[int, int]]:
    """Cut the output channels of a group into (rows of the tile, first channel)."""
    if channels == 1:
        return [(1, 0)]
    even = max(_SMALLEST, channels + channels % 2)
    fours = {0: 0, 4: 1, 2: 2}[even % _LARGEST]
    rows = [_LARGEST] * ((even - fours * _SMALLEST) // _LARGEST) + [_SMALLEST] * fours
    return [(height, sum(rows[:i])) for i, height in enumerate(rows)]


def prepare_float(
    window: Window, weight: Floats, bias: Floats, low: float, high: float, *, swish: bool,
    threads: int, owner: Owner | None = None,
) -> Prepared:  # fmt: skip
    """Prepare a float32 convolution.

    weight: (out_channels, channels / groups, kernel_h, kernel_w); bias: (out_channels,); low,
    high: clamp of the outputs; owner: of `weight`.
    """
    groups = window.groups
    rows = weight.reshape(groups, window.out_channels // groups, -1)
    biases = np.zeros((groups, _full(window)), np.float32)
    biases[:, : rows.shape[1]] = bias.reshape(groups, -1)
    limits = np.array([low, high], np.float32)
    arrays: dict[int, NDArray[Any]] = {tiled.BIAS: biases, tiled.LIMITS: limits}
    if window.has_few_pixels:
        arrays |= {tiled.TERMS: np.zeros(_LARGEST, np.float32)}
        packed = _once(owner, ("few", window.groups), lambda: _pack_few(rows[..., None]))
        description = _describe_few(window)
        places = _places(window, packed.shape[2], padding_is_channel=False)
        return _few(description, tiled.few_float_task, packed, places, arrays, int(swish), threads)
    function = depthwise.float_task(window.depthwise)
    if function and not swish:
        arrays[tiled.WEIGHTS] = np.ascontiguousarray(weight, np.float32)
        return _planes(window, function, arrays, 0, threads)
    if not swish and _suits_winograd(window):
        return _squares(window, weight, biases, (low, high), threads, owner)
    units = rows[..., None]  # one product a lane: (groups, channels, depth, 1)
    layout = IN_PLACE if window.reads_all else BY_CHANNEL
    return _tiled(window, tiled.float_task, units, arrays, layout, int(swish), threads, 1, owner)


def _shares(window: Window, threads: int) -> int:
    """Into how many bands an image of a group is cut at least."""
    if threads == 1:
        return 1
    return max(1, -(-_SHARES * threads // (window.images * window.groups)))


def _suits_winograd(window: Window) -> bool:
    """Whether squares of outputs pay: the transforms must be shared by enough channels."""
    groups = window.groups
    return (
        (window.kernel_h, window.kernel_w, window.stride_h, window.stride_w) == (3, 3, 1, 1)
        and window.dilation_h == window.dilation_w == 1
        and min(window.channels, window.out_channels) // groups >= _MANY
        and min(window.out_h, window.out_w) >= winograd.SQUARE
    )


def _squares(
    window: Window, weight: Floats, biases: Floats, limits: tuple[float, float], threads: int,
    owner: Owner | None,
) -> Prepared:  # fmt: skip
    """Prepare a 3 x 3 convolution by transformed squares; biases: (groups, full channels)."""
    groups, side = window.groups, winograd.SIDE
    channels, outs = window.channels // groups, window.out_channels // groups
    across = -(-window.out_w // winograd.SQUARE)
    down = -(-window.out_h // winograd.SQUARE)
    grid = replace(
        window, out_h=down, out_w=across, kernel_h=side, kernel_w=side,
        stride_h=winograd.SQUARE, stride_w=winograd.SQUARE,
    )  # fmt: skip
    description = _describe(grid)
    cut = blocks(outs)

    def pack() -> NDArray[Any]:
        filters = np.zeros((groups, _full(window), channels, side, side), np.float32)
        filters[:, :outs] = winograd.transform_filters(
            weight.reshape(groups, outs, channels, window.kernel_h, window.kernel_w)
        )
        by_position = filters.reshape(groups, -1, channels, winograd.POSITIONS)
        return _by_blocks(by_position.transpose(0, 3, 2, 1)[..., None], cut)

    arrays: dict[int, NDArray[Any]] = {
        tiled.BIAS: biases,
        tiled.LIMITS: np.array([*limits, *(0.0,) * _LARGEST], np.float32),
        tiled.WEIGHTS: _once(owner, ("squares", groups), pack),
        tiled.BLOCKS: np.array(
            [
                (height, first, min(height, outs - first), first * channels * 4 * side * side)
                for height, first in cut
            ],
            np.int64,
        ),
    }
    band = _band_of_squares(down, across, channels)
    share = -(-down // _shares(window, threads))
    if share * across >= simd.LANES // 2:  # else lanes would be empty: share the channels
        band = min(band, share)
    room = -(-band * across // simd.LANES) * simd.LANES + simd.LANES
    laid = _lay_rows(grid, channels, band, description, arrays)
    steps = np.arange(channels, dtype=np.int64) * room * 4
    pixels = arrays[tiled.OFFSETS].astype(np.int64)[: winograd.POSITIONS]
    arrays[tiled.OFFSETS] = np.concatenate([steps, pixels])
    scratch_bytes = winograd.POSITIONS * (_LARGEST + channels) * room * 4 + laid + 128
    bands = -(-down // band)
    tasks = window.images * groups * bands
    splits = min(len(cut), max(1, -(-_SHARES * threads // tasks))) if threads > 1 else 1
    scratch = _scratch(description, scratch_bytes, threads)
    _point(description, arrays)
    for field, value in (
        (tiled.BLOCK_COUNT, len(cut)), (tiled.DEPTH, room), (tiled.BAND, band),
        (tiled.BANDS, bands), (tiled.SPLITS, splits), (tiled.PIXELS, window.out_h),
        (tiled.TERMS, window.out_w), (tiled.FULL_CHANNELS, _full(window)),
    ):  # fmt: skip
        description[field] = value
    function = winograd.winograd_task
    return Prepared(
        description, function, tasks * splits, tuple(arrays.values()), scratch_bytes=scratch
    )


def _band_of_squares(down: int, across: int, channels: int) -> int:
    """Rows of squares of a band: few empty lanes, and a transformed input that stays near."""
    best = (0, 0, 1)
    for band in range(1, down + 1):
        near = winograd.POSITIONS * channels * band * across * 4 <= 2 * _NEAR_CACHE
        if band > 1 and not near:
            break
        whole, last = divmod(down, band)
        vectors = whole * -(-band * across // simd.LANES) + -(-last * across // simd.LANES)
        best = max(best, (-vectors, band, band)) if band > 1 else (-vectors, band, band)
    return best[2]


def _scratch(description: Longs, size: int, threads: int) -> int:
    """Describe the scratch of a thread; return the bytes of all of them."""
    size += -size % 64
    description[tiled.SCRATCH_BYTES] = size
    return threads * size


def prepare_int8(
    window: Window,
    weight: NDArray[np.int32],
    bias: NDArray[np.int32],
    input_zero: NDArray[np.int8],
    finish: Requantization,
    threads: int,
    owner: Owner | None = None,
) -> Prepared:
    """Prepare an int8 convolution.

    weight: int32 (out_channels, channels / groups, kernel_h, kernel_w) with its zero point
    subtracted, as `fits` says; bias: (out_channels,); input_zero: (channels,); owner: of `weight`.
    """
    groups = window.groups
    outs, ins = window.out_channels // groups, window.channels // groups
    full = _full(window)
    zeros = input_zero.reshape(groups, 1, ins, 1, 1).astype(np.int64)
    grouped = weight.reshape(groups, outs, ins, window.kernel_h, window.kernel_w)
    few = window.has_few_pixels
    offset = 0 if few else tiled.OFFSET
    shift = (grouped * (zeros + offset)).sum(axis=(2, 3, 4))
    biases = np.zeros((groups, full), np.int64)
    biases[:, :outs] = bias.reshape(groups, outs) - shift
    terms = np.zeros((7, groups, full), np.float32)
    for term, values in zip(terms, finish.terms, strict=True):
        term[:, :outs] = values.reshape(groups, outs)
    arrays: dict[int, NDArray[Any]] = {
        tiled.BIAS: biases.astype(np.int32),  # wraps as the sums do
        tiled.LIMITS: np.array([finish.floor], np.float32),
        tiled.TERMS: terms,
    }
    if few:
        arrays[tiled.ZEROS] = input_zero.astype(np.int8)
        units = _units(grouped.reshape(groups, outs, -1), np.int64)
        packed = _once(owner, ("few", groups), lambda: _few_codes(units))
        places = _places(window, packed.shape[2] * UNIT, padding_is_channel=True)
        prepared = _few(
            _describe_few(window),
            tiled.few_int8_task,
            packed,
            places,
            arrays,
            finish.ending,
            threads,
        )
    elif (function := depthwise.int8_task(window.depthwise)) and not finish.adds:
        arrays[tiled.ZEROS] = np.ascontiguousarray(input_zero, np.int8)
        arrays[tiled.WEIGHTS] = _as_codes(_units(grouped, np.int64))
        prepared = _planes(window, function, arrays, finish.ending, threads)
    else:
        by_tap = ins * window.kernel_h * -(-window.kernel_w // UNIT)
        by_channel = -(-ins // UNIT) * window.kernel_h * window.kernel_w
        layout = BY_TAP if by_tap < by_channel else BY_CHANNEL
        layout = IN_PLACE if window.reads_all else layout
        codes = (input_zero.reshape(groups, ins).astype(np.int64)) + tiled.OFFSET
        if layout == BY_TAP:
            units = _units(grouped, np.int64).reshape(groups, outs, -1, UNIT)
            codes = np.repeat(codes[..., None], UNIT, axis=-1)
        else:
            moved = np.moveaxis(grouped, 2, -1)  # taps, then channels
            units = np.moveaxis(_units(moved, np.int64), 4, 2).reshape(groups, outs, -1, UNIT)
            codes = _units(codes, np.int64)
        arrays[tiled.ZEROS] = _as_codes(codes, signed=False)
        prepared = _tiled(
            window, tiled.int8_task, units, arrays, layout, finish.ending, threads, UNIT, owner
        )
    prepared.description[tiled.FUSION] = int(finish.adds)
    return prepared


def prepare_product_float(
    rows: int, weight: Floats, bias: Floats, threads: int, owner: Owner | None = None
) -> Prepared:
    """Prepare float32 (rows, depth) times the transpose of `weight`, (out, depth), plus `bias`."""
    outs, depth = weight.shape
    arrays: dict[int, NDArray[Any]] = {
        tiled.BIAS: np.ascontiguousarray(bias, np.float32),
        tiled.LIMITS: np.array([-np.inf, np.inf], np.float32),
        tiled.TERMS: np.zeros(_LARGEST, np.float32),
    }
    packed = _once(owner, ("product",), lambda: _pack_few(weight.reshape(1, outs, depth, 1)))
    places = np.arange(rows * depth, dtype=np.int64).reshape(rows, depth)
    description = _describe_product(rows, depth, outs)
    return _few(description, tiled.few_float_task, packed, places, arrays, 0, threads)


def prepare_product_int8(
    rows: int, weight: NDArray[np.int32], bias: NDArray[np.int32], input_zero: int,
    finish: Requantization, threads: int, owner: Owner | None = None,
) -> Prepared:  # fmt: skip
    """Prepare int8 (rows, depth) times the transpose of `weight`; terms as in `prepare_int8`."""
    outs, depth = weight.shape
    units = _units(weight[None], np.int64)
    biases = bias.astype(np.int64) - input_zero * weight.sum(axis=1, dtype=np.int64)
    arrays: dict[int, NDArray[Any]] = {
        tiled.BIAS: biases.astype(np.int32),
        tiled.LIMITS: np.array([finish.floor], np.float32),
        tiled.TERMS: np.stack(finish.terms),
        tiled.ZEROS: np.array([input_zero], np.int8),
    }
    packed = _once(owner, ("product",), lambda: _few_codes(units))
    places = np.full((rows, units.shape[2] * UNIT), -1, np.int64)
    places[:, :depth] = np.arange(rows * depth, dtype=np.int64).reshape(rows, depth)
    description = _describe_product(rows, depth, outs)
    return _few(description, tiled.few_int8_task, packed, places, arrays, finish.ending, threads)


def _describe_product(rows: int, depth: int, outs: int) -> Longs:
    description = _describe(Window(1, 1, rows * depth, 1, 1, outs, 1, 1, 1, 1))
    description[tiled.PIXELS] = rows
    description[tiled.CHANNEL_STEP], description[tiled.PIXEL_STEP] = 1, outs
    return description


def _planes(
    window: Window,
    function: TaskFunction,
    arrays: dict[int, NDArray[Any]],
    mode: int,
    threads: int,
) -> Prepared:
    """Prepare a depthwise convolution that goes plane by plane."""
    description = _describe(window)
    _point(description, arrays)
    planes = window.images * window.groups
    tasks = min(planes, 4 * threads) if threads > 1 else 1
    description[tiled.SPLITS], description[tiled.MODE] = tasks, mode
    return Prepared(description, function, tasks, tuple(arrays.values()))


def fits(weight: NDArray[np.int32], bias: NDArray[np.int32]) -> bool:
    """Whether weights are codes that the products take, and no sum with its bias leaves int32.

    weight: (out_channels, ...), zero points subtracted; bias: (out_channels,).
    """
    if simd.DOT and not ((weight >= -128).all() and (weight <= 127).all()):
        return False
    taps = np.abs(weight.reshape(len(weight), -1)).sum(axis=1, dtype=np.int64)
    return bool((255 * taps + np.abs(bias.astype(np.int64)) <= np.iinfo(np.int32).max).all())


def _as_codes(values: NDArray[Any], *, signed: bool = True) -> NDArray[Any]:
    if simd.DOT:
        return np.ascontiguousarray(values, np.int8 if signed else np.uint8)
    return np.ascontiguousarray(values, np.int16)


def _units(values: NDArray[Any], dtype: type[np.int64]) -> NDArray[np.int64]:
    """Split the last axis into units of UNIT, filled up with 0: (..., count, UNIT)."""
    count = -(-values.shape[-1] // UNIT)
    filled = np.zeros((*values.shape[:-1], count * UNIT), dtype)
    filled[..., : values.shape[-1]] = values
    return filled.reshape(*values.shape[:-1], count, UNIT)


def _full(window: Window) -> int:
    channels = window.out_channels // window.groups
    if window.has_few_pixels:
        return channels
    height, first = blocks(channels)[-1]
    return first + height


def _describe(window: Window) -> Longs:
    description = np.zeros(tiled.FIELDS, np.int64)
    for field, value in (
        (tiled.IMAGES, window.images),
        (tiled.GROUPS, window.groups),
        (tiled.CHANNELS, window.channels // window.groups),
        (tiled.HEIGHT, window.height),
        (tiled.WIDTH, window.width),
        (tiled.OUT_CHANNELS, window.out_channels // window.groups),
        (tiled.OUT_H, window.out_h),
        (tiled.OUT_W, window.out_w),
        (tiled.STRIDE_H, window.stride_h),
        (tiled.STRIDE_W, window.stride_w),
        (tiled.PAD_TOP, window.pad_top),
        (tiled.PAD_LEFT, window.pad_left),
        (tiled.DILATION_W, window.dilation_w),
        (tiled.FULL_CHANNELS, _full(window)),
    ):
        description[field] = value
    return description


def _point(description: Longs, arrays: dict[int, NDArray[Any]]) -> None:
    for field, array in arrays.items():
        description[field] = array.ctypes.data


def _tiled(
    window: Window,
    function: TaskFunction,
    units: NDArray[Any],
    arrays: dict[int, NDArray[Any]],
    layout: int,
    mode: int,
    threads: int,
    unit: int,
    owner: Owner | None,
) -> Prepared:
    """Lay out the input and the tasks; units: (groups, channels, depth, unit)."""
    description = _describe(window)
    groups, channels, depth, _ = units.shape
    cut = blocks(channels)

    def pack() -> NDArray[Any]:
        codes = units if unit == 1 else _as_codes(units)
        filled = np.zeros((groups, _full(window), *units.shape[2:]), codes.dtype)
        filled[:, :channels] = codes
        return _by_blocks(filled.transpose(0, 2, 1, 3), cut)

    arrays[tiled.WEIGHTS] = _once(owner, ("tiled", layout, groups, unit), pack)
    arrays[tiled.BLOCKS] = np.array(
        [
            (height, first, min(height, channels - first), first * depth * 4)
            for height, first in cut
        ],
        np.int64,
    )
    in_channels = window.channels // window.groups
    planes = -(-in_channels // unit) if layout != BY_TAP else in_channels
    if layout == IN_PLACE:
        rows, laid = _cut_row(window, planes, description, arrays, threads)
        laid = 0 if unit == 1 else laid
    else:
        rows, laid = _cut_rows(window, planes, unit, layout, description, arrays, threads)
    # Enough tasks that no thread waits long for another, if need be by parts of the channels.
    tasks = window.images * groups * -(-int(description[tiled.OUT_H]) // rows)
    splits = 1
    if threads > 1:
        splits = min(len(cut), max(1, -(-_SHARES * threads // tasks)))
    spare = 4 * (window.out_w * window.stride_w + (unit + simd.LANES) * window.dilation_w)
    scratch = _scratch(description, tiled.TILE_BYTES + laid + spare + 64, threads)
    _point(description, arrays)
    description[tiled.BLOCK_COUNT], description[tiled.DEPTH] = len(cut), depth
    description[tiled.BAND] = rows
    description[tiled.BANDS] = -(-int(description[tiled.OUT_H]) // rows)
    description[tiled.SPLITS], description[tiled.LAYOUT] = splits, layout
    description[tiled.MODE] = mode
    return Prepared(
        description, function, tasks * splits, tuple(arrays.values()), scratch_bytes=scratch
    )


def _cut_row(
    window: Window,
    planes: int,
    description: Longs,
    arrays: dict[int, NDArray[Any]],
    threads: int,
) -> tuple[int, int]:
    """One row of pixels; returns (pixels of a band, bytes of its laid-out input)."""
    pixels = window.pixels
    band = max(simd.TILE, _NEAR_CACHE // (planes * 4) // simd.TILE * simd.TILE)
    share = -(-pixels // _shares(window, threads))
    band = min(band, -(-share // simd.TILE) * simd.TILE)
    plane = band + simd.TILE
    description[tiled.HEIGHT], description[tiled.WIDTH] = 1, pixels
    description[tiled.OUT_H], description[tiled.OUT_W] = pixels, 1  # a band counts pixels
    description[tiled.PITCH], description[tiled.PLANE], description[tiled.PHASES] = 1, plane, 1
    step = pixels if tiled.TERMS not in arrays else plane  # float reads the blob itself
    arrays[tiled.OFFSETS] = np.arange(planes, dtype=np.int64) * step * 4
    return band, planes * plane * 4


def _cut_rows(
    window: Window,
    planes: int,
    unit: int,
    layout: int,
    description: Longs,
    arrays: dict[int, NDArray[Any]],
    threads: int,
) -> tuple[int, int]:
    """Phases of padded rows; returns (output rows of a band, bytes of its laid-out input)."""
    joined = unit if layout == BY_TAP else 0
    if layout != BY_TAP and _prefers_shifts(window, planes):
        joined = 1
    pitch, phases, halo = _phases(window, joined)[:3]
    room = _NEAR_CACHE // 4 // (planes * len(phases) * pitch) - halo
    share = max(-(-window.out_h // _shares(window, threads)), min(window.out_h, 4 * halo))
    band = max(1, min(window.out_h, room, share))
    band = -(-window.out_h // -(-window.out_h // band))  # as even as can be
    return band, _lay_rows(window, planes, band, description, arrays, joined)


def _prefers_shifts(window: Window, planes: int) -> bool:
    """Whether a copy of the input for each tap of a kernel row costs less than it saves.

    Outputs then lie as in the blob, without ends of rows that have to be dropped.
    """
    pitch, phases, _, _, lines, columns = _phases(window, 0)
    if pitch == window.out_w:
        return False
    more = planes * (len(columns) * len({line for line, _ in lines}) - len(phases))
    return more <= window.out_channels // window.groups


def _phases(
    window: Window, joined: int
) -> tuple[int, list[tuple[int, int]], int, int, list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (pitch, phases, halo, reach, lines, columns) of a laid-out input.

    joined: taps of a kernel row that a dword joins, or 1 for a copy a tap; 0: taps share phases.
    lines, columns: of each tap, its phase and its shift there; halo, reach: the largest shifts.
    """
    if joined:
        columns = [(head * window.dilation_w, 0) for head in range(0, window.kernel_w, joined)]
        reach, pitch = 0, window.out_w
    else:
        shifts = [tap * window.dilation_w for tap in range(window.kernel_w)]
        columns = [(shift % window.stride_w, shift // window.stride_w) for shift in shifts]
        reach = max(shift for _, shift in columns)
        pitch = window.out_w + reach - _shared(window, {phase for phase, _ in columns}, reach)
    shifts = [tap * window.dilation_h for tap in range(window.kernel_h)]
    lines = [(shift % window.stride_h, shift // window.stride_h) for shift in shifts]
    phases = sorted({(line, column) for line, _ in lines for column, _ in columns})
    return pitch, phases, max(shift for _, shift in lines), reach, lines, columns


def _lay_rows(
    window: Window,
    planes: int,
    band: int,
    description: Longs,
    arrays: dict[int, NDArray[Any]],
    joined: int = 0,
) -> int:
    """Describe the laid-out input of a band; returns its bytes."""
    pitch, phases, halo, reach, lines, columns = _phases(window, joined)
    plane = (band + halo) * pitch + reach + simd.TILE
    arrays[tiled.PHASE_TABLE] = np.array(phases, np.int64)
    places = [
        ((c * len(phases) + phases.index((line, column))) * plane + down * pitch + right) * 4
        for c in range(planes)
        for line, down in lines
        for column, right in columns
    ]
    arrays[tiled.OFFSETS] = np.array(places, np.int64)
    description[tiled.PITCH], description[tiled.PLANE] = pitch, plane
    description[tiled.PHASES], description[tiled.HALO] = len(phases), halo
    return planes * len(phases) * plane * 4


def _shared(window: Window, phases: set[int], reach: int) -> int:
    """How many padding pixels at the end of a row the next row's beginning stands for."""
    shared = reach
    for phase in phases:
        before = max(0, -((phase - window.pad_left) // window.stride_w))
        inside = -((phase - window.pad_left - window.width) // window.stride_w)
        shared = min(shared, before, max(0, window.out_w + reach - inside))
    return shared


def _by_blocks(values: NDArray[Any], cut: list[tuple[int, int]]) -> NDArray[Any]:
    """Cut (groups, ..., channels, unit) along the channels, one block behind the other."""
    parts = [values[..., first : first + height, :] for height, first in cut]
    return np.concatenate([part.reshape(len(values), -1) for part in parts], axis=1)


def _few_codes(units: NDArray[np.int64]) -> NDArray[Any]:
    return _as_codes(_pack_few(units + tiled.OFFSET), signed=False)


def _pack_few(units: NDArray[Any]) -> NDArray[Any]:
    """Pack (groups, channels, depth, unit) into blocks of TILE channels: (depth, TILE, unit)."""
    groups, channels, depth, unit = units.shape
    count = -(-channels // simd.TILE)
    filled = np.zeros((groups, count * simd.TILE, depth, unit), units.dtype)
    filled[:, :channels] = units
    split = filled.reshape(groups, count, simd.TILE, depth, unit)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 2, 4))


def _describe_few(window: Window) -> Longs:
    description = _describe(window)
    description[tiled.PIXELS] = description[tiled.CHANNEL_STEP] = window.pixels
    description[tiled.PIXEL_STEP] = 1
    return description


def _few(
    description: Longs,
    function: TaskFunction,
    packed: NDArray[Any],
    places: Longs,
    arrays: dict[int, NDArray[Any]],
    mode: int,
    threads: int,
) -> Prepared:
    """Prepare for few pixels; packed: (groups, blocks, depth, TILE, unit)."""
    groups, count, depth = packed.shape[:3]
    steps = np.arange(depth, dtype=np.int64) * simd.TILE * 4
    arrays[tiled.WEIGHTS] = packed
    arrays[tiled.OFFSETS] = np.concatenate([steps, places.ravel()])
    scratch = _scratch(description, tiled.TILE_BYTES + depth * _LARGEST * 4 + 64, threads)
    _point(description, arrays)
    description[tiled.BLOCK_COUNT], description[tiled.DEPTH] = count, depth
    tasks = int(description[tiled.IMAGES]) * groups
    splits = min(count, max(1, -(-4 * threads // tasks))) if threads > 1 else 1
    description[tiled.SPLITS], description[tiled.MODE] = splits, mode
    return Prepared(
        description, function, tasks * splits, tuple(arrays.values()), scratch_bytes=scratch
    )


def _places(window: Window, depth: int, *, padding_is_channel: bool) -> Longs:
    """Where each pixel's products lie in a group of channels: int64 (pixels, depth).

    Padding is -1, or -1 - channel where asked; places beyond the taps are that of channel 0.
    """
    channels = window.channels // window.groups
    c, i, j = np.indices((channels, window.kernel_h, window.kernel_w)).reshape(3, -1)
    oh, ow = np.indices((window.out_h, window.out_w)).reshape(2, -1, 1)
    h = oh * window.stride_h - window.pad_top + i * window.dilation_h
    w = ow * window.stride_w - window.pad_left + j * window.dilation_w
    inside = (h >= 0) & (h < window.height) & (w >= 0) & (w < window.width)
    outside = np.broadcast_to(-1 - c if padding_is_channel else np.int64(-1), inside.shape)
    places = np.full((window.pixels, depth), -1, np.int64)
    places[:, : c.size] = np.where(inside, (c * window.height + h) * window.width + w, outside)
    return places
