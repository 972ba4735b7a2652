"""The int8 noise of a network as a function of the factors of its channels, to be minimized.

With the factors exp(t) of the sets of channels, the noise power at the outputs is a sum of

    (largest range)**2 * (sum of what it costs)

one term a scale: a blob's step is its largest channel's range, and the noise of channel c shows
with its gain over f_c**2; a row of weights has the step of its largest tap, and the rounding of a
tap shows with the power of its input.  Both are sums of powers of the factors: the logarithm of the
whole is convex in t, and a smooth maximum (a p-norm) lets a gradient find its one minimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Sets = NDArray[np.int64]

_SQUARINGS = 4  # the norm is of power 2**4
_POWER = 1 << _SQUARINGS
_TINY = 1e-30
_MOMENTUM, _MEMORY = 0.8, 0.95


@dataclass(frozen=True, slots=True)
class BlobTerm:
    """A blob with one scale: sets int64, ranges and cost float64, (channels,) each."""

    sets: Sets
    ranges: Values
    cost: Values

    def add(self, theta: Values, gradient: Values) -> float:
        """Return the noise at exp(theta) and add its derivative to the gradient."""
        factor = np.exp(theta[self.sets])
        largest, shares = _smooth_maximum((self.ranges * factor)[None])
        costs = self.cost / (factor * factor)
        step = float(largest[0, 0]) ** 2
        total = step * float(costs.sum())
        np.add.at(gradient, self.sets, 2 * (total * shares[0] - step * costs))
        return total


@dataclass(frozen=True, slots=True)
class WeightTerm:
    """A layer's weights: a scale a row, or one for all.

    sources: int64 (groups, channels a group), targets: int64 (rows,), the sets of what it reads and
    writes; taps, cost: float64 (rows, channels a group), the largest tap and what rounding costs.
    """

    sources: Sets
    targets: Sets
    taps: Values
    cost: Values
    per_tensor: bool

    def add(self, theta: Values, gradient: Values) -> float:
        """Return the noise at exp(theta) and add its derivative to the gradient."""
        groups, width = self.sources.shape
        rows = self.targets.size
        before = np.exp(theta[self.sources]).repeat(rows // groups, axis=0)
        ranges, costs = self.taps / before, self.cost * (before * before)
        if self.per_tensor:
            after = np.exp(theta[self.targets])[:, None]
            ranges = (ranges * after).reshape(1, -1)
            costs = (costs / (after * after)).reshape(1, -1)
        largest, shares = _smooth_maximum(ranges)
        step = largest * largest
        noise = step * costs.sum(axis=1, keepdims=True)
        slope = (2 * (step * costs - noise * shares)).reshape(rows, width)
        np.add.at(gradient, self.sources, slope.reshape(groups, -1, width).sum(axis=1))
        if self.per_tensor:
            np.add.at(gradient, self.targets, -slope.sum(axis=1))
        return float(noise.sum())


def _smooth_maximum(values: Values) -> tuple[Values, Values]:
    """Return the norm of each row, (rows, 1), and how its logarithm grows with each logarithm."""
    peak = np.maximum(values.max(axis=1, keepdims=True), _TINY)
    powers = values / peak
    for _ in range(_SQUARINGS):
        powers *= powers
    total = np.maximum(powers.sum(axis=1, keepdims=True), _TINY)
    return peak * total ** (1 / _POWER), powers / total


def minimize(
    terms: Sequence[BlobTerm | WeightTerm], low: Values, high: Values, rounds: int
) -> tuple[Values, float, float]:
    """Return theta of least noise within [low, high], and the noise at 0 and there.

    Gradient steps on the logarithm, scaled by the size of the last gradients (Kingma and Ba,
    "Adam", 2015), that get smaller; the best place seen is returned.
    """
    theta = np.zeros(low.size)
    momentum, size = np.zeros(low.size), np.zeros(low.size)
    best, least, start = theta, np.inf, 0.0
    for turn in range(rounds):
        gradient = np.zeros(low.size)
        noise = sum(term.add(theta, gradient) for term in terms)
        if turn == 0:
            start = noise
        if noise < least:
            best, least = theta, noise
        if noise <= 0:
            break
        gradient = np.where(low < high, gradient / noise, 0.0)
        momentum = _MOMENTUM * momentum + (1 - _MOMENTUM) * gradient
        size = _MEMORY * size + (1 - _MEMORY) * gradient**2
        rate = 0.2 * (1 - turn / rounds) / (1 - _MOMENTUM ** (turn + 1))
        length = np.sqrt(size / (1 - _MEMORY ** (turn + 1))) + 1e-9
        theta = np.clip(theta - rate * momentum / length, low, high)
    return best, start, least
