"""The text half of a TNN model, ``.tnnproto``: a comma-separated list of records of words.

Quotes and line ends are decoration.  Records are header, inputs, blobs, outputs, number of layers,
then the layers, each ``TypeString name n_in n_out inputs... outputs... parameters...``
(``source/tnn/interpreter/tnn/model_interpreter.cc``).
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from quantjit.errors import FormatError, GraphError
from quantjit.formats._tnn_fields import LIMIT, Fields, shown
from quantjit.formats._tnn_layers import (
    BY_OP,
    DTYPES,
    QUANTIZED,
    find_codec,
    number_of,
    unknown_type,
)
from quantjit.graph import Blob, Graph, Node

VERSION_1, VERSION_2 = 0xFABC0002, 0xFABC0004
_FIXED_RECORDS = 5


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a file: a node without its weights, whether it is int8, and its place."""

    node: Node
    int8: bool
    where: str


@dataclass(frozen=True, slots=True)
class Structure:
    """All that a ``.tnnproto`` says; layers in an order in which blobs are made before read."""

    inputs: tuple[Blob, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]


def read_bytes(path: Path, what: str) -> bytes:
    """Return the whole file; `what` it should be stands in the error."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(path, "", what, (error.strerror or str(error)).lower()) from None
    except ValueError:  # a NUL in the name
        raise FormatError(path, "", what, "a name that no file can have") from None
    if not data:
        raise FormatError(path, "", what, "an empty file")
    return data


def read_proto(path: Path) -> Structure:
    """Parse a ``.tnnproto``."""
    data = read_bytes(path, "a .tnnproto")
    if b"\0" in data:
        raise FormatError(
            path,
            "",
            "a .tnnproto, which is text",
            "binary data that looks like a .tnnmodel",
            "were -p and -m swapped?",
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(path, f"byte {error.start}", "UTF-8 text", error.reason) from None
    records = [
        [word for part in record.split(" ") if (word := _trimmed(part))]
        for record in text.replace('"', "").replace("\n", "").split(",")
    ]
    if len(records) <= _FIXED_RECORDS:
        raise FormatError(
            path, "", f"more than {_FIXED_RECORDS} comma-separated records", str(len(records))
        )
    version = _version(Fields(path, "record 0 (header)", records[0]))
    inputs = tuple(_inputs(path, version, records[1]))
    outputs = tuple(dict.fromkeys(records[3]))
    if not outputs:
        raise FormatError(path, "record 3 (outputs)", "at least one blob name", "none")
    layers = [
        _layer(path, number, words)
        for number, words in enumerate(records[_FIXED_RECORDS:], _FIXED_RECORDS)
        if words
    ]
    if not layers:
        raise FormatError(path, "", "at least one layer", "none")
    names: dict[str, str] = {}
    for layer in layers:
        first = names.setdefault(layer.node.name, layer.where)
        if first is not layer.where:
            raise FormatError(path, layer.where, "a name of its own", f"the name of {first}")
    return Structure(inputs, outputs, _sorted(path, inputs, layers))


def _trimmed(word: str) -> str:
    return word.strip("".join(map(chr, range(33))))


def _version(fields: Fields) -> int:
    for name in ("format", "number of blobs", "unused"):
        fields.word(name)
    magic = fields.word("magic number")
    for version in (VERSION_1, VERSION_2):
        if magic == str(version):
            return version
    raise fields.error(f"the magic number {VERSION_1} (v1) or {VERSION_2} (v2)", shown(magic))


def _inputs(path: Path, version: int, words: Sequence[str]) -> Iterator[Blob]:
    seen = set()
    for group in " ".join(words).split(":"):
        parts = group.split()
        fields = Fields(path, "record 1 (inputs)", parts)
        name = fields.word("name of an input")
        fields = Fields(path, f"record 1 (inputs), {name!r}", parts[1:])
        if name in seen:
            raise fields.error("a name of its own", "that of an earlier input")
        seen.add(name)
        dtype = DTYPES[0]
        if version == VERSION_1:
            shape = tuple(fields.integer("dimension", least=1) for _ in parts[1:])
        else:
            rank = fields.integer("rank", least=0)
            if fields.left() != rank + 1:
                raise fields.error(f"{rank} dimensions and a data type", f"{fields.left()} words")
            shape = tuple(fields.integer("dimension", least=1) for _ in range(rank))
            dtype = fields.choice("data type", DTYPES)
        if prod(shape) >= LIMIT:
            raise fields.error(f"a size below {LIMIT}", str(shape))
        yield Blob(name, shape, dtype)


def _layer(path: Path, number: int, words: Sequence[str]) -> Layer:
    where = f"record {number}, layer {shown(words[1])} ({words[0]})" if words[1:] else ""
    fields = Fields(path, where or f"record {number}", words)
    type_string, name = fields.word("type of layer"), fields.word("name of the layer")
    found = find_codec(type_string)
    if found is None:
        raise unknown_type(path, f"record {number}, layer {shown(name)}", type_string)
    codec, int8 = found
    n_in, n_out = (fields.integer(f"number of {side}", least=0) for side in ("inputs", "outputs"))
    least, most = codec.inputs
    if not least <= n_in <= most:
        wanted = str(least) if least == most else f"{least} or more"
        raise fields.error(f"{wanted} inputs", str(n_in))
    if n_out != (codec.outputs or max(n_out, 1)):
        raise fields.error(f"{codec.outputs or 'at least 1'} outputs", str(n_out))
    inputs, outputs = fields.names(n_in), fields.names(n_out)
    node = Node(name, codec.op, inputs, outputs, codec.parse(fields, n_in))
    return Layer(node, int8, where)


def _sorted(path: Path, inputs: Sequence[Blob], layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Put each layer behind those whose blobs it reads, else in the order of the file."""
    given = {blob.name for blob in inputs}
    producer: dict[str, int] = {}
    for index, layer in enumerate(layers):
        for blob in layer.node.outputs:
            if blob in producer or blob in given:
                raise FormatError(
                    path, layer.where, "outputs of its own", f"blob {blob!r}, which exists already"
                )
            producer[blob] = index
    sources = [{producer[blob] for blob in x.node.inputs if blob in producer} for x in layers]
    readers: list[list[int]] = [[] for _ in layers]
    for index, found in enumerate(sources):
        for source in found:
            readers[source].append(index)
    waiting = [len(found) for found in sources]
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(layers[index])
        for reader in readers[index]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(layers):
        index = next(index for index, count in enumerate(waiting) if count)
        raise FormatError(path, layers[index].where, "layers without a cycle", "a cycle")
    return tuple(order)


