"""Frames of a result, against NumPy on the same values."""

import models
import numpy as np
import polars as pl
import pytest

from quantjit import pipeline, quantizer, solvers, tables
from quantjit.calibration import Calibration
from quantjit.dataset import ArraySamples
from quantjit.executor import Executor
from quantjit.observed import Evidence
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.passes.lower import lower
from quantjit.pipeline import Quantization
from quantjit.quantizer import Settings
from quantjit.refine import Effect
from quantjit.stats import BlobStats, ReferenceStats
from quantjit.table import CalibrationTable


def quantized(settings, inputs=6, graph=None):
    """A result as `pipeline.run` makes it, without files."""
    graph = fuse_activation(graph or models.small_network())
    samples = ArraySamples(models.random_inputs(graph, inputs))
    evidence = pipeline.calibrate(graph, samples, settings, jobs=1)
    table = quantizer.solve(graph, evidence.stats, settings)
    int8 = quantizer.quantize(graph, table, settings)
    comparison = pipeline.verify(
        graph, int8, samples, why_float=table.float_nodes, jobs=1, detail=True
    )
    effects = (Effect("bias", True, 20.0, 21.5, "3 layers"),)
    return Quantization(
        graph, int8, table, evidence, (), comparison, (), 1000, 300, effects=effects
    )


@pytest.fixture(scope="module", params=["mix", "channel", "tensor", "onnx", "compat"])
def made(request):
    kind = request.param
    if kind == "onnx":
        settings = Settings("mse", "mse", "mix", target="onnx")
    elif kind == "compat":
        settings = Settings("minmax", "minmax", "channel", compat=True)
    else:
        settings = Settings("mse", "minmax", kind)
    return quantized(settings), settings


def values_of(result, blob):
    graph = lower(result.graph)
    seen = []

    def keep(name, array):
        if name == blob:
            seen.append(array.copy())

    for arrays in models.random_inputs(graph, 6):
        Executor(graph).run(arrays, keep)
    return np.concatenate(seen).astype(np.float64)


def test_nodes_are_all_there_with_their_error(made):
    result, _ = made
    frame = tables.nodes_frame(result)
    assert frame["node"].to_list() == [node.name for node in result.graph.nodes]
    by_name = {row.name: row for row in result.comparison.nodes}
    for row in frame.iter_rows(named=True):
        assert row["int8"] != bool(row["why_float"])
        assert row["int8"] == (row["node"] not in result.table.float_nodes)
        if row["node"] in by_name:
            assert row["sqnr_db"] == by_name[row["node"]].error.sqnr
            assert row["added_noise"] == by_name[row["node"]].noise
        if row["int8"]:
            params = result.quantized.scales[row["output"]]
            assert row["output_scale"] == params.scale.max()
            assert row["output_scales"] == params.scale.size
    convolution = frame.filter(pl.col("node") == "left").row(0, named=True)
    assert convolution["macs"] == 4 * 4 * 3 * 3
    assert convolution["parameters"] == 4 * 4 + 4
    assert convolution["shape"] == "1x4x3x3"
    share = result.comparison.int8_mac_share()
    assert tables.int8_mac_share(result) == pytest.approx(share)


def test_channels_are_what_was_seen(made):
    result, settings = made
    frame = tables.channels_frame(result)
    blob = "join"
    values = values_of(result, blob)
    seen = frame.filter((pl.col("blob") == blob) & (pl.col("seen_in") == "calibration"))
    rows = [values] if seen.height == 1 else [values[:, [c]] for c in range(8)]
    assert seen.height == (8 if settings.merge == "channel" else 1)
    params = result.quantized.scales[blob]
    lowest = -128 if settings.target == "onnx" else -127
    for index, (row, each) in enumerate(zip(seen.iter_rows(named=True), rows, strict=True)):
        assert row["minimum"] == pytest.approx(each.min())
        assert row["maximum"] == pytest.approx(each.max())
        assert row["channel"] == (None if len(rows) == 1 else index)
        scale, zero = params.scale[index], int(params.zero_point[index])
        assert row["scale"] == scale
        kept = float(scale) * max(abs(lowest - zero), 127 - zero)
        assert row["threshold"] == pytest.approx(kept)
        if settings.compat:
            each = each[each != 0]  # noqa: PLW2901 - its histograms have no zeros
        exact = (np.abs(each) > row["threshold"] + row["scale"] / 2).mean()
        assert row["clipped_share"] == pytest.approx(exact, abs=0.02)
        if not settings.compat:
            assert row["mean"] == pytest.approx(each.mean())
            assert row["std"] == pytest.approx(each.std())
            assert row["zero_share"] == pytest.approx((each == 0).mean())
    verified = frame.filter((pl.col("blob") == blob) & (pl.col("seen_in") == "verification"))
    assert verified["maximum"].to_list() == [values[:, c].max() for c in range(8)]


