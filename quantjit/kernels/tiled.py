"""Convolution by tiles of channels and pixels that stay in registers; see `simd` for the tiles.

Blobs stay NCHW.  What makes any convolution a plain product is the layout of its input: with the
rows of a channel padded and laid one behind the other, the pixels that one tap multiplies are as
contiguous as the outputs that they go to, only shifted; a stride splits the image into phases (the
pixels at even and odd rows and columns for stride 2) in which the same holds.  So a table of
offsets, one a tap, is all that the tiles need, and nothing is copied nine times for a 3 x 3 kernel.
Outputs then come in rows of `pitch` pixels, whose ends are dropped on the way to the blob.

A 1 x 1 float convolution of stride 1 reads its input in place.  Int8 inputs are interleaved by
four channels (two without ``vpdpbusd``), with the zero point's distance to -128 folded into the
bias.

The work is cut into tasks that share nothing but their inputs: bands of output rows, images,
groups, and parts of the output channels.  Each output is one sum in one fixed order, whatever the
task that it falls to.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel, simd
from quantjit.kernels.addresses import codes, floats, integers, longs, octets, shorts
from quantjit.kernels.convolution import decay
from quantjit.kernels.simd import (
    EVEN,
    LANES,
    RAW,
    TILE,
    interleave,
    interleave_every_second,
    multiply_float,
    multiply_int8,
    pick_every_fourth,
    pick_every_second,
)

UNIT = 4 if simd.DOT else 2
"""Channels that one int8 product joins."""
OFFSET = 128 if simd.DOT else 0
"""What is added to input codes."""
HALF = LANES // 2
"""Pixels by which the width of a tile grows."""

(X, OUT, ADDEND, SCRATCH, WEIGHTS, BIAS, TERMS, LIMITS, ZEROS, OFFSETS, BLOCKS, PHASE_TABLE,
 BLOCK_COUNT, FULL_CHANNELS, DEPTH, IMAGES, GROUPS, CHANNELS, HEIGHT, WIDTH, OUT_CHANNELS, OUT_H,
 OUT_W, STRIDE_H, STRIDE_W, PAD_TOP, PAD_LEFT, DILATION_W, PITCH, PLANE, PHASES, HALO, BAND, BANDS,
 SPLITS, SCRATCH_BYTES, LAYOUT, MODE, FUSION, PIXELS, PIXEL_STEP, CHANNEL_STEP,
 FIELDS) = range(43)  # fmt: skip
"""Fields of the description of one convolution, int64; those to PHASE_TABLE are addresses."""

IN_PLACE, BY_CHANNEL, BY_TAP = range(3)
"""Layouts of an input: one row of pixels as it is; phases of the padded rows, int8 by UNIT
channels; the same by UNIT neighbouring taps of a kernel row."""

TILE_BYTES = 6 * TILE * 4 + 64
"""Of the scratch that starts with a tile: the tile, and the sums that its rows start from."""

_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_INFINITY, _LOWEST = np.float32(np.inf), np.float32(-128)

BLOCK_ROWS, BLOCK_FIRST, BLOCK_VALID, BLOCK_WEIGHTS, BLOCK_FIELDS = range(5)
"""Fields of one block of output channels: rows of its tile, first channel, how many channels are
real, offset of its weights in bytes."""


def _widths(table: Any, rows: int) -> tuple[Any, ...]:
    """Return the kernels of these rows by half vectors; wider ones than exist are never run."""
    return tuple(table[rows, min(halves, 2 * simd.VECTORS)] for halves in range(1, 9))


(_FLOAT_1_1, _FLOAT_1_2, _FLOAT_1_3, _FLOAT_1_4, _FLOAT_1_5, _FLOAT_1_6, _FLOAT_1_7, _FLOAT_1_8) = (
    _widths(multiply_float, 1)
)
(_FLOAT_4_1, _FLOAT_4_2, _FLOAT_4_3, _FLOAT_4_4, _FLOAT_4_5, _FLOAT_4_6, _FLOAT_4_7, _FLOAT_4_8) = (
    _widths(multiply_float, 4)
)
(_FLOAT_6_1, _FLOAT_6_2, _FLOAT_6_3, _FLOAT_6_4, _FLOAT_6_5, _FLOAT_6_6, _FLOAT_6_7, _FLOAT_6_8) = (
    _widths(multiply_float, 6)
)
(_INT8_1_1, _INT8_1_2, _INT8_1_3, _INT8_1_4, _INT8_1_5, _INT8_1_6, _INT8_1_7, _INT8_1_8) = _widths(
    multiply_int8, 1
)
(_INT8_4_1, _INT8_4_2, _INT8_4_3, _INT8_4_4, _INT8_4_5, _INT8_4_6, _INT8_4_7, _INT8_4_8) = _widths(
    multiply_int8, 4
)
(_INT8_6_1, _INT8_6_2, _INT8_6_3, _INT8_6_4, _INT8_6_5, _INT8_6_6, _INT8_6_7, _INT8_6_8) = _widths(
    multiply_int8, 6
)


@kernel
def float_tile_1(
    halves: int, weights: int, pixels: int, offsets: int, depth: int, bias: int,
    out: int, stride: int, low: np.float32, high: np.float32,
) -> None:  # fmt: skip
    """Run the float tile of 1 row that is this wide; arguments as in `simd`."""
    if halves <= 4:
        if halves <= 2:
            if halves <= 1:
                _FLOAT_1_1(weights, pixels, offsets, depth, bias, out, stride, low, high)
            else:
                _FLOAT_1_2(weights, pixels, offsets, depth, bias, out, stride, low, high)
        else:
            if halves <= 3:
                _FLOAT_1_3(weights, pixels, offsets, depth, bias, out, stride, low, high)
            else:
                _FLOAT_1_4(weights, pixels, offsets, depth, bias, out, stride, low, high)
    else:
        if halves <= 6:
            if halves <= 5:
                _FLOAT_1_5(weights, pixels, offsets, depth, bias, out, stride, low, high)
            else:
                _FLOAT_1_6(weights, pixels, offsets, depth, bias, out, stride, low, high)
        else:
            if halves <= 7:
                _FLOAT_1_7(weights, pixels, offsets, depth, bias, out, stride, low, high)
            else:
                _FLOAT_1_8(weights, pixels, offsets, depth, bias, out, stride, low, high)


@kernel
def float_tile_4(
    halves: int, weights: int, pixels: int, offsets: int, depth: int, bias: int,
    out: int, stride: int, low: np.float32, high: np.float32,
) -> None:  # fmt: skip
    """Run the float tile of 4 rows that is this wide; arguments as in `simd`."""
    if halves <= 4:
        if halves <= 2:
            if halves <= 1:
                _FLOAT_4_1(weights, pixels, offsets, depth, bias, out, stride, low, high)
            else:
                _FLOAT_4_2(weights, pixels, offsets, depth, bias, out, stride, low, high)
        else:
            if halves <= 3:
                _FLOAT_4_3(weights, pixels, offsets, depth, bias, out, stride, low, high)
            else:
                _FLOAT_4_4(weights, pixels, offsets, depth, bias, out, stride, low, high)
    else:
        if halves <= 6:
            if halves <= 5:
                _FLOAT_4_5(weights, pixels, offsets, depth, bias, out, stride, low, high)
            else:
                _FLOAT_4_6(weights, pixels, offsets, depth, bias, out, stride, low, high)
        else:
            if halves <= 7:
                _FLOAT_4_7(weights, pixels, offsets, depth, bias, out, stride, low, high)
            else:
                _FLOAT_4_8(weights, pixels, offsets, depth, bias, out, stride, low, high)


@kernel
def float_tile_6(
    halves: int, weights: int, pixels: int, offsets: int, depth: int, bias: int,
    out: int, stride: int, low: np.float32, high: np.float32,
) -> None:  # fmt: skip
    """Run the float tile of 6 rows that is this wide; arguments as in `simd`."""
    if halves <= 4:
        if halves <= 2:
            if halves <= 1:
                _FLOAT_6_1(weights, pixels, offsets, depth, bias, out, stride, low, high)
            else:
                _FLOAT_6_2(weights, pixels, offsets, depth, bias, out, stride, low, high)
        else:
            if halves <= 3:
                _FLOAT_6_3(weights, pixels, offsets, depth, bias, out, stride, low, high)
            else:
                _FLOAT_6_4(weights, pixels, offsets, depth, bias, out, stride, low, high)
    else:
        if halves <= 6:
            if halves <= 5:
                _FLOAT_6_5(weights, pixels, offsets, depth, bias, out, stride, low, high)
            else:
                _FLOAT_6_6(weights, pixels, offsets, depth, bias, out, stride, low, high)
        else:
            if halves <= 7:
                _FLOAT_6_7(weights, pixels, offsets, depth, bias, out, stride, low, high)
            else:
                _FLOAT_6_8(weights, pixels, offsets, depth, bias, out, stride, low, high)


@kernel
def float_tile(
    rows: int, halves: int, weights: int, pixels: int, offsets: int, depth: int, bias: int,
    out: int, stride: int, low: np.float32, high: np.float32,
) -> None:  # fmt: skip
    """Run the float tile of this size; arguments as in `simd`."""
    if rows == 6:
        float_tile_6(halves, weights, pixels, offsets, depth, bias, out, stride, low, high)
    elif rows == 4:
        float_tile_4(halves, weights, pixels, offsets, depth, bias, out, stride, low, high)
    else:
        float_tile_1(halves, weights, pixels, offsets, depth, bias, out, stride, low, high)


@kernel
def int8_tile_1(
    halves: int, weights: int, pixels: int, offsets: int, depth: int, bias: int,
    out: int, stride: int, terms: int, count: int, mode: int, floor: np.float32,
) -> None:  # fmt: skip
    """Run the int8 tile of 1 row that is this wide; arguments as in `simd`."""
    if halves <= 4:
        if halves <= 2:
            if halves <= 1:
                _INT8_1_1(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
            else:
                _INT8_1_2(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
        else:
            if halves <= 3:
                _INT8_1_3(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
            else:
                _INT8_1_4(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
    else:
        if halves <= 6:
            if halves <= 5:
                _INT8_1_5(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
            else:
                _INT8_1_6(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
        else:
            if halves <= 7:
                _INT8_1_7(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
            else:
                _INT8_1_8(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )


@kernel
def int8_tile_4(
    halves: int, weights: int, pixels: int, offsets: int, depth: int, bias: int,
    out: int, stride: int, terms: int, count: int, mode: int, floor: np.float32,
) -> None:  # fmt: skip
    """Run the int8 tile of 4 rows that is this wide; arguments as in `simd`."""
    if halves <= 4:
        if halves <= 2:
            if halves <= 1:
                _INT8_4_1(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
            else:
                _INT8_4_2(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
        else:
            if halves <= 3:
                _INT8_4_3(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
            else:
                _INT8_4_4(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
    else:
        if halves <= 6:
            if halves <= 5:
                _INT8_4_5(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
            else:
                _INT8_4_6(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
        else:
            if halves <= 7:
                _INT8_4_7(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
            else:
                _INT8_4_8(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )


@kernel
def int8_tile_6(
    halves: int, weights: int, pixels: int, offsets: int, depth: int, bias: int,
    out: int, stride: int, terms: int, count: int, mode: int, floor: np.float32,
) -> None:  # fmt: skip
    """Run the int8 tile of 6 rows that is this wide; arguments as in `simd`."""
    if halves <= 4:
        if halves <= 2:
            if halves <= 1:
                _INT8_6_1(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
            else:
                _INT8_6_2(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
        else:
            if halves <= 3:
                _INT8_6_3(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
            else:
                _INT8_6_4(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
    else:
        if halves <= 6:
            if halves <= 5:
                _INT8_6_5(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
            else:
                _INT8_6_6(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
        else:
            if halves <= 7:
                _INT8_6_7(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )
            else:
                _INT8_6_8(
                    weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
                )


@kernel
def int8_tile(
    rows: int, halves: int, weights: int, pixels: int, offsets: int, depth: int, bias: int,
    out: int, stride: int, terms: int, count: int, mode: int, floor: np.float32,
) -> None:  # fmt: skip
    """Run the int8 tile of this size; arguments as in `simd`."""
    if rows == 6:
        int8_tile_6(
            halves, weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
        )
    elif rows == 4:
        int8_tile_4(
            halves, weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
        )
    else:
        int8_tile_1(
            halves, weights, pixels, offsets, depth, bias, out, stride, terms, count, mode, floor
        )


@kernel
def lay_floats_into(
    d: NDArray[np.int64], image: int, limit: int, row: int, rows: int, scratch: int
) -> None:
    """Lay the input rows that output rows `row` to row + rows read into their phases.

    d: int64 (FIELDS,); image: address of float32 (channels, h, w), which may be read up to the
    address `limit`; scratch: address of float32 (channels, phases, PLANE).
    """
    height, width, pitch, plane = d[HEIGHT], d[WIDTH], d[PITCH], d[PLANE]
    stride_h, stride_w = d[STRIDE_H], d[STRIDE_W]
    phases = longs(d[PHASE_TABLE], 2 * d[PHASES])
    source = floats(image, d[CHANNELS] * height * width)
    target = floats(scratch, d[CHANNELS] * d[PHASES] * plane)
    for c in range(d[CHANNELS]):
        for phase in range(d[PHASES]):
            shift_h, shift_w = phases[2 * phase], phases[2 * phase + 1]
            first = min(pitch, max(0, -((shift_w - d[PAD_LEFT]) // stride_w)))
            last = max(first, min(pitch, -((shift_w - d[PAD_LEFT] - width) // stride_w)))
            at = (c * d[PHASES] + phase) * plane
            for r in range(rows + d[HALO]):
                h = (row + r) * stride_h + shift_h - d[PAD_TOP]
                line = target[at : at + pitch]
                at += pitch
                if h < 0 or h >= height:
                    line[:] = 0
                    continue
                start = (c * height + h) * width + first * stride_w + shift_w - d[PAD_LEFT]
                line[:first] = 0
                inner, pixels = line[first:last], source[start:]
                if stride_w == 1:
                    for i in range(inner.size):
                        inner[i] = pixels[i]
                else:
                    at_line, at_pixels = scratch + (at - pitch + first) * 4, image + start * 4
                    vectors = (inner.size + LANES - 1) // LANES
                    vectors = max(0, min(vectors, (limit - at_pixels) // (LANES * stride_w * 4)))
                    if stride_w == 2:
                        pick_every_second(at_pixels, at_line, vectors)
                    elif stride_w == 4:
                        pick_every_fourth(at_pixels, at_line, vectors)
                    else:
                        vectors = 0
                    for i in range(vectors * LANES, inner.size):
                        inner[i] = pixels[i * stride_w]
                line[last:] = 0
            target[at : (c * d[PHASES] + phase + 1) * plane] = 0


@kernel
def copy_floats_into(
    d: NDArray[np.int64], tile: int, start: int, width: int, rows: int, out: int
) -> None:
    """Copy a tile of outputs without the ends of rows.

    tile: address of float32 (rows, TILE), its first pixel `start` counted in rows of PITCH; out:
    address of float32 (rows, OUT_H * OUT_W), at the first output row of the band.
    """
    pitch, out_w, pixels = d[PITCH], d[OUT_W], d[OUT_H] * d[OUT_W]
    p = 0
    while p < width:
        oh, ow = (start + p) // pitch, (start + p) % pitch
        count = min(out_w - ow, width - p) if pitch > out_w else width
        if count > 0:
            for row in range(rows):
                source = floats(tile + (row * TILE + p) * 4, count)
                target = floats(out + (row * pixels + oh * out_w + ow) * 4, count)
                for i in range(count):
                    target[i] = source[i]
        p += pitch - ow if ow + count == out_w else max(count, 1)


@kernel
def swish_into(tile: int, rows: int, width: int) -> None:
    """Apply x * sigmoid(x) to a tile of float32 (rows, TILE) at an address."""
    for row in range(rows):
        line = floats(tile + row * TILE * 4, width)
        for i in range(width):
            line[i] = line[i] * (_ONE / (_ONE + decay(line[i])))


@kernel
def convolve_float(d: NDArray[np.int64], task: int, thread: int) -> None:
    """Do one task of a float convolution.

    d: int64 (FIELDS,); LIMITS are the lowest and the highest output, MODE is 1 for swish; thread:
    which scratch to use.  A row that is read in place has at least LANES pixels: its last vector
    moves back to the end of the row, over pixels that are done already.
    """
    part, rest = task % d[SPLITS], task // d[SPLITS]
    band, rest = rest % d[BANDS], rest // d[BANDS]
    group, n = rest % d[GROUPS], rest // d[GROUPS]
    image = n * d[GROUPS] + group
    source = d[X] + image * d[CHANNELS] * d[HEIGHT] * d[WIDTH] * 4
    tile = d[SCRATCH] + thread * d[SCRATCH_BYTES]
    laid = tile + TILE_BYTES
    row = band * d[BAND]
    rows = min(d[BAND], d[OUT_H] - row)
    in_place = d[LAYOUT] == IN_PLACE
    if in_place:
        pixels_at, count, begin = source + row * 4, rows, row
    else:
        limit = d[X] + d[IMAGES] * d[GROUPS] * d[CHANNELS] * d[HEIGHT] * d[WIDTH] * 4
        lay_floats_into(d, source, limit, row, rows, laid)
        pixels_at, count, begin = laid, (rows - 1) * d[PITCH] + d[OUT_W], row * d[OUT_W]
    size = d[OUT_H] * d[OUT_W]
    out = d[OUT] + (image * d[OUT_CHANNELS] * size + begin) * 4
    blocks = longs(d[BLOCKS], d[BLOCK_COUNT] * BLOCK_FIELDS)
    bias = d[BIAS] + group * d[FULL_CHANNELS] * 4
    weights = d[WEIGHTS] + group * d[FULL_CHANNELS] * d[DEPTH] * 4
    limits = floats(d[LIMITS], 2)
    for b in range(part * d[BLOCK_COUNT] // d[SPLITS], (part + 1) * d[BLOCK_COUNT] // d[SPLITS]):
        at = b * BLOCK_FIELDS
        height, first = blocks[at + BLOCK_ROWS], blocks[at + BLOCK_FIRST]
        valid = blocks[at + BLOCK_VALID]
        aside = d[PITCH] != d[OUT_W] or valid != height or d[MODE] == 1
        start = 0
        while start < count:
            width = min(TILE, count - start)
            if in_place and width % HALF != 0:
                width = max(width // HALF, 1) * HALF
                start = min(start, count - width)
            target, stride = out + (first * size + start) * 4, size * 4
            if aside or width % HALF != 0:
                target, stride = tile, TILE * 4
            float_tile(
                height, (width + HALF - 1) // HALF, weights + blocks[at + BLOCK_WEIGHTS],
                pixels_at + start * 4, d[OFFSETS], d[DEPTH], bias + first * 4, target, stride,
                limits[0], limits[1],
            )  # fmt: skip
            if target == tile:
                if d[MODE] == 1:
                    swish_into(tile, valid, width)
                copy_floats_into(d, tile, start, width, valid, out + first * size * 4)
            start += width


@kernel
def join_into(
    first: int, second: int, third: int, fourth: int, out: int, count: int, vectors: int, step: int
) -> None:
    """Join every `step`-th code at four addresses (two without `simd.DOT`) into `count` dwords.

    The first `vectors` * LANES may be read and written beyond `count`.
    """
    if step == 1:
        interleave(first, second, third, fourth, out, vectors)
    elif step == 2:
        interleave_every_second(first, second, third, fourth, out, vectors)
    done = min(count, vectors * LANES)
    if UNIT == 4:
        flipped = octets(out, count * 4)
        s0, s1 = codes(first, count * step), codes(second, count * step)
        s2, s3 = codes(third, count * step), codes(fourth, count * step)
        for i in range(done, count):
            flipped[4 * i] = np.uint8(int(s0[i * step]) + OFFSET)
            flipped[4 * i + 1] = np.uint8(int(s1[i * step]) + OFFSET)
            flipped[4 * i + 2] = np.uint8(int(s2[i * step]) + OFFSET)
            flipped[4 * i + 3] = np.uint8(int(s3[i * step]) + OFFSET)
    else:
        pairs = shorts(out, count * 2)
        s0, s1 = codes(first, count * step), codes(second, count * step)
        for i in range(done, count):
            pairs[2 * i] = s0[i * step]
            pairs[2 * i + 1] = s1[i * step]


@kernel
def lay_pixels_into(
    d: NDArray[np.int64], image: int, limit: int, unit: int, at: int, count: int, step: int,
    target: int,
) -> None:  # fmt: skip
    """Interleave `count` pixels of one unit of channels, each `step`-th from pixel `at` on.

    image: address of int8 (channels, h, w), which may be read up to the address `limit`; target:
    address of the dwords, writable for LANES more than `count`.
    """
    size, channels = d[HEIGHT] * d[WIDTH], d[CHANNELS]
    first = unit * UNIT
    a0 = image + first * size + at
    a1 = image + min(first + 1, channels - 1) * size + at
    a2 = image + min(first + 2, channels - 1) * size + at
    a3 = image + min(first + 3, channels - 1) * size + at
    vectors = (count + LANES - 1) // LANES if step <= 2 else 0
    furthest = a3 if UNIT == 4 else a1
    while vectors > 0 and furthest + vectors * LANES * step > limit:
        vectors -= 1
    join_into(a0, a1, a2, a3, target, count, vectors, step)


@kernel
def lay_codes_into(
    d: NDArray[np.int64], image: int, limit: int, group: int, row: int, rows: int, scratch: int
) -> None:
    """As `lay_floats_into` for int8: dwords (units, phases, PLANE), pads hold the zero point."""
    height, width, pitch, plane = d[HEIGHT], d[WIDTH], d[PITCH], d[PLANE]
    stride_h, stride_w = d[STRIDE_H], d[STRIDE_W]
    phases = longs(d[PHASE_TABLE], 2 * d[PHASES])
    units = (d[CHANNELS] + UNIT - 1) // UNIT
    zeros = integers(d[ZEROS] + group * units * 4, units)
    target = integers(scratch, units * d[PHASES] * plane)
    for unit in range(units):
        zero = zeros[unit]
        for phase in range(d[PHASES]):
            shift_h, shift_w = phases[2 * phase], phases[2 * phase + 1]
            first = min(pitch, max(0, -((shift_w - d[PAD_LEFT]) // stride_w)))
            last = max(first, min(pitch, -((shift_w - d[PAD_LEFT] - width) // stride_w)))
            at = (unit * d[PHASES] + phase) * plane
            for r in range(rows + d[HALO]):
                h = (row + r) * stride_h + shift_h - d[PAD_TOP]
                line = target[at : at + pitch]
                if h < 0 or h >= height:
                    line[:] = zero
                else:
                    line[:first] = zero
                    start = h * width + first * stride_w + shift_w - d[PAD_LEFT]
                    lay_pixels_into(
                        d, image, limit, unit, start, last - first, stride_w,
                        scratch + (at + first) * 4,
                    )  # fmt: skip
                    line[last:] = zero
                at += pitch
            target[at : (unit * d[PHASES] + phase + 1) * plane] = zero


@kernel
def lay_taps_into(
    d: NDArray[np.int64], image: int, group: int, row: int, rows: int, scratch: int, line: int
) -> None:
    """As `lay_codes_into`, but a dword joins neighbouring taps of a kernel row, not channels.

    Phases are (input row of the stride, first tap of the dword); PITCH is the output's width; line:
    address of scratch for one padded row of codes.
    """
    height, width, pitch, plane = d[HEIGHT], d[WIDTH], d[PITCH], d[PLANE]
    stride_h, stride_w, dilation = d[STRIDE_H], d[STRIDE_W], d[DILATION_W]
    phases = longs(d[PHASE_TABLE], 2 * d[PHASES])
    zeros = integers(d[ZEROS] + group * d[CHANNELS] * 4, d[CHANNELS])
    target = integers(scratch, d[CHANNELS] * d[PHASES] * plane)
    length = (pitch - 1) * stride_w + (UNIT - 1) * dilation + 1
    padded = codes(line, length)
    vectors = (pitch + LANES - 1) // LANES if stride_w <= 2 else 0
    for c in range(d[CHANNELS]):
        zero = zeros[c]
        low = (int(zero) & 255) - OFFSET
        code = np.int8(low - 256 if low > 127 else low)
        for phase in range(d[PHASES]):
            shift_h, shift_w = phases[2 * phase], phases[2 * phase + 1] - d[PAD_LEFT]
            first = min(length, max(0, -shift_w))
            last = max(first, min(length, width - shift_w))
            at = (c * d[PHASES] + phase) * plane
            padded[:first] = code
            padded[last:] = code
            for r in range(rows + d[HALO]):
                h = (row + r) * stride_h + shift_h - d[PAD_TOP]
                if h < 0 or h >= height:
                    target[at : at + pitch] = zero
                else:
                    source = codes(image + (c * height + h) * width + first + shift_w, last - first)
                    inner = padded[first:last]
                    for i in range(inner.size):
                        inner[i] = source[i]
                    join_into(
                        line, line + dilation, line + 2 * dilation, line + 3 * dilation,
                        scratch + at * 4, pitch, vectors, stride_w,
                    )  # fmt: skip
                at += pitch
            target[at : (c * d[PHASES] + phase + 1) * plane] = zero


@kernel
def copy_codes_into(
    d: NDArray[np.int64], tile: int, start: int, width: int, rows: int, out: int
) -> None:
    """As `copy_floats_into` for int8."""
    pitch, out_w, pixels = d[PITCH], d[OUT_W], d[OUT_H] * d[OUT_W]
    p = 0
    while p < width:
        oh, ow = (start + p) // pitch, (start + p) % pitch
        count = min(out_w - ow, width - p) if pitch > out_w else width
        if count > 0:
            for row in range(rows):
                source = codes(tile + row * TILE + p, count)
                target = codes(out + row * pixels + oh * out_w + ow, count)
                for i in range(count):
                    target[i] = source[i]
        p += pitch - ow if ow + count == out_w else max(count, 1)


@kernel
def finish_tile_into(
    d: NDArray[np.int64], tile: int, start: int, width: int, rows: int, terms: int, out: int,
    addend: int,
) -> None:  # fmt: skip
    """Requantize a tile of int32 sums (rows, TILE) and write it without the ends of rows.

    terms: address of the rows' first factor; addend: address of the int8 that is added, laid out as
    `out`.  ``(sum * factor + before) clamped from below, + after, + zero point``, of which one
    addition has the addend's scale and the other none.
    """
    pitch, out_w, size = d[PITCH], d[OUT_W], d[OUT_H] * d[OUT_W]
    floor = floats(d[LIMITS], 1)[0]
    count_all = d[FULL_CHANNELS] * d[GROUPS]
    p = 0
    while p < width:
        oh, ow = (start + p) // pitch, (start + p) % pitch
        count = min(out_w - ow, width - p) if pitch > out_w else width
        if count > 0:
            for row in range(rows):
                term = floats(terms + row * 4, 6 * count_all + 1)
                step, zero, high = term[0], term[count_all], term[2 * count_all]
                before, before_zero = term[3 * count_all], term[4 * count_all]
                after, after_zero = term[5 * count_all], term[6 * count_all]
                sums = integers(tile + (row * TILE + p) * 4, count)
                at = row * size + oh * out_w + ow
                target, other = codes(out + at, count), codes(addend + at, count)
                for i in range(count):
                    code = np.float32(other[i])
                    value = np.float32(sums[i]) * step + (code * before - before_zero)
                    value = (value if value > floor else floor) + (code * after - after_zero)
                    target[i] = requantize(value, zero, high, d[MODE])
        p += pitch - ow if ow + count == out_w else max(count, 1)


@kernel
def requantize(value: np.float32, zero: np.float32, high: np.float32, mode: int) -> np.int8:
    """Round to a code: half away from zero, or in mode EVEN half to even, before the zero point."""
    if mode == EVEN:
        value = np.rint(value) + zero
    else:
        value = value + zero
        value = value + _HALF if value >= 0 else value - _HALF
    value = value if value < high else high
    return np.int8(np.int32(value if value > _LOWEST else _LOWEST))


@kernel
def convolve_int8(d: NDArray[np.int64], task: int, thread: int) -> None:
    """Do one task of an int8 convolution; as `convolve_float`.

    LIMITS is the clamp before the zero point; MODE is AWAY or EVEN; with FUSION the tile is
    finished by `finish_tile_into`.
    """
    part, rest = task % d[SPLITS], task // d[SPLITS]
    band, rest = rest % d[BANDS], rest // d[BANDS]
    group, n = rest % d[GROUPS], rest // d[GROUPS]
    image = n * d[GROUPS] + group
    source = d[X] + image * d[CHANNELS] * d[HEIGHT] * d[WIDTH]
    limit = d[X] + d[IMAGES] * d[GROUPS] * d[CHANNELS] * d[HEIGHT] * d[WIDTH]
    tile = d[SCRATCH] + thread * d[SCRATCH_BYTES]
    laid = tile + TILE_BYTES
    row = band * d[BAND]
    rows = min(d[BAND], d[OUT_H] - row)
    if d[LAYOUT] == IN_PLACE:
        count, begin = rows, row
        for unit in range((d[CHANNELS] + UNIT - 1) // UNIT):
            lay_pixels_into(d, source, limit, unit, row, rows, 1, laid + unit * d[PLANE] * 4)
    else:
        if d[LAYOUT] == BY_TAP:
            line = laid + d[CHANNELS] * d[PHASES] * d[PLANE] * 4
            lay_taps_into(d, source, group, row, rows, laid, line)
        else:
            lay_codes_into(d, source, limit, group, row, rows, laid)
        count, begin = (rows - 1) * d[PITCH] + d[OUT_W], row * d[OUT_W]
    size = d[OUT_H] * d[OUT_W]
    at_out = image * d[OUT_CHANNELS] * size + begin
    blocks = longs(d[BLOCKS], d[BLOCK_COUNT] * BLOCK_FIELDS)
    full = d[FULL_CHANNELS]
    bias = d[BIAS] + group * full * 4
    terms = d[TERMS] + group * full * 4
    weights = d[WEIGHTS] + group * full * d[DEPTH] * 4
    floor = floats(d[LIMITS], 1)[0]
    mode = RAW if d[FUSION] else d[MODE]
    for b in range(part * d[BLOCK_COUNT] // d[SPLITS], (part + 1) * d[BLOCK_COUNT] // d[SPLITS]):
        at = b * BLOCK_FIELDS
        height, first = blocks[at + BLOCK_ROWS], blocks[at + BLOCK_FIRST]
        valid = blocks[at + BLOCK_VALID]
        aside = d[PITCH] != d[OUT_W] or valid != height
        out = d[OUT] + at_out + first * size
        for start in range(0, count, TILE):
            width = min(TILE, count - start)
            target, stride = out + start, size
            if mode == RAW:
                target, stride = tile, TILE * 4
            elif aside or width % HALF != 0:
                target, stride = tile, TILE
            int8_tile(
                height, (width + HALF - 1) // HALF, weights + blocks[at + BLOCK_WEIGHTS],
                laid + start * 4, d[OFFSETS], d[DEPTH], bias + first * 4, target, stride,
                terms + first * 4, full * d[GROUPS], mode, floor,
            )  # fmt: skip
            if mode == RAW:
                other = d[ADDEND] + at_out + first * size
                finish_tile_into(d, tile, start, width, valid, terms + first * 4, out, other)
            elif target == tile:
                copy_codes_into(d, tile, start, width, valid, out)


@kernel
def convolve_few_float(d: NDArray[np.int64], task: int, thread: int) -> None:
    """Do one task of a float convolution into few pixels, or of a product of matrices.

    The roles of `float_tile` are swapped: its rows are pixels, its vectors output channels.
    OFFSETS is for both: where each product lies in a block of weights, and behind these, int64
    (PIXELS, DEPTH), where in the image, or -1 for padding.  A block is TILE output channels;
    outputs are CHANNEL_STEP and PIXEL_STEP apart.
    """
    part, rest = task % d[SPLITS], task // d[SPLITS]
    group, n = rest % d[GROUPS], rest // d[GROUPS]
    image = n * d[GROUPS] + group
    depth, size, channels = d[DEPTH], d[PIXELS], d[OUT_CHANNELS]
    source = floats(
        d[X] + image * d[CHANNELS] * d[HEIGHT] * d[WIDTH] * 4, d[CHANNELS] * d[HEIGHT] * d[WIDTH]
    )
    places = longs(d[OFFSETS] + depth * 8, size * depth)
    tile = d[SCRATCH] + thread * d[SCRATCH_BYTES]
    laid = tile + TILE_BYTES
    limits = floats(d[LIMITS], 2)
    bias = floats(d[BIAS] + group * d[FULL_CHANNELS] * 4, channels)
    extent = channels * max(size, d[CHANNEL_STEP])
    out = floats(d[OUT] + image * extent * 4, extent)
    pixel = 0
    while pixel < size:
        rows = 1 if size - pixel == 1 else 4 if size - pixel <= 4 else 6
        valid = min(rows, size - pixel)
        rows_laid = floats(laid, depth * rows)
        for row in range(rows):
            at = (pixel + min(row, valid - 1)) * depth
            for k in range(depth):
                place = places[at + k]
                rows_laid[k * rows + row] = source[place] if place >= 0 else _ZERO
        for b in range(
            part * d[BLOCK_COUNT] // d[SPLITS], (part + 1) * d[BLOCK_COUNT] // d[SPLITS]
        ):
            weights = d[WEIGHTS] + (group * d[BLOCK_COUNT] + b) * depth * TILE * 4
            width = min(TILE, channels - b * TILE)
            float_tile(
                rows, 2 * simd.VECTORS, laid, weights, d[OFFSETS], depth, d[TERMS], tile,
                TILE * 4, -_INFINITY, _INFINITY,
            )  # fmt: skip
            for row in range(valid):
                sums = floats(tile + row * TILE * 4, width)
                for i in range(width):
                    value = sums[i] + bias[b * TILE + i]
                    if d[MODE] == 1:
                        value = value * (_ONE / (_ONE + decay(value)))
                    value = limits[0] if value < limits[0] else value
                    value = limits[1] if value > limits[1] else value
                    to = (b * TILE + i) * d[CHANNEL_STEP] + (pixel + row) * d[PIXEL_STEP]
                    out[to] = value
        pixel += valid


@kernel
def convolve_few_int8(d: NDArray[np.int64], task: int, thread: int) -> None:
    """As `convolve_few_float` for int8.

    The weights carry the offset of 128, so that a row starts at -128 times the sum of its codes.
    """
    part, rest = task % d[SPLITS], task // d[SPLITS]
    group, n = rest % d[GROUPS], rest // d[GROUPS]
    image = n * d[GROUPS] + group
    depth, size, channels = d[DEPTH], d[PIXELS], d[OUT_CHANNELS]
    taps = depth * UNIT
    source = codes(d[X] + image * d[CHANNELS] * d[HEIGHT] * d[WIDTH],
                   d[CHANNELS] * d[HEIGHT] * d[WIDTH])  # fmt: skip
    places = longs(d[OFFSETS] + depth * 8, size * taps)
    tile = d[SCRATCH] + thread * d[SCRATCH_BYTES]
    starts = tile + TILE_BYTES - 64
    laid = tile + TILE_BYTES
    floor = floats(d[LIMITS], 1)[0]
    full = d[FULL_CHANNELS] * d[GROUPS]
    bias = integers(d[BIAS] + group * d[FULL_CHANNELS] * 4, channels)
    terms = floats(d[TERMS] + group * d[FULL_CHANNELS] * 4, 6 * full + channels)
    zeros = codes(d[ZEROS] + group * d[CHANNELS], d[CHANNELS])
    extent = channels * max(size, d[CHANNEL_STEP])
    out = codes(d[OUT] + image * extent, extent)
    other = codes(d[ADDEND] + image * extent, extent)
    pixel = 0
    while pixel < size:
        rows = 1 if size - pixel == 1 else 4 if size - pixel <= 4 else 6
        valid = min(rows, size - pixel)
        for row in range(rows):
            at = (pixel + min(row, valid - 1)) * taps
            total = 0
            for k in range(taps):
                place = places[at + k]  # padding names its channel: -1 - channel
                code = source[place] if place >= 0 else zeros[-1 - place]
                total += int(code)
                if UNIT == 4:
                    codes(laid, depth * rows * 4)[(k // 4 * rows + row) * 4 + k % 4] = code
                else:
                    shorts(laid, depth * rows * 2)[(k // 2 * rows + row) * 2 + k % 2] = code
            integers(starts, 6)[row] = np.int32(-OFFSET * total)
        for b in range(
            part * d[BLOCK_COUNT] // d[SPLITS], (part + 1) * d[BLOCK_COUNT] // d[SPLITS]
        ):
            weights = d[WEIGHTS] + (group * d[BLOCK_COUNT] + b) * depth * TILE * 4
            width = min(TILE, channels - b * TILE)
            int8_tile(
                rows, 2 * simd.VECTORS, laid, weights, d[OFFSETS], depth, starts, tile, TILE * 4,
                d[TERMS], full, RAW, floor,
            )  # fmt: skip
            for row in range(valid):
                sums = integers(tile + row * TILE * 4, width)
                for i in range(width):
                    c = b * TILE + i
                    to = c * d[CHANNEL_STEP] + (pixel + row) * d[PIXEL_STEP]
                    code_value = np.float32(other[to]) if d[FUSION] else _ZERO
                    value = np.float32(np.int32(int(sums[i]) + int(bias[c]))) * terms[c]
                    value += code_value * terms[3 * full + c] - terms[4 * full + c]
                    value = value if value > floor else floor
                    value += code_value * terms[5 * full + c] - terms[6 * full + c]
                    out[to] = requantize(value, terms[full + c], terms[2 * full + c], d[MODE])
        pixel += valid


def float_task(address: int, task: int, thread: int) -> None:
    """`convolve_float` of a description at an address."""
    convolve_float(longs(address, FIELDS), task, thread)


def int8_task(address: int, task: int, thread: int) -> None:
    """`convolve_int8` of a description at an address."""
    convolve_int8(longs(address, FIELDS), task, thread)


def few_float_task(address: int, task: int, thread: int) -> None:
    """`convolve_few_float` of a description at an address."""
    convolve_few_float(longs(address, FIELDS), task, thread)


def few_int8_task(address: int, task: int, thread: int) -> None:
    """`convolve_few_int8` of a description at an address."""
    convolve_few_int8(longs(address, FIELDS), task, thread)
