"""Ops that move, select, join or sum elements in ONNX, opset 17."""

from typing import Any

import numpy as np
import onnx
from onnx import helper

from quantjit.formats._onnx_write_call import OPSET, Call, Translation

_FIRST = -(2**63) + 1  # a slice that runs backwards, to the first element


# ------------------------------------------------------------------ shapes


def _reshape(call: Call) -> None:
    attrs, shape, out = call.attrs, call.shape(), call.out_shape()
    plain = attrs.axis == 0 and attrs.num_axes in (-1, len(attrs.shape))
    sizes = attrs.shape if plain else out
    if attrs.layout == "nchw" or (len(shape) < 2 and len(out) < 2):
        call.finish("Reshape", [call.inputs[0], call.sizes("shape", sizes)])
        return
    x, last = call.inputs[0], (0, *range(2, len(shape)), 1)
    if len(shape) > 1:
        x = call.step("Transpose", [x], "channels_last", perm=last)
    if len(out) < 2:
        call.finish("Reshape", [x, call.sizes("shape", out)])
        return
    moved = (out[0], *out[2:], out[1])
    x = call.step("Reshape", [x, call.sizes("shape", moved)], "reshaped")
    call.finish("Transpose", [x], perm=[0, len(out) - 1, *range(1, len(out) - 1)])


def _permute(call: Call) -> None:
    rank = len(call.shape())
    given = tuple(call.attrs.order)
    order = given + tuple(axis for axis in range(rank) if axis not in given)
    call.finish("Transpose", call.inputs[:1], perm=list(order))


def _squeeze(call: Call) -> None:
    shape = call.shape()
    axes = {axis % len(shape) for axis in call.attrs.axes}
    axes = axes or {axis for axis, size in enumerate(shape) if size == 1}
    if not axes:
        call.finish("Identity", call.inputs[:1])
        return
    call.finish("Squeeze", [call.inputs[0], call.sizes("axes", sorted(axes))])


def _unsqueeze(call: Call) -> None:
    """Axes inserted one after the other become axes of the result."""
    places = [False] * len(call.shape())
    for axis in call.attrs.axes:
        places.insert(axis % (len(places) + 1), True)
    axes = [axis for axis, is_new in enumerate(places) if is_new]
    call.finish("Unsqueeze", [call.inputs[0], call.sizes("axes", axes)])


def _pad(call: Call) -> None:
    attrs = call.attrs
    missing = (0,) * (len(call.shape()) - len(attrs.begins))
    pads = (*attrs.begins, *missing, *attrs.ends, *missing)
    inputs = [call.inputs[0], call.sizes("pads", pads)]
    if attrs.kind == "constant":
        inputs.append(call.number("value", attrs.value))
    call.finish("Pad", inputs, mode=attrs.kind)


def _slice(call: Call) -> None:
    """Begins and ends counted from the first element, as the shapes have them."""
    attrs, shape, out = call.attrs, call.shape(), call.out_shape()
    axes = [axis % len(shape) for axis in attrs.axes or range(len(attrs.begins))]
    begins, ends = [], []
    for axis, begin, stride in zip(axes, attrs.begins, attrs.strides, strict=True):
        start = begin + shape[axis] if begin < 0 else begin
        start = min(max(start, 0), shape[axis] - (1 if stride < 0 else 0))
        stop = start + out[axis] * stride
        begins.append(start)
        ends.append(_FIRST if stop < 0 else min(stop, shape[axis]))
    parts = {"begins": begins, "ends": ends, "axes": axes, "strides": attrs.strides}
    names = [call.sizes(role, values) for role, values in parts.items()]
    call.finish("Slice", [call.inputs[0], *names])


def _split_v(call: Call) -> None:
    axis = call.attrs.axis
    sizes = [call.out_shape(i)[axis] for i in range(len(call.outputs))]
    call.finish("Split", [call.inputs[0], call.sizes("sizes", sizes)], axis=axis)


def _split(call: Call) -> None:
    for output in call.outputs:
        call.model.add("Identity", call.inputs[:1], [output], f"{call.node.name}:{output}")


