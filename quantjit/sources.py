"""Inputs from wherever a program has them: folders, arrays, loaders, readers, generators.

`open_samples` turns each into `quantjit.dataset.Samples`, which calibration and verification run
over.  What a program hands out as one item becomes single inputs:

* an array or tensor, (C, H, W) or a batch (N, C, H, W);
* a dict of them by the names of the network's inputs;
* a tuple or list that starts with one of these, as data loaders give (inputs, labels); with several
  network inputs also one array for each, in their order.

Items of sources without an index are fetched by the thread that asked for the pass, one after the
other; only a few are in memory at once.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from quantjit.dataset import Dataset, Sample, Samples, fit_array, split_batch
from quantjit.errors import DataError, UsageError
from quantjit.images import Preprocess, Shape, to_tensor

WANTED = (
    "a folder or file, an array, a dict of arrays, a list or other iterable of these, a data "
    "loader, a CalibrationDataReader, or a function that returns one"
)

_AGAIN = (
    "give a list, an object that starts anew with each iteration, or the function that makes it "
    "in place of what that returned"
)


class Reader(Protocol):
    """What onnxruntime calls a CalibrationDataReader."""

    def get_next(self) -> Mapping[str, Any] | None:
        """Return arrays by input name, or None at the end."""
        ...


Source = (
    Samples
    | str
    | Path
    | NDArray[Any]
    | Mapping[str, Any]
    | Reader
    | Iterable[Any]
    | Callable[[], Any]
)
"""What `open_samples` takes."""


def open_samples(
    data: Source, inputs: Mapping[str, Shape], preprocess: Preprocess | None = None
) -> Samples:
    """Return the inputs of a network from whatever holds them.

    Parameters
    ----------
    data : one of the following; what is `Samples` already is returned as it is

        * a folder, a file or a list of files, see `quantjit.Dataset.open`;
        * an array or tensor (N, C, H, W) or (C, H, W), a dict of them by input name, or the tuple
          (array, labels) of as many integers;
        * a list, or an object with a length and an index, of items as described above;
        * an iterable of such items: a PyTorch ``DataLoader``, a generator;
        * an object with ``get_next()``, onnxruntime's ``CalibrationDataReader``;
        * a function without parameters that returns one of the last three, for each pass anew.
    inputs : shapes by name, (1, C, H, W), of `quantjit.input_shapes`
    preprocess : how pictures become tensors; for arrays, which are then pixels, uint8
        (height, width, channels), as well.  None: files are scaled by 1, arrays taken as they are

    Returns
    -------
    Samples
        safe to load from several threads; float32 arrays (1, C, H, W) by input name

    Raises
    ------
    UsageError
        for what holds no inputs
    DataError
        here or during a pass, naming the item that does not fit the network
    """
    if isinstance(data, str | os.PathLike):
        return Dataset.open(Path(data), inputs, preprocess)
    if _is_samples(data):
        return data
    items = _Items(inputs, preprocess)
    if isinstance(data, tuple) and len(data) == 2 and _are_labels(data[1], data[0]):
        return Indexed(_Rows(_rows(data[0], inputs), data[1]), items)
    if isinstance(data, Mapping) or _is_array(data):
        return Indexed(_rows(data, inputs), items)
    if isinstance(data, Sequence) and data and all(isinstance(x, str | os.PathLike) for x in data):
        return Dataset.open([Path(file) for file in data], inputs, preprocess)
    if not hasattr(data, "get_next") and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return Indexed(data, items)
    if hasattr(data, "get_next") or hasattr(data, "__iter__") or callable(data):
        return Streamed(data, items)
    raise UsageError(f"{type(data).__name__} holds no inputs: give {WANTED}")


def check_repeatable(samples: Samples, why: str) -> None:
    """Raise DataError if the inputs can be read once only but will be read more often.

    why: who reads them again, "TNN's arithmetic reads its inputs twice".
    """
    if isinstance(samples, Streamed) and not samples.is_repeatable:
        raise DataError(samples.name, f"can be read once only, and {why}: {_AGAIN}")


def _is_samples(data: object) -> TypeGuard[Samples]:
    return all(callable(getattr(data, name, None)) for name in ("load", "skip", "check", "__len__"))


def _is_array(data: object) -> bool:
    return hasattr(data, "__array__") and hasattr(data, "shape")


def _are_labels(labels: object, arrays: object) -> bool:
    """Whether the second of two is one integer for each row of the first."""
    if not _is_array(arrays) or not (_is_array(labels) or isinstance(labels, list)):
        return False
    found, rows = as_array(labels), as_array(arrays)
    return found.dtype.kind in "iu" and found.ndim == 1 and rows.shape[:1] == found.shape


def as_array(data: Any) -> NDArray[Any]:
    """Return an array, tensor (of any device, with or without gradient) or list as an array.

    Raises DataError where that cannot be.
    """
    try:
        for method in ("detach", "cpu"):
            data = getattr(data, method, lambda data=data: data)()
        return np.asarray(data)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(data).__name__
        raise DataError(f"the {kind} of inputs", f"cannot become an array: {error}") from None


def _rows(data: Any, inputs: Mapping[str, Shape]) -> Any:
    """Return something with a length and an index that has a row of each array."""
    if isinstance(data, Mapping):
        names = [name for name in data if name in inputs] or list(data)
        arrays = {name: as_array(data[name]) for name in names}
        counts = {len(array) if array.ndim else 0 for array in arrays.values()}
        wanted = [len(inputs[name]) if name in inputs else 0 for name in names]
        if len(inputs) == len(names) == 1:  # any name will do
            wanted = [len(shape) for shape in inputs.values()]
        ranks = [array.ndim for array in arrays.values()]
        # one input, or something to complain about, is left as it is
        return _Rows(arrays, None, counts.pop()) if ranks == wanted and len(counts) == 1 else [data]
    array = as_array(data)
    rank = len(next(iter(inputs.values())))
    return array if array.ndim == rank else [array]


class _Rows:
    """The rows of arrays by name, or of an array beside its labels."""

    def __init__(self, arrays: Any, labels: Any, count: int | None = None) -> None:
        self._arrays, self._labels = arrays, labels
        self._count = len(arrays) if count is None else count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        if self._labels is not None:
            return self._arrays[index], self._labels[index]
        return {name: array[index] for name, array in self._arrays.items()}


# ------------------------------------------------------------------ one item


class _Items:
    """Turns items into samples, and keeps the labels that came with them."""

    def __init__(self, inputs: Mapping[str, Shape], preprocess: Preprocess | None) -> None:
        self._inputs = dict(inputs)
        self._preprocess = preprocess
        self.labels: dict[str, int] = {}

    def samples(self, name: str, item: Any) -> tuple[Sample, ...]:
        """Return the single inputs of an item; DataError says what does not fit."""
        given, labels = self._parted(name, item)
        batches = {key: self._tensor(name, key, given) for key in self._inputs}
        samples = split_batch(name, batches)
        if labels is not None:
            self._keep(samples, labels)
        return samples

    def _parted(self, name: str, item: Any) -> tuple[dict[str, Any], Any]:
        """Return the arrays of an item by input name, and what came after them."""
        labels: Any = None
        if isinstance(item, tuple | list) and not _is_array(item):
            if not item:
                raise DataError(name, "is an empty tuple, expected arrays")
            first, *rest = item
            several = len(self._inputs)
            if isinstance(first, tuple | list):
                item, labels = first, rest
            elif isinstance(first, Mapping) or several == 1:
                item, labels = (first if isinstance(first, Mapping) else [first]), rest
            else:
                item, labels = item[:several], item[several:]
            labels = labels[0] if len(labels) == 1 else None
        if isinstance(item, Mapping):
            return self._named(name, item), labels
        arrays = [item] if _is_array(item) else item
        if not isinstance(arrays, tuple | list):
            try:
                arrays = [np.asarray(item)]  # a picture of Pillow, a number
            except ValueError as error:
                raise DataError(name, f"is no array: {error}") from None
        if len(arrays) != len(self._inputs):
            wanted = ", ".join(self._inputs)
            raise DataError(
                name, f"holds {len(arrays)} arrays; the network takes {wanted}: give a dict by name"
            )
        return dict(zip(self._inputs, arrays, strict=True)), labels

    def _named(self, name: str, item: Mapping[str, Any]) -> dict[str, Any]:
        if len(self._inputs) == len(item) == 1:  # any name will do
            return dict(zip(self._inputs, item.values(), strict=True))
        missing = [key for key in self._inputs if key not in item]
        if missing:
            held = ", ".join(map(str, item)) or "nothing"
            raise DataError(name, f"lacks the network input {missing[0]!r}; it holds {held}")
        return dict(item)

    def _tensor(self, name: str, key: str, given: Mapping[str, Any]) -> NDArray[np.float32]:
        label = f"array {key!r}: "
        try:
            array = as_array(given[key])
        except DataError as error:
            raise DataError(name, f"{label}{error.reason}") from None
        shape = self._inputs[key]
        if array.dtype.kind not in "fiub":
            kind = f"{type(given[key]).__name__} of {array.dtype}"
            raise DataError(name, f"{label}expected numbers, found {kind}")
        if self._preprocess is None:
            return fit_array(name, label, array, shape)
        return _from_pixels(name, label, array, shape, self._preprocess)

    def _keep(self, samples: Sequence[Sample], labels: Any) -> None:
        found = as_array(labels).reshape(-1)
        if found.dtype.kind in "iu" and len(found) == len(samples):
            for sample, label in zip(samples, found.tolist(), strict=True):
                self.labels[sample.file] = label


def _from_pixels(
    name: str, label: str, array: NDArray[Any], shape: Shape, preprocess: Preprocess
) -> NDArray[np.float32]:
    """Return pixels, uint8 (h, w, c), (h, w) or a batch of them, as float32 (N, C, H, W)."""
    if len(shape) != 4:
        raise DataError(name, f"{label}a picture does not fit the network input {shape}")
    if shape[1] == 1 and array.shape[-1:] != (1,):
        array = array[..., None]
    batch = array[None] if array.ndim == 3 else array
    if array.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != shape[1] or not batch.size:
        found = f"{array.dtype} {'x'.join(map(str, array.shape))}"
        raise DataError(
            name,
            f"{label}with a preprocess, expected pixels, uint8 height x width x {shape[1]}, found "
            f"{found}; tensors that are ready go without it",
        )
    if preprocess.resize == "none" and batch.shape[1:3] != shape[2:]:
        found, wanted = (f"{w} x {h}" for h, w in (batch.shape[1:3], shape[2:]))
        raise DataError(name, f"{label}is {found} pixels, the network takes {wanted}")
    return np.concatenate([to_tensor(np.ascontiguousarray(x), shape, preprocess) for x in batch])


# ------------------------------------------------------------------ sources of items


class Indexed:
    """Samples of an object with a length and an index: a list, an array, a map-style data set.

    Items of lists and arrays are fetched by several threads at once, those of others by one.

    Parameters
    ----------
    data : gives an item for each index
    items : what turns it into samples
    places : the indices to use, by default all
    """

    def __init__(self, data: Any, items: _Items, places: Sequence[int] | None = None) -> None:
        self._data, self._items = data, items
        self._places = range(len(data)) if places is None else places
        self._is_safe = isinstance(data, list | tuple | np.ndarray | _Rows)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"Indexed({len(self)} items of {type(self._data).__name__})"

    @property
    def labels(self) -> Mapping[str, int]:
        """Class index by name of the input, of those that were loaded."""
        return self._items.labels

    def load(self, index: int) -> Sequence[Sample]:
        """Return the inputs of one item."""
        place = self._places[index]
        if self._is_safe:
            item = self._data[place]
        else:
            with self._lock:
                item = self._data[place]
        return self._items.samples(f"input {place}", item)

    def skip(self, error: DataError) -> None:
        """Nothing in memory is unreadable."""
        raise error

    def check(self) -> None:
        """Raise DataError if there are no items."""
        if not len(self):
            raise DataError(f"the {type(self._data).__name__} of inputs", "is empty")

    def spread(self, count: int) -> "Indexed":
        """Return `count` of the items, spread evenly over all."""
        count = min(count, len(self))
        places = [self._places[index * len(self) // count] for index in range(count)]
        return Indexed(self._data, self._items, places)

    def divided(self, held_out: int) -> tuple["Indexed", "Indexed"]:
        """Return the rest and so many items, spread evenly over all."""
        chosen = {index * len(self) // held_out for index in range(held_out)}
        parts: tuple[list[int], list[int]] = ([], [])
        for index, place in enumerate(self._places):
            parts[index in chosen].append(place)
        rest, kept = (Indexed(self._data, self._items, part) for part in parts)
        return rest, kept


class Streamed:
    """Samples of what can only be gone through: an iterable, a reader, a function that makes one.

    Parameters
    ----------
    data : an iterable, an object with ``get_next()``, or a function that returns one of them
    items : what turns its items into samples
    limit : of the items that are used, by default all

    Attributes
    ----------
    name : what it is called in errors
    is_repeatable : whether a second pass finds the items again
    """

    def __init__(self, data: Any, items: _Items, limit: int | None = None) -> None:
        self._data, self._items, self._limit = data, items, limit
        self._ahead: dict[int, Any] = {}
        self._was_read = False
        self._count = 0
        self.name = f"the {type(data).__name__} of inputs"
        if hasattr(data, "get_next"):
            self.is_repeatable = hasattr(data, "rewind")
        elif hasattr(data, "__iter__"):
            self.is_repeatable = iter(data) is not data
        else:
            self.is_repeatable = True

    def __len__(self) -> int:
        try:
            known = len(self._data)
        except (TypeError, NotImplementedError):
            return 0
        return known if self._limit is None else min(known, self._limit)

    def __repr__(self) -> str:
        count = f"{len(self)} items" if len(self) else "items"
        return f"Streamed({count} of {type(self._data).__name__})"

    @property
    def labels(self) -> Mapping[str, int]:
        """Class index by name of the input, of those that were loaded."""
        return self._items.labels

    def numbers(self) -> Iterator[int]:
        """Begin a pass; see `quantjit.dataset.Stream`.  DataError if a second one is not possible.

        Items that were fetched and not used when an earlier pass was given up are gone.
        """
        if self._was_read and not self.is_repeatable:
            raise DataError(self.name, f"can be read once only, and was read: {_AGAIN}")
        self._was_read = True
        self._ahead.clear()
        self._count = 0
        for index, item in enumerate(self._fetch()):
            if self._limit is not None and index >= self._limit:
                return
            self._ahead[index] = item
            self._count = index + 1
            yield index

    def _fetch(self) -> Iterator[Any]:
        data = self._data
        if not hasattr(data, "get_next") and not hasattr(data, "__iter__"):
            data = data()
        if hasattr(data, "get_next"):
            if data is self._data and self.is_repeatable:
                data.rewind()
            yield from iter(data.get_next, None)
        elif hasattr(data, "__iter__"):
            yield from data
        else:
            raise UsageError(f"{self.name}: returned {type(data).__name__}, expected an iterable")

    def load(self, index: int) -> Sequence[Sample]:
        """Return the inputs of the item that `numbers` fetched."""
        return self._items.samples(f"input {index}", self._ahead.pop(index))

    def skip(self, error: DataError) -> None:
        """Nothing in memory is unreadable."""
        raise error

    def check(self) -> None:
        """Raise DataError if the pass gave nothing."""
        if self._count:
            return
        if self.is_repeatable:
            raise DataError(self.name, "is empty")
        raise DataError(self.name, f"gave nothing; if it was read before, {_AGAIN}")

    def spread(self, count: int) -> "Streamed":
        """Return the first `count` items: how many there are is not known."""
        return Streamed(self._data, self._items, count)
