"""argv -> options -> one pipeline call -> printed report -> exit code.

Exit codes: 0 done, 1 run-time failure, 2 usage, 3 model unreadable or unsupported, 4 data,
5 quality gate missed, 6 zoo partly failed, 130 interrupted by Ctrl-C or SIGTERM.  Results go to
stdout, progress and errors to stderr.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from quantjit import __version__
from quantjit.errors import QuantJitError, UsageError

if TYPE_CHECKING:
    from quantjit.metrics import Comparison

USAGE_EXIT, GATE_EXIT, FAILED_EXIT, INTERRUPTED_EXIT = 2, 5, 6, 130

_DECIDED = (  # by --auto
    "blob_method",
    "weight_method",
    "merge_type",
    "passes",
    "compat",
    "until_stable",
    "convergence",
)

_WIDTH = 120  # of what is printed where stdout is no terminal
_SECONDS_A_LINE = 5.0  # of progress, where stderr is no terminal

_HELP = f"""\
quantjit {__version__}: post-training int8 quantization of convolutional networks

usage: quantjit COMMAND [OPTIONS]

  quantize   a float ONNX or TNN model and sample inputs become an int8 model, verified
  tune       the same with the methods that keep the most, found on held-out inputs
  analyze    what int8 costs end to end in each layer
  calibrate  gather statistics only, in a file: large sets, in shards, resumable
  merge      add up the statistics files of shards, exactly
  verify     run an int8 model beside its float one and compare them layer by layer
  report     the same as a folder: one HTML page that explains it, and tables
  inspect    layers, shapes, MACs, and which layers would run in int8
  convert    a float model from ONNX to TNN or back
  zoo        a manifest or folder of models becomes a leaderboard; resumable
  demo       quantize the network that comes with quantjit, on its own images

  quantjit COMMAND --help lists the options of a command.

examples
  quantjit demo
  quantjit quantize net.onnx -i images/ --preset imagenet-torch -o net
  quantjit quantize -p net.tnnproto -m net.tnnmodel -i images/ -n 104,117,123 -r bgr -o net
  quantjit quantize -p net.tnnproto -m net.tnnmodel -i images/ -s 1/127 -n 128 -b 2 -w 1 -t 0
  quantjit inspect net.onnx
  quantjit convert net.onnx net.tnnproto
"""

_EXAMPLES = {
    "quantize": """\
examples:
  quantjit quantize net.onnx -i images/ --preset imagenet-torch -o net
  quantjit quantize -p net.tnnproto -m net.tnnmodel -i images/ -n 104,117,123 -r bgr -o net
writes net_quantized.onnx, or net_quantized.tnnproto and net_quantized.tnnmodel, reads it back,
runs it beside the float network and prints how close they are. Images become
(pixel - bias) * scale in the order of the network's channels; EXIF orientation is ignored.
""",
    "tune": """\
examples:
  quantjit tune net.onnx -i images/ --preset imagenet-torch -o net
  quantjit tune net.onnx -i images/ --preset imagenet-torch -o net --min-sqnr 30 --mixed
every method and granularity is solved from one pass over the inputs and run on a fifth of them that
is held out: the best is written. With --mixed, layers stay float until the gate is met.
""",
    "analyze": """\
example:
  quantjit analyze net.onnx -i images/ --preset imagenet-torch --nodes-table nodes.csv
runs the network with each layer alone in int8, and with all others in int8; writes no network.
""",
    "calibrate": """\
example:
  quantjit calibrate -p net.tnnproto -i images/ -n 104,117,123 -r bgr -o stats.qjs
  quantjit quantize -p net.tnnproto --stats stats.qjs -o net
the file is the same, byte for byte, for any order, batch, threads and shards. Ctrl-C finishes the
running inputs and writes stats.qjs.checkpoint; the same command with --resume goes on.
""",
    "merge": """\
example:
  quantjit calibrate ... --shard 1/2 -o a.qjs; quantjit calibrate ... --shard 2/2 -o b.qjs
  quantjit merge a.qjs b.qjs -o stats.qjs
gives the bytes that one pass over all inputs gives.
""",
    "verify": """\
examples:
  quantjit verify net.onnx net_quantized.onnx -i images/ --preset imagenet-torch
  quantjit verify -p net.tnnproto --quantized-proto net_quantized.tnnproto -i images/ --limit 32
runs both networks, the int8 one in the integer arithmetic of its target: TNN's or onnxruntime's.
""",
    "report": """\
