"""3 x 3 float convolution of stride 1 in a quarter of the multiplications.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", section 4.3, F(4 x 4, 3 x 3):
squares of 6 x 6 inputs and the filters are transformed, multiplied by position, and transformed
back to squares of 4 x 4 outputs.  A vector holds neighbouring squares; the products are those of
`simd`, one small matrix a position.  The input is laid into the 16 phases of a stride of 4
(`tiled`), in which the same pixel of neighbouring squares is contiguous.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from quantjit.kernels import kernel
from quantjit.kernels.addresses import floats, longs
from quantjit.kernels.simd import F32, FLOATS, I64, LANES, TILE, Emitter, constant, emitted
from quantjit.kernels.tiled import (
    BAND,
    BANDS,
    BIAS,
    BLOCK_COUNT,
    BLOCK_FIELDS,
    BLOCK_FIRST,
    BLOCK_ROWS,
    BLOCK_VALID,
    BLOCK_WEIGHTS,
    BLOCKS,
    CHANNELS,
    DEPTH,
    FIELDS,
    FULL_CHANNELS,
    GROUPS,
    HALF,
    HEIGHT,
    IMAGES,
    LIMITS,
    OFFSETS,
    OUT,
    OUT_CHANNELS,
    OUT_H,
    OUT_W,
    PHASES,
    PITCH,
    PIXELS,
    PLANE,
    SCRATCH,
    SCRATCH_BYTES,
    SPLITS,
    TERMS,
    WEIGHTS,
    WIDTH,
    X,
    float_tile,
    lay_floats_into,
)

SQUARE = 4
"""Outputs along a side of a square."""
SIDE = 6
"""Inputs along a side."""
POSITIONS = SIDE * SIDE

_NEAR, _FAR = math.sqrt(0.5), math.sqrt(2.0)
"""Points of interpolation besides 0 and infinity, with both signs: of all pairs those that lose the
least precision; the paper's 1 and 2 lose several times as much."""


def _filter_rows() -> NDArray[np.float64]:
    """Return the paper's G for these points: (6, 3)."""
    rows = [np.array([1.0, 0.0, 0.0]) / (_NEAR * _FAR) ** 2]
    for point, other in ((_NEAR, _FAR), (_FAR, _NEAR)):
        scale = 2 * point**2 * (point**2 - other**2)
        rows += [np.array([1.0, sign * point, point**2]) / scale for sign in (1, -1)]
    return np.stack([*rows, np.array([0.0, 0.0, 1.0])])


FILTER = _filter_rows()


