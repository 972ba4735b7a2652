"""What holds for the thresholds of every blob method, and what each of them is known to answer."""

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantjit.solvers import blob_solvers
from quantjit.stats import BlobStats

SOLVERS = blob_solvers()
SYMMETRIC = [name for name, solver in SOLVERS.items() if solver.symmetric]
BY_MOMENTS = {"aciq-gauss", "aciq-laplace"}
BINS = 512


def gather(x, channels=1, bins=BINS):
    stats = BlobStats(channels, bins)
    stats.update(np.asarray(x, np.float32))
    return stats


def draw_blob(kind, seed, size=1500):
    """float32 (1, 1, size)."""
    rng = np.random.default_rng(seed)
    x = {
        "normal": rng.normal,
        "laplace": rng.laplace,
        "relu": lambda size: np.maximum(rng.normal(size=size), 0),
        "uniform": lambda size: rng.uniform(-1, 3, size),
        "heavy": lambda size: rng.standard_t(2, size),
        "shifted": lambda size: rng.normal(5, 1, size),
        "negative": lambda size: -rng.exponential(size=size),
    }[kind](size=size)
    return x.astype(np.float32)[None, None]


kinds = st.sampled_from(["normal", "laplace", "relu", "uniform", "heavy", "shifted", "negative"])


def thresholds(name, stats):
    params = SOLVERS[name].solve(stats)
    return params.scale.astype(np.float64) * 127


@given(kinds, st.integers(0, 99), st.integers(20, 1500), st.floats(1e-6, 1e6))
@settings(max_examples=20)
@pytest.mark.parametrize("name", SYMMETRIC)
def test_thresholds_are_inside_the_range(name, kind, seed, size, factor):
    stats = gather(draw_blob(kind, seed, size) * np.float32(factor))
    params = SOLVERS[name].solve(stats)
    assert params.scale.dtype == np.float32
    assert not params.zero_point.any()
    assert 0 < thresholds(name, stats)[0] <= stats.absmax[0] * (1 + 1e-6)


@given(kinds, st.integers(0, 99), st.integers(-60, 60))
@settings(max_examples=15)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_power_of_two_moves_the_scale_only(name, kind, seed, power):
    x = draw_blob(kind, seed)
    params = SOLVERS[name].solve(gather(x))
    scaled = SOLVERS[name].solve(gather(x * np.float32(2.0**power)))
    np.testing.assert_array_equal(scaled.scale, params.scale * np.float32(2.0**power))
    np.testing.assert_array_equal(scaled.zero_point, params.zero_point)


@given(kinds, st.integers(0, 99))
@settings(max_examples=10)
@pytest.mark.parametrize("name", SYMMETRIC)
def test_signs_do_not_matter(name, kind, seed):
    x = draw_blob(kind, seed)
    assert SOLVERS[name].solve(gather(x)) == SOLVERS[name].solve(gather(-x))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("wide", [False, True])
def test_channels_do_not_meet(name, wide):
    x = np.concatenate(
        [draw_blob("normal", 0), np.zeros((1, 1, 1500)), 9 * draw_blob("relu", 1)], 1
    )
    stats = gather(x, 3)
    if wide:
        stats.counts = stats.counts.astype(np.int64)
    params = SOLVERS[name].solve(stats)
    assert params.scale.shape == params.zero_point.shape == (3,)
    for c in range(3):
        alone = SOLVERS[name].solve(gather(x[:, c : c + 1]))
        assert (params.scale[c], params.zero_point[c]) == (alone.scale[0], alone.zero_point[0])
    assert (params.scale[1], params.zero_point[1]) == (0, 0)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("x", [np.zeros((1, 1, 5)), np.full((1, 1, 2), np.nan), None])
def test_dead_blobs_have_scale_zero(name, x):
    stats = BlobStats(1, BINS) if x is None else gather(x)
    params = SOLVERS[name].solve(stats)
    assert (params.scale[0], params.zero_point[0]) == (0, 0)


@pytest.mark.parametrize("name", SYMMETRIC)
@pytest.mark.parametrize("value", [1.0, -3.0, 1e-30, 3e38, 0.7])
@pytest.mark.parametrize("size", [1, 2000])
def test_constants_are_kept(name, value, size):
    stats = gather(np.full((1, 1, size), value))
    expected = abs(np.float32(value))
    np.testing.assert_allclose(thresholds(name, stats), expected, rtol=0.004)


@pytest.mark.parametrize("value", [1e-45, -1e-45, 1e-44])
def test_steps_below_float32_are_zero(value):
    stats = gather(np.full((1, 1, 3), value))
    for solver in SOLVERS.values():
        params = solver.solve(stats)
        assert (params.scale[0], params.zero_point[0]) == (0, 0)


@given(kinds, st.integers(0, 99))
def test_minmax_is_the_range(kind, seed):
    x = draw_blob(kind, seed)
    expected = np.float32(np.abs(x.astype(np.float64)).max() / 127)
    assert SOLVERS["minmax"].solve(gather(x)).scale[0] == expected


