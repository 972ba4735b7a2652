import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import infer, normal, onnx_reference, run

from quantjit import ops
from quantjit.errors import GraphError
from quantjit.ops.normalization import (
    GroupNormAttrs,
    InstanceNormAttrs,
    LayerNormAttrs,
    LrnAttrs,
    ScaleAttrs,
)

SHAPES = [(2, 4), (2, 4, 3), (2, 4, 3, 5)]


@pytest.mark.parametrize("op", ["batch_norm", "scale"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 4])
def test_channels_are_scaled(op, shape, count):
    x, scale, bias = normal(*shape), normal(count, seed=1), normal(count, seed=2)
    view = (-1, *(1,) * (len(shape) - 2))
    attrs = ScaleAttrs() if op == "scale" else None
    found = run(op, [x], attrs, {"scale": scale, "bias": bias})
    np.testing.assert_allclose(
        found, x * scale.reshape(view) + bias.reshape(view), rtol=1e-6, atol=1e-6
    )


def test_scale_without_bias_and_in_half_precision():
    x = normal(2, 4, 3)
    scale = np.float16([0.1, 0.2, 0.3, 0.4])
    found = run("scale", [x], ScaleAttrs(has_bias=False), {"scale": scale})
    np.testing.assert_array_equal(found, x * np.float32(scale)[:, None])
    required = ops.get("scale").required_weights
    assert required(ScaleAttrs()) == ("scale", "bias")
    assert required(ScaleAttrs(has_bias=False)) == ("scale",)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_instance_norm_like_onnxruntime(shape):
    x, scale, bias = normal(*shape), normal(4, seed=1), normal(4, seed=2)
    found = run("instance_norm", [x], InstanceNormAttrs(4, 1e-3), {"scale": scale, "bias": bias})
    expected = onnx_reference("InstanceNormalization", [x, scale, bias], {"epsilon": 1e-3})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("affine", ["weights", "inputs"])
def test_group_norm(shape, group, affine):
    x, scale, bias = normal(*shape), normal(4, seed=1), normal(4, seed=2)
    attrs = GroupNormAttrs(group, 1e-3)
    if affine == "weights":
        found = run("group_norm", [x], attrs, {"scale": scale, "bias": bias})
    else:
        found = run("group_norm", [x, scale, bias], attrs)
    rows = oracle.normalize(x.reshape(2, group, -1), 2, 1e-3).reshape(shape)
    view = (-1, *(1,) * (len(shape) - 2))
    np.testing.assert_allclose(
        found, rows * scale.reshape(view) + bias.reshape(view), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("affine", ["weights", "inputs", "none"])
@pytest.mark.parametrize("is_told", [True, False])
def test_layer_norm_like_onnxruntime(dims, affine, is_told):
    x = normal(2, 4, 3)
    scale, bias = normal(*x.shape[-dims:], seed=1), normal(*x.shape[-dims:], seed=2)
    attrs = LayerNormAttrs(dims if is_told or affine == "none" else 0, 1e-3)
    if affine == "weights":
        found = run("layer_norm", [x], attrs, {"scale": scale, "bias": bias})
    elif affine == "inputs":
        found = run("layer_norm", [x, scale, bias], attrs)
    else:
        scale, bias = np.ones_like(scale), np.zeros_like(bias)
        found = run("layer_norm", [x], attrs)
    expected = onnx_reference(
        "LayerNormalization", [x, scale, bias], {"axis": -dims, "epsilon": 1e-3}
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_constant_row_far_from_zero_stays_finite():
    x = np.full((1, 1, 50), 1e4, np.float32)
    weights = {"scale": np.ones(1, np.float32), "bias": np.zeros(1, np.float32)}
    found = run("instance_norm", [x], InstanceNormAttrs(), weights)
    np.testing.assert_allclose(found, 0, atol=1e-4)


@given(st.integers(1, 6), st.sampled_from([1, 3, 5, 4]))
def test_lrn(channels, size):
    x = normal(2, channels, 3, 2)
    found = run("lrn", [x], LrnAttrs(0.3, 0.75, 1.5, size))
    expected = oracle.local_response(x, size, 0.3, 0.75, 1.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_lrn_like_onnxruntime():
    x = normal(2, 7, 3, 2)
    expected = onnx_reference("LRN", [x], {"alpha": 0.3, "beta": 0.75, "bias": 1.5, "size": 5})
    np.testing.assert_allclose(run("lrn", [x], LrnAttrs(0.3, 0.75, 1.5, 5)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "weights", "reason"),
    [
        ("batch_norm", [(3,)], None, {}, "needs channels"),
        ("batch_norm", [(1, 3)], None, {"bias": np.zeros(2)}, "2 values of bias"),
        ("group_norm", [(1, 3)], GroupNormAttrs(2), {}, "do not divide"),
        ("group_norm", [(1, 4), (3,)], GroupNormAttrs(2), {}, "does not fit"),
        ("layer_norm", [(1, 3)], LayerNormAttrs(), {}, "cannot reduce 0"),
        ("layer_norm", [(1, 3)], LayerNormAttrs(3), {}, "cannot reduce 3"),
        ("layer_norm", [(1, 3), (2,)], LayerNormAttrs(1), {}, "does not fit"),
        ("lrn", [(1, 3)], LrnAttrs(1.0, 1.0, 1.0, 0), {}, "below 1"),
    ],
)
def test_faults_name_the_node(op, shapes, attrs, weights, reason):
    with pytest.raises(GraphError, match=reason):
        infer(op, shapes, attrs, weights=weights)


@pytest.mark.parametrize("op", ["batch_norm", "instance_norm"])
def test_required_weights(op):
    assert ops.get(op).required_weights(None) == ("scale", "bias")
