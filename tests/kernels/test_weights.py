"""Steps and codes of weights: the original's bit by bit, the best ones against all there are."""

import numba
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantjit.kernels import weights as kernels

SYMMETRIC = {
    "absmax": kernels.absmax_weights_into,
    "absmax reference": kernels.absmax_weights_reference_into,
    "admm": kernels.admm_weights_into,
    "admm reference": kernels.admm_weights_reference_into,
    "least squares": kernels.least_squares_weights_into,
}


@st.composite
def rows(draw, most=40):
    """float32 (rows, columns) of weights of one kind."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, most)))
    kind = draw(st.sampled_from(["normal", "laplace", "cauchy", "steps", "sparse", "one-sided"]))
    w = {
        "normal": rng.normal,
        "laplace": rng.laplace,
        "cauchy": rng.standard_cauchy,
        "steps": lambda size: rng.integers(-127, 128, size) / 2,
        "sparse": lambda size: rng.normal(size=size) * (rng.random(size) < 0.2),
        "one-sided": rng.exponential,
    }[kind](size=shape)
    return (w * 10.0 ** draw(st.integers(-6, 4))).astype(np.float32)


def quantize(kernel, w):
    codes = np.full(w.shape, 0, np.int8)
    scale = np.full(w.shape[0], -1, np.float32)
    kernel(w, codes, scale)
    return codes, scale


def quantize_asymmetric(w):
    codes, zero = np.zeros(w.shape, np.int8), np.zeros(w.shape[0], np.int8)
    scale = np.full(w.shape[0], -1, np.float32)
    kernels.asymmetric_weights_into(w, codes, scale, zero)
    return codes, scale, zero


@given(rows())
def test_minmax_of_the_original(w):
    codes, scale = quantize(kernels.absmax_weights_reference_into, w)
    for r, row in enumerate(w):
        expected, step = oracle.tnn_minmax_weights(row)
        assert scale[r] == step
        np.testing.assert_array_equal(codes[r], expected)


@given(rows(12))
@settings(max_examples=20)
def test_admm_of_the_original(w):
    codes, scale = quantize(kernels.admm_weights_reference_into, w)
    for r, row in enumerate(w):
        expected, step = oracle.tnn_admm_weights(row)
        assert scale[r] == step
        np.testing.assert_array_equal(codes[r], expected)


@given(rows())
def test_asymmetric_of_the_original(w):
    codes, scale, zero = quantize_asymmetric(w)
    for r, row in enumerate(w):
        expected, step, place = oracle.tnn_asymmetric_weights(row)
        assert (scale[r], zero[r]) == (step, place)
        np.testing.assert_array_equal(codes[r], expected)


@given(rows())
@pytest.mark.parametrize("name", ["absmax", "admm", "least squares"])
def test_codes_are_the_nearest(name, w):
    codes, scale = quantize(SYMMETRIC[name], w)
    for r, row in enumerate(w):
        if row.any():
            assert scale[r] > 0
            np.testing.assert_array_equal(
                codes[r], np.clip(oracle.to_codes(row, scale[r]), -127, 127)
            )
        else:
            assert scale[r] == 0
            assert not codes[r].any()


@given(rows(24))
@settings(max_examples=25)
def test_least_squares_is_the_best_there_is(w):
    _, scale = quantize(kernels.least_squares_weights_into, w)
    for r, row in enumerate(w):
        if row.any():
            best = oracle.best_weight_error(row)
            squares = (row.astype(np.float64) ** 2).sum()  # the step is rounded to float32
            assert oracle.weight_error(row, scale[r]) <= best * (1 + 1e-6) + 1e-13 * squares


@given(rows())
def test_the_better_methods_are_never_worse(w):
    errors = {}
    for name in ("absmax", "admm", "least squares"):
        _, scale = quantize(SYMMETRIC[name], w)
        errors[name] = [
            oracle.weight_error(row, s) if s else 0 for row, s in zip(w, scale, strict=True)
        ]
    slack = 1e-13 * (w.astype(np.float64) ** 2).sum()
    for plain, admm, best in zip(*errors.values(), strict=True):
        assert admm <= plain + slack
        assert best <= admm + slack


@numba.njit(error_model="numpy")
def plain_admm_step(row, rounds):
    """Every round over every weight, as the paper has it; half away from zero."""
    step = np.float32(np.abs(row).max() / np.float32(127)) / np.float32(1.25)
    for _ in range(rounds):
        above, below = 0.0, 0.0
        for i in range(row.size):
            quotient = row[i] / step
            code = np.floor(np.abs(quotient) + np.float32(0.5))
            code = min(code, np.float32(127)) * np.sign(quotient)
            above += np.float64(row[i]) * np.float64(code)
            below += np.float64(code) * np.float64(code)
        step = np.float32(above / below)
    return step


def long_rows(kind, count, size, seed=0):
    rng = np.random.default_rng(seed)
    w = {
        "normal": rng.normal,
        "laplace": rng.laplace,
        "cauchy": rng.standard_cauchy,
        "uniform": lambda size: rng.uniform(-1, 1, size),
        "grid": lambda size: rng.integers(-20, 21, size) / 2,
        "outliers": lambda size: rng.normal(size=size) * np.where(rng.random(size) < 0.01, 50, 1),
    }[kind](size=(count, size))
    return w.astype(np.float32)


@pytest.mark.jit
@pytest.mark.parametrize("size", [255, 256, 1000, 4608])
@pytest.mark.parametrize("kind", ["normal", "laplace", "cauchy", "uniform", "grid", "outliers"])
def test_admm_is_what_1000_plain_rounds_give(kind, size):
    w = long_rows(kind, 12, size, size)
    codes, scale = quantize(kernels.admm_weights_into, w)
    fallen_back = 0
    for r, row in enumerate(w):
        step, plain = plain_admm_step(row, 1000), np.abs(row).max() / np.float32(127)
        if oracle.weight_error(row, step) >= oracle.weight_error(row, plain):
            step, fallen_back = plain, fallen_back + 1
        assert scale[r] == step
        np.testing.assert_array_equal(codes[r], np.clip(oracle.to_codes(row, step), -127, 127))
    assert fallen_back < len(w)


def test_admm_of_a_long_row():
    """Short enough for Python, long enough to leave weights out."""
    w = long_rows("outliers", 1, 260)
    _, scale = quantize(kernels.admm_weights_into, w)
    codes = np.clip(oracle.to_codes(w[0], scale[0]), -127, 127).astype(np.float64)
    fitted = np.float32((w[0].astype(np.float64) * codes).sum() / (codes**2).sum())
    assert scale[0] == fitted


@given(rows())
@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_methods_are_odd(name, w):
    codes, scale = quantize(SYMMETRIC[name], w)
    mirrored, same = quantize(SYMMETRIC[name], -w)
    np.testing.assert_array_equal(mirrored, -codes)
    np.testing.assert_array_equal(same, scale)


@given(rows(), st.integers(-20, 20))
@pytest.mark.parametrize("name", ["absmax", "absmax reference", "admm", "least squares"])
def test_a_power_of_two_moves_the_step_only(name, w, power):
    codes, scale = quantize(SYMMETRIC[name], w)
    same, scaled = quantize(SYMMETRIC[name], w * np.float32(2.0**power))
    np.testing.assert_array_equal(same, codes)
    np.testing.assert_array_equal(scaled, scale * np.float32(2.0**power))


@pytest.mark.parametrize("kernel", SYMMETRIC.values(), ids=list(SYMMETRIC))
def test_rows_do_not_meet(kernel):
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(5, 17)) * np.array([[1], [0], [100], [1e-4], [0]])).astype(np.float32)
    codes, scale = quantize(kernel, w)
    assert not codes[[1, 4]].any()
    assert not scale[[1, 4]].any()
    for r, row in enumerate(w):
        alone, step = quantize(kernel, row[None].copy())
        np.testing.assert_array_equal(codes[r], alone[0])
        assert scale[r] == step[0]


@pytest.mark.jit
@pytest.mark.parametrize("kernel", [*SYMMETRIC.values(), None], ids=[*SYMMETRIC, "asymmetric"])
def test_threads_do_not_show(kernel):
    w = np.random.default_rng(0).normal(size=(33, 65)).astype(np.float32)
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            results.append(quantize(kernel, w) if kernel else quantize_asymmetric(w))
    finally:
        numba.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("name", ["absmax", "admm", "least squares"])
def test_codes_that_are_exact_are_kept(name):
    w = np.array([[63.5, -1, 0.5, 0, 20]], np.float32)
    codes, scale = quantize(SYMMETRIC[name], w)
    np.testing.assert_array_equal(codes * scale, w)
    assert scale[0] == 0.5


def test_halves_are_rounded_away_from_zero():
    w = np.array([[127, 0.5, -0.5, 1.5, -2.5, 126.5, -126.5, 0.499]], np.float32)
    for name in ("absmax", "absmax reference"):
        codes, scale = quantize(SYMMETRIC[name], w)
        assert scale[0] == 1
        np.testing.assert_array_equal(codes[0], [127, 1, -1, 2, -3, 127, -127, 0])


def test_asymmetric_ranges_hold_zero():
    w = np.array([[1, 2, 3], [-3, -2, -1], [0, 0, 0]], np.float32)
    codes, scale, zero = quantize_asymmetric(w)
    np.testing.assert_array_equal(zero, [-127, 127, 0])
    np.testing.assert_array_equal(scale, np.array([3, 3, 0], np.float32) / np.float32(254))
    np.testing.assert_array_equal(codes, [[-42, 42, 127], [-127, -42, 42], [0, 0, 0]])


def test_an_outlier_is_clipped_only_where_it_pays():
    rng = np.random.default_rng(0)
    # With n weights of uniform rounding error the best threshold is outlier / (1 + n / 193548).
    for outlier, n, least, most in ((8, 20_000, 7.1, 7.4), (100, 2000, 97, 100)):
        w = rng.normal(size=(1, n)).astype(np.float32)
        w[0, 0] = outlier
        codes, scale = quantize(kernels.least_squares_weights_into, w)
        assert codes[0, 0] == 127
        assert least < 127 * scale[0] <= most
