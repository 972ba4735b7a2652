"""Elementwise ops in ONNX, opset 17: arithmetic, activations, comparisons, codes as numbers."""

import math

import onnx

from quantjit.formats._onnx_write_call import Call, Shape, Translation

# ------------------------------------------------------------------ elementwise


def _binary(op: str) -> Translation:
    def write(call: Call) -> None:
        inputs = list(call.inputs)
        if len(inputs) == 1:
            constant = call.array("constant")
            fitted = constant.reshape(_constant_shape(constant.shape, call.shape()))
            inputs.insert(call.attrs.constant_index, call.constant("constant", fitted))
        left = inputs[0]
        for number, right in enumerate(inputs[1:-1]):
            left = call.step(op, [left, right], f"part{number}")
        call.finish(op, [left, inputs[-1]])

    return write


def _constant_shape(constant: Shape, shape: Shape) -> Shape:
    """Where TNN places a vector: one a channel first, then one an element, a column, a pixel."""
    count = math.prod(constant)
    if len(constant) > 1 or count == 1 or len(shape) < 2:
        return constant
    channel = (shape[1], *(1 for _ in shape[2:]))
    for fitting in (channel, shape[1:], shape[-1:], shape[2:]):
        if count == math.prod(fitting):
            return fitting
    return constant


def _plain(op: str) -> Translation:
    return lambda call: call.finish(op)


def _clip(low: float | None = None, high: float | None = None) -> Translation:
    def write(call: Call) -> None:
        bounds = (
            call.attrs.minimum if low is None else low,
            call.attrs.maximum if high is None else high,
        )
        names = [
            call.number(role, bound) if math.isfinite(bound) else ""
            for role, bound in zip(("low", "high"), bounds, strict=True)
        ]
        while names and not names[-1]:
            names.pop()
        call.finish("Clip", [call.inputs[0], *names])

    return write


def _swish(call: Call) -> None:
    call.finish("Mul", [call.inputs[0], call.step("Sigmoid", call.inputs[:1], "sigmoid")])


def _gelu(call: Call) -> None:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), TNN's form."""
    x = call.inputs[0]
    cube = call.step("Pow", [x, call.number("three", 3)], "cube")
    small = call.step("Mul", [cube, call.number("factor", 0.044715)], "small")
    inner = call.step("Add", [x, small], "inner")
    scaled = call.step("Mul", [inner, call.number("root", math.sqrt(2 / math.pi))], "scaled")
    bent = call.step("Tanh", [scaled], "tanh")
    share = call.step("Add", [bent, call.number("one", 1)], "share")
    half = call.step("Mul", [x, call.number("half", 0.5)], "halved")
    call.finish("Mul", [half, share])


def _power(call: Call) -> None:
    attrs, x = call.attrs, call.inputs[0]
    if attrs.scale != 1:
        x = call.step("Mul", [x, call.number("scale", attrs.scale)], "scaled")
    if attrs.shift != 0:
        x = call.step("Add", [x, call.number("shift", attrs.shift)], "shifted")
    call.finish("Pow", [x, call.number("exponent", attrs.exponent)])


def _hard_sigmoid(call: Call) -> None:
    call.finish("HardSigmoid", alpha=float(call.attrs.alpha), beta=float(call.attrs.beta))


def _hard_swish(call: Call) -> None:
    attrs = call.attrs
    gate = call.step(
        "HardSigmoid", call.inputs[-1:], "gate", alpha=float(attrs.alpha), beta=float(attrs.beta)
    )
    call.finish("Mul", [call.inputs[0], gate])


def _prelu(call: Call) -> None:
    slope = call.array("slope").reshape(-1)
    if call.attrs.channel_shared or slope.size == 1:
        call.finish("LeakyRelu", alpha=float(slope[0]))
        return
    shaped = slope.reshape(-1, *(1 for _ in call.shape()[2:]))
    call.finish("PRelu", [call.inputs[0], call.constant("slope", shaped)])


def _mish(call: Call) -> None:
    soft = call.step("Softplus", call.inputs, "softplus")
    call.finish("Mul", [call.inputs[0], call.step("Tanh", [soft], "tanh")])


def _gelu_erf(call: Call) -> None:
    x = call.inputs[0]
    scaled = call.step("Mul", [x, call.number("root", math.sqrt(0.5))], "scaled")
    error = call.step("Erf", [scaled], "erf")
    share = call.step("Add", [error, call.number("one", 1)], "share")
    half = call.step("Mul", [x, call.number("half", 0.5)], "halved")
    call.finish("Mul", [half, share])


