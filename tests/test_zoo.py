"""Zoos of tiny networks: leaderboards, what runs again, and what ends a run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import models
import numpy as np
import polars as pl
import pytest
from PIL import Image

from quantjit import cli, formats, leaderboard, manifest, zoo
from quantjit.errors import Interrupted, UsageError

pytestmark = pytest.mark.jit

TEXT = """
[defaults]
inputs = "images"
bias = 127
scale = "1/64"

[[model]]
path = "net.*"

[[model]]
path = "net.tnnproto"
name = "kl"
blob_method = "kl"
scale = "1/32"

[[model]]
path = "broken.onnx"
"""
QUANTIZED = ("net.onnx", "net.tnnproto", "kl")


def make(root):
    """Write a tiny network in both formats, half a file, images and a manifest."""
    network = models.small_network(size=12)
    formats.save(network, root / "net.tnnproto")
    formats.save(network, root / "net.onnx")
    (root / "broken.onnx").write_bytes((root / "net.onnx").read_bytes()[:500])
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        pixels = rng.integers(0, 256, (16, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    labels = "\n".join(f"{index}.png,{index % 5}" for index in range(6))
    (root / "labels.csv").write_text(f"file,label\n{labels}\n")
    (root / "zoo.toml").write_text(TEXT)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A zoo that ran once, and what came of it."""
    root = make(tmp_path_factory.mktemp("zoo"))
    found = zoo.run(manifest.load(root / "zoo.toml"), root / "results", jobs=2)
    return root, found


