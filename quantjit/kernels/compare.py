"""Sums from which SQNR, cosine and the largest error of a blob are made."""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel

SIGNAL, NOISE, PRODUCT, ENERGY, LARGEST = range(5)
"""Places in ``sums``: x^2, (x - y)^2, x * y, y^2 summed, and the largest |x - y|."""


@kernel
def compare_float_into(
    reference: NDArray[np.float32], other: NDArray[np.float32], sums: NDArray[np.float64]
) -> None:
    """Add the sums of one blob; reference, other: float32 (n,); sums: float64 (5,), see above."""
    for i in range(reference.size):
        x, y = np.float64(reference[i]), np.float64(other[i])
        difference = x - y
        sums[SIGNAL] += x * x
        sums[NOISE] += difference * difference
        sums[PRODUCT] += x * y
        sums[ENERGY] += y * y
        sums[LARGEST] = max(sums[LARGEST], abs(difference))


@kernel
def compare_int8_into(
    reference: NDArray[np.float32],
    codes: NDArray[np.int8],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int8],
    sums: NDArray[np.float64],
) -> None:
    """Add the sums of one int8 blob against its float twin.

    reference: float32 (n, channels, size); codes: int8, same shape; scale, zero_point: (channels,)
    or (1,); sums: float64 (5,).
    """
    for n in range(reference.shape[0]):
        for c in range(reference.shape[1]):
            index = c if scale.size > 1 else 0
            step, zero = np.float64(scale[index]), int(zero_point[index])
            for i in range(reference.shape[2]):
                x = np.float64(reference[n, c, i])
                y = step * (int(codes[n, c, i]) - zero)
                difference = x - y
                sums[SIGNAL] += x * x
                sums[NOISE] += difference * difference
                sums[PRODUCT] += x * y
                sums[ENERGY] += y * y
                sums[LARGEST] = max(sums[LARGEST], abs(difference))


@kernel
def count_nonfinite(values: NDArray[np.float32]) -> int:
    """Count the NaN and infinite elements of values, float32 (n,)."""
    count = 0
    for i in range(values.size):
        count += not np.isfinite(values[i])
    return count
