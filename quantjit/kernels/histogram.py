"""One pass over a blob: range, sums and a histogram of magnitudes whose bins are powers of two.

A bin of width 2**e covers [i * 2**e, (i + 1) * 2**e).  When a larger magnitude arrives e grows and
neighbouring bins are added: floor(floor(x / w) / 2) = floor(x / 2w), so the counts are exactly
those of having binned at the final width from the start, in whatever order the data came.

Sums of floats depend on their order.  The sum over one image's channel is made in float64 in a
fixed order, then split into three integers in units of 1, 2**-40 and 2**-80 (truncated below);
these are added, which is exact and so independent of order, batches and sharding.
"""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel, parallel_kernel, prange

UNUSED = -(10**6)
"""Exponent of a histogram that has seen nothing but zeros."""

COUNT, ZEROS, NONFINITE, OVERFLOWED = range(4)
"""Places in ``tallies``."""

SUM, ABS_SUM, SQUARE_SUM = 0, 3, 6
"""Places of the first limb of each sum in ``limbs``."""

LIMB = 2.0**40
_LARGEST_SUM = 2.0**62


@kernel
def widen(counts: NDArray[np.uint32], shift: int) -> None:
    """Make the bins of one histogram 2**shift times as wide, in place; counts: (bins,)."""
    bins = counts.size
    for _ in range(min(shift, 64)):
        for i in range(bins // 2):
            counts[i] = counts[2 * i] + counts[2 * i + 1]
        for i in range(bins // 2, bins):
            counts[i] = 0


@kernel
def _add_sum(
    value: float, place: int, tallies: NDArray[np.int64], limbs: NDArray[np.int64]
) -> None:
    """Add a float64 to three limbs; a sum that is too large raises the overflow flag instead."""
    if not abs(value) < _LARGEST_SUM:
        tallies[OVERFLOWED] = 1
        return
    for limb in range(3):
        whole = math.floor(value)
        limbs[place + limb] += np.int64(whole)
        value = (value - whole) * LIMB


@kernel
def _observe(
    x: NDArray[np.float32],
    counts: NDArray[np.uint32],
    exponents: NDArray[np.int64],
    minimum: NDArray[np.float32],
    maximum: NDArray[np.float32],
    tallies: NDArray[np.int64],
    limbs: NDArray[np.int64],
) -> None:
    """Fold one channel of one image, float32 (n,), into the state of its channel."""
    lowest, highest = minimum[0], maximum[0]
    largest = np.float32(0)
    zeros = 0
    nonfinite = 0
    total = 0.0
    absolute = 0.0
    square = 0.0
    for i in range(x.size):
        value = x[i]
        if not np.isfinite(value):
            nonfinite += 1
            continue
        lowest = min(lowest, value)
        highest = max(highest, value)
        magnitude = abs(value)
        largest = max(largest, magnitude)
        zeros += value == 0
        wide = float(value)
        total += wide
        absolute += abs(wide)
        square += wide * wide
    minimum[0], maximum[0] = lowest, highest
    tallies[COUNT] += x.size - nonfinite
    tallies[ZEROS] += zeros
    tallies[NONFINITE] += nonfinite
    _add_sum(total, SUM, tallies, limbs)
    _add_sum(absolute, ABS_SUM, tallies, limbs)
    _add_sum(square, SQUARE_SUM, tallies, limbs)
    if largest == 0:
        return
    # largest < 2**above, hence below the end of the last bin
    _, above = math.frexp(float(largest))
    bins = counts.size
    needed = above - np.int64(math.log2(bins))
    if exponents[0] == UNUSED:
        exponents[0] = needed
    elif needed > exponents[0]:
        widen(counts, needed - exponents[0])
        exponents[0] = needed
    per_unit = math.ldexp(1.0, -exponents[0])
    for i in range(x.size):
        value = x[i]
        if value != 0 and np.isfinite(value):
            counts[int(abs(float(value)) * per_unit)] += 1


@kernel
def observe_into(
    x: NDArray[np.float32],
    counts: NDArray[np.uint32],
    exponents: NDArray[np.int64],
    minimum: NDArray[np.float32],
    maximum: NDArray[np.float32],
    tallies: NDArray[np.int64],
    limbs: NDArray[np.int64],
) -> None:
    """Fold a blob into its statistics, in place.

    x: float32 (n, channels, size).  counts: uint32 or int64 (channels, bins), bins a power of two,
    of non-zero finite magnitudes; exponents: int64 (channels,), of the bin width, or UNUSED;
    minimum, maximum: float32 (channels,); tallies: int64 (channels, 4); limbs: int64 (channels, 9).
    """
    for c in range(x.shape[1]):
        for n in range(x.shape[0]):
            _observe(
                x[n, c],
                counts[c],
                exponents[c : c + 1],
                minimum[c : c + 1],
                maximum[c : c + 1],
                tallies[c],
                limbs[c],
            )


@parallel_kernel
def observe_parallel_into(
    x: NDArray[np.float32],
    counts: NDArray[np.uint32],
    exponents: NDArray[np.int64],
    minimum: NDArray[np.float32],
    maximum: NDArray[np.float32],
    tallies: NDArray[np.int64],
    limbs: NDArray[np.int64],
) -> None:
    """Do as `observe_into`, with the channels on several threads."""
    for c in prange(x.shape[1]):
        for n in range(x.shape[0]):
            _observe(
                x[n, c],
                counts[c],
                exponents[c : c + 1],
                minimum[c : c + 1],
                maximum[c : c + 1],
                tallies[c],
                limbs[c],
            )


@kernel
def range_into(
    x: NDArray[np.float32], minimum: NDArray[np.float32], maximum: NDArray[np.float32]
) -> None:
    """Fold the range of a blob: float32 (n, channels, size) into (channels,) or (1,)."""
    merged = minimum.size == 1
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            index = 0 if merged else c
            lowest, highest = minimum[index], maximum[index]
            for i in range(x.shape[2]):
                lowest = min(lowest, x[n, c, i])
                highest = max(highest, x[n, c, i])
            minimum[index], maximum[index] = lowest, highest


@kernel
def mean_magnitudes_into(x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write the mean |x| of each channel in float32, in order: (channels, size) to (channels,)."""
    for c in range(x.shape[0]):
        total = np.float32(0)
        for i in range(x.shape[1]):
            total += abs(x[c, i])
        out[c] = total / np.float32(x.shape[1])


@kernel
def count_linear_into(
    x: NDArray[np.float32], per_unit: NDArray[np.float32], counts: NDArray[np.float32]
) -> None:
    """Count non-zero magnitudes as TNN's tool does, in float32 counts.

    x: float32 (n, channels, size); per_unit: bins per real unit, float32 (channels,) or (1,), 0 for
    a channel that is left out; counts: float32 (channels or 1, bins).  The last bin takes the rest.
    """
    merged = per_unit.size == 1
    last = counts.shape[1] - 1
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            index = 0 if merged else c
            factor = per_unit[index]
            if factor == 0:
                continue
            row = counts[index]
            for i in range(x.shape[2]):
                value = x[n, c, i]
                if value != 0:
                    row[min(int(abs(value) * factor), last)] += np.float32(1)
