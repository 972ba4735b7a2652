"""Solvers on data whose best answer can be derived or is published."""

from statistics import NormalDist

import numpy as np
import pytest

from quantjit.onnx_target import blob_scale
from quantjit.solvers import blob_solvers, weight_solvers
from quantjit.stats import BlobStats

BLOBS, WEIGHTS = blob_solvers(), weight_solvers()
CLIPPING = ("mse", "noise", "kl", "percentile")


def gather(x, bins=4096):
    stats = BlobStats(1, bins)
    stats.update(np.asarray(x, np.float32).reshape(1, 1, -1))
    return stats


def gaussian(count):
    """Quantiles of the unit normal, as even as its density allows, both signs."""
    inverse = NormalDist().inv_cdf
    half = np.array([inverse(0.5 + 0.5 * (i + 0.5) / (count // 2)) for i in range(count // 2)])
    return np.concatenate([half, -half])


def laplacian(count):
    half = -np.log(1 - (np.arange(count // 2) + 0.5) / (count // 2))
    return np.concatenate([half, -half])


@pytest.mark.jit
@pytest.mark.parametrize(
    ("draw", "bits", "published"),
    [
        (gaussian, 8, 3.92),
        (gaussian, 6, 3.28),
        (gaussian, 4, 2.55),
        (laplacian, 8, 9.89),
        (laplacian, 6, 7.41),
        (laplacian, 4, 5.03),
    ],
)
def test_the_least_squared_error_is_where_aciq_has_it(draw, bits, published):
    """Banner et al., arXiv 1810.05723, table of the best clipping by bits."""
    stats = gather(draw(400_000))
    found = BLOBS["mse"].threshold(stats, 2 ** (bits - 1) - 1)[0]
    assert found == pytest.approx(published, rel=0.06)


@pytest.mark.parametrize(("draw", "name"), [(gaussian, "gauss"), (laplacian, "laplace")])
def test_aciq_finds_its_own_constant(draw, name):
    factor = {"gauss": 3.92, "laplace": 9.89}[name]
    x = draw(4000)
    x[0] = 50 * np.sign(x[0])  # so that nothing is cut off by the range
    moment = np.sqrt((x**2).mean()) if name == "gauss" else np.abs(x).mean()
    found = BLOBS[f"aciq-{name}"].solve(gather(x)).scale[0] * 127
    assert found == pytest.approx(factor * moment, rel=2e-3)


@pytest.mark.parametrize("name", CLIPPING)
def test_of_uniform_values_nothing_is_clipped(name):
    x = (np.arange(5000) + 0.5) / 5000
    found = BLOBS[name].threshold(gather(np.concatenate([x, -x])), 127)[0]
    # the last code serves half a step above it, too: least squares has 127.5 steps in the range
    expected = 127 / 127.5 if name == "mse" else 1.0
    assert found == pytest.approx(expected, rel=3e-3 if name == "noise" else 1e-3)


@pytest.mark.jit
@pytest.mark.parametrize("codes", [127, 255])
@pytest.mark.parametrize("outliers", [1, 3])
@pytest.mark.parametrize(("name", "weight"), [("mse", 1), ("noise", 4)])
def test_few_outliers_are_worth_what_their_squares_say(name, weight, codes, outliers):
    """d/dT of weight outliers (far - T)**2 + count T**2 / (12 codes**2) is 0 at this T."""
    count, far = 30_000, 100.0
    body = (np.arange(count) + 0.5) / count * 40
    stats = gather(np.concatenate([body, np.full(outliers, far)]))
    expected = far / (1 + count / (12 * codes**2 * outliers * weight))
    assert BLOBS[name].threshold(stats, codes)[0] == pytest.approx(expected, rel=0.02)


@pytest.mark.jit
@pytest.mark.parametrize("name", CLIPPING)
def test_a_single_outlier_is_clipped(name):
    x = np.concatenate([np.random.default_rng(0).normal(0, 1, 60_000), [50.0]])
    found = BLOBS[name].threshold(gather(x), 127)[0]
    assert found < 48 if name in {"mse", "noise"} else found < 8


@pytest.mark.jit
@pytest.mark.parametrize("name", CLIPPING)
def test_a_far_mode_of_weight_is_kept(name):
    """Half of the values near 1, half near 10: to clip the second costs more than any step."""
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(0.9, 1.1, 10_000), rng.uniform(9.9, 10.1, 10_000)])
    assert BLOBS[name].threshold(gather(x), 127)[0] >= 9.9


@pytest.mark.jit
@pytest.mark.parametrize("name", CLIPPING)
def test_a_relu_changes_no_threshold_but_the_percentile(name):
    """Zeros are exact with any step: what is left of a cut blob decides."""
    x = np.abs(np.random.default_rng(2).normal(0, 1, 20_000))
    cut = np.concatenate([x, np.zeros(20_000)])
    found, expected = (BLOBS[name].threshold(gather(each), 127)[0] for each in (cut, x))
    if name == "percentile":
        assert found < expected
    else:
        assert found == expected


@pytest.mark.jit
@pytest.mark.parametrize("name", BLOBS)
def test_relu6_never_gets_a_range_above_6(name):
    if not BLOBS[name].symmetric:
        pytest.skip("decides its own zero point")
    x = np.clip(np.random.default_rng(3).normal(2, 4, 20_000), 0, 6)
    found = blob_scale(gather(x), BLOBS[name], symmetric=False)
    assert found.zero_point[0] == -128
    assert float(found.scale[0]) * 255 <= 6
    assert BLOBS[name].solve(gather(x)).scale[0] * 127 <= 6 * (1 + 1e-6)
    seen = blob_scale(gather(x / 4), BLOBS[name], symmetric=False)
    assert float(seen.scale[0]) * 255 <= 1.5, "what was seen ends below 6"


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (-3.0, 1.0), (-0.1, 5.0)])
def test_a_skewed_blob_spends_its_codes_where_its_values_are(low, high):
    """Uniform values over the range: all 256 codes, the zero point at -low / step."""
    stats = gather(np.linspace(low, high, 4001))
    for name in ("minmax", "mse"):
        found = blob_scale(stats, BLOBS[name], symmetric=False)
        step = (high - low) / 255
        assert float(found.scale[0]) == pytest.approx(step, rel=0.01)
        assert int(found.zero_point[0]) == pytest.approx(-128 - low / step, abs=1.01)


@pytest.mark.parametrize("step", [1.0, 0.0123])
def test_weights_that_lie_on_a_grid_are_found_again(step):
    """Of a network that was trained with int8 weights: the largest code need not be in use."""
    codes = np.random.default_rng(4).integers(-100, 101, (3, 400))
    codes[:, 0] = 100
    weights = (codes * step).astype(np.float32)
    made = WEIGHTS["mse"].quantize(weights, False)
    errors = np.abs(made.codes * made.scale[:, None] - weights).max()
    plain = WEIGHTS["minmax"].quantize(weights, False)
    assert errors <= 1e-3 * step
    assert np.abs(plain.codes * plain.scale[:, None] - weights).max() > 0.2 * step


@pytest.mark.parametrize("name", ["minmax", "admm", "mse"])
def test_rows_of_two_magnitudes_are_exact(name):
    """+-a and 0: two codes and the zero hold everything, for each row its own a."""
    signs = np.random.default_rng(5).integers(-1, 2, (4, 50))
    weights = (signs * np.array([[1.0], [0.3], [1e-3], [70.0]])).astype(np.float32)
    made = WEIGHTS[name].quantize(weights, False)
    np.testing.assert_allclose(made.codes * made.scale[:, None], weights, rtol=1e-5)


@pytest.mark.parametrize("name", ["admm", "mse"])
def test_methods_that_search_are_not_worse_than_minmax(name):
    weights = np.random.default_rng(6).laplace(0, 1, (6, 300)).astype(np.float32)

    def error(made):
        return ((made.codes * made.scale[:, None] - weights) ** 2).sum(axis=1)

    best = error(WEIGHTS[name].quantize(weights, False))
    assert (best <= error(WEIGHTS["minmax"].quantize(weights, False)) * (1 + 1e-6)).all()
