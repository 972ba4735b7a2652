"""Search for the clipping threshold of a histogram by Kullback-Leibler divergence.

The definition: with the threshold T and the step s = T / codes the code k stands for the magnitudes
in [(k - 1/2) s, (k + 1/2) s), the code 0 for those below s / 2 and the last for all from T - s / 2
on.  P is the mass of each half of a code, all that is clipped added to the last.  Q is what the
codes can tell of it: the mass of a code is spread evenly over what it holds of non-empty bins, and
what is clipped is missing.  Both are divided by the mass of the whole histogram: normalized to 1, Q
would agree perfectly with P where nearly all is clipped.  A bin that is cut belongs to both sides
in proportion.

This is Migacz's search ("8-bit inference with TensorRT", GTC 2017) but for the cells that P and Q
are compared in.  His are the bins, the same for every T, in equal runs for 128 codes:

* A value that occurs often, as the bias of a channel does where its inputs are 0, makes a spike of
  one bin.  Spread over a code of w bins it costs its mass times log w, which grows with T without
  end, although a spike is coded no worse than its neighbours: one per mille of such values clips
  more than the tail would.  Half a code is as wide as T makes it, so that the cost has a bound.
* The code 0 is one cell.  What falls to it becomes 0, however it is spread; as bins, values that a
  ReLU hardly lets through outweigh all others.
* T / codes is the step that the blob gets: a one-sided blob with 255 steps is searched with these.

* Halves that are evenly likely are not evenly filled by a sample: each code in use costs about 1/2
  a count more than it should, so that of few values a far outlier is kept to use fewer codes.  What
  is expected is subtracted.

The two halves of a code have the same mass in P and Q but for what is clipped, so that, in counts,

    D(T) = (last + clipped) log((last + clipped) / last) + sum over codes (both halves of
           half log(half / even), less 1/2 (1 - filled / mass) (1 - codes / T) where none is empty)

T and filled, the non-empty part, in bins.  A sample of mean m has a variance of m when empty bins
count, about m - 1 when they do not: hence the first factor, 0 for bins of single values.  The
second is for bins that are cut, whose parts are even by definition.  The sum is above -codes / 2,
which with the first term makes a bound.  With prefix sums of the counts and of the non-empty bins a
threshold takes 2 codes logarithms, whatever T is.
"""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel, parallel_kernel, prange
from quantjit.kernels.histogram import Counts

TARGETS = 128
"""Codes that TNN's tool maps magnitudes to."""

_NEXT = np.uint64(1)
_SQRT_HALF_BITS = 0x3FE6A09E00000000  # high word of the float64 sqrt(1/2)
_LN2 = math.log(2.0)
_FEW_CHANNELS = 16  # below, a team of threads costs more than it gains
_SHIFT = 40  # reciprocals are in units of 2**-40
_LEAST = 1e-12  # below any product of a mass and a width that are not 0


