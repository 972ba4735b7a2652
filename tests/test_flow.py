"""Inputs on their way: in order, each once, whatever the threads; pauses with none under way."""

import threading
import time

import pytest

from quantjit.dataset import Sample
from quantjit.errors import DataError
from quantjit.flow import Clock, Flow, Resources

WAYS = [(1, 1, 1, 1), (2, 1, 2, 4), (3, 4, 2, 2), (2, 8, 3, 30)]


class Files:
    """Files with some inputs each: an int for their number, an error for a bad file."""

    def __init__(self, files, most_bad=99):
        self.contents, self.most_bad, self.bad = list(files), most_bad, []

    def __len__(self):
        return len(self.contents)

    def load(self, index):
        content = self.contents[index]
        if isinstance(content, Exception):
            raise content
        return [Sample(f"{index}.{each}", {}) for each in range(content)]

    def skip(self, error):
        self.bad.append(error)
        if len(self.bad) > self.most_bad:
            raise DataError("folder", "too many")

    def check(self):
        if len(self.bad) == len(self.contents):
            raise DataError("folder", "none can be used")


class Busy:
    """Workers that count how many of them run, and whether it was ever more than allowed."""

    def __init__(self):
        self.now = self.most = self.workers = self.largest = 0
        self.lock = threading.Lock()

    def make(self):
        with self.lock:
            self.workers += 1
        return self.run

    def run(self, samples):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.largest = max(self.largest, len(samples))
        time.sleep(0.0005)
        with self.lock:
            self.now -= 1
        return [sample.file for sample in samples]


BAD = DataError("x", "bad")


@pytest.mark.parametrize("way", WAYS)
def test_every_input_once_and_in_order(way):
    busy, done = Busy(), []
    files = Files([1, 3, BAD, 0, 1, 1, 7, 1, BAD])
    before = set(threading.enumerate())
    with Flow(files, busy.make, Resources(*way), on_progress=done.append) as flow:
        results = list(flow.advance())
    assert results == [
        f"{file}.{each}"
        for file, count in enumerate(files.contents)
        if isinstance(count, int)
        for each in range(count)
    ]
    assert busy.most <= way[0]
    assert busy.workers <= way[0]
    assert busy.largest <= way[1]
    assert len(files.bad) == 2
    assert flow.is_done
    assert (flow.files, flow.inputs) == (9, 14)
    assert done == sorted(done)
    assert done[-1] == 9
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_pause_is_between_files_with_none_under_way(way, step):
    busy = Busy()
    files = Files([1, 1, BAD, 3, 1, 6, 1, 1, 1])
    with Flow(files, busy.make, Resources(*way)) as flow:
        results, pauses = [], []
        while not flow.is_done:
            before = flow.inputs
            results += list(flow.advance(step))
            assert busy.now == 0
            assert len(results) == flow.inputs
            whole = [count for count in files.contents[: flow.files] if isinstance(count, int)]
            assert flow.inputs == sum(whole)
            pauses.append(flow.inputs - before)
    assert sum(pauses) == 15
    assert all(pause >= step for pause in pauses[:-1])
    assert step > 1 or pauses[:2] == [1, 1]


def test_seconds_end_an_advance():
    busy = Busy()
    with Flow(Files([1] * 2000), busy.make, Resources(1)) as flow:
        assert list(flow.advance(seconds=0.0)) == ["0.0"]
        some = len(list(flow.advance(seconds=0.05)))
        assert 0 < some < 2000
        assert flow.inputs == some + 1
        assert not flow.is_done


@pytest.mark.parametrize("way", WAYS)
def test_stop_finishes_what_was_begun(way):
    asked, busy = [], Busy()
    files = Files([3] * 20)
    with Flow(
        files, busy.make, Resources(*way), stop=lambda: asked.append(0) or len(asked) > 2
    ) as flow:
        results = list(flow.advance())
        assert flow.is_done
        assert len(results) == flow.inputs == 3 * flow.files
        assert 0 < flow.files < 20
        assert list(flow.advance()) == []


@pytest.mark.parametrize("way", WAYS)
def test_too_many_bad_files_end_it_when_those_before_are_through(way):
    files, results = Files([1, 3, BAD, 1, BAD, 1], most_bad=1), []
    before = set(threading.enumerate())
    with (
        pytest.raises(DataError, match="too many"),
        Flow(files, Busy().make, Resources(*way)) as flow,
    ):
        results.extend(flow.advance())
    assert len(results) == flow.inputs
    assert results == ["0.0", "1.0", "1.1", "1.2", "3.0"]
    assert set(threading.enumerate()) <= before


def test_a_fault_in_a_worker_is_raised_and_ends_the_threads():
    def fail(samples):
        raise ZeroDivisionError(samples[0].file)

    before = set(threading.enumerate())
    with (
        pytest.raises(ZeroDivisionError, match=r"0\.0"),
        Flow(Files([1] * 50), lambda: fail, Resources(2, 1, 2, 4)) as flow,
    ):
        list(flow.advance())
    assert set(threading.enumerate()) <= before


def test_no_file_that_can_be_used():
    with (
        pytest.raises(DataError, match="none can be used"),
        Flow(Files([BAD, BAD]), Busy().make, Resources(1)) as flow,
    ):
        list(flow.advance())


def test_loading_is_timed_and_stays_bounded():
    clock, files, ahead = Clock(), Files([1] * 60), []
    loaded = []

    def load(index):
        time.sleep(0.001)
        loaded.append(index)
        return files.load(index)

    resources = Resources(2, 2, 2, 3)
    with Flow(files, Busy().make, resources, load=load, clock=clock) as flow:
        for done, _ in enumerate(flow.advance()):
            ahead.append(len(loaded) - done)
    assert max(ahead) <= resources.inputs_under_way + resources.batch
    assert clock.spent("load") >= 0.06
    assert clock.spent("wait") > 0
    assert clock.spent("never") == 0
