"""What is written as ONNX: valid, with its names, and in onnxruntime what the executor computes."""

from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest

from quantjit import formats, ops, pipeline, quantizer
from quantjit.errors import GraphError, QuantJitError, UnsupportedError, UsageError
from quantjit.executor import Executor, infer_shapes
from quantjit.graph import Blob, Graph, Node
from quantjit.ops import NoAttrs
from quantjit.ops.activation import ClipAttrs, EluAttrs, HardAttrs, PowerAttrs, PReluAttrs
from quantjit.ops.choose import ExtremeAttrs
from quantjit.ops.concat import ConcatAttrs, ShuffleAttrs, SplitAttrs
from quantjit.ops.convolution import ConvolutionAttrs
from quantjit.ops.curves import CurveAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.ops.inner_product import InnerProductAttrs
from quantjit.ops.linear_codes import CodesAttrs
from quantjit.ops.matmul import MatMulAttrs
from quantjit.ops.normalization import (
    GroupNormAttrs,
    InstanceNormAttrs,
    LayerNormAttrs,
    LrnAttrs,
    ScaleAttrs,
)
from quantjit.ops.pooling import PoolingAttrs
from quantjit.ops.reduce import ReduceAttrs
from quantjit.ops.resize import ResizeAttrs, UpsampleAttrs
from quantjit.ops.shape import (
    AxesAttrs,
    CastAttrs,
    ConstantAttrs,
    FlattenAttrs,
    GatherAttrs,
    PadAttrs,
    PermuteAttrs,
    ReshapeAttrs,
    SliceAttrs,
    TileAttrs,
)
from quantjit.ops.softmax import SoftmaxAttrs
from quantjit.passes.fuse_activation import fuse_activation
from quantjit.passes.lower import lower
from quantjit.quant import QuantParams
from quantjit.quantizer import Settings
from quantjit.stats import BlobStats

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
from quantjit.formats import _onnx_write, _onnx_write_table  # noqa: E402  # they import onnx

DEMO = Path(__file__).resolve().parents[2] / "data" / "demo.onnx"
TOLERANCE = 1e-5  # of the largest output


def session(model):
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    data = model if isinstance(model, str) else model.SerializeToString()
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def in_runtime(model, graph, inputs):
    names = list(graph.outputs)
    return dict(zip(names, session(model).run(names, inputs), strict=True))


def assert_same(graph, seed=0, tolerance=TOLERANCE, transform=None):
    """onnxruntime computes of the written network what the executor computes of the graph."""
    (inputs,) = models.random_inputs(graph, 1, seed)
    if transform is not None:
        inputs = {name: transform(x).astype(np.float32) for name, x in inputs.items()}
    expected = Executor(graph).run(inputs)
    found = in_runtime(_onnx_write.make(graph), graph, inputs)
    for name in graph.outputs:
        assert found[name].shape == expected[name].shape
        limit = tolerance * max(np.abs(expected[name]).max(), 1e-3)
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=limit)


def single(op, attrs=None, shapes=((1, 4, 6, 5),), outputs=1, weights=None):
    """A network of one node."""
    inputs = tuple(Blob(f"in{i}", shape) for i, shape in enumerate(shapes))
    outs = tuple(f"out{i}" for i in range(outputs))
    weights = {role: np.asarray(array, np.float32) for role, array in (weights or {}).items()}
    node = Node("node", op, tuple(blob.name for blob in inputs), outs, attrs or NoAttrs(), weights)
    return Graph((node,), inputs, outs)


def noise(*shape, seed=3):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


CONV = {"weight": noise(6, 4, 3, 2), "bias": noise(6)}
DECONV = {"weight": noise(4, 6, 3, 2), "bias": noise(6)}
AFFINE = {"scale": noise(4), "bias": noise(4, seed=4)}
HALVES = {"pads": (1, 0, 0, 1)}


def conv(**changes):
    return ConvolutionAttrs(1, 4, 6, 3, 2, **changes)


