"""The parts of a zoo: images decoded once, fingerprints, leaderboards, first manifests, events."""

import dataclasses
import io
import json
import os
import re
import tomllib

import models
import numpy as np
import polars as pl
import pytest
from PIL import Image
from rich.console import Console

from quantjit import content, decoded, formats, job, leaderboard, manifest, zoo_init
from quantjit.calibration import origin_of
from quantjit.child import Ended
from quantjit.content import Marks, key_of
from quantjit.dataset import Dataset
from quantjit.errors import UsageError
from quantjit.graph import Blob, Graph, Node
from quantjit.images import PRESETS, Preprocess
from quantjit.leaderboard import Row
from quantjit.manifest import Gates
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.pipeline import Inputs
from quantjit.zoo_progress import ZooProgress

SHAPE = (1, 3, 5, 7)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate([(9, 8), (5, 7), (6, 6)]):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    np.save(folder / "array.npy", np.zeros(SHAPE, np.float32))
    return folder


# ------------------------------------------------------------------ decoded


def decode_all(folder, how, **options):
    """Samples by name, and the errors, of a folder."""
    data = Dataset.open(folder, {"data": SHAPE}, how, max_bad=1.0, **options)
    return {sample.file: sample.arrays["data"] for sample in data}, [*map(str, data.skipped)]


@pytest.mark.parametrize("how", [*PRESETS.values(), Preprocess(resize="crop", resize_shorter=8)])
def test_pixels_from_the_file_are_those_of_decoding(images, tmp_path, how):
    files = sorted(images.iterdir())
    pixels = decoded.write(tmp_path / "p", files, SHAPE, how, most_bytes=10**6, jobs=2)
    assert len(pixels.rows) == 3
    reusing = decoded.Reusing(how, decoded.Pixels.load(tmp_path / "p"))
    expected, errors = decode_all(images, how)
    found, found_errors = decode_all(images, reusing)
    assert found_errors == errors
    assert found.keys() == expected.keys()
    assert len(errors) == 1
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    graph = models.small_network()
    assert origin_of(graph, reusing) == origin_of(graph, how)


def test_pixels_are_really_used_and_only_for_their_bytes_and_size(images, tmp_path):
    how = Preprocess()
    files = sorted(images.iterdir())
    pixels = decoded.write(tmp_path / "p", files, SHAPE, how, most_bytes=10**6)
    (tmp_path / "p" / "pixels").write_bytes(b"\7" * (tmp_path / "p" / "pixels").stat().st_size)
    reusing = decoded.Reusing(how, pixels)
    data = (images / "0.png").read_bytes()
    assert (reusing.sized(images / "0.png", data, SHAPE) == 7).all()
    other = (1, 3, 4, 4)
    expected = how.sized(images / "0.png", data, other)
    np.testing.assert_array_equal(reusing.sized(images / "0.png", data, other), expected)
    Image.new("RGB", (7, 5), (9, 9, 9)).save(images / "0.png")
    changed = (images / "0.png").read_bytes()
    assert (reusing.sized(images / "0.png", changed, SHAPE) == 9).all()
    (tmp_path / "p" / "pixels").write_bytes(b"")
    assert (reusing.sized(images / "0.png", changed, SHAPE) == 9).all()


def test_pixels_are_bounded(images, tmp_path):
    files = sorted(images.iterdir())
    size = 3 * 5 * 7
    for room, rows in ((0, 0), (size - 1, 0), (2 * size, 2), (2 * size + 1, 2)):
        made = decoded.write(tmp_path / "p", files[1:], SHAPE, Preprocess(), most_bytes=room)
        assert len(made.rows) == rows
        assert (tmp_path / "p" / "pixels").stat().st_size <= room
    assert decoded.Pixels.is_in(tmp_path / "p")
    assert not decoded.Pixels.is_in(tmp_path)


# ------------------------------------------------------------------ fingerprints


@pytest.fixture
def entry(tmp_path, images):
    formats.save(models.small_network(), tmp_path / "net.tnnproto")
    (tmp_path / "labels.csv").write_text("0.png,1\n")
    text = '[[model]]\npath = "net.tnnproto"\ninputs = "images"\nlabels = "labels.csv"\n'
    (tmp_path / "zoo.toml").write_text(text)
    (found,) = manifest.load(tmp_path / "zoo.toml").entries
    return found


