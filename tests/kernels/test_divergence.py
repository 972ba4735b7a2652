"""Searches over histograms against the definition, both distributions rebuilt at each threshold."""

import numpy as np
import oracle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantjit.kernels.divergence import (
    TARGETS,
    logarithms_into,
    search_divergence_into,
    search_reference_into,
)
from quantjit.kernels.mse import search_squared_error_into

CODES = 127


@st.composite
def histograms(draw, least, most):
    """int64 (bins,): falling, flat or many-peaked, with holes."""
    size = draw(st.integers(least, most))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    scale = draw(st.floats(0.05, 2))
    shape = {
        "laplace": np.exp(-np.arange(size) / (scale * size)),
        "gauss": np.exp(-((np.arange(size) / (scale * size)) ** 2)),
        "flat": np.ones(size),
        "peaks": rng.random(size) ** 8,
    }[draw(st.sampled_from(["laplace", "gauss", "flat", "peaks"]))]
    counts = rng.poisson(shape * draw(st.sampled_from([1, 30, 1e5])))
    counts[rng.random(size) < draw(st.sampled_from([0, 0.2, 0.7]))] = 0
    return counts


def kept_bins(counts, codes=CODES, dtype=np.uint32):
    out = np.full(1, -1, np.int64)
    search_divergence_into(np.array(counts)[None].astype(dtype), codes, out)
    return int(out[0])


def squared_error_threshold(counts, absmax, codes=CODES, dtype=np.uint32):
    out = np.full(1, -1.0)
    search_squared_error_into(np.array(counts)[None].astype(dtype), np.array([absmax]), codes, out)
    return float(out[0])


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=20))
def test_logarithms(values):
    x = np.array([*values, 1.0, 0.5**0.5, 2.0**0.5, 2.0**-1022])
    out = np.zeros_like(x)
    logarithms_into(x.copy(), out)
    np.testing.assert_allclose(out, np.log(x), rtol=1e-14, atol=2e-16)
    logarithms_into(np.zeros(x.size), out)
    assert np.isfinite(out).all()


@given(histograms(20, 200), st.sampled_from([2, 5, 16, 23]))
@settings(max_examples=30)
@pytest.mark.parametrize("dtype", [np.uint32, np.int64])
def test_divergence_search_finds_the_least(dtype, counts, codes):
    assert_is_the_least(counts, codes, dtype)


@pytest.mark.parametrize(("codes", "bins"), [(127, 300), (150, 260), (255, 330)])
def test_divergence_search_with_as_many_codes_as_there_are(codes, bins):
    rng = np.random.default_rng(codes)
    counts = rng.poisson(1e4 * np.exp(-np.arange(bins) / 40))
    assert_is_the_least(counts, codes, np.uint32)


def assert_is_the_least(counts, codes, dtype):
    kept = kept_bins(counts, codes, dtype)
    used = int(np.flatnonzero(counts).max(initial=-1)) + 1
    if np.count_nonzero(counts) <= codes:
        assert kept == used
        return
    candidates = [t for t in range(codes, used + 1) if counts[t - 1]]
    found = {t: oracle.clipped_divergence(counts, t, codes) for t in candidates}
    least = min(found.values())
    assert found[kept] == pytest.approx(least, rel=1e-9, abs=1e-12)
    # the most bins of equals
    assert all(found[t] > least - 1e-12 for t in candidates if t > kept)


def test_divergence_by_hand():
    """Two codes: below a quarter of T, to three quarters, and the rest with all that is clipped.

    The expected noise: two bins of mass 4 are half full by two, and codes are two bins wide.
    """
    counts = np.array([7, 3, 1, 2, 4])
    at_four = 3 * np.log(3 / 2) + 1 * np.log(1 / 2) + 6 * np.log(6 / 2)
    assert oracle.clipped_divergence(counts, 4, 2) == pytest.approx((at_four - 0.5**3) / 17)


def test_divergence_search_far_from_zero():
    counts = np.zeros(400, np.int64)
    counts[150:] = np.random.default_rng(0).poisson(200 * np.exp(-np.arange(250) / 30)) + 1
    found = {t: oracle.clipped_divergence(counts, t) for t in range(151, 401)}
    assert found[kept_bins(counts)] == pytest.approx(min(found.values()), rel=1e-9)


@pytest.mark.parametrize(
    ("bins", "codes"),
    [(256, 127), *(pytest.param(4096, codes, marks=pytest.mark.jit) for codes in (127, 255))],
)
def test_flat_histograms_are_kept_whole(bins, codes):
    assert kept_bins(np.full(bins, 9), codes) == bins


def test_few_bins_give_no_choice():
    counts = np.zeros(4096, np.int64)
    assert kept_bins(counts) == 0
    counts[[5, 7, 900]] = 10**6
    assert kept_bins(counts) == 901


def test_divergence_clips_a_far_outlier():
    counts = np.round(1e4 * np.exp(-np.arange(1024) / 20)).astype(np.int64)
    counts[-1] = 1
    assert 128 <= kept_bins(counts) <= 256