CASES = {
    "convolution": [
        single("convolution", conv(), weights=CONV),
        single("convolution", conv(pads=(1, 0, 2, 1), stride_w=2, dilation_h=2), weights=CONV),
        single("convolution", conv(pad_mode="same", stride_h=2, stride_w=2), weights=CONV),
        single("convolution", conv(pad_mode="valid", activation="relu6"), weights=CONV),
        single("convolution", conv(activation="swish"), weights=CONV),
        single(
            "convolution",
            conv(has_bias=False, activation="relu"),
            weights={"weight": CONV["weight"]},
        ),
        single(
            "convolution",
            ConvolutionAttrs(4, 4, 8, 3, 3, pads=(1, 1, 1, 1)),
            weights={"weight": noise(8, 1, 3, 3), "bias": noise(8)},
        ),
    ],
    "deconvolution": [
        single("deconvolution", conv(**changes), weights=DECONV)
        for changes in (
            {},
            {"pads": (1, 0, 0, 1), "stride_h": 2, "stride_w": 2},
            {"pad_mode": "same", "stride_h": 2, "stride_w": 2},
            {"pad_mode": "valid", "stride_h": 2},
            {"pad_mode": "full"},
            {"pad_mode": "output", "stride_h": 2, "activation": "relu"},
        )
    ],
    "pooling": [
        single("pooling", attrs)
        for attrs in (
            PoolingAttrs("max", 2, 2, 2, 2),
            PoolingAttrs("max", 3, 2, 2, 1, (1, 1, 0, 1)),
            PoolingAttrs("max", 3, 3, 2, 2, ceil_mode=True),
            PoolingAttrs("average", 3, 2, 2, 2, (1, 1, 1, 0)),
            PoolingAttrs("average", 3, 2, 2, 2, (1, 1, 1, 0), count_include_pad=True),
            PoolingAttrs("average", 3, 3, 2, 2, ceil_mode=True),
            PoolingAttrs("average", 2, 2, 2, 2, pad_mode="same"),
            PoolingAttrs("max", 1, 1, 3, 3, pad_mode="valid"),
            PoolingAttrs("average", 0, 0),
            PoolingAttrs("max", 0, 0),
            PoolingAttrs("average", 0, 0, adaptive=True, output_h=3, output_w=1),
            PoolingAttrs("average", 0, 0, adaptive=True, output_h=1, output_w=1),
            PoolingAttrs("max", 1, 1, kernel_index_h=2, kernel_index_w=3),
        )
    ],
    "inner_product": [
        single(
            "inner_product",
            InnerProductAttrs(7),
            weights={"weight": noise(7, 120), "bias": noise(7)},
        ),
        single(
            "inner_product",
            InnerProductAttrs(7, has_bias=False, transpose=True),
            ((2, 9),),
            weights={"weight": noise(9, 7)},
        ),
        single(
            "inner_product",
            InnerProductAttrs(3, axis=2),
            ((2, 3, 5),),
            weights={"weight": noise(3, 5), "bias": noise(3)},
        ),
    ],
    "matmul": [
        single("matmul", MatMulAttrs(), ((2, 3, 4), (4, 5))),
        single("matmul", MatMulAttrs(0), ((2, 4, 3),), weights={"weight": noise(5, 4)}),
    ],
    **{
        op: [
            single(op, BinaryAttrs(), ((1, 4, 3, 2), (4, 1, 2))),
            single(op, BinaryAttrs(1), ((1, 4, 3, 2),), weights={"constant": noise(4)}),
            single(op, BinaryAttrs(0), ((1, 4, 3, 2),), weights={"constant": noise(1, 4, 3, 2)}),
            single(op, BinaryAttrs(), ((1, 4), (1, 4), (1, 4))),
        ]
        for op in ("add", "sub", "mul", "div", "maximum", "minimum")
    },
    "clip": [
        single("clip", ClipAttrs(-0.5, 0.25)),
        single("clip", ClipAttrs(-np.inf, 0.25)),
        single("clip", ClipAttrs(0.1, np.inf)),
    ],
    "elu": [single("elu", EluAttrs(0.7))],
    "power": [single("power", PowerAttrs(2.0, 1.5, -0.25)), single("power", PowerAttrs(3.0))],
    "hard_sigmoid": [single("hard_sigmoid", HardAttrs(0.3, 0.4))],
    "hard_swish": [
        single("hard_swish", HardAttrs(1 / 6, 0.5)),
        single("hard_swish", HardAttrs(1 / 6, 0.5), ((1, 3), (1, 3))),
    ],
    "prelu": [
        single("prelu", PReluAttrs(), weights={"slope": noise(4)}),
        single("prelu", PReluAttrs(channel_shared=True), weights={"slope": noise(1)}),
    ],
    "mish": [single("mish", CurveAttrs())],
    "gelu_erf": [single("gelu_erf", CurveAttrs())],
    "scaled_swish": [single("scaled_swish", CurveAttrs(1.702))],
    "selu": [single("selu", CurveAttrs(1.6, 1.1))],
    "celu": [single("celu", CurveAttrs(0.5))],
    "softsign": [single("softsign", CurveAttrs())],
    "thresholded_relu": [single("thresholded_relu", CurveAttrs(0.4))],
    "pow": [single("pow", None, ((1, 4), (1, 4)))],
    **{
        op: [single(op, None, ((1, 9), (1, 9)))]
        for op in ("less", "greater", "less_or_equal", "greater_or_equal", "equal")
    },
    "logical_and": [single("logical_and", None, ((1, 9), (1, 9)))],
    "logical_or": [single("logical_or", None, ((1, 9), (1, 9)))],
    "where": [single("where", None, ((1, 9), (1, 9), (1, 9)))],
    "quantize_linear": [
        single("quantize_linear", CodesAttrs(), weights={"scale": [0.1], "zero_point": [3]}),
        single(
            "quantize_linear",
            CodesAttrs(1, 0, 255),
            weights={"scale": [0.1, 0.2, 0.3, 0.4], "zero_point": [3, 4, 5, 6]},
        ),
    ],
    "dequantize_linear": [
        single("dequantize_linear", CodesAttrs(), weights={"scale": [0.1], "zero_point": [3]})
    ],
    "batch_norm": [single("batch_norm", weights=AFFINE)],
    "scale": [single("scale", ScaleAttrs(has_bias=False), weights={"scale": noise(4)})],
    "instance_norm": [single("instance_norm", InstanceNormAttrs(4, 1e-3), weights=AFFINE)],
    "group_norm": [
        single("group_norm", GroupNormAttrs(2, 1e-3), weights=AFFINE),
        single("group_norm", GroupNormAttrs(2), ((1, 4, 3, 3), (4,), (4,))),
    ],
    "layer_norm": [
        single(
            "layer_norm",
            LayerNormAttrs(2),
            weights={"scale": noise(6, 5), "bias": noise(6, 5, seed=5)},
        )
    ],
    "lrn": [single("lrn", LrnAttrs(0.1, 0.75, 1.0, 3))],
    "softmax": [single("softmax", SoftmaxAttrs(1)), single("softmax", SoftmaxAttrs(-1))],
    "log_softmax": [single("log_softmax", SoftmaxAttrs(2))],
    "concat": [single("concat", ConcatAttrs(1), ((1, 2, 3), (1, 4, 3)))],
    "split_v": [single("split_v", SplitAttrs(1, (1, 3)), outputs=2)],
    "split": [single("split", outputs=2)],
    "shuffle_channel": [single("shuffle_channel", ShuffleAttrs(2))],
    "pixel_shuffle": [single("pixel_shuffle", ShuffleAttrs(2))],
    "reshape": [
        single("reshape", ReshapeAttrs((0, -1, 5))),
        single("reshape", ReshapeAttrs((12, 10), axis=1, num_axes=2)),
        single("reshape", ReshapeAttrs((0, 10, 4, 3), layout="nhwc")),
    ],
    "flatten": [single("flatten", FlattenAttrs(2))],
    "permute": [single("permute", PermuteAttrs((0, 2)))],
    "squeeze": [
        single("squeeze", AxesAttrs((0,)), ((1, 3, 1),)),
        single("squeeze", AxesAttrs(()), ((1, 3, 1),)),
        single("squeeze", AxesAttrs(()), ((2, 3),)),
    ],
    "unsqueeze": [single("unsqueeze", AxesAttrs((0, 3, -1)), ((2, 3),))],
    "pad": [
        single("pad", PadAttrs((0, 1, 2, 0), (0, 0, 1, 3), "constant", 1.5)),
        single("pad", PadAttrs((0, 0, 2, 1), (0, 0, 1, 3), "reflect")),
    ],
    "pad_v2": [single("pad_v2", PadAttrs((0, 0, -1), (0, 0, 2), "edge"))],
    "strided_slice": [
        single("strided_slice", SliceAttrs((0, 1, 1, 0), (0, 3, 0, 4), (0, 1, 2, 3), (1, 1, 2, 1)))
    ],
    "strided_slice_v2": [
        single("strided_slice_v2", SliceAttrs((-1, 4), (-(2**31), 1), (2, 3), (-2, -1))),
        single("strided_slice_v2", SliceAttrs((1,), (-1,), (-1,), (2,))),
    ],
    "constant": [
        Graph(
            (
                Node(
                    "node", "constant", (), ("out0",), ConstantAttrs((2, 3)), {"value": noise(2, 3)}
                ),
            ),
            (),
            ("out0",),
        )
    ],
    "cast": [single("cast", CastAttrs(kind)) for kind in ("float32", "int32", "float16")],
    "gather": [
        single("gather", GatherAttrs(1), weights={"indices": [[2, 0], [-1, 1]]}),
        single("gather", GatherAttrs(0, True, False), ((3,),), weights={"data": noise(9, 2)}),
    ],
    "argmax": [single("argmax", ExtremeAttrs(1)), single("argmax", ExtremeAttrs(-1, False, True))],
    "argmin": [single("argmin", ExtremeAttrs(2, False))],
    "tile": [single("tile", TileAttrs((2, 1, 3))), single("tile", TileAttrs((2, 3)), ((4,),))],
    "upsample": [
        single("upsample", UpsampleAttrs(mode, 2.0, 1.5, align))
        for mode in ("nearest", "bilinear", "cubic")
        for align in (False, True)
        if not (mode == "nearest" and align)
    ],
    "resize": [
        single("resize", ResizeAttrs("nearest", 2.0, 2.0, 12, 10, "asymmetric", "ceil")),
        single("resize", ResizeAttrs("bilinear", 2.0, 1.6, 12, 8)),
        single("resize", ResizeAttrs("cubic", 0.7, 2.5, 4, 12, "half_pixel", cubic_a=-0.5)),
    ],
}
for reduction in ("mean", "max", "min", "sum", "prod", "l1", "l2", "log_sum_exp", "sum_square"):
    CASES[f"reduce_{reduction}"] = [
        single(f"reduce_{reduction}", ReduceAttrs((1, -1))),
        single(f"reduce_{reduction}", ReduceAttrs((), keep_dims=False)),
    ]
