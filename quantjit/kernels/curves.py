"""Elementwise functions that exported networks use beside TNN's own, float32."""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel

MISH, GELU_ERF, SCALED_SWISH, SELU, CELU, SOFTSIGN, THRESHOLDED_RELU = range(7)
"""Codes of `curve_into`."""

SMALLEST_EXPONENT = -700.0  # exp of less is 0 in float64, of its negative nearly infinite


@kernel
def curve_into(
    op: int, x: NDArray[np.float32], alpha: float, beta: float, out: NDArray[np.float32]
) -> None:
    """Write a function of x, computed in float64 and rounded once.

    op: one of the codes above.  x, out: float32 (n,).  MISH: x * tanh(log(1 + exp(x))).  GELU_ERF:
    x * (1 + erf(x / sqrt(2))) / 2.  SCALED_SWISH: x / (1 + exp(-alpha * x)).  SELU: beta * x, or
    beta * alpha * (exp(x) - 1) below 0.  CELU: x, or alpha * (exp(x / alpha) - 1) below 0.
    SOFTSIGN: x / (1 + |x|).  THRESHOLDED_RELU: x where x > alpha, else 0.
    """
    for i in range(out.size):
        value = np.float64(x[i])
        if op == MISH:
            softplus = max(value, 0.0) + math.log1p(math.exp(-abs(value)))
            out[i] = value * math.tanh(softplus)
        elif op == GELU_ERF:
            out[i] = 0.5 * value * (1.0 + math.erf(value * 0.7071067811865476))
        elif op == SCALED_SWISH:
            exponent = max(alpha * value, SMALLEST_EXPONENT)
            out[i] = value / (1.0 + math.exp(-exponent))
        elif op == SELU:
            out[i] = beta * value if value > 0 else beta * alpha * math.expm1(value)
        elif op == CELU:
            out[i] = value if value > 0 else alpha * math.expm1(value / alpha)
        elif op == SOFTSIGN:
            out[i] = value / (1.0 + abs(value))
        else:
            out[i] = value if value > alpha else 0.0
