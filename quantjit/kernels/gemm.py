"""Products of a weight matrix with columns, accumulated in a fixed order.

``out[m, p] += weight[m, k] * columns[k, p]`` for k ascending: each output element is a sequential
sum over k whatever the tile, the batch or the number of threads.  The innermost loop runs along p,
where LLVM vectorizes it; two rows share four columns, so that a multiply-add costs less than one
load, and blocks of k keep the columns in the nearest caches while all rows pass over them.

A product with a vector (a map of one pixel, an inner product) swaps the roles: the vector is the
``weight`` and the transposed weights are the ``columns``.
"""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel

_BLOCK = 32  # rows of columns: 32 x 256 float32 are 32 kB


@kernel
def multiply_float_into(
    weight: NDArray[np.float32],
    columns: NDArray[np.float32],
    first: int,
    start_p: int,
    width: int,
    out: NDArray[np.float32],
) -> None:
    """Add weight @ columns[:, first : first + width] to out[:, start_p : start_p + width].

    weight: float32 (m, k); columns: float32 (k, at least first + width); out: float32 (m, p); all
    C-contiguous, which slices would not be: the compiler must know that rows are.
    """
    rows, depth = weight.shape
    for start in range(0, depth, _BLOCK):
        stop = min(start + _BLOCK, depth)
        whole = start + (stop - start) // 4 * 4
        for m in range(0, rows - 1, 2):
            row, next_row = out[m, start_p : start_p + width], out[m + 1, start_p : start_p + width]
            for k in range(start, whole, 4):
                a0, a1, a2, a3 = weight[m, k], weight[m, k + 1], weight[m, k + 2], weight[m, k + 3]
                b0, b1 = weight[m + 1, k], weight[m + 1, k + 1]
                b2, b3 = weight[m + 1, k + 2], weight[m + 1, k + 3]
                column0, column1 = columns[k, first:], columns[k + 1, first:]
                column2, column3 = columns[k + 2, first:], columns[k + 3, first:]
                for p in range(width):
                    c0, c1, c2, c3 = column0[p], column1[p], column2[p], column3[p]
                    row[p] = (((row[p] + a0 * c0) + a1 * c1) + a2 * c2) + a3 * c3
                    next_row[p] = (((next_row[p] + b0 * c0) + b1 * c1) + b2 * c2) + b3 * c3
        if rows % 2 == 1:
            row = out[rows - 1, start_p : start_p + width]
            for k in range(start, whole, 4):
                a0, a1 = weight[rows - 1, k], weight[rows - 1, k + 1]
                a2, a3 = weight[rows - 1, k + 2], weight[rows - 1, k + 3]
                column0, column1 = columns[k, first:], columns[k + 1, first:]
                column2, column3 = columns[k + 2, first:], columns[k + 3, first:]
                for p in range(width):
                    total = (row[p] + a0 * column0[p]) + a1 * column1[p]
                    row[p] = (total + a2 * column2[p]) + a3 * column3[p]
        for k in range(whole, stop):
            column0 = columns[k, first:]
            for m in range(rows):
                row, a0 = out[m, start_p : start_p + width], weight[m, k]
                for p in range(width):
                    row[p] += a0 * column0[p]


@kernel
def add_product(total: np.int32, left: np.int32, right: np.int16) -> np.int32:
    """Return total + left * right; the caller knows that it fits.

    The casts back to int32 keep the loops out of scalar 64-bit multiplies.
    """
    return np.int32(int(total) + int(np.int32(int(left) * int(right))))


@kernel
def multiply_int_into(
    weight: NDArray[np.int32], columns: NDArray[np.int16], width: int, out: NDArray[np.int32]
) -> None:
    """Add weight @ columns[:, :width] to out[:, :width], exactly.

    weight: int32 (m, k) and columns: int16 (k, at least width), both in [-255, 255]; out: int32
    (m, at least width).  The caller has checked that no sum leaves int32.
    """
    rows, depth = weight.shape
    for start in range(0, depth, _BLOCK):
        stop = min(start + _BLOCK, depth)
        whole = start + (stop - start) // 4 * 4
        for m in range(0, rows - 1, 2):
            row, next_row = out[m, :width], out[m + 1, :width]
            for k in range(start, whole, 4):
                a0, a1, a2, a3 = weight[m, k], weight[m, k + 1], weight[m, k + 2], weight[m, k + 3]
                b0, b1 = weight[m + 1, k], weight[m + 1, k + 1]
                b2, b3 = weight[m + 1, k + 2], weight[m + 1, k + 3]
                for p in range(width):
                    c0, c1 = columns[k, p], columns[k + 1, p]
                    c2, c3 = columns[k + 2, p], columns[k + 3, p]
                    total = add_product(add_product(row[p], a0, c0), a1, c1)
                    row[p] = add_product(add_product(total, a2, c2), a3, c3)
                    total = add_product(add_product(next_row[p], b0, c0), b1, c1)
                    next_row[p] = add_product(add_product(total, b2, c2), b3, c3)
        if rows % 2 == 1:
            row = out[rows - 1, :width]
            for k in range(start, whole, 4):
                a0, a1 = weight[rows - 1, k], weight[rows - 1, k + 1]
                a2, a3 = weight[rows - 1, k + 2], weight[rows - 1, k + 3]
                for p in range(width):
                    total = add_product(
                        add_product(row[p], a0, columns[k, p]), a1, columns[k + 1, p]
                    )
                    total = add_product(total, a2, columns[k + 2, p])
                    row[p] = add_product(total, a3, columns[k + 3, p])
        for k in range(whole, stop):
            for m in range(rows):
                row, a0 = out[m, :width], weight[m, k]
                for p in range(width):
                    row[p] = add_product(row[p], a0, columns[k, p])
