"""Whole jobs in one call: `quantjit.quantize_model`, `tune`, `analyze` and `report`."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from quantjit import calibration as evidence
from quantjit import formats, mixed, page, pipeline, quantizer, sensitivity, tables
from quantjit import tuning as search
from quantjit.api import Labels, labels_of, load, opened, save, target_of, verify
from quantjit.calibration import Calibration, Gathering, OnProgress, no_progress
from quantjit.convergence import Convergence, Tracker
from quantjit.dataset import Collected, Dataset, Sample, Samples, prefetch
from quantjit.errors import UsageError
from quantjit.graph import Graph
from quantjit.images import Preprocess
from quantjit.judge import Judge, Target
from quantjit.mixed import Mixed
from quantjit.pipeline import Quantization
from quantjit.plan import plan
from quantjit.quantizer import Settings
from quantjit.refine import Refinement, refine
from quantjit.sensitivity import Sensitivity
from quantjit.sources import Indexed, Source, check_repeatable
from quantjit.stats import BlobStats
from quantjit.tuning import Tuned

__all__ = ["analyze", "quantize_model", "report", "tune"]


def quantize_model(
    model: str | Path | Graph,
    data: Source,
    output: str | Path | None = None,
    settings: Settings | None = None,
    *,
    preprocess: Preprocess | None = None,
    evaluation: Source | None = None,
    labels: Labels | None = None,
    verify_inputs: int | None = None,
    nonfinite: str = "fail",
    jobs: int | None = None,
    batch: int | None = None,
    memory: int | None = None,
    on_progress: OnProgress = no_progress,
) -> Quantization:
    """Do all of it in one call: calibrate, solve, quantize, try passes, write and verify.

    Parameters
    ----------
    model : path of a float network, or one of `load`
    data : calibration inputs, float32 (N, C, H, W), as for `calibrate`
    output : the .onnx or .tnnproto to write, which is then read back; None: nothing is written
    settings : by default those of the command line, for the format of `output`, or else of `model`
    preprocess : how pictures become tensors
    evaluation : inputs that the networks are compared on, float32 (N, C, H, W), by default `data`
    labels : class indices of these, as for `verify`
    verify_inputs : how many of them, spread evenly; None for all, 0 for no comparison
    nonfinite : "fail", or "skip" to leave NaN and infinite values out and list them
    jobs : threads, by default one a core
    batch : inputs that a thread runs at once, by default as fits the memory
    memory : bytes that the calibration may take
    on_progress : called with stage, inputs done and inputs in all (0: not known)

    Returns
    -------
    Quantization
        both networks, table, statistics, comparison with its channels, how the scales converged

    Raises
    ------
    UsageError
        settings of another target than `output`, a folder that is not there, or a network that is
        quantized already
    FormatError
        a model that cannot be read
    DataError
        inputs that do not fit, or would have to be read again and cannot be
    CalibrationError
        NaN or infinite values, naming blob and input
    """
    settings = settings or Settings(target=_target(model, output))
    graph = _prepared(model, output, settings)
    samples = opened(graph, data, preprocess)
    if (evaluation is None and verify_inputs != 0) or settings.passes or settings.compat:
        check_repeatable(samples, "it is needed again after the calibration")
    tracker = Tracker(settings.blob_solver)
    gathered = evidence.calibrate(
        graph,
        samples,
        settings,
        jobs=jobs,
        batch=batch,
        memory=memory,
        nonfinite=nonfinite,
        on_progress=on_progress,
        on_snapshot=tracker.take,
    )
    seen = {b: s for b, s in gathered.stats.items() if isinstance(s, BlobStats)}
    refined = refine(graph, gathered.stats, settings, samples, jobs=jobs, on_progress=on_progress)
    compared = None
    if verify_inputs != 0:
        compared = samples if evaluation is None else opened(graph, evaluation, preprocess)
        if verify_inputs is not None:
            compared = _spread(compared, verify_inputs)
    return _finished(
        model,
        output,
        refined,
        gathered,
        samples,
        compared,
        labels,
        tracker.finish(gathered.images, seen) if seen else None,
        jobs=jobs,
        on_progress=on_progress,
    )


def _target(model: str | Path | Graph, output: str | Path | None) -> str:
    if output is not None:
        return target_of(output)
    return "tnn" if isinstance(model, Graph) else formats.format_of(model).name


def _prepared(model: str | Path | Graph, output: str | Path | None, settings: Settings) -> Graph:
    """Return the float network, once it is known that `output` can be written."""
    if output is not None:
        folder = Path(output).parent
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder to write to")
        if target_of(output) != settings.target:
            raise UsageError(
                f"{output}: a network for {settings.target} cannot be written under it"
            )
    return model if isinstance(model, Graph) else load(model, target=settings.target)


def _spread(samples: Samples, count: int) -> Samples:
    spread = getattr(samples, "spread", None)
    if spread is None:
        raise UsageError(f"{type(samples).__name__} cannot be compared in part: verify_inputs=None")
    found: Samples = spread(count)
    return found


def _finished(
    model: str | Path | Graph,
    output: str | Path | None,
    refined: Refinement,
    gathered: Calibration,
    samples: Samples,
    compared: Samples | None,
    labels: Labels | None,
    convergence: Convergence | None = None,
    found: Mixed | None = None,
    *,
    jobs: int | None,
    on_progress: OnProgress,
) -> Quantization:
    """Write the network, where that is asked for, and compare what was written."""
    quantized = refined.quantized
    paths: tuple[Path, ...] = ()
    if output is not None:
        paths = save(quantized, output)
        quantized = pipeline.read(paths[0], paths[1] if paths[1:] else None)
    comparison = None
    if compared is not None:
        comparison = verify(
            refined.graph,
            quantized,
            compared,
            labels=labels,
            why_float=refined.table.float_nodes,
            jobs=jobs,
            on_progress=on_progress,
            detail=True,
        )
    files = () if isinstance(model, Graph) else formats.files_of(model)
    return Quantization(
        refined.graph,
        quantized,
        refined.table,
        gathered,
        tuple(map(str, getattr(samples, "skipped", ()))),
        comparison,
        paths,
        sum(file.stat().st_size for file in files),
        sum(file.stat().st_size for file in paths),
        (),
        convergence,
        refined.effects,
        found,
    )


def tune(
    model: str | Path | Graph,
    data: Source,
    output: str | Path | None = None,
    settings: Settings | None = None,
    *,
    preprocess: Preprocess | None = None,
    held_out: Source | None = None,
    labels: Labels | None = None,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    passes: tuple[str, ...] = quantizer.PASSES,
    nonfinite: str = "fail",
    jobs: int | None = None,
    batch: int | None = None,
    memory: int | None = None,
    on_progress: OnProgress = no_progress,
) -> Tuned:
    """Find the settings that keep the most of a network, and quantize it with them.

    Every method and granularity that the target can express is solved from one pass over the
    inputs and run on inputs that were held out of it.

    Parameters
    ----------
    model : path of a float network, or one of `load`
    data : calibration inputs, float32 (N, C, H, W), as for `calibrate`; read more than once
    output : the .onnx or .tnnproto to write, which is then read back; None: nothing is written
    settings : target and layers to keep float; the methods in it are ignored
    preprocess : how pictures become tensors
    held_out : inputs to judge by, float32 (N, C, H, W); by default a fifth of `data` (of
        few, up to a third), 64 at most
    labels : class indices, as for `verify`; as a list, those of `held_out`
    min_sqnr : dB at the outputs; layers are left float until it is met
    max_drop : share of the inputs whose largest class may change, or of top-1 that may be lost
    passes : tried on the best few candidates
    nonfinite : "fail", or "skip" to leave NaN and infinite values out and list them
    jobs : threads, by default one a core
    batch : inputs that a thread runs at once, by default as fits the memory
    memory : bytes that the calibration may take
    on_progress : called with stage, steps done and steps in all

    Returns
    -------
    Tuned
        the quantization, the settings that won, and all candidates, SQNR in dB on the held-out
        inputs, best first

    Raises
    ------
    UsageError
        settings of another target than `output`, or that leave nothing to tune
    FormatError
        a model that cannot be read
    DataError
        inputs that do not fit, too few of them, or that can be read once only
    """
    settings = settings or Settings(target=_target(model, output))
    if settings.compat:
        raise UsageError("compat has its settings from TNN's tool: there is nothing to tune")
    graph = _prepared(model, output, settings)
    samples = opened(graph, data, preprocess)
    check_repeatable(samples, "a part of it is held out, and passes read the rest again")
    rest, kept, known = _divided(graph, samples, held_out, preprocess, labels)
    rows = search.blobs_to_gather(graph, settings)
    planned = plan(graph, rows, memory=memory, jobs=jobs, batch=batch)
    gathered = Gathering(graph, rest, rows, planned).run(nonfinite, on_progress=on_progress)
    start = time.perf_counter()
    judge = Judge(graph, kept, known, jobs=jobs)
    stats = {b: s for b, s in gathered.stats.items() if isinstance(s, BlobStats)}
    best, tried = search.search(
        graph,
        stats,
        settings,
        judge,
        samples=rest,
        passes=passes,
        jobs=jobs,
        on_progress=on_progress,
    )
    refined, chosen, found = best.refined, best.settings, None
    wanted = Target(min_sqnr, max_drop)
    if wanted:
        found = mixed.search(refined, chosen, wanted, judge, on_progress=on_progress)
        chosen = found.settings
        refined = replace(refined, quantized=found.quantized, table=found.table)
    seconds = time.perf_counter() - start
    made = _finished(
        model,
        output,
        refined,
        gathered,
        rest,
        Collected(kept),
        known,
        found=found,
        jobs=jobs,
        on_progress=on_progress,
    )
    return Tuned(made, chosen, tried, len(kept), seconds)


def _divided(
    graph: Graph,
    samples: Samples,
    held_out: Source | None,
    preprocess: Preprocess | None,
    labels: Labels | None,
) -> tuple[Samples, list[Sample], Mapping[str, int] | None]:
    """Return the inputs for statistics, those that are held out, and the labels of these."""
    rest: Samples = samples
    if held_out is not None:
        part = opened(graph, held_out, preprocess)
    elif isinstance(samples, Dataset):
        rest, part, _ = search.divide(samples)
    elif isinstance(samples, Indexed) and len(samples) > 1:
        count = search.held_out_of(len(samples))
        rest, part = samples.divided(min(count, search.MOST_HELD_OUT))
    else:
        raise UsageError("there is no part to hold out: give held_out, the inputs to judge by")
    kept = list(prefetch(part))
    known = labels_of(labels, part)
    if known is None or isinstance(known, Mapping):
        return rest, kept[: search.MOST_HELD_OUT], known
    if held_out is None:
        raise UsageError("a list of labels is that of held_out: give it too, or labels by name")
    if len(known) != len(kept):
        raise UsageError(f"there are {len(known)} labels for {len(kept)} inputs")
    named = {Path(each.file).name: label for each, label in zip(kept, known, strict=True)}
    return rest, kept[: search.MOST_HELD_OUT], named


def analyze(
    reference: Graph,
    quantized: Graph,
    data: Source,
    *,
    preprocess: Preprocess | None = None,
    images: int = 8,
    jobs: int | None = None,
    on_progress: OnProgress = no_progress,
) -> Sensitivity:
    """Measure what int8 costs in each layer: end to end, with it alone in int8 and without it.

    Parameters
    ----------
    reference : float network
    quantized : int8 network of `quantize` made from it, or that of a `Quantization` without output
    data : inputs, float32 (N, C, H, W), as for `calibrate`
    preprocess : how pictures become tensors
    images : inputs that are run, the first ones; each trial runs all of them
    jobs : threads, by default one a core
    on_progress : called with stage, trials done and trials in all

    Returns
    -------
    Sensitivity
        SQNR in dB at the outputs for each int8 layer, the most harmful first

    Raises
    ------
    UsageError
        an int8 network whose layers are not those of the float one, or too few images
    DataError
        an input that does not fit the network, by name, or none at all
    """
    names = [[node.name for node in graph.nodes] for graph in (reference, quantized)]
    if names[0] != names[1] or not quantized.is_quantized:
        raise UsageError("the layers differ: give the network that `quantize` made from this one")
    if images < 1:
        raise UsageError(f"images must be 1 or more, got {images}")
    kept: list[Sample] = []
    for sample in prefetch(opened(reference, data, preprocess)):
        kept.append(sample)
        if len(kept) == images:
            break
    judge = Judge(reference, kept, jobs=jobs)
    return sensitivity.measure(reference, quantized, judge, on_progress=on_progress)


def report(
    folder: str | Path,
    result: Quantization | Tuned,
    settings: Settings | None = None,
    *,
    title: str = "",
    class_names: Sequence[str] = (),
) -> Path:
    """Write a folder with one HTML page that needs nothing else, and its tables.

    Parameters
    ----------
    folder : is made where it is not there; of a report that is, the files are replaced
    result : of `quantize_model`, `run` or `tune`
    settings : those it was made with; of `tune` they are known
    title : of the page
    class_names : by class index

    Returns
    -------
    Path
        of the page; the tables are beside it, each as .parquet and .csv

    Raises
    ------
    UsageError
        a file where the folder should be, or no folder to make it in
    OSError
        what the disk says, naming the folder
    """
    source = page.Source(title=title, class_names=tuple(class_names))
    candidates = None
    if isinstance(result, Tuned):
        candidates = tables.leaderboard_frame(result.candidates)
        settings, result = result.settings, result.quantization
    return page.write(Path(folder), result, settings, source=source, candidates=candidates)[0]
