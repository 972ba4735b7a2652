"""Kernels of statistics, one at a time; `tests/test_stats.py` has what they make together."""

import math

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantjit.kernels import histogram as kernels

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=9))
def test_order_keys_are_in_order_and_come_back(values):
    x = np.array(values, np.float32)
    keys, back = np.zeros(x.size, np.int32), np.zeros(x.size, np.int32)
    kernels.order_keys(x.view(np.int32), keys)
    kernels.order_keys(keys, back)
    np.testing.assert_array_equal(back, x.view(np.int32))
    ranked = x[np.argsort(keys, kind="stable")]
    np.testing.assert_array_equal(ranked, np.sort(x))
    np.testing.assert_array_equal(np.unique(keys).size, np.unique(x.view(np.int32)).size)


def test_order_keys_of_special_values():
    x = np.array([-np.inf, -0.0, 0.0, np.inf], np.float32)
    keys = np.zeros(4, np.int32)
    kernels.order_keys(x.view(np.int32), keys)
    np.testing.assert_array_equal(keys, [~kernels.INFINITE_KEY, -1, 0, kernels.INFINITE_KEY])


@given(st.integers(1, 6), st.integers(0, 200), st.integers(0, 99))
@pytest.mark.parametrize("dtype", [np.uint32, np.int64])
def test_widen_adds_neighbours(dtype, log_bins, shift, seed):
    bins = 2**log_bins
    counts = np.random.default_rng(seed).integers(0, 1000, bins).astype(dtype)
    run = 2 ** min(shift, log_bins)
    expected = np.zeros(bins, dtype)
    expected[: bins // run] = counts.reshape(-1, run).sum(axis=1)
    kernels.widen(counts, shift)
    np.testing.assert_array_equal(counts, expected)


@given(st.lists(finite, min_size=1, max_size=70))
def test_one_plane_sums_are_exact_where_float64_is(values):
    """Sums of one value are exact; of more they are those of math.fsum to float64's rounding."""
    x = np.array(values, np.float32).reshape(1, 1, -1)
    state = (
        np.zeros((1, 8), np.uint32),
        np.full(1, kernels.UNUSED, np.int64),
        np.array([[kernels.INFINITE_KEY, ~kernels.INFINITE_KEY]], np.int32),
        np.zeros((1, 3), np.int64),
        np.zeros((1, 3, kernels.LIMBS), np.int64),
    )
    kernels.observe_into(x, *state)
    wide = x.ravel().astype(np.float64)
    for place, terms in enumerate((wide, np.abs(wide), wide**2)):
        limbs = state[4][0, place].tolist()
        total = sum(limb << 32 * i for i, limb in enumerate(limbs)) / (1 << -kernels.UNIT)
        slack = 0 if x.size == 1 else x.size * 2**-52 * math.fsum(np.abs(terms))
        assert abs(total - math.fsum(terms)) <= slack


@given(st.lists(finite, min_size=12, max_size=12), st.booleans())
def test_range(values, merged):
    x = np.array(values, np.float32).reshape(2, 3, 2)
    minimum = np.full(1 if merged else 3, 1e6, np.float32)
    maximum = -minimum
    kernels.range_into(x, minimum, maximum)
    axis = None if merged else (0, 2)
    np.testing.assert_array_equal(minimum, np.minimum(x.min(axis=axis), np.float32(1e6)).ravel())
    np.testing.assert_array_equal(maximum, np.maximum(x.max(axis=axis), np.float32(-1e6)).ravel())


@given(st.integers(1, 40), st.integers(0, 99))
def test_mean_magnitudes_are_float32_in_order(size, seed):
    x = np.random.default_rng(seed).normal(size=(3, size)).astype(np.float32)
    means = np.zeros(3, np.float32)
    kernels.mean_magnitudes_into(x, means)
    expected = [oracle.float32_sum(np.abs(row)) / np.float32(size) for row in x]
    np.testing.assert_array_equal(means, np.array(expected, np.float32))


@given(st.integers(0, 99), st.booleans(), st.floats(1, 60, width=32))
def test_linear_counts(seed, merged, per_unit):
    x = np.random.default_rng(seed).normal(size=(2, 3, 5)).astype(np.float32)
    x[0, :, 0] = 0
    rows = 1 if merged else 3
    factors = np.full(rows, per_unit, np.float32)
    if not merged:
        factors[1] = 0
    counts = np.full((rows, 16), 1e-7, np.float32)
    kernels.count_linear_into(x, factors, counts)
    for row, group in enumerate([x] if merged else [x[:, c] for c in range(3)]):
        if factors[row] == 0:
            np.testing.assert_array_equal(counts[row], np.full(16, 1e-7, np.float32))
        else:
            np.testing.assert_array_equal(counts[row], oracle.linear_counts(group, per_unit, 16))


def test_linear_counts_end_where_float32_does():
    counts = np.full((1, 4), 2**24 - 1, np.float32)
    kernels.count_linear_into(np.ones((1, 1, 3), np.float32), np.ones(1, np.float32), counts)
    np.testing.assert_array_equal(counts[0], [2**24 - 1, 2**24, 2**24 - 1, 2**24 - 1])
