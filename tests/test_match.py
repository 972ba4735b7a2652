"""Factors of an equalization are found again in the int8 network."""

from dataclasses import replace

import models
import numpy as np
import pytest

from quantjit import quantizer, rounding
from quantjit.calibration import calibrate
from quantjit.dataset import ArraySamples
from quantjit.passes.equalize import equalize
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.passes.match import matched
from quantjit.quantizer import Settings

SETTINGS = [
    Settings("mse", "minmax", "mix"),
    Settings("mse", "mse", "channel"),
    Settings("minmax", "minmax", "tensor"),
    Settings("mse", "minmax", "mix", target="onnx"),
]


def uneven(graph):
    """The network with some channels made small and taken back by those that read them."""
    nodes = {node.name: node for node in graph.nodes}
    factors = np.array([1.0, 0.05, 0.3, 0.02])
    for name, axis, power in (("conv1", 0, 1), ("left", 1, -1), ("right", 1, -1)):
        weights = dict(nodes[name].weights)
        shape = [1] * 4
        shape[axis] = 4
        weights["weight"] = (weights["weight"] * factors.reshape(shape) ** power).astype(np.float32)
        if axis == 0:
            weights["bias"] = (weights["bias"] * factors).astype(np.float32)
        nodes[name] = replace(nodes[name], weights=weights)
    return graph.with_nodes(tuple(nodes[node.name] for node in graph.nodes))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_factors_are_found_again(settings):
    graph = uneven(fuse_activation(models.small_network(4)))
    samples = ArraySamples(models.random_inputs(graph, 6))
    channel = calibrate(graph, samples, Settings("mse", "mse", "channel"), jobs=1).stats
    weights = "tensor" if settings.merge == "tensor" else "channel"
    found = equalize(graph, channel, what="both", weights=weights, strength=0.1)
    assert found.groups
    stats = calibrate(found.graph, samples, settings, jobs=1).stats
    table = quantizer.solve(found.graph, stats, settings)
    int8 = quantizer.quantize(found.graph, table, settings)
    if weights == "channel":
        assert matched(graph, int8) == found.graph
    else:  # few codes tell a factor to a few parts in a hundred
        again = {node.name: node for node in matched(graph, int8).nodes}
        for node in found.graph.nodes:
            if node.weights:
                weight = node.weights["weight"]
                largest = float(np.abs(weight).max())
                np.testing.assert_allclose(
                    again[node.name].weights["weight"], weight, atol=largest / 10
                )


def test_other_weights_are_left_alone():
    graph = fuse_activation(models.small_network(4))
    samples = ArraySamples(models.random_inputs(graph, 4))
    for settings in SETTINGS:
        stats = calibrate(graph, samples, settings, jobs=1).stats
        int8 = quantizer.quantize(graph, quantizer.solve(graph, stats, settings), settings)
        assert matched(graph, int8) is graph
        assert matched(graph, rounding.with_nodes(int8, {})) is graph
    renamed = graph.with_nodes(())
    assert matched(graph, renamed) is graph
