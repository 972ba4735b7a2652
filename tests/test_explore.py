"""Tables and pictures for notebooks, and what a changed scale does."""

import sys

import models
import numpy as np
import polars as pl
import pytest

import quantjit
from quantjit import explore, quantizer, rescale
from quantjit.errors import UnsupportedError, UsageError
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.quant import QuantParams

pytestmark = pytest.mark.jit

SETTINGS = {
    "mix": quantjit.Settings(),
    "channel": quantjit.Settings(merge="channel"),
    "onnx": quantjit.Settings(target="onnx"),
    "asymmetric": quantjit.Settings(blob_method="asymmetric"),
}


@pytest.fixture(scope="module")
def graph():
    return fuse_activation(models.small_network(8))


@pytest.fixture(scope="module")
def images(graph):
    return np.concatenate([each["data"] for each in models.random_inputs(graph, 40)])


@pytest.fixture(scope="module")
def results(graph, images):
    return {
        name: quantjit.quantize_model(graph, images, settings=settings)
        for name, settings in SETTINGS.items()
    }


def test_every_table_in_a_line(results):
    result = results["channel"]
    assert explore.layers(result)["node"].to_list() == [node.name for node in result.graph.nodes]
    blobs = explore.blobs(result)
    assert blobs["blob"].to_list() == list(result.calibration.stats)
    stats = result.calibration.stats
    for row in blobs.iter_rows(named=True):
        assert row["scales"] == stats[row["blob"]].channels
        assert row["maximum"] == pytest.approx(stats[row["blob"]].maximum.max())
    conv1 = explore.channels(result, "conv1")  # the layer's name: its output is called relu1
    assert conv1["blob"].unique().to_list() == ["relu1"]
    assert conv1.filter(seen_in="calibration")["channel"].to_list() == [0, 1, 2, 3]
    assert len(explore.channels(result)) > len(conv1)
    names = explore.thresholds(result, "relu1")["method"].to_list()
    assert {"mse", "kl", "minmax", "in the network"} <= set(names)
    assert set(explore.weights(result)["node"]) == {
        node.name for node in result.graph.nodes if node.weights
    }
    bars = explore.histogram(result, "conv1", bins=10)
    assert len(bars) == 10
    seen = stats["relu1"]
    assert bars["count"].sum() == pytest.approx(int((seen.count - seen.zero_count).sum()))


def test_searches_are_tables_too(graph, images, results):
    found = quantjit.analyze(graph, results["mix"].quantized, images[:2])
    frame = explore.sensitivity(found)
    assert frame["node"].to_list() == [node.name for node in found.nodes]
    assert frame["alone_db"].is_sorted()
    tuned = quantjit.tune(graph, images, passes=())
    assert len(explore.candidates(tuned)) == len(tuned.candidates)


def test_what_is_not_there_is_said(results):
    result = results["mix"]
    with pytest.raises(UnsupportedError, match="unknown blob 'relu_1'; did you mean 'relu1'"):
        explore.channels(result, "relu_1")
    with pytest.raises(UnsupportedError, match="unknown layer with weights 'pool1'"):
        explore.weights(result, "pool1")
    with pytest.raises(UnsupportedError, match="unknown blob with a scale 'nothing'"):
        explore.sweep(result, [], "nothing")


@pytest.mark.parametrize("name", SETTINGS)
def test_the_present_threshold_changes_nothing(graph, results, name):
    result, settings = results[name], SETTINGS[name]
    for blob, params in result.table.scales.items():
        reach = float(rescale.thresholds_of(params, settings).max())
        try:
            table = rescale.with_threshold(graph, result.table, settings, blob, reach)
        except UsageError as error:
            assert "follows from those of" in str(error)  # noqa: PT017 - a concat of channels
            assert name == "channel"
            continue
        for other, found in table.scales.items():
            np.testing.assert_allclose(found.scale, result.table.scales[other].scale, rtol=1e-6)
            np.testing.assert_array_equal(found.zero_point, result.table.scales[other].zero_point)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_changed_scale_takes_along_what_shares_it_and_nothing_else(graph, results, name, factor):
    """The runtime copies codes through pooling, so that both its blobs must agree."""
    result, settings = results[name], SETTINGS[name]
    before = result.table.scales
    reach = float(rescale.thresholds_of(before["relu1"], settings).max())
    table = rescale.with_threshold(graph, result.table, settings, "relu1", factor * reach)
    changed = {blob for blob in before if table.scales[blob] != before[blob]}
    assert changed == {"relu1", "pool1"}
    assert table.scales["relu1"] == table.scales["pool1"]
    np.testing.assert_allclose(
        table.scales["relu1"].scale, factor * before["relu1"].scale.astype(float), rtol=1e-6
    )
    reasons = {node.name: table.float_nodes.get(node.name, "") for node in graph.nodes}
    assert quantizer.settle(graph, reasons, table.scales, settings) == dict(table.scales)


def test_one_channel_only(graph, results):
    result, settings = results["channel"], SETTINGS["channel"]
    before = result.table.scales["relu1"]
    wanted = 3 * float(rescale.thresholds_of(before, settings)[2])
    table = rescale.with_threshold(graph, result.table, settings, "relu1", wanted, channel=2)
    found = table.scales["relu1"].scale / before.scale
    np.testing.assert_allclose(found, [1, 1, 3, 1], rtol=1e-6)
    assert table.scales["pool1"] == table.scales["relu1"]
    left = rescale.with_threshold(graph, result.table, settings, "left_relu", 9.0, channel=1)
    np.testing.assert_array_equal(
        left.scales["join"].scale[:4], left.scales["left_relu"].scale
    )  # the concat follows its parts


