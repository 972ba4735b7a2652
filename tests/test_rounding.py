"""Moments of networks, rounding by them and biases: against sums in NumPy and the float network."""

from dataclasses import replace

import models
import numpy as np
import oracle
import pytest

from quantjit import moments, quantizer, rounding
from quantjit.calibration import calibrate
from quantjit.dataset import ArraySamples
from quantjit.executor import Executor, infer_shapes
from quantjit.graph import Blob, Graph, Node
from quantjit.ops.inner_product import InnerProductAttrs
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.quantizer import Settings

SETTINGS = [
    Settings("mse", "minmax", "mix"),
    Settings("minmax", "minmax", "channel"),
    Settings("mse", "minmax", "tensor"),
    Settings("asymmetric", "asymmetric", "mix"),
    Settings("mse", "minmax", "mix", target="onnx"),
]


def quantized(settings, graph=None, inputs=6):
    """A small network, the same as int8, and its inputs."""
    graph = fuse_activation(graph or models.small_network(4))
    samples = ArraySamples(models.random_inputs(graph, inputs))
    stats = calibrate(graph, samples, settings, jobs=1).stats
    table = quantizer.solve(graph, stats, settings)
    return graph, quantizer.quantize(graph, table, settings), samples


def gathered(graph, int8, samples, **options):
    found = {}
    moments.gather(graph, int8, samples, found.__setitem__, **options)
    return found


def blobs_of(graph, samples):
    """Every blob of the float network, for each input."""
    executor, seen = Executor(graph), []
    for index in range(len(samples)):
        blobs = dict(samples.load(index)[0].arrays)
        executor.run(blobs, lambda name, array, blobs=blobs: blobs.__setitem__(name, array.copy()))
        seen.append(blobs)
    return seen


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_moments_are_those_of_the_codes(settings):
    graph, int8, samples = quantized(settings, inputs=3)
    shapes, nodes = infer_shapes(graph), {node.name: node for node in graph.nodes}
    seen = blobs_of(graph, samples)
    lowest = -128 if int8.is_onnx else -127
    for name, found in gathered(graph, int8, samples).items():
        node = nodes[name]
        source = int8.scales[node.inputs[0]]
        rows, reals = [], []
        for blobs in seen:
            image = blobs[node.inputs[0]][0]
            image = image.reshape(-1, 1, 1) if node.op == "inner_product" else image
            scale = source.scale.astype(np.float64).reshape(-1, 1, 1)
            zero = source.zero_point.astype(np.float64).reshape(-1, 1, 1)
            real = image.astype(np.float64) / scale
            code = np.clip(np.rint(real), lowest - zero, 127.0 - zero)
            if node.op == "convolution":
                a = node.attrs
                facts = (
                    (a.kernel_h, a.kernel_w), (a.stride_h, a.stride_w), (a.pads[0], a.pads[2]),
                    (a.dilation_h, a.dilation_w), shapes[node.outputs[0]][2:],
                )  # fmt: skip
            else:
                facts = (1, 1), (1, 1), (0, 0), (1, 1), (1, 1)
            rows.append(oracle.patches(code, *facts))
            reals.append(oracle.patches(real, *facts))
        codes, real = np.hstack(rows), np.hstack(reals)
        groups = node.attrs.group if node.op == "convolution" else 1
        assert found.count == codes.shape[1]
        np.testing.assert_array_equal(found.sums.ravel(), codes.sum(axis=1))
        each = codes.reshape(groups, -1, codes.shape[1])
        np.testing.assert_array_equal(found.products, np.tril(each @ each.transpose(0, 2, 1)))
        np.testing.assert_allclose(found.real_mean().ravel(), real.mean(axis=1), atol=1e-4)
        covariance = found.second(is_centred=True)
        diagonal = np.einsum("gii->gi", covariance).ravel()
        np.testing.assert_allclose(diagonal, codes.var(axis=1), atol=1e-9)


def test_neither_threads_nor_memory_are_seen(monkeypatch):
    graph, int8, samples = quantized(SETTINGS[0])
    alone = gathered(graph, int8, samples, jobs=1)
    for options in ({"jobs": 1}, {"jobs": 3}):
        monkeypatch.setattr(moments, "_BUDGET", 8 * 36 * 36)
        found = gathered(graph, int8, samples, **options)
        assert list(found) == list(alone)
        for name, each in alone.items():
            assert each.count == found[name].count
            for field in ("sums", "products", "rest"):
                np.testing.assert_array_equal(getattr(each, field), getattr(found[name], field))
    monkeypatch.setattr(moments, "_BUDGET", 8 * 10 * 10)
    kept = moments.rounded_nodes(int8)
    assert "conv1" not in kept  # too wide
    assert "depthwise" in kept


