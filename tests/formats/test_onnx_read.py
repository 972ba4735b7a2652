"""Reading ONNX: shared networks, shapes, names, idioms, older operator sets, int8 files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantjit import formats
from quantjit.errors import FormatError, UsageError
from quantjit.executor import Executor

RNG = np.random.default_rng(5)


def model_of(nodes, inputs, outputs, constants=None, opset=17, functions=()):
    """inputs: name -> dims, numbers or names; constants: name -> array."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, 1, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(name, 1, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(x), name) for name, x in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(item.domain, 1) for item in functions]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))


def saved(tmp_path, model):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def read(tmp_path, model, **options):
    return formats.load(saved(tmp_path, model), **options)


def weight(*shape, scale=0.5):
    return RNG.normal(0, scale, shape).astype(np.float32)


def ours(graph, feeds):
    return Executor(graph).run({blob.name: feeds[blob.name] for blob in graph.inputs})


def theirs(path, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def check_against_runtime(tmp_path, model, rtol=1e-5, **shapes):
    """Read and run here and there; returns the graph."""
    path = saved(tmp_path, model)
    graph = formats.load(path, shapes=shapes)
    feeds = {
        blob.name: np.random.default_rng(1).normal(0, 1, blob.shape).astype(np.float32)
        for blob in graph.inputs
    }
    found, expected = ours(graph, feeds), theirs(path, feeds)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert found[name].shape == wanted.shape
        np.testing.assert_allclose(found[name], wanted, rtol=rtol, atol=rtol)
    return graph


def ops_of(graph):
    return [node.op for node in graph.nodes]


# ------------------------------------------------------------------ networks


def images_of(shared, network):
    """20 inputs in the network's preprocessing."""
    import imageio.v3 as iio

    files = sorted((shared / "images" / "dev").glob("*.jpg"))[:20]
    for file in files:
        image = iio.imread(file).astype(np.float32)
        if network.startswith("squeezenet"):
            image = image[:, :, ::-1] - np.float32([104, 117, 123])
        elif network == "mobilenet_v2":
            image = (image[1:225, 1:225] - 128) / np.float32(127)
        else:
            rows = np.arange(240) * 227 // 240
            columns = np.arange(320) * 227 // 320
            image = (image[rows][:, columns] - 127) / np.float32(128)
        yield np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)


@pytest.mark.shared
@pytest.mark.jit
@pytest.mark.slow
@pytest.mark.parametrize(
    "network", ["squeezenet_v1.0", "mobilenet_v2", "rfb320", "rfb320_simplified"]
)
def test_networks_compute_what_onnxruntime_does(shared, network):
    path = shared / "models" / f"{network}.onnx"
    graph = formats.load(path)
    executor = Executor(graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = [blob.name for blob in graph.inputs]
    for image in images_of(shared, network):
        found = executor.run({name: image})
        expected = session.run(None, {name: image})
        for value, wanted in zip(session.get_outputs(), expected, strict=True):
            assert np.abs(found[value.name] - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.jit
@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    ["densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet"],
)
def test_networks_inside_the_onnx_package(network):
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    path = folder / f"light_{network}.onnx"
    if not path.is_file():
        pytest.skip("this release of onnx does not ship it")
    graph = formats.load(path)
    assert not {"mul", "constant"} & set(ops_of(graph))
    feeds = {
        blob.name: np.random.default_rng(1).uniform(0, 1, blob.shape).astype(np.float32)
        for blob in graph.inputs
    }
    found, expected = ours(graph, feeds), theirs(path, feeds)
    for name, wanted in expected.items():
        assert np.abs(found[name] - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.shared
def test_shape_chains_and_batch_norms_are_gone(shared):
    graph = formats.load(shared / "models" / "rfb320.onnx")
    assert not {"batch_norm", "gather", "constant", "unsqueeze"} & set(ops_of(graph))
    assert len([op for op in ops_of(graph) if op == "convolution"]) == 52


def test_the_package_is_imported_when_a_file_is_read():
    code = (
        "import sys; from quantjit import formats; formats.registry(); import quantjit.cli;"
        " sys.exit('onnx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------ inputs and outputs


def relu_model(dims):
    return model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": dims}, ["y"])


def test_a_batch_that_is_left_open_is_one(tmp_path):
    for batch in ("N", None, 0):
        graph = read(tmp_path, relu_model([batch, 3, 4, 5]))
        assert graph.inputs[0].shape == (1, 3, 4, 5)


def test_other_sizes_that_are_left_open_are_asked_for(tmp_path):
    model = relu_model(["N", 3, "height", 5])
    with pytest.raises(FormatError, match=r"dimension 2.*'height'; give .* 'x:N,3,height,5'"):
        read(tmp_path, model)
    graph = read(tmp_path, model, shapes={"x": (2, 3, 7, 5)})
    assert graph.inputs[0].shape == (2, 3, 7, 5)


def test_a_given_shape_goes_through_the_network(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "first"], ["batch1"]),
        helper.make_node("Concat", ["batch1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {
        "zero": np.array(0),
        "first": np.array([0]),
        "rest": np.array([-1]),
    }
    model = model_of(nodes, {"x": ["N", 3, "H", 2]}, ["y"], constants)
    graph = check_against_runtime(tmp_path, model, x=(2, 3, 5, 2))
    assert ops_of(graph) == ["reshape"]
    assert graph.nodes[0].attrs.shape == (2, -1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1, 3)}, r"no input 'z'; its inputs: x"),
        ({"x": (1, 3)}, "has 4 dimensions"),
        ({"x": (1, 3, 0, 5)}, "must be positive"),
    ],
)
def test_wrong_given_shapes(tmp_path, shapes, message):
    with pytest.raises(UsageError, match=message):
        read(tmp_path, relu_model([1, 3, 4, 5]), shapes=shapes)


