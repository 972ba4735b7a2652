"""CalibrationTable: all the answers of a solve, and what was left float and why."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from quantjit import markup
from quantjit.quant import QuantParams


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """What was decided for a network.

    scales: blob name -> QuantParams, for the blobs that int8 nodes read or write.
    float_nodes: node name -> why it stays float.
    dead: blob name -> number of channels that never were anything but 0.
    method: the settings it was solved with, in words.
    """

    scales: Mapping[str, QuantParams]
    float_nodes: Mapping[str, str] = field(default_factory=dict)
    dead: Mapping[str, int] = field(default_factory=dict)
    method: str = ""

    def frame(self) -> pl.DataFrame:
        """One row a scale: blob, channel (null when per tensor), scale, zero_point, range."""
        blobs: list[str] = []
        channels: list[int | None] = []
        scales: list[float] = []
        zero_points: list[int] = []
        for blob, params in self.scales.items():
            for channel, (scale, zero) in enumerate(
                zip(params.scale.tolist(), params.zero_point.tolist(), strict=True)
            ):
                blobs.append(blob)
                channels.append(channel if params.per_channel else None)
                scales.append(scale)
                zero_points.append(zero)
        return pl.DataFrame(
            {"blob": blobs, "channel": channels, "scale": scales, "zero_point": zero_points},
            schema={
                "blob": pl.String,
                "channel": pl.Int64,
                "scale": pl.Float32,
                "zero_point": pl.Int8,
            },
        ).with_columns(
            minimum=pl.col("scale") * (-127 - pl.col("zero_point").cast(pl.Int32)),
            maximum=pl.col("scale") * (127 - pl.col("zero_point").cast(pl.Int32)),
        )

    def __repr__(self) -> str:
        method = f", {self.method}" if self.method else ""
        stays = f", {len(self.float_nodes)} nodes float" if self.float_nodes else ""
        return f"CalibrationTable({len(self.scales)} blobs{stays}{method})"

    def _repr_html_(self) -> str:
        return markup.table(
            repr(self),
            ("blob", "scales", "least step", "largest step", "zero point", "dead channels"),
            (
                (
                    blob,
                    int(params.scale.size),
                    float(params.scale.min()),
                    float(params.scale.max()),
                    "" if params.per_channel else int(params.zero_point[0]),
                    self.dead.get(blob, ""),
                )
                for blob, params in self.scales.items()
            ),
        ) + markup.table("float layers", ("layer", "why"), self.float_nodes.items())

    def save(self, path: Path) -> None:
        """Write `frame` as .csv or .parquet, first under a temporary name."""
        save_frame(self.frame(), path)


def save_frame(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame as .csv or .parquet by the path's suffix, first under a temporary name."""
    stream = io.BytesIO()
    if path.suffix.lower() == ".parquet":
        frame.write_parquet(stream)
    else:
        frame.write_csv(stream)
    save_bytes(stream.getvalue(), path)


def save_bytes(data: bytes, path: Path) -> None:
    """Write a file so that at any moment it is the old one or the new one, whole and on the disk.

    It is written under a temporary name beside it, flushed and renamed.  OSError names the path.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        if os.name == "posix":  # the rename itself
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
