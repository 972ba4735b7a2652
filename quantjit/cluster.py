"""Statistics gathered by the workers of a Dask cluster: the bytes that one machine writes.

The files are split into parts, whose number does not depend on the workers.  A part's statistics
are a pure value under a key of its own, so that one that is computed again after a worker died
enters once; they are exact integers, so that the order of merging is not seen.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantjit.calibration import Gathering, Nonfinite, OnProgress, no_progress
from quantjit.dataset import Dataset, Part
from quantjit.errors import DataError, QuantJitError
from quantjit.flow import Resources
from quantjit.graph import Graph
from quantjit.plan import Plan
from quantjit.statistics_file import Origin, StatisticsFile

PARTS = 64
"""Into which the files are split, at most."""

_FAN_IN = 8  # files that one task merges


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
    except KilledWorker as error:
        raise QuantJitError(f"the cluster gave up on a part of the inputs: {error}") from None
    finally:
        client.cancel([root, *futures])
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