for activation in ("relu", "relu6", "sigmoid", "tanh", "swish", "exp", "softplus", "erf", "gelu"):
    CASES[activation] = [single(activation)]
for function in ("abs", "neg", "floor", "ceil", "round", "sign", "sin", "cos"):
    CASES[function] = [single(function)]
POSITIVE = {
    "log": [single("log")],
    "sqrt": [single("sqrt")],
    "reciprocal": [single("reciprocal")],
    "reduce_log_sum": [single("reduce_log_sum", ReduceAttrs((2,)))],
    "pow": CASES.pop("pow"),
    "gather": [CASES["gather"].pop()],
}
TRUTH = {op: CASES.pop(op) for op in ("logical_and", "logical_or", "where")}
TRUTH["logical_not"] = [single("logical_not", None, ((1, 9),))]


def listed(cases):
    return [pytest.param(graph, id=f"{op}{i}") for op in cases for i, graph in enumerate(cases[op])]


@pytest.mark.parametrize("graph", listed(CASES))
def test_every_op_computes_the_same_in_onnxruntime(graph):
    assert_same(graph)


@pytest.mark.parametrize("graph", listed(POSITIVE))
def test_ops_of_positive_numbers(graph):
    assert_same(graph, transform=lambda x: np.abs(x) + np.float32(0.5))


