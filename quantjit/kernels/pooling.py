"""Max and average pooling over NCHW planes, float32 and int8.

Windows are clipped to the input: padding never counts, as in TNN's ``NaivePooling``
(``source/tnn/utils/naive_compute.cc``).  A window that lies in the padding altogether gives 0.
Float sums run over the window row by row, which fixes their order.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel


@kernel
def max_pool_into(
    x: NDArray[Any],
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_top: int,
    pad_left: int,
    lowest: Any,
    line: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the maximum of each window.

    x: float32 or int8 (planes, h, w); out: same type, (planes, out_h, out_w); lowest: the value
    that the search starts from, of that type (TNN: -FLT_MAX and -127); line: same type, (w,),
    scratch.
    """
    height, width = x.shape[1], x.shape[2]
    out_h, out_w = out.shape[1], out.shape[2]
    begin = min(out_w, max(0, (pad_left - kernel_w) // stride_w + 1))  # first window with a tap
    end = max(begin, min(out_w, -((-width - pad_left) // stride_w)))  # behind the last one
    for plane in range(x.shape[0]):
        for oh in range(out_h):
            row = out[plane, oh]
            top = oh * stride_h - pad_top
            first_h, last_h = max(top, 0), min(top + kernel_h, height)
            if first_h >= last_h:
                for ow in range(out_w):
                    row[ow] = 0
                continue
            line[:] = x[plane, first_h]
            for h in range(first_h + 1, last_h):  # down the columns first: contiguous at any stride
                other = x[plane, h]
                for w in range(line.size):
                    line[w] = other[w] if other[w] > line[w] else line[w]
            row[:] = lowest
            for tap in range(kernel_w):
                shift = tap - pad_left
                first = min(out_w, max(0, -(shift // stride_w)))
                last = max(first, min(out_w, (width - 1 - shift) // stride_w + 1))
                best = row[first:last]
                if stride_w == 1:
                    values = line[first + shift : last + shift]
                    for i in range(best.size):
                        best[i] = values[i] if values[i] > best[i] else best[i]
                else:
                    at = first * stride_w + shift
                    for i in range(best.size):
                        value = line[at + i * stride_w]
                        best[i] = value if value > best[i] else best[i]
            for ow in range(begin):
                row[ow] = 0
            for ow in range(end, out_w):
                row[ow] = 0


@kernel
def average_pool_into(
    x: NDArray[np.float32],
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_top: int,
    pad_left: int,
    counted_bottom: int,
    counted_right: int,
    counts_padding: bool,
    out: NDArray[np.float32],
) -> None:
    """Write the mean of each window.

    x: float32 (planes, h, w); out: float32 (planes, out_h, out_w).  counts_padding: divide by the
    taps inside the padded input, which extends by counted_bottom and counted_right pixels (ONNX
    ``count_include_pad``), instead of by those inside the input.
    """
    height, width = x.shape[1], x.shape[2]
    out_h, out_w = out.shape[1], out.shape[2]
    for plane in range(x.shape[0]):
        for oh in range(out_h):
            row = out[plane, oh]
            top = oh * stride_h - pad_top
            first_h, last_h = max(top, 0), min(top + kernel_h, height)
            for ow in range(out_w):
                row[ow] = 0
            for h in range(first_h, last_h):
                if out_w == 1:  # global pooling: one sum, kept in a register
                    total = row[0]
                    for w in range(max(-pad_left, 0), min(kernel_w - pad_left, width)):
                        total += x[plane, h, w]
                    row[0] = total
                    continue
                for tap in range(kernel_w):
                    shift = tap - pad_left
                    first = min(out_w, max(0, -(shift // stride_w)))
                    last = max(first, min(out_w, (width - 1 - shift) // stride_w + 1))
                    sums = row[first:last]
                    if stride_w == 1:
                        line = x[plane, h, first + shift : last + shift]
                        for i in range(sums.size):
                            sums[i] += line[i]
                    else:
                        at = first * stride_w + shift
                        for i in range(sums.size):
                            sums[i] += x[plane, h, at + i * stride_w]
            for ow in range(out_w):
                left = ow * stride_w - pad_left
                if counts_padding:
                    rows = min(top + kernel_h, height + counted_bottom) - top
                    columns = min(left + kernel_w, width + counted_right) - left
                else:
                    rows = last_h - first_h
                    columns = min(left + kernel_w, width) - max(left, 0)
                if rows > 0 and columns > 0:
                    row[ow] = row[ow] / np.float32(rows * columns)


@kernel
def average_pool_int8_into(
    x: NDArray[np.int8],
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_top: int,
    pad_left: int,
    out: NDArray[np.int8],
) -> None:
    """Write the integer mean of each window, truncated toward zero as by C's division.

    x: int8 (planes, h, w); out: int8 (planes, out_h, out_w).
    """
    height, width = x.shape[1], x.shape[2]
    for plane in range(x.shape[0]):
        for oh in range(out.shape[1]):
            top = oh * stride_h - pad_top
            first_h, last_h = max(top, 0), min(top + kernel_h, height)
            for ow in range(out.shape[2]):
                left = ow * stride_w - pad_left
                first_w, last_w = max(left, 0), min(left + kernel_w, width)
                count = max(last_h - first_h, 0) * max(last_w - first_w, 0)
                total = 0
                for h in range(first_h, last_h):
                    for w in range(first_w, last_w):
                        total += int(x[plane, h, w])
                mean = abs(total) // max(count, 1)
                out[plane, oh, ow] = mean if total >= 0 else -mean


@kernel
def adaptive_average_pool_into(x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write the means of out_h x out_w windows that cover the input (they may overlap).

    x: float32 (planes, h, w); out: float32 (planes, out_h, out_w).  Window i of n over a side of
    s pixels spans floor(i * s / n) to ceil((i + 1) * s / n).
    """
    height, width = x.shape[1], x.shape[2]
    out_h, out_w = out.shape[1], out.shape[2]
    for plane in range(x.shape[0]):
        for oh in range(out_h):
            first_h, last_h = oh * height // out_h, -((oh + 1) * -height // out_h)
            for ow in range(out_w):
                first_w, last_w = ow * width // out_w, -((ow + 1) * -width // out_w)
                total = np.float32(0)
                for h in range(first_h, last_h):
                    for w in range(first_w, last_w):
                        total += x[plane, h, w]
                total = total / np.float32(last_h - first_h)
                out[plane, oh, ow] = total / np.float32(last_w - first_w)
