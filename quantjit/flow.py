"""Inputs on their way through a network: loaded ahead, put into batches, run by several threads.

One mechanism for everything that runs over a data set.  Loading threads read and decode files into
a bounded queue; computing threads, each with a worker of its own, take batches of inputs from it;
results come in the order of the files.  Loading overlaps computing, and neither the number of
threads nor the batch size nor the depth of the queue is seen by the result.

`Flow.advance` stops at a point where no input is under way, so that whoever folds results into
something can save it there; loading goes on meanwhile.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from quantjit.dataset import Sample, Samples, load_ahead
from quantjit.errors import DataError

R = TypeVar("R")

Load = Callable[[int], Sequence[Sample]]
"""Return the inputs of a file, by its number."""

Worker = Callable[[Sequence[Sample]], Sequence[R]]
"""Run one batch and return what came of it; each thread has one."""

_BATCHES_A_THREAD = 2  # one that is computed, one that waits


@dataclass(frozen=True, slots=True)
class Resources:
    """How much is under way at once.

    threads: that compute.  batch: inputs that a thread runs at once.  loaders: threads that load.
    depth: files loaded ahead.
    """

    threads: int
    batch: int = 1
    loaders: int = 1
    depth: int = 4

    @classmethod
    def of(cls, jobs: int | None = None, batch: int = 1) -> "Resources":
        """Return what suits so many threads, by default one a core."""
        threads = jobs or cores()
        return cls(threads, batch, max(1, threads), threads * (batch + 1))

    @property
    def inputs_under_way(self) -> int:
        """Upper bound of the inputs in memory, for files with one input each."""
        return self.depth + _BATCHES_A_THREAD * self.threads * self.batch


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Clock:
    """Seconds that all threads together spent in each stage."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spent: dict[str, float] = {}

    def add(self, stage: str, seconds: float) -> None:
        """Add what one thread spent in a stage."""
        with self._lock:
            self._spent[stage] = self._spent.get(stage, 0.0) + seconds

    def spent(self, stage: str) -> float:
        """Return the seconds of a stage."""
        return self._spent.get(stage, 0.0)


@dataclass(slots=True)
class _Batch(Generic[R]):
    """A batch that is computed, and how many files had been handed out with it."""

    future: Future[Sequence[R]]
    files: int


class Flow(Generic[R]):
    """All inputs of a data set through workers; use it as a context manager.

    Parameters
    ----------
    samples : the data set
    make_worker : called once in each computing thread
    resources : threads, batch size, depth of the queue
    load : what loads a file, by default ``samples.load``
    on_progress : called from this thread with the files that are through
    stop : asked before each file; once it is True no more are begun
    clock : is told the seconds of "load" and "wait", which is this thread waiting for a file

    Attributes
    ----------
    files : files of which all inputs were handed out: after `advance`, these are through
    inputs : inputs that were handed out
    is_done : whether there are no more, or `stop` said so
    """

    def __init__(
        self,
        samples: Samples,
        make_worker: Callable[[], Worker[R]],
        resources: Resources,
        *,
        load: Load | None = None,
        on_progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.files = self.inputs = 0
        self.is_done = False
        self._make_worker = make_worker
        self._resources = resources
        self._on_progress = on_progress or (lambda _: None)
        self._stop = stop or (lambda: False)
        self._clock = clock or Clock()
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(resources.threads)
        self._load = load or samples.load
        self._loaded = load_ahead(samples, self._timed_load, resources.loaders, resources.depth)
        self._rest: deque[Sample] = deque()  # of the file that is being handed out
        self._error: DataError | None = None

    def __enter__(self) -> "Flow[R]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._loaded.close()

    def advance(
        self, inputs: int | None = None, seconds: float | None = None
    ) -> Generator[R, None, None]:
        """Yield the results of the next inputs, in order, and end with none under way.

        inputs, seconds: go so far, but one input at least, and to the end of the file that was
        begun; by default, to the end of the data set.
        """
        first = self.inputs
        last = None if inputs is None else first + inputs
        deadline = None if seconds is None else time.monotonic() + seconds
        under_way: deque[_Batch[R]] = deque()
        goes_on = True
        try:
            while True:
                while goes_on and len(under_way) < _BATCHES_A_THREAD * self._resources.threads:
                    is_late = deadline is not None and time.monotonic() >= deadline
                    if is_late and self.inputs > first:
                        last = self.inputs + len(self._rest)
                    batch = self._take(last)
                    goes_on = bool(batch)
                    if batch:
                        future = self._pool.submit(self._work, batch)
                        under_way.append(_Batch(future, self.files))
                if not under_way:
                    break
                oldest = under_way.popleft()
                yield from oldest.future.result()
                self._on_progress(oldest.files)
        finally:
            for each in under_way:
                each.future.cancel()
        self._on_progress(self.files)
        if self._error is not None:
            raise self._error

    def _take(self, last: int | None) -> list[Sample]:
        """Return the next batch: empty at the `last` input or when there are no more."""
        batch: list[Sample] = []
        while len(batch) < self._resources.batch:
            if self._rest:
                batch.append(self._rest.popleft())
                self.inputs += 1
                self.files += not self._rest
            elif last is not None and self.inputs >= last:
                break
            else:
                self.is_done = self.is_done or self._stop()
                if self.is_done:
                    break
                self._open_next()
        return batch

    def _open_next(self) -> None:
        """Wait for the next file; what is wrong is raised when the inputs before it are through."""
        start = time.perf_counter()
        try:
            _, loaded = next(self._loaded)
        except StopIteration:
            self.is_done = True
        except DataError as error:
            self.is_done, self._error = True, error
        else:
            self._rest.extend(loaded or ())
            self.files += not loaded
        self._clock.add("wait", time.perf_counter() - start)

    def _timed_load(self, index: int) -> Sequence[Sample]:
        start = time.perf_counter()
        try:
            return self._load(index)
        finally:
            self._clock.add("load", time.perf_counter() - start)

    def _work(self, batch: Sequence[Sample]) -> Sequence[R]:
        if not hasattr(self._local, "worker"):
            self._local.worker = self._make_worker()
        worker: Worker[R] = self._local.worker
        return worker(batch)
