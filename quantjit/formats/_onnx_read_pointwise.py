"""ONNX operators that work on each element: activations, arithmetic; reductions; int8 codes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from quantjit.formats._onnx_read_call import Call, MalformedError, RefusedError, Translation
from quantjit.ops import NoAttrs
from quantjit.ops.activation import ClipAttrs, EluAttrs, HardAttrs, PowerAttrs, PReluAttrs
from quantjit.ops.choose import ExtremeAttrs
from quantjit.ops.curves import CurveAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.ops.linear_codes import CodesAttrs
from quantjit.ops.reduce import ReduceAttrs
from quantjit.ops.shape import CastAttrs, ConstantAttrs

_LARGEST = float(np.finfo(np.float32).max)
_CODES = {
    "int2": (-2, 1),
    "uint2": (0, 3),
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
}
"""Types of codes and their ranges; all of them are exact in float32."""


def _plain(op: str, attrs: Any = None) -> Translation:
    """Make the translation of an op without attributes."""

    def translate(call: Call) -> None:
        call.emit(op, attrs=attrs)

    return translate


# ------------------------------------------------------------------ activations


def _bound(call: Call, name: str, index: int, default: float) -> float:
    if call.opset < 11:
        return call.real(name, default)
    if not call.has(index):
        return default
    bound = call.float_constant(index, f"bound {name!r}")
    if bound.size != 1:
        raise MalformedError(f"its bound {name!r} is not one number")
    return float(bound.reshape(-1)[0])


def _clip(call: Call) -> None:
    minimum = max(_bound(call, "min", 1, -_LARGEST), -_LARGEST)
    maximum = min(_bound(call, "max", 2, _LARGEST), _LARGEST)
    if (minimum, maximum) == (0.0, 6.0):
        call.emit("relu6")
    elif minimum == 0.0 and maximum == _LARGEST:
        call.emit("relu")
    else:
        call.emit("clip", attrs=ClipAttrs(min(minimum, maximum), maximum))


def _leaky_relu(call: Call) -> None:
    slope = np.array([call.real("alpha", 0.01)], np.float32)
    call.emit("prelu", attrs=PReluAttrs(channel_shared=True), weights={"slope": slope})


def _prelu(call: Call) -> None:
    slope, shape = call.float_constant(1, "slope"), call.shape()
    aligned = (1,) * (len(shape) - slope.ndim) + slope.shape
    per_channel = len(shape) > 1 and slope.size == aligned[1] == shape[1]
    if slope.size == 1 or per_channel:
        attrs = PReluAttrs(channel_shared=slope.size == 1)
        call.emit("prelu", attrs=attrs, weights={"slope": slope.reshape(-1)})
        return
    above = call.emit("relu", suffix="above")
    zero = {"constant": np.zeros((), np.float32)}
    below = call.emit("minimum", attrs=BinaryAttrs(1), weights=zero, suffix="below")
    slopes = _constant_of(call, 1, below)
    sloped = call.emit("mul", (below,), BinaryAttrs(1), slopes, suffix="sloped")
    call.emit("add", (above, sloped), BinaryAttrs())


def _hard_sigmoid(call: Call) -> None:
    attrs = HardAttrs(call.real("alpha", 0.2), call.real("beta", 0.5))
    call.emit("hard_sigmoid", attrs=attrs)


def _hard_swish(call: Call) -> None:
    call.emit("hard_swish", attrs=HardAttrs(1 / 6, 0.5))


def _elu(call: Call) -> None:
    call.emit("elu", attrs=EluAttrs(call.real("alpha", 1.0)))


def _gelu(call: Call) -> None:
    approximate = call.text("approximate", "none")
    if approximate not in {"none", "tanh"}:
        raise MalformedError(f"approximate {approximate!r} is neither none nor tanh")
    if approximate == "none":
        call.emit("gelu_erf", attrs=CurveAttrs())
    else:
        call.emit("gelu")


def _swish(default: float) -> Translation:
    def translate(call: Call) -> None:
        alpha = call.real("alpha", default)
        if alpha == 1.0:
            call.emit("swish")
        else:
            call.emit("scaled_swish", attrs=CurveAttrs(alpha))

    return translate


def _curve(
    op: str, alpha: float = 0.0, beta: float = 0.0, names: Any = ("alpha", "")
) -> Translation:
    """Make the translation of a function with up to two parameters of these names."""

    def translate(call: Call) -> None:
        values = [
            call.real(name, default) if name else default
            for name, default in zip(names, (alpha, beta), strict=True)
        ]
        call.emit(op, attrs=CurveAttrs(*values))

    return translate


# ------------------------------------------------------------------ arithmetic


def _constant_of(call: Call, index: int, blob: str) -> dict[str, NDArray[np.float32]]:
    """Return the weights of an op that combines a blob with a constant.

    A vector gets a second dimension, or TNN's rule would place it by its length.
    """
    constant = call.float_constant(index, "operand")
    if constant.ndim == 1 and len(call.sink.shapes[blob]) > 1:
        constant = constant.reshape(1, -1)
    return {"constant": constant}


def _combined(op: str, call: Call, *, last: str = "") -> str:
    """Emit left-to-right combinations: of the blobs, then of each constant; the last blob."""
    count = len(call.proto.input)
    blobs = [index for index in range(count) if call.value(index) is None]
    constants = [index for index in range(count) if call.value(index) is not None]
    if not blobs:
        blobs, constants = constants[:1], constants[1:]
    found = tuple(call.blob(index) for index in blobs)
    steps = (len(blobs) > 1) + len(constants)
    if len(blobs) > 1:
        steps -= 1
        suffix = last if not steps else "blobs"
        found = (call.emit(op, found, BinaryAttrs(), suffix=suffix),)
    for index in constants:
        steps -= 1
        weights = _constant_of(call, index, found[0])
        suffix = last if not steps else f"step{index}"
        found = (call.emit(op, found, BinaryAttrs(1), weights, suffix=suffix),)
    return found[0]


def _variadic(op: str) -> Translation:
    def translate(call: Call) -> None:
        if len(call.proto.input) == 1:
            call.alias(call.blob())
        else:
            _combined(op, call)

    return translate


def _mean(call: Call) -> None:
    count = len(call.proto.input)
    if count == 1:
        call.alias(call.blob())
        return
    total = _combined("add", call, last="sum")
    weights = {"constant": np.array(1 / count, np.float32)}
    call.emit("mul", (total,), BinaryAttrs(1), weights)


def _binary(op: str) -> Translation:
    def translate(call: Call) -> None:
        for index in (0, 1):
            if call.value(index) is not None and call.value(1 - index) is None:
                blob = call.blob(1 - index)
                call.emit(op, (blob,), BinaryAttrs(index), _constant_of(call, index, blob))
                return
        call.emit(op, (call.blob(0), call.blob(1)), BinaryAttrs())

    return translate


def _pow(call: Call) -> None:
    exponent = call.value(1)
    if exponent is not None and exponent.size == 1 and exponent.ndim <= len(call.shape()):
        call.emit("power", attrs=PowerAttrs(float(exponent.reshape(-1)[0])))
    else:
        call.emit("pow", (call.blob(0), call.blob(1)))


def _comparison(op: str) -> Translation:
    """Make the translation of an operator whose result is true or false."""

    def translate(call: Call) -> None:
        blobs = tuple(call.blob(index) for index in range(len(call.proto.input)))
        call.emit(op, blobs, kind="bool")

    return translate


def _where(call: Call) -> None:
    call.emit("where", (call.blob(0), call.blob(1), call.blob(2)), kind=call.kind(1))


# ------------------------------------------------------------------ reductions


def _reduce(op: str) -> Translation:
    since = 13 if op == "reduce_sum" else 18

    def translate(call: Call) -> None:
        axes = call.listed("axes", 1, since, "list of axes") or ()
        if not axes and call.integer("noop_with_empty_axes", 0):
            if op not in {"reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod"}:
                raise RefusedError("noop_with_empty_axes is not run")
            call.alias(call.blob())
            return
        call.emit(op, attrs=ReduceAttrs(axes, bool(call.integer("keepdims", 1))))

    return translate


def _extreme(op: str) -> Translation:
    def translate(call: Call) -> None:
        attrs = ExtremeAttrs(
            call.integer("axis", 0),
            bool(call.integer("keepdims", 1)),
            bool(call.integer("select_last_index", 0)),
        )
        call.emit(op, attrs=attrs, kind="int64")

    return translate


# ------------------------------------------------------------------ types and codes


def _identity(call: Call) -> None:
    call.alias(call.blob())


def _dropout(call: Call) -> None:
    drops = bool(call.constant(1, "ratio").any()) if call.has(1) else True
    if drops and call.has(2) and bool(call.constant(2, "training mode").any()):
        raise RefusedError("it is in training mode; export the network for inference")
    call.alias(call.blob())
    if call.wants(1):  # the mask: nothing is dropped
        ones = {"value": np.ones(call.shape(), np.float32)}
        attrs = ConstantAttrs(call.shape())
        call.emit("constant", (), attrs, ones, outputs=(call.proto.output[1],), kind="bool")


def _dtype_of(code: int) -> str:
    try:
        return str(helper.tensor_dtype_to_np_dtype(code))
    except KeyError:
        raise MalformedError(f"there is no type {code}") from None


def _cast(call: Call) -> None:
    code = call.integer("to", 0)
    if code in {TensorProto.FLOAT, TensorProto.DOUBLE}:
        call.alias(call.blob(), "float32")
        return
    if code == TensorProto.FLOAT16:
        call.emit("cast", attrs=CastAttrs("float16"), kind="float32")
        return
    dtype = _dtype_of(code)
    if dtype == call.kind():
        call.alias(call.blob())
    elif dtype in {"int32", "int64"}:
        call.emit("cast", attrs=CastAttrs(dtype), kind=dtype)
    else:
        raise RefusedError(f"a cast to {dtype} is not run")


def _cast_like(call: Call) -> None:
    target = call.value(1)
    dtype = call.kind(1) if target is None else str(target.dtype)
    if "float" in dtype and call.kind() == "float32":
        call.alias(call.blob())
    else:
        raise RefusedError(f"a cast of {call.kind()} to {dtype} is not run")


def _scale_and_zero(call: Call) -> tuple[dict[str, NDArray[Any]], int, str]:
    """Return weights "scale" and "zero_point", their axis, and the type of the codes."""
    scale = call.float_constant(1, "scale")
    zero = call.constant(2, "zero point") if call.has(2) else None
    if scale.size > 1 and scale.ndim != 1:
        raise RefusedError("a scale a block is not run")
    axis, rank = call.integer("axis", 1), len(call.shape())
    if scale.size > 1 and not -rank <= axis < rank:
        raise MalformedError(f"axis {axis} is not one of {rank} dimensions")
    weights: dict[str, NDArray[Any]] = {"scale": scale.reshape(-1)}
    weights["zero_point"] = (
        np.zeros(scale.size, np.int32) if zero is None else zero.reshape(-1).astype(np.int32)
    )
    return weights, axis % max(rank, 1), "" if zero is None else str(zero.dtype)


def _quantize_linear(call: Call) -> None:
    weights, axis, kind = _scale_and_zero(call)
    code = call.integer("output_dtype", 0)
    if not kind:
        kind = _dtype_of(code) if code else "uint8"
    if kind not in _CODES:
        raise RefusedError(f"codes of type {kind} are not run")
    if call.kind() != "float32":
        raise RefusedError(f"it would quantize {call.kind()} numbers")
    low, high = _CODES[kind]
    call.emit("quantize_linear", attrs=CodesAttrs(axis, low, high), weights=weights, kind=kind)


def _dequantize_linear(call: Call) -> None:
    weights, axis, _ = _scale_and_zero(call)
    call.emit("dequantize_linear", attrs=CodesAttrs(axis), weights=weights, kind="float32")


_REDUCTIONS = {
    "ReduceMean": "reduce_mean",
    "ReduceSum": "reduce_sum",
    "ReduceMax": "reduce_max",
    "ReduceMin": "reduce_min",
    "ReduceProd": "reduce_prod",
    "ReduceL1": "reduce_l1",
    "ReduceL2": "reduce_l2",
    "ReduceLogSum": "reduce_log_sum",
    "ReduceLogSumExp": "reduce_log_sum_exp",
    "ReduceSumSquare": "reduce_sum_square",
}
_COMPARISONS = {
    "Less": "less",
    "Greater": "greater",
    "LessOrEqual": "less_or_equal",
    "GreaterOrEqual": "greater_or_equal",
    "Equal": "equal",
    "And": "logical_and",
    "Or": "logical_or",
    "Not": "logical_not",
}
_PLAIN = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softplus": "softplus",
    "Exp": "exp",
    "Erf": "erf",
    "Abs": "abs",
    "Neg": "neg",
    "Log": "log",
    "Sqrt": "sqrt",
    "Floor": "floor",
    "Ceil": "ceil",
    "Reciprocal": "reciprocal",
    "Round": "round",
    "Sign": "sign",
    "Sin": "sin",
    "Cos": "cos",
}

TRANSLATIONS: Mapping[str, Translation] = {
    **{name: _plain(op, NoAttrs()) for name, op in _PLAIN.items()},
    **{name: _reduce(op) for name, op in _REDUCTIONS.items()},
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Elu": _elu,
    "Gelu": _gelu,
    "com.microsoft.Gelu": _gelu,
    "com.microsoft.QuickGelu": _swish(1.702),
    "Swish": _swish(1.0),
    "Mish": _curve("mish", names=("", "")),
    "Selu": _curve(
        "selu", 1.67326319217681884765625, 1.05070102214813232421875, ("alpha", "gamma")
    ),
    "Celu": _curve("celu", 1.0),
    "Softsign": _curve("softsign", names=("", "")),
    "ThresholdedRelu": _curve("thresholded_relu", 1.0),
    "Add": _binary("add"),
    "Sub": _binary("sub"),
    "Mul": _binary("mul"),
    "Div": _binary("div"),
    "Sum": _variadic("add"),
    "Max": _variadic("maximum"),
    "Min": _variadic("minimum"),
    **{name: _comparison(op) for name, op in _COMPARISONS.items()},
    "Where": _where,
    "ArgMax": _extreme("argmax"),
    "ArgMin": _extreme("argmin"),
    "Mean": _mean,
    "Pow": _pow,
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast_like,
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
}
