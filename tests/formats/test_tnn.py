from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tnn_files as files
from models import conv, small_network
from tnn_files import BIAS, CONVOLUTION, V1, V2, WEIGHT, entry, integer, pair, raw, string

from quantjit import formats
from quantjit.errors import FormatError, GraphError, UnsupportedError
from quantjit.formats import tnn
from quantjit.graph import Blob, Graph, Node
from quantjit.ops import NoAttrs
from quantjit.ops.activation import ClipAttrs, EluAttrs, HardAttrs, PowerAttrs, PReluAttrs
from quantjit.ops.concat import ConcatAttrs, ShuffleAttrs, SplitAttrs
from quantjit.ops.convolution import ConvolutionAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.ops.inner_product import InnerProductAttrs
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
from quantjit.ops.resize import UpsampleAttrs
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
from quantjit.quant import NodeQuant, QuantParams


def rewritten(paths):
    """Read, write beside it, and return the graph and the bytes of both new files."""
    graph = tnn.read(paths)
    target = tuple(path.with_name(f"again{path.suffix}") for path in paths)
    tnn.write(graph, target)
    assert tnn.read(target) == graph
    return graph, tuple(path.read_bytes() for path in target)


def records(data):
    return [line.strip('"\n,').strip() for line in data.decode().splitlines()]


# --- layers -------------------------------------------------------------------------------------

SCALE_AND_BIAS = raw([1.0, 2.0], dims=(2,)) + raw([3.0, 4.0], dims=(2,))
DECONVOLUTION = np.arange(12, dtype=np.float32).reshape(4, 3, 1, 1)

# record without names and blobs, op, attributes, record as written, payload of its resource
LAYERS = [
    ("Convolution; 1 3 2 3 2 2 1 1 0 1 0 1 2 256", "convolution",
     ConvolutionAttrs(1, 3, 2, 3, 2, 2, 1, (1, 1, 0, 0), "same", 1, 2, True, "swish"), None,
     string("") + integer(1) + raw(WEIGHT, dims=WEIGHT.shape) + raw(BIAS, dims=(2,))),
    ("Convolution; 2 2 4 1 1 1 1 0 0 0 -1", "convolution",
     ConvolutionAttrs(2, 4, 4, 1, 1, has_bias=False),
     "Convolution; 2 2 4 1 1 1 1 0 0 0 -1 1 1 0",
     string("") + integer(0) + raw(np.ones((4, 2, 1, 1)), dims=(4, 2, 1, 1))),
    ("Convolution; 1 1 1 1 1 1 1 0 0 0", "convolution",
     ConvolutionAttrs(1, 1, 1, 1, 1, pad_mode="same", has_bias=False),
     "Convolution; 1 1 1 1 1 1 1 0 0 0 0 1 1 0",
     string("") + integer(0) + raw(np.ones((1, 1, 1, 1)), dims=(1, 1, 1, 1))),
    ("Deconvolution; 2 2 6 1 1 2 2 0 0 0 3 1 1 1", "deconvolution",
     ConvolutionAttrs(2, 4, 6, 1, 1, 2, 2, pad_mode="output", has_bias=False, activation="relu"),
     None, string("") + integer(0) + raw(DECONVOLUTION, dims=(4, 3, 1, 1))),
    ("InnerProduct; 2 0 1 1", "inner_product", InnerProductAttrs(2, False),
     "InnerProduct; 2 0 0 1", string("") + raw(np.ones((2, 4)), dims=(2, 4)) + raw([])),
    ("Pooling; 0 3 2 2 1 1 0 -1 -1 -1 1 0 0 0", "pooling",
     PoolingAttrs("max", 3, 2, 2, 1, (1, 1, 0, 0), ceil_mode=True), None, None),
    ("Pooling; 1 0 0 1 1 0 0 -1 -1 -1 0 0 -1 -1", "pooling",
     PoolingAttrs("average", 0, 0, output_h=-1, output_w=-1), None, None),
    ("Pooling; 1 2 2 2 2 0 0", "pooling", PoolingAttrs("average", 2, 2, 2, 2, pad_mode="same"),
     "Pooling; 1 2 2 2 2 0 0 -1 -1 0 0 0 0 0", None),
    ("Pooling; 0 0 0 0 0 0 0 3 4 1 0 1 5 7", "pooling",
     PoolingAttrs("max", 0, 0, 0, 0, pad_mode="valid", adaptive=True, output_h=5, output_w=7,
                  kernel_index_h=3, kernel_index_w=4), None, None),
    ("Sub; 0", "sub", BinaryAttrs(0), None, raw([2.0], dims=(1,))),
    ("Div;", "div", BinaryAttrs(1), "Div; 1", raw([2.0, 1.0], dims=(1, 2))),
    ("Maximum; 1", "maximum", BinaryAttrs(1), None, raw([2.0], dims=(1,))),
    ("Minimum; 1", "minimum", BinaryAttrs(1), None, raw([2.0], dims=(1,))),
    *(
        (f"{kind};", kind.lower(), NoAttrs(), None, None)
        for kind in ("ReLU", "ReLU6", "Sigmoid", "Tanh", "Abs", "Exp", "Log", "Sqrt", "Neg",
                     "Floor", "Ceil", "Softplus", "Swish", "Erf", "GELU", "Reciprocal")
    ),
    ("Relu; 5", "relu", NoAttrs(), "ReLU;", None),
    ("Relu6;", "relu6", NoAttrs(), "ReLU6;", None),
    ("PReLU; 1 0", "prelu", PReluAttrs(True, False), None, string("") + raw([0.1], dims=(1,))),
    ("Elu; 0.5", "elu", EluAttrs(0.5), None, None),
    ("Clip; -1 inf", "clip", ClipAttrs(-1.0, np.inf), None, None),
    ("Clip;", "clip", ClipAttrs(), "Clip; 0 0", None),
    ("HardSigmoid; 0.2 0.5", "hard_sigmoid", HardAttrs(0.2, 0.5), None, None),
    ("HardSwish; 0.16666667", "hard_swish", HardAttrs(0.16666667), "HardSwish; 0.16666667 0", None),
    ("Power; 2 0.1 1e-05", "power", PowerAttrs(2.0, 0.1, 1e-5), None, None),
    ("SoftmaxCaffe; 2", "softmax", SoftmaxAttrs(2), None, None),
    ("Softmax;", "softmax", SoftmaxAttrs(1), "SoftmaxCaffe; 1", None),
    ("LogSoftmax; -1", "log_softmax", SoftmaxAttrs(-1), None, None),
    ("Concat; 2", "concat", ConcatAttrs(2), None, None),
    ("Reshape; 0 2 2 0 -1 1", "reshape", ReshapeAttrs((0, -1), 0, 2, "nhwc"), None, None),
    ("Flatten; 1", "flatten", FlattenAttrs(1), None, None),
    ("Permute; 4 0 2 3 1", "permute", PermuteAttrs((0, 2, 3, 1)), None, None),
    ("Squeeze; 2 2 3", "squeeze", AxesAttrs((2, 3)), None, None),
    ("Unsqueeze; 1 -1", "unsqueeze", AxesAttrs((-1,)), None, None),
    ("BatchNormCxx;", "batch_norm", NoAttrs(), None, SCALE_AND_BIAS),
    ("BatchNormalization;", "batch_norm", NoAttrs(), "BatchNormCxx;", SCALE_AND_BIAS),
    ("Scale; 1 1 1", "scale", ScaleAttrs(1, 1, True), None,
     string("") + integer(1) + SCALE_AND_BIAS),
    ("Scale; 1 1 0", "scale", ScaleAttrs(1, 1, False), None,
     string("") + integer(0) + raw([1.0, 2.0], dims=(2,))),
    ("InstBatchNormCxx; 2 0.001", "instance_norm", InstanceNormAttrs(2, 0.001), None,
     SCALE_AND_BIAS),
    ("InstBatchNormCxx;", "instance_norm", InstanceNormAttrs(), "InstBatchNormCxx; 0 1e-05",
     SCALE_AND_BIAS),
    ("GroupNorm; 4 1e-05", "group_norm", GroupNormAttrs(4), None, None),
    ("LayerNorm; 2", "layer_norm", LayerNormAttrs(2), "LayerNorm; 2 1e-05", None),
    ("LRN; 0.0001 0.75 1 5", "lrn", LrnAttrs(0.0001, 0.75, 1.0, 5), None, None),
    ("Pad; 0 0 1 2 3 4 5 6 0 0.5", "pad",
     PadAttrs((0, 5, 1, 3), (0, 6, 2, 4), "constant", 0.5), None, None),
    ("PadV2; 2 1 2 3 4 1", "pad_v2", PadAttrs((1, 2), (3, 4), "reflect"),
     "PadV2; 2 1 2 3 4 1 0", None),
    ("Upsample; 2 2 1.5 1", "upsample", UpsampleAttrs("bilinear", 2.0, 1.5, True), None, None),
    ("Upsample; 1 0 0 0 8 9", "upsample", UpsampleAttrs("nearest", 0.0, 0.0, False, 8, 9),
     None, None),
    ("StridedSlice; 2 0 1 2 0 3 2 1 2", "strided_slice",
     SliceAttrs((0, 1), (0, 3), (0, 1), (1, 2)), None, None),
    ("StridedSliceV2; 1 0 1 2 1 -1 1 -1", "strided_slice_v2",
     SliceAttrs((0,), (2,), (-1,), (-1,)), None, None),
    ("SplitV; 1 1 3", "split_v", SplitAttrs(1, (3,)), None, None),
    ("Split;", "split", NoAttrs(), None, None),
    ("ShuffleChannel;", "shuffle_channel", ShuffleAttrs(1), "ShuffleChannel; 1", None),
    ("PixelShuffle; 2", "pixel_shuffle", ShuffleAttrs(2), None, None),
    ("Cast; 3", "cast", CastAttrs("int32"), None, None),
    ("Gather; 1 0 1", "gather", GatherAttrs(1), None,
     integer(0) + integer(1) + raw([0, 2], "int64", (2,))),
    ("Gather; 0 1 0", "gather", GatherAttrs(0, True, False), None,
     integer(1) + raw([[1.5, 2.5]], dims=(1, 2)) + integer(0)),
    ("Tile; 1 2", "tile", TileAttrs((1, 2)), None, None),
    ("Repeat; 3", "tile", TileAttrs((3,)), "Tile; 3", None),
    ("MatMul; 1", "matmul", MatMulAttrs(1), None, raw(np.eye(3), dims=(3, 3))),
    *(
        (f"Reduce{kind}; 1 2 3", f"reduce_{name}", ReduceAttrs((2, 3)), None, None)
        for kind, name in {
            "Mean": "mean", "Max": "max", "Min": "min", "Sum": "sum", "Prod": "prod", "L1": "l1",
            "L2": "l2", "LogSum": "log_sum", "LogSumExp": "log_sum_exp",
            "SumSquare": "sum_square",
        }.items()
    ),
]  # fmt: skip


