"""Inputs from wherever a program has them: what fits, what is refused and with which words."""

import threading

import numpy as np
import pytest
from PIL import Image

from quantjit import dataset, images, sources
from quantjit.dataset import ArraySamples, Dataset, prefetch
from quantjit.errors import DataError, UsageError
from quantjit.flow import Flow, Resources
from quantjit.images import Preprocess

SHAPE = (1, 2, 3, 4)
ONE = {"data": SHAPE}
TWO = {"left": SHAPE, "right": (1, 5)}
COUNT = 7


def arrays(count=COUNT, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(0, 1, (count, *shape[1:])).astype(np.float32)


class Tensor:
    """What a data loader hands out: not an array, but becomes one, once it left its device."""

    def __init__(self, array, *, home=False):
        self._array, self._home = np.asarray(array), home
        self.shape = self._array.shape

    def detach(self):
        return Tensor(self._array)

    def cpu(self):
        return Tensor(self._array, home=True)

    def __array__(self, dtype=None, copy=None):
        if not self._home:
            raise TypeError("can't convert a device tensor to numpy")
        return self._array


class Loader:
    """Like PyTorch's DataLoader: a length, batches of (tensor, labels), no index."""

    def __init__(self, inputs, labels, batch=3):
        self._inputs, self._labels, self._batch = inputs, labels, batch
        self.passes = 0
        self.threads = set()

    def __len__(self):
        return (len(self._inputs) + self._batch - 1) // self._batch

    def __iter__(self):
        self.passes += 1
        for start in range(0, len(self._inputs), self._batch):
            self.threads.add(threading.get_ident())
            part = slice(start, start + self._batch)
            yield Tensor(self._inputs[part]), Tensor(self._labels[part])


class Reader:
    """Like onnxruntime's CalibrationDataReader."""

    def __init__(self, inputs, name="data"):
        self._left = iter([{name: each[None]} for each in inputs])

    def get_next(self):
        return next(self._left, None)


class Rewindable(Reader):
    def __init__(self, inputs):
        super().__init__(inputs)
        self._inputs = inputs

    def rewind(self):
        super().__init__(self._inputs)


class MapStyle:
    """Like PyTorch's Dataset: an index and a length; iterating over it never ends."""

    def __init__(self, inputs):
        self._inputs = inputs

    def __len__(self):
        return len(self._inputs)

    def __getitem__(self, index):
        return self._inputs[index % len(self._inputs)], index


X = arrays()
LABELS = np.arange(COUNT) % 3
BATCHES = [X[:3], X[3:6], X[6:]]

SOURCES = {
    "array": lambda: X,
    "float64": lambda: X.astype(np.float64),
    "tensor": lambda: Tensor(X),
    "dict of an array": lambda: {"data": X},
    "dict with any name": lambda: {"x": X},
    "array and labels": lambda: (X, LABELS),
    "array and list of labels": lambda: (X, LABELS.tolist()),
    "list": lambda: list(X),
    "list of batches": lambda: BATCHES,
    "list of dicts": lambda: [{"data": x} for x in X],
    "list of dicts and labels": lambda: [({"data": x, "more": 1}, 0) for x in X],
    "tuple of pairs": lambda: tuple((x, 1) for x in X),
    "generator": lambda: (x for x in X),
    "generator of batches": lambda: iter(BATCHES),
    "function": lambda: lambda: (x[None] for x in X),
    "function that makes a reader": lambda: lambda: Reader(X),
    "loader": lambda: Loader(X, LABELS),
    "reader": lambda: Reader(X),
    "reader that rewinds": lambda: Rewindable(X),
    "map-style data set": lambda: MapStyle(X),
    "samples": lambda: ArraySamples([{"data": x[None]} for x in X]),
}


def loaded(samples):
    return [sample.arrays["data"] for sample in prefetch(samples)]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_inputs_in_order(kind):
    found = loaded(sources.open_samples(SOURCES[kind](), ONE))
    assert len(found) == COUNT
    for x, expected in zip(found, X, strict=True):
        assert x.dtype == np.float32
        assert x.shape == SHAPE
        assert x.flags.c_contiguous
        np.testing.assert_array_equal(x[0], expected)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_batches_do_not_show(kind, threads):
    samples = sources.open_samples(SOURCES[kind](), ONE)

    def make_worker():
        return lambda batch: [(each.file, each.arrays["data"]) for each in batch]

    with Flow(samples, make_worker, Resources(threads, 2, threads, 5)) as flow:
        found = list(flow.advance())
    assert len({file for file, _ in found}) == COUNT
    np.testing.assert_array_equal(np.concatenate([x for _, x in found]), X)


ONCE = {"generator", "generator of batches", "reader"}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_second_pass_gives_the_same_or_says_why_not(kind):
    samples = sources.open_samples(SOURCES[kind](), ONE)
    first = loaded(samples)
    if kind not in ONCE:
        sources.check_repeatable(samples, "it is needed")
        np.testing.assert_array_equal(loaded(samples), first)
        return
    with pytest.raises(DataError, match="once only, and it is needed: give a list"):
        sources.check_repeatable(samples, "it is needed")
    with pytest.raises(DataError, match="can be read once only, and was read: give a list"):
        loaded(samples)


@pytest.mark.parametrize("used", [(x for x in ()), Reader(X[:0])])
def test_what_was_read_before_is_said_to_be(used):
    with pytest.raises(DataError, match="gave nothing; if it was read before, give a list"):
        loaded(sources.open_samples(used, ONE))


@pytest.mark.parametrize("empty", [[], lambda: iter(()), X[:0], {"data": X[:0]}, Loader(X[:0], [])])
def test_nothing_at_all_is_an_error(empty):
    with pytest.raises(DataError, match=r"is empty|expected shape 2x3x4"):
        loaded(sources.open_samples(empty, ONE))


def test_a_loader_is_read_by_the_thread_that_asks():
    loader = Loader(X, LABELS)
    samples = sources.open_samples(loader, ONE)
    assert len(samples) == 3
    loaded(samples)
    assert loader.threads == {threading.get_ident()}
    assert loader.passes == 1


def test_only_a_few_items_of_a_generator_are_in_memory():
    fetched, used, most = 0, 0, 0

    def endless():
        nonlocal fetched, most
        for _ in range(200):
            fetched += 1
            most = max(most, fetched - used)
            yield X[0]

    for _ in prefetch(sources.open_samples(endless, ONE), workers=2, depth=4):
        used += 1
    assert used == 200
    assert most <= 6


def test_labels_come_with_the_inputs():
    for kind in ("array and labels", "array and list of labels", "loader"):
        samples = sources.open_samples(SOURCES[kind](), ONE)
        files = [sample.file for sample in prefetch(samples)]
        assert [samples.labels[file] for file in files] == LABELS.tolist(), kind
    samples = sources.open_samples(MapStyle(X), ONE)
    assert [samples.labels[s.file] for s in prefetch(samples)] == list(range(COUNT))
    samples = sources.open_samples([(x, np.zeros((3, 4))) for x in X], ONE)  # masks are no labels
    assert len(loaded(samples)) == COUNT
    assert samples.labels == {}


def test_several_inputs_by_name_or_in_order():
    right = arrays(shape=(1, 5), seed=1)
    pairs = list(zip(X, right, strict=True))
    forms = [
        {"left": X, "right": right},
        [{"right": r, "left": x} for x, r in pairs],
        [({"left": x, "right": r}, 1) for x, r in pairs],
        pairs,
        [(x, r, 3) for x, r in pairs],
        [((x, r), 3) for x, r in pairs],
        [(X[:3], right[:3]), (X[3:], right[3:])],
    ]
    for form in forms:
        found = list(prefetch(sources.open_samples(form, TWO)))
        assert len(found) == COUNT
        for sample, (x, r) in zip(found, pairs, strict=True):
            np.testing.assert_array_equal(sample.arrays["left"][0], x)
            np.testing.assert_array_equal(sample.arrays["right"][0], r)


def test_files_and_folders(tmp_path):
    for index, x in enumerate(X):
        np.save(tmp_path / f"{index}.npy", x)
    names = sorted(tmp_path.iterdir())
    for place in (tmp_path, str(tmp_path), names, [str(name) for name in names]):
        samples = sources.open_samples(place, ONE)
        assert isinstance(samples, Dataset)
        np.testing.assert_array_equal(np.concatenate(loaded(samples)), X)
    with np.load(_archive(tmp_path)) as stored:
        np.testing.assert_array_equal(np.concatenate(loaded(sources.open_samples(stored, ONE))), X)


def _archive(folder):
    np.savez(folder / "all.npz", data=X)
    return folder / "all.npz"


def test_pixels_with_a_preprocess_are_what_a_file_of_them_is(tmp_path):
    how = Preprocess((1.0, 2.0, 3.0), (0.5,), "bgr", "crop")
    shape = {"data": (1, 3, 4, 4)}
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 6, 9, 3), dtype=np.uint8)
    pictures = [Image.fromarray(each) for each in pixels]
    expected = []
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.png")
        expected.append(
            images.image_tensor(
                tmp_path, (tmp_path / f"{index}.png").read_bytes(), shape["data"], how
            )
        )
    for form in (pixels, list(pixels), pictures, [(each, 0) for each in pictures], tmp_path):
        np.testing.assert_array_equal(loaded(sources.open_samples(form, shape, how)), expected)
    grey = sources.open_samples([pixels[0, :, :, 0]], {"data": (1, 1, 4, 4)}, Preprocess())
    assert loaded(grey)[0].shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (X.transpose(0, 2, 3, 1), r"input 0: array 'data': .*found 3x4x2; channels come first"),
        ([X[0], X[0, :1]], r"input 1: array 'data': expected shape 2x3x4 or Nx2x3x4, found 1x3x4"),
        ([X[0], "cat.jpg"], r"input 1: array 'data': expected numbers, found ndarray of <U7"),
        ([X[0], None], "input 1: array 'data': expected numbers, found ndarray of object"),
        ([X[0], ()], "input 1: is an empty tuple"),
        ([{"a": X[0], "b": X[0]}], "input 0: lacks the network input 'data'; it holds a, b"),
        ([X.astype(complex)[0]], "found ndarray of complex128"),
        ([[[1.0, 2.0], [3.0]]], "holds 2 arrays|inhomogeneous|expected shape"),
        ({"data": X, "other": X[:2]}, None),
    ],
)
def test_what_does_not_fit_is_named(data, words):
    samples = sources.open_samples(data, ONE)
    if words is None:
        assert len(loaded(samples)) == COUNT
        return
    with pytest.raises(DataError, match=words):
        loaded(samples)