@pytest.mark.parametrize("graph", listed(TRUTH))
def test_ops_of_truth_values(graph):
    assert_same(graph, transform=lambda x: x > 0)


def test_every_op_has_a_word_and_a_case():
    codes = {"quantize", "dequantize"}  # made while running, never in a file
    assert set(_onnx_write_table.TRANSLATIONS) == set(ops.registry()) - codes
    assert set(CASES) | set(POSITIVE) | set(TRUTH) == set(_onnx_write_table.TRANSLATIONS)


REFUSED = {
    "an even size": single("lrn", LrnAttrs(0.1, 0.75, 1.0, 4)),
    "overlap": single(
        "pooling", PoolingAttrs("average", 0, 0, adaptive=True, output_h=4, output_w=3)
    ),
    "padding altogether": single(
        "pooling", PoolingAttrs("max", 1, 1, 4, 4, (0, 0, 0, 0), ceil_mode=True)
    ),
    "newer opset": single(
        "resize", ResizeAttrs("bilinear", 2.0, 2.0, 12, 10, "half_pixel_symmetric")
    ),
    "memory only": single(
        "convolution",
        conv(pads=(1, 1, 1, 0), fusion="add_activation"),
        ((1, 4, 6, 5), (1, 6, 6, 5)),
        weights=CONV,
    ),
    "has no weight": single("convolution", conv()),
    "cannot be written as ONNX": single("quantize"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_onnx_cannot_say_is_refused_by_name(words, tmp_path):
    with pytest.raises(GraphError, match="node 'node'") as caught:
        formats.save(REFUSED[words], tmp_path / "net.onnx")
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == [], "nothing half-written is left"


def test_names_version_and_metadata_are_in_the_file(tmp_path):
    graph = models.small_network()
    (path,) = formats.save(graph, tmp_path / "net.onnx", metadata={"quantjit.method": "none"})
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.name for node in graph.nodes} <= {node.name for node in model.graph.node}
    written = {name for node in model.graph.node for name in node.output}
    assert {blob for node in graph.nodes for blob in node.outputs} <= written
    assert [value.name for value in model.graph.input] == ["data"]
    assert [value.name for value in model.graph.output] == ["scores"]
    assert {item.key: item.value for item in model.metadata_props} == {
        "quantjit.version": model.producer_version,
        "quantjit.method": "none",
    }
    assert model.opset_import[0].version >= 13


def test_names_that_are_taken_get_a_number():
    graph = models.small_network()
    first = replace(graph.nodes[0], name="scores:shape", outputs=("scores:flat",))
    rest = tuple(
        replace(node, inputs=tuple("scores:flat" if n == "conv1" else n for n in node.inputs))
        for node in graph.nodes[1:]
    )
    graph = graph.with_nodes((first, *rest))
    assert_same(graph)


def test_unused_constants_are_left_out_and_used_ones_kept():
    graph = single("add", BinaryAttrs(), ((1, 3), (1, 3)))
    graph = replace(
        graph,
        inputs=graph.inputs[:1],
        constants={"in1": noise(1, 3), "unused": noise(2)},
    )
    assert [item.name for item in _onnx_write.make(graph).graph.initializer] == ["in1"]
    assert_same(graph)


def test_the_demo_network_survives_onnx_and_tnn(tmp_path):
    graph = formats.load(DEMO)
    (inputs,) = models.random_inputs(graph, 1)
    expected = Executor(graph).run(inputs)
    formats.save(graph, tmp_path / "a.tnnproto")
    formats.save(formats.load(tmp_path / "a.tnnproto"), tmp_path / "b.onnx")
    again = formats.load(tmp_path / "b.onnx")
    found = Executor(again).run(inputs)
    for name in graph.outputs:
        limit = TOLERANCE * np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=limit)


