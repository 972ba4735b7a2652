"""A report as a folder: one page that needs nothing else, and its tables as Parquet and CSV.

The page loads nothing from anywhere: style, script, charts and thumbnails are inside.  It holds no
time, so that the same result is the same bytes.
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

import imageio.v3 as iio
import polars as pl

from quantjit import images, sections, tables, verdict
from quantjit.dataset import IMAGE_SUFFIXES, decode
from quantjit.errors import DataError, UsageError
from quantjit.metrics import InputError
from quantjit.pipeline import Inputs, Quantization
from quantjit.quantizer import Settings
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
    parts = [
        ("summary", "Summary", sections.summary(result, frames, settings)),
        ("passes", "Passes", sections.passes(frames.get("passes"))),
        ("candidates", "Candidates", sections.candidates(frames.get("candidates"))),
        ("layers", "Layers", sections.layers(frames["nodes"], result)),
        ("blobs", "Blobs", sections.blobs(result, frames)),
        ("weights", "Weights", sections.weights(frames["weights"], result)),
        ("images", "How many images", sections.convergence(result)),
        ("inputs", "Worst inputs", _inputs(result, source.class_names)),
        ("configuration", "Configuration", _configuration(result, settings, source)),
        ("reading", "How to read this", _reading(frames)),
    ]
    parts = [part for part in parts if part[2]]
    is_tuned = "candidates" in frames
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in parts)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-head"><h2 id="{key}-head">{name}</h2>{html}'
        "</section>"
        for key, name, html in parts
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: int8 report</title><style>{style}</style></head><body>"
        '<a class="skip" href="#summary">Skip to the summary</a>'
        f"<header><h1>{escape(title)}: int8 report</h1>"
        f'<p class="lead">{escape(_lead(result, settings))}</p>'
        f'<div class="answers">{_answers(result, settings, is_tuned)}</div>'
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


def _answers(result: Quantization, settings: Settings | None, is_tuned: bool) -> str:
    kinds = {0: "good", 1: "fair", 2: "poor", None: "unknown"}
    found = verdict.answers(
        result.comparison,
        settings,
        result.calibration.images,
        result.convergence,
        is_tuned=is_tuned,
    )
    cards = []
    for each in found:
        short, text = sections.breakable(each.short), sections.breakable(each.text)
        cards.append(
            f'<div class="answer {kinds[each.grade]}"><h2 class="q">{escape(each.question)}</h2>'
            f'<p class="short">{short}</p><p>{text}</p></div>'
        )
    return "".join(cards)


# ------------------------------------------------------------------ inputs


def _inputs(result: Quantization, names: Sequence[str]) -> str:
    comparison = result.comparison
    if comparison is None or not comparison.inputs:
        return ""
    items = [_input(item, names) for item in comparison.worst_inputs(_WORST_INPUTS)]
    changed = sum(not item.agrees for item in comparison.inputs)
    total = len(comparison.inputs)
    words = f"The top-1 changed for {changed} of {total} inputs; these come first, then the others"
    if not changed:
        words = f"Of {total} inputs" + (
            " the top-1 changed for none; these are the ones" if comparison.agreement else ", those"
        )
    return f"<p>{words} of lowest SQNR.</p><div class=grid>{''.join(items)}</div>"


def _input(item: InputError, names: Sequence[str]) -> str:
    name = escape(Path(item.file).name)
    picture = _thumbnail(item.file)
    image = f'<img src="{picture}" alt="{name}">' if picture else ""
    label = "" if item.label is None else f"<p>labelled {escape(_class(item.label, names))}</p>"
    change = "" if item.agrees else '<p class="poor-text"><strong>top-1 changed</strong></p>'
    rows = "".join(
        f'<tr><th scope="row">{place + 1}</th>{_top(item.float_top, place, names)}'
        f"{_top(item.int8_top, place, names)}</tr>"
        for place in range(max(len(item.float_top), len(item.int8_top)))
    )
    table = (
        "<table><thead><tr><th scope=col>#</th><th scope=col>float: class, share</th>"
        f"<th scope=col>int8: class, share</th></tr></thead><tbody>{rows}</tbody></table>"
        if rows
        else ""
    )
    return (
        f'<article class="input"><div class="head">{image}<div><h3>{name}</h3>'
        f"<p>SQNR {item.sqnr:.1f} dB</p>{label}{change}</div></div>{table}</article>"
    )


def _top(top: Sequence[tuple[int, float]], place: int, names: Sequence[str]) -> str:
    if place >= len(top):
        return "<td></td>"
    index, share = top[place]
    return f"<td>{escape(_class(index, names))}<span>{share:.1%}</span></td>"


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
    left, right = sections.facts("Resolved settings", rows), sections.facts("Versions", versions)
    return f'<div class="pair">{left}{right}</div>{sections.facts("Fingerprints", prints)}'


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
        ("Adds noise", "the same as an amount: the noise that a layer adds (RMS) over its signal; "
         "10 dB lost of 60 are 0.3 %, 10 dB lost of 30 are 9.5 %"),
        ("Scale, step", "real units between two neighbouring codes"),
        ("Clipped", "values beyond the last code, which takes their place"),
        ("Dead channel", "was 0 for every input; harmless, but it says something of the network"),
        *verdict.rules(),
    )  # fmt: skip
    files = ", ".join(f"{name}.parquet" for name in frames)
    words = sections.facts("Words and thresholds", terms)
    return f"{words}<p>The tables behind this page lie beside it: {files}, each also as .csv.</p>"
