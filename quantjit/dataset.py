"""Sample inputs: a folder of images, texts or arrays becomes float32 tensors.

Images are treated as by TNN's tool (``tools/quantization``, stb_image): decoded as RGB, alpha
dropped, 16 bits cut to their high byte, EXIF orientation ignored, stretched to the network's size,
then ``(pixel - bias) * scale`` in the order of the network's channels.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray

from quantjit.errors import DataError, UsageError
from quantjit.kernels import image as kernels

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
ARRAY_SUFFIXES = (".txt", ".npy", ".npz")

_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_MAX_PIXELS = 100_000_000

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes a tensor; arrays and texts are taken as they are.

    bias, scale: one value or one a channel, in the network's channel order.
    channel_order: "rgb" or "bgr", what the network expects.
    resize: "stretch" to the network's size, or "crop": the shorter side becomes `resize_shorter`
    pixels (None: just enough to cover the network's size) and the centre is cut out.
    """

    bias: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    channel_order: str = "rgb"
    resize: str = "stretch"
    resize_shorter: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One input of a network: where it comes from, and float32 arrays by input name."""

    file: str
    arrays: Mapping[str, NDArray[np.float32]]


class Samples(Protocol):
    """A numbered source of inputs, safe to load from several threads."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Sequence[Sample]:
        """Return the samples of one file; DataError if it cannot be used."""
        ...

    def skip(self, error: DataError) -> None:
        """Count a file that could not be used; DataError once there are too many."""
        ...

    def check(self) -> None:
        """Raise DataError if nothing could be used."""
        ...


class ArraySamples:
    """Samples that are in memory already: one dict of float32 arrays by input name each."""

    def __init__(self, arrays: Sequence[Mapping[str, NDArray[np.float32]]]) -> None:
        self._samples = [Sample(f"input {i}", each) for i, each in enumerate(arrays)]

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> Sequence[Sample]:
        """Return the sample."""
        return (self._samples[index],)

    def skip(self, error: DataError) -> None:
        """Nothing in memory is unreadable."""
        raise error

    def check(self) -> None:
        """Raise DataError if there are no samples."""
        if not self._samples:
            raise DataError("inputs", "there are none")


