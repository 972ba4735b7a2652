"""Small charts as inline SVG, drawn by ourselves: marks with titles, axes, labels in text.

Colours come from the page: shapes carry classes, everything else is ``currentColor``.  Every chart
scales with its width; text stays readable down to a card of 320 pixels, because no chart but
`error_columns` is wider than `WIDTH` units.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360
"""Units across a chart: a unit is about a pixel in a card."""

_WIDE = 1120  # of the one chart for wide screens
_LETTER = 6.4  # width of a letter of 11 units, about
_FLOOR = 1 / 256  # least share that a channel chart tells apart
_HOG = 2.0  # times the median from which on a channel stands out
_NAMED = 8  # marks with a title of their own in a chart of many channels


@dataclass(frozen=True, slots=True)
class LayerError:
    """What the error plots show of a layer: sqnr in dB; noise that it adds, over its signal."""

    name: str
    op: str
    is_int8: bool
    sqnr: float
    noise: float

    @property
    def title(self) -> str:
        """Return the words of its mark."""
        kind = "int8" if self.is_int8 else "float"
        words = f"SQNR {self.sqnr:.1f} dB, adds noise of {self.noise:.2%} of its signal"
        return f"{self.name} ({self.op}, {kind}): {words}"


def number(value: float) -> str:
    """Return a number in three digits or as a whole one, e.g. 0.0123, 12.3, 1734, 1.2e+06."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def shorten(name: str, letters: int) -> str:
    """Return a name with its middle left out where it is too long."""
    if len(name) <= letters:
        return name
    head = (letters - 2) // 2
    return f"{name[:head]}..{name[len(name) - (letters - 2 - head) :]}"


# ------------------------------------------------------------------ parts


def _svg(label: str, width: float, height: float, parts: Sequence[str], kind: str) -> str:
    return (
        f'<svg class="chart {kind}" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {width:g} {height:g}" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    label = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.4g}" y="{y:.4g}"{label}{place}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "axis") -> str:
    return f'<line class="{kind}" x1="{x1:.4g}" y1="{y1:.4g}" x2="{x2:.4g}" y2="{y2:.4g}"/>'


def _titled(shape: str, title: str) -> str:
    """Return a mark: a shape that ends in ``/>`` with a title inside."""
    name = shape[1 : shape.index(" ")]
    return f"{shape[:-2]}><title>{escape(title)}</title></{name}>"


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:.5g}" y="{y:.5g}" width="{max(width, 0):.4g}" '
        f'height="{max(height, 0):.4g}"/>'
    )


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers over a range, about so many."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


# ------------------------------------------------------------------ error of layers


def _grade_of(layer: LayerError, limits: tuple[float, float]) -> str:
    good, fair = limits
    if not layer.is_int8:
        return "float"
    return "good" if layer.sqnr >= good else "fair" if layer.sqnr >= fair else "poor"


def _reach(layers: Sequence[LayerError], limits: tuple[float, float]) -> tuple[float, float]:
    """Return the ends of the SQNR axis: all but what is exact."""
    shown = [layer.sqnr for layer in layers if abs(layer.sqnr) < 100]
    return min([0.0, *shown]), max([limits[0] + 5, *shown])


