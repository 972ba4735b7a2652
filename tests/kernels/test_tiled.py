"""Convolutions by register tiles, in the form that this process chose."""

import gc

import guarded
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantjit.kernels import simd, tiled, tiling
from quantjit.kernels.tiling import Requantization, Window

pytestmark = [
    pytest.mark.jit,
    pytest.mark.skipif(simd.FORM == "portable", reason="this form is tested as ops"),
]
FILL = 77


@st.composite
def windows(draw, largest=40):
    """Shapes that no vector fits: single pixels, kernels larger than the image, odd channels."""
    whole = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    kind = draw(st.sampled_from(["any", "pointwise", "depthwise", "squares"]))
    groups, ins, outs = whole(1, 3), whole(1, 9), whole(1, 14)
    kernel = (whole(1, 7), whole(1, 7))
    stride, dilation = (whole(1, 3), whole(1, 3)), (whole(1, 2), whole(1, 2))
    pads = tuple(whole(0, 4) for _ in range(4))
    if kind == "pointwise":
        kernel, stride, pads = (1, 1), (1, 1), (0, 0, 0, 0)
    elif kind == "depthwise":
        groups, ins, outs, dilation = whole(1, 20), 1, 1, (1, 1)
        kernel, stride = (draw(st.sampled_from([3, 5])),) * 2, (whole(1, 2),) * 2
    elif kind == "squares":
        groups, ins, outs = whole(1, 2), whole(12, 20), whole(12, 20)
        kernel, stride, dilation = (3, 3), (1, 1), (1, 1)
    least = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    height = whole(max(1, least[0] - pads[0] - pads[1]), largest)
    width = whole(max(1, least[1] - pads[2] - pads[3]), largest)
    out_h = (height + pads[0] + pads[1] - least[0]) // stride[0] + 1
    out_w = (width + pads[2] + pads[3] - least[1]) // stride[1] + 1
    shape = (height, width, groups * outs, out_h, out_w)
    window = Window(
        whole(1, 9 if height * width < 100 else 2), groups, groups * ins, *shape, *kernel, *stride,
        pads[0], pads[2], *dilation,
    )  # fmt: skip
    return window, pads


def shapes(window):
    channels = window.channels // window.groups
    return (
        (window.images, window.channels, window.height, window.width),
        (window.out_channels, channels, window.kernel_h, window.kernel_w),
        (window.images, window.out_channels, window.out_h, window.out_w),
    )


def exact_sums(window, pads, x, weight):
    stride = (window.stride_h, window.stride_w)
    dilation = (window.dilation_h, window.dilation_w)
    return oracle.window_products(x, weight, stride, pads, dilation, window.groups)


def column(values):
    return values[None, :, None, None]


@given(windows(), st.integers(0, 999), st.booleans(), st.integers(1, 3))
@settings(max_examples=60)
def test_float_matches_float64(case, seed, clamps, threads):
    window, pads = case
    rng = np.random.default_rng(seed)
    shape, weight_shape, out_shape = shapes(window)
    x = guarded.place(rng.standard_normal(shape).astype(np.float32), at_end=seed % 2 == 0)
    weight = rng.standard_normal(weight_shape).astype(np.float32)
    bias = rng.standard_normal(window.out_channels).astype(np.float32)
    low, high = (0.0, 6.0) if clamps else (-np.inf, np.inf)
    out = guarded.place(np.full(out_shape, FILL, np.float32), at_end=seed % 2 == 1)
    node = tiling.prepare_float(window, weight, bias, low, high, swish=False, threads=threads)
    node((x,), (out,))
    sums = exact_sums(window, pads, x, weight) + column(bias)
    error = np.abs(out - np.clip(sums, low, high)).max()
    assert error <= 1e-5 * max(1.0, np.abs(sums).max())


def draw_requantization(rng, count, taps, *, mode, relu, addend):
    nothing = np.zeros(count, np.float32)
    plus, minus = nothing, nothing
    if addend:
        plus = rng.uniform(0.1, 1, count).astype(np.float32)
        minus = np.float32(3) * plus
    before, after = (plus, minus), (nothing, nothing)
    if addend == "after":
        before, after = after, before
    factor = (rng.uniform(0.2, 1, count) / np.sqrt(taps) / 60).astype(np.float32)
    zero = rng.integers(-10, 10, count).astype(np.float32) * np.float32(rng.integers(0, 2))
    high = rng.integers(20, 128, count).astype(np.float32)
    floor = 0.0 if relu else -np.inf
    return Requantization(factor, zero, high, *before, *after, floor, mode, bool(addend))


def requantized(sums, finish, other):
    """Float32 arithmetic, operation by operation, of TNN or of ONNX."""
    codes = other.astype(np.float32)
    value = sums.astype(np.float32) * column(finish.factor)
    value = value + (codes * column(finish.before) - column(finish.before_zero))
    value = np.maximum(value, np.float32(finish.floor))
    value = value + (codes * column(finish.after) - column(finish.after_zero))
    if finish.mode == simd.EVEN:
        value = np.rint(value) + column(finish.zero)
    else:
        value = value + column(finish.zero)
        value = np.trunc(value + np.copysign(np.float32(0.5), value))
    return np.clip(value, -128, column(finish.high)).astype(np.int8)