# ------------------------------------------------------------------ int8


def quantized(graph, settings, count=6):
    graph = fuse_activation(graph)
    channels = quantizer.observed_blobs(graph, infer_shapes(graph), settings)
    stats = {blob: BlobStats(size) for blob, size in channels.items()}
    executor = Executor(graph)
    for sample in models.random_inputs(graph, count):
        executor.run(
            sample, lambda blob, array: stats[blob].update(array) if blob in stats else None
        )
    return quantizer.quantize(graph, quantizer.solve(graph, stats, settings), settings)


VARIANTS = [
    (form, activations, symmetric, merge)
    for form in _onnx_write.FORMS
    for activations in quantizer.ACTIVATIONS
    for symmetric in (False, True)
    for merge in ("mix", "tensor")
]


@pytest.mark.parametrize(("form", "activations", "symmetric", "merge"), VARIANTS)
def test_int8_runs_in_onnxruntime_as_here(form, activations, symmetric, merge, tmp_path):
    settings = Settings(merge=merge, target="onnx", symmetric=symmetric, activations=activations)
    int8 = quantized(models.small_network(size=12), settings)
    (path,) = formats.save(int8, tmp_path / "net.onnx", form=form)
    onnx.checker.check_model(str(path))
    ours = Executor(lower(int8))
    loaded = session(str(path))
    step = int8.scales["scores"].scale[0]
    for sample in models.random_inputs(int8, 10, seed=1):
        expected = loaded.run(["scores"], sample)[0]
        found = ours.run(sample)["scores"]
        difference = np.abs(found - expected) / step
        assert (difference < 1.01).all()
        assert (difference < 0.01).mean() >= 0.9, "the same codes but for a rare tie"


