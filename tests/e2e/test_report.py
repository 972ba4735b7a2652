"""`quantjit report` and `--report`: folders out, one line and an exit code where that cannot be."""

import re
from pathlib import Path

import models
import numpy as np
import polars as pl
import pytest
from PIL import Image

from quantjit import cli, demo, formats

pytestmark = pytest.mark.jit

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    root = tmp_path_factory.mktemp("work")
    formats.save(models.small_network(size=12), root / "net.tnnproto")
    formats.save(models.small_network(size=12), root / "net.onnx")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    (root / "names.txt").write_text("disc\nstar\nbox\ncross\narrow\n")
    return root


@pytest.fixture
def here(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return workplace


def run(capsys, *argv):
    code = cli.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def inputs(root):
    return ["-i", root / "images", "-n", "127", "-s", "1/64"]


@pytest.mark.parametrize("name", ["net.tnnproto", "net.onnx"])
def test_both_ways_say_the_same(name, here, capsys):
    suffix = Path(name).suffix
    code, out, _ = run(
        capsys, "quantize", here / name, *inputs(here), "--report", "made", "--class-names",
        here / "names.txt", "-o", "net",
    )  # fmt: skip
    assert code == 0
    assert "made/report.html" in out
    code, out, _ = run(capsys, "report", here / name, f"net_quantized{suffix}", *inputs(here))
    assert code == 0
    for word in (
        "ship it?",
        "worst",
        "try",
        "images",
        "report/report.html",
        "worst nodes",
        "of the MACs",
    ):
        assert word in out
    for table in ("nodes", "weights", "inputs", "histograms", "channels"):
        made, seen = (
            pl.read_parquet(Path(folder) / f"{table}.parquet") for folder in ("made", "report")
        )
        if table == "nodes":
            made, seen = (frame.drop("why_float") for frame in (made, seen))
        assert made.equals(seen), table
    text = Path("made/report.html").read_text(encoding="utf-8")
    assert "arrow" in text
    assert "arrow" not in Path("report/report.html").read_text(encoding="utf-8")


def test_an_int8_network_of_another_tool(here, capsys):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            rng = np.random.default_rng(0)
            self.left = [rng.normal(0, 1, (1, 3, 12, 12)).astype(np.float32) for _ in range(4)]

        def get_next(self):
            return {"data": self.left.pop()} if self.left else None

    quantize_static(here / "net.onnx", "theirs.onnx", Reader(), quant_format=QuantFormat.QOperator)
    code, out, _ = run(capsys, "report", here / "net.onnx", "theirs.onnx", *inputs(here))
    assert code == 0
    assert "100.0% of the MACs" in out
    nodes = pl.read_parquet("report/nodes.parquet")
    assert nodes["int8"].null_count() > 0
    assert "not known" in Path("report/report.html").read_text(encoding="utf-8")


def test_statistics_are_enough(here, capsys):
    common = [here / "net.tnnproto", *inputs(here)]
    assert run(capsys, "calibrate", *common, "-t", "0", "-o", "stats.qjs", "-q")[0] == 0
    assert run(capsys, "quantize", *common, "-t", "0", "-o", "net", "-q")[0] == 0
    pair = [here / "net.tnnproto", "net_quantized.tnnproto"]
    code, out, _ = run(capsys, "report", *pair, "--stats", "stats.qjs", "-o", "bare")
    assert code == 0
    assert "Nothing was compared" in out
    assert not Path("bare/inputs.csv").exists()
    channels = pl.read_csv("bare/channels.csv").filter(pl.col("blob") == "join")
    assert channels["scale"].n_unique() > 1
    code, _, _ = run(
        capsys, "report", *pair, "--stats", "stats.qjs", *inputs(here), "-o", "whole", "--verify", 3
    )
    assert code == 0
    assert pl.read_csv("whole/inputs.csv").height == 3


def test_the_original_arithmetic_has_a_report_too(here, capsys):
    argv = [here / "net.tnnproto", *inputs(here), "--compat", "tnn", "-b", "2", "-w", "1"]
    for merge in ("0", "1"):
        assert run(capsys, "quantize", *argv, "-t", merge, "--report", "r", "-q") == (0, "", "")
        assert Path("r/report.html").stat().st_size > 50_000
    methods = set(pl.read_csv("r/solvers.csv")["method"])
    assert methods == {
        "minmax", "kl", "asymmetric", "aciq-gauss", "aciq-laplace", "in the network",
    }  # fmt: skip


FAULTS = {
    "no inputs": (lambda r: [r / "net.onnx", "net_quantized.onnx"], 2, "-i/--input_path"),
    "no int8 network": (lambda r: [r / "net.onnx", *inputs(r)], 2, "--quantized-proto"),
    "float twice": (lambda r: [r / "net.onnx", r / "net.onnx", *inputs(r)], 3, "an int8 network"),
    "a file for a folder": (
        lambda r: [r / "net.onnx", "net_quantized.onnx", *inputs(r), "-o", r / "names.txt"],
        2,
        "is a file",
    ),
    "no class names": (
        lambda r: [r / "net.onnx", "net_quantized.onnx", *inputs(r), "--class-names", "none"],
        4,
        "class names",
    ),
    "gate": (
        lambda r: [r / "net.onnx", "net_quantized.onnx", *inputs(r), "--min-sqnr", "150"],
        5,
        "below --min-sqnr",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_give_one_line_and_their_exit_code(fault, here, capsys):
    assert run(capsys, "quantize", here / "net.onnx", *inputs(here), "-o", "net", "-q")[0] == 0
    change, expected, words = FAULTS[fault]
    code, _, err = run(capsys, "report", *change(here))
    assert code == expected, err
    assert words in err
    assert "Traceback" not in err
    if expected != 5:
        assert not Path("report").exists(), "nothing half-written is left"
    code, _, err = run(capsys, "quantize", here / "net.onnx", *inputs(here), "--report", "no/where")
    assert code == 2
    assert not Path("model_quantized.onnx").exists(), "it is said before the work is done"
    names = ["--class-names", here / "names.txt"]
    code, _, err = run(capsys, "quantize", here / "net.onnx", *inputs(here), *names)
    assert code == 2
    assert "--report" in err


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path, monkeypatch):
    section = README.split("### The report", 1)[1]
    commands = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert commands is not None
    (tmp_path / "data").symlink_to(demo.folder())
    monkeypatch.chdir(tmp_path)
    for line in commands[1].splitlines():
        program, *argv = line.split()
        assert program == "quantjit"
        assert cli.main([*argv, "-q"]) == 0
    text = Path("demo_report/report.html").read_text(encoding="utf-8")
    for answer in ("Is it safe to ship?", "Which layer", "What should I try?", "How many images"):
        assert answer in text


@pytest.mark.shared
@pytest.mark.slow
def test_a_page_of_a_real_network_is_small(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["-i", shared / "images/calib", "-n", "128", "-s", "1/127", "--resize", "crop"]
    model = shared / "models/mobilenet_v2.onnx"
    words = ["quantize", model, *argv, "-l", "40", "--report", "report", "-q"]
    assert cli.main([str(word) for word in words]) == 0
    assert 1_000_000 < Path("report/report.html").stat().st_size < 5_000_000
    nodes = pl.read_parquet("report/nodes.parquet")
    assert nodes.height == 65
    assert nodes["sqnr_db"].null_count() < nodes.height / 2
