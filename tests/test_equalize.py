"""Equalization keeps the function, ties the right channels and finds factors known beforehand."""

from dataclasses import replace

import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantjit.errors import UnsupportedError
from quantjit.executor import Executor
from quantjit.graph import Blob, Graph, Node
from quantjit.ops import NoAttrs
from quantjit.ops.activation import PReluAttrs
from quantjit.ops.concat import ConcatAttrs, SplitAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.ops.inner_product import InnerProductAttrs
from quantjit.ops.normalization import ScaleAttrs
from quantjit.ops.pooling import PoolingAttrs
from quantjit.ops.resize import ResizeAttrs
from quantjit.ops.shape import FlattenAttrs, PadAttrs, PermuteAttrs
from quantjit.passes.channels import tie_channels
from quantjit.passes.equalize import equalize
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.passes.gains import blob_gains
from quantjit.stats import BlobStats

CHANNELS = 4


def gather(graph, inputs):
    """Statistics of every blob, a row a channel."""
    stats = {}

    def observe(blob, array):
        if blob not in stats:
            stats[blob] = BlobStats(array.shape[1], 256)
        stats[blob].update(array.copy())

    executor = Executor(graph)
    for each in inputs:
        executor.run(each, observe)
    return stats


def run(graph, inputs):
    executor = Executor(graph)
    return [np.concatenate([a.ravel() for a in executor.run(x).values()]) for x in inputs]


