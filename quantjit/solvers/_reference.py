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
    CalibrationError naming the blob where the original fails: a blob of one scale that is all 0.
    """
    if stats.channels == 1 and not stats.valid[0]:
        raise CalibrationError(blob, "is all zero, for which TNN's tool has no scale")
    if method == "asymmetric":
        return _asymmetric(stats, blob)
    if stats.spatial < _FEW_PIXELS:
        method = "minmax"
    try:
        scale = _METHODS[method](stats)
    except KeyError:
        known = [*_METHODS, "asymmetric"]
        raise UnsupportedError("blob method of TNN's tool", method, known) from None
    return QuantParams(np.where(stats.valid, scale, np.float32(0)))


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
    elements = stats.elements if stats.channels == 1 else stats.spatial
    spread = 0.5 * 0.35 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(elements))
    std = stats.absmax * np.float32(2 * spread)
    return np.float32(GAUSS_FACTOR) * std / _CODES


def _aciq_laplace(stats: ReferenceStats) -> Floats:
    return np.float32(LAPLACE_FACTOR) * stats.mean_abs / _CODES


def _asymmetric(stats: ReferenceStats, blob: str) -> QuantParams:
    lowest = np.minimum(stats.minimum, np.float32(0))
    highest = np.maximum(stats.maximum, np.float32(0))
    scale = (highest - lowest) / np.float32(254)
    if stats.channels == 1 and scale[0] == 0:
        raise CalibrationError(blob, "is constant, for which TNN's tool has no asymmetric scale")
    live = stats.valid & (scale > 0)
    steps = np.divide(highest, scale, out=np.zeros_like(scale), where=live)
    zero_point = np.where(live, 127 - np.floor(steps + np.float32(0.5)), 0)
    return QuantParams(np.where(live, scale, np.float32(0)), zero_point)


_METHODS: dict[str, Callable[[ReferenceStats], Floats]] = {
    "minmax": _minmax,
    "kl": _kl,
    "aciq-gauss": _aciq_gauss,
    "aciq-laplace": _aciq_laplace,
}
