"""Search for the clipping threshold of a histogram: KL divergence and squared error."""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel, parallel_kernel, prange

TARGETS = 128
"""Codes that magnitudes are mapped to when distributions are compared."""

_EMPTY = 1e-12  # probability given to a bin that has mass in P and none in Q


@kernel
def _divergence(
    bins_kept: int,
    mass: NDArray[np.float64],
    entropy: NDArray[np.float64],
    filled: NDArray[np.float64],
    counts: NDArray[np.uint32],
) -> float:
    """KL divergence of a histogram from its 128-code form, when it is clipped to the first bins.

    P: the kept bins with all that is clipped added to the last; Q: each of 128 runs of bins spread
    evenly over its non-empty bins, without what is clipped, both normalized.  Q is constant over
    the non-empty bins of a run, so with prefix sums of p, p log p and of the non-empty bins a run
    costs one logarithm: sum p log(p / q) = sum p log p - (sum p) log(mass / filled).
    """
    whole = mass[mass.size - 1]
    kept = mass[bins_kept]
    if kept == 0:
        return math.inf
    clipped = whole - kept
    total = 0.0
    level = 0.0  # of Q in the run of the last bin
    for target in range(TARGETS):
        start = target * bins_kept // TARGETS
        stop = (target + 1) * bins_kept // TARGETS
        run = mass[stop] - mass[start]
        if run > 0:
            level = run / (filled[stop] - filled[start])
            total += run * math.log(level)
    last = float(counts[bins_kept - 1])
    with_tail = last + clipped
    plain = entropy[bins_kept]
    if last > 0:
        plain -= last * math.log(last)
        total += clipped * math.log(level)
    elif clipped > 0:  # the bin is empty in Q
        total += clipped * math.log(_EMPTY * kept)
    if with_tail > 0:
        plain += with_tail * math.log(with_tail)
    divergence: float = (plain - total) / whole - math.log(whole) + math.log(kept)
    return divergence


@kernel
def _search_divergence(counts: NDArray[np.uint32]) -> int:
    """Return how many bins to keep, the first of equals; all in use if there is no choice."""
    bins = counts.size
    used = 0
    mass = np.zeros(bins + 1, np.float64)
    entropy = np.zeros(bins + 1, np.float64)
    filled = np.zeros(bins + 1, np.float64)
    for i in range(bins):
        count = float(counts[i])
        mass[i + 1] = mass[i] + count
        entropy[i + 1] = entropy[i] + (count * math.log(count) if count > 0 else 0.0)
        filled[i + 1] = filled[i] + (1.0 if count > 0 else 0.0)
        if count > 0:
            used = i + 1
    if used <= TARGETS:
        return used
    step = max(1, bins // 512)
    best, least = used, np.inf
    for bins_kept in range(TARGETS, used + 1, step):
        found = _divergence(bins_kept, mass, entropy, filled, counts)
        if found < least:
            best, least = bins_kept, found
    for bins_kept in range(max(TARGETS, best - step + 1), min(used, best + step - 1) + 1):
        found = _divergence(bins_kept, mass, entropy, filled, counts)
        if found < least or (found == least and bins_kept < best):
            best, least = bins_kept, found
    return best


@parallel_kernel
def search_divergence_into(counts: NDArray[np.uint32], out: NDArray[np.int64]) -> None:
    """Write the number of bins to keep; counts (channels, bins), out int64 (channels,)."""
    for c in prange(out.size):
        out[c] = _search_divergence(counts[c])


@kernel
def _squared_error(counts: NDArray[np.uint32], used: int, threshold: float, codes: int) -> float:
    """Sum of squared errors when magnitudes, taken at bin centres, get `codes` steps.

    threshold: in bins.  Rounding is to the nearest code, saturating at the last.
    """
    step = threshold / codes
    per_step = 1.0 / step
    total = 0.0
    for i in range(used):
        x = i + 0.5
        code = min(math.floor(x * per_step + 0.5), float(codes))
        error = x - code * step
        total += float(counts[i]) * error * error
    return total


@kernel
def _search_squared_error(counts: NDArray[np.uint32], absmax: float, codes: int) -> float:
    """Return the threshold, in bins, with the least squared error: a grid, then a finer one."""
    used = 0
    for i in range(counts.size):
        if counts[i] > 0:
            used = i + 1
    if used == 0:
        return absmax
    best, least = absmax, _squared_error(counts, used, absmax, codes)
    for part in range(6, 64):
        threshold = absmax * part / 64
        found = _squared_error(counts, used, threshold, codes)
        if found < least:
            best, least = threshold, found
    centre = best
    for part in range(-15, 16):
        threshold = min(centre + absmax * part / 1024, absmax)
        found = _squared_error(counts, used, threshold, codes)
        if found < least:
            best, least = threshold, found
    return best


@parallel_kernel
def search_squared_error_into(
    counts: NDArray[np.uint32], absmax: NDArray[np.float64], codes: int, out: NDArray[np.float64]
) -> None:
    """Write the threshold of each channel, in bins.

    counts: (channels, bins); absmax: float64 (channels,), in bins; codes: of one sign, e.g. 127;
    out: float64 (channels,).
    """
    for c in prange(out.size):
        out[c] = _search_squared_error(counts[c], absmax[c], codes)


@kernel
def _search_reference(counts: NDArray[np.float32]) -> int:
    """KL search of TNN's tool in its own float32 arithmetic and order.

    ``tools/quantization/scale_calculator.cc``; the result depends on every rounding.
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
