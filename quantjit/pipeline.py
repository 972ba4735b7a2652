"""The main job, step by step: read, calibrate, solve, quantize, write, verify.

Each step is a short function that a notebook can call by itself; `run` is all of them in order.
Images are independent: each thread runs the whole network on one image at a time, and what it saw
is folded into statistics whose value does not depend on the order.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quantjit import formats, metrics, quantizer
from quantjit.dataset import Dataset, Preprocess, Sample, Samples
from quantjit.errors import CalibrationError, DataError, FormatError, UsageError
from quantjit.executor import Executor, count_macs, infer_shapes, plan_memory
from quantjit.graph import Array, Graph
from quantjit.kernels.compare import count_nonfinite
from quantjit.metrics import Comparer, Comparison, ImageResult
from quantjit.ops import Shape
from quantjit.passes.fit_tnn import fit_tnn
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.passes.lower import lower
from quantjit.quantizer import Settings
from quantjit.stats import BlobStats, ReferenceStats
from quantjit.table import CalibrationTable

R = TypeVar("R")

OnProgress = Callable[[str, int, int], None]
"""``on_progress(stage, done, total)``, called from the main thread."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""
    del stage, done, total


@dataclass(frozen=True, slots=True)
class Inputs:
    """Which inputs, and how they become tensors; see `quantjit.dataset.Preprocess`.

    limit: use the first files only.  max_bad: share of unreadable files that is skipped.
    """

    preprocess: Preprocess = field(default_factory=Preprocess)
    limit: int | None = None
    max_bad: float = 0.05

    def open(self, path: Path, graph: Graph) -> Dataset:
        """Open the folder or file for the inputs of this network."""
        return Dataset.open(
            path, input_shapes(graph), self.preprocess, limit=self.limit, max_bad=self.max_bad
        )


