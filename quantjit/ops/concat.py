"""Concat, split and channel shuffles."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConcatAttrs:
    """Axis: along which the inputs are joined."""

    axis: int = 1


@dataclass(frozen=True, slots=True)
class SplitAttrs:
    """``split_v``: axis and the size of each piece."""

    axis: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShuffleAttrs:
    """``shuffle_channel``: number of groups; ``pixel_shuffle``: the upscale factor."""

    group: int = 1
