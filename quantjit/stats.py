"""Statistics of a blob, gathered while the network runs, in memory that does not grow.

`BlobStats`: one pass, exactly mergeable; the same bits whatever the order, batch size, threads or
sharding.  `ReferenceStats`: the two passes of TNN's tool, to compare with it.
"""

import threading

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import histogram as kernels

_PARALLEL = threading.Lock()
"""Numba's `workqueue` threading layer aborts when two Python threads run parallel kernels."""

_UINT32_END = 2**32


class BlobStats:
    """What was seen of one blob.

    Parameters
    ----------
    channels : rows of statistics: the blob's channels (axis 1), or 1 for the whole tensor
    bins : of the histogram, a power of two; at least half of them are in use

    Attributes
    ----------
    minimum, maximum : float32 (channels,), of finite elements; inf and -inf when there are none
    counts : uint32 (int64 once it could overflow) (channels, bins), non-zero finite magnitudes
    bin_width : float64 (channels,), a power of two; 0 where only zeros were seen
    count, zeros, nonfinite : int64 (channels,), finite, zero and NaN or infinite elements
    images : items of the batches seen
    """

    def __init__(self, channels: int, bins: int = 4096) -> None:
        if channels < 1 or bins < 2 or bins & (bins - 1):
            raise ValueError(f"needs channels >= 1 and a power of two of bins: {channels}, {bins}")
        self.counts: NDArray[np.uint32] = np.zeros((channels, bins), np.uint32)
        self.minimum = np.full(channels, np.inf, np.float32)
        self.maximum = np.full(channels, -np.inf, np.float32)
        self.images = 0
        self._exponents = np.full(channels, kernels.UNUSED, np.int64)
        self._tallies = np.zeros((channels, 4), np.int64)
        self._limbs = np.zeros((channels, 9), np.int64)

    @property
    def channels(self) -> int:
        """Rows of statistics."""
        return int(self.counts.shape[0])

    @property
    def bins(self) -> int:
        """Bins of each histogram."""
        return int(self.counts.shape[1])

    def update(self, x: NDArray[np.float32], *, parallel: bool = False) -> None:
        """Fold in a batch.

        x: float32, batch first, axis 1 the channels unless there is one row of statistics.
        parallel: channels on several threads, for calls from one thread on large blobs.
        """
        batch = x.shape[0]
        if self.channels > 1 and (x.ndim < 2 or x.shape[1] != self.channels):
            raise ValueError(f"expected {self.channels} channels on axis 1, got shape {x.shape}")
        block = np.ascontiguousarray(x, np.float32).reshape(batch, self.channels, -1)
        self._make_room(self.count + block.shape[0] * block.shape[2])
        state = (self.counts, self._exponents, self.minimum, self.maximum)
        if parallel:
            with _PARALLEL:
                kernels.observe_parallel_into(block, *state, self._tallies, self._limbs)
        else:
            kernels.observe_into(block, *state, self._tallies, self._limbs)
        self.images += batch

    def merge(self, other: "BlobStats") -> None:
        """Add what another has seen of the same blob; exact, in any order."""
        if other.counts.shape != self.counts.shape:
            raise ValueError(f"cannot merge {other.counts.shape} into {self.counts.shape}")
        self._make_room(self.count + other.count)
        exponents = np.maximum(self._exponents, other._exponents)
        self._widen_to(exponents)
        self.counts += other._counts_at(exponents)
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)
        overflowed = self._overflowed | other._overflowed
        self._tallies += other._tallies
        self._tallies[:, kernels.OVERFLOWED] = overflowed
        self._limbs += other._limbs
        self.images += other.images

    def per_tensor(self) -> "BlobStats":
        """Return the statistics of the whole tensor.

        Exactly those of having gathered them with one row, but for the sums, which are made
        channel by channel.
        """
        whole = BlobStats(1, self.bins)
        whole._make_room(np.array([self.count.sum()]))
        exponents = np.full(self.channels, self._exponents.max(), np.int64)
        whole._exponents[:] = exponents[0]
        whole.counts += self._counts_at(exponents).sum(axis=0, dtype=whole.counts.dtype)
        whole.minimum[:] = self.minimum.min()
        whole.maximum[:] = self.maximum.max()
        whole._tallies[0] = self._tallies.sum(axis=0)
        whole._tallies[0, kernels.OVERFLOWED] = self._overflowed.any()
        whole._limbs[0] = self._limbs.sum(axis=0)
        whole.images = self.images
        return whole

    @property
    def count(self) -> NDArray[np.int64]:
        """Finite elements, int64 (channels,)."""
        return self._tallies[:, kernels.COUNT].copy()

    @property
    def zeros(self) -> NDArray[np.int64]:
        """Elements that are exactly 0, int64 (channels,)."""
        return self._tallies[:, kernels.ZEROS].copy()

    @property
    def nonfinite(self) -> NDArray[np.int64]:
        """NaN and infinite elements, int64 (channels,); they are left out of everything else."""
        return self._tallies[:, kernels.NONFINITE].copy()

    @property
    def is_empty(self) -> bool:
        """Whether no finite element was seen."""
        return not self._tallies[:, kernels.COUNT].any()

    @property
    def absmax(self) -> NDArray[np.float32]:
        """Largest magnitude, float32 (channels,); 0 for a channel that was never anything else."""
        largest = np.maximum(np.abs(self.minimum), np.abs(self.maximum))
        return np.where(np.isfinite(largest), largest, np.float32(0))

    @property
    def bin_width(self) -> NDArray[np.float64]:
        """Real units a bin, float64 (channels,)."""
        used = self._exponents != kernels.UNUSED
        return np.where(used, np.exp2(np.where(used, self._exponents, 0).astype(np.float64)), 0.0)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the finite elements, float64 (channels,); 0 where there are none."""
        return self._average(kernels.SUM)

    @property
    def mean_abs(self) -> NDArray[np.float64]:
        """Mean magnitude, float64 (channels,)."""
        return self._average(kernels.ABS_SUM)

    @property
    def mean_square(self) -> NDArray[np.float64]:
        """Mean square, float64 (channels,)."""
        return self._average(kernels.SQUARE_SUM)

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation, float64 (channels,)."""
        return np.sqrt(np.maximum(self.mean_square - self.mean**2, 0.0))

    @property
    def zero_share(self) -> NDArray[np.float64]:
        """Share of the finite elements that are exactly 0, float64 (channels,)."""
        return self.zeros / np.maximum(self.count, 1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlobStats):
            return NotImplemented
        return self.images == other.images and all(
            np.array_equal(mine, theirs)
            for mine, theirs in (
                (self.counts, other.counts),
                (self.minimum, other.minimum),
                (self.maximum, other.maximum),
                (self._exponents, other._exponents),
                (self._tallies, other._tallies),
                (self._limbs, other._limbs),
            )
        )

    __hash__ = None  # type: ignore[assignment]  # changes

    @property
    def _overflowed(self) -> NDArray[np.bool_]:
        return self._tallies[:, kernels.OVERFLOWED] > 0

    def _average(self, place: int) -> NDArray[np.float64]:
        units = np.array([1.0, 1 / kernels.LIMB, 1 / kernels.LIMB**2])
        total = (self._limbs[:, place : place + 3] * units).sum(axis=1)
        average = total / np.maximum(self.count, 1)
        return np.where(self._overflowed, np.inf, average)

    def _make_room(self, counts: NDArray[np.int64]) -> None:
        if self.counts.dtype == np.uint32 and int(counts.max()) >= _UINT32_END:
            self.counts = self.counts.astype(np.int64)

    def _widen_to(self, exponents: NDArray[np.int64]) -> None:
        for channel in range(self.channels):
            if self._exponents[channel] != kernels.UNUSED:
                kernels.widen(
                    self.counts[channel], int(exponents[channel] - self._exponents[channel])
                )
        self._exponents = exponents.copy()

    def _counts_at(self, exponents: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the counts at wider bins."""
        copy = BlobStats(self.channels, self.bins)
        copy.counts, copy._exponents = self.counts.copy(), self._exponents.copy()
        copy._widen_to(exponents)
        return copy.counts


class ReferenceStats:
    """The statistics of TNN's tool: a range, then 2048 bins over exactly that range.

    ``tools/quantization/scale_calculator.cc``.  Call `update_range` for every input, then
    `start_histogram` once, then `update_histogram` for every input.

    Parameters
    ----------
    channels : the blob's channels, or 1 to merge them
    """

    BINS = 2048
    _DEAD = np.float32(1e-5)

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
        block = self._block(x)
        kernels.range_into(block, self.minimum, self.maximum)
        means = np.zeros(block.shape[1], np.float32)
        kernels.mean_magnitudes_into(block[0], means)
        self.elements, self.spatial = block.shape[1] * block.shape[2], block.shape[2]
        for group in means if self.channels == 1 else means[None]:
            # One channel of one image is a sample when channels are merged.
            self.samples += 1
            self.mean_abs += (group - self.mean_abs) / np.float32(self.samples)

    def start_histogram(self) -> None:
        """Fix the bins: 2048 over [0, absmax], each holding 1e-7 so that none is empty."""
        self.counts = np.full((self.channels, self.BINS), 1e-7, np.float32)
        self.per_unit = np.zeros(self.channels, np.float32)
        np.divide(np.float32(self.BINS), self.absmax, out=self.per_unit, where=self.valid)

    def update_histogram(self, x: NDArray[np.float32]) -> None:
        """Count the magnitudes; x: (N, C, ...)."""
        kernels.count_linear_into(self._block(x), self.per_unit, self.counts)

    @staticmethod
    def _block(x: NDArray[np.float32]) -> NDArray[np.float32]:
        channels = x.shape[1] if x.ndim > 1 else 1
        return np.ascontiguousarray(x, np.float32).reshape(x.shape[0], channels, -1)
