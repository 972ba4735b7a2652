"""The leaderboard of a zoo: one row a model, best first; terminal, Markdown, CSV, Parquet, HTML.

Nothing of it depends on when, where or in which order the models ran but the last two columns, time
and memory.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from quantjit.manifest import Gates
from quantjit.table import save_bytes
from quantjit.terminal import size

MISSED, FAILED = "gate missed", "failed"
"""Verdicts beside those of `quantjit.verdict.GRADES`."""

UNVERIFIED = "not verified"

STEM = "leaderboard"
SUFFIXES = ("html", "md", "csv", "parquet")

TIMINGS = ("seconds", "peak_bytes")
"""Columns that differ between two runs of the same zoo."""

_SCHEMA: Mapping[str, Any] = {
    "model": pl.String,
    "verdict": pl.String,
    "sqnr_db": pl.Float64,
    "agreement": pl.Float64,
    "float_top1": pl.Float64,
    "int8_top1": pl.Float64,
    "int8_macs": pl.Float64,
    "float_bytes": pl.Int64,
    "int8_bytes": pl.Int64,
    "inputs": pl.Int64,
    "compared": pl.Int64,
    "settings": pl.String,
    "file": pl.String,
    "reason": pl.String,
    "seconds": pl.Float64,
    "peak_bytes": pl.Int64,
}
_HEADS = ("model", "verdict", "SQNR dB", "agrees", "top-1", "int8 MACs", "size", "time", "memory")
_WORDS = ("model", "verdict", "settings")


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a model.

    name: of its folder; file: of the network.  outcome: of `quantjit.job.outcome_of`, None where it
    failed for a reason.  seconds, peak_bytes: of its process, None where they are not known.
    """

    name: str
    file: str
    outcome: Mapping[str, Any] | None
    gates: Gates
    reason: str = ""
    seconds: float | None = None
    peak_bytes: int | None = None

    @property
    def missed(self) -> tuple[str, ...]:
        """The gates that it misses, in words."""
        return () if self.outcome is None else misses(self.outcome, self.gates)

    @property
    def verdict(self) -> str:
        """One of MISSED, FAILED, UNVERIFIED and the grades of a comparison."""
        if self.outcome is None:
            return FAILED
        if self.missed:
            return MISSED
        return self.outcome["grade"] or UNVERIFIED

    @property
    def rank(self) -> tuple[object, ...]:
        """What rows are ordered by: failed ones last, then by SQNR, then by name."""
        found = self.outcome or {}
        sqnr = found.get("sqnr_db")
        return (
            [MISSED, FAILED].index(self.verdict) + 1 if self.verdict in {MISSED, FAILED} else 0,
            sqnr is None,
            -(sqnr or 0.0),
            self.name,
        )


def misses(outcome: Mapping[str, Any], gates: Gates) -> tuple[str, ...]:
    """Return the gates that an outcome misses, in words."""
    sqnr, agreement = outcome["sqnr_db"], outcome["agreement"]
    float_top1, int8_top1 = outcome["float_top1"], outcome["int8_top1"]
    drop = None if None in (float_top1, int8_top1) else float_top1 - int8_top1
    said = []
    if gates.min_sqnr is not None and (sqnr is None or sqnr < gates.min_sqnr):
        found = "is not known" if sqnr is None else f"{sqnr:.2f} dB"
        said.append(f"SQNR {found} is below min_sqnr {gates.min_sqnr:g}")
    if gates.min_agreement is not None and (agreement is None or agreement < gates.min_agreement):
        found = (
            "unknown: no output is a list of scores" if agreement is None else f"{agreement:.2%}"
        )
        said.append(f"agreement {found} is below min_agreement {gates.min_agreement:.2%}")
    if gates.max_drop is not None and (drop is None or drop > gates.max_drop):
        found = "unknown: no output is a list of scores" if drop is None else f"{drop:.2%}"
        said.append(f"top-1 loss {found} is above max_drop {gates.max_drop:.2%}")
    return tuple(said)


def frame(rows: Sequence[Row]) -> pl.DataFrame:
    """One row a model, best first: what every other form of the leaderboard shows."""
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA}
    for row in sorted(rows, key=lambda row: row.rank):
        values = {
            **dict.fromkeys(_SCHEMA),
            **(row.outcome or {}),
            "model": row.name,
            "verdict": row.verdict,
            "file": row.file,
            "reason": row.reason or "; ".join(row.missed),
            "seconds": row.seconds,
            "peak_bytes": row.peak_bytes,
        }
        for name, column in columns.items():
            column.append(values[name])
    return pl.DataFrame(columns, schema=_SCHEMA)


def save(rows: Sequence[Row], folder: Path) -> tuple[Path, ...]:
    """Write leaderboard.html, .md, .csv and .parquet into a folder; return their paths."""
    table = frame(rows)
    parquet = io.BytesIO()
    table.write_parquet(parquet)
    contents = {
        "html": _html(rows).encode(),
        "md": markdown(rows).encode(),
        "csv": table.write_csv().encode(),
        "parquet": parquet.getvalue(),
    }
    paths = []
    for suffix, content in contents.items():
        paths.append(folder / f"{STEM}.{suffix}")
        if not _is_same(paths[-1], content):
            save_bytes(content, paths[-1])
    return tuple(paths)


