"""The main job, step by step: read, calibrate, solve, quantize, write, verify.

Each step is a short function that a notebook can call by itself; `run` is all of them in order.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantjit import calibration as evidence
from quantjit import cluster as clusters
from quantjit import formats, markup, metrics, mixed, quantizer, solvers, statistics_file
from quantjit import plan as planning
from quantjit.calibration import (
    Calibration,
    Checkpoints,
    Gathering,
    OnProgress,
    calibrate,
    no_progress,
)
from quantjit.convergence import Convergence, Tracker
from quantjit.dataset import Dataset, Samples
from quantjit.errors import DataError, FormatError, UsageError
from quantjit.executor import Executor, count_macs, infer_shapes, plan_memory
from quantjit.flow import Flow, Resources, Worker
from quantjit.graph import Graph
from quantjit.images import Preprocess
from quantjit.judge import Judge, Target
from quantjit.metrics import Comparer, Comparison, ImageResult
from quantjit.mixed import Mixed
from quantjit.ops import Shape
from quantjit.passes.fit_tnn import fit_tnn
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.passes.lower import lower
from quantjit.passes.match import matched
from quantjit.quantizer import Settings
from quantjit.refine import Effect, Refinement, refine
from quantjit.statistics_file import StatisticsFile
from quantjit.stats import BlobStats
from quantjit.table import CalibrationTable

FOLLOWED = "mse"
"""Blob method whose scales tell whether statistics that any method can use are enough."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Which inputs, and how they become tensors; see `quantjit.images.Preprocess`.

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
class Quantization:
    """Everything that `run` made.

    graph: the float network with its activations fused; quantized: the int8 one as read back from
    `paths`; skipped: input files that could not be read, with the reason; comparison: None when
    nothing was verified; notes: what the format of `paths` says otherwise than the network's own;
    convergence: None where the data were not read, or as the original does; effects: of the passes
    that were asked for; mixed: None unless layers were left float to meet a target.
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
    convergence: Convergence | None = None
    effects: tuple[Effect, ...] = ()
    mixed: Mixed | None = None

    def __repr__(self) -> str:
        names = ", ".join(map(str, self.paths)) or "not written"
        found = "not compared" if self.comparison is None else repr(self.comparison)
        return f"Quantization({names}; {self.table.method}; {found})"

    def _repr_html_(self) -> str:
        facts = [
            ("settings", self.table.method),
            ("float", repr(self.graph)),
            ("int8", repr(self.quantized)),
            ("calibration", repr(self.calibration)),
            ("written", ", ".join(map(str, self.paths)) or "nothing"),
        ]
        if self.comparison is not None:
            facts.append(("comparison", repr(self.comparison)))
        if self.convergence is not None and self.convergence.inputs:
            facts.append(("inputs", self.convergence.advice()))
        for effect in self.effects:
            kept = "kept" if effect.is_kept else "not kept"
            facts.append((effect.name, f"{effect.before:.1f} -> {effect.after:.1f} dB, {kept}"))
        worst = () if self.comparison is None else self.comparison.worst()
        return markup.table("quantization", ("", ""), facts) + markup.table(
            "layers that lose the most",
            ("layer", "op", "lost dB", "SQNR dB"),
            ((n.name, n.op, round(n.lost, 1), round(n.error.sqnr, 1)) for n in worst),
        )


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` made: the files, what they say otherwise, and how far they are off.

    difference: the largest one at the outputs, over the largest output, on one random input.
    """

    paths: tuple[Path, ...]
    notes: tuple[str, ...]
    difference: float


