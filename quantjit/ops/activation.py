"""Unary ops: activations and elementwise functions."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PReluAttrs:
    """channel_shared: one slope for all channels; has_filler: kept as read (TNN)."""

    channel_shared: bool = False
    has_filler: bool = False


@dataclass(frozen=True, slots=True)
class EluAttrs:
    """x if x > 0 else alpha * (exp(x) - 1)."""

    alpha: float = 1.0


@dataclass(frozen=True, slots=True)
class ClipAttrs:
    """Clamp to [minimum, maximum]."""

    minimum: float = 0.0
    maximum: float = 0.0


@dataclass(frozen=True, slots=True)
class HardAttrs:
    """hard_sigmoid: clamp(alpha * x + beta, 0, 1); hard_swish: x times that."""

    alpha: float = 1.0
    beta: float = 0.0


@dataclass(frozen=True, slots=True)
class PowerAttrs:
    """(scale * x + shift) ** exponent."""

    exponent: float = 1.0
    scale: float = 1.0
    shift: float = 0.0