@pytest.mark.parametrize(("record", "op", "attrs", "canonical", "payload"), LAYERS)
def test_layer(tmp_path, record, op, attrs, canonical, payload):
    kind, parameters = record.split(";")
    line = f"{kind} layer 1 1 data out{parameters} "
    entries = [] if payload is None else [entry(kind, "layer", payload)]
    graph, (text, _) = rewritten(pair(tmp_path, files.proto([line]), files.model(entries)))
    node = graph.nodes[0]
    assert (node.op, node.attrs) == (op, attrs)
    kind, parameters = (canonical or record).split(";")
    assert records(text)[5] == f"{kind} layer 1 1 data out{parameters}"
    assert all(not array.flags.writeable for array in node.weights.values())


def test_deconvolution_weights_are_input_channels_first(tmp_path):
    payload = string("") + integer(0) + raw(DECONVOLUTION, version=V1)
    line = "Deconvolution up 1 1 data out 2 2 6 1 1 2 2 0 0 0 -1 1 1 0 "
    paths = pair(
        tmp_path, files.proto([line]), files.model([entry("Deconvolution", "up", payload)])
    )
    np.testing.assert_array_equal(tnn.read(paths).nodes[0].weights["weight"], DECONVOLUTION)


def test_constant_layer_and_blobs_as_both_operands(tmp_path):
    lines = [
        "Const value 0 1 value 1 2 ",
        "Add sum 2 1 data value sum 1 ",  # an index of an operand that is not in the model
        "MatMul product 2 1 sum value product ",
        "Gather out 2 1 product value out 0 0 0 ",
    ]
    model = files.model(
        [
            entry("Const", "value", raw([1, 2], "int32", (2,)), 100),
            entry("Gather", "out", integer(0) + integer(0)),
        ]
    )
    graph, (text, _) = rewritten(pair(tmp_path, files.proto(lines), model))
    assert graph.nodes[0].attrs == ConstantAttrs((2,))
    assert graph.nodes[0].weights["value"].dtype == np.int32
    assert [node.attrs for node in graph.nodes[1:3]] == [BinaryAttrs(-1), MatMulAttrs(-1)]
    assert records(text)[6].endswith("sum -1")
    assert not graph.nodes[3].weights


