"""Upsample: nearest, bilinear and cubic, with TNN's choice of source pixels.

``source/tnn/device/cpu/acc/cpu_upsample_layer_acc.cc``: coordinates in float32, half pixel centres
unless align_corners, nearest rounds down from the top left corner, cubic has a = -0.75.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.kernels.codes import dequantize_into, quantize_into
from quantjit.kernels.resample import interpolate_into, pick_into
from quantjit.ops import Arrays, Op, Request, Runner, Shape
from quantjit.ops.reformat import channel_view
from quantjit.quant import QuantParams

_MODES = ("nearest", "bilinear", "cubic")


@dataclass(frozen=True, slots=True)
class UpsampleAttrs:
    """mode "nearest", "bilinear" or "cubic"; output_h x output_w if both are > 0, else scales."""

    mode: str
    scale_h: float
    scale_w: float
    align_corners: bool = False
    output_h: int = 0
    output_w: int = 0


def _scaled(size: int, scale: float) -> int:
    return int(np.floor(np.float32(size) * np.float32(scale) + np.float32(0.5)))


def _infer_shape(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    attrs: UpsampleAttrs = node.attrs
    place, shape = f"node {node.name!r}", inputs[0]
    if len(shape) != 4:
        raise GraphError(place, f"upsample needs an NCHW blob, its input is {shape}")
    if attrs.mode not in _MODES:
        raise GraphError(place, f"upsample mode {attrs.mode!r} is none of {', '.join(_MODES)}")
    if attrs.output_h > 0 and attrs.output_w > 0:
        size = (attrs.output_h, attrs.output_w)
    else:
        size = (_scaled(shape[2], attrs.scale_h), _scaled(shape[3], attrs.scale_w))
    if min(size) < 1:
        raise GraphError(place, f"output {size[0]} x {size[1]} of input {shape} is empty")
    return ((*shape[:2], *size),)


def _coordinates(size: int, out: int, *, align_corners: bool) -> NDArray[np.float32]:
    """Source coordinate of each output pixel, float32 (out,)."""
    if align_corners:
        step = np.float32(size - 1) / np.float32(out - 1) if out > 1 else np.float32(0)
        return step * np.arange(out, dtype=np.float32)
    step = np.float32(size) / np.float32(out) if out > 1 else np.float32(0)
    centres = np.float64(step) * (np.arange(out) + 0.5) - 0.5
    return centres.astype(np.float32)


def _taps(
    mode: str, size: int, out: int, *, align_corners: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Source pixels and weights of each output pixel, (out, taps): 1, 2 or 4 taps."""
    if mode == "nearest":
        step = np.float32(size) / np.float32(out)
        index = (np.arange(out, dtype=np.float32) * step).astype(np.int64)
        return np.minimum(index, size - 1)[:, None], np.ones((out, 1), np.float32)
    at = _coordinates(size, out, align_corners=align_corners)
    if mode == "bilinear":
        at = np.clip(at, np.float32(0), np.float32(size - 1))
        index = at.astype(np.int64)
        fraction = at - index.astype(np.float32)
        weights = np.stack([np.float32(1) - fraction, fraction], axis=1)
        return np.stack([index, np.minimum(index + 1, size - 1)], axis=1), weights
    floor = np.floor(at)
    near, one, a = at - floor, np.float32(1), np.float32(-0.75)
    far, rest = near + one, one - near
    weights = np.empty((out, 4), np.float32)
    weights[:, 0] = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    weights[:, 1] = ((a + 2) * near - (a + 3)) * near * near + one
    weights[:, 2] = ((a + 2) * rest - (a + 3)) * rest * rest + one
    weights[:, 3] = one - weights[:, 0] - weights[:, 1] - weights[:, 2]
    index = floor.astype(np.int64)[:, None] + np.arange(-1, 3)
    return np.clip(index, 0, size - 1), weights


def _prepare_float(request: Request) -> Runner:
    attrs: UpsampleAttrs = request.node.attrs
    (n, c, h, w), out = request.input_shapes[0], request.output_shapes[0]
    planes, out_planes = (n * c, h, w), (n * c, *out[2:])
    index_h, weight_h = _taps(attrs.mode, h, out[2], align_corners=attrs.align_corners)
    index_w, weight_w = _taps(attrs.mode, w, out[3], align_corners=attrs.align_corners)
    if attrs.mode == "nearest":
        lines, columns = index_h.ravel(), index_w.ravel()

        def run_nearest(inputs: Arrays, outputs: Arrays) -> None:
            pick_into(inputs[0].reshape(planes), lines, columns, outputs[0].reshape(out_planes))

        return run_nearest

    def run(inputs: Arrays, outputs: Arrays) -> None:
        interpolate_into(
            inputs[0].reshape(planes),
            index_h,
            weight_h,
            index_w,
            weight_w,
            outputs[0].reshape(out_planes),
        )

    return run


def _prepare_int8(request: Request) -> Runner:
    """Dequantize, resample, quantize; TNN leaves the zero points out."""
    (shape,), (out_shape,) = request.input_shapes, request.output_shapes
    source = QuantParams(request.input_quant[0].scale)
    target = QuantParams(request.output_quant[0].scale)
    view = channel_view(request.node, shape, source.scale.size)
    out_view = channel_view(request.node, out_shape, target.scale.size)
    resample = _prepare_float(request)
    reals, resampled = np.empty(shape, np.float32), np.empty(out_shape, np.float32)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        dequantize_into(
            inputs[0].reshape(view),
            source.scale,
            source.zero_point,
            False,
            reals.reshape(view),
        )
        resample((reals,), (resampled,))
        quantize_into(
            resampled.reshape(out_view),
            target.scale,
            target.zero_point,
            outputs[0].reshape(out_view),
        )

    return run


OPS = (Op("upsample", UpsampleAttrs, _infer_shape, _prepare_float, _prepare_int8),)
