"""A report as a folder: one page that needs nothing else, and its tables as Parquet and CSV.

The page loads nothing from anywhere: style, script, charts and thumbnails are inside.  It holds no
time and no place of the machine, so that the same result is the same bytes.
"""

import base64
import hashlib
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import polars as pl

from quantjit import charts, images, tables, verdict
from quantjit.dataset import IMAGE_SUFFIXES, decode
from quantjit.errors import DataError, UsageError
from quantjit.metrics import InputError
from quantjit.pipeline import Inputs, Quantization
from quantjit.quantizer import Settings
from quantjit.report import size
from quantjit.statistics_file import fingerprint
from quantjit.table import save_bytes

PAGE = "report.html"

NAMES = (
    "nodes",
    "channels",
    "weights",
    "histograms",
    "solvers",
    "inputs",
    "convergence",
    "passes",
    "candidates",
)
"""Tables of a report, each a .parquet and a .csv."""

_THUMBNAIL = 132  # pixels of the longer side
_WORST_INPUTS = 8
_OPEN = 2  # details that are open from the start
_LIMITS = verdict.GOOD_SQNR, verdict.FAIR_SQNR
_WIDE_SPREAD = 8.0  # largest channel over the median one from which a layer's weights are named
_PACKAGES = ("numpy", "numba", "llvmlite", "onnx", "pillow", "polars")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a result is from; what is not known is left out of the page.

    title: of the page.  files: of the float network.  input_path and inputs: of the calibration.
    statistics: the file that was solved instead.  class_names: by class index.
    """

    title: str = ""
    files: tuple[Path, ...] = ()
    input_path: Path | None = None
    inputs: Inputs = field(default_factory=Inputs)
    statistics: Path | None = None
    class_names: tuple[str, ...] = ()


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read a text file with a class name a line, the first of class 0."""
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read as class names: {error}") from None