@dataclass(frozen=True, slots=True)
class Gathered:
    """What `calibrate_files` and `merge_files` made.

    calibration: None for a merge.  known: files that were in already.  skipped: input files that
    could not be read, with the reason.
    """

    path: Path
    file: StatisticsFile
    calibration: Calibration | None = None
    known: int = 0
    skipped: tuple[str, ...] = ()
    convergence: Convergence | None = None


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

    blob_bytes: of all float blobs together; arena_bytes: of the buffers they are run in.  plan:
    what a calibration would take; None for a network that is quantized already.
    """

    nodes: tuple[NodeFacts, ...]
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    is_quantized: bool
    blob_bytes: int
    arena_bytes: int
    plan: planning.Plan | None


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
    """Return the shapes that inputs must have.

    Parameters
    ----------
    graph : of `load`

    Returns
    -------
    dict
        (1, C, H, W) by the name of the input; all are float32
    """
    return {blob.name: blob.shape for blob in graph.inputs}


def verify(
    reference: Graph,
    quantized: Graph,
    dataset: Samples,
    *,
    labels: Mapping[str, int] | Sequence[int] | None = None,
    why_float: Mapping[str, str] | None = None,
    jobs: int | None = None,
    on_progress: OnProgress = no_progress,
    detail: bool = False,
) -> Comparison:
    """Run both networks on every input, the int8 one in its target's arithmetic, and compare.

    labels: file name -> class index, in which every input must be, or one for each input in their
    order; a mapping may be filled while the inputs are loaded.  detail: also channel by channel.
    """

    def make_worker() -> Worker[ImageResult]:
        comparer = Comparer(reference, quantized, detail=detail)
        return lambda samples: [comparer.run(each.arrays, each.file) for each in samples]

    known: list[int] | None = None if labels is None else []
    total = len(dataset)

    def results() -> Iterator[ImageResult]:
        with Flow(
            dataset,
            make_worker,
            Resources.of(jobs),
            on_progress=lambda done: on_progress("verify", done, total),
        ) as flow:
            for result in flow.advance():
                if labels is not None and known is not None:
                    known.append(_label(labels, result.file, len(known)))
                yield result
        if known is not None and isinstance(labels, Sequence) and len(known) < len(labels):
            raise UsageError(f"there are {len(labels)} labels for {len(known)} inputs")

    return metrics.combine(reference, quantized, results(), known, why_float)


# ------------------------------------------------------------------ the whole job


def run(
    proto: Path,
    model: Path | None,
    input_path: Path | None,
    settings: Settings,
    *,
    inputs: Inputs | None = None,
    output: Path = Path("model_quantized.tnnproto"),
    labels: Path | None = None,
    verify_inputs: int = 16,
    nonfinite: str = "fail",
    jobs: int | None = None,
    batch: int | None = None,
    memory: int | None = None,
    statistics: Path | None = None,
    until_stable: bool = False,
    on_progress: OnProgress = no_progress,
    shapes: Mapping[str, Shape] | None = None,
    form: str = "qdq",
    float_fallback: bool = True,
    detail: bool = False,
    target: Target | None = None,
    cluster: str | None = None,
) -> Quantization:
    """Quantize a network: read, calibrate, solve, quantize, write, read back and verify.

    Parameters
    ----------
    proto : the .onnx or .tnnproto
    model : the .tnnmodel, None for that of the same name
    input_path : folder or file of inputs; with `statistics` for the verification only, or None
    settings : methods, granularity, target, layers that stay float
    inputs : which of the files, and how they become tensors
    output : the .onnx, or the .tnnproto whose .tnnmodel goes beside it; of the settings' target
    labels : CSV of file,label
    verify_inputs : how many of the inputs are compared, spread evenly over them; 0 for none
    nonfinite : "fail", or "skip" to leave NaN and infinite values out and list them
    jobs, batch, memory : threads, inputs a thread runs at once, bytes; see `plan.plan`
    statistics : a file of `calibrate_files`, solved instead of reading the data
    until_stable : end the calibration once the scales hardly move; see `quantjit.convergence`
    on_progress : called with stage, inputs done and inputs in all
    shapes : of inputs by name, (N, C, H, W), in place of what the file says
    form : of an int8 ONNX file, "qdq" or "qoperator"
    float_fallback : False refuses a network for ONNX in which a layer with multiplications has no
        int8 form
    detail : compare channel by channel too
    target : leave layers float until the inputs of the verification meet it; see `quantjit.mixed`
    cluster : whose workers gather the statistics; see `quantjit.cluster.connect`

    Returns
    -------
    Quantization
        both networks, table, statistics and comparison

    Raises
    ------
    UsageError
        options that contradict each other or the network
    FormatError
        a model that cannot be read or is quantized already
    DataError
        inputs that cannot be used, or statistics of another network
    CalibrationError
        NaN or infinite values, naming blob and input
    """
    inputs = inputs or Inputs()
    graph, notes = prepare(
        proto, model, settings, output, shapes=shapes, float_fallback=float_fallback
    )
    known = read_labels(labels) if labels is not None else None
    if until_stable and (settings.compat or statistics is not None):
        raise UsageError("--until-stable needs a pass over the data that is not that of TNN's tool")
    if target is not None and settings.compat:
        raise UsageError("--mixed cannot exchange nodes in the arithmetic of --compat tnn")
    if target is not None and not (verify_inputs and input_path is not None):
        raise UsageError("--mixed needs inputs to measure on")
    tracker = Tracker(settings.blob_solver, until_stable=until_stable)
    convergence = None
    dataset = None if input_path is None else inputs.open(input_path, graph)
    if statistics is not None:
        is_told = dataset is not None or inputs.preprocess != Preprocess()
        how = inputs.preprocess if is_told else None
        calibration = evidence.from_file(statistics, graph, settings, how)
    elif dataset is not None and cluster is not None:
        if settings.compat or until_stable:
            raise UsageError(
                "--cluster goes once through all inputs: no --until-stable or --compat"
            )
        rows = quantizer.observed_blobs(graph, infer_shapes(graph), settings)
        _, calibration = clusters.calibrate(
            cluster,
            graph,
            dataset,
            rows,
            planning.plan(graph, rows, memory=memory, jobs=jobs, batch=batch),
            evidence.origin_of(graph, inputs.preprocess),
            nonfinite=nonfinite,
            on_progress=on_progress,
        )
    elif dataset is not None:
        calibration = calibrate(
            graph,
            dataset,
            settings,
            jobs=jobs,
            batch=batch,
            memory=memory,
            nonfinite=nonfinite,
            on_progress=on_progress,
            on_snapshot=tracker.take,
        )
        seen = {b: s for b, s in calibration.stats.items() if isinstance(s, BlobStats)}
        convergence = tracker.finish(calibration.images, seen) if seen else None
    else:
        raise UsageError("give sample inputs or a statistics file")
    gather = None
    if dataset is not None:
        gather = evidence.gatherer(
            dataset, nonfinite, jobs=jobs, batch=batch, memory=memory, on_progress=on_progress
        )
    refined = refine(
        graph,
        calibration.stats,
        settings,
        dataset,
        jobs=jobs,
        on_progress=on_progress,
        gather=gather,
    )
    written = Writing(proto, model, output, form, statistics)
    checked = None
    if verify_inputs and dataset is not None:
        checked = dataset.spread(verify_inputs)
    found = None
    if target is not None and checked is not None:
        judge = Judge(graph, list(checked), known, jobs=jobs)
        found = mixed.search(refined, settings, target, judge, on_progress=on_progress)
        settings = found.settings
        refined = replace(refined, quantized=found.quantized, table=found.table)
    return finish(
        written,
        refined,
        settings,
        calibration,
        dataset,
        checked,
        labels=known,
        jobs=jobs,
        memory=memory,
        on_progress=on_progress,
        notes=notes,
        convergence=convergence,
        found=found,
        detail=detail,
    )


def prepare(
    proto: Path,
    model: Path | None,
    settings: Settings,
    output: Path | None,
    *,
    shapes: Mapping[str, Shape] | None = None,
    float_fallback: bool = True,
) -> tuple[Graph, tuple[str, ...]]:
    """Return the float network as its target can have it, and what had to be said otherwise.

    Raises what is wrong with it, with the settings or with `output` before any work is done.
    """
    graph = read(proto, model, shapes)
    if _is_quantized(graph):
        raise FormatError(proto, "", "a float network", "one that is quantized already")
    if output is not None:
        if not output.parent.is_dir():
            raise UsageError(f"{output.parent}: no such folder to write to")
        if (output.suffix.lower() == ".onnx") != (settings.target == "onnx"):
            raise UsageError(
                f"{output}: a network for {settings.target} cannot be written under it"
            )
    graph, notes = _fitted(graph, settings.target)
    graph = fuse_activation(graph)
    if not float_fallback:
        _refuse_stuck(graph, settings)
    return graph, notes


@dataclass(frozen=True, slots=True)
class Writing:
    """Where a network comes from and goes to; see `run`."""

    proto: Path
    model: Path | None
    output: Path
    form: str = "qdq"
    statistics: Path | None = None


def finish(
    written: Writing,
    refined: Refinement,
    settings: Settings,
    calibration: Calibration,
    dataset: Dataset | None,
    checked: Samples | None,
    *,
    labels: Mapping[str, int] | None = None,
    jobs: int | None = None,
    memory: int | None = None,
    on_progress: OnProgress = no_progress,
    notes: tuple[str, ...] = (),
    convergence: Convergence | None = None,
    found: Mixed | None = None,
    detail: bool = False,
) -> Quantization:
    """Write an int8 network, read it back and verify it: the last steps of `run`.

    dataset: all inputs, for their names.  checked: inputs to verify on, None for no verification.
    detail: channel by channel too.
    """
    graph, table = refined.graph, refined.table
    options: dict[str, Any] = {}
    if settings.target == "onnx":
        facts = {"method": str(settings)}
        if written.statistics is not None:
            facts["statistics"] = hashlib.sha256(written.statistics.read_bytes()).hexdigest()
        elif dataset is not None:
            facts["calibration"] = dataset.fingerprint()
        metadata = {f"quantjit.{key}": value for key, value in facts.items()}
        options = {"form": written.form, "metadata": metadata}
    paths = formats.save(refined.quantized, written.output, **options)
    quantized = _one_at_a_time(formats.load(*paths))
    comparison = None
    if checked is not None:
        rows = {blob: seen.channels for blob, seen in calibration.stats.items()}
        fitting = planning.threads_to_verify(graph, rows, memory)
        comparison = verify(
            graph,
            quantized,
            checked,
            labels=labels,
            why_float=table.float_nodes,
            jobs=jobs if memory is None else min(fitting, jobs or fitting),
            on_progress=on_progress,
            detail=detail,
        )
    sources = formats.files_of(written.proto, written.model)
    return Quantization(
        graph,
        quantized,
        table,
        calibration,
        () if dataset is None else tuple(map(str, dataset.skipped)),
        comparison,
        paths,
        sum(path.stat().st_size for path in sources),
        sum(path.stat().st_size for path in paths),
        notes,
        convergence,
        refined.effects,
        found,
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


def calibrate_files(
    proto: Path,
    model: Path | None,
    input_path: Path,
    output: Path,
    *,
    inputs: Inputs | None = None,
    merge: str = "mix",
    shard: tuple[int, int] | None = None,
    append: bool = False,
    resume: bool = False,
    every: tuple[int | None, float | None] = (None, 60.0),
    marks: str = "bytes",
    nonfinite: str = "fail",
    jobs: int | None = None,
    batch: int | None = None,
    memory: int | None = None,
    until_stable: bool = False,
    on_progress: OnProgress = no_progress,
    stop: Callable[[], bool] = lambda: False,
    shapes: Mapping[str, Shape] | None = None,
    target: str | None = None,
    cluster: str | None = None,
) -> Gathered:
    """Gather the statistics of a network in a file that `run` solves from.

    merge: "channel" for statistics that serve every merge type, else per tensor.  shard: number
    from 1, and count.  append: add to what `output` holds.  resume: continue from the checkpoint,
    where there is one.  every: checkpoints after so many inputs or seconds.  marks: see
    `quantjit.dataset.MARKS`.  stop: see `Gathering.run`; Interrupted is raised when the checkpoint
    is written.  until_stable: end once the scales hardly move; see `quantjit.convergence`.
    shapes: of inputs by name.  target: format that the network is to be written in, None for its
    own.  cluster: whose workers gather, see `quantjit.cluster.connect`: without checkpoints.
    """
    if cluster is not None and (append or resume or until_stable):
        raise UsageError(
            "--cluster goes once through all inputs: leave out --append, --resume, --until-stable"
        )
    if until_stable and resume:
        raise UsageError(
            "--until-stable compares with what the interrupted run had seen: --resume without it "
            "goes through all inputs"
        )
    inputs = inputs or Inputs()
    graph = load(proto, model, shapes)
    if graph.is_quantized:
        raise FormatError(proto, "", "a float network", "one that is quantized already")
    if target is not None:
        graph = fuse_activation(_fitted(read(proto, model, shapes), target)[0])
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent}: no such folder to write to")
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    if checkpoint.exists() and not resume:
        raise UsageError(
            f"{checkpoint} is of a run that did not end: --resume continues it; to start again, "
            "delete it"
        )
    dataset = inputs.open(input_path, graph)
    if shard is not None:
        dataset = dataset.shard(*shard)
    channels = evidence.blobs_to_gather(graph, merge)
    plan = planning.plan(graph, channels, memory=memory, jobs=jobs, batch=batch)
    origin = evidence.origin_of(graph, inputs.preprocess, marks)
    if cluster is not None:
        file, calibration = clusters.calibrate(
            cluster,
            graph,
            dataset,
            channels,
            plan,
            origin,
            nonfinite=nonfinite,
            on_progress=on_progress,
        )
        file.save(output)
        return Gathered(output, file, calibration, 0, tuple(map(str, dataset.skipped)))
    base_path = output if append else None
    if resume:  # what is complete already is continued too: there is nothing left to do
        base_path = next((path for path in (checkpoint, output) if path.exists()), base_path)
    base = None if base_path is None else StatisticsFile.load(base_path)
    gathering = Gathering(
        graph, dataset, channels, plan, origin, base, base_path, is_fixed=resume and not append
    )
    tracker = Tracker(solvers.blob_solvers()[FOLLOWED], until_stable=until_stable)
    calibration = gathering.run(
        nonfinite,
        checkpoints=Checkpoints(checkpoint, *every),
        on_progress=on_progress,
        on_snapshot=tracker.take,
        stop=stop,
    )
    file = gathering.file()
    file.save(output)
    checkpoint.unlink(missing_ok=True)
    skipped = tuple(map(str, dataset.skipped))
    convergence = tracker.finish(calibration.images, gathering.stats)
    return Gathered(output, file, calibration, gathering.known, skipped, convergence)


def merge_files(paths: Sequence[Path], output: Path) -> Gathered:
    """Add up statistics files: exactly as if all their inputs had been seen in one pass."""
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent}: no such folder to write to")
    file = statistics_file.merge(paths)
    file.save(output)
    return Gathered(output, file)


def read_twins(
    reference: tuple[Path, Path | None],
    quantized: tuple[Path, Path | None],
    shapes: Mapping[str, Shape] | None,
) -> tuple[Graph, Graph]:
    """Read a float network and its int8 form; FormatError where they do not belong together.

    The float one has the channel factors of an equalized int8 one, so that blobs can be compared.
    """
    graph, int8 = read(*reference, shapes), read(*quantized, shapes)
    if input_shapes(graph) != input_shapes(int8) or graph.outputs != int8.outputs:
        raise FormatError(
            quantized[0],
            "",
            f"inputs {input_shapes(graph)} and outputs {', '.join(graph.outputs)}",
            f"inputs {input_shapes(int8)} and outputs {', '.join(int8.outputs)}",
            "is it made from this float network?",
        )
    return matched(fuse_activation(graph), int8), int8


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
    graph, int8 = read_twins(reference, quantized, shapes)
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
    *,
    jobs: int | None = None,
    batch: int | None = None,
    memory: int | None = None,
) -> Inspection:
    """Say what is in a network and what would run in int8; the .tnnmodel may be missing.

    shapes: of inputs by name.  jobs, batch, memory: of the calibration that is planned.
    """
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
    plan = None
    if not graph.is_quantized:
        channels = quantizer.observed_blobs(fused, shapes, settings)
        plan = planning.plan(fused, channels, jobs=jobs, batch=batch, memory=memory)
    blob_bytes, arena_bytes = plan_memory(fused)
    return Inspection(
        nodes, input_shapes(graph), graph.outputs, graph.is_quantized, blob_bytes, arena_bytes, plan
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


def _label(labels: Mapping[str, int] | Sequence[int], file: str, place: int) -> int:
    if isinstance(labels, Sequence):
        if place >= len(labels):
            raise UsageError(f"there are {len(labels)} labels, and more inputs than that")
        return labels[place]
    try:
        return labels[Path(file).name]
    except KeyError:
        raise DataError(file, "has no row in the labels") from None
