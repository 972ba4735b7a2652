"""Scales and codes of weights, one row at a time; rows on several threads.

Where TNN's tool is reproduced sums run in order over the row: its results depend on it.
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
_EXACT = 2.0**-40  # of the sum of squares: an error below is the rounding of sums
_LEAST_CELLS, _MOST_CELLS = 1024, 2**20
_LONG_ROW = 256  # from which it pays to leave out weights that keep their codes
_WINDOW = 64.0  # rounds of the present length in which the rest of the way should lie
_NARROWER = 4.0  # how much narrower a window must be to be worth it
_SMALL = 2**16  # weights below which a team of threads costs more than it gains

LANES = 32
"""Partial sums of a row where the original's order is of no concern: enough for vectors."""

_L1, _L2, _L3 = np.uint64(LANES), np.uint64(2 * LANES), np.uint64(3 * LANES)


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
def _energy(row: NDArray[np.float32]) -> float:
    """Sum of squares of a row, float64."""
    total = 0.0
    for i in range(row.size):
        total += np.float64(row[i]) * np.float64(row[i])
    return total


@kernel
def _add_product(
    w: np.float32, step: np.float32, fitted: float, norm: float
) -> tuple[float, float]:
    """Add w q and q q for the code q of w."""
    quotient = w / step
    shifted = np.trunc(quotient + np.copysign(_HALF, quotient))  # half away from zero
    code = np.float64(min(max(shifted, -_CODES), _CODES))
    return fitted + np.float64(w) * code, norm + code * code


@kernel
def _fit(
    row: NDArray[np.float32], step: np.float32, lanes: NDArray[np.float64]
) -> tuple[float, float]:
    """Return sum(w q) and sum(q q) for the codes q of this step.

    lanes: float64 (2 * LANES,).  A lane takes the weights of four lines in turn, so that its sums
    stay in registers.
    """
    lanes[:] = 0.0
    steps, whole = row.size // (4 * LANES) * (4 * LANES), row.size // LANES * LANES
    for start in range(0, steps, 4 * LANES):
        for lane in range(LANES):
            at, line = np.uint64(start + lane), np.uint64(lane)  # unsigned: not from the end
            fitted, norm = lanes[line], lanes[line + _L1]
            fitted, norm = _add_product(row[at], step, fitted, norm)
            fitted, norm = _add_product(row[at + _L1], step, fitted, norm)
            fitted, norm = _add_product(row[at + _L2], step, fitted, norm)
            fitted, norm = _add_product(row[at + _L3], step, fitted, norm)
            lanes[line], lanes[line + _L1] = fitted, norm
    for start in range(steps, whole, LANES):
        for lane in range(LANES):
            at, line = np.uint64(start + lane), np.uint64(lane)
            fitted, norm = _add_product(row[at], step, lanes[line], lanes[line + _L1])
            lanes[line], lanes[line + _L1] = fitted, norm
    for i in range(whole, row.size):
        lane = i - whole
        fitted, norm = _add_product(row[i], step, lanes[lane], lanes[lane + LANES])
        lanes[lane], lanes[lane + LANES] = fitted, norm
    for lane in range(1, LANES):
        lanes[0] += lanes[lane]
        lanes[LANES] += lanes[lane + LANES]
    return lanes[0], lanes[LANES]


@kernel
def _error(row: NDArray[np.float32], step: np.float32, lanes: NDArray[np.float64]) -> float:
    """Sum of squared errors of a row with this step, less its sum of squares."""
    fitted, norm = _fit(row, step, lanes)
    wide = np.float64(step)
    return wide * (wide * norm - 2.0 * fitted)