def test_initializers_that_are_inputs_too(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    model = model_of(
        nodes, {"x": [1, 2, 4, 4], "w": [3, 2, 1, 1]}, ["y"], {"w": weight(3, 2, 1, 1)}
    )
    graph = check_against_runtime(tmp_path, model)
    assert [blob.name for blob in graph.inputs] == ["x"]


def test_names_are_kept_and_made_where_there_are_none(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Tanh", ["b"], ["c"], name="first"),
    ]
    graph = read(tmp_path, model_of(nodes, {"x": [1, 3]}, ["c"]))
    assert [node.name for node in graph.nodes] == ["first", "b", "first_1"]
    assert graph.blobs() == ["x", "a", "b", "c"]


def test_outputs_keep_their_names_through_nodes_that_do_nothing(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["y"]),
        helper.make_node("Dropout", ["a"], ["again"]),
        helper.make_node("Cast", ["x"], ["same"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["c"], ["fixed"]),
    ]
    constants = {"c": weight(2, 3)}
    outputs = ["y", "again", "same", "fixed"]
    graph = check_against_runtime(tmp_path, model_of(nodes, {"x": [1, 3]}, outputs, constants))
    assert graph.outputs == tuple(outputs)
    assert ops_of(graph).count("relu") == 1


def test_nodes_that_no_output_needs_are_not_looked_at(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("NonMaxSuppression", ["x", "x"], ["boxes"]),
    ]
    assert ops_of(read(tmp_path, model_of(nodes, {"x": [1, 2, 4]}, ["y"]))) == ["relu"]


def test_nodes_in_another_order_are_sorted(tmp_path):
    nodes = [
        helper.make_node("Sigmoid", ["a"], ["y"]),
        helper.make_node("Relu", ["x"], ["a"]),
    ]
    assert ops_of(read(tmp_path, model_of(nodes, {"x": [1, 3]}, ["y"]))) == ["relu", "sigmoid"]


def test_local_functions_are_opened(tmp_path):
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "Twice", ["a"], ["c"], body, opset)
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="local")]
    model = model_of(nodes, {"x": [1, 3]}, ["y"], functions=[function])
    assert ops_of(check_against_runtime(tmp_path, model)) == ["relu", "neg"]


