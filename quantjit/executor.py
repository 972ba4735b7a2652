"""The dataflow scheduler: a network and its input shapes become a plan that runs batch after batch.

The plan fixes everything that does not depend on the data: shapes, element types, the runner of
each node (weights packed once), the life of each blob and the buffer that it lives in.  A buffer is
handed on when the last reader of its blob is done, so that memory is that of the widest place of
the network, not the sum of its blobs.

Int8 nodes (``node.quant`` is set) read and write int8 blobs, all others float32.  The border is
float as in TNN's API: an input that int8 nodes read is quantized with its blob scale, an int8
output is dequantized.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from quantjit import ops
from quantjit.errors import GraphError
from quantjit.graph import Array, Graph, Node
from quantjit.kernels import schedule
from quantjit.ops import Arrays, Request, Runner, Shape
from quantjit.quant import QuantParams

OnBlob = Callable[[str, Array], None]
"""Called with each blob right after it is produced; the array is valid during the call only."""

_ALIGNMENT = 64  # bytes: one cache line, one 512-bit vector


def infer_shapes(graph: Graph) -> dict[str, Shape]:
    """Shapes of all blobs, batch first, by name; GraphError names the node that does not fit."""
    shapes: dict[str, Shape] = {blob.name: blob.shape for blob in graph.inputs}
    shapes |= {name: tuple(array.shape) for name, array in graph.constants.items()}
    for node in graph.nodes:
        outputs = ops.get(node.op).infer_shape(node, [shapes[blob] for blob in node.inputs])
        shapes.update(zip(node.outputs, outputs, strict=True))
    return shapes


def count_macs(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Multiply-accumulates of each node by its name, for the batch that `shapes` has."""
    return {
        node.name: ops.get(node.op).macs(
            node, [shapes[blob] for blob in node.inputs], [shapes[blob] for blob in node.outputs]
        )
        for node in graph.nodes
    }


@dataclass(frozen=True, slots=True)
class _Step:
    """A node with its arrays; rows: first and last + 1 in the table of `schedule`, if there."""

    node: Node
    run: Runner
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    rows: tuple[int, int] = (0, 0)


_Tabular = schedule.Prepared | schedule.Chain


def _tabulate(
    steps: list[_Step], scratch: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], list["_Step | tuple[int, int]"]]:
    """Give the steps that `schedule` runs their rows; return its table and the parts of a run.

    In order; a part is a step, or the (first, last) rows of neighbours that are run in one call.
    """
    rows: list[tuple[int, int, int]] = []
    parts: list[_Step | tuple[int, int]] = []
    for index, step in enumerate(steps):
        if step.run is _stay:
            continue
        if not isinstance(step.run, _Tabular):
            parts.append(step)
            continue
        step.run.bind(step.inputs, step.outputs, scratch)
        first = len(rows)
        rows += step.run.rows
        steps[index] = replace(step, rows=(first, len(rows)))
        if parts and isinstance(parts[-1], tuple):
            parts[-1] = (parts[-1][0], len(rows))
        else:
            parts.append((first, len(rows)))
    return np.array(rows, np.int64).reshape(-1, schedule.ROW), parts


class _Arena:
    """Slots for blobs: the smallest free one that is large enough, else the largest grows."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._free: list[int] = []

    def take(self, size: int) -> int:
        fitting = [slot for slot in self._free if self.sizes[slot] >= size]
        if fitting:
            slot = min(fitting, key=lambda candidate: self.sizes[candidate])
        elif self._free:  # grow the largest free buffer rather than open another
            slot = max(self._free, key=lambda candidate: self.sizes[candidate])
            self.sizes[slot] = size
        else:
            self.sizes.append(size)
            return len(self.sizes) - 1
        self._free.remove(slot)
        return slot

    def give(self, slot: int) -> None:
        self._free.append(slot)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where blobs live: blob -> its slot and byte offset there; sizes in bytes."""

    places: Mapping[str, tuple[int, int]]
    bytes: Mapping[str, int]
    slot_sizes: tuple[int, ...]

    @property
    def blob_bytes(self) -> int:
        return sum(self.bytes.values())

    @property
    def arena_bytes(self) -> int:
        return sum(self.slot_sizes)


def plan_memory(graph: Graph) -> tuple[int, int]:
    """Bytes of all blobs, and of the reused buffers that they are run in; needs no weights."""
    shapes, dtypes = infer_shapes(graph), _infer_dtypes(graph)
    plan = _plan_memory(graph, shapes, dtypes, _find_views(graph, _requests(graph, shapes)))
    return plan.blob_bytes, plan.arena_bytes


