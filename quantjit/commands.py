"""The commands that search: options -> one call -> what is printed."""

from pathlib import Path
from typing import Any

from rich.console import Console

from quantjit import analysis, terminal, tuning
from quantjit.calibration import OnProgress
from quantjit.formats import format_of
from quantjit.pipeline import Inputs
from quantjit.quantizer import PASSES, Settings
from quantjit.table import save_frame
from quantjit.tuning import Tuned


def output_of(name: str, target: str) -> Path:
    """Return the file that a network is written to."""
    return Path(f"{name}_quantized.{'onnx' if target == 'onnx' else 'tnnproto'}")


def run_tune(given: Any, inputs: Inputs, on_progress: OnProgress) -> Tuned:
    """Find the best settings and write the network; given: TuneOptions or QuantizeOptions."""
    target = given.format or format_of(given.proto).name
    settings = Settings(
        float_nodes=given.float_layers,
        target=target,
        symmetric=given.symmetric,
        exclude=given.exclude,
        activations=given.activations,
    )
    is_tune = not hasattr(given, "auto")
    tuned = tuning.run(
        given.proto,
        given.model,
        given.input_path,
        settings,
        inputs=inputs,
        output=output_of(given.output, target),
        labels=given.labels,
        verify_inputs=given.verify,
        jobs=given.jobs,
        memory=given.memory,
        batch=given.batch,
        nonfinite=given.nonfinite,
        on_progress=on_progress,
        shapes=given.input_shape,
        form=given.form,
        float_fallback=given.float_fallback,
        min_sqnr=given.min_sqnr if given.mixed else None,
        max_drop=given.max_drop if given.mixed else None,
        statistics=given.stats,
        cluster=given.cluster,
        zero_points=is_tune and given.zero_points,
        passes=given.passes if is_tune else PASSES,
    )
    if is_tune and given.leaderboard:
        save_frame(terminal.leaderboard_frame(tuned.candidates), given.leaderboard)
    return tuned


def run_analyze(given: Any, inputs: Inputs, on_progress: OnProgress, console: Console) -> None:
    """Measure what int8 costs in each node, and print it."""
    target = given.format or format_of(given.proto).name
    settings = Settings(
        given.blob_method,
        given.weight_method,
        given.merge_type,
        float_nodes=given.float_layers,
        target=target,
        symmetric=given.symmetric,
        exclude=given.exclude,
        activations=given.activations,
        passes=given.passes,
    )
    found = analysis.run(
        given.proto,
        given.model,
        given.input_path,
        settings,
        inputs=inputs,
        images=given.verify,
        jobs=given.jobs,
        memory=given.memory,
        batch=given.batch,
        nonfinite=given.nonfinite,
        statistics=given.stats,
        on_progress=on_progress,
        shapes=given.input_shape,
    )
    if given.nodes_table:
        save_frame(terminal.sensitivity_frame(found), given.nodes_table)
    if not given.quiet:
        terminal.print_sensitivity(console, found, settings)
