"""TNN models: ``.tnnproto``, the structure as text, and ``.tnnmodel``, the weights.

Read are both versions of either file, float, half and int8; written is version 2, byte for byte as
TNN's packer does (``source/tnn/interpreter/tnn/model_packer.cc``).  An int8 file is not lowered
here: conversions between int8 and float layers are made by `quantjit.passes.lower`.
"""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from quantjit.errors import FormatError, GraphError
from quantjit.formats import Format
from quantjit.formats._tnn_layers import BY_OP
from quantjit.formats._tnn_model import (
    SCALE_SUFFIX,
    Arrays,
    Buffer,
    Entry,
    Model,
    Resource,
    blob_scale_entry,
    format_model,
    read_model,
)
from quantjit.formats._tnn_proto import (
    VERSION_1,
    VERSION_2,
    Layer,
    Structure,
    format_proto,
    read_proto,
    type_string_of,
)
from quantjit.graph import Array, Graph, Node
from quantjit.quant import NodeQuant, QuantParams

Shape = tuple[int, ...]

_FLOATS = ("float32", "float16")
_ANY = (*_FLOATS, "int8", "int32", "int64", "uint32")
_DATA_ROLES = ("value", "data", "indices")  # arrays of any type, not multiplied with anything
_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
_INT8_WEIGHTED = ("convolution", "inner_product")


