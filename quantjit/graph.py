"""The network: frozen nodes in topological order, joined by the names of blobs.

A `Graph` is never changed; a pass makes a new one.  Producers and readers are derived when asked
for, never stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantjit import markup
from quantjit.errors import GraphError
from quantjit.quant import NodeQuant, QuantParams

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Blob:
    """A network input: its name, its shape (NCHW, batch first) and its element type."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One instance of an op.

    inputs, outputs: blob names.  attrs: the op's own frozen dataclass.  weights: arrays by role
    ("weight", "bias", "slope" ...), float32 or float16 as in the file, int8/int32 when quantized.
    quant: set on nodes that run in int8.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Any
    weights: Mapping[str, Array] = field(default_factory=dict)
    quant: NodeQuant | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Node):
            return NotImplemented
        return (
            (self.name, self.op, self.inputs, self.outputs, self.attrs, self.quant)
            == (other.name, other.op, other.inputs, other.outputs, other.attrs, other.quant)
        ) and _same_arrays(self.weights, other.weights)

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def __repr__(self) -> str:
        kind = ", int8" if self.quant is not None else ""
        weights = f", {self._weights_text()}" if self.weights else ""
        blobs = f"{', '.join(self.inputs)} -> {', '.join(self.outputs)}"
        return f"Node({self.name!r}, {self.op}, {blobs}{weights}{kind})"

    def _weights_text(self) -> str:
        return ", ".join(
            f"{role} {markup.shape_text(array.shape)} {array.dtype}"
            for role, array in self.weights.items()
        )


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A whole network.

    nodes: in an order in which every blob is produced before it is read.  outputs: blob names.
    scales: quantization of blobs by name, empty for a float network.  constants: named arrays that
    the file carries besides the nodes' weights.  arithmetic: whose integer arithmetic int8 nodes
    run in: "tnn" (half away from zero), "onnx" (half to even, as onnxruntime) or "onnx-uint8" (the
    same where the file's codes are uint8: here they are int8, 128 less).
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Blob, ...]
    outputs: tuple[str, ...]
    scales: Mapping[str, QuantParams] = field(default_factory=dict)
    constants: Mapping[str, Array] = field(default_factory=dict)
    arithmetic: str = "tnn"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        return (
            (self.nodes, self.inputs, self.outputs) == (other.nodes, other.inputs, other.outputs)
            and dict(self.scales) == dict(other.scales)
            and _same_arrays(self.constants, other.constants)
            and self.arithmetic == other.arithmetic
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def __repr__(self) -> str:
        inputs = ", ".join(f"{blob.name} {markup.shape_text(blob.shape)}" for blob in self.inputs)
        ends = f"{inputs} -> {', '.join(self.outputs)}"
        return f"Graph({len(self.nodes)} nodes, {ends}, {self._kind()})"

    def _kind(self) -> str:
        count = sum(node.quant is not None for node in self.nodes)
        return f"{count} int8, {self.arithmetic}" if count else "float"

    def _repr_html_(self) -> str:
        return markup.table(
            repr(self),
            ("node", "op", "reads", "writes", "weights", "int8"),
            (
                (
                    node.name,
                    node.op,
                    ", ".join(node.inputs),
                    ", ".join(node.outputs),
                    node._weights_text(),
                    node.quant is not None,
                )
                for node in self.nodes
            ),
        )

    def producer(self) -> dict[str, Node]:
        """Blob name -> the node that writes it; network inputs and constants have none."""
        return {blob: node for node in self.nodes for blob in node.outputs}

    def readers(self) -> dict[str, list[Node]]:
        """Blob name -> the nodes that read it, in order; outputs of the network need no reader."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for blob in dict.fromkeys(node.inputs):
                found.setdefault(blob, []).append(node)
        return found

    def blobs(self) -> list[str]:
        """All blob names: inputs, then outputs of nodes in order."""
        names = [blob.name for blob in self.inputs]
        names += [blob for node in self.nodes for blob in node.outputs]
        return list(dict.fromkeys(names))

    @property
    def is_onnx(self) -> bool:
        """Whether its int8 nodes run in onnxruntime's arithmetic."""
        return self.arithmetic in {"onnx", "onnx-uint8"}

    @property
    def is_quantized(self) -> bool:
        """Whether any node runs in int8."""
        return any(node.quant is not None for node in self.nodes)

    def with_nodes(self, nodes: tuple[Node, ...]) -> "Graph":
        """Return the same network with other nodes."""
        return replace(self, nodes=nodes)

    def with_input_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> "Graph":
        """Return the same network with other input shapes, by input name."""
        return replace(
            self,
            inputs=tuple(
                replace(blob, shape=tuple(shapes.get(blob.name, blob.shape)))
                for blob in self.inputs
            ),
        )

    def validate(self) -> None:
        """Raise GraphError unless names are unique and every blob is produced before it is read."""
        known = {blob.name for blob in self.inputs} | set(self.constants)
        names: set[str] = set()
        for node in self.nodes:
            if node.name in names:
                raise GraphError(f"node {node.name!r}", "a second node has this name")
            names.add(node.name)
            for blob in node.inputs:
                if blob not in known:
                    raise GraphError(
                        f"node {node.name!r}",
                        f"reads blob {blob!r}, which no earlier node produces",
                    )
            for blob in node.outputs:
                if blob in known:
                    raise GraphError(
                        f"node {node.name!r}", f"writes blob {blob!r}, which exists already"
                    )
                known.add(blob)
        for blob in self.outputs:
            if blob not in known:
                raise GraphError(f"output {blob!r}", "no node produces it")


def _same_arrays(left: Mapping[str, Array], right: Mapping[str, Array]) -> bool:
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype
        and left[key].shape == right[key].shape
        and left[key].tobytes() == right[key].tobytes()
        for key in left
    )


def readonly(array: Array) -> Array:
    """Return the array, contiguous and closed for writing."""
    result = np.ascontiguousarray(array)
    if result is array and array.flags.writeable:
        result = array.copy()
    result.setflags(write=False)
    return result
