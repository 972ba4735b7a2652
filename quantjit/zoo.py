"""A zoo: every model of a manifest becomes quantized files, statistics, a report and a row.

Each model runs in a process of its own, as many at a time as fit the memory and the cores, and ends
in a folder of its own that appears whole, with a record of what it was made from.  So whatever ends
one of them, this process included, loses at most the models in work; and the next run does only
what is missing or was made from something else.
"""

import contextlib
import json
import os
import queue
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from quantjit.child import Child, Ended, Inbox
from quantjit.content import Marks, key_of
from quantjit.decoded import Pixels
from quantjit.errors import Interrupted, UsageError
from quantjit.flow import cores
from quantjit.images import Shape
from quantjit.job import REPORT_BYTES, Decode, Look, Work
from quantjit.leaderboard import Row, save
from quantjit.manifest import Entry, Manifest
from quantjit.table import save_bytes

RECORD = "record.json"
"""Of a model's folder: what it was made from and what became of it."""

DONE, REFUSED = "done", "refused"
"""Outcomes that are the same the next time; anything else is tried again."""

_WORK, _MARKS, _LOCK, _LOG = ".work", "marks.json", "lock", "log.txt"
_OWN_BYTES = 192 * 2**20  # of this process, which only starts others; measured
_DECODING_BYTES = 320 * 2**20  # of a process that decodes; measured
_PIXEL_BYTES = 2 * 2**30  # of decoded images on disk, all together
_SHARE_OF_FREE = 0.9  # of the memory that is free, where no budget is given
_LEAST_SHARING = 2  # models that make it worth while
_SECONDS_TO_LOCK = 5.0  # until the processes of a run that was killed are gone


class Watcher(Protocol):
    """Is told how it goes; called from the thread that called `run`."""

    def planned(self, total: int, to_do: int) -> None:
        """Hear how many models there are, and how many of them have to run."""
        ...

    def started(self, name: str, threads: int) -> None:
        """Hear that a model, or something that several need, begins."""
        ...

    def progress(self, name: str, stage: str, done: int, total: int) -> None:
        """Hear how many inputs are through a stage."""
        ...

    def finished(self, name: str, row: Row | None) -> None:
        """Hear that it ended; row: of a model."""
        ...


class Silent:
    """A watcher that shows nothing."""

    def planned(self, total: int, to_do: int) -> None:
        """Show nothing."""

    def started(self, name: str, threads: int) -> None:
        """Show nothing."""

    def progress(self, name: str, stage: str, done: int, total: int) -> None:
        """Show nothing."""

    def finished(self, name: str, row: Row | None) -> None:
        """Show nothing."""


@dataclass(frozen=True, slots=True)
class Zoo:
    """What became of a zoo.

    rows: in the order of the manifest.  ran: names of the models that were not up to date.
    paths: of the leaderboard, the page first.
    """

    rows: tuple[Row, ...]
    ran: tuple[str, ...]
    paths: tuple[Path, ...]


