"""What holds for the codes of every weight method."""

import numpy as np
import oracle
import pytest

from quantjit.solvers import WeightCodes, weight_solvers

SOLVERS = weight_solvers()


def weights(rows=4, columns=30, seed=0):
    w = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    return w * np.float32(10.0) ** np.arange(-2, rows - 2, dtype=np.float32)[:, None]


def decoded(made):
    zero = made.zero_point.astype(np.float64)[:, None]
    return made.scale.astype(np.float64)[:, None] * (made.codes - zero)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("compat", [False, True])
def test_shapes_types_and_signs(name, compat):
    w = weights()
    kept = w.copy()
    made = SOLVERS[name].quantize(w, compat)
    np.testing.assert_array_equal(w, kept)
    assert (made.codes.dtype, made.codes.shape) == (np.int8, w.shape)
    assert (made.scale.dtype, made.scale.shape) == (np.float32, (4,))
    assert (made.zero_point.dtype, made.zero_point.shape) == (np.int8, (4,))
    assert made.codes.min() >= -127
    assert (made.scale > 0).all()
    assert SOLVERS[name].symmetric == (not made.zero_point.any())
    share = np.abs(decoded(made) - w).max(axis=1) / np.abs(w).max(axis=1)
    assert (share < 0.15).all()


@pytest.mark.parametrize("name", ["minmax", "asymmetric"])
@pytest.mark.parametrize("compat", [False, True])
def test_whole_ranges_err_by_half_a_step(name, compat):
    w = weights(seed=1)
    made = SOLVERS[name].quantize(w, compat)
    half = made.scale[:, None].astype(np.float64) / 2
    assert (np.abs(decoded(made) - w) <= half * (1 + 1e-4)).all()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("compat", [False, True])
def test_a_row_of_zeros(name, compat):
    w = weights()
    w[1] = 0
    made = SOLVERS[name].quantize(w, compat)
    assert made.scale[1] == 0
    assert made.zero_point[1] == 0
    assert not made.codes[1].any()
    assert (made.scale[[0, 2, 3]] > 0).all()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("compat", [False, True])
def test_one_row_is_one_scale(name, compat):
    w = weights()
    made = SOLVERS[name].quantize(w.reshape(1, -1), compat)
    assert made.scale.shape == (1,)
    assert np.abs(decoded(made) - w.reshape(1, -1)).max() < 0.15 * np.abs(w).max()


def test_what_compat_changes():
    w = weights(rows=1, columns=200, seed=3)
    for name, reference in (
        ("minmax", oracle.tnn_minmax_weights),
        ("admm", oracle.tnn_admm_weights),
        ("asymmetric", oracle.tnn_asymmetric_weights),
    ):
        codes, step, *_ = reference(w[0])
        made = SOLVERS[name].quantize(w, True)
        np.testing.assert_array_equal(made.codes[0], codes)
        assert made.scale[0] == step
    same = [SOLVERS["mse"].quantize(w, compat) for compat in (False, True)]
    assert same[0].scale == same[1].scale


def test_mse_is_the_least():
    w = weights(seed=5)
    errors = {}
    for name in ("minmax", "admm", "mse"):
        made = SOLVERS[name].quantize(w, False)
        errors[name] = ((decoded(made) - w) ** 2).sum(axis=1)
    assert (errors["admm"] <= errors["minmax"]).all()
    assert (errors["mse"] <= errors["admm"] * (1 + 1e-6)).all()
    assert (errors["mse"] < errors["minmax"]).all()


def test_empty_codes():
    made = WeightCodes.empty(np.ones((2, 3), np.float32))
    assert made.codes.shape == (2, 3)
    assert not made.codes.any()
    assert not made.scale.any()
