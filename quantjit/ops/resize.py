"""Upsample: nearest, bilinear and cubic, with TNN's choice of source pixels; resize, with ONNX's.

``source/tnn/device/cpu/acc/cpu_upsample_layer_acc.cc``: coordinates in float32, half pixel centres
unless align_corners, nearest rounds down from the top left corner, cubic has a = -0.75.  ONNX lets
each of these be chosen (https://onnx.ai/onnx/operators/onnx__Resize.html).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.kernels.codes import dequantize_into, quantize_even_into, quantize_into
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


@dataclass(frozen=True, slots=True)
class ResizeAttrs:
    """``resize`` to output_h x output_w.

    mode: as in UpsampleAttrs.  scale_h, scale_w: output over input, which the sizes may round.
    coordinates: "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners" or
    "asymmetric".  nearest: "round_prefer_floor", "round_prefer_ceil", "floor" or "ceil".  cubic_a:
    the cubic's coefficient; exclude_outside: its taps outside the input get no weight.
    """

    mode: str
    scale_h: float
    scale_w: float
    output_h: int
    output_w: int
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False


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
    return _linear_taps(at, size) if mode == "bilinear" else _cubic_taps(at, size, -0.75)


def _linear_taps(
    at: NDArray[np.float32], size: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    at = np.clip(at, np.float32(0), np.float32(size - 1))
    index = at.astype(np.int64)
    fraction = at - index.astype(np.float32)
    weights = np.stack([np.float32(1) - fraction, fraction], axis=1)
    return np.stack([index, np.minimum(index + 1, size - 1)], axis=1), weights


def _cubic_taps(
    at: NDArray[np.float32], size: int, coefficient: float, *, exclude_outside: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    floor = np.floor(at)
    near, one, a = at - floor, np.float32(1), np.float32(coefficient)
    far, rest = near + one, one - near
    weights = np.empty((at.size, 4), np.float32)
    weights[:, 0] = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    weights[:, 1] = ((a + 2) * near - (a + 3)) * near * near + one
    weights[:, 2] = ((a + 2) * rest - (a + 3)) * rest * rest + one
    weights[:, 3] = one - weights[:, 0] - weights[:, 1] - weights[:, 2]
    index = floor.astype(np.int64)[:, None] + np.arange(-1, 3)
    if exclude_outside:
        weights[(index < 0) | (index >= size)] = 0
        weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(index, 0, size - 1), weights


def _runner(
    mode: str,
    request: Request,
    lines: tuple[NDArray[np.int64], NDArray[np.float32]],
    columns: tuple[NDArray[np.int64], NDArray[np.float32]],
) -> Runner:
    """Resample with these taps of the output's lines and columns."""
    (n, c, h, w), out = request.input_shapes[0], request.output_shapes[0]
    planes, out_planes = (n * c, h, w), (n * c, *out[2:])
    if mode == "nearest":
        picked_lines, picked_columns = lines[0].ravel(), columns[0].ravel()

        def run_nearest(inputs: Arrays, outputs: Arrays) -> None:
            pick_into(
                inputs[0].reshape(planes),
                picked_lines,
                picked_columns,
                outputs[0].reshape(out_planes),
            )

        return run_nearest

    def run(inputs: Arrays, outputs: Arrays) -> None:
        x, resampled = inputs[0].reshape(planes), outputs[0].reshape(out_planes)
        interpolate_into(x, *lines, *columns, resampled)

    return run


def _prepare_float(request: Request) -> Runner:
    attrs: UpsampleAttrs = request.node.attrs
    shape, out = request.input_shapes[0], request.output_shapes[0]
    lines, columns = (
        _taps(attrs.mode, shape[axis], out[axis], align_corners=attrs.align_corners)
        for axis in (2, 3)
    )
    return _runner(attrs.mode, request, lines, columns)


def _prepare_int8(request: Request) -> Runner:
    """Dequantize, resample, quantize; TNN leaves the zero points out, ONNX does not."""
    (shape,), (out_shape,) = request.input_shapes, request.output_shapes
    source, target = request.input_quant[0], request.output_quant[0]
    quantize = quantize_even_into
    if not request.is_onnx:
        source, target = QuantParams(source.scale), QuantParams(target.scale)
        quantize = quantize_into
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
        quantize(
            resampled.reshape(out_view),
            target.scale,
            target.zero_point,
            outputs[0].reshape(out_view),
        )

    return run


# ------------------------------------------------------------------ ONNX's choice of pixels


def _infer_resize(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    attrs: ResizeAttrs = node.attrs
    place, shape = f"node {node.name!r}", inputs[0]
    if len(shape) != 4:
        raise GraphError(place, f"resize needs an NCHW blob, its input is {shape}")
    known = {"mode": _MODES, "coordinates": _POSITIONS, "nearest": _ROUNDINGS}
    for name, values in known.items():
        if getattr(attrs, name) not in values:
            raise GraphError(
                place, f"{name} {getattr(attrs, name)!r} is none of {', '.join(values)}"
            )
    if min(attrs.output_h, attrs.output_w) < 1 or min(attrs.scale_h, attrs.scale_w) <= 0:
        raise GraphError(place, f"an output of {attrs.output_h} x {attrs.output_w} is empty")
    return ((*shape[:2], attrs.output_h, attrs.output_w),)


def _positions(kind: str, size: int, out: int, scale: float) -> NDArray[np.float32]:
    """Source coordinate of each output pixel, float32 (out,).

    Where the scale is that of the sizes, they are divided: a pixel that falls between two must not
    be moved by a rounded scale.
    """
    at = np.arange(out, dtype=np.float64)
    exact = np.float32(out / size) == np.float32(scale)
    ratio = np.float64(1) if exact else np.float64(np.float32(scale)) * size / out
    if kind == "align_corners":
        found = at * (size - 1) / max(out - 1, 1)
    elif kind == "asymmetric":
        found = at * size / (out * ratio)
    elif kind == "pytorch_half_pixel" and out == 1:
        found = np.zeros(1)
    else:
        found = (at + 0.5) * size / (out * ratio) - 0.5
        if kind == "half_pixel_symmetric":
            found += size / 2 * (1 - 1 / ratio)
    return found.astype(np.float32)


_POSITIONS = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
)
_ROUNDINGS: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "round_prefer_floor": lambda at: np.ceil(at - np.float32(0.5)),
    "round_prefer_ceil": lambda at: np.floor(at + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _resize_taps(
    attrs: ResizeAttrs, size: int, out: int, scale: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    at = _positions(attrs.coordinates, size, out, scale)
    if attrs.mode == "bilinear":
        return _linear_taps(at, size)
    if attrs.mode == "cubic":
        return _cubic_taps(at, size, attrs.cubic_a, exclude_outside=attrs.exclude_outside)
    index = np.clip(_ROUNDINGS[attrs.nearest](at), 0, size - 1).astype(np.int64)
    return index[:, None], np.ones((out, 1), np.float32)


def _prepare_resize(request: Request) -> Runner:
    attrs: ResizeAttrs = request.node.attrs
    _, _, h, w = request.input_shapes[0]
    lines = _resize_taps(attrs, h, attrs.output_h, attrs.scale_h)
    columns = _resize_taps(attrs, w, attrs.output_w, attrs.scale_w)
    return _runner(attrs.mode, request, lines, columns)


OPS = (
    Op("upsample", UpsampleAttrs, _infer_shape, _prepare_float, _prepare_int8),
    Op("resize", ResizeAttrs, _infer_resize, _prepare_resize),
)
