import numpy as np
import pytest
from ops_runner import infer, normal, run

from quantjit.errors import GraphError
from quantjit.ops.choose import ExtremeAttrs

COMPARISONS = {
    "less": lambda x, y: x < y,
    "greater": lambda x, y: x > y,
    "less_or_equal": lambda x, y: x <= y,
    "greater_or_equal": lambda x, y: x >= y,
    "equal": lambda x, y: x == y,
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name):
    x, y = np.rint(normal(2, 3, 4)), np.rint(normal(3, 1, seed=1))
    found = run(name, [x, y])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, COMPARISONS[name](x, y))


def test_logic():
    x, y = np.float32([[0], [1]]), np.float32([0, 1, 5])
    np.testing.assert_array_equal(run("logical_and", [x, y]), [[0, 0, 0], [0, 1, 1]])
    np.testing.assert_array_equal(run("logical_or", [x, y]), [[0, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(run("logical_not", [y]), [1, 0, 0])


def test_where_takes_no_part_of_the_other():
    condition = np.float32([[1, 0, 1]])
    chosen, other = normal(2, 1), np.float32([np.nan, 7, np.inf])
    found = run("where", [condition, chosen, other])
    np.testing.assert_array_equal(found, np.where(condition, chosen, other))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_places_of_extremes(name, axis):
    x = np.rint(normal(3, 4, 5))
    found = run(name, [x], ExtremeAttrs(axis))
    np.testing.assert_array_equal(found, getattr(np, name)(x, axis=axis, keepdims=True))
    last = run(name, [x], ExtremeAttrs(axis, keep_dims=False, select_last=True))
    best = (x.max if name == "argmax" else x.min)(axis=axis, keepdims=True)
    places = np.arange(x.shape[axis]).reshape([-1 if i == axis % 3 else 1 for i in range(3)])
    np.testing.assert_array_equal(last, np.where(x == best, places, -1).max(axis=axis))
    with pytest.raises(GraphError, match="axis 3"):
        infer(name, [x.shape], ExtremeAttrs(3))


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("where", [(2,), (2,)], "3 operands"),
        ("less", [(2,)], "2 operands"),
        ("equal", [(2,), (3,)], "cannot be broadcast"),
    ],
)
def test_what_does_not_fit(name, shapes, message):
    with pytest.raises(GraphError, match=message):
        infer(name, shapes)
