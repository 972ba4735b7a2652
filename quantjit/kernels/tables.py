"""Any function of one code, by a table of 256: 64 codes at a time where the CPU permutes bytes."""

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numpy.typing import NDArray

from quantjit.kernels import simd
from quantjit.kernels.addresses import longs
from quantjit.kernels.schedule import INPUT, OUTPUT, Prepared
from quantjit.kernels.simd import I8, I64, Emitter, constant, emitted

_CODES = 64
_WORTH_A_TASK = 1 << 15  # codes

PERMUTES = simd.BITS == 512 and bool(binding.get_host_cpu_features().get("avx512vbmi"))
"""Whether the CPU looks up 64 bytes in a table at once."""

(TABLE, ROWS, SIZE, OUT_SIZE, OUT_AT, SHARES, FIELDS) = range(3, 10)
"""Fields behind the addresses: the table's, then codes of a row of input and output, and where the
first goes in the second."""


def _translate(e: Emitter, source: Any, table: Any, out: Any, count: Any) -> None:
    """Write table[code + 128] for `count` int8 codes; all are addresses."""
    builder = e.builder
    kind = ir.VectorType(I8, _CODES)
    parts = [e.load(e.at(table, part, _CODES), kind) for part in range(4)]
    flip, empty = constant(I8, _CODES, 0x80), constant(I8, _CODES, 0)

    def body(index: Any, carried: list[Any]) -> list[Any]:
        at = builder.mul(index, ir.Constant(I64, _CODES))
        inside = e.lanes_within(ir.Constant(I64, 0), builder.sub(count, at), _CODES)
        codes = e.load_some(e.at(source, at), inside, empty)
        index_ = builder.xor(codes, flip)
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        low = e.call(name, kind, parts[0], index_, parts[1])
        high = e.call(name, kind, parts[2], index_, parts[3])
        found = builder.select(builder.icmp_signed("<", index_, empty), high, low)
        e.store_some(found, e.at(out, at), inside)
        return carried

    blocks = builder.add(count, ir.Constant(I64, _CODES - 1))
    e.loop(builder.sdiv(blocks, ir.Constant(I64, _CODES)), [], body)


_TRANSLATE = emitted("iiii", _translate)


def translate_task(address: int, task: int, thread: int) -> None:
    """Translate one share of each row."""
    d = longs(address, FIELDS)
    first, last = task * d[SIZE] // d[SHARES], (task + 1) * d[SIZE] // d[SHARES]
    for row in range(d[ROWS]):
        _TRANSLATE(
            d[INPUT] + row * d[SIZE] + first, d[TABLE],
            d[OUTPUT] + row * d[OUT_SIZE] + d[OUT_AT] + first, last - first,
        )  # fmt: skip


def prepare_translation(
    table: NDArray[np.int8], rows: int, size: int, out: tuple[int, int], source: int, threads: int
) -> Prepared:
    """Prepare the translation of int8 (rows, size); needs `PERMUTES`.

    table: int8 (256,), by code + 128; out: codes of a row of the output, and where in it these go;
    source: which input is read.
    """
    kept = np.ascontiguousarray(table, np.int8)
    shares = max(1, min(2 * threads, size // _WORTH_A_TASK)) if threads > 1 else 1
    description = np.array([0, 0, 0, kept.ctypes.data, rows, size, *out, shares], np.int64)
    return Prepared(description, translate_task, shares, (kept,), source)
