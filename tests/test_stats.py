"""One pass gives the same bits whatever the order; what it gives is what NumPy says in float64."""

import functools

import numpy as np
import oracle
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quantjit.kernels import histogram as kernels
from quantjit.stats import BlobStats, ReferenceStats

BINS = 16
LARGEST = float(np.finfo(np.float32).max)
DENORMAL = float(np.float32(1e-45))
EDGES = [0.0, -0.0, 1.0, -2.0, 0.5, LARGEST, -LARGEST, DENORMAL, float(np.float32(1e-40)), 1e38]
NOT_FINITE = [np.nan, np.inf, -np.inf]

elements = st.one_of(
    st.sampled_from(EDGES),
    st.sampled_from(NOT_FINITE),
    st.floats(width=32),
    st.integers(-140, 127).map(lambda power: 2.0**power),
)


@st.composite
def blobs(draw, finite=False):
    """float32 (images, channels, size)."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4)))
    kept = elements.filter(np.isfinite) if finite else elements
    size = int(np.prod(shape))
    return np.array(draw(st.lists(kept, min_size=size, max_size=size)), np.float32).reshape(shape)


def gather(x, channels=None, bins=BINS):
    stats = BlobStats(x.shape[1] if channels is None else channels, bins)
    stats.update(x)
    return stats


def assert_same_bits(found, expected):
    assert found == expected
    mine, theirs = found.state(), expected.state()
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        assert array.tobytes() == theirs[name].tobytes(), name


def finite(x):
    x = np.asarray(x, np.float64)
    return x[np.isfinite(x)]


@given(blobs(), st.data())
def test_order_batches_and_merges_do_not_show(x, data):
    expected = gather(x)
    images, channels = x.shape[:2]
    shuffled = x[data.draw(st.permutations(range(images)))]
    cuts = sorted(data.draw(st.sets(st.integers(0, images))))
    parts = []
    for batch in np.split(shuffled, cuts):
        part = BlobStats(channels, BINS)
        if len(batch):
            part.update(batch, parallel=data.draw(st.booleans()))
        parts.append(part)
    one = BlobStats(channels, BINS)
    for batch in np.split(shuffled, cuts):
        if len(batch):
            one.update(batch)
    assert_same_bits(one, expected)
    while len(parts) > 1:
        left = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        right = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        left.merge(right)
        parts.append(left)
    assert_same_bits(parts[0], expected)


@given(blobs())
@example(np.full((1, 2, 3), LARGEST, np.float32))
@example(np.full((2, 1, 1), DENORMAL, np.float32))
@example(np.array([[[DENORMAL, LARGEST, 0, -0.0]]], np.float32))
@example(np.array([[NOT_FINITE], [NOT_FINITE]], np.float32))
def test_one_channel_is_what_numpy_says(x):
    stats = gather(x)
    for c in range(x.shape[1]):
        kept = finite(x[:, c])
        counts, width = oracle.power_of_two_histogram(x[:, c], BINS)
        np.testing.assert_array_equal(stats.counts[c], counts)
        assert stats.bin_width[c] == width
        assert stats.count[c] == kept.size
        assert stats.zero_count[c] == (kept == 0).sum()
        assert stats.nonfinite[c] == x[:, c].size - kept.size
        assert stats.minimum[c] == min(kept, default=np.inf)
        assert stats.maximum[c] == max(kept, default=-np.inf)
        assert stats.absmax[c] == np.abs(kept).max(initial=0)
        share = (kept == 0).mean() if kept.size else 0
        assert stats.zero_share[c] == pytest.approx(share)
        kept = kept if kept.size else np.zeros(1)
        spread = np.abs(kept).max()
        assert stats.mean[c] == pytest.approx(kept.mean(), rel=1e-12, abs=1e-14 * spread)
        assert stats.mean_abs[c] == pytest.approx(np.abs(kept).mean(), rel=1e-12)
        assert stats.mean_square[c] == pytest.approx((kept**2).mean(), rel=1e-12)
        assert stats.std[c] == pytest.approx(kept.std(), rel=1e-6, abs=1e-7 * spread)
    assert stats.is_empty == (not stats.count.any())
    assert stats.images == len(x)
    assert (stats.channels, stats.bins) == (x.shape[1], BINS)


@given(blobs())
def test_per_tensor_is_what_one_row_gathers(x):
    assert_same_bits(gather(x).per_tensor(), gather(x, channels=1))


@given(st.integers(-149, 127), st.integers(1, 8))
def test_powers_of_two_open_a_bin(power, log_bins):
    bins = 2**log_bins
    below = np.nextafter(np.float32(2.0**power), np.float32(0))
    stats = gather(np.array([[[2.0**power]]], np.float32), bins=bins)
    assert stats.counts[0, bins // 2] == 1
    assert stats.bin_width[0] == 2.0 ** (power + 1) / bins
    stats.update(below[None, None, None])
    assert stats.counts[0, bins // 2] == 1, "the smaller value went into a lower bin"
    assert stats.counts[0, : bins // 2].sum() == (below > 0)
    assert stats.zero_count[0] == (below == 0)


@pytest.mark.parametrize("bins", [2, 64, 4096])
def test_a_large_value_late_moves_all_that_came_before(bins):
    x = np.linspace(-1, 1, 101, dtype=np.float32)[None, None]
    stats = gather(x, bins=bins)
    stats.update(np.full((1, 1, 1), 1e30, np.float32))
    assert stats.counts[0, 0] == 100
    assert stats.counts[0].sum() == 101
    assert stats.zero_count[0] == 1


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_zeros_only(value):
    stats = gather(np.full((2, 3, 4), value, np.float32))
    assert not stats.counts.any()
    for array in (stats.bin_width, stats.absmax, stats.minimum, stats.maximum, stats.std):
        np.testing.assert_array_equal(array, np.zeros(3))
        assert not np.signbit(array).any()
    np.testing.assert_array_equal(stats.zero_share, np.ones(3))
    assert not stats.is_empty


@pytest.mark.parametrize("order", [1, -1])
def test_negative_zero_is_zero(order):
    x = np.array([[[0.0, -0.0]]], np.float32)[..., ::order]
    assert_same_bits(gather(x), gather(x[..., ::-1]))
    assert not np.signbit([gather(x).minimum, gather(x).maximum]).any()


def test_nothing_seen():
    stats = BlobStats(2, BINS)
    assert stats.is_empty
    assert stats.images == 0
    np.testing.assert_array_equal(stats.minimum, [np.inf] * 2)
    np.testing.assert_array_equal(stats.maximum, [-np.inf] * 2)
    for array in (stats.absmax, stats.mean, stats.mean_abs, stats.std, stats.zero_share):
        np.testing.assert_array_equal(array, [0, 0])
    stats.update(np.zeros((1, 2, 0), np.float32))
    assert stats.is_empty
    assert stats.images == 1


def test_a_spread_far_from_zero():
    x = np.where(np.arange(64) % 2, 1e6 - 1, 1e6 + 1).astype(np.float32)[None, None]
    stats = gather(x)
    assert stats.mean[0] == 1e6
    assert stats.std[0] == 1


@pytest.mark.parametrize("size", [31, 32, 33, 100])
def test_sums_of_long_planes(size):
    x = np.random.default_rng(size).normal(3, 1, (2, 2, size)).astype(np.float32)
    stats, wide = gather(x), x.astype(np.float64)
    np.testing.assert_allclose(stats.mean, wide.mean(axis=(0, 2)), rtol=1e-13)
    np.testing.assert_allclose(stats.mean_square, (wide**2).mean(axis=(0, 2)), rtol=1e-13)
    np.testing.assert_allclose(stats.std, wide.std(axis=(0, 2)), rtol=1e-12)


SIZES = [1, 31, 32, 33, kernels.BLOCK - 1, kernels.BLOCK, kernels.BLOCK + 33, 2 * kernels.BLOCK]


@pytest.mark.parametrize("bins", [16, 64])
@pytest.mark.parametrize("size", SIZES)
def test_planes_of_any_length(size, bins):
    """Blocks, lines and the rest of a plane; ranges that grow in the middle; zeros of all kinds."""
    rng = np.random.default_rng(size)
    for kind in ("normal", "zeros", "grows", "tiny", "not finite"):
        x = rng.normal(size=(2, 2, size)).astype(np.float32)
        if kind == "zeros":
            x[rng.random(x.shape) < 0.6] = -0.0
        elif kind == "grows":
            x[..., size // 2 :] *= np.float32(1000)
        elif kind == "tiny":  # bins narrower than the reciprocal of any float32
            x *= np.float32(1e-42)
        elif kind == "not finite":
            x[rng.random(x.shape) < 0.3] = np.nan
            x[rng.random(x.shape) < 0.05] = -np.inf
        stats = gather(x, bins=bins)
        assert_same_bits(stats.per_tensor(), gather(x, channels=1, bins=bins))
        assert_same_bits(stats, gather(x[::-1], bins=bins))
        for c in range(2):
            kept = finite(x[:, c])
            counts, width = oracle.power_of_two_histogram(x[:, c], bins)
            np.testing.assert_array_equal(stats.counts[c], counts)
            assert stats.bin_width[c] == width
            assert (stats.count[c], stats.zero_count[c]) == (kept.size, (kept == 0).sum())
            assert stats.nonfinite[c] == x[:, c].size - kept.size
            if kept.size:
                assert (stats.minimum[c], stats.maximum[c]) == (kept.min(), kept.max())
                spread = np.abs(kept).max()
                assert stats.mean[c] == pytest.approx(kept.mean(), rel=1e-12, abs=1e-14 * spread)
                assert stats.mean_abs[c] == pytest.approx(np.abs(kept).mean(), rel=1e-12)
                assert stats.mean_square[c] == pytest.approx((kept**2).mean(), rel=1e-12)


def test_sums_of_finite_elements_do_not_see_the_others():
    """A plane with NaN adds up exactly as the plane of its finite elements."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=300).astype(np.float32)
    holes = np.insert(x, [0, 5, 129, 200, 300], np.nan).astype(np.float32)
    found, expected = gather(holes[None, None]).state(), gather(x[None, None]).state()
    np.testing.assert_array_equal(found["sums"], expected["sums"])