def parse_numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of "104, 117, 123", "1/128" or "1e-3"; ValueError says what is wrong."""
    numbers = []
    for part in text.split(","):
        above, slash, below = part.partition("/")
        try:
            value = float(above) / float(below) if slash else float(above)
        except (ValueError, ZeroDivisionError):
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{part.strip()!r} is no number: give e.g. 104,117,123 or 1/128")
        numbers.append(value)
    return tuple(numbers)


class Dataset:
    """The sample inputs of a network, sorted by name.

    Unreadable files are counted and skipped up to a share of all; `skipped` lists them.
    """

    def __init__(
        self,
        place: Path,
        files: Sequence[Path],
        inputs: Mapping[str, Shape],
        preprocess: Preprocess,
        max_bad: float,
    ) -> None:
        self.files = tuple(files)
        self._place = place
        self._inputs = dict(inputs)
        self._preprocess = preprocess
        self._max_bad = max_bad
        self._skipped: dict[str, DataError] = {}

    @classmethod
    def open(
        cls,
        path: Path,
        inputs: Mapping[str, Shape],
        preprocess: Preprocess | None = None,
        *,
        limit: int | None = None,
        max_bad: float = 0.05,
    ) -> "Dataset":
        """Find the files of a folder, or take one file.

        inputs: shapes by name, (1, C, H, W) for images.  limit: the first files only.  Raises
        DataError for a place without usable files, UsageError for numbers that do not fit.
        """
        preprocess = preprocess or Preprocess()
        known = (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES)
        try:
            if path.is_dir():
                files = [file for file in path.iterdir() if _is_input(file, known)]
            elif path.is_file():
                files = [path] if path.suffix.lower() in known else []
            else:
                raise DataError(path, "no such file or folder")
        except OSError as error:
            raise DataError(path, f"cannot be read: {error.strerror}") from None
        if not files:
            raise DataError(path, f"holds no input: expected files {' '.join(known)}")
        files.sort(key=lambda file: os.fsencode(file.name))
        files = files[:limit]
        has_images = any(file.suffix.lower() in IMAGE_SUFFIXES for file in files)
        if has_images and len(inputs) == 1:
            _check_numbers(preprocess, next(iter(inputs.values())))
        return cls(path, files, inputs, preprocess, max_bad)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def skipped(self) -> tuple[DataError, ...]:
        """The files that could not be used, by name."""
        return tuple(self._skipped[file] for file in sorted(self._skipped))

    def spread(self, count: int) -> "Dataset":
        """Return `count` of the usable files, spread evenly over all."""
        usable = [file for file in self.files if str(file) not in self._skipped]
        count = min(count, len(usable))
        chosen = [usable[index * len(usable) // count] for index in range(count)]
        return Dataset(self._place, chosen, self._inputs, self._preprocess, self._max_bad)

    def skip(self, error: DataError) -> None:
        """Count a file that could not be used.

        Raises DataError when there are more of them than the share that is allowed.
        """
        self._skipped[error.path] = error
        total, bad = len(self.files), len(self._skipped)
        if bad > self._max_bad * total:
            raise DataError(
                self._place,
                f"{bad} of {total} files cannot be used, more than --max-bad {self._max_bad:.0%}; "
                f"the last: {error}",
            )

    def check(self) -> None:
        """Raise DataError if no file could be used."""
        if len(self._skipped) == len(self.files):
            raise DataError(self._place, f"no file can be used; the first: {self.skipped[0]}")

    def load(self, index: int) -> tuple[Sample, ...]:
        """Return the samples of one file, each with batch 1; DataError if it cannot be used."""
        file = self.files[index]
        suffix = file.suffix.lower()
        if suffix == ".npz":
            return self._load_npz(file)
        if len(self._inputs) != 1:
            names = ", ".join(self._inputs)
            raise DataError(file, f"the network has several inputs: give .npz files with {names}")
        name, shape = next(iter(self._inputs.items()))
        if suffix in IMAGE_SUFFIXES:
            batch = load_image(file, shape, self._preprocess)
        elif suffix == ".txt":
            batch = _load_txt(file, shape)
        else:
            batch = _fitted(file, "", _load_numpy(file), shape)
        return _split(file, {name: batch})

    def _load_npz(self, file: Path) -> tuple[Sample, ...]:
        stored = _load_numpy(file)
        if not isinstance(stored, dict):
            raise DataError(file, "is no .npz archive")
        if len(self._inputs) == len(stored) == 1:  # any name will do
            stored = dict(zip(self._inputs, stored.values(), strict=True))
        missing = [name for name in self._inputs if name not in stored]
        if missing:
            raise DataError(
                file, f"lacks the network input {missing[0]!r}; it holds {', '.join(stored)}"
            )
        batches = {
            name: _fitted(file, f"array {name!r}: ", stored[name], shape)
            for name, shape in self._inputs.items()
        }
        return _split(file, batches)


def _is_input(file: Path, known: Sequence[str]) -> bool:
    return not file.name.startswith(".") and file.suffix.lower() in known and file.is_file()


def _check_numbers(preprocess: Preprocess, shape: Shape) -> None:
    """Every channel needs its bias and scale; TNN's tool is often given four for three."""
    channels = shape[1] if len(shape) == 4 else 0
    for flag, values in (("-n/--bias", preprocess.bias), ("-s/--scale", preprocess.scale)):
        if channels and len(values) not in {1, channels} and not len(values) == 4 > channels:
            raise UsageError(f"{flag} has {len(values)} values for {channels} channels")


def _split(file: Path, batches: Mapping[str, NDArray[np.float32]]) -> tuple[Sample, ...]:
    counts = {len(batch) for batch in batches.values()}
    if len(counts) != 1:
        raise DataError(file, f"its arrays have different batch sizes: {sorted(counts)}")
    count = counts.pop()
    return tuple(
        Sample(
            str(file) if count == 1 else f"{file}[{index}]",
            {name: batch[index : index + 1] for name, batch in batches.items()},
        )
        for index in range(count)
    )