def _scaled_swish(call: Call) -> None:
    x = call.inputs[0]
    scaled = call.step("Mul", [x, call.number("alpha", call.attrs.alpha)], "scaled")
    call.finish("Mul", [x, call.step("Sigmoid", [scaled], "sigmoid")])


def _with_alpha(op: str) -> Translation:
    return lambda call: call.finish(op, alpha=float(call.attrs.alpha))


def _selu(call: Call) -> None:
    call.finish("Selu", alpha=float(call.attrs.alpha), gamma=float(call.attrs.beta))


def _logical(op: str, *, on_numbers: bool) -> Translation:
    """Say what is true as 1 and what is not as 0; on_numbers: compare, else combine such blobs."""

    def write(call: Call) -> None:
        inputs = list(call.inputs)
        if not on_numbers:
            inputs = [
                call.step("Cast", [name], f"bool{index}", to=onnx.TensorProto.BOOL)
                for index, name in enumerate(inputs)
            ]
        call.finish("Cast", [call.step(op, inputs, "bool")], to=onnx.TensorProto.FLOAT)

    return write


def _where(call: Call) -> None:
    chosen = call.step("Cast", call.inputs[:1], "bool", to=onnx.TensorProto.BOOL)
    call.finish("Where", [chosen, *call.inputs[1:]])


def _along(call: Call, role: str) -> str:
    """Write scales or zero points of codes, in the shape in which they lie against the blob."""
    values = call.array(role).reshape(-1)
    shape = [1] * len(call.shape())
    if values.size > 1:
        shape[call.attrs.axis] = values.size
    return call.constant(role, values.reshape(shape))


def _quantize_linear(call: Call) -> None:
    """Write codes that stay float32, as the reader has them."""
    quotient = call.step("Div", [call.inputs[0], _along(call, "scale")], "quotient")
    whole = call.step("Round", [quotient], "whole")
    codes = call.step("Add", [whole, _along(call, "zero_point")], "codes")
    bounds = [call.number("low", call.attrs.low), call.number("high", call.attrs.high)]
    call.finish("Clip", [codes, *bounds])


def _dequantize_linear(call: Call) -> None:
    whole = call.step("Sub", [call.inputs[0], _along(call, "zero_point")], "whole")
    call.finish("Mul", [whole, _along(call, "scale")])


TRANSLATIONS: dict[str, Translation] = {
    "add": _binary("Add"),
    "sub": _binary("Sub"),
    "mul": _binary("Mul"),
    "div": _binary("Div"),
    "maximum": _binary("Max"),
    "minimum": _binary("Min"),
    "relu": _plain("Relu"),
    "relu6": _clip(0.0, 6.0),
    "clip": _clip(),
    "sigmoid": _plain("Sigmoid"),
    "tanh": _plain("Tanh"),
    "swish": _swish,
    "exp": _plain("Exp"),
    "elu": _with_alpha("Elu"),
    "softplus": _plain("Softplus"),
    "erf": _plain("Erf"),
    "gelu": _gelu,
    "abs": _plain("Abs"),
    "neg": _plain("Neg"),
    "log": _plain("Log"),
    "sqrt": _plain("Sqrt"),
    "floor": _plain("Floor"),
    "ceil": _plain("Ceil"),
    "reciprocal": _plain("Reciprocal"),
    "power": _power,
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": _hard_swish,
    "prelu": _prelu,
    "mish": _mish,
    "gelu_erf": _gelu_erf,
    "scaled_swish": _scaled_swish,
    "selu": _selu,
    "celu": _with_alpha("Celu"),
    "softsign": _plain("Softsign"),
    "thresholded_relu": _with_alpha("ThresholdedRelu"),
    "round": _plain("Round"),
    "sign": _plain("Sign"),
    "sin": _plain("Sin"),
    "cos": _plain("Cos"),
    "pow": _plain("Pow"),
    "less": _logical("Less", on_numbers=True),
    "greater": _logical("Greater", on_numbers=True),
    "less_or_equal": _logical("LessOrEqual", on_numbers=True),
    "greater_or_equal": _logical("GreaterOrEqual", on_numbers=True),
    "equal": _logical("Equal", on_numbers=True),
    "logical_and": _logical("And", on_numbers=False),
    "logical_or": _logical("Or", on_numbers=False),
    "logical_not": _logical("Not", on_numbers=False),
    "where": _where,
    "quantize_linear": _quantize_linear,
    "dequantize_linear": _dequantize_linear,
}
