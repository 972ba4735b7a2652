"""Cross-layer equalization: channels multiplied by factors that the next layers take back.

After Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction"
(ICCV 2019).  A channel that uses a small part of its blob's one scale is made larger: rows of its
producers times f, columns of its readers divided by f.  `quantjit.passes.channels` says which
channels go together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantjit.graph import Array, Graph, Node, readonly
from quantjit.passes.channels import Ties, tie_channels
from quantjit.stats import BlobStats

Factors = NDArray[np.float64]

_SIX = 6.0
_NEARLY = 1 - 1e-4  # of 6: closer, and a ReLU6 clips


@dataclass(frozen=True, slots=True)
class Equalization:
    """A network with other values inside, and how it came to them.

    factors: blob -> float64 (channels,), what its values are multiplied by.  groups: the blobs
    that were changed.  notes: what kept others from it, in words.
    """

    graph: Graph
    factors: Mapping[str, Factors]
    groups: tuple[str, ...]
    notes: tuple[str, ...]


def equalize(
    graph: Graph,
    stats: Mapping[str, BlobStats],
    *,
    strength: float = 1.0,
) -> Equalization:
    """Return the network with its channels scaled to the ranges of their blobs.

    graph: float, activations fused.  stats: blob -> statistics, a row a channel.
    strength: exponent of the ratio of ranges, 1 for equal ranges, 0 for no change.
    """
    ties = tie_channels(graph)
    fill = _fill(ties, stats)
    factors = np.ones(ties.fixed.size)
    live = ~ties.fixed & (fill > 0)
    factors[live] = fill[live] ** -strength
    factors = np.minimum(factors, _room(graph, ties, stats))
    return _scaled(graph, ties, factors)


def _fill(ties: Ties, stats: Mapping[str, BlobStats]) -> Factors:
    """Return the largest share of its blob's range that a channel of each set uses."""
    fill = np.zeros(ties.fixed.size)
    for blob, sets in ties.sets.items():
        seen = stats.get(blob)
        if seen is None or seen.channels != sets.size or not seen.absmax.any():
            continue
        ranges = seen.absmax.astype(np.float64)
        np.maximum.at(fill, sets, ranges / ranges.max())
    return fill


def _room(graph: Graph, ties: Ties, stats: Mapping[str, BlobStats]) -> Factors:
    """Return the largest factor of each set that no ReLU6 notices on what was seen."""
    room = np.full(ties.fixed.size, np.inf)
    for node in graph.nodes:
        if node.op != "relu6" and getattr(node.attrs, "activation", "") != "relu6":
            continue
        blob = node.outputs[0]
        sets, seen = ties.sets[blob], stats.get(blob)
        if seen is None or seen.channels != sets.size:
            room[sets] = 1.0
            continue
        highest = np.maximum(seen.maximum.astype(np.float64), 1e-30)
        np.minimum.at(room, sets, np.where(highest < _SIX * _NEARLY, _SIX / highest, 1.0))
    return room


# ------------------------------------------------------------------ the network with factors


def _scaled(graph: Graph, ties: Ties, factors: Factors) -> Equalization:
    by_blob = {blob: factors[sets] for blob, sets in ties.sets.items()}
    nodes = tuple(_scaled_node(node, by_blob) for node in graph.nodes)
    changed = tuple(blob for blob, each in by_blob.items() if (each != 1).any())
    return Equalization(graph.with_nodes(nodes), by_blob, changed, ())


def _scaled_node(node: Node, factors: Mapping[str, Factors]) -> Node:
    """Return the node with weights for scaled inputs and outputs."""
    if node.op not in ("convolution", "inner_product", "batch_norm", "scale"):
        return node
    before, after = factors[node.inputs[0]], factors[node.outputs[0]]
    if (before == 1).all() and (after == 1).all():
        return node
    weights = dict(node.weights)
    if node.op == "convolution":
        weights["weight"] = _convolution_weight(node, before, after)
    elif node.op == "inner_product":
        weights["weight"] = _inner_product_weight(node, before, after)
    else:
        scale = np.asarray(node.weights["scale"], np.float64).reshape(-1)
        weights["scale"] = _like(scale * (after / before), node.weights["scale"])
    if "bias" in weights:
        bias = np.asarray(node.weights["bias"], np.float64)
        weights["bias"] = _like(bias.reshape(-1) * after, node.weights["bias"])
    return replace(node, weights=weights)


def _like(values: NDArray[np.float64], old: Array) -> Array:
    if values.size == old.size:
        values = values.reshape(old.shape)
    return readonly(values.astype(np.float32))


def _convolution_weight(node: Node, before: Factors, after: Factors) -> Array:
    weight = np.asarray(node.weights["weight"], np.float64)
    group = node.attrs.group
    rows = weight.shape[0]
    columns = (1 / before).reshape(group, 1, -1).repeat(rows // group, axis=1)
    scaled = weight * after.reshape(-1, 1, 1, 1) * columns.reshape(rows, -1, 1, 1)
    return readonly(scaled.astype(np.float32))


def _inner_product_weight(node: Node, before: Factors, after: Factors) -> Array:
    weight = np.asarray(node.weights["weight"], np.float64)
    matrix = weight.T if node.attrs.transpose else weight
    matrix = matrix.reshape(after.size, -1)
    columns = np.repeat(1 / before, matrix.shape[1] // before.size)
    scaled = matrix * after[:, None] * columns
    if node.attrs.transpose:
        scaled = scaled.T
    return readonly(scaled.reshape(weight.shape).astype(np.float32))
