"""Mixed precision: targets are met, nothing is float for nothing, both formats can be written."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import searching

from quantjit import formats, mixed, quantizer
from quantjit.errors import UsageError
from quantjit.executor import Executor, count_macs, infer_shapes
from quantjit.judge import Judge, Target
from quantjit.passes.lower import lower
from quantjit.quantizer import Settings

TNN = Settings("minmax", "minmax", "channel")
ONNX = Settings(target="onnx")


def searched(graph, settings, target, count=4):
    refined = searching.refined(graph, settings)
    return mixed.search(refined, settings, target, searching.judge(graph, count)), refined


def cheapest(refined, settings, target, judge):
    """The fewest float MACs of all choices that meet the target: every choice is measured."""
    trials = mixed._Trials(refined, settings, target, judge, lambda *_: None)
    levers = trials.levers()
    choices = [c for n in range(len(levers) + 1) for c in combinations(levers, n)]
    taken = [trials.take(frozenset(choice)) for choice in choices]
    return min(trial.float_macs for trial in taken if not trial.missed)


@pytest.mark.parametrize("settings", [TNN, ONNX], ids=["tnn", "onnx"])
@pytest.mark.parametrize("more", [1.0, 4.0, 9.0])
def test_a_target_is_met_and_nothing_can_be_put_back(settings, more):
    graph = searching.network()
    judge = searching.judge(graph)
    refined = searching.refined(graph, settings)
    start = judge.score(judge.measure(refined.quantized)).sqnr
    target = Target(start + more)
    found = mixed.search(refined, settings, target, judge)
    assert not found.missed
    assert found.before.sqnr == start
    assert found.after == judge.score(judge.measure(found.quantized))
    assert found.after.sqnr >= target.min_sqnr
    assert 0 <= found.int8_macs < found.macs
    floats = {node.name for node in found.quantized.nodes if node.quant is None}
    assert floats == set(found.table.float_nodes)
    assert floats == {n for n, why in quantizer.choose_nodes(graph, found.settings).items() if why}
    macs = count_macs(graph, infer_shapes(graph))
    assert found.int8_macs == sum(count for name, count in macs.items() if name not in floats)
    assert {each.name for each in found.bought} == set(found.settings.float_nodes)
    for each in found.bought:
        fewer = tuple(name for name in found.settings.float_nodes if name != each.name)
        again = mixed._Trials(refined, settings, target, judge, lambda *_: None)
        assert again.take(frozenset(fewer)).missed


@pytest.mark.parametrize("settings", [TNN, ONNX], ids=["tnn", "onnx"])
@pytest.mark.jit
def test_hardly_more_is_float_than_the_best_of_all_choices(settings):
    graph = searching.network()
    judge = searching.judge(graph, 1)
    refined = searching.refined(graph, settings)
    start = judge.score(judge.measure(refined.quantized)).sqnr
    target = Target(start + 4)
    found = mixed.search(refined, settings, target, judge)
    best = cheapest(refined, settings, target, judge)
    assert found.macs - found.int8_macs <= 1.25 * best


def test_the_ruined_layer_alone_is_left_float():
    graph = searching.with_outlier(searching.network(), "right")
    settings = Settings("minmax", "minmax", "tensor")
    judge = searching.judge(graph)
    refined = searching.refined(graph, settings)
    start = judge.score(judge.measure(refined.quantized)).sqnr
    found = mixed.search(refined, settings, Target(start + 5), judge)
    assert found.settings.float_nodes == ("right",)
    assert found.bought[0].lost == pytest.approx(found.after.sqnr - start)
    assert found.bought[0].macs == found.macs - found.int8_macs


@pytest.mark.jit
def test_agreement_is_a_target_too():
    graph = searching.with_outlier(searching.network(), "conv1")
    settings = Settings("minmax", "minmax", "tensor")
    found, _ = searched(graph, settings, Target(None, 0.0), count=12)
    assert found.before.agreement < 1
    assert found.after.agreement == 1
    assert found.int8_macs


def test_met_already_and_never_met():
    graph = searching.network()
    found, refined = searched(graph, TNN, Target(-50.0))
    assert found.trials == 1
    assert not found.bought
    assert found.quantized == refined.quantized
    assert found.settings == TNN
    found, _ = searched(graph, TNN, Target(1000.0))
    assert "below --min-sqnr 1000" in found.missed
    assert found.int8_macs == 0
    with pytest.raises(UsageError, match="compat"):
        searched(graph, replace(TNN, compat=True), Target(50.0))


def test_nodes_that_were_to_stay_float_do():
    graph = searching.network()
    settings = replace(TNN, float_nodes=("left",), exclude=("inner_product",))
    refined = searching.refined(graph, settings)
    judge = searching.judge(graph)
    start = judge.score(judge.measure(refined.quantized)).sqnr
    found = mixed.search(refined, settings, Target(start + 3), judge)
    assert found.table.float_nodes["left"] == "asked for"
    assert found.table.float_nodes["scores"] == "excluded by inner_product"
    assert {"left", *(each.name for each in found.bought)} == set(found.settings.float_nodes)


@pytest.mark.jit
def test_threads_do_not_matter():
    graph = searching.network()
    refined = searching.refined(graph, TNN)
    inputs = searching.listed(graph, 4, seed=1)
    found = [
        mixed.search(refined, TNN, Target(45.0), Judge(graph, inputs, jobs=jobs)) for jobs in (1, 3)
    ]
    assert found[0].quantized == found[1].quantized
    assert found[0].trials == found[1].trials


@pytest.mark.parametrize(("settings", "name"), [(TNN, "net.tnnproto"), (ONNX, "net.onnx")])
def test_what_is_measured_is_what_is_written(tmp_path, settings, name):
    graph = searching.network()
    refined = searching.refined(graph, settings)
    judge = searching.judge(graph)
    start = judge.score(judge.measure(refined.quantized)).sqnr
    found = mixed.search(refined, settings, Target(start + 4), judge)
    assert found.bought
    written = formats.load(*formats.save(found.quantized, tmp_path / name))
    for sample in searching.listed(graph, 2, seed=1):
        results = [Executor(lower(g)).run(sample.arrays) for g in (found.quantized, written)]
        assert np.array_equal(results[0]["scores"], results[1]["scores"])
    if name.endswith("onnx"):
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(
            (tmp_path / name).read_bytes(), providers=["CPUExecutionProvider"]
        )
        for sample in searching.listed(graph, 4, seed=1):
            ours = Executor(lower(written)).run(sample.arrays)["scores"]
            theirs = session.run(["scores"], dict(sample.arrays))[0]
            assert np.allclose(ours, theirs.reshape(ours.shape), rtol=1e-4, atol=1e-4)
