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

Factors = tuple[np.float32, np.float32]

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

BLOCK = 4 * LANES
"""Elements that are worked on at a time."""

_L1, _L2, _L3 = np.uint64(LANES), np.uint64(2 * LANES), np.uint64(3 * LANES)
_PARKING, _PARKED = np.uint64(BLOCK), np.uint64(BLOCK + LANES)
_RUNS = 64  # of rows, among the threads


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
def _scan(bits: NDArray[np.int32], start: int, stop: int) -> tuple[np.int32, np.int32]:
    """Return the least and greatest order key of a part of a plane."""
    lowest, highest = np.int32(_MAGNITUDE), np.int32(-_MAGNITUDE - 1)
    for i in range(stop - start):
        b = bits[np.uint64(start + i)]  # unsigned: no test for an index from the end
        key = np.int32(b ^ ((b >> 31) & _MAGNITUDE))
        lowest = min(lowest, key)
        highest = max(highest, key)
    return lowest, highest


@kernel
def _place(magnitude: np.float32, factors: Factors, parking: np.int32) -> np.int32:
    """Return the bin of a magnitude, `parking` for 0."""
    place = np.int32(magnitude * factors[0] * factors[1])
    return np.int32(place + (parking & -np.int32(magnitude == 0)))


@kernel
def _add_blocks(
    x: NDArray[np.float32],
    bits: NDArray[np.int32],
    start: int,
    stop: int,
    limit: int,
    factors: Factors,
    row: int,
    extremes: NDArray[np.int32],
    counts: Counts,
    lanes: NDArray[np.float64],
    work: NDArray[np.int32],
) -> int:
    """Add blocks of a plane to the partial sums of x, |x| and x**2 and to the counts.

    Element i of a plane belongs to lane i mod LANES.  Each lane takes the elements of a block at
    once, in order, so that its sums stay in registers; memory, arithmetic and the stores of counts
    overlap.  To add 1 to one bin again and again is to wait for the store before: zeros, often most
    of a blob, are parked in a bin for each lane and taken back by `_unpark`.

    Returns where the first block with a magnitude of `limit` or more begins, or the rest.
    """
    while start + BLOCK <= stop:
        lowest, highest = _scan(bits, start, start + BLOCK)
        if max(int(highest), ~int(lowest)) >= limit:
            return start
        extremes[row, 0] = min(extremes[row, 0], lowest)
        extremes[row, 1] = max(extremes[row, 1], highest)
        for lane in range(LANES):
            # unsigned: no test for an index from the end
            at, line = np.uint64(start + lane), np.uint64(lane)
            m0, m1, m2, m3 = abs(x[at]), abs(x[at + _L1]), abs(x[at + _L2]), abs(x[at + _L3])
            parking = work[line + _PARKING]
            work[line] = _place(m0, factors, parking)
            work[line + _L1] = _place(m1, factors, parking)
            work[line + _L2] = _place(m2, factors, parking)
            work[line + _L3] = _place(m3, factors, parking)
            zeros = np.int32(m0 == 0) + np.int32(m1 == 0) + np.int32(m2 == 0) + np.int32(m3 == 0)
            work[line + _PARKED] = np.int32(work[line + _PARKED] + zeros)
        for lane in range(LANES):
            at, line = np.uint64(start + lane), np.uint64(lane)
            v0, v1 = np.float64(x[at]), np.float64(x[at + _L1])
            v2, v3 = np.float64(x[at + _L2]), np.float64(x[at + _L3])
            lanes[line] = lanes[line] + v0 + v1 + v2 + v3
            lanes[line + _L1] = lanes[line + _L1] + abs(v0) + abs(v1) + abs(v2) + abs(v3)
            lanes[line + _L2] = lanes[line + _L2] + v0 * v0 + v1 * v1 + v2 * v2 + v3 * v3
        for i in range(BLOCK):
            counts[row, np.uint32(work[np.uint64(i)])] += 1
        start += BLOCK
    return start


@kernel
def _add_line(
    x: NDArray[np.float32],
    start: int,
    factors: Factors,
    row: int,
    counts: Counts,
    lanes: NDArray[np.float64],
    work: NDArray[np.int32],
) -> None:
    """Add the LANES elements from `start` on as `_add_blocks` does."""
    for lane in range(LANES):
        at, line = np.uint64(start + lane), np.uint64(lane)
        magnitude = abs(x[at])
        work[line] = _place(magnitude, factors, work[line + _PARKING])
        work[line + _PARKED] = np.int32(work[line + _PARKED] + np.int32(magnitude == 0))
        value = np.float64(x[at])
        lanes[line] += value
        lanes[line + _L1] += abs(value)
        lanes[line + _L2] += value * value
    for i in range(LANES):
        counts[row, np.uint32(work[np.uint64(i)])] += 1


