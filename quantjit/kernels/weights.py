"""Scales and codes of weights, one row at a time; rows on several threads.

All sums run in order over the row: the original's results depend on it.
"""

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
        error = float(row[i]) - float(_round(row[i] / scale)) * float(scale)
        total += error * error
    return total


@kernel
def _refit(row: NDArray[np.float32], scale: np.float32) -> np.float32:
    """Step that fits the codes of this step best: sum(w q) / sum(q q)."""
    above, below = 0.0, 0.0
    for i in range(row.size):
        code = float(_round(row[i] / scale))
        above += float(row[i]) * code
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


@parallel_kernel
def least_squares_weights_into(
    weights: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> None:
    """Least squared error: 100 steps, each moved to its own fixed point, the best is kept."""
    for r in prange(scale.size):
        plain = _absmax(weights[r]) / _CODES
        if plain == 0:
            scale[r] = 0
            continue
        best, least = plain, _error(weights[r], plain)
        for part in range(100):
            start = plain * (
                np.float32(0.4) + np.float32(0.62) * np.float32(part) / np.float32(100)
            )
            step = _refit(weights[r], start)
            found = _error(weights[r], step)
            if found < least:
                best, least = step, found
        best = _descend(weights[r], best)
        scale[r] = best
        _encode(weights[r], best, codes[r])


@parallel_kernel
def asymmetric_weights_into(
    weights: NDArray[np.float32],
    codes: NDArray[np.int8],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int8],
) -> None:
    """As TNN's tool: the range, widened to hold 0, in 254 steps; zero_point int8 (rows,)."""
    for r in prange(scale.size):
        lowest, highest = _ZERO, _ZERO
        for i in range(weights.shape[1]):
            lowest = min(lowest, weights[r, i])
            highest = max(highest, weights[r, i])
        step = (highest - lowest) / np.float32(254)
        scale[r] = step
        if step == 0:
            continue
        zero = _CODES - _round_away(highest / step)
        zero_point[r] = np.int8(zero)
        inverse = _ONE / step
        for i in range(weights.shape[1]):
            value = _round_away(weights[r, i] * inverse) + zero
            codes[r, i] = np.int8(min(max(value, -_CODES), _CODES))
