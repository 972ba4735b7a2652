"""The binary half of a TNN model, ``.tnnmodel``: named resources of layers, then constants.

Little-endian, nothing aligned, no lengths in front of payloads, so each type of resource has its
own reader here (``source/tnn/interpreter/tnn/model_interpreter.cc``, ``objseri.h``).  No number
in a file is trusted: all reading is done by a `Cursor`, which knows how many bytes are there, and
buffers stay views of the file's bytes until their size has been checked.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from quantjit.errors import FormatError, GraphError
from quantjit.formats._tnn_fields import shown
from quantjit.formats._tnn_layers import DTYPES, find_codec, unknown_type
from quantjit.formats._tnn_proto import VERSION_1, VERSION_2, read_bytes
from quantjit.graph import Array

SCALE_SUFFIX = "_scale_data_"
_BLOB_SCALE = "BlobScale"
_COUNT_MASK = 0x1FFFFFFF
_MOST_LAYERS = 10_000
_MOST_DIMS = 16
_MAP_HEADER = 4
_ITEM_SIZES = {"float32": 4, "float16": 2, "int8": 1, "int32": 4, "bfloat16": 2, "int64": 8}
_ITEM_SIZES["uint32"] = 4
_NUMBERS = {name: number for number, name in DTYPES.items() if name != "bfloat16"}


@dataclass(frozen=True, slots=True)
class Buffer:
    """A raw buffer: element type, dimensions (empty: not given), bytes, and where it is."""

    dtype: str
    dims: tuple[int, ...]
    data: memoryview
    offset: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return len(self.data) // _ITEM_SIZES[self.dtype]

    def array(self, shape: tuple[int, ...]) -> Array:
        """Return the elements in that shape, aligned, of the machine's byte order."""
        stored = np.frombuffer(self.data, np.dtype(self.dtype).newbyteorder("<"))
        array: Array = stored.astype(self.dtype).reshape(shape)
        array.setflags(write=False)
        return array


@dataclass(frozen=True, slots=True)
class Resource:
    """What a model file holds for one layer or blob: buffers by role, and the place."""

    where: str
    buffers: Mapping[str, Buffer]


@dataclass(frozen=True, slots=True)
class Model:
    """All that a ``.tnnmodel`` holds: resources by name, constants by blob name."""

    resources: Mapping[str, Resource] = field(default_factory=dict)
    constants: Mapping[str, Buffer] = field(default_factory=dict)


