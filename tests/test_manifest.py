"""Manifests: what they say, and that every mistake is named with its table and key."""

import models
import pytest

from quantjit import formats, manifest
from quantjit.dataset import parse_numbers
from quantjit.errors import UsageError
from quantjit.images import PRESETS, Preprocess
from quantjit.manifest import KEYS, Gates
from quantjit.quantizer import PASSES


@pytest.fixture
def place(tmp_path):
    (tmp_path / "models" / "deep").mkdir(parents=True)
    for name in ("a.onnx", "a.tnnproto", "b.onnx", "deep/c.onnx", ".hidden.onnx", "notes.txt"):
        (tmp_path / "models" / name).write_bytes(b"")
    return tmp_path


def load(place, text):
    path = place / "zoo.toml"
    path.write_text(text, encoding="utf-8")
    return manifest.load(path)


def mistakes(place, text):
    with pytest.raises(UsageError) as caught:
        load(place, text)
    said = str(caught.value)
    assert said.startswith(f"{place / 'zoo.toml'}: ")
    assert "\n" not in said
    return said


ONE = '[[model]]\npath = "models/b.onnx"\ninputs = "images"\n'


def test_defaults_patterns_and_relative_paths(place):
    found = load(
        place,
        """
        output = "results"
        [defaults]
        inputs = "images"
        limit = 7
        max_bad = "10%"
        blob_method = "kl"
        [[model]]
        path = "models/*"
        [[model]]
        path = "models/**/c.onnx"
        inputs = "/elsewhere/one.npy"
        input_shape = { data = [1, 3, 8, 8] }
        blob_method = "minmax"
        exclude = "softmax"
        verify_inputs = "more"
        """,
    )
    assert found.output == place / "results"
    assert [entry.name for entry in found.entries] == ["a.onnx", "a.tnnproto", "b", "c"]
    assert [entry.settings.target for entry in found.entries] == ["onnx", "tnn", "onnx", "onnx"]
    first, *_, last = found.entries
    assert first.input_path == place / "images"
    assert (first.inputs.limit, first.inputs.max_bad) == (7, 0.1)
    assert (first.settings.blob_method, last.settings.blob_method) == ("kl", "minmax")
    assert str(last.input_path) == "/elsewhere/one.npy"
    assert last.shapes == {"data": (1, 3, 8, 8)}
    assert last.settings.exclude == ("softmax",)
    assert (first.verify, first.verify_path) == (16, None)
    assert (last.verify, last.verify_path) == (None, place / "more")


def test_a_preset_is_overridden_key_by_key_and_by_the_model(place):
    text = """
    [defaults]
    inputs = "images"
    preset = "imagenet-torch"
    scale = "1/128"
    [[model]]
    path = "models/a.onnx"
    [[model]]
    path = "models/b.onnx"
    bias = [1, "2", 3.5]
    channel_order = "bgr"
    [[model]]
    path = "models/a.tnnproto"
    preset = "tf"
    """
    torch = PRESETS["imagenet-torch"]
    ways = [entry.inputs.preprocess for entry in load(place, text).entries]
    assert ways == [
        Preprocess(torch.bias, (1 / 128,), "rgb", "crop"),
        Preprocess((1.0, 2.0, 3.5), (1 / 128,), "bgr", "crop"),
        PRESETS["tf"],
    ]


def test_the_last_word_on_methods_wins(place):
    text = """
    [defaults]
    inputs = "images"
    method = "auto"
    [[model]]
    path = "models/a.onnx"
    [[model]]
    path = "models/b.onnx"
    blob_method = "kl"
    [[model]]
    path = "models/a.tnnproto"
    method = "fixed"
    """
    assert [entry.is_auto for entry in load(place, text).entries] == [True, False, False]
    said = mistakes(place, f'{ONE}method = "auto"\nmerge = "mix"\n')
    assert "key 'merge': method = \"auto\" chooses it" in said


def test_names(place):
    pattern = '[[model]]\npath = "models/*.onnx"\ninputs = "i"\nname = "{stem}-kl"\n'
    assert [entry.name for entry in load(place, pattern).entries] == ["a-kl", "b-kl"]
    said = mistakes(place, pattern.replace("{stem}-", ""))
    assert "2 models fit the path: say e.g. '{stem}-kl'" in said
    assert "give each its own name" in mistakes(place, ONE + ONE)
    for name in ("leaderboard", "../b", ".b", "a/b"):
        assert "cannot be the name of a folder" in mistakes(place, f'{ONE}name = "{name}"\n')


