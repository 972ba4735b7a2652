import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import infer, normal, onnx_reference, run

from quantjit.errors import GraphError
from quantjit.ops.linear_codes import CodesAttrs

RANGES = {np.int8: (-128, 127), np.uint8: (0, 255)}


def weights(scale, zero):
    return {"scale": np.float32(scale).reshape(-1), "zero_point": np.int32(zero).reshape(-1)}


@given(st.integers(-130, 130), st.floats(0.015625, 2.0, width=32), st.integers(0, 255))
def test_codes_are_rounded_half_to_even(start, scale, zero):
    steps = np.arange(start, start + 40, dtype=np.float32) / 2  # whole and half steps
    x = steps * np.float32(scale)
    found = run("quantize_linear", [x], CodesAttrs(0, 0, 255), weights(scale, zero))
    np.testing.assert_array_equal(found, oracle.linear_codes(x, scale, zero, 0, 255))


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("per_axis", [False, True])
def test_like_onnxruntime(dtype, per_axis):
    x = normal(2, 3, 4, scale=3)
    low, high = RANGES[dtype]
    scale = np.float32([0.02, 0.05, 0.01] if per_axis else [0.02])
    zero = np.array([3, 0, 100] if per_axis else [7], dtype)
    codes = run("quantize_linear", [x], CodesAttrs(1, low, high), weights(scale, zero))
    column = (1, -1, 1)
    expected = oracle.linear_codes(x, scale.reshape(column), zero.reshape(column), low, high)
    np.testing.assert_array_equal(codes, expected)
    found = run("dequantize_linear", [codes], CodesAttrs(1), weights(scale, zero))
    inputs = [scale, zero] if per_axis else [scale[0], zero[0]]
    reals = onnx_reference(
        "DequantizeLinear", [codes.astype(dtype), *map(np.asarray, inputs)], {"axis": 1}
    )
    np.testing.assert_array_equal(found, reals)


def test_scales_that_do_not_fit():
    with pytest.raises(GraphError, match="2 values of scale do not fit"):
        infer("quantize_linear", [(1, 3, 4)], CodesAttrs(1), weights=weights([1, 2], [0, 0]))
    with pytest.raises(GraphError, match="do not fit"):
        infer("dequantize_linear", [(3,)], CodesAttrs(1), weights=weights([1, 2, 3], 0))
