"""Convolution and deconvolution.

Semantics of TNN (``source/tnn/layer/conv_layer.cc``, ``deconv_layer.cc``); int8 as on its naive
device (``source/tnn/device/cpu/acc/compute/compute_int8.cc``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import GraphError
from quantjit.graph import Array, Node
from quantjit.kernels import convolution as kernels
from quantjit.kernels import simd, tiling
from quantjit.ops import Arrays, Op, Request, Runner, Shape
from quantjit.quant import QuantParams

_ACTIVATIONS = {
    "none": kernels.NONE,
    "relu": kernels.RELU,
    "relu6": kernels.RELU6,
    "swish": kernels.SWISH,
}
_FUSIONS = {
    "none": kernels.NO_ADD,
    "add_activation": kernels.ADD_THEN_ACTIVATION,
    "activation_add": kernels.ACTIVATION_THEN_ADD,
}
_FEW = 16
"""Fewer output pixels than this do not fill a vector: the output channels do."""


@dataclass(frozen=True, slots=True)
class ConvolutionAttrs:
    """Attributes of ``convolution`` and ``deconvolution``.

    in_channels, out_channels: totals over all groups.  pads: top, bottom, left, right.
    pad_mode: "explicit" uses `pads`; "same" (TensorFlow: the extra pixel goes to the end), "valid",
    and, for deconvolution, "full" and "output" (TNN pad types 0, 1, 2, 3) derive them.
    activation: "none", "relu", "relu6" or "swish", applied to the result.
    fusion: in memory only, never in a file: "none"; "add_activation" adds the second input before
    the activation, "activation_add" after it (TNN's load-time fusion of int8 networks).
    """

    group: int
    in_channels: int
    out_channels: int
    kernel_h: int
    kernel_w: int
    stride_h: int = 1
    stride_w: int = 1
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_mode: str = "explicit"
    dilation_h: int = 1
    dilation_w: int = 1
    has_bias: bool = True
    activation: str = "none"
    fusion: str = "none"


def _place(node: Node) -> str:
    return f"node {node.name!r}"


def _check_input(node: Node, shape: Shape) -> None:
    attrs: ConvolutionAttrs = node.attrs
    if len(shape) != 4:
        raise GraphError(_place(node), f"needs an input of 4 dimensions, got {shape}")
    if shape[1] != attrs.in_channels:
        raise GraphError(_place(node), f"needs {attrs.in_channels} channels, got {shape[1]}")
    window = (attrs.kernel_h, attrs.kernel_w, attrs.stride_h, attrs.stride_w)
    dilation = (attrs.dilation_h, attrs.dilation_w)
    if min(*window, *dilation, attrs.group, attrs.in_channels, attrs.out_channels) < 1:
        raise GraphError(
            _place(node), "group, channels, kernel, stride and dilation must be positive"
        )
    if attrs.in_channels % attrs.group or attrs.out_channels % attrs.group:
        raise GraphError(
            _place(node),
            f"{attrs.group} groups do not divide {attrs.in_channels} -> {attrs.out_channels}",
        )


def _pads(node: Node, shape: Shape) -> tuple[int, int, int, int]:
    """Return the pads of a convolution for an input of this shape."""
    attrs: ConvolutionAttrs = node.attrs
    if attrs.pad_mode == "explicit":
        return attrs.pads
    if attrs.pad_mode == "valid":
        return (0, 0, 0, 0)
    if attrs.pad_mode != "same":
        raise GraphError(_place(node), f"pad mode {attrs.pad_mode!r} is for deconvolution only")
    top, bottom = _same(shape[2], attrs.kernel_h, attrs.stride_h, attrs.dilation_h)
    left, right = _same(shape[3], attrs.kernel_w, attrs.stride_w, attrs.dilation_w)
    return (top, bottom, left, right)


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return pads for an output of ceil(size / stride); the odd pixel goes after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _infer_convolution(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    attrs: ConvolutionAttrs = node.attrs
    shape = inputs[0]
    _check_input(node, shape)
    top, bottom, left, right = _pads(node, shape)
    out_h = (
        shape[2] + top + bottom - (attrs.kernel_h - 1) * attrs.dilation_h - 1
    ) // attrs.stride_h
    out_w = (
        shape[3] + left + right - (attrs.kernel_w - 1) * attrs.dilation_w - 1
    ) // attrs.stride_w
    if out_h < 0 or out_w < 0:
        raise GraphError(
            _place(node),
            f"a {attrs.kernel_h} x {attrs.kernel_w} kernel is larger than its padded input {shape}",
        )
    out = (shape[0], attrs.out_channels, out_h + 1, out_w + 1)
    expected = 1 if attrs.fusion == "none" else 2
    if len(inputs) != expected or (expected > 1 and inputs[1] != out):
        raise GraphError(_place(node), f"cannot work on inputs of shapes {list(inputs)}")
    return (out,)


def _deconvolution_span(
    node: Node, size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int]
) -> tuple[int, int]:
    """Return (output size, pad before) of one dimension; TNN's pad types -1, 0, 1, 2, 3.

    Two faults of TNN are not followed: "same" and "valid" with a kernel below its stride derive a
    negative pad there, with which its naive device reads before the filter's start.
    """
    mode = node.attrs.pad_mode
    reach = (kernel - 1) * dilation + 1
    spread_out = (size - 1) * stride + reach  # all that the taps touch
    if mode == "explicit":
        return spread_out - sum(pads), pads[0]
    if mode == "valid":
        return size * stride + max(reach - stride, 0), 0
    if mode == "full":
        return spread_out - 2 * (reach - 1), reach - 1
    if mode not in {"same", "output"}:
        raise GraphError(_place(node), f"pad mode {mode!r} is unknown")
    total = max(spread_out - size * stride, 0)
    # The odd pixel goes to the end, with an output padding (ONNX's) to the start.
    return size * stride, total // 2 if mode == "same" else total - total // 2


def _deconvolution_spans(node: Node, shape: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
    attrs: ConvolutionAttrs = node.attrs
    top, bottom, left, right = attrs.pads
    return (
        _deconvolution_span(
            node, shape[2], attrs.kernel_h, attrs.stride_h, attrs.dilation_h, (top, bottom)
        ),
        _deconvolution_span(
            node, shape[3], attrs.kernel_w, attrs.stride_w, attrs.dilation_w, (left, right)
        ),
    )


def _infer_deconvolution(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    attrs: ConvolutionAttrs = node.attrs
    shape = inputs[0]
    _check_input(node, shape)
    if len(inputs) != 1:
        raise GraphError(_place(node), f"cannot work on inputs of shapes {list(inputs)}")
    (height, _), (width, _) = _deconvolution_spans(node, shape)
    if height < 1 or width < 1:
        raise GraphError(_place(node), f"nothing is left of an input {shape} after its pads")
    return ((shape[0], attrs.out_channels, height, width),)


def _macs(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    attrs: ConvolutionAttrs = node.attrs
    pixels = outputs[0] if node.op == "convolution" else inputs[0]
    taps = attrs.kernel_h * attrs.kernel_w * attrs.in_channels * attrs.out_channels // attrs.group
    return pixels[0] * pixels[2] * pixels[3] * taps


def _required(attrs: ConvolutionAttrs) -> tuple[str, ...]:
    return ("weight", "bias") if attrs.has_bias else ("weight",)


def weight_shape(node: Node) -> Shape:
    """Shape of ``weights["weight"]``: OIHW, for deconvolution IOHW, the second a group's share."""
    attrs: ConvolutionAttrs = node.attrs
    outer, inner = attrs.out_channels, attrs.in_channels
    if node.op == "deconvolution":
        outer, inner = inner, outer
    return (outer, inner // attrs.group, attrs.kernel_h, attrs.kernel_w)


def checked_weight(node: Node, role: str, shape: Shape) -> Array:
    """Return ``weights[role]``; GraphError when it is missing or has another shape."""
    weight = node.weights.get(role)
    if weight is None or weight.shape != shape:
        found = "none" if weight is None else str(weight.shape)
        raise GraphError(_place(node), f"needs a {role} of shape {shape}, got {found}")
    return weight


def checked_bias(node: Node, count: int, dtype: type[np.generic]) -> Array:
    """Return a copy of the bias, zeros where the node has none."""
    if not node.attrs.has_bias:
        return np.zeros(count, dtype)
    return np.array(checked_weight(node, "bias", (count,)), dtype)


def _weight(node: Node) -> Array:
    """Return the weight after checking its shape."""
    return checked_weight(node, "weight", weight_shape(node))


def _bias(node: Node, dtype: type[np.generic]) -> Array:
    attrs: ConvolutionAttrs = node.attrs
    return checked_bias(node, attrs.out_channels, dtype)


def geometry(node: Node, source: Shape, outputs: Shape) -> NDArray[np.int64]:
    """Return how the kernel of a convolution moves, as kernels take it: int64 (10,).

    kernel, stride, pad before and dilation, each in h and w, and the size of the output.
    """
    top, _, left, _ = _pads(node, source)
    return _geometry(node.attrs, top, left, outputs)


def _geometry(attrs: ConvolutionAttrs, top: int, left: int, outputs: Shape) -> NDArray[np.int64]:
    return np.array(
        [
            attrs.kernel_h,
            attrs.kernel_w,
            attrs.stride_h,
            attrs.stride_w,
            top,
            left,
            attrs.dilation_h,
            attrs.dilation_w,
            outputs[2],
            outputs[3],
        ],
        np.int64,
    )


def _taps_first(weight: Array) -> Array:
    """Order the products of an output: kernel rows, kernel columns, channels."""
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1))


