"""Normalization over rows and across channels, float32 in and out, float64 sums."""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel


@kernel
def normalize_rows_into(
    x: NDArray[np.float32],
    gain: NDArray[np.float32],
    bias: NDArray[np.float32],
    epsilon: float,
    out: NDArray[np.float32],
) -> None:
    """Write (x - mean) / sqrt(variance + epsilon) * gain + bias, mean and variance of each row.

    x, out: float32 (rows, runs, size); gain, bias: float32 (period, runs): row r uses entry
    r % period, each of its runs one number.  Instance norm: period channels, 1 run.  Group norm:
    period groups, a run a channel.  Layer norm: period 1, runs of one element.
    """
    runs, size = x.shape[1], x.shape[2]
    for row in range(x.shape[0]):
        total = 0.0
        for run in range(runs):
            for i in range(size):
                total += np.float64(x[row, run, i])
        mean = total / (runs * size)
        square = 0.0
        for run in range(runs):
            for i in range(size):
                square += (np.float64(x[row, run, i]) - mean) ** 2
        factor = 1.0 / math.sqrt(square / (runs * size) + epsilon)
        for run in range(runs):
            scale = factor * float(gain[row % gain.shape[0], run])
            shift = float(bias[row % gain.shape[0], run]) - mean * scale
            for i in range(size):
                out[row, run, i] = np.float64(x[row, run, i]) * scale + shift


@kernel
def local_response_into(
    x: NDArray[np.float32],
    reach: int,
    alpha: float,
    beta: float,
    bias: float,
    out: NDArray[np.float32],
) -> None:
    """Write x / (bias + alpha * sum of squares of the channels c - reach .. c + reach) ** beta.

    x, out: float32 (n, channels, size).
    """
    channels = x.shape[1]
    for n in range(x.shape[0]):
        for c in range(channels):
            for i in range(x.shape[2]):
                square = 0.0
                for other in range(max(c - reach, 0), min(c + reach + 1, channels)):
                    square += np.float64(x[n, other, i]) ** 2
                out[n, c, i] = np.float64(x[n, c, i]) / math.pow(bias + alpha * square, beta)
