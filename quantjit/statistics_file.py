"""The statistics file: everything that one pass over the data saw, to solve from again and again.

One Parquet table with a row a blob and channel, readable by any tool: minimum, maximum, mean,
mean magnitude, standard deviation, share of zeros, histogram.  The columns under ``exact_`` are the
integers from which `BlobStats` is restored bit for bit.  The metadata say of which network,
preprocessing and inputs they are.

The same statistics are the same bytes of file, in whatever order, batches or shards they were
gathered: rows are in the order of the network, inputs are sorted, nothing says when or where.
"""

import dataclasses
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from quantjit.errors import DataError
from quantjit.graph import Graph
from quantjit.stats import BlobStats
from quantjit.table import save_bytes

VERSION = 1
"""Of the format; files of another version are refused."""

_HEAD, _INPUTS, _CHECKSUM = "quantjit.statistics", "quantjit.inputs", "quantjit.sha256"
_UNSEALED = "0" * 64
_SEAL = re.compile(rb"quantjit\.sha256.{1,4}?([0-9a-f]{64})", re.DOTALL)
_UINT32_END = 2**32
_ROWS_A_GROUP = 4096
_DERIVED = ("minimum", "maximum", "mean", "mean_abs", "std", "zero_share", "count")
_NUMBERS_OF_STATE = ("counts", "exponents", "extremes", "tallies", "sums")


@dataclass(frozen=True, slots=True, order=True)
class InputRecord:
    """One input file: its name, its mark (see `quantjit.dataset.Identity`), how many inputs."""

    name: str
    mark: str
    samples: int


@dataclass(frozen=True, slots=True)
class Origin:
    """What statistics were gathered with: they can be used and merged only where it is the same.

    model: fingerprint of the float network.  preprocess: name -> value, as JSON knows them.
    marks: "bytes" or "stat", how input files are told apart.
    """

    model: str
    preprocess: Mapping[str, Any]
    marks: str

    def difference(self, other: "Origin") -> str:
        """Return the first thing that differs, in words; "" when nothing does."""
        if self.model != other.model:
            return f"another network ({other.model[:12]}, not {self.model[:12]})"
        for name in sorted({*self.preprocess, *other.preprocess}):
            mine, theirs = self.preprocess.get(name), other.preprocess.get(name)
            if mine != theirs:
                return f"another preprocessing ({name} {_words(theirs)}, not {_words(mine)})"
        if self.marks != other.marks:
            return f"inputs marked by {other.marks}, not by {self.marks}"
        return ""


def _words(value: object) -> str:
    return ",".join(f"{each:g}" for each in value) if isinstance(value, list) else str(value)


