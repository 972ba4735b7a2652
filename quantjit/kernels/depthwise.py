"""Depthwise convolution with the kernels of the common networks, straight from the planes.

A vector holds neighbouring outputs of a row.  Masked loads stand for the padding, so that nothing
is copied; several output rows share what they read.  Int8 needs ``vpdpbusd`` at 512 bit: four
neighbouring codes of a kernel row are one product, and one byte shuffle brings them together.
Other shapes and CPUs take the tiles of `tiled`.
"""

from typing import Any

import numpy as np
from llvmlite import ir

from quantjit.kernels import simd
from quantjit.kernels.addresses import codes, floats, integers, longs
from quantjit.kernels.planes import Plane
from quantjit.kernels.schedule import TaskFunction
from quantjit.kernels.simd import (
    AWAY,
    CENTERED,
    EVEN,
    F32,
    I8,
    I32,
    I64,
    INTS,
    LANES,
    RECTIFIED,
    Emitter,
    constant,
    emitted,
)  # fmt: skip
from quantjit.kernels.tiled import (
    BIAS,
    FIELDS,
    GROUPS,
    HEIGHT,
    IMAGES,
    LIMITS,
    MODE,
    OUT,
    OUT_H,
    OUT_W,
    PAD_LEFT,
    PAD_TOP,
    SPLITS,
    TERMS,
    WEIGHTS,
    WIDTH,
    ZEROS,
    X,
)

_BYTES = 64
_GROUP = 4  # codes of a product


def _float(kernel_h: int, kernel_w: int, stride: int) -> Any:
    def emit(e: Emitter, image: Any, out: Any, height: Any, width: Any, out_h: Any, out_w: Any,
             pad_top: Any, pad_left: Any, weights: Any, bias: Any, low: Any,
             high: Any) -> None:  # fmt: skip
        builder = e.builder
        sizes = (image, out, height, width, out_h, out_w, pad_top, pad_left)
        plane = Plane(e, sizes, (kernel_h, kernel_w, stride))
        taps = [e.splat(e.load(e.at(weights, t, 4), F32)) for t in range(kernel_h * kernel_w)]
        start, lowest, highest = e.splat(bias), e.splat(low), e.splat(high)
        nothing = constant(F32, LANES, 0.0)

        def columns(ow: Any, iw: Any) -> Any:
            masks = plane.masks(iw)
            return ow, iw, masks, e.lanes_within(ow, out_w, LANES)

        def rows(state: Any, row: Any, count: int) -> None:
            ow, iw, masks, out_mask = state
            sums = [start] * count
            for q in range((count - 1) * stride + kernel_h):
                exists, h = plane.line(row, q)
                address = e.at(image, builder.add(builder.mul(h, width), iw), 4)
                vectors = plane.read(address, exists, masks, nothing, 4)
                for r in range(count):
                    i = q - r * stride
                    if 0 <= i < kernel_h:
                        for j, vector in enumerate(vectors):
                            sums[r] = e.fma(taps[i * kernel_w + j], vector, sums[r])
            for r, value in enumerate(sums):
                value = e.at_most(e.at_least(value, lowest), highest)
                to = builder.mul(builder.add(row, ir.Constant(I64, r)), out_w)
                e.store_some(value, e.at(out, builder.add(to, ow), 4), out_mask)

        plane.run(columns, rows)

    return emitted("iiiiiiiiifff", emit)


