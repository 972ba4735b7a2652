"""The scales of TNN's tool from its own statistics, float32 operation by operation.

``tools/quantization/scale_calculator.cc``.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import CalibrationError, UnsupportedError
from quantjit.kernels.divergence import search_reference_into
from quantjit.quant import QuantParams
from quantjit.solvers.aciq import GAUSS_FACTOR, LAPLACE_FACTOR
from quantjit.stats import ReferenceStats

_FEW_PIXELS = 100
_CODES = np.float32(127)
Floats = NDArray[np.float32]


def solve_reference(stats: ReferenceStats, method: str, blob: str) -> QuantParams:
    """Return the scales that the original decides, 0 for a dead channel.

    Blobs of fewer than 100 pixels keep their whole range, except asymmetrically.  Raises
    CalibrationError naming the blob that was never seen, and, as the original fails there, one of
    a single scale that is never above 1e-5.
    """
    if not stats.samples:
        raise CalibrationError(blob, "was never seen")
    if stats.channels == 1 and not stats.valid[0]:
        raise CalibrationError(blob, "is never above 1e-5, for which TNN's tool has no scale")
    if method == "asymmetric":
        return _asymmetric(stats)
    if method not in _METHODS:
        known = [*_METHODS, "asymmetric"]
        raise UnsupportedError("blob method of TNN's tool", method, known)
    decide = _minmax if stats.spatial < _FEW_PIXELS else _METHODS[method]
    return QuantParams(np.where(stats.valid, decide(stats), np.float32(0)))


def _at_bin(stats: ReferenceStats, bins: NDArray[np.int64]) -> Floats:
    """Scale of a threshold in the middle of a bin; the one place where the original uses double."""
    per_unit = np.where(stats.valid, stats.per_unit, np.float32(1)).astype(np.float64)
    return ((bins + 0.5) / per_unit / 127).astype(np.float32)


def _minmax(stats: ReferenceStats) -> Floats:
    return _at_bin(stats, np.full(stats.channels, stats.BINS - 1))


def _kl(stats: ReferenceStats) -> Floats:
    bins = np.zeros(stats.channels, np.int64)
    search_reference_into(stats.counts, stats.valid, bins)
    return _at_bin(stats, bins)


def _aciq_gauss(stats: ReferenceStats) -> Floats:
    """Gaussian whose largest of so many values is absmax: float32 only at either end."""
    elements = stats.elements if stats.channels == 1 else stats.spatial
    spread = 0.5 * 0.35 * (1 + math.sqrt(math.pi * math.log(4)))
    std = stats.absmax.astype(np.float64) * 2 * spread / math.sqrt(2 * math.log(elements))
    return (float(np.float32(GAUSS_FACTOR)) * std).astype(np.float32) / _CODES


def _aciq_laplace(stats: ReferenceStats) -> Floats:
    return np.float32(LAPLACE_FACTOR) * stats.mean_abs / _CODES


def _asymmetric(stats: ReferenceStats) -> QuantParams:
    lowest = np.minimum(stats.minimum, np.float32(0))
    highest = np.maximum(stats.maximum, np.float32(0))
    scale = np.where(stats.valid, (highest - lowest) / np.float32(254), np.float32(0))
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=stats.valid)
    # highest >= 0: half away from zero is half up; in float64 the addition is exact
    steps = np.floor((highest * inverse).astype(np.float64) + 0.5)
    return QuantParams(scale, np.where(stats.valid, 127 - steps, 0))


_METHODS: dict[str, Callable[[ReferenceStats], Floats]] = {
    "minmax": _minmax,
    "kl": _kl,
    "aciq-gauss": _aciq_gauss,
    "aciq-laplace": _aciq_laplace,
}
