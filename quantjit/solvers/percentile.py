"""Percentile: 99.99 % of the values are not clipped."""

import numpy as np
from numpy.typing import NDArray

from quantjit.quant import QuantParams
from quantjit.solvers import BlobSolver
from quantjit.stats import BlobStats

SHARE = 0.9999
FINE_SHARE = 0.99999
"""With more than 127 codes from 0 on, where a step costs less than what is clipped."""


def threshold(stats: BlobStats, codes: int) -> NDArray[np.float64]:
    """Return the percentile of magnitudes, zeros included, float64 (channels,).

    codes: steps from 0 to the threshold.  Values are spread evenly inside a bin; never above
    absmax.
    """
    share = SHARE if codes <= 127 else FINE_SHARE
    counts = stats.counts.astype(np.float64)
    below = np.concatenate([np.zeros((stats.channels, 1)), np.cumsum(counts, axis=1)], axis=1)
    wanted = share * stats.count - stats.zero_count
    rows = np.arange(stats.channels)
    index = np.clip((below < wanted[:, None]).sum(axis=1) - 1, 0, stats.bins - 1)
    inside = np.divide(
        wanted - below[rows, index],
        counts[rows, index],
        out=np.ones(stats.channels),
        where=counts[rows, index] > 0,
    )
    found = (index + np.clip(inside, 0, 1)) * stats.bin_width
    # Nearly all zeros: the percentile is 0, but the few others are what the blob says.
    found = np.where(wanted > 0, found, stats.absmax)
    kept: NDArray[np.float64] = np.minimum(found, stats.absmax)
    return kept


def solve(stats: BlobStats) -> QuantParams:
    """Return the 99.99th percentile of magnitudes / 127."""
    return QuantParams(threshold(stats, 127) / 127)


SOLVERS = (BlobSolver("percentile", None, "99.99 % of the values", True, solve, threshold),)
