"""Which channels of which blobs scale together when one of them is multiplied by a positive factor.

Layers that commute with a positive factor of a channel (ReLU, pooling, resizing, padding with
zeros) tie the channels of their input to those of their output; adds tie their operands channel by
channel, concats and splits the parts to the whole.  A convolution, inner product or per-channel
affine layer ties nothing: its weights can take up the factors of both sides.  What commutes with no
factor (sigmoid, softmax, products) and the inputs and outputs of the network fix the channels that
they touch.  ReLU6 commutes as long as it clips nothing: it caps them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from quantjit.executor import infer_shapes
from quantjit.graph import Graph, Node
from quantjit.ops import Shape

Ids = NDArray[np.int64]

_HOMOGENEOUS = ("relu", "prelu", "abs", "upsample", "resize", "pooling")
_AFFINE = ("batch_norm", "scale")
_RESHAPES = ("flatten", "reshape", "squeeze", "unsqueeze")
_JOINS = ("add", "sub", "maximum", "minimum")
_LARGEST = 1 << 22  # elements of a blob that is followed through reshapes


@dataclass(frozen=True, slots=True)
class Ties:
    """The sets of channels of a network that scale together.

    sets: blob -> int64 (channels,), the set that each channel is in, numbered from 0 by first
    appearance.  fixed: bool (sets,), those whose factor must be 1.  capped: bool (sets,), those
    that pass a ReLU6.
    """

    sets: Mapping[str, Ids]
    fixed: NDArray[np.bool_]
    capped: NDArray[np.bool_]


def channel_count(shape: Shape) -> int:
    """Return how many factors a blob of this shape has: one a channel, or one without channels."""
    return shape[1] if len(shape) > 1 else 1


def tie_channels(graph: Graph) -> Ties:
    """Return the ties of a float network with its activations fused."""
    shapes = infer_shapes(graph)
    known = {name: array.shape for name, array in graph.constants.items()} | dict(shapes)
    builder = _Builder(known)
    for blob in (*(blob.name for blob in graph.inputs), *graph.outputs, *graph.constants):
        builder.fix(blob)
    for node in graph.nodes:
        _tie(node, builder)
    return builder.finish([*graph.blobs(), *graph.constants])


class _Builder:
    """Joins sets; the ids of the channels of a blob are consecutive."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes
        self._ids: dict[str, Ids] = {}
        total = 0
        for blob, shape in shapes.items():
            count = channel_count(shape)
            self._ids[blob] = np.arange(total, total + count)
            total += count
        self._parent = list(range(total))
        self._fixed = np.zeros(total, np.bool_)
        self._capped = np.zeros(total, np.bool_)

    def ids(self, blob: str) -> Ids:
        return self._ids[blob]

    def fix(self, *blobs: str) -> None:
        for blob in blobs:
            self._fixed[self._ids[blob]] = True

    def cap(self, blob: str) -> None:
        self._capped[self._ids[blob]] = True

    def join(self, left: Ids, right: Ids) -> None:
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            a, b = sorted((self._root(one), self._root(other)))
            self._parent[b] = a

    def _root(self, index: int) -> int:
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def finish(self, blobs: Sequence[str]) -> Ties:
        roots = np.array([self._root(index) for index in range(len(self._parent))], np.int64)
        order: dict[int, int] = {}
        sets = {
            blob: np.array(
                [order.setdefault(root, len(order)) for root in roots[self._ids[blob]].tolist()],
                np.int64,
            )
            for blob in blobs
        }
        fixed, capped = np.zeros(len(order), np.bool_), np.zeros(len(order), np.bool_)
        for index, root in enumerate(roots.tolist()):
            place = order.get(root)
            if place is not None:
                fixed[place] |= self._fixed[index]
                capped[place] |= self._capped[index]
        return Ties(sets, fixed, capped)


def _tie(node: Node, builder: _Builder) -> None:
    """Join, cap or fix what this node reads and writes."""
    tied = False
    if node.op == "convolution":
        tied = _tie_convolution(node, builder)
    elif node.op == "inner_product":
        tied = node.attrs.axis == 1 and len(node.inputs) == 1
    elif node.op in _AFFINE:
        tied = len(node.inputs) == 1 and getattr(node.attrs, "axis", 1) == 1
        tied = tied and getattr(node.attrs, "num_axes", 1) == 1
    elif node.op in (*_HOMOGENEOUS, "relu6", "pad"):
        tied = _tie_channelwise(node, builder)
    elif node.op in _JOINS:
        tied = _tie_operands(node, builder)
    elif node.op == "concat":
        tied = _tie_parts(node, node.inputs, node.outputs[0], builder)
    elif node.op == "split_v":
        tied = _tie_parts(node, node.outputs, node.inputs[0], builder)
    elif node.op in _RESHAPES:
        tied = _tie_reshape(node, builder)
    if not tied:
        builder.fix(*node.inputs, *node.outputs)


def _tie_convolution(node: Node, builder: _Builder) -> bool:
    attrs = node.attrs
    if len(node.inputs) > 1 or attrs.activation not in ("none", "relu", "relu6"):
        return False
    if attrs.activation == "relu6":
        builder.cap(node.outputs[0])
    return True


def _tie_channelwise(node: Node, builder: _Builder) -> bool:
    source, target = node.inputs[0], node.outputs[0]
    if len(node.inputs) > 1 or len(node.outputs) > 1 or len(builder.shapes[source]) < 2:
        return False
    if node.op == "pad":
        attrs = node.attrs
        moves = any((*attrs.begins[:2], *attrs.ends[:2]))
        if moves or (attrs.kind == "constant" and attrs.value != 0):
            return False
    if len(builder.ids(source)) != len(builder.ids(target)):
        return False
    if node.op == "relu6":
        builder.cap(target)
    builder.join(builder.ids(source), builder.ids(target))
    return True


def _tie_operands(node: Node, builder: _Builder) -> bool:
    shapes = [builder.shapes[blob] for blob in (*node.inputs, *node.outputs)]
    if len(set(shapes)) > 1 or getattr(node.attrs, "constant_index", -1) >= 0 or node.weights:
        return False
    for blob in node.inputs:
        builder.join(builder.ids(blob), builder.ids(node.outputs[0]))
    return True


def _tie_parts(node: Node, parts: Sequence[str], whole: str, builder: _Builder) -> bool:
    rank = len(builder.shapes[whole])
    axis = node.attrs.axis % rank
    if axis == 0 or rank < 2:
        return False
    if axis > 1:
        for blob in parts:
            builder.join(builder.ids(blob), builder.ids(whole))
        return True
    builder.join(np.concatenate([builder.ids(blob) for blob in parts]), builder.ids(whole))
    return True


def _tie_reshape(node: Node, builder: _Builder) -> bool:
    source, target = builder.shapes[node.inputs[0]], builder.shapes[node.outputs[0]]
    if min(len(source), len(target)) < 2 or source[0] != target[0] or len(node.inputs) > 1:
        return False
    if getattr(node.attrs, "layout", "nchw") != "nchw" or prod(source[1:]) > _LARGEST:
        return False
    elements = np.arange(prod(source[1:]))
    pairs = np.stack([elements // prod(source[2:]), elements // prod(target[2:])])
    left, right = np.unique(pairs, axis=1)
    builder.join(builder.ids(node.inputs[0])[left], builder.ids(node.outputs[0])[right])
    return True
