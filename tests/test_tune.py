"""The search for settings: what is tried, what is held out, and that the best one is written."""

import io
import os
from dataclasses import replace

import models
import numpy as np
import pytest
import searching
from PIL import Image
from rich.console import Console

from quantjit import formats, pipeline, quantizer, terminal, tuning
from quantjit.dataset import ArraySamples, Collected
from quantjit.errors import DataError, UnsupportedError, UsageError
from quantjit.executor import infer_shapes
from quantjit.graph import Blob, Graph
from quantjit.images import Preprocess
from quantjit.judge import Judge
from quantjit.ops.softmax import SoftmaxAttrs
from quantjit.pipeline import Inputs
from quantjit.quantizer import Memo, Settings
from quantjit.refine import Effect, refine

TNN, ONNX = Settings(), Settings(target="onnx")
INPUTS = Inputs(Preprocess((127.0,), (1 / 64,), "rgb"))

pytestmark = pytest.mark.jit


def searched(settings, *, graph=None, stats=None, jobs=2, **options):
    graph = graph or searching.network()
    stats = stats or searching.gathered(graph, tuning.blobs_to_gather(graph, settings))
    judge = searching.judge(graph, 5, jobs=jobs)
    return tuning.search(graph, stats, settings, judge, **options)


# ------------------------------------------------------------------ candidates


def test_candidates_are_what_a_format_can_express():
    names = [str(each) for each in tuning.candidates(TNN)]
    assert len(names) == len(set(names)) >= 24
    assert names[0] == "blobs minmax, weights minmax, channel"
    assert not [name for name in names if "asymmetric" in name]
    assert len(tuning.candidates(TNN, zero_points=True)) > len(names)
    for each in tuning.candidates(ONNX, zero_points=True):
        assert each.merge != "channel"
        assert "asymmetric" not in (each.blob_method, each.weight_method)
    kept = replace(ONNX, symmetric=True, exclude=("add",), float_nodes=("a",), activations="int8")
    for each in tuning.candidates(kept):
        assert replace(each, blob_method="mse", weight_method="mse", merge="mix") == kept


@pytest.mark.parametrize("settings", [TNN, ONNX, replace(ONNX, symmetric=True)])
def test_the_default_reaches_the_end_and_the_best_is_never_worse(settings):
    best, candidates = searched(settings)
    assert len(candidates) == len(tuning.candidates(settings))
    rounds = [each.round for each in candidates]
    assert rounds == sorted(rounds, reverse=True)
    (default,) = [each for each in candidates if each.is_default]
    assert default.settings == tuning.default_settings(settings)
    last = [each for each in candidates if each.round == max(rounds)]
    assert default in last
    assert {each.images for each in last} == {5}
    assert max(each.images for each in candidates if each not in last) < 5
    assert candidates[0].sqnr == max(each.sqnr for each in last) >= default.sqnr
    assert candidates[0].verdict == "chosen"
    assert (best.settings, best.score.sqnr) == (candidates[0].settings, candidates[0].sqnr)


def test_the_best_is_what_its_settings_give_by_themselves():
    graph = searching.network()
    stats = searching.gathered(graph, tuning.blobs_to_gather(graph, TNN))
    best, candidates = searched(TNN, graph=graph, stats=stats)
    judge = searching.judge(graph, 5)
    for each in (candidates[0], candidates[-1]):
        rows = quantizer.observed_blobs(graph, infer_shapes(graph), each.settings)
        mine = {
            b: stats[b] if stats[b].channels == n else stats[b].per_tensor()
            for b, n in rows.items()
        }
        made = refine(graph, mine, each.settings)
        if each is candidates[0]:
            assert made.quantized == best.refined.quantized
            assert made.table == best.refined.table
        assert judge.score(judge.measure(made.quantized, each.images)).sqnr == each.sqnr


def test_neither_threads_nor_memory_decide():
    graph = searching.network()
    runs = [searched(TNN, graph=graph, jobs=jobs) for jobs in (1, 3)]
    assert runs[0][0].refined.quantized == runs[1][0].refined.quantized
    for left, right in zip(runs[0][1], runs[1][1], strict=True):
        assert replace(left, seconds=0.0) == replace(right, seconds=0.0)
    stats = searching.gathered(graph, tuning.blobs_to_gather(graph, TNN))
    memos = [Memo(), Memo(0), Memo(100)]
    for _ in range(2):
        made = []
        for memo in memos:
            table = quantizer.solve(graph, stats, tuning.default_settings(TNN), memo)
            made.append(quantizer.quantize(graph, table, tuning.default_settings(TNN), memo))
        assert made[0] == made[1] == made[2]


def test_a_long_tail_is_clipped():
    """One value of 4000 is 50 times the others: the whole range wastes its codes."""
    graph = searching.network()
    inputs = [dict(each) for each in (s.arrays for s in searching.listed(graph, 8))]
    stats = searching.gathered(graph, tuning.blobs_to_gather(graph, ONNX), 8)
    for blob, seen in stats.items():
        if blob != "data":
            spike = np.zeros((1, seen.channels, 1, 1), np.float32)
            spike[0, 0] = 50 * seen.absmax.max()
            seen.update(spike)
    best, candidates = tuning.search(graph, stats, ONNX, ArraySamples(inputs))
    (default,) = [each for each in candidates if each.is_default]
    assert best.settings.blob_method not in {"minmax"}
    assert best.score.sqnr > default.sqnr + 6


