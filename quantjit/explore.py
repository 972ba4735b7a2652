"""Tables and pictures of a quantized network, a line each: for notebooks.

All of them take the result of `quantjit.quantize_model` (or `quantjit.run`).  What is named after
its content returns a polars frame; ``plot_`` functions return a matplotlib figure, which a notebook
shows as the last value of a cell; they need matplotlib (``pip install 'quantjit[plot]'``).  `sweep`
and `try_threshold` change one scale and measure what it does to the outputs.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from quantjit import api, observed, quantizer, rescale, tables
from quantjit.errors import UnsupportedError, UsageError
from quantjit.images import Preprocess
from quantjit.pipeline import Quantization, input_shapes
from quantjit.quantizer import Settings
from quantjit.sensitivity import Sensitivity
from quantjit.sources import Source, check_repeatable, open_samples
from quantjit.tuning import Tuned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "blobs",
    "candidates",
    "channels",
    "histogram",
    "layers",
    "plot_channels",
    "plot_convergence",
    "plot_histogram",
    "plot_layers",
    "plot_sweep",
    "plot_weights",
    "sensitivity",
    "sweep",
    "thresholds",
    "try_threshold",
    "weights",
]

_FACTORS = tuple(float(2 ** (power / 4)) for power in range(-8, 5))

# Colours that stay apart in grey and for colour-blind readers (Okabe and Ito, 2008).
_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#8a8a8a"
_NAMED = 4  # blobs of a plot that has a line for each
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#b8a800", "#7a5195")


# ------------------------------------------------------------------ tables


def layers(result: Quantization) -> pl.DataFrame:
    """Return a row a layer: op, shape, MACs, int8 or why not, steps, SQNR and dB lost in it.

    Parameters
    ----------
    result : of `quantjit.quantize_model`

    Returns
    -------
    polars.DataFrame
        in order of execution; sqnr_db and lost_db in dB, null where nothing was compared
    """
    return tables.nodes_frame(result)


def blobs(result: Quantization) -> pl.DataFrame:
    """Return a row a blob: how many scales, the widest threshold, what is clipped, dead channels.

    Parameters
    ----------
    result : of `quantjit.quantize_model`

    Returns
    -------
    polars.DataFrame
        threshold in real units, clipped_share of the values, largest over rows where a blob has
        several
    """
    frame = tables.channels_frame(result).filter(pl.col("seen_in") == "calibration")
    return frame.group_by("blob", maintain_order=True).agg(
        scales=pl.len(),
        minimum=pl.col("minimum").min(),
        maximum=pl.col("maximum").max(),
        threshold=pl.col("threshold").max(),
        clipped_share=pl.col("clipped_share").max(),
        dead=pl.col("dead").sum(),
    )


def channels(result: Quantization, blob: str | None = None) -> pl.DataFrame:
    """Return a row a channel: range, spread, share of zeros, step, threshold, clipped, dead.

    Parameters
    ----------
    result : of `quantjit.quantize_model`
    blob : name of the only blob to look at, or of the layer that writes it

    Returns
    -------
    polars.DataFrame
        real units; channel is null for the whole tensor; seen_in says which inputs: those of the
        calibration or, for channels of a blob with one scale, of the comparison

    Raises
    ------
    UnsupportedError
        a blob that is not there
    """
    return _of(tables.channels_frame(result), "blob", blob and _blob(result, blob))


def weights(result: Quantization, layer: str | None = None) -> pl.DataFrame:
    """Return a row an output channel of weights: range, share of the layer's range, step, SQNR.

    Parameters
    ----------
    result : of `quantjit.quantize_model`
    layer : name of the only layer to look at

    Returns
    -------
    polars.DataFrame
        real units, sqnr_db in dB

    Raises
    ------
    UnsupportedError
        a layer that has no weights or is not there
    """
    return _of(tables.weights_frame(result), "node", layer)


def thresholds(result: Quantization, blob: str | None = None) -> pl.DataFrame:
    """Return a row a blob and method: what each blob method would choose, and what is used.

    Parameters
    ----------
    result : of `quantjit.quantize_model`
    blob : name of the only blob to look at, or of the layer that writes it

    Returns
    -------
    polars.DataFrame
        minimum and maximum that the codes reach in real units, clipped_share of the values

    Raises
    ------
    UnsupportedError
        a blob without statistics
    """
    return _of(tables.solvers_frame(result), "blob", blob and _blob(result, blob))


def histogram(result: Quantization, blob: str, bins: int = 64) -> pl.DataFrame:
    """Return a row a bin of the magnitudes of a blob, all channels together.

    Parameters
    ----------
    result : of `quantjit.quantize_model`
    blob : its name, or that of the layer that writes it
    bins : over the whole range

    Returns
    -------
    polars.DataFrame
        low and high in real units, count of values; zeros are left out

    Raises
    ------
    UnsupportedError
        a blob without statistics, or that never was anything but 0
    """
    return _of(tables.histograms_frame(result, bins), "blob", _blob(result, blob))


def candidates(tuned: Tuned) -> pl.DataFrame:
    """Return a row for each settings that a search tried, the best first.

    Parameters
    ----------
    tuned : of `quantjit.tune`

    Returns
    -------
    polars.DataFrame
        sqnr_db in dB and agreement on the held-out inputs, seconds, why it went no further
    """
    return tables.leaderboard_frame(tuned.candidates)


def sensitivity(found: Sensitivity) -> pl.DataFrame:
    """Return a row a layer with what int8 costs in it, the most harmful first.

    Parameters
    ----------
    found : of `quantjit.analyze`

    Returns
    -------
    polars.DataFrame
        SQNR at the outputs in dB: alone_db with this layer alone in int8, without_db with all
        others, gain_db what leaving it float gains
    """
    return tables.sensitivity_frame(found)


def _blob(result: Quantization, name: str) -> str:
    """Return the blob that is meant: the output of a layer goes by the name of the layer too."""
    if name in result.calibration.stats:
        return name
    return next((node.outputs[0] for node in result.graph.nodes if node.name == name), name)


def _of(frame: pl.DataFrame, column: str, name: str | None) -> pl.DataFrame:
    if name is None:
        return frame
    known = frame[column].unique(maintain_order=True).to_list()
    if name not in known:
        raise UnsupportedError({"node": "layer with weights"}.get(column, column), name, known)
    return frame.filter(pl.col(column) == name)


# ------------------------------------------------------------------ what if


def try_threshold(
    result: Quantization,
    data: Source,
    blob: str,
    threshold: float,
    channel: int | None = None,
    *,
    settings: Settings | None = None,
    preprocess: Preprocess | None = None,
    jobs: int | None = None,
) -> Quantization:
    """Give one blob another clipping threshold, and compare the network with the float one.

    Parameters
    ----------
    result : of `quantjit.quantize_model`
    data : inputs to compare on, float32 (N, C, H, W), as for `quantjit.calibrate`
    blob : name of a blob that has a scale, or of the layer that writes it
    threshold : largest magnitude that the codes reach, in real units, above 0
    channel : of a blob with a scale a channel: the only one to change
    settings : those that the result was made with; by default those of the command line
    preprocess : how pictures become tensors
    jobs : threads, by default one a core

    Returns
    -------
    Quantization
        with the changed table and network, and its comparison; nothing is written

    Raises
    ------
    UsageError
        settings that the result was not made with, or a threshold that cannot be
    UnsupportedError
        a blob without a scale
    DataError
        inputs that do not fit
    """
    settings, blob = _settings(result, settings), _blob(result, blob)
    table = rescale.with_threshold(result.graph, result.table, settings, blob, threshold, channel)
    int8 = quantizer.quantize(result.graph, table, settings)
    comparison = api.verify(
        result.graph,
        int8,
        data,
        preprocess=preprocess,
        why_float=table.float_nodes,
        jobs=jobs,
        detail=True,
    )
    return replace(
        result, quantized=int8, table=table, comparison=comparison, paths=(), target_bytes=0
    )


def _settings(result: Quantization, settings: Settings | None) -> Settings:
    settings = settings or Settings(target="onnx" if result.quantized.is_onnx else "tnn")
    if str(settings) != result.table.method:
        raise UsageError(
            f"the result was made with {result.table.method!r}, not {str(settings)!r}: give the "
            "settings it was made with"
        )
    return settings


def sweep(
    result: Quantization,
    data: Source,
    blob: str,
    factors: Sequence[float] = _FACTORS,
    channel: int | None = None,
    *,
    settings: Settings | None = None,
    preprocess: Preprocess | None = None,
    jobs: int | None = None,
) -> pl.DataFrame:
    """Return how far the network is from the float one for several thresholds of one blob.

    Parameters
    ----------
    result : of `quantjit.quantize_model`
    data : inputs to compare on, float32 (N, C, H, W), read once for each factor
    blob : name of a blob that has a scale, or of the layer that writes it
    factors : of the present threshold, by default from a quarter to twice of it
    channel : of a blob with a scale a channel: the only one to change
    settings : those that the result was made with; by default those of the command line
    preprocess : how pictures become tensors
    jobs : threads, by default one a core

    Returns
    -------
    polars.DataFrame
        a row a factor: blob, channel, factor, threshold in real units, sqnr_db at the outputs in
        dB, agreement of the largest class (null without classes)

    Raises
    ------
    UsageError
        settings that the result was not made with, or a factor that is not above 0
    UnsupportedError
        a blob without a scale
    DataError
        inputs that do not fit or can be read once only
    """
    settings, blob = _settings(result, settings), _blob(result, blob)
    if blob not in result.table.scales:
        raise UnsupportedError("blob with a scale", blob, result.table.scales)
    samples = open_samples(data, input_shapes(result.graph), preprocess)
    check_repeatable(samples, "each threshold is tried on all of it")
    reach = rescale.thresholds_of(result.table.scales[blob], settings)
    present = float(reach.max() if channel is None else reach[min(channel, len(reach) - 1)])
    rows: list[dict[str, Any]] = []
    for factor in factors:
        found = try_threshold(
            result, samples, blob, present * factor, channel, settings=settings, jobs=jobs
        ).comparison
        if found is None:
            raise AssertionError("a trial is compared")
        rows.append(
            {
                "blob": blob,
                "channel": channel,
                "factor": float(factor),
                "threshold": present * factor,
                "sqnr_db": found.sqnr,
                "agreement": found.agreement,
            }
        )
    return pl.DataFrame(
        rows,
        schema={
            "blob": pl.String,
            "channel": pl.Int64,
            "factor": pl.Float64,
            "threshold": pl.Float64,
            "sqnr_db": pl.Float64,
            "agreement": pl.Float64,
        },
    )


# ------------------------------------------------------------------ pictures


@cache
def _picture() -> type["Figure"]:
    """Return the type of figures that a notebook shows without ``%matplotlib inline``."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "plots need matplotlib, which is not installed: pip install 'quantjit[plot]'"
        ) from None

    class Picture(Figure):
        """A figure of no window, which need not be closed."""

        def _repr_png_(self) -> bytes:
            stream = io.BytesIO()
            self.savefig(stream, format="png", dpi=110)
            return stream.getvalue()

    return Picture


