"""Noise: least squared error where what is clipped counts several times.

Rounding errs to both sides and averages out over the taps of the next layers; clipping errs to one
side in the largest values, which are in the same places of many channels, and adds up.  Its power
at the outputs is therefore more than its share of the squared error.  The weight is measured:
`tests/bench/ablation.py` compares the methods end to end.
"""

import numpy as np
from numpy.typing import NDArray

from quantjit.quant import QuantParams
from quantjit.solvers import BlobSolver
from quantjit.stats import BlobStats

CLIPPING = 4.0
"""How many times the squared error of clipping counts."""


def threshold(stats: BlobStats, codes: int) -> NDArray[np.float64]:
    """Return the bin edge, or absmax, of least weighted error; float64 (channels,).

    codes: steps from 0 to the threshold T.  Values are in the middle of their bins; what is kept
    has the rounding error (T / codes)**2 / 12, exact zeros have none.  T is at least codes / 2
    bins: below, a histogram does not tell how codes divide it.
    """
    found = np.zeros(stats.channels)
    centres, edges = np.arange(stats.bins) + 0.5, np.arange(1.0, stats.bins + 1)
    for row, (width, absmax) in enumerate(zip(stats.bin_width, stats.absmax, strict=True)):
        if width <= 0:
            continue
        counts, last = stats.counts[row].astype(np.float64), float(absmax) / float(width)
        # sums over the bins above each edge
        mass, moment, square = (
            total[-1] - total
            for total in map(np.cumsum, (counts, counts * centres, counts * centres**2))
        )
        clipped = np.maximum(square - 2 * edges * moment + edges**2 * mass, 0)
        kept = counts.sum() - mass
        error = CLIPPING * clipped + kept * edges**2 / (12 * codes**2)
        error[(edges < codes / 2) | (edges >= last)] = np.inf
        whole = counts.sum() * last**2 / (12 * codes**2)
        best = int(error.argmin())
        found[row] = last * width if whole <= error[best] else edges[best] * width
    return np.minimum(found, stats.absmax)


def solve(stats: BlobStats) -> QuantParams:
    """Return threshold / 127 for each channel."""
    return QuantParams(threshold(stats, 127) / 127)


SOLVERS = (
    BlobSolver(
        "noise", None, "least squared error, clipping counting 4 times", True, solve, threshold
    ),
)
