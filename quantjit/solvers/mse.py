"""MSE: the threshold, or the step of weights, with the least squared error."""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels.mse import search_squared_error_into
from quantjit.kernels.weights import least_squares_weights_into
from quantjit.quant import QuantParams
from quantjit.solvers import BlobSolver, WeightCodes, WeightSolver
from quantjit.stats import BlobStats


def threshold(stats: BlobStats, codes: int) -> NDArray[np.float64]:
    """Return the threshold that minimizes rounding plus clipping error over the histogram.

    codes: steps from 0 to the threshold.  The best of all bin edges and absmax, the values of a bin
    lying evenly over it; `quantjit.kernels.mse` has the model.
    """
    width = stats.bin_width
    in_bins = np.zeros(stats.channels)
    np.divide(stats.absmax, width, out=in_bins, where=width > 0)
    found = np.zeros(stats.channels)
    search_squared_error_into(stats.counts, in_bins, codes, found)
    kept: NDArray[np.float64] = found * width
    return kept


def solve(stats: BlobStats) -> QuantParams:
    """Return the step of least squared error, threshold / 127."""
    return QuantParams(threshold(stats, 127) / 127)


def quantize(weights: NDArray[np.float32], compat: bool) -> WeightCodes:
    """Quantize each row with the step of least squared error of all; TNN has no such method."""
    del compat
    made = WeightCodes.empty(weights)
    least_squares_weights_into(weights, made.codes, made.scale)
    return made


SOLVERS = (
    BlobSolver("mse", None, "least squared error", True, solve, threshold),
    WeightSolver("mse", None, "least squared error", True, quantize),
)
