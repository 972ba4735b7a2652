"""Statistics gathered by the workers of a Dask cluster: the bytes that one machine writes.

The files are split into parts, whose number does not depend on the workers.  A part's statistics
are a pure value under a key of its own, so that one that is computed again after a worker died
enters once; they are exact integers, so that the order of merging is not seen.
"""

import importlib
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from quantjit.calibration import Calibration, Gathering, Nonfinite, OnProgress, no_progress
from quantjit.dataset import Dataset, Part
from quantjit.errors import DataError, QuantJitError, UsageError
from quantjit.flow import Resources, cores
from quantjit.graph import Graph
from quantjit.plan import Plan
from quantjit.statistics_file import Origin, StatisticsFile

PARTS = 64
"""Into which the files are split, at most."""

_FAN_IN = 8  # files that one task merges
_PATIENCE = 30.0  # seconds to find a scheduler in
_LOCAL = re.compile(r"local(?::([1-9][0-9]*))?")


@dataclass(frozen=True, slots=True)
class Gathered:
    """What workers gathered: statistics, values left out, and files that could not be used."""

    file: StatisticsFile
    nonfinite: tuple[Nonfinite, ...]
    skipped: tuple[DataError, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    """What is the same for all parts."""

    graph: Graph
    channels: Mapping[str, int]
    plan: Plan
    origin: Origin
    nonfinite: str

    def gather(self, part: Part) -> Gathered:
        """Gather the statistics of one part, in one thread: the worker has the others."""
        gathering = Gathering(self.graph, part, self.channels, self.plan, self.origin)
        seen = gathering.run(self.nonfinite)
        return Gathered(gathering.file(), seen.nonfinite, part.skipped)


def check(where: str) -> str:
    """Return the name of a cluster as it is; UsageError where it is none."""
    if _LOCAL.fullmatch(where) or re.fullmatch(r"[a-z]+://\S+", where):
        return where
    raise UsageError(f"--cluster {where}: give local, local:N or the scheduler's tcp://host:port")


@contextmanager
def connect(where: str) -> Iterator[Any]:
    """Yield a client of a cluster.

    where: "local" or "local:N" starts N processes with one thread each, by default one a core,
    that end with it; otherwise the address of a scheduler.  UsageError where Dask is missing,
    QuantJitError where there is no scheduler.
    """
    local = _LOCAL.fullmatch(check(where))
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise UsageError("--cluster needs Dask: pip install 'quantjit[cluster]'") from None
    if local is None:
        try:
            client = distributed.Client(where, timeout=_PATIENCE)
        except (OSError, TimeoutError) as error:
            raise QuantJitError(f"no scheduler at {where}: {error}") from None
        with client:
            yield client
        return
    with (
        distributed.LocalCluster(
            n_workers=int(local[1] or cores()),
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
        ) as started,
        distributed.Client(started) as client,
    ):
        yield client


def calibrate(
    where: str,
    graph: Graph,
    dataset: Dataset,
    channels: Mapping[str, int],
    plan: Plan,
    origin: Origin,
    *,
    nonfinite: str = "fail",
    on_progress: OnProgress = no_progress,
) -> tuple[StatisticsFile, Calibration]:
    """Return what one pass over these files gives, gathered by the cluster of this name."""
    start = time.perf_counter()
    with connect(where) as client:
        workers = len(client.scheduler_info()["workers"])
        made = gather(
            client,
            graph,
            dataset,
            channels,
            plan,
            origin,
            nonfinite=nonfinite,
            on_progress=on_progress,
        )
    seconds = time.perf_counter() - start
    source = f"{workers} worker{'s' * (workers != 1)} of {where} in {seconds:.1f} s"
    images = made.file.images
    return made.file, Calibration(
        made.file.stats, images, made.nonfinite, seconds, None, source, images
    )


def gather(
    client: Any,
    graph: Graph,
    dataset: Dataset,
    channels: Mapping[str, int],
    plan: Plan,
    origin: Origin,
    *,
    nonfinite: str = "fail",
    on_progress: OnProgress = no_progress,
) -> Gathered:
    """Return what `Gathering` gathers from these files, by the workers of a cluster.

    The network goes to each worker once, also to those that come later.  Raises what one machine
    raises, and QuantJitError where a part ended several workers.
    """
    from distributed import KilledWorker, WorkerPlugin, as_completed

    class Network(WorkerPlugin):
        def __init__(self, job: _Job) -> None:
            self.job = job

    plan = replace(plan, resources=Resources.of(1, plan.resources.batch))
    name = f"quantjit-{uuid.uuid4().hex}"
    client.register_plugin(Network(_Job(graph, channels, plan, origin, nonfinite)), name=name)
    parts = dataset.parts(PARTS)
    sizes = {}
    futures: list[Any] = []
    for number, part in enumerate(parts):
        future = client.submit(_gather_part, name, part, key=f"{name}-part-{number}", pure=False)
        futures.append(future)
        sizes[future.key] = len(part)
    root, done = _tree(client, name, futures), 0
    try:
        on_progress("calibrate", 0, len(dataset))
        completed: Any = as_completed
        for future in completed(futures):
            if future.status == "error":
                future.result()
            done += sizes[future.key]
            on_progress("calibrate", done, len(dataset))
        result: Gathered = root.result()
    except BaseException as error:
        client.cancel([root, *futures])  # what is done must not be: the scheduler has let it go
        if isinstance(error, KilledWorker):
            reason = f"the cluster gave up on a part of the inputs: {error}"
            raise QuantJitError(reason) from None
        raise
    finally:
        client.unregister_worker_plugin(name)
    for bad in sorted(result.skipped, key=lambda each: each.path):
        dataset.skip(bad)  # raises where they are too many of the whole set
    dataset.check()
    return result


def _tree(client: Any, name: str, futures: Sequence[Any]) -> Any:
    """Return the future of the sum, merged in groups that depend on the number of parts only."""
    level, row = 0, list(futures)
    while len(row) > 1:
        groups = [row[start : start + _FAN_IN] for start in range(0, len(row), _FAN_IN)]
        row = [
            client.submit(_merge, group, key=f"{name}-merge-{level}-{n}", pure=False)
            for n, group in enumerate(groups)
        ]
        level += 1
    return row[0]


def _gather_part(name: str, part: Part) -> Gathered:
    from distributed import get_worker

    worker: Any = get_worker()
    job: _Job = worker.plugins[name].job
    return job.gather(part)


def _merge(group: Sequence[Gathered]) -> Gathered:
    file = group[0].file
    for each in group[1:]:
        file = file.merged(each.file)
    nonfinite = sorted(
        (found for each in group for found in each.nonfinite), key=lambda x: (x.file, x.blob)
    )
    return Gathered(file, tuple(nonfinite), tuple(e for each in group for e in each.skipped))
