"""What a person reads in the terminal: tables and the summary, with a verdict and a remedy.

Frames are made by `quantjit.tables`, words by `quantjit.verdict`.  Nothing here computes a result.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quantjit.calibration import Calibration, Work
from quantjit.convergence import Convergence
from quantjit.graph import Graph
from quantjit.metrics import Comparison, NodeError
from quantjit.mixed import Mixed
from quantjit.ops import Shape
from quantjit.pipeline import Conversion, Gathered, Inspection, Quantization
from quantjit.plan import BINS, Plan
from quantjit.quantizer import Settings
from quantjit.refine import Effect
from quantjit.sensitivity import Sensitivity
from quantjit.tables import (
    convergence_frame,
    inspection_frame,
    int8_mac_share,
    leaderboard_frame,
    node_frame,
    save_convergence,
    save_nodes,
    sensitivity_frame,
)
from quantjit.tuning import Tuned
from quantjit.verdict import answers, preprocessing_warning, remedies, verdict

_NAMED_FILES = 20  # of those that could not be read
_PLACES = 8  # of a leaderboard


def _convergence_rows(convergence: Convergence | None) -> list[tuple[str, str]]:
    """Return one line of advice, none for few inputs: there the advice is to take more."""
    if convergence is None or convergence.doubling() is None:
        return []
    return [("converged", convergence.advice())]


def size(count: float, unit: str = "B") -> str:
    """Return a count with a decimal prefix, e.g. 1.2 MB."""
    for prefix in ("", "k", "M"):
        if count < 1000:
            return f"{count:.{0 if not prefix else 1}f} {prefix}{unit}"
        count /= 1000
    return f"{count:.1f} G{unit}"


def shapes_text(shapes: Mapping[str, Shape]) -> str:
    """Return e.g. ``data 1x3x227x227``."""
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())


def print_inspection(console: Console, inspection: Inspection) -> None:
    """Print the table of nodes and its sums."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in (
        ("node", "left"),
        ("op", "left"),
        ("output", "left"),
        ("MACs", "right"),
        ("params", "right"),
        ("runs in", "left"),
    ):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in inspection.nodes:
        table.add_row(
            escape(row.name),
            row.op,
            "x".join(map(str, row.shape)),
            size(row.macs, ""),
            size(row.parameters, ""),
            "int8" if not row.why_float else f"float: {escape(row.why_float)}",
        )
    console.print(table)
    total = sum(row.macs for row in inspection.nodes)
    in_int8 = sum(row.macs for row in inspection.nodes if not row.why_float)
    count = sum(not row.why_float for row in inspection.nodes)
    console.print(
        f"\ninput {shapes_text(inspection.inputs)}; outputs {', '.join(inspection.outputs)}\n"
        f"{len(inspection.nodes)} nodes, {size(total, 'MAC')}, "
        f"{size(sum(row.parameters for row in inspection.nodes), 'parameters')}; "
        f"{'already quantized; ' if inspection.is_quantized else ''}"
        f"{count} nodes and {_percent(in_int8, total)} of the MACs "
        f"{'run' if inspection.is_quantized else 'would run'} in int8\n"
        f"blobs: {size(inspection.arena_bytes)} in reused buffers "
        f"instead of {size(inspection.blob_bytes)}",
        highlight=False,
    )
    if inspection.plan is not None:
        console.print(plan_text(inspection.plan), highlight=False)


def plan_text(plan: Plan) -> str:
    """Return what a calibration would take."""
    resources = plan.resources
    fewer = "" if plan.bins == BINS else f" instead of {BINS}, to fit --memory"
    return (
        f"calibration: {plan.rows} rows of statistics with {plan.bins} bins{fewer}; at most "
        f"{size(plan.total_bytes)} in all, whatever the number of inputs: statistics "
        f"{size(plan.statistics_bytes)} (while they are solved or written), network "
        f"{size(plan.network_bytes)}, inputs {size(plan.queue_bytes)}, the program "
        f"{size(plan.program_bytes)}; {resources.threads} threads, batch {resources.batch}, "
        f"{resources.depth} files loaded ahead"
    )