@kernel
def logarithms_into(x: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Natural logarithms of positive normal float64; any finite number for 0.  x is overwritten.

    x = 2**k m with m in [sqrt(1/2), sqrt(2)) and s = (m - 1) / (m + 1), |s| < 0.1716:
    log x = k log 2 + 2 (s + s**3 / 3 + ... + s**19 / 19); the rest is below 2**-52.
    """
    bits = x.view(np.int64)
    for i in range(x.size):
        k = (bits[i] - _SQRT_HALF_BITS) >> 52
        bits[i] -= k << 52
        out[i] = float(k)
    for i in range(x.size):
        s = (x[i] - 1.0) / (x[i] + 1.0)
        z = s * s
        series = 1 / 15 + z * (1 / 17 + z * (1 / 19))
        series = 1 / 9 + z * (1 / 11 + z * (1 / 13 + z * series))
        series = 1.0 + z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * series)))
        out[i] = out[i] * _LN2 + 2.0 * s * series


@kernel
def _rounding(
    kept: int,
    codes: int,
    mass: NDArray[np.float64],
    filled: NDArray[np.float64],
    work: NDArray[np.float64],
) -> float:
    """Part of D of all codes but the first and the last, in counts.

    kept: T >= codes.  mass, filled: float64 (bins + 2,), sums over the bins before each of the
    counts and of 1 for a non-empty bin; the last is repeated.  work: float64 (5, n), n a power of
    two >= 2 codes.
    """
    ratios, weights, sums, fills, noise = work[0], work[1], work[2], work[3], work[4]
    cells = 2 * codes
    # Quotients by it are exact, without overflow, for fewer than 2**22 bins.
    reciprocal = (1 << _SHIFT) // cells + 1
    part = 1.0 / cells
    for cell in range(cells):
        place = cell * kept
        quotient = (place * reciprocal) >> _SHIFT
        share = (place - quotient * cells) * part
        at = np.uint64(quotient)  # unsigned: no test for an index from the end
        # Odd places, where a code begins, go to the front, even ones, its middle, to the back.
        target = np.uint64((cell >> 1) + (1 - (cell & 1)) * codes)
        sums[target] = mass[at] + share * (mass[at + _NEXT] - mass[at])
        fills[target] = filled[at] + share * (filled[at + _NEXT] - filled[at])
    inner = codes - 1
    expected = 0.5 * (1.0 - codes / kept)
    for i in range(inner):
        code = np.uint64(i)
        middle = np.uint64(codes + 1 + i)
        low, high = sums[middle] - sums[code], sums[code + _NEXT] - sums[middle]
        below, above = fills[middle] - fills[code], fills[code + _NEXT] - fills[middle]
        # An empty half is exactly 0 in both: its ratio is 0, which has some logarithm.
        width, whole = below + above, low + high
        ratios[code] = low * width / max(whole * below, _LEAST)
        ratios[np.uint64(inner + i)] = high * width / max(whole * above, _LEAST)
        weights[code] = low
        weights[np.uint64(inner + i)] = high
        is_split = 1.0 if min(low, high) > 0 else 0.0
        noise[code] = expected * is_split * (1.0 - width / max(whole, _LEAST))
    logs = sums
    logarithms_into(ratios[: 2 * inner], logs[: 2 * inner])
    for i in range(2 * inner):
        weights[i] *= logs[i]
    for i in range(inner):
        weights[i] -= noise[i]
    weights[2 * inner :] = 0.0
    half = weights.size // 2
    while half > 0:
        for i in range(half):
            weights[i] += weights[i + half]
        half //= 2
    return float(weights[0])


@kernel
def _clipping_into(
    used: int, codes: int, mass: NDArray[np.float64], work: NDArray[np.float64]
) -> None:
    """Write the part of D of the last code for each number of bins kept, from `codes` to `used`.

    work: float64 (3, used + 1), the results come in work[2].
    """
    ratios, logs, found = work[0], work[1], work[2]
    whole = mass[mass.size - 1]
    cells = 2 * codes
    for kept in range(codes, used + 1):
        place = (cells - 1) * kept
        i, share = place // cells, (place % cells) / cells
        before = mass[i] + share * (mass[i + 1] - mass[i])
        found[kept] = whole - before
        ratios[kept] = (whole - before) / max(mass[kept] - before, _LEAST)
    logarithms_into(ratios[codes : used + 1], logs[codes : used + 1])
    for kept in range(codes, used + 1):
        found[kept] *= logs[kept]


@kernel
def _search_divergence(counts: Counts, codes: int) -> int:
    """Return how many bins to keep: the most of those with the least divergence.

    Every threshold from `codes` bins on whose last bin is not empty is looked at, so that Q has
    mass wherever P has and a step is no less than a bin.  With no more than `codes` non-empty bins
    there is nothing to choose by: all are kept.
    """
    bins = counts.size
    used = 0
    mass = np.zeros(bins + 2, np.float64)
    filled = np.zeros(bins + 2, np.float64)
    for i in range(bins):
        count = float(counts[i])
        mass[i + 1] = mass[i] + count
        filled[i + 1] = filled[i] + (1.0 if count > 0 else 0.0)
        if count > 0:
            used = i + 1
    mass[bins + 1], filled[bins + 1] = mass[bins], filled[bins]
    if filled[bins] <= codes:
        return used
    clipping = np.empty((3, used + 1), np.float64)
    _clipping_into(used, codes, mass, clipping)
    terms = 2
    while terms < 2 * codes:
        terms *= 2
    work = np.zeros((5, terms), np.float64)
    best, least = used, np.inf
    for kept in range(used, codes - 1, -1):
        if counts[kept - 1] == 0 or clipping[2, kept] - 0.5 * codes >= least:
            continue
        found = clipping[2, kept] + _rounding(kept, codes, mass, filled, work)
        if found < least:
            best, least = kept, found
    return best


@parallel_kernel
def search_divergence_into(counts: Counts, codes: int, out: NDArray[np.int64]) -> None:
    """Write the number of bins to keep of each channel.

    counts: (channels, bins), below 2**22 bins; codes: steps from 0 to the threshold, 2 to 255; out:
    int64 (channels,).
    """
    if out.size < _FEW_CHANNELS:
        for c in range(out.size):
            out[c] = _search_divergence(counts[c], codes)
    else:
        for c in prange(out.size):
            out[c] = _search_divergence(counts[c], codes)


@kernel
def _search_reference(counts: NDArray[np.float32]) -> int:
    """KL search of TNN's tool in its own float32 arithmetic and order.

    ``tools/quantization/scale_calculator.cc``; the result depends on every rounding.  Unlike above
    Q is not normalized, and P without Q costs 1.  ``np.log`` of a float32 is C's ``logf`` here.
    """
    bins = counts.size
    p = np.empty(bins, np.float32)
    total = np.float32(0)
    for i in range(bins):
        total += counts[i]
    for i in range(bins):
        p[i] = counts[i] / total
    tail = np.float32(0)
    for i in range(TARGETS, bins):
        tail += p[i]
    zero, one, limit = np.float32(0), np.float32(1), np.float32(1e6)
    spread = np.empty(bins + 1, np.float32)
    best, least = TARGETS, limit
    for kept in range(TARGETS, bins):
        width = np.float32(kept) / np.float32(TARGETS)
        spread[:kept] = 0
        for target in range(TARGETS):
            start = np.float32(target) * width
            end = start + width
            left, right = math.ceil(start), math.floor(end)
            left_share = np.float32(left) - start
            right_share = end - np.float32(right)
            mass, filled = zero, zero
            if left_share > 0:
                mass += left_share * p[left - 1]
                if p[left - 1] != 0:
                    filled += left_share
            if right_share > 0:
                mass += right_share * p[right]
                if p[right] != 0:
                    filled += right_share
            for i in range(left, right):
                mass += p[i]
                if p[i] != 0:
                    filled += one
            if filled == 0:
                continue
            level = mass / filled
            if left_share > 0 and p[left - 1] != 0:
                spread[left - 1] += level * left_share
            if right_share > 0 and p[right] != 0:
                spread[right] += level * right_share
            for i in range(left, right):
                if p[i] != 0:
                    spread[i] += level
        found = zero
        for i in range(kept):
            reference = p[i] + tail if i == kept - 1 else p[i]
            if reference != 0:
                if spread[i] == 0:
                    found += one
                else:
                    found += reference * np.log(reference / spread[i])
        tail -= p[kept]
        if found < least:
            best, least = kept, found
    return best


@parallel_kernel
def search_reference_into(
    counts: NDArray[np.float32], valid: NDArray[np.bool_], out: NDArray[np.int64]
) -> None:
    """Write the threshold bin of each valid channel; counts: float32 (channels, bins)."""
    for c in prange(out.size):
        if valid[c]:
            out[c] = _search_reference(counts[c])
