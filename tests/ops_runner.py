"""Run one op, or one ONNX node in onnxruntime, on arrays."""

import numpy as np
import pytest

from quantjit import ops
from quantjit.graph import Node
from quantjit.quant import NodeQuant

FILL = 77  # what an output holds before the op runs


def make_node(op, attrs=None, inputs=1, outputs=1, weights=None, quant=None):
    return Node(
        "node",
        op,
        tuple(f"in{i}" for i in range(inputs)),
        tuple(f"out{i}" for i in range(outputs)),
        ops.NoAttrs() if attrs is None else attrs,
        weights or {},
        quant,
    )


def infer(op, shapes, attrs=None, outputs=1, weights=None):
    node = make_node(op, attrs, len(shapes), outputs, weights)
    return ops.get(op).infer_shape(node, [tuple(shape) for shape in shapes])


def run(
    op, arrays, attrs=None, weights=None, outputs=1, quant=None, dtype=np.float32, exact_order=False
):
    """Outputs of an op; quant: (input scales, output scales) for its int8 form or a conversion.

    Int8 kernels of both kinds, emitted and plain, must agree.
    """
    form = ops.get(op)
    is_int8 = quant is not None and op not in {"quantize", "dequantize"}
    node = make_node(op, attrs, len(arrays), outputs, weights, NodeQuant() if is_int8 else None)
    shapes = tuple(x.shape for x in arrays)
    out_shapes = form.infer_shape(node, shapes)
    before = [x.copy() for x in arrays]
    found = []
    for plain in (True, False) if is_int8 else (exact_order,):
        request = ops.Request(node, shapes, out_shapes, *(quant or ((), ())), exact_order=plain)
        runner = (form.prepare_int8 if is_int8 else form.prepare_float)(request)
        results = [np.full(shape, FILL, np.int8 if is_int8 else dtype) for shape in out_shapes]
        for _ in range(2):  # a runner keeps no state
            runner(tuple(arrays), tuple(results))
        for x, kept in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(x, kept)
        found.append(results)
    for left, right in zip(found[0], found[-1], strict=True):
        np.testing.assert_array_equal(left, right)
    return found[-1][0] if outputs == 1 else found[-1]


def onnx_reference(op_type, arrays, attributes=None, opset=17, outputs=1, constants=()):
    """Outputs of onnxruntime; constants: positions of the inputs that are initializers."""
    runtime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(arrays)]
    results = [f"y{i}" for i in range(outputs)]
    helper = onnx.helper
    node = helper.make_node(op_type, names, results, **(attributes or {}))
    info = {
        name: helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in zip(names, arrays, strict=True)
        if x is not None
    }
    fixed = [names[i] for i in constants]
    graph = helper.make_graph(
        [node],
        "one",
        [value for name, value in info.items() if name not in fixed],
        [helper.make_tensor_value_info(name, 1, None) for name in results],
        [onnx.numpy_helper.from_array(arrays[i], names[i]) for i in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {
        name: x
        for name, x in zip(names, arrays, strict=True)
        if x is not None and name not in fixed
    }
    found = session.run(None, feeds)
    return found[0] if outputs == 1 else found


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def codes(*shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)