def test_histograms_count_every_value(made):
    result, _ = made
    frame = tables.histograms_frame(result)
    for (blob,), rows in frame.group_by("blob"):
        values = np.abs(values_of(result, blob)).ravel()
        values = values[values > 0]
        assert rows["count"].sum() == pytest.approx(values.size, rel=1e-3)
        assert rows.height == tables.BINS
        assert rows["high"].max() == pytest.approx(values.max())
        middle = rows["high"][tables.BINS // 2 - 1]
        below = rows["count"][: tables.BINS // 2].sum()
        assert below == pytest.approx((values < middle).sum(), abs=0.02 * values.size + 2)


def test_every_blob_method_says_what_it_would_choose(made):
    result, settings = made
    frame = tables.solvers_frame(result, settings.blob_method)
    blob = "project" if settings.merge != "channel" else "scores"
    rows = {row["method"]: row for row in frame.filter(pl.col("blob") == blob).to_dicts()}
    seen = result.calibration.stats[blob]
    if isinstance(seen, BlobStats):
        assert set(rows) == {*solvers.blob_solvers(), tables.IN_NETWORK}
        if settings.target == "tnn":
            for name, solver in solvers.blob_solvers().items():
                assert rows[name]["scale"] == solver.solve(seen).scale[0]
        assert [name for name, row in rows.items() if row["used"]] == [settings.blob_method]
        assert rows["minmax"]["clipped_share"] == 0
        assert rows["percentile"]["clipped_share"] <= 0.01
    params = result.quantized.scales[blob]
    assert rows[tables.IN_NETWORK]["scale"] == params.scale.max()


def test_weights_are_restored_from_their_codes(made):
    result, _ = made
    frame = tables.weights_frame(result)
    for node in result.graph.nodes:
        if node.op not in {"convolution", "inner_product"}:
            continue
        rows = frame.filter(pl.col("node") == node.name)
        weight = node.weights["weight"].astype(np.float64)
        matrix = weight.reshape(len(weight), -1)
        assert rows["minimum"].to_list() == matrix.min(axis=1).tolist()
        assert rows["absmax"].to_list() == np.abs(matrix).max(axis=1).tolist()
        assert rows["range_share"].max() == 1
        if rows["scale"].null_count():
            assert node.name in result.table.float_nodes
            continue
        # a step is at least a 127th of the channel, or for a shared one of the layer
        assert (rows["scale"] * 127 >= rows["absmax"] * 0.6).all()
        assert rows["sqnr_db"].min() > (20 if len(weight) > 1 else 0)


def test_inputs_and_passes(made):
    result, _ = made
    frame = tables.inputs_frame(result.comparison)
    assert frame.height == 6
    assert frame["float_class_1"].to_list() == [
        item.float_top[0][0] for item in result.comparison.inputs
    ]
    assert frame["float_share_5"].null_count() == 0
    assert tables.effects_frame(result).row(0) == ("bias", True, 20.0, 21.5, "3 layers")
    candidates = pl.DataFrame({"settings": ["a"], "sqnr": [30.0]})
    names = set(tables.frames(result, candidates=candidates))
    assert names == {
        "nodes", "channels", "weights", "histograms", "solvers", "inputs", "passes", "candidates",
    }  # fmt: skip


def test_dead_channels_and_clipping_of_known_values():
    values = np.zeros((1, 2, 1, 100), np.float32)
    values[0, 0, 0] = np.arange(1, 101)
    seen = BlobStats(2)
    seen.update(values)
    evidence = Evidence.of(seen)
    assert evidence.absmax.tolist() == [100, 0]
    assert evidence.clipped_share(np.array([50.0, 1.0])) == pytest.approx([0.5, 0], abs=0.02)
    assert evidence.clipped_share(np.array([100.0, 1.0])).tolist() == [0, 0]
    assert evidence.below(np.array([0.0, 1000.0])).tolist() == [0, 100]
    reference = ReferenceStats(2)
    reference.update_range(values)
    reference.start_histogram()
    reference.update_histogram(values)
    found = Evidence.of(reference)
    assert found.absmax.tolist() == [100, 0]
    assert found.clipped_share(np.array([50.0, 1.0])) == pytest.approx([0.5, 0], abs=0.02)
    graph = models.small_network()
    empty = Calibration({"data": seen}, 1, (), 0.0)
    result = Quantization(graph, graph, CalibrationTable({}), empty, (), None, (), 1, 1)
    frame = tables.channels_frame(result)
    assert frame["dead"].to_list() == [False, True]
    assert frame["scale"].null_count() == 2
    assert tables.weights_frame(result)["scale"].null_count() > 0
    assert set(tables.frames(result)) == {"nodes", "channels", "weights", "histograms", "solvers"}