def test_rows_longer_than_a_block(monkeypatch):
    graph, int8, samples = quantized(SETTINGS[0], inputs=2)
    whole = gathered(graph, int8, samples)
    monkeypatch.setattr(moments.kernels, "MOST_PIXELS", 3)
    for name, each in gathered(graph, int8, samples).items():
        np.testing.assert_array_equal(each.products, whole[name].products)
        np.testing.assert_array_equal(each.sums, whole[name].sums)
        assert each.count == whole[name].count


def test_a_product_over_several_rows():
    rng = np.random.default_rng(3)
    node = Node(
        "rows", "inner_product", ("data",), ("rows",), InnerProductAttrs(4, axis=2),
        {"weight": rng.normal(0, 1, (4, 5)).astype(np.float32), "bias": np.zeros(4, np.float32)},
    )  # fmt: skip
    graph = Graph((node,), (Blob("data", (1, 3, 5)),), ("rows",))
    settings = Settings("minmax", "minmax", "mix")
    graph, int8, samples = quantized(settings, graph, inputs=2)
    found = gathered(graph, int8, samples)["rows"]
    data = [samples.load(index)[0].arrays["data"][0] for index in range(2)]
    codes = np.rint(np.vstack(data).astype(np.float64) / int8.scales["data"].scale[0])
    assert found.count == 6
    np.testing.assert_array_equal(found.sums[0], codes.sum(axis=0))
    np.testing.assert_array_equal(found.products[0], np.tril(codes.T @ codes))


def rounded(graph, int8, samples, **options):
    nodes = {node.name: node for node in graph.nodes}
    codes = {node.name: node for node in int8.nodes}
    changed = {
        name: rounding.round_node(
            nodes[name], codes[name], int8.scales[codes[name].inputs[0]], seen, **options
        )
        for name, seen in gathered(graph, int8, samples).items()
    }
    return rounding.with_nodes(int8, changed)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_each_layer_errs_less_on_what_it_has_seen(settings):
    graph, int8, samples = quantized(settings)
    better = {node.name: node for node in rounded(graph, int8, samples).nodes}
    before = {node.name: node for node in int8.nodes}
    nodes = {node.name: node for node in graph.nodes}
    improved = 0
    for name, seen in gathered(graph, int8, samples).items():
        source = int8.scales[before[name].inputs[0]]
        wanted = moments.folded_weights(nodes[name], source)
        second = seen.second(is_centred=True)
        errors = []
        for node in (before[name], better[name]):
            zero = node.quant.weight_zero_point.astype(np.int64).reshape(-1, 1)
            codes = node.weights["weight"].reshape(len(wanted), -1).astype(np.int64) - zero
            steps = np.broadcast_to(node.quant.weight_scale.astype(np.float64), len(wanted))
            groups = len(second)
            parts = [array.reshape(groups, -1, *array.shape[1:]) for array in (wanted, codes)]
            each = [
                oracle.output_error(
                    parts[0][g], steps.reshape(groups, -1)[g], parts[1][g], second[g]
                )
                for g in range(groups)
            ]
            errors.append(np.sum(each))
        assert errors[1] <= errors[0] * (1 + 1e-9)
        improved += errors[1] < 0.9 * errors[0]
        assert better[name].quant == before[name].quant
    assert improved >= 3


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_biases_take_the_mean_error_away(settings):
    """One layer, so that nothing comes from those before it: its mean output is the float one."""
    full = fuse_activation(models.small_network(4))
    layer = replace(full.nodes[0], attrs=replace(full.nodes[0].attrs, activation="none"))
    graph = Graph((layer,), full.inputs, layer.outputs)
    graph, int8, samples = quantized(settings, graph)
    expected = np.mean(
        [blobs[layer.outputs[0]] for blobs in blobs_of(graph, samples)], (0, 1, 3, 4)
    )
    source, seen = int8.scales["data"], gathered(graph, int8, samples)["conv1"]
    found = rounded(graph, int8, samples, rounds=False).nodes[0]
    assert found.weights["weight"].tobytes() == int8.nodes[0].weights["weight"].tobytes()
    zero = found.quant.weight_zero_point.astype(np.int64).reshape(-1, 1)
    codes = found.weights["weight"].reshape(4, -1).astype(np.int64) - zero
    step = np.broadcast_to(found.quant.weight_scale.astype(np.float64), 4)
    mean = (codes @ seen.mean()[0] + found.weights["bias"]) * step
    np.testing.assert_allclose(mean, expected, atol=float(step.max()))
    assert source.scale.size in (1, 3)


def test_a_node_without_a_bias_keeps_none():
    full = fuse_activation(models.small_network(4))
    layer = full.nodes[0]
    bare = replace(
        layer,
        attrs=replace(layer.attrs, has_bias=False),
        weights={"weight": layer.weights["weight"]},
    )
    graph = Graph((bare,), full.inputs, layer.outputs)
    graph, int8, samples = quantized(SETTINGS[0], graph)
    assert set(rounded(graph, int8, samples).nodes[0].weights) == {"weight"}
