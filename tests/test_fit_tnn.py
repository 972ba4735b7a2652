"""Networks of other formats in TNN's words: the same results, and refusals that name everything."""

import models
import numpy as np
import pytest

from quantjit import formats
from quantjit.errors import GraphError
from quantjit.executor import Executor
from quantjit.graph import Blob, Graph, Node
from quantjit.ops import NoAttrs
from quantjit.ops.convolution import ConvolutionAttrs
from quantjit.ops.curves import CurveAttrs
from quantjit.ops.pooling import PoolingAttrs
from quantjit.passes.fit_tnn import fit_tnn


def convolution(name="conv", source="data", **changes):
    weight = np.random.default_rng(1).normal(0, 1, (4, 3, 3, 3)).astype(np.float32)
    attrs = ConvolutionAttrs(1, 3, 4, 3, 3, has_bias=False, **changes)
    return Node(name, "convolution", (source,), (name,), attrs, {"weight": weight})


def pooling(kind, pads, **changes):
    return Node(
        "pool", "pooling", ("data",), ("pool",), PoolingAttrs(kind, 3, 3, 2, 2, pads, **changes)
    )


def graph_of(*nodes, size=8):
    return Graph(nodes, (Blob("data", (1, 3, size, size)),), nodes[-1].outputs)


def assert_same_through_a_file(graph, tmp_path):
    fitted = fit_tnn(graph)
    formats.save(fitted.graph, tmp_path / "net.tnnproto")
    again = formats.load(tmp_path / "net.tnnproto")
    (inputs,) = models.random_inputs(graph, 1)
    given = {blob.name: x for blob, x in zip(again.inputs, inputs.values(), strict=True)}
    expected, found = Executor(graph).run(inputs), Executor(again).run(given)
    for before, after in zip(expected.values(), found.values(), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    return fitted


def test_what_tnn_can_hold_is_left_as_it_is():
    graph = models.small_network()
    fitted = fit_tnn(graph)
    assert fitted.graph == graph
    assert fitted.notes == ()


def test_one_sided_pads_become_same_padding(tmp_path):
    graph = graph_of(convolution(pads=(0, 1, 0, 1), stride_h=2, stride_w=2))
    fitted = assert_same_through_a_file(graph, tmp_path)
    assert fitted.graph.nodes[0].attrs.pad_mode == "same"
    assert "conv" in fitted.notes[0]


def test_other_pads_become_a_layer(tmp_path):
    for node in (
        convolution(pads=(1, 0, 0, 2)),
        pooling("max", (0, 1, 1, 0)),
        pooling("average", (1, 1, 1, 1), count_include_pad=True),
    ):
        fitted = assert_same_through_a_file(graph_of(node), tmp_path)
        assert [made.op for made in fitted.graph.nodes] == ["pad", node.op]
        assert "layers of their own" in fitted.notes[0]


def test_names_lose_what_a_tnnproto_cannot_hold(tmp_path):
    first = convolution("a b,c", pads=(1, 1, 1, 1))
    nodes = (first, Node("a_b_c", "relu", ("a b,c",), ("x:0",), NoAttrs()))
    graph = Graph(nodes, (Blob("data:0", (1, 3, 8, 8)),), ("x:0",))
    graph = graph.with_nodes((convolution("a b,c", "data:0", pads=(1, 1, 1, 1)), nodes[1]))
    fitted = assert_same_through_a_file(graph, tmp_path)
    assert [node.name for node in fitted.graph.nodes] == ["a_b_c_", "a_b_c"]
    assert [blob.name for blob in fitted.graph.inputs] == ["data_0"]
    assert "names" in fitted.notes[0]


def test_layers_that_tnn_lacks_are_named_all_at_once():
    nodes = (
        Node("curve", "mish", ("data",), ("a",), CurveAttrs()),
        Node("wave", "sin", ("a",), ("b",), NoAttrs()),
    )
    with pytest.raises(GraphError, match=r"'curve' \(mish\), 'wave' \(sin\)"):
        fit_tnn(graph_of(*nodes))


@pytest.mark.parametrize(
    "node",
    [
        pooling("average", (1, 0, 0, 1)),
        pooling("max", (1, 0, 0, 0), ceil_mode=True),
        Node(
            "up",
            "deconvolution",
            ("data",),
            ("up",),
            ConvolutionAttrs(1, 3, 4, 3, 3, pads=(1, 0, 0, 0), has_bias=False),
            {"weight": np.ones((3, 4, 3, 3), np.float32)},
        ),
    ],
)
def test_pads_that_tnn_cannot_express_are_refused(node):
    with pytest.raises(GraphError, match=f"node '{node.name}'"):
        fit_tnn(graph_of(node))
