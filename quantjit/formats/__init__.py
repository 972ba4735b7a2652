"""One file per model format; the registry is filled by discovering them.

A file defines ``FORMAT``, a `Format`; one whose name starts with ``_`` is a part of a format.
`load` picks the format by the content of the file, or else by its suffix; `save` by suffix.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quantjit.errors import UnsupportedError
from quantjit.graph import Graph

Shape = tuple[int, ...]

_HEAD = 256  # bytes in which a format can be told


@dataclass(frozen=True, slots=True)
class Format:
    """A model format.

    suffixes: of its files, the structure first, then the weights where they are another file.
    read(paths) -> Graph; write(graph, paths) -> None, atomically; `paths` in the order of suffixes.
    read_structure(path) -> Graph without weights, for formats that keep these in another file.
    read_shaped(paths, shapes) -> Graph with these input shapes, for formats whose files may leave
    them open.  recognizes(head) -> whether a file that begins with these bytes is of this format.
    write may take options of the format as keywords.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[tuple[Path, ...]], Graph]
    write: Callable[..., None] | None
    read_structure: Callable[[Path], Graph] | None = None
    read_shaped: Callable[[tuple[Path, ...], Mapping[str, Shape]], Graph] | None = None
    recognizes: Callable[[bytes], bool] | None = None


@cache
def registry() -> Mapping[str, Format]:
    """All formats by name."""
    found = [
        importlib.import_module(f"{__name__}.{module.name}").FORMAT
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    ]
    return MappingProxyType({item.name: item for item in found})


def _of(path: Path) -> Format:
    for item in registry().values():
        if path.suffix.lower() in item.suffixes:
            return item
    known = [suffix for item in registry().values() for suffix in item.suffixes]
    raise UnsupportedError("model file suffix", path.suffix or path.name, known)


def format_of(path: str | Path) -> Format:
    """Return the format of a file that is there, by its content or else by its suffix.

    Raises UnsupportedError listing the known suffixes.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except (OSError, ValueError):  # no such file: its reader says so
        head = b""
    for item in registry().values():
        if head and item.recognizes is not None and item.recognizes(head):
            return item
    return _of(path)


def _paths(item: Format, path: Path, weights: Path | None) -> tuple[Path, ...]:
    if len(item.suffixes) == 1:
        return (path,)
    if weights is not None:
        return (path, weights)
    return tuple(path.with_suffix(suffix) for suffix in item.suffixes)


def files_of(path: str | Path, weights: str | Path | None = None) -> tuple[Path, ...]:
    """Return the files of a network that is there, in the order of its format's suffixes."""
    path = Path(path)
    return _paths(format_of(path), path, None if weights is None else Path(weights))


def load(
    path: str | Path,
    weights: str | Path | None = None,
    *,
    shapes: Mapping[str, Shape] | None = None,
) -> Graph:
    """Read a network.

    path: the model file (for TNN the .tnnproto).  weights: its second file (for TNN the .tnnmodel);
    by default the same name with the other suffix.  shapes: of inputs by name, in place of what the
    file says.

    Raises FormatError (file, place, expected, found) or UnsupportedError (unknown suffix).
    """
    path = Path(path)
    item = format_of(path)
    paths = _paths(item, path, None if weights is None else Path(weights))
    if not shapes:
        return item.read(paths)
    if item.read_shaped is None:
        return item.read(paths).with_input_shapes(shapes)
    return item.read_shaped(paths, shapes)


def load_structure(path: str | Path) -> Graph:
    """Read the structure of a network whose weights are in another file that may be missing.

    Raises FormatError or UnsupportedError as `load` does.
    """
    path = Path(path)
    item = format_of(path)
    return item.read_structure(path) if item.read_structure else item.read((path,))


def save(
    graph: Graph, path: str | Path, weights: str | Path | None = None, **options: Any
) -> tuple[Path, ...]:
    """Write a network, each file first under a temporary name, and return the paths written.

    options: of the format; for ONNX ``form``, ``activations`` and ``metadata``.
    """
    path = Path(path)
    item = _of(path)
    if item.write is None:
        raise UnsupportedError("format to write", item.name, [])
    paths = _paths(item, path, None if weights is None else Path(weights))
    item.write(graph, paths, **options)
    return paths
