"""How much noise in a channel of a blob shows at the outputs of the network, estimated.

Two gains a channel, for errors that are small beside the values: `spread` for errors that are
independent from place to place, as the rounding of activations makes them, and `shift` for an
error that is the same at all places, as the rounding of weights makes it where the mean of their
input is not 0.  A convolution passes on the sum of the squares of its taps, or the square of their
sum; averages quiet independent errors only.  The estimate takes errors of different channels as
independent and a ReLU as open as often as the statistics say: it ranks choices, and is no bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from quantjit.executor import infer_shapes
from quantjit.graph import Graph, Node
from quantjit.ops import Shape
from quantjit.passes.channels import channel_count
from quantjit.stats import BlobStats

Values = NDArray[np.float64]

_CLIPPING = ("relu", "relu6")


@dataclass(frozen=True, slots=True)
class Gain:
    """Noise power at the outputs, summed, for unit variance in a channel: float64 (channels,).

    spread: the error of each element is independent; shift: one error for the whole channel.
    """

    spread: Values
    shift: Values


def blob_gains(graph: Graph, stats: Mapping[str, BlobStats]) -> dict[str, Gain]:
    """Return blob -> its gain, from the outputs to the inputs.

    graph: float, activations fused.  stats: blob -> statistics, a row a channel; where there are
    none half of what a ReLU reads is taken to pass.
    """
    shapes = infer_shapes(graph)
    found: dict[str, Gain] = {}
    for blob, shape in shapes.items():
        count = channel_count(shape)
        size = float(prod(shape[2:])) if blob in graph.outputs else 0.0
        found[blob] = Gain(np.full(count, size), np.full(count, size))
    for node in reversed(graph.nodes):
        for blob, part in _inputs_of(node, found, shapes, stats):
            if blob in found:
                before = found[blob]
                found[blob] = Gain(before.spread + part.spread, before.shift + part.shift)
    return found


def has_taps(node: Node) -> bool:
    """Whether `tap_counts` can tell what the node does to a channel."""
    if node.op == "inner_product":
        return len(node.inputs) == 1 and bool(node.attrs.axis == 1)
    return node.op == "convolution"


def tap_counts(node: Node, channels: int) -> tuple[Values, Values, Values, Values]:
    """Return what a layer with weights does to channel i of its input in its output j.

    channels: of its input blob.  Four float64 (outputs, inputs a group) arrays: the sum of squares
    of the taps, the square of their sum, the largest magnitude and the number that are not 0.
    """
    weight = np.asarray(node.weights["weight"], np.float64)
    if node.op == "inner_product":
        rows = weight.T if node.attrs.transpose else weight
        taps = rows.reshape(rows.shape[0], channels, -1)
    else:
        taps = weight.reshape(*weight.shape[:2], -1)
    return (
        (taps**2).sum(axis=2),
        taps.sum(axis=2) ** 2,
        np.abs(taps).max(axis=2),
        (taps != 0).sum(axis=2).astype(np.float64),
    )


def open_share(node: Node, stats: Mapping[str, BlobStats], channels: int) -> Values:
    """Return the share of the outputs of a node, by channel, that its activation lets pass."""
    clips = node.op in _CLIPPING or getattr(node.attrs, "activation", "none") in _CLIPPING
    if not clips:
        return np.ones(channels)
    seen = stats.get(node.outputs[0])
    if seen is None or seen.channels != channels:
        return np.full(channels, 0.5)
    return 1 - seen.zero_share


def _inputs_of(
    node: Node,
    gains: Mapping[str, Gain],
    shapes: Mapping[str, Shape],
    stats: Mapping[str, BlobStats],
) -> list[tuple[str, Gain]]:
    target = node.outputs[0]
    count = channel_count(shapes[target])
    passed = open_share(node, stats, count)
    out = Gain(gains[target].spread * passed, gains[target].shift * passed)
    source = node.inputs[0]
    if has_taps(node) and source in gains:
        return [(source, _through_weights(node, out, gains[source].spread.size))]
    if node.op == "concat" and node.attrs.axis % len(shapes[target]) == 1:
        return _parts(node, out, gains)
    if node.op == "pooling" and node.attrs.kind != "max" and source in gains:
        window = prod(shapes[source][2:]) / prod(shapes[target][2:])
        return [(source, Gain(out.spread / max(window, 1.0), out.shift))]
    return [(blob, _resized(out, gains[blob].spread.size)) for blob in node.inputs if blob in gains]


def _through_weights(node: Node, out: Gain, channels: int) -> Gain:
    squares, sums, _, _ = tap_counts(node, channels)
    group = node.attrs.group if node.op == "convolution" else 1

    def back(taps: Values, gain: Values) -> Values:
        weighted = (taps * gain[:, None]).reshape(group, -1, taps.shape[1])
        back_through: Values = weighted.sum(axis=1).reshape(-1)
        return back_through

    return Gain(back(squares, out.spread), back(sums, out.shift))


def _parts(node: Node, out: Gain, gains: Mapping[str, Gain]) -> list[tuple[str, Gain]]:
    found, start = [], 0
    for blob in node.inputs:
        end = start + (gains[blob].spread.size if blob in gains else 0)
        found.append((blob, Gain(out.spread[start:end], out.shift[start:end])))
        start = end
    return found


def _resized(out: Gain, channels: int) -> Gain:
    """Return the gain of another number of channels with the same sum."""
    if out.spread.size == channels:
        return out
    return Gain(
        np.full(channels, out.spread.sum() / channels),
        np.full(channels, out.shift.sum() / channels),
    )
