"""Cross-layer equalization: channels multiplied by factors that the next layers take back.

After Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction"
(ICCV 2019).  A channel that uses a small part of its blob's one scale is made larger: rows of its
producers times f, columns of its readers divided by f.  `quantjit.passes.channels` says which
channels go together.  The paper makes the ranges of neighbouring weights equal; with statistics the
factors are those with which the rounding of blobs and weights together is estimated to show least
at the outputs (`quantjit.passes.gains`).

A ReLU6 lets factors pass only where it clips nothing.  What was seen says so, but not for all that
will be seen: channels that reached 6 are left alone, others keep a distance from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantjit.errors import UnsupportedError
from quantjit.graph import Array, Graph, Node, readonly
from quantjit.passes._objective import BlobTerm, WeightTerm, minimize
from quantjit.passes.channels import Ties, tie_channels
from quantjit.passes.gains import blob_gains, has_taps, open_share, tap_counts
from quantjit.stats import BlobStats

Factors = NDArray[np.float64]

GOALS = ("weights", "activations", "both")
"""Whose rounding the factors are to make small."""

RELU6 = ("keep", "replace")
"""What becomes of ReLU6: it stays and holds its channels, or is a ReLU from here on."""

PARTS = 32
"""Factors are powers of 2**(1 / PARTS): no last bit of an exp decides."""

_SIX = 6.0
_NEARLY = 0.998  # of 6: closer, and a ReLU6 clips
_DISTANCE = 2.0  # 6 over the largest scaled value before a ReLU6
_WIDEST = {False: 64.0, True: 4.0}  # factors or their inverses; before a ReLU6
_ROUNDS = 80
_RANGE_ROUNDS = 30
_WEIGHT_CODES = 127


@dataclass(frozen=True, slots=True)
class Equalization:
    """A network with other values inside, and how it came to them.

    factors: blob -> float64 (channels,), what its values are multiplied by.  groups: the blobs
    that were changed.  notes: what was done otherwise than asked, in words.  expected: dB that the
    noise is estimated to fall by; 0 where there are no statistics to tell.
    """

    graph: Graph
    factors: Mapping[str, Factors]
    groups: tuple[str, ...]
    notes: tuple[str, ...] = ()
    expected: float = 0.0


def equalize(
    graph: Graph,
    stats: Mapping[str, BlobStats] | None = None,
    *,
    what: str = "both",
    weights: str = "channel",
    symmetric: bool = False,
    strength: float = 1.0,
    relu6: str = "keep",
) -> Equalization:
    """Return the network with its channels scaled so that int8 has less noise.

    Float outputs stay the same but for float32 rounding, and for what a ReLU6 clips.

    graph: float, activations fused.  stats: blob -> statistics, a row a channel; None needs no
    data: the ranges of the weights that write and read a channel are made equal.
    what: one of GOALS.  weights: "channel" for a scale a row, "tensor" for one a layer.
    symmetric: whether blobs have 127 steps from 0 on, 255 otherwise.  strength: weight of the
    blobs' noise against that of the weights.  relu6: one of RELU6.
    """
    for kind, value, known in (
        ("goal of equalization", what, GOALS),
        ("way with ReLU6", relu6, RELU6),
        ("granularity of weights", weights, ("channel", "tensor")),
    ):
        if value not in known:
            raise UnsupportedError(kind, value, known)
    notes: tuple[str, ...] = ()
    if relu6 == "replace":
        graph, count = _without_relu6(graph)
        notes = (f"{count} ReLU6 became ReLU",) if count else ()
    ties = tie_channels(graph)
    seen = stats or {}
    low, high = _bounds(graph, ties, seen)
    if stats is None:
        theta, expected = _equal_ranges(graph, ties, low, high), 0.0
    else:
        terms: list[BlobTerm | WeightTerm] = []
        if what != "weights":
            terms += _blob_terms(graph, ties, seen, strength, symmetric=symmetric)
        if what != "activations":
            terms += _weight_terms(graph, ties, seen, per_tensor=weights == "tensor")
        theta, before, after = minimize(terms, low, high, _ROUNDS)
        expected = 10 * float(np.log10(before / after)) if after > 0 else 0.0
    octaves = np.rint(theta / np.log(2) * PARTS) / PARTS
    return scaled(graph, ties, np.exp2(octaves), notes, expected)


def _without_relu6(graph: Graph) -> tuple[Graph, int]:
    nodes: list[Node] = []
    count = 0
    for node in graph.nodes:
        made = node
        if node.op == "relu6":
            made = replace(node, op="relu")
        elif _clips(node):
            made = replace(node, attrs=replace(node.attrs, activation="relu"))
        count += made is not node
        nodes.append(made)
    return graph.with_nodes(tuple(nodes)), count


def _clips(node: Node) -> bool:
    return node.op == "relu6" or getattr(node.attrs, "activation", "none") == "relu6"


# ------------------------------------------------------------------ what the factors may be


def _bounds(graph: Graph, ties: Ties, stats: Mapping[str, BlobStats]) -> tuple[Factors, Factors]:
    """Return the least and the largest logarithm of the factor of each set."""
    widest = np.where(ties.capped, _WIDEST[True], _WIDEST[False])
    low, high = 1 / widest, widest
    for node in graph.nodes:
        if not _clips(node):
            continue
        sets, seen = ties.sets[node.outputs[0]], stats.get(node.outputs[0])
        if seen is None or seen.channels != sets.size:
            low[sets] = high[sets] = 1.0
            continue
        highest = np.maximum(seen.maximum.astype(np.float64), 0.0)
        clips = highest >= _SIX * _NEARLY
        room = np.where(clips, 1.0, _SIX / (_DISTANCE * np.maximum(highest, 1e-9)))
        np.minimum.at(high, sets, np.maximum(room, 1.0))
        low[sets[clips]] = 1.0
    high = np.maximum(high, 1.0)
    low[ties.fixed] = high[ties.fixed] = 1.0
    return np.log(low), np.log(high)


# ------------------------------------------------------------------ without data


def _equal_ranges(graph: Graph, ties: Ties, low: Factors, high: Factors) -> Factors:
    """Return logarithms that make the largest taps into and out of a channel equal.

    One pair of layers has r_out / r_in of the paper; a chain repeats it.
    """
    theta = np.zeros(low.size)
    layers = [node for node in graph.nodes if has_taps(node)]
    taps = [tap_counts(node, ties.sets[node.inputs[0]].size)[2] for node in layers]
    for _ in range(_RANGE_ROUNDS):
        written, read = np.zeros(low.size), np.zeros(low.size)
        for node, largest in zip(layers, taps, strict=True):
            sources, targets = _ends(node, ties)
            before = np.exp(theta[sources]).repeat(targets.size // len(sources), axis=0)
            scaled = largest * np.exp(theta[targets])[:, None] / before
            columns = scaled.reshape(len(sources), -1, sources.shape[1]).max(axis=1)
            np.maximum.at(written, targets, scaled.max(axis=1))
            np.maximum.at(read, sources, columns)
        both = (written > 0) & (read > 0)
        step = np.zeros(low.size)
        step[both] = 0.5 * np.log(read[both] / written[both])
        theta = np.clip(theta + step, low, high)
    return theta


def _ends(node: Node, ties: Ties) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sets that a layer reads, a row a group, and those that it writes."""
    groups = node.attrs.group if node.op == "convolution" else 1
    return ties.sets[node.inputs[0]].reshape(groups, -1), ties.sets[node.outputs[0]]