def _requests(
    graph: Graph, shapes: Mapping[str, Shape], threads: int = 1, *, exact_order: bool = False
) -> dict[str, Request]:
    """Return what each node is prepared for; GraphError if an int8 one lacks a blob's scale."""
    requests = {}
    for node in graph.nodes:
        requests[node.name] = Request(
            node,
            tuple(shapes[blob] for blob in node.inputs),
            tuple(shapes[blob] for blob in node.outputs),
            _scales_of(graph, node, node.inputs),
            _scales_of(graph, node, node.outputs),
            graph.arithmetic,
            threads,
            exact_order,
        )
    return requests


def _scales_of(graph: Graph, node: Node, blobs: tuple[str, ...]) -> tuple[QuantParams, ...]:
    if node.quant is not None:
        return tuple(_scale_of(graph, blob, node) for blob in blobs)
    return tuple(graph.scales[blob] for blob in blobs if blob in graph.scales)


def _scale_of(graph: Graph, blob: str, node: Node) -> QuantParams:
    try:
        return graph.scales[blob]
    except KeyError:
        raise GraphError(
            f"node {node.name!r}", f"is int8, but blob {blob!r} has no scale"
        ) from None


def _find_views(graph: Graph, requests: Mapping[str, Request]) -> dict[str, tuple[str, int]]:
    """Blob -> (the blob that it is a part of, where it lies there in elements).

    Its producer then writes to that place, and the op that would move it there has nothing to do.
    """
    views: dict[str, tuple[str, int]] = {}
    for node in graph.nodes:
        offsets = ops.get(node.op).moves(requests[node.name])
        movable = [
            blob for blob in node.inputs if blob not in views and blob not in graph.constants
        ]
        if offsets is not None and len(set(movable)) == len(node.inputs):
            views |= {
                blob: (node.outputs[0], at) for blob, at in zip(node.inputs, offsets, strict=True)
            }
    return views


def _plan_memory(
    graph: Graph,
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, np.dtype[np.generic]],
    views: Mapping[str, tuple[str, int]],
) -> _Plan:
    """Give every blob a place that no other blob alive at the same time uses."""
    sizes = {blob: math.prod(shapes[blob]) * dtypes[blob].itemsize for blob in graph.blobs()}
    whole: dict[str, tuple[str, int]] = {}  # the blob that a blob is at last a part of
    for blob in reversed(graph.blobs()):  # a part comes before what it is a part of
        parent, at = views.get(blob, (blob, 0))
        root, offset = (blob, 0) if parent == blob else whole[parent]
        whole[blob] = (root, offset + at * dtypes[blob].itemsize)
    last_read = dict.fromkeys(graph.blobs(), -1)
    for index, node in enumerate(graph.nodes):
        roots = [whole[blob][0] for blob in (*node.inputs, *node.outputs) if blob in whole]
        last_read |= dict.fromkeys(roots, index)
    last_read |= dict.fromkeys((whole[blob][0] for blob in graph.outputs), len(graph.nodes))
    arena = _Arena()
    slots: dict[str, int] = {}
    for source in graph.inputs:
        root = whole[source.name][0]
        slots[root] = arena.take(sizes[root])
    for index, node in enumerate(graph.nodes):
        roots = [whole[blob][0] for blob in (*node.inputs, *node.outputs) if blob in whole]
        for root in dict.fromkeys(roots):
            if root not in slots:
                slots[root] = arena.take(sizes[root])
        for root in dict.fromkeys(roots):
            if last_read[root] <= index:
                arena.give(slots[root])
    places = {blob: (slots[root], offset) for blob, (root, offset) in whole.items()}
    return _Plan(places, sizes, tuple(arena.sizes))


def _aligned(size: int) -> NDArray[np.uint8]:
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size]


def _infer_dtypes(graph: Graph) -> dict[str, np.dtype[np.generic]]:
    """int8 for what int8 nodes and `quantize` write and for inputs that int8 nodes read."""
    dtypes: dict[str, np.dtype[np.generic]] = {}
    int8, float32 = np.dtype(np.int8), np.dtype(np.float32)
    readers = graph.readers()
    for source in graph.inputs:
        read_as_int8 = any(node.quant is not None for node in readers.get(source.name, []))
        dtypes[source.name] = int8 if read_as_int8 else float32
    dtypes |= dict.fromkeys(graph.constants, float32)
    for node in graph.nodes:
        wanted = int8 if node.quant is not None or node.op == "dequantize" else float32
        for blob in node.inputs:
            if dtypes[blob] != wanted:
                raise GraphError(
                    f"node {node.name!r}",
                    f"reads blob {blob!r} as {wanted}, but it is {dtypes[blob]}",
                )
        written = int8 if node.quant is not None or node.op == "quantize" else float32
        dtypes |= dict.fromkeys(node.outputs, written)
    return dtypes