# ------------------------------------------------------------------ arrays


def _load_numpy(file: Path) -> Any:
    """Return an array, or a dict of arrays for an archive."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (TypeError, AttributeError):  # a plain array is no context manager
        return np.load(file, allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - zip, pickle and header faults are of many classes
        raise DataError(file, f"cannot be read as NumPy data: {_first_line(error)}") from None


def _fitted(file: Path, label: str, array: Any, shape: Shape) -> NDArray[np.float32]:
    """Return an array of (C, H, W) or (N, C, H, W) as float32 (N, C, H, W)."""
    if isinstance(array, dict):
        raise DataError(file, "is an .npz archive: give it that suffix")
    if array.dtype.kind not in "fiub":
        raise DataError(file, f"{label}holds {array.dtype}, expected numbers")
    if array.shape == shape[1:]:
        array = array[None]
    if array.ndim != len(shape) or array.shape[1:] != shape[1:] or not len(array):
        wanted = "x".join(map(str, shape[1:]))
        found = "x".join(map(str, array.shape))
        hint = ""
        if len(shape) == 4 and array.shape[-3:] == (*shape[2:], shape[1]):
            hint = "; channels come first: transpose it to NCHW"
        raise DataError(file, f"{label}expected shape {wanted} or Nx{wanted}, found {found}{hint}")
    return np.ascontiguousarray(array, np.float32)


def _load_txt(file: Path, shape: Shape) -> NDArray[np.float32]:
    """One number a line, N * C * H * W of them."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(file, f"cannot be read: {error.strerror}") from None
    words = data.split()
    try:
        values = np.array(words, np.bytes_).astype(np.float32)
    except (ValueError, UnicodeDecodeError):
        values = None
    if values is None or not np.isfinite(values).all():
        raise DataError(file, _bad_line(data))
    size = math.prod(shape[1:])
    if not len(values) or len(values) % size:
        dims = " * ".join(map(str, shape))
        raise DataError(file, f"expected {math.prod(shape)} numbers ({dims}), found {len(values)}")
    return values.reshape(-1, *shape[1:])


def _bad_line(data: bytes) -> str:
    for number, line in enumerate(data.splitlines(), 1):
        for word in line.split():
            try:
                bad = not math.isfinite(np.float32(word.decode("ascii")))
            except (ValueError, UnicodeDecodeError):
                bad = True
            if bad:
                found = word[:20].decode("ascii", "replace")
                return f"line {number}: expected a number, found {found!r}"
    raise AssertionError("called for a text without a bad line")


# ------------------------------------------------------------------ images


def load_image(file: Path | bytes, shape: Shape, preprocess: Preprocess) -> NDArray[np.float32]:
    """Return an image as float32 (1, C, H, W); `file` is a path or the encoded bytes.

    Raises DataError naming the file when it cannot be decoded or the network takes no images.
    """
    label = file if isinstance(file, Path) else Path("image in memory")
    if len(shape) != 4 or shape[1] not in {1, 3, 4}:
        raise DataError(
            label, f"an image does not fit the network input {shape}; give .npy or .txt"
        )
    pixels = decode(file, shape[1])
    return to_tensor(pixels, shape, preprocess)


def decode(file: Path | bytes, channels: int) -> NDArray[np.uint8]:
    """Decode an image as uint8 (h, w, channels): RGB, RGB and alpha, or stb_image's luminance."""
    label = file if isinstance(file, Path) else Path("image in memory")
    try:
        reader: Any  # the pillow plugin, whose `read` also takes a mode
        with iio.imopen(file, "r", plugin="pillow") as reader:
            mode = str(reader.metadata(index=0, exclude_applied=False)["mode"])
            height, width = reader.properties(index=0).shape[:2]
            if height * width > _MAX_PIXELS:
                raise DataError(label, f"is too large: {width} x {height} pixels")
            if mode in _SIXTEEN_BIT:
                grey = np.asarray(reader.read(index=0)).astype(np.int64) >> 8
                pixels = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
            elif mode == "F":
                raise DataError(label, "holds floating point pixels: give it as .npy")
            else:
                wanted = "RGBA" if channels == 4 else "RGB"
                pixels = np.asarray(reader.read(index=0, mode=wanted), np.uint8)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on a corrupt file
        raise DataError(label, f"cannot be decoded: {_first_line(error)}") from None
    if channels == 1:
        weighted = pixels.astype(np.int32) @ np.array([77, 150, 29], np.int32)
        pixels = (weighted >> 8).astype(np.uint8)[..., None]
    elif channels == 4 and pixels.shape[2] == 3:
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    return np.ascontiguousarray(pixels)


