"""Which nodes run in int8, how scales are shared, how weights and biases become codes."""

from dataclasses import replace

import models
import numpy as np
import pytest

from quantjit import quantizer
from quantjit.errors import CalibrationError, UnsupportedError
from quantjit.executor import Executor, infer_shapes
from quantjit.graph import Blob, Graph, Node
from quantjit.ops.concat import ConcatAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.ops.pooling import PoolingAttrs
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.passes.lower import lower
from quantjit.quant import QuantParams
from quantjit.quantizer import Settings
from quantjit.solvers import blob_solvers, weight_solvers
from quantjit.stats import BlobStats, ReferenceStats

MERGES = quantizer.MERGES


def gather(graph, settings, inputs):
    channels = quantizer.observed_blobs(graph, infer_shapes(graph), settings)
    executor = Executor(graph)
    if settings.compat:
        stats = {blob: ReferenceStats(count) for blob, count in channels.items()}
        for step in ("update_range", "update_histogram"):
            for sample in inputs:
                executor.run(
                    sample,
                    lambda blob, array, step=step: (
                        getattr(stats[blob], step)(array) if blob in stats else None
                    ),
                )
            if step == "update_range":
                for seen in stats.values():
                    seen.start_histogram()
        return stats
    stats = {blob: BlobStats(count) for blob, count in channels.items()}
    for sample in inputs:
        executor.run(
            sample, lambda blob, array: stats[blob].update(array) if blob in stats else None
        )
    return stats


def quantized(graph, settings, count=4):
    """The int8 form of a graph and its table."""
    graph = fuse_activation(graph)
    stats = gather(graph, settings, models.random_inputs(graph, count))
    table = quantizer.solve(graph, stats, settings)
    return quantizer.quantize(graph, table, settings), table


def sqnr(graph, int8, count=4):
    """dB at the outputs, on the inputs that were calibrated on."""
    float_run, int8_run = Executor(lower(graph)), Executor(lower(int8))
    signal = noise = 0.0
    for sample in models.random_inputs(graph, count):
        expected = float_run.run(sample)
        found = int8_run.run(sample)
        for name in graph.outputs:
            signal += float((expected[name].astype(np.float64) ** 2).sum())
            noise += float(((expected[name] - found[name]).astype(np.float64) ** 2).sum())
    return 10 * np.log10(signal / noise)


@pytest.mark.parametrize("merge", MERGES)
def test_int8_is_close_to_float(merge):
    graph = models.small_network()
    int8, table = quantized(graph, Settings("minmax", "minmax", merge))
    assert sqnr(graph, int8) > 22
    assert table.float_nodes == {"mean": "TNN's int8 average pooling truncates"}
    ops = {node.name: node.quant is not None for node in int8.nodes}
    assert ops["pool1"]
    assert ops["sum_relu"]
    assert not ops["mean"]


@pytest.mark.jit
@pytest.mark.parametrize("blob_method", blob_solvers())
@pytest.mark.parametrize("weight_method", weight_solvers())
@pytest.mark.parametrize("merge", MERGES)
def test_every_combination_of_methods_runs(blob_method, weight_method, merge):
    graph = models.small_network(size=12)
    int8, _ = quantized(graph, Settings(blob_method, weight_method, merge))
    assert sqnr(graph, int8) > 8


@pytest.mark.jit
@pytest.mark.parametrize(
    "blob_method", ["minmax", "kl", "asymmetric", "aciq-gauss", "aciq-laplace"]
)
@pytest.mark.parametrize("weight_method", ["minmax", "admm", "asymmetric"])
@pytest.mark.parametrize("merge", MERGES)
def test_every_combination_of_the_reference_runs(blob_method, weight_method, merge):
    graph = models.small_network(size=12)
    int8, _ = quantized(graph, Settings(blob_method, weight_method, merge, compat=True))
    assert int8.is_quantized
    for params in int8.scales.values():
        assert np.isfinite(params.scale).all()


