"""Statistics by the workers of a cluster: the bytes of one machine, whoever dies."""

import os
import pickle
import signal
import sys

import models
import numpy as np
import pytest

from quantjit import calibration, cli, cluster, demo
from quantjit.dataset import Dataset
from quantjit.errors import CalibrationError, DataError, FormatError, QuantJitError, UsageError
from quantjit.images import Preprocess
from quantjit.pipeline import input_shapes
from quantjit.plan import plan


@pytest.mark.parametrize(
    "error",
    [DataError("a.png", "why"), CalibrationError("b", "why"), FormatError("p", "", "x", "y")],
)
def test_errors_come_back_from_another_process(error):
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


@pytest.mark.slow
@pytest.mark.jit
@pytest.mark.parametrize(("workers", "kills"), [(1, False), (2, True), (4, True)])
def test_workers_give_the_bytes_of_one_machine(tmp_path, workers, kills):
    distributed = pytest.importorskip("distributed")
    graph = models.small_network()
    for n in range(40):
        x = np.random.default_rng(n).normal(size=(3, 6, 6)).astype(np.float32)
        np.save(tmp_path / f"{n}.npy", x)
    (tmp_path / "bad.npy").write_bytes(b"no array")
    channels = calibration.blobs_to_gather(graph, "mix")
    planned, origin = plan(graph, channels), calibration.origin_of(graph, Preprocess())
    one = calibration.Gathering(
        graph, Dataset.open(tmp_path, input_shapes(graph)), channels, planned, origin
    )
    one.run()
    killed = []
    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as local,
        distributed.Client(local) as client,
    ):

        def on_progress(stage, done, total):
            if kills and done and not killed:
                killed.append(next(iter(local.workers.values())).pid)
                os.kill(killed[0], signal.SIGKILL)

        dataset = Dataset.open(tmp_path, input_shapes(graph))
        made = cluster.gather(
            client, graph, dataset, channels, planned, origin, on_progress=on_progress
        )
    assert bool(killed) == kills
    assert made.file.encode() == one.file().encode()
    assert [error.path for error in dataset.skipped] == [str(tmp_path / "bad.npy")]


@pytest.mark.parametrize("where", ["here", "local:0", "local:x", "tcp:/one", ""])
def test_places_that_are_no_cluster(where):
    with pytest.raises(UsageError, match="local:N or the scheduler's"):
        cluster.check(where)


def test_dask_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"quantjit\[cluster\]"), cluster.connect("local"):
        pass


def test_no_scheduler_there(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "_PATIENCE", 0.5)
    with (
        pytest.raises(QuantJitError, match="no scheduler at tcp:"),
        cluster.connect("tcp://127.0.0.1:1"),
    ):
        pass


DEMO = [
    "-p", str(demo.folder() / "demo.tnnproto"), "-i", str(demo.folder() / "calib"),
    "-n", "127.5", "-s", "0.007843137",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.jit
def test_commands_write_what_they_write_without_a_cluster(tmp_path, monkeypatch, capsys):
    pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    where = ["--cluster", "local:2"]
    assert cli.main(["calibrate", *DEMO, "-o", "alone.qjs", "-q"]) == 0
    assert cli.main(["calibrate", *DEMO, "-o", "together.qjs", *where]) == 0
    assert "64 inputs, by 2 workers of local:2" in capsys.readouterr().out
    assert (tmp_path / "alone.qjs").read_bytes() == (tmp_path / "together.qjs").read_bytes()
    for name, more in (("alone", []), ("together", where)):
        assert cli.main(["quantize", *DEMO, "-o", name, "-q", *more]) == 0
    made = [
        (tmp_path / f"{name}_quantized.tnnmodel").read_bytes() for name in ("alone", "together")
    ]
    assert made[0] == made[1]
    for words in (["--resume"], ["--append"], ["--until-stable"]):
        assert cli.main(["calibrate", *DEMO, "-o", "x.qjs", *where, *words]) == 2
        assert "leave out" in capsys.readouterr().err
