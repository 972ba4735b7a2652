"""Resizing of NCHW planes from tables of taps and weights, float32."""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel


@kernel
def pick_into(
    x: NDArray[np.float32],
    index_h: NDArray[np.int64],
    index_w: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Write x[:, index_h][:, :, index_w].

    x: float32 (planes, h, w); out: float32 (planes, out_h, out_w).
    """
    for plane in range(x.shape[0]):
        for oh in range(index_h.size):
            line, row = x[plane, index_h[oh]], out[plane, oh]
            for ow in range(index_w.size):
                row[ow] = line[index_w[ow]]


@kernel
def interpolate_into(
    x: NDArray[np.float32],
    index_h: NDArray[np.int64],
    weight_h: NDArray[np.float32],
    index_w: NDArray[np.int64],
    weight_w: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write the weighted sums of taps: along each line first, then over the lines.

    x: float32 (planes, h, w); index_h: int64, weight_h: float32 (out_h, taps); index_w, weight_w:
    (out_w, taps); out: float32 (planes, out_h, out_w).
    """
    taps = index_h.shape[1]
    for plane in range(x.shape[0]):
        for oh in range(out.shape[1]):
            row = out[plane, oh]
            for tap_h in range(taps):
                line, weight = x[plane, index_h[oh, tap_h]], weight_h[oh, tap_h]
                for ow in range(row.size):
                    value = line[index_w[ow, 0]] * weight_w[ow, 0]
                    for tap_w in range(1, taps):
                        value += line[index_w[ow, tap_w]] * weight_w[ow, tap_w]
                    row[ow] = weight * value if tap_h == 0 else row[ow] + weight * value
