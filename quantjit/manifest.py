"""A zoo's manifest: which models, on which inputs, how, and what they must reach.

A TOML file.  ``[defaults]`` holds for all models; each ``[[model]]`` has a path, which may be a
pattern, and whatever it wants otherwise.  Paths are relative to the manifest::

    [defaults]
    inputs = "images"
    preset = "imagenet-torch"

    [[model]]
    path = "models/*.onnx"
    min_sqnr = 20

Everything that is wrong is named at once, with its table and key.  `KEYS` lists all keys.
"""

import glob
import math
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from quantjit import formats, solvers
from quantjit.dataset import parse_numbers
from quantjit.errors import QuantJitError, UsageError
from quantjit.images import PRESETS, Preprocess
from quantjit.pipeline import Inputs
from quantjit.quantizer import ACTIVATIONS, MERGES, PASSES, TARGETS, Settings

Table = Mapping[str, Any]

RESERVED = "leaderboard"
"""What no model may be called: the files beside the models' folders begin with it."""

_GLOB = frozenset("*?[")
_FORBIDDEN = frozenset('/\\:*?"<>|')  # in a file name, on one system or another


# ------------------------------------------------------------------ what a manifest says


@dataclass(frozen=True, slots=True)
class Gates:
    """What a model must reach; None asks for nothing.

    min_sqnr: dB.  min_agreement: share of inputs with the same top-1.  max_drop: share of inputs
    that int8 may get wrong beyond those of float; needs labels.
    """

    min_sqnr: float | None = None
    min_agreement: float | None = None
    max_drop: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a zoo.

    name: of its folder.  path: the .onnx or .tnnproto; weights: its .tnnmodel, None for the same
    name.  shapes: of inputs by name.  input_path, inputs: of the calibration.  is_auto: the methods
    of `settings` are to be found.  verify: how many inputs are compared, None for all.
    verify_path: where they are, None for those of the calibration.
    """

    name: str
    path: Path
    input_path: Path
    settings: Settings
    weights: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Inputs = field(default_factory=Inputs)
    nonfinite: str = "fail"
    is_auto: bool = False
    form: str = "qdq"
    float_fallback: bool = True
    labels: Path | None = None
    gates: Gates = field(default_factory=Gates)
    verify: int | None = 16
    verify_path: Path | None = None

    @property
    def model_files(self) -> tuple[Path, ...]:
        """The files of the network."""
        return formats.files_of(self.path, self.weights)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole zoo: its models in the order of the file, and where results go (None: not said)."""

    entries: tuple[Entry, ...]
    output: Path | None = None


# ------------------------------------------------------------------ the values of keys


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected a text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("expected true or false")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("expected a number")
    return float(value)


def _whole(least: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"expected a whole number of {least} or more")
        return value

    return parse


def _share(value: Any) -> float:
    if isinstance(value, str) and value.endswith("%"):
        value = parse_numbers(value[:-1])[0] / 100
    share = _number(value)
    if not 0 <= share <= 1:
        raise ValueError('expected a share, such as 0.05 or "5%"')
    return share


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        return parse_numbers(value)
    each = value if isinstance(value, list) else [value]
    return tuple(parse_numbers(x)[0] if isinstance(x, str) else _number(x) for x in each)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_text(name) for name in (value if isinstance(value, list) else [value]))


def _one_of(known: Sequence[str]) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in known:
            close = get_close_matches(str(value), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"{hint}expected one of {', '.join(known)}")
        return str(value)

    return parse


def _passes(value: Any) -> tuple[str, ...]:
    names = _names(value)
    return PASSES if names == ("all",) else tuple(_one_of((*PASSES, "all"))(n) for n in names)


def _shapes(value: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict) or not value:
        raise TypeError("expected a table such as { data = [1, 3, 224, 224] }")
    size = _whole(1)
    return {
        name: tuple(size(x) for x in (shape if isinstance(shape, list) else [shape]))
        for name, shape in value.items()
    }


KEYS: Mapping[str, Callable[[Any], Any]] = {
    "path": _text,
    "name": _text,
    "weights": _text,
    "input_shape": _shapes,
    "inputs": _text,
    "limit": _whole(1),
    "max_bad": _share,
    "nonfinite": _one_of(("fail", "skip")),
    "preset": _one_of(tuple(PRESETS)),
    "bias": _numbers,
    "scale": _numbers,
    "channel_order": _one_of(("rgb", "bgr")),
    "resize": _one_of(("stretch", "crop", "none")),
    "resize_shorter": _whole(1),
    "method": _one_of(("auto", "fixed")),
    "blob_method": _one_of(tuple(solvers.blob_solvers())),
    "weight_method": _one_of(tuple(solvers.weight_solvers())),
    "merge": _one_of(MERGES),
    "passes": _passes,
    "exclude": _names,
    "float_fallback": _flag,
    "format": _one_of(TARGETS),
    "form": _one_of(("qdq", "qoperator")),
    "activations": _one_of(ACTIVATIONS),
    "symmetric": _flag,
    "labels": _text,
    "verify": _whole(0),
    "verify_inputs": _text,
    "min_sqnr": _number,
    "min_agreement": _share,
    "max_drop": _share,
}
"""Every key of ``[[model]]`` and ``[defaults]``, and what reads its value."""

