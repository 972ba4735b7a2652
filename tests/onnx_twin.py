"""The same network in ONNX: an independent reading of the ops that image classifiers use.

ONNX says "same" padding itself (``SAME_UPPER``), and sizes are onnxruntime's; the shapes that the
package infers are used only where TNN differs from ONNX (windows of ceil mode are not trimmed).
What is not translated raises ValueError or KeyError: a twin is right or is not made.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantjit.executor import infer_shapes
from quantjit.graph import Graph

OPSET = 17
_END = 2**31 - 1  # a slice to the end
_ELEMENTWISE = {"add": "Add", "mul": "Mul"}
_AUTO_PAD = {"same": "SAME_UPPER", "valid": "VALID"}


class _Twin:
    """Collects nodes and initializers of the ONNX graph."""

    def __init__(self, shapes):
        self.shapes = shapes
        self.nodes = []
        self.initializers = []

    def constant(self, name, array):
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, node, role):
        return self.constant(f"{node.name}:{role}", node.weights[role].astype(np.float32))

    def sizes(self, node, role, values):
        return self.constant(f"{node.name}:{role}", np.array(values, np.int64))

    def add(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))

    def activate(self, node, kind, source):
        """Write the node's output from `source`."""
        out = node.outputs[0]
        if kind == "relu":
            self.add("Relu", [source], out)
        elif kind == "relu6":
            bounds = [
                self.constant(f"{node.name}:{role}", np.float32(value))
                for role, value in (("low", 0), ("high", 6))
            ]
            self.add("Clip", [source, *bounds], out)
        else:
            raise ValueError(f"{node.name}: activation {kind}")


def _convolution(twin, node):
    attrs = node.attrs
    if attrs.fusion != "none":
        raise ValueError(f"{node.name}: fusion {attrs.fusion}")
    inputs = [node.inputs[0], twin.weight(node, "weight")]
    if attrs.has_bias:
        inputs.append(twin.weight(node, "bias"))
    top, bottom, left, right = attrs.pads
    explicit = attrs.pad_mode == "explicit"
    pads = {"pads": (top, left, bottom, right)} if explicit else {}
    linear = attrs.activation == "none"
    out = node.outputs[0] if linear else f"{node.name}:linear"
    twin.add(
        "Conv",
        inputs,
        out,
        group=attrs.group,
        kernel_shape=(attrs.kernel_h, attrs.kernel_w),
        strides=(attrs.stride_h, attrs.stride_w),
        dilations=(attrs.dilation_h, attrs.dilation_w),
        auto_pad="NOTSET" if explicit else _AUTO_PAD[attrs.pad_mode],
        **pads,
    )
    if not linear:
        twin.activate(node, attrs.activation, out)


def _pads_of_windows(node, size, kernel, stride, pads):
    """Pads along one side, the last one so large that ceil mode's last window fits."""
    before, after = pads
    if node.attrs.ceil_mode:
        room = size + before + after - kernel
        after += -room % stride
        if size + before + after - kernel - (size + before - 1) > 0:
            raise ValueError(f"{node.name}: its last window lies behind the input")
    return before, after


def _pooling(twin, node):
    attrs = node.attrs
    kind = {"max": "Max", "average": "Average"}[attrs.kind]
    if (
        attrs.adaptive
        or attrs.count_include_pad
        or max(attrs.kernel_index_h, attrs.kernel_index_w) >= 0
    ):
        raise ValueError(f"{node.name}: {attrs}")
    if attrs.kernel_h == attrs.kernel_w == 0:
        twin.add(f"Global{kind}Pool", node.inputs, node.outputs[0])
        return
    _, _, height, width = twin.shapes[node.inputs[0]]
    options = {"auto_pad": _AUTO_PAD.get(attrs.pad_mode, "NOTSET")}
    if attrs.pad_mode == "explicit":
        top, bottom = _pads_of_windows(node, height, attrs.kernel_h, attrs.stride_h, attrs.pads[:2])
        left, right = _pads_of_windows(node, width, attrs.kernel_w, attrs.stride_w, attrs.pads[2:])
        options["pads"] = (top, left, bottom, right)
    elif attrs.pad_mode == "valid" and max(attrs.stride_h, attrs.stride_w) > 2:
        raise ValueError(f"{node.name}: TNN centres these windows, ONNX does not")
    twin.add(
        f"{kind}Pool",
        node.inputs,
        node.outputs[0],
        kernel_shape=(attrs.kernel_h, attrs.kernel_w),
        strides=(attrs.stride_h, attrs.stride_w),
        **options,
    )