def _shuffle_channel(call: Call) -> None:
    shape, group = call.shape(), call.attrs.group
    split = call.sizes("split", (0, group, shape[1] // group, -1))
    grouped = call.step("Reshape", [call.inputs[0], split], "grouped")
    swapped = call.step("Transpose", [grouped], "swapped", perm=[0, 2, 1, 3])
    call.finish("Reshape", [swapped, call.sizes("whole", (0, *shape[1:]))])


def _pixel_shuffle(call: Call) -> None:
    call.finish("DepthToSpace", blocksize=call.attrs.group, mode="CRD")


def _constant(call: Call) -> None:
    value = call.array("value").reshape(tuple(call.attrs.shape))
    call.finish("Constant", [], value=onnx.numpy_helper.from_array(np.array(value, order="C")))


def _cast(call: Call) -> None:
    """Blobs are float32: values are rounded to what the type holds and come back."""
    if call.attrs.dtype == "float32":
        call.finish("Identity")
        return
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(call.attrs.dtype))
    there = call.step("Cast", call.inputs, "cast", to=kind)
    call.finish("Cast", [there], to=onnx.TensorProto.FLOAT)


def _gather(call: Call) -> None:
    attrs = call.attrs
    data = call.weight("data") if attrs.data_in_resource else call.inputs[0]
    if attrs.indices_in_resource:
        indices = call.constant("indices", np.asarray(call.node.weights["indices"], np.int64))
    else:
        indices = call.step("Cast", [call.inputs[-1]], "indices", to=onnx.TensorProto.INT64)
    call.finish("Gather", [data, indices], axis=attrs.axis)


def _tile(call: Call) -> None:
    repeats, shape = tuple(call.attrs.repeats), call.shape()
    x = call.inputs[0]
    if len(repeats) > len(shape):
        full = (1,) * (len(repeats) - len(shape)) + shape
        x = call.step("Reshape", [x, call.sizes("shape", full)], "full")
    repeats = (1,) * (len(shape) - len(repeats)) + repeats
    call.finish("Tile", [x, call.sizes("repeats", repeats)])


def _reduce(op: str) -> Translation:
    def write(call: Call) -> None:
        attrs, rank = call.attrs, len(call.shape())
        axes = sorted({axis % rank for axis in attrs.axes}) or list(range(rank))
        keep = int(attrs.keep_dims)
        if op == "ReduceSum":  # its axes are an input since opset 13
            call.finish(op, [call.inputs[0], call.sizes("axes", axes)], keepdims=keep)
        else:
            call.finish(op, call.inputs[:1], axes=axes, keepdims=keep)

    return write


def _extreme(op: str) -> Translation:
    """Write indices of the largest or least as the floats that blobs are."""

    def write(call: Call) -> None:
        attrs = call.attrs
        found = call.step(
            op,
            call.inputs,
            "indices",
            axis=attrs.axis,
            keepdims=int(attrs.keep_dims),
            select_last_index=int(attrs.select_last),
        )
        call.finish("Cast", [found], to=onnx.TensorProto.FLOAT)

    return write


def _upsample(call: Call) -> None:
    attrs = call.attrs
    options: dict[str, Any]
    if attrs.mode == "nearest":
        options = {
            "mode": "nearest",
            "nearest_mode": "floor",
            "coordinate_transformation_mode": "asymmetric",
        }
    else:
        corners = "align_corners" if attrs.align_corners else "pytorch_half_pixel"
        mode = "linear" if attrs.mode == "bilinear" else "cubic"
        options = {"mode": mode, "coordinate_transformation_mode": corners}
        if mode == "cubic":
            options["cubic_coeff_a"] = -0.75
    sizes = call.sizes("sizes", call.out_shape())
    call.finish("Resize", [call.inputs[0], "", "", sizes], **options)


def _resize(call: Call) -> None:
    attrs, shape, out = call.attrs, call.shape(), call.out_shape()
    if attrs.coordinates == "half_pixel_symmetric":
        raise call.error(f"coordinates {attrs.coordinates!r} need a newer opset than {OPSET}")
    mode = {"nearest": "nearest", "bilinear": "linear", "cubic": "cubic"}[attrs.mode]
    options: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": attrs.coordinates}
    if mode == "nearest":
        options["nearest_mode"] = attrs.nearest
    elif mode == "cubic":
        options["cubic_coeff_a"] = float(attrs.cubic_a)
        options["exclude_outside"] = int(attrs.exclude_outside)
    scales = np.array([1, 1, attrs.scale_h, attrs.scale_w], np.float32)
    exact = np.array([1, 1, out[2] / shape[2], out[3] / shape[3]], np.float32)
    if np.array_equal(scales, exact):
        inputs = [call.inputs[0], "", "", call.sizes("sizes", out)]
    else:
        inputs = [call.inputs[0], "", call.constant("scales", scales)]
    call.finish("Resize", inputs, **options)


def _along_axis(op: str) -> Translation:
    return lambda call: call.finish(op, axis=call.attrs.axis)


TRANSLATIONS: dict[str, Translation] = {
    "softmax": _along_axis("Softmax"),
    "log_softmax": _along_axis("LogSoftmax"),
    "concat": _along_axis("Concat"),
    "split_v": _split_v,
    "split": _split,
    "shuffle_channel": _shuffle_channel,
    "pixel_shuffle": _pixel_shuffle,
    "reshape": _reshape,
    "flatten": _along_axis("Flatten"),
    "permute": _permute,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "pad": _pad,
    "pad_v2": _pad,
    "strided_slice": _slice,
    "strided_slice_v2": _slice,
    "constant": _constant,
    "cast": _cast,
    "gather": _gather,
    "tile": _tile,
    "upsample": _upsample,
    "argmax": _extreme("ArgMax"),
    "argmin": _extreme("ArgMin"),
    "resize": _resize,
    "reduce_mean": _reduce("ReduceMean"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_l1": _reduce("ReduceL1"),
    "reduce_l2": _reduce("ReduceL2"),
    "reduce_log_sum": _reduce("ReduceLogSum"),
    "reduce_log_sum_exp": _reduce("ReduceLogSumExp"),
    "reduce_sum_square": _reduce("ReduceSumSquare"),
}
