"""Int8 networks in ONNX files become int8 graphs, not float ones that imitate their rounding.

`lift` takes the QuantizeLinear and DequantizeLinear nodes out of a file and remembers what they
say; the float reader reads the rest; `attach` marks the nodes that stood between the two as int8
and gives them their codes.  A node without an int8 form here stays float between conversions, which
is what the file says too.  A file whose codes are used in another way (16 bits, 4 bits, arithmetic
on codes, one scale a channel of a blob) is left as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from quantjit import ops
from quantjit.formats._onnx_read_file import Source
from quantjit.graph import Array, Graph, Node, readonly
from quantjit.quant import NodeQuant, QuantParams

_WEIGHTED = ("convolution", "inner_product")
_MOVES = ("flatten", "reshape", "permute", "squeeze", "unsqueeze")
_CLIPS = ("relu", "relu6")
_INT8 = (*_WEIGHTED, *_MOVES, *_CLIPS, "add", "concat", "pooling")
_BIAS_TOLERANCE = 1e-3  # relative, between the bias's own scale and the product of the others


@dataclass(frozen=True, slots=True)
class Stored:
    """A constant behind a DequantizeLinear: its codes as int8 or int32, and their parameters."""

    codes: Array
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Codes:
    """What the file says of its codes.

    scales: by blob, under the names of the lifted file.  weights: by the name of a constant.
    nodes: names of nodes that read and write codes only -> names of their inputs in the file.
    fused: activation -> the layer before it, where only both together read and write codes.
    """

    scales: dict[str, QuantParams] = field(default_factory=dict)
    weights: dict[str, Stored] = field(default_factory=dict)
    nodes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    unsigned: bool = False


class _UnusualError(Exception):
    """The file uses codes in a way that int8 graphs do not have."""


def lift(source: Source) -> tuple[Source, Codes | None]:
    """Return the file without its conversions, and what they said; None where there are none."""
    if not any(node.op_type == "QuantizeLinear" for node in source.nodes):
        return source, None
    try:
        return _Lift(source).run()
    except (_UnusualError, LookupError, ValueError, TypeError):
        return source, None  # what is malformed the reader of floats reports in its place


class _Lift:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.constants = dict(source.constants)
        self.readers: dict[str, list[Any]] = {}
        self.writer: dict[str, Any] = {}
        for node in source.nodes:
            if node.op_type == "Constant":
                self._keep_constant(node)
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
            for name in node.output:
                self.writer[name] = node
        self.codes = Codes()
        self.kinds: set[bool] = set()
        self.written: dict[str, str] = {}  # tensor that a QuantizeLinear reads -> its blob
        self.alias: dict[str, str] = {}  # tensor -> blob that stands for it
        self.read: set[str] = set()  # tensors that a DequantizeLinear of a blob gives

    def _keep_constant(self, node: Any) -> None:
        for item in node.attribute:
            if item.name == "value" and item.t.data_location != TensorProto.EXTERNAL:
                self.constants[node.output[0]] = np.asarray(numpy_helper.to_array(item.t))

    def run(self) -> tuple[Source, Codes]:
        kept = []
        for node in self.source.nodes:
            if node.op_type == "QuantizeLinear":
                self._take_pair(node)
            elif node.op_type == "DequantizeLinear":
                self._take_weight(node)
            else:
                kept.append(node)
        for node in kept:
            self._classify(node)
        nodes = tuple(self._renamed(node) for node in kept)
        codes = replace(self.codes, unsigned=True in self.kinds)
        return replace(self.source, nodes=nodes, constants=self.constants), codes

    # -------------------------------------------------------------- conversions

    def _constant(self, name: str) -> Array:
        value = self.constants.get(name)
        if value is None:
            raise _UnusualError
        return value

    def _params(self, node: Any) -> tuple[NDArray[np.float32], Array]:
        """Scale and zero point, vectors; the zero point has the type of the codes."""
        scale = np.asarray(self._constant(node.input[1]), np.float32).reshape(-1)
        given = len(node.input) > 2 and node.input[2]
        kind = np.uint8 if node.op_type == "QuantizeLinear" else np.int32
        zero = self._constant(node.input[2]) if given else np.zeros(scale.size, kind)
        return scale, zero.reshape(-1)

    def _blob_params(self, node: Any) -> QuantParams:
        scale, zero = self._params(node)
        if scale.size != 1 or zero.dtype not in (np.int8, np.uint8):
            raise _UnusualError
        self.kinds.add(zero.dtype == np.uint8)
        offset = 128 if zero.dtype == np.uint8 else 0
        return QuantParams(scale, int(zero[0]) - offset)

    def _take_pair(self, node: Any) -> None:
        """Take out a QuantizeLinear with the DequantizeLinears behind it."""
        source, codes = node.input[0], node.output[0]
        readers = self.readers.get(codes, [])
        params = self._blob_params(node)
        outputs = self.source.outputs
        if codes in outputs or source in self.constants or not readers or source in self.written:
            raise _UnusualError
        for reader in readers:
            if reader.op_type != "DequantizeLinear" or self._blob_params(reader) != params:
                raise _UnusualError
        given = [reader.output[0] for reader in readers]
        has_writer = source in self.writer and source not in self.alias
        if not has_writer or len(self.readers[source]) > 1 or source in outputs:
            blob = self.alias.get(source, source)  # others read it as it was before rounding
            if any(name in outputs for name in given) or blob in self.codes.scales:
                raise _UnusualError
        else:
            named = [name for name in given if name in outputs]
            if len(named) > 1:
                raise _UnusualError
            blob = (named or given)[0]
            self.alias[source] = blob
            self.written[source] = blob
        self.alias |= dict.fromkeys(given, blob)
        self.read |= set(given)
        self.codes.scales[blob] = params

    def _take_weight(self, node: Any) -> None:
        """Take out a DequantizeLinear of a constant, which becomes its real values."""
        name = node.output[0]
        if name in self.read:
            return
        codes = self._constant(node.input[0])
        scale, zero = self._params(node)
        if codes.dtype not in (np.int8, np.uint8, np.int32) or codes.ndim == 0:
            raise _UnusualError
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        axis += codes.ndim if axis < 0 else 0
        offset = 128 if codes.dtype == np.uint8 else 0
        zeros = zero.astype(np.int64)
        if scale.size > 1 and (axis >= codes.ndim or scale.size != codes.shape[axis]):
            raise _UnusualError
        shape = [1] * codes.ndim
        if scale.size > 1:
            shape[axis] = scale.size
        spread = np.broadcast_to(zeros, scale.shape).reshape(shape)
        real = (codes.astype(np.int64) - spread).astype(np.float32) * scale.reshape(shape)
        self.constants[name] = real.astype(np.float32)
        kept = codes if codes.dtype == np.int32 else (codes.astype(np.int16) - offset)
        typed = kept if codes.dtype == np.int32 else kept.astype(np.int8)
        self.codes.weights[name] = Stored(typed, scale, zeros - offset)

    # -------------------------------------------------------------- nodes

    def _classify(self, node: Any) -> None:
        """Remember a node that reads codes only and writes codes, alone or with its activation."""
        blobs = [name for name in node.input if name and name not in self.constants]
        if not blobs or not all(name in self.read for name in blobs):
            return
        outputs = [name for name in node.output if name]
        name = _node_name(node)
        inputs = tuple(node.input)
        if all(output in self.written for output in outputs):
            self.codes.nodes[name] = inputs
            return
        readers = self.readers.get(outputs[0], [])
        if len(outputs) > 1 or len(readers) != 1 or outputs[0] in self.source.outputs:
            return
        (after,) = readers
        if after.op_type in ("Relu", "Clip") and after.output[0] in self.written:
            self.codes.nodes[name] = inputs
            self.codes.fused[_node_name(after)] = name

    def _renamed(self, node: Any) -> Any:
        copy = type(node)()
        copy.CopyFrom(node)
        for names in (copy.input, copy.output):
            for index, name in enumerate(names):
                names[index] = self.alias.get(name, name)
        if not copy.name:
            copy.name = _node_name(node)
        return copy


def _node_name(node: Any) -> str:
    return str(node.name) or next(str(name) for name in node.output if name)


# ------------------------------------------------------------------ the graph


def attach(graph: Graph, codes: Codes) -> Graph:
    """Return the graph with its int8 nodes marked, and with their codes."""
    marked: dict[str, Node] = {}
    shapes = _shapes(graph)
    for node in graph.nodes:
        layer = marked.get(codes.fused.get(node.name, ""))
        if layer is not None and _fuses(layer, node, codes):
            attrs = replace(layer.attrs, activation=node.op)
            marked[layer.name] = replace(layer, outputs=node.outputs, attrs=attrs)
        else:
            marked[node.name] = _marked(node, codes)
    floats = {node.name: node for node in graph.nodes}
    nodes: list[Node] = []
    for node in marked.values():
        is_int8 = node.quant is not None and _runs(node, codes.scales, shapes)
        nodes.append(node if is_int8 else floats[node.name])
    used = {blob for node in nodes if node.quant for blob in (*node.inputs, *node.outputs)}
    scales = {blob: params for blob, params in codes.scales.items() if blob in used}
    arithmetic = "onnx-uint8" if codes.unsigned else "onnx"
    return replace(graph, nodes=tuple(nodes), scales=scales, arithmetic=arithmetic)


def _shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    shapes = {blob.name: tuple(blob.shape) for blob in graph.inputs}
    for node in graph.nodes:
        found = ops.get(node.op).infer_shape(node, [shapes[blob] for blob in node.inputs])
        shapes.update(zip(node.outputs, found, strict=True))
    return shapes


def _fuses(layer: Node, node: Node, codes: Codes) -> bool:
    return (
        layer.quant is not None
        and layer.op == "convolution"
        and layer.attrs.activation == "none"
        and node.op in _CLIPS
        and node.inputs == layer.outputs
        and node.outputs[0] in codes.scales
    )


def _runs(
    node: Node, scales: Mapping[str, QuantParams], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Whether a marked node has an int8 form here."""
    if not all(blob in scales for blob in (*node.inputs, *node.outputs)):
        return False
    if node.op == "add":
        return len(node.inputs) == 2 and shapes[node.inputs[0]] == shapes[node.inputs[1]]
    if node.op in _MOVES or (node.op == "pooling" and node.attrs.kind == "max"):
        return scales[node.inputs[0]] == scales[node.outputs[0]]
    return True


