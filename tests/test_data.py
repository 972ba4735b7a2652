"""The demo data are what data/README.md and data/demo.json say that they are."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from quantjit import formats

DATA = Path(__file__).resolve().parents[1] / "data"
FACTS = json.loads((DATA / "demo.json").read_text(encoding="ascii"))
LIMIT = 3_000_000  # bytes, of everything in data/


@pytest.fixture(scope="module")
def make_images():
    spec = importlib.util.spec_from_file_location("make_images", DATA / "make_images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def evaluation(make_images):
    return make_images.load_eval(DATA / "eval.npz")


def _same_picture(stored, made_again):
    """JPEG codecs may differ by a rounding; another picture differs by tens of grey levels."""
    difference = np.abs(stored.astype(int) - made_again.astype(int))
    return difference.mean() < 0.5 and difference.max() <= 16


def test_stays_small():
    files = [file for file in DATA.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) < LIMIT


def test_evaluation_set_is_balanced(make_images, evaluation):
    images, labels = evaluation
    side = make_images.SIZE
    assert images.shape == (make_images.EVAL_IMAGES, side, side, 3)
    assert images.dtype == np.uint8
    assert len(images) == FACTS["eval_images"] >= 500
    counts = np.bincount(labels, minlength=len(FACTS["classes"]))
    assert counts.min() == counts.max() == len(images) // len(FACTS["classes"])
    with np.load(DATA / "eval.npz") as stored:
        assert stored["classes"].tolist() == FACTS["classes"] == list(make_images.CLASSES)


@pytest.mark.parametrize("index", [0, 9, 704, 1499])
def test_evaluation_images_can_be_made_again(make_images, evaluation, index):
    image, label = make_images.render("eval", index)
    again = make_images.decode(make_images.encode(image))
    assert _same_picture(evaluation[0][index], again)
    assert evaluation[1][index] == label


@pytest.mark.parametrize("index", [0, 17, 63])
def test_calibration_images_can_be_made_again(make_images, index):
    stored = make_images.decode((DATA / "calib" / make_images.calib_name(index)).read_bytes())
    again = make_images.decode(make_images.encode(make_images.render("calib", index)[0]))
    assert _same_picture(stored, again)


def test_calibration_images_are_all_there(make_images):
    names = {make_images.calib_name(index) for index in range(make_images.CALIB_IMAGES)}
    assert {file.name for file in (DATA / "calib").iterdir()} == names
    header, *rows = (DATA / "calib_labels.csv").read_text(encoding="ascii").split()
    assert header == "file,label"
    assert set(rows) == {f"{name},{FACTS['classes'].index(name[3:-4])}" for name in names}


def test_splits_and_indices_differ(make_images):
    first = make_images.render("eval", 0)[0]
    assert not _same_picture(first, make_images.render("calib", 0)[0])
    assert not _same_picture(first, make_images.render("train", 0)[0])
    assert not _same_picture(first, make_images.render("eval", 10)[0])


def test_onnx_network_has_the_stated_accuracy(evaluation):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(DATA / "demo.onnx", providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    assert [source.name, source.shape] == [FACTS["input"], FACTS["shape"]]
    assert [blob.name for blob in session.get_outputs()] == [FACTS["output"]]
    images, labels = evaluation
    bias, scale = (np.array(FACTS[key], dtype=np.float32) for key in ("bias", "scale"))
    blobs = ((images.astype(np.float32) - bias) * scale).transpose(0, 3, 1, 2)
    answers = [session.run(None, {source.name: blob[None]})[0].argmax() for blob in blobs]
    top1 = (np.array(answers) == labels).mean()
    assert 0.92 < top1 < 0.98
    # another codec or convolution may turn a few undecided images
    assert top1 == pytest.approx(FACTS["float_top1"], abs=3 / len(labels))


def test_onnx_names_fit_the_tnn_format():
    onnx = pytest.importorskip("onnx")
    model = onnx.load(DATA / "demo.onnx")
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    names += [blob for node in model.graph.node for blob in (*node.input, *node.output)]
    assert all(name and not set(name) & set('," \t\n') for name in names)
    operators = {node.op_type for node in model.graph.node}
    assert {"Conv", "Concat", "Add", "Clip", "MaxPool", "AveragePool", "Gemm"} <= operators


def test_tnn_network_has_the_weights_of_the_onnx_network():
    onnx = pytest.importorskip("onnx")
    graph = formats.load(DATA / "demo.tnnproto")
    assert [(blob.name, list(blob.shape)) for blob in graph.inputs] == [
        (FACTS["input"], FACTS["shape"])
    ]
    assert graph.outputs == (FACTS["output"],)
    stored = {
        item.name: onnx.numpy_helper.to_array(item)
        for item in onnx.load(DATA / "demo.onnx").graph.initializer
    }
    weights = {f"{node.name}/{role}": w for node in graph.nodes for role, w in node.weights.items()}
    assert weights.keys() == {name for name in stored if not name.startswith("relu6/")}
    for name, weight in weights.items():
        assert np.array_equal(weight, stored[name]), name
