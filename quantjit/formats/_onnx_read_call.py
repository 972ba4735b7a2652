"""One ONNX node on its way into the graph: what a translation may ask and what it may write."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto

from quantjit.graph import Array
from quantjit.ops import NoAttrs

Shape = tuple[int, ...]


class RefusedError(Exception):
    """A translation's word that it cannot say this node; the text tells why and what would help."""


class MalformedError(Exception):
    """An ONNX node that breaks the rules of its operator."""


class Sink(Protocol):
    """What a `Call` needs of the reader."""

    opset: int
    shapes: dict[str, Shape]

    def value(self, name: str) -> Array | None:
        """Return the constant of that name, None where it is a blob."""

    def blob(self, name: str) -> str:
        """Return the blob that stands for an ONNX name."""

    def kind(self, name: str) -> str:
        """Return the type of the numbers that an ONNX name stands for."""

    def is_read(self, name: str) -> bool:
        """Whether anything reads that ONNX name."""

    def add(
        self,
        op: str,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        attrs: Any,
        weights: Mapping[str, Array],
        kind: str,
        name: str,
    ) -> None:
        """Append a node to the graph; kind: type of the numbers that it writes; name: "" own."""

    def unused(self, name: str) -> str:
        """Return a name like this one that no blob has."""

    def alias(self, name: str, blob: str, kind: str) -> None:
        """Let an ONNX name stand for a blob that is there already."""


_FLOAT, _INT, _TEXT = AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING
_INTS, _FLOATS = AttributeProto.INTS, AttributeProto.FLOATS


@dataclass(frozen=True, slots=True)
class Call:
    """One node; `proto` is its NodeProto, `attributes` its AttributeProto by name."""

    sink: Sink
    proto: Any
    attributes: Mapping[str, Any]

    @property
    def op(self) -> str:
        """Its ONNX type."""
        return str(self.proto.op_type)

    @property
    def opset(self) -> int:
        """Version of the default domain."""
        return self.sink.opset

    # -------------------------------------------------------------- attributes

    def _attribute(self, name: str, kind: int) -> Any:
        found = self.attributes.get(name)
        if found is not None and found.type != kind:
            wanted = AttributeProto.AttributeType.Name(kind)
            raise MalformedError(f"attribute {name!r} is no {wanted}")
        return found

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        found = self._attribute(name, _INT)
        return default if found is None else int(found.i)

    def real(self, name: str, default: float) -> float:
        """Return a float attribute."""
        found = self._attribute(name, _FLOAT)
        return default if found is None else float(found.f)

    def text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        found = self._attribute(name, _TEXT)
        return default if found is None else found.s.decode("utf-8", "replace")

    def integers(self, name: str, default: Shape | None = None) -> Shape | None:
        """Return a list of integers."""
        found = self._attribute(name, _INTS)
        return default if found is None else tuple(int(value) for value in found.ints)

    def reals(self, name: str) -> tuple[float, ...] | None:
        """Return a list of floats."""
        found = self._attribute(name, _FLOATS)
        return None if found is None else tuple(float(value) for value in found.floats)

    # -------------------------------------------------------------- inputs

    def has(self, index: int) -> bool:
        """Whether that input is given."""
        return index < len(self.proto.input) and bool(self.proto.input[index])

    def _name(self, index: int) -> str:
        if not self.has(index):
            raise MalformedError(f"input {index} is missing")
        return str(self.proto.input[index])

    def value(self, index: int) -> Array | None:
        """Return that input where it is a constant, None where it is a blob or not given."""
        return self.sink.value(self._name(index)) if self.has(index) else None

    def constant(self, index: int, what: str) -> Array:
        """Return that input, which must be a constant."""
        found = self.value(index)
        if found is None:
            name = self._name(index)
            raise RefusedError(
                f"its {what} {name!r} is computed from the input; make it a constant"
            )
        return found

    def float_constant(self, index: int, what: str) -> NDArray[np.float32]:
        """Return that constant as float32."""
        found = self.constant(index, what)
        return np.ascontiguousarray(found, np.float32).reshape(found.shape)

    def int_constant(self, index: int, what: str) -> Shape:
        """Return that constant as integers."""
        found = self.constant(index, what)
        if found.dtype.kind not in "iu":
            raise MalformedError(f"its {what} is of type {found.dtype}, not of integers")
        return tuple(int(value) for value in found.ravel())

    def listed(self, attribute: str, index: int, since: int, what: str) -> Shape | None:
        """Return integers that are an attribute before opset `since` and an input from it on."""
        if self.opset < since:
            return self.integers(attribute)
        return self.int_constant(index, what) if self.has(index) else None

    def blob(self, index: int = 0) -> str:
        """Return the blob of that input; a constant becomes one."""
        return self.sink.blob(self._name(index))

    def shape(self, index: int = 0) -> Shape:
        """Return the shape of that input."""
        found = self.value(index)
        return self.sink.shapes[self.blob(index)] if found is None else tuple(found.shape)

    def kind(self, index: int = 0) -> str:
        """Return the type of the numbers in that input: float32, or an integer type."""
        return self.sink.kind(self._name(index))

    # -------------------------------------------------------------- outputs

    def output(self, index: int = 0) -> str:
        """Return the name of that output."""
        return str(self.proto.output[index])

    def wants(self, index: int) -> bool:
        """Whether that output is given a name and read."""
        return index < len(self.proto.output) and self.sink.is_read(self.proto.output[index])

    def emit(
        self,
        op: str,
        inputs: tuple[str, ...] | None = None,
        attrs: Any = None,
        weights: Mapping[str, Array] | None = None,
        *,
        outputs: tuple[str, ...] | None = None,
        suffix: str = "",
        kind: str = "",
    ) -> str:
        """Write a node and return its first output.

        inputs: by default the first one.  suffix: of an intermediate result, which is named after
        the first output.  kind: of the numbers that it writes, by default that of the first input.
        """
        if suffix:
            outputs = (self.sink.unused(f"{self.output()}:{suffix}"),)
        written = outputs or (self.output(),)
        self.sink.add(
            op,
            inputs if inputs is not None else (self.blob(),),
            written,
            NoAttrs() if attrs is None else attrs,
            weights or {},
            kind or (self.kind() if self.has(0) else "float32"),
            written[0] if suffix else "",
        )
        return written[0]

    def alias(self, blob: str, kind: str = "") -> None:
        """Let the first output stand for a blob that is there already."""
        self.sink.alias(self.output(), blob, kind or self.kind())


Translation = Callable[[Call], None]
