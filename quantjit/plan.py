"""What a calibration takes, chosen and known before it starts: batch, threads, queue, bins, memory.

Nothing of it is seen by the result but the number of bins, and that depends on the network and the
budget only, not on the machine.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from quantjit.errors import QuantJitError, UsageError
from quantjit.executor import infer_shapes, plan_memory
from quantjit.flow import Resources, cores
from quantjit.graph import Graph
from quantjit.stats import BlobStats

BINS, LEAST_BINS = 4096, 256

_SCRATCH_BYTES = 2 * 2**20  # of a thread, measured
_PROGRAM_BYTES = 256 * 2**20  # of Python, Numba, its compiled kernels and polars, measured
_INT8_PROGRAM_BYTES = 40 * 2**20  # more of compiled kernels, measured
_STATISTICS_BYTES = 2**30  # that statistics may take where no budget is given
_COPIES = 3  # of statistics: while they are written to a file, or solved in float64
_CACHE_BYTES = 2**20  # of a core: batches whose blobs fit it cost no memory traffic
_MOST_BATCH = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What a calibration takes, known before it starts.

    rows, bins: of the statistics.  All bytes are upper bounds but `program_bytes`, which is the
    usual size of the process before; images far larger than the network's input come on top while
    they are decoded.
    """

    resources: Resources
    rows: int
    bins: int
    statistics_bytes: int
    network_bytes: int
    queue_bytes: int
    program_bytes: int = _PROGRAM_BYTES

    @property
    def total_bytes(self) -> int:
        """Peak of the whole process."""
        return self.program_bytes + self.statistics_bytes + self.network_bytes + self.queue_bytes


def _packed_bytes(graph: Graph) -> int:
    """Bytes of the weights in the kernels at most: transformed 3 x 3 filters are 6 x 6."""
    arrays = [array for node in graph.nodes for array in node.weights.values()]
    return sum(array.nbytes * (4 if array.shape[2:] == (3, 3) else 1) for array in arrays)


def plan(
    graph: Graph,
    channels: Mapping[str, int],
    *,
    memory: int | None = None,
    jobs: int | None = None,
    batch: int | None = None,
) -> Plan:
    """Choose batch, threads, depth of the queue and bins.

    channels: rows of statistics by blob.  memory: bytes that the process may take; the bins depend
    on it and on the network only, never on the machine.  jobs, batch: at most so many.  Raises
    UsageError where it cannot be kept.
    """
    rows = sum(channels.values())
    weights = sum(array.nbytes for node in graph.nodes for array in node.weights.values())
    packed = _packed_bytes(graph)
    arena = plan_memory(graph)[1]
    source = sum(4 * math.prod(blob.shape) for blob in graph.inputs)

    def take(threads: int, batch: int, depth: int, bins: int) -> Plan:
        resources = Resources(threads, batch, min(threads, depth), depth)
        return Plan(
            resources,
            rows,
            bins,
            _COPIES * rows * BlobStats.row_bytes(bins),
            weights + packed + threads * (_SCRATCH_BYTES + batch * arena),
            source * resources.inputs_under_way,
        )

    bins = BINS
    threads = jobs or cores()
    wanted = batch or max(1, min(_MOST_BATCH, _CACHE_BYTES // max(arena, 1)))
    wanted = wanted if wanted > 1 and batched(graph, wanted) is not None else 1
    least = take(1, 1, 1, LEAST_BINS)
    room = _STATISTICS_BYTES
    if memory is not None:
        if memory < least.total_bytes:
            raise UsageError(
                f"--memory {memory / 1e6:.0f}M is too little for this network: it takes "
                f"{math.ceil(least.total_bytes / 1e6)}M with one thread and {LEAST_BINS} bins"
            )
        fixed = least.total_bytes - least.statistics_bytes
        room = max(least.statistics_bytes, (memory - fixed) // 2)
    while bins > LEAST_BINS and _COPIES * rows * BlobStats.row_bytes(bins) > room:
        bins //= 2
    chosen = take(threads, wanted, threads * (wanted + 1), bins)
    while memory is not None and chosen.total_bytes > memory:
        if wanted > 1:
            wanted //= 2
        elif threads > 1:
            threads -= 1
        else:
            return take(1, 1, 1, bins)
        chosen = take(threads, wanted, threads * (wanted + 1), bins)
    return chosen


def threads_to_verify(graph: Graph, channels: Mapping[str, int], memory: int | None) -> int:
    """Return how many threads may compare a network with its int8 form within a budget, 1 at least.

    Each keeps all float blobs of an input, and the buffers and weights of two networks.
    """
    if memory is None:
        return cores()
    kept, each = _bytes_of_verifying(graph, channels, memory)
    return max(1, min(cores(), (memory - kept) // max(each, 1)))


def bytes_to_verify(
    graph: Graph, channels: Mapping[str, int], memory: int | None, threads: int
) -> int:
    """Return what the process takes at most while so many threads compare, see `plan`."""
    kept, each = _bytes_of_verifying(graph, channels, memory)
    return kept + each * threads


def _bytes_of_verifying(
    graph: Graph, channels: Mapping[str, int], memory: int | None
) -> tuple[int, int]:
    """Return the bytes that are there once, and those of each thread."""
    alone = plan(graph, channels, memory=memory, jobs=1, batch=1)
    weights = sum(array.nbytes for node in graph.nodes for array in node.weights.values())
    blobs, arena = plan_memory(graph)
    each = 2 * weights + blobs + blobs // 4 + arena + arena // 4
    kept = (
        alone.program_bytes + _INT8_PROGRAM_BYTES + 2 * weights + alone.statistics_bytes // _COPIES
    )
    return kept, each


def batched(graph: Graph, batch: int) -> Graph | None:
    """Return the network for so many inputs at once; None where it is made for one only."""
    if batch == 1:
        return graph
    single = infer_shapes(graph)
    if any(not blob.shape or blob.shape[0] != 1 for blob in graph.inputs):
        return None
    wider = graph.with_input_shapes({blob.name: (batch, *blob.shape[1:]) for blob in graph.inputs})
    try:
        shapes = infer_shapes(wider)
    except (QuantJitError, ValueError):
        return None
    fits = all(shapes[blob] == (batch, *single[blob][1:]) for blob in graph.blobs())
    return wider if fits else None
