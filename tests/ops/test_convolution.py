from dataclasses import replace
from functools import partial

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import FILL, codes, infer, make_node, normal, onnx_reference, run

from quantjit import formats, ops
from quantjit.errors import GraphError
from quantjit.executor import infer_shapes
from quantjit.kernels.convolution import decay, inner_range
from quantjit.ops.convolution import ConvolutionAttrs
from quantjit.passes.lower import lower
from quantjit.quant import NodeQuant, QuantParams

ROUNDING = 2.0**-24  # of one float32 operation, relative


def settings_of(attrs):
    """(strides, dilations) for the oracle."""
    return (attrs.stride_h, attrs.stride_w), (attrs.dilation_h, attrs.dilation_w)


def weights_of(attrs, seed=0, transposed=False):
    outer, inner = attrs.out_channels, attrs.in_channels
    if transposed:
        outer, inner = inner, outer
    weight = normal(outer, inner // attrs.group, attrs.kernel_h, attrs.kernel_w, seed=seed)
    return {"weight": weight, "bias": normal(attrs.out_channels, seed=seed + 1)}


def dense(in_channels, out_channels, kernel=1, **more):
    return ConvolutionAttrs(1, in_channels, out_channels, kernel, kernel, **more)


@st.composite
def convolutions(draw, largest=7):
    """(shape, attrs, pads) of a convolution that has an output."""
    kind = draw(st.sampled_from(("dense", "grouped", "depthwise", "pointwise")))
    group = 1 if kind in {"dense", "pointwise"} else draw(st.integers(2, 3))
    per_group = 1 if kind == "depthwise" else draw(st.integers(1, 3))
    outs = 1 if kind == "depthwise" else draw(st.integers(1, 5))
    kernel = (1, 1) if kind == "pointwise" else draw(st.tuples(*[st.integers(1, 3)] * 2))
    small = st.tuples(st.integers(1, 3), st.integers(1, 3))
    stride = draw(st.sampled_from(((1, 1), (2, 2), (3, 2), (1, 3))))
    dilation = draw(small)
    mode = draw(st.sampled_from(("explicit", "same", "valid")))
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4)) if mode == "explicit" else (0, 0, 0, 0)
    size = []
    for axis in range(2):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        room = 0 if mode == "same" else reach - pads[2 * axis] - pads[2 * axis + 1]
        size.append(draw(st.integers(max(1, room), max(largest, room))))
    attrs = ConvolutionAttrs(
        group, group * per_group, group * outs, *kernel, *stride, pads, mode, *dilation
    )
    if mode == "same":  # TensorFlow: ceil(size / stride) outputs, the odd pixel at the end
        totals = [
            max((int(np.ceil(n / s)) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, s, k, d in zip(size, stride, kernel, dilation, strict=True)
        ]
        pads = tuple(pad for total in totals for pad in (total // 2, (total + 1) // 2))
    return (draw(st.integers(1, 3)), attrs.in_channels, *size), attrs, pads


def assert_close(found, exact, magnitude, taps):
    """Within the error that `taps` float32 multiply-adds can make on terms of that total size."""
    assert found.shape == exact.shape
    assert (np.abs(found - exact) <= (taps + 3) * ROUNDING * magnitude).all()


@given(convolutions(), st.integers(0, 99))
def test_float_matches_the_windows(case, seed):
    shape, attrs, pads = case
    x, weights = normal(*shape, seed=seed), weights_of(attrs, seed)
    stride, dilation = settings_of(attrs)
    geometry = (stride, pads, dilation, attrs.group)
    bias = weights["bias"][:, None, None].astype(np.float64)
    exact = oracle.window_products(x, weights["weight"], *geometry) + bias
    size = oracle.window_products(abs(x), abs(weights["weight"]), *geometry) + abs(bias)
    taps = weights["weight"][0].size
    assert_close(run("convolution", [x], attrs, weights), exact, size, taps)


@given(convolutions(largest=9), st.integers(0, 99))
def test_float_matches_onnxruntime(case, seed):
    shape, attrs, pads = case
    x, weights = normal(*shape, seed=seed), weights_of(attrs, seed)
    stride, dilation = settings_of(attrs)
    onnx_attributes = {
        "group": attrs.group,
        "strides": stride,
        "dilations": dilation,
        "pads": (pads[0], pads[2], pads[1], pads[3]),
    }
    expected = onnx_reference("Conv", [x, weights["weight"], weights["bias"]], onnx_attributes)
    found = run("convolution", [x], attrs, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "attrs",
    [
        dense(37, 5, 1),
        dense(5, 6, 3, pads=(1, 1, 1, 1)),
        dense(3, 7, 3, stride_h=2, stride_w=2),
        ConvolutionAttrs(3, 3, 3, 3, 3, pads=(1, 0, 1, 0)),
    ],
)
@pytest.mark.jit
def test_tiles_and_blocks(attrs):  # over one tile of pixels, one block of taps, odd rows
    x, weights = normal(2, attrs.in_channels, 23, 29), weights_of(attrs)
    stride, dilation = settings_of(attrs)
    geometry = (stride, attrs.pads, dilation, attrs.group)
    exact = oracle.window_products(x, weights["weight"], *geometry)
    exact += weights["bias"][:, None, None]
    found = run("convolution", [x], attrs, weights)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_pixel_does_not_depend_on_how_it_is_computed(kernel):
    attrs = dense(11, 20, kernel, activation="relu")
    weights, x = weights_of(attrs), normal(2, 11, 6 + kernel, 4 + kernel)
    exact = partial(run, "convolution", exact_order=True)
    whole = exact([x], attrs, weights)  # by tiles
    for n, h, w in [(0, 0, 0), (1, 3, 2), (1, 6, 4)]:
        window = np.ascontiguousarray(x[n : n + 1, :, h : h + kernel, w : w + kernel])
        alone = exact([window], attrs, weights)  # along the output channels
        np.testing.assert_array_equal(alone[0, :, 0, 0], whole[n, :, h, w])
    padded = exact([x], replace(attrs, pads=(0, 1, 0, 0)), weights)  # not pointwise
    np.testing.assert_array_equal(padded[:, :, :-1], whole)


@pytest.mark.parametrize("shape", [(1, 4, 2, 3), (1, 4, 6, 7)])
@pytest.mark.parametrize("activation", ["relu", "relu6", "swish"])
@pytest.mark.parametrize("group", [1, 4])
def test_activations(activation, group, shape):
    attrs = ConvolutionAttrs(group, 4, 4 if group == 4 else 12, 1, 1)
    weights = weights_of(attrs)
    x = normal(*shape, seed=5, scale=100)
    plain = run("convolution", [x], attrs, weights)
    found = run("convolution", [x], replace(attrs, activation=activation), weights)
    expected = oracle.unary(activation, plain)
    # The oracle's 1 + tanh leaves 1e-16 of x where the result is next to nothing.
    np.testing.assert_allclose(found, expected, rtol=4e-7, atol=1e-13)
    assert (plain > 6).any()
    assert (plain < -1).any()


def test_swish_of_far_values_is_finite():
    attrs = dense(1, 1, activation="swish", has_bias=False)
    x = np.float32([-1e30, -100, 0, 100, 1e30]).reshape(1, 1, 1, 5)
    found = run("convolution", [x], attrs, {"weight": np.ones((1, 1, 1, 1), np.float32)})
    np.testing.assert_allclose(found.ravel(), [0, 0, 0, 100, np.float32(1e30)], atol=1e-30)


def test_weights_may_be_float16_and_bias_absent():
    attrs = dense(2, 3, 2, has_bias=False)
    weight = normal(3, 2, 2, 2).astype(np.float16)
    x = normal(1, 2, 5, 5)
    expected = run("convolution", [x], attrs, {"weight": weight.astype(np.float32)})
    np.testing.assert_array_equal(run("convolution", [x], attrs, {"weight": weight}), expected)
    assert ops.get("convolution").required_weights(attrs) == ("weight",)
    assert ops.get("convolution").required_weights(dense(1, 1)) == ("weight", "bias")


@given(convolutions(), st.integers(0, 99))
def test_a_batch_is_its_images(case, seed):
    shape, attrs, _ = case
    x, weights = normal(*shape, seed=seed), weights_of(attrs, seed)
    alone = [run("convolution", [x[n : n + 1]], attrs, weights) for n in range(shape[0])]
    np.testing.assert_array_equal(run("convolution", [x], attrs, weights), np.concatenate(alone))


@given(st.integers(-40, 40), st.integers(1, 5), st.integers(0, 20), st.integers(1, 20))
def test_inner_range_holds_all_places_inside(at, stride, count, size):
    first, last = inner_range(at, stride, count, size)
    assert 0 <= first <= last <= count
    inside = [q for q in range(count) if 0 <= at + q * stride < size]
    assert list(range(first, last)) == inside


def test_decay_ends_in_infinity_and_zero():
    assert decay(np.float32(-3e38)) == np.inf
    assert decay(np.float32(3e38)) == 0


def test_decay_is_rounded_once():
    values = normal(20000, scale=10)  # in float32 throughout, one in 3000 is off
    expected = np.exp(-values.astype(np.float64)).astype(np.float32)
    found = np.float32([decay(value) for value in values])
    np.testing.assert_array_equal(found, expected)


# --- deconvolution


@st.composite
def deconvolutions(draw):
    """(shape, attrs) with explicit pads and an output."""
    group = draw(st.integers(1, 2))
    kernel, stride, dilation = (draw(st.tuples(*[st.integers(1, 3)] * 2)) for _ in range(3))
    size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    pads = []
    for axis in range(2):
        touched = (size[axis] - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
        before = draw(st.integers(0, min(2, touched - 1)))
        pads += [before, draw(st.integers(0, min(2, touched - 1 - before)))]
    per_group, outs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    attrs = ConvolutionAttrs(
        group, group * per_group, group * outs, *kernel, *stride, tuple(pads), "explicit", *dilation
    )
    return (draw(st.integers(1, 2)), attrs.in_channels, *size), attrs


def spread_products(x, weights, attrs, pads, out):
    stride, dilation = settings_of(attrs)
    return oracle.transposed_products(
        x, weights["weight"], stride, pads, dilation, attrs.group, out
    ) + weights["bias"].reshape(-1, 1, 1)


@given(deconvolutions(), st.integers(0, 99))
def test_deconvolution_matches_the_spread_input(case, seed):
    shape, attrs = case
    x, weights = normal(*shape, seed=seed), weights_of(attrs, seed, transposed=True)
    found = run("deconvolution", [x], attrs, weights)
    expected = spread_products(x, weights, attrs, attrs.pads[::2], found.shape[2:])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@given(deconvolutions(), st.integers(0, 99))
def test_deconvolution_matches_onnxruntime(case, seed):
    shape, attrs = case
    x, weights = normal(*shape, seed=seed), weights_of(attrs, seed, transposed=True)
    stride, dilation = settings_of(attrs)
    pads = attrs.pads
    onnx_attributes = {
        "group": attrs.group,
        "strides": stride,
        "dilations": dilation,
        "pads": (pads[0], pads[2], pads[1], pads[3]),
    }
    inputs = [x, weights["weight"], weights["bias"]]
    expected = onnx_reference("ConvTranspose", inputs, onnx_attributes)
    found = run("deconvolution", [x], attrs, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "kernel", "stride", "size", "out", "pad"),
    [
        ("same", 3, 2, 4, 8, 0),  # one pixel too many: cut at the end
        ("same", 4, 2, 4, 8, 1),
        ("same", 5, 2, 4, 8, 1),
        ("same", 2, 3, 3, 9, 0),  # kernel below the stride
        ("output", 3, 2, 4, 8, 1),  # as "same", but cut at the start
        ("output", 5, 2, 4, 8, 2),
        ("output", 2, 3, 3, 9, 0),
        ("valid", 3, 2, 4, 9, 0),
        ("valid", 2, 3, 3, 9, 0),
        ("full", 3, 1, 5, 3, 2),
        ("full", 2, 2, 4, 6, 1),
    ],
)
def test_deconvolution_pad_modes(mode, kernel, stride, size, out, pad):
    attrs = dense(2, 3, kernel, stride_h=stride, stride_w=stride, pad_mode=mode, activation="relu6")
    x, weights = normal(1, 2, size, size, scale=3), weights_of(attrs, transposed=True)
    found = run("deconvolution", [x], attrs, weights)
    assert found.shape == (1, 3, out, out)
    expected = spread_products(x, weights, attrs, (pad, pad), (out, out))
    np.testing.assert_allclose(found, np.clip(expected, 0, 6), rtol=1e-5, atol=1e-5)


def test_output_mode_is_onnx_output_padding():
    attrs = dense(2, 3, 3, stride_h=2, stride_w=2, pad_mode="output")
    x, weights = normal(1, 2, 4, 5), weights_of(attrs, transposed=True)
    expected = onnx_reference(
        "ConvTranspose",
        [x, weights["weight"], weights["bias"]],
        {"strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)},
    )
    found = run("deconvolution", [x], attrs, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@given(deconvolutions(), st.sampled_from(("same", "valid", "full", "output")), st.integers(0, 99))
def test_deconvolution_pad_modes_cut_the_whole(case, mode, seed):
    """Every mode is a window on all that the taps touch; outside it lies the bias alone."""
    shape, attrs = case
    weights = weights_of(attrs, seed, transposed=True)
    x, attrs = normal(*shape, seed=seed), replace(attrs, pads=(0, 0, 0, 0))
    whole = run("deconvolution", [x], attrs, weights)
    stride, dilation = settings_of(attrs)
    kernel = (attrs.kernel_h, attrs.kernel_w)
    out, before = [], []
    for n, k, s, d in zip(shape[2:], kernel, stride, dilation, strict=True):
        extent, touched = (k - 1) * d + 1, (n - 1) * s + (k - 1) * d + 1
        cut = max(extent - s, 0)  # "same": size * stride is left
        sizes = {"valid": n * s + cut, "full": touched - 2 * (extent - 1)}
        out.append(sizes.get(mode, n * s))
        before.append({"same": cut // 2, "output": -(-cut // 2), "full": extent - 1}.get(mode, 0))
    attrs = replace(attrs, pad_mode=mode)
    if min(out) < 1:
        with pytest.raises(GraphError, match="nothing is left"):
            infer("deconvolution", [shape], attrs)
        return
    expected = np.empty((*whole.shape[:2], *out), np.float32)
    expected[:] = weights["bias"][:, None, None]
    window = whole[:, :, before[0] :, before[1] :][:, :, : out[0], : out[1]]
    expected[:, :, : window.shape[2], : window.shape[3]] = window
    np.testing.assert_array_equal(run("deconvolution", [x], attrs, weights), expected)


@pytest.mark.parametrize("activation", ["relu", "relu6", "swish"])
def test_deconvolution_activations(activation):
    attrs = ConvolutionAttrs(2, 4, 6, 2, 3, 2, 1)
    x, weights = normal(2, 4, 3, 4, scale=5), weights_of(attrs, transposed=True)
    plain = run("deconvolution", [x], attrs, weights)
    found = run("deconvolution", [x], replace(attrs, activation=activation), weights)
    np.testing.assert_allclose(found, oracle.unary(activation, plain), rtol=4e-7, atol=1e-13)
    assert (plain > 6).any()
    assert (plain < -1).any()


def test_deconvolution_of_a_batch_with_half_weights():
    attrs = ConvolutionAttrs(1, 3, 2, 3, 3, 2, 2, has_bias=False)
    x, weight = normal(3, 3, 4, 5), normal(3, 2, 3, 3).astype(np.float16)
    whole = run("deconvolution", [x], attrs, {"weight": weight.astype(np.float32)})
    for n in range(3):
        alone = run("deconvolution", [x[n : n + 1]], attrs, {"weight": weight})
        np.testing.assert_array_equal(alone[0], whole[n])


# --- int8


def run_int8(arrays, attrs, weights, quant, inputs, output):
    """Output codes; quant: NodeQuant, inputs: a QuantParams each, output: QuantParams."""
    form = ops.get("convolution")
    node = make_node("convolution", attrs, len(arrays), 1, weights, quant)
    shapes = tuple(x.shape for x in arrays)
    out_shapes = form.infer_shape(node, shapes)
    runner = form.prepare_int8(ops.Request(node, shapes, out_shapes, inputs, (output,)))
    out = np.full(out_shapes[0], FILL, np.int8)
    for _ in range(2):  # a runner keeps no state
        runner(tuple(arrays), (out,))
    return out


def int_sums(x, zeros, weights, weight_zero, attrs, pads):
    """Sums with bias, int64: a padded tap counts as the zero point."""
    stride, dilation = settings_of(attrs)
    shifted = x.astype(np.int64) - oracle.by_channel(zeros, 4)
    weight = weights["weight"].astype(np.int64) - np.asarray(weight_zero).reshape(-1, 1, 1, 1)
    sums = oracle.window_products(shifted, weight, stride, pads, dilation, attrs.group)
    return sums + weights["bias"].reshape(-1, 1, 1)


def int8_weights(attrs, rng):
    shape = (attrs.out_channels, attrs.in_channels // attrs.group, attrs.kernel_h, attrs.kernel_w)
    return {
        "weight": rng.integers(-128, 128, shape).astype(np.int8),
        "bias": rng.integers(-20000, 20000, attrs.out_channels).astype(np.int32),
    }


def params(rng, count, scales, zero_points):
    zeros = rng.integers(-128, 128, count) if zero_points else 0
    return QuantParams(rng.uniform(*scales, count), zeros)


@given(
    convolutions(),
    st.integers(0, 999),
    st.tuples(*[st.booleans()] * 5),
    st.sampled_from(("none", "relu", "relu6", "swish")),
    st.sampled_from(("none", "add_activation", "activation_add")),
)
def test_int8_is_exact(case, seed, choices, activation, fusion):
    shape, attrs, pads = case
    attrs = replace(attrs, activation=activation, fusion=fusion)
    zero_points, in_each, weight_each, out_each, add_each = choices
    rng = np.random.default_rng(seed)
    weights = int8_weights(attrs, rng)
    outs = attrs.out_channels
    source = params(rng, attrs.in_channels if in_each else 1, (0.1, 1), zero_points)
    target = params(rng, outs if out_each else 1, (0.1, 1), zero_points)
    other = params(rng, outs if add_each else 1, (0.1, 1), zero_points)
    wanted = params(rng, outs if weight_each else 1, (1e-4, 1e-3), zero_points)
    quant = NodeQuant(wanted.scale, wanted.zero_point)
    x = codes(*shape, seed=seed)
    sums = int_sums(x, source.zero_point, weights, wanted.zero_point, attrs, pads)
    arrays, inputs, added = [x], (source,), None
    if fusion != "none":
        arrays.append(codes(*sums.shape, seed=seed + 1))
        inputs, added = (source, other), (arrays[1], other.scale, other.zero_point)
    expected = oracle.requantize(
        sums,
        wanted.scale,
        target.scale,
        target.zero_point,
        activation,
        added if fusion == "add_activation" else None,
        added if fusion == "activation_add" else None,
    )
    found = run_int8(arrays, attrs, weights, quant, inputs, target)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(2, 2), (5, 4)])  # along channels, by tiles
@pytest.mark.parametrize("group", [1, 6])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "swish"])
@pytest.mark.parametrize("fusion", ["none", "add_activation", "activation_add"])
def test_int8_fusions(fusion, activation, group, size):
    attrs = ConvolutionAttrs(group, 6, 6, 1, 1, activation=activation, fusion=fusion)
    rng = np.random.default_rng(1)
    weights, x, operand = int8_weights(attrs, rng), codes(2, 6, *size), codes(2, 6, *size, seed=1)
    source, other, target = QuantParams(1, 5), QuantParams(0.3, -9), QuantParams(0.25, 11)
    quant = NodeQuant(np.float32([5e-4]), np.int8([3]))
    sums = int_sums(x, source.zero_point, weights, 3, attrs, (0, 0, 0, 0))
    added = (operand, other.scale, other.zero_point)
    expected = oracle.requantize(
        sums,
        quant.weight_scale,
        target.scale,
        target.zero_point,
        activation,
        added if fusion == "add_activation" else None,
        added if fusion == "activation_add" else None,
    )
    arrays, inputs = ([x], (source,)) if fusion == "none" else ([x, operand], (source, other))
    found = run_int8(arrays, attrs, weights, quant, inputs, target)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 2  # not all saturated


@pytest.mark.parametrize(
    "attrs",
    [
        dense(40, 5, 1),
        dense(5, 7, 3),
        dense(7, 20, 3, stride_h=9),
        dense(3, 4, 3, pads=(1, 2, 2, 1)),  # a tile overwrites what the last one left as padding
    ],
)
@pytest.mark.jit
def test_int8_tiles_and_blocks(attrs):
    rng = np.random.default_rng(3)
    weights, x = int8_weights(attrs, rng), codes(2, attrs.in_channels, 19, 21)
    quant = NodeQuant(np.float32([1e-3]), np.int8([0]))
    scale = QuantParams(0.9)
    found = run_int8([x], attrs, weights, quant, (scale,), scale)
    expected = oracle.requantize(int_sums(x, 0, weights, 0, attrs, attrs.pads), 1e-3, 0.9)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("activation", ["none", "relu6"])
def test_int8_dead_and_tiny_scales(activation):
    """Steps of 0 and below the smallest normal float give a factor of 0; the ceiling is 127."""
    attrs = dense(1, 4, activation=activation)
    weights = {"weight": np.full((4, 1, 1, 1), 100, np.int8), "bias": np.zeros(4, np.int32)}
    steps = np.float32([0, 1e-40, np.finfo(np.float32).tiny, 1])
    quant = NodeQuant(np.float32([1e-6, 1e-6, 1e-6, 1]), np.zeros(4, np.int8))
    x = np.full((1, 1, 4, 5), 100, np.int8)
    found = run_int8([x], attrs, weights, quant, (QuantParams(1),), QuantParams(steps))
    saturated = 6 if activation == "relu6" else 127
    np.testing.assert_array_equal(found[0, :, 0, 0], [0, 0, 127, saturated])


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_int8_windows_outside_the_input(stride, group):
    """Pads wider than the kernel: whole windows lie outside and count as zero points."""
    attrs = ConvolutionAttrs(group, 3, 3, 2, 2, stride, stride, (3, 3, 3, 3))
    rng = np.random.default_rng(2)
    weights, x = int8_weights(attrs, rng), codes(1, 3, 2, 3)
    quant, source, target = (
        NodeQuant(np.float32([1e-3]), np.int8([0])),
        QuantParams(1, 9),
        QuantParams(1),
    )
    expected = oracle.requantize(int_sums(x, 9, weights, 0, attrs, attrs.pads), 1e-3, 1)
    found = run_int8([x], attrs, weights, quant, (source,), target)
    np.testing.assert_array_equal(found, expected)


def test_int8_sums_are_not_wrapped_by_the_bias():
    attrs = dense(1, 1)
    weights = {"weight": np.full((1, 1, 1, 1), 127, np.int8), "bias": np.int32([2**31 - 1])}
    quant = NodeQuant(np.float32([2.0**-25]), np.int8([0]))
    x = np.full((1, 1, 1, 1), 127, np.int8)
    found = run_int8([x], attrs, weights, quant, (QuantParams(1),), QuantParams(1))
    assert found.item() == 64


def test_int8_sums_that_could_wrap_are_refused():
    attrs = dense(1, 1, 182)  # 182 * 182 * 255 * 255 is over 2**31, 182 * 182 * 127 * 255 is not
    weights = {"weight": np.full((1, 1, 182, 182), 127, np.int8), "bias": np.zeros(1, np.int32)}
    unit = QuantParams(1)
    x = np.full((1, 1, 182, 182), -128, np.int8)
    shifted = NodeQuant(np.float32([1]), np.int8([-128]))
    with pytest.raises(GraphError, match="33124 products do not fit int32"):
        run_int8([x], attrs, weights, shifted, (QuantParams(1, 127),), unit)
    plain = NodeQuant(np.float32([2.0**-23]), np.int8([0]))
    found = run_int8([x], attrs, weights, plain, (QuantParams(1, 127),), unit)
    assert found.item() == -128  # -1.07e9 / 2**23, saturated


def test_int8_without_bias():
    attrs = dense(2, 3, has_bias=False)
    weight = int8_weights(attrs, np.random.default_rng(0))["weight"]
    quant, unit = NodeQuant(np.float32([0.01]), np.int8([0])), QuantParams(1)
    x = codes(1, 2, 5, 5)
    found = run_int8([x], attrs, {"weight": weight}, quant, (unit,), unit)
    zeros = {"weight": weight, "bias": np.zeros(3, np.int32)}
    expected = run_int8([x], replace(attrs, has_bias=True), zeros, quant, (unit,), unit)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("channels", "outs", "kernel_w"),
    [(33025, 1, 1), (33025, 2, 1), (1, 1, 33025)],  # by tiles, along channels, depthwise
)
def test_int8_sums_are_exact_up_to_the_limit(channels, outs, kernel_w, sign):
    """33025 products of 255 * 255 are the most that int32 holds; the bias brings them to 5."""
    attrs = ConvolutionAttrs(1, channels, outs, 1, kernel_w)
    total = 33025 * 255 * 255
    assert total <= 2**31 - 1 < total + 255 * 255
    weights = {
        "weight": np.full((outs, channels, 1, kernel_w), 127, np.int8),
        "bias": np.full(outs, 5 - sign * total, np.int32),
    }
    x = np.full((1, channels, 1, kernel_w), 127 if sign > 0 else -128, np.int8)
    source = QuantParams(1, -128 if sign > 0 else 127)
    quant = NodeQuant(np.float32([1]), np.int8([-128]))
    found = run_int8([x], attrs, weights, quant, (source,), QuantParams(1))
    np.testing.assert_array_equal(found.ravel(), [5] * outs)


@pytest.mark.parametrize("outs", [1, 2])
def test_int8_refuses_one_product_over_the_limit(outs):
    attrs = dense(33026, outs, has_bias=False)
    weights = {"weight": np.zeros((outs, 33026, 1, 1), np.int8)}
    weights["weight"][-1] = 127  # the largest of the rows counts
    x, unit = np.zeros((1, 33026, 1, 1), np.int8), QuantParams(1)
    quant = NodeQuant(np.float32([1]), np.int8([-128]))
    for zero in (-128, 127):
        with pytest.raises(GraphError, match="sums of 33026 products do not fit int32"):
            run_int8([x], attrs, weights, quant, (QuantParams(1, zero),), unit)


@given(convolutions(), st.integers(0, 999), st.booleans())
def test_int8_batch_is_its_images(case, seed, fused):
    shape, attrs, _ = case
    rng = np.random.default_rng(seed)
    attrs = replace(attrs, fusion="add_activation" if fused else "none", activation="relu")
    weights, unit = int8_weights(attrs, rng), QuantParams(0.7, 3)
    quant = NodeQuant(np.float32([1e-3]), np.int8([1]))
    arrays = [codes(*shape, seed=seed)]
    if fused:
        plain = infer("convolution", [shape], replace(attrs, fusion="none"))
        arrays.append(codes(*plain[0], seed=seed + 1))
    inputs = (unit,) * len(arrays)
    alone = [
        run_int8([x[n : n + 1] for x in arrays], attrs, weights, quant, inputs, unit)
        for n in range(shape[0])
    ]
    whole = run_int8(arrays, attrs, weights, quant, inputs, unit)
    np.testing.assert_array_equal(whole, np.concatenate(alone))


@pytest.mark.parametrize("size", [(2, 2), (5, 4)])
@pytest.mark.parametrize("group", [1, 4])
def test_int8_dead_weights_and_operands(group, size):
    """A step of 0 adds nothing: what is left are the other operand and the zero point."""
    attrs = ConvolutionAttrs(group, 4, 4, 1, 1, fusion="activation_add")
    weights = int8_weights(attrs, np.random.default_rng(0))
    x, operand = codes(1, 4, *size), codes(1, 4, *size, seed=1)
    quant = NodeQuant(np.float32([0, 0, 1e-3, 1e-3]), np.int8([7, 0, -128, 3]))
    other, target = QuantParams([0, 1, 0, 1], [9, 0, -9, 0]), QuantParams(1, 11)
    found = run_int8([x, operand], attrs, weights, quant, (QuantParams(1), other), target)
    sums = int_sums(x, 0, weights, quant.weight_zero_point, attrs, (0, 0, 0, 0))
    np.testing.assert_array_equal(found[0, 0], np.full(size, 11))
    np.testing.assert_array_equal(
        found[0, 1], np.clip(operand[0, 1].astype(np.int64) + 11, -128, 127)
    )
    alone = oracle.requantize(sums, 1e-3, 1, 11)
    np.testing.assert_array_equal(found[0, 2], alone[0, 2])
    assert len(np.unique(found[0, 2])) > 2


@pytest.mark.parametrize(
    ("code", "expected"), [(-3, -2), (-1, -1), (0, 0), (1, 1), (3, 2), (5, 3), (127, 64)]
)
def test_int8_rounds_half_away_from_zero(code, expected):
    attrs = dense(1, 1, has_bias=False)
    quant = NodeQuant(np.float32([0.5]), np.int8([0]))
    x, one = np.full((1, 1, 1, 1), code, np.int8), {"weight": np.ones((1, 1, 1, 1), np.int8)}
    found = run_int8([x], attrs, one, quant, (QuantParams(1),), QuantParams(1))
    assert found.item() == expected


# --- shapes, counts, errors


@pytest.mark.parametrize(
    ("attrs", "size", "out"),
    [
        (dense(1, 1, 3, stride_h=2, stride_w=2, pad_mode="same"), (7, 8), (4, 4)),
        (dense(1, 1, 3, stride_h=2, stride_w=2, pad_mode="valid"), (7, 8), (3, 3)),
        (dense(1, 1, 3, dilation_h=2, dilation_w=3, pads=(1, 2, 3, 0)), (5, 5), (4, 2)),
        (dense(1, 1, 1, stride_h=3, stride_w=4, pad_mode="same"), (9, 9), (3, 3)),
    ],
)
def test_convolution_shapes(attrs, size, out):
    assert infer("convolution", [(2, 1, *size)], attrs) == ((2, 1, *out),)


def test_macs():
    attrs = ConvolutionAttrs(2, 4, 6, 3, 5)
    node = make_node("convolution", attrs)
    assert ops.get("convolution").macs(node, [(2, 4, 9, 9)], [(2, 6, 7, 5)]) == (
        2 * 7 * 5 * 6 * 2 * 3 * 5
    )
    node = make_node("deconvolution", attrs)
    assert ops.get("deconvolution").macs(node, [(2, 4, 7, 5)], [(2, 6, 9, 9)]) == (
        2 * 7 * 5 * 4 * 3 * 3 * 5
    )


@pytest.mark.parametrize(
    ("op", "attrs", "shapes", "match"),
    [
        ("convolution", dense(3, 1), [(1, 2, 5, 5)], "node 'node': needs 3 channels, got 2"),
        ("convolution", dense(3, 1), [(1, 3, 5)], "4 dimensions"),
        ("convolution", dense(3, 1, 4), [(1, 3, 5, 3)], "4 x 4 kernel is larger"),
        ("convolution", dense(3, 1, 2, dilation_h=9), [(1, 3, 5, 5)], "is larger"),
        ("convolution", dense(3, 1, stride_h=0), [(1, 3, 5, 5)], "must be positive"),
        ("convolution", dense(3, 0), [(1, 3, 5, 5)], "must be positive"),
        ("convolution", ConvolutionAttrs(2, 3, 4, 1, 1), [(1, 3, 5, 5)], "do not divide 3 -> 4"),
        ("convolution", ConvolutionAttrs(2, 4, 3, 1, 1), [(1, 4, 5, 5)], "do not divide 4 -> 3"),
        ("convolution", dense(3, 1, pad_mode="full"), [(1, 3, 5, 5)], "'full' is for deconv"),
        ("convolution", dense(3, 1), [(1, 3, 5, 5)] * 2, "cannot work on inputs"),
        ("convolution", dense(3, 1, fusion="add_activation"), [(1, 3, 5, 5)], "cannot work on"),
        (
            "convolution",
            dense(3, 1, fusion="add_activation"),
            [(1, 3, 5, 5), (1, 1, 5, 4)],
            "cannot work on",
        ),
        ("deconvolution", dense(3, 1), [(1, 2, 5, 5)], "needs 3 channels"),
        ("deconvolution", dense(3, 1), [(1, 3, 5, 5)] * 2, "cannot work on inputs"),
        ("deconvolution", dense(3, 1, pads=(3, 3, 0, 0)), [(1, 3, 5, 5)], "nothing is left"),
        ("deconvolution", dense(3, 1, 4, pad_mode="full"), [(1, 3, 3, 9)], "nothing is left"),
        ("deconvolution", dense(3, 1, pad_mode="half"), [(1, 3, 5, 5)], "'half' is unknown"),
    ],
)
def test_bad_shapes(op, attrs, shapes, match):
    with pytest.raises(GraphError, match=match):
        infer(op, shapes, attrs)


@pytest.mark.parametrize(
    ("op", "change", "match"),
    [
        ("convolution", {"weight": None}, r"needs a weight of shape \(5, 2, 3, 4\), got none"),
        ("convolution", {"weight": normal(5, 2, 3, 3)}, r"got \(5, 2, 3, 3\)"),
        ("convolution", {"bias": None}, r"needs a bias of shape \(5,\), got none"),
        ("convolution", {"bias": normal(4)}, r"got \(4,\)"),
        ("deconvolution", {"weight": normal(5, 2, 3, 4)}, r"needs a weight of shape \(2, 5, 3, 4"),
    ],
)
def test_bad_weights(op, change, match):
    attrs = ConvolutionAttrs(1, 2, 5, 3, 4)
    weights = weights_of(attrs, transposed=op == "deconvolution") | change
    weights = {role: array for role, array in weights.items() if array is not None}
    with pytest.raises(GraphError, match=match):
        run(op, [normal(1, 2, 6, 6)], attrs, weights)


def test_a_fused_add_has_no_float_form():
    attrs = dense(2, 2, fusion="add_activation")
    x = normal(1, 2, 3, 3)
    with pytest.raises(GraphError, match="int8 only"):
        run("convolution", [x, x], attrs, weights_of(attrs))


def test_int8_needs_a_quantized_node():
    attrs, x, unit = dense(1, 1), codes(1, 1, 2, 2), QuantParams(1)
    weights = int8_weights(attrs, np.random.default_rng(0))
    with pytest.raises(GraphError, match="is not quantized"):
        run_int8([x], attrs, weights, None, (unit,), unit)


# --- against TNN


@pytest.mark.shared
@pytest.mark.jit
@pytest.mark.parametrize(
    ("model", "methods", "counts"),
    [
        ("rfb320", "b0w0t0", {"convolution": 52}),  # scales by channel, dead ones among them
        ("rfb320", "b2w1t1", {"convolution": 52}),
        ("rfb320", "b3w3t1", {"convolution": 52}),  # zero points
        ("squeezenet_v1.0", "b0w0t0", {"convolution": 26}),
        ("squeezenet_v1.0", "b2w1t1", {"convolution": 26}),
        ("squeezenet_v1.0", "b3w0t0", {"convolution": 26}),
        ("mobilenet_v2", "b0w0t0", {"convolution": 52, "inner_product": 1}),
        ("mobilenet_v2", "b2w1t1", {"convolution": 52, "inner_product": 1}),
    ],
)
def test_every_byte_of_tnn(shared, model, methods, counts):
    folder = shared / "golden" / model
    graph = lower(formats.load(folder / methods / f"{model}.quantized.tnnproto"))
    shapes = infer_shapes(graph)
    blobs = dict(np.load(folder / f"int8_blobs_{methods}.npz"))
    for blob in graph.inputs:
        blobs[blob.name] = blobs[f"_{blob.name}"]
    done = dict.fromkeys(counts, 0)
    for node in graph.nodes:
        if node.quant is None or node.op not in counts:
            continue
        inputs, outputs = (
            [blobs[name.replace("/", "_")].reshape(shapes[name]) for name in names]
            for names in (node.inputs, node.outputs)
        )
        request = ops.Request(
            node,
            tuple(shapes[blob] for blob in node.inputs),
            tuple(shapes[blob] for blob in node.outputs),
            tuple(graph.scales[blob] for blob in node.inputs),
            tuple(graph.scales[blob] for blob in node.outputs),
        )
        found = np.empty_like(outputs[0])
        ops.get(node.op).prepare_int8(request)(inputs, (found,))
        np.testing.assert_array_equal(found, outputs[0], err_msg=node.name)
        done[node.op] += 1
    assert done == counts
