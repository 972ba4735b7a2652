"""ACIQ: the best threshold for a Gaussian or Laplacian of the moments seen.

Banner et al., "Post training 4-bit quantization of convolutional networks" (NeurIPS 2019); the
factors are those of 8 bits.  The moments are exact and about 0, as the codes are.  Zeros are left
out: every threshold represents them exactly, and a Gaussian or Laplacian cut off by a ReLU then has
the moment of the whole one.
"""

import numpy as np
from numpy.typing import NDArray

from quantjit.quant import QuantParams
from quantjit.solvers import BlobSolver
from quantjit.stats import BlobStats

GAUSS_FACTOR = 3.92403714
LAPLACE_FACTOR = 9.89675982


def solve_gauss(stats: BlobStats) -> QuantParams:
    """Return 3.92 root mean squares / 127, never above absmax / 127."""
    return _clipped(stats, GAUSS_FACTOR * np.sqrt(stats.mean_square / _share(stats)))


def solve_laplace(stats: BlobStats) -> QuantParams:
    """Return 9.90 mean magnitudes / 127, never above absmax / 127."""
    return _clipped(stats, LAPLACE_FACTOR * stats.mean_abs / _share(stats))


def _share(stats: BlobStats) -> NDArray[np.float64]:
    """Share of the elements that are not 0; 1 where there are none."""
    return np.where(stats.absmax > 0, 1 - stats.zero_share, 1.0)


def _clipped(stats: BlobStats, threshold: NDArray[np.float64]) -> QuantParams:
    return QuantParams(np.minimum(threshold, stats.absmax) / 127)


SOLVERS = (
    BlobSolver("aciq-gauss", 4, "best clipping of a Gaussian", True, solve_gauss),
    BlobSolver("aciq-laplace", 5, "best clipping of a Laplacian", True, solve_laplace),
)
