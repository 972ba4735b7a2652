"""Zoos of tiny networks: leaderboards, what runs again, and what ends a run."""

import io
import json
import os
import random
import shutil
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

from quantjit import cli, formats, job, leaderboard, manifest, zoo
from quantjit.errors import Interrupted, UsageError

pytestmark = pytest.mark.jit

TEXT = """
[defaults]
inputs = "images"
bias = 127
scale = "1/64"

[[model]]
path = "net.onnx"

[[model]]
path = "net.tnnproto"
name = "kl"
blob_method = "kl"
scale = "1/32"

[[model]]
path = "broken.onnx"
"""
QUANTIZED = ("net", "kl")


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
    noted = Noted()
    found = zoo.run(manifest.load(root / "zoo.toml"), root / "results", jobs=2, watcher=noted)
    return root, found, noted


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


def stable_files(folder):
    """Content by path inside a folder."""
    files = {file.relative_to(folder): file for file in sorted(Path(folder).rglob("*"))}
    return {
        inside.as_posix(): file.read_bytes()
        for inside, file in files.items()
        if file.is_file() and inside.parts[0] != ".work"
    }


def stable(folder):
    """Everything under a folder of results that two runs of the same zoo have in common."""
    found = stable_files(folder)
    for name in [name for name in found if name.endswith(zoo.RECORD)]:
        record = json.loads(found[name])
        found[name] = {k: v for k, v in record.items() if k not in leaderboard.TIMINGS}
    for name in [name for name in found if name.startswith("leaderboard.")]:
        del found[name]
    table = pl.read_parquet(Path(folder) / "leaderboard.parquet")
    return found, table.drop(leaderboard.TIMINGS)


def test_one_broken_model_does_not_stop_the_others(made):
    root, found, _ = made
    assert [row.name for row in found.rows] == [*QUANTIZED, "broken"]
    assert found.ran == (*QUANTIZED, "broken")
    for name in QUANTIZED:
        folder = root / "results" / name
        suffix = "onnx" if name == "net" else "tnnproto"
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
    assert len(sqnr) == 2
    assert (table["seconds"] > 0).all()
    assert (table["peak_bytes"] > 10_000_000).all()
    assert table.filter(pl.col("model") == "kl")["settings"].item() == "blobs kl, weights mse, mix"
    page = (root / "results" / "leaderboard.html").read_text(encoding="utf-8")
    for name in QUANTIZED:
        assert f'href="{name}/report/report.html"' in page
    assert not list((root / "results" / ".work").glob("pixels*"))


def test_the_result_is_that_of_quantize(made, capsys):
    root, *_ = made
    argv = ["quantize", root / "net.tnnproto", "-i", root / "images", "-n", "127", "-s", "1/32"]
    assert cli.main([*map(str, argv), "-b", "kl", "-q", "-o", str(root / "one")]) == 0
    expected = (root / "one_quantized.tnnmodel").read_bytes()
    found = root / "results" / "kl" / "net_quantized.tnnmodel"
    assert found.read_bytes() == expected


def test_a_second_run_does_nothing(made):
    root, found, _ = made
    before = {file: file.read_bytes() for file in (root / "results").glob("leaderboard.*")}
    start = time.monotonic()
    again, noted = run(root)
    assert time.monotonic() - start < 3
    assert (again.ran, noted.begun) == ((), [])
    assert again.rows == found.rows
    assert before == {file: file.read_bytes() for file in before}


def test_only_what_changed_runs_again(made, tmp_path):
    root, *_ = made
    results = shutil.copytree(root / "results", tmp_path / "results")
    text = TEXT.replace("[[model]]", "min_sqnr = 300\n[[model]]", 1)
    (root / "gated.toml").write_text(text)
    found = zoo.run(manifest.load(root / "gated.toml"), results)
    assert found.ran == ()  # a gate is judged on what is known
    assert [row.verdict for row in found.rows] == ["gate missed", "gate missed", "failed"]
    assert "is below min_sqnr 300" in found.rows[0].missed[0]
    assert "is below min" in (results / "leaderboard.md").read_text()
    os.utime(root / "net.onnx")  # another time, the same bytes
    (results / ".work" / "marks.json").write_text("{")
    (results / "kl" / "net_quantized.tnnmodel").write_bytes(b"damaged")
    found = zoo.run(manifest.load(root / "zoo.toml"), results)
    assert found.ran == ("kl",)
    (found, table), (expected, expected_table) = map(stable, (results, root / "results"))
    assert found == expected
    assert table.equals(expected_table)


