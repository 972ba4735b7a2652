"""Second moments of the codes that layers read, and what the codes leave out in the mean.

They say which errors of weights matter: those that meet large codes, and those that do not cancel.
The codes are those of the float network's blobs, so that every layer sees its own errors only: what
the layers before it lose is repaired there.  Summed in integers over a few inputs; see
`quantjit.kernels.moments`.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantjit.calibration import OnProgress, no_progress
from quantjit.dataset import Sample, Samples
from quantjit.executor import Executor, infer_shapes
from quantjit.flow import Flow, Resources, Worker
from quantjit.graph import Array, Graph, Node
from quantjit.kernels import moments as kernels
from quantjit.ops import Shape
from quantjit.ops.convolution import geometry
from quantjit.quant import QuantParams

WEIGHTED = ("convolution", "inner_product")
"""Ops with weights that can be rounded."""

_BUDGET = 512 * 2**20  # bytes of products in memory at once
_BLOCK = 2**18  # elements of a block of patches: 512 kB, which stay in the cache


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """What the weights of a layer meet: codes less their zero points.

    count: of outputs of one channel.  sums: int64 (groups, size).  products: int64 (groups, size,
    size), of which the lower triangle counts.  rest: int64 (groups, size), sums of what the codes
    leave out, see `quantjit.kernels.moments.encode_into`.
    """

    count: int
    sums: NDArray[np.int64]
    products: NDArray[np.int64]
    rest: NDArray[np.int64]

    def mean(self) -> NDArray[np.float64]:
        """Return the mean code that each weight meets, (groups, size)."""
        return self.sums / max(self.count, 1)

    def real_mean(self) -> NDArray[np.float64]:
        """Return the mean of what the codes stand for, in steps, (groups, size)."""
        return self.mean() + self.rest / (kernels.REST_UNITS * max(self.count, 1))

    def second(self, *, is_centred: bool) -> NDArray[np.float64]:
        """Return E[x x^T] or the covariance, (groups, size, size), shrunk towards its diagonal.

        The fewer outputs there are for each weight, the less is left beside the diagonal: as the
        rank of the sum is at most their number, some changes of weights would seem free.
        """
        lower_part = np.tril(self.products).astype(np.float64)
        second = lower_part + np.tril(lower_part, -1).transpose(0, 2, 1)
        second /= max(self.count, 1)
        if is_centred:
            mean = self.mean()
            second -= mean[:, :, None] * mean[:, None, :]
        size = second.shape[1]
        diagonal = np.einsum("gii->gi", second).copy()
        second *= self.count / (self.count + size)
        np.einsum("gii->gi", second)[:] = np.maximum(diagonal, 0.0)
        return second


def rounded_nodes(quantized: Graph) -> list[str]:
    """Return the names of the int8 nodes whose weights can be rounded by moments."""
    return [
        node.name
        for node in quantized.nodes
        if node.quant is not None
        and node.op in WEIGHTED
        and node.weights["weight"].size // node.weights["weight"].shape[0] <= widest()
    ]


def widest() -> int:
    """Return the most weights of one output for which there is memory."""
    return int((_BUDGET // 8) ** 0.5)


def _groups_of(node: Node) -> tuple[int, int]:
    """Return groups, and weights of one output."""
    weight = node.weights["weight"]
    groups = int(node.attrs.group) if node.op == "convolution" else 1
    return groups, weight.size // weight.shape[0]


class _Gathering:
    """Folds what one layer reads into its sums; several threads."""

    def __init__(self, node: Node, source: Shape, target: Shape) -> None:
        groups, size = _groups_of(node)
        if node.op == "convolution":
            self._shape = source[1:]
            self._geometry = geometry(node, source, target)
        else:  # a 1 x 1 kernel that moves over the rows
            rows = math.prod(target) // node.weights["weight"].shape[0]
            self._shape = (size, rows, 1)
            self._geometry = np.array([1, 1, 1, 1, 0, 0, 1, 1, rows, 1], np.int64)
        self._is_convolution = node.op == "convolution"
        self._sums = np.zeros((groups, size), np.int64)
        self._rest = np.zeros((groups, size), np.int64)
        self._products = np.zeros((groups, size, size), np.int64)
        self._count = 0
        self._lock = threading.Lock()

    def _image(self, values: Array) -> Array:
        if self._is_convolution:
            return values
        return np.ascontiguousarray(values.reshape(-1, self._shape[0]).T).reshape(self._shape)

    def add(self, codes: Array, rest: Array) -> None:
        """Fold one input: codes int16 and what they leave out, int64, in the blob's shape."""
        codes, rest = self._image(codes), self._image(rest)
        out_h, out_w = int(self._geometry[8]), int(self._geometry[9])
        block = min(max(_BLOCK // self._sums.size, 32), kernels.MOST_PIXELS) // out_w
        block = min(max(block, 1), out_h)
        patches = np.empty((self._sums.size, block * out_w), np.int16)
        with self._lock:
            kernels.add_rest(rest, self._geometry, self._rest.reshape(-1))
        for first in range(0, out_h, block):
            rows = min(block, out_h - first)
            kernels.lay_patches_into(codes, self._geometry, first, rows, patches)
            self._fold(patches, rows * out_w)

    def _fold(self, patches: NDArray[np.int16], count: int) -> None:
        with self._lock:
            for start in range(0, count, kernels.MOST_PIXELS):  # rows are mostly shorter
                part = patches if start == 0 else np.ascontiguousarray(patches[:, start:])
                length = min(count - start, kernels.MOST_PIXELS)
                kernels.add_moments(part, length, self._sums.reshape(-1), self._products)
            self._count += count

    def result(self) -> Moments:
        """Return the sums."""
        return Moments(self._count, self._sums, self._products, self._rest)


def _encoded(blob: Array, params: QuantParams, lowest: int) -> tuple[Array, Array]:
    """Return the codes of one input less their zeros, and what they leave out, (C, H, W)."""
    image = np.ascontiguousarray(blob[0]).reshape(*blob.shape[1:2], -1, *blob.shape[3:4] or (1,))
    channels = image.shape[:1]
    steps = np.ascontiguousarray(np.broadcast_to(params.scale, channels))
    zeros = np.ascontiguousarray(np.broadcast_to(params.zero_point, channels))
    codes, rest = np.empty(image.shape, np.int16), np.empty(image.shape, np.int64)
    kernels.encode_into(image, steps, zeros, lowest, codes, rest)
    return codes, rest


def gather(
    graph: Graph,
    quantized: Graph,
    samples: Samples,
    use: Callable[[str, Moments], None],
    *,
    jobs: int | None = None,
    on_progress: OnProgress = no_progress,
) -> None:
    """Run the float network on all samples and hand `use` the moments of each node with weights.

    graph: float, with its activations fused; quantized: the same as int8, for its scales and for
    which nodes they are.  As many nodes at a time as there is memory for; the others are run
    again.
    """
    nodes = {node.name: node for node in graph.nodes}
    left = rounded_nodes(quantized)
    while left:
        chosen, size = [left.pop(0)], 0
        while left:
            groups, width = _groups_of(nodes[left[0]])
            size += groups * width * width * 8
            if size > _BUDGET:
                break
            chosen.append(left.pop(0))
        found = _gather_some(graph, quantized, samples, chosen, jobs, on_progress)
        for name in chosen:
            use(name, found.pop(name).result())


def _gather_some(
    graph: Graph,
    quantized: Graph,
    samples: Samples,
    names: Sequence[str],
    jobs: int | None,
    on_progress: OnProgress,
) -> dict[str, _Gathering]:
    shapes = infer_shapes(graph)
    by_name = {node.name: node for node in graph.nodes}
    found: dict[str, _Gathering] = {}
    readers: dict[str, list[_Gathering]] = {}
    for name in names:
        node = by_name[name]
        source = node.inputs[0]
        found[name] = _Gathering(node, shapes[source], shapes[node.outputs[0]])
        readers.setdefault(source, []).append(found[name])
    lowest = -128 if quantized.is_onnx else -127

    def make_worker() -> Worker[None]:
        executor = Executor(graph)

        def on_blob(blob: str, array: Array) -> None:
            if blob in readers:
                codes, rest = _encoded(array, quantized.scales[blob], lowest)
                for gathering in readers[blob]:
                    gathering.add(codes, rest)

        def work(batch: Sequence[Sample]) -> Sequence[None]:
            for sample in batch:
                executor.run(sample.arrays, on_blob)
            return [None] * len(batch)

        return work

    total = len(samples)
    with Flow(
        samples,
        make_worker,
        Resources.of(jobs),
        on_progress=lambda done: on_progress("moments", done, total),
    ) as flow:
        for _ in flow.advance():
            pass
    return found


def folded_weights(node: Node, source: QuantParams) -> NDArray[np.float64]:
    """Return float weights times the steps of the codes they meet, (rows, size).

    node: of the float network.  source: of the blob it reads, in the int8 one.
    """
    weight = np.asarray(node.weights["weight"], np.float64)
    if node.op == "inner_product":
        rows = weight.T if node.attrs.transpose else weight
        return np.ascontiguousarray(rows) * float(source.scale[0])
    rows, group = weight.shape[0], node.attrs.group
    channels = weight.shape[1] * group
    steps = np.broadcast_to(source.scale.astype(np.float64), channels).reshape(group, 1, -1)
    each = steps.repeat(rows // group, axis=1).reshape(rows, -1, 1, 1)
    return np.ascontiguousarray((weight * each).reshape(rows, -1))
