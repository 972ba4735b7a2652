"""Percentile: 99.99 % of the values are not clipped."""

import numpy as np

from quantjit.quant import QuantParams
from quantjit.solvers import BlobSolver
from quantjit.stats import BlobStats

SHARE = 0.9999


def solve(stats: BlobStats) -> QuantParams:
    """Return the 99.99th percentile of magnitudes, zeros included, / 127.

    Values are spread evenly inside a bin; never above absmax.
    """
    counts = stats.counts.astype(np.float64)
    below = np.concatenate([np.zeros((stats.channels, 1)), np.cumsum(counts, axis=1)], axis=1)
    wanted = SHARE * stats.count - stats.zero_count
    rows = np.arange(stats.channels)
    index = np.clip((below < wanted[:, None]).sum(axis=1) - 1, 0, stats.bins - 1)
    inside = np.divide(
        wanted - below[rows, index],
        counts[rows, index],
        out=np.ones(stats.channels),
        where=counts[rows, index] > 0,
    )
    threshold = (index + np.clip(inside, 0, 1)) * stats.bin_width
    # Nearly all zeros: the percentile is 0, but the few others are what the blob says.
    threshold = np.where(wanted > 0, threshold, stats.absmax)
    return QuantParams(np.minimum(threshold, stats.absmax) / 127)


SOLVERS = (BlobSolver("percentile", None, "99.99 % of the values", True, solve),)
