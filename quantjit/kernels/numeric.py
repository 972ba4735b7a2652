"""Rounding, in one place: half away from zero, as TNN's ``float2int8``, or half to even, as ONNX.

``source/tnn/utils/naive_compute.cc`` adds 0.5 with the sign of the value in float32, clamps to
[-128, 127] and truncates.  onnxruntime's kernels round to the nearest, halves to even, and add the
zero point to the whole number (``onnxruntime/core/mlas/lib/quantize.cpp``).
"""

import numpy as np

from quantjit.kernels import kernel

_HALF = np.float32(0.5)
_LOWEST = np.float32(-128)
_HIGHEST = np.float32(127)
_WIDE = np.float32(1024)  # beyond every code, with any zero point
_WHOLE = np.float32(1.5 * 2**23)  # float32 of this size have no fraction: adding it rounds to even


@kernel
def round_to_int8(value: np.float32) -> np.int8:
    """Round a float32 half away from zero and saturate to [-128, 127]; NaN gives 127, as in TNN."""
    shifted = value + _HALF if value >= 0 else value - _HALF
    below = shifted if shifted < _HIGHEST else _HIGHEST
    return np.int8(below if below > _LOWEST else _LOWEST)


@kernel
def round_even_to_int8(value: np.float32, zero: np.float32) -> np.int8:
    """Round a float32 half to even, add a whole number and saturate to [-128, 127].

    NaN gives 127.
    """
    below = value if value < _WIDE else _WIDE
    bounded = below if below > -_WIDE else -_WIDE
    code = (bounded + _WHOLE) - _WHOLE + zero
    capped = code if code < _HIGHEST else _HIGHEST
    return np.int8(capped if capped > _LOWEST else _LOWEST)
