"""Sample inputs: a folder of images, texts or arrays becomes float32 tensors.

Whatever is wrong with a file is a `DataError` that names it; files that cannot be used are skipped
up to a share of all.  Nothing here changes the state of the process, warnings included, so that
several threads may load at once.
"""

import hashlib
import io
import math
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import DataError, UsageError
from quantjit.images import (
    FLOAT32_MAX,
    Preprocess,
    Shape,
    check_numbers,
    decode_image,
    first_line,
    image_tensor,
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
ARRAY_SUFFIXES = (".txt", ".npy", ".npz")

MARKS = ("bytes", "stat")
"""What marks a file as the one seen before: the hash of its bytes, or its size and time."""

R = TypeVar("R")


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


@runtime_checkable
class Stream(Samples, Protocol):
    """Samples that come one after the other, perhaps of unknown number: `len` is then 0."""

    def numbers(self) -> Iterator[int]:
        """Begin a pass: fetch the inputs one by one and yield their numbers, which `load` takes.

        Called, and advanced, by one thread only.
        """
        ...


class ArraySamples:
    """Samples that are in memory already: one dict of float32 arrays by input name each."""

    def __init__(self, arrays: Sequence[Mapping[str, NDArray[np.float32]]]) -> None:
        self._samples = [Sample(f"input {i}", each) for i, each in enumerate(arrays)]

    def __repr__(self) -> str:
        return f"ArraySamples({len(self)} inputs)"

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


class Collected:
    """Samples that were read before, under the names of their files."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = tuple(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> Sequence[Sample]:
        """Return the sample."""
        return self._samples[index : index + 1]

    def skip(self, error: DataError) -> None:
        """Nothing in memory is unreadable."""
        raise error

    def check(self) -> None:
        """Raise DataError if there are no samples."""
        if not self._samples:
            raise DataError("inputs", "there are none")


def rank(name: str) -> bytes:
    """Return what a name is ordered by where files are chosen: the same on every machine."""
    return hashlib.sha256(os.fsencode(name)).digest()


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
    indices = samples.numbers() if isinstance(samples, Stream) else iter(range(len(samples)))
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
            check_numbers(preprocess, next(iter(inputs.values())))
        return cls(place, files, inputs, preprocess, max_bad)

    def __repr__(self) -> str:
        return f"Dataset({str(self._place)!r}, {len(self)} files)"

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

    @property
    def input_bytes(self) -> int:
        """Bytes of one input as tensors."""
        return sum(4 * math.prod(shape) for shape in self._inputs.values())

    def divided(
        self, held_out: int, among: Sequence[Path] | None = None
    ) -> tuple["Dataset", "Dataset"]:
        """Return the rest and so many files that `rank` puts first, each in the order of files.

        among: the files to choose from, by default all.  Which ones are chosen depends on their
        names only.  Either part may use up what `max_bad` allows.
        """
        eligible = self.files if among is None else among
        ranked = sorted(eligible, key=lambda file: (rank(file.name), os.fsencode(file)))
        chosen = frozenset(ranked[:held_out])
        parts = (
            [file for file in self.files if file not in chosen],
            [*filter(chosen.__contains__, self.files)],
        )
        shares = (min(1.0, self._max_bad * len(self) / max(len(part), 1)) for part in parts)
        rest, kept = (
            Dataset(self._place, part, self._inputs, self._preprocess, share)
            for part, share in zip(parts, shares, strict=True)
        )
        return rest, kept

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

    def parts(self, count: int) -> list["Part"]:
        """Return the files in up to `count` parts, none empty: every `count`-th file each."""
        count = min(count, len(self.files))
        return [
            Part(self._place, self.files[n::count], self._inputs, self._preprocess, self._max_bad)
            for n in range(count)
        ]

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
            batch = image_tensor(file, data, shape, self._preprocess)
        elif suffix == ".txt":
            batch = _load_txt(file, data, shape)
        else:
            batch = _load_npy(file, data, shape)
        return split_batch(file, {name: batch})

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
                    raise DataError(file, f"{label}cannot be read: {first_line(error)}") from None
                batches[name] = fit_array(file, label, array, shape)
        return split_batch(file, batches)


class Part(Dataset):
    """Some files of a set: which share of them may fail is the business of the whole set."""

    def skip(self, error: DataError) -> None:
        """Note a file that could not be used."""
        self._skipped[error.path] = error

    def check(self) -> None:
        """Accept that no file could be used."""


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


def split_batch(file: str | Path, batches: Mapping[str, NDArray[np.float32]]) -> tuple[Sample, ...]:
    """Return the inputs of float32 (N, C, H, W) arrays by name one by one, each with batch 1."""
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
        raise DataError(file, f"cannot be read as NumPy data: {first_line(error)}") from None
    if isinstance(loaded, kind):
        return loaded
    if isinstance(loaded, np.lib.npyio.NpzFile):
        raise DataError(file, "is an .npz archive: give it that suffix")
    raise DataError(file, "is a single array: give it the suffix .npy")


def _load_npy(file: Path, data: bytes, shape: Shape) -> NDArray[np.float32]:
    return fit_array(file, "", _load_numpy(file, data, np.ndarray), shape)


def fit_array(
    file: str | Path, label: str, array: NDArray[Any], shape: Shape
) -> NDArray[np.float32]:
    """Return an array of (C, H, W) or (N, C, H, W) as float32 (N, C, H, W).

    Raises DataError naming `file` and, with `label`, which of its arrays it is.
    """
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
    if b"_" in data or not (np.abs(values) <= FLOAT32_MAX).all():
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
                fits = b"_" not in word and abs(float(word)) <= FLOAT32_MAX
            except ValueError:
                fits = False
            if not fits:
                found = word[:20].decode("ascii", "replace")
                return f"line {number}: expected a number of float32, found {found!r}"
    raise AssertionError("called for a text without a bad line")


# ------------------------------------------------------------------ one image


def load_image(file: Path | bytes, shape: Shape, preprocess: Preprocess) -> NDArray[np.float32]:
    """Return an image as float32 (1, C, H, W); `file` is a path or the encoded bytes.

    Raises DataError naming the file when it cannot be decoded or the network takes no images.
    """
    if isinstance(file, bytes):
        return image_tensor(Path("image in memory"), file, shape, preprocess)
    return image_tensor(file, _read(file)[0], shape, preprocess)


def decode(file: Path | bytes, channels: int) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG or BMP as uint8 (h, w, channels).

    channels: 3 is RGB, 4 is RGB and alpha (255 where the file has none), 1 is stb_image's
    luminance, ``(77 r + 150 g + 29 b) >> 8``.  Alpha is dropped, not blended.
    """
    if isinstance(file, bytes):
        return decode_image(Path("image in memory"), file, channels)
    return decode_image(file, _read(file)[0], channels)
