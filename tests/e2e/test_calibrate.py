"""quantjit calibrate, merge and quantize --stats as processes: killed, interrupted, out of disk."""

import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import polars as pl
import pytest

from quantjit import cli
from quantjit.statistics_file import StatisticsFile

pytestmark = pytest.mark.jit

DATA = Path(__file__).resolve().parents[2] / "data"
NETWORK = ["-p", str(DATA / "demo.tnnproto")]
HOW = ["-n", "127.5", "-s", "0.007843137"]
JOB = [*NETWORK, "-i", str(DATA / "calib"), *HOW]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        code = cli.main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of the statistics of the embedded images, and those of the network made of it."""
    folder = tmp_path_factory.mktemp("whole")
    assert cli.main(["calibrate", *JOB, "-q", "-o", str(folder / "s.qjs")]) == 0
    return (folder / "s.qjs").read_bytes()


def begin(folder, *argv, **options):
    command = [sys.executable, "-m", "quantjit", *map(str, argv)]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def end(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for_new(path, before, process):
    """Wait until a file is another than it was, or the process has ended."""
    while process.poll() is None and inode(path) == before:
        time.sleep(0.002)


def inode(path):
    return path.stat().st_ino if path.exists() else None


def heeding():
    """Take signals as a process in the foreground does, wherever the tests run."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------ killed, interrupted


@pytest.mark.slow
def test_killed_at_random_points_and_resumed(tmp_path, whole):
    """kill -9 at 20 points: what is on the disk always loads, and the end is the same bytes."""
    output, checkpoint = tmp_path / "s.qjs", tmp_path / "s.qjs.checkpoint"
    rng, kills, images = random.Random(4), 0, 0
    argv = ["calibrate", *JOB, "-q", "-j", "1", "-o", output, "--checkpoint", "1", "--resume"]
    while kills < 20:
        process = begin(tmp_path, *argv)
        if kills % 5 == 4:  # anywhere, before it has done anything too
            time.sleep(rng.uniform(0, 1.5))
        else:
            wait_for_new(checkpoint, inode(checkpoint), process)
            time.sleep(rng.uniform(0, 0.05))
        process.kill()
        assert end(process)[0] == -signal.SIGKILL
        kills += 1
        if checkpoint.exists():
            found = StatisticsFile.load(checkpoint)
            assert found.images >= images
            images = found.images
        assert not output.exists()
    assert images > 10
    code, _, err = end(begin(tmp_path, *argv))
    assert (code, err) == (0, "")
    assert output.read_bytes() == whole
    assert not checkpoint.exists()


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_writes_a_checkpoint_and_exits_130(run, tmp_path, whole, number):
    output, checkpoint = tmp_path / "s.qjs", tmp_path / "s.qjs.checkpoint"
    argv = ["calibrate", *JOB, "-q", "-o", output]
    process = begin(tmp_path, *argv, "--checkpoint", "1", preexec_fn=heeding)
    wait_for_new(checkpoint, None, process)
    process.send_signal(number)
    code, out, err = end(process)
    assert code == 130
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "quantjit: interrupted after " in err
    assert "of 64 files; --resume continues from" in err
    assert leftovers(tmp_path) == ["s.qjs.checkpoint"]
    code, _, err = run(*argv)
    assert code == 2
    assert "--resume continues it" in err
    code, out, err = run(*argv[:-3], "-o", output, "--resume")
    assert code == 0, err
    assert "in already" in out
    assert output.read_bytes() == whole
    assert leftovers(tmp_path) == ["s.qjs"]


def test_ctrl_c_during_quantize_leaves_nothing(tmp_path):
    process = begin(tmp_path, "quantize", *JOB, "-j", "1", "--batch", "1", preexec_fn=heeding)
    time.sleep(0.8)
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert code in (130, -signal.SIGINT), err  # before Python runs us it is the system's doing
    assert out == ""
    assert leftovers(tmp_path) == []


# ------------------------------------------------------------------ shards, append, quantize


def test_shards_append_and_one_pass_are_the_same_bytes(run, tmp_path, whole):
    for number in (1, 2, 3):
        argv = ["--shard", f"{number}/3", "-o", f"{number}.qjs", "-j", 1 + number % 2]
        assert run("calibrate", *JOB, "-q", *argv, "--batch", 4**number)[:2] == (0, "")
    code, out, _ = run("merge", "3.qjs", "1.qjs", "2.qjs", "-o", "m.qjs")
    assert code == 0
    assert "64 inputs, 19 blobs, 19 rows of 4096 bins" in out
    assert (tmp_path / "m.qjs").read_bytes() == whole
    code, out, _ = run("calibrate", *JOB, "-o", "2.qjs", "--append", "--memory", "1G")
    assert code == 0
    for words in (
        "21 files",
        "calibrated  43 inputs",
        "decode",
        "forward",
        "bound by",
        "64 inputs",
    ):
        assert words in out, words
    assert (tmp_path / "2.qjs").read_bytes() == whole
    assert pl.read_parquet(tmp_path / "2.qjs").height == 19
    code, _, err = run("merge", "m.qjs", "1.qjs", "-o", "x.qjs")
    assert code == 4
    assert "1.qjs: has 22 inputs that are in already" in err
    assert run("merge", "m.qjs")[0] == 2
    assert run("merge", "m.qjs", "-o", "no/where.qjs")[0] == 2
    assert not (tmp_path / "x.qjs").exists()