_OWN = ("path", "name", "weights", "input_shape")  # of one model: no defaults
_PREPROCESSING = ("bias", "scale", "channel_order", "resize", "resize_shorter")
_METHODS = ("blob_method", "weight_method", "merge", "passes")
_BESIDE_METHODS = ("exclude", "activations", "symmetric")


# ------------------------------------------------------------------ reading


def load(path: Path) -> Manifest:
    """Read a manifest; UsageError names everything that is wrong with it."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: is no TOML: {error}") from None
    reader = _Reader(path.parent)
    manifest = reader.read(given)
    reader.refuse(path)
    return manifest


def of_folder(folder: Path, defaults: Table) -> Manifest:
    """Return the zoo of all models of a folder; defaults: as in a manifest.

    Their paths are relative to the working directory.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of models")
    if not _models_of(folder, "*"):
        raise UsageError(f"{folder}: holds no model, which are files {' '.join(suffixes())}")
    reader = _Reader(Path())
    table = {"path": f"{glob.escape(str(folder))}{os.sep}*"}
    manifest = reader.read({"defaults": dict(defaults), "model": [table]})
    reader.refuse(folder)
    return manifest


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of the files that models are named by."""
    return tuple(item.suffixes[0] for item in formats.registry().values())


def _models_of(folder: Path, pattern: str) -> list[Path]:
    """Return the model files that fit a pattern relative to a folder, sorted."""
    place = Path(pattern)
    found = (
        Path(place.anchor).glob(str(place.relative_to(place.anchor)))
        if place.is_absolute()
        else folder.glob(pattern)
    )
    models = (file for file in found if file.suffix.lower() in suffixes())
    return sorted(
        (file for file in models if not file.name.startswith(".")),
        key=lambda file: [os.fsencode(part) for part in file.parts],
    )


class _Reader:
    """Reads the tables of a manifest and keeps what is wrong with them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mistakes: list[str] = []

    def refuse(self, path: Path) -> None:
        """Raise UsageError where there were mistakes."""
        if self._mistakes:
            count = len(self._mistakes)
            head = f"{count} mistakes: " if count > 1 else ""
            raise UsageError(f"{path}: {head}{'; '.join(self._mistakes)}")

    def read(self, given: Table) -> Manifest:
        """Return what the file says, as far as it is right."""
        self._check_names("", given, ("output", "defaults", "model"))
        defaults, tables = given.get("defaults", {}), given.get("model", [])
        if not isinstance(defaults, dict):
            self._wrong("", "defaults", "expected a table: [defaults]")
            defaults = {}
        if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
            self._wrong("", "model", "expected tables: [[model]]")
            tables = []
        elif not tables:
            self._mistakes.append("there is no [[model]]")
        shared = self._values("[defaults] ", defaults, [key for key in KEYS if key not in _OWN])
        entries: list[tuple[str, Entry]] = []
        for number, table in enumerate(tables, 1):
            label = table.get("name", table.get("path", ""))
            place = f"[[model]] {number}{f' ({label})' if isinstance(label, str) and label else ''}"
            own = self._values(f"{place} ", table, tuple(KEYS))
            entries += [(place, entry) for entry in self._entries(f"{place} ", shared, own)]
        output = given.get("output")
        if output is not None and not isinstance(output, str):
            self._wrong("", "output", "expected a text")
            output = None
        return Manifest(self._named_apart(entries), self._path(output))

    def _wrong(self, place: str, key: str, reason: str) -> None:
        self._mistakes.append(f"{place}key {key!r}: {reason}")

    def _check_names(self, place: str, table: Table, known: Sequence[str]) -> None:
        for key in table:
            if key not in known:
                close = get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
                if key in _OWN:
                    hint = "it belongs to one [[model]]"
                self._wrong(place, key, f"unknown; {hint}")

    def _values(self, place: str, table: Table, known: Sequence[str]) -> dict[str, Any]:
        self._check_names(place, table, known)
        values = {}
        for key in known:
            if key in table:
                try:
                    values[key] = KEYS[key](table[key])
                except (ValueError, TypeError) as error:
                    self._wrong(place, key, f"{error}, found {table[key]!r}")
        methods = [key for key in _METHODS if key in values]
        if values.get("method") == "auto" and methods:
            self._wrong(place, methods[0], 'method = "auto" chooses it')
        return values

    def _path(self, text: str | None) -> Path | None:
        if text is None:
            return None
        # not resolved: links stay links, and what is said of a file is what was written
        return Path(os.path.normpath(self._folder / Path(text).expanduser()))

    def _entries(self, place: str, shared: Table, own: Table) -> list[Entry]:
        """Return the models of one table."""
        values = {**shared, **own}
        files = self._files(place, own)
        if files and "inputs" not in values:
            self._wrong(place, "inputs", "is missing here and in [defaults]: a folder of inputs")
            return []
        if len(files) > 1 and "name" in own and "{stem}" not in own["name"]:
            hint = f"say e.g. '{{stem}}-{own['name']}'"
            self._wrong(place, "name", f"{len(files)} models fit the path: {hint}")
        for key in ("weights", "input_shape"):
            if len(files) > 1 and key in own:
                self._wrong(place, key, f"{len(files)} models fit the path: it belongs to one")
        try:
            how, settings = _preprocess((shared, own)), _settings((shared, own))
            gates = self._gates(place, values)
        except (ValueError, QuantJitError) as error:
            self._mistakes.append(f"{place.rstrip()}: {error}")
            return []
        found = []
        for file in files:
            target = values.get("format") or formats.format_of(file).name
            try:
                chosen = replace(settings, target=target)
            except QuantJitError as error:
                self._mistakes.append(f"{place}{file.name}: {error}")
                break
            found.append(self._entry(file, values, how, chosen, gates, _is_auto((shared, own))))
        return found

    def _files(self, place: str, own: Table) -> list[Path]:
        """Return the model files of one table."""
        pattern = own.get("path")
        if pattern is None:
            if not any(said.startswith(f"{place}key 'path'") for said in self._mistakes):
                self._wrong(place, "path", "is missing: which model, or a pattern such as *.onnx")
            return []
        if _GLOB & set(pattern):
            files = _models_of(self._folder, str(Path(pattern).expanduser()))
            if not files:
                self._wrong(place, "path", f"no model fits {pattern!r}")
            return files
        single = self._path(pattern)
        if single is None or single.suffix.lower() not in suffixes():
            self._wrong(place, "path", f"is no model, which are files {' '.join(suffixes())}")
            return []
        return [single]

    def _entry(
        self,
        file: Path,
        values: Table,
        how: Preprocess,
        settings: Settings,
        gates: Gates,
        is_auto: bool,
    ) -> Entry:
        folder, verified = self._path(values["inputs"]), self._path(values.get("verify_inputs"))
        if folder is None:
            raise AssertionError("a missing key was refused before")
        return Entry(
            values.get("name", "{stem}").replace("{stem}", file.stem),
            file,
            folder,
            settings,
            self._path(values.get("weights")),
            values.get("input_shape", {}),
            Inputs(how, values.get("limit"), values.get("max_bad", Inputs().max_bad)),
            values.get("nonfinite", "fail"),
            is_auto,
            values.get("form", "qdq"),
            values.get("float_fallback", True),
            self._path(values.get("labels")),
            gates,
            values.get("verify", None if verified else 16),
            verified,
        )

    def _gates(self, place: str, values: Table) -> Gates:
        gates = Gates(**{item.name: values.get(item.name) for item in fields(Gates)})
        if gates.max_drop is not None and "labels" not in values:
            self._wrong(place, "max_drop", "needs labels")
        if gates != Gates() and values.get("verify") == 0:
            self._wrong(place, "verify", "is 0, but a gate needs a verification")
        return gates

    def _named_apart(self, entries: Sequence[tuple[str, Entry]]) -> tuple[Entry, ...]:
        """Return the models under names that differ: those of the same stem keep their suffix."""
        stems = [entry.name.lower() for _, entry in entries]
        named: dict[str, Entry] = {}
        for place, entry in entries:
            name = entry.name
            if stems.count(name.lower()) > 1 and name == entry.path.stem:
                name = entry.path.name
            if name.startswith((".", RESERVED)) or name != name.strip() or _FORBIDDEN & set(name):
                self._wrong(f"{place} ", "name", f"{name!r} cannot be the name of a folder")
            elif name.lower() in named:
                other = named[name.lower()].path
                self._wrong(
                    f"{place} ", "name", f"{name!r} is that of {other} too: give each its own name"
                )
            named.setdefault(name.lower(), replace(entry, name=name))
        return tuple(named.values())


def _preprocess(tables: Sequence[Table]) -> Preprocess:
    """Return the preprocessing: each table's preset, then its own keys, over the one before."""
    how = Preprocess()
    for table in tables:
        how = PRESETS[table["preset"]] if "preset" in table else how
        how = replace(how, **{key: table[key] for key in _PREPROCESSING if key in table})
    return how


def _settings(tables: Sequence[Table]) -> Settings:
    """Return the settings for TNN, which has every method; the target comes later."""
    keys = (*_METHODS, *_BESIDE_METHODS)
    settings = Settings("mse", "mse", "mix")
    for table in tables:
        if table.get("method") == "auto":
            settings = replace(settings, blob_method="mse", weight_method="mse", merge="mix")
            settings = replace(settings, passes=())
        settings = replace(settings, **{key: table[key] for key in keys if key in table})
    return settings


def _is_auto(tables: Sequence[Table]) -> bool:
    """Whether the methods are to be found: the last table that says something decides."""
    is_auto = False
    for table in tables:
        if "method" in table:
            is_auto = table["method"] == "auto"
        elif any(key in table for key in _METHODS):
            is_auto = False
    return is_auto