def test_labels_are_counted():
    graph = searching.network()
    inputs = searching.listed(graph, 5, seed=1)
    labels = {sample.file: 3 for sample in inputs}
    stats = searching.gathered(graph, tuning.blobs_to_gather(graph, TNN))
    _, candidates = tuning.search(graph, stats, TNN, Collected(inputs), labels=labels, jobs=1)
    assert all(each.top1 is not None for each in candidates)


def test_statistics_per_tensor_leave_out_scales_per_channel():
    graph = searching.network()
    stats = searching.gathered(graph, tuning.blobs_to_gather(graph, TNN, channel=False))
    _best, candidates = searched(TNN, graph=graph, stats=stats)
    assert {each.settings.merge for each in candidates} == {"mix", "tensor"}
    assert next(each for each in candidates if each.is_default).settings.merge == "mix"
    with pytest.raises(DataError, match="lack blobs"):
        searched(TNN, graph=graph, stats={"data": stats["data"]})
    with pytest.raises(UsageError, match="nothing to tune"):
        searched(replace(TNN, compat=True))


def test_how_many_are_held_out():
    found = [tuning.held_out_of(inputs) for inputs in (2, 5, 16, 24, 40, 100, 1000)]
    assert found == [1, 1, 5, 8, 8, 20, 200]


def test_early_rounds_see_fewer_inputs():
    for count in (1, 2, 3, 5, 20, 64):
        lengths = tuning._lengths(count)
        assert lengths == sorted(set(lengths))
        assert lengths[-1] == count
    assert tuning._lengths(20) == [3, 8, 20]


# ------------------------------------------------------------------ files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tune")
    graph = searching.network()
    formats.save(graph, root / "net.tnnproto")
    formats.save(graph, root / "net.onnx")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    return root


def tuned(folder, output, name="net.tnnproto", settings=TNN, images="images", **options):
    return tuning.run(
        folder / name, None, folder / images, settings, inputs=INPUTS, output=output, **options
    )


def names(samples):
    return {file.name for file in samples.files}


def test_what_is_held_out_depends_on_names_only(folder, tmp_path):
    graph = pipeline.read(folder / "net.tnnproto")
    whole = INPUTS.open(folder / "images", graph)
    rest, held_out, said = tuning.divide(whole)
    assert len(held_out) == 4
    assert not said
    assert names(rest) | names(held_out) == names(whole)
    assert not names(rest) & names(held_out)
    (tmp_path / "other").mkdir()
    for file in reversed(whole.files):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes() * 1)
        os.utime(tmp_path / "other" / file.name, (0, 0))
    assert names(tuning.divide(INPUTS.open(tmp_path / "other", graph))[1]) == names(held_out)
    for name in names(rest):  # less of the others: these stay
        (tmp_path / "other" / name).unlink()
        if len(list((tmp_path / "other").iterdir())) == 8:
            break
    assert names(tuning.divide(INPUTS.open(tmp_path / "other", graph))[1]) <= names(held_out)


def test_large_inputs_and_outputs_are_few(folder):
    graph = pipeline.read(folder / "net.tnnproto")
    dataset = INPUTS.open(folder / "images", graph)
    assert dataset.input_bytes == 4 * 3 * 6 * 6
    assert [len(tuning.divide(dataset, None, size)[1]) for size in (0, 2**27, 2**40)] == [4, 1, 1]


def test_a_network_without_int8_layers(tmp_path):
    node = replace(models.simple("soft", "softmax", "data"), attrs=SoftmaxAttrs())
    made = Graph((node,), (Blob("data", (1, 3, 2, 2)),), ("soft",))
    formats.save(made, tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "many.npy", rng.normal(0, 1, (10, 3, 2, 2)).astype(np.float32))
    found = tuning.run(
        tmp_path / "net.onnx", None, tmp_path / "many.npy", ONNX, output=tmp_path / "x.onnx"
    )
    assert found.candidates[0].is_default
    assert found.candidates[0].sqnr == 200


def test_one_file_of_several_inputs_and_one_input(folder, tmp_path):
    graph = pipeline.read(folder / "net.tnnproto")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "many.npy", rng.normal(0, 1, (10, 3, 6, 6)).astype(np.float32))
    rest, held_out, _ = tuning.divide(INPUTS.open(tmp_path / "many.npy", graph))
    assert (len(rest), len(held_out)) == (7, 3)
    files = {part.load(i)[0].file for part in (rest, held_out) for i in range(len(part))}
    assert len(files) == 10
    np.save(tmp_path / "one.npy", rng.normal(0, 1, (3, 6, 6)).astype(np.float32))
    rest, held_out, said = tuning.divide(INPUTS.open(tmp_path / "one.npy", graph))
    assert rest is held_out
    assert "one input" in said[0]


