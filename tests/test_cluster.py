"""Statistics by the workers of a cluster: the bytes of one machine, whoever dies."""

import os
import pickle
import signal

import models
import numpy as np
import pytest

from quantjit import calibration, cluster
from quantjit.dataset import Dataset
from quantjit.errors import CalibrationError, DataError, FormatError
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
