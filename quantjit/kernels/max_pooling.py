"""Max pooling with the windows of the common networks, float32 and int8, by planes."""

from typing import Any

import numpy as np
from llvmlite import ir

from quantjit.kernels import simd
from quantjit.kernels.addresses import longs
from quantjit.kernels.planes import Plane
from quantjit.kernels.schedule import Prepared, TaskFunction
from quantjit.kernels.simd import F32, I8, I32, I64, LANES, Emitter, constant, emitted
from quantjit.kernels.tiled import (
    FIELDS,
    GROUPS,
    HEIGHT,
    MODE,
    OUT,
    OUT_H,
    OUT_W,
    PAD_LEFT,
    PAD_TOP,
    SPLITS,
    WIDTH,
    X,
)

_LOWEST = float(np.finfo(np.float32).min)


def _max(kind: Any, kernel_h: int, kernel_w: int, stride: int) -> Any:
    """Kernel of one plane; codes are searched from `start` on, floats from -FLT_MAX."""
    is_float = kind == F32
    lanes, size = (LANES, 4) if is_float else (simd.BITS // 8, 1)

    def emit(e: Emitter, image: Any, out: Any, height: Any, width: Any, out_h: Any, out_w: Any,
             pad_top: Any, pad_left: Any, start: Any) -> None:  # fmt: skip
        builder = e.builder
        lowest = constant(kind, lanes, _LOWEST)
        if not is_float:
            empty = ir.Constant(lowest.type, ir.Undefined)
            first = builder.insert_element(empty, builder.trunc(start, I8), ir.Constant(I32, 0))
            lowest = builder.shuffle_vector(first, empty, constant(I32, lanes, 0))
        sizes = (image, out, height, width, out_h, out_w, pad_top, pad_left)
        plane = Plane(e, sizes, (kernel_h, kernel_w, stride), lanes)

        def larger(left: Any, right: Any) -> Any:
            compare = builder.fcmp_ordered if is_float else builder.icmp_signed
            return builder.select(compare(">", left, right), left, right)

        def columns(ow: Any, iw: Any) -> Any:
            return ow, iw, plane.masks(iw), e.lanes_within(ow, out_w, lanes)

        def rows(state: Any, row: Any, count: int) -> None:
            ow, iw, masks, out_mask = state
            best = [lowest] * count
            for q in range((count - 1) * stride + kernel_h):
                exists, h = plane.line(row, q)
                address = e.at(image, builder.add(builder.mul(h, width), iw), size)
                line = lowest
                for vector in plane.read(address, exists, masks, lowest, size):
                    line = larger(vector, line)
                for r in range(count):
                    if 0 <= q - r * stride < kernel_h:
                        best[r] = larger(line, best[r])
            for r, value in enumerate(best):
                to = builder.mul(builder.add(row, ir.Constant(I64, r)), out_w)
                e.store_some(value, e.at(out, builder.add(to, ow), size), out_mask)

        plane.run(columns, rows)

    return emitted("iiiiiiiii", emit)


_SHAPES = ((2, 2, 2), (3, 3, 1), (3, 3, 2))
_FLOAT_2_2, _FLOAT_3, _FLOAT_3_2 = (_max(F32, *shape) for shape in _SHAPES)
_INT8_2_2, _INT8_3, _INT8_3_2 = (_max(I8, *shape) for shape in _SHAPES)


def max_float_2x2_stride2(address: int, task: int, thread: int) -> None:
    """Do one share of the planes."""
    d = longs(address, FIELDS)
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    for plane in range(task * d[GROUPS] // d[SPLITS], (task + 1) * d[GROUPS] // d[SPLITS]):
        _FLOAT_2_2(
            d[X] + plane * size * 4, d[OUT] + plane * out_size * 4, d[HEIGHT], d[WIDTH], d[OUT_H],
            d[OUT_W], d[PAD_TOP], d[PAD_LEFT], d[MODE],
        )  # fmt: skip


def max_int8_2x2_stride2(address: int, task: int, thread: int) -> None:
    """Do one share of the planes."""
    d = longs(address, FIELDS)
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    for plane in range(task * d[GROUPS] // d[SPLITS], (task + 1) * d[GROUPS] // d[SPLITS]):
        _INT8_2_2(
            d[X] + plane * size, d[OUT] + plane * out_size, d[HEIGHT], d[WIDTH], d[OUT_H],
            d[OUT_W], d[PAD_TOP], d[PAD_LEFT], d[MODE],
        )  # fmt: skip


def max_float_3x3_stride1(address: int, task: int, thread: int) -> None:
    """Do one share of the planes."""
    d = longs(address, FIELDS)
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    for plane in range(task * d[GROUPS] // d[SPLITS], (task + 1) * d[GROUPS] // d[SPLITS]):
        _FLOAT_3(
            d[X] + plane * size * 4, d[OUT] + plane * out_size * 4, d[HEIGHT], d[WIDTH], d[OUT_H],
            d[OUT_W], d[PAD_TOP], d[PAD_LEFT], d[MODE],
        )  # fmt: skip


def max_int8_3x3_stride1(address: int, task: int, thread: int) -> None:
    """Do one share of the planes."""
    d = longs(address, FIELDS)
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    for plane in range(task * d[GROUPS] // d[SPLITS], (task + 1) * d[GROUPS] // d[SPLITS]):
        _INT8_3(
            d[X] + plane * size, d[OUT] + plane * out_size, d[HEIGHT], d[WIDTH], d[OUT_H],
            d[OUT_W], d[PAD_TOP], d[PAD_LEFT], d[MODE],
        )  # fmt: skip


def max_float_3x3_stride2(address: int, task: int, thread: int) -> None:
    """Do one share of the planes."""
    d = longs(address, FIELDS)
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    for plane in range(task * d[GROUPS] // d[SPLITS], (task + 1) * d[GROUPS] // d[SPLITS]):
        _FLOAT_3_2(
            d[X] + plane * size * 4, d[OUT] + plane * out_size * 4, d[HEIGHT], d[WIDTH], d[OUT_H],
            d[OUT_W], d[PAD_TOP], d[PAD_LEFT], d[MODE],
        )  # fmt: skip


def max_int8_3x3_stride2(address: int, task: int, thread: int) -> None:
    """Do one share of the planes."""
    d = longs(address, FIELDS)
    size, out_size = d[HEIGHT] * d[WIDTH], d[OUT_H] * d[OUT_W]
    for plane in range(task * d[GROUPS] // d[SPLITS], (task + 1) * d[GROUPS] // d[SPLITS]):
        _INT8_3_2(
            d[X] + plane * size, d[OUT] + plane * out_size, d[HEIGHT], d[WIDTH], d[OUT_H],
            d[OUT_W], d[PAD_TOP], d[PAD_LEFT], d[MODE],
        )  # fmt: skip


_TASKS: dict[tuple[str, int, int, int], TaskFunction] = {
    ("float32", 2, 2, 2): max_float_2x2_stride2,
    ("float32", 3, 3, 1): max_float_3x3_stride1,
    ("float32", 3, 3, 2): max_float_3x3_stride2,
    ("int8", 2, 2, 2): max_int8_2x2_stride2,
    ("int8", 3, 3, 1): max_int8_3x3_stride1,
    ("int8", 3, 3, 2): max_int8_3x3_stride2,
}


def prepare_max(
    lowest: np.float32 | np.int8,
    planes: tuple[int, int, int],
    out: tuple[int, int],
    window: tuple[int, int, int, int, int, int],
    threads: int,
) -> Prepared | None:
    """Prepare max pooling, None where there is no kernel for it.

    lowest: what the search starts from, of the blobs' type; -FLT_MAX if that is float32.  planes:
    (count, h, w); out: (out_h, out_w); window: kernel_h, kernel_w, stride_h, stride_w, pad_top,
    pad_left.
    """
    kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left = window
    dtype = lowest.dtype.name
    function = _TASKS.get((dtype, kernel_h, kernel_w, stride_h))
    _, height, width = planes
    reaches = (
        pad_top < kernel_h and pad_left < kernel_w  # no window lies in the padding altogether
        and (out[0] - 1) * stride_h - pad_top < height
        and (out[1] - 1) * stride_w - pad_left < width
    )  # fmt: skip
    masked = simd.BITS == 512 or (dtype == "float32" and simd.FORM != "portable")
    if function is None or stride_h != stride_w or not reaches or not masked:
        return None
    description = np.zeros(FIELDS, np.int64)
    tasks = min(planes[0], 4 * threads) if threads > 1 else 1
    for field, value in (
        (GROUPS, planes[0]), (HEIGHT, height), (WIDTH, width), (OUT_H, out[0]), (OUT_W, out[1]),
        (PAD_TOP, pad_top), (PAD_LEFT, pad_left), (SPLITS, tasks),
        (MODE, 0 if dtype == "float32" else int(lowest)),
    ):  # fmt: skip
        description[field] = value
    return Prepared(description, function, tasks)
