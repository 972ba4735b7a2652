"""A look at an int8 network that is there already, beside its float one: as at one just made."""

from collections.abc import Mapping
from pathlib import Path

from quantjit import calibration as evidence
from quantjit import formats, solvers
from quantjit import plan as planning
from quantjit.calibration import OnProgress, calibrate, no_progress
from quantjit.convergence import Tracker
from quantjit.errors import FormatError, UsageError
from quantjit.graph import Graph
from quantjit.images import Preprocess
from quantjit.ops import Shape
from quantjit.passes.fit_tnn import fit_tnn
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.pipeline import FOLLOWED, Inputs, Quantization, read_labels, read_twins, verify
from quantjit.quantizer import Settings
from quantjit.stats import BlobStats
from quantjit.table import CalibrationTable


def examine(
    reference: tuple[Path, Path | None],
    quantized: tuple[Path, Path | None],
    input_path: Path | None,
    *,
    inputs: Inputs | None = None,
    statistics: Path | None = None,
    labels: Path | None = None,
    verify_inputs: int | None = None,
    nonfinite: str = "fail",
    jobs: int | None = None,
    batch: int | None = None,
    memory: int | None = None,
    on_progress: OnProgress = no_progress,
    shapes: Mapping[str, Shape] | None = None,
) -> Quantization:
    """Look at two networks on disk as `pipeline.run` does at the one it makes.

    reference, quantized: a (.onnx, None) or a (.tnnproto, .tnnmodel or None).  input_path: read
    for the statistics, unless `statistics` holds them, and for the comparison, which there is none
    of without it.  verify_inputs: how many are compared, None for all.
    """
    inputs = inputs or Inputs()
    graph, int8 = read_twins(reference, quantized, shapes)
    settings = _settings_of(int8)
    if settings.target == "tnn":
        graph = fit_tnn(graph).graph
    graph = fuse_activation(graph)
    if not int8.is_quantized:
        raise FormatError(quantized[0], "", "an int8 network", "one without int8 layers")
    known = read_labels(labels) if labels is not None else None
    dataset = None if input_path is None else inputs.open(input_path, graph)
    convergence = None
    if statistics is not None:
        is_told = dataset is not None or inputs.preprocess != Preprocess()
        how = inputs.preprocess if is_told else None
        calibration = evidence.from_file(statistics, graph, settings, how)
    elif dataset is not None:
        tracker = Tracker(solvers.blob_solvers()[FOLLOWED])
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
        convergence = tracker.finish(calibration.images, seen)
    else:
        raise UsageError("give sample inputs or a statistics file")
    why_float = {node.name: "float in the file" for node in int8.nodes if node.quant is None}
    comparison = None
    if dataset is not None:
        rows = {blob: seen.channels for blob, seen in calibration.stats.items()}
        fitting = planning.threads_to_verify(graph, rows, memory)
        comparison = verify(
            graph,
            int8,
            dataset if verify_inputs is None else dataset.spread(verify_inputs),
            labels=known,
            why_float=why_float,
            jobs=jobs if memory is None else min(fitting, jobs or fitting),
            on_progress=on_progress,
            detail=True,
        )
    dead = {
        blob: int((seen.absmax == 0).sum())
        for blob, seen in calibration.stats.items()
        if (seen.absmax == 0).any()
    }
    sources, paths = formats.files_of(*reference), formats.files_of(*quantized)
    return Quantization(
        graph,
        int8,
        CalibrationTable(int8.scales, why_float, dead),
        calibration,
        () if dataset is None else tuple(map(str, dataset.skipped)),
        comparison,
        paths,
        sum(path.stat().st_size for path in sources),
        sum(path.stat().st_size for path in paths),
        (),
        convergence,
    )


def _settings_of(int8: Graph) -> Settings:
    """Return settings with the target and merge type of an int8 network: methods cannot be told."""
    if int8.is_onnx:
        return Settings("mse", "mse", "mix", target="onnx")
    if any(params.per_channel for params in int8.scales.values()):
        return Settings("mse", "mse", "channel")
    rows = [node.quant.weight_scale.size for node in int8.nodes if node.quant is not None]
    return Settings("mse", "mse", "tensor" if max(rows, default=1) == 1 else "mix")