@pytest.mark.parametrize(
    ("record", "op", "attrs"),
    [
        ("QuantizedPooling pool 1 1 data out 0 2 2 2 2 0 0 -1 -1 -1 0 ", "pooling",
         PoolingAttrs("max", 2, 2, 2, 2)),
        ("QuantizedConcat cat 2 1 data data out 1 ", "concat", ConcatAttrs(1)),
        ("QuantizedReLU relu 1 1 data out ", "relu", NoAttrs()),
        ("QuantizedSigmoid s 1 1 data out ", "sigmoid", NoAttrs()),
        ("QuantizedPermute p 1 1 data out 2 1 0 ", "permute", PermuteAttrs((1, 0))),
        ("QuantizedReshape r 1 1 data out 0 1 1 -1 0 ", "reshape", ReshapeAttrs((-1,), 0, 1)),
        ("QuantizedUpsample u 1 1 data out 1 2 2 0 ", "upsample", UpsampleAttrs("nearest", 2, 2)),
    ],
)  # fmt: skip
def test_int8_layers(tmp_path, record, op, attrs):
    model = files.model([files.blob_scale("data", [0.5]), files.blob_scale("out", [0.25], [-7])])
    graph, (text, written) = rewritten(pair(tmp_path, files.proto([record]), model))
    assert (graph.nodes[0].op, graph.nodes[0].attrs, graph.nodes[0].quant) == (
        op, attrs, NodeQuant(),
    )  # fmt: skip
    assert dict(graph.scales) == {"data": QuantParams([0.5]), "out": QuantParams([0.25], [-7])}
    assert records(text)[5].startswith(record.split()[0])
    assert written == model


# --- whole files, byte for byte -----------------------------------------------------------------


@pytest.mark.parametrize("build", [files.float_pair, files.int8_pair])
def test_rewriting_is_the_identity(tmp_path, build):
    _, written = rewritten(pair(tmp_path, *build()))
    assert written == build()


def test_float_graph(tmp_path):
    graph = tnn.read(pair(tmp_path, *files.float_pair()))
    assert graph.inputs == (Blob("data", (1, 3, 4, 4)),)
    assert graph.outputs == ("out",)
    weights = graph.nodes[0].weights
    np.testing.assert_array_equal(weights["weight"], WEIGHT)
    np.testing.assert_array_equal(weights["bias"], BIAS)
    assert graph.nodes[1].weights["constant"].shape == (1, 2, 1, 1)
    assert graph.constants["shape"].tolist() == [1, -1]
    assert graph.nodes[3].inputs == ("prelu", "shape")
    assert not graph.is_quantized
    assert all(
        array.flags.aligned and array.flags.c_contiguous
        for node in graph.nodes
        for array in node.weights.values()
    )


def test_int8_graph(tmp_path):
    graph = tnn.read(pair(tmp_path, *files.int8_pair()))
    convolution, _, _, product = graph.nodes
    np.testing.assert_array_equal(convolution.weights["weight"], (WEIGHT * 8).astype(np.int8))
    assert convolution.weights["weight"].dtype == np.int8
    assert convolution.weights["bias"].dtype == np.int32
    assert convolution.quant == NodeQuant(
        np.array([0.5, 0.25], np.float32), np.array([1, -2], np.int8)
    )
    assert product.weights["weight"].shape == (3, 24)
    assert product.quant.weight_scale.tolist() == [0.125]
    assert graph.scales["conv"] == QuantParams([0.25, 0.0], [3, -4])
    assert list(graph.scales) == ["data", "conv", "relu", "add", "out"]


def test_network_of_the_library(tmp_path):
    graph = small_network()
    paths = formats.save(graph, tmp_path / "small.tnnproto")
    assert paths == (tmp_path / "small.tnnproto", tmp_path / "small.tnnmodel")
    assert formats.load(paths[0]) == graph
    assert formats.load(paths[0], paths[1]) == graph
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_fused_convolution_is_listed_under_its_old_blob_too(tmp_path):
    node = replace(conv("conv", "data", 3, 2, activation="relu"), outputs=("relu",))
    graph = Graph((node,), (Blob("data", (1, 3, 4, 4)),), ("relu",))
    tnn.write(graph, (tmp_path / "a", tmp_path / "b"))
    assert records((tmp_path / "a").read_bytes())[:3] == [
        f"1 3 1 {V2}", "data 4 1 3 4 4 0", "conv data relu",
    ]  # fmt: skip


def test_several_inputs_of_all_types(tmp_path):
    inputs = "data 4 1 3 4 4 0 : ids 2 1 7 5 : half 1 2 1 : scalar 0 3 "
    lines = ["ReLU relu 1 1 data out "]
    paths = pair(tmp_path, files.proto(lines, inputs=inputs), files.model([]))
    graph, (text, _) = rewritten(paths)
    assert graph.inputs == (
        Blob("data", (1, 3, 4, 4)),
        Blob("ids", (1, 7), "int64"),
        Blob("half", (2,), "float16"),
        Blob("scalar", (), "int32"),
    )
    assert records(text)[1] == inputs.strip()


def test_half_weights_stay_half(tmp_path):
    model = files.model([files.convolution("conv", WEIGHT, BIAS, dtype="float16")])
    paths = pair(tmp_path, files.proto([CONVOLUTION]), model)
    graph, (_, written) = rewritten(paths)
    assert graph.nodes[0].weights["weight"].dtype == np.float16
    assert written == model


@pytest.mark.parametrize(
    ("magic", "version", "number"),
    [(V1, V1, 1), (None, V1, 1), (None, V2, 1), (V2, V2, 0), (V2, V1, 1)],
    ids=["v1", "headerless", "headerless v2", "type number 0", "v2 with v1 buffers"],
)
def test_older_model_files(tmp_path, magic, version, number):
    expected = tnn.read(
        pair(
            tmp_path,
            files.proto([CONVOLUTION]),
            files.model([files.convolution("conv", WEIGHT, BIAS)]),
        )
    )
    entries = [files.convolution("conv", WEIGHT, BIAS, version=version, number=number)]
    line = files.proto([CONVOLUTION], inputs="data 1 3 4 4 ", magic=V1)
    old = pair(tmp_path, line, files.model(entries, magic), "old")
    assert tnn.read(old) == expected


def test_layer_count_is_masked(tmp_path):
    model = files.model([files.convolution("conv", WEIGHT, BIAS)], count=0x20000001)
    tnn.read(pair(tmp_path, files.proto([CONVOLUTION]), model))


def test_very_old_model_without_type_strings(tmp_path):
    payload = string("conv") + integer(1) + raw(WEIGHT, version=V1) + raw(BIAS, version=V1)
    model = files.model([integer(1) + string("conv") + payload], None)
    graph = tnn.read(pair(tmp_path, files.proto([CONVOLUTION]), model))
    np.testing.assert_array_equal(graph.nodes[0].weights["weight"], WEIGHT)


def test_old_scale_order(tmp_path):
    tail = raw([0.5, 0.25])
    entries = [
        files.blob_scale("data", [0.125], None),
        files.convolution("conv", np.rint(WEIGHT * 8), [70, -5], tail, dtype="int8"),
        files.blob_scale("out", [0.25], None),
    ]
    paths = pair(tmp_path, files.proto(["Quantized" + CONVOLUTION]), files.model(entries))
    graph, _ = rewritten(paths)
    assert graph.nodes[0].quant.weight_zero_point.tolist() == [0, 0]
    assert graph.nodes[0].quant.weight_scale.tolist() == [0.5, 0.25]
    assert graph.scales == {"data": QuantParams([0.125]), "out": QuantParams([0.25])}