def test_a_key_changes_with_everything_that_counts(entry, tmp_path, images):
    marks = Marks(tmp_path / "marks.json")
    first = key_of(entry, marks)
    assert key_of(entry, Marks(tmp_path / "other.json")) == first

    def changed(**values):
        return key_of(dataclasses.replace(entry, **values), marks) != first

    assert changed(settings=dataclasses.replace(entry.settings, blob_method="kl"))
    assert changed(inputs=Inputs(PRESETS["tf"]))
    assert changed(inputs=Inputs(limit=2))
    assert changed(verify=3)
    assert changed(labels=None)
    assert changed(verify_path=images)
    assert changed(weights=tmp_path / "none.tnnmodel")
    assert changed(is_auto=True)
    assert not changed(gates=Gates(1.0))
    assert key_of(dataclasses.replace(entry, is_auto=True, gates=Gates(1.0)), marks) != key_of(
        dataclasses.replace(entry, is_auto=True), marks
    )
    for file in (entry.path, tmp_path / "net.tnnmodel", images / "1.png", tmp_path / "labels.csv"):
        before, status = file.read_bytes(), file.stat()
        file.write_bytes(before + b" ")
        assert key_of(entry, marks) != first, file
        file.write_bytes(before)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
        assert key_of(entry, marks) == first, file
    (tmp_path / "net.tnnproto.data").write_bytes(b"external")
    assert key_of(entry, marks) != first
    (tmp_path / "net.tnnproto.data").unlink()
    (images / "new.png").write_bytes(b"x")
    assert key_of(entry, marks) != first
    images.rename(tmp_path / "gone")
    assert key_of(entry, marks) != first


def test_a_key_changes_with_the_version(entry, tmp_path, monkeypatch):
    first = key_of(entry, Marks(tmp_path / "m"))
    monkeypatch.setattr(content, "__version__", "99")
    assert key_of(entry, Marks(tmp_path / "m")) != first


