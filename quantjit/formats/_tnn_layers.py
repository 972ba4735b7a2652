"""The layers of TNN: one codec per type, from the words of a record to attributes and back.

Parameters are positional; heights come before widths.  What may be missing at the end of a record
has the default that TNN gives it (``source/tnn/interpreter/tnn/layer_interpreter/``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from quantjit.errors import FormatError, GraphError
from quantjit.formats._tnn_fields import LIMIT, Fields, shown
from quantjit.graph import Node
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

DTYPES = {
    0: "float32",
    1: "float16",
    2: "int8",
    3: "int32",
    4: "bfloat16",
    5: "int64",
    6: "uint32",
}
_PAD_MODES = {-1: "explicit", 0: "same", 1: "valid"}
_DECONVOLUTION_PAD_MODES = _PAD_MODES | {2: "full", 3: "output"}
_POOLINGS = {0: "max", 1: "average"}
_ACTIVATIONS = {0: "none", 1: "relu", 2: "relu6", 256: "swish"}
_PADDINGS = {0: "constant", 1: "reflect", 2: "edge"}
_RESIZINGS = {1: "nearest", 2: "bilinear", 3: "cubic"}
_LAYOUTS = {0: "nchw", 1: "nhwc"}

Words = Iterator[object]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One positional parameter: the attribute it sets, how it is read and how it is written."""

    attr: str
    read: Callable[[Fields], Any]
    words: Callable[[Any], Sequence[object]]


@dataclass(frozen=True, slots=True)
class Codec:
    """How one type of layer is read and written.

    type_string: as written, int8 with "Quantized" before it where `int8`.  aliases: also read.
    inputs: how many blobs it may read, lowest and highest; outputs: how many it writes, 0: any.
    """

    op: str
    type_string: str
    parse: Callable[[Fields, int], Any]
    words: Callable[[Node], Words]
    inputs: tuple[int, int] = (1, 1)
    outputs: int = 1
    int8: bool = False
    aliases: tuple[str, ...] = ()


def _integer(attr: str, default: int | None = None, *, least: int = -LIMIT) -> Parameter:
    return Parameter(attr, lambda f: f.integer(attr, default, least=least), lambda v: (int(v),))


def _flag(attr: str, default: int | None = None) -> Parameter:
    return Parameter(attr, lambda f: f.integer(attr, default) != 0, lambda v: (int(v),))


def _number(attr: str, default: float | None = None, *, finite: bool = True) -> Parameter:
    return Parameter(
        attr, lambda f: f.number(attr, default, finite=finite), lambda v: (_decimal(v),)
    )


def _choice(attr: str, names: Mapping[int, str], default: int | None = None) -> Parameter:
    return Parameter(
        attr, lambda f: f.choice(attr, names, default), lambda v: (number_of(names, v),)
    )


def _counted(attr: str) -> Parameter:
    return Parameter(attr, lambda f: f.counted(attr), _with_count)


def _rest(attr: str) -> Parameter:
    return Parameter(attr, lambda f: f.rest(attr), lambda v: v)


def _with_count(values: Sequence[int]) -> tuple[int, ...]:
    return (len(values), *values)