examples:
  quantjit report net.onnx net_quantized.onnx -i images/ --preset imagenet-torch -o report
  quantjit quantize net.onnx -i images/ --preset imagenet-torch -o net --report report
writes report/report.html, which needs nothing beside it, and its tables as .parquet and .csv.
""",
    "inspect": """\
examples:
  quantjit inspect net.onnx
  quantjit inspect -p net.tnnproto -m net.tnnmodel
the .tnnmodel may be missing: the structure alone is enough.
""",
    "convert": """\
examples:
  quantjit convert net.onnx net.tnnproto
  quantjit convert net.tnnproto net.onnx
in float; the written network is read back and compared on a random input, and what the other format
says otherwise is listed.
""",
    "zoo": """\
examples:
  quantjit zoo init models/ -i images/ -o zoo.toml
  quantjit zoo zoo.toml --memory 8G
  quantjit zoo models/ -i images/ --preset imagenet-torch
each model becomes int8 files, statistics, tables and a report in a folder of its own, and a row of
leaderboard.html, .md, .csv and .parquet. The same command does what is missing or has changed.
Exit code 6: a model failed; 5: none did, but one missed a gate of the manifest.
""",
    "zoo init": """\
example:
  quantjit zoo init models/ -i images/ -o zoo.toml
writes what can be told by looking at the models; what is guessed is marked as a guess.
""",
    "demo": "",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `quantjit` and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in {"-h", "--help", "help"}:
        print(_HELP, end="")
        return 0
    if arguments and arguments[0] in {"-V", "--version"}:
        print(f"quantjit {__version__}")
        return 0
    if not arguments:
        print(_HELP, end="", file=sys.stderr)
        return USAGE_EXIT
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "quantize": _quantize,
        "tune": _tune,
        "analyze": _analyze,
        "calibrate": _calibrate,
        "merge": _merge,
        "verify": _verify,
        "report": _report,
        "inspect": _inspect,
        "convert": _convert,
        "zoo": _zoo,
        "demo": _demo,
    }
    name, *rest = arguments
    if name not in commands:
        if name.startswith("-"):  # an old command line of quantization_cmd
            hint = "the options of quantization_cmd go to: quantjit quantize"
        else:
            hint = f"known: {', '.join(commands)}"
        print(f"quantjit: unknown command {name!r}; {hint}", file=sys.stderr)
        return USAGE_EXIT
    return _guarded(lambda: commands[name](rest))


def quantization_cmd(argv: Sequence[str] | None = None) -> int:
    """Run the drop-in for TNN's tool: `quantjit quantize` with the original's defaults."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        from quantjit.options import ReferenceOptions

        if not arguments:  # the original prints its usage and is content
            _parser("quantize", ReferenceOptions, "quantization_cmd").print_help()
            return 0
        return _quantize(arguments, ReferenceOptions, "quantization_cmd")

    return _guarded(run)


