"""Random small ONNX graphs over the operators that are read, for comparison with onnxruntime.

A graph grows node by node: an operator is drawn, its inputs among the blobs that fit, its
attributes and constants; the ``onnx`` package infers the shapes.  Functions with jumps (Round,
Floor, codes of computed values) are left out: there a last digit decides.
"""

from math import prod

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, shape_inference

OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22)
_LARGEST = 6000  # elements of a blob


class Builder:
    """Draws a graph."""

    def __init__(self, draw):
        self.draw = draw
        self.opset = self.pick(OPSETS)
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.nodes, self.initializers, self.values = [], [], {}
        self.shapes = {}

    def pick(self, options):
        return self.draw(st.sampled_from(list(options)))

    def number(self, low, high):
        return self.draw(st.integers(low, high))

    def real(self, low, high):
        return float(np.float32(self.rng.uniform(low, high)))

    def flag(self):
        return self.draw(st.booleans())

    def blob(self, rank=None):
        """A blob, of that rank if one is asked for; None where there is none."""
        fitting = [name for name, shape in self.shapes.items() if rank in {None, len(shape)}]
        return self.pick(fitting) if fitting else None

    def constant(self, array):
        """A constant: an initializer, or the output of a Constant node."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        name = f"c{len(self.values)}"
        self.values[name] = array
        tensor = numpy_helper.from_array(array, name)
        if self.flag():
            self.initializers.append(tensor)
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def weights(self, *shape, scale=None):
        fan_in = max(prod(shape[1:]), 1)
        scale = (1.5 / fan_in) ** 0.5 if scale is None else scale
        return self.constant(self.rng.normal(0, scale, shape).astype(np.float32))

    def sizes(self, *values):
        return self.constant(np.array(values, np.int64))

    def parameter(self, attribute, values, since):
        """Inputs and attributes: integers are an attribute before an opset, an input from it on."""
        if self.opset < since:
            return [], {attribute: list(values)}
        return [self.sizes(*values)], {}

    def add(self, op, inputs, outputs=1, **attributes):
        """Append a node if its outputs have fixed shapes that are not too large; its outputs."""
        names = [f"b{len(self.nodes)}_{index}" for index in range(outputs)]
        named = f"node{len(self.nodes)}" if self.flag() else ""
        node = helper.make_node(op, inputs, names, name=named, **attributes)
        shapes = self._infer(node, [name for name in inputs if name])
        if any(shape is None or not 0 < prod(shape) <= _LARGEST or not shape for shape in shapes):
            return None
        self.nodes.append(node)
        self.shapes |= dict(zip(names, shapes, strict=True))
        return names[0]

    def _infer(self, node, inputs):
        known = [
            numpy_helper.from_array(self.values[name], name)
            for name in dict.fromkeys(inputs)
            if name in self.values
        ]
        blobs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name])
            for name in dict.fromkeys(inputs)
            if name in self.shapes
        ]
        results = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "one", blobs, results, known)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        try:
            inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        except shape_inference.InferenceError:
            return [None]
        shapes = []
        for value in inferred.graph.output:
            tensor = value.type.tensor_type
            dims = [dim.dim_value for dim in tensor.shape.dim]
            known = tensor.HasField("shape") and all(dims)
            shapes.append(tuple(dims) if known else None)
        return shapes

    def model(self):
        """The model: all blobs that nothing reads are outputs."""
        read = {name for node in self.nodes for name in node.input}
        loose = [name for name in self.shapes if name not in read and not name.startswith("x")]
        inputs = [name for name in self.shapes if name.startswith("x")]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name])
                for name in inputs
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in loose],
            self.initializers,
        )
        opset = helper.make_opsetid("", self.opset)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)


# ------------------------------------------------------------------ layers


def _windows(b, shape):
    """Attributes of a window that fits a blob of that shape."""
    kernel = [b.number(1, min(3, size)) for size in shape[2:]]
    attributes = {"kernel_shape": kernel, "strides": [b.number(1, 3), b.number(1, 3)]}
    kind = b.pick(["none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if kind == "pads":
        attributes["pads"] = [b.number(0, size - 1) for size in (*kernel, *kernel)]
    elif kind != "none":
        attributes["auto_pad"] = kind
        if kind != "VALID":  # onnxruntime refuses windows that leave pixels out
            attributes["strides"] = [
                min(pair) for pair in zip(attributes["strides"], kernel, strict=True)
            ]
    return attributes


def conv(b):
    source = b.blob(4)
    if source is None:
        return
    channels = b.shapes[source][1]
    attributes = _windows(b, b.shapes[source])
    group = b.pick([group for group in range(1, channels + 1) if channels % group == 0])
    out = group * b.number(1, 3)
    if "auto_pad" not in attributes and b.flag():
        sides = zip(attributes["kernel_shape"], b.shapes[source][2:], strict=True)
        attributes["dilations"] = [b.number(1, 2 if 2 * k - 1 <= size else 1) for k, size in sides]
    inputs = [source, b.weights(out, channels // group, *attributes["kernel_shape"])]
    if b.flag():
        inputs.append(b.weights(out))
    found = b.add("Conv", inputs, group=group, **attributes)
    if found and b.flag():
        _batch_norm_of(b, found)


def _batch_norm_of(b, source):
    channels = b.shapes[source][1]
    statistics = [b.weights(channels), b.weights(channels), b.weights(channels)]
    variance = b.constant(b.rng.uniform(0.2, 2, channels).astype(np.float32))
    b.add("BatchNormalization", [source, *statistics, variance], epsilon=b.real(1e-5, 1e-2))


def batch_norm(b):
    source = b.blob(4)
    if source:
        _batch_norm_of(b, source)


def lines(b):
    """Convolution, deconvolution or pooling along one axis."""
    source = b.blob(3)
    if source is None:
        return
    _, channels, size = b.shapes[source]
    kernel = b.number(1, min(3, size))
    attributes = {"kernel_shape": [kernel], "strides": [b.number(1, kernel)]}
    if b.flag():
        attributes["pads"] = [b.number(0, kernel - 1), b.number(0, kernel - 1)]
    op = b.pick(["Conv", "ConvTranspose", "MaxPool", "AveragePool"])
    if op == "Conv":
        b.add(op, [source, b.weights(b.number(1, 3), channels, kernel)], **attributes)
    elif op == "ConvTranspose":
        b.add(op, [source, b.weights(channels, b.number(1, 3), kernel)], **attributes)
    else:
        b.add(op, [source], **attributes)


def conv_transpose(b):
    source = b.blob(4)
    if source is None:
        return
    channels = b.shapes[source][1]
    group = b.pick([group for group in range(1, channels + 1) if channels % group == 0])
    kernel = [b.number(1, 3), b.number(1, 3)]
    strides = [b.number(1, 3), b.number(1, 3)]
    attributes = {"strides": strides, "group": group}
    if b.flag():
        attributes["pads"] = [b.number(0, size - 1) for size in (*kernel, *kernel)]
    if b.flag():
        attributes["output_padding"] = [b.number(0, stride - 1) for stride in strides]
    inputs = [source, b.weights(channels, b.number(1, 3), *kernel)]
    b.add("ConvTranspose", inputs, **attributes)


def gemm(b):
    source = b.blob(2) or b.add("Flatten", [b.blob()])
    depth, out = b.shapes[source][1], b.number(1, 5)
    transposed = b.flag()
    inputs = [source, b.weights(*((out, depth) if transposed else (depth, out)))]
    shapes = [(out,), (1, out), (b.shapes[source][0], out), (1,)]
    inputs.append(b.weights(*b.pick(shapes), scale=1))
    b.add("Gemm", inputs, transB=int(transposed), alpha=b.real(0.5, 2), beta=b.real(0.5, 2))


def matmul(b):
    source = b.blob()
    shape = b.shapes[source]
    if len(shape) < 2:
        return
    found = b.add("MatMul", [source, b.weights(shape[-1], b.number(1, 4))])
    if found and b.flag():
        b.add("Add", [found, b.weights(b.shapes[found][-1])])


def pool(b):
    source = b.blob(4)
    if source is None:
        return
    attributes = _windows(b, b.shapes[source])
    op = b.pick(["MaxPool", "AveragePool"])
    if b.opset >= 10 and "auto_pad" not in attributes and b.flag():
        attributes["ceil_mode"] = 1
    if op == "AveragePool" and "ceil_mode" not in attributes and b.flag():
        attributes["count_include_pad"] = 1
    found = b.add(op, [source], **attributes)
    if found and "ceil_mode" in attributes:
        before = attributes.get("pads", [0, 0])
        for axis, size in enumerate(b.shapes[source][2:]):
            start = (b.shapes[found][2 + axis] - 1) * attributes["strides"][axis]
            if start >= size + before[axis]:  # onnxruntime's shapes contradict its results
                b.nodes.pop()
                del b.shapes[found]
                return


def global_pool(b):
    source = b.blob(4)
    if source:
        b.add(b.pick(["GlobalAveragePool", "GlobalMaxPool"]), [source])


def normalization(b):
    source = b.blob(4)
    if source is None:
        return
    shape = b.shapes[source]
    if b.opset >= 17 and b.flag():
        axis = b.number(1, 3)
        row = shape[axis:]
        b.add("LayerNormalization", [source, b.weights(*row), b.weights(*row)], axis=axis)
    elif prod(shape[2:]) > 3:
        affine = [b.weights(shape[1]), b.weights(shape[1])]
        b.add("InstanceNormalization", [source, *affine], epsilon=0.01)


def lrn(b):
    source = b.blob(4)
    if source:
        b.add("LRN", [source], size=b.pick([1, 3, 5]), alpha=0.1, beta=0.75, bias=1.0)


def softmax(b):
    source = b.blob()
    axis = b.number(0, len(b.shapes[source]) - 1)
    b.add(b.pick(["Softmax", "LogSoftmax"]), [source], axis=axis)


# ------------------------------------------------------------------ elementwise


def activation(b):
    source = b.blob()
    options = ["Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Abs", "Neg", "Elu", "LeakyRelu"]
    options += ["HardSigmoid", "Selu", "ThresholdedRelu"] + ["Erf", "Sin", "Cos"] * (b.opset >= 9)
    options += ["HardSwish"] * (b.opset >= 14) + ["Mish"] * (b.opset >= 18)
    options += ["Gelu"] * (b.opset >= 20)
    op = b.pick(options)
    attributes = {}
    if op in {"Elu", "LeakyRelu"}:
        attributes["alpha"] = b.real(0.01, 1)
    elif op == "HardSigmoid":
        attributes = {"alpha": b.real(0.1, 0.4), "beta": b.real(0.3, 0.6)}
    elif op == "Gelu" and b.flag():
        attributes["approximate"] = "tanh"
    if op == "ThresholdedRelu":
        attributes["alpha"] = 1e6  # elsewhere it jumps
    b.add(op, [source], **attributes)


def clip(b):
    source = b.blob()
    low, high = b.pick([(0.0, 6.0), (-1.0, 1.0), (b.real(-2, 0), b.real(0, 2))])
    if b.opset < 11:
        b.add("Clip", [source], min=low, max=high)
        return
    bounds = [b.constant(np.float32(low)), b.constant(np.float32(high))]
    b.add("Clip", [source, *b.pick([bounds, bounds[:1], ["", bounds[1]]])])


def prelu(b):
    source = b.blob()
    shape = b.shapes[source]
    options = [(1,), shape, shape[-1:]]
    if len(shape) == 4:
        options.append((shape[1], 1, 1))
    b.add("PRelu", [source, b.weights(*b.pick(options), scale=0.5)])


def idiom(b):
    """What exporters write for SiLU, Mish, GELU and hard swish."""
    x = b.blob()
    kind = b.pick(["silu", "mish", "gelu", "tanh", "hard_swish", "hard_sigmoid"])
    one = b.constant(np.float32(1))
    if kind == "silu":
        gate = b.add("Sigmoid", [x])
    elif kind == "mish":
        gate = b.add("Tanh", [b.add("Softplus", [x])])
    elif kind == "gelu" and b.opset >= 9:
        inner = b.add("Div", [x, b.constant(np.float32(2**0.5))])
        gate = b.add("Add", [b.add("Erf", [inner]), one])
    elif kind == "tanh":
        cube = b.add("Pow", [x, b.constant(np.float32(3))])
        share = b.add("Mul", [cube, b.constant(np.float32(0.044715))])
        inner = b.add("Mul", [b.add("Add", [x, share]), b.constant(np.float32((2 / np.pi) ** 0.5))])
        gate = b.add("Add", [b.add("Tanh", [inner]), one])
    elif kind == "hard_swish" and b.opset < 11:
        shifted = b.add("Add", [x, b.constant(np.float32(3))])
        gate = b.add("Clip", [shifted], min=0.0, max=6.0)
    else:
        gate = b.add("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
    product = b.add("Mul", b.pick([[x, gate], [gate, x]]))
    if kind in {"gelu", "tanh"}:
        b.add("Mul", [product, b.constant(np.float32(0.5))])
    elif kind == "hard_swish":
        b.add("Div", [product, b.constant(np.float32(6))])


def binary(b):
    left = b.blob()
    op = b.pick(["Add", "Sub", "Mul", "Max", "Min"])
    shape = b.shapes[left]
    same = [name for name, other in b.shapes.items() if other == shape]
    axes = [size if b.flag() else 1 for size in shape]
    options = [
        lambda: b.pick(same),
        lambda: b.weights(*axes, scale=1),
        lambda: b.weights(*axes[b.number(0, len(axes) - 1) :], scale=1),
        lambda: b.constant(np.float32(b.real(-2, 2))),
        b.blob,
    ]
    operands = [left, b.pick(options)()]
    if op in {"Max", "Min"} and b.opset < 8:
        return
    b.add(op, operands if b.flag() else operands[::-1])


def division(b):
    left = b.blob()
    divisor = b.constant(b.rng.uniform(0.5, 2, b.shapes[left][-1]).astype(np.float32))
    if b.flag():
        b.add("Div", [left, divisor])
    else:
        positive = b.add("Add", [b.add("Sigmoid", [left]), b.constant(np.float32(0.5))])
        b.add("Div", [b.pick([left, divisor]), positive])


def power(b):
    base = b.add("Add", [b.add("Abs", [b.blob()]), b.constant(np.float32(0.25))])
    kind = b.pick(["Pow", "blobs", "Sqrt", "Log", "Reciprocal", "Exp"])
    if kind == "Pow":
        b.add("Pow", [base, b.constant(np.float32(b.real(-1, 2)))])
    elif kind == "blobs":
        b.add("Pow", [base, b.add("Tanh", [base])])
    elif kind == "Exp":
        b.add("Exp", [b.add("Tanh", [base])])
    else:
        b.add(kind, [base])


def variadic(b):
    if b.opset < 8:
        return
    first = b.blob()
    same = [name for name, shape in b.shapes.items() if shape == b.shapes[first]]
    operands = [b.pick(same) for _ in range(b.number(1, 3))]
    if b.flag():
        operands.append(b.weights(b.shapes[first][-1], scale=1))
    b.add(b.pick(["Sum", "Max", "Min", "Mean"]), operands)


def reduction(b):
    source = b.blob()
    rank = len(b.shapes[source])
    op = b.pick(
        [
            *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"),
            *("ReduceSumSquare", "ReduceLogSumExp"),
        ]
    )
    axes = [axis if b.flag() else axis - rank for axis in range(rank) if b.flag()]
    attributes = {"keepdims": 1 if len(axes) in {0, rank} else b.number(0, 1)}
    inputs = []
    if axes:
        inputs, more = b.parameter("axes", axes, 13 if op == "ReduceSum" else 18)
        attributes |= more
    b.add(op, [source, *inputs], **attributes)


# ------------------------------------------------------------------ shapes


def reshape(b):
    source = b.blob()
    shape = b.shapes[source]
    options = [(-1,), (0, -1), (1, -1), (shape[0], prod(shape[1:])), (*shape[:1], -1, 1)]
    b.add("Reshape", [source, b.sizes(*b.pick(options))])


def reshape_of_shape(b):
    """What PyTorch writes for x.view(x.size(0), -1)."""
    source = b.blob(4)
    if source is None:
        return
    b.nodes.append(helper.make_node("Shape", [source], [f"s{len(b.nodes)}"]))
    shape = b.nodes[-1].output[0]
    index = b.constant(np.array(0, np.int64))
    b.nodes.append(helper.make_node("Gather", [shape, index], [f"s{len(b.nodes)}"], axis=0))
    size = b.nodes[-1].output[0]
    name = f"s{len(b.nodes)}"
    inputs, attributes = b.parameter("axes", [0], 13)
    b.nodes.append(helper.make_node("Unsqueeze", [size, *inputs], [name], **attributes))
    rest = b.sizes(-1)
    target = f"s{len(b.nodes)}"
    b.nodes.append(helper.make_node("Concat", [name, rest], [target], axis=0))
    output = f"b{len(b.nodes)}_0"
    b.nodes.append(helper.make_node("Reshape", [source, target], [output]))
    b.shapes[output] = (b.shapes[source][0], prod(b.shapes[source][1:]))


def flatten(b):
    source = b.blob()
    b.add("Flatten", [source], axis=b.number(0, len(b.shapes[source])))


def transpose(b):
    source = b.blob()
    order = b.draw(st.permutations(range(len(b.shapes[source]))))
    b.add("Transpose", [source], perm=list(order))


def unsqueeze(b):
    source = b.blob()
    rank = len(b.shapes[source])
    if rank > 3:
        return
    inputs, attributes = b.parameter("axes", [b.number(0, rank)], 13)
    found = b.add("Unsqueeze", [source, *inputs], **attributes)
    ones = [axis for axis, size in enumerate(b.shapes[found]) if size == 1]
    if b.flag():
        inputs, attributes = b.parameter("axes", [b.pick(ones)], 13)
        b.add("Squeeze", [found, *inputs], **attributes)


def concat(b):
    first = b.blob()
    axis = b.number(0, len(b.shapes[first]) - 1)

    def rest(shape):
        return (*shape[:axis], None, *shape[axis + 1 :])

    fitting = [
        name
        for name, shape in b.shapes.items()
        if len(shape) == len(b.shapes[first]) and rest(shape) == rest(b.shapes[first])
    ]
    parts = [first, *(b.pick(fitting) for _ in range(b.number(0, 2)))]
    if b.flag():
        parts.append(b.weights(*b.shapes[first], scale=1))
    b.add("Concat", parts, axis=axis)


def split(b):
    source = b.blob()
    axis = b.number(0, len(b.shapes[source]) - 1)
    size = b.shapes[source][axis]
    if size < 2:
        return
    cut = b.number(1, size - 1)
    inputs, attributes = b.parameter("split", [cut, size - cut], 13)
    b.add("Split", [source, *inputs], outputs=2, axis=axis, **attributes)


def slices(b):
    source = b.blob()
    axis = b.number(0, len(b.shapes[source]) - 1)
    size = b.shapes[source][axis]
    start = b.number(-size, size - 1)
    end = b.pick([2**31 - 1, size, -1, start + 1 if start >= 0 else size])
    if b.opset < 10:
        b.add("Slice", [source], starts=[start], ends=[end], axes=[axis])
        return
    step = b.pick([1, 2, -1])
    if step < 0:
        start, end = size - 1, -(2**31)
    lists = [b.sizes(value) for value in (start, end, axis, step)]
    b.add("Slice", [source, *lists])


def gather(b):
    source = b.blob()
    axis = b.number(0, len(b.shapes[source]) - 1)
    size = b.shapes[source][axis]
    indices = [b.number(0 if b.opset < 11 else -size, size - 1) for _ in range(b.number(1, 3))]
    b.add("Gather", [source, b.sizes(*indices)], axis=axis)


def pad(b):
    source = b.blob()
    shape = b.shapes[source]
    mode = b.pick(["constant", "reflect", "edge"])
    if mode != "constant" and len(shape) != 4:
        return
    limits = [min(size - 1, 2) if mode == "reflect" else 2 for size in shape]
    if mode != "constant":
        limits[:2] = 0, 0
    pads = [b.number(0, limit) for limit in limits] + [b.number(0, limit) for limit in limits]
    if mode == "reflect" and max(pads) == 0:
        return
    if b.opset < 11:
        b.add("Pad", [source], mode=mode, pads=pads)
    else:
        b.add("Pad", [source, b.sizes(*pads)], mode=mode)


def expand(b):
    source = b.blob()
    shape = b.shapes[source]
    if b.opset < 8 or b.flag():
        b.add("Tile", [source, b.sizes(*(b.number(1, 2) for _ in shape))])
    else:
        target = [b.number(1, 3) if size == 1 else size for size in shape]
        b.add("Expand", [source, b.sizes(*target)])


def depth_to_space(b):
    source = b.blob(4)
    if source is None:
        return
    shape = b.shapes[source]
    if shape[1] % 4 == 0:
        mode = {"mode": b.pick(["DCR", "CRD"])} if b.opset >= 11 else {}
        b.add("DepthToSpace", [source], blocksize=2, **mode)
    elif shape[2] % 2 == shape[3] % 2 == 0:
        b.add("SpaceToDepth", [source], blocksize=2)


def resize(b):
    source = b.blob(4)
    if source is None:
        return
    mode = b.pick(["nearest", "linear"])
    factors = [1.0, 1.0, b.pick([1.0, 1.5, 2.0, 3.0]), b.pick([1.0, 2.0, 2.5])]
    scales = b.constant(np.array(factors, np.float32))
    if b.opset < 9:
        b.add("Upsample", [source], mode=mode, scales=factors)
    elif b.opset < 10:
        b.add("Upsample", [source, scales], mode=mode)
    elif b.opset < 11:
        b.add("Resize", [source, scales], mode=mode)
    else:
        _resize_by_mode(b, source, scales)


def _resize_by_mode(b, source, scales):
    mode = b.pick(["nearest", "linear", "cubic"])
    positions = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    attributes = {"mode": mode, "coordinate_transformation_mode": b.pick(positions)}
    if mode == "nearest":
        # halves fall between pixels, where a last digit decides
        attributes["coordinate_transformation_mode"] = "asymmetric"
        attributes["nearest_mode"] = b.pick(["floor", "round_prefer_floor", "round_prefer_ceil"])
    elif mode == "cubic":
        attributes["cubic_coeff_a"] = b.pick([-0.75, -0.5])
        attributes["exclude_outside"] = b.number(0, 1)
    roi = b.constant(np.zeros(0, np.float32))
    if b.flag():
        shape = b.shapes[source]
        sizes = b.sizes(*shape[:2], shape[2] + b.number(0, 3), shape[3] * b.number(1, 2))
        empty = b.constant(np.zeros(0, np.float32))
        b.add("Resize", [source, roi, "" if b.opset >= 13 else empty, sizes], **attributes)
    else:
        b.add("Resize", [source, roi, scales], **attributes)


def nothing(b):
    op = b.pick(["Identity", "Dropout", "Cast"])
    attributes = {"to": TensorProto.FLOAT} if op == "Cast" else {}
    b.add(op, [b.blob()], **attributes)


def codes(b):
    """QuantizeLinear and DequantizeLinear of a network input, whose values are exact."""
    if b.opset < 10:
        return
    source = b.pick([name for name in b.shapes if name.startswith("x")])
    scale = b.constant(np.float32(b.real(0.01, 0.1)))
    zero = b.constant(b.pick([np.int8(0), np.int8(-7), np.uint8(128), np.uint8(3)]))
    quantized = f"q{len(b.nodes)}"
    b.nodes.append(helper.make_node("QuantizeLinear", [source, scale, zero], [quantized]))
    output = f"b{len(b.nodes)}_0"
    b.nodes.append(helper.make_node("DequantizeLinear", [quantized, scale, zero], [output]))
    b.shapes[output] = b.shapes[source]


OPERATIONS = (
    *(
        conv,
        conv,
        lines,
        batch_norm,
        conv_transpose,
        gemm,
        matmul,
        pool,
        global_pool,
        normalization,
        lrn,
    ),
    *(softmax, activation, activation, clip, prelu, idiom, idiom, binary, binary, division, power),
    *(variadic, reduction, reshape, reshape_of_shape, flatten, transpose, unsqueeze, concat, split),
    *(slices, gather, pad, expand, depth_to_space, resize, nothing, codes),
)


@st.composite
def models(draw, smallest=3, largest=9):
    """A ModelProto of that many operations."""
    b = Builder(draw)
    for index in range(b.number(1, 2)):
        sides = [b.number(2, 7) for _ in range(b.pick([2, 2, 2, 1]))]
        b.shapes[f"x{index}"] = (b.number(1, 2), b.number(1, 4), *sides)
    for _ in range(b.number(smallest, largest)):
        b.pick(OPERATIONS)(b)
    return b.model()


def inputs_of(model, seed=0):
    """Random inputs by name."""
    rng = np.random.default_rng(seed)
    return {
        value.name: rng.normal(
            0, 1, [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in model.graph.input
    }


__all__ = ["OPERATIONS", "OPSETS", "inputs_of", "models", "onnx"]
