"""KL: the threshold whose codes tell of the histogram with the least divergence from it.

After Migacz, "8-bit inference with TensorRT" (GTC 2017): what is clipped is in the last cell of the
reference and missing from the codes' form.  Unlike there, the cells that are compared are halves of
codes, not bins, and the code 0 is one of them, so that neither spikes nor values next to 0 decide;
`quantjit.kernels.divergence` has the definition.  Exact zeros do not count, since every threshold
represents them exactly.
"""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels.divergence import search_divergence_into
from quantjit.quant import QuantParams
from quantjit.solvers import BlobSolver
from quantjit.stats import BlobStats

_FEW = 1024
"""Non-zero values below which a histogram says nothing and the whole range is kept."""


def threshold(stats: BlobStats, codes: int) -> NDArray[np.float64]:
    """Return the threshold of least divergence, float64 (channels,), never above absmax.

    codes: steps from 0 to the threshold.
    """
    kept = np.zeros(stats.channels, np.int64)
    search_divergence_into(stats.counts, codes, kept)
    few = stats.count - stats.zero_count < _FEW
    found: NDArray[np.float64] = np.minimum(kept * stats.bin_width, stats.absmax)
    return np.where(few, stats.absmax, found)


def solve(stats: BlobStats) -> QuantParams:
    """Return threshold / 127 for each channel."""
    return QuantParams(threshold(stats, 127) / 127)


SOLVERS = (BlobSolver("kl", 2, "least KL divergence of the histogram", True, solve, threshold),)