def test_batches_of_any_rank_and_layout():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = gather(x.reshape(2, 3, 20))
    assert_same_bits(gather(x), expected)
    assert_same_bits(gather(np.asfortranarray(x)), expected)
    assert_same_bits(gather(x.astype(np.float64)), expected)
    assert_same_bits(gather(x[:, :, 0, 0]), gather(x[:, :, :1, 0]))
    assert_same_bits(gather(x[0, 0, 0], channels=1), gather(x[0, 0, 0][:, None], channels=1))


@pytest.mark.parametrize("parallel", [False, True])
def test_counts_are_widened_before_they_overflow(parallel):
    stats = gather(np.ones((1, 1, 1), np.float32))
    stats._tallies[0, kernels.COUNT] = 2**32 - 3
    stats.counts[0, BINS // 2] = 2**32 - 3
    stats.update(np.ones((1, 1, 2), np.float32), parallel=parallel)
    assert stats.counts.dtype == np.uint32
    stats.update(np.ones((1, 1, 2), np.float32), parallel=parallel)
    assert stats.counts.dtype == np.int64
    assert stats.counts[0, BINS // 2] == 2**32 + 1
    stats.update(np.full((1, 1, 1), 2, np.float32), parallel=parallel)
    assert stats.counts[0, BINS // 4] == 2**32 + 1
    assert stats.count[0] == 2**32 + 2


def many(count):
    stats = gather(np.ones((1, 2, 1), np.float32))
    stats._tallies[:, kernels.COUNT] = count
    stats.counts[:, BINS // 2] = count
    return stats


def test_merged_counts_are_widened_before_they_overflow():
    stats = many(2**31)
    stats.merge(many(2**31 - 1))
    assert stats.counts.dtype == np.uint32
    stats.merge(many(1))
    assert stats.counts.dtype == np.int64
    np.testing.assert_array_equal(stats.counts[:, BINS // 2], [2**32] * 2)
    few = many(1)
    few.merge(stats)
    assert few.counts[0, BINS // 2] == 2**32 + 1
    whole = many(2**31).per_tensor()
    assert whole.counts.dtype == np.int64
    assert whole.counts[0, BINS // 2] == whole.count[0] == 2**32


def test_wide_counts_merge_into_narrow_ones():
    wide = many(1)
    wide.counts = wide.counts.astype(np.int64)
    narrow = many(1)
    narrow.merge(wide)
    assert narrow.counts[0, BINS // 2] == 2


def test_sums_are_carried_in_time():
    x = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)
    expected, stats = gather(x), BlobStats(2, BINS)
    for image in x:
        stats._limbs[..., 5:7] += 2**61, -(2**29)  # the same sum
        stats._planes = kernels.PLANES_BEFORE_CARRY - 1
        stats.update(image[None])
        assert np.abs(stats._limbs).max() < 2**34
    assert_same_bits(stats, expected)


def test_merging_with_itself_doubles():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    stats = gather(x)
    stats.merge(stats)
    assert_same_bits(stats, gather(np.concatenate([x, x])))


@given(blobs())
def test_state_round_trip(x):
    stats = gather(x)
    back = BlobStats.from_state(stats.state())
    assert_same_bits(back, stats)
    back.update(x)
    stats.update(x)
    assert_same_bits(back, stats)


def test_state_of_wide_counts():
    stats = many(2**32 - 1)
    stats.update(np.ones((1, 2, 1), np.float32))
    back = BlobStats.from_state(stats.state())
    assert back.counts.dtype == np.int64
    assert_same_bits(back, stats)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("sums"), "without 'sums'"),
        (lambda state: state.pop("counts"), "without 'counts'"),
        (lambda state: state.update(images=np.zeros(2, np.int64)), r"images: .*int64 \(2,\)"),
        (lambda state: state.update(extremes=np.zeros((3, 2))), "extremes: .*found float64"),
        (lambda state: state.update(counts=np.zeros((3, 5), np.uint32)), "power of two"),
        (lambda state: state.update(counts=np.ones((3, 16), np.uint32)), "their sum is not"),
    ],
)
def test_state_of_something_else(change, words):
    state = BlobStats(3, BINS).state()
    change(state)
    with pytest.raises(ValueError, match=words):
        BlobStats.from_state(state)


@pytest.mark.parametrize(("channels", "bins"), [(0, 16), (1, 1), (1, 0), (1, 12)])
def test_sizes_that_cannot_be(channels, bins):
    with pytest.raises(ValueError, match="power of two"):
        BlobStats(channels, bins)


@pytest.mark.parametrize("shape", [(2, 4, 5), (3,), (), (3, 2)])
def test_another_number_of_channels(shape):
    with pytest.raises(ValueError, match="expected 3 channels"):
        BlobStats(3).update(np.zeros(shape, np.float32))


def test_merging_another_blob():
    with pytest.raises(ValueError, match=r"cannot merge \(2, 16\) into \(3, 16\)"):
        BlobStats(3, 16).merge(BlobStats(2, 16))


def test_equality_and_words():
    x = np.ones((1, 2, 3), np.float32)
    assert gather(x) != gather(2 * x)
    assert gather(x) != "statistics"
    assert repr(gather(x)) == "BlobStats(channels=2, bins=16, images=1)"
    with pytest.raises(TypeError, match="unhashable"):
        hash(gather(x))


def images_for_reference(channels=3, size=150, dead=False):
    x = np.random.default_rng(channels).normal(size=(4, 1, channels, size)).astype(np.float32)
    x[1, 0, 0, :7] = 0
    if dead:
        x[:, :, 1] *= np.float32(1e-6)
    return x


def observe_reference(images, channels):
    stats = ReferenceStats(channels)
    for image in images:
        stats.update_range(image)
    stats.start_histogram()
    for image in images:
        stats.update_histogram(image)
    return stats


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("dead", [False, True])
def test_reference_range_and_histogram(merged, dead):
    images = images_for_reference(dead=dead)
    stats = observe_reference(images, 1 if merged else 3)
    groups = [images] if merged else [images[:, :, c] for c in range(3)]
    assert (stats.elements, stats.spatial, stats.channels) == (450, 150, len(groups))
    for row, group in enumerate(groups):
        assert stats.minimum[row] == group.min()
        assert stats.maximum[row] == group.max()
        assert stats.absmax[row] == np.abs(group).max()
        alive = merged or not dead or row != 1
        assert stats.valid[row] == alive
        if alive:
            per_unit = np.float32(2048) / np.abs(group).max()
            assert stats.per_unit[row] == per_unit
            expected = oracle.linear_counts(group, per_unit, 2048)
        else:
            expected = np.full(2048, 1e-7, np.float32)
        np.testing.assert_array_equal(stats.counts[row], expected)


@pytest.mark.parametrize("merged", [False, True])
def test_reference_mean_magnitudes_are_running_means(merged):
    images = np.concatenate([images_for_reference(), 9 * images_for_reference()], axis=1)
    stats = observe_reference(images, 1 if merged else 3)
    one_image = [
        [oracle.float32_sum(np.abs(row)) / np.float32(150) for row in x[0]] for x in images
    ]
    means = np.array(one_image, np.float32)
    means = means.reshape(-1, 1) if merged else means
    assert stats.samples == len(means)

    def fold(mean, sample):
        return (mean * np.float32(sample[0]) + sample[1]) / np.float32(sample[0] + 1)

    expected = functools.reduce(fold, enumerate(means), np.zeros(means.shape[1], np.float32))
    np.testing.assert_array_equal(stats.mean_abs, expected)
    np.testing.assert_allclose(stats.mean_abs, means.mean(axis=0), rtol=1e-5)


def test_reference_ranges_start_at_a_million():
    stats = ReferenceStats(1)
    stats.update_range(np.full((1, 1, 2), 3e6, np.float32))
    assert (stats.minimum[0], stats.maximum[0]) == (1e6, 3e6)
