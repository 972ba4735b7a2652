"""Inner product (fully connected)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InnerProductAttrs:
    """out_features; has_bias; transpose (weights stored (K, out)); axis from which to flatten."""

    out_features: int
    has_bias: bool = True
    transpose: bool = False
    axis: int = 1