def run(
    manifest: Manifest,
    output: Path,
    *,
    memory: int | None = None,
    jobs: int | None = None,
    marks: str = "bytes",
    share: bool = True,
    watcher: Watcher | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Zoo:
    """Bring a zoo up to date.

    output: folder of the results; it is made.  memory: bytes that all processes together may take;
    by default most of what is free.  jobs: threads of all together, by default one a core.  marks:
    how files are recognized, see `quantjit.content`.  share: decode images once that several models
    need alike.  stop: asked all the time; once it is True everything is ended and Interrupted
    raised.  Nothing of this but `memory` is seen by the results, and that only where statistics of
    thousands of channels would not fit (see `quantjit.plan`); what was made under another stays.
    """
    if memory is not None and memory <= _OWN_BYTES + REPORT_BYTES:
        raise UsageError(f"--memory {memory / 1e6:.0f}M is too little for a zoo")
    watcher = watcher or Silent()
    (output / _WORK).mkdir(parents=True, exist_ok=True)
    with _locked(output / _WORK / _LOCK) as lock:
        known = Marks(output / _WORK / _MARKS, marks)
        keys = {entry.name: key_of(entry, known) for entry in manifest.entries}
        records = {entry.name: _current(output, entry, keys, known) for entry in manifest.entries}
        to_do = [entry for entry in manifest.entries if records[entry.name] is None]
        watcher.planned(len(manifest.entries), len(to_do))
        _clean(output / _WORK, {_staging(keys, entry) for entry in to_do})
        known.save()
        if to_do:
            team = _Team(output, keys, known, lock, memory, jobs or cores(), watcher, stop)
            records |= team.run(to_do, share=share)
            known.save()
            _clean(output / _WORK, set())
        rows = tuple(_row(entry, records[entry.name] or {}) for entry in manifest.entries)
        return Zoo(rows, tuple(entry.name for entry in to_do), save(rows, output))


# ------------------------------------------------------------------ records


def _current(
    output: Path, entry: Entry, keys: Mapping[str, str], marks: Marks
) -> dict[str, Any] | None:
    """Return the record of a model that is up to date, None where it has to run."""
    folder = output / entry.name
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["key"] != keys[entry.name] or record["kind"] not in {DONE, REFUSED}:
            return None
        for name, expected in record["files"].items():
            file = folder / name
            if marks.sha256(file, file.stat()) != expected:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or damaged
        return None
    return dict(record)


def _row(entry: Entry, record: Mapping[str, Any]) -> Row:
    return Row(
        entry.name,
        entry.path.name,
        record.get("outcome"),
        entry.gates,
        record.get("error", ""),
        record.get("seconds"),
        record.get("peak_bytes"),
    )


def _staging(keys: Mapping[str, str], entry: Entry) -> str:
    """Return the name of the folder in which a model is made, the same for the same content."""
    return f"{entry.name}-{keys[entry.name][:16]}"


def _publish(staged: Path, folder: Path, record: dict[str, Any], marks: Marks) -> None:
    """Put a model's folder in its place, whole, with its record."""
    files = sorted(file for file in staged.rglob("*") if file.is_file())
    record["files"] = {
        file.relative_to(staged).as_posix(): marks.sha256(file, file.stat()) for file in files
    }
    save_bytes(json.dumps(record, indent=1).encode(), staged / RECORD)
    old = staged.with_name(f"{staged.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    staged.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _clean(work: Path, kept: set[str]) -> None:
    """Delete what earlier runs left and nobody goes on with."""
    for place in work.iterdir():
        if place.is_dir() and place.name not in kept:
            shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Generator[int]:
    """Hold the folder of results alone; yield the descriptor that holds it.

    The processes of a run inherit it: one that was killed holds it until the last of them is gone.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if sys.platform != "win32":
            import fcntl

            deadline = time.monotonic() + _SECONDS_TO_LOCK
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UsageError(
                            f"{path.parent.parent}: another quantjit zoo is writing there"
                        ) from None
                    time.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------ running


@dataclass(slots=True)
class _Step:
    """Something to do in a process: a model, or images that several models need.

    bytes: it takes with so many threads; {} where nobody knows.  cost: what it is ordered by.
    """

    name: str
    entry: Entry | None
    bytes: Mapping[int, int]
    cost: float
    needs: "_Step | None" = None
    pixels: "_Group | None" = None
    threads: int = 1
    taken: int = 0
    is_done: bool = False
    started: float = 0.0
    message: dict[str, Any] = field(default_factory=dict)

    def take(self, threads: int, budget: int) -> int:
        """Return what it takes; all there is where that is not known."""
        return self.bytes.get(threads, budget)


@dataclass(slots=True)
class _Group:
    """Models that need the same images in the same size."""

    entries: list[Entry]
    shape: Shape
    folder: Path
    most_bytes: int = 0


class _Team:
    """The processes of one run."""

    def __init__(
        self,
        output: Path,
        keys: Mapping[str, str],
        marks: Marks,
        lock: int,
        memory: int | None,
        jobs: int,
        watcher: Watcher,
        stop: Callable[[], bool],
    ) -> None:
        self._output, self._keys, self._marks = output, keys, marks
        self._work = output / _WORK
        self._kept = () if sys.platform == "win32" else (lock,)
        # of what a single model may use: results depend on it, so it does not depend on the others
        self._memory = None if memory is None else memory - _OWN_BYTES - REPORT_BYTES
        self._budget = _free_bytes() if memory is None else memory - _OWN_BYTES
        self._jobs, self._watcher, self._stop = jobs, watcher, stop
        self._inbox = Inbox()
        self._running: dict[Child, _Step] = {}
        self._records: dict[str, dict[str, Any]] = {}

    def run(self, entries: Sequence[Entry], *, share: bool) -> dict[str, dict[str, Any]]:
        """Run all models and return their records."""
        try:
            facts = self._look(entries)
            groups = self._groups(entries, facts) if share else []
            self._run_all(self._steps(entries, facts, groups))
        finally:
            for child in list(self._running):
                child.kill()
        return self._records

    def _receive(self) -> tuple[Child, Mapping[str, Any] | Ended]:
        """Return the next event; Interrupted where the user wants to stop."""
        while True:
            if self._stop():
                done = len(self._records)
                raise Interrupted(
                    f"interrupted: {done} models are done; the same command does the others"
                )
            with contextlib.suppress(queue.Empty):
                return self._inbox.get(timeout=0.1)

    # -------------------------------------------------- before

    def _look(self, entries: Sequence[Entry]) -> dict[str, Mapping[str, Any]]:
        """Return what the models take, as far as they can be looked at."""
        found: dict[str, Mapping[str, Any]] = {}
        rest = list(entries)
        while rest:
            task = Look(tuple(rest), self._memory, self._jobs)
            step = _Step("looking at the models", None, {}, 0.0)
            child = Child(task, self._inbox, self._work / "look.txt", 1, self._kept)
            self._running[child] = step
            at = rest[0].name
            while True:
                _, event = self._receive()
                if isinstance(event, Ended):
                    break
                at = event.get("looking", at)
                if "model" in event:
                    found[event["model"]] = event
            del self._running[child]
            names = [entry.name for entry in rest]
            # where it ended at a model, that one runs alone and says what is wrong
            rest = [] if event.code == 0 else rest[names.index(at) + 1 :]
        return found

    def _groups(
        self, entries: Sequence[Entry], facts: Mapping[str, Mapping[str, Any]]
    ) -> list[_Group]:
        """Return the models that need the same images in the same size."""
        found: dict[tuple[Any, ...], list[Entry]] = {}
        for entry in entries:
            shapes = list(facts.get(entry.name, {}).get("shapes", {}).values())
            if len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][1] in {1, 3, 4}:
                how = entry.inputs.preprocess
                place = entry.input_path, entry.inputs.limit
                same = (*place, tuple(shapes[0]), how.resize, how.resize_shorter)
                found.setdefault(same, []).append(entry)
        shared = [(same, group) for same, group in found.items() if len(group) >= _LEAST_SHARING]
        room = min(_PIXEL_BYTES, shutil.disk_usage(self._work).free // 4) // max(1, len(shared))
        return [
            _Group(group, same[2], self._work / f"pixels{number}", room)
            for number, (same, group) in enumerate(shared)
        ]

    def _steps(
        self,
        entries: Sequence[Entry],
        facts: Mapping[str, Mapping[str, Any]],
        groups: Sequence[_Group],
    ) -> list[_Step]:
        """Return everything to do, the longest first so that no core waits in the end."""
        decoding: dict[str, _Step] = {}
        for number, group in enumerate(groups, 1):
            size = f"{group.shape[3]} x {group.shape[2]}"
            name = f"images {number} ({group.entries[0].input_path.name}, {size})"
            taken = dict.fromkeys(range(1, self._jobs + 1), _DECODING_BYTES)
            step = _Step(name, None, taken, float("inf"), pixels=group)
            decoding |= {entry.name: step for entry in group.entries}
        steps = list({id(step): step for step in decoding.values()}.values())
        for entry in entries:
            fact = facts.get(entry.name, {})
            taken = {int(threads): size for threads, size in fact.get("bytes", {}).items()}
            if "error" in fact:  # it will be told soon
                taken = dict.fromkeys(range(1, self._jobs + 1), _DECODING_BYTES)
            step = _Step(entry.name, entry, taken, fact.get("macs", 0.0))
            step.needs = decoding.get(entry.name)
            step.pixels = step.needs.pixels if step.needs else None
            steps.append(step)
        return sorted(steps, key=lambda step: -step.cost)

    # -------------------------------------------------- under way

    def _run_all(self, pending: list[_Step]) -> None:
        while pending or self._running:
            while step := self._next(pending):
                pending.remove(step)
                self._start(step)
            child, event = self._receive()
            step = self._running[child]
            if isinstance(event, Ended):
                del self._running[child]
                step.is_done = True
                self._end(step, event)
                self._forget_pixels(pending)
            elif "stage" in event:
                self._watcher.progress(step.name, event["stage"], event["done"], event["total"])
            else:
                step.message = dict(event)

    def _next(self, pending: Sequence[_Step]) -> _Step | None:
        """Return what can begin now, with its threads; None where it has to wait."""
        free_cores = self._jobs - sum(step.threads for step in self._running.values())
        free_bytes = self._budget - sum(step.taken for step in self._running.values())
        ready = [step for step in pending if step.needs is None or step.needs.is_done]
        if not ready or free_cores < 1:
            return None
        first, fitting, left = None, 0, free_bytes
        for step in ready:
            if step.take(1, self._budget) <= left and fitting < free_cores:
                first = first or step
                fitting += 1
                left -= step.take(1, self._budget)
        if first is None:
            if self._running:
                return None
            first, fitting = ready[0], 1  # alone: if it is too little, it says so itself
        first.threads = free_cores // max(1, fitting)
        while first.threads > 1 and first.take(first.threads, self._budget) > free_bytes:
            first.threads -= 1
        first.taken = first.take(first.threads, self._budget)
        return first

    def _start(self, step: _Step) -> None:
        group = step.pixels
        task: Decode | Work
        if step.entry is not None:
            folder = self._work / _staging(self._keys, step.entry)
            folder.mkdir(exist_ok=True)
            is_there = group is not None and Pixels.is_in(group.folder)
            pixels = group.folder if group is not None and is_there else None
            task = Work(step.entry, folder, pixels, self._memory, step.threads)
            log = folder / _LOG
        elif group is not None:
            entry = group.entries[0]
            task = Decode(
                group.folder,
                entry.input_path,
                entry.inputs.limit,
                group.shape,
                entry.inputs.preprocess,
                group.most_bytes,
                step.threads,
            )
            log = self._work / "decode.txt"
        else:
            raise AssertionError("a step is a model or images")
        step.started = time.monotonic()
        self._running[Child(task, self._inbox, log, step.threads, self._kept)] = step
        self._watcher.started(step.name, step.threads)

    def _end(self, step: _Step, ended: Ended) -> None:
        """Record what became of a model; images that could not be decoded are decoded later."""
        if step.entry is None:
            self._watcher.finished(step.name, None)
            return
        entry, message = step.entry, step.message
        staged = self._work / _staging(self._keys, entry)
        record: dict[str, Any] = {
            "key": self._keys[entry.name],
            "kind": DONE,
            "outcome": message.get("outcome"),
            "seconds": round(message.get("seconds", time.monotonic() - step.started), 3),
            "peak_bytes": message.get("peak_bytes") or ended.peak_bytes,
        }
        if ended.code != 0 or record["outcome"] is None:
            record |= {
                "outcome": None,
                "kind": message.get("kind", "ended"),
                "error": _one_line(message.get("error") or ended.reason).replace(
                    str(staged), str(self._output / entry.name)
                ),
            }
            self._keep_log_only(staged)
        else:
            (staged / _LOG).unlink(missing_ok=True)
        _publish(staged, self._output / entry.name, record, self._marks)
        self._records[entry.name] = record
        self._watcher.finished(step.name, _row(entry, record))

    def _keep_log_only(self, staged: Path) -> None:
        for place in staged.iterdir():
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            elif place.name != _LOG or not place.stat().st_size:
                place.unlink()

    def _forget_pixels(self, pending: Sequence[_Step]) -> None:
        """Delete decoded images that no model needs any more."""
        users = [step.pixels for step in (*pending, *self._running.values()) if step.pixels]
        for place in self._work.glob("pixels*"):
            if not any(group.folder == place for group in users):
                shutil.rmtree(place, ignore_errors=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _free_bytes() -> int:
    """Return the memory that processes may take now."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # of a container
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text(encoding="ascii"))
        found.append(most - int((group / "memory.current").read_text(encoding="ascii")))
    if not found and hasattr(os, "sysconf"):
        with contextlib.suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return int(min(found, default=2**32) * _SHARE_OF_FREE)