def _marked(node: Node, codes: Codes) -> Node:
    """Return the node as int8, with its codes, where the file has it so."""
    if node.name not in codes.nodes or node.op not in _INT8:
        return node
    if node.op not in _WEIGHTED:
        return replace(node, quant=NodeQuant())
    inputs = codes.nodes[node.name]
    stored = codes.weights.get(inputs[1])
    source = codes.scales.get(node.inputs[0])
    if stored is None or source is None:
        return node
    made = _weight_codes(node, stored)
    if made is None:
        return node
    product = (stored.scale * source.scale[0]).astype(np.float32)
    weights = dict(node.weights) | {"weight": readonly(made)}
    if node.attrs.has_bias:
        bias = codes.weights.get(inputs[2]) if len(inputs) > 2 else None
        weights["bias"] = readonly(_bias_codes(node, bias, product))
    zeros = np.broadcast_to(stored.zero_point, stored.scale.shape).astype(np.int8)
    attrs = replace(node.attrs, transpose=False) if node.op == "inner_product" else node.attrs
    return replace(
        node, attrs=attrs, weights=weights, quant=NodeQuant(readonly(product), readonly(zeros))
    )


def _weight_codes(node: Node, stored: Stored) -> NDArray[np.int8] | None:
    """Codes of a weight, a scale a row; None where they do not make up the weight."""
    real = np.asarray(node.weights["weight"], np.float32)
    if node.op == "inner_product" and node.attrs.transpose:
        real = np.ascontiguousarray(real.T)
    if stored.scale.size not in (1, len(real)):
        return None
    column = (-1, *(1 for _ in real.shape[1:]))
    steps = stored.scale.reshape(column)
    zeros = np.broadcast_to(stored.zero_point, stored.scale.shape).reshape(column)
    whole = np.rint(real / steps)
    if not np.array_equal(whole.astype(np.float32) * steps, real):
        return None
    codes = whole + zeros
    return codes.astype(np.int8) if codes.min() >= -128 and codes.max() <= 127 else None


def _bias_codes(
    node: Node, stored: Stored | None, product: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Codes of the bias in the steps of the sums: those of the file, or what comes next to it."""
    if stored is not None and stored.codes.dtype == np.int32:
        count = max(stored.scale.size, product.size)
        given, wanted = (np.broadcast_to(x, count) for x in (stored.scale, product))
        if np.allclose(given, wanted, rtol=_BIAS_TOLERANCE, atol=0) and not stored.zero_point.any():
            return stored.codes.reshape(-1)
    steps = product.astype(np.float64)
    quotient = np.rint(np.asarray(node.weights["bias"], np.float64) / steps)
    limits = np.iinfo(np.int32)
    return np.clip(quotient, limits.min, limits.max).astype(np.int32)
