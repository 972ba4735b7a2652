"""Constants of an ONNX graph computed while reading, by the reference evaluator of ``onnx``.

What is computed this way is small: shapes, axes, indices, weights that are transposed or cast.  A
result that a hostile file makes too large is refused before it is made.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import AttributeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from quantjit.graph import Array

_DEQUANTIZE_SINCE = 21
_LARGEST = 2**28  # elements of a computed constant: 1 GiB of float32

_BROADCASTING = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "Where"),
    *("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift", "PRelu"),
}
_BOUNDED = {  # as large as an input at most, or as the attributes say
    *("Shape", "Size", "Identity", "Cast", "CastLike", "Reshape", "Flatten", "Squeeze"),
    *("Unsqueeze", "Transpose", "Concat", "Slice", "Split", "ScatterND", "ScatterElements"),
    *("Neg", "Abs", "Sqrt", "Exp", "Log", "Floor", "Ceil", "Round", "Reciprocal", "Sign", "Erf"),
    *("Sin", "Cos", "Tan", "Tanh", "Sigmoid", "Relu", "Clip", "Softmax", "Not", "BitwiseNot"),
    *("IsNaN", "IsInf", "CumSum", "Trilu", "NonZero", "ArgMax", "ArgMin", "GatherElements"),
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "Compress", "DepthToSpace"),
    *("SpaceToDepth", "QuantizeLinear", "DequantizeLinear", "Constant", "LeakyRelu", "Elu"),
    *("HardSigmoid", "HardSwish", "LogSoftmax", "Softplus", "Dropout", "EyeLike"),
}


def _pooled(values: Sequence[Array | None]) -> int:
    shapes = [value.shape for value in values if value is not None]
    return prod(int(size) for size in np.broadcast_shapes(*shapes))


def _gathered(values: Sequence[Array | None]) -> int:
    data, indices = values[0], values[1]
    return 0 if data is None or indices is None else data.size * max(indices.size, 1)


def _of_shape(values: Sequence[Array | None]) -> int:
    shape = values[0]
    return 0 if shape is None else prod(int(size) for size in shape.ravel())


def _expanded(values: Sequence[Array | None]) -> int:
    data, shape = values[0], values[1]
    if data is None or shape is None:
        return 0
    return prod(np.broadcast_shapes(data.shape, tuple(int(size) for size in shape.ravel())))


def _tiled(values: Sequence[Array | None]) -> int:
    data, repeats = values[0], values[1]
    if data is None or repeats is None:
        return 0
    return data.size * prod(int(count) for count in repeats.ravel())


def _ranged(values: Sequence[Array | None]) -> int:
    start, limit, step = (0.0 if value is None else float(value) for value in values)
    return int(abs((limit - start) / step)) + 1 if step else _LARGEST + 1


def _padded(values: Sequence[Array | None]) -> int:
    data, pads = values[0], values[1] if len(values) > 1 else None
    if data is None:
        return 0
    if pads is None:
        return data.size
    more = max((int(pad) for pad in pads.ravel()), default=0)
    return prod(size + 2 * max(more, 0) for size in data.shape)


def _multiplied(values: Sequence[Array | None]) -> int:
    left, right = values[0], values[1]
    if left is None or right is None or not min(left.ndim, right.ndim):
        return 0
    inner = max(left.shape[-1], 1)
    return int(left.size * right.size // inner)


_SIZES: dict[str, Callable[[Sequence[Array | None]], int]] = {
    **dict.fromkeys(_BROADCASTING, _pooled),
    **dict.fromkeys(_BOUNDED, lambda _: 0),
    **dict.fromkeys(("Gather", "GatherND"), _gathered),
    "ConstantOfShape": _of_shape,
    "Expand": _expanded,
    "Tile": _tiled,
    "Range": _ranged,
    "Pad": _padded,
    "MatMul": _multiplied,
    "Gemm": _multiplied,
}


def is_foldable(op_type: str) -> bool:
    """Whether a node of this type, all of whose inputs are known, is computed while reading."""
    return op_type in _SIZES


def fold(node: Any, values: Sequence[Array | None], opsets: Mapping[str, int]) -> dict[str, Array]:
    """Compute a node.

    values: of its inputs, None where an optional one is left out.  Returns arrays by output name.
    Raises ValueError when the node cannot be computed or its result is too large.
    """
    if any(item.type in {AttributeProto.GRAPH, AttributeProto.GRAPHS} for item in node.attribute):
        raise ValueError("it holds a graph")
    try:
        if _SIZES[node.op_type](values) > _LARGEST:
            raise ValueError("its result is too large")
        feeds = {
            name: value
            for name, value in zip(node.input, values, strict=True)
            if name and value is not None
        }
        outputs = [name for name in node.output if name]
        graph = helper.make_graph(
            [node],
            "constant",
            [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in feeds],
            [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
        )
        used = dict(opsets)
        if node.op_type == "DequantizeLinear":  # the evaluator has its newer, wider forms only
            used[""] = max(used[""], _DEQUANTIZE_SINCE)
        imports = [helper.make_opsetid(domain, version) for domain, version in used.items()]
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(helper.make_model(graph, opset_imports=imports)).run(
                outputs, feeds
            )
        return {name: np.asarray(value) for name, value in zip(outputs, found, strict=True)}
    except Exception as error:  # noqa: BLE001  # the evaluator raises whatever its NumPy code does
        raise ValueError(str(error) or type(error).__name__) from None
