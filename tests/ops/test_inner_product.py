import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import FILL, codes, infer, make_node, normal, onnx_reference, run

from quantjit import ops
from quantjit.errors import GraphError
from quantjit.ops.inner_product import InnerProductAttrs
from quantjit.quant import NodeQuant, QuantParams


@st.composite
def inner_products(draw):
    """(shape, attrs, rows, depth)."""
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    shape[-1] = draw(st.integers(1, 37))  # past one block of 32
    axis = draw(st.integers(1, len(shape) - 1))
    attrs = InnerProductAttrs(
        draw(st.integers(1, 9)), draw(st.booleans()), draw(st.booleans()), axis
    )
    return tuple(shape), attrs, int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))


def stored(weight, attrs):
    return np.ascontiguousarray(weight.T) if attrs.transpose else weight


@given(inner_products(), st.integers(0, 99))
def test_float_matches_numpy(case, seed):
    shape, attrs, rows, depth = case
    x, weight = normal(*shape, seed=seed), normal(attrs.out_features, depth, seed=seed + 1)
    bias = normal(attrs.out_features, seed=seed + 2)
    weights = {"weight": stored(weight, attrs)} | ({"bias": bias} if attrs.has_bias else {})
    found = run("inner_product", [x], attrs, weights)
    exact = x.reshape(rows, depth).astype(np.float64) @ weight.T.astype(np.float64)
    exact += bias * attrs.has_bias
    tail = (1,) * (len(shape) - attrs.axis - 1)
    assert found.shape == (*shape[: attrs.axis], attrs.out_features, *tail)
    np.testing.assert_allclose(found.reshape(rows, -1), exact, rtol=1e-5, atol=1e-5)


def test_float_matches_onnxruntime():
    x, weight, bias = normal(3, 50), normal(11, 50), normal(11)
    expected = onnx_reference("Gemm", [x, weight, bias], {"transB": 1})
    found = run("inner_product", [x], InnerProductAttrs(11), {"weight": weight, "bias": bias})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_the_batch():
    x, weight = normal(5, 40), normal(7, 40).astype(np.float16)
    attrs, weights = InnerProductAttrs(7, has_bias=False), {"weight": weight}
    whole = run("inner_product", [x], attrs, weights)
    for n in range(5):
        alone = run("inner_product", [x[n : n + 1]], attrs, weights)
        np.testing.assert_array_equal(alone[0], whole[n])


@pytest.mark.parametrize("transpose", [False, True])
def test_half_weights_are_widened(transpose):
    attrs, x = InnerProductAttrs(7, transpose=transpose), normal(3, 40)
    half = {"weight": stored(normal(7, 40), attrs).astype(np.float16)}
    half["bias"] = normal(7).astype(np.float16)
    single = {role: array.astype(np.float32) for role, array in half.items()}
    expected = run("inner_product", [x], attrs, single)
    np.testing.assert_array_equal(run("inner_product", [x], attrs, half), expected)
    exact = x.astype(np.float64) @ stored(single["weight"], attrs).T + single["bias"]
    np.testing.assert_allclose(expected, exact, rtol=1e-5, atol=1e-5)


def run_int8(x, attrs, weights, quant, source, target):
    form = ops.get("inner_product")
    node = make_node("inner_product", attrs, weights=weights, quant=quant)
    out_shapes = form.infer_shape(node, [x.shape])
    runner = form.prepare_int8(ops.Request(node, (x.shape,), out_shapes, (source,), (target,)))
    out = np.full(out_shapes[0], FILL, np.int8)
    for _ in range(2):  # a runner keeps no state
        runner((x,), (out,))
    return out


