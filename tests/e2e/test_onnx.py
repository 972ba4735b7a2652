"""ONNX on the command line: in, out, converted, verified; and in onnxruntime afterwards."""

import json
from pathlib import Path

import models
import numpy as np
import pytest
from PIL import Image

from quantjit import cli, demo, formats
from quantjit.executor import Executor
from quantjit.graph import Graph, Node
from quantjit.ops.convolution import ConvolutionAttrs
from quantjit.passes.lower import lower

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.jit

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A tiny network as ONNX with a folder of images."""
    root = tmp_path_factory.mktemp("work")
    formats.save(models.small_network(size=12), root / "net.onnx")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    return root


@pytest.fixture
def here(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return workplace


def run(capsys, *argv, main=cli.main):
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def common(root):
    return [root / "net.onnx", "-i", root / "images", "-n", "127", "-s", "1/64"]


def session(path):
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_quantize_writes_onnx_by_default(here, tmp_path, capsys):
    code, out, err = run(capsys, "quantize", *common(here), "-o", "net")
    assert code == 0, err
    assert [p.name for p in tmp_path.iterdir()] == ["net_quantized.onnx"]
    for word in ("settings", "mix, onnx", "6 inputs", "SQNR", "worst nodes", "smaller"):
        assert word in out
    assert "-t 0" not in out, "ONNX has no such merge type"
    model = onnx.load("net_quantized.onnx")
    onnx.checker.check_model(model)
    facts = {item.key: item.value for item in model.metadata_props}
    assert facts["quantjit.method"] == "blobs mse, weights mse, mix, onnx"
    assert facts["quantjit.version"]
    assert len(facts["quantjit.calibration"]) >= 16
    code, out, _ = run(capsys, "verify", here / "net.onnx", "net_quantized.onnx", *common(here)[1:])
    assert code == 0
    assert "on 6 inputs" in out
    code, out, _ = run(capsys, "inspect", "net_quantized.onnx")
    assert code == 0
    assert "already quantized" in out


def test_the_format_is_told_by_content(here, tmp_path, capsys):
    odd = tmp_path / "network.bin"
    odd.write_bytes((here / "net.onnx").read_bytes())
    code, _, err = run(capsys, "quantize", odd, *common(here)[1:], "-q")
    assert code == 0, err
    assert (tmp_path / "model_quantized.onnx").exists()
    formats.save(models.small_network(size=12), tmp_path / "net.tnnproto")
    (tmp_path / "net.tnnproto").rename(tmp_path / "structure.txt")
    code, out, _ = run(
        capsys, "inspect", "-p", tmp_path / "structure.txt", "-m", tmp_path / "net.tnnmodel"
    )
    assert code == 0
    assert "conv1" in out


def test_from_one_format_to_the_other(here, tmp_path, capsys):
    code, out, err = run(capsys, "quantize", *common(here), "--format", "tnn")
    assert code == 0, err
    assert formats.load(tmp_path / "model_quantized.tnnproto").arithmetic == "tnn"
    code, out, err = run(capsys, "convert", here / "net.onnx", "net.tnnproto")
    assert code == 0, err
    assert "largest difference 0.0e+00" in out
    argv = ["-p", "net.tnnproto", *common(here)[1:], "--format", "onnx"]
    code, _, err = run(capsys, "quantize", *argv, "--activations", "int8", "--symmetric")
    assert code == 0, err
    assert formats.load(tmp_path / "model_quantized.onnx").arithmetic == "onnx"
    session("model_quantized.onnx")
    code, _, err = run(capsys, "convert", "net.tnnproto", "again.onnx")
    assert code == 0, err
    given = models.random_inputs(models.small_network(size=12), 1)[0]
    found = session("again.onnx").run(["scores"], given)[0]
    expected = Executor(models.small_network(size=12)).run(given)["scores"]
    np.testing.assert_allclose(found.ravel(), expected.ravel(), rtol=1e-5, atol=1e-5)


def test_quantized_operators_are_written_and_read_back(here, tmp_path, capsys):
    code, out, err = run(capsys, "quantize", *common(here), "--form", "qoperator")
    assert code == 0, err
    assert "verified" in out
    types = [node.op_type for node in onnx.load("model_quantized.onnx").graph.node]
    assert types.count("QLinearConv") == 5
    assert "DequantizeLinear" not in types[:-1]
    session("model_quantized.onnx")


def test_excluded_nodes_stay_float(here, tmp_path, capsys):
    code, out, err = run(capsys, "quantize", *common(here), "--exclude", "inner_product,left*")
    assert code == 0, err
    assert "left (excluded by left*)" in " ".join(out.split())
    kinds = {n.name: n.quant is not None for n in formats.load("model_quantized.onnx").nodes}
    assert not kinds["left"]
    assert not kinds["scores"]
    assert kinds["right"]
    code, _, err = run(capsys, "quantize", *common(here), "--exclude", "lfet")
    assert code == 3
    assert "did you mean 'left'" in err


def test_what_cannot_be_int8_is_named_unless_it_may_be_float(here, tmp_path, capsys):
    graph = models.small_network(size=12)
    weight = np.random.default_rng(0).normal(0, 1, (3, 2, 2, 2)).astype(np.float32)
    attrs = ConvolutionAttrs(1, 3, 2, 2, 2, has_bias=False)
    up = Node("up", "deconvolution", ("data",), ("up",), attrs, {"weight": weight})
    graph = Graph((up, *graph.nodes), graph.inputs, (*graph.outputs, "up"))
    formats.save(graph, tmp_path / "up.onnx")
    argv = [tmp_path / "up.onnx", *common(here)[1:], "-q"]
    code, _, err = run(capsys, "quantize", *argv)
    assert code == 2
    assert "up (deconvolution)" in err
    assert "--float-fallback" in err
    assert not (tmp_path / "model_quantized.onnx").exists()
    for words in (["--float-fallback"], ["--exclude", "deconvolution"]):
        assert run(capsys, "quantize", *argv, *words)[0] == 0
    kinds = {n.name: n.quant is not None for n in formats.load("model_quantized.onnx").nodes}
    assert not kinds["up"]
    assert kinds["conv1"]


def test_presets_and_input_shapes(here, tmp_path, capsys):
    images = ["-i", here / "images", "-q"]
    tables = []
    for words in (["--preset", "tf"], ["-n", "127.5", "-s", "1/127.5", "--resize", "crop"]):
        code, _, err = run(
            capsys, "quantize", here / "net.onnx", *images, *words, "--table", "scales.csv"
        )
        assert code == 0, err
        tables.append((tmp_path / "scales.csv").read_text(encoding="utf-8"))
    assert tables[0] == tables[1]
    code, _, err = run(
        capsys,
        "quantize",
        here / "net.onnx",
        *images,
        "--preset",
        "tf",
        "-n",
        "0",
        "--table",
        "s.csv",
    )
    assert code == 0, err
    code, _, err = run(capsys, "quantize", here / "net.onnx", *images, "--preset", "caffe3")
    assert code == 2
    assert "imagenet-torch" in err
    model = onnx.load(here / "net.onnx")
    for axis in (0, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    onnx.save(model, tmp_path / "open.onnx")
    code, _, err = run(capsys, "inspect", "open.onnx")
    assert code == 3
    assert "shape" in err
    code, out, err = run(capsys, "inspect", "open.onnx", "--input-shape", "data:1,3,12,12")
    assert code == 0, err
    assert "1x3x12x12" in out
    code, _, err = run(capsys, "inspect", "open.onnx", "--input-shape", "1,3,12,12")
    assert code == 2
    assert "name:1,3,224,224" in err


FAULTS = {
    "channel": (["-t", "channel"], 2, "use mix"),
    "compat": (["--compat", "tnn"], 2, "writes no ONNX"),
    "weights": (["-w", "asymmetric"], 2, "zero point a channel"),
    "no folder": (["-o", "no/where"], 2, "no such folder"),
    "format": (["--format", "tflite"], 2, "invalid choice"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_give_one_line_and_their_exit_code(fault, here, tmp_path, capsys):
    words, expected, message = FAULTS[fault]
    code, out, err = run(capsys, "quantize", *common(here), *words)
    assert code == expected, err
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_converting_what_is_quantized_or_nowhere_is_refused(here, tmp_path, capsys):
    assert run(capsys, "quantize", *common(here), "-q")[0] == 0
    code, _, err = run(capsys, "convert", "model_quantized.onnx", "net.tnnproto")
    assert code == 3
    assert "a float network" in err
    code, _, err = run(capsys, "convert", here / "net.onnx", "no/net.tnnproto")
    assert code == 2
    assert "no such folder" in err
    code, _, err = run(capsys, "convert", here / "net.onnx")
    assert code == 2
    assert "-o/--output" in err


def test_codes_that_are_imitated_in_float_are_quantized_already(here, tmp_path, capsys):
    onnx.save(_codes_as_onnx((1, 3, 12, 12)), tmp_path / "codes.onnx")
    code, _, err = run(capsys, "quantize", tmp_path / "codes.onnx", *common(here)[1:])
    assert code == 3
    assert "quantized already" in err


def _codes_as_onnx(shape):
    """16-bit codes: a QuantizeLinear that int8 graphs do not have."""
    helper = onnx.helper
    scale = onnx.numpy_helper.from_array(np.float32(0.1), "scale")
    zero = onnx.numpy_helper.from_array(np.int16(0), "zero")
    nodes = [
        helper.make_node("QuantizeLinear", ["data", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["out"]),
    ]
    blobs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ("data", "out")
    ]
    made = helper.make_graph(nodes, "codes", blobs[:1], blobs[1:], [scale, zero])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_network_that_cannot_tell_its_inputs_apart_is_doubted(here, capsys):
    argv = [here / "net.onnx", "-i", here / "images"]
    code, out, _ = run(capsys, "quantize", *argv, "-s", "1/100000")
    assert code == 0
    assert "nearly uniform" in " ".join(out.split())
    same = [here / "net.onnx"] * 2
    code, out, _ = run(capsys, "verify", *same, *argv[1:], "-s", "1/100000")
    assert code == 0
    assert "--preset" in out
    code, out, _ = run(capsys, "quantize", *argv, "-s", "1/16")
    assert "nearly uniform" not in " ".join(out.split())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_the_demo_network_in_onnxruntime_is_the_one_that_was_verified(form, tmp_path, capsys):
    facts = json.loads((DATA / "demo.json").read_text(encoding="utf-8"))
    code, _, err = run(
        capsys,
        *("quantize", DATA / "demo.onnx", "-i", DATA / "calib", "--preset", "tf", "-q"),
        *("-o", tmp_path / "demo", "--form", form),
    )
    assert code == 0, err
    path = tmp_path / "demo_quantized.onnx"
    graph = formats.load(path)
    ours, theirs = Executor(lower(graph)), session(path)
    images, labels = demo.evaluation(DATA, tuple(facts["shape"]), demo.preprocess(facts))
    step = graph.scales["logits"].scale[0]
    close, same, right = [], [], []
    for index in range(300):
        (sample,) = images.load(index)
        expected = theirs.run(["logits"], sample.arrays)[0]
        found = ours.run(sample.arrays)["logits"]
        close.append((np.abs(found - expected) < 1.01 * step).mean())
        same.append(found.argmax() == expected.argmax())
        right.append(expected.argmax() == labels[index])
    assert np.mean(close) >= 0.99
    assert np.mean(same) >= 0.99
    assert np.mean(right) >= 0.92, "float is right in 94 % of 1500"
