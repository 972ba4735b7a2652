"""`quantjit zoo` as its users call it: folders, manifests and mistakes in, a leaderboard out."""

import re
import shutil
import tomllib

import models
import numpy as np
import pytest

from quantjit import cli, demo, formats, manifest
from quantjit.options import ZooOptions, folder_defaults


def run(capsys, *argv):
    code = cli.main(["zoo", *map(str, argv)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inputs").mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        np.save(tmp_path / "inputs" / f"{index}.npy", rng.normal(size=(1, 3, 6, 6)))
    (tmp_path / "nets").mkdir()
    formats.save(models.small_network(), tmp_path / "nets" / "net.tnnproto")
    return tmp_path


@pytest.mark.jit
def test_a_folder_of_models(here, capsys):
    code, out, err = run(capsys, "nets", "-i", "inputs", "--min-sqnr", "5")
    assert code == 0
    assert re.search(r"net +(close to float|usable|poor)", out)
    assert "1 of 1 models quantized" in out
    assert "[1/1] net: " in err
    assert (here / "nets-results" / "net" / "net_quantized.tnnmodel").exists()
    code, _, err = run(capsys, "nets", "-i", "inputs", "--min-sqnr", "190")
    assert code == 5
    assert "1 of 1 models are up to date" in err


def test_mistakes_are_one_line(here, capsys):
    (here / "zoo.toml").write_text('[[model]]\npath = "nets/net.tnnproto"\nlimits = 3\n')
    for argv, words in (
        (["zoo.toml"], ("2 mistakes", "did you mean 'limit'", "key 'inputs': is missing")),
        (["zoo.toml", "-i", "inputs"], ("inputs: a manifest says that itself",)),
        (["nothing.toml"], ("cannot be read",)),
        (["nets"], ("key 'inputs'",)),
        (["inputs", "-i", "inputs"], ("holds no model",)),
        (["nets", "-i", "inputs", "--memory", "300M"], ("too little for a zoo",)),
    ):
        code, out, err = run(capsys, *argv)
        assert (code, out) == (2, ""), err
        assert len(err.strip().splitlines()) == 1
        assert all(word in err for word in words), err
    assert run(capsys)[0] == 2
    assert run(capsys, "init")[0] == 2


def test_init_writes_a_manifest_that_loads(here, capsys):
    code, out, _ = run(capsys, "init", "nets", "-i", "inputs")
    assert code == 0
    assert "zoo.toml: 1 models" in out
    (entry,) = manifest.load(here / "zoo.toml").entries
    assert entry.input_path == here / "inputs"
    assert run(capsys, "init", "nets", "-i", "inputs")[0] == 2
    assert run(capsys, "init", "nets", "-i", "inputs", "--force", "-q")[:2] == (0, "")


def test_what_is_given_for_a_folder_is_what_a_manifest_has(here):
    given = ZooOptions(input_path=here / "inputs", bias=(1.0, 2.0, 3.0), reverse_channel="bgr")
    defaults = folder_defaults(given)
    assert set(defaults) <= set(manifest.KEYS)
    (entry,) = manifest.of_folder(here / "nets", defaults).entries
    assert entry.inputs.preprocess.bias == (1.0, 2.0, 3.0)
    assert entry.inputs.preprocess.channel_order == "bgr"
    assert folder_defaults(ZooOptions()) == {}


def test_the_manifest_of_the_readme(here):
    text = (demo.folder().parent / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    (here / "models").mkdir()
    (here / "caffe").mkdir()
    shutil.copy(demo.folder() / "demo.onnx", here / "models")
    shutil.copy(demo.folder() / "demo.tnnproto", here / "caffe" / "squeezenet.tnnproto")
    (here / "zoo.toml").write_text(block[1], encoding="utf-8")
    first, second = manifest.load(here / "zoo.toml").entries
    assert (first.gates.min_sqnr, second.is_auto, second.settings.target) == (20, True, "onnx")
    section = text.split("### Model zoos")[1].split("\n### ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")][1:]
    keys = re.findall(r"[a-z]+_?[a-z_]*", re.sub(r"\(.*?\)", "", ",".join(rows)))
    assert set(keys) == set(manifest.KEYS)
    assert tomllib.loads(block[1])
