"""One pass over a blob: range, sums and a histogram of magnitudes whose bins are powers of two.

A bin of width 2**e covers [i * 2**e, (i + 1) * 2**e).  When a larger magnitude arrives e grows and
neighbouring bins are added: floor(floor(x / w) / 2) = floor(x / 2w), so the counts are exactly
those of having binned at the final width from the start, in whatever order the data came.

Sums of floats depend on their order.  The sum over one plane, one channel of one image, is made in
float64 in a fixed order and then added to an integer of 704 bits in which every such sum fits
exactly (`LIMBS`); adding integers is exact and so independent of order, batches and sharding.

The range is kept as integers that are ordered as the floats are, which vectorizes, and in which 0
and -0 are ordered too (`order_keys`).
"""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel, parallel_kernel, prange

Counts = NDArray[np.uint32] | NDArray[np.int64]

UNUSED = -(10**6)
"""Exponent of a histogram that has seen nothing but zeros."""

COUNT, ZEROS, NONFINITE = range(3)
"""Places in ``tallies``."""

SUM, ABS_SUM, SQUARE_SUM = range(3)
"""Places of the sums in ``limbs``."""

LIMBS = 22
"""Limbs of a sum: limb i counts units of 2**(32 i + UNIT).

The least bit of a square of a float32 is 2**-298, the greatest sum below 2**320.
"""

UNIT = -352
"""Exponent of the unit of the first limb, a multiple of 32."""

PLANES_BEFORE_CARRY = 2**29
"""A plane adds less than 2**33 to an int64 limb: carries are made before so many planes."""

_MAGNITUDE = 0x7FFFFFFF  # all bits of a float32 but the sign
_LIMB_BITS = 0xFFFFFFFF
_FRACTION = 2**52 - 1  # bits of a float64
LANES = 32
"""Partial sums of a plane: enough for vector registers; fixed, for the order is part of the sum."""


INFINITE_KEY = 0x7F800000
"""Key of inf; ``~INFINITE_KEY`` is that of -inf."""


@kernel
def order_keys(bits: NDArray[np.int32], out: NDArray[np.int32]) -> None:
    """Map the bits of float32 to integers of the same order, or such integers back to bits.

    Negative numbers are ordered by falling magnitude bits: flip these.  -0 comes just before 0.
    """
    for i in range(bits.size):
        b = int(bits[i])
        out[i] = np.int32(b ^ ((b >> 31) & _MAGNITUDE))


@kernel
def widen(counts: Counts, shift: int) -> None:
    """Make the bins of one histogram 2**shift times as wide, in place; counts: (bins,)."""
    bins = counts.size
    for i in range(1, bins):
        target = i >> min(shift, 62)
        if target != i:
            counts[target] = counts[target] + counts[i]
            counts[i] = 0


@kernel
def _scan(bits: NDArray[np.int32]) -> tuple[np.int32, np.int32, int]:
    """Return the least and greatest order key and the number of zeros of a plane."""
    lowest, highest = np.int32(_MAGNITUDE), np.int32(-_MAGNITUDE - 1)
    zeros = 0
    for i in range(bits.size):
        b = bits[i]
        key = np.int32(b ^ ((b >> 31) & _MAGNITUDE))
        lowest = min(lowest, key)
        highest = max(highest, key)
        zeros += (b & _MAGNITUDE) == 0
    return lowest, highest, zeros


@kernel
def _sum_lanes(x: NDArray[np.float32], lanes: NDArray[np.float64]) -> None:
    """Write the sums of x, |x| and x**2 over a plane to lanes[:, 0]; lanes: float64 (3, LANES)."""
    lanes[:] = 0.0
    whole = x.size // LANES * LANES
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            value = np.float64(x[i + lane])
            lanes[0, lane] += value
            lanes[1, lane] += abs(value)
            lanes[2, lane] += value * value
    half = LANES // 2 if whole > 0 else 0
    while half > 0:
        for place in range(3):
            for lane in range(half):
                lanes[place, lane] += lanes[place, lane + half]
        half //= 2
    for i in range(whole, x.size):
        value = np.float64(x[i])
        lanes[0, 0] += value
        lanes[1, 0] += abs(value)
        lanes[2, 0] += value * value


