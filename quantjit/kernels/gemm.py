"""Products of a weight matrix with columns, accumulated in a fixed order.

``out[m, p] += weight[m, k] * columns[k, p]`` for k ascending: each output element is a sequential
sum over k whatever the tile, the batch or the number of threads.  The innermost loop runs along p,
where LLVM vectorizes it; eight k at a time keep the accumulator in registers, and blocks of k keep
the columns in the first-level cache.
"""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel

_UNROLL = 8
_BLOCK = 32  # rows of columns: 32 x 256 float32 are 32 kB


@kernel
def multiply_float_into(
    weight: NDArray[np.float32],
    columns: NDArray[np.float32],
    start_p: int,
    width: int,
    out: NDArray[np.float32],
) -> None:
    """Add weight @ columns[:, :width] to out[:, start_p : start_p + width].

    weight: float32 (m, k); columns: float32 (k, at least width); out: float32 (m, p); all
    C-contiguous, which slices would not be: the compiler must know that rows are.
    """
    depth = weight.shape[1]
    for start in range(0, depth, _BLOCK):
        stop = min(start + _BLOCK, depth)
        whole = start + (stop - start) // _UNROLL * _UNROLL
        for m in range(weight.shape[0]):
            row = out[m, start_p : start_p + width]
            for k in range(start, whole, _UNROLL):
                w0, w1, w2, w3 = weight[m, k], weight[m, k + 1], weight[m, k + 2], weight[m, k + 3]
                w4, w5, w6 = weight[m, k + 4], weight[m, k + 5], weight[m, k + 6]
                w7 = weight[m, k + 7]
                for p in range(width):
                    total = row[p]
                    total += w0 * columns[k, p]
                    total += w1 * columns[k + 1, p]
                    total += w2 * columns[k + 2, p]
                    total += w3 * columns[k + 3, p]
                    total += w4 * columns[k + 4, p]
                    total += w5 * columns[k + 5, p]
                    total += w6 * columns[k + 6, p]
                    total += w7 * columns[k + 7, p]
                    row[p] = total
            for k in range(whole, stop):
                w0 = weight[m, k]
                for p in range(width):
                    row[p] += w0 * columns[k, p]


@kernel
def multiply_int_into(
    weight: NDArray[np.int32], columns: NDArray[np.int16], width: int, out: NDArray[np.int32]
) -> None:
    """Add weight @ columns[:, :width] to out[:, :width], exactly.

    weight: int32 (m, k) in [-255, 255]; columns: int16 (k, at least width) in [-255, 255]; out:
    int32 (m, at least width).  No sum of up to 2**31 / 255**2 = 33,000 products can overflow; k must be below that.
    """
    depth = weight.shape[1]
    for start in range(0, depth, _BLOCK):
        stop = min(start + _BLOCK, depth)
        whole = start + (stop - start) // 4 * 4
        for m in range(weight.shape[0]):
            row = out[m, :width]
            for k in range(start, whole, 4):
                w0, w1, w2, w3 = weight[m, k], weight[m, k + 1], weight[m, k + 2], weight[m, k + 3]
                for p in range(width):
                    # The casts back to int32 keep the loop out of scalar 64-bit multiplies.
                    total = np.int32(int(w0) * int(columns[k, p]))
                    total = np.int32(int(total) + np.int32(int(w1) * int(columns[k + 1, p])))
                    total = np.int32(int(total) + np.int32(int(w2) * int(columns[k + 2, p])))
                    total = np.int32(int(total) + np.int32(int(w3) * int(columns[k + 3, p])))
                    row[p] = np.int32(int(row[p]) + int(total))
            for k in range(whole, stop):
                w0 = weight[m, k]
                for p in range(width):
                    row[p] = np.int32(int(row[p]) + np.int32(int(w0) * int(columns[k, p])))


@kernel
def multiply_rows_float_into(
    x: NDArray[np.float32], transposed: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Add x @ transposed to out, vectorized along the columns of `transposed`.

    x: float32 (n, k); transposed: float32 (k, m); out: float32 (n, m).
    """
    for n in range(x.shape[0]):
        row = out[n]
        for k in range(x.shape[1]):
            value = x[n, k]
            for m in range(row.size):
                row[m] += value * transposed[k, m]


@kernel
def multiply_rows_int_into(
    x: NDArray[np.int16], transposed: NDArray[np.int16], out: NDArray[np.int32]
) -> None:
    """Add x @ transposed to out, exactly; x: int16 (n, k); transposed: int16 (k, m); out: int32."""
    for n in range(x.shape[0]):
        row = out[n]
        for k in range(x.shape[1]):
            value = x[n, k]
            for m in range(row.size):
                row[m] = np.int32(int(row[m]) + np.int32(int(value) * int(transposed[k, m])))
