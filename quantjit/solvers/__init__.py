"""Blob and weight methods, one file each; the registries are filled by discovering the files.

A file defines ``SOLVERS``, a tuple of `BlobSolver` and `WeightSolver` values.  Statistics are
gathered once (`quantjit.stats.BlobStats`); every blob solver reads the same evidence.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from quantjit.quant import QuantParams
from quantjit.stats import BlobStats, ReferenceStats


@dataclass(frozen=True, slots=True)
class BlobSolver:
    """Decides the scales of one blob.

    name: on the command line.  number: TNN's own number of the method, None where it has none.
    summary: one line of help.  symmetric: whether zero points are all 0.
    solve(stats) -> QuantParams with as many scales as the statistics have channels.
    threshold(stats, codes) -> float64 (channels,): the largest magnitude that is kept when `codes`
    steps reach from 0 to it; None where that does not depend on their number.
    """

    name: str
    number: int | None
    summary: str
    symmetric: bool
    solve: Callable[[BlobStats], QuantParams]
    threshold: Callable[[BlobStats, int], NDArray[np.float64]] | None = None


@dataclass(frozen=True, slots=True)
class WeightCodes:
    """Quantized weights: codes int8 (rows, columns); scale float32 and zero_point int8 (rows,)."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int8]

    @classmethod
    def empty(cls, weights: NDArray[np.float32]) -> "WeightCodes":
        """Return all-zero codes for these weights, to be filled by a kernel."""
        rows = weights.shape[0]
        return cls(
            np.zeros(weights.shape, np.int8), np.zeros(rows, np.float32), np.zeros(rows, np.int8)
        )


@dataclass(frozen=True, slots=True)
class WeightSolver:
    """Decides scales and codes of weights.

    quantize(weights float32 (rows, columns), compat) -> WeightCodes, one scale a row; a scale for
    the whole tensor is asked for by passing one row.  compat: reproduce TNN's tool to the bit.
    """

    name: str
    number: int | None
    summary: str
    symmetric: bool
    quantize: Callable[[NDArray[np.float32], bool], WeightCodes]


@cache
def _discovered() -> tuple[BlobSolver | WeightSolver, ...]:
    return tuple(
        solver
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
        for solver in importlib.import_module(f"{__name__}.{module.name}").SOLVERS
    )


def solve_reference(stats: ReferenceStats, method: str, blob: str) -> QuantParams:
    """Return the scales of TNN's tool for one blob; see `quantjit.solvers._reference`."""
    from quantjit.solvers import _reference

    return _reference.solve_reference(stats, method, blob)


@cache
def blob_solvers() -> Mapping[str, BlobSolver]:
    """All blob methods by name."""
    return MappingProxyType({s.name: s for s in _discovered() if isinstance(s, BlobSolver)})


@cache
def weight_solvers() -> Mapping[str, WeightSolver]:
    """All weight methods by name."""
    return MappingProxyType({s.name: s for s in _discovered() if isinstance(s, WeightSolver)})
