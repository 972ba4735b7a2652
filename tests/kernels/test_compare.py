import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantjit.kernels.compare import (
    ENERGY,
    LARGEST,
    NOISE,
    PRODUCT,
    SIGNAL,
    compare_float_into,
    compare_int8_into,
    count_nonfinite,
)

levels = st.integers(-1000, 1000)  # whole numbers: float64 sums of their products are exact
singles = st.floats(width=32)


@given(st.lists(st.tuples(levels, levels), max_size=40), st.integers(0, 40))
def test_float_sums_are_exact_and_add_up(pairs, cut):
    x, y = np.array(pairs, np.float32).reshape(-1, 2).T.copy()
    sums = np.zeros(5)
    for part in (slice(None, cut), slice(cut, None)):
        compare_float_into(x[part], y[part], sums)
    assert list(sums) == oracle.comparison(x, y)


def test_sums_are_not_made_in_float32():
    sums = np.zeros(5)
    compare_float_into(np.float32([1, 1e30]), np.float32([2.0**-30, 0]), sums)
    large = float(np.float32(1e30))
    assert sums[SIGNAL] == 1 + large**2
    assert sums[PRODUCT] == 2.0**-30
    assert sums[ENERGY] == 2.0**-60
    assert sums[NOISE] == (1 - 2.0**-30) ** 2 + large**2
    assert sums[LARGEST] == large
    near = np.zeros(5)
    compare_float_into(np.float32([1]), np.float32([2.0**-30]), near)
    assert near[LARGEST] == 1 - 2.0**-30


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)),
    st.booleans(),
    st.integers(0, 999),
)
def test_int8_sums_are_those_of_the_real_values(shape, per_channel, seed):
    rng = np.random.default_rng(seed)
    count = shape[1] if per_channel else 1
    codes = rng.integers(-128, 128, shape).astype(np.int8)
    x = rng.integers(-200, 200, shape).astype(np.float32)
    scale = (2.0 ** rng.integers(-3, 3, count)).astype(np.float32)  # products stay exact
    scale[rng.random(count) < 0.2] = 0
    zero_point = rng.integers(-128, 128, count).astype(np.int8)
    found = np.full(5, 3.0)  # added to what is there
    compare_int8_into(x, codes, scale, zero_point, found)
    reals = oracle.to_reals(
        codes, oracle.by_channel(scale, 3), oracle.by_channel(zero_point, 3).astype(np.int64)
    )
    expected = oracle.comparison(x, reals)
    assert list(found[:LARGEST]) == [value + 3 for value in expected[:LARGEST]]
    assert found[LARGEST] == max(3, expected[LARGEST])


def test_int8_reals_are_not_rounded_to_float32():
    scale = np.float32([0.1])
    sums = np.zeros(5)
    compare_int8_into(
        np.zeros((1, 1, 1), np.float32), np.full((1, 1, 1), 127, np.int8), scale, np.int8([-128]),
        sums,
    )  # fmt: skip
    assert sums[LARGEST] == float(scale[0]) * 255
    assert sums[LARGEST] != np.float32(sums[LARGEST])


@given(st.lists(singles, max_size=20))
def test_count_nonfinite(values):
    found = count_nonfinite(np.array(values, np.float32))
    assert found == sum(value - value != 0 for value in values)


@pytest.mark.parametrize(("value", "count"), [(np.nan, 1), (np.inf, 1), (-np.inf, 1), (3e38, 0)])
def test_each_kind_counts(value, count):
    assert count_nonfinite(np.float32([0, value, 1e-45])) == count
