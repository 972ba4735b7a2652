"""Micro-kernels written in LLVM's vector instructions, for the forms that this CPU has.

LLVM does not find register blocking or ``vpdpbusd`` in a loop over arrays, so the innermost loops
of convolution are emitted here: a tile of `rows` output channels by `vectors` vectors of
neighbouring pixels stays in registers while k runs over all taps.  Everything around them (packing,
tiling, epilogues of odd ends) is plain Numba.

A kernel of this file works on addresses; its callers own the bounds.  `FORM` is what was chosen:

============ ======================================================= ================
form         int8 products                                           vector
============ ======================================================= ================
avx512vnni   ``vpdpbusd``, four products of uint8 and int8 a lane    512 bit
avxvnni      the same                                                256 bit
avx512       ``vpmaddwd``, two products of int16 a lane              512 bit
avx2         the same                                                256 bit
portable     none of this file is used: plain loops over arrays      LLVM's choice
============ ======================================================= ================

QUANTJIT_KERNELS in the environment overrides the choice, among the forms that the CPU can run.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from quantjit.errors import UnsupportedError
from quantjit.kernels import FORM_VARIABLE, config

_NEEDS = {
    "avx512vnni": ("avx512f", "avx512bw", "avx512vl", "avx512vnni"),
    "avxvnni": ("avx2", "fma", "avxvnni"),
    "avx512": ("avx512f", "avx512bw", "avx512vl"),
    "avx2": ("avx2", "fma"),
    "portable": (),
}


def available() -> tuple[str, ...]:
    """Return the forms that this CPU runs, the fastest first."""
    features = binding.get_host_cpu_features()
    if features.get("avx512vnni") and features.get("avx512vl"):
        features["avxvnni"] = True  # the same instruction in another encoding
    return tuple(
        form for form, needs in _NEEDS.items() if all(features.get(need) for need in needs)
    )


def choose() -> str:
    """Return the form to use; UnsupportedError if the one asked for cannot run here."""
    if config.DISABLE_JIT:
        return "portable"
    known = available()
    wanted = os.environ.get(FORM_VARIABLE, "").strip().lower()
    if wanted and wanted not in known:
        raise UnsupportedError(f"{FORM_VARIABLE} value", wanted, known)
    return wanted or known[0]


FORM = choose()
BITS = 512 if FORM.startswith("avx512") else 256
LANES = BITS // 32
"""float32 or int32 values, and so pixels, of one vector."""
VECTORS = 4 if BITS == 512 else 2
"""Vectors of pixels in a full tile: with six rows what 32 or 16 vector registers hold."""
TILE = LANES * VECTORS
ROWS = (1, 4, 6)
"""Output channels of a tile: any even number of four or more is a sum of the last two."""
DOT = "vnni" in FORM
"""Whether `vpdpbusd` is there; without it products are of int16 pairs."""

AWAY, EVEN, RAW, CENTERED, RECTIFIED = range(5)
"""How int8 sums end: rounded half away from zero as in TNN after adding the zero point, half to
even as in ONNX before adding it, not at all; and the first for zero points of 0, and for these
where nothing is below 0."""

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
FLOATS, INTS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)


def constant(kind: Any, count: int, value: Any) -> Any:
    """Return a vector of `count` times the same value."""
    return ir.Constant(ir.VectorType(kind, count), [value] * count)


def _declare(builder: Any, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    module = builder.module
    if name in module.globals:
        return module.globals[name]
    return ir.Function(module, ir.FunctionType(result, arguments), name)


class Emitter:
    """What an emitted kernel is written with: addresses in, vectors out."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def at(self, address: Any, offset: Any, scale: int = 1) -> Any:
        """Address of element `offset` of `scale` bytes."""
        if isinstance(offset, int):
            return self.builder.add(address, ir.Constant(I64, offset * scale))
        if scale != 1:
            offset = self.builder.mul(offset, ir.Constant(I64, scale))
        return self.builder.add(address, offset)

    def load(self, address: Any, kind: Any) -> Any:
        """Load a value or vector of this type, from any address."""
        pointer = self.builder.inttoptr(address, kind.as_pointer())
        return self.builder.load(pointer, align=1)

    def store(self, value: Any, address: Any) -> None:
        """Store a value or vector, at any address."""
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, pointer, align=1)

    def splat(self, value: Any, lanes: int = LANES) -> Any:
        """Return a vector of `lanes` times this value."""
        kind = ir.VectorType(value.type, lanes)
        nothing = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, nothing, constant(I32, lanes, 0))

    def call(self, name: str, result: Any, *values: Any) -> Any:
        """Call a function of LLVM that returns this type."""
        function = _declare(self.builder, name, result, [value.type for value in values])
        return self.builder.call(function, values)

    def loop(
        self, count: Any, carried: Sequence[Any], body: Callable[[Any, list[Any]], list[Any]]
    ) -> list[Any]:
        """Run body(index, carried) -> carried `count` times, which may be none."""
        builder = self.builder
        before = builder.block
        head, inside, after = (builder.append_basic_block(name) for name in ("head", "body", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(I64)
        index.add_incoming(ir.Constant(I64, 0), before)
        values = []
        for value in carried:
            phi = builder.phi(value.type)
            phi.add_incoming(value, before)
            values.append(phi)
        builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
        builder.position_at_end(inside)
        results = body(index, list(values))
        index.add_incoming(builder.add(index, ir.Constant(I64, 1)), builder.block)
        for phi, value in zip(values, results, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return values

    def fma(self, left: Any, right: Any, total: Any) -> Any:
        """Return left * right + total, rounded once."""
        return self.call(f"llvm.fma.v{total.type.count}f32", total.type, left, right, total)

    def at_least(self, value: Any, lowest: Any) -> Any:
        """Maximum; NaN stays NaN."""
        below = self.builder.fcmp_ordered("<", value, lowest)
        return self.builder.select(below, lowest, value)

    def at_most(self, value: Any, highest: Any) -> Any:
        """Minimum; NaN stays NaN."""
        above = self.builder.fcmp_ordered(">", value, highest)
        return self.builder.select(above, highest, value)

    def requantize(self, sums: Any, step: Any, zero: Any, high: Any, floor: Any, mode: int) -> Any:
        """Codes of int32 sums: scaled, clamped to `floor`, rounded, moved to the zero point.

        The lowest code is -128; a NaN takes the highest, as in TNN.
        """
        builder, lanes = self.builder, sums.type.count
        half, lowest = (constant(F32, lanes, value) for value in (0.5, -128.0))
        value = builder.fmul(builder.sitofp(sums, ir.VectorType(F32, lanes)), step)
        value = self.at_least(value, floor)
        if mode == EVEN:
            value = builder.fadd(self.call(f"llvm.rint.v{lanes}f32", value.type, value), zero)
        else:
            if mode == AWAY:
                value = builder.fadd(value, zero)
            if mode != RECTIFIED:  # where nothing is below 0 the half has no sign
                half = self.call(f"llvm.copysign.v{lanes}f32", half.type, half, value)
            value = builder.fadd(value, half)
        value = builder.select(builder.fcmp_ordered("<", value, high), value, high)
        if mode != RECTIFIED:
            value = builder.select(builder.fcmp_ordered(">", value, lowest), value, lowest)
        return builder.trunc(builder.fptosi(value, sums.type), ir.VectorType(I8, lanes))

    def load_some(self, address: Any, mask: Any, otherwise: Any) -> Any:
        """Load the lanes of `mask`; the others are `otherwise`, whatever lies there."""
        kind = otherwise.type
        pointer = self.builder.inttoptr(address, kind.as_pointer())
        element = "f32" if kind.element == F32 else "i8"
        name = f"llvm.masked.load.v{kind.count}{element}.p0"
        types_ = [pointer.type, I32, mask.type, kind]
        function = _declare(self.builder, name, kind, types_)
        return self.builder.call(function, [pointer, ir.Constant(I32, 1), mask, otherwise])

    def store_some(self, value: Any, address: Any, mask: Any) -> None:
        """Store the lanes of `mask`."""
        kind = value.type
        pointer = self.builder.inttoptr(address, kind.as_pointer())
        element = "f32" if kind.element == F32 else "i8"
        name = f"llvm.masked.store.v{kind.count}{element}.p0"
        types_ = [kind, pointer.type, I32, mask.type]
        function = _declare(self.builder, name, ir.VoidType(), types_)
        self.builder.call(function, [value, pointer, ir.Constant(I32, 1), mask])

    def lanes_within(self, start: Any, size: Any, count: int) -> Any:
        """Mask of the lanes l < count with 0 <= start + l < size."""
        kind = ir.VectorType(I32, count)
        nothing = ir.Constant(kind, ir.Undefined)

        def spread(value: Any) -> Any:
            narrow = self.builder.trunc(value, I32)
            first = self.builder.insert_element(nothing, narrow, ir.Constant(I32, 0))
            return self.builder.shuffle_vector(first, nothing, constant(I32, count, 0))

        lanes = self.builder.add(spread(start), ir.Constant(kind, list(range(count))))
        return self.builder.icmp_unsigned("<", lanes, spread(size))

    def dot(self, total: Any, pixels: Any, weights: Any) -> Any:
        """Add the products of each lane: of four bytes, or of two int16."""
        lanes = total.type.count
        if DOT:
            kind = ir.VectorType(I8, lanes * 4)
            name = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"
            pixels, weights = (self.builder.bitcast(value, kind) for value in (pixels, weights))
            return self.call(name, total.type, total, pixels, weights)
        kind = ir.VectorType(I16, lanes * 2)
        pixels, weights = (self.builder.bitcast(value, kind) for value in (pixels, weights))
        return self.builder.add(total, self.call(_PAIRS[lanes], total.type, pixels, weights))


_PAIRS = {
    16: "llvm.x86.avx512.pmaddw.d.512",
    8: "llvm.x86.avx2.pmadd.wd",
    4: "llvm.x86.sse2.pmadd.wd",
}


def emitted(arguments: str, emit: Callable[..., None]) -> Any:
    """Make an intrinsic of these arguments ("i" int64, "f" float32) that returns nothing."""
    kinds = tuple(types.int64 if kind == "i" else types.float32 for kind in arguments)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        del signature
        emit(Emitter(builder), *values)
        return context.get_dummy_value()

    names = [f"a{i}" for i in range(len(kinds))]
    scope = {"signature": types.void(*kinds), "codegen": codegen}
    source = f"def kernel(context, {', '.join(names)}):\n    return signature, codegen\n"
    exec(source, scope)
    return intrinsic(scope["kernel"])


def _lanes(halves: int) -> list[int]:
    """Lanes of the vectors of a tile that is `halves` half vectors wide."""
    return [LANES] * (halves // 2) + [LANES // 2] * (halves % 2)


def _accumulate(
    emit: Emitter,
    tile: tuple[int, int],
    weights: Any,
    pixels: Any,
    offsets: Any,
    depth: Any,
    start: list[Any],
) -> list[Any]:
    """Run over all taps: ``sums[row][vector] += weights[k][row] * (pixels + offsets[k])``."""
    rows, halves = tile
    element = start[0].type.element

    def body(index: Any, sums: list[Any]) -> list[Any]:
        there = emit.builder.add(pixels, emit.load(emit.at(offsets, index, 8), I64))
        columns = [
            emit.load(emit.at(there, v, BITS // 8), ir.VectorType(element, lanes))
            for v, lanes in enumerate(_lanes(halves))
        ]
        factors = emit.at(weights, index, 4 * rows)
        for row in range(rows):
            factor = emit.load(emit.at(factors, row, 4), element)
            for v, column in enumerate(columns):
                at = row * len(columns) + v
                spread = emit.splat(factor, column.type.count)
                if element == F32:
                    sums[at] = emit.fma(spread, column, sums[at])
                else:
                    sums[at] = emit.dot(sums[at], column, spread)
        return sums

    return emit.loop(depth, start, body)


def _start(emit: Emitter, tile: tuple[int, int], bias: Any, kind: Any) -> list[Any]:
    rows, halves = tile
    values = [emit.load(emit.at(bias, row, 4), kind) for row in range(rows)]
    return [emit.splat(value, lanes) for value in values for lanes in _lanes(halves)]


def _multiply_float(rows: int, halves: int) -> Any:
    """Kernel of one float32 tile, `halves` half vectors wide.

    weights: float32 (depth, rows); pixels: address of the tile's first pixel in the first plane;
    offsets: int64 (depth,), bytes from there to the pixel that tap k multiplies; bias: float32
    (rows,); out: the tile's first output, its rows `stride` bytes apart; low, high: clamp.
    """

    def emit(e: Emitter, weights: Any, pixels: Any, offsets: Any, depth: Any, bias: Any,
             out: Any, stride: Any, low: Any, high: Any) -> None:  # fmt: skip
        tile, vectors = (rows, halves), _lanes(halves)
        start = _start(e, tile, bias, F32)
        sums = _accumulate(e, tile, weights, pixels, offsets, depth, start)
        for row in range(rows):
            line = e.at(out, e.builder.mul(stride, ir.Constant(I64, row)))
            for v, lanes in enumerate(vectors):
                value = e.at_least(sums[row * len(vectors) + v], e.splat(low, lanes))
                e.store(e.at_most(value, e.splat(high, lanes)), e.at(line, v, BITS // 8))

    return emitted("iiiiiiiff", emit)


def _multiply_int8(rows: int, halves: int) -> Any:
    """Kernel of one int8 tile, `halves` half vectors wide.

    As the float one; weights: 4 bytes a row and tap (four int8 or two int16); bias: int32 (rows,).
    terms: float32 (3, count): factor, zero point and highest code of each row, from the tile's
    first row on, `count` floats apart.  floor: clamp before the zero point.  mode: how sums end.
    """

    def emit(e: Emitter, weights: Any, pixels: Any, offsets: Any, depth: Any, bias: Any,
             out: Any, stride: Any, terms: Any, count: Any, mode: Any,
             floor: Any) -> None:  # fmt: skip
        builder, tile, vectors = e.builder, (rows, halves), _lanes(halves)
        start = _start(e, tile, bias, I32)
        sums = _accumulate(e, tile, weights, pixels, offsets, depth, start)
        lines = [e.at(out, builder.mul(stride, ir.Constant(I64, row))) for row in range(rows)]
        raw, done = (builder.append_basic_block(name) for name in ("raw", "done"))
        switch = builder.switch(mode, raw)
        for rounding in (AWAY, EVEN, CENTERED, RECTIFIED):
            block = builder.append_basic_block("finish")
            switch.add_case(ir.Constant(I64, rounding), block)
            builder.position_at_end(block)
            for row in range(rows):
                first = e.at(terms, row, 4)
                values = [floor]
                for term in range(3):
                    place = e.at(first, builder.mul(count, ir.Constant(I64, 4 * term)))
                    values.append(e.load(place, F32))
                for v, lanes in enumerate(vectors):
                    lowest, step, zero, high = (e.splat(value, lanes) for value in values)
                    total = sums[row * len(vectors) + v]
                    codes = e.requantize(total, step, zero, high, lowest, rounding)
                    e.store(codes, e.at(lines[row], v, LANES))
            builder.branch(done)
        builder.position_at_end(raw)
        for row in range(rows):
            for v in range(len(vectors)):
                e.store(sums[row * len(vectors) + v], e.at(lines[row], v, BITS // 8))
        builder.branch(done)
        builder.position_at_end(done)

    return emitted("iiiiiiiiiif", emit)


_WIDTHS = range(1, 2 * VECTORS + 1)
multiply_float = {
    (rows, halves): _multiply_float(rows, halves) for rows in ROWS for halves in _WIDTHS
}
multiply_int8 = {
    (rows, halves): _multiply_int8(rows, halves) for rows in ROWS for halves in _WIDTHS
}
"""Kernels by rows and half vectors of their tile."""


def _interleave(stride: int) -> Any:
    """Kernel that joins the codes of four channels (two without `DOT`) pixel by pixel.

    first to fourth: addresses of int8, one channel each; out: address of the dwords; count:
    vectors of LANES pixels, all read and written; every `stride`-th pixel is taken.  With `DOT` the
    codes become uint8 by adding 128, without they become int16.
    """

    def emit(e: Emitter, first: Any, second: Any, third: Any, fourth: Any, out: Any,
             count: Any) -> None:  # fmt: skip
        builder = e.builder
        wide = ir.VectorType(I8, LANES * stride)
        nothing = ir.Constant(wide, ir.Undefined)

        def pick(address: Any, index: Any) -> Any:
            loaded = e.load(e.at(address, index, LANES * stride), wide)
            if stride == 1:
                return loaded
            mask = ir.Constant(ir.VectorType(I32, LANES), list(range(0, LANES * stride, stride)))
            return builder.shuffle_vector(loaded, nothing, mask)

        def zip_two(left: Any, right: Any, unit: int) -> Any:
            size = left.type.count
            order = [
                side + i * unit + j
                for i in range(size // unit) for side in (0, size) for j in range(unit)
            ]  # fmt: skip
            mask = ir.Constant(ir.VectorType(I32, 2 * size), order)
            return builder.shuffle_vector(left, right, mask)

        def body(index: Any, carried: list[Any]) -> list[Any]:
            pair = zip_two(pick(first, index), pick(second, index), 1)
            if DOT:
                other = zip_two(pick(third, index), pick(fourth, index), 1)
                joined = zip_two(pair, other, 2)
                joined = builder.xor(joined, constant(I8, LANES * 4, 0x80))
            else:
                joined = builder.sext(pair, ir.VectorType(I16, LANES * 2))
            e.store(joined, e.at(out, index, LANES * 4))
            return carried

        e.loop(count, [], body)

    return emitted("iiiiii", emit)


interleave, interleave_every_second = _interleave(1), _interleave(2)


def _pick(stride: int) -> Any:
    """Kernel that copies every `stride`-th float32: count vectors of LANES, all read whole."""

    def emit(e: Emitter, source: Any, out: Any, count: Any) -> None:
        def thin(values: list[Any]) -> list[Any]:
            order = ir.Constant(ir.VectorType(I32, LANES), list(range(0, 2 * LANES, 2)))
            pairs = zip(values[::2], values[1::2], strict=True)
            return [e.builder.shuffle_vector(left, right, order) for left, right in pairs]

        def body(index: Any, carried: list[Any]) -> list[Any]:
            at = e.at(source, index, stride * LANES * 4)
            values = [e.load(e.at(at, part, LANES * 4), FLOATS) for part in range(stride)]
            while len(values) > 1:
                values = thin(values)
            e.store(values[0], e.at(out, index, LANES * 4))
            return carried

        e.loop(count, [], body)

    return emitted("iii", emit)


pick_every_second, pick_every_fourth = _pick(2), _pick(4)
