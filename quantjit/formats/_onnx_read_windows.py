"""ONNX layers with windows: convolution, deconvolution, pooling; of one or two spatial axes.

A layer of one axis becomes one of two, the first of which has one pixel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantjit.formats._onnx_read_call import Call, MalformedError, RefusedError, Translation
from quantjit.ops.convolution import ConvolutionAttrs
from quantjit.ops.pooling import PoolingAttrs
from quantjit.ops.reduce import ReduceAttrs
from quantjit.ops.shape import AxesAttrs

Shape = tuple[int, ...]
Pair = tuple[int, int]
Pads = tuple[int, int, int, int]

_AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def _planes(call: Call) -> tuple[str, Shape]:
    """Return the input as a blob of NCHW, and its shape."""
    shape = call.shape()
    if len(shape) == 4:
        return call.blob(), shape
    if len(shape) != 3:
        raise RefusedError(f"its input has shape {shape}; only one or two spatial axes are run")
    blob = call.emit("unsqueeze", attrs=AxesAttrs((2,)), suffix="input")
    return blob, (*shape[:2], 1, shape[2])


def _write(call: Call, op: str, source: str, attrs: Any, weights: Mapping[str, Any]) -> None:
    """Emit the layer, and take the axis away that its input did not have."""
    if len(call.shape()) == 4:
        call.emit(op, (source,), attrs, weights)
    else:
        planes = call.emit(op, (source,), attrs, weights, suffix="planes")
        call.emit("squeeze", (planes,), AxesAttrs((2,)))


def _of_axes(values: Shape, axes: int, filler: int) -> Shape:
    """Return values for two axes: of each beginning and end, where there are two an axis."""
    if axes == 2:
        return values
    return tuple(number for value in values for number in (filler, value))


@dataclass(frozen=True, slots=True)
class _Window:
    """Kernel, strides and dilations, each (h, w), and pads: top, bottom, left, right."""

    kernel: Pair
    strides: Pair
    dilations: Pair
    pads: Pads
    auto_pad: str

    def reach(self, axis: int) -> int:
        """Input pixels from the first tap to the last."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1


def _pair(call: Call, name: str, axes: int) -> Pair:
    values = call.integers(name) or (1,) * axes
    if len(values) != axes or min(values) < 1:
        raise MalformedError(f"{name} {values} are not {axes} positive numbers")
    pair = _of_axes(values, axes, 1)
    return pair[0], pair[1]


def _window(call: Call, kernel: Shape) -> _Window:
    """Read the window; "same" and "valid" pads are those of its input's size."""
    axes = len(call.shape()) - 2
    strides, dilations = _pair(call, "strides", axes), _pair(call, "dilations", axes)
    auto_pad = call.text("auto_pad", "NOTSET") or "NOTSET"
    if auto_pad not in _AUTO_PADS:
        raise MalformedError(f"auto_pad {auto_pad!r} is none of {', '.join(_AUTO_PADS)}")
    if len(kernel) != axes or min(kernel) < 1:
        raise MalformedError(f"kernel {kernel} is not {axes} positive numbers")
    pads = call.integers("pads") or (0, 0) * axes
    if len(pads) != 2 * axes:
        raise MalformedError(f"pads {pads} are not {2 * axes} numbers")
    top, left, bottom, right = _of_axes(pads, axes, 0) if auto_pad == "NOTSET" else (0, 0, 0, 0)
    high, wide = _of_axes(kernel, axes, 1)
    return _Window((high, wide), strides, dilations, (top, bottom, left, right), auto_pad)