def transform_filters(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Transform filters (..., 3, 3) into (..., 6, 6), rounded once."""
    transformed = FILTER @ weight.astype(np.float64) @ FILTER.T
    return transformed.astype(np.float32)


def _scaled(e: Emitter, factor: float, value: Any, total: Any) -> Any:
    return e.fma(constant(F32, LANES, factor), value, total)


def _to_positions(e: Emitter, d: list[Any]) -> list[Any]:
    """Return the paper's B transposed times six vectors."""
    near, far, both = _NEAR**2, _FAR**2, _NEAR**2 + _FAR**2
    even, odd = _scaled(e, -far, d[2], d[4]), _scaled(e, -far, d[1], d[3])
    even_far, odd_far = _scaled(e, -near, d[2], d[4]), _scaled(e, -near, d[1], d[3])
    return [
        _scaled(e, near * far, d[0], _scaled(e, -both, d[2], d[4])),
        _scaled(e, _NEAR, odd, even),
        _scaled(e, -_NEAR, odd, even),
        _scaled(e, _FAR, odd_far, even_far),
        _scaled(e, -_FAR, odd_far, even_far),
        _scaled(e, near * far, d[1], _scaled(e, -both, d[3], d[5])),
    ]


def _to_outputs(e: Emitter, m: list[Any]) -> list[Any]:
    """Return the paper's A transposed times six vectors."""
    b, nothing = e.builder, constant(F32, LANES, 0.0)
    near, far = b.fadd(m[1], m[2]), b.fadd(m[3], m[4])
    near_odd, far_odd = b.fsub(m[1], m[2]), b.fsub(m[3], m[4])
    return [
        b.fadd(b.fadd(m[0], near), far),
        _scaled(e, _FAR, far_odd, _scaled(e, _NEAR, near_odd, nothing)),
        _scaled(e, _FAR**2, far, _scaled(e, _NEAR**2, near, nothing)),
        _scaled(e, _FAR**3, far_odd, _scaled(e, _NEAR**3, near_odd, m[5])),
    ]


def _columns(rows: list[list[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _emit_input(e: Emitter, source: Any, offsets: Any, out: Any, stride: Any) -> None:
    """Transform the squares of one vector.

    source: address of the first square's first pixel; offsets: int64 (36,), bytes from there to
    each pixel; out: address of the first position, the others `stride` bytes apart.
    """
    builder = e.builder
    rows = []
    for i in range(SIDE):
        places = [e.load(e.at(offsets, i * SIDE + j, 8), I64) for j in range(SIDE)]
        rows.append([e.load(builder.add(source, place), FLOATS) for place in places])
    halfway = [_to_positions(e, column) for column in _columns(rows)]
    for i, row in enumerate(_columns(halfway)):
        for j, value in enumerate(_to_positions(e, row)):
            at = builder.mul(stride, ir.Constant(I64, i * SIDE + j))
            e.store(value, builder.add(out, at))


def _emit_output(e: Emitter, source: Any, stride: Any, out: Any, line: Any, rows: Any, columns: Any,
                 bias: Any, low: Any, high: Any) -> None:  # fmt: skip
    """Transform the products of one vector of squares back.

    source: address of the first position, the others `stride` bytes apart; out: address of the
    first output, its rows `line` bytes apart; rows, columns: outputs that exist.
    """
    builder = e.builder
    products = []
    for i in range(SIDE):
        places = [builder.mul(stride, ir.Constant(I64, i * SIDE + j)) for j in range(SIDE)]
        products.append([e.load(builder.add(source, place), FLOATS) for place in places])
    halfway = [_to_outputs(e, column) for column in _columns(products)]
    shift, lowest, highest = e.splat(bias), e.splat(low), e.splat(high)
    masks = [
        e.lanes_within(ir.Constant(I64, part * LANES), columns, LANES) for part in range(SQUARE)
    ]
    for i, row in enumerate(_columns(halfway)):
        values = [
            e.at_most(e.at_least(builder.fadd(value, shift), lowest), highest)
            for value in _to_outputs(e, row)
        ]
        with builder.if_then(builder.icmp_signed("<", ir.Constant(I64, i), rows)):
            left, right = _zip(e, values[0], values[2]), _zip(e, values[1], values[3])
            pixels = _zip(e, left, right)
            to = builder.add(out, builder.mul(line, ir.Constant(I64, i)))
            for part, mask in enumerate(masks):
                order = list(range(part * LANES, (part + 1) * LANES))
                kept = ir.Constant(ir.VectorType(ir.IntType(32), LANES), order)
                some = builder.shuffle_vector(pixels, pixels, kept)
                e.store_some(some, e.at(to, part * LANES, 4), mask)


def _zip(e: Emitter, left: Any, right: Any) -> Any:
    size = left.type.count
    order = [side + i for i in range(size) for side in (0, size)]
    mask = ir.Constant(ir.VectorType(ir.IntType(32), 2 * size), order)
    return e.builder.shuffle_vector(left, right, mask)


_INFINITY = np.float32(np.inf)
_INPUT = emitted("iiii", _emit_input)
_OUTPUT = emitted("iiiiiifff", _emit_output)


@kernel
def convolve_winograd(d: NDArray[np.int64], task: int, thread: int) -> None:
    """Do one task: a band of rows of squares, and a part of the output channels.

    d: as for `tiled.convolve_float`, but OUT_H and OUT_W count squares, while PIXELS and TERMS are
    the outputs' height and width; DEPTH: squares that a transformed channel has room for, a vector
    more than those of a band; LIMITS: lowest and highest output and six zeros; OFFSETS: int64
    (CHANNELS + 36,), of transformed channels and of a square's pixels.
    """
    part, rest = task % d[SPLITS], task // d[SPLITS]
    band, rest = rest % d[BANDS], rest // d[BANDS]
    group, n = rest % d[GROUPS], rest // d[GROUPS]
    image = n * d[GROUPS] + group
    row = band * d[BAND]
    rows, across = min(d[BAND], d[OUT_H] - row), d[OUT_W]
    out_h, out_w = d[PIXELS], d[TERMS]
    squares, padded = rows * across, d[DEPTH]
    products = d[SCRATCH] + thread * d[SCRATCH_BYTES]
    transformed = products + POSITIONS * 6 * padded * 4
    laid = transformed + POSITIONS * d[CHANNELS] * padded * 4
    source = d[X] + image * d[CHANNELS] * d[HEIGHT] * d[WIDTH] * 4
    limit = d[X] + d[IMAGES] * d[GROUPS] * d[CHANNELS] * d[HEIGHT] * d[WIDTH] * 4
    lay_floats_into(d, source, limit, row, rows, laid)
    offsets = d[OFFSETS] + d[CHANNELS] * 8
    for c in range(d[CHANNELS]):
        plane = laid + c * d[PHASES] * d[PLANE] * 4
        for r in range(rows):
            for column in range(0, across, LANES):
                _INPUT(
                    plane + (r * d[PITCH] + column) * 4, offsets,
                    transformed + (c * padded + r * across + column) * 4,
                    d[CHANNELS] * padded * 4,
                )  # fmt: skip
    limits = floats(d[LIMITS], 2)
    bias = floats(d[BIAS] + group * d[FULL_CHANNELS] * 4, d[FULL_CHANNELS])
    nothing = d[LIMITS] + 8
    blocks = longs(d[BLOCKS], d[BLOCK_COUNT] * BLOCK_FIELDS)
    for b in range(part * d[BLOCK_COUNT] // d[SPLITS], (part + 1) * d[BLOCK_COUNT] // d[SPLITS]):
        at = b * BLOCK_FIELDS
        height, first = blocks[at + BLOCK_ROWS], blocks[at + BLOCK_FIRST]
        weights = d[WEIGHTS] + blocks[at + BLOCK_WEIGHTS]
        weights += group * d[FULL_CHANNELS] * d[CHANNELS] * POSITIONS * 4
        for position in range(POSITIONS):
            for start in range(0, squares, TILE):
                width = min(TILE, squares - start)
                float_tile(
                    height, (width + HALF - 1) // HALF,
                    weights + position * d[CHANNELS] * height * 4,
                    transformed + (position * d[CHANNELS] * padded + start) * 4, d[OFFSETS],
                    d[CHANNELS], nothing, products + (position * height * padded + start) * 4,
                    padded * 4, -_INFINITY, _INFINITY,
                )  # fmt: skip
        for channel in range(blocks[at + BLOCK_VALID]):
            plane = d[OUT] + (image * d[OUT_CHANNELS] + first + channel) * out_h * out_w * 4
            for r in range(rows):
                top = (row + r) * SQUARE
                for column in range(0, across, LANES):
                    left = column * SQUARE
                    _OUTPUT(
                        products + (channel * padded + r * across + column) * 4,
                        height * padded * 4, plane + (top * out_w + left) * 4, out_w * 4,
                        out_h - top, out_w - left, bias[first + channel], limits[0], limits[1],
                    )  # fmt: skip


def winograd_task(address: int, task: int, thread: int) -> None:
    """`convolve_winograd` of a description at an address."""
    convolve_winograd(longs(address, FIELDS), task, thread)
