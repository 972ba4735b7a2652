"""Rounding, in one place: half away from zero, as TNN's ``float2int8``.

``source/tnn/utils/naive_compute.cc`` adds 0.5 with the sign of the value in float32, clamps to
[-128, 127] and truncates.  ``round()`` and ``np.rint`` round half to even and are never used.
"""

import numpy as np

from quantjit.kernels import kernel

_HALF = np.float32(0.5)
_LOWEST = np.float32(-128)
_HIGHEST = np.float32(127)


@kernel
def round_to_int8(value: np.float32) -> np.int8:
    """Round a float32 half away from zero and saturate to [-128, 127]; NaN gives 127, as in TNN."""
    shifted = value + _HALF if value >= 0 else value - _HALF
    below = shifted if shifted < _HIGHEST else _HIGHEST
    return np.int8(below if below > _LOWEST else _LOWEST)
