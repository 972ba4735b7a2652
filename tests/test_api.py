"""The steps from Python: what they give, and what they refuse in one line."""

from pathlib import Path

import models
import numpy as np
import pytest

import quantjit
from quantjit import formats
from quantjit.errors import DataError, UnsupportedError, UsageError

pytestmark = pytest.mark.jit

SIZE = 8
COUNT = 6


@pytest.fixture(scope="module")
def graph():
    return quantjit_graph()


def quantjit_graph():
    from quantjit.passes.fuse_activation import fuse_activation

    return fuse_activation(models.small_network(SIZE))


@pytest.fixture(scope="module")
def images(graph):
    return np.concatenate([each["data"] for each in models.random_inputs(graph, COUNT)])


@pytest.fixture(scope="module")
def result(graph, images):
    return quantjit.quantize_model(graph, images)


def test_the_steps_are_the_whole(graph, images, result, tmp_path):
    evidence = quantjit.calibrate(graph, images)
    table = quantjit.solve(graph, evidence)
    int8 = quantjit.quantize(graph, table)
    assert int8 == result.quantized
    assert dict(table.scales) == dict(result.table.scales)
    found = quantjit.verify(graph, int8, images)
    assert found.sqnr == result.comparison.sqnr > 20
    assert found.images == COUNT
    paths = quantjit.save(int8, tmp_path / "net.tnnproto")
    assert [path.name for path in paths] == ["net.tnnproto", "net.tnnmodel"]
    assert quantjit.load(paths[0]).is_quantized


def test_one_call_writes_either_format_by_its_name(images, tmp_path):
    quantjit.save(models.small_network(SIZE), tmp_path / "net.tnnproto")
    quantjit.save(models.small_network(SIZE), tmp_path / "net.onnx")
    sizes = {}
    for source in ("net.tnnproto", "net.onnx"):
        for target in ("int8.tnnproto", "int8.onnx"):
            made = quantjit.quantize_model(
                str(tmp_path / source), images, str(tmp_path / target), evaluation=images[:2]
            )
            assert made.paths[0] == tmp_path / target
            assert made.comparison.images == 2
            assert made.quantized.is_onnx == target.endswith(".onnx")
            assert made.source_bytes > 0
            sizes[source, target] = made.target_bytes
            read = quantjit.load(made.paths[0])
            assert read.is_quantized
    assert min(sizes.values()) > 0


def test_one_call_with_nothing_to_compare_reads_once(graph, images):
    made = quantjit.quantize_model(graph, (x for x in images), verify_inputs=0)
    assert made.comparison is None
    assert made.calibration.images == COUNT
    assert made.paths == ()
    assert made.source_bytes == made.target_bytes == 0
    with pytest.raises(DataError, match="needed again after the calibration: give a list"):
        quantjit.quantize_model(graph, (x for x in images))
    part = quantjit.quantize_model(graph, images, verify_inputs=3)
    assert part.comparison.images == 3


def test_settings_left_out_are_those_of_the_command_line(tmp_path, monkeypatch, capsys, images):
    from quantjit import cli

    monkeypatch.chdir(tmp_path)
    quantjit.save(models.small_network(SIZE), "net.tnnproto")
    np.save("x.npy", images)
    assert cli.main(["quantize", "net.tnnproto", "-i", "x.npy", "-o", "shell", "-q"]) == 0
    capsys.readouterr()
    made = quantjit.quantize_model("net.tnnproto", "x.npy", "python_quantized.tnnproto")
    for suffix in ("tnnproto", "tnnmodel"):
        mine = Path(f"python_quantized.{suffix}").read_bytes()
        assert mine == Path(f"shell_quantized.{suffix}").read_bytes()
    assert made.table.method == str(quantjit.Settings())
    assert cli.main(["calibrate", "net.tnnproto", "-i", "x.npy", "-o", "s.qjs", "-q"]) == 0
    graph = quantjit.load("net.tnnproto", target="tnn")
    table = quantjit.solve(graph, "s.qjs")
    assert dict(table.scales) == dict(made.table.scales)


def test_compat_has_the_originals_defaults():
    settings = quantjit.Settings(compat=True)
    assert (settings.blob_method, settings.weight_method) == ("minmax", "minmax")
    settings = quantjit.Settings(blob_method="kl")
    assert (settings.blob_method, settings.weight_method) == ("kl", "mse")