@given(
    windows(),
    st.integers(0, 999),
    st.sampled_from([simd.AWAY, simd.EVEN]),
    st.booleans(),
    st.sampled_from(["", "", "before", "after"]),
    st.integers(1, 3),
)
@settings(max_examples=90)
def test_int8_matches_the_oracle_to_the_bit(case, seed, mode, relu, addend, threads):
    window, pads = case
    rng = np.random.default_rng(seed)
    shape, weight_shape, out_shape = shapes(window)
    x = guarded.place(rng.integers(-128, 128, shape).astype(np.int8), at_end=seed % 2 == 0)
    weight = rng.integers(-128, 128, weight_shape).astype(np.int32)
    bias = rng.integers(-9999, 9999, window.out_channels).astype(np.int32)
    zeros = rng.integers(-128, 128, window.channels).astype(np.int8)
    other = guarded.place(rng.integers(-128, 128, out_shape).astype(np.int8), at_end=True)
    finish = draw_requantization(
        rng, window.out_channels, weight[0].size, mode=mode, relu=relu, addend=addend
    )
    assert tiling.fits(weight, bias)
    node = tiling.prepare_int8(window, weight, bias, zeros, finish, threads)
    out = guarded.place(np.full(out_shape, FILL, np.int8), at_end=seed % 2 == 1)
    node((x, other) if addend else (x,), (out,))
    centered = x.astype(np.int64) - column(zeros.astype(np.int64))
    sums = exact_sums(window, pads, centered, weight) + column(bias)
    np.testing.assert_array_equal(out, requantized(sums, finish, other))


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 9])
@pytest.mark.parametrize(("depth", "outs"), [(1, 1), (7, 5), (130, 70)])
def test_products_of_matrices(rows, depth, outs):
    rng = np.random.default_rng(rows * depth)
    x = rng.standard_normal((rows, depth)).astype(np.float32)
    weight = rng.standard_normal((outs, depth)).astype(np.float32)
    bias = rng.standard_normal(outs).astype(np.float32)
    out = guarded.place(np.full((rows, outs), FILL, np.float32), at_end=True)
    tiling.prepare_product_float(rows, weight, bias, 2)((guarded.place(x, at_end=True),), (out,))
    exact = x.astype(np.float64) @ weight.T + bias
    np.testing.assert_allclose(out, exact, atol=1e-5 * np.abs(exact).max())

    codes = rng.integers(-128, 128, (rows, depth)).astype(np.int8)
    weights = rng.integers(-127, 128, (outs, depth)).astype(np.int32)
    biases = rng.integers(-999, 999, outs).astype(np.int32)
    finish = draw_requantization(rng, outs, depth, mode=simd.AWAY, relu=False, addend="")
    int8_out = guarded.place(np.full((rows, outs), FILL, np.int8), at_end=True)
    node = tiling.prepare_product_int8(rows, weights, biases, -5, finish, 2)
    node((guarded.place(codes, at_end=True),), (int8_out,))
    sums = (codes.astype(np.int64) + 5) @ weights.T + biases
    expected = requantized(sums[:, :, None, None], finish, np.zeros((rows, outs, 1, 1), np.int8))
    np.testing.assert_array_equal(int8_out, expected[:, :, 0, 0])


def test_values_that_are_no_numbers_pass_a_clamp():
    window = Window(1, 1, 1, 5, 5, 1, 5, 5, 1, 1)
    x = np.full((1, 1, 5, 5), np.nan, np.float32)
    out = np.zeros_like(x)
    weight, bias = np.ones((1, 1, 1, 1), np.float32), np.zeros(1, np.float32)
    tiling.prepare_float(window, weight, bias, 0.0, 6.0, swish=False, threads=1)((x,), (out,))
    assert np.isnan(out).all()


def test_weights_or_sums_that_do_not_fit():
    weight = np.full((1, 2, 1, 1), 127, np.int32)
    assert tiling.fits(weight, np.zeros(1, np.int32))
    assert not tiling.fits(weight, np.full(1, 2**31 - 1, np.int32))
    assert tiling.fits(weight * 2, np.zeros(1, np.int32)) == (not simd.DOT)


def test_weights_are_packed_once_for_a_network():
    window = Window(1, 1, 16, 9, 9, 16, 9, 9, 3, 3, 1, 1, 1, 1)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
    bias = np.zeros(16, np.float32)

    def prepare(weight, owner):
        node = tiling.prepare_float(
            window, weight, bias, -np.inf, np.inf, swish=False, threads=1, owner=owner
        )
        return node, node.description[tiled.WEIGHTS]

    nodes = [prepare(weight, tiling.Owner(weight)) for _ in range(2)]
    assert nodes[0][1] == nodes[1][1]
    assert prepare(weight, None)[1] != nodes[0][1]
    assert prepare(weight, tiling.Owner(weight, b"other"))[1] != nodes[0][1]
    known = len(tiling._packed)
    del weight, nodes
    gc.collect()
    assert len(tiling._packed) < known