def test_more_words():
    with pytest.raises(DataError, match="array 'data': cannot become an array: can't convert"):
        loaded(sources.open_samples([_Stuck()], ONE))
    with pytest.raises(DataError, match="the Tensor of inputs: cannot become an array: can't conv"):
        sources.open_samples(_Stuck(), ONE)
    with pytest.raises(DataError, match=r"holds 1 arrays; the network takes left, right: give a"):
        loaded(sources.open_samples([X[0]], TWO))
    with pytest.raises(DataError, match=r"its arrays have different batch sizes: \[1, 2\]"):
        loaded(sources.open_samples([(X[:2], arrays(1, (1, 5)))], TWO))
    with pytest.raises(UsageError, match="int holds no inputs: give a folder or file, an array"):
        sources.open_samples(3, ONE)
    with pytest.raises(UsageError, match="returned int, expected an iterable"):
        loaded(sources.open_samples(lambda: 3, ONE))
    how = Preprocess((1.0,))
    with pytest.raises(DataError, match=r"uint8 height x width x 2, found float32 2x3x4; tensors"):
        loaded(sources.open_samples(X, ONE, how))
    with pytest.raises(DataError, match="a picture does not fit the network input"):
        loaded(sources.open_samples(np.zeros((4, 5), np.uint8), {"x": (1, 5)}, how))
    small = np.zeros((5, 6, 2), np.uint8)
    with pytest.raises(DataError, match="is 6 x 5 pixels, the network takes 4 x 3"):
        loaded(sources.open_samples([small], ONE, Preprocess(resize="none")))