def to_tensor(
    pixels: NDArray[np.uint8], shape: Shape, preprocess: Preprocess
) -> NDArray[np.float32]:
    """Resize and normalize uint8 (h, w, C) pixels to float32 (1, C, H, W)."""
    channels, height, width = shape[1:]
    if preprocess.resize == "crop":
        pixels = _crop(pixels, height, width, preprocess.resize_shorter)
    else:
        pixels = resize(pixels, height, width)
    out = np.empty((1, channels, height, width), np.float32)
    kernels.normalize_into(
        pixels,
        preprocess.channel_order == "bgr",
        _per_channel(preprocess.bias, channels),
        _per_channel(preprocess.scale, channels),
        out[0],
    )
    return out


def _per_channel(values: tuple[float, ...], channels: int) -> NDArray[np.float32]:
    given = np.array(values, np.float32)
    return np.full(channels, given[0], np.float32) if given.size == 1 else given[:channels]


def _crop(
    pixels: NDArray[np.uint8], height: int, width: int, shorter: int | None
) -> NDArray[np.uint8]:
    """Resize so that the shorter side is `shorter`, then cut height x width out of the centre."""
    h, w = pixels.shape[:2]
    factor = max(height / h, width / w)
    if shorter is not None:
        factor = max(factor, shorter / min(h, w))  # never smaller than what is cut out
    h, w = max(height, round(h * factor)), max(width, round(w * factor))
    pixels = resize(pixels, h, w)
    top, left = (h - height) // 2, (w - width) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def resize(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize uint8 (h, w, channels) as stb_image_resize does by default.

    Each axis by itself: Mitchell's filter, widened, when it shrinks, Catmull-Rom when it grows;
    edges are clamped, values are taken as linear light.
    """
    h, w, channels = pixels.shape
    if (h, w) == (height, width):
        return pixels
    between = np.empty((h, width, channels), np.float32)
    kernels.resample_rows_into(np.ascontiguousarray(pixels), *_filter(w, width), between)
    out = np.empty((height, width, channels), np.uint8)
    kernels.resample_columns_into(between, *_filter(h, height), out)
    return out


@lru_cache(maxsize=64)
def _filter(size: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Table of taps for one axis: first source index and weights of each target pixel."""
    ratio = target / size
    if ratio == 1:
        return np.arange(size), np.ones((size, 1), np.float32)
    shrinks = ratio < 1
    reach = 2 / ratio if shrinks else 2.0
    centres = (np.arange(target) + 0.5) / ratio
    first = np.floor(centres - reach + 0.5).astype(np.int64)
    count = math.ceil(2 * reach) + 1
    sources = first[:, None] + np.arange(count) + 0.5
    distance = np.abs(sources - centres[:, None]) * (ratio if shrinks else 1.0)
    weights = _cubic(distance, *((1 / 3, 1 / 3) if shrinks else (0.0, 0.5)))
    weights /= weights.sum(axis=1, keepdims=True)
    return first, weights.astype(np.float32)


def _cubic(x: NDArray[np.float64], b: float, c: float) -> NDArray[np.float64]:
    """Cubic of Mitchell and Netravali (1988), equation 8; zero from a distance of 2 on."""
    near = ((12 - 9 * b - 6 * c) * x**3 + (-18 + 12 * b + 6 * c) * x**2 + (6 - 2 * b)) / 6
    far = (
        (-b - 6 * c) * x**3 + (6 * b + 30 * c) * x**2 + (-12 * b - 48 * c) * x + (8 * b + 24 * c)
    ) / 6
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