def print_quantization(
    console: Console,
    result: Quantization,
    settings: Settings,
    page: Path | None = None,
    *,
    is_tuned: bool = False,
) -> None:
    """Print what was done, how good it is, the worst nodes and what to try.

    page: of its report.  is_tuned: no other method needs to be tried.
    """
    calibration, table = result.calibration, result.table
    if calibration.work is None:
        rate = f"{calibration.images} inputs, from {calibration.source}"
    else:
        rate = _rate(calibration.images, calibration.work)
    rows = [
        ("settings", str(settings)),
        ("calibrated", f"{rate}, {len(table.scales)} blobs"),
        *_time_rows(calibration.work),
        *_convergence_rows(result.convergence),
        *_effect_rows(result.effects),
        ("int8", _coverage(result.graph, table.float_nodes, int8_mac_share(result))),
        *_mixed_rows(result.mixed),
    ]
    if table.dead:
        channels = sum(table.dead.values())
        rows.append(
            ("dead", f"{channels} channels of {len(table.dead)} blobs never left 0 (kept harmless)")
        )
    rows += _left_out_rows(calibration, result.skipped)
    rows += [("note", note) for note in result.notes]
    rows.append(("written", "  ".join(map(str, result.paths))))
    rows.append(
        (
            "size",
            f"{size(result.source_bytes)} -> {size(result.target_bytes)} "
            f"({result.source_bytes / max(result.target_bytes, 1):.1f}x smaller)",
        )
    )
    if page is not None:
        rows.append(("report", str(page)))
    if result.comparison is None and calibration.source:
        rows.append(("verified", "no: give sample inputs with -i"))
    _print_rows(console, rows)
    if result.comparison is not None:
        print_comparison(console, result.comparison)
        advice = remedies(
            result.comparison,
            settings,
            calibration.images,
            result.convergence,
            is_tuned=is_tuned,
        )
        zero_points = not settings.blob_solver.symmetric or not settings.weight_solver.symmetric
        if settings.target == "tnn" and zero_points:
            advice.append(
                "zero points are honoured by TNN's naive CPU device only; its x86 kernels ignore "
                "them: verify on the device"
            )
        _print_advice(console, advice)


def print_conversion(console: Console, made: Conversion) -> None:
    """Print what was written and how far it is off."""
    rows = [("written", "  ".join(map(str, made.paths)))]
    rows += [("note", note) for note in made.notes]
    rows.append(
        ("compared", f"on a random input: largest difference {made.difference:.1e} of the output")
    )
    _print_rows(console, rows)


def print_gathered(console: Console, result: Gathered) -> None:
    """Print what went into a statistics file, and how fast."""
    file, calibration = result.file, result.calibration
    rows: list[tuple[str, str]] = []
    if calibration is not None and calibration.work is None:
        rows.append(("calibrated", f"{calibration.images} inputs, by {calibration.source}"))
        rows += _left_out_rows(calibration, result.skipped)
    elif calibration is not None and calibration.work is not None:
        rows.append(("calibrated", _rate(calibration.new_images, calibration.work)))
        rows += _time_rows(calibration.work)
        rows += _convergence_rows(result.convergence)
        rows += _left_out_rows(calibration, result.skipped)
        if result.known:
            rows.append(("in already", f"{result.known} files"))
    lines = sum(seen.channels for seen in file.stats.values())
    rows += [
        (
            "statistics",
            f"{file.images} inputs, {len(file.stats)} blobs, {lines} rows of {file.bins} bins",
        ),
        ("inputs", f"sha256 {file.inputs_fingerprint}"),
        ("written", f"{result.path} ({size(result.path.stat().st_size)})"),
    ]
    _print_rows(console, rows)


def _rate(images: int, work: Work) -> str:
    return f"{images} inputs in {work.seconds:.1f} s ({images / max(work.seconds, 1e-9):.1f}/s)"


def _time_rows(work: Work | None) -> list[tuple[str, str]]:
    """Return where the time went and what bounds it; loading overlaps the other two."""
    if work is None:
        return []
    shares = [
        f"{stage} {work.share(name):.0%}"
        for stage, name in (
            ("decode", "load"),
            ("forward", "forward"),
            ("statistics", "statistics"),
        )
    ]
    threads = f"{work.threads} thread{'s' * (work.threads > 1)}, batch {work.batch}"
    return [("time", f"{', '.join(shares)} of {threads}; bound by {work.bound_by}")]