def test_every_mistake_is_named_at_once(place):
    said = mistakes(
        place,
        """
        colour = 1
        [defaults]
        preset = "imagenet-torh"
        path = "x"
        [[model]]
        path = "models/b.onnx"
        blob_metod = "kl"
        min_sqnr = "high"
        [[model]]
        path = "models/*.caffe"
        inputs = "images"
        [[model]]
        inputs = "images"
        """,
    )
    assert "8 mistakes: " in said
    assert "key 'colour': unknown; known: output, defaults, model" in said
    assert "[defaults] key 'preset': did you mean 'imagenet-torch'?" in said
    assert "[defaults] key 'path': unknown; it belongs to one [[model]]" in said
    assert (
        "[[model]] 1 (models/b.onnx) key 'blob_metod': unknown; did you mean 'blob_method'" in said
    )
    assert "[[model]] 1 (models/b.onnx) key 'min_sqnr': expected a number, found 'high'" in said
    assert "[[model]] 1 (models/b.onnx) key 'inputs': is missing" in said
    assert "[[model]] 2 (models/*.caffe) key 'path': no model fits" in said
    assert "[[model]] 3 key 'path': is missing" in said


WRONG = {
    "path": '"net.caffemodel"',
    "name": "1",
    "weights": "true",
    "input_shape": "[1, 3]",
    "inputs": '""',
    "limit": "0",
    "max_bad": '"120%"',
    "nonfinite": '"maybe"',
    "preset": "1",
    "bias": '"a"',
    "scale": "[true]",
    "channel_order": '"grb"',
    "resize": '"fit"',
    "resize_shorter": "2.5",
    "method": '"automatic"',
    "blob_method": '"kll"',
    "weight_method": '"x"',
    "merge": '"both"',
    "passes": '["bais"]',
    "exclude": "[1]",
    "float_fallback": "1",
    "format": '"caffe"',
    "form": '"qd"',
    "activations": '"int4"',
    "symmetric": '"yes"',
    "labels": "2",
    "verify": "-1",
    "verify_inputs": "[]",
    "min_sqnr": "nan",
    "min_agreement": "2",
    "max_drop": "-0.1",
}


def test_each_key_has_a_wrong_value():
    assert set(WRONG) == set(KEYS)


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_names_its_key(place, key):
    given = dict(line.split(" = ") for line in ONE.splitlines()[1:])
    lines = [f"{name} = {value}" for name, value in {**given, key: WRONG[key]}.items()]
    said = mistakes(place, "\n".join(["[[model]]", *lines]))
    assert f"key '{key}': " in said


def test_contradictions_and_files_that_are_no_manifest(place):
    assert "max_drop': needs labels" in mistakes(place, f"{ONE}max_drop = 0.01\n")
    assert "a gate needs a verification" in mistakes(place, f"{ONE}verify = 0\nmin_sqnr = 9\n")
    assert "merge type channel" in mistakes(place, f'{ONE}merge = "channel"\n')
    assert "weight method asymmetric" in mistakes(place, f'{ONE}weight_method = "asymmetric"\n')
    assert "bias must be" in mistakes(place, f"{ONE}bias = []\n")
    assert "there is no [[model]]" in mistakes(place, "[defaults]\n")
    assert "expected tables: [[model]]" in mistakes(place, "model = 1\n")
    assert "is no TOML" in mistakes(place, "[[model]\n")
    assert "line 2" in mistakes(place, 'a = "b"\nc = \n')
    with pytest.raises(UsageError, match="cannot be read"):
        manifest.load(place / "nothing.toml")


def test_gates_and_all_passes(place):
    text = f'{ONE}labels = "l.csv"\nmin_sqnr = 9\nmin_agreement = "90%"\nmax_drop = 0.01\n'
    (entry,) = load(place, f'{text}passes = "all"\n').entries
    assert entry.gates == Gates(9.0, parse_numbers("90")[0] / 100, 0.01)
    assert entry.settings.passes == PASSES


def test_a_folder_is_a_zoo_of_its_models(place, monkeypatch):
    monkeypatch.chdir(place)
    folder = place / "models"
    found = manifest.of_folder(folder, {"inputs": "images", "bias": [1.0]})
    assert [entry.path.name for entry in found.entries] == ["a.onnx", "a.tnnproto", "b.onnx"]
    assert {str(entry.input_path) for entry in found.entries} == {"images"}
    with pytest.raises(UsageError, match="holds no model"):
        manifest.of_folder(place, {"inputs": "images"})
    with pytest.raises(UsageError, match="no such folder"):
        manifest.of_folder(place / "x", {})
    odd = place / "odd[1]"
    odd.mkdir()
    (odd / "d.onnx").write_bytes(b"")
    assert [entry.name for entry in manifest.of_folder(odd, {"inputs": "i"}).entries] == ["d"]


def test_the_files_of_a_model(place):
    formats.save(models.small_network(), place / "net.tnnproto")
    (entry,) = load(place, ONE.replace("models/b.onnx", "net.tnnproto")).entries
    assert [file.name for file in entry.model_files] == ["net.tnnproto", "net.tnnmodel"]
    (entry,) = load(
        place, ONE.replace("models/b.onnx", "net.tnnproto") + 'weights = "w.tnnmodel"\n'
    ).entries
    assert entry.model_files == (place / "net.tnnproto", place / "w.tnnmodel")