def test_labels_from_wherever(graph, images, result, tmp_path):
    right = [each.float_top[0][0] for each in result.comparison.inputs]
    wrong = [(label + 1) % 5 for label in right]
    int8 = result.quantized
    batches = [(images[:4], np.array(right[:4])), (images[4:], np.array(right[4:]))]
    forms = {
        "list": (images, right),
        "array": (images, np.array(right)),
        "brought": ((images, np.array(right)), True),
        "of batches": (batches, True),
        "by name": (images, {f"input {i}": label for i, label in enumerate(right)}),
    }
    for name, (data, labels) in forms.items():
        found = quantjit.verify(graph, int8, data, labels=labels)
        assert found.float_top1 == 1, name
        assert found.int8_top1 == found.agreement, name
    assert quantjit.verify(graph, int8, images, labels=wrong).float_top1 == 0
    for place, image in enumerate(images):
        np.save(tmp_path / f"{place}.npy", image)
    rows = "".join(f"{place}.npy,{label}\n" for place, label in enumerate(right))
    (tmp_path / "labels.csv").write_text(rows)
    found = quantjit.verify(graph, int8, tmp_path, labels=tmp_path / "labels.csv")
    assert found.float_top1 == 1
    assert quantjit.verify(graph, int8, images).float_top1 is None
    assert quantjit.verify(graph, int8, images, labels=False).float_top1 is None


def test_labels_that_do_not_fit(graph, images, result, tmp_path):
    int8 = result.quantized
    for labels, words in (
        ([0] * 5, "there are 5 labels, and more inputs than that"),
        ([0] * 7, "there are 7 labels for 6 inputs"),
        ([0.5] * 6, "labels must be integers, one an input, got float64"),
    ):
        with pytest.raises(UsageError, match=words):
            quantjit.verify(graph, int8, images, labels=labels)
    with pytest.raises(DataError, match="input 0: has no row in the labels"):
        quantjit.verify(graph, int8, images, labels=True)
    np.save(tmp_path / "x.npy", images)
    with pytest.raises(UsageError, match="files bring no labels: give a CSV"):
        quantjit.verify(graph, int8, tmp_path, labels=True)


def test_progress_says_how_many_where_it_is_known(graph, images):
    for data, total in ((images, COUNT), (iter(images), 0)):
        said = []
        quantjit.calibrate(graph, data, on_progress=lambda *each, to=said: to.append(each))
        assert said[-1] == ("calibrate", COUNT, total)


def test_one_line_before_the_work_begins(graph, images, result, tmp_path):
    with pytest.raises(UsageError, match="quantized already: calibrate the float one"):
        quantjit.calibrate(result.quantized, images)
    with pytest.raises(UsageError, match="quantized already: calibrate the float one"):
        quantjit.quantize_model(result.quantized, images)
    with pytest.raises(DataError, match="TNN's tool, which compat follows, reads its inputs twice"):
        quantjit.calibrate(graph, iter(images), quantjit.Settings(compat=True))
    per_channel = quantjit.Settings(merge="channel")
    with pytest.raises(UsageError, match="needs statistics of 3 channels, found those of 1"):
        quantjit.solve(graph, result.calibration, per_channel)
    with pytest.raises(UsageError, match="needs statistics of the whole tensor, found none"):
        quantjit.solve(graph, {})
    other = models.small_network(SIZE).with_nodes(models.small_network(SIZE).nodes[:1])
    with pytest.raises(UsageError, match="table is of another network: it names layer"):
        quantjit.quantize(other, result.table)
    with pytest.raises(UsageError, match="table is of another network: it lacks blob 'data'"):
        quantjit.quantize(graph, quantjit.CalibrationTable({}))
    with pytest.raises(UsageError, match=r"quantized for tnn; Settings\(target='onnx'\) quantize"):
        quantjit.save(result.quantized, tmp_path / "net.onnx")
    formats.save(models.small_network(SIZE), tmp_path / "net.tnnproto")
    with pytest.raises(UnsupportedError, match="unknown target 'tf'"):
        quantjit.load(tmp_path / "net.tnnproto", target="tf")
    with pytest.raises(UsageError, match="no such folder to write to"):
        quantjit.quantize_model(graph, images, tmp_path / "none" / "net.tnnproto")
    with pytest.raises(UsageError, match="a network for tnn cannot be written under it"):
        quantjit.quantize_model(graph, images, tmp_path / "net.onnx", quantjit.Settings())
    smaller = models.small_network(4)
    with pytest.raises(UsageError, match=r"the networks differ: inputs .*1, 3, 8, 8"):
        quantjit.verify(graph, smaller, images)


