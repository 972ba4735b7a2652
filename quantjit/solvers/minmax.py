"""Min-max: nothing is clipped."""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import weights as kernels
from quantjit.quant import QuantParams
from quantjit.solvers import BlobSolver, WeightCodes, WeightSolver
from quantjit.stats import BlobStats


def solve(stats: BlobStats) -> QuantParams:
    """Return absmax / 127 for each channel."""
    return QuantParams(stats.absmax.astype(np.float64) / 127)


def quantize(weights: NDArray[np.float32], compat: bool) -> WeightCodes:
    """Quantize each row with the step absmax / 127; compat: by TNN's reciprocal."""
    made = WeightCodes.empty(weights)
    if compat:
        kernels.absmax_weights_reference_into(weights, made.codes, made.scale)
    else:
        kernels.absmax_weights_into(weights, made.codes, made.scale)
    return made


SOLVERS = (
    BlobSolver("minmax", 0, "the whole range", True, solve),
    WeightSolver("minmax", 0, "the whole range", True, quantize),
)