def test_constant_without_dimensions_is_a_vector(tmp_path):
    payload = raw([1.0, 2.0, 3.0], version=V1)
    paths = pair(
        tmp_path, files.proto(["Mul m 1 1 data out "]), files.model([entry("Mul", "m", payload)])
    )
    graph, _ = rewritten(paths)
    assert graph.nodes[0].weights["constant"].shape == (3,)


def test_constant_map(tmp_path):
    constants = {
        "vector": raw([1, -1], "int32", (2,)),
        "scalar": raw([7], "int64"),
        "flat": raw([1, 2], "uint32"),
        "empty": raw([], "int64"),
        "matrix": raw([[1.5, 2.5]], "float32", (1, 2)),
        "old": raw([3, 4], "int8", version=V1),
    }
    lines = ["Reshape out 2 1 data vector out 0 2 2 1 -1 0 "]
    paths = pair(tmp_path, files.proto(lines), files.model([], constants=constants))
    graph, (_, written) = rewritten(paths)
    assert {name: array.shape for name, array in graph.constants.items()} == {
        "vector": (2,), "scalar": (), "flat": (2,), "empty": (0,), "matrix": (1, 2), "old": (2,),
    }  # fmt: skip
    assert graph.constants["scalar"] == 7
    assert written.index(b"empty") < written.index(b"flat") < written.index(b"vector")


def test_int8_layer_reads_a_constant_without_scale(tmp_path):
    model = files.model(
        [files.blob_scale("data", [0.5]), files.blob_scale("out", [0.5])],
        constants={"shape": raw([1, -1], "int32", (2,))},
    )
    line = "QuantizedReshape r 2 1 data shape out 0 2 2 1 -1 0 "
    graph, _ = rewritten(pair(tmp_path, files.proto([line]), model))
    assert list(graph.scales) == ["data", "out"]


def test_foreign_resources_are_ignored(tmp_path):
    entries = [
        files.convolution("other", WEIGHT, BIAS),
        files.blob_scale("data", [0.5]),
        entry("ReLU", "relu", b""),
        entry("MatMul", "m", raw([1, 2], "int8") + raw([0.5])),
        entry("Gather", "g", integer(1) + raw([1], "int8") + integer(0) + raw([0.5])),
        entry("LayerNorm", "n", b""),
    ]
    graph = tnn.read(pair(tmp_path, files.proto(["ReLU relu 1 1 data out "]), files.model(entries)))
    assert not graph.scales
    assert not graph.nodes[0].weights


def test_inner_product_without_bias_ignores_one(tmp_path):
    payload = string("") + raw(np.ones((2, 4))) + raw([1.0, 2.0])
    line = "InnerProduct fc 1 1 data out 2 0 0 1 "
    paths = pair(tmp_path, files.proto([line]), files.model([entry("InnerProduct", "fc", payload)]))
    assert list(tnn.read(paths).nodes[0].weights) == ["weight"]


def test_proto_without_decoration(tmp_path):
    proto, model = files.float_pair()
    expected = tnn.read(pair(tmp_path, proto, model))
    bare = proto.replace(b'"', b"").replace(b"\n", b"").replace(b" ", b"  ")
    assert tnn.read(pair(tmp_path, bare, model, "bare")) == expected
    windows = proto.replace(b"\n", b"\r\n")
    assert tnn.read(pair(tmp_path, windows, model, "windows")) == expected


def test_wrong_counts_and_blob_lists_are_accepted(tmp_path):
    proto = files.proto(["ReLU relu 1 1 data out "], blobs="no such blobs", count=77)
    assert len(tnn.read(pair(tmp_path, proto, files.model([]))).nodes) == 1


def test_layers_are_sorted(tmp_path):
    lines = [
        "Add out 2 1 b c out -1 ", "ReLU c 1 1 b c ", "ReLU b 1 1 a b ", "ReLU a 1 1 data a ",
        "ReLU d 1 1 data d ",
    ]  # fmt: skip
    graph = tnn.read(pair(tmp_path, files.proto(lines), files.model([])))
    assert [node.name for node in graph.nodes] == ["a", "b", "c", "out", "d"]


# --- reference files ----------------------------------------------------------------------------


@pytest.mark.shared
def test_golden_files_are_rewritten_byte_for_byte(shared, tmp_path):
    protos = sorted((shared / "golden").glob("*/b*/*.tnnproto"))
    assert protos
    for path in protos:
        written = formats.save(formats.load(path), tmp_path / "again.tnnproto")
        assert written[0].read_bytes() == path.read_bytes(), path
        assert written[1].read_bytes() == path.with_suffix(".tnnmodel").read_bytes(), path


@pytest.mark.shared
def test_float_models_survive(shared, tmp_path):
    protos = sorted((shared / "models" / "tnn").glob("*.tnnproto"))
    assert protos
    for path in protos:
        graph = formats.load(path)
        first = formats.save(graph, tmp_path / "first.tnnproto")
        again = formats.load(first[0])
        assert again == graph
        second = formats.save(again, tmp_path / "second.tnnproto")
        assert [p.read_bytes() for p in second] == [p.read_bytes() for p in first]


@pytest.mark.shared
def test_structures(shared):
    paths = sorted((shared / "models" / "tnn_benchmark").glob("*.tnnproto"))
    assert paths
    for path in paths:
        graph = tnn.read_structure(path)
        assert graph.is_quantized == path.name.startswith("quant_")
        for node in graph.nodes:
            assert not node.weights
            if node.op == "convolution":
                rows, columns, *_ = tnn.weight_shapes(node)["weight"]
                assert (rows, columns * node.attrs.group) == (
                    node.attrs.out_channels, node.attrs.in_channels,
                )  # fmt: skip


# --- weights for a structure --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "attrs", "shapes"),
    [
        ("convolution", ConvolutionAttrs(2, 4, 6, 3, 1), {"weight": (6, 2, 3, 1), "bias": (6,)}),
        ("deconvolution", ConvolutionAttrs(2, 4, 6, 3, 1), {"weight": (4, 3, 3, 1), "bias": (6,)}),
        ("inner_product", InnerProductAttrs(5), {"weight": (5, 60), "bias": (5,)}),
        ("inner_product", InnerProductAttrs(5, False, axis=2), {"weight": (5, 20)}),
        ("batch_norm", NoAttrs(), {"scale": (3,), "bias": (3,)}),
        ("instance_norm", InstanceNormAttrs(), {"scale": (3,), "bias": (3,)}),
        ("instance_norm", InstanceNormAttrs(7), {"scale": (7,), "bias": (7,)}),
        ("scale", ScaleAttrs(has_bias=False), {"scale": (3,)}),
        ("prelu", PReluAttrs(), {"slope": (3,)}),
        ("prelu", PReluAttrs(True), {"slope": (1,)}),
        ("add", BinaryAttrs(1), {"constant": (1, 3, 1, 1)}),
        ("matmul", MatMulAttrs(1), {"weight": (5, 5)}),
        ("matmul", MatMulAttrs(0), {"weight": (4, 4)}),
        ("constant", ConstantAttrs((2, 3)), {"value": (2, 3)}),
        ("relu", NoAttrs(), {}),
    ],
)
def test_weight_shapes(op, attrs, shapes):
    node = Node("n", op, ("data",), ("out",), attrs)
    assert tnn.weight_shapes(node, (2, 3, 4, 5)) == shapes


