"""Runs a table of nodes in one call a thread, without the GIL and without Python in between.

A node is a function over tasks that share nothing; each thread takes the next task of the current
node until none is left, waits for those that others still do, and goes on to the next node.  A
thread that comes late finds the work done: nobody waits for one that has not started.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from quantjit.kernels import caching, kernel
from quantjit.kernels.addresses import add, compare_and_swap, load, longs, swap, yield_core

INPUT, OUTPUT, SECOND_INPUT, SCRATCH = range(4)
"""Fields that a description starts with: addresses of what a node reads and writes; the last one
where it has scratch."""

_LINE = 64

FUNCTION, DESCRIPTION, TASKS, ROW = range(4)
"""Fields of a row of the table: address of the task's function, of its description, how many."""

STRIDE = 16
"""int64 of a node's counters: next task, tasks done; a cache line apart."""

TaskFunction = Callable[[int, int, int], None]
"""``function(address of the description, task, thread)``."""

_I64 = ir.IntType(64)
ENDED, CHANGING = -1, -2
"""What stands for a turn when there are no more, and while the work of the next is written."""

TABLE, FIRST, LAST, COUNTERS, TURN = range(5)
ASLEEP = 16
"""Cells that a team shares: the work of a turn, the turn, and from ASLEEP on a thread's sleep."""

_SPINS = 2000
_PATIENCE = 200_000
"""Looks at the turn before a thread falls asleep: some tenths of a millisecond."""


@cache
def pointer(function: TaskFunction) -> int:
    """Compile a task's function for calls by address; returns the address."""
    signature = types.void(types.int64, types.int64, types.int64)
    with caching():
        compiled = numba.cfunc(signature, cache=True, error_model="numpy")(function)
    _keep.append(compiled)
    address: Any = compiled.address
    return int(address)


_keep: list[Any] = []  # compiled functions live as long as their addresses


def _call(context: Any, address: Any, description: Any, task: Any, thread: Any) -> Any:
    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 3)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return _.get_dummy_value()

    del context
    return types.void(address, description, task, thread), codegen


call: Any = intrinsic(_call)


@kernel
def run_alone(table: NDArray[np.int64], first: int, last: int) -> None:
    """Run rows `first` to `last` of the table, int64 (nodes, ROW), on this thread only."""
    for node in range(first, last):
        function, description = table[node, FUNCTION], table[node, DESCRIPTION]
        for task in range(table[node, TASKS]):
            call(function, description, task, 0)


@kernel
def run_together(table: int, first: int, last: int, counters: int, turn: int, thread: int) -> int:
    """Run rows `first` to `last` together with the other threads that have this `turn`.

    table: address of int64 (nodes, ROW); counters: of int64 (nodes, STRIDE), in which both counters
    of each node were set to ``turn << 32``.  A counter of another turn means that this one is over.
    Returns how many tasks this thread did.
    """
    start = turn << 32
    did = 0
    for node in range(first, last):
        row = longs(table + node * ROW * 8, ROW)
        function, description, tasks = row[FUNCTION], row[DESCRIPTION], row[TASKS]
        following, finished = counters + node * STRIDE * 8, counters + node * STRIDE * 8 + 64
        while True:
            seen = load(following)
            if seen >> 32 != turn:
                return did
            task = seen - start
            if task >= tasks:
                break
            if compare_and_swap(following, seen, seen + 1) == 1:
                call(function, description, task, thread)
                add(finished, 1)
                did += 1
        spins = 0
        while True:
            seen = load(finished)
            if seen >> 32 != turn:
                return did
            if seen - start >= tasks:
                break
            spins += 1
            if spins > _SPINS:
                yield_core()
                spins = 0
    return did


@kernel
def lead(cells: int, turn: int, sleepers: NDArray[np.int64]) -> None:
    """Open a turn, whose work is in the cells.

    sleepers: int64 (threads,), becomes 1 for the threads that are asleep and must be woken.
    """
    swap(cells + TURN * 8, turn)
    for thread in range(1, sleepers.size):
        sleepers[thread] = swap(cells + (ASLEEP + thread * STRIDE) * 8, 0)