class _Stuck(Tensor):
    def __init__(self):
        super().__init__(X[0])

    def detach(self):
        return self

    def cpu(self):
        return self


_Stuck.__name__ = "Tensor"


def test_errors_of_the_callers_own_code_are_left_alone():
    def broken():
        yield X[0]
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        loaded(sources.open_samples(broken(), ONE))


def test_spread_takes_a_part():
    assert len(loaded(sources.open_samples(X, ONE).spread(3))) == 3
    np.testing.assert_array_equal(
        np.concatenate(loaded(sources.open_samples(X, ONE).spread(3))), X[[0, 2, 4]]
    )
    part = sources.open_samples(Loader(X, LABELS), ONE).spread(2)
    assert len(part) == 2
    np.testing.assert_array_equal(np.concatenate(loaded(part)), X[:6])
    assert len(sources.open_samples(lambda: iter(X), ONE).spread(2)) == 0  # not known
    assert "Streamed(2 items of Loader)" in repr(part)
    assert repr(sources.open_samples(list(X), ONE)) == "Indexed(7 items of list)"


def test_it_is_a_stream_only_where_it_has_no_index():
    assert isinstance(sources.open_samples(Loader(X, LABELS), ONE), dataset.Stream)
    assert not isinstance(sources.open_samples(X, ONE), dataset.Stream)
    assert not isinstance(ArraySamples([]), dataset.Stream)
