"""Reductions over axes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReduceAttrs:
    """axes to reduce; keep_dims: keep them with size 1."""

    axes: tuple[int, ...]
    keep_dims: bool = True
