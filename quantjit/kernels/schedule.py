"""Runs a table of nodes in one call a thread, without the GIL and without Python in between.

A node is a function over tasks that share nothing; each thread takes the next task of the current
node until none is left, waits for those that others still do, and goes on to the next node.  A
thread that comes late finds the work done: nobody waits for one that has not started.
"""

import os
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
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from quantjit.kernels import caching, kernel

INPUT, OUTPUT, SECOND_INPUT = range(3)
"""Fields that every description starts with: addresses of what a node reads and writes."""

FUNCTION, DESCRIPTION, TASKS, ROW = range(4)
"""Fields of a row of the table: address of the task's function, of its description, how many."""

STRIDE = 16
"""int64 of a node's counters: next task, tasks done; a cache line apart."""

TaskFunction = Callable[[int, int, int], None]
"""``function(address of the description, task, thread)``."""

_I64 = ir.IntType(64)
_SPINS = 2000


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


def _compare_and_swap(context: Any, address: Any, expected: Any, wanted: Any) -> Any:
    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], _I64.as_pointer())
        pair = builder.cmpxchg(place, values[1], values[2], "acq_rel", "acquire")
        return builder.zext(builder.extract_value(pair, 1), _I64)

    del context
    return types.int64(address, expected, wanted), codegen


compare_and_swap: Any = intrinsic(_compare_and_swap)


def _load(context: Any, address: Any) -> Any:
    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], _I64.as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    del context
    return types.int64(address), codegen


load: Any = intrinsic(_load)


def _add(context: Any, address: Any, amount: Any) -> Any:
    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], _I64.as_pointer())
        return builder.atomic_rmw("add", place, values[1], "acq_rel")

    del context
    return types.int64(address, amount), codegen


add: Any = intrinsic(_add)


def _yield(context: Any) -> Any:
    def codegen(context: Any, builder: Any, __: Any, ___: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        name = "sched_yield" if hasattr(os, "sched_yield") else "SwitchToThread"
        function: Any = cgutils.get_or_insert_function  # untyped
        builder.call(function(builder.module, kind, name), [])
        return context.get_dummy_value()

    del context
    return types.void(), codegen


yield_core: Any = intrinsic(_yield)


@kernel
def run_alone(table: NDArray[np.int64], first: int, last: int) -> None:
    """Run rows `first` to `last` of the table, int64 (nodes, ROW), on this thread only."""
    for node in range(first, last):
        function, description = table[node, FUNCTION], table[node, DESCRIPTION]
        for task in range(table[node, TASKS]):
            call(function, description, task, 0)


@kernel
def run_together(
    table: NDArray[np.int64], first: int, last: int, counters: int, turn: int, thread: int
) -> int:
    """Run rows `first` to `last` together with the other threads that are called with this `turn`.

    counters: address of int64 (nodes, STRIDE), in which the caller has set both counters of each
    node to ``turn << 32``.  A counter of another turn means that this one is over.  Returns how
    many tasks this thread did.
    """
    start = turn << 32
    did = 0
    for node in range(first, last):
        function, description = table[node, FUNCTION], table[node, DESCRIPTION]
        tasks = table[node, TASKS]
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


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A node that is ready to run, alone or as a row of a table.

    description: int64, the addresses of input and output first.  function: what does a task.
    tasks: how many there are.  arrays: what the description points at.  source: which of the
    inputs is read.
    """

    description: NDArray[np.int64]
    function: TaskFunction
    tasks: int
    arrays: tuple[NDArray[Any], ...] = ()
    source: int = 0

    def bind(self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> None:
        """Point at these C-contiguous arrays, which the caller keeps alive."""
        self.description[INPUT] = inputs[self.source].ctypes.data
        self.description[OUTPUT] = outputs[0].ctypes.data
        self.description[SECOND_INPUT] = inputs[-1].ctypes.data

    @property
    def rows(self) -> list[tuple[int, int, int]]:
        """Its row in a table, as the only one of a list."""
        return [(pointer(self.function), self.description.ctypes.data, self.tasks)]

    def __call__(self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> None:
        """Run on these arrays, on this thread."""
        self.bind(inputs, outputs)
        run_alone(np.array(self.rows, np.int64), 0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A node that takes several rows of a table, one after the other."""

    links: tuple[Prepared, ...]

    def bind(self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> None:
        """Point at these C-contiguous arrays, which the caller keeps alive."""
        for link in self.links:
            link.bind(inputs, outputs)

    @property
    def rows(self) -> list[tuple[int, int, int]]:
        """Its rows in a table."""
        return [row for link in self.links for row in link.rows]

    def __call__(self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> None:
        """Run on these arrays, on this thread."""
        for link in self.links:
            link(inputs, outputs)


class Team:
    """The threads that run tables together; the calling thread is one of them.

    threads: how many in all.
    """

    def __init__(self, threads: int) -> None:
        self._starts = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._work: tuple[NDArray[np.int64], int, int, NDArray[np.int64], int] | None = None
        self._turn = 0
        for index, start in enumerate(self._starts):
            # A thread must not keep its team alive, or neither would ever end.
            arguments = (weakref.ref(self), start, index + 1)
            threading.Thread(target=_help, args=arguments, daemon=True).start()

    def run(self, table: NDArray[np.int64], first: int, last: int) -> None:
        """Run rows `first` to `last` of the table."""
        self._turn += 1
        counters = np.full((len(table), STRIDE), self._turn << 32, np.int64)
        self._work = (table, first, last, counters, self._turn)
        for start in self._starts:
            start.release()
        run_together(table, first, last, counters.ctypes.data, self._turn, 0)

    def help(self, thread: int) -> bool:
        """Join the current work; False when the team is closed."""
        work = self._work
        if work is None:
            return False
        table, first, last, counters, turn = work
        run_together(table, first, last, counters.ctypes.data, turn, thread)
        return True

    def close(self) -> None:
        """Let the other threads end."""
        self._work = None
        for start in self._starts:
            start.release()

    def __del__(self) -> None:
        self.close()


def _help(team: "weakref.ref[Team]", start: threading.Semaphore, thread: int) -> None:
    while True:
        start.acquire()
        current = team()
        if current is None or not current.help(thread):
            return
        del current
