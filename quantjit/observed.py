"""What was seen of a blob, of either kind of statistics, and what a scale keeps of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantjit.graph import Graph
from quantjit.quant import QuantParams
from quantjit.stats import BlobStats, ReferenceStats

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of a blob; every array has a row a channel, or one for the whole tensor.

    counts: magnitudes by bins that are `width` real units wide; values: how many there were.
    mean, std, zero_share: NaN where the statistics are those of TNN's tool, which has no zeros.
    """

    minimum: Floats
    maximum: Floats
    mean: Floats
    std: Floats
    zero_share: Floats
    counts: NDArray[Any]
    width: Floats
    values: Floats

    @classmethod
    def of(cls, seen: BlobStats | ReferenceStats) -> "Evidence":
        """Return the evidence of either kind of statistics."""
        low, high = seen.minimum.astype(np.float64), seen.maximum.astype(np.float64)
        if isinstance(seen, BlobStats):
            width, values = seen.bin_width, seen.count.astype(np.float64)
            return cls(low, high, seen.mean, seen.std, seen.zero_share, seen.counts, width, values)
        unknown = np.full(seen.channels, np.nan)
        width = np.zeros(seen.channels)
        np.divide(1, seen.per_unit, out=width, where=seen.per_unit > 0)
        values = seen.counts.sum(axis=1, dtype=np.float64)
        return cls(low, high, unknown, unknown, unknown, seen.counts, width, values)

    @property
    def absmax(self) -> Floats:
        """Largest magnitude, float64 (rows,)."""
        largest = np.maximum(np.abs(self.minimum), np.abs(self.maximum))
        return np.where(np.isfinite(largest), largest, 0.0)

    def below(self, magnitudes: Floats) -> Floats:
        """Return how many values of all rows are below each magnitude, but for zeros.

        Values of a bin are taken to lie evenly over it, of the last one up to the largest.
        """
        found = np.zeros_like(magnitudes)
        for counts, width, largest in zip(self.counts, self.width, self.absmax, strict=True):
            used = int(np.flatnonzero(counts).max(initial=-1)) + 1
            if not used or not width:
                continue
            ends = np.arange(used + 1) * width
            ends[-1] = max(largest, ends[-2])
            totals = np.concatenate([[0.0], np.cumsum(counts[:used], dtype=np.float64)])
            found += np.interp(magnitudes, ends, totals)
        return found

    def clipped_share(self, thresholds: Floats) -> Floats:
        """Share of the values whose magnitude is above a threshold a row, float64 (rows,).

        Values of a bin are taken to lie evenly over it, of the last one up to the largest.
        """
        edges = np.arange(self.counts.shape[1]) * self.width[:, None]
        ends = np.minimum(edges + self.width[:, None], self.absmax[:, None])
        spans = np.maximum(ends - edges, 0)
        above = np.zeros_like(edges)
        np.divide(ends - thresholds[:, None], spans, out=above, where=spans > 0)
        clipped = (self.counts * np.clip(above, 0, 1)).sum(axis=1)
        share: Floats = np.where(self.values > 0, clipped / np.maximum(self.values, 1), 0.0)
        return share


def kept_range(params: QuantParams, lowest_code: int) -> tuple[Floats, Floats]:
    """Return what the lowest and the highest code stand for, float64 (scales,) each."""
    steps, zeros = params.scale.astype(np.float64), params.zero_point.astype(np.float64)
    return steps * (lowest_code - zeros), steps * (127 - zeros)


def lowest_code(quantized: Graph) -> int:
    """Return the lowest code of blobs: -128 for ONNX, -127 for TNN."""
    return -128 if quantized.is_onnx else -127


def whole(seen: BlobStats | ReferenceStats) -> BlobStats | ReferenceStats | None:
    """Return the statistics of the whole tensor; None where they cannot be made."""
    if isinstance(seen, BlobStats):
        return seen.per_tensor() if seen.channels > 1 else seen
    return seen if seen.channels == 1 and seen.valid.all() else None
