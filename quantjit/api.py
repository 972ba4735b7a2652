"""The steps as a program or a notebook calls them: `quantjit.calibrate` and its kin.

What the command line is for the shell.  Inputs may be whatever holds them (`quantjit.sources`),
settings left out are those of the command line, and what does not fit is said in one line before
the work begins.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantjit import calibration as evidence
from quantjit import formats, pipeline, quantizer, sources
from quantjit.calibration import Calibration, OnProgress, OnSnapshot, no_progress
from quantjit.dataset import Samples
from quantjit.errors import UnsupportedError, UsageError
from quantjit.executor import infer_shapes
from quantjit.graph import Graph
from quantjit.images import Preprocess, Shape
from quantjit.metrics import Comparison
from quantjit.passes.fit_tnn import fit_tnn
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.pipeline import input_shapes
from quantjit.quantizer import TARGETS, Settings
from quantjit.sources import Source, check_repeatable, open_samples
from quantjit.stats import BlobStats, ReferenceStats
from quantjit.table import CalibrationTable

__all__ = ["calibrate", "load", "quantize", "save", "solve", "verify"]

Stats = Mapping[str, BlobStats] | Mapping[str, ReferenceStats]
Labels = Mapping[str, int] | Sequence[int] | str | Path | bool


def load(
    path: str | Path,
    weights: str | Path | None = None,
    shapes: Mapping[str, Shape] | None = None,
    *,
    target: str | None = None,
) -> Graph:
    """Read a network for the steps that follow.

    Parameters
    ----------
    path : the .onnx or .tnnproto
    weights : the .tnnmodel, by default that of the same name
    shapes : of inputs by name, (N, C, H, W), in place of what the file says
    target : "tnn" to put a network from ONNX into the words of TNN, so that it can be saved as one

    Returns
    -------
    Graph
        with inputs (1, C, H, W) float32 and activations fused into the layers before them; of an
        int8 file, the int8 network

    Raises
    ------
    FormatError
        what cannot be read, naming file and layer
    UnsupportedError
        an operator or target that is not known
    """
    graph = pipeline.load(path, weights, shapes)
    if target is None or graph.is_quantized:
        return graph
    if target not in TARGETS:
        raise UnsupportedError("target", target, TARGETS)
    return fuse_activation(fit_tnn(graph).graph) if target == "tnn" else graph


def save(
    graph: Graph, path: str | Path, weights: str | Path | None = None, **options: Any
) -> tuple[Path, ...]:
    """Write a network, each file first under a temporary name.

    Parameters
    ----------
    graph : float or int8
    path : the .onnx or .tnnproto; an int8 network goes into the format it was quantized for
    weights : the .tnnmodel, by default beside it under the same name
    options : for ONNX ``form`` ("qdq" or "qoperator") and ``metadata`` (dict of str)

    Returns
    -------
    tuple of Path
        the files written

    Raises
    ------
    UsageError
        an int8 network of another target than the format
    UnsupportedError
        a layer that the format does not know, or another suffix
    OSError
        what the disk says, naming the file
    """
    mine = "onnx" if graph.is_onnx else "tnn"
    if graph.is_quantized and mine != target_of(path):
        raise UsageError(
            f"{path}: the network was quantized for {mine}; Settings(target={target_of(path)!r}) "
            "quantize for this format"
        )
    return formats.save(graph, path, weights, **options)


def target_of(path: str | Path) -> str:
    """Return which of TARGETS a file of this name is of."""
    return "onnx" if Path(path).suffix.lower() == ".onnx" else "tnn"


def calibrate(
    graph: Graph,
    data: Source,
    settings: Settings | None = None,
    *,
    preprocess: Preprocess | None = None,
    jobs: int | None = None,
    batch: int | None = None,
    memory: int | None = None,
    nonfinite: str = "fail",
    on_progress: OnProgress = no_progress,
    on_snapshot: OnSnapshot | None = None,
) -> Calibration:
    """Run the float network on every input and gather the statistics of its blobs, in one pass.

    Parameters
    ----------
    graph : float network of `load`
    data : the inputs, float32 (C, H, W) each or in batches (N, C, H, W): a folder, arrays, a data
        loader, a reader, a generator; see `quantjit.sources.open_samples`
    settings : say which blobs are looked at; by default those of the command line
    preprocess : how pictures become tensors
    jobs : threads, by default one a core
    batch : inputs that a thread runs at once, by default as fits the memory
    memory : bytes that the process may take; with very little there are fewer bins
    nonfinite : "fail", or "skip" to leave NaN and infinite values out and list them
    on_progress : called with stage, inputs done and inputs in all (0: not known)
    on_snapshot : called with inputs and statistics at 1, 2, 4 ... inputs; True ends the pass

    Returns
    -------
    Calibration
        the same statistics for any order, batch and number of threads

    Raises
    ------
    DataError
        an input that does not fit the network, by name, or none at all
    CalibrationError
        NaN or infinite values, naming blob and input
    UsageError
        what holds no inputs, or a network that is quantized already
    """
    settings = settings or Settings()
    samples = opened(graph, data, preprocess)
    if settings.compat:
        check_repeatable(samples, "TNN's tool, which compat follows, reads its inputs twice")
    return evidence.calibrate(
        graph,
        samples,
        settings,
        jobs=jobs,
        batch=batch,
        memory=memory,
        nonfinite=nonfinite,
        on_progress=on_progress,
        on_snapshot=on_snapshot,
    )


def opened(graph: Graph, data: Source, preprocess: Preprocess | None) -> Samples:
    """Return the inputs of a float network; UsageError for one that is quantized already."""
    if graph.is_quantized:
        raise UsageError("this network is quantized already: calibrate the float one")
    return open_samples(data, input_shapes(graph), preprocess)


def solve(
    graph: Graph, stats: Calibration | Stats | str | Path, settings: Settings | None = None
) -> CalibrationTable:
    """Decide the scale of every blob that an int8 layer reads or writes.

    Parameters
    ----------
    graph : float network that the statistics are of
    stats : of `calibrate`, or the path of a file of ``quantjit calibrate``
    settings : methods and granularity; may differ from those of `calibrate` in the methods

    Returns
    -------
    CalibrationTable
        steps, float32 (1,) or (channels,), by blob, in real units

    Raises
    ------
    CalibrationError
        a blob without a finite value
    DataError
        statistics of another network, or without what the settings need
    UnsupportedError
        a name in the settings that fits no layer
    """
    settings = settings or Settings()
    if isinstance(stats, str | Path):
        stats = evidence.from_file(Path(stats), graph, settings, None)
    seen = stats.stats if isinstance(stats, Calibration) else stats
    _check_stats(graph, seen, settings)
    return quantizer.solve(graph, seen, settings)


def _check_stats(graph: Graph, stats: Stats, settings: Settings) -> None:
    """Raise UsageError where a blob's statistics are missing or of another granularity."""
    needed = quantizer.observed_blobs(graph, infer_shapes(graph), settings)
    for blob, rows in needed.items():
        seen = stats.get(blob)
        if seen is None or seen.channels != rows:
            found = "none" if seen is None else f"those of {seen.channels} channels"
            wanted = "of the whole tensor" if rows == 1 else f"of {rows} channels"
            raise UsageError(
                f"blob {blob!r} needs statistics {wanted}, found {found}: calibrate with these "
                "settings (merge, target, exclude)"
            )


