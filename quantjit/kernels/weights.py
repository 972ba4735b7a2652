"""Scales and codes of weights, one row at a time; rows on several threads.

All sums run in order over the row: the original's results depend on it.
"""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel, parallel_kernel, prange

_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1), np.float32(0)
_CODES = np.float32(127)
_TINY = np.float32(1e-9)
_ROOM = np.float32(1.25)
_REFERENCE_STEPS = 1000


@kernel
def _round_away(value: np.float32) -> np.float32:
    """Round half away from zero, as float32, without clamping."""
    if value >= 0:
        return np.float32(np.floor(value + _HALF))
    return np.float32(np.ceil(value - _HALF))


@kernel
def _round(value: np.float32) -> np.float32:
    """Round half away from zero and clamp to [-127, 127], as float32."""
    return min(max(_round_away(value), -_CODES), _CODES)


@kernel
def _absmax(row: NDArray[np.float32]) -> np.float32:
    largest = _ZERO
    for i in range(row.size):
        largest = max(largest, abs(row[i]))
    return largest


@kernel
def _encode(row: NDArray[np.float32], scale: np.float32, codes: NDArray[np.int8]) -> None:
    for i in range(row.size):
        codes[i] = np.int8(_round(row[i] / scale))


@kernel
def _error(row: NDArray[np.float32], scale: np.float32) -> float:
    """Sum of squared errors of a row with this step, float64."""
    total = 0.0
    for i in range(row.size):
        error = np.float64(row[i]) - np.float64(_round(row[i] / scale)) * np.float64(scale)
        total += error * error
    return total


@kernel
def _refit(row: NDArray[np.float32], scale: np.float32) -> np.float32:
    """Step that fits the codes of this step best: sum(w q) / sum(q q)."""
    above, below = 0.0, 0.0
    for i in range(row.size):
        code = np.float64(_round(row[i] / scale))
        above += np.float64(row[i]) * code
        below += code * code
    return np.float32(above / below) if below > 0 else scale


@kernel
def _descend(row: NDArray[np.float32], scale: np.float32) -> np.float32:
    """Alternate codes and step until the step no longer moves; the error never grows."""
    for _ in range(_REFERENCE_STEPS):
        fitted = _refit(row, scale)
        if fitted == scale:
            break
        scale = fitted
    return scale


