"""ACIQ: the best threshold for a Gaussian or Laplacian of the moments seen.

Banner et al., "Post training 4-bit quantization of convolutional networks" (NeurIPS 2019); the
factors are those of 8 bits.  Thresholds are about 0, as the codes are.
"""

import numpy as np

from quantjit.quant import QuantParams
from quantjit.solvers import BlobSolver
from quantjit.stats import BlobStats

GAUSS_FACTOR = 3.92403714
LAPLACE_FACTOR = 9.89675982


def solve_gauss(stats: BlobStats) -> QuantParams:
    """Return 3.92 root mean squares / 127, never above absmax / 127."""
    threshold = GAUSS_FACTOR * np.sqrt(stats.mean_square)
    return QuantParams(np.minimum(threshold, stats.absmax) / 127)


def solve_laplace(stats: BlobStats) -> QuantParams:
    """Return 9.90 mean magnitudes / 127, never above absmax / 127."""
    return QuantParams(np.minimum(LAPLACE_FACTOR * stats.mean_abs, stats.absmax) / 127)


SOLVERS = (
    BlobSolver("aciq-gauss", 4, "best clipping of a Gaussian", True, solve_gauss),
    BlobSolver("aciq-laplace", 5, "best clipping of a Laplacian", True, solve_laplace),
)
