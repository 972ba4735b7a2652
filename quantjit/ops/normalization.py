"""Batch norm, scale, instance, layer and group norm, local response normalization.

``batch_norm`` is folded already (TNN stores y = x * scale + bias).  Means and variances are taken
in float64, in two passes; TNN's one pass (E[x^2] - E[x]^2) loses digits to cancellation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.kernels.elementwise import scale_channels_into
from quantjit.kernels.normalize import local_response_into, normalize_rows_into
from quantjit.ops import Arrays, NoAttrs, Op, Request, Runner, Shape


@dataclass(frozen=True, slots=True)
class ScaleAttrs:
    """``scale``: y = x * scale + bias over the channels."""

    axis: int = 1
    num_axes: int = 1
    has_bias: bool = True


@dataclass(frozen=True, slots=True)
class InstanceNormAttrs:
    """``instance_norm``: channels as in the file; epsilon added to the variance."""

    channels: int = 0
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class GroupNormAttrs:
    """``group_norm``: groups of channels; epsilon added to the variance."""

    group: int
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class LayerNormAttrs:
    """``layer_norm`` over the last reduce_dims dimensions."""

    reduce_dims: int = 0
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class LrnAttrs:
    """``lrn`` across channels: x / (bias + alpha / size * sum of squares) ** beta."""

    alpha: float
    beta: float
    bias: float
    size: int


def _check_channels(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    shape = inputs[0]
    if len(shape) < 2:
        raise GraphError(f"node {node.name!r}", f"{node.op} needs channels, its input is {shape}")
    for role in ("scale", "bias"):
        weight = node.weights.get(role)
        if weight is not None and weight.size not in (1, shape[1]):
            raise GraphError(
                f"node {node.name!r}", f"{weight.size} values of {role} do not fit {shape}"
            )
    return (shape,)


def _weight(node: Node, role: str, count: int, default: float) -> NDArray[np.float32]:
    given = node.weights.get(role)
    values = np.full(1, default) if given is None else np.asarray(given)
    filled = np.empty(count, np.float32)
    filled[...] = values.reshape(-1)
    return filled


def _prepare_scale(request: Request) -> Runner:
    node, shape = request.node, request.input_shapes[0]
    view = (shape[0], shape[1], prod(shape[2:]))
    scale, bias = _weight(node, "scale", shape[1], 1.0), _weight(node, "bias", shape[1], 0.0)

    def run(inputs: Arrays, outputs: Arrays) -> None:
        scale_channels_into(inputs[0].reshape(view), scale, bias, outputs[0].reshape(view))

    return run


def _prepare_rows(request: Request, view: Shape, period: int) -> Runner:
    """Normalize rows; gain and bias are weights, or the second and third input (TNN)."""
    node = request.node
    affine = (period, view[1])
    scale, bias = (
        _weight(node, role, prod(affine), default).reshape(affine)
        for role, default in (("scale", 1.0), ("bias", 0.0))
    )

    def run(inputs: Arrays, outputs: Arrays) -> None:
        gain = inputs[1].reshape(affine) if len(inputs) > 1 else scale
        shift = inputs[2].reshape(affine) if len(inputs) > 2 else bias
        normalize_rows_into(
            inputs[0].reshape(view), gain, shift, node.attrs.epsilon, outputs[0].reshape(view)
        )

    return run


def _prepare_instance_norm(request: Request) -> Runner:
    n, channels, *rest = request.input_shapes[0]
    return _prepare_rows(request, (n * channels, 1, prod(rest)), channels)


def _infer_group_norm(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    (shape,) = _check_channels(node, inputs)
    group = node.attrs.group
    if group < 1 or shape[1] % group:
        raise GraphError(f"node {node.name!r}", f"{group} groups do not divide the blob {shape}")
    if any(prod(affine) != shape[1] for affine in inputs[1:]):
        raise GraphError(f"node {node.name!r}", f"scale or bias does not fit {shape}")
    return (shape,)


def _prepare_group_norm(request: Request) -> Runner:
    n, channels, *rest = request.input_shapes[0]
    group = request.node.attrs.group
    return _prepare_rows(request, (n * group, channels // group, prod(rest)), group)


def _layer_dims(node: Node, inputs: Sequence[Shape]) -> int:
    """How many dimensions a row has: as told, else those of the scale."""
    if node.attrs.reduce_dims:
        return int(node.attrs.reduce_dims)
    scale = node.weights.get("scale")
    return len(inputs[1]) if len(inputs) > 1 else (0 if scale is None else scale.ndim)


def _infer_layer_norm(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    shape, dims = inputs[0], _layer_dims(node, inputs)
    if not 0 < dims <= len(shape):
        raise GraphError(f"node {node.name!r}", f"cannot reduce {dims} dimensions of {shape}")
    size = prod(shape[-dims:])
    sizes = [prod(affine) for affine in inputs[1:]]
    sizes += [weight.size for weight in node.weights.values()]
    if any(count != size for count in sizes):
        raise GraphError(
            f"node {node.name!r}", f"scale or bias does not fit the last {dims} of {shape}"
        )
    return (shape,)


def _prepare_layer_norm(request: Request) -> Runner:
    shape = request.input_shapes[0]
    dims = _layer_dims(request.node, request.input_shapes)
    size = prod(shape[-dims:])
    return _prepare_rows(request, (prod(shape[:-dims]), size, 1), 1)


def _prepare_lrn(request: Request) -> Runner:
    attrs: LrnAttrs = request.node.attrs
    shape = request.input_shapes[0]
    view = (shape[0], shape[1], prod(shape[2:]))
    reach = (attrs.size - 1) // 2  # to both sides, also for an even size, as TNN does

    def run(inputs: Arrays, outputs: Arrays) -> None:
        local_response_into(
            inputs[0].reshape(view),
            reach,
            attrs.alpha / attrs.size,
            attrs.beta,
            attrs.bias,
            outputs[0].reshape(view),
        )

    return run


def _infer_lrn(node: Node, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    if node.attrs.size < 1:
        raise GraphError(f"node {node.name!r}", f"size {node.attrs.size} is below 1")
    return _check_channels(node, inputs)


OPS = (
    Op(
        "batch_norm",
        NoAttrs,
        _check_channels,
        _prepare_scale,
        required_weights=lambda _: ("scale", "bias"),
    ),
    Op(
        "scale",
        ScaleAttrs,
        _check_channels,
        _prepare_scale,
        required_weights=lambda attrs: ("scale", "bias") if attrs.has_bias else ("scale",),
    ),
    Op(
        "instance_norm",
        InstanceNormAttrs,
        _check_channels,
        _prepare_instance_norm,
        required_weights=lambda _: ("scale", "bias"),
    ),
    Op("group_norm", GroupNormAttrs, _infer_group_norm, _prepare_group_norm),
    Op("layer_norm", LayerNormAttrs, _infer_layer_norm, _prepare_layer_norm),
    Op("lrn", LrnAttrs, _infer_lrn, _prepare_lrn),
)
