"""Sections of the page that show frames: summary, passes, candidates, layers, blobs, weights.

Each is a function from frames and the result to HTML; "" where there is nothing to show.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import polars as pl

from quantjit import charts, tables, verdict
from quantjit.pipeline import Quantization
from quantjit.quantizer import Settings
from quantjit.terminal import size

LIMITS = verdict.GOOD_SQNR, verdict.FAIR_SQNR
"""dB from which on a layer is drawn as good, and as fair."""

_OPEN = 2  # details that are open from the start
_WIDE_SPREAD = 8.0  # largest channel over the median one from which a layer's weights are named
_EXACT = 100.0  # dB from which on weights are called the same
_TALL = 24  # rows from which on a table scrolls by itself

# ------------------------------------------------------------------ tables


def table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    kind: str = "",
    numbers: Sequence[int] = (),
    noun: str = "",
) -> str:
    """Return a table whose first column names its rows.

    A cell is text, or (text, value to sort by).  numbers: columns that are set to the right.  noun:
    what its filter is said to filter; "" for none.
    """
    head = "".join(
        f'<th scope="col"{" class=n" if index in numbers else ""}>{escape(each)}</th>'
        for index, each in enumerate(heads)
    )
    body = []
    for row in rows:
        cells = []
        for index, cell in enumerate(row):
            text, value = cell if isinstance(cell, tuple) else (cell, None)
            sort = "" if value is None else f' data-v="{escape(str(value))}"'
            tag = "th" if index == 0 else "td"
            scope = ' scope="row"' if index == 0 else ""
            right = " class=n" if index in numbers else ""
            html = breakable(str(text)) if index == 0 else escape(str(text))
            cells.append(f"<{tag}{scope}{right}{sort}>{html}</{tag}>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    tall = " tall" if len(rows) > _TALL else ""
    filtered = f' data-filter="tbody tr" data-noun="{noun}"' if noun else ""
    return (
        f'<div class="scroll{tall}" role="region" tabindex="0" aria-label="{escape(caption)}"'
        f'{filtered}><table class="{kind}"><caption><span>{escape(caption)}</span>'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def facts(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    """Return a table of names and what they are."""
    body = "".join(
        f'<tr><th scope="row">{breakable(name)}</th><td>{escape(text)}</td></tr>'
        for name, text in rows
    )
    return f'<table class="facts"><caption>{escape(caption)}</caption><tbody>{body}</tbody></table>'


def breakable(name: str) -> str:
    """Return a name as HTML that may be broken behind its separators."""
    return re.sub(r"([/_,])(?=\w)", r"\1<wbr>", escape(name, quote=False))


def _cell(value: float | None, form: str = "{:.1f}") -> tuple[str, object]:
    return ("", "") if value is None else (form.format(value), f"{value:.9g}")


def _runs_in(is_int8: bool | None, why_float: str) -> str:
    if is_int8 is None:
        return "not known"
    return "int8" if is_int8 else f"float: {why_float}" if why_float else "float"


def _number(value: float | None) -> tuple[str, object]:
    return ("", "") if value is None else (charts.number(value), f"{value:.9g}")


def _step(largest: float | None, count: int) -> tuple[str, object]:
    """Return the step of a blob, the largest where each channel has one."""
    text, value = _number(largest)
    return (text if count <= 1 else f"{text} ({count})"), value


def figure(chart: str, caption: str) -> str:
    """Return a chart with its caption, which is HTML."""
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"


# ------------------------------------------------------------------ sections


def summary(
    result: Quantization, frames: Mapping[str, pl.DataFrame], settings: Settings | None
) -> str:
    """Return the figures of the whole network, what to try, and where its work is."""
    nodes, comparison = frames["nodes"], result.comparison
    share = tables.int8_mac_share(result)
    rows = [
        ("Runs in int8", f"{nodes['int8'].sum()} of {nodes.height} nodes, {share:.1%} of "
         f"{size(int(nodes['macs'].sum()), 'MAC')}"),
        ("Calibrated on", f"{result.calibration.images} inputs"),
    ]  # fmt: skip
    if result.source_bytes and result.target_bytes:
        sizes = f"{size(result.source_bytes)} float, {size(result.target_bytes)} int8"
        ratio = result.source_bytes / result.target_bytes
        rows.insert(0, ("Size", f"{sizes}: {ratio:.1f}x smaller"))
    if comparison is not None:
        rows.append(("Compared on", f"{comparison.images} inputs: {verdict.verdict(comparison)}"))
        if comparison.float_top1 is not None and comparison.int8_top1 is not None:
            rows.append(
                (
                    "Right (top-1)",
                    f"float {comparison.float_top1:.2%}, int8 {comparison.int8_top1:.2%}",
                )
            )
        if len(comparison.outputs) > 1:
            each = ", ".join(f"{out.blob} {out.sqnr:.1f} dB" for out in comparison.outputs)
            rows.append(("Outputs", each))
    dead = result.table.dead
    if dead:
        rows.append(
            (
                "Dead channels",
                f"{sum(dead.values())} in {len(dead)} blobs never left 0: {', '.join(dead)}",
            )
        )
    rows += [("Note", note) for note in result.notes]
    if result.skipped:
        rows.append(
            ("Not readable", f"{len(result.skipped)} inputs: {'; '.join(result.skipped[:5])}")
        )
    bar = (
        f'<div class="gauge"><i style="width:{100 * share:.2f}%"></i></div>'
        f'<p class="note">{share:.1%} of the multiply-accumulates run in int8</p>'
    )
    advice = []
    if comparison is not None:
        advice = verdict.remedies(
            comparison,
            settings,
            result.calibration.images,
            result.convergence,
            is_tuned="candidates" in frames,
        )
    tries = ""
    if advice:
        items = "".join(f"<li>{breakable(line)}</li>" for line in verdict.listed(advice))
        tries = f"<h3>What to try, the most promising first</h3><ol>{items}</ol>"
    by_op = (
        nodes.group_by("op", maintain_order=True)
        .agg(
            pl.len().alias("nodes"),
            pl.col("macs").sum(),
            pl.col("macs").filter("int8").sum().alias("int8_macs"),
            pl.col("int8").is_not_null().all().alias("known"),
            pl.col("parameters").sum(),
        )
        .sort("macs", "nodes", descending=True, maintain_order=True)
    )
    ops = table(
        "Where the work is, by type of layer",
        ("type", "nodes", "MACs", "in int8", "params"),
        [
            (
                row["op"].replace("_", " "),
                row["nodes"],
                (size(row["macs"], ""), row["macs"]),
                f"{row['int8_macs'] / row['macs']:.0%}" if row["macs"] and row["known"] else "",
                (size(row["parameters"], ""), row["parameters"]),
            )
            for row in by_op.iter_rows(named=True)
        ],
        numbers=(1, 2, 3, 4),
    )
    return f'<div class="pair"><div>{facts("The whole network", rows)}{bar}{tries}</div>{ops}</div>'


def passes(frame: pl.DataFrame | None) -> str:
    """Return what the passes did."""
    if frame is None:
        return ""
    rows = [
        (
            row["pass"],
            _cell(row["before_db"]),
            _cell(row["after_db"]),
            _cell(row["after_db"] - row["before_db"], "{:+.1f}"),
            "kept" if row["kept"] else "not kept",
            row["detail"],
        )
        for row in frame.iter_rows(named=True)
    ]
    return table(
        "What each pass did to the SQNR of the outputs; it is kept only where it helps",
        ("pass", "before, dB", "after, dB", "gain, dB", "", "detail"),
        rows,
        numbers=(1, 2, 3),
    )


def candidates(frame: pl.DataFrame | None) -> str:
    """Return what a search measured, whatever columns it has."""
    if frame is None or not frame.height:
        return ""
    shown = frame.drop("seconds", strict=False)  # the page is the same for the same result
    numeric = [index for index, kind in enumerate(shown.dtypes) if kind.is_numeric()]
    rows = [[_value(value) for value in row] for row in shown.iter_rows()]
    heads = [name.replace("_", " ") for name in shown.columns]
    return table(
        "What was measured, in the order of the search",
        heads,
        rows,
        kind="sortable",
        numbers=numeric,
        noun="candidates",
    )


def _value(value: object) -> object:
    """Return a cell of any column."""
    if isinstance(value, float):
        return _cell(value, "{:.4g}")
    if isinstance(value, bool):
        return "yes" if value else ""
    return "" if value is None else value


def layers(nodes: pl.DataFrame, result: Quantization) -> str:
    """Return the error of the layers as a plot and as a table."""
    layers = [
        charts.LayerError(row["node"], row["op"], row["int8"], row["sqnr_db"], row["added_noise"])
        for row in nodes.filter(pl.col("sqnr_db").is_not_null()).iter_rows(named=True)
    ]
    parts = []
    if layers and result.comparison is not None:
        worst = [node.name for node in result.comparison.worst(5)]
        keys = (
            ("good", f"int8, {LIMITS[0]:g} dB or more"),
            ("fair", f"{LIMITS[1]:g} dB or more"),
            ("poor", "less"),
            ("float", "float"),
        )
        legend = " ".join(f'<span><i class="key {kind}"></i>{text}</span>' for kind, text in keys)
        caption = (
            f"How far each layer's output is from float, over {result.comparison.images} inputs: "
            f"higher is better. {legend}"
        )
        wide = charts.error_columns(layers, LIMITS, worst)
        parts.append(figure(wide + charts.error_rows(layers, LIMITS), caption))
    rows = [
        (
            row["node"],
            _cell(row["sqnr_db"]),
            _cell(row["lost_db"]),
            _cell(row["added_noise"], "{:.1%}"),
            _runs_in(row["int8"], row["why_float"]),
            row["op"].replace("_", " "),
            _cell(row["cosine"], "{:.5f}"),
            _number(row["largest_error"]),
            _step(row["output_scale"], row["output_scales"]),
            row["shape"],
            (size(row["macs"], "").strip(), row["macs"]),
            (size(row["parameters"], "").strip(), row["parameters"]),
        )
        for row in nodes.iter_rows(named=True)
    ]
    heads = (
        "layer", "SQNR, dB", "lost, dB", "adds noise", "runs in", "type", "cosine", "max error",
        "step", "output", "MACs", "params",
    )  # fmt: skip
    parts.append(
        table(
            "All layers in order of execution. No SQNR: merged into a neighbour by the target. "
            "Step: the largest, and how many there are",
            heads,
            rows,
            kind="sortable",
            numbers=(1, 2, 3, 6, 7, 8, 10, 11),
            noun="layers",
        )
    )
    return "".join(parts)


def blobs(result: Quantization, frames: Mapping[str, pl.DataFrame]) -> str:
    """Return what was seen of each blob, its histogram and its channels."""
    worst = [] if result.comparison is None else result.comparison.worst(_OPEN)
    is_open = {node.error.blob for node in worst}
    channels = dict(_by_blob(frames["channels"]))
    histograms, chosen = dict(_by_blob(frames["histograms"])), dict(_by_blob(frames["solvers"]))
    items = []
    for blob in result.calibration.stats:
        rows = channels[blob]
        seen = rows.filter(pl.col("seen_in") == "calibration")
        threshold = seen["threshold"].max()
        low, high = seen["minimum"].min(), seen["maximum"].max()
        facts = f"{charts.number(_float(low))} to {charts.number(_float(high))}"
        if threshold is not None:
            facts += f", keeps {charts.number(_float(threshold))}"
        dead = rows.filter(pl.col("channel").is_not_null() & pl.col("dead")).height
        if dead:
            facts += f", {dead} dead channel{'s' * (dead > 1)}"
        figures = []
        if blob in histograms:
            figures.append(_histogram(blob, histograms[blob], chosen.get(blob)))
        figures += _channel_figures(blob, rows)
        opened = " open" if blob in is_open else ""
        items.append(
            f'<details{opened} data-text="{escape(blob)}"><summary>{breakable(blob)}<small>{facts}'
            f'</small></summary><div class="figures">{"".join(figures)}</div></details>'
        )
    intro = (
        "<p>What was seen of each blob during calibration: how often which magnitude occurred, "
        "what each blob method would keep of it (larger values are clipped to it), and how much of "
        "the range each channel uses. The blobs of the worst layers are open.</p>"
    )
    return intro + _grid("blobs", items, " spread")


def _grid(noun: str, items: Sequence[str], kind: str = "") -> str:
    """Return details that can be filtered."""
    inside = "".join(items)
    return f'<div class="grid{kind}" data-filter="details" data-noun="{noun}">{inside}</div>'


def _by_blob(frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    return [(str(key), rows) for (key,), rows in frame.group_by(["blob"], maintain_order=True)]


def _float(value: Any) -> float:
    return float(value) if value is not None else 0.0


def _histogram(blob: str, bins: pl.DataFrame, chosen: pl.DataFrame | None) -> str:
    choices = [
        charts.Choice(
            f"{row['method']} (asked for)" if row["used"] else row["method"],
            max(-row["minimum"], row["maximum"]),
            row["clipped_share"],
            row["method"] == tables.IN_NETWORK,
        )
        for row in (() if chosen is None else chosen.iter_rows(named=True))
    ]
    edges = [*bins["low"].to_list(), bins["high"][-1]]
    chart = charts.histogram(blob, edges, bins["count"].to_list(), choices)
    return figure(
        chart,
        "Count of magnitudes, and the largest that each method keeps. The network has that of the "
        "method asked for, unless blobs share a scale or keep their whole range.",
    )


def _channel_figures(blob: str, rows: pl.DataFrame) -> list[str]:
    for seen_in in ("calibration", "verification"):
        found = rows.filter((pl.col("seen_in") == seen_in) & pl.col("channel").is_not_null())
        if found.height < 2:
            continue
        reach = [
            max(abs(_float(low)), abs(_float(high)))
            for low, high in zip(found["minimum"], found["maximum"], strict=True)
        ]
        whole = max(reach)
        if not whole:
            return []
        shares = [each / whole for each in reach]
        chart = charts.channels(
            f"Range of the {found.height} channels of blob {blob}", shares, "the blob's range"
        )
        median = sorted(shares)[len(shares) // 2]
        caption = (
            f"Largest magnitude of each channel over that of the blob ({seen_in}); the median "
            f"channel uses {median:.0%}."
        )
        figures = [figure(chart, caption)]
        steps = found["threshold"].drop_nulls().to_list()
        if len(set(steps)) > 1:
            top = max(steps)
            plot = charts.channels(
                f"Scales of the {len(steps)} channels of blob {blob}",
                [each / top for each in steps],
                "the largest scale",
            )
            figures.append(figure(plot, "Scale of each channel over the largest of the blob."))
        return figures
    return []


def weights(frame: pl.DataFrame, result: Quantization) -> str:
    """Return the ranges of the output channels of each layer with weights."""
    if not frame.height:
        return ""
    layers = []
    for (node,), rows in frame.group_by(["node"], maintain_order=True):
        shares = rows["range_share"].to_list()
        live = sorted(share for share in shares if share > 0)
        spread = 1 / live[len(live) // 2] if live else 1.0
        layers.append((str(node), rows, shares, spread))
    ranked = sorted(layers, key=lambda item: -item[3])
    items = []
    for place, (node, rows, shares, spread) in enumerate(ranked):
        sqnr = rows["sqnr_db"].drop_nulls()
        quality = _rounding(_float(sqnr.median())) if len(sqnr) else "float"
        facts = f"largest of {len(shares)} channels is {spread:.3g} times the median; {quality}"
        chart = charts.channels(f"Range of the weights of {node}", shares, "the layer's range")
        caption = "Largest weight of each output channel over that of the layer."
        opened = " open" if place < _OPEN else ""
        items.append(
            f'<details{opened} data-text="{escape(node)}"><summary>{breakable(node)}'
            f"<small>{facts}</small></summary>{figure(chart, caption)}</details>"
        )
    wide = [node for node, _, _, spread in ranked if spread >= _WIDE_SPREAD]
    words = f"No layer has a channel {_WIDE_SPREAD:g} times the median one."
    if wide:
        named = breakable(", ".join(wide[:5])) + (" ..." if len(wide) > 5 else "")
        count = f"{len(wide)} layer{'s' * (len(wide) > 1)}"
        words = (
            f"In {count} one channel is {_WIDE_SPREAD:g} times the median one or more "
            f"({named}): {_needs_channels(result)}."
        )
    what = "Which output channels hog the range of the weights, the widest layers first."
    intro = f"<p>{what} {words}</p>"
    return intro + _grid("layers", items)


def _rounding(sqnr: float) -> str:
    return f"rounded to {sqnr:.1f} dB" if sqnr < _EXACT else "its codes are exact"


def _needs_channels(result: Quantization) -> str:
    sizes = [node.quant.weight_scale.size for node in result.quantized.nodes if node.quant]
    if max(sizes, default=0) > 1:
        return "no harm here, where each channel has its own scale"
    return "these need a scale for each channel, -t 1"


def convergence(result: Quantization) -> str:
    """Return how the scales moved as inputs came in."""
    found = result.convergence
    answer = verdict.enough_images(found, result.calibration.images)
    words = f"<p>{escape(answer.text)}</p>"
    if found is None or len(found.inputs) < 2:
        return words
    scales = {blob: rows.astype(float).mean(axis=1).tolist() for blob, rows in found.scales.items()}
    moving = found.moving()
    chart = charts.convergence(found.inputs, scales, list(moving))
    caption = (
        "Scale of each blob after so many inputs over that after all of them; the ones that still "
        "moved the most are named. Flat lines: more inputs would change nothing."
    )
    first, last = (found.inputs[place] for place in found.doubling() or (0, -1))
    moved = table(
        f"Blobs whose scale moved by 1 % or more from {first} to {last} inputs",
        ("blob", "moved"),
        [(blob, (f"{move:.1%}", move)) for blob, move in moving.items()],
        kind="sortable",
        numbers=(1,),
    )
    beside = moved if moving else ""
    return f'{words}<div class="pair">{figure(chart, caption)}{beside}</div>'