def test_weight_shapes_that_cannot_be_told():
    with pytest.raises(GraphError, match="needs that of its input"):
        tnn.weight_shapes(Node("n", "prelu", ("data",), ("out",), PReluAttrs()))
    with pytest.raises(GraphError, match="cannot be told"):
        tnn.weight_shapes(Node("n", "gather", ("data",), ("out",), GatherAttrs()), (2, 3))


def test_structure_alone(tmp_path):
    path = pair(tmp_path, *files.int8_pair())[0]
    graph = tnn.read_structure(path)
    assert all(node.quant == NodeQuant() and not node.weights for node in graph.nodes)
    path = pair(tmp_path, *files.float_pair())[0]
    with pytest.raises(FormatError, match=r"reads blob 'shape', which no earlier node produces"):
        tnn.read_structure(path)


# --- faults in the structure --------------------------------------------------------------------

HEAD = f"1 0 1 {V2} ,data 4 1 3 4 4 0 ,,out ,1 ,"
CONV = "Convolution c 1 1 data out"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n", "more than 5 comma-separated records, found 1"),
        (f"1 0 1 {V2} ,data 1 1 0 ,,out ,1 ", "more than 5"),
        (f"1 0 1 {V2} ,data 1 1 0 ,,out ,1 , ", "at least one layer, found none"),
        (f"1 0 1 {V2} ,data 1 1 0 ,, ,1 ,ReLU r 1 1 data out ", "at least one blob name"),
        (HEAD.replace(str(V2), "5"), "record 0 (header): expected the magic number 4206624770"),
        (HEAD.replace(f"1 {V2}", "1"), "the field magic number, found the end of the record"),
        (HEAD.replace("data 4", "data 5"), "'data': expected 5 dimensions and a data type"),
        (HEAD.replace("4 4 0", "4 x 0"), "an integer >= 1 for dimension, found 'x'"),
        (HEAD.replace("4 4 0", "4 0 0"), "an integer >= 1 for dimension, found '0'"),
        (HEAD.replace("4 4 0", "99999 99999 0"), "a size below 2147483648"),
        (HEAD.replace("4 4 0", "4 4 9"), "data type to be one of 0 (float32)"),
        (HEAD.replace("data 4 1 3 4 4 0", "a 1 1 0 : a 1 1 0"), "that of an earlier input"),
        (HEAD.replace("data 4 1 3 4 4 0", "a 1 1 0 : "), "the field name of an input"),
        (HEAD + "ReLU", "record 5: expected the field name of the layer"),
        (HEAD + "ReLU r", "the field number of inputs"),
        (HEAD + "Relux r 1 1 data out", "did you mean Relu or Relu6?"),
        (HEAD + "Relux r 1 1 data out", "record 5, layer 'r': expected a known type of layer"),
        (HEAD + "Zzz r 1 1 data out", "known: Convolution, "),
        (HEAD + "QuantizedRelu r 1 1 data out", "did you mean QuantizedReLU"),
        (HEAD + "QuantizedSub r 1 1 data out", "a known type of layer, found 'QuantizedSub'"),
        (HEAD + "DynamicRangeQuantizedConvolution r 1 1 data out", "start from the float model"),
        (HEAD + "ReLU r 1 2 data out more", "1 outputs, found 2"),
        (HEAD + "Split r 1 0 data", "at least 1 outputs, found 0"),
        (HEAD + "ReLU r 2 1 data data out", "1 inputs, found 2"),
        (HEAD + "Concat r 0 1 out", "1 or more inputs, found 0"),
        (HEAD + "ReLU r -1 1 data out", "an integer >= 0 for number of inputs, found '-1'"),
        (HEAD + "Concat r 3 1 data out", "3 blob names, found 2 words"),
        (HEAD + "Concat r 50000 1 data out", "50000 blob names"),
        (HEAD + f"Concat r {'9' * 5000} 1 data out", "an integer >= 0 for number of inputs"),
        (HEAD + "ReLU r 1 1 data out ,ReLU r 1 1 data b", "record 6, layer 'r' (ReLU): expected a"),
        (HEAD + "ReLU r 1 1 data out ,ReLU s 1 1 data out", "blob 'out', which exists already"),
        (HEAD + "ReLU r 1 1 x out ,ReLU s 1 1 out x", "layers without a cycle"),
        (HEAD + "ReLU r 1 1 nothing out", "reads blob 'nothing'"),
        (HEAD + "ReLU r 1 1 data other", "output 'out': expected a sound network"),
        (HEAD + "ReLU r 1 1 data data", "blob 'data', which exists already"),
        (HEAD + CONV, "the field group, found the end of the record"),
        (HEAD + CONV + " 0 1 1 1 1 1 1 0 0 0", "an integer >= 1 for group, found '0'"),
        (HEAD + CONV + " 2 1 3 1 1 1 1 0 0 0", "output channels divisible by 2 groups, found 3"),
        (HEAD + CONV + " 1 1 1 0 1 1 1 0 0 0", "an integer >= 1 for kernel_h"),
        (HEAD + CONV + " 1 1 1 1 1 1 0 0 0 0", "an integer >= 1 for stride_w"),
        (HEAD + CONV + " 1 1 1 1 1 1 1 -1 0 0", "an integer >= 0 for pad_h"),
        (HEAD + CONV + " 1 1 1 1 1 1 1 0 0 0 2", "pad_type to be one of -1 (explicit)"),
        (HEAD + CONV + " 1 1 1 1 1 1 1 0 0 0 -1 0", "an integer >= 1 for dilation_h"),
        (HEAD + CONV + " 1 1 1 1 1 1 1 0 0 0 -1 1 1 7", "activation_type to be one of 0 (none)"),
        (HEAD + "Pooling p 1 1 data out 2 1 1 1 1 0 0", "pool_type to be one of 0 (max)"),
        (HEAD + "Pooling p 1 1 data out 0 0 1 1 1 0 0", "a kernel of 0 x 0 for the whole image"),
        (HEAD + "Pooling p 1 1 data out 0 2 2 0 1 0 0", "kernel 2 x 2, stride 0 x 1"),
        (HEAD + "Pooling p 1 1 data out 0 2 2 1 1 0 0 -1 -1 -1 0 1", "adaptive pooling"),
        (HEAD + "Mul m 1 1 data out -1", "a second blob, or weight_input_index 0 or 1, found -1"),
        (HEAD + "MatMul m 1 1 data out -1", "a second blob, or weight_position 0 or 1, found -1"),
        (HEAD + "Permute p 1 1 data out 4 0 1", "4 order, found 2 words"),
        (HEAD + "Permute p 1 1 data out 2147483647 0 1", "2147483647 order, found 2 words"),
        (HEAD + "PadV2 p 1 1 data out 2147483647 0 1", "4294967294 pads, found 2 words"),
        (HEAD + "Elu e 1 1 data out nan", "a number for alpha, found 'nan'"),
        (HEAD + "Elu e 1 1 data out 1e999", "a number for alpha, found '1e999'"),
        (HEAD + "Elu e 1 1 data out 1_0", "a number for alpha, found '1_0'"),
        (HEAD + "StridedSlice s 1 1 data out 1 0 2 1 1 1 1", "as many begins, ends"),
        (HEAD + "StridedSlice s 1 1 data out 1 0 1 1 1 0", "strides not 0"),
    ],
)  # fmt: skip
def test_faulty_structure(tmp_path, text, message):
    path = tmp_path / "net.tnnproto"
    path.write_text(text)
    with pytest.raises(FormatError) as caught:
        tnn.read_structure(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_structure_that_is_not_text(tmp_path):
    path = tmp_path / "net.tnnproto"
    path.write_bytes(HEAD.encode() + b"ReLU \xff 1 1 data out")
    with pytest.raises(FormatError, match=f"byte {len(HEAD) + 5}: expected UTF-8 text"):
        tnn.read_structure(path)


# --- faults in the model ------------------------------------------------------------------------

ONE = files.convolution("conv", WEIGHT, BIAS)
TAIL = raw([0, 0], "int8") + raw([0.5, 0.25])
INT8 = files.convolution("conv", np.rint(WEIGHT * 8), [70, -5], TAIL, dtype="int8")
SCALES = [files.blob_scale("data", [0.125]), files.blob_scale("out", [0.5])]


def changed(values, index, value):
    result = np.array(values)
    result.flat[index] = value
    return result


def int8_model(tail=TAIL, scales=SCALES, bias=(70, -5)):
    weight = np.rint(WEIGHT * 8)
    return files.model([files.convolution("conv", weight, bias, tail, dtype="int8"), *scales])


@pytest.mark.parametrize(
    ("record", "model", "message"),
    [
        (CONVOLUTION, b"\0", "byte 0: expected 4 bytes of magic number, found 1 before the end"),
        (CONVOLUTION, b"\x03\0\xbc\xfa", "the magic number 0XFABC0002 or 0XFABC0004"),
        (CONVOLUTION, files.model([ONE], 0xFABC0003), "byte 0: expected the magic number"),
        (CONVOLUTION, files.model([], count=10_000), "a number of layers below 10000"),
        (CONVOLUTION, files.model([ONE], count=2), "layer 2 of 2: expected 4 bytes of number of"),
        (CONVOLUTION, files.model([ONE])[:-1], "conv' (Convolution): expected 8 bytes of bias"),
        (CONVOLUTION, files.model([ONE]) + b"abc", "the end of the file, found 3 more bytes"),
        (CONVOLUTION, files.model([ONE, ONE]), "layer 2 of 2, 'conv' (Convolution): expected a na"),
        (CONVOLUTION, files.model([]), "a resource for record 5, layer 'conv' (Convolution)"),
        (CONVOLUTION, files.model([entry("Convolutoin", "conv", b"")]), "did you mean Convolution"),
        (CONVOLUTION, files.model([integer(-1)]), "number of the layer type 0 to 10000, found -1"),
        (CONVOLUTION, files.model([integer(1) + integer(-5)]), "length of type of layer >= 0"),
        (CONVOLUTION, files.model([integer(1) + integer(2**31 - 1)]), "2147483647 bytes of type"),
        (CONVOLUTION, files.model([integer(1) + integer(1) + b"\xff"]), "type of layer in UTF-8"),
        (CONVOLUTION, files.model([entry("Convolution", "conv", string("") + integer(7))]),
         "has_bias 0 to 1, found 7"),
        (CONVOLUTION, files.model([files.convolution("conv", WEIGHT)]),
         "bias, as the .tnnproto says, found none"),
        (CONVOLUTION.replace(" 1 -1 1 1 0", " 0 -1 1 1 0"), files.model([ONE]),
         "no bias, as the .tnnproto says"),
        (CONVOLUTION, files.model([files.convolution("conv", WEIGHT[:1], BIAS)]),
         "weight of 2 x 3 x 3 x 2 values, found 18 values"),
        (CONVOLUTION, files.model([files.convolution("conv", WEIGHT, BIAS[:1])]),
         "bias of 2 values, found 1 values"),
        (CONVOLUTION, files.model([files.convolution("conv", changed(WEIGHT, 5, np.nan), BIAS)]),
         "weight of record 5, layer 'conv' (Convolution): expected finite numbers, found 1 values"),
        (CONVOLUTION, files.model([files.convolution("conv", WEIGHT, changed(BIAS, 0, np.inf))]),
         "bias of record 5"),
        (CONVOLUTION, files.model([INT8]), "weight as float32 or float16, found int8"),
        ("Quantized" + CONVOLUTION, files.model([ONE, *SCALES]), "weight as int8, found float32"),
        ("Quantized" + CONVOLUTION, int8_model(raw([1, 2], "int32")),
         "scale as float32, found int32"),
        ("Quantized" + CONVOLUTION, int8_model(raw([0, 0, 0], "int8") + raw([1, 2, 3])),
         "1 or 2 scales, found 3"),
        ("Quantized" + CONVOLUTION, int8_model(raw([0], "int8") + raw([1, 2])),
         "2 zero points, found 1"),
        ("Quantized" + CONVOLUTION, int8_model(raw([-1.0, 1.0])), "finite and >= 0"),
        ("Quantized" + CONVOLUTION, int8_model(raw([np.nan, 1.0])), "finite and >= 0"),
        ("Quantized" + CONVOLUTION, int8_model(raw([])), "finite and >= 0"),
        ("Quantized" + CONVOLUTION, int8_model(scales=SCALES[:1]), "the scale of blob 'out' of"),
        ("Quantized" + CONVOLUTION,
         int8_model(scales=[SCALES[0], entry("Mul", "out_scale_data_", raw([1.0]))]),
         "the scale of blob 'out' of"),
        ("BatchNormCxx b 1 1 data out ",
         files.model([entry("BatchNormCxx", "b", raw([1.0]) + raw([1.0, 2.0]))]),
         "as many biases as scales, found [1, 2]"),
        ("BatchNormCxx b 1 1 data out ",
         files.model([entry("BatchNormCxx", "b", raw([]) + raw([]))]), "found 0 values"),
        ("InnerProduct f 1 1 data out 2 0 0 1 ",
         files.model([entry("InnerProduct", "f", string("f") + raw([1.0] * 5) + raw([]))]),
         "weight of 2 x 2 values, found 5 values"),
        ("PReLU p 1 1 data out 1 0 ",
         files.model([entry("PReLU", "p", string("p") + raw([1.0] * 2))]), "slope of 1 values"),
        ("Mul m 1 1 data out 1 ", files.model([]), "a resource for record 5, layer 'm' (Mul)"),
        ("Mul m 1 1 data out 1 ", files.model([entry("Mul", "m", raw([1, 2], "int32"))]),
         "constant as float32 or float16, found int32"),
        ("Gather g 1 1 data out 0 0 1 ",
         files.model([entry("Gather", "g", integer(0) + integer(0))]), "indices, as the"),
        ("ReLU r 1 1 data out ", files.model([], constants={"a": raw([1.0])}) + b"\0",
         "byte 41: expected the end of the file, found 1 more bytes"),
        ("ReLU r 1 1 data out ", files.model([], constants={"a": raw([1.0])})[:-1],
         "constant 1 of 1, 'a': expected 4 bytes of value, found 3"),
        ("ReLU r 1 1 data out ", files.model([]) + integer(0) + integer(2**31 - 1),
         "constant 1 of 2147483647: expected 4 bytes of length of name"),
        ("ReLU r 1 1 data out ", files.model([]) + integer(0) + integer(-1),
         "number of constants >= 0, found -1"),
        ("ReLU r 1 1 data out ",
         files.model([]) + integer(0) + integer(2) + 2 * (string("a") + raw([1.0])),
         "constant 2 of 2, 'a': expected a name of its own"),
    ],
)  # fmt: skip
def test_faulty_model(tmp_path, record, model, message):
    paths = pair(tmp_path, files.proto([record]), model)
    with pytest.raises(FormatError) as caught:
        tnn.read(paths)
    assert str(caught.value).startswith(f"{paths[1]}: ")
    assert message in str(caught.value)


def buffer_of(*numbers, data=b""):
    return b"".join(integer(n - 2**32 if n >= 2**31 else n) for n in numbers) + data


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (buffer_of(0xFABC0003, 0, 4, 0, data=bytes(4)), "with the magic number 0XFABC0002"),
        (buffer_of(V2, 7, 4, 0, data=bytes(4)), "with a data type 0 to 6, found 7"),
        (buffer_of(V2, 0, -4), "byte length of constant >= 0, found -4"),
        (buffer_of(V2, 0, 2**31 - 1), "4 bytes of rank of constant"),
        (buffer_of(V1, 0, 2**31 - 4), "2147483644 bytes of constant, found 0 before the end"),
        (buffer_of(V2, 0, 4, 2**31 - 1, data=bytes(4)), "rank of constant 0 to 16"),
        (buffer_of(V2, 0, 4, 1, -1, data=bytes(4)), "dimension of constant >= 0, found -1"),
        (buffer_of(V2, 0, 4, 1, 2, data=bytes(4)), "constant of 2 elements of 4 bytes, found a le"),
        (buffer_of(V2, 0, 4, 2, 2**31 - 1, 2**31 - 1, data=bytes(4)), "2147483647x2147483647"),
        (buffer_of(V2, 0, 3, 0, data=bytes(3)), "elements of 4 bytes, found a length of 3 bytes"),
        (buffer_of(V2, 4, 2, 0, data=bytes(2)), "constant as float32 or float16, found bfloat16"),
    ],
)
def test_faulty_buffer(tmp_path, buffer, message):
    model = files.model([entry("Mul", "m", buffer)])
    paths = pair(tmp_path, files.proto(["Mul m 1 1 data out 1 "]), model)
    with pytest.raises(FormatError) as caught:
        tnn.read(paths)
    assert message in str(caught.value)
    assert "byte 8, layer 1 of 1" in str(caught.value) or "'m' (Mul)" in str(caught.value)


