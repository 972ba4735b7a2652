"""ONNX files that are broken, hostile or incomplete: always one of our errors, never a crash."""

import contextlib
import itertools

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quantjit import formats
from quantjit.errors import FormatError, QuantJitError

WEIGHT = np.arange(54, dtype=np.float32).reshape(3, 2, 3, 3)


def small_model():
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["r", "target"], ["y"], name="flat"),
    ]
    constants = {
        "w": WEIGHT,
        "b": np.zeros(3, np.float32),
        "zero": np.array([0]),
        "rest": np.array([-1]),
    }
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", 1, ["N", 2, 4, 4])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


CONTENT = small_model().SerializeToString()


def saved(tmp_path, model):
    path = tmp_path / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refused(tmp_path, model, match):
    with pytest.raises(FormatError, match=match) as caught:
        formats.load(saved(tmp_path, model))
    assert str(caught.value).startswith(str(tmp_path / "model.onnx"))


def test_the_model_is_sound(tmp_path):
    graph = formats.load(saved(tmp_path, CONTENT))
    assert [node.op for node in graph.nodes] == ["convolution", "relu", "reshape"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 100,
        b"MZ this is no model",
        "Zeichen \u00e4\u00f6\u00fc".encode() * 20,
        b"\x08\x08",
        b"\x3a\x00",
        b"\x08\x08\x3a\xff\xff\xff\xff\x07" + b"x" * 50,  # a graph that claims 2 GB
        b"\x08\x08\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 50,
    ],
)
def test_garbage(tmp_path, content):
    refused(tmp_path, content, "expected")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_truncated(tmp_path, share):
    refused(tmp_path, CONTENT[: int(len(CONTENT) * share)], "expected")


def test_names_that_are_no_text(tmp_path):
    content = CONTENT.replace(b"target", b"tar\xff\xfet")
    assert content != CONTENT
    refused(tmp_path, content, "names in UTF-8")