@dataclass(frozen=True, slots=True)
class Nonfinite:
    """NaN or infinite values of a blob that were left out, and the input they came with."""

    file: str
    blob: str
    values: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """The evidence of one pass: statistics by blob, inputs used, and what was left out."""

    stats: Mapping[str, BlobStats] | Mapping[str, ReferenceStats]
    images: int
    nonfinite: tuple[Nonfinite, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Quantization:
    """Everything that `run` made.

    graph: the float network with its activations fused; quantized: the int8 one as read back from
    `paths`; skipped: input files that could not be read, with the reason; comparison: None when
    nothing was verified; notes: what the format of `paths` says otherwise than the network's own.
    """

    graph: Graph
    quantized: Graph
    table: CalibrationTable
    calibration: Calibration
    skipped: tuple[str, ...]
    comparison: Comparison | None
    paths: tuple[Path, ...]
    source_bytes: int
    target_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` made: the files, what they say otherwise, and how far they are off.

    difference: the largest one at the outputs, over the largest output, on one random input.
    """

    paths: tuple[Path, ...]
    notes: tuple[str, ...]
    difference: float


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What `inspect` says of a node; macs for one input; why_float is "" where it is int8."""

    name: str
    op: str
    output: str
    shape: Shape
    macs: int
    parameters: int
    why_float: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` says of a network.

    blob_bytes: of all float blobs together; arena_bytes: of the buffers they are run in.
    """

    nodes: tuple[NodeFacts, ...]
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    is_quantized: bool
    blob_bytes: int
    arena_bytes: int


# ------------------------------------------------------------------ the steps


def read(
    path: Path, weights: Path | None = None, shapes: Mapping[str, Shape] | None = None
) -> Graph:
    """Read a network for work on one input at a time: the batch dimension becomes 1."""
    return _one_at_a_time(formats.load(path, weights, shapes=shapes))


def load(
    path: str | Path,
    weights: str | Path | None = None,
    shapes: Mapping[str, Shape] | None = None,
) -> Graph:
    """Read a network for the steps below: batch 1, activations fused into their convolutions.

    path: the .onnx or .tnnproto; weights: its .tnnmodel, by default the same name.  shapes: of
    inputs by name, in place of what the file says.
    """
    return fuse_activation(read(Path(path), None if weights is None else Path(weights), shapes))


def _one_at_a_time(graph: Graph) -> Graph:
    return graph.with_input_shapes(
        {blob.name: (1, *blob.shape[1:]) for blob in graph.inputs if len(blob.shape) > 1}
    )


def input_shapes(graph: Graph) -> dict[str, Shape]:
    """Network inputs by name, with the shapes that samples must have."""
    return {blob.name: blob.shape for blob in graph.inputs}


def calibrate(
    graph: Graph,
    dataset: Samples,
    settings: Settings,
    *,
    jobs: int | None = None,
    nonfinite: str = "fail",
    on_progress: OnProgress = no_progress,
) -> Calibration:
    """Run the float network on every input and gather the statistics of the blobs.

    graph: with its activations fused.  nonfinite: "fail" raises CalibrationError naming blob and
    file, "skip" leaves such values out and lists them.  One pass; in compat mode two, as the
    original reads its data.
    """
    start = time.perf_counter()
    channels = quantizer.observed_blobs(graph, infer_shapes(graph), settings)
    stats: dict[str, BlobStats] | dict[str, ReferenceStats]
    if settings.compat:
        stats = reference = {blob: ReferenceStats(count) for blob, count in channels.items()}
        # Running means are sums of floats: their order is that of the files.
        threads = 1 if settings.blob_method.startswith("aciq") else jobs
        ranges = {blob: seen.update_range for blob, seen in reference.items()}
        watch = _Watch(ranges, nonfinite)
        images = _observe(graph, dataset, watch, threads, on_progress, "ranges", exact_order=True)
        for seen in reference.values():
            seen.start_histogram()
        counts = {blob: seen.update_histogram for blob, seen in reference.items()}
        again = _Watch(counts, "skip")  # what the first pass let through
        _observe(graph, dataset, again, threads, on_progress, "histograms", exact_order=True)
    else:
        stats = bounded = {blob: BlobStats(count) for blob, count in channels.items()}
        watch = _Watch({blob: seen.update for blob, seen in bounded.items()}, nonfinite)
        images = _observe(graph, dataset, watch, jobs, on_progress, "calibrate")
    return Calibration(stats, images, watch.found(), time.perf_counter() - start)


class _Watch:
    """Folds blobs into their statistics; several threads, one lock a blob."""

    def __init__(self, updates: Mapping[str, Callable[[Array], object]], nonfinite: str) -> None:
        self._updates = updates
        self._locks = {blob: threading.Lock() for blob in updates}
        self._fails = nonfinite == "fail"
        self._found: dict[tuple[str, str], int] = {}

    def update(self, file: str, blob: str, array: Array) -> None:
        """Fold one blob of one input."""
        if blob not in self._updates:
            return
        bad = count_nonfinite(array.ravel())
        if bad:
            if self._fails:
                raise CalibrationError(
                    blob,
                    f"{bad} NaN or infinite values with {file}; --nonfinite skip leaves them out",
                )
            self._found[file, blob] = bad
            array = np.where(np.isfinite(array), array, np.float32(0))
        with self._locks[blob]:
            self._updates[blob](array)

    def found(self) -> tuple[Nonfinite, ...]:
        """Return what was left out, ordered by file and blob."""
        return tuple(Nonfinite(*place, values) for place, values in sorted(self._found.items()))


def _observe(
    graph: Graph,
    dataset: Samples,
    watch: _Watch,
    jobs: int | None,
    on_progress: OnProgress,
    stage: str,
    *,
    exact_order: bool = False,
) -> int:
    """Run the network on every input, show each blob to the watch, and count the inputs."""

    def make_worker() -> Callable[[Sample], None]:
        executor = Executor(graph, exact_order=exact_order)

        def run(sample: Sample) -> None:
            executor.run(sample.arrays, lambda blob, array: watch.update(sample.file, blob, array))

        return run

    return sum(1 for _ in _each(dataset, make_worker, jobs, on_progress, stage))


def verify(
    reference: Graph,
    quantized: Graph,
    dataset: Samples,
    *,
    labels: Mapping[str, int] | None = None,
    why_float: Mapping[str, str] | None = None,
    jobs: int | None = None,
    on_progress: OnProgress = no_progress,
) -> Comparison:
    """Run both networks on every input, the int8 one in its target's arithmetic, and compare.

    labels: file name -> class index; every input must be in it.
    """

    def make_worker() -> Callable[[Sample], tuple[str, ImageResult]]:
        comparer = Comparer(reference, quantized)
        return lambda sample: (sample.file, comparer.run(sample.arrays))

    known: list[int] | None = None if labels is None else []

    def results() -> Iterator[ImageResult]:
        for file, result in _each(dataset, make_worker, jobs, on_progress, "verify"):
            if labels is not None and known is not None:
                known.append(_label(labels, file))
            yield result

    return metrics.combine(reference, quantized, results(), known, why_float)


def _each(
    dataset: Samples,
    make_worker: Callable[[], Callable[[Sample], R]],
    jobs: int | None,
    on_progress: OnProgress,
    stage: str,
) -> Iterator[R]:
    """Yield what a worker makes of each readable input, in the order of the files.

    Each thread has a worker of its own; at most two inputs a thread are under way, so that memory
    does not grow with their number.
    """
    threads = jobs or _cores()
    local = threading.local()

    def work(index: int) -> list[R]:
        samples = dataset.load(index)
        if not hasattr(local, "worker"):
            local.worker = make_worker()
        return [local.worker(sample) for sample in samples]

    under_way: deque[Future[list[R]]] = deque()
    total, done = len(dataset), 0
    with ThreadPoolExecutor(threads) as pool:
        indices = iter(range(total))
        try:
            while True:
                for index in islice(indices, 2 * threads - len(under_way)):
                    under_way.append(pool.submit(work, index))
                if not under_way:
                    break
                try:
                    yield from under_way.popleft().result()
                except DataError as error:
                    dataset.skip(error)
                done += 1
                on_progress(stage, done, total)
        finally:
            for future in under_way:
                future.cancel()
    dataset.check()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ------------------------------------------------------------------ the whole job


def run(
    proto: Path,
    model: Path | None,
    input_path: Path,
    settings: Settings,
    *,
    inputs: Inputs | None = None,
    output: Path = Path("model_quantized.tnnproto"),
    labels: Path | None = None,
    verify_inputs: int = 16,
    nonfinite: str = "fail",
    jobs: int | None = None,
    on_progress: OnProgress = no_progress,
    shapes: Mapping[str, Shape] | None = None,
    form: str = "qdq",
    float_fallback: bool = True,
) -> Quantization:
    """Quantize a network: read, calibrate, solve, quantize, write, read back and verify.

    proto: the .onnx or .tnnproto.  output: the .onnx, or the .tnnproto whose .tnnmodel goes beside
    it; its format must be the settings' target.  labels: CSV of file,label.  verify_inputs: how
    many of the inputs are compared, spread evenly over them; 0 for none.  shapes: of inputs by
    name.  form: of an int8 ONNX file, "qdq" or "qoperator".  float_fallback: False refuses a
    network for ONNX in which a layer with multiplications has no int8 form.
    """
    inputs = inputs or Inputs()
    graph = read(proto, model, shapes)
    if _is_quantized(graph):
        raise FormatError(proto, "", "a float network", "one that is quantized already")
    known = read_labels(labels) if labels is not None else None
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent}: no such folder to write to")
    if (output.suffix.lower() == ".onnx") != (settings.target == "onnx"):
        raise UsageError(f"{output}: a network for {settings.target} cannot be written under it")
    graph, notes = _fitted(graph, settings.target)
    graph = fuse_activation(graph)
    if not float_fallback:
        _refuse_stuck(graph, settings)
    dataset = inputs.open(input_path, graph)
    calibration = calibrate(
        graph, dataset, settings, jobs=jobs, nonfinite=nonfinite, on_progress=on_progress
    )
    table = quantizer.solve(graph, calibration.stats, settings)
    options: dict[str, Any] = {}
    if settings.target == "onnx":
        facts = {"method": str(settings), "calibration": dataset.fingerprint()}
        metadata = {f"quantjit.{key}": value for key, value in facts.items()}
        options = {"form": form, "metadata": metadata}
    paths = formats.save(quantizer.quantize(graph, table, settings), output, **options)
    quantized = _one_at_a_time(formats.load(*paths))
    comparison = None
    if verify_inputs:
        comparison = verify(
            graph,
            quantized,
            dataset.spread(verify_inputs),
            labels=known,
            why_float=table.float_nodes,
            jobs=jobs,
            on_progress=on_progress,
        )
    sources = formats.files_of(proto, model)
    return Quantization(
        graph,
        quantized,
        table,
        calibration,
        tuple(map(str, dataset.skipped)),
        comparison,
        paths,
        sum(path.stat().st_size for path in sources),
        sum(path.stat().st_size for path in paths),
        notes,
    )


def _is_quantized(graph: Graph) -> bool:
    """Whether a network is int8, or float that imitates codes."""
    return graph.is_quantized or any(node.op == "quantize_linear" for node in graph.nodes)


def _fitted(graph: Graph, target: str) -> tuple[Graph, tuple[str, ...]]:
    """Return a float network in the words of a format, and what had to be said otherwise."""
    if target == "tnn":
        fitted = fit_tnn(graph)
        return fitted.graph, fitted.notes
    halves = sum(
        array.dtype == np.float16 for node in graph.nodes for array in node.weights.values()
    )
    if not halves:
        return graph, ()
    return graph, (f"{halves} arrays of half floats are written as float32",)


def _refuse_stuck(graph: Graph, settings: Settings) -> None:
    macs = count_macs(graph, infer_shapes(graph))
    stuck = quantizer.stuck_nodes(graph, macs, settings)
    if settings.target != "onnx" or not stuck:
        return
    reasons = quantizer.choose_nodes(graph, settings)
    listed = "; ".join(f"{node.name} ({node.op}): {reasons[node.name]}" for node in stuck)
    raise UsageError(
        f"{len(stuck)} layers with multiplications cannot run in int8: {listed}; "
        "--float-fallback leaves them float, --exclude names those that are meant to be"
    )


def convert(
    source: Path,
    weights: Path | None,
    target: Path,
    *,
    shapes: Mapping[str, Shape] | None = None,
) -> Conversion:
    """Write a float network in the format of another suffix, read it back and compare.

    source: the .onnx or .tnnproto; weights: its .tnnmodel.  target: the .onnx or .tnnproto.
    """
    graph = formats.load(source, weights, shapes=shapes)
    if _is_quantized(graph):
        raise FormatError(
            source, "", "a float network", "a quantized one", "formats differ in their arithmetic"
        )
    fitted, notes = _fitted(graph, "onnx" if target.suffix.lower() == ".onnx" else "tnn")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent}: no such folder to write to")
    paths = formats.save(fitted, target)
    written = formats.load(*paths)
    rng = np.random.default_rng(0)
    given = [rng.normal(0, 1, blob.shape).astype(np.float32) for blob in graph.inputs]
    expected, found = (
        list(
            Executor(item)
            .run({blob.name: x for blob, x in zip(item.inputs, given, strict=True)})
            .values()
        )
        for item in (graph, written)
    )
    scale = max((float(np.abs(x).max(initial=0)) for x in expected), default=0.0)
    largest = max(
        (float(np.abs(x - y).max(initial=0)) for x, y in zip(expected, found, strict=True)),
        default=0.0,
    )
    return Conversion(paths, notes, largest / scale if scale else largest)


def verify_files(
    reference: tuple[Path, Path | None],
    quantized: tuple[Path, Path | None],
    input_path: Path,
    *,
    inputs: Inputs | None = None,
    labels: Path | None = None,
    jobs: int | None = None,
    on_progress: OnProgress = no_progress,
    shapes: Mapping[str, Shape] | None = None,
) -> Comparison:
    """Compare two networks on disk on all inputs of a folder.

    Each is a (.onnx, None) or a (.tnnproto, .tnnmodel or None).  shapes: of inputs by name.
    """
    inputs = inputs or Inputs()
    graph, int8 = read(*reference, shapes), read(*quantized, shapes)
    if input_shapes(graph) != input_shapes(int8) or graph.outputs != int8.outputs:
        raise FormatError(
            quantized[0],
            "",
            f"inputs {input_shapes(graph)} and outputs {', '.join(graph.outputs)}",
            f"inputs {input_shapes(int8)} and outputs {', '.join(int8.outputs)}",
            "is it made from this float network?",
        )
    known = read_labels(labels) if labels is not None else None
    dataset = inputs.open(input_path, graph)
    why_float = {node.name: "float in the file" for node in int8.nodes if node.quant is None}
    return verify(
        graph, int8, dataset, labels=known, why_float=why_float, jobs=jobs, on_progress=on_progress
    )


def inspect(
    proto: Path,
    model: Path | None,
    settings: Settings,
    shapes: Mapping[str, Shape] | None = None,
) -> Inspection:
    """Say what is in a network and what would run in int8; the .tnnmodel may be missing."""
    if all(path.exists() for path in formats.files_of(proto, model)[1:]):
        graph = read(proto, model, shapes)
    else:
        graph = _one_at_a_time(formats.load_structure(proto))
    fused = lower(graph) if graph.is_quantized else fuse_activation(graph)
    if graph.is_quantized:
        reasons = {node.name: "" if node.quant else "float in the file" for node in fused.nodes}
    else:
        reasons = quantizer.choose_nodes(fused, settings)
    shapes = infer_shapes(fused)
    macs = count_macs(fused, shapes)
    nodes = tuple(
        NodeFacts(
            node.name,
            node.op,
            node.outputs[0],
            shapes[node.outputs[0]],
            macs[node.name],
            sum(array.size for array in node.weights.values()),
            reasons[node.name],
        )
        for node in fused.nodes
    )
    blob_bytes, arena_bytes = plan_memory(fused)
    return Inspection(
        nodes, input_shapes(graph), graph.outputs, graph.is_quantized, blob_bytes, arena_bytes
    )


def read_labels(path: Path) -> dict[str, int]:
    """Read a CSV of file,label with or without a header; label is the index of the class."""
    labels: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read as labels: {error}") from None
    for number, line in enumerate(lines, 1):
        file, _, label = line.strip().rpartition(",")
        if file and label.strip().isdigit():
            labels[Path(file.strip()).name] = int(label)
        elif number > 1 and line.strip():
            raise DataError(path, f"line {number}: expected file,label, found {line.strip()!r}")
    if not labels:
        raise DataError(path, "holds no line file,label")
    return labels


def _label(labels: Mapping[str, int], file: str) -> int:
    try:
        return labels[Path(file).name]
    except KeyError:
        raise DataError(file, "has no row in the labels") from None