@given(inner_products(), st.integers(0, 999), st.booleans(), st.booleans())
def test_int8_is_exact(case, seed, zero_points, weight_each):
    shape, attrs, rows, depth = case
    rng = np.random.default_rng(seed)
    zeros = rng.integers(-128, 128, 3) if zero_points else (0, 0, 0)
    source, target = QuantParams(0.5, zeros[0]), QuantParams(rng.uniform(0.1, 1), zeros[1])
    scale = rng.uniform(1e-4, 1e-2, attrs.out_features if weight_each else 1).astype(np.float32)
    quant = NodeQuant(scale, np.full(scale.shape, zeros[2], np.int8))
    weight = codes(attrs.out_features, depth, seed=seed)
    bias = rng.integers(-20000, 20000, attrs.out_features).astype(np.int32)
    weights = {"weight": stored(weight, attrs)} | ({"bias": bias} if attrs.has_bias else {})
    x = codes(*shape, seed=seed + 1)
    sums = (x.reshape(rows, depth).astype(np.int64) - zeros[0]) @ (weight.T - np.int64(zeros[2]))
    sums += bias * attrs.has_bias
    expected = oracle.requantize(sums, scale, target.scale, target.zero_point)
    found = run_int8(x, attrs, weights, quant, source, target)
    np.testing.assert_array_equal(found.reshape(rows, -1), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_int8_sums_are_exact_up_to_the_limit(sign):
    """33025 products of 255 * 255 are the most that int32 holds; the bias brings them to 5."""
    attrs, unit, total = InnerProductAttrs(2), QuantParams(1), 33025 * 255 * 255
    quant = NodeQuant(np.float32([1]), np.int8([-128]))
    weights = {"weight": np.full((2, 33025), 127, np.int8)}
    weights["bias"] = np.full(2, 5 - sign * total, np.int32)
    x = np.full((3, 33025), 127 if sign > 0 else -128, np.int8)
    found = run_int8(x, attrs, weights, quant, QuantParams(1, -sign * 127 - (sign > 0)), unit)
    np.testing.assert_array_equal(found, np.full((3, 2), 5))
    longer = {"weight": np.full((2, 33026), 127, np.int8), "bias": weights["bias"]}
    with pytest.raises(GraphError, match="sums of 33026 products do not fit int32"):
        run_int8(codes(1, 33026), attrs, longer, quant, QuantParams(1, -128), unit)


def test_int8_dead_steps():
    """A dead output or weight leaves the zero point."""
    attrs, unit, x = InnerProductAttrs(3, has_bias=False), QuantParams(1), codes(2, 8)
    weights = {"weight": codes(3, 8, seed=1)}
    quant = NodeQuant(np.float32([0, 1e-3, 1e-3]), np.zeros(3, np.int8))
    found = run_int8(x, attrs, weights, quant, unit, QuantParams(1, 9))
    np.testing.assert_array_equal(found[:, 0], [9, 9])
    assert (found[:, 1:] != 9).any()
    found = run_int8(x, attrs, weights, quant, unit, QuantParams(0, 9))
    np.testing.assert_array_equal(found, np.full((2, 3), 9))


def test_int8_batch_is_its_rows():
    attrs, unit, x = InnerProductAttrs(5, has_bias=False), QuantParams(1, 3), codes(4, 37)
    weights, quant = {"weight": codes(5, 37)}, NodeQuant(np.float32([1e-3]), np.int8([2]))
    whole = run_int8(x, attrs, weights, quant, unit, unit)
    for n in range(4):
        alone = run_int8(x[n : n + 1], attrs, weights, quant, unit, unit)
        np.testing.assert_array_equal(alone[0], whole[n])


def test_int8_errors():
    attrs, unit, x = InnerProductAttrs(2, has_bias=False), QuantParams(1), codes(1, 3)
    weights, quant = {"weight": codes(2, 3)}, NodeQuant(np.float32([1]), np.int8([0]))
    with pytest.raises(GraphError, match="is not quantized"):
        run_int8(x, attrs, weights, None, unit, unit)
    for source, target in [(QuantParams([1, 1, 1]), unit), (unit, QuantParams([1, 1]))]:
        with pytest.raises(GraphError, match="per-tensor blobs only"):
            run_int8(x, attrs, weights, quant, source, target)


@pytest.mark.parametrize(
    ("attrs", "weights", "match"),
    [
        (InnerProductAttrs(5), {"bias": normal(5)}, r"weight of shape \(5, 6\), got none"),
        (InnerProductAttrs(5), {"weight": normal(6, 5)}, r"\(5, 6\), got \(6, 5\)"),
        (InnerProductAttrs(5, transpose=True), {"weight": normal(5, 6)}, r"\(6, 5\), got \(5, 6"),
        (InnerProductAttrs(5), {"weight": normal(5, 6)}, r"bias of shape \(5,\), got none"),
        (InnerProductAttrs(5), {"weight": normal(5, 6), "bias": normal(6)}, r"got \(6,\)"),
    ],
)
def test_bad_weights(attrs, weights, match):
    with pytest.raises(GraphError, match=match):
        run("inner_product", [normal(1, 2, 3)], attrs, weights)


def test_bad_axis():
    for axis in (0, 2):
        with pytest.raises(GraphError, match=f"cannot flatten .* from axis {axis}"):
            infer("inner_product", [(2, 3)], InnerProductAttrs(5, axis=axis))


def test_counts():
    form, attrs = ops.get("inner_product"), InnerProductAttrs(7)
    assert form.macs(make_node("inner_product", attrs), [(2, 3, 4)], [(2, 7, 1)]) == 2 * 12 * 7
    assert form.required_weights(attrs) == ("weight", "bias")
    assert form.required_weights(InnerProductAttrs(7, has_bias=False)) == ("weight",)
