"""Convolution over NCHW: columns by tiles, depthwise directly, deconvolution by scattering.

Sums run over kernel rows, kernel columns, then channels, the bias last: the order of TNN's naive
device (``NaiveConv``), so that float results agree to the bit where it multiplies and adds alike.
``geometry`` is int64 (10,): kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h,
dilation_w, output_h, output_w.
"""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel
from quantjit.kernels.elementwise import LARGEST_EXPONENT
from quantjit.kernels.gemm import add_product, multiply_float_into, multiply_int_into
from quantjit.kernels.numeric import round_even_to_int8, round_to_int8

TILE = 256
"""Output pixels that are worked on at a time."""

NONE, RELU, RELU6, SWISH = range(4)
"""Fused activations."""

NO_ADD, ADD_THEN_ACTIVATION, ACTIVATION_THEN_ADD = range(3)
"""Where a fused int8 add stands."""

_ZERO, _ONE, _SIX, _INFINITY = np.float32(0), np.float32(1), np.float32(6), np.float32(np.inf)


@kernel
def inner_range(at: int, stride: int, count: int, size: int) -> tuple[int, int]:
    """Return (first, last): at + q * stride lies in [0, size) for q in range(first, last) only.

    0 <= first <= last <= count.
    """
    first = min(max(0, -(at // stride)), count)
    return first, max(first, min(count, (size - 1 - at) // stride + 1))


@kernel
def gather_float_into(
    image: NDArray[np.float32],
    geometry: NDArray[np.int64],
    start: int,
    pixels: int,
    columns: NDArray[np.float32],
) -> None:
    """Fill the columns of one tile of output pixels; padded taps are 0.

    image: float32 (channels, h, w); columns: float32 (kernel_h * kernel_w * channels, TILE), whose
    first `pixels` are for the output pixels from `start` on, in row-major order.
    """
    kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left = geometry[:6]
    dilation_h, dilation_w, output_w = geometry[6], geometry[7], geometry[9]
    channels, height, width = image.shape
    k = 0
    for i in range(kernel_h):
        for j in range(kernel_w):
            for c in range(channels):
                row = columns[k]
                k += 1
                p = 0
                while p < pixels:  # one output row, or what the tile holds of it
                    oh, ow = (start + p) // output_w, (start + p) % output_w
                    count = min(output_w - ow, pixels - p)
                    ih = oh * stride_h - pad_top + i * dilation_h
                    iw = ow * stride_w - pad_left + j * dilation_w
                    first, last = inner_range(iw, stride_w, count, width)
                    if ih < 0 or ih >= height:
                        first, last = count, count
                    for q in range(p, p + first):
                        row[q] = _ZERO
                    if first < last:
                        line, target = image[c, ih, iw + first * stride_w :], row[p + first :]
                        if stride_w == 1:
                            for q in range(last - first):
                                target[q] = line[q]
                        else:
                            for q in range(last - first):
                                target[q] = line[q * stride_w]
                    for q in range(p + last, p + count):
                        row[q] = _ZERO
                    p += count


@kernel
def gather_int_into(
    image: NDArray[np.int8],
    zero_point: NDArray[np.int16],
    geometry: NDArray[np.int64],
    start: int,
    pixels: int,
    columns: NDArray[np.int16],
) -> None:
    """Fill the columns of one tile with q - zero_point; padded taps are 0.

    image: int8 (channels, h, w); zero_point: int16 (channels,); columns as in `gather_float_into`.
    """
    kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left = geometry[:6]
    dilation_h, dilation_w, output_w = geometry[6], geometry[7], geometry[9]
    channels, height, width = image.shape
    k = 0
    for i in range(kernel_h):
        for j in range(kernel_w):
            for c in range(channels):
                zero = int(zero_point[c])
                row = columns[k]
                k += 1
                p = 0
                while p < pixels:
                    oh, ow = (start + p) // output_w, (start + p) % output_w
                    count = min(output_w - ow, pixels - p)
                    ih = oh * stride_h - pad_top + i * dilation_h
                    iw = ow * stride_w - pad_left + j * dilation_w
                    first, last = inner_range(iw, stride_w, count, width)
                    if ih < 0 or ih >= height:
                        first, last = count, count
                    for q in range(p, p + first):
                        row[q] = 0
                    if first < last:
                        line, target = image[c, ih, iw + first * stride_w :], row[p + first :]
                        if stride_w == 1:
                            for q in range(last - first):
                                target[q] = np.int16(int(line[q]) - zero)
                        else:
                            for q in range(last - first):
                                target[q] = np.int16(int(line[q * stride_w]) - zero)
                    for q in range(p + last, p + count):
                        row[q] = 0
                    p += count


@kernel
def decay(value: np.float32) -> np.float32:
    """Return exp(-value), rounded once as in the elementwise activations, or infinity."""
    exponent = -np.float64(value)  # float() would stay float32 under the JIT
    return np.float32(math.exp(exponent)) if exponent < LARGEST_EXPONENT else _INFINITY


@kernel
def finish_float_into(
    out: NDArray[np.float32], start: int, width: int, bias: NDArray[np.float32], activation: int
) -> None:
    """Add the bias to columns start to start + width of each row and apply the activation.

    out: float32 (channels, p), in place; bias: float32 (channels,).
    """
    for c in range(out.shape[0]):
        row, shift = out[c, start : start + width], bias[c]
        if activation == RELU:
            for p in range(row.size):
                row[p] = max(row[p] + shift, _ZERO)
        elif activation == RELU6:
            for p in range(row.size):
                row[p] = min(max(row[p] + shift, _ZERO), _SIX)
        elif activation == SWISH:
            for p in range(row.size):
                value = row[p] + shift
                row[p] = value * (_ONE / (_ONE + decay(value)))
        else:
            for p in range(row.size):
                row[p] += shift


@kernel
def convolve_float_into(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    geometry: NDArray[np.int64],
    activation: int,
    columns: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Convolve float32 (n, group, channels, h, w) into (n, group, out_channels, pixels).

    weight: (group, out_channels, kernel_h * kernel_w * channels); bias: (group, out_channels);
    columns: scratch (kernel_h * kernel_w * channels, TILE).
    """
    pixels = out.shape[3]
    for n in range(x.shape[0]):
        for g in range(x.shape[1]):
            for start in range(0, pixels, TILE):
                width = min(TILE, pixels - start)
                gather_float_into(x[n, g], geometry, start, width, columns)
                for c in range(out.shape[2]):
                    out[n, g, c, start : start + width] = 0
                multiply_float_into(weight[g], columns, 0, start, width, out[n, g])
                finish_float_into(out[n, g], start, width, bias[g], activation)


@kernel
def convolve_pointwise_float_into(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    activation: int,
    out: NDArray[np.float32],
) -> None:
    """Convolve 1 x 1 with stride 1 and no pads, where the input is its own columns.

    x: float32 (n, group, channels, pixels); weight: (group, out_channels, channels); bias: (group,
    out_channels); out: (n, group, out_channels, pixels).
    """
    pixels = out.shape[3]
    for n in range(x.shape[0]):
        for g in range(x.shape[1]):
            for start in range(0, pixels, TILE):
                width = min(TILE, pixels - start)
                for c in range(out.shape[2]):
                    out[n, g, c, start : start + width] = 0
                multiply_float_into(weight[g], x[n, g], start, start, width, out[n, g])
                finish_float_into(out[n, g], start, width, bias[g], activation)


@kernel
def convolve_few_float_into(
    x: NDArray[np.float32],
    transposed: NDArray[np.float32],
    bias: NDArray[np.float32],
    geometry: NDArray[np.int64],
    activation: int,
    columns: NDArray[np.float32],
    rows: NDArray[np.float32],
    sums: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Convolve into a map of few pixels: the same sums, vectorized along the output channels.

    x, bias, out as in `convolve_float_into`; transposed: (group, kernel_h * kernel_w * channels,
    out_channels); scratch: columns (kernel_h * kernel_w * channels, pixels), rows its transpose,
    sums (pixels, out_channels).
    """
    pixels = out.shape[3]
    for n in range(x.shape[0]):
        for g in range(x.shape[1]):
            gather_float_into(x[n, g], geometry, 0, pixels, columns)
            rows[:, :] = columns.T
            sums[:, :] = 0
            multiply_float_into(rows, transposed[g], 0, 0, sums.shape[1], sums)
            out[n, g, :, :] = sums.T
            finish_float_into(out[n, g], 0, pixels, bias[g], activation)


@kernel
def convolve_depthwise_float_into(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    geometry: NDArray[np.int64],
    activation: int,
    out: NDArray[np.float32],
) -> None:
    """Convolve each channel with its own filter: float32 (n, c, h, w) to (n, c, oh, ow).

    weight: (c, kernel_h, kernel_w); bias: (c,).
    """
    kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left = geometry[:6]
    dilation_h, dilation_w, output_h, output_w = geometry[6:]
    height, width = x.shape[2], x.shape[3]
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            plane = out[n, c]
            plane[:, :] = 0
            for i in range(kernel_h):
                for j in range(kernel_w):
                    tap, shift = weight[c, i, j], j * dilation_w - pad_left
                    first, last = inner_range(shift, stride_w, output_w, width)
                    for oh in range(output_h):
                        ih = oh * stride_h - pad_top + i * dilation_h
                        if ih < 0 or ih >= height or first == last:
                            continue
                        row, line = plane[oh, first:last], x[n, c, ih, first * stride_w + shift :]
                        if stride_w == 1:
                            for q in range(row.size):
                                row[q] += tap * line[q]
                        else:
                            for q in range(row.size):
                                row[q] += tap * line[q * stride_w]
            size = output_h * output_w
            finish_float_into(plane.reshape(1, size), 0, size, bias[c : c + 1], activation)


@kernel
def deconvolve_float_into(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    geometry: NDArray[np.int64],
    activation: int,
    out: NDArray[np.float32],
) -> None:
    """Scatter each input pixel through the filter.

    x: float32 (n, group, channels, h, w); weight: (group, channels, out_channels, kernel_h,
    kernel_w); bias: (group, out_channels); out: (n, group, out_channels, oh, ow).
    """
    kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left = geometry[:6]
    dilation_h, dilation_w, output_h, output_w = geometry[6:]
    height, width = x.shape[3], x.shape[4]
    for n in range(x.shape[0]):
        for g in range(x.shape[1]):
            out[n, g] = 0
            for o in range(out.shape[2]):
                plane = out[n, g, o]
                for c in range(x.shape[2]):
                    for i in range(kernel_h):
                        for j in range(kernel_w):
                            tap, shift = weight[g, c, o, i, j], j * dilation_w - pad_left
                            first, last = inner_range(shift, stride_w, width, output_w)
                            for ih in range(height):
                                oh = ih * stride_h - pad_top + i * dilation_h
                                if oh < 0 or oh >= output_h or first == last:
                                    continue
                                line = x[n, g, c, ih, first:last]
                                row = plane[oh, first * stride_w + shift :]
                                for q in range(line.size):
                                    row[q * stride_w] += tap * line[q]
                size = output_h * output_w
                finish_float_into(plane.reshape(1, size), 0, size, bias[g, o : o + 1], activation)


@kernel
def finish_int8_into(
    sums: NDArray[np.int32],
    start: int,
    width: int,
    bias: NDArray[np.int32],
    factor: NDArray[np.float32],
    zero_point: NDArray[np.int8],
    six: NDArray[np.int8],
    activation: int,
    half_even: bool,
    fusion: int,
    addend: NDArray[np.int8],
    add_factor: NDArray[np.float32],
    add_zero: NDArray[np.int8],
    out: NDArray[np.int8],
) -> None:
    """Requantize one tile as TNN's naive device does, add and activation fused.

    sums: int32 (channels, at least width); bias: int32; factor: float32, weight scale / output
    scale; zero_point: int8, of the output; six: int8, the code of 6.0; all (channels,).  addend:
    int8 (channels, p) or empty, with its scale / output scale and zero point.  out: int8 (channels,
    p), written from `start` to start + width.  ReLU6 is compared in codes and written at once:
    neither zero point nor a later add reach it.  half_even: round as onnxruntime does, and compare
    activations in codes that have their zero point; no add is fused then.
    """
    for c in range(sums.shape[0]):
        row, line = out[c, start : start + width], sums[c]
        shift, step, zero = int(bias[c]), factor[c], np.float32(int(zero_point[c]))
        plus, minus = _ZERO, _ZERO
        if fusion != NO_ADD:
            plus = add_factor[c]
            minus = np.float32(int(add_zero[c])) * plus
        if half_even:
            low = zero_point[c] if activation in (RELU, RELU6) else np.int8(-128)
            high = six[c] if activation == RELU6 else np.int8(127)
            for p in range(row.size):
                code = round_even_to_int8(np.float32(int(line[p]) + shift) * step, zero)
                row[p] = min(max(code, low), high)
            continue
        for p in range(row.size):
            value = np.float32(int(line[p]) + shift) * step
            if fusion == ADD_THEN_ACTIVATION:
                value += np.float32(addend[c, start + p]) * plus - minus
            if activation == RELU6:
                row[p] = max(min(round_to_int8(value), six[c]), np.int8(0))
                continue
            if activation == RELU:
                value = max(value, _ZERO)
            if fusion == ACTIVATION_THEN_ADD:
                value += np.float32(addend[c, start + p]) * plus - minus
            row[p] = round_to_int8(value + zero)


@kernel
def convolve_int8_into(
    x: NDArray[np.int8],
    input_zero: NDArray[np.int16],
    weight: NDArray[np.int32],
    bias: NDArray[np.int32],
    geometry: NDArray[np.int64],
    factor: NDArray[np.float32],
    zero_point: NDArray[np.int8],
    six: NDArray[np.int8],
    activation: int,
    half_even: bool,
    fusion: int,
    addend: NDArray[np.int8],
    add_factor: NDArray[np.float32],
    add_zero: NDArray[np.int8],
    columns: NDArray[np.int16],
    sums: NDArray[np.int32],
    out: NDArray[np.int8],
) -> None:
    """Convolve int8 (n, group, channels, h, w) into (n, group, out_channels, pixels).

    input_zero: int16 (group, channels); weight: int32 (group, out_channels, channels * kernel_h *
    kernel_w) with its zero point subtracted; bias to add_zero as in `finish_int8_into`, with a
    leading group axis; addend: int8 (n, group, out_channels, pixels) or empty; columns: scratch
    (kernel_h * kernel_w * channels, TILE); sums: scratch (out_channels, TILE).
    """
    pixels = out.shape[3]
    for n in range(x.shape[0]):
        for g in range(x.shape[1]):
            for start in range(0, pixels, TILE):
                width = min(TILE, pixels - start)
                gather_int_into(x[n, g], input_zero[g], geometry, start, width, columns)
                sums[:, :] = 0
                multiply_int_into(weight[g], columns, width, sums)
                finish_int8_into(
                    sums,
                    start,
                    width,
                    bias[g],
                    factor[g],
                    zero_point[g],
                    six[g],
                    activation,
                    half_even,
                    fusion,
                    addend[n, g] if fusion != NO_ADD else addend[0, 0],
                    add_factor[g],
                    add_zero[g],
                    out[n, g],
                )


@kernel
def convolve_few_int8_into(
    x: NDArray[np.int8],
    input_zero: NDArray[np.int16],
    transposed: NDArray[np.int16],
    bias: NDArray[np.int32],
    geometry: NDArray[np.int64],
    factor: NDArray[np.float32],
    zero_point: NDArray[np.int8],
    six: NDArray[np.int8],
    activation: int,
    half_even: bool,
    fusion: int,
    addend: NDArray[np.int8],
    add_factor: NDArray[np.float32],
    add_zero: NDArray[np.int8],
    columns: NDArray[np.int16],
    rows: NDArray[np.int32],
    row_sums: NDArray[np.int32],
    sums: NDArray[np.int32],
    out: NDArray[np.int8],
) -> None:
    """Convolve into a map of few pixels, vectorized along the output channels.

    Arguments as in `convolve_int8_into`, but transposed: int16 (group, kernel_h * kernel_w *
    channels, out_channels), and scratch: columns (kernel_h * kernel_w * channels, pixels), rows its
    transpose, row_sums (pixels, out_channels), sums its transpose.
    """
    pixels = out.shape[3]
    for n in range(x.shape[0]):
        for g in range(x.shape[1]):
            gather_int_into(x[n, g], input_zero[g], geometry, 0, pixels, columns)
            rows[:, :] = columns.T
            row_sums[:, :] = 0
            multiply_int_into(rows, transposed[g], row_sums.shape[1], row_sums)
            sums[:, :] = row_sums.T
            finish_int8_into(
                sums,
                0,
                pixels,
                bias[g],
                factor[g],
                zero_point[g],
                six[g],
                activation,
                half_even,
                fusion,
                addend[n, g] if fusion != NO_ADD else addend[0, 0],
                add_factor[g],
                add_zero[g],
                out[n, g],
            )


@kernel
def convolve_depthwise_int8_into(
    x: NDArray[np.int8],
    input_zero: NDArray[np.int16],
    weight: NDArray[np.int32],
    bias: NDArray[np.int32],
    geometry: NDArray[np.int64],
    factor: NDArray[np.float32],
    zero_point: NDArray[np.int8],
    six: NDArray[np.int8],
    activation: int,
    half_even: bool,
    sums: NDArray[np.int32],
    out: NDArray[np.int8],
) -> None:
    """Convolve each channel with its own filter: int8 (n, c, h, w) to (n, c, oh, ow).

    input_zero: int16 (c,); weight: int32 (c, kernel_h, kernel_w); the rest (c,) as in
    `finish_int8_into`; sums: scratch int32 (oh, ow).
    """
    kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left = geometry[:6]
    dilation_h, dilation_w, output_h, output_w = geometry[6:]
    height, width = x.shape[2], x.shape[3]
    size = output_h * output_w
    nothing, no_factor = np.zeros((1, 1), np.int8), np.zeros(1, np.float32)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            sums[:, :] = 0
            zero = int(input_zero[c])
            for i in range(kernel_h):
                for j in range(kernel_w):
                    tap, shift = weight[c, i, j], j * dilation_w - pad_left
                    first, last = inner_range(shift, stride_w, output_w, width)
                    for oh in range(output_h):
                        ih = oh * stride_h - pad_top + i * dilation_h
                        if ih < 0 or ih >= height or first == last:
                            continue
                        row, line = sums[oh, first:last], x[n, c, ih, first * stride_w + shift :]
                        if stride_w == 1:
                            for q in range(row.size):
                                code = np.int16(int(line[q]) - zero)
                                row[q] = add_product(row[q], tap, code)
                        else:
                            for q in range(row.size):
                                code = np.int16(int(line[q * stride_w]) - zero)
                                row[q] = add_product(row[q], tap, code)
            finish_int8_into(
                sums.reshape(1, size),
                0,
                size,
                bias[c : c + 1],
                factor[c : c + 1],
                zero_point[c : c + 1],
                six[c : c + 1],
                activation,
                half_even,
                NO_ADD,
                nothing,
                no_factor,
                nothing[0],
                out[n, c].reshape(1, size),
            )