@pytest.mark.parametrize(("name", "settings"), [("net.tnnproto", TNN), ("net.onnx", ONNX)])
def test_the_written_network_is_the_one_that_won(folder, tmp_path, name, settings):
    output = tmp_path / f"x_quantized{name[3:]}"
    made = tuned(folder, output, name, settings)
    assert made.held_out == 4
    assert made.quantization.calibration.images == 8
    assert made.settings == made.candidates[0].settings
    comparison = made.quantization.comparison
    assert comparison.images == 4
    assert comparison.sqnr == pytest.approx(made.candidates[0].sqnr, abs=1e-2)
    graph = made.quantization.graph
    inputs = list(tuning.divide(INPUTS.open(folder / "images", graph))[1])
    judge = Judge(graph, inputs)
    written = formats.load(*made.quantization.paths)
    found = judge.score(judge.measure(written)).sqnr
    assert found == pytest.approx(made.candidates[0].sqnr, abs=1e-2)
    first = [path.read_bytes() for path in made.quantization.paths]
    again = tuned(folder, output, name, settings, jobs=3, batch=2)
    assert [path.read_bytes() for path in again.quantization.paths] == first


def test_targets_are_reached_on_what_was_held_out(folder, tmp_path):
    plain = tuned(folder, tmp_path / "x.onnx", "net.onnx", ONNX)
    wanted = plain.candidates[0].sqnr + 3
    made = tuned(folder, tmp_path / "x.onnx", "net.onnx", ONNX, min_sqnr=wanted, verify_inputs=1)
    assert made.quantization.comparison.sqnr >= wanted
    assert made.quantization.comparison.images == made.held_out
    assert made.settings.float_nodes
    assert made.quantization.mixed.bought
    assert set(made.quantization.table.float_nodes) >= set(made.settings.float_nodes)


def test_statistics_from_a_file(folder, tmp_path):
    output = tmp_path / "x_quantized.tnnproto"
    stats = tmp_path / "stats.qjs"
    graph = pipeline.read(folder / "net.tnnproto")
    rest = tuning.divide(INPUTS.open(folder / "images", graph))[0]
    (tmp_path / "rest").mkdir()
    for file in rest.files:
        (tmp_path / "rest" / file.name).write_bytes(file.read_bytes())
    everything = tuning.candidates(Settings())
    whole = [each for each in everything if each.merge != "channel"]
    for merge, expected in (("mix", len(whole)), ("channel", len(everything))):
        pipeline.calibrate_files(
            folder / "net.tnnproto", None, tmp_path / "rest", stats, inputs=INPUTS, merge=merge
        )
        made = tuned(folder, output, statistics=stats, passes=())
        assert len(made.candidates) == expected
        assert made.held_out == 4
    direct = tuned(folder, tmp_path / "y_quantized.tnnproto", passes=())
    paths = made.quantization.paths, direct.quantization.paths
    assert [p.read_bytes() for p in paths[0]][1] == [p.read_bytes() for p in paths[1]][1]
    inside = tuning.run(
        folder / "net.tnnproto", None, tmp_path / "rest", TNN,
        inputs=INPUTS, output=output, statistics=stats,
    )  # fmt: skip
    assert inside.held_out == 8
    assert any("none is held out" in note for note in inside.quantization.notes)


def test_files_that_cannot_be_used_are_left_out_or_too_many(folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for file in (folder / "images").iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    (images / "bad.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"1 of 13|cannot be used|cannot be decoded"):
        tuned(folder, tmp_path / "x.tnnproto", images=images)
    inputs = Inputs(INPUTS.preprocess, max_bad=0.2)
    made = tuning.run(
        folder / "net.tnnproto", None, images, TNN, inputs=inputs, output=tmp_path / "x.tnnproto"
    )
    assert len(made.quantization.skipped) == 1
    assert "bad.png" in made.quantization.skipped[0]


def test_the_summary_says_which_passes_were_kept(folder, tmp_path):
    made = tuned(folder, tmp_path / "x.tnnproto")
    effects = (Effect("bias", True, 20.0, 21.5, "3 layers"), Effect("equalize", False, 20.0, 19.0))
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    changed = replace(made, quantization=replace(made.quantization, effects=effects))
    terminal.print_tuned(console, changed)
    text = stream.getvalue()
    assert "bias kept: SQNR 20.00 -> 21.50 dB; 3 layers" in text
    assert "equalize not kept: SQNR 20.00 -> 19.00 dB" in text


def test_what_is_wrong_is_said_before_any_work(folder, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        tuned(folder, tmp_path / "none" / "x.tnnproto")
    with pytest.raises(UsageError, match="nothing to tune"):
        tuned(folder, tmp_path / "x.tnnproto", settings=Settings(compat=True))
    with pytest.raises(UnsupportedError, match="nope"):
        tuned(folder, tmp_path / "x.tnnproto", settings=Settings(float_nodes=("nope",)))
    (tmp_path / "labels.csv").write_text("other.png,1\n")
    with pytest.raises(DataError, match="no row in the labels"):
        tuned(folder, tmp_path / "x.tnnproto", labels=tmp_path / "labels.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]
