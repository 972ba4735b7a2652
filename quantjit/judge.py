"""The judge of a search: one float network, a few inputs in memory, and int8 networks beside it.

The float outputs are computed once.  Int8 networks then run by themselves, without looking at their
blobs, so that a trial costs little more than its forward passes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantjit import metrics
from quantjit.dataset import Sample
from quantjit.errors import DataError, UsageError
from quantjit.executor import Executor
from quantjit.flow import cores
from quantjit.graph import Graph
from quantjit.kernels import compare
from quantjit.passes.lower import lower


@dataclass(frozen=True, slots=True)
class Score:
    """How close an int8 network is to the float one over some inputs.

    sqnr: dB over all outputs together.  agreement: share of rows with the same top-1, None without
    a classifying output.  top1, float_top1: share right, None without labels.  images: inputs.
    """

    sqnr: float
    agreement: float | None
    top1: float | None
    float_top1: float | None
    images: int


@dataclass(frozen=True, slots=True)
class Tally:
    """What runs on some inputs add up to; inputs are counted in order, each once.

    sums: float64 (5,), see `quantjit.kernels.compare`.  top1: class indices, one a row.
    """

    sums: NDArray[np.float64]
    top1: tuple[int, ...]
    images: int

    @classmethod
    def empty(cls) -> "Tally":
        """Return the tally of no input."""
        return cls(np.zeros(5, np.float64), (), 0)


@dataclass(frozen=True, slots=True)
class _Expected:
    outputs: Mapping[str, NDArray[np.float32]]
    top1: tuple[int, ...]
    labels: tuple[int, ...]


class Judge:
    """Measures int8 networks against a float one on inputs that stay in memory.

    Parameters
    ----------
    graph : the float network, or one with the same outputs
    samples : the inputs, each with as many rows as the network takes
    labels : class index by file name; every input must be in it
    jobs : threads, by default one a core

    Several threads may measure at once: nothing of it changes once it is made.
    """

    def __init__(
        self,
        graph: Graph,
        samples: Sequence[Sample],
        labels: Mapping[str, int] | None = None,
        *,
        jobs: int | None = None,
    ) -> None:
        if not samples:
            raise DataError("held-out inputs", "there are none")
        self.samples = tuple(samples)
        self.jobs = jobs or cores()
        self._outputs = graph.outputs
        lowered = lower(graph)
        self._classes = metrics.classifying_output(lowered, Executor(lowered).shapes)
        self._is_labelled = labels is not None and self._classes is not None
        rows = [_label(labels, sample.file) for sample in samples] if labels is not None else []
        self._expected = list(self._run_float(lowered, rows))

    def __len__(self) -> int:
        return len(self.samples)

    def _run_float(self, lowered: Graph, rows: Sequence[int]) -> Iterator[_Expected]:
        with ThreadPoolExecutor(self.jobs) as pool:
            parts = [range(start, len(self), self.jobs) for start in range(self.jobs)]

            def work(part: range) -> list[tuple[int, dict[str, NDArray[np.float32]]]]:
                executor = Executor(lowered)
                return [(index, executor.run(self.samples[index].arrays)) for index in part]

            made = dict(item for part in pool.map(work, parts) for item in part)
        for index in range(len(self)):
            outputs = made[index]
            best = () if self._classes is None else metrics.top1(outputs[self._classes])
            labels = (rows[index],) * len(best) if rows else ()
            yield _Expected(outputs, best, labels)

    def measure(
        self, quantized: Graph, stop: int | None = None, start: Tally | None = None
    ) -> Tally:
        """Run an int8 network on the inputs from where `start` ends up to `stop`, and add up."""
        tally = start or Tally.empty()
        stop = len(self) if stop is None else min(stop, len(self))
        if tally.images >= stop:
            return tally
        executor = Executor(lower(quantized))
        total, best = tally.sums.copy(), list(tally.top1)
        for index in range(tally.images, stop):
            expected = self._expected[index]
            found = executor.run(self.samples[index].arrays)
            for name in self._outputs:
                sums = np.zeros(5, np.float64)
                compare.compare_float_into(
                    expected.outputs[name].ravel(), found[name].ravel(), sums
                )
                largest = max(total[compare.LARGEST], sums[compare.LARGEST])
                total += sums
                total[compare.LARGEST] = largest
            if self._classes is not None:
                best += metrics.top1(found[self._classes])
        return Tally(total, tuple(best), stop)

    def measure_all(self, networks: Iterable[Graph], stop: int | None = None) -> Iterator[Score]:
        """Yield the scores of networks in their order, several measured at once."""
        pool = ThreadPoolExecutor(self.jobs)
        try:
            for tally in pool.map(lambda network: self.measure(network, stop), networks):
                yield self.score(tally)
        finally:
            pool.shutdown(cancel_futures=True)

    def score(self, tally: Tally) -> Score:
        """Turn what was added up into a score."""
        seen = self._expected[: tally.images]
        mine = [row for each in seen for row in each.top1]
        agreement = top1 = float_top1 = None
        if mine:
            agreement = _share(mine, tally.top1)
            if self._is_labelled:
                labels = [label for each in seen for label in each.labels]
                top1, float_top1 = _share(tally.top1, labels), _share(mine, labels)
        sqnr = metrics.blob_error("all outputs", tally.sums).sqnr
        return Score(sqnr, agreement, top1, float_top1, tally.images)


@dataclass(frozen=True, slots=True)
class Target:
    """What a network must keep.

    min_sqnr: dB at the outputs.  max_drop: share of the inputs whose top-1 may differ from that of
    the float network; with labels, what top-1 may lose.
    """

    min_sqnr: float | None = None
    max_drop: float | None = None

    def missed(self, score: "Score | metrics.Comparison") -> str:
        """Return which of them a score misses, in words, "" where it keeps them."""
        if self.min_sqnr is not None and not score.sqnr >= self.min_sqnr:
            return f"SQNR {score.sqnr:.2f} dB is below --min-sqnr {self.min_sqnr:g}"
        if self.max_drop is None:
            return ""
        drop = top1_drop(score)
        if drop is None:
            raise UsageError("--max-drop needs a network whose output is a list of class scores")
        if drop > self.max_drop + _ROUNDING:
            what = "top-1 loses" if score.float_top1 is not None else "top-1 differs from float in"
            return f"{what} {drop:.2%}, more than --max-drop {self.max_drop:g}"
        return ""

    def __bool__(self) -> bool:
        return self.min_sqnr is not None or self.max_drop is not None


_ROUNDING = 1e-9  # of shares that are differences of floats


def top1_drop(score: "Score | metrics.Comparison") -> float | None:
    """Return the loss of top-1 where there are labels, else the share that differs from float."""
    mine = score.int8_top1 if isinstance(score, metrics.Comparison) else score.top1
    if mine is not None and score.float_top1 is not None:
        return score.float_top1 - mine
    return None if score.agreement is None else 1 - score.agreement


def noise(sqnr: float) -> float:
    """Return the power of the noise over that of the signal, from dB."""
    return math.pow(10, -sqnr / 10)


def _label(labels: Mapping[str, int], file: str) -> int:
    try:
        return labels[Path(file).name]
    except KeyError:
        raise DataError(file, "has no row in the labels") from None


def _share(left: Sequence[int], right: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)
