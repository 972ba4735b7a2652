import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import infer, make_node, normal, onnx_reference, run

from quantjit import ops
from quantjit.errors import GraphError
from quantjit.ops.matmul import MatMulAttrs


@st.composite
def operands(draw):
    """Two shapes that can be multiplied, leading dimensions broadcast."""
    n, k, m = (draw(st.integers(1, 6)) for _ in range(3))
    leading = draw(st.lists(st.integers(1, 3), max_size=2))
    shapes = []
    for tail in ((n, 8 * k - 7), (8 * k - 7, m)):  # depths past one block of 32
        kept = leading[draw(st.integers(0, len(leading))) :]
        shapes.append((*[size if draw(st.booleans()) else 1 for size in kept], *tail))
    return shapes


@given(operands(), st.sampled_from((-1, 0, 1)), st.integers(0, 99))
def test_matches_numpy_and_onnxruntime(shapes, constant, seed):
    arrays = [normal(*shape, seed=seed + i) for i, shape in enumerate(shapes)]
    blobs, weights = list(arrays), {}
    if constant >= 0:
        weights["weight"] = blobs.pop(constant)
    found = run("matmul", blobs, MatMulAttrs(constant), weights)
    exact = np.matmul(arrays[0].astype(np.float64), arrays[1].astype(np.float64))
    assert found.shape == exact.shape
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=2e-5)
    expected = onnx_reference("MatMul", arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("constant", [0, 1])
def test_a_half_constant_is_widened(constant):
    arrays = [normal(2, 3, 5), normal(5, 4, seed=1)]
    half = arrays[constant].astype(np.float16)
    arrays[constant] = half.astype(np.float32)
    expected = np.matmul(*[x.astype(np.float64) for x in arrays])
    found = run("matmul", [arrays[1 - constant]], MatMulAttrs(constant), {"weight": half})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_batch_is_its_matrices():
    left, right = normal(3, 2, 40), normal(40, 5, seed=1)
    whole = run("matmul", [left, right], MatMulAttrs())
    for n in range(3):
        np.testing.assert_array_equal(run("matmul", [left[n], right], MatMulAttrs()), whole[n])


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ([(2, 3), (4, 5)], "cannot multiply shapes"),
        ([(3,), (3, 5)], "cannot multiply shapes"),
        ([(2, 3)], "cannot multiply shapes"),
        ([(2, 3), (3, 4), (4, 5)], "cannot multiply shapes"),
        ([(2, 2, 3), (3, 3, 5)], r"cannot broadcast \(2,\) and \(3,\)"),
    ],
)
def test_bad_shapes(shapes, match):
    with pytest.raises(GraphError, match=match):
        infer("matmul", shapes, MatMulAttrs())


def test_a_constant_must_be_there():
    with pytest.raises(GraphError, match="has no weight"):
        infer("matmul", [(2, 3)], MatMulAttrs(1))


def test_counts():
    form = ops.get("matmul")
    node = make_node("matmul", MatMulAttrs(), 2)
    assert form.macs(node, [(2, 4, 3), (3, 5)], [(2, 4, 5)]) == 2 * 4 * 3 * 5
    assert form.required_weights(MatMulAttrs()) == ()
    assert form.required_weights(MatMulAttrs(0)) == ("weight",)
