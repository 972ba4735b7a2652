import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import infer, normal, onnx_reference, run

from quantjit.errors import GraphError
from quantjit.ops.softmax import SoftmaxAttrs


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(-4, 3), st.integers(0, 9))
def test_both_over_any_axis(shape, axis, seed):
    axis %= len(shape)
    x = normal(*shape, seed=seed, scale=3)
    expected = oracle.softmax(x, axis)
    for attrs in (SoftmaxAttrs(axis), SoftmaxAttrs(axis - len(shape))):
        np.testing.assert_allclose(run("softmax", [x], attrs), expected, rtol=1e-5)
        np.testing.assert_allclose(
            run("log_softmax", [x], attrs), np.log(expected), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(("op", "onnx"), [("softmax", "Softmax"), ("log_softmax", "LogSoftmax")])
def test_like_onnxruntime(op, onnx):
    x = normal(2, 3, 4)
    expected = onnx_reference(onnx, [x], {"axis": 1})
    np.testing.assert_allclose(run(op, [x], SoftmaxAttrs(1)), expected, rtol=1e-5, atol=1e-6)


def test_large_logits_neither_overflow_nor_underflow():
    x = np.float32([[1000.0, 0.0, -1000.0]])
    np.testing.assert_array_equal(run("softmax", [x], SoftmaxAttrs(1)), [[1, 0, 0]])
    np.testing.assert_array_equal(run("log_softmax", [x], SoftmaxAttrs(1)), [[0, -1000, -2000]])


def test_the_axis_must_exist():
    with pytest.raises(GraphError, match="axis 2"):
        infer("softmax", [(2, 3)], SoftmaxAttrs(2))
