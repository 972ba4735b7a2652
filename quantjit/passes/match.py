"""The float network as an int8 file has it inside: with the factors of an equalization.

A network that was equalized has other values in its blobs than the float one it was made from, so
that comparing them blob by blob would say nothing.  The factors are not in the file; its weights
tell them: those of an output channel are the float ones times what `equalize` gave the channel,
over what it gave those that it reads.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from quantjit.graph import Graph, Node
from quantjit.passes.channels import tie_channels
from quantjit.passes.equalize import PARTS, Factors, scaled
from quantjit.quant import QuantParams

_SURE = 4.0  # standard errors that a factor must be away from 1


def matched(graph: Graph, quantized: Graph) -> Graph:
    """Return the float network with the channel factors of an int8 one made from it.

    graph: with its activations fused.  Nodes are told by their names; what is not found again, or
    has other weights, counts as not equalized.
    """
    twins = {node.name: node for node in quantized.nodes}
    ties = tie_channels(graph)
    factors, known = np.ones(ties.fixed.size), ties.fixed.copy()
    for node in graph.nodes:
        twin = twins.get(node.name)
        if twin is None or twin.op != node.op or node.op not in ("convolution", "inner_product"):
            continue
        found = _written(node, twin, quantized.scales, factors[ties.sets[node.inputs[0]]])
        sets = ties.sets[node.outputs[0]]
        if found is None or found.size != sets.size:
            continue
        new = ~known[sets]
        factors[sets[new]] = found[new]
        known[sets] = True
    if (factors == 1).all():
        return graph
    return scaled(graph, ties, factors).graph


def _written(
    node: Node, twin: Node, scales: Mapping[str, QuantParams], before: Factors
) -> Factors | None:
    """Return the factors of what a node writes, None where the two are of different shape."""
    wanted, found = _rows(node, before.size), _rows(twin, before.size)
    if wanted.shape != found.shape:
        return None
    group = node.attrs.group if node.op == "convolution" else 1
    steps = np.ones(before.size)
    if twin.quant is not None:
        zeros = twin.quant.weight_zero_point.astype(np.float64).reshape(-1, 1, 1)
        found = (found - zeros) * twin.quant.weight_scale.astype(np.float64).reshape(-1, 1, 1)
        source = scales.get(twin.inputs[0])
        if source is None:
            return None
        steps = np.broadcast_to(source.scale.astype(np.float64), before.shape)
    columns = (before / steps).reshape(group, 1, -1).repeat(len(found) // group, axis=1)
    found = found * columns.reshape(len(found), -1, 1)
    energy = (wanted * wanted).sum(axis=(1, 2))
    live = energy > 0
    ratio = np.ones(len(found))
    np.divide((found * wanted).sum(axis=(1, 2)), energy, out=ratio, where=live)
    rest = found - ratio[:, None, None] * wanted
    error = np.zeros(len(found))
    noise = (rest * rest).mean(axis=(1, 2))
    np.divide(noise, energy, out=error, where=live)
    is_moved = live & (ratio > 0) & (np.abs(ratio - 1) > _SURE * np.sqrt(error))
    octaves = np.rint(np.log2(np.where(is_moved, ratio, 1.0)) * PARTS) / PARTS
    return np.asarray(np.exp2(octaves))


def _rows(node: Node, channels: int) -> NDArray[np.float64]:
    """Return weights as (rows, channels that a row reads, taps of each)."""
    weight = np.asarray(node.weights["weight"], np.float64)
    if node.op == "convolution":
        return weight.reshape(*weight.shape[:2], -1)
    matrix = weight.T if node.attrs.transpose else weight
    return np.ascontiguousarray(matrix).reshape(len(matrix), channels, -1)
