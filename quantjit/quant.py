"""Scales and zero points: ``real = scale * (q - zero_point)``; the scale is the step.

`QuantSpec` is the wish, `QuantParams` the answer, `NodeQuant` what an int8 node carries besides
its int8 weights.  Rounding is half away from zero, as in TNN's ``float2int8``
(``source/tnn/utils/naive_compute.cc``).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


def _readonly(values: object, dtype: type[np.generic]) -> NDArray[Any]:
    array: NDArray[Any] = np.array(values, dtype=dtype, ndmin=1)
    array.setflags(write=False)
    return array


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """What is asked of a scale.

    bits: width of the code.  symmetric: zero point fixed at 0.  per_channel: one scale per channel
    (axis 1 of a blob, axis 0 of weights), else one for the whole tensor.
    """

    bits: int = 8
    symmetric: bool = True
    per_channel: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class QuantParams:
    """What was decided for one blob.

    scale: float32 (1,) or (channels,), step in real units, >= 0 (0 marks a dead channel: all its
    codes are 0).  zero_point: int8, same shape.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int8]

    def __init__(self, scale: object, zero_point: object = 0) -> None:
        steps: NDArray[np.float32] = _readonly(scale, np.float32)
        zeros = np.broadcast_to(np.asarray(zero_point, dtype=np.int8), steps.shape)
        if steps.ndim != 1 or not np.isfinite(steps).all() or (steps < 0).any():
            raise ValueError(f"scale must be a finite vector >= 0, got {scale!r}")
        object.__setattr__(self, "scale", steps)
        object.__setattr__(self, "zero_point", _readonly(zeros, np.int8))

    @property
    def per_channel(self) -> bool:
        """More than one scale."""
        return self.scale.size > 1

    def __repr__(self) -> str:
        if not self.per_channel:
            zero = int(self.zero_point[0])
            return f"QuantParams({self.scale[0]:.6g}{f', {zero}' if zero else ''})"
        low, high = self.scale.min(), self.scale.max()
        return f"QuantParams({self.scale.size} scales from {low:.4g} to {high:.4g})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantParams):
            return NotImplemented
        return np.array_equal(self.scale, other.scale) and np.array_equal(
            self.zero_point, other.zero_point
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays


@dataclass(frozen=True, slots=True, eq=False)
class NodeQuant:
    """Marks a node as int8; empty but for nodes with weights (convolution, inner_product).

    weight_scale: float32 (1,) or (out_channels,): the real step of a weight times the step of its
    input, as TNN stores it (``acc * weight_scale`` is the real output).  weight_zero_point: int8,
    same shape.
    """

    weight_scale: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    weight_zero_point: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NodeQuant):
            return NotImplemented
        return np.array_equal(self.weight_scale, other.weight_scale) and np.array_equal(
            self.weight_zero_point, other.weight_zero_point
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays
