"""Int8 ops in onnxruntime's arithmetic, against NumPy; zero points everywhere."""

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantjit import ops
from quantjit.errors import GraphError
from quantjit.graph import Node
from quantjit.kernels.codes import add_even_int8_into, quantize_even_into
from quantjit.kernels.numeric import round_even_to_int8
from quantjit.ops import NoAttrs
from quantjit.ops.activation import ClipAttrs
from quantjit.ops.concat import ConcatAttrs
from quantjit.ops.convolution import ConvolutionAttrs
from quantjit.ops.elementwise import BinaryAttrs
from quantjit.ops.inner_product import InnerProductAttrs
from quantjit.ops.pooling import PoolingAttrs
from quantjit.ops.resize import UpsampleAttrs
from quantjit.quant import NodeQuant, QuantParams

RNG = np.random.default_rng(5)


def codes(*shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape, dtype=np.int8)


def run(op, arrays, sources, target, attrs=None, weights=None, quant=None, arithmetic="onnx"):
    """Codes that the int8 form of an op writes."""
    names = tuple(f"in{i}" for i in range(len(arrays)))
    node = Node(
        "node", op, names, ("out",), attrs or NoAttrs(), weights or {}, quant or NodeQuant()
    )
    shapes = tuple(x.shape for x in arrays)
    outs = ops.get(op).infer_shape(node, shapes)
    request = ops.Request(node, shapes, outs, tuple(sources), (target,), arithmetic)
    out = np.full(outs[0], 77, np.int8)
    runner = ops.get(op).prepare_int8(request)
    for _ in range(2):
        runner(tuple(arrays), (out,))
    return out


# ------------------------------------------------------------------ rounding


@given(st.floats(-400, 400, width=32), st.integers(-128, 127))
def test_rounding_is_half_to_even_with_the_zero_point_behind(value, zero):
    found = round_even_to_int8(np.float32(value), np.float32(zero))
    assert found == oracle.round_even(np.float32(value), zero)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (1e30, 127), (-1e30, -128)],
)
def test_halves_and_what_saturates(value, expected):
    assert round_even_to_int8(np.float32(value), np.float32(0)) == expected


def test_a_nan_saturates():
    assert round_even_to_int8(np.float32(np.nan), np.float32(0)) == 127


def test_quantize_even_divides_and_rounds():
    x = np.linspace(-3, 3, 97, dtype=np.float32).reshape(1, 1, -1)
    out = np.empty(x.shape, np.int8)
    scale, zero = np.float32([0.25]), np.int8([-7])
    quantize_even_into(x, scale, zero, out)
    np.testing.assert_array_equal(out, oracle.round_even(x / scale, -7))
    quantize_even_into(x, np.float32([0]), zero, out)
    assert (out == -7).all()


@pytest.mark.parametrize("offset", [0, 128])
def test_adds_in_codes_of_either_type(offset):
    left, right, out = codes(500), codes(500, seed=1), np.empty(500, np.int8)
    scales = np.float32([0.3, 0.225, 0.31])
    zeros = np.array([5, -17, -128])
    target = [QuantParams(scale, zero) for scale, zero in zip(scales, zeros, strict=True)]
    arithmetic = "onnx-uint8" if offset else "onnx"
    found = run(
        "add",
        (left[None], right[None]),
        target[:2],
        target[2],
        BinaryAttrs(),
        None,
        None,
        arithmetic,
    )
    expected = oracle.add_even(left, right, scales, zeros, offset)
    np.testing.assert_array_equal(found[0], expected)
    factors = (scales[:2] / scales[2]).astype(np.float32)
    add_even_int8_into(left, right, factors, np.float32(offset), offset, out)
    real = factors[0] * (left + np.float64(offset)) + factors[1] * (right + np.float64(offset))
    assert np.abs(out - np.clip(real, -128, 127)).max() <= 0.5 + 1e-4


