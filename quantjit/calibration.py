"""Calibration: one pass over the inputs becomes the statistics of blobs, in memory planned before.

`calibrate` gathers them for one run.  `Gathering` also keeps what it did: it checkpoints, resumes,
appends and is interrupted without a loss, and its result is bit for bit that of one pass.
"""

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantjit import markup, quantizer
from quantjit.dataset import Dataset, Identity, Sample, Samples
from quantjit.errors import CalibrationError, DataError, Interrupted, UsageError
from quantjit.executor import Executor, infer_shapes
from quantjit.flow import Clock, Flow, Resources, Worker
from quantjit.graph import Array, Graph
from quantjit.images import Preprocess
from quantjit.kernels.compare import count_nonfinite
from quantjit.plan import Plan, batched, plan
from quantjit.quantizer import Settings
from quantjit.statistics_file import InputRecord, Origin, StatisticsFile, fingerprint
from quantjit.stats import BlobStats, ReferenceStats

OnProgress = Callable[[str, int, int], None]
"""``on_progress(stage, done, total)``, called from the main thread."""

OnSnapshot = Callable[[int, Mapping[str, BlobStats]], bool]
"""``on_snapshot(images, stats)`` at 1, 2, 4, 8 ... inputs, the first of the files in order.

None is under way: the statistics hold still during the call.  True ends the pass.
"""


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""
    del stage, done, total


# ------------------------------------------------------------------ what comes of it


@dataclass(frozen=True, slots=True)
class Nonfinite:
    """NaN or infinite values of a blob that were left out, and the input they came with."""

    file: str
    blob: str
    values: int


@dataclass(frozen=True, slots=True)
class Work:
    """Where the time went: seconds that all threads spent, of `seconds` on the clock.

    wait: that this process had nothing to compute because no input was loaded yet.
    """

    threads: int
    batch: int
    seconds: float
    load: float
    forward: float
    statistics: float
    wait: float

    def share(self, stage: str) -> float:
        """Return the share of the threads' time that a stage took; loading overlaps the others."""
        spent: float = getattr(self, stage)
        return spent / max(self.seconds * self.threads, 1e-9)

    @property
    def bound_by(self) -> str:
        """What would have to be faster for the whole to be."""
        if self.wait > 0.5 * self.seconds:
            return "reading and decoding"
        return "the forward pass" if self.forward >= self.statistics else "the statistics"


@dataclass(frozen=True, slots=True)
class Calibration:
    """The evidence of one pass: statistics by blob, inputs used, and what was left out.

    images: inputs in the statistics, of which new_images in this pass.  seconds: of this pass.
    work: None where statistics came from a file, which `source` names.
    """

    stats: Mapping[str, BlobStats] | Mapping[str, ReferenceStats]
    images: int
    nonfinite: tuple[Nonfinite, ...]
    seconds: float
    work: Work | None = None
    source: str = ""
    new_images: int = 0

    def __repr__(self) -> str:
        place = f" of {self.source}" if self.source else ""
        bad = f", {len(self.nonfinite)} with values left out" if self.nonfinite else ""
        return f"Calibration({self.images} inputs{place}, {len(self.stats)} blobs{bad})"

    def _repr_html_(self) -> str:
        return markup.table(
            repr(self),
            ("blob", "channels", "minimum", "maximum", "mean magnitude", "channels of zeros"),
            (
                (
                    blob,
                    seen.channels,
                    float(seen.minimum.min()),
                    float(seen.maximum.max()),
                    float(seen.mean_abs.mean()),
                    int((seen.absmax == 0).sum()),
                )
                for blob, seen in self.stats.items()
            ),
        )