def quantize(graph: Graph, table: CalibrationTable, settings: Settings | None = None) -> Graph:
    """Make the int8 network: codes of weights, int32 biases, scales of blobs.

    Parameters
    ----------
    graph : float network that the table is of
    table : of `solve` with the same settings
    settings : by default those of the command line

    Returns
    -------
    Graph
        weights int8 (out, in, kernel height, kernel width), biases int32 (out,)

    Raises
    ------
    UsageError
        a table that lacks a blob of this network
    CalibrationError
        scales that a layer cannot have
    """
    settings = settings or Settings()
    strange = set(table.float_nodes) - {node.name for node in graph.nodes}
    if strange:
        raise UsageError(f"the table is of another network: it names layer {min(strange)!r}")
    for node in graph.nodes:
        blob = node.inputs[0] if "weight" in node.weights else None
        if blob is not None and node.name not in table.float_nodes and blob not in table.scales:
            raise UsageError(f"the table is of another network: it lacks blob {blob!r}")
    return quantizer.quantize(graph, table, settings)


def verify(
    reference: Graph,
    quantized: Graph,
    data: Source,
    *,
    preprocess: Preprocess | None = None,
    labels: Labels | None = None,
    why_float: Mapping[str, str] | None = None,
    jobs: int | None = None,
    on_progress: OnProgress = no_progress,
    detail: bool = False,
) -> Comparison:
    """Run both networks on every input, the int8 one in its target's arithmetic, and compare.

    Parameters
    ----------
    reference : float network
    quantized : int8 network made from it
    data : inputs, float32 (N, C, H, W), as for `calibrate`
    preprocess : how pictures become tensors
    labels : class indices: by name of the file, as a list in the order of the inputs, as a CSV of
        file,label, or True for those that the data bring, as loaders do with (inputs, labels)
    why_float : layer -> reason, as in `CalibrationTable`, for tables
    jobs : threads, by default one a core
    on_progress : called with stage, inputs done and inputs in all (0: not known)
    detail : whether the channels of blobs are compared too

    Returns
    -------
    Comparison
        SQNR in dB at the outputs and of each layer, agreement of the largest class, top-1 with
        labels

    Raises
    ------
    UsageError
        networks with other inputs or outputs, or labels that do not fit
    DataError
        an input that does not fit the network, by name, or none at all
    """
    pairs = ((input_shapes(each), each.outputs) for each in (reference, quantized))
    if next(pairs) != next(pairs):
        raise UsageError(
            f"the networks differ: inputs {input_shapes(reference)} and outputs "
            f"{', '.join(reference.outputs)}, against {input_shapes(quantized)} and "
            f"{', '.join(quantized.outputs)}"
        )
    samples = open_samples(data, input_shapes(reference), preprocess)
    return pipeline.verify(
        reference,
        quantized,
        samples,
        labels=labels_of(labels, samples),
        why_float=why_float,
        jobs=jobs,
        on_progress=on_progress,
        detail=detail,
    )


def labels_of(labels: Labels | None, samples: Samples) -> Mapping[str, int] | Sequence[int] | None:
    """Return class indices by name of the input, or in the order of the inputs; see `verify`."""
    if labels is None or labels is False:
        return None
    if labels is True:
        if not isinstance(samples, sources.Indexed | sources.Streamed):
            raise UsageError("files bring no labels: give a CSV of file,label or a list")
        return samples.labels
    if isinstance(labels, str | Path):
        return pipeline.read_labels(Path(labels))
    if isinstance(labels, Mapping):
        return labels
    found = sources.as_array(labels)
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise UsageError(f"labels must be integers, one an input, got {found.dtype} {found.shape}")
    return [int(label) for label in found]