@pytest.mark.parametrize("version", [-1, 2**40])
def test_versions_of_other_operator_sets(tmp_path, version):
    model = small_model()
    model.opset_import.append(helper.make_opsetid("other", version))
    refused(tmp_path, model, "versions of operator sets")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FormatError, match="a readable file"):
        formats.load(tmp_path / "none.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(FormatError, match="a readable file"):
        formats.load(tmp_path / "folder.onnx")


def test_a_file_above_the_size_of_a_protobuf(tmp_path):
    path = tmp_path / "model.onnx"
    with path.open("wb") as stream:
        stream.write(b"\x08\x08")
        stream.truncate(2**31 + 10)  # sparse: it takes no room
    with pytest.raises(FormatError, match=r"at most 2 GB.*external data"):
        formats.load(path)


def test_cycles(tmp_path):
    model = small_model()
    model.graph.node[0].input[0] = "r"
    refused(tmp_path, model, "without cycles, found a cycle")
    model.graph.node[0].input[0] = "c"
    refused(tmp_path, model, r"'conv' \(Conv\).*cycle")


def test_missing_initializers_nodes_and_outputs(tmp_path):
    model = small_model()
    del model.graph.initializer[0]
    refused(tmp_path, model, r"'conv' \(Conv\): expected something that defines 'w'")
    model = small_model()
    model.graph.output[0].name = "z"
    refused(tmp_path, model, "output 'z'")
    del model.graph.output[:]
    refused(tmp_path, model, "a graph with outputs")


def test_names_that_are_given_twice(tmp_path):
    model = small_model()
    model.graph.node[1].output[0] = "c"
    refused(tmp_path, model, "a new name for its output, found 'c' once more")
    model = small_model()
    model.graph.output.append(model.graph.output[0])
    refused(tmp_path, model, "output names, each once")
    model = small_model()
    model.graph.input.append(model.graph.input[0])
    refused(tmp_path, model, "input names, each once")


def test_tensors_that_do_not_fill_their_dimensions(tmp_path):
    for dims in ([3, 2, 3, 4], [-3, -2, 3, 3], [2**20, 2**20], [2**62, 4]):
        model = small_model()
        model.graph.initializer[0].dims[:] = dims
        refused(tmp_path, model, "initializer 'w'")
    model = small_model()
    model.graph.initializer[0].data_type = 77
    refused(tmp_path, model, "initializer 'w'")


@pytest.mark.parametrize(
    ("op", "constants"),
    [
        ("ConstantOfShape", [np.array([2**20, 2**20])]),
        ("Expand", [np.zeros(1, np.float32), np.array([2**20, 2**20])]),
        ("Tile", [np.zeros(1, np.float32), np.array([2**40])]),
        ("Range", [np.array(0), np.array(2**40), np.array(1)]),
        ("Add", [np.zeros((2**15, 1), np.float32), np.zeros((1, 2**15), np.float32)]),
        ("Gather", [np.zeros(2**15, np.float32), np.zeros(2**14, np.int64)]),
        ("Pad", [np.zeros(2, np.float32), np.array([2**40, 0])]),
    ],
)
def test_constants_that_would_fill_the_memory(tmp_path, op, constants):
    names = [f"c{index}" for index in range(len(constants))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["k"]), helper.make_node("Add", ["x", "k"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(x, name) for name, x in zip(names, constants, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    refused(tmp_path, model, f"{op}.*too large")


def _attribute(name, value):
    return lambda conv: conv.attribute.append(helper.make_attribute(name, value))


CHANGES = {
    "pads of five": (lambda conv: conv.attribute[0].ints.append(3), "are not 4 numbers"),
    "pads of another type": (
        lambda conv: setattr(conv.attribute[0], "type", onnx.AttributeProto.FLOAT),
        "pads",
    ),
    "four inputs": (lambda conv: conv.input.append("b"), "input"),
    "another operator": (lambda conv: setattr(conv, "op_type", "Gemm"), "pads"),
    "no groups": (_attribute("group", 0), "'conv'"),
    "negative groups": (_attribute("group", -1), "'conv'"),
    "standing still": (_attribute("strides", [0, 0]), "strides"),
    "unknown attribute": (_attribute("magic", 1), "magic"),
    "another kernel": (_attribute("kernel_shape", [7, 7]), "kernel_shape"),
    "no output": (lambda conv: conv.ClearField("output"), "defines 'c'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_nodes_that_do_not_fit_their_operator(tmp_path, name):
    change, match = CHANGES[name]
    model = small_model()
    change(model.graph.node[0])
    refused(tmp_path, model, match)


def test_sparse_and_text_constants(tmp_path):
    model = small_model()
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = numpy_helper.from_array(np.zeros((1, 4), np.int64))
    del model.graph.initializer[0]
    sparse = helper.make_sparse_tensor(values, indices, WEIGHT.shape)
    model.graph.sparse_initializer.append(sparse)
    refused(tmp_path, model, "initializer 'w'.*dense")
    nodes = [
        helper.make_node("Constant", [], ["t"], value_string="text"),
        helper.make_node("Add", ["x", "t"], ["y"], name="sum"),
    ]
    model = small_model()
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    refused(tmp_path, model, "Constant.*no dense tensor")


def model_of_functions(bodies):
    """A model that calls the first of these functions; bodies: name -> names that it calls."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for name, calls in bodies.items():
        blobs = ["a", *(f"b{index}" for index in range(1, len(calls))), "z"]
        nodes = [
            helper.make_node(call, [source], [target], domain="own" if call in bodies else "")
            for call, source, target in zip(calls, blobs, blobs[1:], strict=False)
        ]
        functions.append(helper.make_function("own", name, ["a"], ["z"], nodes, opsets))
    graph = helper.make_graph(
        [helper.make_node(next(iter(bodies)), ["x"], ["y"], domain="own")],
        "calls",
        [helper.make_tensor_value_info("x", 1, [1, 3])],
        [helper.make_tensor_value_info("y", 1, None)],
    )
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def test_functions_that_call_themselves_or_grow_without_measure(tmp_path):
    fine = {"F0": ["F1", "F1"], "F1": ["Relu", "Neg"]}
    graph = formats.load(saved(tmp_path, model_of_functions(fine)))
    assert [node.op for node in graph.nodes] == ["relu", "neg"] * 2
    refused(tmp_path, model_of_functions({"F": ["F"]}), "inlined, found Cycle")
    growing = {f"F{level}": [f"F{level + 1}"] * 8 for level in range(20)} | {"F20": ["Relu"]}
    refused(tmp_path, model_of_functions(growing), "more when opened")


def test_long_chains_are_no_matter(tmp_path):
    count = 1500
    names = ["x", *(f"b{index}" for index in range(count))]
    nodes = [
        helper.make_node("Mul", [source, "c"], [target])
        for source, target in itertools.pairwise(names)
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", 1, [1, 3])],
        [helper.make_tensor_value_info(names[-1], 1, None)],
        [numpy_helper.from_array(np.float32(1.01), "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert len(formats.load(saved(tmp_path, model)).nodes) == count


# ------------------------------------------------------------------ external data


def external_model(tmp_path, location="weights.bin", offset=0, length=None, content=None):
    """The small model with its weight in another file; returns its path."""
    model = small_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": str(offset)}
    if length is not None:
        entries["length"] = str(length)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    if content is not None:
        (tmp_path / "weights.bin").write_bytes(content)
    return saved(tmp_path, model)


def test_external_data(tmp_path):
    content = b"junk" + WEIGHT.tobytes() + b"more"
    path = external_model(tmp_path, offset=4, length=WEIGHT.nbytes, content=content)
    graph = formats.load(path)
    np.testing.assert_array_equal(graph.nodes[0].weights["weight"], WEIGHT)
    np.testing.assert_array_equal(formats.load_structure(path).nodes[0].weights["weight"], WEIGHT)


def test_the_structure_does_without_external_data(tmp_path):
    path = external_model(tmp_path)
    with pytest.raises(FormatError, match=r"initializer 'w'.*'weights.bin'.*No such file"):
        formats.load(path)
    graph = formats.load_structure(path)
    assert graph.nodes[0].weights["weight"].shape == WEIGHT.shape


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "", "a/../../secret.bin", "link.bin", "bad\0name"]
)
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    inside = tmp_path / "models"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    (inside / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = external_model(inside, location=location)
    for load in (formats.load, formats.load_structure):
        with pytest.raises(FormatError, match="initializer 'w'"):
            load(path)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 2**31), (4, None), (-4, None), (0, 8), ("much", None), (2**40, None), (0, "all")],
)
def test_external_data_that_are_not_there(tmp_path, offset, length):
    path = external_model(tmp_path, offset=offset, length=length, content=WEIGHT.tobytes())
    with pytest.raises(FormatError, match="initializer 'w'"):
        formats.load(path)


# ------------------------------------------------------------------ anything


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 255)), min_size=1, max_size=4
    )
)
@example([(0, 255)])
def test_changed_bytes_give_a_network_or_one_of_our_errors(tmp_path, changes):
    content = bytearray(CONTENT)
    for place, value in changes:
        content[place] = value
    path = saved(tmp_path, bytes(content))
    with contextlib.suppress(QuantJitError):
        formats.load(path).validate()