def test_a_process_of_its_own_and_shared_images_change_no_bit(made, tmp_path):
    root, *_ = made
    results, _ = stable(root / "results")
    for entry in manifest.load(root / "zoo.toml").entries:
        events = io.StringIO()
        folder = tmp_path / entry.name
        folder.mkdir()
        code = job.perform(job.Work(entry, folder, None, None, 1), events)
        assert code == (0 if entry.name in QUANTIZED else 3)
        last = json.loads(events.getvalue().splitlines()[-1])
        if code:
            assert last["error"].startswith(f"{root / 'broken.onnx'}: ")
            continue
        made_here = {f"{entry.name}/{x}": y for x, y in stable_files(folder).items()}
        assert len(made_here) > 10
        for name, content in made_here.items():
            assert results[name] == content, name
        assert last["outcome"] == results[f"{entry.name}/{zoo.RECORD}"]["outcome"]


def test_images_that_several_need_are_decoded_once(made):
    assert [name for name in made[2].begun if name.startswith("images")] == [
        "images 1 (images, 12 x 12)"
    ]


def command(root, results):
    argv = [sys.executable, "-m", "quantjit", "zoo", root / "zoo.toml", "-j", "2", "-o", results]
    return subprocess.Popen(
        [*map(str, argv)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_killed_at_random_and_resumed(made, tmp_path):
    root, *_ = made
    rng = random.Random(5)
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        process = command(root, tmp_path)
        time.sleep(rng.uniform(1.5, 9))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        assert process.returncode in {-number, 130, 6}
    process = command(root, tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 6, err
    assert "2 of 3 models quantized, 1 failed" in out
    (expected, table), (found, found_table) = map(stable, (root / "results", tmp_path))
    assert found_table.equals(table)
    assert found == expected


def children():
    """Processes that this one started."""
    tasks = Path("/proc/self/task").iterdir()  # any thread may have started them
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_process_that_is_killed_is_one_failed_model(made, tmp_path):
    root, *_ = made
    before = children()

    class Killer(Noted):
        def progress(self, name, stage, done, total):
            super().progress(name, stage, done, total)
            if name == "kl" and not self.ended:
                for pid in children() - before:
                    os.kill(pid, signal.SIGKILL)

    wanted = manifest.load(root / "zoo.toml")
    wanted = manifest.Manifest(tuple(e for e in wanted.entries if e.name == "kl"))
    (row,) = zoo.run(wanted, tmp_path, jobs=1, watcher=Killer()).rows
    assert row.verdict == "failed"
    assert row.reason == "its process was ended by SIGKILL: out of memory?"
    assert (tmp_path / "kl" / zoo.RECORD).exists()
    again = zoo.run(wanted, tmp_path, jobs=1)
    assert again.ran == ("kl",)
    assert again.rows[0].outcome is not None


def test_stopping_loses_nothing_that_is_done(made, tmp_path):
    root, *_ = made
    noted = Noted()
    with pytest.raises(Interrupted, match="1 models are done"):
        zoo.run(
            manifest.load(root / "zoo.toml"),
            tmp_path,
            jobs=1,
            watcher=noted,
            stop=lambda: any(verdict for _, verdict in noted.ended),
        )
    (name,) = [name for name, verdict in noted.ended if verdict]
    expected, _ = stable(root / "results")
    files = stable_files(tmp_path / name)
    assert len(files) > 10
    assert all(expected[f"{name}/{x}"] == y for x, y in files.items() if x != zoo.RECORD)


def test_two_runs_in_one_folder(made):
    root, *_ = made
    fcntl = pytest.importorskip("fcntl")
    with (root / "results" / ".work" / "lock").open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another quantjit zoo"):
            run(root)


def test_budgets(made, tmp_path):
    root, *_ = made
    wanted = manifest.Manifest(manifest.load(root / "zoo.toml").entries[:1])
    with pytest.raises(UsageError, match="too little"):
        zoo.run(wanted, tmp_path, memory=10**8)
    (row,) = zoo.run(wanted, tmp_path, memory=400 * 10**6).rows
    assert row.verdict == "failed"
    assert "too little for this network" in row.reason