class _Watch:
    """Folds blobs into their statistics; several threads, one lock a blob."""

    def __init__(self, updates: Mapping[str, Callable[[Array], int]], nonfinite: str) -> None:
        self._updates = updates
        self._locks = {blob: threading.Lock() for blob in updates}
        self._fails = nonfinite == "fail"
        self._found: dict[tuple[str, str], int] = {}

    def update(self, batch: Sequence[Sample], blob: str, array: Array) -> float:
        """Fold one blob of a batch; return the seconds it took."""
        update = self._updates.get(blob)
        if update is None:
            return 0.0
        start = time.perf_counter()
        with self._locks[blob]:
            nonfinite = update(array)
        if nonfinite:
            self._blame(batch, blob, array)
        return time.perf_counter() - start

    def _blame(self, batch: Sequence[Sample], blob: str, array: Array) -> None:
        parts = array if len(batch) > 1 else array[None]  # one input need not lead the blob
        for sample, each in zip(batch, parts, strict=True):
            bad = count_nonfinite(np.ascontiguousarray(each).ravel())
            if bad and self._fails:
                raise CalibrationError(
                    blob,
                    f"{bad} NaN or infinite values with {sample.file}; "
                    "--nonfinite skip leaves them out",
                )
            if bad:
                self._found[sample.file, blob] = bad

    def found(self) -> tuple[Nonfinite, ...]:
        """Return what was left out, ordered by file and blob."""
        return tuple(Nonfinite(*place, values) for place, values in sorted(self._found.items()))


def _make_worker(
    graph: Graph, watch: _Watch, batch: int, clock: Clock, *, exact_order: bool = False
) -> Callable[[], Worker[None]]:
    """Return what makes the worker of a thread: it runs batches and shows each blob to `watch`.

    exact_order: see `quantjit.executor.Executor`.
    """
    network = batched(graph, batch)
    if network is None:
        raise AssertionError("the plan has a batch that this network cannot be run with")

    def make() -> Worker[None]:
        executor = Executor(network, exact_order=exact_order, whole_batch=True)
        arrays = {
            blob.name: np.zeros((batch, *blob.shape[1:]), np.float32) for blob in graph.inputs
        }

        def run(samples: Sequence[Sample]) -> Sequence[None]:
            for name, array in arrays.items():
                for index, sample in enumerate(samples):
                    array[index] = sample.arrays[name][0]
            spent = 0.0

            def on_blob(blob: str, array: Array) -> None:
                nonlocal spent
                if batch > 1:
                    array = array[: len(samples)]  # the rest is left from the batch before
                spent += watch.update(samples, blob, array)

            start = time.perf_counter()
            executor.run(samples[0].arrays if batch == 1 else arrays, on_blob)
            clock.add("forward", time.perf_counter() - start - spent)
            clock.add("statistics", spent)
            return ()

        return run

    return make


# ------------------------------------------------------------------ one run


def calibrate(
    graph: Graph,
    dataset: Samples,
    settings: Settings,
    *,
    jobs: int | None = None,
    batch: int | None = None,
    memory: int | None = None,
    nonfinite: str = "fail",
    on_progress: OnProgress = no_progress,
    on_snapshot: OnSnapshot | None = None,
) -> Calibration:
    """Run the float network on every input and gather the statistics of the blobs.

    graph: with its activations fused.  jobs, batch, memory: see `plan`; nothing but the number of
    bins is seen by the result.  nonfinite: "fail" raises CalibrationError naming blob and file,
    "skip" leaves such values out and lists them.  One pass; in compat mode two, as the original
    reads its data, and without snapshots.
    """
    channels = quantizer.observed_blobs(graph, infer_shapes(graph), settings)
    if settings.compat:
        return _calibrate_as_reference(
            graph, dataset, settings, channels, jobs, nonfinite, on_progress
        )
    planned = plan(graph, channels, memory=memory, jobs=jobs, batch=batch)
    gathering = Gathering(graph, dataset, channels, planned)
    return gathering.run(nonfinite, on_progress=on_progress, on_snapshot=on_snapshot)


def gatherer(
    dataset: Samples,
    nonfinite: str = "fail",
    *,
    jobs: int | None = None,
    batch: int | None = None,
    memory: int | None = None,
    on_progress: OnProgress = no_progress,
) -> Callable[[Graph, Mapping[str, int]], dict[str, BlobStats]]:
    """Return what gathers the statistics of any network on these inputs, rows by blob."""

    def gather(graph: Graph, rows: Mapping[str, int]) -> dict[str, BlobStats]:
        planned = plan(graph, rows, memory=memory, jobs=jobs, batch=batch)
        gathering = Gathering(graph, dataset, rows, planned)
        gathering.run(nonfinite, on_progress=on_progress)
        return gathering.stats

    return gather


