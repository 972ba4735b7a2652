"""The command line, as its users call it: files in, files, text and exit codes out."""

import subprocess
import sys

import models
import numpy as np
import polars as pl
import pytest
from PIL import Image

from quantjit import __version__, cli, formats

pytestmark = pytest.mark.jit


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A tiny network on disk with a folder of images."""
    root = tmp_path_factory.mktemp("work")
    formats.save(models.small_network(size=12), root / "net.tnnproto")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    return root


@pytest.fixture
def here(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return workplace


def common(root):
    proto, model = str(root / "net.tnnproto"), str(root / "net.tnnmodel")
    return ["-p", proto, "-m", model, "-i", str(root / "images"), "-n", "127", "-s", "1/64"]


def run(capsys, *argv, main=cli.main):
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_quantize_writes_verifies_and_explains(here, tmp_path, capsys):
    code, out, _ = run(capsys, "quantize", *common(here), "-o", "net")
    assert code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "net_quantized.tnnmodel",
        "net_quantized.tnnproto",
    ]
    assert formats.load(tmp_path / "net_quantized.tnnproto").is_quantized
    for word in ("settings", "calibrated", "6 inputs", "SQNR", "worst nodes", "smaller"):
        assert word in out
    assert "calibrate on more inputs: 6 are few" in out.replace("\n", " ")


def test_default_names_and_number_or_name(here, tmp_path, capsys):
    assert run(capsys, "quantize", *common(here), "-b", "2", "-w", "1", "-t", "0")[0] == 0
    numbered = (tmp_path / "model_quantized.tnnmodel").read_bytes()
    words = ["-b", "kl", "-w", "admm", "-t", "channel"]
    assert run(capsys, "quantize", *common(here), *words)[0] == 0
    assert (tmp_path / "model_quantized.tnnmodel").read_bytes() == numbered


def test_the_drop_in_has_the_defaults_of_the_original(here, tmp_path, capsys):
    code, out, _ = run(capsys, *common(here), main=cli.quantization_cmd)
    assert code == 0
    assert "blobs minmax, weights minmax, channel" in out
    drop_in = (tmp_path / "model_quantized.tnnmodel").read_bytes()
    run(capsys, "quantize", *common(here), "-b", "0", "-w", "0", "-t", "0")
    assert (tmp_path / "model_quantized.tnnmodel").read_bytes() == drop_in
    assert run(capsys, main=cli.quantization_cmd)[:2][0] == 0


def test_threads_and_order_of_images_do_not_change_a_byte(here, tmp_path, capsys):
    results = set()
    for jobs in ("1", "2", "3"):
        assert run(capsys, "quantize", *common(here), "-j", jobs, "-t", "0", "-b", "mse")[0] == 0
        results.add((tmp_path / "model_quantized.tnnmodel").read_bytes())
    assert len(results) == 1


def test_long_flags_of_the_original_and_of_its_manual(here, capsys):
    long = [
        "--proto", here / "net.tnnproto", "--model", here / "net.tnnmodel",
        "--input_path", here / "images", "--blob_method", "0", "--weight_method", "0",
        "--merge_type", "1", "--reverse_channel", "1", "--scale", "1e-2,1e-2,1e-2", "--output", "x",
    ]  # fmt: skip
    assert run(capsys, "quantize", *long, "--bias", "1,2,3")[0] == 0
    assert run(capsys, "quantize", *long, "--mean", " 1, 2, 3 ")[0] == 0


def test_compat_runs(here, capsys):
    code, out, _ = run(capsys, "quantize", *common(here), "--compat", "tnn", "-b", "2", "-w", "1")
    assert code == 0
    assert "compat tnn" in out


def test_tables_are_written(here, tmp_path, capsys):
    tables = ["--table", "scales.csv", "--nodes-table", "nodes.parquet"]
    assert run(capsys, "quantize", *common(here), *tables)[0] == 0
    scales = pl.read_csv(tmp_path / "scales.csv")
    assert {"blob", "channel", "scale", "zero_point", "minimum", "maximum"} == set(scales.columns)
    nodes = pl.read_parquet(tmp_path / "nodes.parquet")
    assert nodes.filter(pl.col("node") == "conv1")["int8"].item()
    assert not nodes.filter(pl.col("node") == "mean")["int8"].item()


def test_verify_and_gate(here, tmp_path, capsys):
    assert run(capsys, "quantize", *common(here), "--verify", "0", "-q") == (0, "", "")
    argv = [*common(here), "--quantized-proto", tmp_path / "model_quantized.tnnproto"]
    code, out, _ = run(capsys, "verify", *argv)
    assert code == 0
    assert "top-1 agreement" in out
    code, _, err = run(capsys, "verify", *argv, "--min-sqnr", "150")
    assert code == 5
    assert "below --min-sqnr 150" in err
    assert run(capsys, "quantize", *common(here), "--min-sqnr", "150")[0] == 5
    code, _, err = run(capsys, "quantize", *common(here), "--min-sqnr", "9", "--verify", "0")
    assert code == 2
    assert "--verify" in err


def test_labels_give_top1(here, tmp_path, capsys):
    rows = "\n".join(f"{index}.png,{index % 5}" for index in range(6))
    (tmp_path / "labels.csv").write_text(f"file,label\n{rows}\n")
    code, out, _ = run(capsys, "quantize", *common(here), "--labels", "labels.csv")
    assert code == 0
    assert "top-1" in out
    assert "points" in out
    (tmp_path / "labels.csv").write_text("0.png,1\n")
    code, _, err = run(capsys, "quantize", *common(here), "--labels", "labels.csv")
    assert code == 4
    assert "no row in the labels" in err


def test_inspect_needs_no_weights(here, tmp_path, capsys):
    code, out, _ = run(capsys, "inspect", "-p", here / "net.tnnproto")
    assert code == 0
    assert "truncates" in out
    (tmp_path / "bare.tnnproto").write_bytes((here / "net.tnnproto").read_bytes())
    code, out, _ = run(capsys, "inspect", "-p", "bare.tnnproto", "--nodes-table", "n.csv")
    assert code == 0
    assert pl.read_csv(tmp_path / "n.csv")["macs"].sum() > 0


def without(argv, *flags):
    pairs = [argv[i : i + 2] for i in range(0, len(argv), 2)]
    return [word for pair in pairs if pair[0] not in flags for word in pair]


FAULTS = {
    "no such model": (lambda r, a: [*without(a, "-p"), "-p", "no.tnnproto"], 3, "no.tnnproto"),
    "swapped": (
        lambda r, a: [
            *without(a, "-p", "-m"),
            *("-p", r / "net.tnnmodel", "-m", r / "net.tnnproto"),
        ],
        3,
        "swapped",
    ),
    "no input folder": (lambda r, a: [*without(a, "-i"), "-i", "nowhere"], 4, "nowhere"),
    "no flag -i": (lambda r, a: without(a, "-i"), 2, "-i/--input_path is required"),
    "unknown method": (lambda r, a: [*a, "-b", "9"], 2, "0|minmax"),
    "letters for numbers": (lambda r, a: [*a, "-n", "1,x"], 2, "x"),
    "counts of bias": (lambda r, a: [*a, "-n", "1,2"], 2, "2"),
    "unknown flag": (lambda r, a: [*a, "--frobnicate"], 2, "frobnicate"),
    "no output folder": (lambda r, a: [*a, "-o", "no/where"], 2, "no such folder"),
    "unknown layer": (lambda r, a: [*a, "-x", "conv9"], 3, "conv1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_give_one_line_and_their_exit_code(fault, here, tmp_path, capsys):
    change, expected, words = FAULTS[fault]
    code, out, err = run(capsys, "quantize", *change(here, common(here)))
    assert code == expected, err
    assert words in err
    assert out == ""
    assert "Traceback" not in err
    if "usage:" not in err:
        assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "nothing half-written is left"


def test_bad_images_are_skipped_up_to_the_share(here, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for source in (here / "images").iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not really")
    argv = [*without(common(here), "-i"), "-i", folder]
    code, _, err = run(capsys, "quantize", *argv)
    assert code == 4
    assert "broken.jpg" in err
    code, out, _ = run(capsys, "quantize", *argv, "--max-bad", "20%")
    assert code == 0
    assert "broken.jpg" in "".join(out.split())
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = run(capsys, "quantize", *without(common(here), "-i"), "-i", empty)
    assert code == 4
    assert ".jpg" in err


def test_nan_inputs_fail_or_are_left_out(here, tmp_path, capsys):
    folder = tmp_path / "arrays"
    folder.mkdir()
    array = np.random.default_rng(0).normal(size=(1, 3, 12, 12)).astype(np.float32)
    np.save(folder / "a.npy", array)
    array[0, 0, 0, 0] = np.inf
    np.save(folder / "b.npy", array)
    argv = [*without(common(here), "-i"), "-i", folder]
    code, _, err = run(capsys, "quantize", *argv)
    assert code == 4
    assert "b.npy" in err
    assert "data" in err
    code, out, _ = run(capsys, "quantize", *argv, "--nonfinite", "skip", "--verify", "0")
    assert code == 0
    assert "b.npy" in out.replace("\n", "")


def test_an_int8_network_is_not_quantized_again(here, tmp_path, capsys):
    run(capsys, "quantize", *common(here), "-q")
    argv = without(common(here), "-p", "-m")
    code, _, err = run(capsys, "quantize", *argv, "-p", "model_quantized.tnnproto")
    assert code == 3
    assert "quantized already" in err


def test_help_version_and_unknown_commands(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "quantjit quantize" in out
    assert run(capsys, "--version")[1] == f"quantjit {__version__}\n"
    assert run(capsys)[0] == 2
    code, _, err = run(capsys, "-p", "x")
    assert code == 2
    assert "quantjit quantize" in err
    code, _, err = run(capsys, "quantise")
    assert code == 2
    assert "quantize" in err
    for command in ("quantize", "verify", "inspect", "demo"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0
        assert "--help" in out


def test_module_and_import_are_quiet(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "quantjit", "--version"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("quantjit ")
    code = "import sys, quantjit; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