def _inner_product(twin, node):
    attrs = node.attrs
    if attrs.axis != 1:
        raise ValueError(f"{node.name}: flattened from axis {attrs.axis}")
    flat, product = f"{node.name}:flat", f"{node.name}:product"
    twin.add("Flatten", node.inputs, flat, axis=1)
    bias = [twin.weight(node, "bias")] if attrs.has_bias else []
    inputs = [flat, twin.weight(node, "weight"), *bias]
    twin.add("Gemm", inputs, product, transB=int(not attrs.transpose))
    ones = (1,) * (len(twin.shapes[node.inputs[0]]) - 2)
    shape = twin.sizes(node, "shape", (0, attrs.out_features, *ones))
    twin.add("Reshape", [product, shape], node.outputs[0])


def _binary(twin, node):
    inputs = list(node.inputs)
    if node.weights:
        if node.weights["constant"].ndim != len(twin.shapes[inputs[0]]):
            raise ValueError(f"{node.name}: a constant that TNN places by its length")
        inputs.insert(node.attrs.constant_index, twin.weight(node, "constant"))
    if len(inputs) != 2:
        raise ValueError(f"{node.name}: {len(inputs)} operands")
    twin.add(_ELEMENTWISE[node.op], inputs, node.outputs[0])


def _batch_norm(twin, node):
    channels = twin.shapes[node.inputs[0]][1]
    statistics = [
        twin.constant(f"{node.name}:mean", np.zeros(channels, np.float32)),
        twin.constant(f"{node.name}:variance", np.ones(channels, np.float32)),
    ]
    affine = [twin.weight(node, "scale"), twin.weight(node, "bias")]
    inputs = [*node.inputs, *affine, *statistics]
    twin.add("BatchNormalization", inputs, node.outputs[0], epsilon=0.0)


def _shuffle_channel(twin, node):
    _, channels, height, width = twin.shapes[node.inputs[0]]
    group = node.attrs.group
    grouped, swapped = f"{node.name}:grouped", f"{node.name}:swapped"
    split = twin.sizes(node, "split", (0, group, channels // group, height, width))
    whole = twin.sizes(node, "whole", (0, channels, height, width))
    twin.add("Reshape", [node.inputs[0], split], grouped)
    twin.add("Transpose", [grouped], swapped, perm=(0, 2, 1, 3, 4))
    twin.add("Reshape", [swapped, whole], node.outputs[0])


def _strided_slice(twin, node):
    attrs = node.attrs
    if len(node.inputs) > 1 or min(attrs.strides) < 1:
        raise ValueError(f"{node.name}: {attrs}")
    ends = [end or _END for end in attrs.ends]
    axes = attrs.axes or range(len(ends))
    lists = {"begins": attrs.begins, "ends": ends, "axes": axes, "strides": attrs.strides}
    sizes = [twin.sizes(node, role, tuple(values)) for role, values in lists.items()]
    twin.add("Slice", [*node.inputs, *sizes], node.outputs[0])


def _reshape(twin, node):
    attrs = node.attrs
    if attrs.axis or attrs.num_axes not in {-1, len(attrs.shape)} or attrs.layout != "nchw":
        raise ValueError(f"{node.name}: {attrs}")
    twin.add("Reshape", [*node.inputs, twin.sizes(node, "shape", attrs.shape)], node.outputs[0])


def _along_axis(op):
    def translate(twin, node):
        twin.add(op, node.inputs, node.outputs[0], axis=node.attrs.axis)

    return translate


_TRANSLATIONS = {
    "convolution": _convolution,
    "pooling": _pooling,
    "inner_product": _inner_product,
    "batch_norm": _batch_norm,
    "shuffle_channel": _shuffle_channel,
    "strided_slice": _strided_slice,
    "reshape": _reshape,
    "concat": _along_axis("Concat"),
    "softmax": _along_axis("Softmax"),
    "relu": lambda twin, node: twin.activate(node, "relu", node.inputs[0]),
    "relu6": lambda twin, node: twin.activate(node, "relu6", node.inputs[0]),
    **dict.fromkeys(_ELEMENTWISE, _binary),
}


def to_onnx(graph: Graph, outputs: Sequence[str] = ()) -> onnx.ModelProto:
    """Return a float network in ONNX.

    outputs: the blobs that it gives, by default those of the network.
    """
    twin = _Twin(infer_shapes(graph))
    for node in graph.nodes:
        if node.quant is not None:
            raise ValueError(f"{node.name} is int8")
        _TRANSLATIONS[node.op](twin, node)
    translated = helper.make_graph(
        twin.nodes,
        "twin",
        [
            helper.make_tensor_value_info(blob.name, TensorProto.FLOAT, blob.shape)
            for blob in graph.inputs
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in outputs or graph.outputs
        ],
        twin.initializers,
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(translated, opset_imports=[opset], ir_version=8)