@kernel
def _follow_few(
    row: NDArray[np.float32],
    before: np.float32,
    step: np.float32,
    lanes: NDArray[np.float64],
    few: NDArray[np.float32],
) -> np.float32:
    """Go on as `_descend` does, more and more looking only at weights whose codes may change.

    before, step: of the last round.  The rounds become shorter: a window of some of them from here
    on should hold the rest of the way, and a weight that has one code at both its ends keeps it in
    between.  Ends at the fixed point or past a window.  few: float32, as long as the row.
    """
    kept_fitted, kept_norm = 0.0, 0.0
    count, rises = row.size, step > before
    few[:] = row
    moves = np.empty(row.size, np.int8)
    far, left = np.float32(np.inf) if rises else _ZERO, np.inf
    while step != before and (step > before) == rises:
        move = abs(np.float64(step) - np.float64(before))
        before = step
        fitted, norm = _fit(few[:count], step, lanes)
        step = np.float32((kept_fitted + fitted) / (kept_norm + norm))
        if move * _WINDOW < left / _NARROWER:
            left = move * _WINDOW
            here = float(np.float64(before))
            far = np.float32(here + left if rises else max(here - left, 0.5 * here))
            among, count = count, 0
            for i in range(among):
                moves[i] = _round(few[i] / before) != _round(few[i] / far)
            for i in range(among):
                few[count] = few[i]
                count += int(moves[i])
            others_fitted, others_norm = _fit(few[:count], before, lanes)
            kept_fitted += fitted - others_fitted
            kept_norm += norm - others_norm
        if (step > far) if rises else (step < far):
            break
    return step


@kernel
def _descend(
    row: NDArray[np.float32],
    step: np.float32,
    lanes: NDArray[np.float64],
    few: NDArray[np.float32],
) -> np.float32:
    """Alternate codes and their best step, A / B = sum(w q) / sum(q q), to the fixed point.

    A larger step never has a smaller best step: where a code falls from k to k - 1, at
    |w| = (k - 1/2) step, A / B loses a part of ratio step / 2, and A / B >= step / 2.  The rounds
    therefore go one way, to the first fixed point.  few: float32, as long as the row.
    """
    rounds, before = 0, _ZERO
    while step != before and rounds < _REFERENCE_STEPS:
        before = step
        above, below = _fit(row, step, lanes)
        fitted = np.float32(above / below) if below > 0 else step
        step = fitted if fitted > 0 else step
        rounds += 1
        if row.size >= _LONG_ROW and step != before and below > 0:
            step = _follow_few(row, before, step, lanes, few)
    return step


@kernel
def _absmax_row(row: NDArray[np.float32], codes: NDArray[np.int8]) -> np.float32:
    step = _absmax(row) / _CODES
    if step > 0:
        _encode(row, step, codes)
    return step