def _calibrate_as_reference(
    graph: Graph,
    dataset: Samples,
    settings: Settings,
    channels: Mapping[str, int],
    jobs: int | None,
    nonfinite: str,
    on_progress: OnProgress,
) -> Calibration:
    start = time.perf_counter()
    stats = {blob: ReferenceStats(count) for blob, count in channels.items()}
    # Running means are sums of floats: their order is that of the files.
    threads = 1 if settings.blob_method.startswith("aciq") else jobs
    resources, clock = Resources.of(threads), Clock()

    def observe(watch: _Watch, stage: str) -> int:
        worker = _make_worker(graph, watch, 1, clock, exact_order=True)
        total = len(dataset)
        with Flow(
            dataset,
            worker,
            resources,
            on_progress=lambda done: on_progress(stage, done, total),
            clock=clock,
        ) as flow:
            for _ in flow.advance():
                pass
            return flow.inputs

    ranges = {blob: _finite(seen.update_range) for blob, seen in stats.items()}
    watch = _Watch(ranges, nonfinite)
    images = observe(watch, "ranges")
    for seen in stats.values():
        seen.start_histogram()
    counts = {blob: _finite(seen.update_histogram) for blob, seen in stats.items()}
    observe(_Watch(counts, "skip"), "histograms")  # what the first pass let through
    seconds = time.perf_counter() - start
    return Calibration(stats, images, watch.found(), seconds, _work(clock, resources, seconds))


def _finite(update: Callable[[Array], None]) -> Callable[[Array], int]:
    """Return an update that sees 0 for values that are not finite, and their number."""

    def updated(array: Array) -> int:
        bad = count_nonfinite(array.ravel())
        update(np.where(np.isfinite(array), array, np.float32(0)) if bad else array)
        return bad

    return updated


def _work(clock: Clock, resources: Resources, seconds: float) -> Work:
    stages = ("load", "forward", "statistics", "wait")
    spent = [clock.spent(stage) for stage in stages]
    return Work(resources.threads, resources.batch, seconds, *spent)


# ------------------------------------------------------------------ statistics in files


def origin_of(graph: Graph, preprocess: Preprocess, marks: str = "bytes") -> Origin:
    """Return what statistics of this network and preprocessing are to be known by."""
    return Origin(fingerprint(graph), _preprocess_facts(preprocess), marks)


def _preprocess_facts(preprocess: Preprocess) -> dict[str, Any]:
    """Return the preprocessing as JSON has it, one value where all channels have the same."""
    facts: dict[str, Any] = dataclasses.asdict(preprocess)
    for name in ("bias", "scale"):
        values = list(facts[name])
        facts[name] = values[:1] if len(set(values)) == 1 else values
    return facts


def blobs_to_gather(graph: Graph, merge: str) -> dict[str, int]:
    """Return blob name -> rows for a statistics file: all blobs that any settings may ask for.

    merge: "channel" for rows a channel, which serve every merge type; else one row a blob.
    """
    shapes = infer_shapes(graph)
    blobs: dict[str, int] = {}
    for target in quantizer.TARGETS:  # more layers run in int8 in one than in the other
        blobs |= quantizer.observed_blobs(graph, shapes, Settings(merge="mix", target=target))
    if merge != "channel":
        return blobs
    return blobs | quantizer.observed_blobs(graph, shapes, Settings(merge="channel"))


def from_file(
    path: Path, graph: Graph, settings: Settings, inputs: Preprocess | None
) -> Calibration:
    """Return the evidence of a statistics file, as a pass over the same inputs would give it.

    inputs: how the caller's inputs are preprocessed, None where there are none.  Raises DataError
    where the file is of another network or preprocessing, or lacks what the settings need.
    """
    if settings.compat:
        raise UsageError("--compat tnn needs the data: the original's statistics cannot be merged")
    found = StatisticsFile.load(path)
    mine = Origin(
        fingerprint(graph),
        found.origin.preprocess if inputs is None else _preprocess_facts(inputs),
        found.origin.marks,
    )
    StatisticsFile({}, (), mine).check_origin(found.origin, path)
    stats = {}
    for blob, rows in quantizer.observed_blobs(graph, infer_shapes(graph), settings).items():
        seen = found.stats.get(blob)
        if seen is None or rows > seen.channels:
            missing = "no statistics" if seen is None else "no statistics per channel"
            raise DataError(
                path, f"holds {missing} of blob {blob!r}: calibrate with --merge-type channel"
            )
        stats[blob] = seen if rows == seen.channels else seen.per_tensor()
    left_out = tuple(
        Nonfinite(path.name, blob, int(seen.nonfinite.sum()))
        for blob, seen in stats.items()
        if seen.nonfinite.any()
    )
    return Calibration(stats, found.images, left_out, 0.0, source=str(path))