def _decimal(value: float) -> str:
    """As C++ streams write it, 6 digits, where that is exact, else as many as it takes."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _simple(
    op: str, type_string: str, attrs: type = NoAttrs, *parameters: Parameter, **options: Any
) -> Codec:
    """Make the codec of a layer whose parameters are its attributes, one by one."""

    def parse(fields: Fields, count: int) -> Any:
        del count
        return attrs(**{item.attr: item.read(fields) for item in parameters})

    def words(node: Node) -> Words:
        for item in parameters:
            yield from item.words(getattr(node.attrs, item.attr))

    return Codec(op, type_string, parse, words, **options)


def _parse_convolution(
    pad_modes: Mapping[int, str], fields: Fields, count: int
) -> ConvolutionAttrs:
    del count
    group = fields.integer("group", least=1)
    in_channels = group * fields.integer("input channels per group", least=1)
    out_channels = fields.integer("output channels", least=1)
    if out_channels % group:
        raise fields.error(f"output channels divisible by {group} groups", str(out_channels))
    kernel_h, kernel_w = (fields.integer(f"kernel_{side}", least=1) for side in "hw")
    stride_h, stride_w = (fields.integer(f"stride_{side}", least=1) for side in "hw")
    pad_h, pad_w = (fields.integer(f"pad_{side}", least=0) for side in "hw")
    has_bias = fields.integer("bias") != 0
    pad_mode = fields.choice("pad_type", pad_modes, 0)
    dilation_h, dilation_w = (fields.integer(f"dilation_{side}", 1, least=1) for side in "hw")
    activation = fields.choice("activation_type", _ACTIVATIONS, 0)
    return ConvolutionAttrs(
        group,
        in_channels,
        out_channels,
        kernel_h,
        kernel_w,
        stride_h,
        stride_w,
        (pad_h, pad_h, pad_w, pad_w),
        pad_mode,
        dilation_h,
        dilation_w,
        has_bias,
        activation,
    )


def _convolution_words(pad_modes: Mapping[int, str], node: Node) -> Words:
    attrs: ConvolutionAttrs = node.attrs
    if attrs.fusion != "none":
        raise GraphError(f"node {node.name!r}", "a fused add exists in memory only, not in a file")
    yield from (attrs.group, attrs.in_channels // attrs.group, attrs.out_channels)
    yield from (attrs.kernel_h, attrs.kernel_w, attrs.stride_h, attrs.stride_w)
    yield from _pad_words(node)
    yield from (int(attrs.has_bias), number_of(pad_modes, attrs.pad_mode))
    yield from (attrs.dilation_h, attrs.dilation_w)
    yield number_of(_ACTIVATIONS, attrs.activation)


def _pad_words(node: Node) -> tuple[int, int]:
    top, bottom, left, right = node.attrs.pads
    if (top, left) != (bottom, right):
        raise GraphError(
            f"node {node.name!r}",
            f"TNN has one pad_h and one pad_w, pads {node.attrs.pads} (top, bottom, left, right) "
            "cannot be written; put a pad layer before it",
        )
    return top, left


def number_of(names: Mapping[int, str], name: str) -> int:
    """Return the number that stands for a name; KeyError if TNN has none."""
    return {known: number for number, known in names.items()}[name]


def _parse_pooling(fields: Fields, count: int) -> PoolingAttrs:
    del count
    kind = fields.choice("pool_type", _POOLINGS)
    kernel_h, kernel_w = (fields.integer(f"kernel_{side}", least=0) for side in "hw")
    stride_h, stride_w = (fields.integer(f"stride_{side}", least=0) for side in "hw")
    pad_h, pad_w = (fields.integer(f"pad_{side}", least=0) for side in "hw")
    index_h, index_w = (fields.integer(f"kernel_index_{side}", -1) for side in "hw")
    pad_mode = fields.choice("pad_type", _PAD_MODES, 0)
    ceil_mode = fields.integer("ceil_mode", 0) != 0
    adaptive = fields.integer("is_adaptive", 0) != 0
    output_h, output_w = (fields.integer(f"output_{side}", 0) for side in "hw")
    is_global = (kernel_h, kernel_w) == (0, 0)
    if adaptive:
        if output_h < 1 or output_w < 1:
            raise fields.error("a size of an adaptive pooling", f"{output_h} x {output_w}")
    elif not is_global and 0 in (kernel_h, kernel_w, stride_h, stride_w):
        raise fields.error(
            "kernels and strides >= 1, or a kernel of 0 x 0 for the whole image",
            f"kernel {kernel_h} x {kernel_w}, stride {stride_h} x {stride_w}",
        )
    return PoolingAttrs(
        kind,
        kernel_h,
        kernel_w,
        stride_h,
        stride_w,
        (pad_h, pad_h, pad_w, pad_w),
        pad_mode,
        ceil_mode,
        adaptive,
        output_h,
        output_w,
        index_h,
        index_w,
    )


def _pooling_words(node: Node) -> Words:
    attrs: PoolingAttrs = node.attrs
    if attrs.count_include_pad and attrs.kind == "average" and any(attrs.pads):
        raise GraphError(
            f"node {node.name!r}",
            "TNN averages over the valid values only, count_include_pad cannot be written; "
            "put a pad layer before it",
        )
    yield from (number_of(_POOLINGS, attrs.kind), attrs.kernel_h, attrs.kernel_w)
    yield from (attrs.stride_h, attrs.stride_w)
    yield from _pad_words(node)
    yield from (attrs.kernel_index_h, attrs.kernel_index_w)
    yield from (number_of(_PAD_MODES, attrs.pad_mode), int(attrs.ceil_mode), int(attrs.adaptive))
    # TNN's packer swaps these two, its reader does not
    yield from (attrs.output_h, attrs.output_w)


def _parse_inner_product(fields: Fields, count: int) -> InnerProductAttrs:
    del count
    out_features = fields.integer("num_output", least=1)
    has_bias = fields.integer("has_bias") != 0
    fields.integer("transpose")  # no device reads it: weights are (num_output, K) either way
    return InnerProductAttrs(out_features, has_bias, False, fields.integer("axis"))


def _inner_product_words(node: Node) -> Words:
    yield from (node.attrs.out_features, int(node.attrs.has_bias), 0, node.attrs.axis)


def _parse_binary(fields: Fields, count: int) -> BinaryAttrs:
    index = fields.integer("weight_input_index", 1)
    if count > 1:
        return BinaryAttrs(-1)
    if index not in (0, 1):
        raise fields.error("a second blob, or weight_input_index 0 or 1", str(index))
    return BinaryAttrs(index)


def _parse_matmul(fields: Fields, count: int) -> MatMulAttrs:
    index = fields.integer("weight_position", -1)
    if count > 1:
        return MatMulAttrs(-1)
    if index not in (0, 1):
        raise fields.error("a second blob, or weight_position 0 or 1", str(index))
    return MatMulAttrs(index)


def _constant_index_words(node: Node) -> Words:
    yield node.attrs.constant_index if len(node.inputs) == 1 else -1


def _parse_pad(fields: Fields, count: int) -> PadAttrs:
    del count
    fields.integer("unused")
    fields.integer("unused")
    names = ("top", "bottom", "left", "right", "channel begin", "channel end")
    top, bottom, left, right, first, last = (fields.integer(name) for name in names)
    kind = fields.choice("type", _PADDINGS, 0)
    return PadAttrs(
        (0, first, top, left), (0, last, bottom, right), kind, fields.number("value", 0.0)
    )


def _pad_layer_words(node: Node) -> Words:
    attrs: PadAttrs = node.attrs
    if len(attrs.begins) != 4 or attrs.begins[0] or attrs.ends[0]:
        raise GraphError(
            f"node {node.name!r}", "a TNN Pad is for NCHW without padding of N; use pad_v2"
        )
    yield from (0, 0, attrs.begins[2], attrs.ends[2], attrs.begins[3], attrs.ends[3])
    yield from (attrs.begins[1], attrs.ends[1], number_of(_PADDINGS, attrs.kind))
    yield _decimal(attrs.value)


def _parse_pad_v2(fields: Fields, count: int) -> PadAttrs:
    del count
    rank = fields.integer("rank", least=0)
    if 2 * rank > fields.left():
        raise fields.error(f"{2 * rank} pads", f"{fields.left()} words")
    begins = tuple(fields.integer("begin") for _ in range(rank))
    ends = tuple(fields.integer("end") for _ in range(rank))
    return PadAttrs(begins, ends, fields.choice("type", _PADDINGS, 0), fields.number("value", 0.0))


def _pad_v2_words(node: Node) -> Words:
    attrs: PadAttrs = node.attrs
    yield from (len(attrs.begins), *attrs.begins, *attrs.ends)
    yield from (number_of(_PADDINGS, attrs.kind), _decimal(attrs.value))


def _parse_strided_slice(fields: Fields, count: int) -> SliceAttrs:
    del count
    begins, ends, strides = (fields.counted(name) for name in ("begins", "ends", "strides"))
    return _slice(fields, begins, ends, tuple(range(len(begins))), strides)


def _strided_slice_words(node: Node) -> Words:
    attrs: SliceAttrs = node.attrs
    if attrs.axes != tuple(range(len(attrs.begins))):
        raise GraphError(
            f"node {node.name!r}", "a TNN StridedSlice takes all axes; use strided_slice_v2"
        )
    for values in (attrs.begins, attrs.ends, attrs.strides):
        yield from _with_count(values)


def _parse_strided_slice_v2(fields: Fields, count: int) -> SliceAttrs:
    del count
    names = ("begins", "ends", "axes", "strides")
    return _slice(fields, *(fields.counted(name) for name in names))


def _strided_slice_v2_words(node: Node) -> Words:
    attrs: SliceAttrs = node.attrs
    for values in (attrs.begins, attrs.ends, attrs.axes, attrs.strides):
        yield from _with_count(values)


def _slice(fields: Fields, *parts: tuple[int, ...]) -> SliceAttrs:
    sizes = [len(part) for part in parts]
    if len(set(sizes)) > 1 or 0 in parts[-1]:
        raise fields.error("as many begins, ends, axes and strides, strides not 0", str(parts))
    return SliceAttrs(*parts)


def _parse_upsample(fields: Fields, count: int) -> UpsampleAttrs:
    del count
    mode = fields.choice("mode", _RESIZINGS)
    scale_h, scale_w = (fields.number(f"scale_{side}") for side in "hw")
    align_corners = fields.integer("align_corners", 0) != 0
    output_h = output_w = 0
    if fields.left() > 1:  # both or neither
        output_h, output_w = (fields.integer(f"output_{side}") for side in "hw")
    return UpsampleAttrs(mode, scale_h, scale_w, align_corners, output_h, output_w)


def _upsample_words(node: Node) -> Words:
    attrs: UpsampleAttrs = node.attrs
    yield from (number_of(_RESIZINGS, attrs.mode), _decimal(attrs.scale_h))
    yield from (_decimal(attrs.scale_w), int(attrs.align_corners))
    if (attrs.output_h, attrs.output_w) != (0, 0):
        yield from (attrs.output_h, attrs.output_w)


_MANY = 1 << 16
_FROM_MODEL = (1, 16)  # parameters may also come as blobs from the model's constants
_AXIS = _integer("axis", 1)

CODECS = (
    Codec(
        "convolution",
        "Convolution",
        partial(_parse_convolution, _PAD_MODES),
        partial(_convolution_words, _PAD_MODES),
        int8=True,
    ),
    Codec(
        "deconvolution",
        "Deconvolution",
        partial(_parse_convolution, _DECONVOLUTION_PAD_MODES),
        partial(_convolution_words, _DECONVOLUTION_PAD_MODES),
    ),
    Codec("inner_product", "InnerProduct", _parse_inner_product, _inner_product_words, int8=True),
    Codec("pooling", "Pooling", _parse_pooling, _pooling_words, int8=True),
    *(
        Codec(
            op, op.capitalize(), _parse_binary, _constant_index_words, (1, _MANY), int8=op == "add"
        )
        for op in ("add", "sub", "mul", "div", "maximum", "minimum")
    ),
    _simple("relu", "ReLU", int8=True, aliases=("Relu",)),
    _simple("relu6", "ReLU6", aliases=("Relu6",)),
    _simple("sigmoid", "Sigmoid", int8=True),
    _simple("gelu", "GELU"),
    *(
        _simple(name, name.capitalize())
        for name in (
            *("tanh", "abs", "exp", "log", "sqrt", "neg", "floor", "ceil"),
            *("softplus", "swish", "erf", "reciprocal"),
        )
    ),
    _simple("prelu", "PReLU", PReluAttrs, _flag("channel_shared"), _flag("has_filler")),
    _simple("elu", "Elu", EluAttrs, _number("alpha")),
    _simple(
        "clip",
        "Clip",
        ClipAttrs,
        _number("minimum", 0.0, finite=False),
        _number("maximum", 0.0, finite=False),
    ),
    _simple("hard_sigmoid", "HardSigmoid", HardAttrs, _number("alpha", 1.0), _number("beta", 0.0)),
    _simple("hard_swish", "HardSwish", HardAttrs, _number("alpha", 1.0), _number("beta", 0.0)),
    _simple(
        "power",
        "Power",
        PowerAttrs,
        _number("exponent", 1.0),
        _number("scale", 1.0),
        _number("shift", 0.0),
    ),
    _simple("softmax", "SoftmaxCaffe", SoftmaxAttrs, _AXIS, aliases=("Softmax",)),
    _simple("log_softmax", "LogSoftmax", SoftmaxAttrs, _AXIS),
    _simple("concat", "Concat", ConcatAttrs, _AXIS, inputs=(1, _MANY), int8=True),
    _simple(
        "reshape",
        "Reshape",
        ReshapeAttrs,
        _integer("axis"),
        _integer("num_axes"),
        _counted("shape"),
        _choice("layout", _LAYOUTS, 0),
        inputs=_FROM_MODEL,
        int8=True,
    ),
    _simple("flatten", "Flatten", FlattenAttrs, _AXIS),
    _simple("permute", "Permute", PermuteAttrs, _counted("order"), int8=True),
    _simple("squeeze", "Squeeze", AxesAttrs, _counted("axes"), inputs=_FROM_MODEL),
    _simple("unsqueeze", "Unsqueeze", AxesAttrs, _counted("axes"), inputs=_FROM_MODEL),
    _simple("batch_norm", "BatchNormCxx", aliases=("BatchNormalization",)),
    _simple(
        "scale", "Scale", ScaleAttrs, _integer("axis"), _integer("num_axes"), _flag("has_bias")
    ),
    _simple(
        "instance_norm",
        "InstBatchNormCxx",
        InstanceNormAttrs,
        _integer("channels", 0),
        _number("epsilon", 1e-5),
    ),
    _simple(
        "group_norm",
        "GroupNorm",
        GroupNormAttrs,
        _integer("group", least=1),
        _number("epsilon"),
        inputs=_FROM_MODEL,
    ),
    _simple(
        "layer_norm",
        "LayerNorm",
        LayerNormAttrs,
        _integer("reduce_dims", 0),
        _number("epsilon", 1e-5),
        inputs=_FROM_MODEL,
    ),
    _simple(
        "lrn",
        "LRN",
        LrnAttrs,
        _number("alpha"),
        _number("beta"),
        _number("bias"),
        _integer("size", least=1),
    ),
    Codec("pad", "Pad", _parse_pad, _pad_layer_words, _FROM_MODEL),
    Codec("pad_v2", "PadV2", _parse_pad_v2, _pad_v2_words, _FROM_MODEL),
    Codec("upsample", "Upsample", _parse_upsample, _upsample_words, _FROM_MODEL, int8=True),
    *(
        _simple(
            f"reduce_{name}", f"Reduce{type_string}", ReduceAttrs, _flag("keep_dims"), _rest("axes")
        )
        for name, type_string in {
            "mean": "Mean",
            "max": "Max",
            "min": "Min",
            "sum": "Sum",
            "prod": "Prod",
            "l1": "L1",
            "l2": "L2",
            "log_sum": "LogSum",
            "log_sum_exp": "LogSumExp",
            "sum_square": "SumSquare",
        }.items()
    ),
    Codec("strided_slice", "StridedSlice", _parse_strided_slice, _strided_slice_words, _FROM_MODEL),
    Codec(
        "strided_slice_v2",
        "StridedSliceV2",
        _parse_strided_slice_v2,
        _strided_slice_v2_words,
        _FROM_MODEL,
    ),
    _simple("split_v", "SplitV", SplitAttrs, _integer("axis"), _counted("sizes"), outputs=0),
    _simple("split", "Split", outputs=0),
    _simple("shuffle_channel", "ShuffleChannel", ShuffleAttrs, _integer("group", 1, least=1)),
    _simple("pixel_shuffle", "PixelShuffle", ShuffleAttrs, _integer("group", least=1)),
    _simple("constant", "Const", ConstantAttrs, _counted("shape"), inputs=(0, 0)),
    _simple("cast", "Cast", CastAttrs, _choice("dtype", DTYPES)),
    _simple(
        "gather",
        "Gather",
        GatherAttrs,
        _integer("axis", 0),
        _flag("data_in_resource", 0),
        _flag("indices_in_resource", 1),
        inputs=(0, 2),
    ),
    _simple("tile", "Tile", TileAttrs, _rest("repeats"), inputs=_FROM_MODEL, aliases=("Repeat",)),
    Codec("matmul", "MatMul", _parse_matmul, _constant_index_words, (1, 2)),
)
BY_OP = {codec.op: codec for codec in CODECS}
BY_TYPE = {name: codec for codec in CODECS for name in (codec.type_string, *codec.aliases)}
QUANTIZED = "Quantized"
_BY_QUANTIZED_TYPE = {f"{QUANTIZED}{codec.type_string}": codec for codec in CODECS if codec.int8}


def find_codec(type_string: str) -> tuple[Codec, bool] | None:
    """Return the codec of a TypeString and whether it is the int8 form; None: unknown."""
    if type_string in BY_TYPE:
        return BY_TYPE[type_string], False
    if type_string in _BY_QUANTIZED_TYPE:
        return _BY_QUANTIZED_TYPE[type_string], True
    return None


def unknown_type(path: Path, where: str, name: str) -> FormatError:
    """Make the error for a TypeString that is not known; it lists close ones."""
    known = [*BY_TYPE, *_BY_QUANTIZED_TYPE]
    close = get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
    if name.startswith("DynamicRange"):
        hint = "weights quantized for size only are not supported; start from the float model"
    return FormatError(path, where, "a known type of layer", shown(name), hint)
