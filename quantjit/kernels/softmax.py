"""Softmax and log-softmax over the middle axis, float32."""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel


@kernel
def softmax_into(
    x: NDArray[np.float32], is_log: bool, work: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Write exp(x) over its sum along axis 1, or its logarithm.

    x, out: float32 (outer, channels, inner); work: float32 (2, inner), scratch.  As TNN's
    ``CpuSoftMaxLayerAcc``: sums in channel order, times the reciprocal of the sum.  The logarithm
    is x - max - log(sum), where TNN takes the log of the rounded quotient (-inf on underflow).
    """
    largest, total = work[0], work[1]
    for n in range(x.shape[0]):
        largest[:] = x[n, 0]
        for c in range(1, x.shape[1]):
            line = x[n, c]
            for i in range(line.size):
                largest[i] = line[i] if line[i] > largest[i] else largest[i]
        total[:] = 0
        for c in range(x.shape[1]):
            for i in range(total.size):
                shifted = x[n, c, i] - largest[i]
                power = np.float32(math.exp(float(shifted)))
                out[n, c, i] = shifted if is_log else power
                total[i] += power
        for i in range(total.size):
            total[i] = math.log(float(total[i])) if is_log else np.float32(1) / total[i]
        for c in range(x.shape[1]):
            row = out[n, c]
            if is_log:
                for i in range(row.size):
                    row[i] -= total[i]
            else:
                for i in range(row.size):
                    row[i] *= total[i]