@pytest.mark.parametrize(("form", "activations", "symmetric", "merge"), VARIANTS)
def test_int8_files_are_read_as_the_network_that_was_written(
    form, activations, symmetric, merge, tmp_path
):
    settings = Settings(merge=merge, target="onnx", symmetric=symmetric, activations=activations)
    int8 = quantized(models.small_network(), settings)
    formats.save(int8, tmp_path / "net.onnx", form=form)
    again = formats.load(tmp_path / "net.onnx")
    assert again.arithmetic == int8.arithmetic
    read = {node.name: node for node in again.nodes}
    for node in int8.nodes:
        if node.op in {"convolution", "inner_product"}:
            for role in ("weight", "bias"):
                np.testing.assert_array_equal(read[node.name].weights[role], node.weights[role])
            np.testing.assert_array_equal(
                read[node.name].quant.weight_scale, node.quant.weight_scale
            )
    for sample in models.random_inputs(int8, 3, seed=2):
        expected, found = Executor(lower(int8)).run(sample), Executor(lower(again)).run(sample)
        np.testing.assert_array_equal(found["scores"], expected["scores"])


def test_kept_float_layers_stand_between_conversions(tmp_path):
    settings = Settings(target="onnx", exclude=("depthwise", "concat"))
    int8 = quantized(models.small_network(), settings)
    for form in _onnx_write.FORMS:
        (path,) = formats.save(int8, tmp_path / "net.onnx", form=form)
        again = formats.load(path)
        kinds = {node.name: node.quant is not None for node in again.nodes}
        assert not kinds["depthwise"]
        assert not kinds["join"]
        assert kinds["project"]
        for sample in models.random_inputs(int8, 3, seed=2):
            found = Executor(lower(int8)).run(sample)["scores"]
            expected = session(str(path)).run(["scores"], sample)[0]
            np.testing.assert_allclose(found, expected, atol=2 * int8.scales["scores"].scale[0])


