"""Float networks run like onnxruntime: TNN's benchmark networks, a small one and the demo.

The benchmark networks come without weights: seeded ones are made up.  Every blob is compared, not
only the outputs, behind whose softmax a difference could hide.
"""

import importlib.util
import json
from dataclasses import replace
from math import prod
from pathlib import Path

import models
import numpy as np
import pytest

from quantjit import formats
from quantjit.dataset import Dataset, Preprocess
from quantjit.executor import Executor, infer_shapes
from quantjit.formats.tnn import read_structure, weight_shapes

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from onnx_twin import to_onnx  # noqa: E402  # imports onnx, which may be missing

DATA = Path(__file__).resolve().parents[1] / "data"
FACTS = json.loads((DATA / "demo.json").read_text(encoding="ascii"))
TOLERANCE = 1e-4  # of the largest magnitude of a blob
NETWORKS = (
    "squeezenet_v1.0",
    "squeezenet_v1.1",
    "mobilenet_v1",
    "mobilenet_v2",
    "shufflenet_v2",
    "resnet50",
    "densenet",
    "inception_v3",
    "inception_v4",
)
QUANTIZED = (
    "quant_squeezenet_v1.0",
    "quant_squeezenet_v1.1",
    "quant_mobilenet_v1",
    "quant_mobilenet_v2",
    "quant_resnet50",
    "quant_inception_v3",
)


def _session(model):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _with_weights(graph, seed):
    """Weights that keep the variance: He's for rectified inputs, halved where none is rectified."""
    rng = np.random.default_rng(seed)
    shapes, producer, readers = infer_shapes(graph), graph.producer(), graph.readers()

    def rectified(blob):
        node = producer.get(blob)
        if node is None:
            return False
        if node.op in {"pooling", "concat", "shuffle_channel", "strided_slice"}:
            return rectified(node.inputs[0])
        return node.op == "relu" or getattr(node.attrs, "activation", "none") != "none"

    def is_sum(node):
        return node.op == "add" and len(node.inputs) == 2

    def made(node, role, shape):
        noise = rng.standard_normal(shape, np.float32)
        if role == "weight":
            gain = 2.0 if rectified(node.inputs[0]) else 1.0
            if any(is_sum(reader) for reader in readers.get(node.outputs[0], [])):
                gain /= 2  # of two branches
            return noise * np.float32((gain / prod(shape[1:])) ** 0.5)
        near_one = role == "scale" or node.op == "mul"
        return np.float32(near_one) + np.float32(0.1) * noise

    return graph.with_nodes(
        tuple(
            replace(
                node,
                weights={
                    role: made(node, role, shape)
                    for role, shape in weight_shapes(node, shapes[node.inputs[0]]).items()
                },
            )
            for node in graph.nodes
        )
    )


def _check_every_blob(graph, inputs):
    """Run the input through both; every blob agrees, is finite and is not constant."""
    blobs = [blob for node in graph.nodes for blob in node.outputs]
    session = _session(to_onnx(graph, blobs).SerializeToString())
    expected = dict(zip(blobs, session.run(blobs, inputs), strict=True))
    differences = {}

    def compare(blob, found):
        if blob in inputs:
            return
        reference = expected[blob]
        assert found.shape == reference.shape, blob
        assert np.isfinite(reference).all(), blob
        assert np.ptp(reference) > 0, f"{blob} is constant"
        differences[blob] = np.abs(found - reference).max() / np.abs(reference).max()

    outputs = Executor(graph).run(inputs, compare)
    assert set(differences) == set(blobs)
    off = {blob: float(value) for blob, value in differences.items() if not value <= TOLERANCE}
    assert not off, f"{len(off)} blobs differ, first {next(iter(off.items()))}"
    for name in graph.outputs:
        largest = np.abs(expected[name]).max()
        np.testing.assert_allclose(outputs[name], expected[name], atol=TOLERANCE * largest, rtol=0)