def _left_out_rows(calibration: Calibration, skipped: Sequence[str]) -> list[tuple[str, str]]:
    rows = [
        ("left out", f"{item.values} NaN/Inf values of blob {item.blob!r} with {item.file}")
        for item in calibration.nonfinite[:3]
    ]
    if skipped:
        named = "; ".join(skipped[:_NAMED_FILES])
        more = f"; and {len(skipped) - _NAMED_FILES} more" if len(skipped) > _NAMED_FILES else ""
        rows.append(("skipped", f"{len(skipped)} unreadable: {named}{more}"))
    return rows


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the verdict and the five worst nodes."""
    rows = [("verified", f"on {comparison.images} inputs: {verdict(comparison)}")]
    if comparison.float_top1 is not None and comparison.int8_top1 is not None:
        rows.append(
            (
                "top-1",
                f"float {comparison.float_top1:.2%}, int8 {comparison.int8_top1:.2%} "
                f"({100 * (comparison.int8_top1 - comparison.float_top1):+.2f} points)",
            )
        )
    if len(comparison.outputs) > 1:
        each = ", ".join(f"{out.blob} {out.sqnr:.1f} dB" for out in comparison.outputs)
        rows.append(("outputs", each))
    _print_rows(console, rows)
    worst = comparison.worst()
    if not worst:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("worst nodes", overflow="fold")
    table.add_column("op")
    for column in ("lost dB", "SQNR dB", "cosine", "largest error"):
        table.add_column(column, justify="right")
    for node in worst:
        table.add_row(
            escape(node.name),
            node.op,
            f"{node.lost:.1f}",
            f"{node.error.sqnr:.1f}",
            f"{node.error.cosine:.5f}",
            f"{node.error.largest:.4g}",
        )
    console.print()
    console.print(table)


def print_report(console: Console, result: Quantization, paths: Sequence[Path]) -> None:
    """Print the answers of the page, the worst nodes and what was written."""
    images = result.calibration.images
    rows = [("int8", _coverage(result.graph, result.table.float_nodes, int8_mac_share(result)))]
    found = answers(result.comparison, None, images, result.convergence)
    for label, answer in zip(("ship it?", "worst", "try", "images"), found, strict=True):
        rows.append((label, f"{answer.short}. {answer.text}"))
    rows.append(
        ("written", f"{paths[0]} ({size(paths[0].stat().st_size)}), {len(paths) - 1} tables")
    )
    _print_rows(console, rows)
    if result.comparison is not None:
        print_comparison(console, result.comparison)
        _print_advice(console, remedies(result.comparison, None, images, result.convergence))


def print_warning(console: Console, comparison: Comparison) -> None:
    """Print `preprocessing_warning`, if there is one."""
    warning = preprocessing_warning(comparison)
    _print_advice(console, [warning] if warning else [])


def _coverage(graph: Graph, float_nodes: Mapping[str, str], macs: float) -> str:
    """Return how many nodes and what share of the MACs run in int8, and why others do not."""
    reasons: dict[str, list[str]] = {}
    for name, reason in float_nodes.items():
        reasons.setdefault(reason, []).append(name)
    text = (
        f"{len(graph.nodes) - len(float_nodes)} of {len(graph.nodes)} nodes, {macs:.1%} of the MACs"
    )
    for reason, names in reasons.items():
        text += f"; float: {_shorten(names)} ({reason})"
    return text


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "0%"


def _print_rows(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True, width=10)
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(label, escape(text))
    console.print(grid, highlight=False)


def _print_advice(console: Console, advice: Sequence[str]) -> None:
    if advice:
        console.print("\n[bold]what to try[/bold]")
        for line in advice:
            console.print(f"  - {escape(line)}", highlight=False)


# ------------------------------------------------------------------ searches


def _effect_rows(effects: Sequence[Effect]) -> list[tuple[str, str]]:
    """Return a row for each pass that was tried."""
    rows = []
    for effect in effects:
        kept = "kept" if effect.is_kept else "not kept"
        detail = f"; {effect.detail}" if effect.detail else ""
        change = f"SQNR {effect.before:.2f} -> {effect.after:.2f} dB"
        rows.append(("pass", f"{effect.name} {kept}: {change}{detail}"))
    return rows


def _mixed_rows(mixed: Mixed | None) -> list[tuple[str, str]]:
    """Return what was left float to meet a target, and what it bought."""
    if mixed is None:
        return []
    share = _percent(mixed.int8_macs, mixed.macs)
    before, after = mixed.before, mixed.after
    change = f"SQNR {before.sqnr:.2f} -> {after.sqnr:.2f} dB"
    if before.agreement is not None and after.agreement is not None:
        change += f", agreement {before.agreement:.1%} -> {after.agreement:.1%}"
    rows = [("MACs", f"{share} of {size(mixed.macs, '')} in int8; {change}")]
    for index, node in enumerate(mixed.bought):
        macs = f"{_percent(node.macs, mixed.macs)} of the MACs"
        text = f"{node.name} ({node.op}): {macs}, {node.lost:+.2f} dB against int8"
        rows.append(("left float" if not index else "", text))
    if mixed.missed:
        rows.append(("missed", f"{mixed.missed}, whatever is left float"))
    return rows


def print_leaderboard(console: Console, tuned: Tuned) -> None:
    """Print the best settings and the original's default, with the margin of the winner."""
    places = dict(enumerate(tuned.candidates, 1))
    shown = {n: each for n, each in places.items() if n <= _PLACES or each.is_default}
    has_labels = any(each.top1 is not None for each in shown.values())
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "blobs", "weights", "scales", "passes"):
        table.add_column(column)
    for column in ("SQNR dB", "agrees", *(("top-1",) if has_labels else ()), "inputs"):
        table.add_column(column, justify="right")
    table.add_column("", overflow="fold")
    for place, each in shown.items():
        settings = each.settings
        verdict = each.verdict + ("; default of TNN's tool" if each.is_default else "")
        row = [str(place), settings.blob_method, settings.weight_method, settings.merge]
        row += [",".join(settings.passes), f"{each.sqnr:.2f}", _optional(each.agreement)]
        row += [_optional(each.top1)] if has_labels else []
        table.add_row(*row, str(each.images), escape(verdict))
    winner, default = tuned.candidates[0], tuned.default
    margin = f"{winner.sqnr - default.sqnr:+.2f} dB against the default of TNN's tool"
    if winner.is_default:
        margin = "nothing is better than the default of TNN's tool"
    console.print()
    console.print(table)
    console.print(
        f"{len(places)} settings tried in {tuned.seconds:.1f} s on {tuned.held_out} held-out "
        f"inputs; {margin}",
        highlight=False,
    )