def test_half_precision_networks_are_read_as_float(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 2, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
        [numpy_helper.from_array(np.ones((1, 2, 1, 1), np.float16), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    read_back = read(tmp_path, model)
    assert read_back.nodes[0].weights["weight"].dtype == np.float32
    found = ours(read_back, {"x": np.ones((1, 2, 3, 3), np.float32)})
    np.testing.assert_array_equal(found["y"], np.full((1, 1, 3, 3), 2))


def test_uint8_images_are_cast_inside(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    model = model_of(nodes, {"x": [1, 4, 4, 3]}, ["y"])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert ops_of(read(tmp_path, model)) == ["permute", "relu"]


# ------------------------------------------------------------------ what is not supported


def test_everything_unsupported_is_named_at_once(tmp_path):
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="determinant"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("LSTM", ["b", "w", "w"], ["c"], name="memory", hidden_size=3),
        helper.make_node(
            "MaxPool", ["x"], ["d"], name="holes", kernel_shape=[2, 2], dilations=[2, 2]
        ),
        helper.make_node("Det", ["x"], ["e"], name="another"),
        helper.make_node("Magic", ["x"], ["f"], name="own", domain="com.example"),
    ]
    model = model_of(nodes, {"x": [1, 1, 4, 4]}, ["c", "d", "e", "f"], {"w": weight(1, 12, 3)})
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(FormatError) as caught:
        read(tmp_path, model)
    message = str(caught.value)
    assert "found 5 it cannot" in message
    assert "\n" not in message
    for part in (
        "Det ('determinant', 'another')",
        "LSTM ('memory'): only feed-forward",
        "MaxPool ('holes'): dilated",
        "com.example.Magic ('own')",
    ):
        assert part in message


def test_integers_and_computed_parameters_are_refused_with_the_reason(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Div", ["i", "two"], ["half"]),
        helper.make_node("Cast", ["half"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "x"], ["z"], name="convolved"),
        helper.make_node("Reshape", ["x", "i"], ["r"], name="reshaped"),
    ]
    model = model_of(nodes, {"x": [1, 1, 2, 2]}, ["y", "z", "r"], {"two": np.array(2)})
    with pytest.raises(FormatError) as caught:
        read(tmp_path, model)
    message = str(caught.value)
    assert "Div ('half'): it would work on int64 numbers" in message
    assert "Conv ('convolved'): its weight 'x' is computed from the input" in message
    assert "Reshape ('reshaped'): its shape 'i' is computed" in message


@pytest.mark.parametrize(
    ("opset", "remedy"), [(6, "onnx.version_converter"), (999, "newer onnx package")]
)
def test_operator_sets_outside_the_known_ones(tmp_path, opset, remedy):
    model = relu_model([1, 3])
    model.opset_import[0].version = opset
    with pytest.raises(FormatError, match=rf"opset {opset}; .*{remedy}"):
        read(tmp_path, model)


# ------------------------------------------------------------------ idioms


def test_batch_norms_are_folded_into_the_layers_before_them(tmp_path):
    statistics = {
        "scale": weight(4),
        "shift": weight(4),
        "mean": weight(4),
        "variance": RNG.uniform(0.5, 2, 4).astype(np.float32),
    }
    inputs = list(statistics)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", *inputs], ["n"], name="norm"),
        helper.make_node("ConvTranspose", ["n", "v"], ["d"], name="deconv", group=2),
        helper.make_node("BatchNormalization", ["d", *inputs], ["y"]),
        helper.make_node("BatchNormalization", ["x4", *inputs], ["alone"]),
    ]
    constants = statistics | {"w": weight(4, 3, 3, 3), "b": weight(4), "v": weight(4, 2, 2, 2)}
    shapes = {"x": [1, 3, 5, 5], "x4": [2, 4, 3, 3]}
    graph = check_against_runtime(tmp_path, model_of(nodes, shapes, ["y", "alone"], constants))
    assert ops_of(graph) == ["convolution", "deconvolution", "batch_norm"]
    assert graph.nodes[0].name == "conv"
    assert graph.nodes[0].outputs == ("n",)


def test_a_batch_norm_whose_input_is_read_elsewhere_stays(tmp_path):
    norm = ["one", "one", "one", "one"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *norm], ["n"]),
        helper.make_node("Add", ["c", "n"], ["y"]),
    ]
    constants = {"w": weight(4, 3, 1, 1), "one": np.ones(4, np.float32)}
    graph = check_against_runtime(tmp_path, model_of(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants))
    assert ops_of(graph) == ["convolution", "batch_norm", "add"]