def test_divergence_does_not_clip_what_stays_far_from_zero():
    """All but one bin clipped, P would be Q if Q were normalized."""
    counts = np.zeros(600, np.int64)
    counts[300:] = 1000
    assert kept_bins(counts) > 590
    counts[300] = 10**5
    assert kept_bins(counts) > 590


def exponential(bins=4096, mean=200):
    return np.round(1e6 * np.exp(-np.arange(bins) / mean)).astype(np.int64)


@pytest.mark.jit
@pytest.mark.parametrize("codes", [127, 255])
def test_values_next_to_zero_do_not_decide(codes):
    """The code 0 holds them whatever the threshold: more of them move it by little."""
    plain = kept_bins(exponential(), codes)
    counts = exponential()
    counts[:3] += np.array([60, 10, 3]) * 10**6
    assert kept_bins(counts, codes) == pytest.approx(plain, rel=0.1)


@pytest.mark.jit
@pytest.mark.parametrize("codes", [127, 255])
def test_spikes_do_not_decide(codes):
    """Bins that hold many times what their neighbours do, as biases of channels make them."""
    counts = exponential()
    plain = kept_bins(counts, codes)
    counts[np.random.default_rng(0).choice(1200, 60, replace=False)] *= 10
    assert 0.9 * plain < kept_bins(counts, codes) < 4096


@pytest.mark.jit
def test_more_codes_clip_less():
    found = [kept_bins(exponential(), codes) for codes in (63, 127, 255)]
    assert sorted(set(found)) == found


@pytest.mark.jit
@pytest.mark.parametrize("codes", [127, 255])
@pytest.mark.parametrize("share", [1e-1, 1e-3])
def test_a_sample_is_clipped_like_the_whole(share, codes):
    """Of 2e8 values, 2e7 and 2e5; the tail of a sample ends earlier, it is not clipped earlier."""
    whole = kept_bins(exponential(), codes)
    sample = np.random.default_rng(0).poisson(exponential() * share)
    end = np.flatnonzero(sample).max() + 1
    assert kept_bins(sample, codes) == pytest.approx(min(whole, end), rel=0.2)


@given(histograms(1, 48), st.floats(0.01, 1), st.sampled_from([3, 7, CODES]))
@pytest.mark.parametrize("dtype", [np.uint32, np.int64])
def test_squared_error_search_finds_the_least(dtype, counts, part, codes):
    used = int(np.flatnonzero(counts).max(initial=-1)) + 1
    absmax = used - 1 + part if used else 0.0
    threshold = squared_error_threshold(counts, absmax, codes, dtype)
    if not used:
        assert threshold == 0
        return
    assert 0 < threshold <= absmax
    edges = [*range(1, used), absmax]
    errors = [oracle.clipped_squared_error(counts, absmax, t, codes) for t in edges]
    squares = oracle.clipped_squared_error(counts, absmax, 1e-9, 1)
    found = oracle.clipped_squared_error(counts, absmax, threshold, codes)
    assert found <= min(errors) * (1 + 1e-9) + 1e-12 * squares
    assert found <= errors[-1] + 1e-12 * squares  # clipping nothing is a candidate


def test_squared_error_clips_a_far_outlier():
    counts = np.zeros(512, np.int64)
    counts[:100] = 10**6
    counts[-1] = 1
    threshold = squared_error_threshold(counts, 511.5)
    assert 95 <= threshold <= 130


def test_squared_error_keeps_a_flat_histogram():
    assert squared_error_threshold(np.full(512, 9), 512.0) > 500


@given(st.integers(0, 99), st.sampled_from([0, 0.3, 1]), st.integers(TARGETS + 1, TARGETS + 40))
@example(0, 0.3, TARGETS + 20)
@settings(max_examples=15)
def test_reference_search(seed, holes, bins):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(300 * np.exp(-np.arange(bins) / 50)).astype(np.float32)
    counts[TARGETS // 2 :][rng.random(bins - TARGETS // 2) < holes] = 0
    out = np.array([-1, -1], np.int64)
    valid = np.array([True, False])
    search_reference_into(np.stack([counts, counts]), valid, out)
    assert out[1] == -1
    errors = oracle.tnn_divergences(counts)
    # logf of NumPy and of C differ in the last bit
    assert errors[out[0] - TARGETS] <= errors.min() + np.float32(1e-6)


def test_reference_search_of_a_smooth_histogram():
    counts = np.full((1, 600), 1e-7, np.float32)
    counts[0, :400] += np.round(1e4 * np.exp(-np.arange(400, dtype=np.float32) / 60))
    out = np.zeros(1, np.int64)
    search_reference_into(counts, np.ones(1, np.bool_), out)
    errors = oracle.tnn_divergences_float64(counts[0])
    assert errors[out[0] - TARGETS] <= errors.min() + 1e-4
