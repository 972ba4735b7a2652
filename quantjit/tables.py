"""Results as polars frames: nodes, blobs, channels, weights, inputs, convergence, candidates.

The page, the terminal and the files of a report read the same ones.  Nothing here measures
anything; what each blob method would choose is solved again from the statistics.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from quantjit import onnx_target, solvers
from quantjit.convergence import Convergence
from quantjit.executor import count_macs, infer_shapes
from quantjit.graph import Graph, Node
from quantjit.metrics import EXACT_SQNR, TOP, Comparison, NodeError
from quantjit.observed import Evidence, Floats, kept_range, lowest_code, whole
from quantjit.passes.lower import lower
from quantjit.pipeline import Inspection, Quantization
from quantjit.quant import QuantParams
from quantjit.sensitivity import Sensitivity
from quantjit.stats import BlobStats, ReferenceStats
from quantjit.tuning import Candidate

IN_NETWORK = "in the network"
"""In place of a method: what the int8 network has."""

BINS = 64
"""Bins of the histograms of a report, over the whole range of magnitudes of a blob."""

_WEIGHTED = ("convolution", "inner_product")

# ------------------------------------------------------------------ of one step


def node_frame(comparison: Comparison) -> pl.DataFrame:
    """One row a node: name, op, int8, macs, sqnr, cosine, largest error, lost dB, why float."""
    rows = comparison.nodes
    return pl.DataFrame(
        {
            "node": [row.name for row in rows],
            "op": [row.op for row in rows],
            "int8": [row.is_int8 for row in rows],
            "macs": [row.macs for row in rows],
            "blob": [row.error.blob for row in rows],
            "sqnr_db": [row.error.sqnr for row in rows],
            "cosine": [row.error.cosine for row in rows],
            "largest_error": [row.error.largest for row in rows],
            "lost_db": [row.lost for row in rows],
            "why_float": [row.why_float for row in rows],
        }
    )


def convergence_frame(convergence: Convergence) -> pl.DataFrame:
    """One row a scale and snapshot: blob, channel, inputs, scale, move since the last (mean)."""
    rows: dict[str, list[object]] = {name: [] for name in ("blob", "channel", "inputs", "scale")}
    moves: list[float | None] = []
    for blob, scales in convergence.scales.items():
        moved: list[float | None] = [None, *convergence.moves()[blob].tolist()]
        for inputs, move, at_once in zip(convergence.inputs, moved, scales, strict=True):
            for channel, scale in enumerate(at_once.tolist()):
                for name, value in zip(rows, (blob, channel, inputs, scale), strict=True):
                    rows[name].append(value)
                moves.append(move)
    types = {"blob": pl.String, "channel": pl.Int64, "inputs": pl.Int64, "scale": pl.Float32}
    return pl.DataFrame({**rows, "blob_move": moves}, schema={**types, "blob_move": pl.Float64})


def inspection_frame(inspection: Inspection) -> pl.DataFrame:
    """One row a node: name, op, shapes, macs, parameters, int8 or why not."""
    rows = inspection.nodes
    return pl.DataFrame(
        {
            "node": [row.name for row in rows],
            "op": [row.op for row in rows],
            "output": [row.output for row in rows],
            "shape": ["x".join(map(str, row.shape)) for row in rows],
            "macs": [row.macs for row in rows],
            "parameters": [row.parameters for row in rows],
            "int8": [not row.why_float for row in rows],
            "why_float": [row.why_float for row in rows],
        }
    )


def save_convergence(convergence: Convergence, path: Path) -> None:
    """Write `convergence_frame` as .csv or .parquet."""
    from quantjit.table import save_frame

    save_frame(convergence_frame(convergence), path)


def save_nodes(comparison: Comparison, path: Path) -> None:
    """Write `node_frame` as .csv or .parquet."""
    from quantjit.table import save_frame

    save_frame(node_frame(comparison), path)


# ------------------------------------------------------------------ nodes


_NODES: Mapping[str, Any] = {
    "node": pl.String,
    "op": pl.String,
    "output": pl.String,
    "shape": pl.String,
    "macs": pl.Int64,
    "parameters": pl.Int64,
    "int8": pl.Boolean,
    "why_float": pl.String,
    "input_scale": pl.Float64,
    "output_scale": pl.Float64,
    "output_scales": pl.Int64,
    "sqnr_db": pl.Float64,
    "cosine": pl.Float64,
    "largest_error": pl.Float64,
    "lost_db": pl.Float64,
    "added_noise": pl.Float64,
}


def nodes_frame(result: Quantization) -> pl.DataFrame:
    """One row a node of the float network, in order of execution.

    input_scale, output_scale: steps, the largest where there are several; output_scales: how many.
    sqnr_db to added_noise (RMS, over that of the signal): null where the node was not compared, as
    one that the target merges into another.  int8: null where the int8 network, of another tool,
    has no node of that name and no such blob.
    """
    graph, quantized = result.graph, result.quantized
    shapes = infer_shapes(graph)
    macs = count_macs(graph, shapes)
    compared = () if result.comparison is None else result.comparison.nodes
    by_name = {row.name: row for row in compared}
    by_blob = {row.error.blob: row for row in compared}
    int8 = {node.name: node.quant is not None for node in quantized.nodes}
    rows = []
    for node in graph.nodes:
        blob = node.outputs[0]
        error = by_name.get(node.name) or by_blob.get(blob)
        reason = result.table.float_nodes.get(node.name, "")
        is_int8 = int8.get(node.name, False if reason else None)
        if error is not None:
            is_int8 = is_int8 or error.is_int8
        rows.append(
            (
                node.name,
                node.op,
                blob,
                "x".join(map(str, shapes[blob])),
                macs[node.name],
                sum(array.size for array in node.weights.values()),
                is_int8,
                "" if is_int8 else reason,
                _largest_step(quantized.scales.get(node.inputs[0])) if node.inputs else None,
                _largest_step(quantized.scales.get(blob)),
                quantized.scales[blob].scale.size if blob in quantized.scales else 0,
                *((None,) * 5 if error is None else _errors(error)),
            )
        )
    return _frame(_NODES, rows)


def _errors(node: NodeError) -> tuple[float, ...]:
    return node.error.sqnr, node.error.cosine, node.error.largest, node.lost, node.noise


def _largest_step(params: QuantParams | None) -> float | None:
    return None if params is None else float(params.scale.max())


def int8_mac_share(result: Quantization) -> float:
    """Share of the multiply-accumulates that run in int8."""
    network = lower(result.quantized)
    macs = count_macs(network, infer_shapes(network))
    total = sum(macs.values())
    int8 = sum(macs[node.name] for node in network.nodes if node.quant is not None)
    return int8 / total if total else 0.0


# ------------------------------------------------------------------ blobs


_SOLVERS: Mapping[str, Any] = {
    "blob": pl.String,
    "method": pl.String,
    "used": pl.Boolean,
    "scale": pl.Float64,
    "zero_point": pl.Int64,
    "minimum": pl.Float64,
    "maximum": pl.Float64,
    "clipped_share": pl.Float64,
}


def solvers_frame(result: Quantization, method: str | None = None) -> pl.DataFrame:
    """One row a blob and blob method: what that method would choose for the whole tensor.

    The row IN_NETWORK is what the int8 network has, the widest of its channels; `method`
    names the one that was asked for.  minimum, maximum: kept range in real units.  clipped_share:
    of the values, those more than half a step beyond it.
    """
    rows: list[tuple[Any, ...]] = []
    code = lowest_code(result.quantized)
    zeros = [params.zero_point for params in result.quantized.scales.values()]
    form = None
    if result.quantized.is_onnx:
        form = "with zero points" if any(zero.any() for zero in zeros) else "symmetric"
    for blob, seen in result.calibration.stats.items():
        if isinstance(seen, BlobStats) and seen.is_empty:
            continue
        tensor = whole(seen)
        if tensor is not None:
            evidence = Evidence.of(tensor)
            for name, params in _choices(tensor, blob, form):
                rows.append((blob, name, name == method, *_choice(params, evidence, code)))
        if blob in result.quantized.scales:
            chosen = _choice(result.quantized.scales[blob], Evidence.of(seen), code)
            rows.append((blob, IN_NETWORK, False, *chosen))
    return _frame(_SOLVERS, rows)


def _choice(params: QuantParams, evidence: Evidence, code: int) -> tuple[Any, ...]:
    """Return scale, zero point, range and clipped share of a choice, its widest scale."""
    low, high = kept_range(params, code)
    widest = int(np.argmax(high - low))
    scale, _, threshold = _steps(params, evidence.values.size, code)
    clipped = (evidence.clipped_share(threshold + scale / 2) * evidence.values).sum()
    return (
        float(params.scale[widest]),
        int(params.zero_point[widest]),
        float(low[widest]),
        float(high[widest]),
        float(clipped / max(evidence.values.sum(), 1)),
    )


def _choices(
    seen: BlobStats | ReferenceStats, blob: str, onnx_form: str | None
) -> Iterable[tuple[str, QuantParams]]:
    """Yield what each method would choose; onnx_form: None for TNN."""
    for name, solver in solvers.blob_solvers().items():
        if isinstance(seen, ReferenceStats):
            if solver.number is not None:
                yield name, solvers.solve_reference(seen, name, blob)
        elif onnx_form is not None:
            symmetric = onnx_form == "symmetric"
            yield name, onnx_target.blob_scale(seen, solver, symmetric=symmetric)
        else:
            yield name, solver.solve(seen)


_HISTOGRAMS: Mapping[str, Any] = {
    "blob": pl.String,
    "low": pl.Float64,
    "high": pl.Float64,
    "count": pl.Float64,
}


def histograms_frame(result: Quantization, bins: int = BINS) -> pl.DataFrame:
    """One row a blob and bin: how many magnitudes are in [low, high), of all channels together.

    Zeros are not among them but in those of TNN's tool.  Values of a bin of the statistics are
    taken to lie evenly over it.
    """
    rows: list[tuple[Any, ...]] = []
    for blob, seen in result.calibration.stats.items():
        evidence = Evidence.of(whole(seen) or seen)
        largest = float(evidence.absmax.max(initial=0.0))
        if largest == 0:
            continue
        edges = np.linspace(0, largest, bins + 1)
        counts = np.diff(evidence.below(edges)).tolist()
        rows += zip([blob] * bins, edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True)
    return _frame(_HISTOGRAMS, rows)


_CHANNELS: Mapping[str, Any] = {
    "blob": pl.String,
    "channel": pl.Int64,
    "seen_in": pl.String,
    "minimum": pl.Float64,
    "maximum": pl.Float64,
    "mean": pl.Float64,
    "std": pl.Float64,
    "zero_share": pl.Float64,
    "scale": pl.Float64,
    "zero_point": pl.Int64,
    "threshold": pl.Float64,
    "clipped_share": pl.Float64,
    "sqnr_db": pl.Float64,
    "dead": pl.Boolean,
}


def channels_frame(result: Quantization) -> pl.DataFrame:
    """One row a blob and channel; channel is null for the whole tensor.

    seen_in: "calibration", or "verification" for the channels of a blob whose statistics were
    gathered for the whole tensor.  minimum to zero_share: of the float network.  threshold: the
    largest magnitude that the codes reach.  clipped_share: of the calibration's values, those more
    than half a step beyond it.  dead: was
    never anything but 0.
    """
    rows: list[tuple[Any, ...]] = []
    scales, code = result.quantized.scales, lowest_code(result.quantized)
    for blob, seen in result.calibration.stats.items():
        evidence = Evidence.of(seen)
        count = seen.channels
        steps = _steps(scales.get(blob), count, code)
        clipped = evidence.clipped_share(np.nan_to_num(steps[2] + steps[0] / 2, nan=np.inf))
        dead = evidence.absmax == 0
        seen_values = zip(
            evidence.minimum,
            evidence.maximum,
            evidence.mean,
            evidence.std,
            evidence.zero_share,
            strict=True,
        )
        rows += [
            (
                blob,
                row if count > 1 else None,
                "calibration",
                *(None if np.isnan(value) else float(value) for value in values),
                *_row_of(steps, row),
                float(clipped[row]),
                None,
                bool(dead[row]),
            )
            for row, values in enumerate(seen_values)
        ]
    rows += _verified_channels(result, code)
    return _frame(_CHANNELS, rows)


def _verified_channels(result: Quantization, code: int) -> Iterable[tuple[Any, ...]]:
    channels = () if result.comparison is None else result.comparison.channels
    counts: dict[str, int] = {}
    for item in channels:
        counts[item.blob] = item.channel + 1
    steps = {
        blob: _steps(result.quantized.scales.get(blob), count, code)
        for blob, count in counts.items()
    }
    for item in channels:
        yield (
            item.blob,
            item.channel,
            "verification",
            item.minimum,
            item.maximum,
            item.mean,
            item.std,
            item.zero_share,
            *_row_of(steps[item.blob], item.channel),
            None,
            item.sqnr,
            item.minimum == item.maximum == 0,
        )


def _steps(params: QuantParams | None, channels: int, code: int) -> tuple[Floats, Floats, Floats]:
    """Return scale, zero point and threshold of each channel; NaN where the blob has none."""
    if params is None:
        unknown = np.full(channels, np.nan)
        return unknown, unknown, unknown
    low, high = kept_range(params, code)
    found = params.scale.astype(np.float64), params.zero_point, np.maximum(-low, high)
    # a scale may be for a blob of which only the whole was seen
    scale, zero, threshold = (
        np.broadcast_to(each if each.size == channels else each[np.argmax(found[2])], channels)
        for each in found
    )
    return scale, zero.astype(np.float64), threshold


def _row_of(steps: tuple[Floats, Floats, Floats], row: int) -> tuple[Any, ...]:
    scale, zero, threshold = (float(each[row]) for each in steps)
    if np.isnan(scale):
        return None, None, None
    return scale, int(zero), threshold


# ------------------------------------------------------------------ weights


_WEIGHTS: Mapping[str, Any] = {
    "node": pl.String,
    "channel": pl.Int64,
    "minimum": pl.Float64,
    "maximum": pl.Float64,
    "absmax": pl.Float64,
    "range_share": pl.Float64,
    "scale": pl.Float64,
    "sqnr_db": pl.Float64,
    "dead": pl.Boolean,
}


def weights_frame(result: Quantization) -> pl.DataFrame:
    """One row a layer with weights and output channel.

    absmax: largest magnitude, range_share: of that of the whole layer.  scale: step in real units,
    the coarsest where each input channel has its own; null where the layer is float.  sqnr_db: of
    the rounded weights.  dead: all weights are 0.
    """
    rows: list[tuple[Any, ...]] = []
    int8 = {node.name: node for node in result.quantized.nodes if node.quant is not None}
    for node in result.graph.nodes:
        if node.op not in _WEIGHTED:
            continue
        matrix = _matrix(node)
        found = _restored(node, int8.get(node.name), result.quantized)
        absmax = np.abs(matrix).max(axis=1, initial=0.0)
        largest = float(absmax.max(initial=0.0))
        for channel, row in enumerate(matrix):
            step = sqnr = None
            if found is not None:
                step = float(found[1][channel])
                sqnr = _sqnr(row, found[0][channel])
            rows.append(
                (
                    node.name,
                    channel,
                    float(row.min(initial=0.0)),
                    float(row.max(initial=0.0)),
                    float(absmax[channel]),
                    float(absmax[channel]) / largest if largest else 0.0,
                    step,
                    sqnr,
                    not absmax[channel],
                )
            )
    return _frame(_WEIGHTS, rows)


def _matrix(node: Node) -> Floats:
    """Return the weights as float64 (output channels, the rest)."""
    weight = np.asarray(node.weights["weight"], np.float64)
    if node.op == "inner_product" and node.attrs.transpose:
        weight = weight.T
    return np.ascontiguousarray(weight).reshape(len(weight), -1)


def _restored(node: Node, int8: Node | None, quantized: Graph) -> tuple[Floats, Floats] | None:
    """Return the weights that the codes stand for, and the step of each output channel."""
    if int8 is None or int8.quant is None or int8.inputs[0] not in quantized.scales:
        return None
    source = quantized.scales[int8.inputs[0]].scale.astype(np.float64)
    codes = _matrix(int8)
    rows, columns = codes.shape
    if codes.shape != _matrix(node).shape:
        return None
    steps = np.broadcast_to(int8.quant.weight_scale.astype(np.float64), rows)
    zeros = np.broadcast_to(int8.quant.weight_zero_point.astype(np.float64), rows)
    if source.size == 1:
        inputs = np.full((rows, 1), source[0])
    else:
        group = int8.attrs.group
        inputs = source.reshape(group, 1, -1).repeat(rows // group, axis=1).reshape(rows, -1)
        inputs = inputs.repeat(columns // inputs.shape[1], axis=1)
    each = np.zeros_like(np.broadcast_to(inputs, (rows, inputs.shape[1])))
    np.divide(steps[:, None], inputs, out=each, where=inputs > 0)
    return (codes - zeros[:, None]) * each, each.max(axis=1)


def _sqnr(exact: Floats, found: Floats) -> float:
    signal, noise = float((exact**2).sum()), float(((exact - found) ** 2).sum())
    if noise == 0:
        return EXACT_SQNR
    return float(10 * np.log10(signal / noise)) if signal else -EXACT_SQNR


# ------------------------------------------------------------------ inputs, passes


def inputs_frame(comparison: Comparison) -> pl.DataFrame:
    """One row a compared input: file, sqnr_db, agrees, label, and the top classes of both.

    float_class_1, float_share_1 ... int8_class_5, int8_share_5: null where there are fewer.
    """
    schema: dict[str, Any] = {
        "file": pl.String,
        "sqnr_db": pl.Float64,
        "agrees": pl.Boolean,
        "label": pl.Int64,
    }
    for kind in ("float", "int8"):
        for place in range(1, TOP + 1):
            schema |= {f"{kind}_class_{place}": pl.Int64, f"{kind}_share_{place}": pl.Float64}
    rows = []
    for item in comparison.inputs:
        tops: list[float | None] = []
        for top in (item.float_top, item.int8_top):
            for place in range(TOP):
                tops += top[place] if place < len(top) else (None, None)
        rows.append((item.file, item.sqnr, item.agrees, item.label, *tops))
    return _frame(schema, rows)


def effects_frame(result: Quantization) -> pl.DataFrame:
    """One row a pass: name, kept, before_db, after_db, detail."""
    schema = {
        "pass": pl.String,
        "kept": pl.Boolean,
        "before_db": pl.Float64,
        "after_db": pl.Float64,
        "detail": pl.String,
    }
    return _frame(
        schema,
        [
            (item.name, item.is_kept, item.before, item.after, item.detail)
            for item in result.effects
        ],
    )


def _frame(schema: Mapping[str, Any], rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict(schema), orient="row")


def leaderboard_frame(candidates: Sequence[Candidate]) -> pl.DataFrame:
    """One row a setting that was tried, best first."""
    return pl.DataFrame(
        {
            "place": list(range(1, len(candidates) + 1)),
            "blob_method": [each.settings.blob_method for each in candidates],
            "weight_method": [each.settings.weight_method for each in candidates],
            "merge": [each.settings.merge for each in candidates],
            "passes": [",".join(each.settings.passes) for each in candidates],
            "sqnr_db": [each.sqnr for each in candidates],
            "agreement": [each.agreement for each in candidates],
            "top1": [each.top1 for each in candidates],
            "images": [each.images for each in candidates],
            "round": [each.round for each in candidates],
            "seconds": [each.seconds for each in candidates],
            "original_default": [each.is_default for each in candidates],
            "verdict": [each.verdict for each in candidates],
        },
        schema_overrides={"agreement": pl.Float64, "top1": pl.Float64},
    )


def sensitivity_frame(found: Sensitivity) -> pl.DataFrame:
    """One row a node that runs in int8, the most harmful first."""
    rows = found.nodes
    return pl.DataFrame(
        {
            "node": [row.name for row in rows],
            "op": [row.op for row in rows],
            "macs": [row.macs for row in rows],
            "alone_db": [row.alone for row in rows],
            "without_db": [row.without for row in rows],
            "gain_db": [row.without - found.whole.sqnr for row in rows],
            "layer_sqnr_db": [row.layer_sqnr for row in rows],
            "lost_db": [row.lost for row in rows],
        },
        schema_overrides={"layer_sqnr_db": pl.Float64, "lost_db": pl.Float64},
    )


def frames(
    result: Quantization, method: str | None = None, candidates: pl.DataFrame | None = None
) -> dict[str, pl.DataFrame]:
    """Return all frames of a result by name; those of steps that were not made are left out.

    method: the blob method that was asked for.  candidates: of `quantjit tune`.
    """
    found = {
        "nodes": nodes_frame(result),
        "channels": channels_frame(result),
        "weights": weights_frame(result),
        "histograms": histograms_frame(result),
        "solvers": solvers_frame(result, method),
    }
    if result.comparison is not None:
        found["inputs"] = inputs_frame(result.comparison)
    if result.convergence is not None and result.convergence.inputs:
        found["convergence"] = convergence_frame(result.convergence)
    if result.effects:
        found["passes"] = effects_frame(result)
    if candidates is not None:
        found["candidates"] = candidates
    return found
