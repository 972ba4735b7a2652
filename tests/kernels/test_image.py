"""Resampling: the bytes of stb_image_resize, and of what the formulas say in float64."""

import zlib

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantjit.images import resize
from quantjit.kernels.image import growing_taps_into, normalize_into, shrinking_taps_into

SIDE = st.integers(1, 13)


def pattern(height, width, channels):
    y, x, c = np.ogrid[:height, :width, :channels]
    return ((7 * x * x + 13 * y + 3 * x * y + 101 * c) % 256).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((3, 5), [[2, 30, 91], [11, 42, 106], [23, 58, 126], [32, 70, 141]]),
        (
            (3, 5),
            [
                [0, 2, 10, 27, 50, 84, 113],
                [4, 7, 17, 34, 59, 93, 123],
                [12, 17, 28, 47, 73, 109, 140],
                [21, 27, 40, 60, 87, 125, 157],
                [26, 33, 46, 67, 95, 134, 166],
            ],
        ),
        # The height stays, and yet every column is softened, as by the original.
        ((4, 4), [[2, 18, 55], [15, 35, 75], [29, 53, 97], [42, 69, 117]]),
    ],
)
def test_levels_of_the_original(size, expected):
    """`expected` and the sums below were made with stbir_resize_uint8 of v0.97."""
    expected = np.array(expected)
    assert np.array_equal(resize(pattern(*size, 1), *expected.shape)[..., 0], expected)


@pytest.mark.parametrize(
    ("size", "target", "channels", "checksum"),
    [
        ((9, 7), (12, 10), 3, 989184509),
        ((12, 10), (9, 7), 3, 1848172644),
        ((9, 14), (18, 7), 4, 110823991),
        ((8, 11), (8, 5), 1, 1536697279),
        ((11, 8), (5, 8), 3, 1077595727),
        ((1, 1), (3, 2), 3, 3704057384),
        ((40, 3), (2, 9), 3, 727478450),
        ((23, 31), (22, 30), 3, 2472109744),
    ],
)
def test_bytes_of_the_original(size, target, channels, checksum):
    assert zlib.crc32(resize(pattern(*size, channels), *target).tobytes()) == checksum


@given(st.data(), SIDE, SIDE, SIDE, SIDE, st.sampled_from([1, 3, 4]))
def test_resize_is_the_nearest_byte(data, h, w, height, width, channels):
    size = h * w * channels
    pixels = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    pixels = pixels.reshape(h, w, channels)
    out = resize(pixels, height, width)
    assert out.shape == (height, width, channels)
    if (h, w) == (height, width):
        assert np.array_equal(out, pixels)
    else:  # float32 sums of levels up to 255 are right to about 1e-4
        assert np.abs(out - oracle.resize_cubic(pixels, height, width)).max() <= 0.501


@given(SIDE, SIDE, SIDE, SIDE, st.integers(0, 255))
def test_a_flat_image_stays_flat(h, w, height, width, level):
    assert (resize(np.full((h, w, 1), level, np.uint8), height, width) == level).all()


@given(SIDE, st.integers(1, 40))
def test_taps_sum_to_one_and_cover_the_filter(size, target):
    first = np.zeros(target, np.int64)
    grows = target > size
    taps = np.zeros((target, 5 if grows else 4 * size // target + 3), np.float32)
    (growing_taps_into if grows else shrinking_taps_into)(size, first, taps)
    assert np.allclose(taps.sum(axis=1), 1, atol=1e-6)
    reach = 2 * max(1, size / target)
    centres = (np.arange(target) + 0.5) * size / target
    assert (first + 0.5 >= centres - reach - 1e-3).all()
    used = np.where(taps != 0, np.arange(taps.shape[1]), 0).max(axis=1)
    assert (first + used + 0.5 <= centres + reach + 1e-3).all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_normalize(channels, reverse):
    pixels = pattern(3, 5, channels)
    bias = np.array([104, 117.5, 123, 7], np.float32)[:channels]
    scale = np.array([1 / 127, 0.017, 3, -1], np.float32)[:channels]
    out = np.empty((channels, 3, 5), np.float32)
    normalize_into(pixels, reverse, bias, scale, out)
    order = ([2, 1, 0] if reverse else [0, 1, 2]) + [3] * (channels - 3)
    assert np.array_equal(out, oracle.image_to_tensor(pixels, order, bias, scale))


def test_normalize_one_channel():
    pixels, out = pattern(2, 2, 1), np.empty((1, 2, 2), np.float32)
    normalize_into(pixels, False, np.float32([3]), np.float32([0.5]), out)
    assert np.array_equal(out, oracle.image_to_tensor(pixels, [0], [3], [0.5]))
