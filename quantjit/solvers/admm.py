"""ADMM: codes and step in turn, each the best for the other (Leng et al., AAAI 2018)."""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import weights as kernels
from quantjit.solvers import WeightCodes, WeightSolver


def quantize(weights: NDArray[np.float32], compat: bool) -> WeightCodes:
    """Quantize each row at the fixed point; compat: TNN's float32 rounds, codes a step behind."""
    made = WeightCodes.empty(weights)
    if compat:
        kernels.admm_weights_reference_into(weights, made.codes, made.scale)
    else:
        kernels.admm_weights_into(weights, made.codes, made.scale)
    return made


SOLVERS = (WeightSolver("admm", 1, "alternating codes and step", True, quantize),)