@kernel
def _fold_lanes(lanes: NDArray[np.float64]) -> None:
    """Add up the partial sums, in place: the totals are the first of each LANES.

    Halves are added to halves; the loops have fixed lengths, which makes them vectors.
    """
    for first in range(0, 3 * LANES, LANES):
        for lane in range(LANES // 2):
            at = np.uint64(first + lane)
            lanes[at] += lanes[at + np.uint64(LANES // 2)]
        for lane in range(LANES // 4):
            at = np.uint64(first + lane)
            lanes[at] += lanes[at + np.uint64(LANES // 4)]
        for lane in range(LANES // 8):
            at = np.uint64(first + lane)
            lanes[at] += lanes[at + np.uint64(LANES // 8)]
        even, odd = lanes[first] + lanes[first + 2], lanes[first + 1] + lanes[first + 3]
        lanes[first] = even + odd


@kernel
def _add_exactly(total: float, row: int, place: int, limbs: NDArray[np.int64]) -> None:
    """Add a finite float64 to an integer; limbs: int64 (rows, 3, LIMBS)."""
    bits = int(np.float64(total).view(np.int64))
    exponent = (bits >> 52) & 0x7FF
    if exponent == 0:  # only 0: every sum is a multiple of 2**-298
        return
    mantissa = (bits & _FRACTION) | (_FRACTION + 1)
    sign = -1 if bits < 0 else 1
    last = exponent - 1075 - UNIT  # place of the mantissa's last bit; 2**-298 has it at 2
    limb, shift = last >> 5, last & 31
    low = (mantissa & _LIMB_BITS) << shift
    high = (mantissa >> 32) << shift
    limbs[row, place, limb] += sign * (low & _LIMB_BITS)
    limbs[row, place, limb + 1] += sign * ((low >> 32) + (high & _LIMB_BITS))
    limbs[row, place, limb + 2] += sign * (high >> 32)


@kernel
def _unpark(row: int, counts: Counts, work: NDArray[np.int32]) -> int:
    """Take the parked zeros out of the counts again; return their number."""
    zeros = 0
    for lane in range(LANES):
        zeros += work[np.uint64(lane) + _PARKED]
    if zeros == 0:
        return 0
    if counts.shape[1] >= LANES:
        for lane in range(LANES):
            counts[row, lane] -= work[np.uint64(lane) + _PARKED]
    else:
        counts[row, 0] -= zeros
    for lane in range(LANES):
        work[np.uint64(lane) + _PARKED] = 0
    return zeros


@kernel
def _power_above(bits: int) -> int:
    """Return the least k with |x| < 2**k, for the bits of a magnitude that is not 0."""
    power = (bits >> 23) - 126
    return power if power > -126 else math.frexp(float(bits))[1] - 149  # denormal


@kernel
def _bits_of_power(power: int) -> int:
    """Return the bits of 2**power as a magnitude: 0 or those of inf where float32 ends."""
    if power > -127:
        return min(power + 127, 255) << 23
    return 1 << (power + 149) if power >= -149 else 0


@kernel
def _factors(exponent: int) -> Factors:
    """Return what magnitudes are multiplied with, one after the other, to be counted in bins.

    float32 need not hold their product; powers of two are exact, but for results far below 1.
    """
    half = -exponent >> 1
    return np.float32(math.ldexp(1.0, half)), np.float32(math.ldexp(1.0, -exponent - half))


@kernel
def _add_plane(
    x: NDArray[np.float32],
    bits: NDArray[np.int32],
    start: int,
    stop: int,
    is_begun: bool,
    row: int,
    log_bins: int,
    counts: Counts,
    exponents: NDArray[np.int64],
    extremes: NDArray[np.int32],
    tallies: NDArray[np.int64],
    limbs: NDArray[np.int64],
    lanes: NDArray[np.float64],
    work: NDArray[np.int32],
) -> int:
    """Fold a plane, or the rest of one, into its row of the state of `observe_into`.

    x: float32, a blob, bits: the same as int32; the plane is from `start` to `stop`.  is_begun:
    whether the lanes hold another part of it.  lanes: float64 (3 * LANES,), 0 before and after a
    plane.  work: int32, bins of a block (BLOCK,), then for each lane the bin where it parks its
    zeros and the number of these, 0.

    Returns `stop`, or where the first block with an element that is not finite begins: what comes
    before it is in `lanes` and the state but for the sums.
    """
    first, zeros = start, 0
    exponent = int(exponents[row])
    used = exponent != UNUSED
    factors = _factors(exponent if used else 0)
    limit = _bits_of_power(exponent + log_bins) if used else 1
    is_finite = True
    while start < stop and is_finite:
        start = _add_blocks(
            x, bits, start, stop, limit, factors, row, extremes, counts, lanes, work
        )
        size = min(BLOCK, stop - start)
        if size == 0:
            break
        lowest, highest = _scan(bits, start, start + size)
        largest = max(int(highest), ~int(lowest))
        is_finite = largest < INFINITE_KEY
        if is_finite and largest >= limit:
            zeros += _unpark(row, counts, work)
            power = _power_above(largest)
            if used:
                widen(counts[row], power - log_bins - exponent)
            used, exponent = True, power - log_bins
            factors = _factors(exponent)
            limit = _bits_of_power(power)
        if is_finite and size < BLOCK:
            extremes[row, 0] = min(extremes[row, 0], lowest)
            extremes[row, 1] = max(extremes[row, 1], highest)
            while start + LANES <= stop:
                _add_line(x, start, factors, row, counts, lanes, work)
                start += LANES
            break
    exponents[row] = exponent
    if is_finite:
        if is_begun or start > first:
            _fold_lanes(lanes)
        for i in range(start, stop):
            value = np.float64(x[i])
            lanes[0] += value
            lanes[LANES] += abs(value)
            lanes[2 * LANES] += value * value
            counts[row, _place(abs(x[i]), factors, np.int32(0))] += 1
            work[_PARKED] += x[i] == 0
        start = stop
        for place in range(3):
            _add_exactly(lanes[place * LANES], row, place, limbs)
        for lane in range(3 * LANES):
            lanes[lane] = 0.0
    tallies[row, COUNT] += start - first
    tallies[row, ZEROS] += zeros + _unpark(row, counts, work)
    return start


@kernel
def _add_finite(
    x: NDArray[np.float32],
    start: int,
    stop: int,
    row: int,
    log_bins: int,
    counts: Counts,
    exponents: NDArray[np.int64],
    extremes: NDArray[np.int32],
    tallies: NDArray[np.int64],
    limbs: NDArray[np.int64],
    lanes: NDArray[np.float64],
    work: NDArray[np.int32],
) -> None:
    """Fold the finite elements of the rest of a plane, where `_add_plane` ended."""
    rest = x[start:stop]
    kept = rest[np.isfinite(rest)]  # a block was to begin: the lanes go on where they are
    tallies[row, NONFINITE] += rest.size - kept.size
    _add_plane(
        kept, kept.view(np.int32), 0, kept.size, True, row, log_bins,
        counts, exponents, extremes, tallies, limbs, lanes, work,
    )  # fmt: skip


@kernel
def _add_rows(
    x: NDArray[np.float32],
    first: int,
    last: int,
    counts: Counts,
    exponents: NDArray[np.int64],
    extremes: NDArray[np.int32],
    tallies: NDArray[np.int64],
    limbs: NDArray[np.int64],
) -> None:
    """Fold the planes of some rows: one channel each, or all channels if there is one row."""
    channels, size = x.shape[1], x.shape[2]
    planes = channels // counts.shape[0]
    log_bins = int(math.log2(counts.shape[1]))
    lanes = np.zeros(3 * LANES, np.float64)
    work = np.zeros(BLOCK + 2 * LANES, np.int32)
    if counts.shape[1] >= LANES:
        for lane in range(LANES):
            work[BLOCK + lane] = lane
    flat = x.reshape(-1)
    bits = flat.view(np.int32)
    for row in range(first, last):
        for n in range(x.shape[0]):
            for plane in range(row * planes, (row + 1) * planes):
                start = (n * channels + plane) * size
                stop = start + size
                seen = _add_plane(
                    flat, bits, start, stop, False, row, log_bins,
                    counts, exponents, extremes, tallies, limbs, lanes, work,
                )  # fmt: skip
                if seen < stop:
                    _add_finite(
                        flat, seen, stop, row, log_bins,
                        counts, exponents, extremes, tallies, limbs, lanes, work,
                    )  # fmt: skip


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
    _add_rows(x, 0, counts.shape[0], counts, exponents, extremes, tallies, limbs)


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
    rows = counts.shape[0]
    runs = min(rows, _RUNS)
    for run in prange(runs):
        first, last = rows * run // runs, rows * (run + 1) // runs
        _add_rows(x, first, last, counts, exponents, extremes, tallies, limbs)


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
