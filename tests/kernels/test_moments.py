"""Moments of codes and the descent on them, against sums and products in NumPy."""

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantjit.kernels import moments


@st.composite
def layers(draw):
    whole = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    channels, size = whole(1, 3), (whole(1, 6), whole(1, 6))
    kernel, stride = (whole(1, 3), whole(1, 3)), (whole(1, 2), whole(1, 2))
    dilation, pads = (whole(1, 2), whole(1, 2)), (whole(0, 2), whole(0, 2))
    out = (whole(1, 4), whole(1, 4))
    geometry = np.array([*kernel, *stride, *pads, *dilation, *out], np.int64)
    rng = np.random.default_rng(whole(0, 2**31))
    image = rng.integers(-255, 256, (channels, *size)).astype(np.int16)
    return geometry, image, (kernel, stride, pads, dilation, out)


@given(layers(), st.integers(1, 3))
def test_patches_and_rests(layer, block):
    geometry, image, facts = layer
    expected = oracle.patches(image.astype(np.int64), *facts)
    out_h, out_w = geometry[8:]
    found = np.zeros_like(expected)
    for first in range(0, out_h, block):
        rows = min(block, out_h - first)
        part = np.full((len(expected), block * out_w), 77, np.int16)
        moments.lay_patches_into(image, geometry, first, rows, part)
        count = rows * out_w
        found[:, first * out_w : first * out_w + count] = part[:, :count]
        assert (part[:, count:] == 77).all()
    np.testing.assert_array_equal(found, expected)
    sums = np.ones(len(expected), np.int64)
    moments.add_rest(image.astype(np.int64), geometry, sums)
    np.testing.assert_array_equal(sums, 1 + expected.sum(axis=1))


@pytest.mark.parametrize(("groups", "size", "count"), [(1, 1, 1), (1, 5, 7), (3, 4, 9), (2, 9, 2)])
def test_sums_and_products_are_exact(groups, size, count):
    rng = np.random.default_rng(size)
    patches = rng.integers(-255, 256, (groups * size, count + 2)).astype(np.int16)
    sums = np.zeros(groups * size, np.int64)
    products = np.zeros((groups, size, size), np.int64)
    for _ in range(2):
        moments.add_moments(patches, count, sums, products)
    seen = patches[:, :count].astype(np.int64)
    np.testing.assert_array_equal(sums, 2 * seen.sum(axis=1))
    for group in range(groups):
        each = seen[group * size : (group + 1) * size]
        np.testing.assert_array_equal(products[group], np.tril(2 * each @ each.T))


@pytest.mark.jit
def test_the_largest_codes_do_not_overflow():
    patches = np.full((2, moments.MOST_PIXELS), -255, np.int16)
    sums, products = np.zeros(2, np.int64), np.zeros((1, 2, 2), np.int64)
    moments.add_moments(patches, moments.MOST_PIXELS, sums, products)
    assert (products[0] == np.tril(np.full((2, 2), 255**2 * moments.MOST_PIXELS))).all()


@pytest.mark.parametrize("lowest", [-127, -128])
def test_codes_and_what_they_leave_out(lowest):
    image = np.array([[[0.0, 0.6, -0.6, 1000.0]], [[np.nan, 2.0, -1000.0, 0.26]]], np.float32)
    steps, zeros = np.array([0.5, 0.25], np.float32), np.array([0, -28], np.int8)
    codes, rest = np.zeros(image.shape, np.int16), np.zeros(image.shape, np.int64)
    moments.encode_into(image, steps, zeros, lowest, codes, rest)
    low = lowest + 28
    np.testing.assert_array_equal(codes, [[[0, 1, -1, 127]], [[0, 8, low, 1]]])
    real = np.nan_to_num(image.astype(np.float64)) / steps[:, None, None]
    np.testing.assert_allclose(rest / moments.REST_UNITS, real - codes, atol=1e-5)


def test_the_rest_of_any_number_is_finite():
    image = np.array([[[np.inf, -np.inf, 3e38, -3e38]]], np.float32)
    codes, rest = np.zeros(image.shape, np.int16), np.zeros(image.shape, np.int64)
    moments.encode_into(
        image, np.array([1e-30], np.float32), np.zeros(1, np.int8), -127, codes, rest
    )
    np.testing.assert_array_equal(codes, [[[127, -127, 127, -127]]])
    assert (np.abs(rest) <= 2**46).all()
    moments.encode_into(image, np.zeros(1, np.float32), np.zeros(1, np.int8), -127, codes, rest)


def descend(weights, steps, second, codes, limit=127, sweeps=50):
    limits = np.array([[-limit] * len(weights), [limit] * len(weights)])
    found = codes.copy()
    moments.descend_into(weights, steps, second, limits, sweeps, np.empty_like(weights), found)
    return found


def test_independent_inputs_are_best_rounded_to_nearest():
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 20, (3, 5))
    steps, second = np.array([1.0, 0.5, 2.0]), np.diag(rng.uniform(0.5, 2, 5))[None]
    nearest = np.rint(weights / steps[:, None]).astype(np.int64)
    start = nearest + rng.integers(-3, 4, nearest.shape)
    np.testing.assert_array_equal(descend(weights, steps, second, start), nearest)


def test_what_one_weight_loses_another_gives_back():
    """Two inputs that are always equal: only the sum of their weights counts."""
    weights, steps = np.array([[0.4, 0.4], [1.3, 1.3]]), np.ones(2)
    second = np.ones((1, 2, 2))
    found = descend(weights, steps, second, np.rint(weights).astype(np.int64))
    np.testing.assert_array_equal(found.sum(axis=1), [1, 3])


def test_codes_stay_within_their_limits_and_dead_inputs_keep_theirs():
    weights, steps = np.array([[9.0, -9.0, 4.0]]), np.ones(1)
    second = np.diag([1.0, 1.0, 0.0])[None]
    found = descend(weights, steps, second, np.array([[0, 0, 2]]), limit=7)
    np.testing.assert_array_equal(found, [[7, -7, 2]])


@given(st.integers(0, 2**31), st.integers(1, 2), st.integers(1, 6), st.integers(1, 3))
def test_no_step_raises_the_error_and_no_single_change_lowers_it(seed, groups, size, share):
    rng = np.random.default_rng(seed)
    rows = groups * share
    weights, steps = rng.normal(0, 3, (rows, size)), rng.uniform(0.2, 1.5, rows)
    inputs = rng.normal(0, 1, (groups, size, size + 2))
    second = inputs @ inputs.transpose(0, 2, 1)
    codes = np.clip(np.rint(weights / steps[:, None]), -9, 9).astype(np.int64)
    found = descend(weights, steps, second, codes, limit=9, sweeps=1000)
    assert (np.abs(found) <= 9).all()
    for row in range(rows):
        mine = slice(row, row + 1)

        def error(each, mine=mine, group=row // share):
            return oracle.output_error(weights[mine], steps[mine], each, second[group])[0]

        best = error(found[mine])
        assert best <= error(codes[mine]) + 1e-9
        for place in range(size):
            for change in (-1, 1):
                other = found[mine].copy()
                other[0, place] += change
                if abs(other[0, place]) <= 9:
                    assert best <= error(other) + 1e-9