def test_pooling_and_relu_share_scales_in_both_modes():
    graph = models.small_network()
    for compat in (False, True):
        int8, _ = quantized(graph, Settings(merge="mix", compat=compat))
        assert int8.scales["relu1"] == int8.scales["pool1"]
        assert int8.scales["sum"] == int8.scales["sum_relu"]


def test_per_channel_concat_has_the_scales_of_its_parts():
    int8, _ = quantized(models.small_network(), Settings(merge="channel"))
    parts = [int8.scales["left_relu"].scale, int8.scales["right_relu"].scale]
    np.testing.assert_array_equal(int8.scales["join"].scale, np.concatenate(parts))


def test_per_channel_concat_along_another_axis_stays_float():
    nodes = (
        models.conv("a", "data", 3, 3),
        models.conv("b", "data", 3, 3),
        Node("join", "concat", ("a", "b"), ("join",), ConcatAttrs(2)),
    )
    graph = Graph(nodes, (Blob("data", (1, 3, 4, 4)),), ("join",))
    for merge, is_int8 in (("channel", False), ("mix", True)):
        int8, _ = quantized(graph, Settings(merge=merge))
        assert (int8.nodes[2].quant is not None) == is_int8
        assert sqnr(graph, int8) > 25


def test_inner_products_and_what_is_tied_to_them_are_per_tensor():
    graph = models.small_network()
    nodes = list(graph.nodes)
    nodes[-2] = replace(nodes[-2], attrs=PoolingAttrs("max", 0, 0))
    graph = fuse_activation(graph.with_nodes(tuple(nodes)))
    channels = quantizer.observed_blobs(graph, infer_shapes(graph), Settings(merge="channel"))
    assert channels["scores"] == channels["mean"] == channels["sum_relu"] == channels["sum"] == 1
    assert channels["join"] == 1, "the add ties its operands, the concat its parts"
    assert channels["depthwise_relu"] == 8
    int8, _ = quantized(graph, Settings(merge="channel"))
    assert sqnr(graph, int8) > 20


def test_layers_can_be_kept_float():
    graph = models.small_network()
    int8, table = quantized(graph, Settings(float_nodes=("depthwise", "conv1")))
    kinds = {node.name: node.quant is not None for node in int8.nodes}
    assert not kinds["depthwise"]
    assert not kinds["conv1"]
    assert not kinds["pool1"], "pooling follows its producer"
    assert table.float_nodes["depthwise"] == "asked for"
    assert sqnr(graph, int8) > 22
    with pytest.raises(UnsupportedError, match="did you mean 'depthwise'"):
        quantized(graph, Settings(float_nodes=("depthwize",)))


def test_an_add_that_tnn_would_lose_stays_float():
    nodes = (
        models.conv("a", "data", 3, 3),
        models.conv("b", "a", 3, 3),
        models.simple("b6", "relu6", "b"),
        Node("sum", "add", ("b6", "a"), ("sum",), BinaryAttrs()),
    )
    graph = Graph(nodes, (Blob("data", (1, 3, 4, 4)),), ("sum",))
    int8, table = quantized(graph, Settings())
    assert "drops the add" in table.float_nodes["sum"]
    assert sqnr(graph, int8) > 25


def test_dead_channels_keep_their_bias():
    first = models.conv("a", "data", 3, 4, activation="relu")
    bias = np.float32([0.5, -100, 0.25, -100])
    first = replace(first, weights={**first.weights, "bias": bias})
    second = models.conv("d", "a", 4, 4, kernel=3, group=4)
    second = replace(second, weights={**second.weights, "bias": np.float32([1, 2, 3, 4])})
    graph = Graph((first, second), (Blob("data", (1, 3, 4, 4)),), ("d",))
    for merge in MERGES:
        int8, table = quantized(graph, Settings(merge=merge))
        if merge == "channel":
            assert table.dead == {"a": 2}
        found = Executor(lower(int8)).run(models.random_inputs(graph, 1, seed=1)[0])["d"]
        np.testing.assert_allclose(found[0, 1], 2, atol=0.1)
        np.testing.assert_allclose(found[0, 3], 4, atol=0.1)


