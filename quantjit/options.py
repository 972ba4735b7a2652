"""The options of each sub-command: one dataclass each, their flags, defaults and help; no logic.

The short flags are those of TNN's ``quantization_cmd``.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Optional

from quantjit import solvers
from quantjit.dataset import parse_numbers
from quantjit.images import PRESETS
from quantjit.quantizer import ACTIVATIONS, MERGES, PASSES, TARGETS


def _choice(names: Mapping[str, str]) -> Any:
    """Return a parser of a name or TNN's number for it; `names` maps both to the name."""

    def parse(text: str) -> str:
        try:
            return names[text.strip().lower()]
        except KeyError:
            known = dict.fromkeys(names.values())
            listed = ", ".join(
                "|".join([*(key for key in names if names[key] == name and key != name), name])
                for name in known
            )
            raise argparse.ArgumentTypeError(f"{text!r} is none of {listed}") from None

    return parse


def _numbered(known: Mapping[str, Any]) -> dict[str, str]:
    names = {str(s.number): name for name, s in known.items() if s.number is not None}
    return names | {name: name for name in known}


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers: tuple[float, ...] = parse_numbers(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return numbers


def _share(text: str) -> float:
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: give 0.05 or 5%")
    return value


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number >= 0")
    return int(text)


def _bytes(text: str) -> int:
    units = {"k": 10**3, "m": 10**6, "g": 10**9}
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    try:
        size = int(float(number) * units[unit]) if unit else int(number)
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give e.g. 800M or 2G")
    return size


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard: give e.g. 1/7 to 7/7")
    return int(number), int(count)


def _every(text: str) -> tuple[Optional[int], Optional[float]]:
    try:
        if text.endswith("s"):
            seconds = float(text[:-1])
            if 0 < seconds < math.inf:
                return None, seconds
        elif int(text) >= 0:
            return int(text) or None, None
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: give inputs, e.g. 1000, or seconds, e.g. 30s")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _passes(text: str) -> tuple[str, ...]:
    names = _names(text)
    if names in {("all",), ("none",)}:
        return PASSES if names == ("all",) else ()
    unknown = [name for name in names if name not in PASSES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is none of {', '.join(PASSES)}, all, none"
        )
    return names


def _shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Parse ``name:1,3,224,224``, several separated by ``;``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in text.split(";"):
        name, _, sizes = part.strip().rpartition(":")
        words = sizes.replace("x", ",").split(",")
        if not name or not all(word.strip().isdigit() and int(word) for word in words):
            raise argparse.ArgumentTypeError(
                f"{part!r} is no input shape: give name:1,3,224,224, several separated by ';'"
            )
        shapes[name] = tuple(int(word) for word in words)
    return shapes


def _listing(known: Mapping[str, Any]) -> str:
    rows = []
    for name, solver in known.items():
        number = "" if solver.number is None else f"{solver.number}|"
        rows.append(f"{number}{name} ({solver.summary})")
    return "; ".join(rows).replace("%", "%%")


def option(default: Any, help_text: str, *flags: str, **metadata: Any) -> Any:
    """Return a dataclass field that is a command line option."""
    return field(default=default, metadata={"args": [*flags], "help": help_text, **metadata})


_BLOB_METHODS = _numbered(solvers.blob_solvers())
_WEIGHT_METHODS = _numbered(solvers.weight_solvers())
_MERGE_TYPES = {str(i): name for i, name in enumerate(MERGES)} | {name: name for name in MERGES}
_CHANNEL_ORDERS = {"0": "rgb", "1": "bgr", "rgb": "rgb", "bgr": "bgr"}


def _blob_method(default: str) -> Any:
    methods = _listing(solvers.blob_solvers())
    return option(
        default,
        f"how the range of blobs is chosen: {methods} (default {default})",
        "-b",
        "--blob_method",
        "--blob-method",
        type=_choice(_BLOB_METHODS),
        metavar="METHOD",
    )


def _weight_method(default: str) -> Any:
    methods = _listing(solvers.weight_solvers())
    return option(
        default,
        f"how weights are quantized: {methods} (default {default})",
        "-w",
        "--weight_method",
        "--weight-method",
        type=_choice(_WEIGHT_METHODS),
        metavar="METHOD",
    )


def _merge_type(default: str) -> Any:
    return option(
        default,
        "0|channel: a scale per channel for weights and blobs; 1|mix: for weights only; "
        f"2|tensor: for neither (default {default})",
        "-t",
        "--merge_type",
        "--merge-type",
        type=_choice(_MERGE_TYPES),
        metavar="TYPE",
    )


@dataclass(frozen=True)
class ModelOptions:
    """Which network."""

    proto: Optional[Path] = option(
        None,
        "the float network, .onnx or .tnnproto (required; may stand first, without -p)",
        "-p",
        "--proto",
        type=Path,
    )
    model: Optional[Path] = option(
        None, "the .tnnmodel of a .tnnproto (default: its name)", "-m", "--model", type=Path
    )
    input_shape: Optional[dict[str, tuple[int, ...]]] = option(
        None,
        "shape of an input whose size the file leaves open, name:1,3,224,224; several are "
        "separated by ';'",
        "--input-shape",
        type=_shapes,
        metavar="SHAPES",
    )


@dataclass(frozen=True)
class InputOptions:
    """Which sample inputs, and how they become tensors."""

    input_path: Optional[Path] = option(
        None,
        "folder (or one file) of sample inputs: .jpg .jpeg .png .bmp, .txt (one float a line, "
        "NCHW), .npy, .npz (required)",
        "-i",
        "--input_path",
        "--input-path",
        "--input",
        type=Path,
    )
    preset: Optional[str] = option(
        None,
        f"preprocessing by name: {', '.join(PRESETS)}; -n, -s, -r and --resize given beside it win",
        "--preset",
        choices=tuple(PRESETS),
    )
    bias: tuple[float, ...] = option(
        (0.0,),
        "subtracted from the pixels: one number or one a channel, e.g. 104,117,123 (default 0)",
        "-n",
        "--bias",
        "--mean",
        type=_numbers,
        metavar="N[,N...]",
    )
    scale: tuple[float, ...] = option(
        (1.0,),
        "then multiplied in: one number or one a channel; 1/128 and 1e-3 are fine (default 1)",
        "-s",
        "--scale",
        type=_numbers,
        metavar="N[,N...]",
    )
    reverse_channel: str = option(
        "rgb",
        "order of the network's channels: 0|rgb or 1|bgr (default rgb)",
        "-r",
        "--reverse_channel",
        "--reverse-channel",
        type=_choice(_CHANNEL_ORDERS),
        metavar="ORDER",
    )
    resize: str = option(
        "stretch",
        "images of another size are stretched to the network's (as TNN does), or their shorter "
        "side is fitted and the centre is cropped: stretch or crop (default stretch)",
        "--resize",
        choices=("stretch", "crop"),
    )
    resize_shorter: Optional[int] = option(
        None,
        "with --resize crop: pixels of the shorter side before the crop (default: the network's)",
        "--resize-shorter",
        type=_positive,
        metavar="PIXELS",
    )
    limit: Optional[int] = option(
        None, "use the first N files only", "-l", "--limit", type=_positive, metavar="N"
    )
    max_bad: float = option(
        0.05,
        "share of unreadable files that are skipped before it is an error (default 5%%)",
        "--max-bad",
        type=_share,
        metavar="SHARE",
    )
    nonfinite: str = option(
        "fail",
        "what to do when an activation is NaN or infinite: fail, or skip those values (default "
        "fail)",
        "--nonfinite",
        choices=("fail", "skip"),
    )
    jobs: Optional[int] = option(
        None,
        "threads, one image each (default: all cores); the result does not depend on it",
        "-j",
        "--jobs",
        type=_positive,
        metavar="N",
    )
    quiet: bool = option(False, "print errors only", "-q", "--quiet")


@dataclass(frozen=True)
class PlanOptions:
    """How much a calibration may take; the result does not depend on it."""

    memory: Optional[int] = option(
        None,
        "memory that the process may take, e.g. 800M or 2G: batch, threads and the queue of "
        "inputs are chosen to fit; statistics of thousands of channels get fewer bins where they "
        "would not, which `inspect` tells before",
        "--memory",
        type=_bytes,
        metavar="SIZE",
    )
    batch: Optional[int] = option(
        None,
        "inputs that a thread runs at once, at most (default: as many as the cache holds)",
        "--batch",
        type=_positive,
        metavar="N",
    )


@dataclass(frozen=True)
class ClusterOptions:
    """Who gathers the statistics."""

    cluster: Optional[str] = option(
        None,
        "gather the statistics by the workers of a Dask cluster: local, local:N (processes of one "
        "thread) or the address of a scheduler, tcp://host:port; inputs must have the same path "
        "there. The same bytes as without it",
        "--cluster",
        metavar="WHERE",
    )


@dataclass(frozen=True)
class VerifyingOptions:
    """How the int8 network is compared with the float one."""

    labels: Optional[Path] = option(
        None,
        "a CSV of file,label: also prints the top-1 of both networks on the compared inputs",
        "--labels",
        type=Path,
        metavar="CSV",
    )
    min_sqnr: Optional[float] = option(
        None, "exit 5 if the network's SQNR is below this", "--min-sqnr", type=float, metavar="DB"
    )
    max_drop: Optional[float] = option(
        None,
        "exit 5 if a larger share of the compared inputs has another top-1 than the float network, "
        "e.g. 0.01 or 1%%; with --labels, if top-1 loses more",
        "--max-drop",
        type=_share,
        metavar="SHARE",
    )
    nodes_table: Optional[Path] = option(
        None,
        "write the table of nodes (error, scales, int8 or float and why) as .csv or .parquet",
        "--nodes-table",
        type=Path,
        metavar="FILE",
    )


@dataclass(frozen=True)
class FormatOptions:
    """What the int8 network is for, and what stays float."""

    format: Optional[str] = option(
        None,
        "format to write: onnx or tnn (default: that of the input)",
        "--format",
        choices=TARGETS,
    )
    activations: str = option(
        "uint8",
        "type of blobs in an ONNX file: uint8, for which onnxruntime has int8 kernels on x86 and "
        "ARM, or int8 (default uint8)",
        "--activations",
        choices=ACTIVATIONS,
    )
    symmetric: bool = option(
        False, "ONNX: zero points of blobs are 0 (of int8 codes), as TensorRT needs", "--symmetric"
    )
    exclude: tuple[str, ...] = option(
        (),
        "keep nodes in float, by name, by op (as inspect shows it) or by pattern (block?/*), "
        "separated by commas",
        "--exclude",
        type=_names,
        metavar="NODES",
    )
    float_layers: tuple[str, ...] = option(
        (),
        "names of layers to keep in float, separated by commas",
        "-x",
        "--float-layers",
        type=_names,
        metavar="NAMES",
    )


@dataclass(frozen=True)
class SolvingOptions(FormatOptions):
    """How scales and codes are decided."""

    blob_method: str = _blob_method("mse")
    weight_method: str = _weight_method("mse")
    merge_type: str = _merge_type("mix")
    passes: tuple[str, ...] = option(
        (),
        f"what else is tried, each kept only where it helps: {', '.join(PASSES)}, separated by "
        "commas, or all",
        "--passes",
        type=_passes,
        metavar="NAMES",
    )


@dataclass(frozen=True)
class WritingOptions:
    """Under which name the network is written, and in which form."""

    output: str = option(
        "model",
        "writes OUTPUT_quantized.onnx, or OUTPUT_quantized.tnnproto and .tnnmodel (default model)",
        "-o",
        "--output",
    )
    form: str = option(
        "qdq",
        "of an int8 ONNX file: qdq (QuantizeLinear and DequantizeLinear around float layers), or "
        "qoperator (QLinearConv and the like) (default qdq)",
        "--form",
        choices=("qdq", "qoperator"),
    )
    float_fallback: bool = option(
        False,
        "ONNX: layers with multiplications that have no int8 form stay float, instead of an error "
        "that names them",
        "--float-fallback",
    )


@dataclass(frozen=True)
class MethodOptions(WritingOptions, SolvingOptions):
    """How the network is quantized, and under which name it is written."""

    compat: str = option(
        "none",
        "tnn: reproduce the arithmetic of TNN's quantization_cmd, quirks included (default none)",
        "--compat",
        choices=("none", "tnn"),
    )


@dataclass(frozen=True)
class ConvergenceOptions:
    """How many inputs are enough."""

    until_stable: bool = option(
        False,
        "end at 32, 64, 128 ... inputs once the scales of 95 %% of the blobs moved less than 1 %% "
        "while the inputs doubled",
        "--until-stable",
    )
    convergence: Optional[Path] = option(
        None,
        "write the scale of each blob after 16, 32, 64 ... inputs as .csv or .parquet",
        "--convergence",
        type=Path,
        metavar="FILE",
    )


@dataclass(frozen=True)
class PageOptions:
    """What a report says besides the result."""

    class_names: Optional[Path] = option(
        None,
        "a text file with a class name a line, for the top-5 of the report",
        "--class-names",
        type=Path,
        metavar="FILE",
    )


@dataclass(frozen=True)
class RunOptions(
    PageOptions, VerifyingOptions, ClusterOptions, PlanOptions, InputOptions, ModelOptions
):
    """What is verified and written beside the network, and what it is solved from."""

    mixed: bool = option(
        False,
        "reach --min-sqnr or --max-drop by leaving layers float, as few multiplications as it "
        "takes",
        "--mixed",
    )
    report: Optional[Path] = option(
        None,
        "write a folder with report.html, one page that explains the result, and its tables as "
        ".parquet and .csv",
        "--report",
        type=Path,
        metavar="DIR",
    )
    stats: Optional[Path] = option(
        None,
        "solve from this file of `quantjit calibrate` instead of reading the data; -i is then "
        "needed for the verification only",
        "--stats",
        type=Path,
        metavar="FILE",
    )
    verify: int = option(
        16,
        "number of inputs on which the written network is run beside the float one (default 16, "
        "0: none)",
        "--verify",
        type=_count,
        metavar="N",
    )
    table: Optional[Path] = option(
        None,
        "write the scales of all blobs as .csv or .parquet",
        "--table",
        type=Path,
        metavar="FILE",
    )


@dataclass(frozen=True)
class LeaderboardOptions:
    """What a search for settings tries and writes."""

    leaderboard: Optional[Path] = option(
        None,
        "write all settings that were tried, with their scores, as .csv or .parquet",
        "--leaderboard",
        type=Path,
        metavar="FILE",
    )
    zero_points: bool = option(
        False,
        "TNN: also try methods with zero points, which TNN's naive device honours and others "
        "ignore",
        "--zero-points",
    )


@dataclass(frozen=True)
class QuantizeOptions(ConvergenceOptions, MethodOptions, RunOptions):
    """Options of `quantjit quantize`."""

    auto: bool = option(
        False,
        "find the best methods instead of -b, -w, -t and --passes: `quantjit tune` with its "
        "defaults",
        "--auto",
    )


@dataclass(frozen=True)
class TuneOptions(LeaderboardOptions, WritingOptions, FormatOptions, RunOptions):
    """Options of `quantjit tune`."""

    passes: tuple[str, ...] = option(
        PASSES,
        f"passes that are tried on the best few settings: {', '.join(PASSES)}, separated by "
        "commas, all or none (default all)",
        "--passes",
        type=_passes,
        metavar="NAMES",
    )


@dataclass(frozen=True)
class AnalyzeOptions(SolvingOptions, PlanOptions, InputOptions, ModelOptions):
    """Options of `quantjit analyze`."""

    stats: Optional[Path] = option(
        None,
        "solve from this file of `quantjit calibrate`; -i is then run only",
        "--stats",
        type=Path,
        metavar="FILE",
    )
    verify: int = option(
        8,
        "number of inputs on which each trial is run, spread evenly over all (default 8)",
        "--verify",
        type=_positive,
        metavar="N",
    )
    nodes_table: Optional[Path] = option(
        None, "write the table as .csv or .parquet", "--nodes-table", type=Path, metavar="FILE"
    )


@dataclass(frozen=True)
class ReferenceOptions(QuantizeOptions):
    """Options of `quantization_cmd`: the same, with the defaults of TNN's tool."""

    blob_method: str = _blob_method("minmax")
    weight_method: str = _weight_method("minmax")
    merge_type: str = _merge_type("channel")


@dataclass(frozen=True)
class CalibrateOptions(ConvergenceOptions, ClusterOptions, PlanOptions, InputOptions, ModelOptions):
    """Options of `quantjit calibrate`."""

    output: Path = option(
        Path("stats.qjs"),
        "the statistics file, a Parquet table (default stats.qjs)",
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
    )
    merge_type: str = option(
        "mix",
        "0|channel: statistics per channel, from which every merge type can be solved; 1|mix or "
        "2|tensor: per tensor, much less memory (default mix)",
        "-t",
        "--merge_type",
        "--merge-type",
        type=_choice(_MERGE_TYPES),
        metavar="TYPE",
    )
    shard: Optional[tuple[int, int]] = option(
        None,
        "only every N-th file from the I-th on, e.g. 2/7; `quantjit merge` adds the shards up",
        "--shard",
        type=_shard,
        metavar="I/N",
    )
    append: bool = option(False, "add the files that are not in OUTPUT yet to it", "--append")
    resume: bool = option(
        False, "continue a run that was interrupted or killed, from its checkpoint", "--resume"
    )
    checkpoint: tuple[Optional[int], Optional[float]] = option(
        (None, 60.0),
        "how often OUTPUT.checkpoint is written: after so many inputs, e.g. 1000, or seconds, "
        "e.g. 30s; 0: only when interrupted (default 60s)",
        "--checkpoint",
        type=_every,
        metavar="EVERY",
    )
    marks: str = option(
        "bytes",
        "how files are recognized: bytes, by the hash of their content, or stat, by name, size "
        "and time, which does not read those that are in already (default bytes)",
        "--marks",
        choices=("bytes", "stat"),
    )


@dataclass(frozen=True)
class MergeOptions:
    """Options of `quantjit merge`."""

    files: list[Path] = field(
        default_factory=list,
        metadata={
            "args": ["files"],
            "nargs": "+",
            "type": Path,
            "metavar": "FILE",
            "help": "statistics files of the same network and preprocessing",
        },
    )
    output: Optional[Path] = option(
        None, "the file to write (required)", "-o", "--output", type=Path, metavar="FILE"
    )
    quiet: bool = option(False, "print errors only", "-q", "--quiet")


@dataclass(frozen=True)
class VerifyOptions(VerifyingOptions, InputOptions, ModelOptions):
    """Options of `quantjit verify`."""

    quantized_proto: Optional[Path] = option(
        None,
        "the int8 network, .onnx or .tnnproto (required; may stand second)",
        "--quantized-proto",
        "--quantized",
        type=Path,
    )
    quantized_model: Optional[Path] = option(
        None,
        "the .tnnmodel of a .tnnproto (default: its name)",
        "--quantized-model",
        type=Path,
    )


@dataclass(frozen=True)
class ReportOptions(PageOptions, PlanOptions, VerifyOptions):
    """Options of `quantjit report`."""

    output: Path = option(
        Path("report"), "the folder to write (default report)", "-o", "--output", type=Path
    )
    stats: Optional[Path] = option(
        None,
        "statistics of `quantjit calibrate`, in place of a pass over the inputs; -i is then for "
        "the comparison only",
        "--stats",
        type=Path,
        metavar="FILE",
    )
    verify: Optional[int] = option(
        None,
        "number of inputs on which the two networks are compared (default: all)",
        "--verify",
        type=_positive,
        metavar="N",
    )


@dataclass(frozen=True)
class InspectOptions(PlanOptions, ModelOptions):
    """Options of `quantjit inspect`."""

    merge_type: str = _merge_type("mix")
    format: Optional[str] = option(
        None,
        "format that would be written: onnx or tnn (default: that of the input)",
        "--format",
        choices=TARGETS,
    )
    nodes_table: Optional[Path] = option(
        None, "write the table as .csv or .parquet", "--nodes-table", type=Path, metavar="FILE"
    )
    jobs: Optional[int] = option(
        None,
        "threads of the calibration whose memory is stated (default: all cores)",
        "-j",
        "--jobs",
        type=_positive,
        metavar="N",
    )


@dataclass(frozen=True)
class ConvertOptions(ModelOptions):
    """Options of `quantjit convert`."""

    output: Optional[Path] = option(
        None,
        "the .onnx or .tnnproto to write (required; may stand second)",
        "-o",
        "--output",
        type=Path,
    )


@dataclass(frozen=True)
class ZooOptions:
    """Options of `quantjit zoo`."""

    place: Optional[Path] = option(
        None,
        "the manifest, a .toml file, or a folder of models (required; may stand first)",
        "--manifest",
        type=Path,
        metavar="FILE",
    )
    output: Optional[Path] = option(
        None,
        "folder of the results (default: what the manifest says, else its name and -results)",
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
    )
    memory: Optional[int] = option(
        None,
        "memory that all models at work may take together, e.g. 8G: as many run at a time as fit "
        "(default: most of what is free)",
        "--memory",
        type=_bytes,
        metavar="SIZE",
    )
    jobs: Optional[int] = option(
        None,
        "threads of all models together (default: all cores); the result does not depend on it",
        "-j",
        "--jobs",
        type=_positive,
        metavar="N",
    )
    marks: str = option(
        "bytes",
        "how files are recognized: bytes, by the hash of their content, or stat, by size and time "
        "(default bytes)",
        "--marks",
        choices=("bytes", "stat"),
    )
    quiet: bool = option(False, "print errors only", "-q", "--quiet")
    input_path: Optional[Path] = option(
        None,
        "sample inputs of all models; this and what follows are for a folder of models, a manifest "
        "has keys for them",
        "-i",
        "--input_path",
        "--input-path",
        "--input",
        type=Path,
    )
    preset: Optional[str] = option(
        None,
        f"preprocessing of all models: {', '.join(PRESETS)}",
        "--preset",
        choices=tuple(PRESETS),
    )
    bias: Optional[tuple[float, ...]] = option(
        None, "subtracted from the pixels", "-n", "--bias", "--mean", type=_numbers, metavar="N,..."
    )
    scale: Optional[tuple[float, ...]] = option(
        None, "then multiplied in", "-s", "--scale", type=_numbers, metavar="N,..."
    )
    reverse_channel: Optional[str] = option(
        None,
        "order of the networks' channels: 0|rgb or 1|bgr",
        "-r",
        "--reverse_channel",
        "--reverse-channel",
        type=_choice(_CHANNEL_ORDERS),
        metavar="ORDER",
    )
    resize: Optional[str] = option(None, "stretch or crop", "--resize", choices=("stretch", "crop"))
    limit: Optional[int] = option(
        None, "use the first N files only", "-l", "--limit", type=_positive, metavar="N"
    )
    min_sqnr: Optional[float] = option(
        None, "exit 5 if a network's SQNR is below this", "--min-sqnr", type=float, metavar="DB"
    )
    labels: Optional[Path] = option(
        None, "a CSV of file,label: also top-1", "--labels", type=Path, metavar="CSV"
    )


def folder_defaults(options: ZooOptions) -> dict[str, Any]:
    """Return what was given for a folder of models, as a manifest's defaults have it."""
    keys = {
        "input_path": "inputs",
        "preset": "preset",
        "bias": "bias",
        "scale": "scale",
        "reverse_channel": "channel_order",
        "resize": "resize",
        "limit": "limit",
        "min_sqnr": "min_sqnr",
        "labels": "labels",
    }
    found = {}
    for name, key in keys.items():
        value = getattr(options, name)
        if value is not None:
            found[key] = str(value) if isinstance(value, Path) else value
            found[key] = list(value) if isinstance(value, tuple) else found[key]
    return found


@dataclass(frozen=True)
class ZooInitOptions:
    """Options of `quantjit zoo init`."""

    folder: Optional[Path] = option(
        None,
        "folder of models, searched to its depth (required; may stand first)",
        "--folder",
        type=Path,
        metavar="DIR",
    )
    input_path: Optional[Path] = option(
        None,
        "folder of sample inputs, which becomes the default of all models",
        "-i",
        "--input_path",
        "--input-path",
        "--input",
        type=Path,
    )
    output: Path = option(
        Path("zoo.toml"),
        "the manifest to write (default zoo.toml)",
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
    )
    force: bool = option(False, "write over a manifest that is there", "--force")
    quiet: bool = option(False, "print errors only", "-q", "--quiet")


@dataclass(frozen=True)
class DemoOptions:
    """Options of `quantjit demo`."""

    output: str = option(
        "demo",
        "writes OUTPUT_quantized.tnnproto and OUTPUT_quantized.tnnmodel (default demo)",
        "-o",
        "--output",
    )
    jobs: Optional[int] = option(
        None, "threads (default: all cores)", "-j", "--jobs", type=_positive, metavar="N"
    )


def required(options: Any, *names: str) -> Optional[str]:
    """Return the flag of the first of these options that was not given, None if all were."""
    for item in fields(options):
        if item.name in names and getattr(options, item.name) is None:
            flags: list[str] = item.metadata["args"]
            return "/".join(flags[:2])
    return None


def with_preset(options: InputOptions) -> InputOptions:
    """Return the options with what their preset says where they say nothing themselves."""
    if options.preset is None:
        return options
    preset = PRESETS[options.preset]
    says: dict[str, Any] = {
        "bias": preset.bias,
        "scale": preset.scale,
        "reverse_channel": preset.channel_order,
        "resize": preset.resize,
    }
    defaults = {item.name: item.default for item in fields(InputOptions)}
    given = {name: x for name, x in says.items() if getattr(options, name) == defaults[name]}
    return replace(options, **given)