@dataclass(frozen=True, slots=True)
class StatisticsFile:
    """The statistics of blobs, with what they were gathered from.

    stats: in the order of the network.  inputs: sorted.
    """

    stats: Mapping[str, BlobStats]
    inputs: tuple[InputRecord, ...]
    origin: Origin

    @property
    def images(self) -> int:
        """How many inputs went in."""
        return sum(item.samples for item in self.inputs)

    @property
    def bins(self) -> int:
        """Bins of each histogram."""
        return min(seen.bins for seen in self.stats.values())

    @property
    def inputs_fingerprint(self) -> str:
        """SHA-256 of the names and marks of the inputs, in hex."""
        return hashlib.sha256(_json(_listed(self.inputs)).encode()).hexdigest()

    def frame(self) -> pl.DataFrame:
        """One row a blob and channel (null when per tensor)."""
        rows = [seen.channels for seen in self.stats.values()]
        counts = np.concatenate([seen.counts for seen in self.stats.values()])
        if counts.dtype == np.int64 and int(counts.max()) < _UINT32_END:
            counts = counts.astype(np.uint32)
        columns: dict[str, Any] = {
            "blob": [blob for blob, seen in self.stats.items() for _ in range(seen.channels)],
            "channel": pl.Series(
                [row if count > 1 else None for count in rows for row in range(count)],
                dtype=pl.Int32,
            ),
        }
        for name in _DERIVED:
            columns[name] = np.concatenate([getattr(seen, name) for seen in self.stats.values()])
        columns["bin_width"] = np.concatenate([seen.bin_width for seen in self.stats.values()])
        columns["histogram"] = counts
        exact = [seen.state(counts=False) for seen in self.stats.values()]
        for name in _NUMBERS_OF_STATE[1:]:
            column = np.concatenate([state[name].reshape(len(state[name]), -1) for state in exact])
            columns[f"exact_{name}"] = column[:, 0].copy() if column.shape[1] == 1 else column
        return pl.DataFrame(columns)

    def save(self, path: Path) -> None:
        """Write the file, first under a temporary name; OSError names the path."""
        save_bytes(self.encode(), path)

    def encode(self) -> bytes:
        """Return the bytes of the file: the same for the same statistics."""
        head = {
            "version": VERSION,
            "images": self.images,
            "bins": self.bins,
            "model": self.origin.model,
            "preprocess": dict(self.origin.preprocess),
            "marks": self.origin.marks,
            "inputs_fingerprint": self.inputs_fingerprint,
        }
        stream = io.BytesIO()
        self.frame().rechunk().write_parquet(
            stream,
            compression="zstd",
            compression_level=1,
            statistics=False,
            row_group_size=_ROWS_A_GROUP,
            metadata={
                _HEAD: _json(head),
                _INPUTS: _json(_listed(self.inputs)),
                _CHECKSUM: _UNSEALED,
            },
        )
        return seal(stream.getvalue())

    @classmethod
    def load(cls, path: Path) -> "StatisticsFile":
        """Read a file; DataError says what is wrong with it.

        Nothing of it is decoded before its checksum is known to be right.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(path, f"cannot be read: {error.strerror}") from None
        found = _seals(data)
        if not found:
            raise DataError(path, "is no statistics file, or not a whole one")
        if seal(data) != data:
            raise DataError(path, "is a damaged statistics file: its checksum is another")
        metadata = pl.read_parquet_metadata(io.BytesIO(data))
        head = json.loads(metadata[_HEAD])
        if head["version"] != VERSION:
            raise DataError(
                path, f"is of format version {head['version']}, this quantjit reads {VERSION}"
            )
        inputs = tuple(InputRecord(*item) for item in json.loads(metadata[_INPUTS]))
        origin = Origin(head["model"], head["preprocess"], head["marks"])
        stats = dict(_blobs(pl.read_parquet(io.BytesIO(data)), head["images"]))
        return cls(stats, inputs, origin)

    def merged(self, other: "StatisticsFile", name: str = "the other file") -> "StatisticsFile":
        """Return the statistics of both, as if gathered in one pass.

        Where one has fewer bins, the result has as few.  DataError names `name` where the two are
        of different origin or have an input in common.
        """
        self.check_origin(other.origin, name)
        shapes = {blob: seen.channels for blob, seen in self.stats.items()}
        theirs = {blob: seen.channels for blob, seen in other.stats.items()}
        if shapes != theirs:
            blob = min(blob for blob in {*shapes, *theirs} if shapes.get(blob) != theirs.get(blob))
            raise DataError(
                name,
                f"was gathered with another --merge-type: blob {blob!r} has "
                f"{theirs.get(blob, 0)} rows of statistics, not {shapes.get(blob, 0)}",
            )
        both = Counter((item.name, item.mark) for item in self.inputs)
        both &= Counter((item.name, item.mark) for item in other.inputs)
        if both:
            raise DataError(
                name,
                f"has {both.total()} inputs that are in already, {min(both)[0]} among them: they "
                "would count twice",
            )
        bins = min(self.bins, other.bins)
        total: dict[str, BlobStats] = {}
        for blob, seen in self.stats.items():
            total[blob] = seen.coarsened(bins)
            total[blob].merge(other.stats[blob].coarsened(bins))
        return StatisticsFile(total, tuple(sorted((*self.inputs, *other.inputs))), self.origin)

    def check_origin(self, origin: Origin, name: str | Path) -> None:
        """Raise DataError naming a file whose origin is not that of this one."""
        difference = self.origin.difference(origin)
        if difference:
            raise DataError(name, f"was gathered with {difference}")


def seal(data: bytes) -> bytes:
    """Return the bytes of a file with the checksum in its metadata made that of the rest."""
    place = _seals(data)[-1]
    digest = hashlib.sha256(data[: place.start(1)])
    digest.update(_UNSEALED.encode())
    digest.update(memoryview(data)[place.end(1) :])
    return data[: place.start(1)] + digest.hexdigest().encode() + data[place.end(1) :]


def _seals(data: bytes) -> list[re.Match[bytes]]:
    """Return where a checksum may be: the last is one, what comes before are names of inputs."""
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return list(_SEAL.finditer(data, max(footer, 0)))


def merge(paths: Sequence[Path]) -> StatisticsFile:
    """Return the statistics of several files, one in memory at a time besides the sum."""
    total = StatisticsFile.load(paths[0])
    for path in paths[1:]:
        total = total.merged(StatisticsFile.load(path), str(path))
    return total


def fingerprint(graph: Graph) -> str:
    """Return a SHA-256 of what a network computes: nodes, attributes and weights, not file bytes.

    Attributes at their defaults do not count, so that a new one changes no old fingerprint.
    """
    digest = hashlib.sha256()
    digest.update(_json([[blob.name, list(blob.shape)] for blob in graph.inputs]).encode())
    digest.update(_json(list(graph.outputs)).encode())
    for node in graph.nodes:
        attrs = {
            item.name: getattr(node.attrs, item.name)
            for item in dataclasses.fields(node.attrs)
            if getattr(node.attrs, item.name) != item.default
        }
        facts = [node.name, node.op, list(node.inputs), list(node.outputs), attrs]
        digest.update(_json(facts).encode())
        _add_arrays(digest, node.weights)
    _add_arrays(digest, graph.constants)
    return digest.hexdigest()


def _add_arrays(digest: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in sorted(arrays.items()):
        digest.update(_json([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(np.ascontiguousarray(array).data)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def _listed(inputs: Iterable[InputRecord]) -> list[list[str | int]]:
    return [[item.name, item.mark, item.samples] for item in inputs]


def _blobs(frame: pl.DataFrame, images: int) -> Iterator[tuple[str, BlobStats]]:
    """Yield blobs and their statistics, in the order of the rows."""
    for (blob,), rows in frame.group_by(["blob"], maintain_order=True):
        state: dict[str, NDArray[Any]] = {
            name: rows[f"exact_{name}"].to_numpy() for name in _NUMBERS_OF_STATE[1:]
        }
        state["counts"] = rows["histogram"].to_numpy()
        state["sums"] = state["sums"].reshape(len(rows), 3, -1)
        state["images"] = np.array([images], np.int64)
        yield str(blob), BlobStats.from_state(state)
