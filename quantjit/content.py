"""What a result was made from, as one fingerprint: content of files, settings, version.

Files are known by the SHA-256 of their bytes.  It is kept with size and time of modification, so
that a file is read again only where one of the two has changed.
"""

import hashlib
import json
import os
import stat
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from quantjit import __version__
from quantjit.dataset import Dataset
from quantjit.errors import DataError, QuantJitError
from quantjit.images import Preprocess
from quantjit.manifest import Entry
from quantjit.table import save_bytes

VERSION = 1
"""Of what the results of a zoo hold; those of another version are made again."""

_SETTLED_NS = 2 * 10**9  # younger files may change again within one tick of the clock of files
_PATHS = ("path", "weights", "input_path", "labels", "verify_path")


class Marks:
    """Marks of files, remembered in a file between runs.

    by: "bytes", the hash of their content, or "stat", size and time, which never reads them.
    """

    def __init__(self, memory: Path, by: str = "bytes") -> None:
        self._memory, self._by = memory, by
        self._known: dict[str, list[Any]] = {}
        self._used: dict[str, list[Any]] = {}
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there, or damaged: everything is read again
            known = {}
        if isinstance(known, dict):
            self._known = {k: v for k, v in known.items() if isinstance(v, list) and len(v) == 3}

    def of(self, file: Path) -> str:
        """Return the mark of an input file; "missing" where there is none."""
        try:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):
                return "no file"
            if self._by == "stat":
                return f"stat:{status.st_size}:{status.st_mtime_ns}"
            return f"sha256:{self.sha256(file, status)}"
        except OSError as error:
            return (
                "missing" if isinstance(error, FileNotFoundError) else f"unreadable {error.errno}"
            )

    def sha256(self, file: Path, status: os.stat_result) -> str:
        """Return the hash of a file's bytes in hex, remembered where `status` has not changed."""
        place, facts = str(file.absolute()), [status.st_size, status.st_mtime_ns]
        known = self._used.get(place) or self._known.get(place)
        if known and known[:2] == facts:
            self._used[place] = known
            return str(known[2])
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
            self._used[place] = [*facts, found]
        return found

    def save(self) -> None:
        """Remember the marks that were asked for."""
        if self._used != self._known:
            save_bytes(json.dumps(self._used, indent=0).encode(), self._memory)
            self._known = dict(self._used)


def key_of(entry: Entry, marks: Marks) -> str:
    """Return the fingerprint of everything that the result of a model depends on, in hex.

    Where the files lie does not count, only their names and contents.
    """
    try:
        files = list(entry.model_files)
    except QuantJitError:
        files = [entry.path]
    files += sorted(entry.path.parent.glob(f"{_escaped(entry.path.name)}?*"))  # external data
    facts = {
        "version": [VERSION, __version__],
        "asked": _asked(entry),
        "model": [[file.name, marks.of(file)] for file in files],
        "inputs": _inputs(entry.input_path, entry.inputs.limit, marks),
        "labels": None if entry.labels is None else marks.of(entry.labels),
        "verify": None if entry.verify_path is None else _inputs(entry.verify_path, None, marks),
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _asked(entry: Entry) -> dict[str, Any]:
    facts = asdict(replace(entry, inputs=replace(entry.inputs, preprocess=Preprocess())))
    facts["inputs"]["preprocess"] = asdict(entry.inputs.preprocess)
    if not entry.is_auto:  # else the search looks at them
        del facts["gates"]
    return {key: value for key, value in facts.items() if key not in _PATHS}


def _inputs(place: Path, limit: int | None, marks: Marks) -> list[list[str]]:
    try:
        files = Dataset.open(place, {}, limit=limit).files
    except DataError as error:
        return [["", error.reason]]
    return [[file.name, marks.of(file)] for file in files]


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
