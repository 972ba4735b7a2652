"""Array kernels as nodes of a `schedule` table: sums, reals and codes, average pooling."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel
from quantjit.kernels.addresses import (
    carray,
    codes,
    floats,
    longs,
    pointer_to_float32,
    pointer_to_int8,
)
from quantjit.kernels.codes import (
    add_even_int8_into,
    dequantize_into,
    quantize_even_into,
    quantize_into,
)
from quantjit.kernels.planes import sum_floats
from quantjit.kernels.pooling import average_pool_into
from quantjit.kernels.schedule import INPUT, OUTPUT, SECOND_INPUT, Prepared, TaskFunction

_SMALLEST = 1 << 14  # elements that are worth a task of their own

ROWS, SIZE, SHARES, SCALES, ZEROS, SHIFT, OFFSET, ELEMENTWISE = range(3, 11)
"""Fields of an elementwise node behind the addresses: rows of one scale, elements of a row, tasks;
addresses of scales, zero points and a shift; what codes are moved by."""

(PLANES, HEIGHT, WIDTH, OUT_H, OUT_W, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_TOP, PAD_LEFT,
 BOTTOM, RIGHT, COUNTS_PADDING, PARTS, FIELDS) = range(3, 19)  # fmt: skip
"""Fields of average pooling behind the addresses."""


@kernel
def share(d: NDArray[np.int64], task: int) -> tuple[int, int, int, int]:
    """Return the first row and how many, and the first element and how many, of a task.

    One row is shared by its elements, several by rows.
    """
    if d[ROWS] == 1:
        first, last = task * d[SIZE] // d[SHARES], (task + 1) * d[SIZE] // d[SHARES]
        return 0, 1, first, last - first
    first, last = task * d[ROWS] // d[SHARES], (task + 1) * d[ROWS] // d[SHARES]
    return first, last - first, first * d[SIZE], d[SIZE]


@kernel
def float_rows(address: int, rows: int, size: int) -> NDArray[np.float32]:
    """View float32 (1, rows, size) at an address."""
    view: NDArray[np.float32] = carray(pointer_to_float32(address), (1, rows, size))
    return view


@kernel
def code_rows(address: int, rows: int, size: int) -> NDArray[np.int8]:
    """View int8 (1, rows, size) at an address."""
    view: NDArray[np.int8] = carray(pointer_to_int8(address), (1, rows, size))
    return view


def add_task(address: int, task: int, thread: int) -> None:
    """Add one share of two float32 blobs of one shape."""
    d = longs(address, ELEMENTWISE)
    _, _, first, size = share(d, task)
    left = floats(d[INPUT] + first * 4, size)
    right = floats(d[SECOND_INPUT] + first * 4, size)
    out = floats(d[OUTPUT] + first * 4, size)
    for i in range(size):
        out[i] = left[i] + right[i]


def quantize_task(address: int, task: int, thread: int) -> None:
    """`quantize_into` of one share."""
    d = longs(address, ELEMENTWISE)
    row, rows, at, size = share(d, task)
    quantize_into(
        float_rows(d[INPUT] + at * 4, rows, size), floats(d[SCALES] + row * 4, rows),
        codes(d[ZEROS] + row, rows), code_rows(d[OUTPUT] + at, rows, size),
    )  # fmt: skip


def quantize_even_task(address: int, task: int, thread: int) -> None:
    """`quantize_even_into` of one share."""
    d = longs(address, ELEMENTWISE)
    row, rows, at, size = share(d, task)
    quantize_even_into(
        float_rows(d[INPUT] + at * 4, rows, size), floats(d[SCALES] + row * 4, rows),
        codes(d[ZEROS] + row, rows), code_rows(d[OUTPUT] + at, rows, size),
    )  # fmt: skip


def dequantize_task(address: int, task: int, thread: int) -> None:
    """`dequantize_into` of one share."""
    d = longs(address, ELEMENTWISE)
    row, rows, at, size = share(d, task)
    dequantize_into(
        code_rows(d[INPUT] + at, rows, size), floats(d[SCALES] + row * 4, rows),
        codes(d[ZEROS] + row, rows), False, float_rows(d[OUTPUT] + at * 4, rows, size),
    )  # fmt: skip


def add_even_int8_task(address: int, task: int, thread: int) -> None:
    """`add_even_int8_into` of one share."""
    d = longs(address, ELEMENTWISE)
    _, _, at, size = share(d, task)
    add_even_int8_into(
        codes(d[INPUT] + at, size), codes(d[SECOND_INPUT] + at, size), floats(d[SCALES], 2),
        floats(d[SHIFT], 1)[0], d[OFFSET], codes(d[OUTPUT] + at, size),
    )  # fmt: skip


def _elementwise(
    function: TaskFunction,
    rows: int,
    size: int,
    threads: int,
    arrays: Sequence[NDArray[Any]] = (),
    offset: int = 0,
) -> Prepared:
    """Prepare (rows, size) elements; arrays: scales, zero points, shift, as far as there are."""
    kept = tuple(np.ascontiguousarray(array) for array in arrays)
    shares = 1
    if threads > 1:
        shares = max(1, min(4 * threads, rows if rows > 1 else size // _SMALLEST))
    addresses = [array.ctypes.data for array in kept] + [0] * (3 - len(kept))
    description = np.array([0, 0, 0, rows, size, shares, *addresses, offset], np.int64)
    return Prepared(description, function, shares, kept)


def prepare_add(size: int, threads: int) -> Prepared:
    """Prepare the sum of two float32 blobs of `size` elements."""
    return _elementwise(add_task, 1, size, threads)


def prepare_quantize(
    view: tuple[int, ...],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int8],
    threads: int,
    *,
    half_even: bool,
) -> Prepared:
    """Prepare `quantize_into` or `quantize_even_into` of a blob (n, channels, size)."""
    function = quantize_even_task if half_even else quantize_task
    return _elementwise(function, *_rows(view), threads, _each_row(view, scale, zero_point))


def prepare_dequantize(
    view: tuple[int, ...],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int8],
    threads: int,
) -> Prepared:
    """Prepare `dequantize_into` of a blob (n, channels, size)."""
    return _elementwise(dequantize_task, *_rows(view), threads, _each_row(view, scale, zero_point))


def _rows(view: tuple[int, ...]) -> tuple[int, int]:
    return (1, view[0] * view[2]) if view[1] == 1 else (view[0] * view[1], view[2])


def _each_row(
    view: tuple[int, ...], scale: NDArray[np.float32], zero_point: NDArray[np.int8]
) -> Sequence[NDArray[Any]]:
    if view[1] == 1:
        return scale[:1], zero_point[:1]
    return np.tile(scale, view[0]), np.tile(zero_point, view[0])


def prepare_add_even_int8(
    size: int, factors: NDArray[np.float32], shift: np.float32, offset: int, threads: int
) -> Prepared:
    """Prepare `add_even_int8_into` of blobs of `size` codes."""
    arrays = (factors, np.zeros(1, np.int8), np.array([shift], np.float32))
    return _elementwise(add_even_int8_task, 1, size, threads, arrays, offset)


def average_task(address: int, task: int, thread: int) -> None:
    """Average the windows of one share of the planes."""
    d = longs(address, FIELDS)
    first, last = task * d[PLANES] // d[PARTS], (task + 1) * d[PLANES] // d[PARTS]
    size, out_size = d[HEIGHT] * d[WIDTH] * 4, d[OUT_H] * d[OUT_W] * 4
    if (
        out_size == 4
        and d[KERNEL_H] == d[HEIGHT]
        and d[KERNEL_W] == d[WIDTH]
        and d[PAD_TOP] == d[PAD_LEFT] == 0
    ):
        means = floats(d[OUTPUT], d[PLANES])
        for plane in range(first, last):
            sum_floats(d[INPUT] + plane * size, size // 4, d[OUTPUT] + plane * 4)
            means[plane] = means[plane] / np.float32(size // 4)
        return
    x = carray(pointer_to_float32(d[INPUT] + first * size), (last - first, d[HEIGHT], d[WIDTH]))
    out = carray(
        pointer_to_float32(d[OUTPUT] + first * out_size), (last - first, d[OUT_H], d[OUT_W])
    )
    average_pool_into(
        x, d[KERNEL_H], d[KERNEL_W], d[STRIDE_H], d[STRIDE_W], d[PAD_TOP], d[PAD_LEFT], d[BOTTOM],
        d[RIGHT], d[COUNTS_PADDING] == 1, out,
    )  # fmt: skip


def prepare_average(
    planes: tuple[int, ...],
    out: tuple[int, ...],
    window: tuple[int, int, int, int, int, int],
    counted: tuple[int, int],
    *,
    counts_padding: bool,
    threads: int,
) -> Prepared:
    """Prepare float32 average pooling; arguments as those of `average_pool_into`."""
    parts = min(planes[0], 4 * threads) if threads > 1 else 1
    description = [0, 0, 0, *planes, *out[1:], *window, *counted, int(counts_padding), parts]
    return Prepared(np.array(description, np.int64), average_task, parts)
