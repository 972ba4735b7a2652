"""Search for the clipping threshold of a histogram by Kullback-Leibler divergence.

The definition: a histogram of magnitudes is clipped to its first T bins.  P is these bins with all
that is clipped added to the last.  Q is what 128 codes can tell of the bins alone: [0, T) is cut
into 128 equal runs, the mass of each is spread evenly over what it holds of non-empty bins, and a
bin that is cut belongs to both its runs in proportion.  Both are divided by the mass of the whole
histogram, so that Q lacks what is clipped: normalized to 1 it would agree perfectly with P where
all but one bin is clipped, and a blob that stays far from 0 would be clipped to its least value.

Q is constant over the uncut non-empty bins of a run, so with prefix sums of the counts c, of
c log c and of the non-empty bins a run costs one logarithm, and each of the at most 127 cut bins
one more: sum P log(P / Q) takes 255 logarithms instead of T, whatever T is.  They are made in one
loop without calls, which vectorizes.
"""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel, parallel_kernel, prange
from quantjit.kernels.histogram import Counts

TARGETS = 128
"""Codes that magnitudes are mapped to when distributions are compared."""

_TERMS = 2 * TARGETS  # runs and cut bins, the last place is unused
_NEXT = np.uint64(1)
_SQRT_HALF_BITS = 0x3FE6A09E00000000  # high word of the float64 sqrt(1/2)
_LN2 = math.log(2.0)
_FEW_CHANNELS = 16  # below, a team of threads costs more than it gains
_SLACK = 1e-9  # of a divergence: a bound is not trusted beyond the rounding of the sums


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
def _divergence(
    kept: int,
    mass: NDArray[np.float64],
    entropy: NDArray[np.float64],
    filled: NDArray[np.float64],
    work: NDArray[np.float64],
) -> float:
    """KL divergence of P from Q when a histogram is clipped to its first bins.

    kept: T >= 128, the last bin kept is not empty.  mass, entropy, filled: float64 (bins + 2,),
    sums over the bins before each of c, c log c and of 1 for a non-empty bin; the last is repeated.
    work: float64 (6, 256).
    """
    weights, levels, logs, ends = work[0], work[1], work[2], work[3]
    before, cut = work[4], work[5]  # mass before the bin that a run begins in, and of it, if cut
    for target in range(TARGETS + 1):
        place = target * kept
        at = np.uint64(place >> 7)  # unsigned: no test for an index from the end
        share = (place & 127) / 128
        below, bin_mass = mass[at], mass[at + _NEXT] - mass[at]
        before[target] = below
        cut[target] = bin_mass if share > 0 else 0.0
        ends[target] = below + share * bin_mass
        logs[target] = filled[at] + share * (filled[at + _NEXT] - filled[at])
    for target in range(TARGETS):
        # 128 divides the places, so these differences are exact and an empty run is 0.
        width = logs[target + 1] - logs[target]
        levels[target] = (ends[target + 1] - ends[target]) / max(width, 1 / 128)
        weights[target] = before[target + 1] - (before[target] + cut[target])
    for target in range(1, TARGETS):
        share = (target * kept & 127) / 128
        weights[TARGETS + target - 1] = cut[target]
        levels[TARGETS + target - 1] = share * levels[target - 1] + (1.0 - share) * levels[target]
    weights[_TERMS - 1], levels[_TERMS - 1] = 0.0, 1.0
    whole = mass[mass.size - 1]
    clipped = whole - mass[kept]
    weights[TARGETS - 1] += clipped  # the last bin is uncut and in the last run
    logarithms_into(levels, logs)
    for i in range(_TERMS):
        weights[i] *= logs[i]
    half = _TERMS // 2
    while half > 0:
        for i in range(half):
            weights[i] += weights[i + half]
        half //= 2
    last = mass[kept] - mass[kept - 1] + clipped
    plain = entropy[kept - 1] + last * math.log(last)
    return float((plain - weights[0]) / whole)


@kernel
def _least_divergences(
    used: int, mass: NDArray[np.float64], filled: NDArray[np.float64], work: NDArray[np.float64]
) -> None:
    """Write a bound below the divergence for each number of bins kept, from 128 to `used`.

    Merging bins never raises a divergence (log sum inequality): left are the last bin of P and Q
    and all the others.  work: float64 (4, used + 1), the bounds come in work[3].
    """
    first, second, logs, bounds = work[0], work[1], work[2], work[3]
    whole = mass[mass.size - 1]
    for kept in range(TARGETS, used + 1):
        place = (TARGETS - 1) * kept
        i, share = np.uint64(place >> 7), (place & 127) / 128
        at = np.uint64(kept)
        run = mass[at] - mass[i] - share * (mass[i + _NEXT] - mass[i])
        width = filled[at] - filled[i] - share * (filled[i + _NEXT] - filled[i])
        level = run / max(width, 1 / 128)
        others = mass[at - _NEXT]
        first[at] = (whole - others) / level if level > 0 else 0.0
        second[at] = others / (mass[at] - level) if others > 0 else 1.0
    logarithms_into(first[TARGETS : used + 1], logs[TARGETS : used + 1])
    for kept in range(TARGETS, used + 1):
        bounds[kept] = (whole - mass[kept - 1]) * logs[kept]
    logarithms_into(second[TARGETS : used + 1], logs[TARGETS : used + 1])
    for kept in range(TARGETS, used + 1):
        bounds[kept] = (bounds[kept] + mass[kept - 1] * logs[kept]) / whole


@kernel
def _search_divergence(counts: Counts) -> int:
    """Return how many bins to keep: the most of those with the least divergence.

    Every threshold from 128 bins on whose last bin is not empty is looked at, so that Q has mass
    wherever P has.  With no more than 128 non-empty bins there is nothing to choose by: all are
    kept.
    """
    bins = counts.size
    used = 0
    mass = np.zeros(bins + 2, np.float64)
    entropy = np.zeros(bins + 2, np.float64)
    filled = np.zeros(bins + 2, np.float64)
    values, logs = np.empty(bins, np.float64), np.empty(bins, np.float64)
    for i in range(bins):
        values[i] = max(float(counts[i]), 1.0)
    logarithms_into(values, logs)
    for i in range(bins):
        count = float(counts[i])
        mass[i + 1] = mass[i] + count
        entropy[i + 1] = entropy[i] + count * logs[i]
        filled[i + 1] = filled[i] + (1.0 if count > 0 else 0.0)
        if count > 0:
            used = i + 1
    mass[bins + 1], filled[bins + 1] = mass[bins], filled[bins]
    if filled[bins] <= TARGETS:
        return used
    bounds = np.empty((4, used + 1), np.float64)
    _least_divergences(used, mass, filled, bounds)
    work = np.empty((6, _TERMS), np.float64)
    best, least = used, np.inf
    for kept in range(used, TARGETS - 1, -1):
        if counts[kept - 1] == 0:
            continue
        if bounds[3, kept] > least * (1 + _SLACK) + _SLACK:
            continue
        found = _divergence(kept, mass, entropy, filled, work)
        if found < least:
            best, least = kept, found
    return best


@parallel_kernel
def search_divergence_into(counts: Counts, out: NDArray[np.int64]) -> None:
    """Write the number of bins to keep; counts: (channels, bins), out: int64 (channels,)."""
    if out.size < _FEW_CHANNELS:
        for c in range(out.size):
            out[c] = _search_divergence(counts[c])
    else:
        for c in prange(out.size):
            out[c] = _search_divergence(counts[c])


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