def error_columns(
    layers: Sequence[LayerError], limits: tuple[float, float], labelled: Sequence[str]
) -> str:
    """SQNR after every layer in order of execution, and the noise each adds; for wide screens.

    limits: SQNR from which on a layer is good, and fair.  labelled: names of layers to write out,
    five at most are.
    """
    left, right, top, middle, foot = 48, 12, 92.0, 200.0, 90.0
    low, high = _reach(layers, limits)
    height = top + middle + 28 + foot + 34
    step = (_WIDE - left - right) / max(len(layers), 1)

    def x_of(index: float) -> float:
        return left + (index + 0.5) * step

    def y_of(value: float) -> float:
        kept = min(max(value, low), high)
        return top + middle - (kept - low) / (high - low) * middle

    parts = []
    for tick in _ticks(low, high):
        parts.append(_line(left, y_of(tick), _WIDE - right, y_of(tick), "grid"))
        parts.append(_text(left - 6, y_of(tick) + 4, f"{tick:g}", "tick", "end"))
    parts.append(_text(0, top - 10, "SQNR dB", "tick"))
    for limit, kind in zip(limits, ("good", "fair"), strict=True):
        parts.append(_line(left, y_of(limit), _WIDE - right, y_of(limit), f"limit {kind}"))
    points = " ".join(f"{x_of(i):.5g},{y_of(row.sqnr):.4g}" for i, row in enumerate(layers))
    parts.append(f'<polyline class="trace" points="{points}"/>')
    places = {layer.name: index for index, layer in enumerate(layers)}
    chosen = sorted(places[name] for name in labelled[:5] if name in places)
    for level, index in enumerate(chosen):
        layer = layers[index]
        words = f"{shorten(layer.name, 44)} +{layer.noise:.1%}"
        at_end = x_of(index) + len(words) * _LETTER > _WIDE - right
        y = 14 + 15 * level
        parts.append(_line(x_of(index), y + 3, x_of(index), y_of(layer.sqnr) - 5, "leader"))
        anchor, shift = ("end", -4) if at_end else ("start", 4)
        parts.append(_text(x_of(index) + shift, y, words, "label", anchor))
    radius = min(max(step / 3, 2), 4.5)
    for index, layer in enumerate(layers):
        dot = (
            f'<circle class="mark {_grade_of(layer, limits)}" cx="{x_of(index):.5g}" '
            f'cy="{y_of(layer.sqnr):.4g}" r="{radius:.3g}"/>'
        )
        parts.append(_titled(dot, layer.title))
    base = top + middle + 28 + foot
    most = max([0.01, *(layer.noise for layer in layers if layer.noise < 1)])
    for tick in _ticks(0, most, 3):
        at = base - tick / most * foot
        parts.append(_line(left, at, _WIDE - right, at, "grid"))
        parts.append(_text(left - 6, at + 4, f"{100 * tick:.3g} %", "tick", "end"))
    parts.append(_text(0, base - foot - 9, "noise added by this layer, of its signal", "tick"))
    for index, layer in enumerate(layers):
        tall = min(layer.noise, most) / most * foot
        bar = _rect(x_of(index) - step * 0.35, base - tall, step * 0.7, tall, "mark lost")
        parts.append(_titled(bar, layer.title))
    parts.append(_line(left, base, _WIDE - right, base))
    parts.append(_text(left, base + 18, f"first layer: {shorten(layers[0].name, 40)}", "tick"))
    last = f"last: {shorten(layers[-1].name, 40)}"
    parts.append(_text(_WIDE - right, base + 18, last, "tick", "end"))
    label = f"SQNR in dB after each of {len(layers)} layers, in order of execution"
    return _svg(label, _WIDE, height, parts, "columns")


def error_rows(layers: Sequence[LayerError], limits: tuple[float, float]) -> str:
    """SQNR after every layer, a row each with its name; for narrow screens."""
    row, top = 30, 22
    low, high = _reach(layers, limits)
    low = min(low, 0.0)

    def x_of(value: float) -> float:
        return (min(max(value, low), high) - low) / (high - low) * WIDTH

    bottom = top + row * len(layers)
    parts = []
    for limit, kind in zip(limits, ("good", "fair"), strict=True):
        parts.append(_line(x_of(limit), top - 4, x_of(limit), bottom, f"limit {kind}"))
        parts.append(_text(x_of(limit), 12, f"{limit:g} dB", "tick", "middle"))
    for index, layer in enumerate(layers):
        y = top + row * index
        value = f"{layer.sqnr:.1f} dB" if abs(layer.sqnr) < 100 else "exact"
        parts.append(_text(0, y + 12, shorten(layer.name, 44), "label"))
        parts.append(_text(WIDTH, y + 12, value, "label", "end"))
        bar = _rect(0, y + 17, max(x_of(layer.sqnr), 1), 8, f"mark {_grade_of(layer, limits)}")
        parts.append(_titled(bar, layer.title))
    return _svg(f"SQNR in dB after each of {len(layers)} layers", WIDTH, bottom + 4, parts, "rows")


# ------------------------------------------------------------------ a blob


@dataclass(frozen=True, slots=True)
class Choice:
    """What a blob method would keep: magnitudes up to `threshold`; share: of the values clipped."""

    name: str
    threshold: float
    clipped: float
    is_used: bool = False


def _clipped(share: float) -> str:
    """Return what a share of clipped values is called."""
    if share <= 0:
        return "nothing clipped"
    least = 1e-5
    return f"{100 * share:.2g} % clipped" if share >= least else f"under {100 * least:g} % clipped"


