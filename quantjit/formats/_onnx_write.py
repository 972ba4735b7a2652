"""Write a graph as one ``.onnx`` file: float, or int8 as QDQ or with quantized operators.

The file is made in memory, checked by ``onnx.checker``, written under a temporary name and then
renamed.  Names of nodes and blobs are kept; what is added is named after them.
"""

import secrets
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from quantjit import ops
from quantjit.errors import FormatError, GraphError, UnsupportedError, UsageError
from quantjit.formats._onnx_write_call import MICROSOFT, OPSET, Call, Model, Shape
from quantjit.formats._onnx_write_int8 import Int8Writer
from quantjit.formats._onnx_write_table import translate
from quantjit.graph import Graph, Node

FORMS = ("qdq", "qoperator")

_VERSION = str(import_module("quantjit").__version__)
_IR_VERSION = 8  # that of opset 17
_LIMIT = 2**31 - 1  # bytes of a protobuf


def write(
    graph: Graph,
    path: Path,
    form: str = "qdq",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network.

    form: of an int8 network, one of FORMS; the type of its blobs' codes is that of the graph's
    arithmetic.  metadata: goes into the file's ``metadata_props``.

    Raises GraphError, naming the node, for what ONNX cannot express; UnsupportedError for an
    unknown form; OSError.
    """
    if path.is_dir():
        raise FormatError(path, "", "a file name", "a folder")
    data = make(graph, form, metadata).SerializeToString()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make(
    graph: Graph,
    form: str = "qdq",
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Return the checked model; arguments and errors are those of `write`."""
    if form not in FORMS:
        raise UnsupportedError("form of an int8 ONNX network", form, FORMS)
    if graph.is_quantized and not graph.is_onnx:
        raise UsageError(
            "an int8 TNN network cannot be written as ONNX: its arithmetic is another; "
            "quantize the float network for ONNX"
        )
    graph.validate()
    shapes = _shapes(graph)
    model = Model(shapes, taken=graph.blobs())
    read = graph.readers()
    for name, array in graph.constants.items():
        if name in read or name in graph.outputs:
            model.initializers.append(
                onnx.numpy_helper.from_array(np.array(array, np.float32, order="C"), name)
            )
    if graph.is_quantized:
        Int8Writer(model, graph, qdq=form == "qdq").write_nodes()
    else:
        for node in graph.nodes:
            translate(Call(model, node, node.inputs, node.outputs))
    return _finished(graph, model, shapes, metadata or {})


def _shapes(graph: Graph) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {blob.name: tuple(blob.shape) for blob in graph.inputs}
    shapes |= {name: tuple(array.shape) for name, array in graph.constants.items()}
    for node in graph.nodes:
        _check_weights(node)
        found = ops.get(node.op).infer_shape(node, [shapes[blob] for blob in node.inputs])
        shapes.update(zip(node.outputs, found, strict=True))
    return shapes


def _check_weights(node: Node) -> None:
    for role in ops.get(node.op).required_weights(node.attrs):
        if role not in node.weights and not (role == "constant" and len(node.inputs) > 1):
            raise GraphError(f"node {node.name!r}", f"has no {role}")


def _finished(
    graph: Graph, model: Model, shapes: Mapping[str, Shape], metadata: Mapping[str, str]
) -> onnx.ModelProto:
    made = helper.make_graph(
        model.nodes,
        "quantjit",
        [
            helper.make_tensor_value_info(blob.name, TensorProto.FLOAT, blob.shape)
            for blob in graph.inputs
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])
            for name in graph.outputs
        ],
        model.initializers,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    if MICROSOFT in model.domains:
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    result = helper.make_model(
        made,
        opset_imports=opsets,
        ir_version=_IR_VERSION,
        producer_name="quantjit",
        producer_version=_VERSION,
    )
    helper.set_model_props(result, {"quantjit.version": _VERSION, **metadata})
    if result.ByteSize() > _LIMIT:
        raise GraphError(
            "network", f"its {result.ByteSize()} bytes are more than an ONNX file can hold"
        )
    try:
        onnx.checker.check_model(result)
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0]
        raise GraphError("network", f"is no valid ONNX: {first}") from None
    return result
