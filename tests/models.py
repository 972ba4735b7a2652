"""Tiny networks built in code, with seeded weights."""

import numpy as np

from quantjit.graph import Blob, Graph, Node
from quantjit.ops import NoAttrs
from quantjit.ops.concat import ConcatAttrs
from quantjit.ops.convolution import ConvolutionAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.ops.inner_product import InnerProductAttrs
from quantjit.ops.pooling import PoolingAttrs


def conv(name, source, in_channels, out_channels, *, kernel=1, group=1, activation="none", seed=0):
    """A same-size convolution with random weights; its blob has its name."""
    rng = np.random.default_rng([seed, *name.encode()])
    pad = kernel // 2
    fan_in = in_channels // group * kernel * kernel
    weight = rng.normal(
        0, (2 / fan_in) ** 0.5, (out_channels, in_channels // group, kernel, kernel)
    )
    return Node(
        name,
        "convolution",
        (source,),
        (name,),
        ConvolutionAttrs(
            group, in_channels, out_channels, kernel, kernel, pads=(pad,) * 4, activation=activation
        ),
        {
            "weight": weight.astype(np.float32),
            "bias": rng.normal(0, 0.1, out_channels).astype(np.float32),
        },
    )


def simple(name, op, source, target=None):
    """A node of an op without attributes."""
    return Node(name, op, (source,), (target or name,), NoAttrs())


def small_network(size=6):
    """conv-relu, max pool, a concat of two convs, a residual add, relu6 depthwise, mean, fc."""
    nodes = (
        conv("conv1", "data", 3, 4, kernel=3),
        simple("relu1", "relu", "conv1"),
        Node("pool1", "pooling", ("relu1",), ("pool1",), PoolingAttrs("max", 2, 2, 2, 2)),
        conv("left", "pool1", 4, 4),
        simple("left_relu", "relu", "left"),
        conv("right", "pool1", 4, 4, kernel=3),
        simple("right_relu", "relu", "right"),
        Node("join", "concat", ("left_relu", "right_relu"), ("join",), ConcatAttrs(1)),
        conv("depthwise", "join", 8, 8, kernel=3, group=8),
        simple("depthwise_relu", "relu6", "depthwise"),
        conv("project", "depthwise_relu", 8, 8),
        Node("sum", "add", ("project", "join"), ("sum",), BinaryAttrs()),
        simple("sum_relu", "relu", "sum"),
        Node("mean", "pooling", ("sum_relu",), ("mean",), PoolingAttrs("average", 0, 0)),
        Node(
            "scores",
            "inner_product",
            ("mean",),
            ("scores",),
            InnerProductAttrs(5),
            {
                "weight": np.random.default_rng(9).normal(0, 0.5, (5, 8)).astype(np.float32),
                "bias": np.arange(5, dtype=np.float32) / 10,
            },
        ),
    )
    return Graph(nodes, (Blob("data", (1, 3, size, size)),), ("scores",))


def random_inputs(graph, count, seed=0):
    """count inputs, float32, each a dict by input name."""
    rng = np.random.default_rng(seed)
    return [
        {blob.name: rng.normal(0, 1, blob.shape).astype(np.float32) for blob in graph.inputs}
        for _ in range(count)
    ]