def print_tuned(console: Console, tuned: Tuned) -> None:
    """Print the network that was written, and what it won against."""
    print_quantization(console, tuned.quantization, tuned.settings, is_tuned=True)
    print_leaderboard(console, tuned)


def _optional(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def print_sensitivity(console: Console, found: Sensitivity, settings: Settings) -> None:
    """Print the nodes, the most harmful first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("node", overflow="fold")
    table.add_column("op")
    for column in ("MACs", "alone dB", "without dB", "gain dB", "layer dB", "lost dB"):
        table.add_column(column, justify="right")
    for row in found.nodes:
        proxy = ("-", "-")
        if row.layer_sqnr is not None and row.lost is not None:
            proxy = f"{row.layer_sqnr:.1f}", f"{row.lost:.1f}"
        table.add_row(
            escape(row.name),
            row.op,
            size(row.macs, ""),
            f"{row.alone:.1f}",
            f"{row.without:.1f}",
            f"{row.without - found.whole.sqnr:+.2f}",
            *proxy,
        )
    console.print(table)
    total = found.int8_macs + found.float_macs
    console.print(
        f"\n{settings}: SQNR {found.whole.sqnr:.1f} dB with all {len(found.nodes)} nodes in int8 "
        f"({_percent(found.int8_macs, total)} of the MACs), on {found.images} inputs\n"
        "alone: only this node in int8; without: all but it; gain: what leaving it float buys; "
        "layer, lost: SQNR of its output in the int8 network, and against its inputs",
        highlight=False,
    )


__all__ = [
    "NodeError",
    "convergence_frame",
    "inspection_frame",
    "leaderboard_frame",
    "node_frame",
    "print_comparison",
    "print_conversion",
    "print_gathered",
    "print_inspection",
    "print_leaderboard",
    "print_quantization",
    "print_report",
    "print_sensitivity",
    "print_tuned",
    "print_warning",
    "remedies",
    "save_convergence",
    "save_nodes",
    "sensitivity_frame",
    "verdict",
]