def _figure(width: float = 8.0, height: float = 3.6) -> tuple["Figure", Any]:
    """Return an empty figure and its axes."""
    figure = _picture()(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_histogram(result: Quantization, blob: str, bins: int = 100) -> "Figure":
    """Draw the magnitudes of a blob with the threshold that each blob method would choose.

    Parameters
    ----------
    result : of `quantjit.quantize_model`
    blob : its name, or that of the layer that writes it
    bins : over the whole range

    Returns
    -------
    matplotlib.figure.Figure
        counts on a logarithmic axis over magnitudes in real units

    Raises
    ------
    UnsupportedError
        a blob without statistics
    UsageError
        matplotlib is not installed
    """
    bars, chosen = histogram(result, blob, bins), thresholds(result, blob)
    figure, axes = _figure()
    low, high = bars["low"].to_numpy(), bars["high"].to_numpy()
    axes.bar(low, bars["count"], high - low, align="edge", color=_BLUE, alpha=0.45)
    axes.set_yscale("log")
    reach = np.maximum(-chosen["minimum"].to_numpy(), chosen["maximum"].to_numpy())
    names, used = chosen["method"].to_list(), "in the network"
    others = [(float(at), name) for at, name in zip(reach, names, strict=True) if name != used]
    groups: dict[float, list[str]] = {}
    for at, name in sorted(others):  # one line for those that hardly differ
        near = next((key for key in groups if abs(key - at) < 0.004 * high[-1]), at)
        groups.setdefault(near, []).append(name)
    for (at, group), colour in zip(groups.items(), _COLOURS * len(groups), strict=False):
        axes.axvline(at, color=colour, linewidth=1.5, label=f"{', '.join(group)}: {at:.4g}")
    if used in names:
        at = float(reach[names.index(used)])
        axes.axvline(at, color="black", linestyle="--", linewidth=1.5, label=f"{used}: {at:.4g}")
    axes.set_xlim(0, max(high[-1], reach.max()) * 1.02)
    axes.set(xlabel="magnitude, real units", ylabel="values", title=f"{blob}: what is kept")
    axes.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def plot_channels(result: Quantization, blob: str) -> "Figure":
    """Draw the range of each channel of a blob, and the range that its codes reach.

    Parameters
    ----------
    result : of `quantjit.quantize_model`
    blob : its name, or that of the layer that writes it

    Returns
    -------
    matplotlib.figure.Figure
        ranges in real units by channel, the widest first

    Raises
    ------
    UnsupportedError
        a blob without statistics
    UsageError
        matplotlib is not installed
    """
    frame = channels(result, blob)
    each = frame.filter(pl.col("channel").is_not_null())
    each = each.filter(pl.col("seen_in") == each["seen_in"].first()) if len(each) else frame
    low, high = each["minimum"].to_numpy(), each["maximum"].to_numpy()
    order = np.argsort(-np.maximum(np.abs(low), np.abs(high)), kind="stable")
    low, high = low[order], high[order]
    steps = each["scale"].to_numpy()[order]
    zeros = each["zero_point"].cast(pl.Float64).to_numpy()[order]
    code = observed.lowest_code(result.quantized)
    places = np.arange(len(order))
    figure, axes = _figure()
    axes.bar(places, high - low, bottom=low, width=1.0, color=_BLUE, label="seen")
    for index, edge in enumerate((steps * (code - zeros), steps * (127 - zeros))):
        label = "reached by the codes" if index else None
        axes.step(
            np.append(places, len(places)) - 0.5,
            np.append(edge, edge[-1]),
            where="post",
            color=_ORANGE,
            linewidth=1.5,
            label=label,
        )
    axes.axhline(0, color="black", linewidth=0.6)
    used = (high - low) / np.maximum(steps * 254, 1e-30)
    share = float(np.mean(np.minimum(used, 1)))
    axes.set(
        xlabel="channel, the widest first",
        ylabel="real units",
        title=f"{blob}: {len(order)} channels use {share:.0%} of the codes on average",
    )
    axes.legend(fontsize="small", frameon=False, loc="upper right")
    return figure


def plot_weights(result: Quantization, layer: str | None = None) -> "Figure":
    """Draw the largest weight of each output channel of a layer, or the spread in all layers.

    Parameters
    ----------
    result : of `quantjit.quantize_model`
    layer : its name; None for all layers with weights

    Returns
    -------
    matplotlib.figure.Figure
        of a layer: magnitudes in real units by channel, the largest first, with the step of each;
        of all: how many times the largest channel is the median one

    Raises
    ------
    UnsupportedError
        a layer that has no weights or is not there
    UsageError
        matplotlib is not installed
    """
    frame = weights(result, layer)
    if layer is None:
        spread = frame.group_by("node", maintain_order=True).agg(
            spread=pl.col("absmax").max() / pl.col("absmax").filter(pl.col("absmax") > 0).median()
        )
        figure, axes = _figure(height=0.6 + 0.24 * len(spread))
        axes.barh(spread["node"].to_list(), spread["spread"].to_list(), color=_BLUE)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set(
            xlabel="largest channel over the median one",
            title="weights: one scale for a layer wastes what is far above 1",
        )
        axes.axvline(1, color="black", linewidth=0.6)
        return figure
    frame = frame.sort("absmax", descending=True, maintain_order=True)
    figure, axes = _figure()
    places = np.arange(len(frame))
    axes.bar(places, frame["absmax"], width=1.0, color=_BLUE, label="largest magnitude")
    if frame["scale"].null_count() < len(frame):
        axes.plot(places, frame["scale"], color=_ORANGE, drawstyle="steps-mid", label="step")
    axes.set_yscale("log")
    axes.set(
        xlabel="output channel, the largest first",
        ylabel="real units",
        title=f"{layer}: weights",
    )
    axes.legend(fontsize="small", frameon=False)
    return figure


def plot_layers(result: Quantization) -> "Figure":
    """Draw the SQNR of each layer's output, and what is lost in the layer itself.

    Parameters
    ----------
    result : of `quantjit.quantize_model`, with its comparison

    Returns
    -------
    matplotlib.figure.Figure
        dB by layer in order of execution; float layers are grey

    Raises
    ------
    UsageError
        nothing was compared, or matplotlib is not installed
    """
    frame = layers(result).filter(pl.col("sqnr_db").is_not_null())
    if not len(frame):
        raise UsageError("nothing was compared: quantize with verify_inputs other than 0")
    figure, axes = _figure(height=0.8 + 0.26 * len(frame))
    names, sqnr = frame["node"].to_list(), frame["sqnr_db"].to_numpy().clip(-20, 60)
    places = np.arange(len(names))
    colours = [_BLUE if int8 else _GREY for int8 in frame["int8"]]
    lost = frame["lost_db"].to_numpy().clip(0, 60) * frame["int8"].to_numpy()
    axes.barh(places, sqnr, color=colours)
    before = np.minimum(sqnr + lost, 60)
    axes.barh(places, before - sqnr, left=sqnr, color=_ORANGE, alpha=0.45)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    from matplotlib.patches import Patch

    axes.legend(
        handles=[
            Patch(color=_BLUE, label="SQNR of an int8 layer"),
            Patch(color=_GREY, label="of a float layer"),
            Patch(color=_ORANGE, alpha=0.45, label="lost in the layer"),
        ],
        fontsize="small",
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )
    axes.set(xlabel="dB (cut at 60)", title="how close each layer is to float")
    return figure


def plot_sweep(frame: pl.DataFrame) -> "Figure":
    """Draw what `sweep` found.

    Parameters
    ----------
    frame : of one or more `sweep`, joined by ``polars.concat``

    Returns
    -------
    matplotlib.figure.Figure
        SQNR at the outputs in dB over the factor of the present threshold, a line a blob

    Raises
    ------
    UsageError
        matplotlib is not installed
    """
    figure, axes = _figure()
    keys = frame.select("blob", "channel").unique(maintain_order=True).rows()
    for (blob, channel), colour in zip(keys, (_BLUE, *_COLOURS) * len(keys), strict=False):
        rows = frame.filter(
            (pl.col("blob") == blob) & pl.col("channel").eq_missing(pl.lit(channel, pl.Int64))
        )
        label = blob if channel is None else f"{blob}, channel {channel}"
        axes.plot(rows["factor"], rows["sqnr_db"], marker="o", color=colour, label=label)
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda factor, _: f"{factor:g}")
    axes.set(
        xlabel="threshold, times the present one",
        ylabel="SQNR at the outputs, dB",
        title="what a changed threshold does",
    )
    axes.legend(fontsize="small", frameon=False)
    return figure