def format_proto(graph: Graph) -> bytes:
    """Return the text of a v2 ``.tnnproto``, in the order and spacing of TNN's packer."""
    for blob in graph.inputs:
        if ":" in blob.name:
            raise GraphError(f"input {blob.name!r}", "a TNN file cannot hold a name with ':'")
    names = {name for node in graph.nodes for name in (*node.inputs, *node.outputs)}
    names |= {blob.name for blob in graph.inputs} | set(graph.constants) | set(graph.outputs)
    for kind, listed in (("blob", names), ("node", {node.name for node in graph.nodes})):
        for name in sorted(listed):
            if not name or any(char in ',"\0' or char <= " " or char.isspace() for char in name):
                raise GraphError(
                    f"{kind} {name!r}", "a TNN file cannot hold a name with ',', '\"' or a blank"
                )
    # the packer also lists what fusion left unused: a blob named like its fused convolution
    names |= {n.name for n in graph.nodes if getattr(n.attrs, "activation", "none") != "none"}
    lines = [
        f"1 {len(names)} 1 {VERSION_2} ",
        ": ".join(_line(_input_words(blob)) for blob in graph.inputs),
        " " + _line(sorted(names)),
        _line(graph.outputs),
        f" {len(graph.nodes)} ",
        *(_line(_node_words(node)) for node in graph.nodes),
    ]
    return "".join(f'"{line},"\n' for line in lines).encode()


def _line(words: Sequence[object]) -> str:
    return "".join(f"{word} " for word in words)


def _input_words(blob: Blob) -> list[object]:
    try:
        return [blob.name, len(blob.shape), *blob.shape, number_of(DTYPES, blob.dtype)]
    except KeyError as error:
        raise GraphError(f"input {blob.name!r}", f"TNN has no data type {error}") from None


def type_string_of(node: Node) -> str:
    """Return the TypeString of a node, without "Quantized"; GraphError if TNN has none."""
    codec = BY_OP.get(node.op)
    if codec is None or (node.quant is not None and not codec.int8):
        form = "an int8" if codec else "a"
        raise GraphError(f"node {node.name!r}", f"TNN has no layer for {form} {node.op!r}")
    return codec.type_string


def _node_words(node: Node) -> list[object]:
    type_string = type_string_of(node)
    if node.quant is not None:
        type_string = QUANTIZED + type_string
    words: list[object] = [type_string, node.name, len(node.inputs), len(node.outputs)]
    try:
        return [*words, *node.inputs, *node.outputs, *BY_OP[node.op].words(node)]
    except KeyError as error:
        raise GraphError(f"node {node.name!r}", f"TNN cannot express {error}") from None