@kernel
def follow(cells: int, turn: int, thread: int) -> int:
    """Run one turn after the other until none came for a while or the team ended.

    turn: the last one that this thread knows.  Returns the last turn then, ENDED at the end; before
    it returns another, the thread counts as asleep.
    """
    asleep = cells + (ASLEEP + thread * STRIDE) * 8
    spins = 0
    while True:
        now = load(cells + TURN * 8)
        if now == ENDED:
            return ENDED
        if now != turn and now != CHANGING:
            table, counters = load(cells + TABLE * 8), load(cells + COUNTERS * 8)
            first, last = load(cells + FIRST * 8), load(cells + LAST * 8)
            if load(cells + TURN * 8) == now:  # else these may be halves of two turns
                turn, spins = now, 0
                run_together(table, first, last, counters, turn, thread)
            continue
        spins += 1
        if spins > _PATIENCE:
            swap(asleep, 1)
            if load(cells + TURN * 8) == turn:
                return turn
            swap(asleep, 0)  # a turn came meanwhile, and perhaps a wake-up that finds us awake
            spins = 0


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A node that is ready to run, alone or as a row of a table.

    description: int64, the addresses of input and output first.  function: what does a task.
    tasks: how many there are.  arrays: what the description points at.  source: which of the
    inputs is read.  scratch_bytes: what it needs while it runs.
    """

    description: NDArray[np.int64]
    function: TaskFunction
    tasks: int
    arrays: tuple[NDArray[Any], ...] = ()
    source: int = 0
    scratch_bytes: int = 0

    def bind(
        self,
        inputs: Sequence[NDArray[Any]],
        outputs: Sequence[NDArray[Any]],
        scratch: NDArray[np.uint8],
    ) -> None:
        """Point at these C-contiguous arrays, which the caller keeps alive.

        scratch: of `make_scratch`; nodes that run one after the other may share it.
        """
        if self.scratch_bytes:
            self.description[SCRATCH] = scratch.ctypes.data
        self.description[INPUT] = inputs[self.source].ctypes.data
        self.description[OUTPUT] = outputs[0].ctypes.data
        self.description[SECOND_INPUT] = inputs[-1].ctypes.data

    @property
    def rows(self) -> list[tuple[int, int, int]]:
        """Its row in a table, as the only one of a list."""
        return [(pointer(self.function), self.description.ctypes.data, self.tasks)]

    def __call__(self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> None:
        """Run on these arrays, on this thread."""
        scratch = make_scratch(self.scratch_bytes)
        self.bind(inputs, outputs, scratch)
        run_alone(np.array(self.rows, np.int64), 0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A node that takes several rows of a table, one after the other."""

    links: tuple[Prepared, ...]

    @property
    def scratch_bytes(self) -> int:
        """Return what the neediest link needs."""
        return max(link.scratch_bytes for link in self.links)

    def bind(
        self,
        inputs: Sequence[NDArray[Any]],
        outputs: Sequence[NDArray[Any]],
        scratch: NDArray[np.uint8],
    ) -> None:
        """Point at these C-contiguous arrays, which the caller keeps alive."""
        for link in self.links:
            link.bind(inputs, outputs, scratch)

    @property
    def rows(self) -> list[tuple[int, int, int]]:
        """Its rows in a table."""
        return [row for link in self.links for row in link.rows]

    def __call__(self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> None:
        """Run on these arrays, on this thread."""
        for link in self.links:
            link(inputs, outputs)


def make_scratch(size: int) -> NDArray[np.uint8]:
    """Return memory for the scratch of nodes, at the start of a cache line."""
    raw = np.zeros(size + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + size]


class Team:
    """The threads that run tables together; the calling thread is one of them.

    A thread without work looks out for some a little longer, then sleeps.  threads: how many in
    all.
    """

    def __init__(self, threads: int) -> None:
        self._cells = np.zeros(ASLEEP + (threads + 1) * STRIDE, np.int64)
        self._starts = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._sleepers, self._nobody = np.zeros(threads, np.int64), np.zeros(0, np.int64)
        self._turn = 0
        # What a late thread may still look at lives as long as the threads do.
        self._kept: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        for index, start in enumerate(self._starts):
            arguments = (self._cells, self._kept, start, index + 1)
            threading.Thread(target=_help, args=arguments, daemon=True).start()
        self._end = weakref.finalize(self, _end, self._cells, self._starts, self._sleepers)

    def run(self, table: NDArray[np.int64], first: int, last: int) -> None:
        """Run rows `first` to `last` of the table."""
        self._turn += 1
        if id(table) not in self._kept:
            self._kept[id(table)] = table, np.zeros((len(table), STRIDE), np.int64)
        counters = self._kept[id(table)][1]
        counters[:] = self._turn << 32
        work = table.ctypes.data, first, last, counters.ctypes.data
        lead(self._cells.ctypes.data, CHANGING, self._nobody)
        self._cells[:TURN] = work
        lead(self._cells.ctypes.data, self._turn, self._sleepers)
        _wake(self._starts, self._sleepers)
        run_together(*work, self._turn, 0)

    def close(self) -> None:
        """Let the other threads end."""
        self._end()


def _wake(starts: Sequence[threading.Semaphore], sleepers: NDArray[np.int64]) -> None:
    for start, sleeps in zip(starts, sleepers[1:], strict=True):
        if sleeps:
            start.release()


def _end(
    cells: NDArray[np.int64],
    starts: Sequence[threading.Semaphore],
    sleepers: NDArray[np.int64],
) -> None:
    lead(cells.ctypes.data, ENDED, sleepers)
    _wake(starts, sleepers)


def _help(
    cells: NDArray[np.int64],
    kept: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]],
    start: threading.Semaphore,
    thread: int,
) -> None:
    """Follow a team; must not keep the team itself alive, or neither would ever end."""
    turn = 0
    while True:
        turn = follow(cells.ctypes.data, turn, thread)
        if turn == ENDED:
            del kept  # the arrays were needed until here
            return
        start.acquire()
