"""Asymmetric min-max: the range from the least to the largest value, with a zero point."""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels.weights import asymmetric_weights_into
from quantjit.quant import QuantParams
from quantjit.solvers import BlobSolver, WeightCodes, WeightSolver
from quantjit.stats import BlobStats


def solve(stats: BlobStats) -> QuantParams:
    """Return (max - min) / 254 and the zero point that puts max at code 127.

    The range is widened to hold 0, which then is a code.
    """
    lowest = np.minimum(stats.minimum, 0).astype(np.float64)
    highest = np.maximum(stats.maximum, 0).astype(np.float64)
    scale = np.where(stats.absmax > 0, (highest - lowest) / 254, 0)
    live = scale.astype(np.float32) > 0
    steps = np.divide(highest, scale, out=np.zeros_like(scale), where=live)
    zero_point = np.where(live, 127 - np.floor(steps + 0.5), 0)
    return QuantParams(scale, zero_point)


def quantize(weights: NDArray[np.float32], compat: bool) -> WeightCodes:
    """Quantize each row over its range as TNN's tool does, in either mode."""
    del compat
    made = WeightCodes.empty(weights)
    asymmetric_weights_into(weights, made.codes, made.scale, made.zero_point)
    return made


SOLVERS = (
    BlobSolver("asymmetric", 3, "the whole range, with a zero point", False, solve),
    WeightSolver("asymmetric", 3, "the whole range, with a zero point", False, quantize),
)
