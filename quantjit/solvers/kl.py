"""KL: the threshold whose 128-code form of the histogram diverges least from the histogram.

Migacz, "8-bit inference with TensorRT" (GTC 2017), with the reference clipped into the last bin,
but with what is clipped missing from the codes' form; `quantjit.kernels.divergence` has the
definition.  Zeros do not count, since every threshold represents them exactly.
"""

import numpy as np

from quantjit.kernels.divergence import search_divergence_into
from quantjit.quant import QuantParams
from quantjit.solvers import BlobSolver
from quantjit.stats import BlobStats

_FEW = 1024
"""Non-zero values below which a histogram says nothing and the whole range is kept."""


def solve(stats: BlobStats) -> QuantParams:
    """Return threshold / 127 for each channel, the threshold never above absmax."""
    kept = np.zeros(stats.channels, np.int64)
    search_divergence_into(stats.counts, kept)
    threshold = np.minimum(kept * stats.bin_width, stats.absmax)
    few = stats.count - stats.zero_count < _FEW
    return QuantParams(np.where(few, stats.absmax, threshold) / 127)


SOLVERS = (BlobSolver("kl", 2, "least KL divergence of the histogram", True, solve),)