@kernel
def _add_exactly(bits: int, limbs: NDArray[np.int64]) -> None:
    """Add a finite float64, given by its bits, to an integer; limbs: int64 (LIMBS,)."""
    exponent = (bits >> 52) & 0x7FF
    if exponent == 0:  # only 0: every sum is a multiple of 2**-298
        return
    mantissa = (bits & _FRACTION) | (_FRACTION + 1)
    sign = -1 if bits < 0 else 1
    place = exponent - 1075 - UNIT  # of the mantissa's last bit; a sum of 2**-298 has it at 2
    limb, shift = place >> 5, place & 31
    low = (mantissa & _LIMB_BITS) << shift
    high = (mantissa >> 32) << shift
    limbs[limb] += sign * (low & _LIMB_BITS)
    limbs[limb + 1] += sign * ((low >> 32) + (high & _LIMB_BITS))
    limbs[limb + 2] += sign * (high >> 32)


@kernel
def _add_plane(
    x: NDArray[np.float32],
    counts: Counts,
    exponents: NDArray[np.int64],
    extremes: NDArray[np.int32],
    tallies: NDArray[np.int64],
    limbs: NDArray[np.int64],
    lanes: NDArray[np.float64],
) -> None:
    """Fold one plane, float32 (size,), into its row of the state of `observe_into`."""
    lowest, highest, zeros = _scan(x.view(np.int32))
    if highest >= INFINITE_KEY or lowest <= ~INFINITE_KEY:
        before = x.size
        x = x[np.isfinite(x)]
        tallies[NONFINITE] += before - x.size
        lowest, highest, zeros = _scan(x.view(np.int32))
    if x.size == 0:
        return
    extremes[0] = min(extremes[0], lowest)
    extremes[1] = max(extremes[1], highest)
    tallies[COUNT] += x.size
    tallies[ZEROS] += zeros
    if zeros == x.size:
        return
    _sum_lanes(x, lanes)
    sums = lanes.view(np.int64)
    for place in range(3):
        _add_exactly(int(sums[place, 0]), limbs[place])
    # |x| < 2**above, hence below the end of the last bin
    largest = max(int(highest), ~int(lowest))
    above = (largest >> 23) - 126
    if above == -126:  # denormal
        above = math.frexp(float(largest))[1] - 149
    needed = above - int(math.log2(counts.size))
    if exponents[0] == UNUSED:
        exponents[0] = needed
    elif needed > exponents[0]:
        widen(counts, needed - exponents[0])
        exponents[0] = needed
    per_unit = math.ldexp(1.0, -int(exponents[0]))
    # Zeros are counted with the rest and taken back: a branch on them is mispredicted.
    for i in range(x.size):
        counts[int(abs(np.float64(x[i])) * per_unit)] += 1
    counts[0] -= zeros


@kernel
def _add_row(
    x: NDArray[np.float32],
    row: int,
    counts: Counts,
    exponents: NDArray[np.int64],
    extremes: NDArray[np.int32],
    tallies: NDArray[np.int64],
    limbs: NDArray[np.int64],
) -> None:
    """Fold the planes of one row: one channel, or all of them if there is one row."""
    planes = x.shape[1] // counts.shape[0]
    lanes = np.empty((3, LANES), np.float64)
    for n in range(x.shape[0]):
        for plane in range(row * planes, (row + 1) * planes):
            _add_plane(
                x[n, plane],
                counts[row],
                exponents[row : row + 1],
                extremes[row],
                tallies[row],
                limbs[row],
                lanes,
            )


@kernel
def observe_into(
    x: NDArray[np.float32],
    counts: Counts,
    exponents: NDArray[np.int64],
    extremes: NDArray[np.int32],
    tallies: NDArray[np.int64],
    limbs: NDArray[np.int64],
) -> None:
    """Fold a blob into its statistics, in place.

    x: float32 (n, channels, size).  rows: channels or 1.  counts: uint32 or int64 (rows, bins),
    bins a power of two, of non-zero finite magnitudes; exponents: int64 (rows,), of the bin width,
    or UNUSED; extremes: int32 (rows, 2), order keys of minimum and maximum; tallies: int64
    (rows, 3); limbs: int64 (rows, 3, LIMBS).
    """
    for row in range(counts.shape[0]):
        _add_row(x, row, counts, exponents, extremes, tallies, limbs)


@parallel_kernel
def observe_parallel_into(
    x: NDArray[np.float32],
    counts: Counts,
    exponents: NDArray[np.int64],
    extremes: NDArray[np.int32],
    tallies: NDArray[np.int64],
    limbs: NDArray[np.int64],
) -> None:
    """Do as `observe_into`, with the rows on several threads."""
    for row in prange(counts.shape[0]):
        _add_row(x, row, counts, exponents, extremes, tallies, limbs)


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
    """Count non-zero magnitudes as TNN's tool does, in float32 counts that end at 2**24.

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