def histogram(
    name: str, edges: Sequence[float], counts: Sequence[float], choices: Sequence[Choice]
) -> str:
    """Magnitudes of a blob, counts on a logarithmic scale, over what each method would keep.

    edges: one more than counts, from 0, in real units.
    """
    left, plot, line = 40, 104, 17
    width, top = WIDTH - left - 8, 14
    reach = max([edges[-1], *(min(each.threshold, 1.25 * edges[-1]) for each in choices)])
    decades = max(math.ceil(math.log10(max([10.0, *counts]))), 1)

    def x_of(value: float) -> float:
        return left + min(value / reach, 1) * width

    def tall(count: float) -> float:
        return max(math.log10(max(count, 1)) / decades, 0.02 if count > 0 else 0) * plot

    base = top + plot
    parts = []
    for decade in range(0, decades + 1, max(1, math.ceil(decades / 4))):
        y = base - decade / decades * plot
        parts.append(_line(left, y, WIDTH - 8, y, "grid"))
        words = "1" if decade == 0 else f"1e{decade}"
        parts.append(_text(left - 5, y + 4, words, "tick", "end"))
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if count <= 0:
            continue
        bar = _rect(
            x_of(low), base - tall(count), x_of(high) - x_of(low) - 0.4, tall(count), "mark bar"
        )
        parts.append(_titled(bar, f"{number(low)} to {number(high)}: {count:.4g} values"))
    parts.append(_line(left, base, WIDTH - 8, base))
    for tick in _ticks(0, reach, 4):
        anchor = "end" if x_of(tick) > WIDTH - 24 else "middle"
        parts.append(_line(x_of(tick), base, x_of(tick), base + 4))
        parts.append(_text(x_of(tick), base + 16, number(tick), "tick", anchor))
    for each in choices:
        if each.is_used and each.threshold <= reach:
            at = x_of(each.threshold)
            parts.append(_line(at, top - 6, at, base, "threshold"))
    y = base + 34
    for each in choices:
        kind = "mark kept used" if each.is_used else "mark kept"
        clipped = _clipped(each.clipped)
        words = f"{each.name}: {number(each.threshold)}, {clipped}"
        parts.append(_text(left, y, words, "label used" if each.is_used else "label"))
        bar = _rect(left, y + 3, x_of(each.threshold) - left, 3, kind)
        parts.append(_titled(bar, f"{each.name} keeps magnitudes up to {number(each.threshold)}"))
        y += line + 4
    return _svg(f"Histogram of the magnitudes of blob {name}", WIDTH, y - 8, parts, "histogram")


