"""How scales move with the number of inputs, and what is said and decided from it."""

from pathlib import Path

import numpy as np
import pytest

from quantjit import calibration, pipeline
from quantjit.cli import main
from quantjit.convergence import LEAST_INPUTS, Convergence, Tracker
from quantjit.dataset import ArraySamples
from quantjit.quantizer import Settings
from quantjit.solvers import blob_solvers
from quantjit.stats import BlobStats
from quantjit.terminal import convergence_frame

DATA = Path(__file__).resolve().parents[1] / "data"
SETTINGS = Settings("minmax", "minmax", "channel")


def convergence(inputs, **scales):
    return Convergence(
        inputs,
        {
            blob: np.array(rows, np.float32).reshape(len(inputs), -1)
            for blob, rows in scales.items()
        },
    )


def test_moves_are_relative_to_the_larger_and_averaged():
    found = convergence((1, 2, 4), a=[1, 2, 1.5], b=[[0, 4, 0], [0, 4, 1], [0, 5, 1]])
    moves = found.moves()
    np.testing.assert_allclose(moves["a"], [0.5, 0.25])
    np.testing.assert_allclose(moves["b"], [1 / 3, 0.2 / 3], rtol=1e-6)


def test_the_last_doubling():
    assert Convergence((), {}).doubling() is None
    assert convergence((1,), a=[1]).doubling() is None
    assert convergence((2, 3), a=[1, 1]).doubling() is None
    assert convergence((1, 2, 4), a=[1, 1, 1]).doubling() == (1, 2)
    assert convergence((1, 2, 4, 5), a=[1, 1, 1, 1]).doubling() == (1, 3)


def test_what_moves_is_listed_the_most_first():
    found = convergence((32, 64), a=[1, 1], b=[1, 1.02], c=[2, 1], d=[1, 1.005])
    assert list(found.moving()) == ["c", "b"]
    assert found.moving()["c"] == pytest.approx(0.5)
    assert list(found.moving(0.1)) == ["c"]
    assert not found.is_stable()
    assert found.is_stable(0.6)


def test_advice():
    enough = convergence((32, 64), a=[1, 1], b=[2, 2])
    assert enough.advice() == (
        "scales of 2 of 2 blobs moved less than 1 % from 32 to 64 inputs: enough"
    )
    moving = convergence((32, 64), a=[1, 1], b=[1, 2])
    assert moving.advice() == (
        "scales of 1 of 2 blobs moved less than 1 % from 32 to 64 inputs: more would change them; "
        "most: b 50.0 %"
    )
    blobs = {f"blob{i}": [1, 1] for i in range(39)}
    nearly = convergence((32, 64), b=[1, 2], **blobs)
    assert nearly.is_stable()
    assert "enough; most: b 50.0 %" in nearly.advice()


@pytest.mark.parametrize("inputs", [(1,), (8, 16), (20, LEAST_INPUTS - 1)])
def test_few_inputs_say_nothing(inputs):
    found = convergence(inputs, a=np.ones(len(inputs)))
    assert "too few inputs" in found.advice()
    assert not found.is_stable()
    nothing = Convergence((), {})
    assert "too few inputs" in nothing.advice()
    assert not nothing.is_stable()


def demo_samples(graph, count, seed=0):
    """Inputs whose range has settled after a few, but for one that comes late."""
    (shape,) = pipeline.input_shapes(graph).values()
    rng = np.random.default_rng(seed)
    base = rng.uniform(-1, 1, (4, *shape)).astype(np.float32)
    return ArraySamples([{graph.inputs[0].name: base[i % 4]} for i in range(count)])


@pytest.fixture(scope="module")
def graph():
    return pipeline.load(DATA / "demo.tnnproto")


def gather(stats_of, count):
    """The first `count` random blobs, as statistics by name."""
    stats = {blob: BlobStats(rows, 64) for blob, rows in (("one", 1), ("many", 10))}
    for i in range(count):
        for blob, seen in stats.items():
            seen.update(stats_of(blob, i))
    return stats


def settling(blob, i):
    rng = np.random.default_rng(i % 4)
    return rng.normal(size=(1, 10, 6)).astype(np.float32) * (1 if blob == "one" else 3)


