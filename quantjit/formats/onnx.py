"""ONNX models: ``.onnx``, opset 7 to the newest that the ``onnx`` package knows.

Read are float networks and, by float arithmetic on their exact codes, int8 ones made of
QuantizeLinear and DequantizeLinear.  Nodes and blobs keep their names; blobs are float32 in NCHW,
and whatever the file computes from shapes and constants is computed while reading, so that the
graph holds layers only.  The package is imported when a file is read or written, not before.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantjit.formats import Format, Shape
from quantjit.graph import Graph

_FIRST_TAGS = (b"\x08", b"\x12", b"\x1a", b"\x3a", b"\x42")  # ir_version, producer, graph, opsets


def read(paths: tuple[Path, ...]) -> Graph:
    """Read a network at the input shapes that the file states; see `read_shaped`."""
    return read_shaped(paths, {})


def read_shaped(paths: tuple[Path, ...], shapes: Mapping[str, Shape]) -> Graph:
    """Read a network.

    shapes: of inputs by name, for those whose size the file leaves open; a batch dimension that is
    left open is 1 without being asked.  Raises FormatError: the file cannot be read, or uses
    operators that quantjit cannot run, all of which are named.
    """
    from quantjit.formats import _onnx_read

    return _onnx_read.read(paths[0], shapes)


def read_structure(path: Path) -> Graph:
    """Read a network; weights in external files that are not there are zeros."""
    from quantjit.formats import _onnx_read

    return _onnx_read.read(path, {}, with_weights=False)


def producer(path: Path) -> str:
    """Return the name of the program that a file says wrote it, "" where it does not."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return str(onnx.load_model(path, load_external_data=False).producer_name)
    except (OSError, DecodeError):
        return ""


def write(graph: Graph, paths: tuple[Path, ...], **options: Any) -> None:
    """Write a network; options are those of `quantjit.formats._onnx_write.write`."""
    from quantjit.formats import _onnx_write

    _onnx_write.write(graph, paths[0], **options)


def _recognizes(head: bytes) -> bool:
    """Tell a protobuf with a field of ModelProto in front."""
    return head[:1] in _FIRST_TAGS


FORMAT = Format(
    "onnx", (".onnx",), read, write, read_structure, read_shaped, recognizes=_recognizes
)