def _same_pads(window: _Window, sizes: Shape) -> Pads:
    """Return pads for an output of ceil(size / stride), where asked for."""
    if not window.auto_pad.startswith("SAME"):
        return window.pads
    pads: list[int] = []
    for axis, size in enumerate(sizes):
        stride = window.strides[axis]
        total = max((-(-size // stride) - 1) * stride + window.reach(axis) - size, 0)
        smaller, larger = total // 2, total - total // 2
        pads += (smaller, larger) if window.auto_pad == "SAME_UPPER" else (larger, smaller)
    return pads[0], pads[1], pads[2], pads[3]


# ------------------------------------------------------------------ convolution


def _filters(call: Call) -> tuple[NDArray[np.float32], _Window]:
    """Return the weight with two spatial axes, and the window."""
    weight = call.float_constant(1, "weight")
    if weight.ndim != len(call.shape()):
        raise MalformedError(f"its weight has shape {weight.shape}, its input {call.shape()}")
    kernel = call.integers("kernel_shape")
    if kernel is not None and kernel != weight.shape[2:]:
        raise MalformedError(f"kernel_shape {kernel} is not that of the weight {weight.shape}")
    window = _window(call, weight.shape[2:])
    return weight.reshape(*weight.shape[:2], *window.kernel), window


def _with_bias(
    call: Call, weight: NDArray[np.float32], channels: int
) -> dict[str, NDArray[np.float32]]:
    if not call.has(2):
        return {"weight": weight}
    bias = call.float_constant(2, "bias").reshape(-1)
    if bias.size != channels:
        raise MalformedError(f"a bias of {bias.size} values for {channels} channels")
    return {"weight": weight, "bias": bias}


def _attrs(
    window: _Window, group: int, channels: Pair, pads: Pads, *, has_bias: bool
) -> ConvolutionAttrs:
    return ConvolutionAttrs(
        group,
        *channels,
        *window.kernel,
        *window.strides,
        pads=pads,
        dilation_h=window.dilations[0],
        dilation_w=window.dilations[1],
        has_bias=has_bias,
    )


def _conv(call: Call) -> None:
    (source, shape), (weight, window) = _planes(call), _filters(call)
    group = call.integer("group", 1)
    pads = _same_pads(window, shape[2:])
    channels = (weight.shape[1] * group, weight.shape[0])
    attrs = _attrs(window, group, channels, pads, has_bias=call.has(2))
    _write(call, "convolution", source, attrs, _with_bias(call, weight, channels[1]))


def _conv_transpose(call: Call) -> None:
    (source, shape), (weight, window) = _planes(call), _filters(call)
    group = call.integer("group", 1)
    axes = len(call.shape()) - 2
    extra = _of_axes(call.integers("output_padding") or (0,) * axes, axes, 0)
    wanted = call.integers("output_shape")
    if len(extra) != 2 or (wanted is not None and len(wanted) < axes):
        raise MalformedError(f"output_padding or output_shape is not {axes} numbers")
    if wanted is not None:
        wanted = _of_axes(wanted[-axes:], axes, 1)
    pads: list[int] = []
    for axis in range(2):
        size, stride = shape[2 + axis], window.strides[axis]
        spread = (size - 1) * stride + window.reach(axis) + extra[axis]
        if wanted is None and window.auto_pad in {"NOTSET", "VALID"}:
            before, after = window.pads[2 * axis], window.pads[2 * axis + 1]
        else:
            target = size * stride if wanted is None else wanted[axis]
            total = spread - target
            smaller, larger = total // 2, total - total // 2
            upper = window.auto_pad == "SAME_UPPER"
            before, after = (smaller, larger) if upper else (larger, smaller)
        pads += [before, after - extra[axis]]
    channels = (weight.shape[0], weight.shape[1] * group)
    attrs = _attrs(
        window, group, channels, (pads[0], pads[1], pads[2], pads[3]), has_bias=call.has(2)
    )
    _write(call, "deconvolution", source, attrs, _with_bias(call, weight, channels[1]))


# ------------------------------------------------------------------ pooling


def _rounded_up(call: Call, window: _Window, sizes: Shape) -> tuple[Pads, bool]:
    """Return the pads and ceil_mode of TNN's pooling that make ONNX's windows.

    ONNX drops a last window that starts behind the input and its pad before; TNN does not.
    """
    given = _same_pads(window, sizes)
    if not call.integer("ceil_mode", 0):
        return given, False
    pads = list(given)
    agrees, counts = True, []
    for axis, size in enumerate(sizes):
        stride = window.strides[axis]
        before, after = pads[2 * axis : 2 * axis + 2]
        last = -(-(size + before + after - window.reach(axis)) // stride)
        counts.append(last + 1 if last * stride < size + before else last)
        agrees = agrees and counts[-1] == last + 1
    if agrees:
        return given, True
    for axis, size in enumerate(sizes):  # rounded down, with pads that make as many windows
        spread = (counts[axis] - 1) * window.strides[axis] + window.reach(axis)
        missing = spread - size - sum(pads[2 * axis : 2 * axis + 2])
        if missing > 0 and call.integer("count_include_pad", 0):
            raise RefusedError("ceil_mode with count_include_pad adds windows on one side only")
        pads[2 * axis + 1] += max(missing, 0)
    return (pads[0], pads[1], pads[2], pads[3]), False


def _pool(kind: str) -> Translation:
    def translate(call: Call) -> None:
        source, shape = _planes(call)
        kernel = call.integers("kernel_shape")
        if kernel is None:
            raise MalformedError("it has no kernel_shape")
        window = _window(call, kernel)
        if kind == "max" and call.wants(1):
            raise RefusedError("its second output, the indices, is not computed")
        if call.integer("storage_order", 0) and call.wants(1):
            raise RefusedError("storage_order 1 is not run")
        pads, ceil_mode = _rounded_up(call, window, shape[2:])
        attrs = PoolingAttrs(
            kind,
            *window.kernel,
            *window.strides,
            pads=pads,
            ceil_mode=ceil_mode,
            count_include_pad=kind == "average" and bool(call.integer("count_include_pad", 0)),
        )
        if window.dilations != (1, 1):
            raise RefusedError("dilated windows are not run")
        _write(call, "pooling", source, attrs, {})

    return translate


def _global_pool(kind: str) -> Translation:
    reduction = {"max": "reduce_max", "average": "reduce_mean"}[kind]

    def translate(call: Call) -> None:
        rank = len(call.shape())
        if rank == 4:
            call.emit("pooling", attrs=PoolingAttrs(kind, 0, 0))
        else:
            call.emit(reduction, attrs=ReduceAttrs(tuple(range(2, rank))))

    return translate


TRANSLATIONS: Mapping[str, Translation] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool("max"),
    "AveragePool": _pool("average"),
    "GlobalMaxPool": _global_pool("max"),
    "GlobalAveragePool": _global_pool("average"),
}
