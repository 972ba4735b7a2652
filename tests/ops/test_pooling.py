import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import codes, infer, normal, onnx_reference, run

from quantjit.errors import GraphError
from quantjit.ops.pooling import PoolingAttrs
from quantjit.quant import QuantParams

SCALE = QuantParams(0.5)
QUANT = ((SCALE,), (SCALE,))


@st.composite
def geometries(draw):
    """(shape, attrs, oracle's (kernel, stride, pads, out))."""
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    mode = draw(st.sampled_from(("explicit", "same", "valid")))
    limit = size if mode == "valid" else (5, 5)
    kernel = tuple(draw(st.integers(1, side)) for side in limit)
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4)) if mode == "explicit" else (0, 0, 0, 0)
    ceil_mode = draw(st.booleans())
    out, before = [], []
    for axis in range(2):
        if mode == "explicit":
            room = size[axis] + pads[2 * axis] + pads[2 * axis + 1] - kernel[axis]
            ceiling = np.ceil if ceil_mode else np.floor
            out.append(int(ceiling(room / stride[axis])) + 1)
            before.append(pads[2 * axis])
        else:
            room = size[axis] if mode == "same" else size[axis] - kernel[axis] + 1
            out.append(int(np.ceil(room / stride[axis])))
            before.append(int(((out[-1] - 1) * stride[axis] + kernel[axis] - size[axis]) / 2))
    attrs = dict(zip(("kernel_h", "kernel_w"), kernel, strict=True))
    attrs |= dict(zip(("stride_h", "stride_w"), stride, strict=True))
    attrs |= {"pads": pads, "pad_mode": mode, "ceil_mode": ceil_mode}
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 2)), *size)
    return shape, attrs, (kernel, stride, before, tuple(out))


@given(geometries(), st.integers(0, 99))
def test_max_and_average_match_the_windows(geometry, seed):
    shape, attrs, spec = geometry
    if min(spec[3]) < 1:
        with pytest.raises(GraphError, match="is empty"):
            infer("pooling", [shape], PoolingAttrs("max", **attrs))
        return
    x = normal(*shape, seed=seed)
    found = run("pooling", [x], PoolingAttrs("max", **attrs))
    np.testing.assert_array_equal(found, oracle.max_pool(x, *spec))
    found = run("pooling", [x], PoolingAttrs("average", **attrs))
    sums, counts = oracle.average_pool(x, *spec)
    np.testing.assert_allclose(found, sums / np.maximum(counts, 1), rtol=1e-5, atol=1e-6)


@given(geometries(), st.integers(0, 99))
def test_int8_is_exact(geometry, seed):
    shape, attrs, spec = geometry
    if min(spec[3]) < 1:
        return
    x = codes(*shape, seed=seed)
    found = run("pooling", [x], PoolingAttrs("max", **attrs), quant=QUANT)
    np.testing.assert_array_equal(found, oracle.max_pool(x, *spec, lowest=-127))
    found = run("pooling", [x], PoolingAttrs("average", **attrs), quant=QUANT)
    sums, counts = oracle.average_pool(x, *spec)
    np.testing.assert_array_equal(found, np.trunc(sums / np.maximum(counts, 1)))


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("quantized", [False, True])
def test_global(kind, quantized):
    shape = (2, 3, 4, 5)
    attrs = PoolingAttrs(kind, 0, 0)
    if quantized:
        x = codes(*shape)
        expected = x.max(axis=(2, 3)) if kind == "max" else np.trunc(x.mean(axis=(2, 3)))
        found = run("pooling", [x], attrs, quant=QUANT)
    else:
        x = normal(*shape)
        expected = x.max(axis=(2, 3)) if kind == "max" else x.mean(axis=(2, 3))
        found = run("pooling", [x], attrs)
    assert found.shape == (2, 3, 1, 1)
    np.testing.assert_allclose(found[:, :, 0, 0], expected, rtol=1e-5, atol=1e-6)


def test_kernel_from_an_input_dimension():
    attrs = PoolingAttrs("max", 1, 1, kernel_index_h=2, kernel_index_w=3)
    x = normal(1, 2, 3, 4)
    np.testing.assert_array_equal(run("pooling", [x], attrs), x.max(axis=(2, 3), keepdims=True))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_adaptive_average(height, width, out_h, out_w):
    x = normal(2, 1, height, width)
    attrs = PoolingAttrs("average", 0, 0, adaptive=True, output_h=out_h, output_w=out_w)
    expected = oracle.adaptive_average_pool(x, (out_h, out_w))
    np.testing.assert_allclose(run("pooling", [x], attrs), expected, rtol=1e-5, atol=1e-6)


def test_adaptive_int8_runs_input_sized_windows():
    x = codes(1, 2, 3, 4)
    attrs = PoolingAttrs("average", 0, 0, adaptive=True, output_h=2, output_w=2)
    sums, counts = oracle.average_pool(x, (3, 4), (1, 1), (0, 0), (2, 2))
    np.testing.assert_array_equal(run("pooling", [x], attrs, quant=QUANT), np.trunc(sums / counts))


@pytest.mark.parametrize("counts_padding", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_average_like_onnxruntime(counts_padding, ceil_mode):
    x = normal(2, 3, 9, 8)
    pads = (1, 0, 1, 1)
    attrs = PoolingAttrs(
        "average", 3, 2, 2, 2, pads, ceil_mode=ceil_mode, count_include_pad=counts_padding
    )
    expected = onnx_reference(
        "AveragePool",
        [x],
        {
            "kernel_shape": [3, 2],
            "strides": [2, 2],
            "pads": [pads[0], pads[2], pads[1], pads[3]],
            "ceil_mode": int(ceil_mode),
            "count_include_pad": int(counts_padding),
        },
        opset=19,
    )
    np.testing.assert_allclose(run("pooling", [x], attrs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["same", "valid"])
@pytest.mark.parametrize("size", [8, 9, 35])
def test_automatic_pads_like_onnxruntime(mode, size):
    x = normal(1, 2, size, size)
    attrs = PoolingAttrs("max", 3, 3, 2, 2, pad_mode=mode)
    auto_pad = {"same": "SAME_UPPER", "valid": "VALID"}[mode]
    expected = onnx_reference(
        "MaxPool", [x], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": auto_pad}
    )
    np.testing.assert_array_equal(run("pooling", [x], attrs), expected)


@pytest.mark.parametrize(
    ("shape", "attrs", "reason"),
    [
        ((1, 2, 3), PoolingAttrs("max", 1, 1), "NCHW"),
        ((1, 1, 2, 2), PoolingAttrs("median", 1, 1), "neither max nor average"),
        ((1, 1, 2, 2), PoolingAttrs("max", 1, 1, 0, 1), "below 1"),
        ((1, 1, 2, 2), PoolingAttrs("max", 3, 3), "is empty"),
        ((1, 1, 2, 2), PoolingAttrs("max", 1, 1, pad_mode="full"), "pad mode"),
        ((1, 1, 2, 2), PoolingAttrs("max", 1, 1, kernel_index_w=4), "not a dimension"),
        ((1, 1, 2, 2), PoolingAttrs("max", 0, 0, adaptive=True, output_h=1, output_w=1), "adapt"),
        ((1, 1, 2, 2), PoolingAttrs("average", 0, 0, adaptive=True), "is empty"),
    ],
)
def test_faults_name_the_node(shape, attrs, reason):
    with pytest.raises(GraphError, match=reason) as caught:
        infer("pooling", [shape], attrs)
    assert caught.value.place == "node 'node'"
