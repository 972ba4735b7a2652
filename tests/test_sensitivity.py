"""Judge and sensitivities, against sums made here with NumPy."""

import math

import numpy as np
import pytest
import searching

from quantjit import pipeline, sensitivity
from quantjit.dataset import Collected
from quantjit.errors import DataError, UsageError
from quantjit.executor import Executor, count_macs, infer_shapes
from quantjit.judge import Judge, Score, Target, noise, top1_drop
from quantjit.passes.lower import lower
from quantjit.quantizer import Settings
from quantjit.sensitivity import blend

TARGETS = [Settings("minmax", "minmax", "channel"), Settings(target="onnx")]


@pytest.fixture(scope="module", params=TARGETS, ids=["tnn", "onnx"])
def made(request):
    graph = searching.network()
    return searching.refined(graph, request.param)


def decibels(graph, other, inputs):
    signal = error = 0.0
    for sample in inputs:
        x, y = (Executor(lower(g)).run(sample.arrays)["scores"] for g in (graph, other))
        signal += float((x.astype(np.float64) ** 2).sum())
        error += float(((x.astype(np.float64) - y) ** 2).sum())
    return 10 * math.log10(signal / error)


def test_a_judge_adds_up_what_numpy_does_and_what_verify_finds(made):
    inputs = searching.listed(made.graph, 5, seed=1)
    labels = {sample.file: index for index, sample in enumerate(inputs)}
    judge = Judge(made.graph, inputs, labels, jobs=2)
    score = judge.score(judge.measure(made.quantized))
    assert score.images == 5
    assert score.sqnr == pytest.approx(decibels(made.graph, made.quantized, inputs), abs=1e-3)
    found = pipeline.verify(made.graph, made.quantized, Collected(inputs), labels=labels, jobs=1)
    assert (score.agreement, score.top1) == (found.agreement, found.int8_top1)
    assert score.float_top1 == found.float_top1
    assert score.sqnr == pytest.approx(found.sqnr, abs=1e-9)


def test_measuring_in_parts_and_threads_changes_nothing(made):
    judge = searching.judge(made.graph, 5)
    whole = judge.measure(made.quantized)
    part = judge.measure(made.quantized, 2)
    assert part.images == 2
    rest = judge.measure(made.quantized, None, part)
    assert np.array_equal(rest.sums, whole.sums)
    assert rest.top1 == whole.top1
    assert judge.measure(made.quantized, 1, part) is part
    many = list(judge.measure_all([made.quantized] * 5))
    assert many == [judge.score(whole)] * 5


def test_a_judge_wants_inputs_and_their_labels(made):
    with pytest.raises(DataError, match="none"):
        Judge(made.graph, [])
    with pytest.raises(DataError, match="no row in the labels"):
        Judge(made.graph, searching.listed(made.graph, 2), {"other": 1})


@pytest.mark.parametrize(
    ("target", "score", "words"),
    [
        (Target(30.0), Score(30.0, None, None, None, 1), ""),
        (Target(30.0), Score(29.99, None, None, None, 1), "below --min-sqnr 30"),
        (Target(30.0), Score(math.nan, None, None, None, 1), "below"),
        (Target(None, 0.1), Score(0, 0.9, None, None, 10), ""),
        (Target(None, 0.1), Score(0, 0.8, None, None, 10), "differs from float in 20.00%"),
        (Target(None, 0.1), Score(0, 0.5, 0.7, 0.8, 10), ""),
        (Target(None, 0.05), Score(0, 1.0, 0.7, 0.8, 10), "top-1 loses 10.00%"),
        (Target(20.0, 0.0), Score(25.0, 1.0, None, None, 10), ""),
        (Target(), Score(-200.0, 0.0, None, None, 10), ""),
    ],
)
def test_targets(target, score, words):
    missed = target.missed(score)
    assert words in missed
    assert bool(missed) == bool(words)
    assert bool(target) == (target != Target())


def test_a_drop_needs_classes():
    assert top1_drop(Score(30.0, None, None, None, 1)) is None
    with pytest.raises(UsageError, match="class scores"):
        Target(None, 0.1).missed(Score(30.0, None, None, None, 1))


def test_blends_reach_from_float_to_int8(made):
    names = {node.name for node in made.quantized.nodes if node.quant}
    assert blend(made.graph, made.quantized, names) == made.quantized
    judge = searching.judge(made.graph)
    nothing = blend(made.graph, made.quantized, set())
    assert not nothing.is_quantized
    assert not nothing.scales
    assert judge.score(judge.measure(nothing)).sqnr == 200


def test_sensitivities_are_those_of_the_networks_they_name(made):
    inputs = searching.listed(made.graph, 4, seed=1)
    judge = Judge(made.graph, inputs, jobs=2)
    found = sensitivity.measure(made.graph, made.quantized, judge, images=3)
    names = {node.name for node in made.quantized.nodes if node.quant}
    assert {node.name for node in found.nodes} == names
    assert found.images == 3
    macs = count_macs(made.graph, infer_shapes(made.graph))
    assert found.int8_macs + found.float_macs == sum(macs.values())
    assert [n.alone for n in found.nodes] == sorted(n.alone for n in found.nodes)
    for node in found.nodes[:3]:
        assert node.macs == macs[node.name]
        for chosen, value in (({node.name}, node.alone), (names - {node.name}, node.without)):
            network = blend(made.graph, made.quantized, chosen)
            assert value == pytest.approx(decibels(made.graph, network, inputs[:3]), abs=1e-3)
    assert any(node.layer_sqnr is not None for node in found.nodes)


def test_a_layer_that_int8_ruins_comes_first():
    graph = searching.with_outlier(searching.network(), "right")
    made = searching.refined(graph, Settings("minmax", "minmax", "tensor"))
    found = sensitivity.measure(graph, made.quantized, searching.judge(graph))
    assert found.nodes[0].name == "right"
    assert noise(found.nodes[0].without) < noise(found.whole.sqnr) / 3
