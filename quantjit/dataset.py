"""Sample inputs: a folder of images, texts or arrays becomes float32 tensors.

Images are treated as by TNN's tool (``tools/quantization``, stb_image): decoded as RGB, alpha
dropped, 16 bits cut to their high byte, EXIF orientation ignored, stretched to the network's size,
then ``(pixel - bias) * scale`` in the order of the network's channels.  The one difference is the
JPEG decoder: up to 3 grey levels, 0.06 on average, seen on 100 photographs.

Whatever is wrong with a file is a `DataError` that names it; files that cannot be used are skipped
up to a share of all.  Nothing here changes the state of the process, warnings included, so that
several threads may load at once.
"""

import hashlib
import io
import math
import os
import stat
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray

from quantjit.errors import DataError, UsageError
from quantjit.kernels import image as kernels

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
ARRAY_SUFFIXES = (".txt", ".npy", ".npz")

_MAX_PIXELS = 89_478_485  # beyond it Pillow warns of a decompression bomb
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_BESIDES = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # all but JFIF (E0) and Adobe's colours (EE)

_LARGE_PIXELS = 2**24
_one_large_image = threading.Lock()
"""Images beyond `_LARGE_PIXELS` are decoded one at a time: each needs much memory."""

MARKS = ("bytes", "stat")
"""What marks a file as the one seen before: the hash of its bytes, or its size and time."""