def check(folder: Path) -> None:
    """Raise UsageError where no report can be written, before the work for it is done."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a report is a folder, this is a file")
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"{folder}: no such folder to write to: {folder.absolute().parent}")


def write(
    folder: Path,
    result: Quantization,
    settings: Settings | None,
    *,
    source: Source | None = None,
    candidates: pl.DataFrame | None = None,
) -> tuple[Path, ...]:
    """Write report.html and its tables; return their paths, the page first.

    settings: None where they are not known.  candidates: a frame of what `quantjit tune` measured.
    Everything is written beside the folder first and then moved in: a full disk changes nothing.
    """
    check(folder)
    source = source or Source()
    method = None if settings is None else settings.blob_method
    frames = tables.frames(result, method, candidates)
    contents = {PAGE: render(result, settings, frames, source).encode()}
    for name, frame in frames.items():
        for suffix in ("parquet", "csv"):
            contents[f"{name}.{suffix}"] = _encoded(frame, suffix)
    stage = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        stage.mkdir()
        for name, content in contents.items():
            save_bytes(content, stage / name)
        folder.mkdir(exist_ok=True)
        for name in contents:
            (stage / name).replace(folder / name)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(folder)) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    for name in NAMES:  # of a report that was here before
        if name not in frames:
            for suffix in ("parquet", "csv"):
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    return tuple(folder / name for name in contents)


def _encoded(frame: pl.DataFrame, suffix: str) -> bytes:
    stream = io.BytesIO()
    if suffix == "parquet":
        frame.write_parquet(stream)
    else:
        frame.write_csv(stream)
    return stream.getvalue()


# ------------------------------------------------------------------ the page


def render(
    result: Quantization,
    settings: Settings | None,
    frames: Mapping[str, pl.DataFrame],
    source: Source,
) -> str:
    """Return the page; frames: of `tables.frames`."""
    here = Path(__file__).parent
    style = (here / "page.css").read_text(encoding="utf-8")
    script = (here / "page.js").read_text(encoding="utf-8")
    title = source.title or (result.paths[0].stem if result.paths else "network")
    sections = [
        ("summary", "Summary", _summary(result, frames, settings)),
        ("passes", "Passes", _passes(frames.get("passes"))),
        ("candidates", "Candidates", _candidates(frames.get("candidates"))),
        ("layers", "Layers", _layers(frames["nodes"], result)),
        ("blobs", "Blobs", _blobs(result, frames)),
        ("weights", "Weights", _weights(frames["weights"])),
        ("images", "How many images", _convergence(result)),
        ("inputs", "Worst inputs", _inputs(result, source.class_names)),
        ("configuration", "Configuration", _configuration(result, settings, source)),
        ("reading", "How to read this", _reading(frames)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-head"><h2 id="{key}-head">{name}</h2>{html}'
        "</section>"
        for key, name, html in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: int8 report</title><style>{style}</style></head><body>"
        '<a class="skip" href="#summary">Skip to the summary</a>'
        f"<header><h1>{escape(title)}: int8 report</h1>"
        f'<p class="lead">{escape(_lead(result, settings))}</p>'
        f'<div class="answers">{_answers(result, settings)}</div>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>'
        f"<main>{body}</main><footer>Made by quantjit {_version()}. This page loads nothing from "
        f"the network.</footer><script>{script}</script></body></html>\n"
    )


def _version() -> str:
    from quantjit import __version__

    return __version__


def _lead(result: Quantization, settings: Settings | None) -> str:
    method = str(settings) if settings is not None else "methods of the int8 file not known"
    return f"Post-training int8 quantization; {method}; {result.calibration.images} inputs."


def _answers(result: Quantization, settings: Settings | None) -> str:
    kinds = {0: "good", 1: "fair", 2: "poor", None: "unknown"}
    found = verdict.answers(
        result.comparison, settings, result.calibration.images, result.convergence
    )
    return "".join(
        f'<div class="answer {kinds[each.grade]}"><h2 class="q">{escape(each.question)}</h2>'
        f'<p class="short">{escape(each.short)}</p><p>{escape(each.text)}</p></div>'
        for each in found
    )


# ------------------------------------------------------------------ tables


def _table(
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
            cells.append(f"<{tag}{scope}{right}{sort}>{escape(str(text))}</{tag}>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    tall = " tall" if len(rows) > 24 else ""
    filtered = f' data-filter="tbody tr" data-noun="{noun}"' if noun else ""
    return (
        f'<div class="scroll{tall}" role="region" tabindex="0" aria-label="{escape(caption)}"'
        f'{filtered}><table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _facts(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>'
        for name, text in rows
    )
    return f'<table class="facts"><caption>{escape(caption)}</caption><tbody>{body}</tbody></table>'


def _cell(value: float | None, form: str = "{:.1f}") -> tuple[str, object]:
    return ("", "") if value is None else (form.format(value), f"{value:.9g}")


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"


# ------------------------------------------------------------------ sections


def _summary(
    result: Quantization, frames: Mapping[str, pl.DataFrame], settings: Settings | None
) -> str:
    nodes, comparison = frames["nodes"], result.comparison
    share = tables.int8_mac_share(result)
    ratio = result.source_bytes / max(result.target_bytes, 1)
    rows = [
        ("Size", f"{size(result.source_bytes)} float, {size(result.target_bytes)} int8: "
         f"{ratio:.1f}x smaller"),
        ("Runs in int8", f"{nodes['int8'].sum()} of {nodes.height} nodes, {share:.1%} of "
         f"{size(int(nodes['macs'].sum()), 'MAC')}"),
        ("Calibrated on", f"{result.calibration.images} inputs"),
    ]  # fmt: skip
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
        f'<div class="bar" role="img" aria-label="{share:.1%} of the multiply-accumulates run in '
        f'int8"><i style="width:{100 * share:.2f}%"></i></div>'
    )
    advice = []
    if comparison is not None:
        advice = verdict.remedies(
            comparison, settings, result.calibration.images, result.convergence
        )
    tries = ""
    if advice:
        items = "".join(f"<li>{escape(line)}</li>" for line in verdict.listed(advice))
        tries = f"<h3>What to try, the most promising first</h3><ol>{items}</ol>"
    by_op = (
        nodes.group_by("op", maintain_order=True)
        .agg(
            pl.len().alias("nodes"),
            pl.col("macs").sum(),
            pl.col("macs").filter("int8").sum().alias("int8_macs"),
            pl.col("parameters").sum(),
        )
        .sort("macs", "nodes", descending=True, maintain_order=True)
    )
    ops = _table(
        "Where the work is, by type of layer",
        ("type", "nodes", "MACs", "in int8", "parameters"),
        [
            (
                row["op"].replace("_", " "),
                row["nodes"],
                (size(row["macs"], ""), row["macs"]),
                f"{row['int8_macs'] / row['macs']:.0%}" if row["macs"] else "",
                (size(row["parameters"], ""), row["parameters"]),
            )
            for row in by_op.iter_rows(named=True)
        ],
        numbers=(1, 2, 3, 4),
    )
    return (
        f'<div class="pair"><div>{_facts("The whole network", rows)}{bar}{tries}</div>{ops}</div>'
    )


def _passes(frame: pl.DataFrame | None) -> str:
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
    return _table(
        "What each pass did to the SQNR of the outputs; it is kept only where it helps",
        ("pass", "before, dB", "after, dB", "gain, dB", "", "detail"),
        rows,
        numbers=(1, 2, 3),
    )


def _candidates(frame: pl.DataFrame | None) -> str:
    if frame is None or not frame.height:
        return ""
    numeric = [index for index, kind in enumerate(frame.dtypes) if kind.is_numeric()]
    rows = []
    for row in frame.iter_rows():
        cells = []
        for value in row:
            is_number = isinstance(value, float)
            cells.append(_cell(value, "{:.4g}") if is_number else "" if value is None else value)
        rows.append(cells)
    return _table(
        "What was measured, in the order of the search",
        frame.columns,
        rows,
        kind="sortable",
        numbers=numeric,
        noun="candidates",
    )


def _layers(nodes: pl.DataFrame, result: Quantization) -> str:
    layers = [
        charts.LayerError(row["node"], row["op"], row["int8"], row["sqnr_db"], row["lost_db"])
        for row in nodes.filter(pl.col("sqnr_db").is_not_null()).iter_rows(named=True)
    ]
    parts = []
    if layers and result.comparison is not None:
        worst = [node.name for node in result.comparison.worst(5)]
        keys = (
            ("good", f"int8, {_LIMITS[0]:g} dB or more"),
            ("fair", f"{_LIMITS[1]:g} dB or more"),
            ("poor", "less"),
            ("float", "float"),
        )
        legend = " ".join(f'<span><i class="key {kind}"></i>{text}</span>' for kind, text in keys)
        caption = (
            f"How far each layer's output is from float, over {result.comparison.images} inputs: "
            f"higher is better. {legend}"
        )
        wide = charts.error_columns(layers, _LIMITS, worst)
        parts.append(_figure(wide + charts.error_rows(layers, _LIMITS), caption))
    rows = [
        (
            row["node"],
            row["op"].replace("_", " "),
            row["shape"],
            (size(row["macs"], "").strip(), row["macs"]),
            (size(row["parameters"], "").strip(), row["parameters"]),
            "int8" if row["int8"] else "float",
            _cell(row["sqnr_db"]),
            _cell(row["lost_db"]),
            _cell(row["cosine"], "{:.5f}"),
            _cell(row["largest_error"], "{:.3g}"),
            _cell(row["output_scale"], "{:.3g}"),
            row["output_scales"],
            row["why_float"],
        )
        for row in nodes.iter_rows(named=True)
    ]
    heads = (
        "layer", "type", "output", "MACs", "parameters", "runs in", "SQNR, dB", "lost, dB",
        "cosine", "largest error", "step", "steps", "why float",
    )  # fmt: skip
    parts.append(
        _table(
            "All layers in order of execution; no SQNR: merged into a neighbour by the target",
            heads,
            rows,
            kind="sortable",
            numbers=(3, 4, 6, 7, 8, 9, 10, 11),
            noun="layers",
        )
    )
    return "".join(parts)


def _blobs(result: Quantization, frames: Mapping[str, pl.DataFrame]) -> str:
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
            facts += f", {dead} dead channels"
        figures = []
        if blob in histograms:
            figures.append(_histogram(blob, histograms[blob], chosen.get(blob)))
        figures += _channel_figures(blob, rows)
        opened = " open" if blob in is_open else ""
        items.append(
            f'<details{opened} data-text="{escape(blob)}"><summary>{escape(blob)}'
            f"<small>{facts}</small></summary>{''.join(figures)}</details>"
        )
    intro = (
        "<p>What was seen of each blob during calibration: how often which magnitude occurred, "
        "what each blob method would keep of it (larger values are clipped to it), and how much of the "
        "range each channel uses. The blobs of the worst layers are open.</p>"
    )
    return (
        f'{intro}<div class="grid" data-filter="details" data-noun="blobs">{"".join(items)}</div>'
    )


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
            row["method"] == "in the network",
        )
        for row in (() if chosen is None else chosen.iter_rows(named=True))
    ]
    edges = [*bins["low"].to_list(), bins["high"][-1]]
    chart = charts.histogram(blob, edges, bins["count"].to_list(), choices)
    return _figure(chart, "Count of magnitudes, and the largest that each method keeps.")


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
        figures = [_figure(chart, caption)]
        steps = found["threshold"].drop_nulls().to_list()
        if len(set(steps)) > 1:
            top = max(steps)
            plot = charts.channels(
                f"Scales of the {len(steps)} channels of blob {blob}",
                [each / top for each in steps],
                "the largest scale",
            )
            figures.append(_figure(plot, "Scale of each channel over the largest of the blob."))
        return figures
    return []


def _weights(frame: pl.DataFrame) -> str:
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
        quality = f", rounding {_float(sqnr.median()):.1f} dB" if len(sqnr) else ", float"
        facts = f"largest of {len(shares)} channels is {spread:.3g} times the median{quality}"
        chart = charts.channels(f"Range of the weights of {node}", shares, "the layer's range")
        caption = "Largest weight of each output channel over that of the layer."
        opened = " open" if place < _OPEN else ""
        items.append(
            f'<details{opened} data-text="{escape(node)}"><summary>{escape(node)}'
            f"<small>{facts}</small></summary>{_figure(chart, caption)}</details>"
        )
    wide = [node for node, _, _, spread in ranked if spread >= _WIDE_SPREAD]
    words = (
        f"In {len(wide)} layers one channel is {_WIDE_SPREAD:g} times the median one or more "
        f"({escape(', '.join(wide[:5]))}{' ...' if len(wide) > 5 else ''}): they need a scale per "
        "channel."
        if wide
        else f"No layer has a channel {_WIDE_SPREAD:g} times the median one."
    )
    what = "Which output channels hog the range of the weights, the widest layers first."
    intro = f"<p>{what} {words}</p>"
    return (
        f'{intro}<div class="grid" data-filter="details" data-noun="layers">{"".join(items)}</div>'
    )


def _convergence(result: Quantization) -> str:
    found = result.convergence
    answer = verdict.enough_images(found, result.calibration.images)
    words = f"<p>{escape(answer.text)}</p>"
    if found is None or len(found.inputs) < 2:
        return words
    scales = {blob: rows.astype(float).mean(axis=1).tolist() for blob, rows in found.scales.items()}
    chart = charts.convergence(found.inputs, scales, list(found.moving()))
    caption = (
        "Scale of each blob after so many inputs over that after all of them; the ones that still "
        "moved the most are named. Flat lines: more inputs would change nothing."
    )
    return words + _figure(chart, caption)


# ------------------------------------------------------------------ inputs


def _inputs(result: Quantization, names: Sequence[str]) -> str:
    comparison = result.comparison
    if comparison is None or not comparison.inputs:
        return ""
    items = [_input(item, names) for item in comparison.worst_inputs(_WORST_INPUTS)]
    changed = sum(not item.agrees for item in comparison.inputs)
    intro = (
        f"<p>The top-1 changed for {changed} of {len(comparison.inputs)} inputs. Shown are those, "
        "then the lowest SQNR.</p>"
    )
    return f'{intro}<div class="grid">{"".join(items)}</div>'


def _input(item: InputError, names: Sequence[str]) -> str:
    picture = _thumbnail(item.file)
    image = f'<img src="{picture}" alt="{escape(Path(item.file).name)}">' if picture else ""
    label = "" if item.label is None else f", labelled {_class(item.label, names)}"
    change = "" if item.agrees else " <strong class=poor-text>top-1 changed</strong>"
    rows = "".join(
        f'<tr><th scope="row">{place + 1}</th>{_top(item.float_top, place, names)}'
        f"{_top(item.int8_top, place, names)}</tr>"
        for place in range(max(len(item.float_top), len(item.int8_top)))
    )
    table = (
        f"<table><caption>Most probable classes</caption><thead><tr><th scope=col>#</th>"
        f"<th scope=col>float</th><th scope=col>int8</th></tr></thead><tbody>{rows}</tbody></table>"
        if rows
        else ""
    )
    return (
        f'<article class="input"><h3>{escape(Path(item.file).name)}</h3>{image}'
        f"<p>SQNR {item.sqnr:.1f} dB{escape(label)}{change}</p>{table}</article>"
    )


def _top(top: Sequence[tuple[int, float]], place: int, names: Sequence[str]) -> str:
    if place >= len(top):
        return "<td></td>"
    index, share = top[place]
    return f"<td>{escape(_class(index, names))} {share:.1%}</td>"


def _class(index: int, names: Sequence[str]) -> str:
    return f"{index} {names[index]}" if index < len(names) else str(index)


def _thumbnail(file: str) -> str:
    """Return a small JPEG of an image file as a data URI, "" for what is none."""
    path = Path(file)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return ""
    try:
        pixels = decode(path, 3)
    except DataError:  # it was readable when it was compared
        return ""
    height, width = pixels.shape[:2]
    ratio = _THUMBNAIL / max(height, width)
    if ratio < 1:
        target = max(round(height * ratio), 1), max(round(width * ratio), 1)
        pixels = images.resize(pixels, *target)
    data = iio.imwrite("<bytes>", pixels, extension=".jpg", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


# ------------------------------------------------------------------ configuration


def _configuration(result: Quantization, settings: Settings | None, source: Source) -> str:
    rows: list[tuple[str, str]] = []
    if settings is not None:
        rows += [
            ("Blob method", settings.blob_method),
            ("Weight method", settings.weight_method),
            ("Merge type", settings.merge),
            ("Target", settings.target),
            ("Passes", ", ".join(settings.passes) or "none"),
            (
                "Kept in float",
                ", ".join((*settings.float_nodes, *settings.exclude)) or "by rule only",
            ),
        ]
        if settings.target == "onnx":
            zeros = "no zero points" if settings.symmetric else "zero points where they help"
            rows.append(("Activations", f"{settings.activations}, {zeros}"))
        if settings.compat:
            rows.append(("Arithmetic", "that of TNN's tool (--compat tnn)"))
    how = source.inputs.preprocess
    if source.input_path is not None:
        rows += [
            ("Inputs", str(source.input_path)),
            ("Preprocessing", f"(pixel - {_listing(how.bias)}) * {_listing(how.scale)}, "
             f"{how.channel_order}, {how.resize}"),
        ]  # fmt: skip
    prints = [
        ("Float network", f"sha256 {fingerprint(result.graph)} (nodes and weights, fused)"),
        ("Int8 network", f"sha256 {fingerprint(result.quantized)} (nodes and weights)"),
    ]
    files = (*source.files, *result.paths)
    prints += [(path.name, f"sha256 {_sha256(path)}") for path in files]
    if source.statistics is not None:
        prints.append((source.statistics.name, f"sha256 {_sha256(source.statistics)}"))
    elif source.input_path is not None:
        opened = source.inputs.open(source.input_path, result.graph)
        prints.append((f"{len(opened)} input files", f"sha256 {opened.fingerprint()}"))
    versions = [("quantjit", _version())]
    versions += [(name, metadata.version(name)) for name in _PACKAGES]
    return (
        f'<div class="pair">{_facts("Resolved settings", rows)}{_facts("Versions", versions)}</div>'
        f"{_facts('Fingerprints', prints)}"
    )


def _listing(values: Sequence[float]) -> str:
    words = ", ".join(f"{value:.7g}" for value in values)
    return words if len(values) == 1 else f"[{words}]"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _reading(frames: Mapping[str, pl.DataFrame]) -> str:
    terms = (
        ("SQNR", "signal over quantization noise, 10 log10(sum x^2 / sum (x - y)^2) of float x and "
         "int8 y: 6 dB are one bit, 20 dB a tenth of the signal"),
        ("Lost", "what a layer takes from the SQNR of its own worst input"),
        ("Scale, step", "real units between two neighbouring codes"),
        ("Clipped", "values beyond the last code, which takes their place"),
        ("Dead channel", "was 0 for every input; harmless, but it says something of the network"),
        ("Safe to ship", f"from {verdict.MANY_IMAGES} compared inputs on: at most "
         f"{verdict.GOOD_LOSS:.0%} of them lost against float (usable: {verdict.FAIR_LOSS:.0%}), "
         f"or without labels the same top-1 for {verdict.GOOD_AGREEMENT:.0%} "
         f"({verdict.FAIR_AGREEMENT:.0%}); else {verdict.GOOD_SQNR:g} dB at the outputs "
         f"({verdict.FAIR_SQNR:g})"),
        ("Worst layer", f"the int8 layer that loses most; more than {verdict.HEAVY_LOSS:g} dB that "
         f"leave less than {verdict.GOOD_SQNR:g} are worth a look"),
        ("Enough images", "95 % of the scales move by less than 1 % while the inputs double"),
    )  # fmt: skip
    files = ", ".join(f"{name}.parquet" for name in frames)
    return (
        f"{_facts('Words and thresholds', terms)}<p>The tables behind this page lie beside it: "
        f"{files}, each also as .csv.</p>"
    )