def test_constants_of_bfloat16_are_refused(tmp_path):
    constants = {"a": buffer_of(V2, 4, 2, 0, data=bytes(2))}
    paths = pair(
        tmp_path, files.proto(["ReLU r 1 1 data out "]), files.model([], constants=constants)
    )
    with pytest.raises(FormatError, match=r"constant 'a': expected value as .*, found bfloat16"):
        tnn.read(paths)


# --- faults of whole files ----------------------------------------------------------------------


def test_swapped_files(tmp_path):
    proto, model = pair(tmp_path, *files.float_pair())
    with pytest.raises(FormatError, match=r"looks like a .tnnmodel; were -p and -m swapped\?"):
        tnn.read((model, proto))
    with pytest.raises(FormatError, match=r"looks like a .tnnproto; were -p and -m swapped\?"):
        tnn.read((proto, proto))


@pytest.mark.parametrize("which", [0, 1])
def test_files_that_cannot_be_read(tmp_path, which):
    paths = list(pair(tmp_path, *files.float_pair()))
    suffix = paths[which].suffix
    paths[which].write_bytes(b"")
    with pytest.raises(FormatError, match=f"expected a {suffix}, found an empty file"):
        tnn.read(paths)
    paths[which].unlink()
    with pytest.raises(FormatError, match=f"expected a {suffix}, found no such file"):
        tnn.read(paths)
    paths[which].mkdir()
    with pytest.raises(FormatError, match=f"expected a {suffix}, found is a directory"):
        tnn.read(paths)
    paths[which] = Path("a\0b")
    with pytest.raises(FormatError, match="a name that no file can have"):
        tnn.read(paths)


