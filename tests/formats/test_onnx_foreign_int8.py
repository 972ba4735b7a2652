"""Int8 files of onnxruntime's own quantizer, run here and there."""

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from quantjit import formats
from quantjit.executor import Executor
from quantjit.passes.lower import lower

SHAPE = (1, 3, 8, 8)


def network(*, with_gate):
    """Convolutions, one depthwise, an addition, a concat, pools, fully connected; float."""
    rng = np.random.default_rng(0)

    def weight(*shape):
        return rng.normal(0, 0.4, shape).astype(np.float32)

    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1]),
        make("Relu", ["c0"], ["r0"]),
        make("MaxPool", ["r0"], ["p0"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["p0", "w1", "b1"], ["c1"], group=4, pads=[1, 1, 1, 1]),
        make("Clip", ["c1", "low", "high"], ["r1"]),
        make("Conv", ["r1", "w2"], ["c2"]),
        make("Add", ["c2", "p0"], ["s"]),
    ]
    if with_gate:
        nodes += [make("Sigmoid", ["s"], ["g"]), make("Mul", ["s", "g"], ["m"])]
    nodes += [
        make("Concat", ["m" if with_gate else "s", "p0"], ["joined"], axis=1),
        make("GlobalAveragePool", ["joined"], ["mean"]),
        make("Flatten", ["mean"], ["flat"]),
        make("Gemm", ["flat", "w3", "b3"], ["z"], transB=1),
    ]
    constants = {
        "w0": weight(4, 3, 3, 3),
        "b0": weight(4),
        "w1": weight(4, 1, 3, 3),
        "b1": weight(4),
        "low": np.float32(0),
        "high": np.float32(6),
        "w2": weight(4, 4, 1, 1),
        "w3": weight(5, 8),
        "b3": weight(5),
    }
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", 1, SHAPE)],
        [helper.make_tensor_value_info("z", 1, [1, 5])],
        [numpy_helper.from_array(np.asarray(x), name) for name, x in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def image(seed):
    return np.random.default_rng(seed).normal(0, 1, SHAPE).astype(np.float32)


class Reader(CalibrationDataReader):
    def __init__(self):
        self.images = iter([{"x": image(seed)} for seed in range(8)])

    def get_next(self):
        return next(self.images, None)


@pytest.mark.jit
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("weight_type", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("activation_type", ["QUInt8", "QInt8", "QInt16"])
@pytest.mark.parametrize("with_gate", [False, True])
def test_files_of_onnxruntime(tmp_path, with_gate, activation_type, weight_type, per_channel):
    if (activation_type, weight_type) == ("QInt8", "QUInt8"):
        pytest.skip("onnxruntime does not write it")
    onnx.save(network(with_gate=with_gate), tmp_path / "float.onnx")
    path = tmp_path / "int8.onnx"
    logging.disable(logging.WARNING)  # it recommends a preparation
    quantize_static(
        str(tmp_path / "float.onnx"),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType[activation_type],
        weight_type=QuantType[weight_type],
    )
    logging.disable(logging.NOTSET)
    tensors = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    step = float(numpy_helper.to_array(tensors["z_scale"]).ravel()[0])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    executor = Executor(lower(formats.load(path)))
    found = np.stack([executor.run({"x": image(seed)})["z"] for seed in range(100, 140)])
    wanted = np.stack([session.run(["z"], {"x": image(seed)})[0] for seed in range(100, 140)])
    differences = np.rint(np.abs(found - wanted) / step)
    assert differences.max() <= 1
    assert (differences == 0).mean() >= 0.95
    assert np.unique(wanted).size > 50
