"""Memory by its address: arrays over it, and what threads agree through."""

import os
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from quantjit.kernels import kernel

carray: Any = numba.carray  # type: ignore[attr-defined]
_pointer_to: Any = types.CPointer


def _pointer(kind: Any, element: Any) -> Any:
    def view(context: Any, address: Any) -> Any:
        def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], element.as_pointer())

        return _pointer_to(kind)(address), codegen

    return intrinsic(view)


pointer_to_float32 = _pointer(types.float32, ir.FloatType())
_as_int64 = _pointer(types.int64, ir.IntType(64))
_as_int32 = _pointer(types.int32, ir.IntType(32))
_as_int16 = _pointer(types.int16, ir.IntType(16))
pointer_to_int8 = _pointer(types.int8, ir.IntType(8))
_as_uint8 = _pointer(types.uint8, ir.IntType(8))


@kernel
def floats(address: int, count: int) -> NDArray[np.float32]:
    """View `count` float32 at an address."""
    view: NDArray[np.float32] = carray(pointer_to_float32(address), (count,))
    return view


@kernel
def longs(address: int, count: int) -> NDArray[np.int64]:
    """View `count` int64 at an address."""
    view: NDArray[np.int64] = carray(_as_int64(address), (count,))
    return view


@kernel
def integers(address: int, count: int) -> NDArray[np.int32]:
    """View `count` int32 at an address."""
    view: NDArray[np.int32] = carray(_as_int32(address), (count,))
    return view


@kernel
def shorts(address: int, count: int) -> NDArray[np.int16]:
    """View `count` int16 at an address."""
    view: NDArray[np.int16] = carray(_as_int16(address), (count,))
    return view


@kernel
def codes(address: int, count: int) -> NDArray[np.int8]:
    """View `count` int8 at an address."""
    view: NDArray[np.int8] = carray(pointer_to_int8(address), (count,))
    return view


@kernel
def octets(address: int, count: int) -> NDArray[np.uint8]:
    """View `count` uint8 at an address."""
    view: NDArray[np.uint8] = carray(_as_uint8(address), (count,))
    return view


_I64 = ir.IntType(64)


def _compare_and_swap(context: Any, address: Any, expected: Any, wanted: Any) -> Any:
    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], _I64.as_pointer())
        pair = builder.cmpxchg(place, values[1], values[2], "acq_rel", "acquire")
        return builder.zext(builder.extract_value(pair, 1), _I64)

    del context
    return types.int64(address, expected, wanted), codegen


compare_and_swap: Any = intrinsic(_compare_and_swap)
"""``compare_and_swap(address, expected, wanted)``: 1 if the int64 was as expected, else 0."""


def _load(context: Any, address: Any) -> Any:
    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], _I64.as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    del context
    return types.int64(address), codegen


load: Any = intrinsic(_load)
"""``load(address)``: an int64 and all that was written before it."""


def _add(context: Any, address: Any, amount: Any) -> Any:
    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], _I64.as_pointer())
        return builder.atomic_rmw("add", place, values[1], "acq_rel")

    del context
    return types.int64(address, amount), codegen


add: Any = intrinsic(_add)
"""``add(address, amount)``: to an int64; returns what it was."""


def _swap(context: Any, address: Any, value: Any) -> Any:
    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], _I64.as_pointer())
        return builder.atomic_rmw("xchg", place, values[1], "seq_cst")

    del context
    return types.int64(address, value), codegen


swap: Any = intrinsic(_swap)
"""``swap(address, value)``: store an int64; returns what it was."""


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
"""Let another thread have the core."""
