"""Windows over planes, emitted: masked loads stand for the padding, so that nothing is copied.

A vector holds neighbouring outputs of a row, and several output rows share what they read.
"""

from functools import partial
from typing import Any

from llvmlite import ir

from quantjit.kernels.simd import (
    F32,
    I32,
    I64,
    LANES,
    Emitter,
    constant,
    emitted,
)


class Plane:
    """Blocks of `lanes` output columns, and in each groups of output rows.

    sizes: addresses of input and output plane, height and width, output height and width, pad_top,
    pad_left.  kernel: kernel_h, kernel_w, stride.
    """

    def __init__(
        self, e: Emitter, sizes: tuple[Any, ...], kernel: tuple[int, int, int], lanes: int = LANES
    ) -> None:
        self.e, self.lanes = e, lanes
        (self.image, self.out, self.height, self.width, self.out_h, self.out_w, self.pad_top,
         self.pad_left) = sizes  # fmt: skip
        self.kernel_h, self.kernel_w, self.stride = kernel

    def run(self, columns: Any, rows: Any) -> None:
        """columns(first output column, first input column) -> state; rows(state, row, count)."""
        builder, e = self.e.builder, self.e
        blocks = builder.sdiv(
            builder.add(self.out_w, ir.Constant(I64, self.lanes - 1)), ir.Constant(I64, self.lanes)
        )
        groups = (4, 2, 1) if self.stride == 1 else (2, 1)

        def block(index: Any, carried: list[Any]) -> list[Any]:
            ow = builder.mul(index, ir.Constant(I64, self.lanes))
            iw = builder.sub(builder.mul(ow, ir.Constant(I64, self.stride)), self.pad_left)
            state = columns(ow, iw)
            done = ir.Constant(I64, 0)
            for group in groups:
                size = ir.Constant(I64, group)
                count = builder.sdiv(builder.sub(self.out_h, done), size)
                e.loop(count, [], partial(self._group, rows, state, done, group))
                done = builder.add(done, builder.mul(count, size))
            return carried

        e.loop(blocks, [], block)

    def _group(
        self, rows: Any, state: Any, first: Any, size: int, index: Any, carried: list[Any]
    ) -> list[Any]:
        builder = self.e.builder
        rows(state, builder.add(first, builder.mul(index, ir.Constant(I64, size))), size)
        return carried

    def line(self, row: Any, tap: int) -> tuple[Any, Any]:
        """(whether input row ``row * stride + tap - pad_top`` exists, its index or 0)."""
        builder = self.e.builder
        at = builder.mul(row, ir.Constant(I64, self.stride))
        at = builder.sub(builder.add(at, ir.Constant(I64, tap)), self.pad_top)
        exists = builder.icmp_unsigned("<", at, self.height)
        return exists, builder.select(exists, at, ir.Constant(I64, 0))

    def masks(self, start: Any) -> list[Any]:
        """Masks of the vectors that `read` loads, the first from input column `start` on."""
        lanes = self.lanes
        return [
            self.e.lanes_within(self.e.at(start, shift + part * lanes), self.width, lanes)
            for shift in range(0, self.kernel_w, self.stride) for part in range(self.stride)
        ]  # fmt: skip

    def read(
        self, address: Any, exists: Any, masks: list[Any], otherwise: Any, size: int
    ) -> list[Any]:
        """One vector for each tap of a kernel row; size: bytes of an element."""
        builder, lanes = self.e.builder, self.lanes
        no_lanes = ir.Constant(masks[0].type, [0] * lanes)
        loaded = []
        for i, mask in enumerate(masks):
            column = i // self.stride * self.stride + i % self.stride * lanes
            some = builder.select(exists, mask, no_lanes)
            loaded.append(self.e.load_some(self.e.at(address, column, size), some, otherwise))
        if self.stride == 1:
            return loaded
        vectors = []
        for tap in range(self.kernel_w):
            pair = loaded[tap // 2 * 2], loaded[tap // 2 * 2 + 1]
            order = list(range(tap % 2, 2 * lanes, 2))
            vectors.append(
                builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, lanes), order))
            )
        return vectors


def _emit_sum(e: Emitter, source: Any, count: Any, out: Any) -> None:
    """Add up `count` float32: lanes first, then across; source, out: addresses."""
    builder = e.builder
    nothing = constant(F32, LANES, 0.0)

    def body(index: Any, carried: list[Any]) -> list[Any]:
        at = builder.mul(index, ir.Constant(I64, LANES))
        inside = e.lanes_within(ir.Constant(I64, 0), builder.sub(count, at), LANES)
        return [builder.fadd(carried[0], e.load_some(e.at(source, at, 4), inside, nothing))]

    blocks = builder.sdiv(builder.add(count, ir.Constant(I64, LANES - 1)), ir.Constant(I64, LANES))
    (lanes,) = e.loop(blocks, [nothing], body)
    name = f"llvm.vector.reduce.fadd.v{LANES}f32"
    e.store(e.call(name, F32, ir.Constant(F32, 0.0), lanes), out)


sum_floats: Any = emitted("iii", _emit_sum)
"""``sum_floats(source, count, out)``: the sum of float32 at an address, in a fixed order."""
