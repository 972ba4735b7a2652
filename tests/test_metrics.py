"""Errors against NumPy in float64, and the words made of them."""

import math
from dataclasses import replace

import models
import numpy as np
import oracle
import pytest

from quantjit import pipeline, quantizer, report
from quantjit.dataset import ArraySamples
from quantjit.metrics import BlobError, Comparison, NodeError, blob_error, classifying_output, top1
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.quant import QuantParams
from quantjit.quantizer import Settings
from quantjit.table import CalibrationTable, save_frame


@pytest.fixture(scope="module")
def verified():
    graph = fuse_activation(models.small_network())
    samples = ArraySamples(models.random_inputs(graph, 4))
    settings = Settings("minmax", "minmax", "mix")
    evidence = pipeline.calibrate(graph, samples, settings, jobs=1)
    table = quantizer.solve(graph, evidence.stats, settings)
    int8 = quantizer.quantize(graph, table, settings)
    comparison = pipeline.verify(
        graph, int8, samples, labels={f"input {i}": i for i in range(4)}, jobs=1
    )
    return graph, int8, samples, comparison


def test_end_to_end_error_is_that_of_the_outputs(verified):
    graph, int8, samples, comparison = verified
    expected, found = [], []
    from quantjit.executor import Executor
    from quantjit.passes.lower import lower

    for index in range(len(samples)):
        arrays = samples.load(index)[0].arrays
        expected.append(Executor(lower(graph)).run(arrays)["scores"].astype(np.float64))
        found.append(Executor(lower(int8)).run(arrays)["scores"].astype(np.float64))
    expected, found = np.array(expected), np.array(found)
    sqnr = 10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum())
    assert comparison.sqnr == pytest.approx(sqnr)
    assert comparison.outputs[0].largest == pytest.approx(np.abs(expected - found).max())
    agreement = (expected.reshape(4, -1).argmax(1) == found.reshape(4, -1).argmax(1)).mean()
    assert comparison.agreement == agreement
    right = (expected.reshape(4, -1).argmax(1) == np.arange(4)).mean()
    assert comparison.float_top1 == right


def test_nodes_are_in_order_and_complete(verified):
    _, int8, _, comparison = verified
    names = [node.name for node in comparison.nodes]
    assert names[0] == "conv1"
    assert {"mean", "scores"} <= set(names)
    assert comparison.worst(2)[0].lost >= comparison.worst(2)[1].lost
    assert 0.9 < comparison.int8_mac_share() <= 1
    frame = report.node_frame(comparison)
    assert frame.height == len(names)
    assert int8.is_quantized


def test_threads_do_not_change_the_figures(verified):
    graph, int8, samples, comparison = verified
    labels = {f"input {i}": i for i in range(4)}
    assert pipeline.verify(graph, int8, samples, labels=labels, jobs=3) == comparison


def test_blob_error_of_known_sums():
    x, y = np.array([3.0, 4.0]), np.array([3.0, 3.0])
    sums = np.array([25.0, 1.0, 21.0, 18.0, 1.0])
    error = blob_error("b", sums)
    assert error.sqnr == pytest.approx(10 * math.log10(25))
    assert error.cosine == pytest.approx(float(x @ y) / math.sqrt(25 * 18))
    assert blob_error("b", np.array([1.0, 0, 1, 1, 0])) == BlobError("b", 200.0, 1.0, 0.0)
    assert blob_error("b", np.array([0.0, 4, 0, 4, 2])).sqnr == -200.0
    for broken in (np.inf, np.nan):
        error = blob_error("b", np.array([1.0, broken, broken, broken, broken]))
        assert error == BlobError("b", -200.0, 0.0, math.inf)
    assert oracle.round_half_away(2.5) == 3


def test_classifying_outputs_are_recognized():
    graph = models.small_network()
    assert classifying_output(graph, {"scores": (1, 5, 1, 1)}) == "scores"
    assert classifying_output(graph, {"scores": (1, 5)}) == "scores"
    for shape in ((1, 1), (1, 5, 2), (5,)):
        assert classifying_output(graph, {"scores": shape}) is None
    assert top1(np.array([[[1.0], [3.0]], [[2.0], [2.0]]])) == (1, 0)


def _comparison(sqnr, *, agreement=None, top=None, int8_top=None, images=1000):
    node = NodeError("bad", "convolution", True, 10, BlobError("b", sqnr, 0.9, 1.0), 10.0)
    return Comparison(
        (node,), (), sqnr, images, agreement, top, top if int8_top is None else int8_top
    )


def test_remedies_name_options():
    poor = _comparison(8.0)
    assert "poor" in report.verdict(poor)
    assert "usable" in report.verdict(_comparison(40.0, agreement=0.95))
    assert "poor" in report.verdict(_comparison(40.0, agreement=0.99, top=0.8, int8_top=0.7))
    assert "close" in report.verdict(_comparison(40.0, agreement=0.5, images=10))
    assert "usable" in report.verdict(_comparison(20.0))
    assert "close" in report.verdict(_comparison(40.0))
    assert report.remedies(_comparison(40.0), Settings(), 100) == []
    texts = {
        "--auto": report.remedies(poor, Settings("kl", merge="tensor"), 100),
        "--compat": report.remedies(poor, Settings(compat=True), 100),
        "--float-layers bad": report.remedies(poor, Settings(), 100),
        "more inputs": report.remedies(poor, Settings(), 10),
        "-n, -s, -r": report.remedies(_comparison(40.0, agreement=1.0, top=0.01), Settings(), 100),
    }
    for word, advice in texts.items():
        assert any(word in line for line in advice), word
    assert not any("--auto" in line for line in texts["--compat"])
    tuned = report.remedies(poor, Settings("kl"), 100, is_tuned=True)
    assert tuned == ["keep the worst layers in float: --float-layers bad"]


def test_tables_round_trip(tmp_path):
    table = CalibrationTable({"a": QuantParams([0.5, 0.25]), "b": QuantParams(2.0, 3)})
    frame = table.frame()
    assert frame["channel"].to_list() == [0, 1, None]
    assert frame["maximum"].to_list() == [63.5, 31.75, 248.0]
    for name in ("t.csv", "t.parquet"):
        table.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 0
    with pytest.raises(OSError, match="missing"):
        save_frame(frame, tmp_path / "missing" / "t.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t.parquet"]
    assert replace(table, method="x").method == "x"


def test_sizes_are_readable():
    assert [report.size(n) for n in (12, 1234, 5_600_000, 7.8e9)] == [
        "12 B", "1.2 kB", "5.6 MB", "7.8 GB",
    ]  # fmt: skip