# ------------------------------------------------------------------ the noise


def _blob_terms(
    graph: Graph,
    ties: Ties,
    stats: Mapping[str, BlobStats],
    strength: float,
    *,
    symmetric: bool,
) -> list[BlobTerm]:
    """Return the noise of blobs that are rounded; parts of a concat are in its scale."""
    gains, readers = blob_gains(graph, stats), graph.readers()
    terms = []
    for node in graph.nodes:
        blob = node.outputs[0]
        seen, sets = stats.get(blob), ties.sets[blob]
        averages = node.op == "pooling" and node.attrs.kind != "max"
        if node.op not in ("convolution", "inner_product", "add", "concat") and not averages:
            continue
        after = readers.get(blob, [])
        joins = len(after) == 1 and after[0].op == "concat" and blob not in graph.outputs
        if seen is None or seen.channels != sets.size or seen.is_empty or joins:
            continue
        lowest, highest = min(float(seen.minimum.min()), 0.0), max(float(seen.maximum.max()), 0.0)
        if highest <= lowest:
            continue
        codes = 127.0 if symmetric else 255 * max(-lowest, highest) / (highest - lowest)
        cost = strength * (1 - seen.zero_share) * gains[blob].spread / (12 * codes**2)
        terms.append(BlobTerm(sets, seen.absmax.astype(np.float64), cost))
    return terms


def _weight_terms(
    graph: Graph, ties: Ties, stats: Mapping[str, BlobStats], *, per_tensor: bool
) -> list[WeightTerm]:
    """Return the noise of rounded weights, less what the mean of their input makes of it.

    That part is one error for all places, which a bias correction takes out.
    """
    gains = blob_gains(graph, stats)
    terms = []
    for node in graph.nodes:
        if not has_taps(node):
            continue
        sources, targets = _ends(node, ties)
        seen = stats.get(node.inputs[0])
        if seen is None or seen.channels != sources.size:
            continue
        _, _, largest, taps = tap_counts(node, sources.size)
        passed = open_share(node, stats, targets.size) * gains[node.outputs[0]].spread
        variance = (seen.std**2).reshape(sources.shape).repeat(targets.size // len(sources), axis=0)
        cost = passed[:, None] * variance * taps / (12 * _WEIGHT_CODES**2)
        terms.append(WeightTerm(sources, targets, largest, cost, per_tensor))
    return terms


# ------------------------------------------------------------------ the network with factors


def scaled(
    graph: Graph,
    ties: Ties,
    factors: Factors,
    notes: tuple[str, ...] = (),
    expected: float = 0.0,
) -> Equalization:
    """Return the network with each set of channels multiplied by its factor."""
    by_blob = {blob: factors[sets] for blob, sets in ties.sets.items()}
    nodes = tuple(_scaled_node(node, by_blob) for node in graph.nodes)
    changed = tuple(blob for blob, each in by_blob.items() if (each != 1).any())
    return Equalization(graph.with_nodes(nodes), by_blob, changed, notes, expected)


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
