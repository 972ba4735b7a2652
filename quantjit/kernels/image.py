"""Images to tensors: resampling as in stb_image_resize, and (pixel - bias) * scale.

A filter is given as a table: ``first`` int64 (out,), the source index of the first tap, and
``taps`` float32 (out, count), which sum to 1.  Indices outside the image are clamped to its edge.
"""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel

_HALF, _ZERO, _HIGHEST = np.float32(0.5), np.float32(0), np.float32(255)


@kernel
def resample_rows_into(
    image: NDArray[np.uint8],
    first: NDArray[np.int64],
    taps: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Resample along the width: uint8 (h, w, channels) to float32 (h, out_w, channels)."""
    height, width, channels = image.shape
    for h in range(height):
        for w in range(first.size):
            for c in range(channels):
                total = _ZERO
                for tap in range(taps.shape[1]):
                    source = min(max(first[w] + tap, 0), width - 1)
                    total += taps[w, tap] * np.float32(image[h, source, c])
                out[h, w, c] = total


@kernel
def resample_columns_into(
    image: NDArray[np.float32],
    first: NDArray[np.int64],
    taps: NDArray[np.float32],
    out: NDArray[np.uint8],
) -> None:
    """Resample along the height: float32 (h, w, channels) to uint8 (out_h, w, channels)."""
    height, width, channels = image.shape
    for h in range(first.size):
        for w in range(width):
            for c in range(channels):
                total = _ZERO
                for tap in range(taps.shape[1]):
                    source = min(max(first[h] + tap, 0), height - 1)
                    total += taps[h, tap] * image[source, w, c]
                out[h, w, c] = np.uint8(min(max(total + _HALF, _ZERO), _HIGHEST))


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