# ------------------------------------------------------------------ a run that can be continued


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where and how often the statistics so far are written.

    inputs, seconds: after so many inputs or seconds, whichever is first; None for never.  At the
    end, and when it is interrupted, they are written in any case.
    """

    path: Path
    inputs: int | None = None
    seconds: float | None = None


class _Schedule:
    """When the next checkpoint is due."""

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self._every_inputs = checkpoints.inputs if checkpoints else None
        self._every_seconds = checkpoints.seconds if checkpoints else None
        self.saved(0)

    def saved(self, inputs: int) -> None:
        """Start again, after so many inputs."""
        self._inputs, self._at = inputs, time.monotonic()

    def inputs_left(self, inputs: int) -> int | None:
        """Return how many inputs go before it, None where their number does not matter."""
        every = self._every_inputs
        return None if every is None else self._inputs + every - inputs

    def seconds_left(self) -> float | None:
        """Return how many seconds go before it, None where time does not matter."""
        every = self._every_seconds
        return None if every is None else self._at + every - time.monotonic()

    def is_due(self, inputs: int) -> bool:
        """Whether it is now."""
        left, seconds = self.inputs_left(inputs), self.seconds_left()
        is_time = (left is not None and left <= 0) or (seconds is not None and seconds <= 0)
        return is_time and inputs > self._inputs


class _Journal:
    """Which files are in the statistics; tells loading threads what they need not decode."""

    def __init__(self, base: Sequence[InputRecord], fixed: frozenset[str]) -> None:
        self.records = list(base)
        self.known = 0
        self._left = Counter((item.name, item.mark) for item in base)
        self._fixed = fixed
        self._new: dict[int, InputRecord] = {}
        self._taken = 0
        self._lock = threading.Lock()

    def is_known(self, identity: Identity) -> bool:
        """Whether the file is in already, once for each time that it is."""
        key = identity.name, identity.mark
        with self._lock:
            if self._left[key] > 0:
                self._left[key] -= 1
                self.known += 1
                return True
        if identity.name in self._fixed:
            raise UsageError(
                f"{identity.name} is another file now than when it went into the checkpoint; "
                "to start again, delete that"
            )
        return False

    def loaded(self, index: int, identity: Identity, samples: int) -> None:
        """Note what a file is; it counts when it is through."""
        with self._lock:
            self._new[index] = InputRecord(identity.name, identity.mark, samples)

    def through(self, files: int) -> None:
        """Count the first so many files."""
        with self._lock:
            for index in range(self._taken, files):
                record = self._new.pop(index, None)
                if record is not None:
                    self.records.append(record)
        self._taken = files


@dataclass(slots=True)
class Gathering:
    """Statistics that are being gathered.

    origin: of a statistics file; None where none is written.  base: what was gathered before, to
    which this is added, and where it is from; its inputs are not run again.  is_fixed: whether
    `base` is an earlier part of this very run, so that none of its files may be gone or changed.

    Raises DataError where `base` is of another origin or has other rows of statistics, UsageError
    where its files are gone.
    """

    graph: Graph
    dataset: Samples
    channels: Mapping[str, int]
    plan: Plan
    origin: Origin | None = None
    base: StatisticsFile | None = None
    base_path: Path | None = None
    is_fixed: bool = False
    stats: dict[str, BlobStats] = field(init=False)
    _journal: _Journal = field(init=False)

    def __post_init__(self) -> None:
        self.stats = {blob: BlobStats(rows, self.plan.bins) for blob, rows in self.channels.items()}
        records: tuple[InputRecord, ...] = ()
        fixed: frozenset[str] = frozenset()
        if self.base is not None and self.origin is not None:
            empty = StatisticsFile(self.stats, (), self.origin)
            total = empty.merged(self.base, str(self.base_path))
            self.stats, records = dict(total.stats), total.inputs
        if self.is_fixed and isinstance(self.dataset, Dataset):
            fixed = frozenset(record.name for record in records)
            gone = fixed - {file.name for file in self.dataset.files}
            if gone:
                raise UsageError(
                    f"{self.base_path} holds {len(gone)} inputs that are not among the files, "
                    f"{min(gone)} for one; to start again, delete it"
                )
        self._journal = _Journal(records, fixed)

    @property
    def known(self) -> int:
        """Files that were in the base already."""
        return self._journal.known

    def file(self) -> StatisticsFile:
        """Return what has been gathered so far; call it when no input is under way."""
        if self.origin is None:
            raise AssertionError("only statistics of known origin are kept")
        return StatisticsFile(self.stats, tuple(sorted(self._journal.records)), self.origin)

    def run(
        self,
        nonfinite: str = "fail",
        *,
        checkpoints: Checkpoints | None = None,
        on_progress: OnProgress = no_progress,
        on_snapshot: OnSnapshot | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Calibration:
        """Gather from all files that are not in yet.

        stop: asked before each file.  Once it is True, what is under way is finished, written
        and Interrupted is raised.
        """
        start = time.perf_counter()
        watch = _Watch({blob: seen.update for blob, seen in self.stats.items()}, nonfinite)
        clock, resources, total = Clock(), self.plan.resources, len(self.dataset)
        base = self.base.images if self.base is not None else 0
        with Flow(
            self.dataset,
            _make_worker(self.graph, watch, resources.batch, clock),
            resources,
            load=self._load if self.origin is not None else None,
            on_progress=lambda done: on_progress("calibrate", done, total),
            stop=stop,
            clock=clock,
        ) as flow:
            try:
                self._advance(flow, base, checkpoints, on_snapshot)
            except DataError:  # too many bad files: what there is may be resumed with more of them
                if checkpoints is not None and self._journal.records:
                    self.file().save(checkpoints.path)
                raise
            images = base + flow.inputs
        if stop() and flow.files < total:
            raise Interrupted(self._save_interrupted(checkpoints, flow.files, total))
        seconds = time.perf_counter() - start
        return Calibration(
            self.stats,
            images,
            watch.found(),
            seconds,
            _work(clock, resources, seconds),
            new_images=images - base,
        )

    def _advance(
        self,
        flow: Flow[None],
        base: int,
        checkpoints: Checkpoints | None,
        on_snapshot: OnSnapshot | None,
    ) -> None:
        schedule = _Schedule(checkpoints)
        snapshot = 1 << base.bit_length()
        while not flow.is_done:
            limit = schedule.inputs_left(flow.inputs)
            if on_snapshot is not None:
                ahead = snapshot - base - flow.inputs
                limit = ahead if limit is None else min(limit, ahead)
            try:
                for _ in flow.advance(limit, schedule.seconds_left()):
                    pass
            finally:
                self._journal.through(flow.files)
            if on_snapshot is not None and base + flow.inputs >= snapshot:
                if on_snapshot(base + flow.inputs, self.stats):
                    return
                snapshot = 1 << (base + flow.inputs).bit_length()
            if checkpoints is not None and schedule.is_due(flow.inputs) and not flow.is_done:
                self.file().save(checkpoints.path)
                schedule.saved(flow.inputs)

    def _load(self, index: int) -> Sequence[Sample]:
        if not isinstance(self.dataset, Dataset) or self.origin is None:
            raise AssertionError("only files have identities")
        identity, samples = self.dataset.load_unknown(
            index, self.origin.marks, self._journal.is_known
        )
        if samples is None:
            return ()
        self._journal.loaded(index, identity, len(samples))
        return samples

    def _save_interrupted(self, checkpoints: Checkpoints | None, files: int, total: int) -> str:
        text = f"interrupted after {files} of {total} files"
        if checkpoints is None or not self._journal.records:
            return text
        self.file().save(checkpoints.path)
        return f"{text}; --resume continues from {checkpoints.path}"