# ------------------------------------------------------------------ layers


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("size", [2, 7])
def test_convolution(activation, group, size):
    x, weight = codes(2, 4, size, size), codes(8 if group == 1 else 4, 4 // group, 1, 1, seed=2)
    rows = weight.shape[0]
    bias = RNG.integers(-500, 500, rows).astype(np.int32)
    quant = NodeQuant(
        np.linspace(1e-3, 2e-3, rows).astype(np.float32), np.arange(rows).astype(np.int8)
    )
    source, target = QuantParams(0.02, 11), QuantParams(0.05, -40)
    attrs = ConvolutionAttrs(group, 4, rows, 1, 1, activation=activation)
    found = run(
        "convolution", (x,), (source,), target, attrs, {"weight": weight, "bias": bias}, quant
    )
    shifted = x.astype(np.int64) - 11
    taps = weight.astype(np.int64) - np.arange(rows).reshape(-1, 1, 1, 1)
    if group == 1:
        sums = np.einsum("ncyx,oc->noyx", shifted, taps[:, :, 0, 0])
    else:
        sums = shifted * taps[:, 0].reshape(1, 4, 1, 1)
    sums = (sums + bias.reshape(1, -1, 1, 1)).astype(np.int32)
    factor = (quant.weight_scale / np.float32(0.05)).reshape(1, -1, 1, 1)
    low = -128 if activation == "none" else -40
    high = 80 if activation == "relu6" else 127  # 6 / 0.05 - 40
    np.testing.assert_array_equal(found, oracle.requantize_even(sums, factor, -40, low, high))


def test_what_onnx_does_not_fuse_is_refused():
    attrs = ConvolutionAttrs(1, 4, 4, 1, 1, activation="swish")
    weights = {"weight": codes(4, 4, 1, 1), "bias": np.zeros(4, np.int32)}
    quant = NodeQuant(np.ones(1, np.float32), np.zeros(1, np.int8))
    with pytest.raises(GraphError, match="fused"):
        run("convolution", (codes(1, 4, 2, 2),), (QuantParams(1.0),), QuantParams(1.0), attrs,
            weights, quant)  # fmt: skip


def test_inner_product():
    x, weight, bias = codes(3, 10), codes(5, 10, seed=1), np.arange(5).astype(np.int32)
    quant = NodeQuant(np.full(1, 1e-3, np.float32), np.zeros(1, np.int8))
    found = run(
        "inner_product",
        (x,),
        (QuantParams(0.1, -9),),
        QuantParams(0.3, 20),
        InnerProductAttrs(5),
        {"weight": weight, "bias": bias},
        quant,
    )
    sums = (x.astype(np.int64) + 9) @ weight.astype(np.int64).T + bias
    factor = np.float32(1e-3) / np.float32(0.3)
    np.testing.assert_array_equal(found, oracle.requantize_even(sums.astype(np.int32), factor, 20))


def test_concat_requantizes_each_part():
    parts = (codes(1, 3, 4), codes(1, 2, 4, seed=1))
    sources, target = (QuantParams(0.1, 3), QuantParams(0.4, -128)), QuantParams(0.4, -128)
    found = run("concat", parts, sources, target, ConcatAttrs(1))
    reals = (parts[0].astype(np.float32) - 3) * np.float32(0.1)
    np.testing.assert_array_equal(found[:, :3], oracle.round_even(reals / np.float32(0.4), -128))
    np.testing.assert_array_equal(found[:, 3:], parts[1])


def test_upsample_keeps_zero_points():
    x = codes(1, 2, 3, 3)
    source, target = QuantParams(0.1, 7), QuantParams(0.2, -30)
    found = run("upsample", (x,), (source,), target, UpsampleAttrs("nearest", 2.0, 2.0))
    reals = (x.astype(np.float32) - 7) * np.float32(0.1)
    expected = oracle.round_even(reals / np.float32(0.2), -30)
    np.testing.assert_array_equal(found, expected.repeat(2, axis=2).repeat(2, axis=3))


@pytest.mark.parametrize(
    ("op", "attrs", "function"),
    [
        ("relu", None, lambda x: np.maximum(x, 0)),
        ("relu6", None, lambda x: np.clip(x, 0, 6)),
        ("clip", ClipAttrs(-1, 2), lambda x: np.clip(x, -1, 2)),
        ("sigmoid", None, lambda x: 1 / (1 + np.exp(-x.astype(np.float64)))),
    ],
)
def test_functions_of_one_code(op, attrs, function):
    x = codes(1, 2, 130)
    found = run(op, (x,), (QuantParams(0.07, 9),), QuantParams(0.05, -100), attrs)
    reals = function((x.astype(np.float32) - 9) * np.float32(0.07))
    exact = reals.astype(np.float32) / np.float32(0.05)
    difference = np.abs(found.astype(int) - oracle.round_even(exact, -100).astype(int))
    assert difference.max() <= (1 if op == "sigmoid" else 0)


def test_relu6_has_no_int8_form_in_tnn():
    with pytest.raises(GraphError, match="TNN"):
        run("relu6", (codes(1, 2),), (QuantParams(1.0),), QuantParams(1.0), arithmetic="tnn")


def test_max_pooling_starts_at_the_lowest_code():
    x = np.full((1, 1, 2, 2), -128, np.int8)
    params = QuantParams(0.1, -128)
    attrs = PoolingAttrs("max", 3, 3, 1, 1, (1, 1, 1, 1))
    assert (run("pooling", (x,), (params,), params, attrs) == -128).all()
    with pytest.raises(GraphError, match="one scale on both sides"):
        run("pooling", (x,), (params,), QuantParams(0.2, -128), attrs)


def test_average_pooling_requantizes():
    x = codes(2, 3, 5, 4)
    source, target = QuantParams(0.1, -20), QuantParams(0.06, 15)
    found = run("pooling", (x,), (source,), target, PoolingAttrs("average", 0, 0))
    means = (x.astype(np.float64) + 20).mean(axis=(2, 3), keepdims=True)
    exact = means * np.float64(np.float32(0.1)) / np.float64(np.float32(0.06)) + 15
    assert np.abs(found - np.clip(exact, -128, 127)).max() <= 0.5 + 1e-4


def test_scales_a_channel_are_refused():
    many, one = QuantParams([0.1, 0.2]), QuantParams(0.1)
    with pytest.raises(GraphError, match="one scale a blob"):
        run("add", (codes(1, 2, 3), codes(1, 2, 3)), (many, one), one, BinaryAttrs())
    with pytest.raises(GraphError, match="one scale a blob"):
        run("pooling", (codes(1, 2, 3, 3),), (many,), one, PoolingAttrs("average", 0, 0))


def test_onnx_adds_two_blobs():
    with pytest.raises(GraphError, match="two int8 blobs"):
        run("add", (codes(1, 2),) * 3, (QuantParams(0.1),) * 3, QuantParams(0.1), BinaryAttrs())


def test_quantize_and_dequantize_round_as_the_target():
    x = np.float32([[0.5, 1.5, 2.5, -0.5]])
    params = QuantParams(1.0, 3)
    for arithmetic, expected in (("onnx", [3, 5, 5, 3]), ("tnn", [4, 5, 6, 3])):
        node = Node("node", "quantize", ("in0",), ("out",), NoAttrs())
        request = ops.Request(node, (x.shape,), (x.shape,), (params,), (params,), arithmetic)
        out = np.empty(x.shape, np.int8)
        ops.get("quantize").prepare_float(request)((x,), (out,))
        np.testing.assert_array_equal(out[0], expected)
