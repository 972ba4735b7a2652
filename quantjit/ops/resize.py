"""Upsample: nearest, bilinear and cubic."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UpsampleAttrs:
    """mode "nearest", "bilinear" or "cubic"; output_h x output_w if both are > 0, else scales."""

    mode: str
    scale_h: float
    scale_w: float
    align_corners: bool = False
    output_h: int = 0
    output_w: int = 0
