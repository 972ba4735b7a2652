"""A first manifest, written by looking at the models of a folder; guesses are marked as such."""

import glob
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from quantjit import formats
from quantjit.errors import QuantJitError, UsageError
from quantjit.executor import infer_shapes
from quantjit.formats import onnx as onnx_format
from quantjit.graph import Graph
from quantjit.manifest import suffixes
from quantjit.table import save_bytes
from quantjit.terminal import shapes_text, size

_HEAD = """\
# A zoo of quantjit: quantjit zoo {name}
# Paths are relative to this file. What stands in [defaults] holds for every model that does not
# say otherwise; a path may be a pattern, such as "models/*.onnx".

[defaults]
{inputs}
# method = "auto"            # try methods and keep the best; else blob_method, weight_method, merge
# labels = "labels.csv"      # file,label: also top-1
# verify_inputs = "holdout"  # compare on these; else on 16 of the inputs
# min_sqnr = 20              # dB; also min_agreement = 0.95 and, with labels, max_drop = 0.01
"""

_PRODUCERS = {  # of ONNX files, in lower case
    "pytorch": "imagenet-torch",
    "paddle": "imagenet-torch",
    "mxnet": "imagenet-torch",
    "tf2onnx": "tf",
    "tfl2onnx": "tf",
    "tensorflow": "tf",
    "keras": "tf",
    "caffe": "imagenet-caffe",
}
_NORMALIZING = ("add", "sub", "mul", "div", "batch_norm", "scale")
_TORCH_NAMES = re.compile(r"\d+|input\.\d+|onnx::.*|/.*_output_\d+")
_TF_NAMES = re.compile(r".*(:0|/BiasAdd|/Relu6?|/relu6?|/AvgPool|Placeholder.*|serving_default.*)")
_IMAGE_CHANNELS = (1, 3, 4)
_MANY = 0.5  # share of names that shows a style


@dataclass(frozen=True, slots=True)
class Guess:
    """What the preprocessing of a network probably is, and why; preset is "" for none."""

    preset: str
    reason: str


def write(folder: Path, input_path: Path | None, output: Path, *, replaces: bool = False) -> int:
    """Write a manifest of all models under a folder; return how many there are.

    input_path: folder of sample inputs, None if it is to be filled in.  Raises UsageError where
    there is no model, or a manifest already.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of models")
    if output.exists() and not replaces:
        raise UsageError(f"{output} is there already: --force writes over it")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: no such folder to write to")
    models = sorted(
        (
            file
            for file in folder.rglob("*")
            if file.suffix.lower() in suffixes() and file.is_file()
        ),
        key=lambda file: [os.fsencode(part) for part in file.parts],
    )
    if not models:
        raise UsageError(f"{folder}: holds no model, which are files {' '.join(suffixes())}")
    save_bytes(text(models, folder, input_path, output).encode(), output)
    return len(models)


def text(models: list[Path], folder: Path, input_path: Path | None, output: Path) -> str:
    """Return a manifest of these models under a folder, to be written at `output`."""
    home = output.absolute().parent
    if input_path is None:
        inputs = '# inputs = "images"        # to be filled in: the folder of sample inputs'
    else:
        inputs = f"inputs = {_quoted(_relative(input_path, home))}"
    names = Counter(file.name.lower() for file in models)
    parts = [_HEAD.format(name=output.name, inputs=inputs)]
    for file in models:
        place = _relative(file, home)
        name = "-".join(file.relative_to(folder).parts)
        own = f"name = {_quoted(name)}\n" if names[file.name.lower()] > 1 else ""
        parts.append(_table(file, glob.escape(place), own))
    return "\n".join(parts)


def _table(file: Path, place: str, own: str) -> str:
    """Return the [[model]] of a file; commented out where it cannot be quantized."""
    lines = f"[[model]]\npath = {_quoted(place)}\n{own}"
    try:
        missing = [path.name for path in formats.files_of(file)[1:] if not path.exists()]
        graph = formats.load_structure(file) if missing else formats.load(file)
        shapes = {blob.name: blob.shape for blob in graph.inputs}
        infer_shapes(graph)
    except QuantJitError as error:
        return _left_out(f"cannot be read: {error}", lines)
    if missing:
        return _left_out(f"its weights are missing: {missing[0]}", lines)
    if graph.is_quantized:
        return _left_out("is quantized already", lines)
    weight = sum(path.stat().st_size for path in formats.files_of(file))
    said = f"# {size(weight)}, {len(graph.nodes)} nodes, input {shapes_text(shapes)}\n"
    guess = guess_preset(graph, _producer(file))
    reason = " ".join(guess.reason.split())
    if guess.preset:
        return f"{said}{lines}preset = {_quoted(guess.preset)}  # a guess: {reason}\n"
    return f"{said}{lines}# preset, or bias and scale: {reason}\n"


def _left_out(reason: str, lines: str) -> str:
    commented = "".join(f"# {line}\n" for line in lines.splitlines())
    return f"# {' '.join(reason.split())}\n{commented}"


def _producer(file: Path) -> str:
    return onnx_format.producer(file) if formats.format_of(file).name == "onnx" else ""


def guess_preset(graph: Graph, producer: str = "") -> Guess:
    """Guess the preprocessing of a network; producer: what its ONNX file says wrote it."""
    shapes = [blob.shape for blob in graph.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in _IMAGE_CHANNELS:
        return Guess("", "its input is no image: give arrays as .npy or .npz, as it takes them")
    blob = graph.inputs[0].name
    first = next((node for node in graph.nodes if blob in node.inputs), None)
    if first is not None and first.op in _NORMALIZING:
        return Guess(
            "", f"it begins with {first.op} ({first.name}): it may take pixels as they are"
        )
    if shapes[0][1] == 1:
        return Guess("unit", "its input has one channel")
    for word, preset in _PRODUCERS.items():
        if word in producer.lower():
            return Guess(preset, f"the file was written by {producer}")
    if blob == "data":
        return Guess("imagenet-caffe", "its input is called data, as with Caffe; channels are BGR")
    names = [name for node in graph.nodes for name in node.outputs]
    for style, preset, known in (
        (_TORCH_NAMES, "imagenet-torch", "PyTorch"),
        (_TF_NAMES, "tf", "TensorFlow"),
    ):
        if sum(bool(style.fullmatch(name)) for name in names) > _MANY * len(names):
            return Guess(preset, f"its blobs are called as by {known}, such as {names[0]}")
    return Guess("", "cannot be told: look where the network comes from")


def _relative(path: Path, home: Path) -> str:
    try:
        return Path(os.path.relpath(path.absolute(), home)).as_posix()
    except ValueError:  # on another drive
        return path.absolute().as_posix()


def _quoted(value: str) -> str:
    """Return a TOML string; JSON's are TOML's."""
    return json.dumps(value, ensure_ascii=False)
