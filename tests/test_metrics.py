"""Errors against NumPy in float64, and the words made of them."""

import math
from dataclasses import replace

import models
import numpy as np
import oracle
import pytest

from quantjit import pipeline, quantizer, terminal
from quantjit.dataset import ArraySamples
from quantjit.metrics import (
    BlobError,
    Comparison,
    NodeError,
    blob_error,
    classifying_output,
    top,
    top1,
)
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.quant import QuantParams
from quantjit.quantizer import PASSES, Settings
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
    noise = [node.noise for node in comparison.worst(2)]
    assert noise[0] >= noise[1] >= 0
    assert 0.9 < comparison.int8_mac_share() <= 1
    frame = terminal.node_frame(comparison)
    assert frame.height == len(names)
    assert int8.is_quantized


def test_threads_do_not_change_the_figures(verified):
    graph, int8, samples, comparison = verified
    labels = {f"input {i}": i for i in range(4)}
    assert pipeline.verify(graph, int8, samples, labels=labels, jobs=3) == comparison


def test_each_input_has_its_own_error_and_top_classes(verified):
    graph, int8, samples, comparison = verified
    from quantjit.executor import Executor
    from quantjit.passes.lower import lower

    assert [item.file for item in comparison.inputs] == [f"input {i}" for i in range(4)]
    assert [item.label for item in comparison.inputs] == [0, 1, 2, 3]
    for index, item in enumerate(comparison.inputs):
        arrays = samples.load(index)[0].arrays
        x, y = (
            Executor(lower(each)).run(arrays)["scores"].astype(np.float64).ravel()
            for each in (graph, int8)
        )
        sqnr = 10 * np.log10((x**2).sum() / ((x - y) ** 2).sum())
        assert item.sqnr == pytest.approx(sqnr)
        for scores, found in ((x, item.float_top), (y, item.int8_top)):
            shares = np.exp(scores) / np.exp(scores).sum()
            assert [place for place, _ in found] == np.argsort(-scores)[:5].tolist()
            assert [share for _, share in found] == pytest.approx(np.sort(shares)[::-1][:5])
        assert item.agrees == (x.argmax() == y.argmax())
    assert comparison.agreement == np.mean([item.agrees for item in comparison.inputs])
    worst = comparison.worst_inputs(2)
    assert [item.agrees for item in worst] == sorted(item.agrees for item in comparison.inputs)[:2]


@pytest.mark.parametrize("merge", ["mix", "channel"])
def test_channels_are_compared_when_asked_for(merge):
    from quantjit.executor import Executor
    from quantjit.passes.lower import lower

    graph = fuse_activation(models.small_network())
    samples = ArraySamples(models.random_inputs(graph, 3))
    settings = Settings("minmax", "minmax", merge)
    evidence = pipeline.calibrate(graph, samples, settings, jobs=1)
    table = quantizer.solve(graph, evidence.stats, settings)
    int8 = quantizer.quantize(graph, table, settings)
    plain = pipeline.verify(graph, int8, samples, jobs=1)
    found = pipeline.verify(graph, int8, samples, jobs=2, detail=True)
    assert plain.channels == ()
    assert replace(found, channels=()) == plain
    assert pipeline.verify(graph, int8, samples, jobs=1, detail=True) == found
    kept = {name: [] for name in ("float", "int8")}
    for index in range(3):
        arrays = samples.load(index)[0].arrays
        for name, network in (("float", lower(graph)), ("int8", lower(int8))):

            def keep(blob, array, name=name):
                if blob == "join":
                    kept[name].append(array.copy())

            Executor(network).run(arrays, keep)
    x, codes = (np.concatenate(kept[name]).astype(np.float64) for name in ("float", "int8"))
    params = int8.scales["join"]
    y = (codes - params.zero_point.reshape(1, -1, 1, 1)) * params.scale.reshape(1, -1, 1, 1)
    rows = [item for item in found.channels if item.blob == "join"]
    assert [item.channel for item in rows] == list(range(8))
    for item in rows:
        a, b = x[:, item.channel], y[:, item.channel]
        assert (item.minimum, item.maximum) == (a.min(), a.max())
        assert item.mean == pytest.approx(a.mean())
        assert item.std == pytest.approx(a.std(), abs=1e-6)
        assert item.zero_share == (a == 0).mean()
        sqnr = 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum())
        assert item.sqnr == pytest.approx(sqnr, rel=1e-5)


def test_noise_is_what_a_node_adds():
    def node(before, after):
        return NodeError("n", "add", True, 1, BlobError("b", after, 1.0, 0.0), before - after)

    assert node(60, 50).noise == pytest.approx(math.sqrt(1e-5 - 1e-6))
    assert node(30, 20).noise > node(96, 40).noise
    assert node(20, 30).noise == 0


def test_top_classes_of_odd_scores():
    assert top(np.array([[1.0, np.nan, 3.0]]))[0][0] == 2
    assert top(np.array([[0.25, 0.75]])) == ((1, 0.75), (0, 0.25))
    assert [place for place, _ in top(np.array([[1.0, 1.0, 2.0]]))] == [2, 0, 1]


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
    assert "poor" in terminal.verdict(poor)
    assert "usable" in terminal.verdict(_comparison(40.0, agreement=0.95))
    assert "poor" in terminal.verdict(_comparison(40.0, agreement=0.99, top=0.8, int8_top=0.7))
    assert "close" in terminal.verdict(_comparison(40.0, agreement=0.5, images=10))
    assert "usable" in terminal.verdict(_comparison(20.0))
    assert "close" in terminal.verdict(_comparison(40.0))
    assert terminal.remedies(_comparison(40.0), Settings(), 100) == []
    texts = {
        "-t 1": terminal.remedies(poor, Settings(merge="tensor"), 100),
        "-t 0": terminal.remedies(poor, Settings(merge="mix"), 100),
        "-b mse": terminal.remedies(poor, Settings("kl", "minmax"), 100),
        "--passes all": terminal.remedies(poor, Settings(), 100),
        "quantjit tune": terminal.remedies(poor, None, 100),
        "--compat": terminal.remedies(poor, Settings(compat=True), 100),
        "--exclude bad": terminal.remedies(poor, Settings(), 100),
        "more inputs": terminal.remedies(poor, Settings(), 10),
        "-n, -s, -r": terminal.remedies(
            _comparison(40.0, agreement=1.0, top=0.01), Settings(), 100
        ),
    }
    for word, advice in texts.items():
        assert any(word in line for line in advice), word
    assert not any("--passes" in line for line in texts["--compat"]), "it has no passes"
    tried = terminal.remedies(poor, Settings(passes=PASSES), 100)
    assert not any("--passes" in line for line in tried)
    tuned = terminal.remedies(poor, Settings("kl"), 100, is_tuned=True)
    assert not any(word in line for line in tuned for word in ("quantjit tune", "-b mse", "-t 0"))
    assert any("--exclude bad" in line for line in tuned)


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
    assert [terminal.size(n) for n in (12, 1234, 5_600_000, 7.8e9)] == [
        "12 B", "1.2 kB", "5.6 MB", "7.8 GB",
    ]  # fmt: skip
