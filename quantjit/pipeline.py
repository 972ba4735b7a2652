"""The main job, step by step: read, calibrate, solve, quantize, write, verify.

Each step is a short function that a notebook can call by itself; `run` is all of them in order.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantjit import formats, metrics, quantizer
from quantjit.calibration import (
    Calibration,
    OnProgress,
    calibrate,
    no_progress,
)
from quantjit.dataset import Dataset, Preprocess, Samples
from quantjit.errors import DataError, FormatError, UsageError
from quantjit.executor import count_macs, infer_shapes, plan_memory
from quantjit.flow import Flow, Resources, Worker
from quantjit.graph import Graph
from quantjit.metrics import Comparer, Comparison, ImageResult
from quantjit.ops import Shape
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.passes.lower import lower
from quantjit.quantizer import Settings
from quantjit.table import CalibrationTable


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
class Quantization:
    """Everything that `run` made.

    graph: the float network with its activations fused; quantized: the int8 one as read back from
    `paths`; skipped: input files that could not be read, with the reason; comparison: None when
    nothing was verified.
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


def read(path: Path, weights: Path | None = None) -> Graph:
    """Read a network for work on one input at a time: the batch dimension becomes 1."""
    return _one_at_a_time(formats.load(path, weights))


def load(path: str | Path, weights: str | Path | None = None) -> Graph:
    """Read a network for the steps below: batch 1, activations fused into their convolutions.

    path: the .tnnproto; weights: its .tnnmodel, by default the same name.
    """
    return fuse_activation(read(Path(path), None if weights is None else Path(weights)))


def _one_at_a_time(graph: Graph) -> Graph:
    return graph.with_input_shapes(
        {blob.name: (1, *blob.shape[1:]) for blob in graph.inputs if len(blob.shape) > 1}
    )


def input_shapes(graph: Graph) -> dict[str, Shape]:
    """Network inputs by name, with the shapes that samples must have."""
    return {blob.name: blob.shape for blob in graph.inputs}


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
    """Run both networks on every input, the int8 one in TNN's integer arithmetic, and compare.

    labels: file name -> class index; every input must be in it.
    """

    def make_worker() -> Worker[tuple[str, ImageResult]]:
        comparer = Comparer(reference, quantized)
        return lambda samples: [(each.file, comparer.run(each.arrays)) for each in samples]

    known: list[int] | None = None if labels is None else []
    total = len(dataset)

    def results() -> Iterator[ImageResult]:
        with Flow(
            dataset,
            make_worker,
            Resources.of(jobs),
            on_progress=lambda done: on_progress("verify", done, total),
        ) as flow:
            for file, result in flow.advance():
                if labels is not None and known is not None:
                    known.append(_label(labels, file))
                yield result

    return metrics.combine(reference, quantized, results(), known, why_float)


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
) -> Quantization:
    """Quantize a TNN network: read, calibrate, solve, quantize, write, read back and verify.

    output: the .tnnproto to write; its .tnnmodel goes beside it.  labels: CSV of file,label.
    verify_inputs: how many of the inputs are compared, spread evenly over them; 0 for none.
    """
    inputs = inputs or Inputs()
    graph = read(proto, model)
    if graph.is_quantized:
        raise FormatError(proto, "", "a float network", "one that is quantized already")
    known = read_labels(labels) if labels is not None else None
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent}: no such folder to write to")
    graph = fuse_activation(graph)
    dataset = inputs.open(input_path, graph)
    calibration = calibrate(
        graph, dataset, settings, jobs=jobs, nonfinite=nonfinite, on_progress=on_progress
    )
    table = quantizer.solve(graph, calibration.stats, settings)
    paths = formats.save(quantizer.quantize(graph, table, settings), output)
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
    sources = (proto, model or proto.with_suffix(".tnnmodel"))
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
    )


def verify_files(
    reference: tuple[Path, Path | None],
    quantized: tuple[Path, Path | None],
    input_path: Path,
    *,
    inputs: Inputs | None = None,
    labels: Path | None = None,
    jobs: int | None = None,
    on_progress: OnProgress = no_progress,
) -> Comparison:
    """Compare two networks on disk, each a (.tnnproto, .tnnmodel), on all inputs of a folder."""
    inputs = inputs or Inputs()
    graph, int8 = read(*reference), read(*quantized)
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


def inspect(proto: Path, model: Path | None, settings: Settings) -> Inspection:
    """Say what is in a network and what would run in int8; the .tnnmodel may be missing."""
    with_weights = model is not None or proto.with_suffix(".tnnmodel").exists()
    graph = read(proto, model) if with_weights else _one_at_a_time(formats.load_structure(proto))
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
