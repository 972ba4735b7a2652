"""An ONNX file as its live nodes in order, its constants and its inputs.

Everything that can be wrong with the file itself is found here: bytes that are no protobuf, names
that nothing defines, cycles, tensors whose data do not fill their dimensions, external data outside
the model's folder.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, inliner, numpy_helper

from quantjit.errors import FormatError, UsageError
from quantjit.graph import Array, Blob

Shape = tuple[int, ...]

OLDEST_OPSET = 7
DEFAULT_DOMAINS = ("", "ai.onnx")

_LARGEST = 2**31 - 1  # bytes of a protobuf, elements of a tensor
_MOST_NODES = 200_000
_INPUT_TYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.UINT16: "uint16",
    TensorProto.INT16: "int16",
    TensorProto.BOOL: "bool",
}


@dataclass(frozen=True, slots=True)
class Source:
    """What a file says, as far as its outputs need it.

    opset: of the default domain; opsets: by domain.  nodes: NodeProto, each behind those that it
    reads.  constants: initializers by name.  inputs: with fixed shapes; their dtype is the file's,
    "" where it is none that a float blob can hold.  outputs: blob names.
    """

    path: Path
    opset: int
    opsets: Mapping[str, int]
    nodes: tuple[Any, ...]
    constants: Mapping[str, Array]
    inputs: tuple[Blob, ...]
    outputs: tuple[str, ...]


def read_source(path: Path, shapes: Mapping[str, Shape], *, with_weights: bool = True) -> Source:
    """Read a file.

    shapes: of inputs by name, in place of what the file says.  with_weights: False lets external
    data be missing.  Raises FormatError, or UsageError for a shape of an unknown input.
    """
    model = _parse(path)
    opsets = _opsets(path, model)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in stored]
    if any(tensor.values.name for tensor in graph.sparse_initializer):
        name = graph.sparse_initializer[0].values.name
        raise FormatError(
            path, f"initializer {name!r}", "dense tensors", "a sparse one", "make it dense"
        )
    outputs = tuple(value.name for value in graph.output)
    if not outputs:
        raise FormatError(path, "", "a graph with outputs", "none", "is it an ONNX model?")
    _check_names(path, [value.name for value in graph.input], "input")
    _check_names(path, outputs, "output")
    nodes = _live(path, graph.node, outputs, {*stored, *(value.name for value in given)})
    read = {name for node in nodes for name in node.input} | set(outputs)
    loader = TensorLoader(path, with_weights=with_weights)
    constants = {
        name: loader.array(tensor, f"initializer {name!r}")
        for name, tensor in stored.items()
        if name in read
    }
    unknown = set(shapes) - {value.name for value in given}
    if unknown:
        known = ", ".join(value.name for value in given)
        raise UsageError(f"{path} has no input {min(unknown)!r}; its inputs: {known}")
    inputs = tuple(
        _input(path, value, shapes.get(value.name)) for value in given if value.name in read
    )
    return Source(path, opsets[""], opsets, nodes, constants, inputs, outputs)


def _parse(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise FormatError(
                path,
                "",
                "a protobuf of at most 2 GB",
                f"{size} bytes",
                "save the weights as external data",
            )
        content = path.read_bytes()
    except OSError as error:
        raise FormatError(path, "", "a readable file", error.strerror or str(error)) from None
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise FormatError(path, "", "an ONNX model", f"no protobuf of one ({error})") from None
    if not model.HasField("graph"):
        raise FormatError(path, "", "an ONNX model", "no graph in it")
    wrong = next((name for name in _texts(model) if isinstance(name, bytes)), None)
    if wrong is not None:
        raise FormatError(path, "", "names in UTF-8", repr(wrong))
    if model.functions:
        if _opened_size(model) > _MOST_NODES:
            raise FormatError(
                path, "", f"functions of at most {_MOST_NODES} nodes in all", "more when opened"
            )
        try:
            model = inliner.inline_local_functions(model)
        except Exception as error:  # noqa: BLE001  # the inliner's C++ errors have no type of their own
            raise FormatError(path, "", "functions that can be inlined", str(error)) from None
    return model


def _texts(model: Any) -> Iterator[str | bytes]:
    """Yield the names in a model; protobuf gives bytes where they are not UTF-8."""
    graph = model.graph
    yield from (item.domain for item in model.opset_import)
    yield from (item.name for item in (*graph.initializer, *graph.input, *graph.output))
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (item.name for item in node.attribute)


def _opened_size(model: Any) -> int:
    """Nodes of the graph with its functions opened, as far as they are counted to the limit."""
    bodies = {(item.domain, item.name): item.node for item in model.functions}
    sizes = dict.fromkeys(bodies, 1)

    def count(nodes: Any) -> int:
        total = sum(sizes.get((node.domain, node.op_type), 1) for node in nodes)
        return min(total, _MOST_NODES + 1)

    for _ in bodies:  # a function may call those that were counted in the round before
        counted = {key: count(nodes) for key, nodes in bodies.items()}
        if counted == sizes:
            break
        sizes = counted
    return count(model.graph.node)


def _opsets(path: Path, model: Any) -> dict[str, int]:
    found = {item.domain: int(item.version) for item in model.opset_import}
    wrong = [version for version in found.values() if not 0 < version <= _LARGEST]
    if wrong:
        raise FormatError(path, "", "positive versions of operator sets", str(wrong[0]))
    opset = max((found.get(domain, 0) for domain in DEFAULT_DOMAINS), default=0)
    newest = onnx.defs.onnx_opset_version()
    if not opset:
        raise FormatError(path, "", "the version of its operator set", "none")
    if opset < OLDEST_OPSET:
        remedy = "convert it with onnx.version_converter"
    elif opset > newest:
        remedy = "install a newer onnx package"
    else:
        return {**found, "": opset}
    raise FormatError(path, "", f"opset {OLDEST_OPSET} to {newest}", f"opset {opset}", remedy)


def _check_names(path: Path, names: Iterable[str], kind: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            raise FormatError(path, "", f"{kind} names, each once", repr(name))
        seen.add(name)


def place_of(node: Any) -> str:
    """How messages name an ONNX node."""
    output = next((name for name in node.output if name), "")
    return f"node {(node.name or output)!r} ({repr(node.op_type)[1:-1]})"


def _producers(path: Path, nodes: Iterable[Any], known: set[str]) -> dict[str, int]:
    """Blob name -> number of the node that writes it; each name is written once."""
    producer: dict[str, int] = {}
    for number, node in enumerate(nodes):
        for name in node.output:
            if not name:
                continue
            if name in producer or name in known:
                raise FormatError(
                    path, place_of(node), "a new name for its output", f"{name!r} once more"
                )
            producer[name] = number
    return producer


def _live(path: Path, nodes: Any, outputs: tuple[str, ...], known: set[str]) -> tuple[Any, ...]:
    """Return the nodes that the outputs depend on, each behind those that it reads."""
    producer = _producers(path, nodes, known)
    for name in outputs:
        if name not in producer and name not in known:
            raise FormatError(path, f"output {name!r}", "a node that writes it", "none")
    live: set[int] = set()
    waiting = [producer[name] for name in outputs if name in producer]
    sources: dict[int, set[int]] = {}
    while waiting:
        number = waiting.pop()
        if number in live:
            continue
        live.add(number)
        node = nodes[number]
        for name in node.input:
            if name and name not in producer and name not in known:
                raise FormatError(
                    path,
                    place_of(node),
                    f"something that defines {name!r}, which it reads",
                    "no input, initializer or node of this name",
                )
        sources[number] = {producer[name] for name in node.input if name in producer}
        waiting += sources[number]
    return tuple(nodes[number] for number in _ordered(path, nodes, sources))


def _ordered(path: Path, nodes: Any, sources: dict[int, set[int]]) -> Iterator[int]:
    """Numbers of nodes, each behind its sources, as near to their order in the file as can be."""
    readers: dict[int, list[int]] = {}
    missing = {number: len(found) for number, found in sources.items()}
    for number, found in sources.items():
        for source in found:
            readers.setdefault(source, []).append(number)
    ready = [number for number, count in missing.items() if not count]
    heapq.heapify(ready)
    done = 0
    while ready:
        number = heapq.heappop(ready)
        done += 1
        yield number
        for reader in readers.get(number, []):
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    if done < len(sources):
        caught, seen = next(number for number, count in missing.items() if count), set[int]()
        while caught not in seen:  # against the arrows the way ends in the cycle
            seen.add(caught)
            caught = next(source for source in sources[caught] if missing[source])
        raise FormatError(path, place_of(nodes[caught]), "a graph without cycles", "a cycle")


def _size_or_name(dim: Any) -> str:
    return str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?"


def _give(name: str, shape: str) -> str:
    return f"give its shape: --input-shape '{name}:{shape}', in numbers"


def _input(path: Path, value: Any, given: Shape | None) -> Blob:
    if not value.type.HasField("tensor_type"):
        raise FormatError(path, f"input {value.name!r}", "a tensor", "another type")
    tensor = value.type.tensor_type
    dtype = _INPUT_TYPES.get(tensor.elem_type, "")
    dims = list(tensor.shape.dim) if tensor.HasField("shape") else None
    if given is not None:
        if dims is not None and len(dims) != len(given):
            raise UsageError(
                f"input {value.name!r} of {path} has {len(dims)} dimensions, {given} was given"
            )
        if min(given, default=1) < 1:
            raise UsageError(f"input {value.name!r} of {path}: sizes must be positive, not {given}")
        return Blob(value.name, tuple(given), dtype)
    if dims is None:
        raise FormatError(
            path, f"input {value.name!r}", "its shape", "none", _give(value.name, "N,C,H,W")
        )
    sizes: list[int] = []
    for axis, dim in enumerate(dims):
        if dim.dim_value > 0:
            sizes.append(int(dim.dim_value))
        elif axis == 0:
            sizes.append(1)
        else:
            name = f" {dim.dim_param!r}" if dim.dim_param else ""
            raise FormatError(
                path,
                f"input {value.name!r}",
                f"a size of dimension {axis}",
                f"one that is left open{name}",
                _give(value.name, ",".join(_size_or_name(dim) for dim in dims)),
            )
    return Blob(value.name, tuple(sizes), dtype)


class TensorLoader:
    """Makes arrays of TensorProto; external data are read from beside the model and only there."""

    def __init__(self, path: Path, *, with_weights: bool = True) -> None:
        self.path, self.with_weights = path, with_weights

    def array(self, tensor: Any, where: str) -> Array:
        """Return the tensor's values; FormatError when its data do not fill its dimensions."""
        dims = tuple(tensor.dims)
        if min(dims, default=0) < 0 or prod(dims) > _LARGEST:
            raise FormatError(
                self.path, where, "dimensions of at most 2^31 elements in all", f"{list(dims)}"
            )
        try:
            if tensor.data_location == TensorProto.EXTERNAL:
                return self._external(tensor, dims, where)
            return np.asarray(numpy_helper.to_array(tensor))
        except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
            raise FormatError(
                self.path, where, f"data for the dimensions {list(dims)}", str(error)
            ) from None

    def _external(self, tensor: Any, dims: Shape, where: str) -> Array:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        file = self._beside(entries.get("location", ""), where)
        if not self.with_weights and not file.is_file():
            return np.broadcast_to(np.zeros((), dtype), dims)
        offset, bits = int(entries.get("offset", 0)), 4 if "int4" in str(dtype) else 8
        needed = (prod(dims) * dtype.itemsize * bits + 7) // 8
        length = int(entries.get("length", needed))
        if offset < 0 or length != needed:
            raise ValueError(f"{length} bytes at {offset} of {file.name}, {needed} are needed")
        try:
            with file.open("rb") as stream:
                stream.seek(offset)
                content = stream.read(length) if offset + length <= file.stat().st_size else b""
        except OSError as error:
            raise FormatError(
                self.path, where, f"external data {file.name!r}", error.strerror or str(error)
            ) from None
        if len(content) != length:
            raise ValueError(f"{file.name} ends before {offset} + {length} bytes")
        inline = TensorProto()
        inline.CopyFrom(tensor)
        inline.ClearField("external_data")
        inline.data_location = TensorProto.DEFAULT
        inline.raw_data = content
        return np.asarray(numpy_helper.to_array(inline))

    def _beside(self, location: str, where: str) -> Path:
        """Return the file that holds external data; it must be within the model's folder."""
        folder = self.path.parent.resolve()
        file = (folder / location).resolve()
        if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
            raise FormatError(
                self.path,
                where,
                "external data within the model's folder",
                f"{location!r}",
                "move the file beside the model",
            )
        return file
