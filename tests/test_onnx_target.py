"""Int8 for ONNX: which nodes, which scales and zero points, and what is refused."""

from dataclasses import replace

import models
import numpy as np
import pytest

from quantjit import onnx_target, quantizer
from quantjit.errors import UnsupportedError, UsageError
from quantjit.executor import Executor, count_macs, infer_shapes
from quantjit.graph import Blob, Graph, Node
from quantjit.ops.concat import ConcatAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.ops.pooling import PoolingAttrs
from quantjit.ops.shape import FlattenAttrs
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.passes.lower import lower
from quantjit.quant import QuantParams
from quantjit.quantizer import Settings
from quantjit.solvers import blob_solvers, weight_solvers
from quantjit.stats import BlobStats

SYMMETRIC_WEIGHTS = [name for name, solver in weight_solvers().items() if solver.symmetric]


def quantized(graph, settings, count=4):
    graph = fuse_activation(graph)
    channels = quantizer.observed_blobs(graph, infer_shapes(graph), settings)
    stats = {blob: BlobStats(size) for blob, size in channels.items()}
    executor = Executor(graph)
    for sample in models.random_inputs(graph, count):
        executor.run(
            sample, lambda blob, array: stats[blob].update(array) if blob in stats else None
        )
    table = quantizer.solve(graph, stats, settings)
    return quantizer.quantize(graph, table, settings), table


def sqnr(graph, int8, count=4):
    float_run, int8_run = Executor(lower(graph)), Executor(lower(int8))
    signal = noise = 0.0
    for sample in models.random_inputs(graph, count):
        expected, found = float_run.run(sample), int8_run.run(sample)
        for name in graph.outputs:
            signal += float((expected[name].astype(np.float64) ** 2).sum())
            noise += float(((expected[name] - found[name]).astype(np.float64) ** 2).sum())
    return 10 * np.log10(signal / noise)


def stats_of(values):
    seen = BlobStats(1)
    seen.update(np.asarray(values, np.float32).reshape(1, -1))
    return seen


# ------------------------------------------------------------------ nodes


def test_everything_runs_in_int8_and_uses_all_codes():
    graph = models.small_network()
    int8, table = quantized(graph, Settings(target="onnx"))
    assert table.float_nodes == {}
    assert int8.arithmetic == "onnx-uint8"
    assert sqnr(graph, int8) > 28
    for blob in ("relu1", "left_relu", "depthwise_relu", "sum_relu"):
        assert int8.scales[blob].zero_point == [-128], "a blob without negative values"
    int8, _ = quantized(graph, Settings(target="onnx", symmetric=True, activations="int8"))
    assert int8.arithmetic == "onnx"
    assert all((params.zero_point == 0).all() for params in int8.scales.values())
    assert sqnr(graph, int8) > 22


@pytest.mark.jit
@pytest.mark.parametrize("blob_method", blob_solvers())
@pytest.mark.parametrize("weight_method", SYMMETRIC_WEIGHTS)
@pytest.mark.parametrize("merge", ["mix", "tensor"])
def test_every_combination_of_methods_runs(blob_method, weight_method, merge):
    graph = models.small_network(size=12)
    int8, _ = quantized(graph, Settings(blob_method, weight_method, merge, target="onnx"))
    assert sqnr(graph, int8) > 8


def test_scales_are_shared_where_codes_are_moved_or_joined():
    int8, _ = quantized(models.small_network(), Settings(target="onnx"))
    scales = int8.scales
    assert scales["pool1"] == scales["relu1"]
    assert scales["sum"] == scales["sum_relu"]
    assert scales["left_relu"] == scales["right_relu"] == scales["join"]


def test_a_part_that_others_read_keeps_its_scale():
    graph = models.small_network()
    extra = models.conv("extra", "left_relu", 4, 4)
    graph = replace(graph, nodes=(*graph.nodes, extra), outputs=(*graph.outputs, "extra"))
    scales = quantized(graph, Settings(target="onnx"))[0].scales
    assert scales["left_relu"] != scales["join"]
    assert scales["right_relu"] == scales["join"]


def chain(*nodes, outputs, size=6):
    return Graph(tuple(nodes), (Blob("data", (1, 3, size, size)),), outputs)