def test_additions_and_pads_go_into_layers(tmp_path):
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        helper.make_node("Conv", ["p", "w"], ["c"], name="conv", strides=[2, 2]),
        helper.make_node("Add", ["shift", "c"], ["s"]),
        helper.make_node("Flatten", ["s"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["product"], name="dense"),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    constants = {
        "pads": np.array([0, 0, 0, 1, 0, 0, 2, 1]),
        "w": weight(4, 3, 3, 3),
        "shift": weight(4, 1, 1),
        "m": weight(36, 5),
        "bias": weight(5),
    }
    graph = check_against_runtime(tmp_path, model_of(nodes, {"x": [1, 3, 5, 5]}, ["y"], constants))
    assert ops_of(graph) == ["convolution", "flatten", "inner_product"]
    assert [node.name for node in graph.nodes] == ["conv", "f", "dense"]
    assert graph.nodes[0].attrs.pads == (0, 2, 1, 1)


def test_factors_and_terms_go_into_layers(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Mul", ["c", "a"], ["ca"]),
        helper.make_node("Add", ["ca", "b"], ["y1"]),
        helper.make_node("ConvTranspose", ["x", "v"], ["d"], name="deconv", group=2),
        helper.make_node("Div", ["d", "a"], ["y2"]),
        helper.make_node("BatchNormalization", ["x", *["one"] * 4], ["n"], name="norm"),
        helper.make_node("Mul", ["a", "n"], ["na"]),
        helper.make_node("Add", ["na", "half"], ["y3"]),
        helper.make_node("Gemm", ["z", "m", "g"], ["e"], name="dense"),
        helper.make_node("Mul", ["e", "g"], ["y4"]),
    ]
    constants = {
        "w": weight(4, 4, 1, 1),
        "v": weight(4, 2, 2, 2),
        "m": weight(3, 4),
        "a": weight(4, 1, 1),
        "b": weight(1, 4, 1, 1),
        "g": weight(4),
        "one": np.ones(4, np.float32),
        "half": np.float32(0.5),
    }
    outputs = ["y1", "y2", "y3", "y4"]
    model = model_of(nodes, {"x": [2, 4, 3, 3], "z": [2, 3]}, outputs, constants)
    graph = check_against_runtime(tmp_path, model)
    assert [node.name for node in graph.nodes] == ["conv", "deconv", "norm", "dense"]


def test_factors_and_terms_that_are_no_channels_stay(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["c", "row"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["d"]),
        helper.make_node("Add", ["d", "batch"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["e"]),
        helper.make_node("Div", ["factor", "e"], ["f"]),
        helper.make_node("Conv", ["f", "w"], ["g"]),
        helper.make_node("Sub", ["g", "factor"], ["y"]),
    ]
    constants = {
        "w": weight(4, 4, 1, 1),
        "row": weight(4),
        "batch": weight(4, 1, 1, 1),
        "factor": weight(4, 1, 1),
    }
    model = model_of(nodes, {"x": [1, 4, 4, 4]}, ["y"], constants)
    graph = check_against_runtime(tmp_path, model, rtol=1e-3)
    assert ops_of(graph)[1::2] == ["mul", "add", "div", "sub"]


def test_a_hard_sigmoid_behind_a_convolution_is_one(tmp_path):
    nodes, _ = IDIOMS["hard sigmoid"]
    nodes = [helper.make_node("Conv", ["in", "w"], ["x"]), *nodes]
    constants = CONSTANTS | {"w": weight(4, 3, 1, 1)}
    model = model_of(nodes, {"in": [1, 3, 4, 4]}, ["y"], constants)
    graph = check_against_runtime(tmp_path, model)
    assert ops_of(graph) == ["convolution", "hard_sigmoid"]


def gelu_by_erf(order):
    first, last = {
        "half first": (["half", "x"], ["first", "gate"]),
        "half last": (["x", "gate"], ["first", "half"]),
        "half inside": (["half", "gate"], ["x", "first"]),
    }[order]
    return [
        helper.make_node("Div", ["x", "root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["gate"]),
        helper.make_node("Mul", first, ["first"]),
        helper.make_node("Mul", last, ["y"]),
    ]


IDIOMS = {
    "silu": (
        [
            helper.make_node("Sigmoid", ["x"], ["gate"]),
            helper.make_node("Mul", ["gate", "x"], ["y"]),
        ],
        "swish",
    ),
    "mish": (
        [
            helper.make_node("Exp", ["x"], ["e"]),
            helper.make_node("Add", ["e", "one"], ["more"]),
            helper.make_node("Log", ["more"], ["soft"]),
            helper.make_node("Tanh", ["soft"], ["gate"]),
            helper.make_node("Mul", ["x", "gate"], ["y"]),
        ],
        "mish",
    ),
    "hard swish": (
        [
            helper.make_node("Add", ["x", "three"], ["s"]),
            helper.make_node("Clip", ["s", "zero", "six"], ["c"]),
            helper.make_node("Mul", ["x", "c"], ["m"]),
            helper.make_node("Div", ["m", "six"], ["y"]),
        ],
        "hard_swish",
    ),
    "hard swish, divided first": (
        [
            helper.make_node("Add", ["x", "three"], ["s"]),
            helper.make_node("Clip", ["s", "zero", "six"], ["c"]),
            helper.make_node("Div", ["c", "six"], ["d"]),
            helper.make_node("Mul", ["d", "x"], ["y"]),
        ],
        "hard_swish",
    ),
    "hard sigmoid": (
        [
            helper.make_node("Add", ["x", "three"], ["s"]),
            helper.make_node("Clip", ["s", "zero", "six"], ["c"]),
            helper.make_node("Div", ["c", "six"], ["y"]),
        ],
        "hard_sigmoid",
    ),
    "gelu": (gelu_by_erf("half first"), "gelu_erf"),
    "gelu, half last": (gelu_by_erf("half last"), "gelu_erf"),
    "gelu, half inside": (gelu_by_erf("half inside"), "gelu_erf"),
    "gelu by tanh": (
        [
            helper.make_node("Pow", ["x", "three"], ["cube"]),
            helper.make_node("Mul", ["cube", "share"], ["part"]),
            helper.make_node("Add", ["x", "part"], ["sum"]),
            helper.make_node("Mul", ["sum", "factor"], ["inner"]),
            helper.make_node("Tanh", ["inner"], ["t"]),
            helper.make_node("Add", ["t", "one"], ["gate"]),
            helper.make_node("Mul", ["x", "half"], ["h"]),
            helper.make_node("Mul", ["h", "gate"], ["y"]),
        ],
        "gelu",
    ),
}
NUMBERS = {
    "one": 1.0,
    "three": 3.0,
    "six": 6.0,
    "zero": 0.0,
    "half": 0.5,
    "root": 2**0.5,
    "share": 0.044715,
    "factor": (2 / np.pi) ** 0.5,
}
CONSTANTS = {name: np.float32(value) for name, value in NUMBERS.items()}


@pytest.mark.parametrize("name", IDIOMS)
def test_idioms_become_one_node(tmp_path, name):
    nodes, op = IDIOMS[name]
    model = model_of(nodes, {"x": [2, 3, 4, 4]}, ["y"], CONSTANTS)
    graph = check_against_runtime(tmp_path, model, rtol=1e-4)
    assert ops_of(graph) == [op]
    assert graph.nodes[0].outputs == ("y",)


@pytest.mark.parametrize("name", IDIOMS)
def test_idioms_with_an_inner_blob_that_is_an_output_stay_in_parts(tmp_path, name):
    nodes, op = IDIOMS[name]
    inner = nodes[-2].output[0]
    model = model_of(nodes, {"x": [2, 3, 4, 4]}, ["y", inner], CONSTANTS)
    graph = check_against_runtime(tmp_path, model, rtol=1e-4)
    assert op not in ops_of(graph) or len(graph.nodes) > 1


@pytest.mark.parametrize("wrong", ["half", "one", "share", "factor", "root", "three"])
@pytest.mark.parametrize("name", ["gelu", "gelu by tanh", "mish", "hard swish"])
def test_other_constants_are_no_idiom(tmp_path, name, wrong):
    nodes, op = IDIOMS[name]
    if not any(wrong in node.input for node in nodes):
        return
    constants = CONSTANTS | {wrong: np.float32(1.25)}
    model = model_of(nodes, {"x": [2, 3, 4, 4]}, ["y"], constants)
    graph = check_against_runtime(tmp_path, model, rtol=1e-4)
    assert op not in ops_of(graph)


# ------------------------------------------------------------------ details of operators


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 22])
@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_before_and_after_opset_13(tmp_path, op, axis, opset):
    if axis < 0 and opset < 11:
        axis = 3
    nodes = [helper.make_node(op, ["x"], ["y"], axis=axis)]
    check_against_runtime(tmp_path, model_of(nodes, {"x": [2, 3, 4, 2]}, ["y"], opset=opset))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads"),
    [
        (5, 2, 2, (0, 0)),
        (4, 1, 2, (0, 0)),  # rounded up, the last window would lie behind the input
        (6, 2, 3, (0, 1)),
        (7, 3, 2, (1, 1)),
        (6, 3, 2, (1, 1)),
    ],
)
def test_windows_rounded_up(tmp_path, op, size, kernel, stride, pads):
    attributes = {
        "kernel_shape": [kernel, 2],
        "strides": [stride, 1],
        "pads": [pads[0], 0, pads[1], 0],
        "ceil_mode": 1,
    }
    nodes = [helper.make_node(op, ["x"], ["y"], **attributes)]
    check_against_runtime(tmp_path, model_of(nodes, {"x": [1, 2, size, 4]}, ["y"], opset=19))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("shape", [None, [9, 8]])
def test_deconvolution_sizes(tmp_path, auto_pad, shape):
    attributes = {"strides": [2, 2], "auto_pad": auto_pad}
    if shape:
        attributes["output_shape"] = shape
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)]
    constants = {"w": weight(3, 2, 3, 3)}
    check_against_runtime(tmp_path, model_of(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants))