class Cursor:
    """A place in the bytes of a file; every step is checked against what is left."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self._data, self.offset = path, memoryview(data), 0
        self.entry = ""

    def error(self, expected: str, found: str, offset: int | None = None) -> FormatError:
        """Make the error for this place."""
        at = self.offset if offset is None else offset
        where = f"byte {at}, {self.entry}" if self.entry else f"byte {at}"
        return FormatError(self.path, where, expected, found)

    def left(self) -> int:
        """Return how many bytes are left."""
        return len(self._data) - self.offset

    def take(self, size: int, what: str) -> memoryview:
        """Take so many bytes."""
        if size > self.left():
            raise self.error(f"{size} bytes of {what}", f"{self.left()} before the end of the file")
        self.offset += size
        return self._data[self.offset - size : self.offset]

    def integer(self, what: str, least: int = -(2**31), most: int = 2**31 - 1) -> int:
        """Take an int32 between limits."""
        value: int = struct.unpack("<i", self.take(4, what))[0]
        if not least <= value <= most:
            limits = f"{what} >= {least}" if most == 2**31 - 1 else f"{what} {least} to {most}"
            raise self.error(limits, str(value), self.offset - 4)
        return value

    def unsigned(self, what: str) -> int:
        """Take a uint32."""
        value: int = struct.unpack("<I", self.take(4, what))[0]
        return value

    def string(self, what: str) -> str:
        """Take a string: length, then bytes."""
        start = self.offset
        size = self.integer(f"length of {what}", least=0)
        try:
            return str(self.take(size, what), "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} in UTF-8", error.reason, start) from None

    def buffer(self, what: str) -> Buffer:
        """Take a raw buffer, of either version."""
        start = self.offset
        version = self.unsigned(f"magic number of {what}")
        if version not in (VERSION_1, VERSION_2):
            raise self.error(
                f"{what} with the magic number {VERSION_1:#010X} or {VERSION_2:#010X}",
                f"{version:#010X}",
                start,
            )
        number = self.integer(f"data type of {what}")
        if number not in DTYPES:
            raise self.error(f"{what} with a data type 0 to {max(DTYPES)}", str(number), start + 4)
        size = self.integer(f"byte length of {what}", least=0)
        dims: tuple[int, ...] = ()
        if size and version == VERSION_2:
            rank = self.integer(f"rank of {what}", 0, _MOST_DIMS)
            dims = tuple(self.integer(f"dimension of {what}", least=0) for _ in range(rank))
        item = _ITEM_SIZES[DTYPES[number]]
        if size % item or (dims and prod(dims) * item != size):
            form = f"{'x'.join(map(str, dims))} elements" if dims else "elements"
            raise self.error(
                f"{what} of {form} of {item} bytes", f"a length of {size} bytes", start
            )
        return Buffer(DTYPES[number], dims, self.take(size, what), start)


Buffers = dict[str, Buffer]


def _read_int8_tail(cursor: Cursor, buffers: Buffers) -> None:
    """Int8 weights are followed by zero point and scale; by the scale alone in old files."""
    if buffers["weight"].dtype == "int8":
        _read_scale(cursor, buffers)


def _read_scale(cursor: Cursor, buffers: Buffers) -> None:
    first = cursor.buffer("zero point or scale")
    if first.dtype == "int8":
        buffers["zero_point"] = first
        first = cursor.buffer("scale")
    if first.dtype != "float32":
        raise cursor.error("scale as float32", first.dtype, first.offset)
    buffers["scale"] = first


def _read_convolution(cursor: Cursor) -> Buffers:
    cursor.string("name of the layer")
    has_bias = cursor.integer("has_bias", 0, 1)
    buffers = {"weight": cursor.buffer("weight")}
    if has_bias:
        buffers["bias"] = cursor.buffer("bias")
    _read_int8_tail(cursor, buffers)
    return buffers


def _read_inner_product(cursor: Cursor) -> Buffers:
    cursor.string("name of the layer")
    buffers = {"weight": cursor.buffer("weight"), "bias": cursor.buffer("bias")}
    if not buffers["bias"].data:
        del buffers["bias"]
    _read_int8_tail(cursor, buffers)
    return buffers


def _read_blob_scale(cursor: Cursor) -> Buffers:
    buffers: Buffers = {}
    _read_scale(cursor, buffers)
    cursor.buffer("bias")
    return buffers


def _read_batch_norm(cursor: Cursor) -> Buffers:
    return {"scale": cursor.buffer("scale"), "bias": cursor.buffer("bias")}


def _read_scale_layer(cursor: Cursor) -> Buffers:
    cursor.string("name of the layer")
    has_bias = cursor.integer("has_bias", 0, 1)
    buffers = {"scale": cursor.buffer("scale")}
    if has_bias:
        buffers["bias"] = cursor.buffer("bias")
    return buffers


def _read_prelu(cursor: Cursor) -> Buffers:
    cursor.string("name of the layer")
    return {"slope": cursor.buffer("slope")}


def _read_constant_operand(cursor: Cursor) -> Buffers:
    return {"constant": cursor.buffer("constant")}


def _read_matmul(cursor: Cursor) -> Buffers:
    buffers = {"weight": cursor.buffer("weight")}
    if buffers["weight"].dtype == "int8":
        buffers["scale"] = cursor.buffer("scale")
    return buffers


def _read_constant(cursor: Cursor) -> Buffers:
    return {"value": cursor.buffer("value")}


def _read_gather(cursor: Cursor) -> Buffers:
    buffers: Buffers = {}
    for role in ("data", "indices"):
        if cursor.integer(f"flag of {role}", 0, 1):
            buffers[role] = cursor.buffer(role)
    if "data" in buffers and buffers["data"].dtype == "int8":
        buffers["scale"] = cursor.buffer("scale")
    return buffers


def _read_nothing(cursor: Cursor) -> Buffers:
    del cursor
    return {}


Arrays = Mapping[str, Array]


def pack_integer(value: int) -> bytes:
    """Pack an int32."""
    return struct.pack("<i", value)


def pack_string(text: str) -> bytes:
    """Pack a string: length, then bytes."""
    data = text.encode()
    return pack_integer(len(data)) + data


def pack_buffer(array: Array, *, flat: bool = False) -> bytes:
    """Pack a v2 raw buffer; flat: without dimensions, as the packer does with int8 parameters."""
    head = struct.pack("<Iii", VERSION_2, _NUMBERS[array.dtype.name], array.nbytes)
    if not array.nbytes:
        return head
    dims = () if flat else array.shape
    stored = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return head + struct.pack(f"<{len(dims) + 1}i", len(dims), *dims) + stored.tobytes()


_NO_BIAS = np.zeros(0, np.float32)


def _int8_tail(arrays: Arrays) -> Iterator[bytes]:
    if "zero_point" in arrays:
        yield pack_buffer(arrays["zero_point"], flat=True)
        yield pack_buffer(arrays["scale"], flat=True)


def _pack_convolution(name: str, arrays: Arrays) -> Iterator[bytes]:
    flat = "zero_point" in arrays
    yield pack_string(name) + pack_integer(int("bias" in arrays))
    yield pack_buffer(arrays["weight"], flat=flat)
    if "bias" in arrays:
        yield pack_buffer(arrays["bias"], flat=flat)
    yield from _int8_tail(arrays)


def _pack_inner_product(name: str, arrays: Arrays) -> Iterator[bytes]:
    flat = "zero_point" in arrays
    yield pack_string(name) + pack_buffer(arrays["weight"], flat=flat)
    yield pack_buffer(arrays.get("bias", _NO_BIAS), flat=flat)
    yield from _int8_tail(arrays)


def _pack_blob_scale(name: str, arrays: Arrays) -> Iterator[bytes]:
    del name
    yield from _int8_tail(arrays)
    yield pack_buffer(np.zeros(arrays["scale"].size, np.int32), flat=True)


def _pack_scale_layer(name: str, arrays: Arrays) -> Iterator[bytes]:
    yield pack_string(name) + pack_integer(int("bias" in arrays)) + pack_buffer(arrays["scale"])
    if "bias" in arrays:
        yield pack_buffer(arrays["bias"])


def _pack_prelu(name: str, arrays: Arrays) -> Iterator[bytes]:
    yield pack_string(name) + pack_buffer(arrays["slope"])


def _pack_buffers(*roles: str) -> Callable[[str, Arrays], Iterator[bytes]]:
    def pack(name: str, arrays: Arrays) -> Iterator[bytes]:
        del name
        for role in roles:
            yield pack_buffer(arrays[role])

    return pack


def _pack_gather(name: str, arrays: Arrays) -> Iterator[bytes]:
    del name
    for role in ("data", "indices"):
        yield pack_integer(int(role in arrays))
        if role in arrays:
            yield pack_buffer(arrays[role])


@dataclass(frozen=True, slots=True)
class Payload:
    """The layout of one type of resource: its number in TNN, a reader and a writer."""

    number: int
    read: Callable[[Cursor], Buffers]
    pack: Callable[[str, Arrays], Iterator[bytes]]


_OPERAND = (_read_constant_operand, _pack_buffers("constant"))
_SCALE_AND_BIAS = (_read_batch_norm, _pack_buffers("scale", "bias"))
PAYLOADS = {
    "Convolution": Payload(1, _read_convolution, _pack_convolution),
    "BatchNormCxx": Payload(2, *_SCALE_AND_BIAS),
    "Scale": Payload(16, _read_scale_layer, _pack_scale_layer),
    "InnerProduct": Payload(19, _read_inner_product, _pack_inner_product),
    "Deconvolution": Payload(22, _read_convolution, _pack_convolution),
    "PReLU": Payload(35, _read_prelu, _pack_prelu),
    "Add": Payload(38, *_OPERAND),
    "Mul": Payload(42, *_OPERAND),
    "InstBatchNormCxx": Payload(43, *_SCALE_AND_BIAS),
    "Const": Payload(100, _read_constant, _pack_buffers("value")),
    "Gather": Payload(104, _read_gather, _pack_gather),
    "MatMul": Payload(105, _read_matmul, _pack_buffers("weight")),
    "Sub": Payload(108, *_OPERAND),
    "Maximum": Payload(137, *_OPERAND),
    "Minimum": Payload(140, *_OPERAND),
    "Div": Payload(175, *_OPERAND),
    _BLOB_SCALE: Payload(600, _read_blob_scale, _pack_blob_scale),
}
_BY_NUMBER = {payload.number: name for name, payload in PAYLOADS.items()}


def _reader(type_string: str) -> Callable[[Cursor], Buffers] | None:
    """Return the reader of a known type; most layers have no resource and nothing to read."""
    if type_string == _BLOB_SCALE:
        return _read_blob_scale
    found = find_codec(type_string)
    if found is None:
        return None
    payload = PAYLOADS.get(found[0].type_string)
    return payload.read if payload else _read_nothing


def read_model(path: Path) -> Model:
    """Parse a ``.tnnmodel``; without a magic number it starts with the number of layers."""
    data = read_bytes(path, "a .tnnmodel")
    if b"," in data[:256] and b"\0" not in data[:256]:
        raise FormatError(
            path,
            "",
            "a .tnnmodel, which is binary",
            "text that looks like a .tnnproto",
            "were -p and -m swapped?",
        )
    cursor = Cursor(path, data)
    first = cursor.unsigned("magic number")
    if first not in (VERSION_1, VERSION_2):
        if first & _COUNT_MASK >= _MOST_LAYERS:
            raise cursor.error(
                f"the magic number {VERSION_1:#010X} or {VERSION_2:#010X}, "
                f"or a number of layers below {_MOST_LAYERS}",
                f"{first:#010X}",
                0,
            )
        cursor.offset = 0
    count = cursor.unsigned("number of layers") & _COUNT_MASK
    if count >= _MOST_LAYERS:
        raise cursor.error(f"a number of layers below {_MOST_LAYERS}", str(count))
    resources: dict[str, Resource] = {}
    for index in range(count):
        cursor.entry = f"layer {index + 1} of {count}"
        name, resource = _read_resource(cursor)
        if name in resources:
            raise cursor.error("a name of its own", shown(name))
        resources[name] = resource
    cursor.entry = "constants"
    constants = _read_constants(cursor) if cursor.left() >= _MAP_HEADER else {}
    if cursor.left():
        cursor.entry = ""
        raise cursor.error("the end of the file", f"{cursor.left()} more bytes")
    return Model(resources, constants)


def _read_resource(cursor: Cursor) -> tuple[str, Resource]:
    entry, start = cursor.entry, cursor.offset
    number = cursor.integer("number of the layer type", 0, _MOST_LAYERS)
    type_string = cursor.string("type of layer")
    reader = _reader(type_string)
    if reader is None:
        # Very old files have no type string: what was read is the name.
        name, type_string = type_string, _BY_NUMBER.get(number, type_string)
        reader = _reader(type_string)
        if reader is None:
            raise unknown_type(cursor.path, f"byte {start}, {entry}", type_string)
    else:
        name = cursor.string("name of the layer")
    cursor.entry = f"{entry}, {shown(name)} ({type_string})"
    return name, Resource(f"byte {start}, {cursor.entry}", reader(cursor))


def _read_constants(cursor: Cursor) -> dict[str, Buffer]:
    cursor.unsigned("magic number")
    count = cursor.integer("number of constants", least=0)
    constants: dict[str, Buffer] = {}
    for index in range(count):
        cursor.entry = f"constant {index + 1} of {count}"
        name = cursor.string("name of the constant")
        cursor.entry = f"constant {index + 1} of {count}, {shown(name)}"
        if name in constants:
            raise cursor.error("a name of its own", shown(name))
        constants[name] = cursor.buffer("value")
    return constants


@dataclass(frozen=True, slots=True)
class Entry:
    """One resource to be written."""

    type_string: str
    name: str
    arrays: Arrays


def blob_scale_entry(blob: str, scale: Any, zero_point: Any) -> Entry:
    """Return the resource that holds the scale of a blob."""
    return Entry(_BLOB_SCALE, blob + SCALE_SUFFIX, {"scale": scale, "zero_point": zero_point})


def format_model(entries: list[Entry], constants: Arrays) -> Iterator[bytes]:
    """Yield the bytes of a v2 ``.tnnmodel``."""
    yield struct.pack("<Ii", VERSION_2, len(entries))
    for entry in entries:
        payload = PAYLOADS[entry.type_string]
        yield pack_integer(payload.number) + pack_string(entry.type_string)
        yield pack_string(entry.name)
        yield from payload.pack(entry.name, entry.arrays)
    if constants:
        yield struct.pack("<Ii", VERSION_2, len(constants))
        for name in sorted(constants):
            array = constants[name]
            if array.dtype.name not in _NUMBERS:
                known = ", ".join(_NUMBERS)
                raise GraphError(
                    f"constant {name!r}", f"TNN has no data type {array.dtype}; it has {known}"
                )
            yield pack_string(name) + pack_buffer(array)
