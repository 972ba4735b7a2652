"""One node on its way into an ONNX file: what a translation may ask and what it may write."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from quantjit.errors import GraphError
from quantjit.graph import Array, Node

Shape = tuple[int, ...]
OPSET = 17
"""The newest operators used: LayerNormalization; runtimes have it since 2022."""

MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators."""


class Model:
    """The nodes and initializers of the file, with names that are used once."""

    def __init__(self, shapes: Mapping[str, Shape], taken: Iterable[str] = ()) -> None:
        self.shapes = shapes
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.domains: set[str] = set()
        self._blobs, self._nodes = set(taken), set[str]()

    def fresh(self, wanted: str) -> str:
        """Return a name for a tensor that nothing has yet."""
        return _unused(wanted, self._blobs)

    def constant(self, wanted: str, array: Array) -> str:
        """Write an initializer and return its name."""
        name = self.fresh(wanted)
        # np.array keeps scalars scalars, which np.ascontiguousarray does not
        self.initializers.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str,
        domain: str = "",
        **attributes: Any,
    ) -> None:
        """Write a node."""
        self.domains.add(domain)
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(
            helper.make_node(
                op, inputs, outputs, _unused(name, self._nodes), domain=domain, **given
            )
        )


def _unused(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


@dataclass(frozen=True, slots=True)
class Call:
    """A node, and the names of tensors that stand for its blobs.

    stored: weights that are in the file already, by role.
    """

    model: Model
    node: Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    stored: Mapping[str, str] = field(default_factory=dict)

    @property
    def attrs(self) -> Any:
        """Attributes of the node."""
        return self.node.attrs

    def error(self, reason: str) -> GraphError:
        """Make the error for what ONNX cannot say."""
        return GraphError(f"node {self.node.name!r}", f"cannot be written as ONNX: {reason}")

    def shape(self, index: int = 0) -> Shape:
        """Shape of an input."""
        return self.model.shapes[self.node.inputs[index]]

    def out_shape(self, index: int = 0) -> Shape:
        """Shape of an output."""
        return self.model.shapes[self.node.outputs[index]]

    def array(self, role: str) -> NDArray[np.float32]:
        """Values of a weight, float32."""
        if role not in self.node.weights:
            raise GraphError(f"node {self.node.name!r}", f"has no {role}")
        return np.asarray(self.node.weights[role], np.float32)

    def weight(self, role: str) -> str:
        """Write a weight as it is, once, and return its name."""
        if role in self.stored:
            return self.stored[role]
        return self.constant(role, self.array(role))

    def constant(self, role: str, values: Array) -> str:
        """Write an array and return its name."""
        return self.model.constant(f"{self.node.name}:{role}", values)

    def number(self, role: str, value: float) -> str:
        """Write a float32 scalar and return its name."""
        return self.constant(role, np.array(value, np.float32))

    def sizes(self, role: str, values: Iterable[int]) -> str:
        """Write int64 numbers and return their name."""
        return self.constant(role, np.array(list(values), np.int64))

    def step(self, op: str, inputs: Sequence[str], role: str, **attributes: Any) -> str:
        """Write a node that makes an intermediate result and return the result's name."""
        name = self.model.fresh(f"{self.outputs[0]}:{role}")
        self.model.add(op, inputs, [name], f"{self.node.name}:{role}", **attributes)
        return name

    def finish(self, op: str, inputs: Sequence[str] | None = None, **attributes: Any) -> None:
        """Write the node that makes the outputs; inputs: by default those of the node."""
        given = self.inputs if inputs is None else inputs
        self.model.add(op, given, self.outputs, self.node.name, **attributes)


Translation = Callable[[Call], None]