def test_quantize_solves_from_a_file(run, tmp_path, whole):
    (tmp_path / "s.qjs").write_bytes(whole)
    solve = ["quantize", *NETWORK, "--stats", "s.qjs"]
    code, out, _ = run(*solve, "-o", "file")
    assert code == 0
    assert "64 inputs, from s.qjs" in out
    assert "SQNR" not in out
    code, out, _ = run("quantize", *JOB, "-o", "data", "--verify", "4")
    assert code == 0
    assert "bound by" in out
    for suffix in ("tnnproto", "tnnmodel"):
        made = {(tmp_path / f"{name}_quantized.{suffix}").read_bytes() for name in ("file", "data")}
        assert len(made) == 1
    code, out, _ = run(*solve, "-i", DATA / "calib", *HOW, "--verify", "3")
    assert code == 0
    assert "on 3 inputs: SQNR" in out


def test_what_does_not_fit_is_refused(run, tmp_path, whole):
    (tmp_path / "s.qjs").write_bytes(whole)
    solve = ["quantize", *NETWORK, "--stats", "s.qjs"]
    for argv, code, words in (
        ([*solve, "-n", "1"], 4, "s.qjs: was gathered with another preprocessing (bias 127.5"),
        ([*solve, "-i", DATA / "calib"], 4, "another preprocessing"),
        ([*solve, "-t", "channel"], 4, "calibrate with --merge-type channel"),
        ([*solve, "--compat", "tnn"], 2, "--compat tnn needs the data"),
        ([*solve, "--labels", "x.csv"], 2, "--labels needs inputs"),
        ([*solve, "--min-sqnr", "3"], 2, "--min-sqnr needs inputs"),
        (["quantize", *NETWORK, "--stats", "no.qjs"], 4, "no.qjs: cannot be read"),
        (["calibrate", *JOB, "--shard", "4/3"], 2, "'4/3' is no shard"),
        (["calibrate", *JOB, "--memory", "much"], 2, "'much' is no size"),
        (["calibrate", *JOB, "--memory", "1M"], 2, "--memory 1M is too little"),
        (["calibrate", *JOB, "--checkpoint", "-1"], 2, "'-1': give inputs"),
        (["calibrate", *JOB, "-o", "no/where.qjs"], 2, "no such folder"),
    ):
        found, out, err = run(*argv)
        assert (found, out) == (code, ""), err
        assert words in err
        assert "usage:" in err or len(err.strip().splitlines()) == 1
    assert leftovers(tmp_path) == ["s.qjs"]


