import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import infer, normal, onnx_reference, run

from quantjit.errors import GraphError
from quantjit.ops.reduce import OPS, ReduceAttrs

FUNCTIONS = {
    "reduce_mean": np.mean,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_sum": np.sum,
    "reduce_prod": np.prod,
    "reduce_l1": lambda x, **how: np.sum(np.abs(x), **how),
    "reduce_l2": lambda x, **how: np.sqrt(np.sum(x * x, **how)),
    "reduce_log_sum": lambda x, **how: np.log(np.sum(x, **how)),
    "reduce_log_sum_exp": lambda x, **how: np.log(np.sum(np.exp(x), **how)),
    "reduce_sum_square": lambda x, **how: np.sum(x * x, **how),
}


def samples(op, *shape, seed=0):
    x = normal(*shape, seed=seed)
    return np.abs(x) + np.float32(0.1) if op == "reduce_log_sum" else x


@given(st.data())
def test_like_numpy(data):
    op = data.draw(st.sampled_from([op.name for op in OPS]))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    keep_dims = data.draw(st.booleans())
    named = tuple(axis - len(shape) * data.draw(st.booleans()) for axis in axes)
    x = samples(op, *shape, seed=data.draw(st.integers(0, 9)))
    found = run(op, [x], ReduceAttrs(named, keep_dims))
    expected = FUNCTIONS[op](x.astype(np.float64), axis=tuple(axes) or None, keepdims=keep_dims)
    assert found.shape == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", [op.name for op in OPS])
def test_like_onnxruntime(op):
    x = samples(op, 2, 3, 4)
    name = "Reduce" + "".join(part.title() for part in op.split("_")[1:])
    expected = onnx_reference(name, [x], {"axes": [0, 2], "keepdims": 1}, opset=11)
    np.testing.assert_allclose(run(op, [x], ReduceAttrs((0, 2))), expected, rtol=1e-5, atol=1e-6)


def test_log_sum_exp_does_not_overflow():
    found = run("reduce_log_sum_exp", [np.float32([[500.0, 500.0]])], ReduceAttrs((1,)))
    np.testing.assert_allclose(found, [[500 + np.log(2)]], rtol=1e-6)


def test_the_axis_must_exist():
    with pytest.raises(GraphError, match="axis 2"):
        infer("reduce_sum", [(2, 3)], ReduceAttrs((2,)))
