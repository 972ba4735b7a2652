"""Fusion and lowering keep the float result and do what TNN's loader does."""

from dataclasses import replace

import models
import numpy as np
import pytest

from quantjit.errors import GraphError
from quantjit.executor import Executor
from quantjit.graph import Blob, Graph, Node
from quantjit.ops import NoAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.passes.lower import SUFFIX, fuses_with_add, lower
from quantjit.quant import NodeQuant, QuantParams


def test_fusing_keeps_the_result_and_the_names():
    graph = models.small_network()
    fused = fuse_activation(graph)
    names = [node.name for node in fused.nodes]
    assert "relu1" not in names
    assert "sum_relu" in names, "a ReLU behind an add has no convolution to go into"
    by_name = {node.name: node for node in fused.nodes}
    assert by_name["conv1"].outputs == ("relu1",)
    assert by_name["depthwise"].attrs.activation == "relu6"
    inputs = models.random_inputs(graph, 1)[0]
    expected = Executor(graph).run(inputs)["scores"]
    np.testing.assert_array_equal(Executor(fused).run(inputs)["scores"], expected)


@pytest.mark.parametrize("why", ["second reader", "network output", "not adjacent"])
def test_an_activation_is_not_fused_when_the_convolution_is_needed(why):
    nodes = [models.conv("c", "data", 3, 3), models.simple("r", "relu", "c")]
    outputs = ("r",)
    if why == "second reader":
        nodes.append(models.simple("s", "sigmoid", "c"))
        outputs = ("r", "s")
    if why == "network output":
        outputs = ("c", "r")
    if why == "not adjacent":
        nodes.insert(1, models.conv("d", "data", 3, 3))
        outputs = ("r", "d")
    graph = Graph(tuple(nodes), (Blob("data", (1, 3, 2, 2)),), outputs)
    assert [node.name for node in fuse_activation(graph).nodes] == [node.name for node in nodes]


def _int8(node):
    weights = {
        role: array.astype(np.int8 if role == "weight" else np.int32)
        for role, array in node.weights.items()
    }
    quant = NodeQuant(np.ones(1, np.float32), np.zeros(1, np.int8)) if weights else NodeQuant()
    return replace(node, weights=weights, quant=quant)


def _scaled(nodes, outputs=("end",)):
    graph = Graph(tuple(nodes), (Blob("data", (1, 3, 2, 2)),), outputs)
    scales = {blob: QuantParams(0.5) for blob in graph.blobs()}
    return replace(graph, scales=scales)


def _add(*inputs, name="end"):
    return Node(name, "add", inputs, (name,), BinaryAttrs())


def test_conversions_are_inserted_behind_the_producer():
    graph = _scaled(
        [
            _int8(models.conv("a", "data", 3, 3)),
            models.simple("float", "sigmoid", "a"),
            _int8(models.conv("end", "float", 3, 3)),
        ]
    )
    lowered = lower(graph)
    assert [(node.name, node.op) for node in lowered.nodes] == [
        ("a", "convolution"),
        ("a" + SUFFIX, "dequantize"),
        ("float", "sigmoid"),
        ("float" + SUFFIX, "quantize"),
        ("end", "convolution"),
    ]
    assert lowered.nodes[4].inputs == ("float" + SUFFIX,)
    assert Executor(lowered).run(models.random_inputs(graph, 1)[0])["end"].dtype == np.float32


def test_an_input_of_both_kinds_gets_a_conversion():
    graph = _scaled(
        [_int8(models.conv("a", "data", 3, 3)), models.simple("b", "relu", "data")], ("a", "b")
    )
    lowered = lower(graph)
    assert lowered.nodes[0].op == "quantize"
    assert lowered.nodes[1].inputs == ("data" + SUFFIX,)
    assert lowered.nodes[2].inputs == ("data",)


def test_one_by_one_convolution_and_add_become_one():
    nodes = [
        _int8(models.conv("a", "data", 3, 3)),
        _int8(models.conv("b", "a", 3, 3)),
        _int8(_add("b", "a")),
        _int8(models.simple("r", "relu", "end")),
    ]
    graph = _scaled(nodes, ("r",))
    lowered = lower(graph)
    assert [node.name for node in lowered.nodes] == ["a", "b"]
    assert lowered.nodes[1].inputs == ("a", "a")
    assert lowered.nodes[1].outputs == ("r",)
    assert lowered.nodes[1].attrs.fusion == "add_activation"
    assert lowered.nodes[1].attrs.activation == "relu"


@pytest.mark.parametrize("why", ["3x3", "float add", "same operand", "not adjacent", "output"])
def test_add_is_not_fused(why):
    nodes = [
        _int8(models.conv("a", "data", 3, 3)),
        _int8(models.conv("b", "a", 3, 3, kernel=3 if why == "3x3" else 1)),
        _int8(_add("b", "b" if why == "same operand" else "a")),
    ]
    if why == "float add":
        nodes[2] = _add("b", "a")
    if why == "not adjacent":
        nodes.insert(2, _int8(models.conv("c", "a", 3, 3)))
    outputs = {"output": ("b", "end"), "not adjacent": ("c", "end")}.get(why, ("end",))
    graph = _scaled(nodes, outputs)
    assert not fuses_with_add(graph, nodes[1], nodes[2])
    assert "end" in {node.name for node in lower(graph).nodes}


def test_an_int8_node_without_scales_is_named():
    graph = replace(_scaled([_int8(models.conv("end", "data", 3, 3))]), scales={})
    with pytest.raises(GraphError, match=r"end.*no scale"):
        Executor(lower(graph))


def test_unlowered_int8_is_refused():
    graph = _scaled([_int8(models.conv("a", "data", 3, 3)), models.simple("end", "relu", "a")])
    with pytest.raises(GraphError, match=r"reads blob 'a' as float32"):
        Executor(graph)
    graph = _scaled([_int8(Node("end", "relu6", ("data",), ("end",), NoAttrs()))])
    with pytest.raises(GraphError, match="no int8 form"):
        Executor(graph)
