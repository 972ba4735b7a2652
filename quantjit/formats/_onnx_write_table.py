"""All translations of ops to ONNX by op."""

from collections.abc import Mapping

from quantjit.errors import GraphError
from quantjit.formats import _onnx_write_layers as layers
from quantjit.formats import _onnx_write_pointwise as pointwise
from quantjit.formats import _onnx_write_shapes as shapes
from quantjit.formats._onnx_write_call import Call, Translation

TRANSLATIONS: Mapping[str, Translation] = {
    **layers.TRANSLATIONS,
    **pointwise.TRANSLATIONS,
    **shapes.TRANSLATIONS,
}


def translate(call: Call) -> None:
    """Write one node in float; GraphError where ONNX has no word for its op."""
    node = call.node
    if node.op not in TRANSLATIONS:
        raise GraphError(f"node {node.name!r}", f"op {node.op!r} cannot be written as ONNX")
    TRANSLATIONS[node.op](call)