def test_the_pooling_that_makes_the_scores_stays_float():
    pool = Node("pool", "pooling", ("a",), ("pool",), PoolingAttrs("average", 0, 0))
    flat = Node("flat", "flatten", ("pool",), ("flat",), FlattenAttrs(1))
    graph = chain(models.conv("a", "data", 3, 4), pool, flat, outputs=("flat",))
    reasons = quantizer.choose_nodes(graph, Settings(target="onnx"))
    assert "resolution" in reasons["pool"]
    assert reasons["flat"] == "its input is float"
    inside = models.conv("b", "pool", 4, 4)
    graph = chain(models.conv("a", "data", 3, 4), pool, inside, outputs=("b",))
    assert quantizer.choose_nodes(graph, Settings(target="onnx"))["pool"] == ""


def test_nodes_without_an_int8_form_say_why():
    nodes = (
        models.conv("a", "data", 3, 3, activation="swish"),
        models.simple("relu", "relu", "a"),
        models.conv("b", "data", 3, 3),
        models.simple("soft", "sigmoid", "b"),
        Node("join", "concat", ("relu", "soft"), ("join",), ConcatAttrs(1)),
        Node("wide", "add", ("b", "mean"), ("wide",), BinaryAttrs()),
        Node("shift", "add", ("b",), ("shift",), BinaryAttrs(1), {"constant": np.float32([1])}),
        Node("three", "add", ("b", "b", "b"), ("three",), BinaryAttrs()),
        Node("fixed", "add", ("b", "bias"), ("fixed",), BinaryAttrs()),
    )
    mean = Node("mean", "pooling", ("b",), ("mean",), PoolingAttrs("max", 0, 0))
    graph = chain(*nodes[:5], mean, *nodes[5:], outputs=("join", "wide", "shift", "three", "fixed"))
    graph = replace(graph, constants={"bias": np.ones((1, 3, 6, 6), np.float32)})
    reasons = quantizer.choose_nodes(graph, Settings(target="onnx"))
    expected = {
        "a": "swish",
        "relu": "its input is float",
        "b": "",
        "soft": "no int8 form",
        "join": "its inputs are float",
        "mean": "",
        "wide": "different shapes",
        "shift": "adds a constant",
        "three": "more than two",
        "fixed": "reads a constant blob",
    }
    for name, words in expected.items():
        assert words in reasons[name], name
        assert bool(words) == bool(reasons[name]), name
    macs = count_macs(graph, infer_shapes(graph))
    stuck = quantizer.stuck_nodes(graph, macs, Settings(target="onnx"))
    assert [node.name for node in stuck] == ["a"]
    meant = Settings(target="onnx", exclude=("a",))
    assert quantizer.stuck_nodes(graph, macs, meant) == []


@pytest.mark.parametrize("target", quantizer.TARGETS)
def test_nodes_are_excluded_by_name_op_or_pattern(target):
    graph = fuse_activation(models.small_network())
    settings = Settings(target=target, exclude=("conv1", "inner_product", "*ight", "left"))
    reasons = quantizer.choose_nodes(graph, settings)
    for name, pattern in {"conv1": "conv1", "scores": "inner_product", "right": "*ight"}.items():
        assert reasons[name] == f"excluded by {pattern}"
    assert reasons["depthwise"] == ""
    with pytest.raises(UnsupportedError, match="did you mean 'convolution'"):
        quantizer.choose_nodes(graph, Settings(target=target, exclude=("convolutoin",)))


# ------------------------------------------------------------------ scales


def test_a_range_with_negative_values_is_spread_over_all_codes():
    params = onnx_target.blob_scale(
        stats_of([-1, 0.5, 3]), blob_solvers()["minmax"], symmetric=False
    )
    np.testing.assert_allclose(params.scale, 4 / 255, rtol=1e-6)
    assert params.zero_point == [-64]  # -128 + 1 / scale
    symmetric = onnx_target.blob_scale(
        stats_of([-1, 0.5, 3]), blob_solvers()["minmax"], symmetric=True
    )
    np.testing.assert_allclose(symmetric.scale, 3 / 127, rtol=1e-6)
    assert symmetric.zero_point == [0]


