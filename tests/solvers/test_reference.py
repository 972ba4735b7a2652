"""The scales of TNN's tool, float32 operation by operation."""

import math

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantjit.errors import CalibrationError, UnsupportedError
from quantjit.solvers import solve_reference
from quantjit.stats import ReferenceStats

METHODS = ["minmax", "kl", "aciq-gauss", "aciq-laplace", "asymmetric"]


def images(channels=2, pixels=150, seed=0, factor=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0.2, 1, (3, 1, channels, pixels)) * factor
    return x.astype(np.float32)


def gather(x, merged):
    stats = ReferenceStats(1 if merged else x.shape[2])
    for image in x:
        stats.update_range(image)
    stats.start_histogram()
    for image in x:
        stats.update_histogram(image)
    return stats


def groups(x, merged):
    return [x] if merged else [x[:, :, c] for c in range(x.shape[2])]


def in_the_middle_of(bin_, group):
    """Double-precision step of a threshold in the middle of a bin."""
    per_unit = np.float32(2048) / np.abs(group).max()
    return np.float32((bin_ + 0.5) / float(per_unit) / 127)


@given(st.integers(0, 99), st.booleans(), st.floats(1e-3, 1e3))
@settings(max_examples=20)
def test_minmax_is_half_a_bin_short(seed, merged, factor):
    x = images(seed=seed, factor=factor)
    params = solve_reference(gather(x, merged), "minmax", "blob")
    for scale, group in zip(params.scale, groups(x, merged), strict=True):
        assert scale == in_the_middle_of(2047, group)
        assert scale == pytest.approx(np.abs(group).max() * 2047.5 / 2048 / 127, rel=1e-6)
    assert not params.zero_point.any()


@pytest.mark.jit
@pytest.mark.parametrize("merged", [False, True])
def test_kl(merged):
    x = images(pixels=1000, seed=7)
    params = solve_reference(gather(x, merged), "kl", "blob")
    for scale, group in zip(params.scale, groups(x, merged), strict=True):
        per_unit = np.float32(2048) / np.abs(group).max()
        counts = oracle.linear_counts(group, per_unit, 2048)
        divergences = oracle.tnn_divergences_float64(counts)
        kept = round(float(scale) * 127 * float(per_unit) - 0.5)
        assert scale == in_the_middle_of(kept, group)
        assert divergences[kept - 128] <= divergences.min() + 1e-4


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("method", ["kl", "aciq-gauss", "aciq-laplace"])
def test_fewer_than_100_pixels_keep_their_range(merged, method):
    small = gather(images(pixels=99, channels=4), merged)
    assert solve_reference(small, method, "b") == solve_reference(small, "minmax", "b")
    if method != "kl":
        large = gather(images(pixels=100, channels=4), merged)
        assert solve_reference(large, method, "b") != solve_reference(large, "minmax", "b")


def test_asymmetric_has_no_pixel_rule():
    small = gather(images(pixels=9), merged=True)
    assert solve_reference(small, "asymmetric", "b") != solve_reference(small, "minmax", "b")


@given(st.integers(0, 99), st.booleans(), st.floats(-5, 5))
@settings(max_examples=20)
def test_asymmetric(seed, merged, offset):
    x = images(seed=seed) + np.float32(offset)
    params = solve_reference(gather(x, merged), "asymmetric", "blob")
    for scale, zero, group in zip(params.scale, params.zero_point, groups(x, merged), strict=True):
        _, step, place = oracle.tnn_asymmetric_weights(group.ravel())
        assert (scale, zero) == (step, place)


@pytest.mark.parametrize("merged", [False, True])
def test_aciq(merged):
    x = images(pixels=121)
    stats = gather(x, merged)
    gauss = solve_reference(stats, "aciq-gauss", "blob").scale
    laplace = solve_reference(stats, "aciq-laplace", "blob").scale
    elements = 242 if merged else 121
    factor = 2 * 0.175 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(elements))
    for row, group in enumerate(groups(x, merged)):
        largest, mean = np.abs(group).max(), np.abs(group.astype(np.float64)).mean()
        assert gauss[row] == pytest.approx(3.92403714 * factor * largest / 127, rel=1e-6)
        assert laplace[row] == pytest.approx(9.89675982 * mean / 127, rel=1e-5)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "kl"])
def test_a_dead_channel_has_scale_zero(method):
    x = images(channels=3)
    x[:, :, 1] *= np.float32(1e-7)
    params = solve_reference(gather(x, merged=False), method, "blob")
    assert (params.scale[1], params.zero_point[1]) == (0, 0)
    assert (params.scale[[0, 2]] > 0).all()


@pytest.mark.jit
def test_kl_of_a_dead_channel():
    x = images(channels=2)
    x[:, :, 0] = 0
    params = solve_reference(gather(x, merged=False), "kl", "blob")
    assert params.scale[0] == 0
    assert params.scale[1] > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_dead_blob_has_no_scale(method):
    stats = gather(images(factor=1e-7), merged=True)
    with pytest.raises(CalibrationError, match=r"blob 'conv1': is never above 1e-5, .* no scale"):
        solve_reference(stats, method, "conv1")


@pytest.mark.parametrize("channels", [1, 2])
def test_a_blob_that_was_never_seen(channels):
    with pytest.raises(CalibrationError, match="blob 'conv1': was never seen"):
        solve_reference(ReferenceStats(channels), "minmax", "conv1")


@pytest.mark.parametrize("pixels", [10, 200])
def test_a_method_that_the_original_has_not(pixels):
    words = r"unknown blob method of TNN's tool 'mse'; .*known: minmax, kl, .*asymmetric"
    with pytest.raises(UnsupportedError, match=words):
        solve_reference(gather(images(pixels=pixels), merged=True), "mse", "conv1")


@pytest.mark.parametrize("merged", [False, True])
def test_the_kl_search_is_asked_for_bins(merged, monkeypatch):
    """The scale of a bin, without the search, which is slow when it is not compiled."""
    from quantjit.solvers import _reference

    def search(counts, valid, out):
        assert counts.shape == (out.size, 2048)
        out[valid] = 500

    monkeypatch.setattr(_reference, "search_reference_into", search)
    x = images()
    params = solve_reference(gather(x, merged), "kl", "blob")
    for scale, group in zip(params.scale, groups(x, merged), strict=True):
        assert scale == in_the_middle_of(500, group)