def plot_convergence(result: Quantization) -> "Figure":
    """Draw how far the scales still moved as inputs came in.

    Parameters
    ----------
    result : of `quantjit.quantize_model`

    Returns
    -------
    matplotlib.figure.Figure
        relative move of the scale of each blob in per cent, over the inputs seen

    Raises
    ------
    UsageError
        fewer than 32 inputs, or matplotlib is not installed
    """
    convergence = result.convergence
    if convergence is None or len(convergence.inputs) < 2:
        raise UsageError("too few inputs to see scales converge: 32 at least")
    figure, axes = _figure()
    moves = convergence.moves()
    moving = list(convergence.moving())
    for blob, move in moves.items():
        place = moving.index(blob) if blob in moving else len(moving)
        colour = _COLOURS[place] if place < min(_NAMED, len(moving)) else _GREY
        axes.plot(
            convergence.inputs[1:],
            np.maximum(100 * move, 0.01),
            marker="o",
            color=colour,
            label=blob if colour != _GREY else None,
            zorder=2 if colour == _GREY else 3,
        )
    axes.axhline(1, color="black", linestyle="--", linewidth=1)
    axes.set_yscale("log")
    axes.set_xticks(convergence.inputs[1:], [str(count) for count in convergence.inputs[1:]])
    axes.set(
        xlabel="inputs seen",
        ylabel="move of the scale, %",
        title=f"{len(moves) - len(moving)} of {len(moves)} blobs have settled",
    )
    if moving:
        axes.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
