"""The passes together: what is kept is better on inputs that no pass has seen."""

import models
import numpy as np
import pytest

from quantjit import quantizer, refine
from quantjit.calibration import calibrate
from quantjit.dataset import ArraySamples, Collected, Sample
from quantjit.errors import DataError, UnsupportedError, UsageError
from quantjit.executor import Executor
from quantjit.judge import Judge
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.quantizer import PASSES, Settings


def network():
    return fuse_activation(models.small_network(4))


def refined(settings, inputs=12, **options):
    graph = network()
    samples = ArraySamples(models.random_inputs(graph, inputs))
    stats = calibrate(graph, samples, settings, jobs=1).stats
    return graph, samples, refine.refine(graph, stats, settings, samples, **options)


@pytest.mark.parametrize("target", quantizer.TARGETS)
@pytest.mark.parametrize("passes", [("bias",), ("rounding",), ("equalize",), PASSES], ids=str)
def test_what_is_kept_makes_it_better(target, passes):
    settings = Settings("mse", "minmax", "mix", target=target, passes=passes)
    graph, samples, made = refined(settings)
    table = quantizer.solve(graph, calibrate(graph, samples, settings).stats, settings)
    plain = quantizer.quantize(graph, table, settings)
    assert {effect.name for effect in made.effects} == set(passes)
    learned, judged = refine.divide(samples)
    judge = Judge(graph, judged, jobs=1)
    before, after = (score.sqnr for score in judge.measure_all([plain, made.quantized]))
    assert after >= before
    kept = [effect for effect in made.effects if effect.is_kept]
    if kept:
        assert kept[0].before == pytest.approx(before, abs=1e-9)
        assert kept[-1].after == pytest.approx(after, abs=1e-9)
        # "equalize" may be kept for what the others make of it
        assert all(each.after > each.before for each in kept if each.name != "equalize")
    else:
        assert made.quantized == plain
    assert not {sample.file for sample in learned} & {sample.file for sample in judged}


def test_outputs_of_the_float_network_stay():
    settings = Settings("mse", "minmax", "tensor", passes=("equalize",))
    graph, samples, made = refined(settings)
    for index in range(3):
        arrays = samples.load(index)[0].arrays
        expected, found = (Executor(each).run(arrays) for each in (graph, made.graph))
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)


def test_threads_do_not_change_a_byte():
    settings = Settings("mse", "mse", "mix", passes=PASSES)
    _, _, alone = refined(settings, jobs=1)
    _, _, together = refined(settings, jobs=3)
    assert alone.quantized == together.quantized
    assert alone.effects == together.effects


def test_without_passes_nothing_is_measured():
    settings = Settings("mse", "mse", "mix")
    graph = network()
    samples = ArraySamples(models.random_inputs(graph, 2))
    stats = calibrate(graph, samples, settings).stats
    made = refine.refine(graph, stats, settings)
    assert not made.effects
    assert made.quantized == quantizer.quantize(graph, made.table, settings)


def test_what_passes_need():
    graph = network()
    settings = Settings("mse", "mse", "mix", passes=("bias",))
    stats = calibrate(graph, ArraySamples(models.random_inputs(graph, 2)), settings).stats
    with pytest.raises(UsageError, match="give -i"):
        refine.refine(graph, stats, settings)
    with pytest.raises(UnsupportedError, match="equalize, bias, rounding"):
        Settings(passes=("prune",))
    with pytest.raises(UsageError, match="has no passes"):
        Settings(compat=True, passes=("bias",))


def test_one_input_serves_for_both():
    _, _, made = refined(Settings("mse", "minmax", "mix", passes=("bias", "rounding")), inputs=1)
    assert len(made.effects) == 2


def test_a_network_that_is_all_float_is_left_alone():
    names = tuple(node.name for node in network().nodes)
    settings = Settings("mse", "mse", "mix", float_nodes=names, passes=PASSES)
    _, _, made = refined(settings)
    assert not made.effects
    assert not made.quantized.is_quantized


class Bad(Collected):
    """Every third file cannot be used."""

    def load(self, index):
        if index % 3 == 1:
            raise DataError(f"{index}.jpg", "is damaged")
        return super().load(index)


def test_inputs_are_spread_and_bad_ones_passed_over(monkeypatch):
    shape = (1, 3, 4, 4)
    samples = [Sample(f"{i}.jpg", {"data": np.full(shape, i, np.float32)}) for i in range(100)]
    learned, judged = refine.divide(Collected(samples))
    assert (len(learned), len(judged)) == (24, 24)
    places = sorted(int(sample.file.split(".")[0]) for sample in (*learned, *judged))
    assert places[0] == 0
    assert max(np.diff(places)) <= 3
    learned, judged = refine.divide(Bad(samples))
    files = [sample.file for sample in (*learned, *judged)]
    assert len(files) == len(set(files)) > 20
    monkeypatch.setattr(refine, "_INPUT_BYTES", 4 * samples[0].arrays["data"].nbytes)
    learned, judged = refine.divide(Collected(samples))
    assert (len(learned), len(judged)) == (2, 2)


def test_granularities_do_not_mix():
    """What a refiner did before with another granularity leaves no trace."""
    graph = network()
    samples = ArraySamples(models.random_inputs(graph, 12))
    channel = Settings("mse", "mse", "channel", passes=PASSES)
    stats = calibrate(graph, samples, channel, jobs=1).stats
    shared = refine.Refiner(graph, samples, jobs=1)
    shared.refine(stats, Settings("mse", "mse", "mix", passes=PASSES))
    for _ in range(2):
        found = shared.refine(stats, channel)
        alone = refine.Refiner(graph, samples, jobs=1).refine(stats, channel)
        assert found.quantized == alone.quantized
        assert any(params.per_channel for params in found.quantized.scales.values())


class Endless:
    """Inputs that come one after the other, nobody knows how many."""

    def __init__(self, samples):
        self._samples = samples
        self.asked = 0

    def __len__(self):
        return 0

    def numbers(self):
        number = 0
        while True:
            self.asked = number
            yield number
            number += 1

    def load(self, index):
        return (self._samples[index % len(self._samples)],)

    def skip(self, error):
        raise error

    def check(self):
        pass


def test_a_stream_is_read_no_further_than_needed():
    samples = [Sample(f"{i}", {"data": np.full((1, 3, 4, 4), i, np.float32)}) for i in range(60)]
    stream = Endless(samples)
    learned, judged = refine.divide(stream)
    assert (len(learned), len(judged)) == (24, 24)
    assert stream.asked < 60