def _is_same(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


# ------------------------------------------------------------------ for people


def _cells(row: Row) -> tuple[str, ...]:
    """Return what a person reads of a row, see _HEADS; "" for what is not known."""
    found = row.outcome or {}

    def shown(key: str, pattern: str) -> str:
        return "" if found.get(key) is None else pattern.format(found[key])

    top1 = ""
    if found.get("int8_top1") is not None:
        top1 = f"{found['float_top1']:.2%} -> {found['int8_top1']:.2%}"
    sizes = f"{size(found['float_bytes'])} -> {size(found['int8_bytes'])}" if found else ""
    return (
        row.name,
        row.verdict,
        shown("sqnr_db", "{:.1f}"),
        shown("agreement", "{:.1%}"),
        top1,
        shown("int8_macs", "{:.1%}"),
        sizes,
        "" if row.seconds is None else f"{row.seconds:.1f} s",
        "" if row.peak_bytes is None else size(row.peak_bytes),
    )


def _reasons(rows: Sequence[Row]) -> list[tuple[str, str]]:
    said = ((row.name, row.reason or "; ".join(row.missed)) for row in rows)
    return [(name, reason) for name, reason in said if reason]


def summary(rows: Sequence[Row]) -> str:
    """Return how many there are of what."""
    missed = sum(row.verdict == MISSED for row in rows)
    failed = sum(row.verdict == FAILED for row in rows)
    fine = len(rows) - missed - failed
    said = [f"{fine} of {len(rows)} models quantized"]
    said += [f"{missed} missed a gate"] * bool(missed) + [f"{failed} failed"] * bool(failed)
    return ", ".join(said)


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print the leaderboard, and below it what failed and why."""
    rows = sorted(rows, key=lambda row: row.rank)
    used = _used(rows)
    styles = {FAILED: "red", MISSED: "yellow"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in used:
        justify = "left" if _HEADS[column] in _WORDS else "right"
        table.add_column(_HEADS[column], justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        cells = _cells(row)
        table.add_row(
            *(escape_markup(cells[column]) for column in used), style=styles.get(row.verdict)
        )
    console.print(table)
    for name, reason in _reasons(rows):
        console.print(f"{escape_markup(name)}: {escape_markup(reason)}", highlight=False)
    console.print(summary(rows), highlight=False)


def _used(rows: Sequence[Row]) -> list[int]:
    """Return the columns in which something stands."""
    cells = [_cells(row) for row in rows]
    return [column for column in range(len(_HEADS)) if any(each[column] for each in cells)]


def markdown(rows: Sequence[Row]) -> str:
    """Return the leaderboard as a Markdown table."""
    rows = sorted(rows, key=lambda row: row.rank)
    heads = (*_HEADS[:-2], "settings", *_HEADS[-2:])
    lines = [
        f"| {' | '.join(heads)} |",
        f"|{'|'.join('---' if head in _WORDS else '---:' for head in heads)}|",
    ]
    for row in rows:
        cells = _cells(row)
        settings = str((row.outcome or {}).get("settings", ""))
        cells = (*cells[:-2], settings, *cells[-2:])
        lines.append(f"| {' | '.join(_escaped_cell(cell) for cell in cells)} |")
    reasons = [f"- **{_escaped_cell(name)}**: {_escaped_cell(r)}" for name, r in _reasons(rows)]
    return "\n".join([*lines, "", f"{summary(rows)}.", *([""] * bool(reasons)), *reasons, ""])


def _escaped_cell(text: str) -> str:
    for letter in "\\|*_<`":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())


_CLASSES = {FAILED: "failed", MISSED: "missed"}
_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { white-space: nowrap; }
td:nth-child(n+3):nth-child(-n+9) { white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2), th:last-child, td:last-child { text-align: left; }
.failed td:nth-child(2)::before { content: "\\2715  "; color: #d33; }
.missed td:nth-child(2)::before { content: "\\25bc  "; color: #b80; }
.reason td { border-bottom: 0; }
.reason + tr td { border-bottom: 1px solid var(--line); padding-top: 0; font-size: .9em; }
"""


def _html(rows: Sequence[Row]) -> str:
    """Return one page that needs nothing beside it and links the reports of the models."""
    rows = sorted(rows, key=lambda row: row.rank)
    heads = (*_HEADS, "settings")
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    body = []
    for row in rows:
        found = row.outcome or {}
        name, *cells = (escape(cell) for cell in _cells(row))
        if found.get("report"):
            link = "/".join(_quoted(part) for part in (row.name, *found["report"].split("/")))
            name = f'<a href="{link}">{name}</a>'
        cells = [name, *cells, escape(str(found.get("settings", "")))]
        kinds = [_CLASSES.get(row.verdict, "")]
        said = row.reason or "; ".join(row.missed)
        kinds += ["reason"] * bool(said)
        kind = " ".join(filter(None, kinds))
        attribute = f' class="{kind}"' if kind else ""
        body.append(f"<tr{attribute}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        if said:
            body.append(f'<tr><td colspan="{len(heads)}">{escape(said)}</td></tr>')
    lines = "\n".join(body)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>quantjit: leaderboard</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Leaderboard</h1>
<p>{escape(summary(rows))}. SQNR, agreement and top-1 compare the int8 network with its float one;
int8 MACs: share of the multiply-accumulates that run in int8; memory: peak of the process.</p>
<div class="scroll"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{lines}
</tbody>
</table></div>
</body>
</html>
"""


def _quoted(part: str) -> str:
    from urllib.parse import quote

    return quote(part)