def test_inspect_states_the_memory(run):
    code, out, _ = run("inspect", *NETWORK, "-j", "2", "--batch", "1")
    assert code == 0
    words = " ".join(out.split())
    assert "calibration: 19 rows of statistics with 4096 bins; at most" in words
    assert "whatever the number of inputs" in words
    assert "2 threads, batch 1" in words


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is in /proc")
@pytest.mark.parametrize("memory", ["310M", "350M"])
@pytest.mark.parametrize("command", ["calibrate", "quantize"])
def test_memory_is_kept(tmp_path, command, memory):
    script = (
        "import sys; from quantjit.cli import main; code = main(sys.argv[1:]); "
        "print([line for line in open('/proc/self/status') if 'VmHWM' in line][0].split()[1]); "
        "sys.exit(code)"
    )
    argv = [command, *JOB, "-q", "-t", "channel", "--memory", memory, "-o"]
    for name in ("first.qjs", "second.qjs"):  # the first run may have to compile kernels
        done = subprocess.run(
            [sys.executable, "-c", script, *argv, name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 <= int(memory[:-1]) * 10**6


# ------------------------------------------------------------------ bad inputs, a full disk


def png_header(width, height):
    """A PNG that says how large it is, and little more."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(5001)))


def make_bad(folder):
    """Everything that can be wrong with an input; file name -> words of the reason."""
    good = (DATA / "calib" / "00_disc.jpg").read_bytes()
    (folder / "bad_corrupt.jpg").write_bytes(good[:40] + bytes(400))
    (folder / "bad_cut.jpg").write_bytes(good[: len(good) // 3])
    (folder / "bad_empty.png").write_bytes(b"")
    (folder / "bad_folder.jpg").mkdir()
    (folder / "bad_link.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "bad_bomb.png").write_bytes(png_header(40000, 40000))
    reasons = {
        "bad_corrupt.jpg": "cannot be decoded",
        "bad_cut.jpg": "cannot be decoded",
        "bad_empty.png": "it is empty",
        "bad_folder.jpg": "it is a folder",
        "bad_link.jpg": "No such file",
        "bad_bomb.png": "40000 x 40000 pixels",
    }
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "bad_pipe.jpg")
        reasons["bad_pipe.jpg"] = "no regular file"
    return reasons


def test_bad_inputs_are_named_counted_and_left_out(run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, file in enumerate(sorted((DATA / "calib").iterdir())[:20]):
        (folder / f"{number:02}.jpg").write_bytes(file.read_bytes())
    argv = [*NETWORK, "-i", folder, *HOW, "-q"]
    assert run("calibrate", *argv, "-o", "good.qjs")[0] == 0
    reasons = make_bad(folder)
    argv = argv[:-1]
    code, out, err = run("calibrate", *argv, "-o", "a.qjs", "--max-bad", "50%")
    assert code == 0, err
    words = " ".join(out.split())
    assert f"skipped {len(reasons)} unreadable" in words
    joined = "".join(out.split())
    for name, reason in reasons.items():
        assert name in joined
        assert "".join(reason.split()) in joined
    assert (tmp_path / "a.qjs").read_bytes() == (tmp_path / "good.qjs").read_bytes()
    code, out, err = run("calibrate", *argv, "-q", "-o", "b.qjs")
    assert (code, out) == (4, "")
    assert "files cannot be used, more than --max-bad 0.05; the last:" in err
    assert not (tmp_path / "b.qjs").exists()
    code, out, err = run("quantize", *argv, "--max-bad", "50%", "--verify", "2", "-o", "net")
    assert code == 0
    assert f"skipped {len(reasons)} unreadable" in " ".join(out.split())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_a_file_without_permission_is_named(run, tmp_path):
    (tmp_path / "a.jpg").write_bytes((DATA / "calib" / "00_disc.jpg").read_bytes())
    (tmp_path / "b.jpg").write_bytes((DATA / "calib" / "00_disc.jpg").read_bytes())
    (tmp_path / "b.jpg").chmod(0)
    code, out, err = run("calibrate", *NETWORK, "-i", tmp_path, *HOW, "--max-bad", "50%")
    assert code == 0, err
    assert "b.jpg: cannot be read: Permission denied" in " ".join(out.split())


def limited(size):
    """Let a process write no file beyond so many bytes, as if the disk were full."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.skipif(os.name != "posix", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize(
    ("argv", "file"),
    [
        (["calibrate", *JOB, "-q", "-o", "a.qjs"], "a.qjs"),
        (["calibrate", *JOB, "-q", "-o", "a.qjs", "--checkpoint", "8"], "a.qjs.checkpoint"),
        (["merge", "s.qjs", "-o", "a.qjs"], "a.qjs"),
        (["quantize", *NETWORK, "--stats", "s.qjs", "-o", "a"], "a_quantized.tnnmodel"),
    ],
    ids=["statistics", "checkpoint", "merge", "network"],
)
def test_a_full_disk_leaves_nothing_half_written(tmp_path, whole, argv, file):
    (tmp_path / "s.qjs").write_bytes(whole)
    for old in ("a.qjs", "a_quantized.tnnproto", "a_quantized.tnnmodel"):
        (tmp_path / old).write_bytes(b"what was there before")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = end(begin(tmp_path, *argv, preexec_fn=limited(20_000)))
    assert code == 1, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert file in err
    assert "File too large" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 48 kB; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("needs mount")
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_gets_full(run, small_disk, whole):
    (small_disk / "a.qjs").write_bytes(b"what was there before")
    for argv in (["--checkpoint", "8"], ["--checkpoint", "0"]):
        code, out, err = run("calibrate", *JOB, "-q", "-o", small_disk / "a.qjs", *argv)
        assert (code, out) == (1, "")
        assert len(err.splitlines()) == 1
        assert "a.qjs" in err
        assert "cannot be written: No space left on device" in err
        assert (small_disk / "a.qjs").read_bytes() == b"what was there before"
        for file in small_disk.iterdir():  # the last checkpoint that fitted is whole
            assert file.name == "a.qjs" or StatisticsFile.load(file).images > 0
            if file.name == "a.qjs.checkpoint":
                file.unlink()
    assert len(whole) > 48_000