def test_a_vector_is_aligned_at_the_last_dimension(tmp_path):
    # where the channels have its length too, TNN's own constants would be placed there
    nodes = [
        helper.make_node("Add", ["x", "v"], ["a"]),
        helper.make_node("Div", ["v", "x"], ["b"]),
        helper.make_node("Max", ["x", "v", "x", "s"], ["c"]),
        helper.make_node("PRelu", ["x", "v"], ["d"]),
    ]
    constants = {"v": np.float32([1, 2, 3]), "s": np.float32(0.5)}
    outputs = ["a", "b", "c", "d"]
    check_against_runtime(tmp_path, model_of(nodes, {"x": [2, 3, 4, 3]}, outputs, constants))


def test_gemm_in_all_its_forms(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "w", "full"], ["a"], alpha=0.5, beta=2.0),
        helper.make_node("Gemm", ["x", "w", "row"], ["b"], alpha=0.5, beta=2.0),
        helper.make_node("Gemm", ["x", "wt"], ["c"], transB=1),
        helper.make_node("Gemm", ["t", "w", "one"], ["d"], transA=1),
    ]
    constants = {
        "w": weight(3, 5),
        "wt": weight(5, 3),
        "full": weight(2, 5),
        "row": weight(1, 5),
        "one": weight(1),
    }
    model = model_of(nodes, {"x": [2, 3], "t": [3, 2]}, ["a", "b", "c", "d"], constants)
    graph = check_against_runtime(tmp_path, model)
    assert ops_of(graph).count("inner_product") == 4


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("sizes", [(6, 8), (5, 7), (2, 3)])
@pytest.mark.parametrize(
    "position", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
def test_resize_by_sizes(tmp_path, mode, sizes, position):
    if mode == "nearest":
        position = "asymmetric"
    attributes = {"mode": mode, "coordinate_transformation_mode": position}
    if mode == "nearest":
        attributes["nearest_mode"] = "floor"
    nodes = [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)]
    constants = {"sizes": np.array([1, 2, *sizes])}
    model = model_of(nodes, {"x": [1, 2, 3, 4]}, ["y"], constants)
    check_against_runtime(tmp_path, model, rtol=1e-4)


def test_resize_that_tnn_has_is_its_upsample(tmp_path):
    for attributes in (
        {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        {"mode": "linear"},
        {"mode": "cubic", "coordinate_transformation_mode": "align_corners"},
    ):
        nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], **attributes)]
        constants = {"scales": np.float32([1, 1, 2, 2])}
        model = model_of(nodes, {"x": [1, 2, 3, 4]}, ["y"], constants)
        assert ops_of(check_against_runtime(tmp_path, model, rtol=1e-4)) == ["upsample"]