Shape = tuple[int, ...]
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes a tensor; arrays and texts are taken as they are.

    bias, scale: one value or one a channel, in the network's channel order.
    channel_order: "rgb" or "bgr", what the network expects.
    resize: "stretch" to the network's size; "crop": the shorter side becomes `resize_shorter`
    pixels (None, or too few: just enough to cover the network's size) and the centre is cut out;
    "none": images of another size cannot be used.  Raises UsageError for anything else.
    """

    bias: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    channel_order: str = "rgb"
    resize: str = "stretch"
    resize_shorter: int | None = None

    def __post_init__(self) -> None:
        for name, values in (("bias", self.bias), ("scale", self.scale)):
            if not values or not all(abs(value) <= _FLOAT32_MAX for value in values):
                raise UsageError(f"{name} must be one or more numbers of float32, got {values}")
        if self.channel_order not in {"rgb", "bgr"}:
            raise UsageError(f"channel order must be rgb or bgr, got {self.channel_order!r}")
        if self.resize not in {"stretch", "crop", "none"}:
            raise UsageError(f"resize must be stretch, crop or none, got {self.resize!r}")
        if self.resize_shorter is not None and self.resize_shorter < 1:
            raise UsageError(f"the shorter side must be 1 pixel or more, got {self.resize_shorter}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One input of a network: where it comes from, and float32 arrays by input name."""

    file: str
    arrays: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """Which file it was: its name without the folder, and its mark.

    mark: ``sha256:`` and the hash of its bytes in hex, or ``stat:`` and its size in bytes and time
    of modification in ns.
    """

    name: str
    mark: str


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


def load_ahead(
    samples: Samples, load: Callable[[int], R], workers: int = 2, depth: int = 4
) -> Generator[tuple[int, R | None]]:
    """Yield index and ``load(index)`` of each file in order, while threads load those that follow.

    At most `depth` files (at least one) are in memory.  A file that cannot be used is skipped by
    the rule of `samples` and yields None.  When the caller stops early, the threads end with the
    file they are at.
    """
    under_way: deque[tuple[int, Future[R]]] = deque()
    indices = iter(range(len(samples)))
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                for index in islice(indices, max(1, depth) - len(under_way)):
                    under_way.append((index, pool.submit(load, index)))
                if not under_way:
                    break
                index, future = under_way.popleft()
                try:
                    loaded = future.result()
                except DataError as error:
                    samples.skip(error)
                    yield index, None
                else:
                    yield index, loaded
        finally:
            for _, future in under_way:
                future.cancel()
    samples.check()


def prefetch(samples: Samples, workers: int = 2, depth: int = 4) -> Iterator[Sample]:
    """Yield all samples in order by `load_ahead`."""
    files = load_ahead(samples, samples.load, workers, depth)
    try:
        for _, loaded in files:
            yield from loaded or ()
    finally:
        files.close()


class Dataset:
    """The sample inputs of a network, sorted by the bytes of their names.

    Files that cannot be used are counted and skipped up to a share of all, and `skipped` lists
    them: at 5 % one of 20 files may fail, of 19 none.
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
        path: str | Path | Sequence[str | Path],
        inputs: Mapping[str, Shape],
        preprocess: Preprocess | None = None,
        *,
        limit: int | None = None,
        max_bad: float = 0.05,
    ) -> "Dataset":
        """Find the files of a folder, or take one file or a list of files.

        A folder is not searched deeper; hidden files and other suffixes are passed over, links are
        followed.  inputs: shapes by name, (1, C, H, W) for images; a network with several inputs
        takes .npz files with an array for each.  limit: the first files only.  max_bad: the share
        of files that may fail.  Raises DataError for a place without usable files, UsageError for
        numbers that do not fit.
        """
        preprocess = preprocess or Preprocess()
        if limit is not None and limit < 1:
            raise UsageError(f"the limit must be 1 file or more, got {limit}")
        if not 0 <= max_bad <= 1:
            raise UsageError(f"the share of bad files must be from 0 to 1, got {max_bad}")
        if isinstance(path, str | Path):
            place = Path(path)
            files = _find(place)
        else:
            place, files = Path("list of files"), [Path(each) for each in path]
        known = (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES)
        files = [file for file in files if file.suffix.lower() in known]
        if not files:
            raise DataError(place, f"holds no input: expected files {' '.join(known)}")
        files.sort(key=lambda file: (os.fsencode(file.name), os.fsencode(file)))
        files = files[:limit]
        has_images = any(file.suffix.lower() in IMAGE_SUFFIXES for file in files)
        if has_images and len(inputs) == 1:
            _check_numbers(preprocess, next(iter(inputs.values())))
        return cls(place, files, inputs, preprocess, max_bad)

    def __iter__(self) -> Iterator[Sample]:
        """Yield all samples in order; see `prefetch`."""
        return prefetch(self)

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

    def shard(self, number: int, count: int) -> "Dataset":
        """Return every `count`-th file, from the `number`-th on: 1 is the first shard.

        Raises DataError where there are fewer files than shards.
        """
        files = self.files[number - 1 :: count]
        if not files:
            raise DataError(
                self._place, f"shard {number}/{count} is empty: there are {len(self.files)} files"
            )
        return Dataset(self._place, files, self._inputs, self._preprocess, self._max_bad)

    def skip(self, error: DataError) -> None:
        """Count a file that could not be used.

        Raises DataError when there are more of them than the share that is allowed.
        """
        self._skipped[error.path] = error
        total, bad = len(self.files), len(self._skipped)
        if total == 1:
            raise error
        if bad / total > self._max_bad:
            raise DataError(
                self._place,
                f"{bad} of {total} files cannot be used, more than --max-bad {self._max_bad:.3g}; "
                f"the last: {error}",
            )

    def check(self) -> None:
        """Raise DataError if no file could be used."""
        if len(self._skipped) == len(self.files):
            raise DataError(self._place, f"no file can be used; the first: {self.skipped[0]}")

    def load(self, index: int) -> tuple[Sample, ...]:
        """Return the samples of one file, each with batch 1; DataError if it cannot be used."""
        file = self.files[index]
        return self._decoded(file, _read(file)[0])

    def load_unknown(
        self, index: int, mark: str, is_known: Callable[[Identity], bool]
    ) -> tuple[Identity, tuple[Sample, ...] | None]:
        """Return which file it is and its samples, or None for the samples of a known one.

        mark: one of MARKS.  The bytes that are hashed are those that are decoded; with "stat" a
        known file is not even opened.  Raises DataError if it cannot be used.
        """
        file = self.files[index]
        if mark == "stat":
            identity = _identity(file, _status(file))
            if is_known(identity):
                return identity, None
            data, status = _read(file)
            identity = _identity(file, status)
        else:
            data, _ = _read(file)
            identity = Identity(file.name, f"sha256:{hashlib.sha256(data).hexdigest()}")
        if is_known(identity):
            return identity, None
        return identity, self._decoded(file, data)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the names and contents of the files that can be read, in hex."""
        digest = hashlib.sha256()
        for file in self.files:
            try:
                content = hashlib.sha256(_read(file)[0]).digest()
            except DataError:
                continue
            digest.update(hashlib.sha256(os.fsencode(file.name)).digest() + content)
        return digest.hexdigest()

    def _decoded(self, file: Path, data: bytes) -> tuple[Sample, ...]:
        suffix = file.suffix.lower()
        if suffix == ".npz":
            return self._decoded_npz(file, data)
        if len(self._inputs) != 1:
            names = ", ".join(self._inputs)
            raise DataError(file, f"the network has several inputs: give .npz files with {names}")
        name, shape = next(iter(self._inputs.items()))
        if suffix in IMAGE_SUFFIXES:
            batch = _image(file, data, shape, self._preprocess)
        elif suffix == ".txt":
            batch = _load_txt(file, data, shape)
        else:
            batch = _load_npy(file, data, shape)
        return _split(file, {name: batch})

    def _decoded_npz(self, file: Path, data: bytes) -> tuple[Sample, ...]:
        with _load_numpy(file, data, np.lib.npyio.NpzFile) as stored:
            names = {name: name for name in self._inputs}
            if len(self._inputs) == len(stored.files) == 1:  # any name will do
                names = dict(zip(self._inputs, stored.files, strict=True))
            batches = {}
            for name, shape in self._inputs.items():
                if names[name] not in stored.files:
                    held = ", ".join(stored.files) or "nothing"
                    raise DataError(file, f"lacks the network input {name!r}; it holds {held}")
                label = f"array {names[name]!r}: "
                try:
                    array = stored[names[name]]
                except Exception as error:  # noqa: BLE001 - zip and header faults of many classes
                    raise DataError(file, f"{label}cannot be read: {_first_line(error)}") from None
                batches[name] = _fitted(file, label, array, shape)
        return _split(file, batches)


def _find(place: Path) -> list[Path]:
    """Return the files of a folder, or the one file."""
    try:
        if not place.is_dir():
            if not place.exists():
                raise DataError(place, "no such file or folder")
            return [place]
        return [file for file in place.iterdir() if _is_file(file)]
    except OSError as error:
        raise DataError(place, f"cannot be read: {error.strerror}") from None


def _is_file(file: Path) -> bool:
    """Whether it is not hidden and looks like an input.

    What has the name of one but is a folder, a pipe or a broken link is one too: it cannot be used
    and is to be named.
    """
    return not file.name.startswith(".") and (
        file.is_file() or file.suffix.lower() in (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES)
    )


def _status(file: Path) -> os.stat_result:
    """Return what is known of a regular file."""
    try:
        status = file.stat()
    except OSError as error:
        raise DataError(file, f"cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise DataError(file, f"cannot be read: it is {kind}")
    return status


def _identity(file: Path, status: os.stat_result) -> Identity:
    return Identity(file.name, f"stat:{status.st_size}:{status.st_mtime_ns}")


def _read(file: Path) -> tuple[bytes, os.stat_result]:
    """Return the content of a regular file that nobody changes meanwhile, and its status."""
    _status(file)  # to open a pipe would wait for its writer
    try:
        with file.open("rb") as stream:
            before = os.fstat(stream.fileno())
            data = stream.read()
            after = os.fstat(stream.fileno())
    except OSError as error:
        raise DataError(file, f"cannot be read: {error.strerror}") from None
    seen = before.st_size, before.st_mtime_ns
    if seen != (after.st_size, after.st_mtime_ns) or len(data) != before.st_size:
        raise DataError(file, "changed while it was read")
    return data, after


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


def _load_numpy(file: Path, data: bytes, kind: type) -> Any:
    """Return the array of an .npy file or the archive of an .npz file."""
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - zip, pickle and header faults are of many classes
        raise DataError(file, f"cannot be read as NumPy data: {_first_line(error)}") from None
    if isinstance(loaded, kind):
        return loaded
    if isinstance(loaded, np.lib.npyio.NpzFile):
        raise DataError(file, "is an .npz archive: give it that suffix")
    raise DataError(file, "is a single array: give it the suffix .npy")


def _load_npy(file: Path, data: bytes, shape: Shape) -> NDArray[np.float32]:
    return _fitted(file, "", _load_numpy(file, data, np.ndarray), shape)


def _fitted(file: Path, label: str, array: NDArray[Any], shape: Shape) -> NDArray[np.float32]:
    """Return an array of (C, H, W) or (N, C, H, W) as float32 (N, C, H, W)."""
    if array.dtype.kind not in "fiub":
        raise DataError(file, f"{label}holds {array.dtype}, expected numbers")
    if array.shape == shape[1:]:
        array = array[None]
    if array.ndim != len(shape) or array.shape[1:] != shape[1:] or not len(array):
        wanted = "x".join(map(str, shape[1:]))
        found = "x".join(map(str, array.shape)) or "a single number"
        hint = ""
        if len(shape) == 4 and array.shape[-3:] == (*shape[2:], shape[1]):
            hint = "; channels come first: transpose it to NCHW"
        raise DataError(file, f"{label}expected shape {wanted} or Nx{wanted}, found {found}{hint}")
    with np.errstate(over="ignore"):  # becomes infinite, which is the business of --nonfinite
        return np.ascontiguousarray(array, np.float32)


def _load_txt(file: Path, data: bytes, shape: Shape) -> NDArray[np.float32]:
    """One number a line, N * C * H * W of them."""
    words = data.split()
    try:
        values = np.fromiter(map(float, words), np.float64, len(words))
    except ValueError:
        raise DataError(file, _bad_line(data)) from None
    # float() also takes 1_000; a NaN is not within the range either.
    if b"_" in data or not (np.abs(values) <= _FLOAT32_MAX).all():
        raise DataError(file, _bad_line(data))
    size = math.prod(shape[1:])
    if not len(values) or len(values) % size:
        dims = " * ".join(map(str, shape))
        raise DataError(file, f"expected {math.prod(shape)} numbers ({dims}), found {len(values)}")
    return values.astype(np.float32).reshape(-1, *shape[1:])


def _bad_line(data: bytes) -> str:
    for number, line in enumerate(data.split(b"\n"), 1):
        for word in line.split():
            try:
                fits = b"_" not in word and abs(float(word)) <= _FLOAT32_MAX
            except ValueError:
                fits = False
            if not fits:
                found = word[:20].decode("ascii", "replace")
                return f"line {number}: expected a number of float32, found {found!r}"
    raise AssertionError("called for a text without a bad line")


# ------------------------------------------------------------------ images


def load_image(file: Path | bytes, shape: Shape, preprocess: Preprocess) -> NDArray[np.float32]:
    """Return an image as float32 (1, C, H, W); `file` is a path or the encoded bytes.

    Raises DataError naming the file when it cannot be decoded or the network takes no images.
    """
    if isinstance(file, bytes):
        return _image(Path("image in memory"), file, shape, preprocess)
    return _image(file, _read(file)[0], shape, preprocess)


def _image(file: Path, data: bytes, shape: Shape, preprocess: Preprocess) -> NDArray[np.float32]:
    if len(shape) != 4 or shape[1] not in {1, 3, 4}:
        raise DataError(file, f"an image does not fit the network input {shape}; give .npy or .txt")
    pixels = _decode(file, data, shape[1])
    if preprocess.resize == "none" and pixels.shape[:2] != shape[2:]:
        found, wanted = (f"{width} x {height}" for height, width in (pixels.shape[:2], shape[2:]))
        raise DataError(file, f"is {found} pixels, the network takes {wanted}")
    return to_tensor(pixels, shape, preprocess)


def decode(file: Path | bytes, channels: int) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG or BMP as uint8 (h, w, channels).

    channels: 3 is RGB, 4 is RGB and alpha (255 where the file has none), 1 is stb_image's
    luminance, ``(77 r + 150 g + 29 b) >> 8``.  Alpha is dropped, not blended.
    """
    if isinstance(file, bytes):
        return _decode(Path("image in memory"), file, channels)
    return _decode(file, _read(file)[0], channels)


def _decode(file: Path, data: bytes, channels: int) -> NDArray[np.uint8]:
    try:
        width, height, data, is_deep_grey = _essentials(data)
        if not 0 < width * height <= _MAX_PIXELS:
            raise ValueError(f"it is {width} x {height} pixels large")
        with _one_large_image if width * height > _LARGE_PIXELS else nullcontext():
            return _pixels(data, channels, is_deep_grey=is_deep_grey)
    except struct.error:
        raise DataError(file, "cannot be decoded: it ends too early") from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on a corrupt file
        raise DataError(file, f"cannot be decoded: {_first_line(error)}") from None


def _pixels(data: bytes, channels: int, *, is_deep_grey: bool) -> NDArray[np.uint8]:
    reader: Any  # the pillow plugin, whose `read` also takes a mode
    with iio.imopen(data, "r", plugin="pillow") as reader:
        if is_deep_grey:
            grey = (np.asarray(reader.read(index=0)) >> 8).astype(np.uint8)
            pixels = np.repeat(grey[..., None], 3, axis=2)
        else:  # RGBA also for palettes with transparency, which RGB warns of
            mode = "RGBA" if data.startswith(_PNG) or channels == 4 else "RGB"
            pixels = np.asarray(reader.read(index=0, mode=mode), np.uint8)
    if channels == 1:
        red, green, blue = (pixels[..., c].astype(np.uint16) for c in range(3))
        pixels = ((77 * red + 150 * green + 29 * blue) >> 8).astype(np.uint8)[..., None]
    elif channels == 4 and pixels.shape[2] == 3:
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    return np.ascontiguousarray(pixels[..., :channels])


def _essentials(data: bytes) -> tuple[int, int, bytes, bool]:
    """Return width, height, the image without what lies beside its pixels, and if it is grey 16.

    Sizes are known before anything is decoded, and EXIF, other pictures and animations, which the
    decoder would read and warn of, are left out.  Raises ValueError or struct.error.
    """
    if data.startswith(b"\xff\xd8"):
        return *_jpeg_essentials(data), False
    if data.startswith(_PNG):
        width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
        return width, height, _png_essentials(data), (depth, colour) == (16, 0)
    if data.startswith(b"BM"):
        is_old = struct.unpack_from("<I", data, 14) == (12,)
        width, height = struct.unpack_from("<HH" if is_old else "<ii", data, 18)
        return abs(width), abs(height), data, False
    raise ValueError("it is no JPEG, PNG or BMP" if data else "it is empty")


def _jpeg_essentials(data: bytes) -> tuple[int, int, bytes]:
    width = height = 0
    kept, place = [data[:2]], 2
    while data[place : place + 1] == b"\xff":
        marker, length = struct.unpack_from(">xBH", data, place)
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 5)
        elif marker == 0xDA:  # the pixels
            break
        if marker not in _JPEG_BESIDES:
            kept.append(data[place : place + 2 + length])
        place += 2 + length
    kept.append(data[place:])
    return width, height, b"".join(kept)


def _png_essentials(data: bytes) -> bytes:
    kept, place = [data[:8]], 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(data[place : place + 12 + length])
        place += 12 + length
        if kind == b"IEND":
            break
    return b"".join(kept)


def to_tensor(
    pixels: NDArray[np.uint8], shape: Shape, preprocess: Preprocess
) -> NDArray[np.float32]:
    """Resize and normalize uint8 (h, w, C) pixels to float32 (1, C, H, W)."""
    _check_numbers(preprocess, shape)
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
    return _resample(pixels, (h, w), ((h - height) // 2, (w - width) // 2), (height, width))


def resize(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize uint8 (h, w, channels) as ``stbir_resize_uint8`` of stb_image_resize.h v0.97, exactly.

    Each axis by itself: Mitchell's filter, widened, when it shrinks or keeps its length,
    Catmull-Rom when it grows; edges are clamped, values are taken as linear light.  An image of
    the wanted size is returned as it is.
    """
    return _resample(pixels, (height, width), (0, 0), (height, width))


def _resample(
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    corner: tuple[int, int],
    window: tuple[int, int],
) -> NDArray[np.uint8]:
    """Return the window (height, width) at corner (top, left) of the image resized to `size`."""
    (top, left), (height, width) = corner, window
    h, w, channels = pixels.shape
    if (h, w) == size:
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])
    first, taps = _filter(w, size[1])
    across, across_taps = first[left : left + width], taps[left : left + width]
    first, taps = _filter(h, size[0])
    down, down_taps = first[top : top + height], taps[top : top + height]
    between = np.empty((h, width, channels), np.float32)
    line = np.empty((w, channels), np.float32)
    kernels.resample_rows_into(np.ascontiguousarray(pixels), across, across_taps, line, between)
    out = np.empty((height, width * channels), np.uint8)
    line = np.empty(width * channels, np.float32)
    kernels.resample_columns_into(between.reshape(h, -1), down, down_taps, line, out)
    return out.reshape(height, width, channels)


@lru_cache(maxsize=64)
def _filter(size: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Table of one axis: first source index and taps of each target pixel."""
    first = np.empty(target, np.int64)
    if target > size:
        taps = np.zeros((target, 5), np.float32)
        kernels.growing_taps_into(size, first, taps)
    else:
        taps = np.zeros((target, 4 * size // target + 3), np.float32)
        kernels.shrinking_taps_into(size, first, taps)
    return first, taps


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