def assert_same_function(before, after, inputs, tolerance=1e-5):
    for expected, found in zip(run(before, inputs), run(after, inputs), strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def grow(node, rng, octaves=3.0):
    """Rows of very different sizes, which leave something to equalize."""
    rows = np.exp2(rng.uniform(-octaves, octaves, node.attrs.out_channels)).astype(np.float32)
    return replace(
        node,
        weights={
            "weight": node.weights["weight"] * rows[:, None, None, None],
            "bias": node.weights["bias"] * rows,
        },
    )


def affine(name, source, rng):
    weights = {
        "scale": rng.uniform(0.5, 2, CHANNELS).astype(np.float32),
        "bias": rng.normal(0, 1, CHANNELS).astype(np.float32),
    }
    return Node(name, "batch_norm", (source,), (name,), NoAttrs(), weights)


STEPS = (
    *("convolution", "depthwise", "grouped", "relu", "relu6", "prelu", "sigmoid", "max", "average"),
    *("pad", "pad ones", "add", "concat", "split", "batch_norm", "resize", "multiply", "flip"),
)


def build(steps, seed, *, fused=True):
    """A network of these layers, each on the blob before; 4 channels wide."""
    rng = np.random.default_rng(seed)
    first = grow(models.conv("first", "data", 3, CHANNELS, activation="relu", seed=seed), rng)
    nodes, last, older = [first], "first", "first"
    shapes = {"first": 6}
    size = 6
    for index, step in enumerate(steps):
        name, extra = f"{step.replace(' ', '_')}{index}", {}
        if step in ("convolution", "depthwise", "grouped"):
            group = {"convolution": 1, "depthwise": CHANNELS, "grouped": 2}[step]
            made = models.conv(name, last, CHANNELS, CHANNELS, kernel=3, group=group, seed=seed)
            made = grow(made, rng)
        elif step in ("relu", "relu6", "sigmoid"):
            made = models.simple(name, step, last)
        elif step == "prelu":
            extra = {"slope": rng.uniform(0.1, 0.5, CHANNELS).astype(np.float32)}
            made = Node(name, "prelu", (last,), (name,), PReluAttrs(), extra)
        elif step in ("max", "average"):
            attrs = PoolingAttrs(step, 3, 3, 1, 1, (1, 1, 1, 1))
            made = Node(name, "pooling", (last,), (name,), attrs)
        elif step.startswith("pad"):
            attrs = PadAttrs((0, 0, 1, 0), (0, 0, 0, 1), "constant", float(step == "pad ones"))
            size += 1
            made = Node(name, "pad", (last,), (name,), attrs)
        elif step in ("add", "multiply"):
            other = older if shapes[older] == size else last
            op = "add" if step == "add" else "mul"
            made = Node(name, op, (last, other), (name,), BinaryAttrs())
        elif step == "concat":
            other = older if shapes[older] == size else last
            wide = f"{name}_wide"
            nodes.append(Node(wide, "concat", (other, last), (wide,), ConcatAttrs(1)))
            made = grow(models.conv(name, wide, 2 * CHANNELS, CHANNELS, seed=seed), rng)
        elif step == "split":
            parts = (f"{name}_a", f"{name}_b")
            nodes.append(Node(f"{name}_s", "split_v", (last,), parts, SplitAttrs(1, (1, 3))))
            made = Node(name, "concat", parts[::-1], (name,), ConcatAttrs(1))
        elif step == "batch_norm":
            made = affine(name, last, rng)
        elif step == "resize":
            attrs = ResizeAttrs("nearest", 1.0, 1.0, size, size)
            made = Node(name, "resize", (last,), (name,), attrs)
        else:
            made = Node(name, "permute", (last,), (name,), PermuteAttrs((0, 1, 3, 2)))
        nodes.append(made)
        shapes[name] = size
        older, last = last, name
    features = CHANNELS * size * size
    weight = rng.normal(0, features**-0.5, (3, features)).astype(np.float32)
    attrs = InnerProductAttrs(3, has_bias=False)
    nodes.append(Node("flat", "flatten", (last,), ("flat",), FlattenAttrs()))
    nodes.append(Node("scores", "inner_product", ("flat",), ("scores",), attrs, {"weight": weight}))
    graph = Graph(tuple(nodes), (Blob("data", (1, 3, 6, 6)),), ("scores",))
    return fuse_activation(graph) if fused else graph


networks = st.builds(
    build,
    st.lists(st.sampled_from(STEPS), max_size=6),
    st.integers(0, 999),
    fused=st.booleans(),
)


@given(
    networks,
    st.sampled_from(["weights", "activations", "both"]),
    st.sampled_from(["channel", "tensor"]),
)
@settings(max_examples=20)
def test_the_network_stays_the_same_function(graph, what, weights):
    inputs = models.random_inputs(graph, 2)
    stats = gather(graph, inputs)
    for seen in (stats, None):
        found = equalize(graph, seen, what=what, weights=weights)
        assert_same_function(graph, found.graph, inputs)
        assert found.graph.nodes[-1].name == graph.nodes[-1].name
        for blob in found.groups:
            assert (found.factors[blob] > 0).all()


@given(networks)
@settings(max_examples=10)
def test_each_blob_is_the_old_one_times_its_factors(graph):
    inputs = models.random_inputs(graph, 1)
    found = equalize(graph, gather(graph, inputs))
    before, after = {}, {}
    Executor(graph).run(inputs[0], lambda name, a: before.setdefault(name, a.copy()))
    Executor(found.graph).run(inputs[0], lambda name, a: after.setdefault(name, a.copy()))
    for blob, factors in found.factors.items():
        expected = before[blob] * factors.reshape(1, -1, *(1,) * (before[blob].ndim - 2))
        np.testing.assert_allclose(after[blob], expected, atol=1e-4 * np.abs(expected).max() + 1e-9)


def chain(*, activation="relu", rows=(1.0, 0.25, 4.0, 1.0)):
    """conv -> conv, both 1 x 1, whose taps between the two have known sizes."""
    first = models.conv("a", "data", 3, CHANNELS, activation=activation)
    last = models.conv("b", "a", CHANNELS, 2)
    weight = np.ones((CHANNELS, 3, 1, 1), np.float32) * np.reshape(rows, (-1, 1, 1, 1))
    bias = np.zeros(CHANNELS, np.float32)
    nodes = (
        replace(first, weights={"weight": weight.astype(np.float32), "bias": bias}),
        replace(last, weights=last.weights | {"weight": np.ones((2, CHANNELS, 1, 1), np.float32)}),
    )
    return Graph(nodes, (Blob("data", (1, 3, 5, 5)),), ("b",))


def test_without_data_ranges_become_equal_as_in_the_paper():
    """Of one pair of layers: f = sqrt(r_read / r_written), here of 1 over each row."""
    found = equalize(chain())
    np.testing.assert_allclose(found.factors["a"], [1, 2, 0.5, 1])
    written = np.abs(found.graph.nodes[0].weights["weight"]).reshape(CHANNELS, -1).max(1)
    read = np.abs(found.graph.nodes[1].weights["weight"]).reshape(2, CHANNELS).max(0)
    np.testing.assert_allclose(written, read)
    np.testing.assert_allclose(found.factors["b"], 1)


def test_activations_alone_fill_the_range_of_their_blob():
    """Noise of channel c: range**2 gain / f_c**2, least where each channel has the whole range."""
    graph = chain()
    inputs = [{"data": np.abs(models.random_inputs(graph, 1)[0]["data"])}]
    found = equalize(graph, gather(graph, inputs), what="activations")
    ratio = found.factors["a"] * [1.0, 0.25, 4.0, 1.0]
    np.testing.assert_allclose(ratio / ratio[0], 1, rtol=0.2)  # the maximum is a smooth one
    assert found.expected > 2
    assert set(found.groups) == {"a"}


def test_what_is_equal_already_stays():
    graph = chain(rows=(1, 1, 1, 1))
    inputs = [{"data": np.abs(models.random_inputs(graph, 1)[0]["data"])}]
    found = equalize(graph, gather(graph, inputs))
    ratio = found.factors["a"] / found.factors["a"][0]
    np.testing.assert_allclose(ratio, 1, rtol=0.03)
    assert found.expected < 0.1


def test_relu6_is_left_where_it_clips_and_kept_at_a_distance():
    graph = chain(activation="relu6")
    inputs = [{"data": np.full((1, 3, 5, 5), 0.6, np.float32)}]  # 1.8, 0.45, 6 (clipped), 1.8
    found = equalize(graph, gather(graph, inputs), what="activations")
    assert found.factors["a"][2] == 1
    highest = found.factors["a"] * [1.8, 0.45, 6, 1.8]
    assert (highest[[0, 1, 3]] <= 3.03).all()
    assert (found.factors["a"][[0, 1, 3]] > 1).all()
    assert_same_function(graph, found.graph, inputs)
    assert equalize(graph).groups == (), "nothing is known of what it clips"


def test_relu6_can_become_relu():
    graph = chain(activation="relu6")
    found = equalize(graph, relu6="replace")
    assert found.graph.nodes[0].attrs.activation == "relu"
    np.testing.assert_allclose(found.factors["a"], [1, 2, 0.5, 1])
    assert found.notes == ("1 ReLU6 became ReLU",)


@pytest.mark.parametrize("option", ["what", "weights", "relu6"])
def test_unknown_choices_are_named(option):
    with pytest.raises(UnsupportedError, match="none of these"):
        equalize(chain(), **{option: "none of these"})


def test_bounds_hold_for_dead_and_far_channels():
    graph = chain(rows=(1, 0, 1e-30, 1e6))
    inputs = [{"data": np.abs(models.random_inputs(graph, 1)[0]["data"])}]
    for stats in (None, gather(graph, inputs)):
        found = equalize(graph, stats)
        assert (found.factors["a"] <= 64).all()
        assert (found.factors["a"] >= 1 / 64).all()
        assert_same_function(graph, found.graph, inputs)


def test_depthwise_weights_take_up_both_sides():
    """Per-tensor depthwise rows of different sizes become nearly equal."""
    nodes = [models.conv("a", "data", 3, CHANNELS, activation="relu")]
    deep = models.conv("d", "a", CHANNELS, CHANNELS, kernel=3, group=CHANNELS, activation="relu")
    sizes = np.array([1, 1 / 8, 1, 1 / 64], np.float32).reshape(-1, 1, 1, 1)
    ones = np.ones((CHANNELS, 1, 3, 3), np.float32)
    nodes.append(replace(deep, weights=deep.weights | {"weight": ones * sizes}))
    nodes.append(models.conv("b", "d", CHANNELS, 2))
    graph = Graph(tuple(nodes), (Blob("data", (1, 3, 5, 5)),), ("b",))
    inputs = models.random_inputs(graph, 2)
    found = equalize(graph, gather(graph, inputs), weights="tensor")
    rows = np.abs(found.graph.nodes[1].weights["weight"]).reshape(CHANNELS, -1).max(1)
    assert rows.max() / rows.min() < 16 < sizes.max() / sizes.min()
    assert_same_function(graph, found.graph, inputs)


def test_layers_along_other_axes_and_constants_are_left_alone():
    """An inner product from axis 2, whose input has 3 channels of 5 x 5, and a constant blob."""
    rng = np.random.default_rng(0)
    weight = {"weight": rng.normal(0, 1, (2, 25)).astype(np.float32)}
    attrs = InnerProductAttrs(2, has_bias=False, axis=2)
    nodes = (
        models.conv("a", "data", 3, 3, activation="relu"),
        models.conv("c", "fixed", 3, 3),
        Node("sum", "add", ("a", "c"), ("sum",), BinaryAttrs()),
        Node("end", "inner_product", ("sum",), ("end",), attrs, weight),
    )
    constants = {"fixed": rng.normal(0, 1, (1, 3, 5, 5)).astype(np.float32)}
    graph = Graph(nodes, (Blob("data", (1, 3, 5, 5)),), ("end",), constants=constants)
    inputs = models.random_inputs(graph, 2)
    for stats in (None, gather(graph, inputs)):
        found = equalize(graph, stats)
        assert found.groups == ()
        assert_same_function(graph, found.graph, inputs)


# ------------------------------------------------------------------ ties and gains


def ties_of(*nodes, outputs=("end",)):
    return tie_channels(Graph(nodes, (Blob("data", (1, CHANNELS, 2, 2)),), outputs))


def test_inputs_outputs_and_what_is_not_homogeneous_are_fixed():
    ties = ties_of(
        models.conv("a", "data", CHANNELS, CHANNELS),
        models.simple("s", "sigmoid", "a"),
        models.conv("b", "s", CHANNELS, CHANNELS),
        models.conv("end", "b", CHANNELS, CHANNELS),
    )
    fixed = {blob: bool(ties.fixed[sets].all()) for blob, sets in ties.sets.items()}
    assert fixed == {"data": True, "a": True, "s": True, "b": False, "end": True}


def test_a_residual_add_ties_channel_by_channel():
    ties = ties_of(
        models.conv("a", "data", CHANNELS, CHANNELS),
        models.conv("b", "a", CHANNELS, CHANNELS),
        Node("sum", "add", ("a", "b"), ("sum",), BinaryAttrs()),
        models.conv("end", "sum", CHANNELS, 2),
    )
    np.testing.assert_array_equal(ties.sets["a"], ties.sets["b"])
    np.testing.assert_array_equal(ties.sets["a"], ties.sets["sum"])
    assert np.unique(ties.sets["sum"]).size == CHANNELS
    assert not ties.fixed[ties.sets["sum"]].any()


def test_a_concat_of_spatial_parts_ties_all_of_them():
    ties = ties_of(
        models.conv("a", "data", CHANNELS, CHANNELS),
        Node("tall", "concat", ("a", "a"), ("tall",), ConcatAttrs(2)),
        models.conv("end", "tall", CHANNELS, 2),
    )
    np.testing.assert_array_equal(ties.sets["a"], ties.sets["tall"])


def test_an_affine_layer_over_another_axis_is_fixed():
    weights = {"scale": np.ones(1, np.float32)}
    ties = ties_of(
        models.conv("a", "data", CHANNELS, CHANNELS),
        Node("s", "scale", ("a",), ("s",), ScaleAttrs(2, 1, has_bias=False), weights),
        models.conv("end", "s", CHANNELS, 2),
    )
    assert ties.fixed[ties.sets["a"]].all()


def test_gains_of_a_chain():
    """2 x 2 outputs; taps 1, 1 and 2, 0 of a 1 x 1 convolution read by them."""
    last = models.conv("end", "a", 2, 2)
    weight = np.array([[1, 2], [1, 0]], np.float32).reshape(2, 2, 1, 1)
    nodes = (
        models.conv("a", "data", 2, 2),
        replace(last, weights=last.weights | {"weight": weight}),
    )
    gains = blob_gains(Graph(nodes, (Blob("data", (1, 2, 2, 2)),), ("end",)), {})
    np.testing.assert_allclose(gains["end"].spread, [4, 4])
    np.testing.assert_allclose(gains["a"].spread, [8, 16])
    np.testing.assert_allclose(gains["a"].shift, [8, 16])


def test_an_average_quiets_what_is_independent():
    nodes = (
        models.conv("a", "data", 2, 2, activation="relu"),
        Node("end", "pooling", ("a",), ("end",), PoolingAttrs("average", 0, 0)),
    )
    gains = blob_gains(Graph(nodes, (Blob("data", (1, 2, 4, 4)),), ("end",)), {})
    np.testing.assert_allclose(gains["a"].spread, 1 / 16)
    np.testing.assert_allclose(gains["a"].shift, 1)
