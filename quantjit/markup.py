"""Small tables in HTML, for objects that are the last value of a notebook's cell."""

from collections.abc import Iterable, Sequence
from html import escape

_ROWS = 60
_STYLE = "text-align:left;font-weight:bold;padding:0 0 .3em"


def shape_text(shape: Iterable[int]) -> str:
    """Return "1x3x48x48"; "scalar" for no dimensions."""
    return "x".join(map(str, shape)) or "scalar"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table, everything in it escaped; numbers to the right, floats in 5 digits.

    Rows beyond the 60th are counted, not shown.
    """
    listed = list(rows)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in listed[:_ROWS])
    if len(listed) > _ROWS:
        body += f'<tr><td colspan="{len(head)}">... and {len(listed) - _ROWS} more</td></tr>'
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    title = f'<caption style="{_STYLE}">{escape(caption)}</caption>'
    return f"<table>{title}<thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, bool):
        return f"<td>{'yes' if value else ''}</td>"
    if isinstance(value, int | float):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
        return f'<td style="text-align:right">{text}</td>'
    return f'<td style="text-align:left">{escape(str(value))}</td>'