@given(kinds, st.integers(0, 99), st.floats(-100, 100))
def test_asymmetric_codes_hold_the_range_and_zero(kind, seed, offset):
    x = draw_blob(kind, seed) + np.float32(offset)
    params = SOLVERS["asymmetric"].solve(gather(x))
    low, high = min(float(x.min()), 0), max(float(x.max()), 0)
    scale, zero = float(params.scale[0]), int(params.zero_point[0])
    assert scale == pytest.approx((high - low) / 254)
    assert -127 <= zero <= 127
    codes = oracle.to_codes(x, scale, zero)
    assert codes.min() >= -127
    reals = oracle.to_reals(codes, scale, zero)
    assert np.abs(reals - x.astype(np.float64)).max() <= scale * 1.001
    assert oracle.to_reals(oracle.to_codes(np.zeros(1), scale, zero), scale, zero) == 0
    assert abs(scale * (127 - zero) - high) <= scale * 0.501


@pytest.mark.parametrize(
    ("values", "zero"), [((0, 254), -127), ((-254, 0), 127), ((-127, 127), 0), ((1, 254), -127)]
)
def test_asymmetric_known_answers(values, zero):
    params = SOLVERS["asymmetric"].solve(gather(np.array([[values]])))
    assert (params.scale[0], params.zero_point[0]) == (1, zero)


@given(kinds, st.integers(0, 99), st.integers(1, 1500))
def test_percentile_is_in_the_bin_of_numpys(kind, seed, size):
    x = draw_blob(kind, seed, size)
    stats = gather(x)
    exact = np.quantile(np.abs(x), 0.9999, method="inverted_cdf")
    if exact == 0:  # nearly all zeros: the others are what the blob says
        exact = stats.absmax[0]
    slack = stats.bin_width[0] + 1e-6 * exact
    assert abs(thresholds("percentile", stats)[0] - exact) <= slack


def test_percentile_counts_zeros():
    x = np.concatenate([np.zeros(99_000), np.linspace(1 / 1000, 1, 1000)])[None, None]
    assert thresholds("percentile", gather(x))[0] == pytest.approx(0.99, abs=1 / 256)
    x[..., :-1] = 0
    assert thresholds("percentile", gather(x))[0] == pytest.approx(1)


@given(kinds, st.integers(0, 99))
@settings(max_examples=10)
def test_kl_is_the_least_divergence(kind, seed):
    stats = gather(draw_blob(kind, seed, 2000), bins=256)
    counts = stats.counts[0].astype(np.int64)
    if counts.sum() < 1024 or np.count_nonzero(counts) <= 127:
        assert SOLVERS["kl"].solve(stats) == SOLVERS["minmax"].solve(stats)
        return
    candidates = [t for t in range(127, 257) if counts[t - 1]]
    divergences = {t: oracle.clipped_divergence(counts, t) for t in candidates}
    kept = max(t for t in candidates if divergences[t] <= min(divergences.values()) + 1e-12)
    expected = min(kept * stats.bin_width[0], float(stats.absmax[0]))
    assert thresholds("kl", stats)[0] == pytest.approx(expected, rel=1e-6)


def test_kl_keeps_the_range_of_few_values():
    x = draw_blob("heavy", 0, 1023)
    few = gather(np.concatenate([x, np.zeros((1, 1, 5000), np.float32)], 2))
    assert SOLVERS["kl"].solve(few) == SOLVERS["minmax"].solve(few)


def with_outlier(far=20.0):
    x = draw_blob("normal", 0, 20_000)
    x[..., 0] = far
    return x


@pytest.mark.parametrize(("name", "most"), [("kl", 8), ("mse", 19.9), ("percentile", 8)])
def test_a_far_outlier_is_clipped(name, most):
    stats = gather(with_outlier(), bins=4096)
    assert thresholds("minmax", stats)[0] == pytest.approx(20)
    assert 2.5 < thresholds(name, stats)[0] < most


def squared_error(x, scale):
    codes = np.clip(oracle.round_half_away(np.float64(x) / scale), -127, 127)
    return float(((codes * scale - x) ** 2).sum())


@given(kinds, st.integers(0, 99))
@settings(max_examples=20)
def test_mse_is_near_the_least_of_the_data(kind, seed):
    x = draw_blob(kind, seed)
    stats = gather(x, bins=4096)
    absmax = float(stats.absmax[0])
    found = squared_error(x, thresholds("mse", stats)[0] / 127)
    errors = [squared_error(x, absmax * part / 64 / 127) for part in range(4, 65)]
    assert found <= errors[-1] * 1.02
    assert found <= min(errors) * 1.1


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [("aciq-gauss", "normal", 3.92403714), ("aciq-laplace", "laplace", 9.89675982)],
)
def test_aciq_of_its_own_distribution(name, kind, expected):
    x = draw_blob(kind, 0, 100_000)
    x[..., 0] = 1000  # out of the way
    rest = x.astype(np.float64)
    moment = np.sqrt((rest**2).mean()) if kind == "normal" else np.abs(rest).mean()
    assert thresholds(name, gather(x))[0] == pytest.approx(expected * moment, rel=1e-6)
    zeros = np.concatenate([x, np.zeros_like(x)], axis=2)
    assert thresholds(name, gather(zeros))[0] == pytest.approx(expected * moment, rel=1e-6)


@pytest.mark.parametrize("name", sorted(BY_MOMENTS))
def test_aciq_never_exceeds_the_range(name):
    stats = gather(draw_blob("uniform", 0))
    assert SOLVERS[name].solve(stats) == SOLVERS["minmax"].solve(stats)