def channels(
    label: str, shares: Sequence[float], unit: str, names: Sequence[str] | None = None
) -> str:
    """How much of a range each channel uses, on a logarithmic scale: 1 all of it, 1/64 two codes.

    shares: largest magnitude of each channel over the end of the range; 0 marks a dead channel.
    unit: what the range is of, in words.  names: title of each channel.
    """
    left, top, plot = 40, 12, 120.0
    width = WIDTH - left - 8
    step = width / max(len(shares), 1)
    span = -math.log2(_FLOOR)
    above = max(0.0, math.log2(max([1.0, *shares])))

    def y_of(share: float) -> float:
        power = math.log2(min(max(share, _FLOOR), 2**above))
        return top + (above - power) / (above + span) * plot

    parts = []
    for power in range(0, -9, -2):
        words = "1" if power == 0 else f"1/{2**-power}"
        y = y_of(2.0**power)
        parts.append(_line(left, y, WIDTH - 8, y, "limit good" if power == 0 else "grid"))
        parts.append(_text(left - 5, y + 4, words, "tick", "end"))
    base = y_of(_FLOOR)
    ranked = sorted(range(len(shares)), key=lambda index: -shares[index])
    few = len(shares) <= 2 * _NAMED
    median = sorted(shares)[len(shares) // 2] if shares else 0.0
    named = set(range(len(shares)) if few else ranked[:_NAMED])
    rest = [index for index in range(len(shares)) if index not in named and shares[index] > 0]
    stroke = max(min(step * 0.7, 10), 0.6)
    if rest:
        path = "".join(
            f"M{left + (index + 0.5) * step:.4g} {base:.4g}V{y_of(shares[index]):.4g}"
            for index in rest
        )
        mark = f'<path class="mark stem" stroke-width="{stroke:.3g}" d="{path}"/>'
        parts.append(_titled(mark, f"{len(rest)} further channels"))
    for index in sorted(named):
        if shares[index] <= 0:
            continue
        x = left + (index + 0.5) * step
        kind = "mark stem hog" if shares[index] > _HOG * median else "mark stem"
        title = names[index] if names is not None else f"channel {index}"
        mark = (
            f'<path class="{kind}" stroke-width="{stroke:.3g}" '
            f'd="M{x:.4g} {base:.4g}V{y_of(shares[index]):.4g}"/>'
        )
        parts.append(_titled(mark, f"{title}: {number(shares[index])} of {unit}"))
    dead = [index for index, share in enumerate(shares) if share <= 0]
    if dead:
        path = "".join(f"M{left + (i + 0.5) * step:.4g} {base + 2:.4g}v5" for i in dead)
        mark = f'<path class="mark dead" stroke-width="{max(stroke, 1.5):.3g}" d="{path}"/>'
        listed = ", ".join(map(str, dead[:12])) + (" ..." if len(dead) > 12 else "")
        parts.append(_titled(mark, f"{len(dead)} dead channels: {listed}"))
    parts.append(_line(left, base, WIDTH - 8, base))
    parts.append(_text(left, base + 19, "channel 0", "tick"))
    parts.append(_text(WIDTH - 8, base + 19, str(len(shares) - 1), "tick", "end"))
    return _svg(label, WIDTH, base + 24, parts, "channels")


# ------------------------------------------------------------------ convergence


def convergence(
    inputs: Sequence[int], scales: Mapping[str, Sequence[float]], moving: Sequence[str]
) -> str:
    """Scale of each blob over its last one, against the number of inputs seen.

    scales: blob -> one a snapshot.  moving: blobs to write out, the first four are.
    """
    left, top, plot, right = 44, 12, 180, 8
    width = WIDTH - left - right
    relative = {
        blob: [value / row[-1] if row[-1] else 1.0 for value in row] for blob, row in scales.items()
    }
    values = [value for row in relative.values() for value in row]
    low, high = min([0.9, *values]), max([1.1, *values])
    high = min(high, 2.5)
    first, last = math.log2(inputs[0]), math.log2(inputs[-1])

    def x_of(count: float) -> float:
        return left + (math.log2(count) - first) / max(last - first, 1e-9) * width

    def y_of(value: float) -> float:
        return top + (high - min(value, high)) / (high - low) * plot

    parts = []
    for tick in _ticks(low, high, 4):
        parts.append(_line(left, y_of(tick), WIDTH - right, y_of(tick), "grid"))
        parts.append(_text(left - 5, y_of(tick) + 4, f"{100 * tick:.0f} %", "tick", "end"))
    base = top + plot
    marked = [blob for blob in moving if blob in relative][:4]
    plain = [blob for blob in relative if blob not in marked]
    for blob in (*plain, *marked):
        points = " ".join(
            f"{x_of(count):.4g},{y_of(value):.4g}"
            for count, value in zip(inputs, relative[blob], strict=True)
        )
        kind = f"series-{marked.index(blob) + 1}" if blob in marked else "others"
        mark = f'<polyline class="mark series {kind}" points="{points}"/>'
        at_first = relative[blob][0]
        parts.append(_titled(mark, f"{blob}: {100 * at_first:.1f} % at {inputs[0]} inputs"))
    parts.append(_line(left, base, WIDTH - right, base))
    shown = -math.inf
    for index, count in enumerate(inputs):
        x = x_of(count)
        is_last = index == len(inputs) - 1
        if x - shown < 34 or (not is_last and x_of(inputs[-1]) - x < 34):
            continue
        shown = x
        anchor = "end" if is_last else "start" if index == 0 else "middle"
        parts.append(_line(x, base, x, base + 4))
        parts.append(_text(x, base + 17, str(count), "tick", anchor))
    y = base + 36
    for index, blob in enumerate(marked):
        parts.append(_line(left, y - 4, left + 18, y - 4, f"series series-{index + 1}"))
        parts.append(_text(left + 24, y, shorten(blob, 44), "label"))
        y += 16
    return _svg("Scales of blobs by inputs seen, relative to the last", WIDTH, y, parts, "lines")