def test_uint8_codes_are_the_int8_codes_and_128(tmp_path):
    graph = models.small_network()
    files = {}
    for activations in quantizer.ACTIVATIONS:
        int8 = quantized(graph, Settings(target="onnx", activations=activations))
        formats.save(int8, tmp_path / "net.onnx")
        stored = onnx.load(tmp_path / "net.onnx").graph.initializer
        files[activations] = {
            item.name: onnx.numpy_helper.to_array(item)
            for item in stored
            if item.name.endswith("_zero_point") and ":" not in item.name
        }
    assert files["int8"].keys() == files["uint8"].keys()
    for name, zero in files["int8"].items():
        assert zero.dtype == np.int8
        assert files["uint8"][name].dtype == np.uint8
        assert int(files["uint8"][name]) == int(zero) + 128


def test_codes_that_end_where_a_relu_clips_make_it_needless():
    for symmetric, count in ((False, 0), (True, 4)):
        int8 = quantized(models.small_network(), Settings(target="onnx", symmetric=symmetric))
        model = _onnx_write.make(int8)
        types = [node.op_type for node in model.graph.node]
        assert types.count("Relu") + types.count("Clip") == (5 if symmetric else count)
        assert types.count("Conv") == 5


def test_int8_networks_of_the_other_arithmetic_are_refused(tmp_path):
    graph = models.small_network()
    for_tnn = quantized(graph, Settings(merge="mix"))
    with pytest.raises(UsageError, match="int8 TNN network"):
        formats.save(for_tnn, tmp_path / "net.onnx")
    for_onnx = quantized(graph, Settings(target="onnx"))
    with pytest.raises(GraphError, match="int8 for ONNX"):
        formats.save(for_onnx, tmp_path / "net.tnnproto")
    assert list(tmp_path.iterdir()) == []


def test_scales_that_onnx_cannot_hold_are_refused():
    int8 = quantized(models.small_network(), Settings(target="onnx"))
    per_channel = dict(int8.scales) | {"left_relu": QuantParams([0.1] * 4)}
    with pytest.raises(GraphError, match="mix"):
        _onnx_write.make(replace(int8, scales=per_channel))
    zero = dict(int8.scales) | {"join": QuantParams([0.0])}
    with pytest.raises(GraphError, match="above 0"):
        _onnx_write.make(replace(int8, scales=zero))
    missing = {blob: params for blob, params in int8.scales.items() if blob != "join"}
    with pytest.raises(GraphError, match="'join'"):
        _onnx_write.make(replace(int8, scales=missing))
    first = int8.nodes[0]
    uneven = replace(first.quant, weight_zero_point=np.array([1, 0, 0, 0], np.int8))
    with pytest.raises(GraphError, match="one zero point"):
        _onnx_write.make(int8.with_nodes((replace(first, quant=uneven), *int8.nodes[1:])))
    with pytest.raises(UnsupportedError, match="qoperator"):
        _onnx_write.make(int8, form="qop")


def test_a_folder_is_no_file_to_write(tmp_path):
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(QuantJitError, match="a folder"):
        formats.save(models.small_network(), tmp_path / "net.onnx")


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.jit
@pytest.mark.parametrize("name", ["squeezenet_v1.0", "mobilenet_v2", "rfb320"])
def test_real_networks_survive_and_agree(name, shared, tmp_path):
    graph = pipeline.load(shared / "models" / f"{name}.onnx")
    (inputs,) = models.random_inputs(graph, 1)
    (path,) = formats.save(graph, tmp_path / "float.onnx")
    expected = Executor(graph).run(inputs)
    found = in_runtime(str(path), graph, inputs)
    for blob in graph.outputs:
        limit = TOLERANCE * np.abs(expected[blob]).max()
        np.testing.assert_allclose(found[blob], expected[blob], rtol=0, atol=limit)
    int8 = quantized(graph, Settings(target="onnx"), count=2)
    (path,) = formats.save(int8, tmp_path / "int8.onnx")
    ours, theirs = Executor(lower(int8)), session(str(path))
    for sample in models.random_inputs(graph, 3, seed=1):
        expected = dict(zip(graph.outputs, theirs.run(list(graph.outputs), sample), strict=True))
        found = ours.run(sample)
        for blob in graph.outputs:
            limit = TOLERANCE * np.abs(expected[blob]).max()
            np.testing.assert_allclose(found[blob], expected[blob], rtol=0, atol=limit)