@pytest.mark.parametrize("highest", [6.0, 1.0, 0.1, 3.3])
def test_the_codes_of_a_one_sided_blob_end_at_its_range(highest):
    params = onnx_target.blob_scale(
        stats_of([0, highest]), blob_solvers()["minmax"], symmetric=False
    )
    assert params.zero_point == [-128]
    end = float(params.scale[0]) * 255
    assert end <= np.float32(highest)
    assert end > np.float32(highest) * (1 - 1e-6)


def test_negative_blobs_end_at_zero_and_dead_ones_have_a_step():
    params = onnx_target.blob_scale(stats_of([-2, -1]), blob_solvers()["minmax"], symmetric=False)
    assert params.zero_point == [127]
    dead = onnx_target.blob_scale(stats_of([0, 0]), blob_solvers()["mse"], symmetric=False)
    assert dead == QuantParams(1.0)


def test_mse_knows_that_one_sided_blobs_have_twice_the_codes():
    """Half-normal values: with 255 steps the best threshold lies further out than with 127."""
    values = np.abs(np.random.default_rng(0).normal(0, 1, 200_000)).astype(np.float32)
    solver = blob_solvers()["mse"]
    one_sided = onnx_target.blob_scale(stats_of(values), solver, symmetric=False)
    both = onnx_target.blob_scale(stats_of(values), solver, symmetric=True)
    assert one_sided.scale[0] * 255 > both.scale[0] * 127

    def error(scale, codes):
        quantized = np.clip(np.rint(values / scale), 0, codes) * scale
        return float(((quantized - values) ** 2).mean())

    best = min(error(t / 255, 255) for t in np.linspace(2, values.max(), 60))
    assert error(one_sided.scale[0], 255) <= best * 1.02


@pytest.mark.jit
def test_kl_searches_with_all_codes_of_a_one_sided_blob():
    values = np.random.default_rng(1).exponential(1, 100_000).astype(np.float32)
    solver, seen = blob_solvers()["kl"], stats_of(values)
    for symmetric, codes in ((False, 255), (True, 127)):
        params = onnx_target.blob_scale(seen, solver, symmetric=symmetric)
        expected = solver.threshold(seen, codes)[0]
        assert 4 < expected < values.max()
        np.testing.assert_allclose(params.scale[0] * codes, expected, rtol=1e-6)
    assert solver.threshold(seen, 255)[0] > solver.threshold(seen, 127)[0]


@pytest.mark.parametrize("method", ["aciq-gauss", "aciq-laplace"])
def test_a_method_for_127_codes_keeps_its_step_and_clips_less(method):
    values = np.random.default_rng(1).exponential(1, 100_000).astype(np.float32)
    solver, seen = blob_solvers()[method], stats_of(values)
    step = float(solver.solve(seen).scale[0])
    params = onnx_target.blob_scale(seen, solver, symmetric=False)
    expected = min(step * 255, values.max()) / 255
    np.testing.assert_allclose(params.scale, expected, rtol=1e-6)
    assert onnx_target.blob_scale(seen, solver, symmetric=True) == QuantParams(step)


@pytest.mark.jit
def test_the_percentile_of_a_one_sided_blob_clips_less():
    values = np.linspace(0, 1, 1_000_001, dtype=np.float32)
    solver = blob_solvers()["percentile"]
    for symmetric, codes, share in ((False, 255, 0.99999), (True, 127, 0.9999)):
        params = onnx_target.blob_scale(stats_of(values), solver, symmetric=symmetric)
        np.testing.assert_allclose(params.scale * codes, share, atol=2e-6)


# ------------------------------------------------------------------ what is refused


def test_settings_that_onnx_does_not_have():
    with pytest.raises(UsageError, match="mix: a scale per channel for weights only"):
        Settings(merge="channel", target="onnx")
    with pytest.raises(UsageError, match="writes no ONNX"):
        Settings(target="onnx", compat=True)
    with pytest.raises(UsageError, match="use minmax, admm or mse"):
        Settings(weight_method="asymmetric", target="onnx")
    with pytest.raises(UnsupportedError, match="target"):
        Settings(target="tflite")
    with pytest.raises(UnsupportedError, match="activations"):
        Settings(activations="int4")


def test_the_settings_are_said_in_words():
    assert str(Settings(target="onnx")) == "blobs mse, weights mse, mix, onnx"
    words = str(Settings(target="onnx", symmetric=True, activations="int8"))
    assert words.endswith("onnx, symmetric, int8 activations")
