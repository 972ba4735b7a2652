"""Ops that move or select elements: reshape, permute, slice, pad ..."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReshapeAttrs:
    """shape: 0 copies the input's dimension, one -1 is inferred.

    axis, num_axes: as in the file (TNN).  layout: "nchw", or "nhwc" for TensorFlow semantics.
    """

    shape: tuple[int, ...]
    axis: int = 0
    num_axes: int = -1
    layout: str = "nchw"


@dataclass(frozen=True, slots=True)
class FlattenAttrs:
    """Axis: dimensions before it are merged into one, and those from it on into another."""

    axis: int = 1


@dataclass(frozen=True, slots=True)
class PermuteAttrs:
    """order: output dimension i is input dimension order[i]."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AxesAttrs:
    """``squeeze`` and ``unsqueeze``: the axes to drop or to insert."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PadAttrs:
    """``pad``: begins and ends per dimension; kind "constant", "reflect" or "edge"; value."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    kind: str = "constant"
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class SliceAttrs:
    """begins, ends (exclusive, 0 = to the end in TNN's V1), strides for each of `axes`."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    axes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ConstantAttrs:
    """``constant``: the dimensions of ``weights["value"]``."""

    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CastAttrs:
    """``cast``: target element type, a NumPy dtype name."""

    dtype: str


@dataclass(frozen=True, slots=True)
class TileAttrs:
    """``tile``: repeats per dimension."""

    repeats: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GatherAttrs:
    """``gather`` along axis; which operands are in ``weights`` ("data", "indices")."""

    axis: int = 0
    data_in_resource: bool = False
    indices_in_resource: bool = True