@pytest.mark.parametrize("method", ["minmax", "percentile", "asymmetric"])
def test_snapshots_are_what_so_many_inputs_give(method):
    solver = blob_solvers()[method]
    tracker = Tracker(solver)
    counts = (1, 2, 4, 8, 16, 32, 40)
    for count in counts[:-1]:
        assert not tracker.take(count, gather(settling, count))
    result = tracker.finish(40, gather(settling, 40))
    assert result.inputs == tracker.finish(40, {}).inputs == (16, 32, 40)
    for place, count in enumerate((16, 32, 40)):
        stats = gather(settling, count)
        one, many = (solver.solve(stats[blob]).scale for blob in ("one", "many"))
        np.testing.assert_array_equal(result.scales["one"][place], one)
        np.testing.assert_array_equal(result.scales["many"][place], many[[0, 2, 5, 7]])
    assert result.is_stable()
    assert "enough" in result.advice()


def test_the_end_is_asked_for_and_only_when_stable():
    solver = blob_solvers()["minmax"]
    eager, patient = Tracker(solver, until_stable=True), Tracker(solver)
    assert not eager.take(16, gather(settling, 16))
    assert eager.take(32, gather(settling, 32))
    assert not patient.take(16, gather(settling, 16))
    assert not patient.take(32, gather(settling, 32))

    def growing(blob, i):
        return settling(blob, i) * np.float32(1 + i)

    restless = Tracker(solver, until_stable=True)
    assert not any(restless.take(count, gather(growing, count)) for count in (16, 32, 64))
    assert "more would change them" in restless.convergence().advice()


@pytest.mark.jit
@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("batch", [1, 8])
def test_until_stable_ends_at_the_same_input_however_it_runs(graph, jobs, batch):
    tracker = Tracker(SETTINGS.blob_solver, until_stable=True)
    found = calibration.calibrate(
        graph, demo_samples(graph, 100), SETTINGS, jobs=jobs, batch=batch, on_snapshot=tracker.take
    )
    assert found.images == LEAST_INPUTS
    assert tracker.finish(found.images, found.stats).inputs == (16, 32)
    alone = calibration.calibrate(graph, demo_samples(graph, LEAST_INPUTS), SETTINGS)
    assert found.stats == alone.stats


def test_the_frame_has_a_row_for_each_scale():
    found = convergence((16, 32), a=[1, 2], b=[[1, 1], [1, 3]])
    frame = convergence_frame(found)
    assert frame.columns == ["blob", "channel", "inputs", "scale", "blob_move"]
    assert frame.rows() == [
        ("a", 0, 16, 1.0, None),
        ("a", 0, 32, 2.0, 0.5),
        ("b", 0, 16, 1.0, None),
        ("b", 1, 16, 1.0, None),
        ("b", 0, 32, 1.0, pytest.approx(1 / 3)),
        ("b", 1, 32, 3.0, pytest.approx(1 / 3)),
    ]
    assert convergence_frame(Convergence((), {})).rows() == []


@pytest.fixture
def alike(tmp_path):
    """A folder of 100 inputs of the demo network, four of them different."""
    rng = np.random.default_rng(0)
    graph = pipeline.load(DATA / "demo.tnnproto")
    (shape,) = pipeline.input_shapes(graph).values()
    folder = tmp_path / "inputs"
    folder.mkdir()
    arrays = rng.uniform(-1, 1, (4, *shape[1:])).astype(np.float32)
    for i in range(100):
        np.save(folder / f"{i:03}.npy", arrays[i % 4])
    return folder


@pytest.mark.jit
@pytest.mark.slow
def test_the_command_line_ends_early_and_says_so(alike, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["-p", str(DATA / "demo.tnnproto"), "-i", str(alike), "-j", "2", "--until-stable"]
    flags = ["--verify", "0", "-b", "minmax", "--convergence", "moves.csv"]
    assert main(["quantize", *common, *flags]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "calibrated 32 inputs" in printed
    assert "blobs moved less than 1 % from 16 to 32 inputs: enough" in printed
    lines = (tmp_path / "moves.csv").read_text().splitlines()
    assert lines[0] == "blob,channel,inputs,scale,blob_move"
    assert {line.split(",")[2] for line in lines[1:]} == {"16", "32"}

    assert main(["calibrate", *common, "-o", "stats.qjs"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "calibrated 32 inputs" in printed
    assert "statistics 32 inputs" in printed
    assert main(["calibrate", *common, "-o", "stats.qjs", "--resume"]) == 2
    assert "--until-stable" in capsys.readouterr().err
    stats = ["quantize", *common, "--stats", "stats.qjs", "--verify", "0"]
    assert main(stats) == 2
    assert main(["quantize", *common, "--compat", "tnn", "--verify", "0"]) == 2
