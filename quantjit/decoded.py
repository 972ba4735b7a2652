"""Images that several networks need alike are decoded once: a file of pixels, found by content.

The pixels are those after the resize and before the normalization, so that networks share them
whose inputs have one size and one way of resizing, whatever their bias, scale and channel order.
They are found by the SHA-256 of the encoded image: an image that is not in the file, or that has
changed since, is decoded as ever.  So what a network sees is the same bits with and without.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantjit.dataset import IMAGE_SUFFIXES
from quantjit.errors import DataError
from quantjit.images import Preprocess, Shape
from quantjit.table import save_bytes

_INDEX = "index.json"
_PIXELS = "pixels"
_AT_ONCE = 64  # images in memory


@dataclass(frozen=True, slots=True)
class Pixels:
    """Resized images in a file.

    path: of the pixels, uint8 (images, H, W, C).  shape: (H, W, C).  rows: by SHA-256 in hex.
    """

    path: Path
    shape: Shape
    rows: Mapping[str, int]

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether `write` came to its end there."""
        return (folder / _INDEX).is_file()

    @classmethod
    def load(cls, folder: Path) -> "Pixels":
        """Open what `write` made."""
        facts = json.loads((folder / _INDEX).read_text(encoding="ascii"))
        return cls(folder / _PIXELS, tuple(facts["shape"]), facts["rows"])

    def find(self, data: bytes, shape: Shape) -> NDArray[np.uint8] | None:
        """Return the pixels of an encoded image for an input (1, C, H, W), None if not here."""
        if self.shape != (*shape[2:], shape[1]):
            return None
        row = self.rows.get(hashlib.sha256(data).hexdigest())
        if row is None:
            return None
        size = int(np.prod(self.shape))
        with self.path.open("rb") as stream:  # not mapped: that would count as memory of ours
            stream.seek(row * size)
            found = stream.read(size)
        return np.frombuffer(found, np.uint8).reshape(self.shape) if len(found) == size else None


class Reusing(Preprocess):
    """A preprocessing that takes images from a file of pixels where they are in it."""

    __slots__ = ("_pixels",)

    _pixels: Pixels

    def __init__(self, how: Preprocess, pixels: Pixels) -> None:
        super().__init__(*(getattr(how, item.name) for item in fields(Preprocess)))
        object.__setattr__(self, "_pixels", pixels)

    def sized(self, file: Path, data: bytes, shape: Shape) -> NDArray[np.uint8]:
        """Return an encoded image as uint8 (H, W, C) of the network's size; see `Preprocess`."""
        found = self._pixels.find(data, shape)
        return super().sized(file, data, shape) if found is None else found


def write(
    folder: Path,
    files: Sequence[Path],
    shape: Shape,
    how: Preprocess,
    *,
    most_bytes: int,
    jobs: int = 1,
    on_progress: Callable[[], None] = lambda: None,
) -> Pixels:
    """Decode and resize the images among `files` into a folder; return where they are.

    shape: (1, C, H, W).  Those that cannot be decoded are left out: who needs them says so.  At
    most so many bytes are written; what does not fit is left out too.  on_progress: called after
    each image.
    """
    size = int(np.prod(shape[1:]))
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    images = images[: most_bytes // size]
    rows: dict[str, int] = {}

    def load(file: Path) -> tuple[str, NDArray[np.uint8]] | None:
        try:
            if not file.is_file():  # a pipe would wait for its writer
                return None
            data = file.read_bytes()
            return hashlib.sha256(data).hexdigest(), how.sized(file, data, shape)
        except (OSError, DataError):
            return None

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _PIXELS).open("wb") as stream, ThreadPoolExecutor(jobs) as pool:
        for start in range(0, len(images), _AT_ONCE):
            for found in pool.map(load, images[start : start + _AT_ONCE]):
                if found is not None and found[0] not in rows:
                    rows[found[0]] = len(rows)
                    stream.write(found[1].tobytes())
                on_progress()
    facts = {"shape": [*shape[2:], shape[1]], "rows": rows}
    save_bytes(json.dumps(facts).encode("ascii"), folder / _INDEX)
    return Pixels.load(folder)