def _image_of(graph: Graph, shapes: Mapping[str, Shape]) -> Graph | None:
    """Return the network for one image of a batch; None where there is no batch of such images.

    They are independent if every blob of the batch is that of one image, so many times, and no
    node works along the first axis.
    """
    counts = {shapes[blob.name][:1] for blob in graph.inputs}
    if len(counts) != 1 or not counts.isdisjoint({(), (0,), (1,)}):
        return None
    ((count,),) = counts
    image = graph.with_input_shapes(
        {blob.name: (1, *shapes[blob.name][1:]) for blob in graph.inputs}
    )
    try:
        alone = infer_shapes(image)
    except GraphError:  # a node that names the batch in its attributes
        return None
    for blob in graph.blobs():
        if alone[blob][:1] != (1,) or shapes[blob] != (count, *alone[blob][1:]):
            return None
    for node in graph.nodes:
        axes = (getattr(node.attrs, "axis", 1), *getattr(node.attrs, "axes", ()))
        if any(axis in {0, -len(shapes[blob])} for axis in axes for blob in node.inputs):
            return None
    return image


class Executor:
    """Runs one network on inputs of fixed shapes; one executor serves one caller at a time.

    Parameters
    ----------
    graph : float, or lowered to int8 (`quantjit.passes.lower.lower`)
    threads : how many work together: on images of their own where the batch has several that are
        independent, else on shares of each node.  The outputs do not depend on it
    exact_order : run float sums in the order of TNN's naive device, to the bit; slower
    whole_batch : never take a batch apart into its images

    Attributes
    ----------
    shapes : blob name -> shape
    arena_bytes : memory of the blobs' buffers; blob_bytes : what they would take without reuse
    """

    def __init__(
        self,
        graph: Graph,
        threads: int = 1,
        *,
        exact_order: bool = False,
        whole_batch: bool = False,
    ) -> None:
        graph.validate()
        self.graph = graph
        self.shapes = infer_shapes(graph)
        self._lanes: list[Executor] = []
        self._whole: Executor | None = None
        self._make_whole = partial(
            Executor, graph, threads, exact_order=exact_order, whole_batch=True
        )
        image = None if whole_batch else _image_of(graph, self.shapes)
        if image is not None:
            count = min(threads, self.shapes[graph.inputs[0].name][0])
            self._lanes = [Executor(image, exact_order=exact_order) for _ in range(count)]
            self._pool = ThreadPoolExecutor(count)
            self.blob_bytes: int = sum(lane.blob_bytes for lane in self._lanes)
            self.arena_bytes: int = sum(lane.arena_bytes for lane in self._lanes)
            return
        self._dtypes = _infer_dtypes(graph)
        requests = _requests(graph, self.shapes, threads, exact_order=exact_order)
        views = _find_views(graph, requests)
        plan = _plan_memory(graph, self.shapes, self._dtypes, views)
        self.blob_bytes, self.arena_bytes = plan.blob_bytes, plan.arena_bytes
        self._arrays = self._place(plan)
        self._steps = [self._step(requests[node.name], views) for node in graph.nodes]
        runners = [step.run for step in self._steps if isinstance(step.run, _Tabular)]
        self._scratch = schedule.make_scratch(
            max((runner.scratch_bytes for runner in runners), default=0)
        )
        self._table, self._parts = _tabulate(self._steps, self._scratch)
        self._team = schedule.Team(threads) if threads > 1 and len(self._table) else None
        self._quantize = {
            blob.name: self._border("quantize", blob.name)
            for blob in graph.inputs
            if self._dtypes[blob.name] == np.int8
        }
        self._dequantize = {
            blob: self._border("dequantize", blob)
            for blob in graph.outputs
            if self._dtypes[blob] == np.int8
        }

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]], on_blob: OnBlob | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Run one batch.

        inputs: float32 arrays by input name, in the planned shapes.  Returns the network's outputs
        by name, float32, owned by the caller.  on_blob sees every blob, inputs included, in its
        own element type.
        """
        if self._lanes and on_blob is None:
            return self._run_images(inputs)
        if self._lanes:
            self._whole = self._whole or self._make_whole()
            return self._whole.run(inputs, on_blob)
        for blob in self.graph.inputs:
            self._feed(blob.name, inputs)
            if on_blob:
                on_blob(blob.name, self._arrays[blob.name])
        if on_blob is None:
            for part in self._parts:
                self._run_part(part)
        else:
            for step in self._steps:
                self._run_part(step)
                for name, array in zip(step.node.outputs, step.outputs, strict=True):
                    on_blob(name, array)
        return {name: self._fetch(name) for name in self.graph.outputs}

    def _run_images(
        self, inputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """Run image by image, each lane the next one that is left."""
        given = {blob.name: self._checked(blob.name, inputs) for blob in self.graph.inputs}
        outputs = {name: np.empty(self.shapes[name], np.float32) for name in self.graph.outputs}
        images = iter(range(self.shapes[self.graph.inputs[0].name][0]))

        def work(lane: Executor) -> None:
            for image in images:  # one iterator: every image is drawn once
                part = slice(image, image + 1)
                found = lane.run({name: array[part] for name, array in given.items()})
                for name, array in found.items():
                    outputs[name][part] = array

        helpers = [self._pool.submit(work, lane) for lane in self._lanes[1:]]
        work(self._lanes[0])
        for helper in helpers:
            helper.result()
        return outputs

    def _run_part(self, part: "_Step | tuple[int, int]") -> None:
        """Run a step, or rows of the table."""
        if isinstance(part, _Step):
            if part.rows[0] == part.rows[1]:
                part.run(part.inputs, part.outputs)
                return
            part = part.rows
        if self._team is None:
            schedule.run_alone(self._table, *part)
        else:
            self._team.run(self._table, *part)

    def _checked(self, name: str, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the array of this input; GraphError if it is missing or has another shape."""
        try:
            given = np.ascontiguousarray(inputs[name], np.float32)
        except KeyError:
            raise GraphError(f"input {name!r}", "no array was given for it") from None
        if given.shape != self.shapes[name]:
            raise GraphError(
                f"input {name!r}", f"shape {given.shape} was given, {self.shapes[name]} is planned"
            )
        return given

    def _feed(self, name: str, inputs: Mapping[str, NDArray[np.float32]]) -> None:
        given = self._checked(name, inputs)
        if name in self._quantize:
            self._quantize[name]((given,), (self._arrays[name],))
        else:
            self._arrays[name][...] = given

    def _fetch(self, name: str) -> NDArray[np.float32]:
        if name not in self._dequantize:
            return self._arrays[name].copy()
        real = np.empty(self.shapes[name], np.float32)
        self._dequantize[name]((self._arrays[name],), (real,))
        return real

    def _place(self, plan: "_Plan") -> dict[str, Array]:
        """Make the buffers and give every blob its view into one."""
        buffers = [_aligned(size) for size in plan.slot_sizes]
        arrays: dict[str, Array] = {
            blob: buffers[slot][start : start + plan.bytes[blob]]
            .view(self._dtypes[blob])
            .reshape(self.shapes[blob])
            for blob, (slot, start) in plan.places.items()
        }
        for name, constant in self.graph.constants.items():
            arrays[name] = np.ascontiguousarray(constant, np.float32)
        return arrays

    def _step(self, request: Request, views: Mapping[str, tuple[str, int]]) -> _Step:
        node, op = request.node, ops.get(request.node.op)
        inputs = tuple(self._arrays[blob] for blob in node.inputs)
        outputs = tuple(self._arrays[blob] for blob in node.outputs)
        if node.inputs and all(
            views.get(blob, ("",))[0] == node.outputs[0] for blob in node.inputs
        ):
            return _Step(node, _stay, inputs, outputs)
        if node.quant is None:
            run = op.prepare_float(request)
        elif op.prepare_int8 is None:
            raise GraphError(f"node {node.name!r}", f"op {node.op!r} has no int8 form")
        else:
            run = op.prepare_int8(request)
        return _Step(node, run, inputs, outputs)

    def _border(self, op: str, blob: str) -> Runner:
        """Prepare the conversion of a network input or output that is int8 inside."""
        node = Node(f"{blob}:{op}", op, (blob,), (blob,), ops.NoAttrs())
        scale = _scale_of(self.graph, blob, node)
        shape = self.shapes[blob]
        arithmetic = self.graph.arithmetic
        return ops.get(op).prepare_float(
            Request(node, (shape,), (shape,), (scale,), (scale,), arithmetic)
        )


def _stay(inputs: Arrays, outputs: Arrays) -> None:
    """Run nothing: the inputs are where the output is."""