# --- what cannot be written ---------------------------------------------------------------------

DATA = Blob("data", (1, 3, 4, 4))


def graph_of(*nodes, inputs=(DATA,), **options):
    return Graph(nodes, inputs, (nodes[-1].outputs[0],), **options)


def node_of(op, attrs=None, weights=None, quant=None, name="n"):
    return Node(name, op, ("data",), ("out",), attrs or NoAttrs(), weights or {}, quant)


def conv_of(**changes):
    node = conv("n", "data", 3, 2, kernel=3)
    return replace(node, attrs=replace(node.attrs, **changes))


ONES = np.ones((2, 3), np.float32)
CODES = {"weight": np.ones((2, 3), np.int8)}
SOUND = {name: QuantParams([1.0]) for name in ("data", "out")}
STEPS = NodeQuant(np.ones(1, np.float32), np.zeros(1, np.int8))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (graph_of(conv_of(pads=(0, 1, 0, 1))), "node 'n': .*cannot be written; put a pad layer"),
        (graph_of(conv_of(fusion="add_activation")), "node 'n': a fused add exists in memory only"),
        (graph_of(conv_of(activation="tanh")), "node 'n': TNN cannot express 'tanh'"),
        (graph_of(conv_of(pad_mode="full")), "node 'n': TNN cannot express 'full'"),
        (graph_of(conv_of(out_channels=4)), r"weight must be \(4, 3, 3, 3\), is \(2, 3, 3, 3\)"),
        (graph_of(replace(conv_of(), weights={})), r"TNN stores the weights \['bias', 'weight'\]"),
        (graph_of(node_of("pooling", PoolingAttrs("average", 2, 2, pads=(1, 1, 1, 1),
                                                  count_include_pad=True))), "count_include_pad"),
        (graph_of(node_of("pooling", PoolingAttrs("max", 2, 2, pads=(0, 1, 0, 1)))), "pad layer"),
        (graph_of(node_of("pad", PadAttrs((0, 1), (0, 1)))), "use pad_v2"),
        (graph_of(node_of("pad", PadAttrs((1, 0, 0, 0), (0, 0, 0, 0)))), "use pad_v2"),
        (graph_of(node_of("strided_slice", SliceAttrs((0,), (1,), (1,), (1,)))),
         "use strided_slice_v2"),
        (graph_of(node_of("quantize")), "node 'n': TNN has no layer for a 'quantize'"),
        (graph_of(node_of("sub", BinaryAttrs(), quant=NodeQuant())), "for an int8 'sub'"),
        (graph_of(node_of("relu", quant=NodeQuant())), "blob 'data': int8 node 'n' needs its sca"),
        (graph_of(node_of("relu", weights={"scale": ONES})), r"the weights \[\], there are"),
        (graph_of(node_of("add", BinaryAttrs(0), {"constant": ONES * np.nan})), "not finite"),
        (graph_of(node_of("add", BinaryAttrs(0), {"constant": ONES.astype(np.int32)})),
         "constant must be float32 or float16, is int32"),
        (graph_of(node_of("inner_product", InnerProductAttrs(2, False), CODES), scales=SOUND),
         "weight must be float32 or float16, is int8"),
        (graph_of(node_of("inner_product", InnerProductAttrs(2, False), {"weight": ONES}, STEPS),
                  scales=SOUND), "weight must be int8, is float32"),
        (graph_of(node_of("inner_product", InnerProductAttrs(3, False), {"weight": ONES})),
         "weight must have 3 rows"),
        (graph_of(node_of("inner_product", InnerProductAttrs(2, False), {"weight": ONES[0]})),
         "weight must have 2 rows"),
        (graph_of(node_of("cast", CastAttrs("bool"))), "node 'n': TNN cannot express 'bool'"),
        (graph_of(node_of("relu"), constants={"c": np.zeros(1, np.float64)}),
         "constant 'c': TNN has no data type float64"),
        (graph_of(node_of("relu"), inputs=(replace(DATA, dtype="float64"),)),
         "input 'data': TNN has no data type 'float64'"),
        (graph_of(node_of("relu"), inputs=(DATA, Blob("in:0", (1,)))), "input 'in:0': .*':'"),
        (graph_of(node_of("relu", name="")), "node '': a TNN file cannot hold"),
        (graph_of(node_of("relu"), node_of("relu")), "a second node has this name"),
        *(
            (graph_of(node_of("relu", name=f"a{char}b")), "node 'a.*cannot hold a name with")
            for char in (",", '"', " ", "\n", "\x01", "\u00a0")
        ),
        (graph_of(replace(node_of("relu"), outputs=("a b",))), "blob 'a b': a TNN file cannot"),
    ],
)  # fmt: skip
def test_graphs_that_tnn_cannot_hold(tmp_path, graph, message):
    paths = (tmp_path / "a.tnnproto", tmp_path / "a.tnnmodel")
    for path in paths:
        path.write_bytes(b"old")
    with pytest.raises(GraphError, match=message):
        tnn.write(graph, paths)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert [path.read_bytes() for path in paths] == [b"old", b"old"]