def _roles(node: Node) -> dict[str, Shape | None]:
    """Roles of the weights that a node must have, with shapes where attributes tell them."""
    attrs: Any = node.attrs
    match node.op:
        case "convolution" | "deconvolution":
            rows, columns = attrs.out_channels, attrs.in_channels
            if node.op == "deconvolution":
                rows, columns = columns, rows
            weight = (rows, columns // attrs.group, attrs.kernel_h, attrs.kernel_w)
            bias = {"bias": (attrs.out_channels,)} if attrs.has_bias else {}
            return {"weight": weight, **bias}
        case "inner_product":
            bias = {"bias": (attrs.out_features,)} if attrs.has_bias else {}
            return {"weight": None, **bias}
        case "batch_norm":
            return {"scale": None, "bias": None}
        case "instance_norm":
            shape = (attrs.channels,) if attrs.channels else None
            return {"scale": shape, "bias": shape}
        case "scale":
            return {"scale": None, "bias": None} if attrs.has_bias else {"scale": None}
        case "prelu":
            return {"slope": (1,) if attrs.channel_shared else None}
        case "constant":
            return {"value": attrs.shape}
        case "gather":
            flags = {"data": attrs.data_in_resource, "indices": attrs.indices_in_resource}
            return {role: None for role, stored in flags.items() if stored}
    if len(node.inputs) == 1 and node.op in (*_BINARY, "matmul"):
        return {"weight" if node.op == "matmul" else "constant": None}
    return {}


def weight_shapes(node: Node, input_shape: Shape | None = None) -> dict[str, Shape]:
    """Return the shapes of the weights of a node by role, to make up weights for a structure.

    input_shape: of the node's first input; needed by all but convolution, deconvolution and
    constant.  The constant of a binary op gets one value a channel, a matmul a square matrix.

    Raises GraphError where the input shape is needed or the shape cannot be told (gather).
    """
    shapes: dict[str, Shape] = {}
    for role, known in _roles(node).items():
        shapes[role] = _shape_from_input(node, role, input_shape) if known is None else known
    return shapes


def _shape_from_input(node: Node, role: str, shape: Shape | None) -> Shape:
    place = f"node {node.name!r}"
    if node.op == "gather":
        raise GraphError(place, f"the shape of its {role} cannot be told")
    if shape is None or len(shape) < 2:
        raise GraphError(place, f"the shape of its {role} needs that of its input, got {shape}")
    if node.op == "inner_product":
        return (node.attrs.out_features, prod(shape[node.attrs.axis :]))
    if node.op == "matmul":
        size = shape[-1 if node.attrs.constant_index else -2]
        return (size, size)
    if node.op in _BINARY:
        return (1, shape[1], *(1 for _ in shape[2:]))
    return (shape[1],)


def read(paths: Sequence[Path]) -> Graph:
    """Read a ``.tnnproto`` and its ``.tnnmodel``.

    Half weights stay float16.  Resources of layers that the structure does not have are ignored,
    and so are scales of blobs that no int8 layer touches.

    Raises FormatError with the file, the record or the byte, the layer, expected and found.
    """
    proto, path = paths
    structure = read_proto(proto)
    model = read_model(path)
    nodes = tuple(_node(path, layer, model) for layer in structure.layers)
    constants = {
        name: _typed(path, f"constant {name!r}", buffer).array(_natural_shape(buffer))
        for name, buffer in model.constants.items()
    }
    scales = dict(_scales(path, structure, model))
    return _validated(proto, Graph(nodes, structure.inputs, structure.outputs, scales, constants))


def read_structure(path: Path) -> Graph:
    """Read a ``.tnnproto`` alone: nodes without weights, int8 ones marked by an empty `NodeQuant`.

    Raises FormatError; also for a network that reads constants from its ``.tnnmodel``.
    """
    structure = read_proto(path)
    nodes = tuple(
        replace(layer.node, quant=NodeQuant()) if layer.int8 else layer.node
        for layer in structure.layers
    )
    return _validated(path, Graph(nodes, structure.inputs, structure.outputs))


def _validated(path: Path, graph: Graph) -> Graph:
    try:
        graph.validate()
    except GraphError as error:
        raise FormatError(path, error.place, "a sound network", error.reason) from None
    return graph


def _node(path: Path, layer: Layer, model: Model) -> Node:
    node, quant = layer.node, NodeQuant() if layer.int8 else None
    roles = _roles(node)
    if not roles:
        return replace(node, quant=quant)
    resource = model.resources.get(node.name)
    if resource is None:
        raise FormatError(path, "", f"a resource for {layer.where}", "none of that name")
    int8 = layer.int8 and node.op in _INT8_WEIGHTED
    if "bias" in resource.buffers and "bias" not in roles and node.op != "inner_product":
        raise FormatError(path, resource.where, "no bias, as the .tnnproto says", "a bias")
    weights = {}
    for role, shape in roles.items():
        if role not in resource.buffers:
            raise FormatError(path, resource.where, f"{role}, as the .tnnproto says", "none")
        kinds = _dtypes(role, int8)
        buffer = _typed(path, resource.where, resource.buffers[role], role, kinds)
        weights[role] = _shaped(path, resource.where, node, role, buffer, shape)
        _check_finite(path, layer, role, weights[role])
    if node.op in ("batch_norm", "scale", "instance_norm") and "bias" in weights:
        sizes = [array.size for array in weights.values()]
        if len(set(sizes)) > 1:
            raise FormatError(path, resource.where, "as many biases as scales", str(sizes))
    if int8:
        channels = node.attrs.out_channels if node.op == "convolution" else node.attrs.out_features
        params = _params(path, resource)
        if params.scale.size not in (1, channels):
            raise FormatError(
                path, resource.where, f"1 or {channels} scales", str(params.scale.size)
            )
        quant = NodeQuant(params.scale, params.zero_point)
    return replace(node, weights=weights, quant=quant)


def _dtypes(role: str, int8: bool) -> tuple[str, ...]:
    if role in _DATA_ROLES:
        return _ANY
    if int8:
        return ("int8",) if role == "weight" else ("int32",)
    return _FLOATS


def _typed(
    path: Path, where: str, buffer: Buffer, role: str = "value", dtypes: tuple[str, ...] = _ANY
) -> Buffer:
    if buffer.dtype not in dtypes:
        raise FormatError(path, where, f"{role} as {' or '.join(dtypes)}", buffer.dtype)
    return buffer


def _natural_shape(buffer: Buffer) -> Shape:
    """Return the dimensions, where there are none those of a scalar or of a vector."""
    return buffer.dims or (() if buffer.count == 1 else (buffer.count,))


def _shaped(
    path: Path, where: str, node: Node, role: str, buffer: Buffer, shape: Shape | None
) -> Array:
    if shape is None:
        if role in _DATA_ROLES:
            shape = _natural_shape(buffer)
        elif node.op == "inner_product":
            shape = (node.attrs.out_features, buffer.count // node.attrs.out_features)
        elif role in ("constant", "weight"):
            shape = buffer.dims or (buffer.count,)
        else:
            shape = (buffer.count,)
    if prod(shape) != buffer.count or (not buffer.count and role not in _DATA_ROLES):
        wanted = " x ".join(map(str, shape))
        raise FormatError(path, where, f"{role} of {wanted} values", f"{buffer.count} values")
    return buffer.array(shape)


def _check_finite(path: Path, layer: Layer, role: str, array: Array) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = array[~np.isfinite(array)]
        raise FormatError(
            path, f"{role} of {layer.where}", "finite numbers", f"{bad.size} values like {bad[0]}"
        )


def _params(path: Path, resource: Resource) -> QuantParams:
    scale = resource.buffers["scale"]
    zero_point = resource.buffers.get("zero_point")
    steps = scale.array((scale.count,))
    if not steps.size or not np.isfinite(steps).all() or (steps < 0).any():
        raise FormatError(path, resource.where, "scales that are finite and >= 0", str(steps))
    if zero_point is None:
        return QuantParams(steps)
    if zero_point.count != scale.count:
        raise FormatError(path, resource.where, f"{scale.count} zero points", str(zero_point.count))
    return QuantParams(steps, zero_point.array((zero_point.count,)))


def _scales(path: Path, structure: Structure, model: Model) -> Iterator[tuple[str, QuantParams]]:
    """Find the scale of each blob that an int8 layer reads or writes."""
    seen = set()
    for layer in structure.layers:
        for blob in (*layer.node.inputs, *layer.node.outputs) if layer.int8 else ():
            resource = model.resources.get(blob + SCALE_SUFFIX)
            if blob in seen or (resource is None and blob in model.constants):
                continue
            if resource is None or "scale" not in resource.buffers:
                raise FormatError(
                    path, "", f"the scale of blob {blob!r} of {layer.where}", "none of that name"
                )
            seen.add(blob)
            yield blob, _params(path, resource)


def write(graph: Graph, paths: Sequence[Path]) -> None:
    """Write a ``.tnnproto`` and its ``.tnnmodel``, version 2.

    Both are written under temporary names in their folders and renamed only when complete.

    Raises GraphError for what TNN's format cannot express, naming node or blob, and OSError.
    """
    proto, path = paths
    if proto == path:
        raise FormatError(path, "", "two files", "one name for both")
    for target in paths:
        if target.is_dir():
            raise FormatError(target, "", "a file name", "a folder")
    graph.validate()
    if graph.is_quantized and graph.is_onnx:
        raise GraphError(
            "network", "is int8 for ONNX, which TNN computes otherwise; quantize it for TNN"
        )
    text = format_proto(graph)
    chunks = format_model(list(_entries(graph)), graph.constants)
    _replace_all([(proto, [text]), (path, chunks)])


def _replace_all(files: Sequence[tuple[Path, Iterable[bytes]]]) -> None:
    temporaries: list[Path] = []
    try:
        for path, chunks in files:
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            try:
                with temporary.open("xb") as file:
                    temporaries.append(temporary)
                    file.writelines(chunks)
            except OSError as error:  # that of a full disk names no file
                reason = f"cannot be written: {error.strerror}"
                raise OSError(error.errno, reason, str(path)) from None
        for temporary, (path, _) in zip(temporaries, files, strict=True):
            temporary.replace(path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _entries(graph: Graph) -> Iterator[Entry]:
    """Yield resources as the packer does: scales of inputs, the layer, scales of outputs."""
    written: set[str] = set()

    def scales(node: Node, blobs: Iterable[str]) -> Iterator[Entry]:
        for blob in blobs if node.quant is not None else ():
            params = graph.scales.get(blob)
            if blob in written or (params is None and blob in graph.constants):
                continue
            if params is None:
                raise GraphError(f"blob {blob!r}", f"int8 node {node.name!r} needs its scale")
            written.add(blob)
            yield blob_scale_entry(blob, params.scale, params.zero_point)

    for node in graph.nodes:
        yield from scales(node, node.inputs)
        if node.weights or _roles(node):
            yield Entry(type_string_of(node), node.name, _arrays(node))
        yield from scales(node, node.outputs)


def _arrays(node: Node) -> Arrays:
    """Return the weights as TNN keeps them, after checking that they fit the attributes."""
    place, roles = f"node {node.name!r}", _roles(node)
    if node.weights.keys() != roles.keys():
        raise GraphError(
            place, f"TNN stores the weights {sorted(roles)}, there are {sorted(node.weights)}"
        )
    arrays = dict(node.weights)
    quant = node.quant if node.op in _INT8_WEIGHTED else None
    for role, array in arrays.items():
        shape, kinds = roles[role], _dtypes(role, quant is not None)
        if shape is not None and array.shape != shape:
            raise GraphError(place, f"{role} must be {shape}, is {array.shape}")
        if array.dtype.name not in kinds:
            raise GraphError(place, f"{role} must be {' or '.join(kinds)}, is {array.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise GraphError(place, f"{role} has values that are not finite")
    if node.op == "inner_product":
        weight = arrays["weight"].T if node.attrs.transpose else arrays["weight"]
        if weight.ndim != 2 or len(weight) != node.attrs.out_features:
            raise GraphError(place, f"weight must have {node.attrs.out_features} rows (outputs)")
        arrays["weight"] = weight
    if quant is not None:
        arrays |= {"scale": quant.weight_scale, "zero_point": quant.weight_zero_point}
    return arrays


def knows(op: str) -> bool:
    """Whether TNN has a layer for an op, in float."""
    return op in BY_OP


def _recognizes(head: bytes) -> bool:
    """Tell the text of a ``.tnnproto`` by the number of its version in the first record."""
    return any(str(magic).encode() in head.split(b",")[0] for magic in (VERSION_1, VERSION_2))


FORMAT = Format(
    "tnn", (".tnnproto", ".tnnmodel"), read, write, read_structure, recognizes=_recognizes
)
