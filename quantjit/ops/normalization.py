"""Batch norm, scale, instance, layer and group norm, local response normalization."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScaleAttrs:
    """``scale``: y = x * scale + bias over the channels."""

    axis: int = 1
    num_axes: int = 1
    has_bias: bool = True


@dataclass(frozen=True, slots=True)
class InstanceNormAttrs:
    """``instance_norm``: channels as in the file; epsilon added to the variance."""

    channels: int = 0
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class GroupNormAttrs:
    """``group_norm``: groups of channels; epsilon added to the variance."""

    group: int
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class LayerNormAttrs:
    """``layer_norm`` over the last reduce_dims dimensions."""

    reduce_dims: int = 0
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class LrnAttrs:
    """``lrn`` across channels: x / (bias + alpha / size * sum of squares) ** beta."""

    alpha: float
    beta: float
    bias: float
    size: int
