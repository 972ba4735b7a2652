"""Images to tensors: resampling as in stb_image_resize.h (v0.97), and (pixel - bias) * scale.

A filter of one axis is a table: ``first`` int64 (out,), the source index of the first tap, and
``taps`` float32 (out, count), which sum to 1.  Indices outside the image are clamped to its edge.
Everything is float32 in the order of stb_image_resize, so that the bytes are the same.
"""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel

_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_HIGHEST = np.float32(255)
_MITCHELL_NEAR = (np.float32(16), np.float32(36), np.float32(21))
_MITCHELL_FAR = (np.float32(32), np.float32(60), np.float32(36), np.float32(7))
_EIGHTEEN, _FIVE_HALVES, _THREE_HALVES = np.float32(18), np.float32(2.5), np.float32(1.5)
_FOUR = np.float32(4)


@kernel
def _mitchell(x: np.float32) -> np.float32:
    """Cubic of Mitchell and Netravali (1988) with B = C = 1/3, over twice its support of 2."""
    x = abs(x)
    if x < _ONE:
        a, b, c = _MITCHELL_NEAR
        return (a + x * x * (c * x - b)) / _EIGHTEEN
    if x < _TWO:
        a, b, c, d = _MITCHELL_FAR
        return (a + x * (x * (c - d * x) - b)) / _EIGHTEEN
    return _ZERO


@kernel
def _catmull_rom(x: np.float32) -> np.float32:
    """Cubic with B = 0, C = 1/2."""
    x = abs(x)
    if x < _ONE:
        return _ONE - x * x * (_FIVE_HALVES - _THREE_HALVES * x)
    if x < _TWO:
        return _TWO - x * (_FOUR + x * (_HALF * x - _FIVE_HALVES))
    return _ZERO


@kernel
def growing_taps_into(size: int, first: NDArray[np.int64], taps: NDArray[np.float32]) -> None:
    """Write the table that makes an axis of `size` pixels longer: Catmull-Rom's cubic.

    first: int64 (out,), out > size; taps: float32 (out, 5), zeros.
    """
    ratio = np.float32(np.float32(first.size) / np.float32(size))
    reach = _TWO * ratio
    for out in range(first.size):
        centre = np.float32(out) + _HALF
        start = math.floor(float((centre - reach) / ratio) + 0.5)
        stop = math.floor(float((centre + reach) / ratio) - 0.5) + 1
        middle = centre / ratio
        first[out] = start
        total = _ZERO
        for source in range(start, stop):
            tap = _catmull_rom(middle - (np.float32(source) + _HALF))
            taps[out, source - start] = tap
            total += tap
        norm = _ONE / total
        for tap_index in range(stop - start):
            taps[out, tap_index] *= norm


@kernel
def shrinking_taps_into(size: int, first: NDArray[np.int64], taps: NDArray[np.float32]) -> None:
    """Write the table that makes an axis of `size` pixels shorter: Mitchell's cubic, widened.

    An axis that keeps its length goes through it too and comes out softer, as in the original.
    first: int64 (out,), out <= size; taps: float32 (out, count), zeros, with count at least
    4 * size / out + 2.
    """
    ratio = np.float32(np.float32(first.size) / np.float32(size))
    reach = _TWO / ratio
    margin = math.ceil(float(_FOUR / ratio)) // 2
    for out in range(first.size):
        first[out] = size + margin
    # Source pixels are dealt out to the outputs, as in the original: its rounding depends on it.
    for source in range(-margin, size + margin):
        centre = np.float32(source) + _HALF
        start = math.floor(float((centre - reach) * ratio) + 0.5)
        stop = math.floor(float((centre + reach) * ratio) - 0.5) + 1
        middle = centre * ratio
        for out in range(max(start, 0), min(stop, first.size)):
            first[out] = min(first[out], source)
            tap = _mitchell((np.float32(out) + _HALF) - middle) * ratio
            taps[out, source - first[out]] = tap
    for out in range(first.size):
        total = _ZERO
        for tap_index in range(taps.shape[1]):
            total += taps[out, tap_index]
        norm = _ONE / total
        for tap_index in range(taps.shape[1]):
            taps[out, tap_index] *= norm


@kernel
def resample_rows_into(
    image: NDArray[np.uint8],
    first: NDArray[np.int64],
    taps: NDArray[np.float32],
    line: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Resample along the width, to levels from 0 to 1.

    image: uint8 (h, w, channels); line: float32 (w, channels), overwritten; out: float32
    (h, out_w, channels).
    """
    height, width, channels = image.shape
    for h in range(height):
        for w in range(width):
            for c in range(channels):
                line[w, c] = np.float32(image[h, w, c]) / _HIGHEST
        for w in range(first.size):
            for c in range(channels):
                total = _ZERO
                for tap in range(taps.shape[1]):
                    source = min(max(first[w] + tap, 0), width - 1)
                    total += line[source, c] * taps[w, tap]
                out[h, w, c] = total


@kernel
def resample_columns_into(
    image: NDArray[np.float32],
    first: NDArray[np.int64],
    taps: NDArray[np.float32],
    line: NDArray[np.float32],
    out: NDArray[np.uint8],
) -> None:
    """Resample along the height, from levels of 0 to 1 to bytes, rounded and saturated.

    image: float32 (h, row); line: float32 (row,), overwritten; out: uint8 (out_h, row).
    """
    height, row = image.shape
    for h in range(first.size):
        line[:] = _ZERO
        for tap in range(taps.shape[1]):
            source, weight = min(max(first[h] + tap, 0), height - 1), taps[h, tap]
            for i in range(row):
                line[i] += image[source, i] * weight
        for i in range(row):
            level = min(max(line[i], _ZERO), _ONE)
            out[h, i] = np.uint8(int(float(level * _HIGHEST) + 0.5))


@kernel
def normalize_into(
    pixels: NDArray[np.uint8],
    reverse: bool,
    bias: NDArray[np.float32],
    scale: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write (pixel - bias[c]) * scale[c], channels first.

    pixels: uint8 (h, w, channels); reverse: the first three channels change their order before
    bias and scale; bias, scale: float32 (channels,); out: float32 (channels, h, w).
    """
    channels = pixels.shape[2]
    for c in range(channels):
        source = 2 - c if reverse and c < 3 else c
        shift, factor = bias[c], scale[c]
        for h in range(pixels.shape[0]):
            for w in range(pixels.shape[1]):
                out[c, h, w] = (np.float32(pixels[h, w, source]) - shift) * factor
