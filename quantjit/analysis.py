"""What int8 costs in each node of a network on disk: `sensitivity` from files."""

from collections.abc import Mapping
from pathlib import Path

from quantjit import calibration as evidence
from quantjit import pipeline, sensitivity
from quantjit.calibration import OnProgress, no_progress
from quantjit.errors import UsageError
from quantjit.judge import Judge
from quantjit.ops import Shape
from quantjit.pipeline import Inputs
from quantjit.quantizer import Settings
from quantjit.refine import refine
from quantjit.sensitivity import Sensitivity


def run(
    proto: Path,
    model: Path | None,
    input_path: Path,
    settings: Settings,
    *,
    inputs: Inputs | None = None,
    images: int = 8,
    jobs: int | None = None,
    memory: int | None = None,
    batch: int | None = None,
    nonfinite: str = "fail",
    statistics: Path | None = None,
    on_progress: OnProgress = no_progress,
    shapes: Mapping[str, Shape] | None = None,
) -> Sensitivity:
    """Quantize a network in memory and measure each of its int8 nodes; nothing is written.

    images: inputs of each trial, spread evenly over all.  The others as in `pipeline.run`.
    """
    if settings.compat:
        raise UsageError("nodes cannot be exchanged in the arithmetic of --compat tnn")
    inputs = inputs or Inputs()
    graph, _ = pipeline.prepare(proto, model, settings, None, shapes=shapes)
    dataset = inputs.open(input_path, graph)
    if statistics is not None:
        calibration = evidence.from_file(statistics, graph, settings, inputs.preprocess)
    else:
        calibration = evidence.calibrate(
            graph,
            dataset,
            settings,
            jobs=jobs,
            batch=batch,
            memory=memory,
            nonfinite=nonfinite,
            on_progress=on_progress,
        )
    refined = refine(
        graph, calibration.stats, settings, dataset, jobs=jobs, on_progress=on_progress
    )
    judge = Judge(refined.graph, list(dataset.spread(images)), jobs=jobs)
    return sensitivity.measure(refined.graph, refined.quantized, judge, on_progress=on_progress)
