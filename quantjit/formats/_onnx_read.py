"""The ONNX reader: nodes in order, each folded to a constant, translated, or reported.

A node whose inputs are all known is computed; one of a known type is handed to its translation;
anything else is a problem.  Problems are gathered, so that one error names them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, checker

from quantjit import ops
from quantjit.errors import FormatError, GraphError
from quantjit.formats import _onnx_read_layers as layers
from quantjit.formats import _onnx_read_patterns as patterns
from quantjit.formats import _onnx_read_pointwise as pointwise
from quantjit.formats import _onnx_read_shapes as shapes
from quantjit.formats import _onnx_read_windows as windows
from quantjit.formats._onnx_read_call import Call, MalformedError, RefusedError, Translation
from quantjit.formats._onnx_read_file import (
    DEFAULT_DOMAINS,
    Source,
    TensorLoader,
    place_of,
    read_source,
)
from quantjit.formats._onnx_read_fold import fold, is_foldable
from quantjit.formats._onnx_read_int8 import attach, lift
from quantjit.formats._onnx_read_qoperator import with_conversions
from quantjit.graph import Array, Blob, Graph, Node, readonly
from quantjit.ops import NoAttrs
from quantjit.ops.shape import ConstantAttrs

Shape = tuple[int, ...]

TRANSLATIONS: Mapping[str, Translation] = {
    **layers.TRANSLATIONS,
    **windows.TRANSLATIONS,
    **pointwise.TRANSLATIONS,
    **shapes.TRANSLATIONS,
}
"""ONNX type -> its translation; those of other domains as ``domain.type``."""

_ON_CODES = {  # types that keep or explicitly convert integers
    *("Cast", "DequantizeLinear", "QuantizeLinear", "MaxPool", "Concat", "Split", "Identity"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Pad"),
    *("DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Dropout", "Where", "And", "Or", "Not"),
    "Equal",
}
_OUTSIDE = "end the network before it (onnx.utils.extract_model) and compute the rest outside"
_LARGEST_BLOB = 2**30  # elements: 4 GiB
_MALFORMED = (MalformedError, ArithmeticError, IndexError, MemoryError, ValueError)
_HINTS = {
    **dict.fromkeys(("If", "Loop", "Scan"), "export the network without control flow"),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "only feed-forward networks are read"),
    **dict.fromkeys(("NonMaxSuppression", "TopK", "NonZero", "RoiAlign"), _OUTSIDE),
    **dict.fromkeys(
        ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
        "export the QDQ form",
    ),
}


def read(path: Path, given: Mapping[str, Shape], *, with_weights: bool = True) -> Graph:
    """Read a file; see `quantjit.formats.onnx.read`."""
    source = with_conversions(read_source(path, given, with_weights=with_weights))
    lifted, codes = lift(source)
    graph = _graph_of(lifted, with_weights=with_weights)
    if codes is None:
        return graph
    graph = attach(graph, codes)
    return graph if _keeps_rounding(source, graph) else _graph_of(source, with_weights=with_weights)


def _graph_of(source: Source, *, with_weights: bool) -> Graph:
    reader = _Reader(source, with_weights=with_weights)
    for proto in source.nodes:
        reader.take(proto)
    return patterns.simplify(reader.finish(), reader.shapes)


def _keeps_rounding(source: Source, graph: Graph) -> bool:
    """Whether each value that the file rounds to a code is written or read as one in the graph."""
    producer = graph.producer()
    int8 = {node.name for node in graph.nodes if node.quant is not None}
    readers: dict[str, list[Any]] = {}
    for proto in source.nodes:
        for name in dict.fromkeys(proto.input):
            readers.setdefault(name, []).append(proto)
    for proto in source.nodes:
        if proto.op_type != "QuantizeLinear":
            continue
        # behind it are DequantizeLinear nodes: `lift` takes no others out
        given = [reader.output[0] for reader in readers.get(proto.output[0], [])]
        writers = [producer[name] for name in (*given, proto.input[0]) if name in producer]
        if any(node.quant is not None for node in writers):
            continue
        behind = [reader for name in given for reader in readers.get(name, [])]
        if set(given) & set(source.outputs) or {_name_of(node) for node in behind} - int8:
            return False
    return True


def _name_of(proto: Any) -> str:
    return str(proto.name) or next(str(name) for name in proto.output if name)


@dataclass(frozen=True, slots=True)
class _Problem:
    op: str
    node: str
    reason: str


class _Reader:
    """Collects the graph; it is the `Sink` of the translations."""

    def __init__(self, source: Source, *, with_weights: bool) -> None:
        self.source = source
        self.opset = source.opset
        self.shapes: dict[str, Shape] = {}
        self._loader = TensorLoader(source.path, with_weights=with_weights)
        self._constants: dict[str, Array] = dict(source.constants)
        self._kinds: dict[str, str] = {}
        self._aliases: dict[str, str] = {}
        self._unknown: set[str] = set()  # outputs of what could not be translated
        self._problems: list[_Problem] = []
        self._nodes: list[Node] = []
        self._node_names: set[str] = set()
        self._node_name = ""
        self._read = {name for node in source.nodes for name in node.input} | set(source.outputs)
        self._named = {name for node in source.nodes for name in (*node.input, *node.output)}
        self._context = checker.C.CheckerContext()
        self._context.ir_version = 10
        self._context.opset_imports = dict(source.opsets)
        for blob in source.inputs:
            self._input(blob)

    def _input(self, blob: Blob) -> None:
        if blob.dtype:
            self.shapes[blob.name] = blob.shape
            self._kinds[blob.name] = "float32" if "float" in blob.dtype else blob.dtype
        else:
            reason = (
                "its numbers are no floats and no integers of 16 bits or less; make them floats"
            )
            self._problems.append(_Problem("an input", blob.name, reason))
            self._unknown.add(blob.name)

    # -------------------------------------------------------------- one node

    def take(self, proto: Any) -> None:
        """Fold, translate or report a node."""
        op = str(proto.op_type)
        if proto.domain not in DEFAULT_DOMAINS:
            op = f"{proto.domain}.{op}"
        try:
            self._check(proto, op)
            if any(name in self._unknown for name in proto.input):
                if op not in TRANSLATIONS and not is_foldable(op):
                    raise RefusedError(_HINTS.get(op, "there is no translation of it"))
                self._unknown |= set(proto.output)
            elif not self._known(proto, op):
                self._translate(proto, op)
        except (RefusedError, GraphError) as error:
            name = proto.name or proto.output[0]
            reason = error.reason if isinstance(error, GraphError) else str(error)
            self._problems.append(_Problem(op, name, reason))
            self._unknown |= set(proto.output)
        except _MALFORMED as error:
            found = str(error).strip().splitlines()[0] if str(error).strip() else "another"
            raise FormatError(
                self.source.path, place_of(proto), "a node that fits its operator", found
            ) from None

    def _check(self, proto: Any, op: str) -> None:
        if not any(proto.output):
            raise MalformedError("it writes nothing")
        if any(item.ref_attr_name for item in proto.attribute):
            raise MalformedError("it refers to an attribute of a function")
        if proto.domain not in DEFAULT_DOMAINS or op not in TRANSLATIONS:
            return
        try:
            checker.check_node(proto, self._context)
        except checker.ValidationError as error:
            raise MalformedError(str(error).strip().splitlines()[0]) from None

    def _known(self, proto: Any, op: str) -> bool:
        """Whether the outputs are known now."""
        if op == "Constant":
            self._constants[proto.output[0]] = self._stored(proto)
            return True
        if op in {"Shape", "Size"} and self.value(proto.input[0]) is None:
            self._constants[proto.output[0]] = self._measured(proto, op)
            return True
        value = self.value(proto.input[0]) if op == "CastLike" else None
        if value is not None and self.value(proto.input[1]) is None:
            self._constants[proto.output[0]] = value.astype(self.kind(proto.input[1]))
            return True
        values = [self.value(name) if name else None for name in proto.input]
        given = [value is not None for value in values]
        if not is_foldable(op) or given != [bool(name) for name in proto.input] or not any(given):
            return False
        self._constants |= fold(proto, values, self.source.opsets)
        return True

    def _stored(self, proto: Any) -> Array:
        """Return the value of a Constant."""
        for item in proto.attribute:
            if item.name == "value" and item.type == AttributeProto.TENSOR:
                return self._loader.array(item.t, place_of(proto))
            if item.name in {"value_float", "value_floats"}:
                values = item.f if item.name == "value_float" else list(item.floats)
                return np.array(values, np.float32)
            if item.name in {"value_int", "value_ints"}:
                return np.array(item.i if item.name == "value_int" else list(item.ints), np.int64)
        raise RefusedError("its value is no dense tensor of numbers")

    def _measured(self, proto: Any, op: str) -> Array:
        shape = self.shapes[self.blob(proto.input[0])]
        if op == "Size":
            return np.array(np.prod(shape, dtype=np.int64))
        call = self._call(proto)
        rank = len(shape)
        return np.array(shape[call.integer("start", 0) : call.integer("end", rank)], np.int64)

    def _call(self, proto: Any) -> Call:
        return Call(self, proto, {item.name: item for item in proto.attribute})

    def _translate(self, proto: Any, op: str) -> None:
        translation = TRANSLATIONS.get(op)
        if translation is None:
            raise RefusedError(_HINTS.get(op, "there is no translation of it"))
        call = self._call(proto)
        for index, name in enumerate(proto.input):
            is_blob = name and self.value(name) is None
            if is_blob and call.kind(index) != "float32" and op not in _ON_CODES:
                raise RefusedError(
                    f"it would work on {call.kind(index)} numbers: cast them to float before it"
                )
        self._node_name = _name_of(proto)
        kept = len(self._nodes)
        try:
            translation(call)
        except (RefusedError, GraphError):
            del self._nodes[kept:]
            raise

    # -------------------------------------------------------------- what translations use

    def value(self, name: str) -> Array | None:
        """Return the constant of that name, None where it is a blob."""
        return self._constants.get(name)

    def kind(self, name: str) -> str:
        """Return the type of the numbers that an ONNX name stands for."""
        return self._kinds.get(name, "float32")

    def is_read(self, name: str) -> bool:
        """Whether anything reads that ONNX name."""
        return bool(name) and name in self._read

    def blob(self, name: str) -> str:
        """Return the blob of an ONNX name, made of the constant of that name where there is one."""
        blob = self._aliases.get(name, name)
        if blob in self.shapes:
            return blob
        if blob not in self._constants:
            raise MalformedError(f"an input is missing: {name!r}")
        value = self._constants[blob]
        if value.dtype.kind not in "fiub" and "float" not in str(value.dtype):
            raise RefusedError(f"{name!r} holds {value.dtype}, which a float blob cannot")
        weights = {"value": readonly(np.asarray(value, np.float32))}
        name = self._fresh(f"{name}:constant")
        self._nodes.append(
            Node(name, "constant", (), (blob,), ConstantAttrs(tuple(value.shape)), weights)
        )
        self.shapes[blob] = tuple(value.shape)
        return blob

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
        """Append a node, by default under the name of the ONNX node."""
        outputs = tuple(
            output or self.unused(f"{self._node_name}:output{index}")
            for index, output in enumerate(outputs)
        )
        kept = {role: readonly(np.asarray(array)) for role, array in weights.items()}
        node = Node(self._fresh(name or self._node_name), op, inputs, outputs, attrs, kept)
        inferred = ops.get(op).infer_shape(node, [self.shapes[blob] for blob in inputs])
        large = [shape for shape in inferred if prod(shape) > _LARGEST_BLOB]
        if large:
            raise RefusedError(f"its output of shape {large[0]} is too large")
        for blob, shape in zip(outputs, inferred, strict=True):
            if blob in self.shapes:
                raise MalformedError(f"blob {blob!r} is written twice")
            self.shapes[blob] = tuple(int(size) for size in shape)
            self._kinds[blob] = kind
        self._nodes.append(node)

    def _fresh(self, name: str) -> str:
        """Return a name for a node: this one, with a number behind it where it is taken."""
        found, number = name, 1
        while found in self._node_names:
            found, number = f"{name}_{number}", number + 1
        self._node_names.add(found)
        return found

    def unused(self, name: str) -> str:
        """Return a name like this one that no blob has."""
        found, number = name, 1
        while found in self.shapes or found in self._named:
            found, number = f"{name}_{number}", number + 1
        return found

    def alias(self, name: str, blob: str, kind: str) -> None:
        """Let an ONNX name stand for a blob that is there already."""
        self._aliases[name] = blob
        self._kinds[name] = kind

    # -------------------------------------------------------------- the end

    def finish(self) -> Graph:
        """Return the graph; FormatError names every problem."""
        if self._problems:
            raise FormatError(
                self.source.path,
                "",
                "operators that quantjit can run",
                _listed(self._problems),
            )
        self._name_outputs()
        inputs = tuple(Blob(blob.name, blob.shape) for blob in self.source.inputs)
        graph = Graph(tuple(self._nodes), inputs, self.source.outputs)
        try:
            graph.validate()
        except GraphError as error:
            raise FormatError(
                self.source.path, error.place, "a valid graph", error.reason
            ) from None
        return graph

    def _name_outputs(self) -> None:
        """Give the network's outputs their names where they stand for other blobs."""
        inputs = {blob.name for blob in self.source.inputs}
        renamed: dict[str, str] = {}
        copies: list[tuple[str, str]] = []
        for name in self.source.outputs:
            blob = self.blob(name)
            if blob == name:
                continue
            if blob in inputs or blob in self.source.outputs or blob in renamed:
                copies.append((renamed.get(blob, blob), name))
            else:
                renamed[blob] = name
                self.shapes[name] = self.shapes[blob]

        def new(blobs: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(renamed.get(blob, blob) for blob in blobs)

        self._nodes = [
            replace(node, inputs=new(node.inputs), outputs=new(node.outputs))
            for node in self._nodes
        ]
        for blob, name in copies:
            self._nodes.append(Node(self._fresh(name), "split", (blob,), (name,), NoAttrs()))


def _listed(problems: list[_Problem]) -> str:
    """One line: each operator once a reason, with the first nodes that have it."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        grouped.setdefault((problem.op, problem.reason), []).append(problem.node)
    parts = []
    for (given, reason), nodes in grouped.items():
        op = repr(given)[1:-1]
        names = ", ".join(repr(name) for name in nodes[:3])
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        parts.append(f"{op} ({names}{more}): {reason}")
    return f"{len(problems)} it cannot: " + "; ".join(parts)