def _is_depthwise(attrs: ConvolutionAttrs) -> bool:
    return attrs.group == attrs.in_channels == attrs.out_channels


def _is_pointwise(attrs: ConvolutionAttrs) -> bool:
    """Whether a 1 x 1 kernel moves by one pixel: without pads the input is its own columns."""
    return attrs.kernel_h == attrs.kernel_w == attrs.stride_h == attrs.stride_w == 1


def _has_few_pixels(attrs: ConvolutionAttrs, pixels: int) -> bool:
    return pixels < min(_FEW, attrs.out_channels // attrs.group)


_LIMITS = {"relu": (0.0, np.inf), "relu6": (0.0, 6.0)}


def _window(
    attrs: ConvolutionAttrs, top: int, left: int, shapes: tuple[Shape, Shape]
) -> tiling.Window:
    (images, channels, height, width), (_, out_channels, out_h, out_w) = shapes
    return tiling.Window(
        images, attrs.group, channels, height, width, out_channels, out_h, out_w, attrs.kernel_h,
        attrs.kernel_w, attrs.stride_h, attrs.stride_w, top, left, attrs.dilation_h,
        attrs.dilation_w,
    )  # fmt: skip


def _prepare_float(request: Request) -> Runner:
    node, attrs = request.node, request.node.attrs
    in_shape, out_shape = request.input_shapes[0], request.output_shapes[0]
    if attrs.fusion != "none":
        raise GraphError(_place(node), "a fused add is for int8 only")
    weight = np.array(_weight(node), np.float32, order="C")
    bias = _bias(node, np.float32)
    top, bottom, left, right = _pads(node, in_shape)
    if request.uses_vectors:
        low, high = _LIMITS.get(attrs.activation, (-np.inf, np.inf))
        return tiling.prepare_float(
            _window(attrs, top, left, (in_shape, out_shape)), weight, bias, low, high,
            swish=attrs.activation == "swish", threads=request.threads,
            owner=tiling.Owner(node.weights["weight"]),
        )  # fmt: skip
    geometry = _geometry(attrs, top, left, out_shape)
    activation = _ACTIVATIONS[attrs.activation]
    if _is_depthwise(attrs):
        filters = weight.reshape(attrs.group, attrs.kernel_h, attrs.kernel_w)

        def run_depthwise(inputs: Arrays, outputs: Arrays) -> None:
            kernels.convolve_depthwise_float_into(
                inputs[0], filters, bias, geometry, activation, outputs[0]
            )

        return run_depthwise
    n, group = in_shape[0], attrs.group
    rows = _taps_first(weight).reshape(group, attrs.out_channels // group, -1)
    biases = bias.reshape(group, -1)
    depth, pixels = rows.shape[2], out_shape[2] * out_shape[3]
    grouped_in = (n, group, attrs.in_channels // group, *in_shape[2:])
    grouped_out = (n, group, attrs.out_channels // group, pixels)
    if _has_few_pixels(attrs, pixels):
        transposed = np.ascontiguousarray(rows.transpose(0, 2, 1))
        few_columns = np.zeros((depth, pixels), np.float32)
        few_rows = np.zeros((pixels, depth), np.float32)
        sums = np.zeros((pixels, rows.shape[1]), np.float32)

        def run_few(inputs: Arrays, outputs: Arrays) -> None:
            kernels.convolve_few_float_into(
                inputs[0].reshape(grouped_in),
                transposed,
                biases,
                geometry,
                activation,
                few_columns,
                few_rows,
                sums,
                outputs[0].reshape(grouped_out),
            )

        return run_few
    if _is_pointwise(attrs) and (top, bottom, left, right) == (0, 0, 0, 0):

        def run_pointwise(inputs: Arrays, outputs: Arrays) -> None:
            kernels.convolve_pointwise_float_into(
                inputs[0].reshape(*grouped_in[:3], pixels),
                rows,
                biases,
                activation,
                outputs[0].reshape(grouped_out),
            )

        return run_pointwise
    columns = np.zeros((depth, kernels.TILE), np.float32)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        kernels.convolve_float_into(
            inputs[0].reshape(grouped_in),
            rows,
            biases,
            geometry,
            activation,
            columns,
            outputs[0].reshape(grouped_out),
        )

    return run


def _prepare_deconvolution(request: Request) -> Runner:
    node, attrs = request.node, request.node.attrs
    in_shape, out_shape = request.input_shapes[0], request.output_shapes[0]
    group = attrs.group
    weight = np.array(_weight(node), np.float32, order="C")
    filters = weight.reshape(group, attrs.in_channels // group, *weight.shape[1:])
    bias = _bias(node, np.float32).reshape(group, -1)
    (_, top), (_, left) = _deconvolution_spans(node, in_shape)
    geometry = _geometry(attrs, top, left, out_shape)
    activation = _ACTIVATIONS[attrs.activation]
    grouped_in = (in_shape[0], group, attrs.in_channels // group, *in_shape[2:])
    grouped_out = (out_shape[0], group, attrs.out_channels // group, *out_shape[2:])

    def run(inputs: Arrays, outputs: Arrays) -> None:
        kernels.deconvolve_float_into(
            inputs[0].reshape(grouped_in),
            filters,
            bias,
            geometry,
            activation,
            outputs[0].reshape(grouped_out),
        )

    return run


def spread(values: NDArray[np.generic], count: int, group: int) -> Array:
    """Repeat one value for all channels, or keep one each, as (group, count // group)."""
    return np.array(np.broadcast_to(values, (count,))).reshape(group, -1)


def requantization_factor(
    weight_scale: NDArray[np.float32], output_scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Quotient of scales in float32; 0 where the output's is below the smallest normal float."""
    live = output_scale >= np.finfo(np.float32).tiny
    shape = np.broadcast_shapes(weight_scale.shape, output_scale.shape)
    quotient = np.zeros(shape, np.float32)
    with np.errstate(over="ignore"):  # an infinite factor saturates every code, as in TNN
        return np.divide(weight_scale, output_scale, out=quotient, where=live)


def check_sums(node: Node, rows: NDArray[np.int32], input_zero: NDArray[np.int8]) -> None:
    """Raise GraphError unless every sum of products fits int32, whatever the input.

    rows: int32 (out_channels, taps), zero points subtracted; input_zero: int8 (1,) or (channels,).
    """
    zeros = input_zero.astype(np.int64)
    largest = max(127 - int(zeros.min()), 128 + int(zeros.max()))
    bound = largest * int(np.abs(rows).sum(axis=1, dtype=np.int64).max())
    if bound > np.iinfo(np.int32).max:
        raise GraphError(_place(node), f"sums of {rows.shape[1]} products do not fit int32")


def _prepare_int8(request: Request) -> Runner:
    node, attrs = request.node, request.node.attrs
    in_shape, out_shape = request.input_shapes[0], request.output_shapes[0]
    source, target = request.input_quant[0], request.output_quant[0]
    quant = node.quant
    if quant is None:
        raise GraphError(_place(node), "is not quantized")
    if request.is_onnx and (attrs.fusion != "none" or attrs.activation == "swish"):
        raise GraphError(_place(node), "ONNX has no int8 form of what is fused into it")
    out_channels, in_channels, group = attrs.out_channels, attrs.in_channels, attrs.group
    top, _, left, _ = _pads(node, in_shape)
    geometry = _geometry(attrs, top, left, out_shape)
    zeros = spread(quant.weight_zero_point, out_channels, 1).reshape(-1, 1, 1, 1)
    weight = np.ascontiguousarray(_weight(node).astype(np.int32) - zeros)
    check_sums(node, weight.reshape(out_channels, -1), source.zero_point)
    bias = _bias(node, np.int32).reshape(group, -1)
    factor = requantization_factor(quant.weight_scale, target.scale)
    factor = spread(factor, out_channels, group)
    zero_point = spread(target.zero_point, out_channels, group)
    input_zero = spread(source.zero_point.astype(np.int16), in_channels, group)
    codes_of_six = _even_code_of_six(target) if request.is_onnx else _code_of_six(target.scale)
    six = spread(codes_of_six, out_channels, group)
    activation, fusion = _ACTIVATIONS[attrs.activation], _FUSIONS[attrs.fusion]
    if request.uses_vectors and tiling.fits(weight, bias.reshape(-1)):
        return tiling.prepare_int8(
            _window(attrs, top, left, (in_shape, out_shape)), weight, bias.reshape(-1),
            input_zero.reshape(-1).astype(np.int8), _requantization(request, factor),
            request.threads,
            tiling.Owner(node.weights["weight"], quant.weight_zero_point.tobytes()),
        )  # fmt: skip
    if _is_depthwise(attrs) and attrs.fusion == "none":
        filters = weight.reshape(group, attrs.kernel_h, attrs.kernel_w)
        plane = np.empty(out_shape[2:], np.int32)

        def run_depthwise(inputs: Arrays, outputs: Arrays) -> None:
            kernels.convolve_depthwise_int8_into(
                inputs[0],
                input_zero.reshape(-1),
                filters,
                bias.reshape(-1),
                geometry,
                factor.reshape(-1),
                zero_point.reshape(-1),
                six.reshape(-1),
                activation,
                request.is_onnx,
                plane,
                outputs[0],
            )

        return run_depthwise
    n = in_shape[0]
    rows = _taps_first(weight).reshape(group, out_channels // group, -1)
    depth, pixels = rows.shape[2], out_shape[2] * out_shape[3]
    grouped_in = (n, group, in_channels // group, *in_shape[2:])
    grouped_out = (n, group, out_channels // group, pixels)
    add_factor = np.zeros((group, out_channels // group), np.float32)
    add_zero = np.zeros((group, out_channels // group), np.int8)
    nothing = np.zeros((1, 1, 1, 1), np.int8)
    if fusion != kernels.NO_ADD:
        other = request.input_quant[1]
        add_factor = spread(requantization_factor(other.scale, target.scale), out_channels, group)
        add_zero = spread(other.zero_point, out_channels, group)
    if _has_few_pixels(attrs, pixels):
        transposed = np.ascontiguousarray(rows.transpose(0, 2, 1), np.int16)
        few_columns = np.zeros((depth, pixels), np.int16)
        few_rows = np.zeros((pixels, depth), np.int32)
        row_sums = np.zeros((pixels, out_channels // group), np.int32)
        few_sums = np.zeros((out_channels // group, pixels), np.int32)

        def run_few(inputs: Arrays, outputs: Arrays) -> None:
            kernels.convolve_few_int8_into(
                inputs[0].reshape(grouped_in),
                input_zero,
                transposed,
                bias,
                geometry,
                factor,
                zero_point,
                six,
                activation,
                request.is_onnx,
                fusion,
                inputs[1].reshape(grouped_out) if fusion != kernels.NO_ADD else nothing,
                add_factor,
                add_zero,
                few_columns,
                few_rows,
                row_sums,
                few_sums,
                outputs[0].reshape(grouped_out),
            )

        return run_few
    columns = np.zeros((depth, kernels.TILE), np.int16)
    sums = np.zeros((out_channels // group, kernels.TILE), np.int32)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        kernels.convolve_int8_into(
            inputs[0].reshape(grouped_in),
            input_zero,
            rows,
            bias,
            geometry,
            factor,
            zero_point,
            six,
            activation,
            request.is_onnx,
            fusion,
            inputs[1].reshape(grouped_out) if fusion != kernels.NO_ADD else nothing,
            add_factor,
            add_zero,
            columns,
            sums,
            outputs[0].reshape(grouped_out),
        )

    return run


def rounding(request: Request) -> int:
    """Mode of the emitted kernels for the request's arithmetic."""
    return simd.EVEN if request.is_onnx else simd.AWAY


def _requantization(request: Request, factor: NDArray[np.float32]) -> tiling.Requantization:
    """Terms of the epilogue; TNN's ReLU6 compares codes: neither zero point nor add reach it."""
    attrs, target = request.node.attrs, request.output_quant[0]
    count = attrs.out_channels
    nothing = np.zeros(count, np.float32)
    zero = spread(target.zero_point.astype(np.float32), count, 1)[0]
    high = nothing + 127
    capped = attrs.activation == "relu6"
    if capped and request.is_onnx:
        high = spread(_even_code_of_six(target).astype(np.float32), count, 1)[0]
    elif capped:
        high = spread(_code_of_six(target.scale).astype(np.float32), count, 1)[0]
        zero = nothing
    adds = attrs.fusion == "add_activation" or (attrs.fusion == "activation_add" and not capped)
    plus, minus = nothing, nothing
    if adds:
        other = request.input_quant[1]
        plus = spread(requantization_factor(other.scale, target.scale), count, 1)[0]
        minus = spread(other.zero_point.astype(np.float32), count, 1)[0] * plus
    before, after = ((plus, minus), (nothing, nothing))
    if attrs.fusion == "activation_add":
        before, after = after, before
    floor = 0.0 if attrs.activation in {"relu", "relu6"} else -np.inf
    return tiling.Requantization(
        factor.reshape(-1), zero, high, *before, *after, floor, rounding(request), adds,
    )  # fmt: skip


def _code_of_six(scale: NDArray[np.float32]) -> NDArray[np.int8]:
    """Code of 6.0: half away from zero, saturated; 127 for a dead channel."""
    steps = np.full(scale.shape, np.float32(127))
    with np.errstate(over="ignore"):
        np.divide(np.float32(6), scale, out=steps, where=scale > 0)
    codes: NDArray[np.int8] = np.minimum(steps + np.float32(0.5), 127).astype(np.int8)
    return codes


def _even_code_of_six(target: QuantParams) -> NDArray[np.int8]:
    """Code of 6.0 in ONNX: half to even, with the zero point, saturated."""
    steps = np.full(target.scale.shape, np.float32(255))
    with np.errstate(over="ignore"):
        np.divide(np.float32(6), target.scale, out=steps, where=target.scale > 0)
    codes: NDArray[np.int8] = np.minimum(np.rint(steps) + target.zero_point, 127).astype(np.int8)
    return codes


OPS = (
    Op(
        "convolution",
        ConvolutionAttrs,
        _infer_convolution,
        _prepare_float,
        _prepare_int8,
        _macs,
        _required,
    ),
    Op(
        "deconvolution",
        ConvolutionAttrs,
        _infer_deconvolution,
        _prepare_deconvolution,
        None,
        _macs,
        _required,
    ),
)
