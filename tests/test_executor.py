"""The plan: lives of blobs, reuse of buffers, borders."""

import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantjit.errors import GraphError, UnsupportedError
from quantjit.executor import Executor, count_macs, infer_shapes
from quantjit.graph import Blob, Graph, Node
from quantjit.ops import NoAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.ops.softmax import SoftmaxAttrs


def test_outputs_are_owned_by_the_caller_and_runs_repeat():
    graph = models.small_network()
    executor = Executor(graph)
    first, second = models.random_inputs(graph, 2)
    before = executor.run(first)["scores"]
    kept = before.copy()
    executor.run(second)
    np.testing.assert_array_equal(before, kept)
    np.testing.assert_array_equal(executor.run(first)["scores"], kept)


def test_a_batch_is_its_images():
    graph = models.small_network()
    images = models.random_inputs(graph, 3)
    batch = {"data": np.concatenate([image["data"] for image in images])}
    wide = graph.with_input_shapes({"data": batch["data"].shape})
    executor = Executor(graph)
    alone = np.concatenate([executor.run(image)["scores"] for image in images])
    for threads in (1, 2, 5):
        for whole in (False, True):
            batched = Executor(wide, threads, whole_batch=whole)
            for _ in range(3):
                np.testing.assert_array_equal(batched.run(batch)["scores"], alone)
    seen = {}
    batched = Executor(wide, 2)
    batched.run(batch, lambda name, blob: seen.update({name: blob.shape}))
    assert seen == batched.shapes


def test_a_batch_whose_images_are_not_independent_is_run_whole():
    data = np.arange(6, dtype=np.float32).reshape(3, 2)
    node = Node("n", "softmax", ("data",), ("n",), SoftmaxAttrs(0))
    graph = Graph((node,), (Blob("data", (3, 2)),), ("n",))
    found = Executor(graph, 2).run({"data": data})["n"]
    exponents = np.exp(data - data.max(axis=0))
    np.testing.assert_allclose(found, exponents / exponents.sum(axis=0), rtol=1e-6)


@st.composite
def unary_webs(draw):
    """Random graphs of sums and negations over one input: lives overlap in all ways."""
    count = draw(st.integers(1, 12))
    blobs = ["data"]
    nodes = []
    for index in range(count):
        name = f"b{index}"
        pick = st.sampled_from(blobs)
        if draw(st.booleans()):
            nodes.append(Node(name, "add", (draw(pick), draw(pick)), (name,), BinaryAttrs()))
        else:
            nodes.append(Node(name, "neg", (draw(pick),), (name,), NoAttrs()))
        blobs.append(name)
    outputs = draw(st.lists(st.sampled_from(blobs), min_size=1, unique=True))
    return Graph(tuple(nodes), (Blob("data", (1, 2, 3)),), tuple(outputs))


@given(unary_webs())
def test_reused_buffers_never_mix_blobs(graph):
    executor = Executor(graph)
    data = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    found = executor.run({"data": data})
    blobs = {"data": data}
    for node in graph.nodes:
        operands = [blobs[name] for name in node.inputs]
        blobs[node.outputs[0]] = -operands[0] if node.op == "neg" else operands[0] + operands[1]
    for name in graph.outputs:
        np.testing.assert_array_equal(found[name], blobs[name])
    assert executor.arena_bytes <= executor.blob_bytes


def test_on_blob_sees_every_blob_once():
    graph = models.small_network()
    seen = []
    Executor(graph).run(models.random_inputs(graph, 1)[0], lambda name, _: seen.append(name))
    assert seen == graph.blobs()


def test_macs_and_shapes():
    graph = models.small_network()
    shapes = infer_shapes(graph)
    assert shapes["pool1"] == (1, 4, 3, 3)
    macs = count_macs(graph, shapes)
    assert macs["conv1"] == 36 * 4 * 27
    assert macs["depthwise"] == 9 * 8 * 9
    assert macs["scores"] == 40
    assert macs["relu1"] == 0


def test_wrong_inputs_are_named():
    executor = Executor(models.small_network())
    with pytest.raises(GraphError, match="'data': no array"):
        executor.run({})
    with pytest.raises(GraphError, match=r"shape \(1, 3, 2, 2\) was given, \(1, 3, 6, 6\)"):
        executor.run({"data": np.zeros((1, 3, 2, 2), np.float32)})


def test_graphs_are_validated():
    data = (Blob("data", (1, 2)),)
    neg = Node("n", "neg", ("data",), ("n",), NoAttrs())
    with pytest.raises(GraphError, match="no earlier node produces"):
        Executor(Graph((Node("n", "neg", ("x",), ("n",), NoAttrs()),), data, ("n",)))
    with pytest.raises(GraphError, match="a second node has this name"):
        Executor(Graph((neg, neg), data, ("n",)))
    with pytest.raises(GraphError, match="exists already"):
        Executor(Graph((neg, Node("m", "neg", ("data",), ("n",), NoAttrs())), data, ("n",)))
    with pytest.raises(GraphError, match="output 'y': no node"):
        Executor(Graph((neg,), data, ("y",)))
    with pytest.raises(UnsupportedError, match="unknown op 'nrg'; did you mean 'neg'"):
        Executor(Graph((Node("n", "nrg", ("data",), ("n",), NoAttrs()),), data, ("n",)))


def test_constants_of_the_file_are_blobs():
    node = Node("n", "add", ("data", "c"), ("n",), BinaryAttrs())
    graph = Graph((node,), (Blob("data", (1, 2)),), ("n",), {}, {"c": np.float32([[1, 2]])})
    found = Executor(graph).run({"data": np.float32([[3, 4]])})["n"]
    np.testing.assert_array_equal(found, [[4, 6]])