def test_thresholds_that_cannot_be(graph, results):
    table, settings = results["mix"].table, SETTINGS["mix"]
    for threshold in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(UsageError, match="must be a number above 0"):
            rescale.with_threshold(graph, table, settings, "relu1", threshold)
    with pytest.raises(UsageError, match="has 1 scales, there is none 1"):
        rescale.with_threshold(graph, table, settings, "relu1", 1.0, channel=1)
    with pytest.raises(UnsupportedError, match="unknown blob with a scale 'relu2'"):
        rescale.with_threshold(graph, table, settings, "relu2", 1.0)
    with pytest.raises(UsageError, match="compat follows TNN's tool"):
        rescale.with_threshold(graph, table, quantjit.Settings(compat=True), "relu1", 1.0)
    channel = results["channel"].table
    with pytest.raises(UsageError, match="follows from those of left_relu, right_relu"):
        rescale.with_threshold(graph, channel, SETTINGS["channel"], "join", 1.0)


@pytest.mark.parametrize("name", ["mix", "onnx"])
def test_a_trial_is_what_that_table_gives(graph, images, results, name):
    result, settings = results[name], SETTINGS[name]
    found = explore.try_threshold(result, images[:8], "conv1", 0.3, settings=settings)
    table = rescale.with_threshold(graph, result.table, settings, "relu1", 0.3)
    int8 = quantjit.quantize(graph, table, settings)
    assert found.quantized == int8
    assert found.comparison.sqnr == quantjit.verify(graph, int8, images[:8]).sqnr
    assert found.comparison.sqnr < result.comparison.sqnr
    assert found.paths == ()


def test_the_sweep_peaks_where_little_is_clipped_and_much_resolved(images, results):
    result = results["mix"]
    frame = explore.sweep(result, images, "join", factors=(0.05, 1.0, 20.0))
    low, now, high = frame["sqnr_db"].to_list()
    assert now > max(low, high) + 3
    assert now == pytest.approx(result.comparison.sqnr)
    assert frame["factor"].to_list() == [0.05, 1.0, 20.0]
    assert frame.columns == ["blob", "channel", "factor", "threshold", "sqnr_db", "agreement"]
    with pytest.raises(quantjit.QuantJitError, match="once only, and each threshold is tried"):
        explore.sweep(result, iter(images), "join")
    with pytest.raises(UsageError, match="not 'blobs kl, weights mse, mix'"):
        explore.sweep(result, images, "join", settings=quantjit.Settings("kl"))


def test_every_picture_in_a_line(results, images):
    pytest.importorskip("matplotlib")
    result = results["channel"]
    joined = pl.concat(
        explore.sweep(
            result, images[:2], "relu1", (0.5, 1.0), channel, settings=SETTINGS["channel"]
        )
        for channel in (None, 0)
    )
    figures = {
        "histogram": explore.plot_histogram(result, "conv1"),
        "channels": explore.plot_channels(result, "conv1"),
        "whole": explore.plot_channels(results["mix"], "data"),
        "layers": explore.plot_layers(result),
        "weights": explore.plot_weights(result),
        "weights of one": explore.plot_weights(result, "conv1"),
        "convergence": explore.plot_convergence(result),
        "sweep": explore.plot_sweep(joined),
    }
    for name, figure in figures.items():
        axes = figure.axes[0]
        assert axes.get_xlabel(), name
        assert axes.get_title(), name
        assert figure._repr_png_().startswith(b"\x89PNG"), name  # what a notebook shows
    assert len(figures["sweep"].axes[0].lines) == 3  # two sweeps and the present threshold
    assert len(figures["weights of one"].axes[0].patches) == 4
    compared = explore.layers(result).drop_nulls("sqnr_db")["node"].to_list()
    assert [text.get_text() for text in figures["layers"].axes[0].get_yticklabels()] == compared
    labels = {text.get_text() for text in figures["histogram"].axes[0].get_legend().get_texts()}
    assert any("in the network" in label for label in labels)
    assert any("kl" in label for label in labels)


def test_pictures_need_what_they_show(graph, images, results, monkeypatch):
    blind = quantjit.quantize_model(graph, images[:4], verify_inputs=0)
    with pytest.raises(UsageError, match="nothing was compared"):
        explore.plot_layers(blind)
    with pytest.raises(UsageError, match="too few inputs to see scales converge: 32"):
        explore.plot_convergence(blind)
    explore._picture.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"not installed: pip install 'quantjit\[plot\]'"):
        explore.plot_layers(results["mix"])


def test_a_scale_is_not_shared_by_chance(graph, results):
    """Two inputs of an add may happen to have equal scales: they are changed one by one."""
    table, settings = results["mix"].table, SETTINGS["mix"]
    equal = QuantParams(0.02)
    scales = dict(table.scales) | {"project": equal, "join": equal, "sum_relu": equal}
    table = quantjit.CalibrationTable(scales, table.float_nodes, table.dead, table.method)
    found = rescale.with_threshold(graph, table, settings, "project", 1.0)
    assert found.scales["join"] == equal
    assert found.scales["sum_relu"] == equal


def test_the_functions_are_listed():
    for name in explore.__all__:
        function = getattr(explore, name)
        assert "Parameters" in function.__doc__
        assert "Returns" in function.__doc__
    public = [
        name
        for name, item in vars(explore).items()
        if getattr(item, "__module__", "") == explore.__name__ and not name.startswith("_")
    ]
    assert sorted(public) == sorted(explore.__all__)