class Noted(zoo.Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.begun, self.stages, self.ended = [], set(), []

    def started(self, name, threads):
        self.begun.append(name)

    def progress(self, name, stage, done, total):
        assert 0 <= done <= total
        self.stages.add(stage)

    def finished(self, name, row):
        self.ended.append((name, row and row.verdict))


def run(root, **options):
    noted = Noted()
    options = {"jobs": 2, "watcher": noted, **options}
    found = zoo.run(manifest.load(root / "zoo.toml"), root / "results", **options)
    return found, noted


def stable(folder):
    """Everything under a folder of results that two runs of the same zoo have in common."""
    found = {}
    for file in sorted(Path(folder).rglob("*")):
        inside = file.relative_to(folder)
        if file.is_file() and inside.parts[0] != ".work":
            found[inside.as_posix()] = file.read_bytes()
    for name in [name for name in found if name.endswith(zoo.RECORD)]:
        record = json.loads(found[name])
        found[name] = {k: v for k, v in record.items() if k not in leaderboard.TIMINGS}
    for name in [name for name in found if name.startswith("leaderboard.")]:
        del found[name]
    table = pl.read_parquet(Path(folder) / "leaderboard.parquet")
    return found, table.drop(leaderboard.TIMINGS)


def test_one_broken_model_does_not_stop_the_others(made):
    root, found = made
    assert [row.name for row in found.rows] == [*QUANTIZED, "broken"]
    assert found.ran == (*QUANTIZED, "broken")
    for name in QUANTIZED:
        folder = root / "results" / name
        suffix = "onnx" if name.endswith("onnx") else "tnnproto"
        assert formats.load(folder / f"net_quantized.{suffix}").is_quantized
        for file in ("statistics.qjs", "scales.parquet", "report/report.html", "record.json"):
            assert (folder / file).stat().st_size, file
        assert not (folder / "log.txt").exists()
    broken = found.rows[-1]
    assert broken.verdict == "failed"
    assert "broken.onnx" in broken.reason
    assert "\n" not in broken.reason
    table = pl.read_parquet(root / "results" / "leaderboard.parquet")
    assert table["verdict"].to_list()[-1] == "failed"
    sqnr = table["sqnr_db"].drop_nulls().to_list()
    assert sqnr == sorted(sqnr, reverse=True)
    assert len(sqnr) == 3
    assert (table["seconds"] > 0).all()
    assert (table["peak_bytes"] > 10_000_000).all()
    assert table.filter(pl.col("model") == "kl")["settings"].item() == "blobs kl, weights mse, mix"
    page = (root / "results" / "leaderboard.html").read_text(encoding="utf-8")
    for name in QUANTIZED:
        assert f'href="{name}/report/report.html"' in page
    assert not list((root / "results" / ".work").glob("pixels*"))


def test_the_result_is_that_of_quantize(made, capsys):
    root, _ = made
    argv = ["quantize", root / "net.tnnproto", "-i", root / "images", "-n", "127", "-s", "1/64"]
    assert cli.main([*map(str, argv), "-q", "-o", str(root / "one")]) == 0
    expected = (root / "one_quantized.tnnmodel").read_bytes()
    found = root / "results" / "net.tnnproto" / "net_quantized.tnnmodel"
    assert found.read_bytes() == expected


def test_a_second_run_does_nothing(made):
    root, found = made
    before = {file: file.read_bytes() for file in (root / "results").glob("leaderboard.*")}
    start = time.monotonic()
    again, noted = run(root)
    assert time.monotonic() - start < 3
    assert (again.ran, noted.begun) == ((), [])
    assert again.rows == found.rows
    assert before == {file: file.read_bytes() for file in before}


def test_only_what_changed_runs_again(tmp_path):
    root = make(tmp_path)
    (root / "zoo.toml").write_text(TEXT.replace("net.*", "net.onnx"))
    assert run(root)[0].ran == ("net", "kl", "broken")
    os.utime(root / "net.onnx")  # another time, the same bytes
    assert run(root)[0].ran == ()
    gated = TEXT.replace("net.*", "net.onnx").replace("[[model]]", "min_sqnr = 300\n[[model]]", 1)
    (root / "zoo.toml").write_text(gated)
    found, _ = run(root)
    assert found.ran == ()
    assert [row.verdict for row in found.rows] == ["gate missed", "gate missed", "failed"]
    assert "is below min_sqnr 300" in found.rows[0].missed[0]
    (root / "zoo.toml").write_text(gated.replace('"kl"\nblob_method = "kl"', '"kl"'))
    assert run(root)[0].ran == ("kl",)
    (root / "results" / "net" / "net_quantized.onnx").unlink()
    assert run(root)[0].ran == ("net",)
    (root / "broken.onnx").write_bytes((root / "net.onnx").read_bytes())
    (root / "results" / ".work" / "marks.json").write_text("{")
    assert run(root)[0].ran == ("broken",)
    assert cli.main(["zoo", str(root / "zoo.toml"), "-o", str(root / "results"), "-q"]) == 5


def test_decoding_once_changes_no_bit(made, tmp_path):
    root, _ = made
    alone = zoo.run(
        manifest.load(root / "zoo.toml"), tmp_path / "results", jobs=1, memory=2 * 10**9, share=False
    )
    assert alone.ran == (*QUANTIZED, "broken")
    (shared, shared_table), (single, single_table) = map(
        stable, (root / "results", tmp_path / "results")
    )
    assert shared_table.equals(single_table)
    assert shared.keys() == single.keys()
    for name, content in shared.items():
        if not name.startswith("broken"):  # says where the file is
            assert single[name] == content, name


def command(root, *words):
    argv = [sys.executable, "-m", "quantjit", "zoo", root / "zoo.toml", "-o", root / "results"]
    return subprocess.Popen(
        [*map(str, argv), *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def children(process):
    """Processes that another one started."""
    place = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = set()
    for task in place.parent.parent.iterdir():  # any thread may have started them
        found |= set((task / "children").read_text().split())
    return sorted(map(int, found))


@pytest.mark.slow
def test_killed_at_random_and_resumed(made, tmp_path):
    root = make(tmp_path)
    rng = random.Random(5)
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        process = command(root, "-j", "2")
        time.sleep(rng.uniform(1.5, 9))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        assert process.returncode in {-number, 130, 6}
    process = command(root, "-j", "2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 6, err
    assert "3 of 4 models quantized, 1 failed" in out
    (expected, table), (found, found_table) = map(stable, (made[0] / "results", root / "results"))
    assert found_table.drop("reason").equals(table.drop("reason"))
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        if not name.startswith("broken"):
            assert found[name] == content, name


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="finds processes in /proc")
def test_a_process_that_is_killed_is_one_failed_model(tmp_path):
    root = make(tmp_path)
    (root / "zoo.toml").write_text(TEXT.replace("net.*", "net.tnnproto"))

    class Killer(Noted):
        def progress(self, name, stage, done, total):
            super().progress(name, stage, done, total)
            if name == "kl" and not self.ended_by_us:
                self.ended_by_us = True
                for pid in children(self.this):
                    if b"quantjit" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)

    killer = Killer()
    killer.ended_by_us = False
    killer.this = type("Process", (), {"pid": os.getpid()})
    found, _ = run(root, watcher=killer, jobs=1)
    by_name = {row.name: row for row in found.rows}
    assert by_name["kl"].verdict == "failed"
    assert by_name["kl"].reason == "its process was ended by SIGKILL: out of memory?"
    assert by_name["net"].outcome is not None
    again, _ = run(root)
    assert again.ran == ("kl",)
    assert again.rows[1].outcome is not None


def test_ctrl_c_ends_the_run_and_loses_nothing_that_is_done(tmp_path):
    root = make(tmp_path)
    noted = Noted()
    with pytest.raises(Interrupted, match="1 models are done"):
        run(root, watcher=noted, jobs=1, stop=lambda: any(row for _, row in noted.ended))
    (name,) = [name for name, verdict in noted.ended if verdict]
    assert (root / "results" / name / zoo.RECORD).exists()
    found, again = run(root)
    assert name not in again.begun
    assert len(found.ran) == 3


def test_two_runs_in_one_folder(made):
    root, _ = made
    fcntl = pytest.importorskip("fcntl")
    with (root / "results" / ".work" / "lock").open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another quantjit zoo"):
            run(root)


def test_budgets(made, tmp_path):
    root, _ = made
    wanted = manifest.load(root / "zoo.toml")
    with pytest.raises(UsageError, match="too little"):
        zoo.run(wanted, tmp_path / "results", memory=10**8)
    found = zoo.run(wanted, tmp_path / "results", memory=210 * 10**6 + 100_000)
    assert {row.verdict for row in found.rows} == {"failed"}
    assert "too little for this network" in found.rows[0].reason