@parallel_kernel
def absmax_weights_into(
    weights: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> None:
    """Step absmax / 127; weights float32, codes int8 (rows, columns); scale float32 (rows,)."""
    for r in prange(scale.size):
        scale[r] = _absmax(weights[r]) / _CODES
        if scale[r] > 0:
            _encode(weights[r], scale[r], codes[r])


@parallel_kernel
def absmax_weights_reference_into(
    weights: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> None:
    """As TNN's tool: multiply by the float32 reciprocal of the step."""
    for r in prange(scale.size):
        scale[r] = _absmax(weights[r]) / _CODES
        inverse = _ONE / scale[r] if scale[r] > 0 else _ONE
        for i in range(weights.shape[1]):
            codes[r, i] = np.int8(_round(weights[r, i] * inverse))


@parallel_kernel
def admm_weights_into(
    weights: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> None:
    """Alternate from absmax / (127 * 1.25) to the fixed point, or absmax / 127 if better."""
    for r in prange(scale.size):
        largest = _absmax(weights[r])
        if largest == 0:
            scale[r] = 0
            continue
        plain = largest / _CODES
        fitted = _descend(weights[r], plain / _ROOM)
        if _error(weights[r], plain) < _error(weights[r], fitted):
            fitted = plain
        scale[r] = fitted
        _encode(weights[r], fitted, codes[r])


@parallel_kernel
def admm_weights_reference_into(
    weights: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> None:
    """As TNN's tool: float32 sums in order, codes of the step before the last.

    Its 1000 rounds are cut short where the step repeats: no later round can differ.
    """
    for r in prange(scale.size):
        step = _absmax(weights[r]) / (_CODES * _ROOM)
        for _ in range(_REFERENCE_STEPS):
            above, below = _ZERO, _ZERO
            divisor = step + _TINY
            for i in range(weights.shape[1]):
                code = _round(weights[r, i] / divisor)
                codes[r, i] = np.int8(code)
                above += weights[r, i] * code
                below += code * code
            fitted = above / (below + _TINY)
            if fitted == step:
                break
            step = fitted
        scale[r] = step


@kernel
def _clipping(magnitudes: NDArray[np.float64], step: float) -> float:
    """Squared error of clipping alone; it falls as the step grows."""
    total = 0.0
    for i in range(magnitudes.size):
        beyond = max(magnitudes[i] - 127.0 * step, 0.0)
        total += beyond * beyond
    return total


@kernel
def _vanishing(magnitudes: NDArray[np.float64], step: float) -> float:
    """Squared error of what becomes 0 alone; it grows with the step."""
    total = 0.0
    for i in range(magnitudes.size):
        if magnitudes[i] < 0.5 * step:
            total += magnitudes[i] * magnitudes[i]
    return total


@kernel
def _code(magnitude: float, inverse: float) -> int:
    return min(127, int(magnitude * inverse + 0.5))


@kernel
def _sort_crossings(inverses: NDArray[np.float64], magnitudes: NDArray[np.float64]) -> None:
    """Sort both by the first, in place, by insertion: for what is nearly sorted."""
    for i in range(1, inverses.size):
        inverse, magnitude = inverses[i], magnitudes[i]
        j = i
        while j > 0 and inverses[j - 1] > inverse:
            inverses[j], magnitudes[j] = inverses[j - 1], magnitudes[j - 1]
            j -= 1
        inverses[j], magnitudes[j] = inverse, magnitude


@kernel
def _least_squares(magnitudes: NDArray[np.float64], step: float, error: float) -> float:
    """Return the step of least squared error; any step and its error to begin with.

    The best step of given codes q is s = A / B with A = sum(|w| q), B = sum(q q), and its error is
    sum(w w) - A**2 / B.  As 1 / s grows, the code of w grows by 1 where 1 / s = (k - 1/2) / |w|:
    walking these crossings in order visits every assignment of codes that rounding can make, and
    A and B follow with one addition each.  Steps whose error is more than the one at hand, of
    clipping alone below or of what becomes 0 alone above, are left out.

    magnitudes: float64 (n,), > 0.
    """
    below = step
    while below > 0 and _clipping(magnitudes, below) <= error:
        below *= 0.5
    above = step
    while _vanishing(magnitudes, above) <= error and _code(magnitudes.max(), 1.0 / above) > 0:
        above *= 2.0
    low, high = below, above
    inside_low, inside_high = step, step
    for _ in range(20):
        middle = 0.5 * (low + inside_low)
        if _clipping(magnitudes, middle) <= error:
            inside_low = middle
        else:
            low = middle
        middle = 0.5 * (high + inside_high)
        if _vanishing(magnitudes, middle) <= error:
            inside_high = middle
        else:
            high = middle
    first, last = 1.0 / high, 1.0 / low if low > 0 else 127.0 / magnitudes.min()

    # The crossings are put in order a slab at a time, first by cells of a few, then by insertion.
    count = magnitudes.size
    budget = min(max(count, 4096), 127 * count)
    cells = budget // 2 + 1
    slab = budget / magnitudes.sum()
    starts = np.empty(cells + 1, np.int64)
    inverses = np.empty(budget + 2 * count, np.float64)
    crossed = np.empty(budget + 2 * count, np.float64)
    best, best_share = step, -1.0
    fitted, norm = 0.0, 0.0
    for i in range(count):
        code = _code(magnitudes[i], first)
        fitted += magnitudes[i] * code
        norm += float(code * code)
    slabs = int((last - first) / slab) + 1
    for part in range(slabs):
        start, stop = first + part * slab, first + (part + 1) * slab
        starts[:] = 0
        for i in range(count):
            w = magnitudes[i]
            for code in range(_code(w, start) + 1, _code(w, stop) + 1):
                cell = int(((code - 0.5) / w - start) / slab * cells)
                starts[min(max(cell, 0), cells - 1) + 1] += 1
        for cell in range(cells):
            starts[cell + 1] += starts[cell]
        total = starts[cells]
        for i in range(count):
            w = magnitudes[i]
            for code in range(_code(w, start) + 1, _code(w, stop) + 1):
                inverse = (code - 0.5) / w
                cell = min(max(int((inverse - start) / slab * cells), 0), cells - 1)
                inverses[starts[cell]], crossed[starts[cell]] = inverse, w
                starts[cell] += 1
        _sort_crossings(inverses[:total], crossed[:total])
        for i in range(total):
            fitted += crossed[i]
            norm += 2.0 * math.floor(crossed[i] * inverses[i] + 1.0) - 1.0
            if fitted * fitted > best_share * norm:
                best, best_share = fitted / norm, fitted * fitted / norm
    return best


@kernel
def _least_squares_row(row: NDArray[np.float32]) -> np.float32:
    """Return the float32 step of least squared error of a row, 0 for a row of zeros."""
    plain = _absmax(row) / _CODES
    if plain == 0:
        return _ZERO
    best, least = plain, _error(row, plain)
    fitted = _descend(row, plain / _ROOM)
    found = _error(row, fitted)
    if found < least:
        best, least = fitted, found
    if least == 0:
        return best
    magnitudes = np.abs(row[row != 0]).astype(np.float64)
    fitted = np.float32(_least_squares(magnitudes, float(best), least))
    return fitted if fitted > 0 and _error(row, fitted) < least else best


@parallel_kernel
def least_squares_weights_into(
    weights: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> None:
    """Least squared error over all steps, up to the rounding of the step to float32."""
    for r in prange(scale.size):
        scale[r] = _least_squares_row(weights[r])
        if scale[r] > 0:
            _encode(weights[r], scale[r], codes[r])


@parallel_kernel
def asymmetric_weights_into(
    weights: NDArray[np.float32],
    codes: NDArray[np.int8],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int8],
) -> None:
    """As TNN's tool: the range, widened to hold 0, in 254 steps; zero_point int8 (rows,).

    A row of zeros, where the tool gives up, has step, zero point and codes 0.
    """
    for r in prange(scale.size):
        lowest, highest = _ZERO, _ZERO
        for i in range(weights.shape[1]):
            lowest = min(lowest, weights[r, i])
            highest = max(highest, weights[r, i])
        step = (highest - lowest) / np.float32(254)
        scale[r] = step
        if step == 0:
            continue
        inverse = _ONE / step
        zero = _CODES - _round_away(highest * inverse)
        zero_point[r] = np.int8(zero)
        for i in range(weights.shape[1]):
            value = _round_away(weights[r, i] * inverse) + zero
            codes[r, i] = np.int8(min(max(value, -_CODES), _CODES))