# ------------------------------------------------------------------ tune, analyze, report


def test_tune_finds_settings_on_what_it_held_out(graph, images, tmp_path):
    many = np.concatenate([each["data"] for each in models.random_inputs(graph, 20)])
    tuned = quantjit.tune(graph, many, tmp_path / "net.tnnproto", passes=())
    assert tuned.held_out == 6
    assert tuned.quantization.calibration.images == 14
    best = tuned.candidates[0]
    assert best.settings == tuned.settings
    assert best.sqnr >= tuned.default.sqnr
    found = tuned.quantization.comparison
    assert found.images == 6
    assert found.sqnr == pytest.approx(best.sqnr, abs=1e-6)
    assert quantjit.load(tuned.quantization.paths[0]).is_quantized
    apart = quantjit.tune(graph, many[:16], held_out=iter(many[16:]), passes=())
    assert apart.held_out == 4
    assert apart.quantization.paths == ()


def test_tune_with_labels_and_a_gate(graph, images):
    right = [
        each.float_top[0][0] for each in quantjit.quantize_model(graph, images).comparison.inputs
    ]
    for data, held_out, labels in (
        (images, images, right),
        (images, (images, np.array(right)), True),
        ((images, np.array(right)), None, True),
        (images, images, {f"input {place}": label for place, label in enumerate(right)}),
    ):
        tuned = quantjit.tune(graph, data, held_out=held_out, labels=labels, passes=())
        assert tuned.quantization.comparison.float_top1 == 1.0
    gated = quantjit.tune(graph, images, passes=(), min_sqnr=60.0)
    assert gated.quantization.comparison.sqnr >= 60
    assert gated.settings.float_nodes or gated.settings.exclude


def test_tune_says_what_it_cannot_do(graph, images):
    with pytest.raises(UsageError, match="no part to hold out: give held_out"):
        quantjit.tune(graph, lambda: iter(images))
    with pytest.raises(DataError, match="once only, and a part of it is held out"):
        quantjit.tune(graph, iter(images))
    with pytest.raises(UsageError, match="compat has its settings"):
        quantjit.tune(graph, images, settings=quantjit.Settings(compat=True))
    with pytest.raises(UsageError, match="a list of labels is that of held_out"):
        quantjit.tune(graph, images, labels=[0] * 6)
    with pytest.raises(UsageError, match="there are 5 labels for 6 inputs"):
        quantjit.tune(graph, images, held_out=images, labels=[0] * 5)


def test_analyze_ranks_the_layers(graph, images, result):
    found = quantjit.analyze(graph, result.quantized, images, images=3)
    assert found.images == 3
    names = {node.name for node in result.quantized.nodes if node.quant is not None}
    assert {node.name for node in found.nodes} == names
    alone = [node.alone for node in found.nodes]
    assert alone == sorted(alone)
    whole_network = quantjit.verify(graph, result.quantized, images[:3])
    assert found.whole.sqnr == pytest.approx(whole_network.sqnr, abs=1e-6)
    with pytest.raises(UsageError, match="the layers differ"):
        quantjit.analyze(graph, graph, images)
    with pytest.raises(UsageError, match="images must be 1 or more, got 0"):
        quantjit.analyze(graph, result.quantized, images, images=0)


def test_a_report_of_either(graph, images, result, tmp_path):
    path = quantjit.report(tmp_path / "one", result, quantjit.Settings(), title="small")
    assert path == tmp_path / "one" / "report.html"
    text = path.read_text(encoding="utf-8")
    assert "small" in text
    assert (tmp_path / "one" / "nodes.parquet").is_file()
    tuned = quantjit.tune(graph, images, passes=())
    page = quantjit.report(str(tmp_path / "two"), tuned, class_names="abcde")
    assert page.is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="a report is a folder, this is a file"):
        quantjit.report(tmp_path / "file", result)