def test_padding_of_an_average_over_a_whole_kernel_may_be_written(tmp_path):
    attrs = PoolingAttrs("average", 2, 2, 2, 2, count_include_pad=True)
    paths = (tmp_path / "a.tnnproto", tmp_path / "a.tnnmodel")
    tnn.write(graph_of(node_of("pooling", attrs)), paths)
    assert tnn.read(paths).nodes[0].attrs == replace(attrs, count_include_pad=False)


@pytest.mark.parametrize("quant", [None, STEPS])
def test_transposed_weights_are_written_by_rows(tmp_path, quant):
    values = np.arange(6).reshape(3, 2).astype(np.float32 if quant is None else np.int8)
    node = node_of("inner_product", InnerProductAttrs(2, False, True), {"weight": values}, quant)
    paths = (tmp_path / "a.tnnproto", tmp_path / "a.tnnmodel")
    tnn.write(graph_of(node, scales=SOUND), paths)
    back = tnn.read(paths).nodes[0]
    assert not back.attrs.transpose
    np.testing.assert_array_equal(back.weights["weight"], values.T)


def test_weights_of_the_other_byte_order(tmp_path):
    weights = {"constant": ONES.astype(">f4")}
    paths = (tmp_path / "a.tnnproto", tmp_path / "a.tnnmodel")
    tnn.write(graph_of(node_of("add", BinaryAttrs(1), weights)), paths)
    np.testing.assert_array_equal(tnn.read(paths).nodes[0].weights["constant"], ONES)


def test_quantized_relu_has_tnns_spelling(tmp_path):
    paths = (tmp_path / "a.tnnproto", tmp_path / "a.tnnmodel")
    tnn.write(graph_of(node_of("relu", quant=NodeQuant()), scales=SOUND), paths)
    assert b'"QuantizedReLU n 1 1 data out ,"' in paths[0].read_bytes()


def test_targets_that_cannot_be_written(tmp_path):
    graph = graph_of(node_of("relu"))
    good = tmp_path / "a.tnnproto"
    folder = tmp_path / "a.tnnmodel"
    folder.mkdir()
    with pytest.raises(FormatError, match="expected a file name, found a folder"):
        tnn.write(graph, (good, folder))
    with pytest.raises(FormatError, match="expected two files, found one name for both"):
        tnn.write(graph, (good, good))
    with pytest.raises(FileNotFoundError):
        tnn.write(graph, (good, tmp_path / "nowhere" / "a.tnnmodel"))
    assert list(tmp_path.iterdir()) == [folder]


def test_format_is_found_by_suffix(tmp_path):
    with pytest.raises(UnsupportedError, match=r"unknown model file suffix '.zip'; .*\.tnnproto"):
        formats.load(tmp_path / "net.zip")
    with pytest.raises(UnsupportedError, match=r"unknown model file suffix 'net'"):
        formats.save(graph_of(node_of("relu")), tmp_path / "net")


def test_parts_of_a_format_are_not_formats():
    assert formats.registry()["tnn"].suffixes == (".tnnproto", ".tnnmodel")
    assert not any(name.startswith("_") for name in formats.registry())