def _int8(kernel_h: int, kernel_w: int, stride: int) -> Any:
    groups = -(-kernel_w // _GROUP)
    codes_kind = ir.VectorType(I8, _BYTES)

    def emit(e: Emitter, image: Any, out: Any, height: Any, width: Any, out_h: Any, out_w: Any,
             pad_top: Any, pad_left: Any, weights: Any, bias: Any, pad: Any, floor: Any, step: Any,
             zero: Any, high: Any, mode: Any) -> None:  # fmt: skip
        builder = e.builder
        sizes = (image, out, height, width, out_h, out_w, pad_top, pad_left)
        plane = Plane(e, sizes, (kernel_h, kernel_w, stride))
        taps = [e.splat(e.load(e.at(weights, t, 4), I32)) for t in range(kernel_h * groups)]
        start = e.splat(builder.trunc(bias, I32))
        step, zero, high, floor = (e.splat(value) for value in (step, zero, high, floor))
        empty = ir.Constant(codes_kind, ir.Undefined)
        first = builder.insert_element(empty, builder.trunc(pad, I8), ir.Constant(I32, 0))
        padding = builder.shuffle_vector(first, empty, constant(I32, _BYTES, 0))
        flip = constant(I8, _BYTES, 0x80)
        no_lanes = constant(ir.IntType(1), _BYTES, 0)

        def columns(ow: Any, iw: Any) -> Any:
            return ow, iw, e.lanes_within(iw, width, _BYTES), e.lanes_within(ow, out_w, LANES)

        def run(rounding: int) -> None:
            def rows(state: Any, row: Any, count: int) -> None:
                ow, iw, mask, out_mask = state
                sums = [start] * count
                for q in range((count - 1) * stride + kernel_h):
                    exists, h = plane.line(row, q)
                    address = e.at(image, builder.add(builder.mul(h, width), iw))
                    lanes = builder.select(exists, mask, no_lanes)
                    line = builder.xor(e.load_some(address, lanes, padding), flip)
                    for g in range(groups):
                        order = [
                            stride * lane + _GROUP * g + t for lane in range(LANES)
                            for t in range(_GROUP)
                        ]  # fmt: skip
                        picked = ir.Constant(ir.VectorType(I32, _BYTES), order)
                        dwords = builder.shuffle_vector(line, empty, picked)
                        dwords = builder.bitcast(dwords, INTS)
                        for r in range(count):
                            i = q - r * stride
                            if 0 <= i < kernel_h:
                                sums[r] = e.dot(sums[r], dwords, taps[i * groups + g])
                for r, total in enumerate(sums):
                    value = e.requantize(total, step, zero, high, floor, rounding)
                    to = builder.mul(builder.add(row, ir.Constant(I64, r)), out_w)
                    e.store_some(value, e.at(out, builder.add(to, ow)), out_mask)

            plane.run(columns, rows)

        done = builder.append_basic_block("done")
        switch = builder.switch(mode, done)
        for rounding in (AWAY, EVEN, CENTERED, RECTIFIED):
            block = builder.append_basic_block("finish")
            switch.add_case(ir.Constant(I64, rounding), block)
            builder.position_at_end(block)
            run(rounding)
            builder.branch(done)
        builder.position_at_end(done)

    return emitted("iiiiiiiiiiiffffi", emit)


_SHAPES = ((3, 3, 1), (3, 3, 2), (5, 5, 1), (5, 5, 2))
_FLOATS = {shape: _float(*shape) for shape in _SHAPES}
_INT8 = {shape: _int8(*shape) for shape in _SHAPES}
_FLOAT_3, _FLOAT_3_2, _FLOAT_5, _FLOAT_5_2 = (_FLOATS[shape] for shape in _SHAPES)
_INT8_3, _INT8_3_2, _INT8_5, _INT8_5_2 = (_INT8[shape] for shape in _SHAPES)


def float_3x3(address: int, task: int, thread: int) -> None:
    """Do one share of the planes of a float depthwise convolution, 3 x 3, stride 1."""
    d = longs(address, FIELDS)
    planes = d[IMAGES] * d[GROUPS]
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    limits, bias = floats(d[LIMITS], 2), floats(d[BIAS], d[GROUPS])
    for plane in range(task * planes // d[SPLITS], (task + 1) * planes // d[SPLITS]):
        c = plane % d[GROUPS]
        _FLOAT_3(
            d[X] + plane * size * 4, d[OUT] + plane * out_size * 4, d[HEIGHT], d[WIDTH], d[OUT_H],
            d[OUT_W], d[PAD_TOP], d[PAD_LEFT], d[WEIGHTS] + c * 36, bias[c], limits[0],
            limits[1],
        )  # fmt: skip


def int8_3x3(address: int, task: int, thread: int) -> None:
    """Do one share of the planes of an int8 depthwise convolution, 3 x 3, stride 1."""
    d = longs(address, FIELDS)
    planes, groups = d[IMAGES] * d[GROUPS], d[GROUPS]
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    bias, terms = integers(d[BIAS], groups), floats(d[TERMS], 7 * groups)
    zeros, floor = codes(d[ZEROS], groups), floats(d[LIMITS], 1)[0]
    for plane in range(task * planes // d[SPLITS], (task + 1) * planes // d[SPLITS]):
        c = plane % groups
        _INT8_3(
            d[X] + plane * size, d[OUT] + plane * out_size, d[HEIGHT], d[WIDTH], d[OUT_H], d[OUT_W],
            d[PAD_TOP], d[PAD_LEFT], d[WEIGHTS] + c * 12, np.int64(bias[c]),
            np.int64(zeros[c]), floor, terms[c], terms[groups + c], terms[2 * groups + c], d[MODE],
        )  # fmt: skip


def float_3x3_stride2(address: int, task: int, thread: int) -> None:
    """Do one share of the planes of a float depthwise convolution, 3 x 3, stride 2."""
    d = longs(address, FIELDS)
    planes = d[IMAGES] * d[GROUPS]
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    limits, bias = floats(d[LIMITS], 2), floats(d[BIAS], d[GROUPS])
    for plane in range(task * planes // d[SPLITS], (task + 1) * planes // d[SPLITS]):
        c = plane % d[GROUPS]
        _FLOAT_3_2(
            d[X] + plane * size * 4, d[OUT] + plane * out_size * 4, d[HEIGHT], d[WIDTH], d[OUT_H],
            d[OUT_W], d[PAD_TOP], d[PAD_LEFT], d[WEIGHTS] + c * 36, bias[c], limits[0],
            limits[1],
        )  # fmt: skip


def int8_3x3_stride2(address: int, task: int, thread: int) -> None:
    """Do one share of the planes of an int8 depthwise convolution, 3 x 3, stride 2."""
    d = longs(address, FIELDS)
    planes, groups = d[IMAGES] * d[GROUPS], d[GROUPS]
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    bias, terms = integers(d[BIAS], groups), floats(d[TERMS], 7 * groups)
    zeros, floor = codes(d[ZEROS], groups), floats(d[LIMITS], 1)[0]
    for plane in range(task * planes // d[SPLITS], (task + 1) * planes // d[SPLITS]):
        c = plane % groups
        _INT8_3_2(
            d[X] + plane * size, d[OUT] + plane * out_size, d[HEIGHT], d[WIDTH], d[OUT_H], d[OUT_W],
            d[PAD_TOP], d[PAD_LEFT], d[WEIGHTS] + c * 12, np.int64(bias[c]),
            np.int64(zeros[c]), floor, terms[c], terms[groups + c], terms[2 * groups + c], d[MODE],
        )  # fmt: skip


def float_5x5(address: int, task: int, thread: int) -> None:
    """Do one share of the planes of a float depthwise convolution, 5 x 5, stride 1."""
    d = longs(address, FIELDS)
    planes = d[IMAGES] * d[GROUPS]
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    limits, bias = floats(d[LIMITS], 2), floats(d[BIAS], d[GROUPS])
    for plane in range(task * planes // d[SPLITS], (task + 1) * planes // d[SPLITS]):
        c = plane % d[GROUPS]
        _FLOAT_5(
            d[X] + plane * size * 4, d[OUT] + plane * out_size * 4, d[HEIGHT], d[WIDTH], d[OUT_H],
            d[OUT_W], d[PAD_TOP], d[PAD_LEFT], d[WEIGHTS] + c * 100, bias[c], limits[0],
            limits[1],
        )  # fmt: skip


def int8_5x5(address: int, task: int, thread: int) -> None:
    """Do one share of the planes of an int8 depthwise convolution, 5 x 5, stride 1."""
    d = longs(address, FIELDS)
    planes, groups = d[IMAGES] * d[GROUPS], d[GROUPS]
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    bias, terms = integers(d[BIAS], groups), floats(d[TERMS], 7 * groups)
    zeros, floor = codes(d[ZEROS], groups), floats(d[LIMITS], 1)[0]
    for plane in range(task * planes // d[SPLITS], (task + 1) * planes // d[SPLITS]):
        c = plane % groups
        _INT8_5(
            d[X] + plane * size, d[OUT] + plane * out_size, d[HEIGHT], d[WIDTH], d[OUT_H], d[OUT_W],
            d[PAD_TOP], d[PAD_LEFT], d[WEIGHTS] + c * 40, np.int64(bias[c]),
            np.int64(zeros[c]), floor, terms[c], terms[groups + c], terms[2 * groups + c], d[MODE],
        )  # fmt: skip


def float_5x5_stride2(address: int, task: int, thread: int) -> None:
    """Do one share of the planes of a float depthwise convolution, 5 x 5, stride 2."""
    d = longs(address, FIELDS)
    planes = d[IMAGES] * d[GROUPS]
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    limits, bias = floats(d[LIMITS], 2), floats(d[BIAS], d[GROUPS])
    for plane in range(task * planes // d[SPLITS], (task + 1) * planes // d[SPLITS]):
        c = plane % d[GROUPS]
        _FLOAT_5_2(
            d[X] + plane * size * 4, d[OUT] + plane * out_size * 4, d[HEIGHT], d[WIDTH], d[OUT_H],
            d[OUT_W], d[PAD_TOP], d[PAD_LEFT], d[WEIGHTS] + c * 100, bias[c], limits[0],
            limits[1],
        )  # fmt: skip


def int8_5x5_stride2(address: int, task: int, thread: int) -> None:
    """Do one share of the planes of an int8 depthwise convolution, 5 x 5, stride 2."""
    d = longs(address, FIELDS)
    planes, groups = d[IMAGES] * d[GROUPS], d[GROUPS]
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    bias, terms = integers(d[BIAS], groups), floats(d[TERMS], 7 * groups)
    zeros, floor = codes(d[ZEROS], groups), floats(d[LIMITS], 1)[0]
    for plane in range(task * planes // d[SPLITS], (task + 1) * planes // d[SPLITS]):
        c = plane % groups
        _INT8_5_2(
            d[X] + plane * size, d[OUT] + plane * out_size, d[HEIGHT], d[WIDTH], d[OUT_H], d[OUT_W],
            d[PAD_TOP], d[PAD_LEFT], d[WEIGHTS] + c * 40, np.int64(bias[c]),
            np.int64(zeros[c]), floor, terms[c], terms[groups + c], terms[2 * groups + c], d[MODE],
        )  # fmt: skip


def float_task(shape: tuple[int, int, int]) -> TaskFunction | None:
    """Return the function for (kernel_h, kernel_w, stride), None if there is none."""
    return {
        (3, 3, 1): float_3x3,
        (3, 3, 2): float_3x3_stride2,
        (5, 5, 1): float_5x5,
        (5, 5, 2): float_5x5_stride2,
    }.get(shape)


def int8_task(shape: tuple[int, int, int]) -> TaskFunction | None:
    """Return the function for (kernel_h, kernel_w, stride), None if there is none."""
    if simd.FORM != "avx512vnni":
        return None
    return {
        (3, 3, 1): int8_3x3,
        (3, 3, 2): int8_3x3_stride2,
        (5, 5, 1): int8_5x5,
        (5, 5, 2): int8_5x5_stride2,
    }.get(shape)
