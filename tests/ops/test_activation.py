import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import codes, infer, normal, onnx_reference, run

from quantjit import ops
from quantjit.errors import GraphError
from quantjit.ops.activation import ClipAttrs, EluAttrs, HardAttrs, PowerAttrs, PReluAttrs
from quantjit.quant import QuantParams

PLAIN = [
    "relu",
    "relu6",
    "sigmoid",
    "tanh",
    "swish",
    "exp",
    "softplus",
    "erf",
    "abs",
    "neg",
    "log",
    "sqrt",
    "floor",
    "ceil",
    "reciprocal",
]
POSITIVE = {"log", "sqrt", "reciprocal"}
ONNX = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softplus": "Softplus", "erf": "Erf"}


def samples(op, *shape):
    x = normal(*shape, scale=3)
    return np.abs(x) + np.float32(0.1) if op in POSITIVE else x


@pytest.mark.parametrize("op", PLAIN)
@pytest.mark.parametrize("shape", [(1,), (2, 3), (2, 3, 4, 5)])
def test_functions(op, shape):
    x = samples(op, *shape)
    np.testing.assert_allclose(run(op, [x]), oracle.unary(op, x), rtol=3e-6, atol=1e-7)
    assert infer(op, [shape]) == (shape,)


@pytest.mark.parametrize("op", sorted(ONNX))
def test_functions_like_onnxruntime(op):
    x = samples(op, 2, 3, 4)
    expected = onnx_reference(ONNX[op], [x])
    np.testing.assert_allclose(run(op, [x]), expected, rtol=1e-5, atol=1e-6)


def test_gelu_is_the_tanh_form():
    x = normal(1000, scale=3)
    found = run("gelu", [x])
    np.testing.assert_allclose(found, oracle.unary("gelu", x), atol=5e-4)
    cubic = np.sqrt(2 / np.pi) * (x.astype(np.float64) + 0.044715 * x.astype(np.float64) ** 3)
    np.testing.assert_allclose(found, 0.5 * x * (1 + np.tanh(cubic)), rtol=1e-4, atol=1e-6)


def test_far_out_arguments_neither_warn_nor_turn_into_nan():
    x = np.float32([-1e30, -200, -88.8, 88.8, 200, 1e30])
    np.testing.assert_array_equal(run("sigmoid", [x]), [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(run("swish", [x]), [0, 0, 0, *x[3:]])
    np.testing.assert_array_equal(run("exp", [x])[[0, 1, 3, 4, 5]], [0, 0, np.inf, np.inf, np.inf])
    np.testing.assert_array_equal(run("softplus", [x])[3:], x[3:])
    np.testing.assert_array_equal(
        run("log", [np.float32([-1, 0, np.inf])]), [np.nan, -np.inf, np.inf]
    )


@given(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32))
def test_clip(minimum, maximum):
    x = normal(2, 3, 4)
    expected = np.maximum(minimum, np.minimum(x, maximum))
    np.testing.assert_array_equal(run("clip", [x], ClipAttrs(minimum, maximum)), expected)


def test_elu_like_onnxruntime():
    x = normal(2, 3, 4)
    expected = onnx_reference("Elu", [x], {"alpha": 0.7})
    np.testing.assert_allclose(run("elu", [x], EluAttrs(0.7)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.5), (1 / 6, 0.5), (1.0, 0.0)])
def test_hard_functions_like_onnxruntime(alpha, beta):
    x = normal(2, 3, 4, scale=4)
    gate = onnx_reference("HardSigmoid", [x], {"alpha": alpha, "beta": beta})
    attrs = HardAttrs(alpha, beta)
    np.testing.assert_allclose(run("hard_sigmoid", [x], attrs), gate, atol=1e-6)
    np.testing.assert_allclose(run("hard_swish", [x], attrs), x * gate, atol=1e-5)
    y = normal(2, 3, 4, seed=1)
    np.testing.assert_allclose(run("hard_swish", [y, x], attrs), y * gate, atol=1e-5)


def test_hard_swish_does_not_broadcast():
    with pytest.raises(GraphError, match="differ in shape"):
        infer("hard_swish", [(1, 2), (1, 1)], HardAttrs())


@pytest.mark.parametrize("exponent", [1.0, 2.0, 0.5, -1.0])
def test_power(exponent):
    x = np.abs(normal(3, 4)) + 1
    attrs = PowerAttrs(exponent, 0.5, 0.25)
    expected = (0.5 * x.astype(np.float64) + 0.25) ** exponent
    np.testing.assert_allclose(run("power", [x], attrs), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5)])
@pytest.mark.parametrize("shared", [False, True])
def test_prelu_like_onnxruntime(shape, shared):
    x, slope = normal(*shape), normal(1 if shared else 3, seed=1)
    expected = onnx_reference("PRelu", [x, slope.reshape(-1, *(1,) * (len(shape) - 2))])
    found = run("prelu", [x], PReluAttrs(shared), {"slope": slope})
    np.testing.assert_array_equal(found, expected)


def test_prelu_with_a_shared_slope_of_many_uses_the_first():
    x = normal(1, 2, 3)
    slope = np.float32([0.5, 0.25])
    found = run("prelu", [x], PReluAttrs(channel_shared=True), {"slope": slope})
    np.testing.assert_array_equal(found, np.where(x < 0, x * np.float32(0.5), x))


def test_prelu_slopes_must_fit():
    assert ops.get("prelu").required_weights(PReluAttrs()) == ("slope",)
    with pytest.raises(GraphError, match="2 slopes"):
        infer("prelu", [(1, 3, 4)], PReluAttrs(), weights={"slope": np.zeros(2)})


# ------------------------------------------------------------------ int8


def test_relu_int8_moves_codes():
    x = codes(2, 3, 4)
    quant = ((QuantParams(0.5, 3),), (QuantParams(0.25),))
    np.testing.assert_array_equal(run("relu", [x], quant=quant), np.maximum(x, 0))


@pytest.mark.parametrize("op", ["sigmoid", "tanh", "abs", "swish", "exp", "sqrt", "log"])
@pytest.mark.parametrize("channels", [1, 3])
def test_unary_int8_is_the_rounded_float_function(op, channels):
    x = codes(2, 3, 4)
    source = QuantParams(np.float32([0.02, 0.013, 0.03])[:channels], 5)
    target = QuantParams(np.float32([0.01, 0.008, 0.0])[:channels], 7)
    found = run(op, [x], quant=((source,), (target,)))
    reals = x.astype(np.float32) * oracle.by_channel(source.scale, 3)
    expected = oracle.to_codes(run(op, [reals]), oracle.by_channel(target.scale, 3))
    np.testing.assert_array_equal(found, expected)


def test_unary_int8_with_scales_by_channel_on_one_side():
    x = codes(1, 2, 3)
    source, target = QuantParams(0.02), QuantParams([0.01, 0.02])
    reals = x.astype(np.float32) * np.float32(0.02)
    expected = oracle.to_codes(np.abs(reals), np.float32([[[0.01], [0.02]]]))
    np.testing.assert_array_equal(run("abs", [x], quant=((source,), (target,))), expected)


@pytest.mark.parametrize("op", ["prelu", "gelu", "hard_swish"])
def test_no_int8_form(op):
    assert ops.get(op).prepare_int8 is None
