"""Statistics of a blob, gathered while the network runs, in memory that does not grow.

`BlobStats`: one pass, exactly mergeable; the same bits whatever the order, batch size, threads or
sharding.  `ReferenceStats`: the two passes of TNN's tool, to compare with it.
"""

import math
import threading
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import histogram as kernels

_PARALLEL = threading.Lock()
"""Numba's `workqueue` threading layer aborts when two Python threads run parallel kernels."""

_UINT32_END = 2**32
_PER_UNIT = 1 << -kernels.UNIT


class BlobStats:
    """What was seen of one blob.

    Not locked: one thread at a time may `update` or `merge` it.  NaN and infinite elements are
    counted in `nonfinite` and left out of everything else.

    Parameters
    ----------
    channels : rows of statistics: the blob's channels (axis 1), or 1 for the whole tensor
    bins : of the histogram, a power of two; the largest magnitude is in the upper half of them

    Attributes
    ----------
    counts : uint32 (int64 before it could overflow) (channels, bins), finite non-zero magnitudes:
        bin i covers [i, i + 1) * bin_width
    images : items of the batches seen
    """

    def __init__(self, channels: int, bins: int = 4096) -> None:
        if channels < 1 or bins < 2 or bins & (bins - 1):
            raise ValueError(f"needs channels >= 1 and a power of two of bins: {channels}, {bins}")
        self.counts: kernels.Counts = np.zeros((channels, bins), np.uint32)
        self.images = 0
        self._exponents = np.full(channels, kernels.UNUSED, np.int64)
        self._extremes = np.empty((channels, 2), np.int32)
        self._extremes[:] = kernels.INFINITE_KEY, ~kernels.INFINITE_KEY
        self._tallies = np.zeros((channels, 3), np.int64)
        self._limbs = np.zeros((channels, 3, kernels.LIMBS), np.int64)
        self._planes = 0  # since the last carry

    @property
    def channels(self) -> int:
        """Rows of statistics."""
        return int(self.counts.shape[0])

    @property
    def bins(self) -> int:
        """Bins of each histogram."""
        return int(self.counts.shape[1])

    @staticmethod
    def row_bytes(bins: int) -> int:
        """Memory of one row of statistics with so many bins, whatever it has seen."""
        return 4 * bins + 8 + 8 + 3 * 8 + 3 * 8 * kernels.LIMBS

    def update(self, x: NDArray[np.float32], *, parallel: bool = False) -> int:
        """Fold in a batch; return how many of its elements are NaN or infinite.

        x: float32, batch first, axis 1 the channels unless there is one row of statistics.
        parallel: channels on several threads, for calls from one thread on large blobs.
        """
        if x.ndim < 1 or (self.channels > 1 and x.shape[1:2] != (self.channels,)):
            raise ValueError(f"expected {self.channels} channels on axis 1, got shape {x.shape}")
        block = _planes(x)
        batch, channels, size = block.shape
        planes = batch * channels // self.channels
        self._make_room(self.count + planes * size)
        self._planes += planes
        if self._planes >= kernels.PLANES_BEFORE_CARRY:
            self._carry()
        nonfinite = int(self._tallies[:, kernels.NONFINITE].sum())
        state = self.counts, self._exponents, self._extremes, self._tallies, self._limbs
        if parallel:
            with _PARALLEL:
                kernels.observe_parallel_into(block, *state)
        else:
            kernels.observe_into(block, *state)
        self.images += batch
        return int(self._tallies[:, kernels.NONFINITE].sum()) - nonfinite

    def merge(self, other: "BlobStats") -> None:
        """Add what another has seen of the same blob: exact, in any order and grouping."""
        if other.counts.shape != self.counts.shape:
            raise ValueError(f"cannot merge {other.counts.shape} into {self.counts.shape}")
        self._make_room(self.count + other.count)
        exponents = np.maximum(self._exponents, other._exponents)
        mine = _widened(self.counts, self._exponents, exponents)
        # not in place: the other's counts can be int64 where the sums still fit uint32
        self.counts = mine + _widened(other.counts, other._exponents, exponents)
        self._exponents = exponents
        theirs = other._extremes
        np.minimum(self._extremes[:, 0], theirs[:, 0], out=self._extremes[:, 0])
        np.maximum(self._extremes[:, 1], theirs[:, 1], out=self._extremes[:, 1])
        self._tallies += other._tallies
        self._carry()
        self._limbs += _carried(other._limbs)
        self._carry()
        self.images += other.images

    def coarsened(self, bins: int) -> "BlobStats":
        """Return the same statistics in fewer bins: the same bits as if gathered with so many."""
        steps = self.bins.bit_length() - bins.bit_length()
        if steps < 0 or bins < 2 or bins & (bins - 1):
            raise ValueError(f"{self.bins} bins cannot become {bins}")
        state = self.state()
        rows = state["counts"].reshape(self.channels, bins, -1)
        state["counts"] = rows.sum(axis=2, dtype=np.int64)
        used = self._exponents != kernels.UNUSED
        state["exponents"] = np.where(used, self._exponents + steps, self._exponents)
        return BlobStats.from_state(state)

    def per_tensor(self) -> "BlobStats":
        """Return the statistics of the whole tensor: the same bits as if gathered with one row."""
        whole = BlobStats(1, self.bins)
        whole._make_room(np.array([self.count.sum()]))
        whole._exponents[:] = self._exponents.max()
        counts = _widened(self.counts, self._exponents, np.full(self.channels, whole._exponents))
        whole.counts[0] = counts.sum(axis=0, dtype=whole.counts.dtype)
        whole._extremes[0] = self._extremes[:, 0].min(), self._extremes[:, 1].max()
        whole._tallies[0] = self._tallies.sum(axis=0)
        whole._limbs[0] = _carried(self._limbs).sum(axis=0)
        whole._carry()
        whole.images = self.images
        return whole

    @property
    def count(self) -> NDArray[np.int64]:
        """Finite elements, int64 (channels,)."""
        return self._tallies[:, kernels.COUNT].copy()

    @property
    def zero_count(self) -> NDArray[np.int64]:
        """Elements that are exactly 0, int64 (channels,)."""
        return self._tallies[:, kernels.ZEROS].copy()

    @property
    def nonfinite(self) -> NDArray[np.int64]:
        """NaN and infinite elements, int64 (channels,)."""
        return self._tallies[:, kernels.NONFINITE].copy()

    @property
    def is_empty(self) -> bool:
        """Whether no finite element was seen."""
        return not self._tallies[:, kernels.COUNT].any()

    @property
    def minimum(self) -> NDArray[np.float32]:
        """Least finite element, float32 (channels,); inf where there is none."""
        return self._decoded(0)

    @property
    def maximum(self) -> NDArray[np.float32]:
        """Greatest finite element, float32 (channels,); -inf where there is none."""
        return self._decoded(1)

    @property
    def absmax(self) -> NDArray[np.float32]:
        """Largest magnitude, float32 (channels,); 0 for a channel that was never anything else."""
        largest = np.maximum(np.abs(self.minimum), np.abs(self.maximum))
        return np.where(np.isfinite(largest), largest, np.float32(0))

    @property
    def bin_width(self) -> NDArray[np.float64]:
        """Real units a bin, float64 (channels,), a power of two; 0 where only zeros were seen."""
        used = self._exponents != kernels.UNUSED
        return np.where(used, np.exp2(np.where(used, self._exponents, 0).astype(np.float64)), 0.0)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the finite elements, float64 (channels,); 0 where there are none."""
        return self._averages(kernels.SUM)

    @property
    def mean_abs(self) -> NDArray[np.float64]:
        """Mean magnitude, float64 (channels,); 0 where there are no elements."""
        return self._averages(kernels.ABS_SUM)

    @property
    def mean_square(self) -> NDArray[np.float64]:
        """Mean square, float64 (channels,); 0 where there are no elements."""
        return self._averages(kernels.SQUARE_SUM)

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of the population, float64 (channels,); 0 where there is none."""
        found = np.zeros(self.channels)
        for row, count in enumerate(self.count.tolist()):
            total, square = self._total(row, kernels.SUM), self._total(row, kernels.SQUARE_SUM)
            # In integers, for the difference of two large floats would say nothing.
            spread = max(count * square * _PER_UNIT - total * total, 0)
            found[row] = math.sqrt(spread / max(count * _PER_UNIT, 1) ** 2)
        return found

    @property
    def zero_share(self) -> NDArray[np.float64]:
        """Share of the finite elements that are exactly 0, float64 (channels,)."""
        return self.zero_count / np.maximum(self.count, 1)

    def state(self, *, counts: bool = True) -> dict[str, NDArray[np.generic]]:
        """Return all that `from_state` needs, as arrays: equal statistics give equal arrays.

        counts: False leaves out the one large array.
        """
        state: dict[str, NDArray[np.generic]] = {"counts": self.counts.copy()} if counts else {}
        return state | {
            "exponents": self._exponents.copy(),
            "extremes": self._extremes.copy(),
            "tallies": self._tallies.copy(),
            "sums": _carried(self._limbs),
            "images": np.array([self.images], np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.generic]]) -> "BlobStats":
        """Return the statistics that `state` came from; ValueError where it is of no statistics."""
        try:
            channels, bins = state["counts"].shape
            stats = cls(channels, bins)
            expected = stats.state()
            for name, array in expected.items():
                wide = name == "counts" and state[name].dtype == np.int64
                if state[name].shape != array.shape or not (
                    wide or state[name].dtype == array.dtype
                ):
                    raise ValueError(
                        f"{name}: expected {array.dtype} {array.shape}, "
                        f"found {state[name].dtype} {state[name].shape}"
                    )
        except KeyError as error:
            raise ValueError(f"statistics without {error}") from None
        tallies = np.array(state["tallies"], np.int64)
        counts = np.array(state["counts"], np.int64)
        filled = tallies[:, kernels.COUNT] - tallies[:, kernels.ZEROS]
        if (counts.sum(axis=1) != filled).any():
            raise ValueError("counts: their sum is not the number of non-zero elements")
        fits = tallies[:, kernels.COUNT].max() < _UINT32_END
        stats.counts = counts.astype(np.uint32) if fits else counts
        stats._exponents = np.array(state["exponents"], np.int64)
        stats._extremes = np.array(state["extremes"], np.int32)
        stats._tallies = tallies
        stats._limbs = np.array(state["sums"], np.int64)
        stats.images = int(np.array(state["images"], np.int64)[0])
        return stats

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlobStats):
            return NotImplemented
        mine, theirs = self.state(), other.state()
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)

    __hash__ = None  # type: ignore[assignment]  # changes

    def __repr__(self) -> str:
        return f"BlobStats(channels={self.channels}, bins={self.bins}, images={self.images})"

    def _decoded(self, end: int) -> NDArray[np.float32]:
        bits = np.zeros(self.channels, np.int32)
        kernels.order_keys(np.ascontiguousarray(self._extremes[:, end]), bits)
        return bits.view(np.float32) + np.float32(0)  # -0 becomes 0

    def _total(self, row: int, place: int) -> int:
        """Return a sum in units of 2**kernels.UNIT."""
        limbs = self._limbs[row, place].tolist()
        return sum(int(limb) << 32 * i for i, limb in enumerate(limbs))

    def _averages(self, place: int) -> NDArray[np.float64]:
        # Python divides integers of any size with one rounding.
        return np.array(
            [
                self._total(row, place) / max(count * _PER_UNIT, 1)
                for row, count in enumerate(self.count.tolist())
            ]
        )

    def _carry(self) -> None:
        self._limbs = _carried(self._limbs)
        self._planes = 0

    def _make_room(self, counts: NDArray[np.int64]) -> None:
        if self.counts.dtype == np.uint32 and int(counts.max()) >= _UINT32_END:
            self.counts = self.counts.astype(np.int64)