def _guarded(run: Callable[[], int]) -> int:
    """Turn deliberate errors into one line and their exit code; anything else is a bug."""
    try:
        return run()
    except QuantJitError as error:
        print(f"quantjit: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"quantjit: {place}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("quantjit: interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT
    except SystemExit as stop:  # argparse
        return stop.code if isinstance(stop.code, int) else USAGE_EXIT


def _parser(name: str, options: Any, program: str = "") -> Any:
    from argparse_dataclass import ArgumentParser

    return ArgumentParser(
        options,
        prog=program or f"quantjit {name}",
        epilog=_EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _parse(
    name: str,
    options: Any,
    argv: Sequence[str],
    need: Sequence[str],
    program: str,
    first: Sequence[str] = ("-p",),
) -> Any:
    """Parse options; `first`: the flags that leading words without one stand for."""
    from quantjit.options import required

    parser = _parser(name, options, program)
    words = list(argv)
    leading = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    count = min(leading, len(first))
    flagged = [part for pair in zip(first, words[:count], strict=False) for part in pair]
    parsed = parser.parse_args([*flagged, *words[count:]])
    missing = required(parsed, *need)
    if missing:
        parser.error(f"{missing} is required")
    gates = [flag for flag in ("min_sqnr", "max_drop") if getattr(parsed, flag, None) is not None]
    if gates and getattr(parsed, "verify", 1) == 0:
        flag = gates[0].replace("_", "-")
        parser.error(f"--{flag} needs a verification, but --verify 0 asks for none")
    if getattr(parsed, "mixed", False) and not gates:
        parser.error("--mixed needs what it is to reach: --min-sqnr or --max-drop")
    if getattr(parsed, "stats", None) is not None and parsed.input_path is None:
        for flag in ("min_sqnr", "max_drop", "labels"):
            if getattr(parsed, flag) is not None:
                parser.error(f"--{flag.replace('_', '-')} needs inputs to verify on: give -i")
    if getattr(parsed, "auto", False):
        chosen = {name: getattr(parsed, name) for name in _DECIDED}
        for name, value in chosen.items():
            if value != options.__dataclass_fields__[name].default:
                parser.error(f"--auto decides --{name.replace('_', '-')} itself: leave it out")
        if parsed.input_path is None:
            parser.error("--auto needs inputs to measure on: give -i")
    if getattr(parsed, "class_names", None) and getattr(parsed, "report", Path()) is None:
        parser.error("--class-names is for the page of --report")
    return parsed


def _quantize(argv: Sequence[str], options: Any = None, program: str = "") -> int:
    from quantjit import terminal
    from quantjit.commands import output_of
    from quantjit.formats import format_of
    from quantjit.judge import Target
    from quantjit.options import QuantizeOptions
    from quantjit.pipeline import run
    from quantjit.quantizer import Settings

    solves_only = any(word.partition("=")[0] == "--stats" for word in argv)
    need = ("proto",) if solves_only else ("proto", "input_path")
    given = _parse("quantize", options or QuantizeOptions, argv, need, program)
    if given.auto:
        return _write_tuned(given)
    target = given.format or format_of(given.proto).name
    settings = Settings(
        given.blob_method,
        given.weight_method,
        given.merge_type,
        given.compat == "tnn",
        given.float_layers,
        target,
        given.symmetric,
        given.exclude,
        given.activations,
        given.passes,
    )
    source = _source(given, given.report) if given.report else None
    gate = Target(given.min_sqnr, given.max_drop)
    with Progress(quiet=given.quiet) as progress:
        result = run(
            given.proto,
            given.model,
            given.input_path,
            settings,
            inputs=_inputs(given),
            output=output_of(given.output, target),
            labels=given.labels,
            verify_inputs=given.verify,
            nonfinite=given.nonfinite,
            jobs=given.jobs,
            batch=given.batch,
            memory=given.memory,
            statistics=given.stats,
            until_stable=given.until_stable,
            cluster=given.cluster,
            on_progress=progress.update,
            shapes=given.input_shape,
            form=given.form,
            float_fallback=given.float_fallback,
            detail=given.report is not None,
            target=gate if given.mixed else None,
        )
    written = None
    if source is not None:
        from quantjit import page

        written, *_ = page.write(given.report, result, settings, source=source)
    if given.table:
        result.table.save(given.table)
    if given.nodes_table and result.comparison:
        terminal.save_nodes(result.comparison, given.nodes_table)
    if given.convergence and result.convergence:
        terminal.save_convergence(result.convergence, given.convergence)
    if not given.quiet:
        terminal.print_quantization(_console(), result, settings, written)
    return _gate(result.comparison, given)


def _tune(argv: Sequence[str]) -> int:
    from quantjit.options import TuneOptions

    return _write_tuned(_parse("tune", TuneOptions, argv, ("proto", "input_path"), ""))


def _write_tuned(given: Any) -> int:
    from quantjit import commands, terminal

    with Progress(quiet=given.quiet) as progress:
        tuned = commands.run_tune(given, _inputs(given), progress.update)
    result = tuned.quantization
    if given.table:
        result.table.save(given.table)
    if given.nodes_table and result.comparison:
        terminal.save_nodes(result.comparison, given.nodes_table)
    if not given.quiet:
        terminal.print_tuned(_console(), tuned)
    return _gate(result.comparison, given)


def _analyze(argv: Sequence[str]) -> int:
    from quantjit import commands
    from quantjit.options import AnalyzeOptions

    given = _parse("analyze", AnalyzeOptions, argv, ("proto", "input_path"), "")
    with Progress(quiet=given.quiet) as progress:
        commands.run_analyze(given, _inputs(given), progress.update, _console())
    return 0


def _calibrate(argv: Sequence[str]) -> int:
    from quantjit import pipeline, terminal
    from quantjit.options import CalibrateOptions

    given = _parse("calibrate", CalibrateOptions, argv, ("proto", "input_path"), "")
    with Progress(quiet=given.quiet) as progress, StopSignals() as stop:
        result = pipeline.calibrate_files(
            given.proto,
            given.model,
            given.input_path,
            given.output,
            inputs=_inputs(given),
            merge=given.merge_type,
            shard=given.shard,
            append=given.append,
            resume=given.resume,
            every=given.checkpoint,
            marks=given.marks,
            nonfinite=given.nonfinite,
            jobs=given.jobs,
            batch=given.batch,
            memory=given.memory,
            until_stable=given.until_stable,
            cluster=given.cluster,
            on_progress=progress.update,
            stop=stop.is_set,
        )
    if given.convergence and result.convergence:
        terminal.save_convergence(result.convergence, given.convergence)
    if not given.quiet:
        terminal.print_gathered(_console(), result)
    return 0


def _merge(argv: Sequence[str]) -> int:
    from quantjit import pipeline, terminal
    from quantjit.options import MergeOptions

    given = _parse("merge", MergeOptions, argv, ("output",), "", first=())
    result = pipeline.merge_files(given.files, given.output)
    if not given.quiet:
        terminal.print_gathered(_console(), result)
    return 0


def _gate(comparison: "Comparison | None", given: Any) -> int:
    """Return the exit code of --min-sqnr and --max-drop, and say so when one is missed."""
    from quantjit.judge import Target

    missed = "" if comparison is None else Target(given.min_sqnr, given.max_drop).missed(comparison)
    if not missed:
        return 0
    print(f"quantjit: {missed}", file=sys.stderr)
    return GATE_EXIT


def _verify(argv: Sequence[str]) -> int:
    from quantjit import pipeline, terminal
    from quantjit.options import VerifyOptions

    need = ("proto", "input_path", "quantized_proto")
    given = _parse("verify", VerifyOptions, argv, need, "", ("-p", "--quantized-proto"))
    with Progress(quiet=given.quiet) as progress:
        comparison = pipeline.verify_files(
            (given.proto, given.model),
            (given.quantized_proto, given.quantized_model),
            given.input_path,
            inputs=_inputs(given),
            labels=given.labels,
            jobs=given.jobs,
            on_progress=progress.update,
            shapes=given.input_shape,
        )
    if given.nodes_table:
        terminal.save_nodes(comparison, given.nodes_table)
    if not given.quiet:
        terminal.print_comparison(_console(), comparison)
        terminal.print_warning(_console(), comparison)
    return _gate(comparison, given)


def _report(argv: Sequence[str]) -> int:
    from quantjit import page, terminal
    from quantjit.examine import examine
    from quantjit.options import ReportOptions

    solves_only = any(word.partition("=")[0] == "--stats" for word in argv)
    need = ("proto", "quantized_proto", *(() if solves_only else ("input_path",)))
    given = _parse("report", ReportOptions, argv, need, "", ("-p", "--quantized-proto"))
    source = _source(given, given.output)
    with Progress(quiet=given.quiet) as progress:
        result = examine(
            (given.proto, given.model),
            (given.quantized_proto, given.quantized_model),
            given.input_path,
            inputs=source.inputs,
            statistics=given.stats,
            labels=given.labels,
            verify_inputs=given.verify,
            nonfinite=given.nonfinite,
            jobs=given.jobs,
            batch=given.batch,
            memory=given.memory,
            on_progress=progress.update,
            shapes=given.input_shape,
        )
    if given.nodes_table and result.comparison:
        terminal.save_nodes(result.comparison, given.nodes_table)
    paths = page.write(given.output, result, None, source=source)
    if not given.quiet:
        terminal.print_report(_console(), result, paths)
    return _gate(result.comparison, given)


def _source(given: Any, folder: Path) -> Any:
    """Return what a report says of the models and inputs; errors before there is work done."""
    from quantjit.formats import files_of
    from quantjit.page import Source, check, read_class_names

    check(folder)
    return Source(
        given.proto.stem,
        files_of(given.proto, given.model),
        given.input_path,
        _inputs(given),
        given.stats,
        read_class_names(given.class_names) if given.class_names else (),
    )


def _inspect(argv: Sequence[str]) -> int:
    from quantjit import pipeline, terminal
    from quantjit.formats import format_of
    from quantjit.options import InspectOptions
    from quantjit.quantizer import Settings
    from quantjit.table import save_frame

    given = _parse("inspect", InspectOptions, argv, ("proto",), "")
    settings = Settings(merge=given.merge_type, target=given.format or format_of(given.proto).name)
    inspection = pipeline.inspect(
        given.proto,
        given.model,
        settings,
        given.input_shape,
        jobs=given.jobs,
        batch=given.batch,
        memory=given.memory,
    )
    if given.nodes_table:
        save_frame(terminal.inspection_frame(inspection), given.nodes_table)
    terminal.print_inspection(_console(), inspection)
    return 0


def _convert(argv: Sequence[str]) -> int:
    from quantjit import pipeline, terminal
    from quantjit.options import ConvertOptions

    given = _parse("convert", ConvertOptions, argv, ("proto", "output"), "", ("-p", "-o"))
    made = pipeline.convert(given.proto, given.model, given.output, shapes=given.input_shape)
    terminal.print_conversion(_console(), made)
    return 0


def _zoo(argv: Sequence[str]) -> int:
    if argv and argv[0] == "init":
        return _zoo_init(argv[1:])
    from quantjit import leaderboard, manifest, zoo
    from quantjit.options import ZooOptions, folder_defaults
    from quantjit.zoo_progress import ZooProgress

    given = _parse("zoo", ZooOptions, argv, ("place",), "", ("--manifest",))
    defaults = folder_defaults(given)
    if given.place.is_dir():
        wanted = manifest.of_folder(given.place, defaults)
    elif defaults:
        raise UsageError(
            f"{given.place}: {', '.join(defaults)}: a manifest says that itself, in [defaults]"
        )
    else:
        wanted = manifest.load(given.place)
    output = given.output or wanted.output or Path(f"{given.place.absolute().stem}-results")
    with ZooProgress(quiet=given.quiet) as progress, StopSignals() as stop:
        made = zoo.run(
            wanted,
            output,
            memory=given.memory,
            jobs=given.jobs,
            marks=given.marks,
            watcher=progress,
            stop=stop.is_set,
        )
    if not given.quiet:
        leaderboard.show(_console(), made.rows)
        print(f"written     {made.paths[0]}")
    verdicts = {row.verdict for row in made.rows}
    if leaderboard.FAILED in verdicts:
        return FAILED_EXIT
    return GATE_EXIT if leaderboard.MISSED in verdicts else 0


def _zoo_init(argv: Sequence[str]) -> int:
    from quantjit import zoo_init
    from quantjit.options import ZooInitOptions

    given = _parse("zoo init", ZooInitOptions, argv, ("folder",), "", ("--folder",))
    count = zoo_init.write(given.folder, given.input_path, given.output, replaces=given.force)
    if not given.quiet:
        print(f"written     {given.output}: {count} models; check what is marked as a guess")
    return 0


def _demo(argv: Sequence[str]) -> int:
    from quantjit import demo, terminal
    from quantjit.options import DemoOptions

    given = _parse("demo", DemoOptions, argv, (), "")
    with Progress() as progress:
        result = demo.run(Path(f"{given.output}_quantized.tnnproto"), given.jobs, progress.update)
    console = _console()
    console.print(demo.command_line(given.output), style="dim", highlight=False, soft_wrap=True)
    terminal.print_quantization(console, result, demo.SETTINGS)
    return 0


def _inputs(given: Any) -> Any:
    from quantjit.images import Preprocess
    from quantjit.options import with_preset
    from quantjit.pipeline import Inputs

    given = with_preset(given)
    preprocess = Preprocess(
        bias=given.bias,
        scale=given.scale,
        channel_order=given.reverse_channel,
        resize=given.resize,
        resize_shorter=given.resize_shorter,
    )
    return Inputs(preprocess, given.limit, given.max_bad)


def _console() -> Any:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH
    return Console(width=width)


class StopSignals:
    """Ctrl-C and SIGTERM set a flag, once: what is under way is finished; the next one ends it."""

    def __init__(self) -> None:
        self._is_set = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # as the shell does for `&`
                    self._before[number] = signal.signal(number, self._set)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def is_set(self) -> bool:
        """Whether one of them came."""
        return self._is_set

    def _set(self, number: int, frame: object) -> None:
        del number, frame
        self._is_set = True
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


class Progress:
    """A bar on stderr with rate and remaining time; plain lines where it is no terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._started = time.monotonic()
        self._stage = ""
        self._said = 0.0

    def __enter__(self) -> "Progress":
        if not self._quiet and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description:10}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` inputs are through this stage."""
        if self._quiet:
            return
        if self._bar is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bar.add_task(stage, total=total)
            self._bar.update(self._tasks[stage], completed=done, total=total)
            return
        now = time.monotonic()
        if stage != self._stage:
            self._stage = stage
            self._started, self._said = (self._said or self._started), now
        if done == total or now - self._said >= _SECONDS_A_LINE:
            self._said = now
            rate = done / max(now - self._started, 1e-9)
            print(f"{stage} {done}/{total}, {rate:.1f}/s", file=sys.stderr, flush=True)
