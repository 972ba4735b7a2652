"""A small network with inputs and evidence, for the tests of what searches."""

from dataclasses import replace

import models
import numpy as np

from quantjit import calibration
from quantjit.dataset import ArraySamples
from quantjit.flow import Resources
from quantjit.judge import Judge
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.plan import Plan
from quantjit.refine import refine


def network():
    return fuse_activation(models.small_network())


def samples(graph, count, seed=0):
    return ArraySamples(models.random_inputs(graph, count, seed))


def listed(graph, count, seed=0):
    found = samples(graph, count, seed)
    return [found.load(index)[0] for index in range(count)]


def gathered(graph, rows, count=6):
    plan = Plan(Resources(1), sum(rows.values()), 4096, 0, 0, 0)
    return calibration.Gathering(graph, samples(graph, count), rows, plan).run().stats


def refined(graph, settings, count=6):
    stats = calibration.calibrate(graph, samples(graph, count), settings, jobs=1).stats
    return refine(graph, stats, settings)


def judge(graph, count=4, seed=1, jobs=2):
    return Judge(graph, listed(graph, count, seed), jobs=jobs)


def with_outlier(graph, name, factor=1e4):
    """The network with one huge weight in a convolution + ReLU that says nothing else.

    Its output channel is kept at 0 by its bias, so that float does not see it, but int8 codes with
    one scale for all weights keep little of the others.
    """

    def spoiled(node):
        if node.name != name:
            return node
        weight, bias = node.weights["weight"].copy(), node.weights["bias"].copy()
        weight.reshape(-1)[0] = factor * np.abs(weight).max()
        bias[0] = -100.0 * factor
        return replace(node, weights={**node.weights, "weight": weight, "bias": bias})

    return graph.with_nodes(tuple(spoiled(node) for node in graph.nodes))