@parallel_kernel
def absmax_weights_into(
    weights: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> None:
    """Step absmax / 127; weights float32, codes int8 (rows, columns); scale float32 (rows,)."""
    if weights.size < _SMALL:
        for r in range(scale.size):
            scale[r] = _absmax_row(weights[r], codes[r])
    else:
        for r in prange(scale.size):
            scale[r] = _absmax_row(weights[r], codes[r])


@kernel
def _absmax_reference_row(row: NDArray[np.float32], codes: NDArray[np.int8]) -> np.float32:
    step = _absmax(row) / _CODES
    inverse = _ONE / step if step > 0 else _ONE
    for i in range(row.size):
        codes[i] = np.int8(_round(row[i] * inverse))
    return step


@parallel_kernel
def absmax_weights_reference_into(
    weights: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> None:
    """As TNN's tool: multiply by the float32 reciprocal of the step."""
    if weights.size < _SMALL:
        for r in range(scale.size):
            scale[r] = _absmax_reference_row(weights[r], codes[r])
    else:
        for r in prange(scale.size):
            scale[r] = _absmax_reference_row(weights[r], codes[r])


@kernel
def _admm_row(row: NDArray[np.float32], codes: NDArray[np.int8]) -> np.float32:
    plain = _absmax(row) / _CODES
    if plain == 0:
        return plain
    lanes = np.empty(2 * LANES, np.float64)
    few = np.empty(row.size, np.float32)
    step = _descend(row, plain / _ROOM, lanes, few)
    if _error(row, step, lanes) >= _error(row, plain, lanes):
        step = plain
    _encode(row, step, codes)
    return step


@parallel_kernel
def admm_weights_into(
    weights: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> None:
    """Alternate from absmax / (127 * 1.25) to the fixed point, or absmax / 127 if better."""
    if weights.size < _SMALL:
        for r in range(scale.size):
            scale[r] = _admm_row(weights[r], codes[r])
    else:
        for r in prange(scale.size):
            scale[r] = _admm_row(weights[r], codes[r])


@kernel
def _admm_reference_row(row: NDArray[np.float32], codes: NDArray[np.int8]) -> np.float32:
    step, before = _absmax(row) / (_CODES * _ROOM), -_ONE
    rounds = 0
    while step != before and rounds < _REFERENCE_STEPS:
        before = step
        above, below = _ZERO, _ZERO
        divisor = step + _TINY
        for i in range(row.size):
            code = _round(row[i] / divisor)
            codes[i] = np.int8(code)
            above += row[i] * code
            below += code * code
        step = above / (below + _TINY)
        rounds += 1
    return step


@parallel_kernel
def admm_weights_reference_into(
    weights: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> None:
    """As TNN's tool: float32 sums in order, codes of the step before the last.

    Its 1000 rounds are cut short where the step repeats: no later round can differ.
    """
    if weights.size < _SMALL:
        for r in range(scale.size):
            scale[r] = _admm_reference_row(weights[r], codes[r])
    else:
        for r in prange(scale.size):
            scale[r] = _admm_reference_row(weights[r], codes[r])


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
        kept = magnitudes[i] if magnitudes[i] < 0.5 * step else 0.0
        total += kept * kept
    return total


@kernel
def _code(magnitude: float, inverse: float) -> int:
    return min(127, int(magnitude * inverse + 0.5))


@kernel
def _sort_crossings(inverses: NDArray[np.float64], crossed: NDArray[np.float64]) -> None:
    """Sort both by the first, in place, by insertion: they are few."""
    for i in range(1, inverses.size):
        inverse, magnitude = inverses[i], crossed[i]
        j = i
        while j > 0 and inverses[j - 1] > inverse:
            inverses[j], crossed[j] = inverses[j - 1], crossed[j - 1]
            j -= 1
        inverses[j], crossed[j] = inverse, magnitude


@kernel
def _least_squares(magnitudes: NDArray[np.float64], step: float, error: float) -> float:
    """Return the step of least squared error of all, from any step and its error.

    The best step of given codes q is s = A / B with A = sum(|w| q), B = sum(q q), and its error is
    sum(w w) - A**2 / B.  As u = 1 / s grows, the code of w grows by 1 where u = (k - 1/2) / |w|;
    such a crossing adds |w| to A and 2 k - 1 to B, and all of them in order visit every assignment
    of codes that rounding can make.  Steps at which clipping alone, or what becomes 0 alone, costs
    more than the error at hand are left out.

    The crossings are gathered in cells of u, whose ends give A and B of an assignment each.  Inside
    a cell of width du a crossing changes the error by no more than 2 |w| du / u**2, as it changes
    nothing where it happens.  Only the cells which by that bound might hold less error than the
    best end are walked crossing by crossing.

    magnitudes: float64 (n,), > 0.
    """
    count = magnitudes.size
    below, above = step, step
    while _clipping(magnitudes, below) <= error:
        below *= 0.9
    # With the step above twice the largest everything becomes 0 and nothing is better.
    while _vanishing(magnitudes, above) <= error and above <= 2.0 * magnitudes.max():
        above *= 1.2
    first, last = 1.0 / above, 1.0 / below
    cells = min(max(4 * count, _LEAST_CELLS), _MOST_CELLS)
    per_unit, width = cells / (last - first), (last - first) / cells
    gains = np.zeros((cells, 3), np.float64)  # of A and B, and the number of crossings
    start_fitted, start_norm = 0.0, 0.0
    for i in range(count):
        w = magnitudes[i]
        inverse = 1.0 / w
        code, stop = _code(w, first), _code(w, last)
        start_fitted += w * code
        start_norm += float(code * code)
        for crossing in range(code, stop):
            cell = min(max(int(((crossing + 0.5) * inverse - first) * per_unit), 0), cells - 1)
            gains[cell, 0] += w
            gains[cell, 1] += 2.0 * crossing + 1.0
            gains[cell, 2] += 1.0

    best, most = step, -1.0  # most: A**2 / B, what the best step takes off the sum of squares
    fitted, norm = start_fitted, start_norm
    if norm > 0:
        best, most = fitted / norm, fitted * fitted / norm
    for cell in range(cells):
        fitted += gains[cell, 0]
        norm += gains[cell, 1]
        if fitted * fitted > most * norm:
            best, most = fitted / norm, fitted * fitted / norm

    places = np.full(cells, -1, np.int64)
    total, lowest, highest = 0, cells, -1
    fitted, norm = start_fitted, start_norm
    for cell in range(cells):
        gain, gain_norm = gains[cell, 0], gains[cell, 1]
        u = first + cell * width
        gap = 2.0 * gain * width / (u * u) * (1.0 + width / u)
        if gains[cell, 2] > 1 and fitted * fitted > (most - gap) * norm:
            places[cell] = total
            total += int(gains[cell, 2])
            lowest, highest = min(lowest, cell), cell
            gains[cell, 0], gains[cell, 1] = fitted, norm
        fitted += gain
        norm += gain_norm

    inverses, crossed = np.empty(total, np.float64), np.empty(total, np.float64)
    low, high = first + (lowest - 1) * width, first + (highest + 2) * width
    for i in range(count):
        w = magnitudes[i]
        inverse = 1.0 / w
        stop = min(_code(w, high), _code(w, last))
        for crossing in range(max(_code(w, low), _code(w, first)), stop):
            u = (crossing + 0.5) * inverse
            cell = min(max(int((u - first) * per_unit), 0), cells - 1)
            place = places[cell]
            if place >= 0:
                inverses[place], crossed[place] = u, w
                places[cell] += 1
    for cell in range(lowest, highest + 1):
        stop = places[cell]
        if stop < 0:
            continue
        start = stop - int(gains[cell, 2])
        _sort_crossings(inverses[start:stop], crossed[start:stop])
        fitted, norm = gains[cell, 0], gains[cell, 1]
        for i in range(start, stop):
            fitted += crossed[i]
            norm += 2.0 * math.floor(crossed[i] * inverses[i]) + 1.0
            if fitted * fitted > most * norm:
                best, most = fitted / norm, fitted * fitted / norm
    return best


@kernel
def _least_squares_step(row: NDArray[np.float32]) -> np.float32:
    """Return the float32 step of least squared error of a row, 0 for a row of zeros."""
    plain = _absmax(row) / _CODES
    if plain == 0:
        return _ZERO
    lanes = np.empty(2 * LANES, np.float64)
    best, least = plain, _error(row, plain, lanes)
    for part in range(9, 16):
        step = plain * np.float32(part / 16)
        found = _error(row, step, lanes)
        if step > 0 and found < least:
            best, least = step, found
    energy = _energy(row)
    error = energy + least
    if error <= energy * _EXACT:
        return best
    magnitudes = np.abs(row[row != 0]).astype(np.float64)
    fitted = np.float32(_least_squares(magnitudes, np.float64(best), error))
    return fitted if fitted > 0 and _error(row, fitted, lanes) < least else best


@kernel
def _least_squares_row(row: NDArray[np.float32], codes: NDArray[np.int8]) -> np.float32:
    step = _least_squares_step(row)
    if step > 0:
        _encode(row, step, codes)
    return step


@parallel_kernel
def least_squares_weights_into(
    weights: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> None:
    """Least squared error over all steps, up to the rounding of the step to float32."""
    if weights.size < _SMALL:
        for r in range(scale.size):
            scale[r] = _least_squares_row(weights[r], codes[r])
    else:
        for r in prange(scale.size):
            scale[r] = _least_squares_row(weights[r], codes[r])


@kernel
def _asymmetric_row(
    row: NDArray[np.float32], codes: NDArray[np.int8]
) -> tuple[np.float32, np.int8]:
    lowest, highest = _ZERO, _ZERO
    for i in range(row.size):
        lowest = min(lowest, row[i])
        highest = max(highest, row[i])
    step = (highest - lowest) / np.float32(254)
    if step == 0:
        return step, np.int8(0)
    inverse = _ONE / step
    zero = _CODES - _round_away(highest * inverse)
    for i in range(row.size):
        value = _round_away(row[i] * inverse) + zero
        codes[i] = np.int8(min(max(value, -_CODES), _CODES))
    return step, np.int8(zero)


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
    if weights.size < _SMALL:
        for r in range(scale.size):
            scale[r], zero_point[r] = _asymmetric_row(weights[r], codes[r])
    else:
        for r in prange(scale.size):
            scale[r], zero_point[r] = _asymmetric_row(weights[r], codes[r])
