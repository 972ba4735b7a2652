"""Softmax and log-softmax."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SoftmaxAttrs:
    """Axis: over which the outputs sum to one."""

    axis: int = 1
