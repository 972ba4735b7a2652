"""Max and average pooling.

Output sizes follow TNN's ``PoolingLayer`` (``source/tnn/layer/pooling_layer.cc``): with ceil_mode a
last window may start behind the input (Caffe would drop it; it gives 0), "same"
puts the odd pixel at the end, and "valid" and "same" centre the windows when the stride leaves
pixels over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.kernels.codes import quantize_even_into
from quantjit.kernels.max_pooling import prepare_max
from quantjit.kernels.pooling import (
    adaptive_average_pool_into,
    average_pool_int8_into,
    average_pool_into,
    max_pool_into,
)
from quantjit.kernels.wrapped import prepare_average
from quantjit.ops import Arrays, Op, Request, Runner, Shape

_RANK = 4  # NCHW
_Sizes = tuple[int, int, int, int, int, int]  # kernel, stride, pads before: each h, w


@dataclass(frozen=True, slots=True)
class PoolingAttrs:
    """Attributes of ``pooling``.

    kind: "max" or "average" (over the valid taps only, as TNN does, unless count_include_pad).
    kernel 0 x 0: global.  pads: top, bottom, left, right; pad_mode as in convolution.
    adaptive: output_h x output_w windows are derived.
    kernel_index_h, kernel_index_w: the input dimension that is the kernel's size; -1: none.
    """

    kind: str
    kernel_h: int
    kernel_w: int
    stride_h: int = 1
    stride_w: int = 1
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_mode: str = "explicit"
    ceil_mode: bool = False
    adaptive: bool = False
    output_h: int = 0
    output_w: int = 0
    kernel_index_h: int = -1
    kernel_index_w: int = -1
    count_include_pad: bool = False


def _axis(
    node: Node, size: int, kernel: int, stride: int, pads: tuple[int, int]
) -> tuple[int, int]:
    """Output size along one side, and the padding before it."""
    attrs: PoolingAttrs = node.attrs
    if attrs.pad_mode == "explicit":
        room = size + sum(pads) - kernel
        return (-(-room // stride) if attrs.ceil_mode else room // stride) + 1, pads[0]
    if attrs.pad_mode == "same":
        count = -(-size // stride)
    elif attrs.pad_mode == "valid":
        count = -(-(size - kernel + 1) // stride)
    else:
        raise GraphError(f"node {node.name!r}", f"pad mode {attrs.pad_mode!r} is not for pooling")
    missing = (count - 1) * stride + kernel - size
    return count, missing // 2 if missing >= 0 else -(-missing // 2)  # C's division


def _kernel(attrs: PoolingAttrs, shape: Shape) -> tuple[int, int]:
    kernel_h, kernel_w = attrs.kernel_h or shape[2], attrs.kernel_w or shape[3]
    if attrs.kernel_index_h >= 0:
        kernel_h = shape[attrs.kernel_index_h]
    if attrs.kernel_index_w >= 0:
        kernel_w = shape[attrs.kernel_index_w]
    return kernel_h, kernel_w


def _geometry(node: Node, shape: Shape) -> tuple[tuple[int, int], _Sizes]:
    """Output size, and what the kernels need."""
    attrs: PoolingAttrs = node.attrs
    kernel_h, kernel_w = _kernel(attrs, shape)
    top, bottom, left, right = attrs.pads
    out_h, pad_top = _axis(node, shape[2], kernel_h, attrs.stride_h, (top, bottom))
    out_w, pad_left = _axis(node, shape[3], kernel_w, attrs.stride_w, (left, right))
    sizes = (kernel_h, kernel_w, attrs.stride_h, attrs.stride_w, pad_top, pad_left)
    return (out_h, out_w), sizes


def _infer_shape(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    attrs: PoolingAttrs = node.attrs
    place, shape = f"node {node.name!r}", inputs[0]
    if len(shape) != _RANK:
        raise GraphError(place, f"pooling needs an NCHW blob, its input is {shape}")
    if attrs.kind not in {"max", "average"}:
        raise GraphError(place, f"pooling kind {attrs.kind!r} is neither max nor average")
    if attrs.adaptive:
        if attrs.kind == "max":  # TNN would run it as average pooling without a word
            raise GraphError(place, "adaptive max pooling does not exist in TNN")
        size = (attrs.output_h, attrs.output_w)
    else:
        if min(attrs.stride_h, attrs.stride_w) < 1:
            raise GraphError(place, f"stride {attrs.stride_h} x {attrs.stride_w} is below 1")
        if max(attrs.kernel_index_h, attrs.kernel_index_w) >= _RANK:
            raise GraphError(place, "kernel index is not a dimension of the input")
        size, _ = _geometry(node, shape)
    if min(size) < 1:
        raise GraphError(place, f"output {size[0]} x {size[1]} of input {shape} is empty")
    return ((*shape[:2], *size),)


def _planes(shape: Shape) -> Shape:
    return (shape[0] * shape[1], *shape[2:])


def _max_runner(sizes: _Sizes, lowest: np.float32 | np.int8, request: Request) -> Runner:
    planes, out_planes = _planes(request.input_shapes[0]), _planes(request.output_shapes[0])
    if request.uses_vectors:
        count, height, width = planes
        out = (out_planes[1], out_planes[2])
        prepared = prepare_max(lowest, (count, height, width), out, sizes, request.threads)
        if prepared is not None:
            return prepared
    line = np.empty(planes[-1], lowest.dtype)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        x, out = inputs[0].reshape(planes), outputs[0].reshape(out_planes)
        max_pool_into(x, *sizes, lowest, line, out)

    return run


def _prepare_float(request: Request) -> Runner:
    node, shape = request.node, request.input_shapes[0]
    attrs: PoolingAttrs = node.attrs
    planes, out_planes = _planes(shape), _planes(request.output_shapes[0])
    if attrs.adaptive:

        def run_adaptive(inputs: Arrays, outputs: Arrays) -> None:
            adaptive_average_pool_into(inputs[0].reshape(planes), outputs[0].reshape(out_planes))

        return run_adaptive
    _, sizes = _geometry(node, shape)
    if attrs.kind == "max":
        return _max_runner(sizes, np.finfo(np.float32).min, request)
    _, bottom, _, right = attrs.pads
    if request.uses_vectors:
        return prepare_average(
            planes, out_planes, sizes, (bottom, right), counts_padding=attrs.count_include_pad,
            threads=request.threads,
        )  # fmt: skip

    def run_average(inputs: Arrays, outputs: Arrays) -> None:
        average_pool_into(
            inputs[0].reshape(planes),
            *sizes,
            bottom,
            right,
            attrs.count_include_pad,
            outputs[0].reshape(out_planes),
        )

    return run_average


def _prepare_int8(request: Request) -> Runner:
    """Codes in, codes out: no rescaling; TNN takes input and output scale to be the same."""
    if request.is_onnx:
        return _prepare_onnx(request)
    node, shape = request.node, request.input_shapes[0]
    planes, out_planes = _planes(shape), _planes(request.output_shapes[0])
    if node.attrs.adaptive:  # TNN has no int8 form: it runs input-sized windows at stride 1
        sizes: _Sizes = (shape[2], shape[3], 1, 1, 0, 0)
    else:
        _, sizes = _geometry(node, shape)
    if node.attrs.kind == "max":
        return _max_runner(sizes, np.int8(-127), request)

    def run_average(inputs: Arrays, outputs: Arrays) -> None:
        average_pool_int8_into(inputs[0].reshape(planes), *sizes, outputs[0].reshape(out_planes))

    return run_average


def _prepare_onnx(request: Request) -> Runner:
    """Maxima of codes of one scale; means in float32, requantized to a scale of their own.

    Sums of codes less their zero point are exact; onnxruntime's pools divide and round alike.
    """
    node, shape = request.node, request.input_shapes[0]
    source, target = request.input_quant[0], request.output_quant[0]
    if source.per_channel or target.per_channel:
        raise GraphError(f"node {node.name!r}", "ONNX has one scale a blob")
    if node.attrs.kind == "max":
        if source != target:
            raise GraphError(f"node {node.name!r}", "max pooling needs one scale on both sides")
        _, sizes = _geometry(node, shape)
        return _max_runner(sizes, np.int8(-128), request)
    pool = _prepare_float(request)
    values = np.empty(shape, np.float32)
    means = np.empty(request.output_shapes[0], np.float32)
    zero = np.float32(source.zero_point[0])
    divisor = np.array([target.scale[0] / source.scale[0]], np.float32)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        np.subtract(inputs[0], zero, out=values, dtype=np.float32)
        pool((values,), (means,))
        quantize_even_into(
            means.reshape(1, 1, -1), divisor, target.zero_point, outputs[0].reshape(1, 1, -1)
        )

    return run


OPS = (Op("pooling", PoolingAttrs, _infer_shape, _prepare_float, _prepare_int8),)
