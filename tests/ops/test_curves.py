import numpy as np
import oracle
import pytest
from ops_runner import infer, normal, onnx_reference, run

from quantjit.errors import GraphError
from quantjit.ops.curves import CurveAttrs

CURVES = {
    "mish": (0.0, 0.0),
    "gelu_erf": (0.0, 0.0),
    "scaled_swish": (1.702, 0.0),
    "selu": (1.67, 1.05),
    "celu": (1.5, 0.0),
    "softsign": (0.0, 0.0),
    "thresholded_relu": (0.7, 0.0),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("shape", [(1,), (2, 3, 4, 5)])
def test_curves(name, shape):
    x = normal(*shape, scale=3)
    found = run(name, [x], CurveAttrs(*CURVES[name]))
    np.testing.assert_allclose(found, oracle.curve(name, x, *CURVES[name]), rtol=2e-6, atol=2e-7)
    assert infer(name, [shape], CurveAttrs(*CURVES[name])) == (shape,)


@pytest.mark.parametrize("name", CURVES)
def test_curves_of_extreme_values(name):
    x = np.float32([-3e38, -1e4, -100, -0.0, 0.0, 100, 1e4, 3e38])
    found = run(name, [x], CurveAttrs(*CURVES[name]))
    assert not np.isnan(found).any()
    assert not (found[4:] < 0).any()


def test_celu_without_alpha():
    with pytest.raises(GraphError, match="alpha of celu is 0"):
        infer("celu", [(2,)], CurveAttrs())


@pytest.mark.parametrize(
    ("name", "onnx_name", "opset"),
    [("mish", "Mish", 18), ("gelu_erf", "Gelu", 20), ("softsign", "Softsign", 17)],
)
def test_like_onnxruntime(name, onnx_name, opset):
    x = normal(2, 3, 4, scale=3)
    expected = onnx_reference(onnx_name, [x], opset=opset)
    np.testing.assert_allclose(run(name, [x], CurveAttrs()), expected, rtol=2e-5, atol=1e-6)


def test_round_and_sign():
    x = np.float32([-2.5, -1.5, -0.5, 0, 0.5, 1.5, 2.5, 2.6])
    np.testing.assert_array_equal(run("round", [x]), [-2, -2, 0, 0, 0, 2, 2, 3])
    np.testing.assert_array_equal(run("sign", [x]), [-1, -1, -1, 0, 1, 1, 1, 1])


def test_power_of_blobs():
    x, y = np.abs(normal(2, 1, 4)), normal(3, 1, seed=1)
    np.testing.assert_allclose(run("pow", [x, y]), np.float64(x) ** y, rtol=1e-5)
    with pytest.raises(GraphError, match="cannot be broadcast"):
        infer("pow", [(2, 3), (4,)])
    with pytest.raises(GraphError, match="two operands"):
        infer("pow", [(2, 3)])
