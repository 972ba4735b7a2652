"""The demo and the README's own lines."""

import re
from pathlib import Path

import numpy as np
import pytest

from quantjit import cli, demo, formats
from quantjit.executor import Executor
from quantjit.passes.lower import lower

pytestmark = [pytest.mark.jit, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_demo_is_close_to_float(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo"]) == 0
    out = capsys.readouterr().out
    top1 = re.search(r"float (\d+\.\d+)%, int8 (\d+\.\d+)%", out)
    assert top1 is not None
    assert float(top1[1]) == 94.13
    assert float(top1[2]) >= 93.0
    shown = re.search(r"top-1 +float (\S+), int8 (\S+)", README)
    assert shown is not None
    assert (shown[1], shown[2]) == (f"{top1[1]}%,"[:-1], f"{top1[2]}%"), "the README is stale"
    written = formats.load(tmp_path / "demo_quantized.tnnproto")
    found = Executor(lower(written)).run({"input": np.zeros((1, 3, 48, 48), np.float32)})
    assert np.isfinite(found["logits"]).all()


def test_the_python_example_of_the_readme_prints_what_it_says(monkeypatch, tmp_path, capsys):
    block = re.search(r"```python\n(.*?)```\n```\n(.*?)```", README, re.DOTALL)
    assert block is not None
    (tmp_path / "data").symlink_to(demo.folder())
    monkeypatch.chdir(tmp_path)
    exec(compile(block[1], "README.md", "exec"), {})
    assert capsys.readouterr().out == block[2]
    assert formats.load(tmp_path / "demo_int8.onnx").is_quantized


def test_every_flag_of_the_readme_exists(capsys):
    names = "quantize", "tune", "analyze", "calibrate", "merge", "report", "inspect", "zoo"
    for command in names:
        assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    flags = set(re.findall(r"`(--?[a-z][a-z_-]*)", README))
    assert len(flags) > 15
    for flag in flags - {"--compat tnn"}:
        assert flag in text, flag


def test_the_large_set_of_the_readme_runs(monkeypatch, tmp_path):
    section = README.split("### Large calibration sets", 1)[1]
    commands = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert commands is not None
    (tmp_path / "data").symlink_to(demo.folder())
    monkeypatch.chdir(tmp_path)
    for line in commands[1].splitlines():
        program, *argv = line.split()
        assert program == "quantjit"
        assert cli.main([*argv, "-q"]) == 0
    assert formats.load(tmp_path / "net_quantized.tnnproto").is_quantized
