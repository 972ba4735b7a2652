"""tune, analyze, --auto and --mixed, as their users call them."""

import models
import numpy as np
import polars as pl
import pytest
from PIL import Image

from quantjit import cli, formats, tuning
from quantjit.quantizer import Settings

pytestmark = pytest.mark.jit


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    root = tmp_path_factory.mktemp("work")
    formats.save(models.small_network(size=12), root / "net.tnnproto")
    formats.save(models.small_network(size=12), root / "net.onnx")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(10):
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    rows = "\n".join(f"{index}.png,{index % 5}" for index in range(10))
    (root / "labels.csv").write_text(f"file,label\n{rows}\n")
    return root


@pytest.fixture
def here(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return workplace


def common(root, name="net.tnnproto"):
    return [str(root / name), "-i", str(root / "images"), "-n", "127", "-s", "1/64"]


def run(capsys, *argv):
    code = cli.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_tune_writes_the_winner_and_its_leaderboard(here, tmp_path, capsys):
    words = ["-o", "net", "--leaderboard", "board.parquet", "--table", "scales.csv"]
    words += ["--nodes-table", "nodes.csv", "--passes", "none"]
    code, out, err = run(capsys, "tune", *common(here), *words)
    assert code == 0, err
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        "net_quantized.tnnproto", "net_quantized.tnnmodel",
        "board.parquet", "scales.csv", "nodes.csv",
    }  # fmt: skip
    board = pl.read_parquet("board.parquet")
    count = len(tuning.candidates(Settings()))
    assert len(board) == count >= 54
    assert board["original_default"].sum() == 1
    assert board["verdict"][0] == "chosen"
    for word in ("chosen", "default of TNN's tool", f"{count} settings tried", "7 inputs", "SQNR"):
        assert word in out
    first = board.row(0, named=True)
    assert f"blobs {first['blob_method']}, weights {first['weight_method']}" in out
    assert formats.load(tmp_path / "net_quantized.tnnproto").is_quantized


def test_auto_is_tune(here, tmp_path, capsys):
    assert run(capsys, "tune", *common(here, "net.onnx"), "-q", "-o", "a")[0] == 0
    code, out, _ = run(capsys, "quantize", *common(here, "net.onnx"), "--auto", "-o", "b")
    assert code == 0
    assert "settings tried" in out
    made = [(tmp_path / f"{name}_quantized.onnx").read_bytes() for name in "ab"]
    assert made[0] == made[1]


def test_labels_and_zero_points(here, capsys):
    words = ["--labels", here / "labels.csv", "--zero-points", "--passes", "none"]
    code, out, err = run(capsys, "tune", *common(here), *words)
    assert code == 0, err
    assert "top-1" in out
    count = len(tuning.candidates(Settings(), zero_points=True))
    assert f"{count} settings tried" in out


@pytest.mark.parametrize("command", ["quantize", "tune"])
@pytest.mark.parametrize("name", ["net.tnnproto", "net.onnx"])
def test_mixed_reaches_its_target_or_says_that_it_does_not(here, capsys, command, name):
    gate = ["--min-sqnr", "43"]
    code, _, err = run(capsys, command, *common(here, name), *gate, "-q")
    assert code == 5
    assert "below --min-sqnr 43" in err
    code, out, err = run(capsys, command, *common(here, name), *gate, "--mixed")
    assert code == 0, err
    for word in ("MACs", "left float", "left float to meet the target", "dB against int8"):
        assert word in " ".join(out.split())
    code, out, err = run(capsys, command, *common(here, name), "--mixed", "--min-sqnr", "1e9")
    assert code == 5
    assert "whatever is left float" in " ".join(out.split())


def test_gates_of_top1(here, capsys):
    words = [*common(here), "-b", "aciq-gauss", "-t", "tensor", "--labels", here / "labels.csv"]
    assert run(capsys, "quantize", *words, "--max-drop", "100%")[0] == 0
    code, _, err = run(capsys, "quantize", *words, "--max-drop", "2")
    assert code == 2
    assert "no share" in err
    net = "model_quantized.tnnproto"
    code, _, _ = run(
        capsys, "verify", here / "net.tnnproto", net, *common(here)[1:], "--max-drop=1"
    )
    assert code == 0


def test_max_drop_needs_classes(here, tmp_path, capsys):
    graph = models.small_network(size=12)
    nodes = [node for node in graph.nodes if node.name not in {"mean", "scores"}]
    made = graph.with_nodes(tuple(nodes))
    formats.save(type(made)(made.nodes, made.inputs, ("sum_relu",)), tmp_path / "map.onnx")
    code, _, err = run(capsys, "quantize", *common(tmp_path.parent / tmp_path.name, "map.onnx")[:1],
                       *common(here)[1:], "--max-drop", "0.5")  # fmt: skip
    assert code == 2
    assert "class scores" in err


def test_analyze_ranks_layers_and_writes_no_network(here, tmp_path, capsys):
    words = [
        *common(here, "net.onnx"),
        "--nodes-table",
        "nodes.csv",
        "-b",
        "minmax",
        "--verify",
        "3",
    ]
    code, out, err = run(capsys, "analyze", *words)
    assert code == 0, err
    assert [path.name for path in tmp_path.iterdir()] == ["nodes.csv"]
    nodes = pl.read_csv("nodes.csv")
    assert nodes["alone_db"].to_list() == sorted(nodes["alone_db"].to_list())
    assert {"conv1", "scores"} <= set(nodes["node"])
    for word in ("conv1", "alone", "without", "on 3 inputs", "blobs minmax"):
        assert word in " ".join(out.split())
    assert run(capsys, "analyze", *words, "-q")[1] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quantize", "--mixed"], "--min-sqnr or --max-drop"),
        (["quantize", "--mixed", "--max-drop", "0", "--verify", "0"], "--verify 0 asks for none"),
        (["quantize", "--auto", "-b", "kl"], "--auto decides --blob-method itself"),
        (["quantize", "--auto", "--compat", "tnn"], "--auto decides --compat itself"),
        (["tune", "--compat", "tnn"], "unrecognized"),
        (["tune", "--passes", "magic"], "'magic' is none of"),
        (["analyze", "--verify", "0"], "no positive whole number"),
        (["quantize", "--compat", "tnn", "--mixed", "--min-sqnr", "90"], "--compat tnn"),
    ],
)
def test_what_does_not_fit_together_is_said(here, capsys, words, message):
    code, _, err = run(capsys, words[0], *common(here), *words[1:])
    assert code == 2
    assert message in err


def test_auto_from_statistics_alone_is_refused(here, tmp_path, capsys):
    argv = [*common(here), "-o", "stats.qjs", "-t", "channel", "-q"]
    assert run(capsys, "calibrate", *argv)[0] == 0
    proto = common(here)[0]
    code, _, err = run(capsys, "quantize", proto, "--stats", "stats.qjs", "--auto")
    assert code == 2
    assert "give -i" in err
    code, out, err = run(capsys, "tune", *common(here), "--stats", "stats.qjs")
    assert code == 0, err
    assert "none is held out" in " ".join(out.split())
    code, _, err = run(capsys, "analyze", *common(here), "--stats", "stats.qjs", "-t", "0", "-q")
    assert (code, err) == (0, "")