def test_small_network():
    graph = models.small_network()
    for inputs in models.random_inputs(graph, 3):
        _check_every_blob(graph, inputs)


def test_twin_has_the_outputs_of_the_network():
    graph = models.small_network()
    (inputs,) = models.random_inputs(graph, 1)
    session = _session(to_onnx(graph).SerializeToString())
    assert [output.name for output in session.get_outputs()] == list(graph.outputs)
    (expected,) = session.run(None, inputs)
    np.testing.assert_allclose(Executor(graph).run(inputs)["scores"], expected, atol=1e-5)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.jit
@pytest.mark.parametrize("name", NETWORKS)
def test_benchmark_network(shared, name):
    structure = read_structure(shared / "models" / "tnn_benchmark" / f"{name}.tnnproto")
    graph = _with_weights(structure, seed=7)
    (inputs,) = models.random_inputs(graph, 1, seed=8)
    _check_every_blob(graph, inputs)


@pytest.mark.shared
@pytest.mark.parametrize("name", QUANTIZED)
def test_int8_structure(shared, name):
    graph = read_structure(shared / "models" / "tnn_benchmark" / f"{name}.tnnproto")
    shapes = infer_shapes(graph)
    assert {shapes[blob] for blob in graph.outputs} == {(1, 1000, 1, 1)}
    convolutions = [node for node in graph.nodes if node.op == "convolution"]
    assert convolutions
    assert all(node.quant is not None for node in convolutions)
    assert all(node.quant is None for node in graph.nodes if node.op == "softmax")


@pytest.fixture(scope="module")
def demo():
    return formats.load(DATA / "demo.tnnproto"), _session(DATA / "demo.onnx")


def _both(demo, batch):
    """Logits of our executor and of onnxruntime for float32 (n, 3, 48, 48), one by one."""
    graph, session = demo
    batched = graph.with_input_shapes({FACTS["input"]: batch.shape})
    found = Executor(batched).run({FACTS["input"]: batch})[FACTS["output"]]
    expected = [session.run(None, {FACTS["input"]: image[None]})[0] for image in batch]
    return found.reshape(len(batch), -1), np.concatenate(expected).reshape(len(batch), -1)


def test_twin_is_the_network_that_was_exported(demo):
    graph, exported = demo
    image = np.random.default_rng(3).normal(0, 0.5, FACTS["shape"]).astype(np.float32)
    (expected,) = exported.run(None, {FACTS["input"]: image})
    (found,) = _session(to_onnx(graph).SerializeToString()).run(None, {FACTS["input"]: image})
    np.testing.assert_allclose(found.ravel(), expected.ravel(), atol=TOLERANCE, rtol=0)


@pytest.mark.jit
def test_demo_on_its_calibration_images(demo):
    preprocess = Preprocess((127.5,), (0.007843137,), "rgb")
    dataset = Dataset.open(DATA / "calib", {FACTS["input"]: tuple(FACTS["shape"])}, preprocess)
    assert len(dataset) == 64
    samples = [dataset.load(index)[0].arrays[FACTS["input"]] for index in range(len(dataset))]
    found, expected = _both(demo, np.concatenate(samples))
    assert np.abs(found - expected).max() <= TOLERANCE
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.slow
@pytest.mark.jit
def test_demo_reaches_its_accuracy(demo):
    spec = importlib.util.spec_from_file_location("make_images", DATA / "make_images.py")
    make_images = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_images)
    images, labels = make_images.load_eval(DATA / "eval.npz")
    bias, scale = (np.array(FACTS[key], np.float32) for key in ("bias", "scale"))
    batch = np.ascontiguousarray(((images - bias) * scale).transpose(0, 3, 1, 2))
    hits = np.zeros(2, int)
    for start in range(0, len(batch), 250):
        for column, logits in enumerate(_both(demo, batch[start : start + 250])):
            hits[column] += (logits.argmax(axis=1) == labels[start : start + 250]).sum()
    assert hits[0] == hits[1]
    assert round(hits[0] / len(labels), 4) == FACTS["float_top1"]
