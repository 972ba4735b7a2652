import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import codes, infer, normal, onnx_reference, run

from quantjit.errors import GraphError
from quantjit.ops.resize import ResizeAttrs, UpsampleAttrs
from quantjit.quant import QuantParams

SIDES = st.integers(1, 7)


def attrs_of(mode, out, *, align=False):
    return UpsampleAttrs(mode, 0.0, 0.0, align, *out)


@given(SIDES, SIDES, SIDES, SIDES, st.booleans())
def test_bilinear_like_interpolation_along_the_axes(height, width, out_h, out_w, align):
    x = normal(2, 2, height, width)
    found = run("upsample", [x], attrs_of("bilinear", (out_h, out_w), align=align))
    expected = oracle.resize_linear(x.astype(np.float64), (out_h, out_w), align)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@given(SIDES, SIDES, st.integers(1, 4), st.integers(1, 4))
def test_nearest_repeats_pixels(height, width, times_h, times_w):
    x = normal(2, 2, height, width)
    found = run("upsample", [x], UpsampleAttrs("nearest", times_h, times_w))
    np.testing.assert_array_equal(found, x.repeat(times_h, 2).repeat(times_w, 3))


@pytest.mark.parametrize("out", [(2, 3), (8, 5), (5, 4), (1, 1)])
def test_nearest_rounds_down(out):
    x = normal(1, 2, 5, 4)
    np.testing.assert_array_equal(
        run("upsample", [x], attrs_of("nearest", out)), oracle.resize_nearest(x, out)
    )


@pytest.mark.parametrize("mode", ["bilinear", "cubic"])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("out", [(10, 12), (3, 4), (7, 6)])
def test_like_onnxruntime(mode, align, out):
    x = normal(1, 2, 5, 6)
    expected = onnx_reference(
        "Resize",
        [x, None, None, np.int64([1, 2, *out])],
        {
            "mode": {"bilinear": "linear"}.get(mode, mode),
            "coordinate_transformation_mode": "align_corners" if align else "half_pixel",
            "cubic_coeff_a": -0.75,
        },
        constants=(3,),
    )
    found = run("upsample", [x], attrs_of(mode, out, align=align))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "expected"), [(2.0, 6), (0.5, 2), (1.5, 5), (1.4, 4)])
def test_scaled_sides_are_rounded_half_up(scale, expected):
    attrs = UpsampleAttrs("nearest", scale, scale)
    assert infer("upsample", [(1, 2, 3, 3)], attrs) == ((1, 2, expected, expected),)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "cubic"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_int8_goes_through_float(mode, per_channel):
    x = codes(2, 3, 4, 5)
    count = 3 if per_channel else 1
    source = QuantParams(np.float32([0.5, 0.25, 0.1])[:count], 9)
    target = QuantParams(np.float32([0.7, 0.0, 0.3])[:count], 9)
    attrs = attrs_of(mode, (7, 9))
    found = run("upsample", [x], attrs, quant=((source,), (target,)))
    real = run("upsample", [oracle.to_reals(x, oracle.by_channel(source.scale, 4))], attrs)
    step = oracle.by_channel(target.scale, 4)
    np.testing.assert_array_equal(found, np.where(step == 0, 0, oracle.to_codes(real, step)))


@pytest.mark.parametrize(
    ("shape", "attrs", "reason"),
    [
        ((1, 2, 3), UpsampleAttrs("nearest", 2, 2), "NCHW"),
        ((1, 2, 3, 3), UpsampleAttrs("area", 2, 2), "none of nearest"),
        ((1, 2, 3, 3), UpsampleAttrs("nearest", 0.1, 2), "is empty"),
    ],
)
def test_faults_name_the_node(shape, attrs, reason):
    with pytest.raises(GraphError, match=reason):
        infer("upsample", [shape], attrs)


# ------------------------------------------------------------------ resize


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "cubic"])
@pytest.mark.parametrize("scales", [(2.0, 1.5), (0.7, 0.5), (1.0, 3.3)])
@pytest.mark.parametrize(
    "coordinates",
    ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric"],
)
def test_resize_like_onnxruntime(mode, scales, coordinates):
    x = normal(1, 2, 5, 6)
    expected = onnx_reference(
        "Resize",
        [x, None, np.float32([1, 1, *scales])],
        {
            "mode": {"bilinear": "linear"}.get(mode, mode),
            "coordinate_transformation_mode": coordinates,
            "nearest_mode": "floor",
            "cubic_coeff_a": -0.5,
            "exclude_outside": int(mode == "cubic"),
        },
        opset=19,
        constants=(2,),
    )
    attrs = ResizeAttrs(
        mode, *scales, *expected.shape[2:], coordinates, "floor", -0.5, mode == "cubic"
    )
    np.testing.assert_allclose(run("resize", [x], attrs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("round_prefer_floor", [0, 0, 1, 1, 2, 2]),
        ("round_prefer_ceil", [0, 1, 1, 2, 2, 2]),
        ("floor", [0, 0, 1, 1, 2, 2]),
        ("ceil", [0, 1, 1, 2, 2, 2]),
    ],
)
def test_halves_between_pixels(rounding, expected):
    x = np.arange(3, dtype=np.float32).reshape(1, 1, 1, 3)
    attrs = ResizeAttrs("nearest", 1, 2, 1, 6, "asymmetric", rounding)
    np.testing.assert_array_equal(run("resize", [x], attrs).ravel(), expected)


def test_a_pixel_on_a_boundary_is_not_moved_by_a_rounded_scale():
    x = np.arange(7, dtype=np.float32).reshape(1, 1, 1, 7)
    attrs = ResizeAttrs("nearest", 1, 8 / 7, 1, 8, "asymmetric", "round_prefer_ceil")
    assert run("resize", [x], attrs)[0, 0, 0, 4] == 4  # 4 * 7 / 8 is 3.5


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        (ResizeAttrs("area", 1, 1, 2, 2), "mode 'area' is none of"),
        (ResizeAttrs("nearest", 1, 1, 2, 2, "corner"), "coordinates 'corner'"),
        (ResizeAttrs("nearest", 1, 1, 2, 2, nearest="up"), "nearest 'up'"),
        (ResizeAttrs("nearest", 1, 1, 0, 2), "is empty"),
        (ResizeAttrs("nearest", 0, 1, 2, 2), "is empty"),
    ],
)
def test_resize_that_does_not_fit(attrs, message):
    with pytest.raises(GraphError, match=message):
        infer("resize", [(1, 1, 2, 2)], attrs)
    with pytest.raises(GraphError, match="NCHW"):
        infer("resize", [(1, 2, 2)], attrs)
