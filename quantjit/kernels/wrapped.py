"""Array kernels as nodes of a `schedule` table: sums of two blobs, average pooling, softmax's kin."""

import numpy as np
from numba import carray

from quantjit.kernels.pooling import average_pool_into
from quantjit.kernels.schedule import INPUT, OUTPUT, SECOND_INPUT, Prepared
from quantjit.kernels.tiled import floats, longs, pointer_to_float32

_SMALLEST = 1 << 14  # elements that are worth a task of their own

SIZE, SHARES = 3, 4
"""Fields of an addition behind the addresses: elements, tasks."""

(PLANES, HEIGHT, WIDTH, OUT_H, OUT_W, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_TOP, PAD_LEFT,
 BOTTOM, RIGHT, COUNTS_PADDING, PARTS, FIELDS) = range(3, 19)  # fmt: skip
"""Fields of average pooling behind the addresses."""


def add_task(address: int, task: int, thread: int) -> None:
    """Add one share of two float32 blobs of one shape."""
    d = longs(address, SHARES + 1)
    first, last = task * d[SIZE] // d[SHARES], (task + 1) * d[SIZE] // d[SHARES]
    left = floats(d[INPUT] + first * 4, last - first)
    right = floats(d[SECOND_INPUT] + first * 4, last - first)
    out = floats(d[OUTPUT] + first * 4, last - first)
    for i in range(out.size):
        out[i] = left[i] + right[i]


def prepare_add(size: int, threads: int) -> Prepared:
    """Prepare the sum of two float32 blobs of `size` elements."""
    shares = max(1, min(4 * threads, size // _SMALLEST)) if threads > 1 else 1
    return Prepared(np.array([0, 0, 0, size, shares], np.int64), add_task, shares)


def average_task(address: int, task: int, thread: int) -> None:
    """Average the windows of one share of the planes."""
    d = longs(address, FIELDS)
    first, last = task * d[PLANES] // d[PARTS], (task + 1) * d[PLANES] // d[PARTS]
    size, out_size = d[HEIGHT] * d[WIDTH] * 4, d[OUT_H] * d[OUT_W] * 4
    x = carray(
        pointer_to_float32(d[INPUT] + first * size), (last - first, d[HEIGHT], d[WIDTH])
    )
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