def _planes(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (N, C, ...) or (N,) as contiguous (batch, channels, size)."""
    channels = x.shape[1] if x.ndim > 1 else 1
    size = math.prod(x.shape[2:])
    return np.ascontiguousarray(x, np.float32).reshape(x.shape[0], channels, size)


def _carried(limbs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the one form of these sums with limbs in [0, 2**32), the sign in the last."""
    carried = limbs.copy()
    for i in range(carried.shape[-1] - 1):
        carry = carried[..., i] >> 32
        carried[..., i] -= carry << 32
        carried[..., i + 1] += carry
    return carried


def _widened(
    counts: kernels.Counts, exponents: NDArray[np.int64], wider: NDArray[np.int64]
) -> kernels.Counts:
    """Return a copy of the counts with bins of 2**wider instead of 2**exponents."""
    copy = counts.copy()
    for row in np.flatnonzero((exponents != kernels.UNUSED) & (wider > exponents)):
        kernels.widen(copy[row], int(wider[row] - exponents[row]))
    return copy


class ReferenceStats:
    """The statistics of TNN's tool: a range, then 2048 bins over exactly that range.

    ``tools/quantization/scale_calculator.cc``.  Call `update_range` for every input, then
    `start_histogram` once, then `update_histogram` for every input.  All of it is float32 in the
    original's order: unlike `BlobStats`, the mean magnitudes depend on the order of the inputs.

    Parameters
    ----------
    channels : the blob's channels, or 1 to merge them

    Attributes
    ----------
    minimum, maximum : float32 (channels,), from 1e6 and -1e6
    mean_abs : float32 (channels,), running mean of the mean magnitudes of the samples
    samples : mean magnitudes that went into each
    elements, spatial : of one image, in all and in one channel
    counts : float32 (channels, 2048)
    per_unit : bins per real unit, float32 (channels,), 0 for a dead channel
    """

    BINS = 2048
    _DEAD = np.float32(1e-5)
    _EMPTY = np.float32(1e-7)

    def __init__(self, channels: int) -> None:
        self.minimum = np.full(channels, 1e6, np.float32)
        self.maximum = np.full(channels, -1e6, np.float32)
        self.mean_abs = np.zeros(channels, np.float32)
        self.samples = 0
        self.elements = 0
        self.spatial = 0
        self.counts: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self.per_unit: NDArray[np.float32] = np.zeros(0, np.float32)

    @property
    def channels(self) -> int:
        """Rows of statistics."""
        return int(self.minimum.size)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Channels whose largest magnitude is above 1e-5."""
        return self.absmax > self._DEAD

    @property
    def absmax(self) -> NDArray[np.float32]:
        """Largest magnitude, float32 (channels,)."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    def update_range(self, x: NDArray[np.float32]) -> None:
        """Fold the range, and the mean magnitudes of the first batch item; x: (N, C, ...)."""
        block = _planes(x)
        kernels.range_into(block, self.minimum, self.maximum)
        means = np.zeros(block.shape[1], np.float32)
        kernels.mean_magnitudes_into(block[0], means)
        self.elements, self.spatial = block.shape[1] * block.shape[2], block.shape[2]
        # One channel of one image is a sample when channels are merged.
        for group in means if self.channels == 1 else means[None]:
            total = self.mean_abs * np.float32(self.samples) + group
            self.samples += 1
            self.mean_abs = total / np.float32(self.samples)

    def start_histogram(self) -> None:
        """Fix the bins: 2048 over [0, absmax], each holding 1e-7 so that none is empty."""
        self.counts = np.full((self.channels, self.BINS), self._EMPTY, np.float32)
        self.per_unit = np.zeros(self.channels, np.float32)
        np.divide(np.float32(self.BINS), self.absmax, out=self.per_unit, where=self.valid)

    def update_histogram(self, x: NDArray[np.float32]) -> None:
        """Count the magnitudes; x: (N, C, ...)."""
        kernels.count_linear_into(_planes(x), self.per_unit, self.counts)