def test_files_are_read_again_only_where_size_or_time_changed(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    os.utime(file, (10**9, 10**9))
    marks = Marks(tmp_path / "marks.json")
    first = marks.of(file)
    marks.save()
    file.write_bytes(b"xyz")
    os.utime(file, (10**9, 10**9))
    assert Marks(tmp_path / "marks.json").of(file) == first  # remembered
    os.utime(file, (10**9, 10**9 + 1))
    assert Marks(tmp_path / "marks.json").of(file) != first
    file.write_bytes(b"new")  # just now: it may change within the same tick
    fresh = Marks(tmp_path / "marks.json")
    fresh.of(file)
    fresh.save()
    assert json.loads((tmp_path / "marks.json").read_text()) == {}
    by_stat = Marks(tmp_path / "other", "stat").of(file)
    assert re.fullmatch(r"stat:3:\d+", by_stat)
    assert marks.of(tmp_path / "none") == "missing"
    assert marks.of(tmp_path) == "no file"
    for damage in ("{", "[]", '{"a": 1}'):
        (tmp_path / "marks.json").write_text(damage)
        assert Marks(tmp_path / "marks.json").of(file) == marks.of(file)


# ------------------------------------------------------------------ leaderboard


def outcome(**values):
    given = {
        "settings": "blobs mse, weights mse, mix",
        "float_bytes": 4000,
        "int8_bytes": 1000,
        "int8_macs": 0.5,
        "inputs": 10,
        "skipped": 0,
        "compared": 10,
        "sqnr_db": 20.0,
        "agreement": 0.9,
        "float_top1": 0.8,
        "int8_top1": 0.75,
        "grade": "usable",
        "files": ["a.onnx"],
        "report": "report/report.html",
    }
    return {**given, **values}


ROWS = (
    Row("z <b>|*", "z.onnx", outcome(), Gates(), "", 1.25, 300_000_000),
    Row("broken", "b.onnx", None, Gates(), "it <is> [red]no|model"),
    Row("a", "a.onnx", outcome(sqnr_db=30.0), Gates(40.0), "", 2.0, None),
    Row("best", "c.onnx", outcome(sqnr_db=31.0), Gates(), "", 2.0, None),
    Row("unverified", "d.onnx", outcome(sqnr_db=None, grade="", compared=0), Gates()),
)


def test_the_order_is_by_verdict_then_sqnr_then_name():
    frame = leaderboard.frame(ROWS)
    assert frame["model"].to_list() == ["best", "z <b>|*", "unverified", "a", "broken"]
    assert frame["verdict"].to_list() == [
        "usable", "usable", "not verified", "gate missed", "failed",
    ]  # fmt: skip
    assert leaderboard.frame(ROWS[::-1]).equals(frame)
    assert frame.columns[-2:] == list(leaderboard.TIMINGS)


def test_gates_in_words():
    passed = Gates(20.0, 0.9, 0.06)
    assert leaderboard.misses(outcome(), passed) == ()
    missed = leaderboard.misses(outcome(), Gates(20.5, 0.95, 0.01))
    assert missed == (
        "SQNR 20.00 dB is below min_sqnr 20.5",
        "agreement 90.00% is below min_agreement 95.00%",
        "top-1 loss 5.00% is above max_drop 1.00%",
    )
    unknown = outcome(sqnr_db=None, agreement=None, float_top1=None)
    assert len(leaderboard.misses(unknown, passed)) == 3


def test_forms_hold_the_same_rows_and_nothing_breaks_them(tmp_path):
    page, markdown, csv, parquet = leaderboard.save(ROWS, tmp_path)
    frame = pl.read_parquet(parquet)
    assert frame.equals(leaderboard.frame(ROWS))
    assert pl.read_csv(csv)["model"].to_list() == frame["model"].to_list()
    html = page.read_text(encoding="utf-8")
    assert "z &lt;b&gt;|*</a>" in html
    assert 'href="z%20%3Cb%3E%7C%2A/report/report.html"' in html
    assert "it &lt;is&gt; [red]no|model" in html
    assert "http" not in html
    lines = markdown.read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(ROWS)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {11}
    assert "3 of 5 models quantized, 1 missed a gate, 1 failed." in lines
    console = Console(file=io.StringIO(), width=150)
    leaderboard.show(console, ROWS)
    shown = console.file.getvalue()
    assert "broken: it <is> [red]no|model" in shown
    assert "a: SQNR 30.00 dB is below min_sqnr 40" in shown
    assert "80.00% -> 75.00%" in shown
    before = page.stat().st_mtime_ns
    leaderboard.save(ROWS[::-1], tmp_path)
    assert page.stat().st_mtime_ns == before, "the same bytes are not written again"


# ------------------------------------------------------------------ first manifests


def renamed(graph, names):
    """The network with other names of blobs."""
    nodes = tuple(
        dataclasses.replace(
            node,
            inputs=tuple(names.get(name, name) for name in node.inputs),
            outputs=tuple(names.get(name, name) for name in node.outputs),
        )
        for node in graph.nodes
    )
    inputs = tuple(Blob(names.get(blob.name, blob.name), blob.shape) for blob in graph.inputs)
    return Graph(nodes, inputs, tuple(names.get(name, name) for name in graph.outputs))


def test_guesses():
    graph = models.small_network()
    blobs = [blob for node in graph.nodes for blob in node.outputs]
    plain = renamed(graph, {"data": "image"})
    torch = renamed(plain, {name: str(i) for i, name in enumerate(blobs)})
    tensorflow = renamed(plain, {name: f"{name}:0" for name in blobs})
    assert zoo_init.guess_preset(graph).preset == "imagenet-caffe"
    assert zoo_init.guess_preset(graph, "pytorch").preset == "imagenet-torch"
    assert zoo_init.guess_preset(plain, "tf2onnx").preset == "tf"
    assert zoo_init.guess_preset(torch).preset == "imagenet-torch"
    assert zoo_init.guess_preset(tensorflow).preset == "tf"
    assert "cannot be told" in zoo_init.guess_preset(plain).reason
    grey = Graph((models.conv("c", "x", 1, 2),), (Blob("x", (1, 1, 4, 4)),), ("c",))
    assert zoo_init.guess_preset(grey).preset == "unit"
    flat = Graph(grey.nodes, (Blob("x", (1, 8)),), ("c",))
    assert "no image" in zoo_init.guess_preset(flat).reason
    both = (Blob("x", (1, 3, 4, 4)), Blob("y", (1, 3, 4, 4)))
    nodes = (Node("minus", "sub", ("x", "y"), ("out",), BinaryAttrs()),)
    assert "no image" in zoo_init.guess_preset(Graph(nodes, both, ("out",))).reason
    normalizing = Graph(nodes, both[:1], ("out",))
    assert "begins with sub (minus)" in zoo_init.guess_preset(normalizing).reason


def test_a_written_manifest_can_be_read(tmp_path, images):
    place = tmp_path / "models [1]" / "deep"
    place.mkdir(parents=True)
    graph = models.small_network()
    formats.save(graph, place / "net.onnx")
    formats.save(graph, place.parent / "net.onnx")
    formats.save(graph, place / "bare.tnnproto")
    (place / "bare.tnnmodel").unlink()
    (place / "half.onnx").write_bytes((place / "net.onnx").read_bytes()[:300])
    output = tmp_path / "zoo.toml"
    assert zoo_init.write(place.parent, images, output) == 4
    text = output.read_text(encoding="utf-8")
    assert "# its weights are missing: bare.tnnmodel" in text
    assert "# cannot be read: " in text
    assert 'preset = "imagenet-caffe"  # a guess: its input is called data' in text
    found = manifest.load(output).entries
    assert [entry.path for entry in found] == [place / "net.onnx", place.parent / "net.onnx"]
    assert {entry.input_path for entry in found} == {images}
    assert len({entry.name for entry in found}) == 2
    with pytest.raises(UsageError, match="--force writes over it"):
        zoo_init.write(place.parent, images, output)
    assert zoo_init.write(place.parent, None, output, replaces=True) == 4
    assert tomllib.loads(output.read_text(encoding="utf-8"))["defaults"] == {}
    with pytest.raises(UsageError, match="key 'inputs': is missing"):
        manifest.load(output)
    for folder, reason in ((images, "holds no model"), (tmp_path / "x", "no such folder")):
        with pytest.raises(UsageError, match=reason):
            zoo_init.write(folder, None, tmp_path / "new.toml")
    with pytest.raises(UsageError, match="no such folder to write to"):
        zoo_init.write(place, None, tmp_path / "x" / "new.toml")


# ------------------------------------------------------------------ processes and progress


def test_how_a_process_ended():
    assert Ended(3, None).reason == "its process ended with exit code 3"
    assert Ended(-11, None).reason == "its process was ended by SIGSEGV"
    assert "out of memory?" in Ended(-9, None).reason
    assert Ended(-250, None).reason == "its process was ended by signal 250"


class Broken:
    """A task that ends badly."""

    def __init__(self, error):
        self.error = error

    def run(self, send):
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "text", "code"),
    [
        (UsageError("no such thing"), "refused", "no such thing", 2),
        (OSError(28, "No space left on device", "/x"), "system", "/x: No space left on device", 1),
        (MemoryError(), "system", "out of memory: give a smaller --memory", 1),
        (KeyError("a\nb"), "bug", "unexpected KeyError: 'a\\nb'", 1),
        (ValueError(), "bug", "unexpected ValueError", 1),
    ],
)
def test_errors_of_a_task_are_told(error, kind, text, code, capsys):
    events = io.StringIO()
    assert job.perform(Broken(error), events) == code
    assert json.loads(events.getvalue()) == {"error": text, "kind": kind}
    assert ("Traceback" in capsys.readouterr().err) == (kind == "bug")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_is_shown(is_terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=100)
    with ZooProgress(console=console) as progress:
        progress.planned(4, 3)
        progress.started("images 1", 1)
        progress.progress("images 1", "decode", 1, 2)
        progress.finished("images 1", None)
        for row in ROWS[:3]:
            progress.started(row.name, 2)
            progress.progress(row.name, "calibrate", 5, 10)
            progress.finished(row.name, row)
    shown = stream.getvalue()
    assert "1 of 4 models are up to date" in shown
    assert "[2/4] z <b>|*: usable, 20.0 dB" in shown
    assert "broken: failed" in shown
    assert "[red]no|model" in shown
    assert ("broken: started, 2 threads" in shown) != is_terminal


def test_looking_says_what_a_model_takes(entry):
    missing = dataclasses.replace(entry, name="missing", path=entry.path.with_name("x.onnx"))
    events = []
    job.Look((missing, entry), None, 2).run(events.append)
    looking, failed, _, found = events
    assert looking == {"looking": "missing"}
    assert "x.onnx" in failed["error"]
    assert found["shapes"] == {"data": [1, 3, 6, 6]}
    assert found["macs"] > 0
    assert 0 < found["bytes"][1] < found["bytes"][2]
    events.clear()
    job.Look((entry,), 10**6, 1).run(events.append)
    assert "too little for this network" in events[-1]["error"]


def test_the_peak_of_this_process():
    peak = job.peak_bytes()
    assert peak is None or peak > 10**7
