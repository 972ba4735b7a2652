"""Reductions over the middle axis, float32 in and out, float64 accumulators in a fixed order."""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel

MEAN, MAX, MIN, SUM, PROD, L1, L2, LOG_SUM, LOG_SUM_EXP, SUM_SQUARE = range(10)
"""Codes of `reduce_into`."""


@kernel
def reduce_into(
    op: int, x: NDArray[np.float32], work: NDArray[np.float64], out: NDArray[np.float32]
) -> None:
    """Reduce axis 1.

    op: one of the codes above.  x: float32 (outer, reduced, inner), reduced > 0; work: float64
    (2, inner), scratch; out: float32 (outer, inner).
    """
    total, largest = work[0], work[1]
    count = x.shape[1]
    for n in range(x.shape[0]):
        for i in range(total.size):
            largest[i] = x[n, 0, i]
            total[i] = x[n, 0, i] if op in (MAX, MIN) else (1.0 if op == PROD else 0.0)
        if op == LOG_SUM_EXP:  # log(sum(exp(x))) = m + log(sum(exp(x - m))) does not overflow
            for r in range(1, count):
                for i in range(total.size):
                    largest[i] = max(largest[i], np.float64(x[n, r, i]))
        for r in range(count):
            for i in range(total.size):
                value = np.float64(x[n, r, i])
                if op == MAX:
                    total[i] = value if value > total[i] else total[i]
                elif op == MIN:
                    total[i] = value if value < total[i] else total[i]
                elif op == PROD:
                    total[i] *= value
                elif op == L1:
                    total[i] += abs(value)
                elif op in (L2, SUM_SQUARE):
                    total[i] += value * value
                elif op == LOG_SUM_EXP:
                    total[i] += math.exp(value - largest[i])
                else:
                    total[i] += value
        for i in range(total.size):
            if op == MEAN:
                out[n, i] = total[i] / count
            elif op == L2:
                out[n, i] = math.sqrt(total[i])
            elif op == LOG_SUM:
                out[n, i] = math.log(total[i])
            elif op == LOG_SUM_EXP:
                out[n, i] = largest[i] + math.log(total[i])
            else:
                out[n, i] = total[i]