def test_rows_without_weights_keep_their_bias():
    node = models.conv("a", "data", 3, 2)
    weight = node.weights["weight"].copy()
    weight[1] = 0
    node = replace(node, weights={"weight": weight, "bias": np.float32([0.5, -0.75])})
    graph = Graph((node,), (Blob("data", (1, 3, 4, 4)),), ("a",))
    int8, _ = quantized(graph, Settings())
    found = Executor(lower(int8)).run(models.random_inputs(graph, 1)[0])["a"]
    np.testing.assert_allclose(found[0, 1], -0.75, rtol=0.02)


def test_a_bias_beyond_int32_makes_the_weight_scale_larger():
    node = models.conv("a", "data", 3, 2)
    tiny = node.weights["weight"] * np.float32([1, 1e-9]).reshape(2, 1, 1, 1)
    node = replace(node, weights={"weight": tiny, "bias": np.float32([0, 50])})
    graph = Graph((node,), (Blob("data", (1, 3, 4, 4)),), ("a",))
    int8, _ = quantized(graph, Settings(merge="channel"))
    bias = int8.nodes[0].weights["bias"].astype(np.float64)
    np.testing.assert_allclose(bias * int8.nodes[0].quant.weight_scale, [0, 50], atol=1e-6)
    assert np.abs(bias).max() < 2**31 - 2**23


def test_the_bias_is_rounded_and_in_compat_mode_truncated():
    node = models.conv("a", "data", 3, 2)
    graph = Graph((node,), (Blob("data", (1, 3, 4, 4)),), ("a",))
    for compat, convert in ((False, np.rint), (True, np.trunc)):
        int8, _ = quantized(graph, Settings(merge="mix", compat=compat))
        made = int8.nodes[0]
        steps = node.weights["bias"] / made.quant.weight_scale
        np.testing.assert_array_equal(made.weights["bias"], convert(steps).astype(np.int32))


def test_folded_weights_times_scale_are_the_weights():
    """codes * weight_scale is weight * input step, for dense and depthwise, all granularities."""
    graph = fuse_activation(models.small_network())
    original = {node.name: node for node in graph.nodes}
    for merge in MERGES:
        int8, _ = quantized(graph, Settings(merge=merge))
        for node in int8.nodes:
            if node.op != "convolution":
                continue
            steps = int8.scales[node.inputs[0]].scale
            weight = original[node.name].weights["weight"]
            group = node.attrs.group
            per_input = np.broadcast_to(steps, node.attrs.in_channels).reshape(group, 1, -1, 1, 1)
            rows = weight.reshape(group, -1, *weight.shape[1:])
            folded = (rows * per_input).reshape(weight.shape)
            scale = np.broadcast_to(node.quant.weight_scale, weight.shape[0]).reshape(-1, 1, 1, 1)
            assert np.abs(node.weights["weight"] * scale - folded).max() <= scale.max() * 0.501


def test_blobs_without_data_are_named():
    graph = fuse_activation(models.small_network())
    settings = Settings()
    channels = quantizer.observed_blobs(graph, infer_shapes(graph), settings)
    with pytest.raises(CalibrationError, match="no finite value"):
        quantizer.solve(graph, {blob: BlobStats(n) for blob, n in channels.items()}, settings)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UnsupportedError, match="blob method 'minmx'; did you mean 'minmax'"):
        Settings("minmx")
    with pytest.raises(UnsupportedError, match="weight method"):
        Settings("minmax", "kl")
    with pytest.raises(UnsupportedError, match="merge type"):
        Settings(merge="3")


def test_quant_params_refuse_nonsense():
    for scale in (-1.0, np.nan, np.inf, [[1.0]]):
        with pytest.raises(ValueError, match="finite vector"):
            QuantParams(scale)
