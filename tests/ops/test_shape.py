import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import codes, infer, normal, onnx_reference, run

from quantjit import ops
from quantjit.errors import GraphError
from quantjit.ops.shape import (
    AxesAttrs,
    CastAttrs,
    ConstantAttrs,
    FlattenAttrs,
    GatherAttrs,
    PadAttrs,
    PermuteAttrs,
    ReshapeAttrs,
    SliceAttrs,
    TileAttrs,
)
from quantjit.quant import QuantParams

QUANT = ((QuantParams(0.5),), (QuantParams(0.5),))
DIMS = st.lists(st.integers(1, 4), min_size=1, max_size=4)


# ------------------------------------------------------------------ reshape and its kin


@pytest.mark.parametrize(
    ("shape", "attrs", "expected"),
    [
        ((2, 12, 3, 4), ReshapeAttrs((0, 0, -1, 1)), (2, 12, 12, 1)),
        ((2, 8, 1, 1), ReshapeAttrs((0, 8, 1, 1), 0, 4), (2, 8, 1, 1)),
        ((1, 12, 3, 4), ReshapeAttrs((0, -1, 2), 0, 3), (1, 72, 2)),
        ((2, 3, 4), ReshapeAttrs((-1,)), (24,)),
        ((2, 3, 4), ReshapeAttrs((4, 3), axis=1), (2, 4, 3)),
        ((2, 3, 4), ReshapeAttrs((6, 4, 9), num_axes=2), (6, 4, 1)),
    ],
)
@pytest.mark.parametrize("quantized", [False, True])
def test_reshape(shape, attrs, expected, quantized):
    x = codes(*shape) if quantized else normal(*shape)
    found = run("reshape", [x], attrs, quant=QUANT if quantized else None)
    assert found.shape == expected
    np.testing.assert_array_equal(found, x.reshape(expected))


def test_reshape_ignores_a_second_input():
    x = normal(1, 6)
    found = run("reshape", [x, np.float32([3, 2])], ReshapeAttrs((0, 2, 3)))
    np.testing.assert_array_equal(found, x.reshape(1, 2, 3))


def test_reshape_in_nhwc_order():
    x = normal(2, 3, 4, 5)
    found = run("reshape", [x], ReshapeAttrs((0, 6, 2, 5), layout="nhwc"))
    rows = x.transpose(0, 2, 3, 1).ravel().reshape(2, 2, 5, 6)
    np.testing.assert_array_equal(found, rows.transpose(0, 3, 1, 2))
    flat = run("reshape", [x], ReshapeAttrs((120,), layout="nhwc"))
    np.testing.assert_array_equal(flat, x.transpose(0, 2, 3, 1).ravel())
    back = run("reshape", [flat], ReshapeAttrs((2, 3, 4, 5), layout="nhwc"))
    np.testing.assert_array_equal(back, x)


@given(DIMS, st.integers(0, 4), st.booleans())
def test_flatten(shape, axis, quantized):
    axis = min(axis, len(shape))
    x = codes(*shape) if quantized else normal(*shape)
    found = run("flatten", [x], FlattenAttrs(axis), quant=QUANT if quantized else None)
    np.testing.assert_array_equal(found, x.reshape(int(np.prod(shape[:axis])), -1))
    if axis < len(shape):
        assert infer("flatten", [shape], FlattenAttrs(axis - len(shape))) == (found.shape,)


@given(st.permutations(range(4)), st.integers(0, 4), st.booleans())
def test_permute(order, count, quantized):
    x = codes(1, 2, 3, 4) if quantized else normal(1, 2, 3, 4)
    given_order = order[:count]
    full = [*given_order, *sorted(set(order) - set(given_order))]
    attrs = PermuteAttrs(tuple(given_order))
    found = run("permute", [x], attrs, quant=QUANT if quantized else None)
    np.testing.assert_array_equal(found, x.transpose(full))


@pytest.mark.parametrize(
    ("op", "shape", "axes", "expected"),
    [
        ("squeeze", (1, 2, 1, 3), (2,), (1, 2, 3)),
        ("squeeze", (1, 2, 1, 3), (0, -2), (2, 3)),
        ("squeeze", (1, 2, 1, 3), (), (2, 3)),
        ("unsqueeze", (2, 3), (0,), (1, 2, 3)),
        ("unsqueeze", (2, 3), (2, 3), (2, 3, 1, 1)),
        ("unsqueeze", (2, 3), (-1,), (2, 3, 1)),
    ],
)
def test_squeeze_and_unsqueeze(op, shape, axes, expected):
    x = normal(*shape)
    np.testing.assert_array_equal(run(op, [x], AxesAttrs(axes)), x.reshape(expected))


# ------------------------------------------------------------------ pad


@given(st.data())
def test_pad_like_numpy(data):
    shape = data.draw(DIMS)
    kind = data.draw(st.sampled_from(["constant", "reflect", "edge"]))
    limits = [size - 1 if kind == "reflect" else 3 for size in shape]
    pads = [data.draw(st.tuples(st.integers(0, n), st.integers(0, n))) for n in limits]
    named = data.draw(st.integers(0, len(shape)))
    pads[named:] = [(0, 0)] * (len(shape) - named)
    begins, ends = tuple(zip(*pads[:named], strict=True)) if named else ((), ())
    x = normal(*shape)
    how = {"constant_values": 0.5} if kind == "constant" else {}
    expected = np.pad(x, pads, kind, **how)
    for op in ("pad", "pad_v2"):
        found = run(op, [x], PadAttrs(begins, ends, kind, 0.5))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["constant", "edge", "reflect"])
def test_negative_pads_crop(kind):
    x = normal(2, 5, 6)
    found = run("pad_v2", [x], PadAttrs((0, -1, 2), (0, 1, -3), kind, 0.5))
    expected = onnx_reference(
        "Pad",
        [x, np.int64([0, -1, 2, 0, 1, -3]), np.float32(0.5)],
        {"mode": kind},
        constants=(1, 2),
    )
    np.testing.assert_array_equal(found, expected)


# ------------------------------------------------------------------ slices


@pytest.mark.parametrize(
    ("begins", "ends", "strides", "where"),
    [
        ((0, 0, 0, 0), (0, 3, 0, 0), (1, 1, 1, 1), np.s_[:, :3]),
        ((0, 3, 0, 0), (0, 6, 0, 0), (1, 1, 1, 1), np.s_[:, 3:]),
        ((0, -2, 1, 0), (0, 0, -1, 9), (1, 1, 1, 2), np.s_[:, -2:, 1:-1, ::2]),
    ],
)
def test_strided_slice_v1(begins, ends, strides, where):
    x = normal(2, 6, 4, 5)
    for axes in ((0, 1, 2, 3), ()):
        found = run("strided_slice", [x], SliceAttrs(begins, ends, axes, strides))
        np.testing.assert_array_equal(found, x[where])


def test_strided_slice_v1_takes_the_size_of_a_second_input():
    x, like = normal(1, 3, 5, 6), normal(1, 3, 2, 4)
    attrs = SliceAttrs((0, 0, 1, 2), (0,) * 4, (), (1,) * 4)
    np.testing.assert_array_equal(run("strided_slice", [x, like], attrs), x[:, :, 1:3, 2:6])
    with pytest.raises(GraphError, match="too little"):
        infer("strided_slice", [x.shape, (1, 3, 5, 6)], attrs)


@given(st.data())
def test_strided_slice_v2_like_onnxruntime_and_numpy(data):
    size = data.draw(st.integers(1, 6))
    big = 2**31 - 1
    begin = data.draw(st.integers(-size, size + 2))
    stride = data.draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))
    far = big if stride > 0 else -big - 1
    end = data.draw(st.one_of(st.integers(-size - 1, size + 2), st.just(far)))
    x = normal(2, size, 3)
    attrs = SliceAttrs((begin,), (end,), (data.draw(st.sampled_from([1, -2])),), (stride,))
    expected = onnx_reference(
        "Slice",
        [x, *(np.int64([v]) for v in (begin, end, 1, stride))],
        constants=(1, 2, 3, 4),
    )
    if expected.size == 0:
        with pytest.raises(GraphError, match="nothing"):
            infer("strided_slice_v2", [x.shape], attrs)
    else:
        np.testing.assert_array_equal(run("strided_slice_v2", [x], attrs), expected)


# ------------------------------------------------------------------ constant, cast, gather, tile


def test_constant():
    value = np.arange(6, dtype=np.float16)
    found = run("constant", [], ConstantAttrs((2, 3)), {"value": value})
    np.testing.assert_array_equal(found, value.reshape(2, 3))
    assert ops.get("constant").required_weights(None) == ("value",)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", [-1.7, 0.1, 2.5, 1e6]),
        ("float16", [-1.7, 0.1, 2.5, np.inf]),
        ("int32", [-1, 0, 2, 1e6]),
    ],
)
def test_cast_rounds_values(dtype, expected):
    x = np.float32([-1.7, 0.1, 2.5, 1e6])
    rounded = np.array(expected, "float16" if dtype == "float16" else "float32")
    np.testing.assert_array_equal(run("cast", [x], CastAttrs(dtype)), rounded)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("data_in_resource", [False, True])
@pytest.mark.parametrize("indices_in_resource", [False, True])
def test_gather_like_onnxruntime(axis, data_in_resource, indices_in_resource):
    data, indices = normal(2, 3, 4), np.int64([[0, 1], [-1, 0]])
    attrs = GatherAttrs(axis, data_in_resource, indices_in_resource)
    arrays, weights = [], {}
    for role, array, is_weight in (
        ("data", data, data_in_resource),
        ("indices", indices, indices_in_resource),
    ):
        if is_weight:
            weights[role] = array
        else:
            arrays.append(array.astype(np.float32))
    expected = onnx_reference("Gather", [data, indices], {"axis": axis})
    np.testing.assert_array_equal(run("gather", arrays, attrs, weights), expected)
    assert set(ops.get("gather").required_weights(attrs)) == set(weights)


@given(DIMS, st.lists(st.integers(1, 3), min_size=0, max_size=4))
def test_tile_like_numpy(shape, repeats):
    x = normal(*shape)
    found = run("tile", [x], TileAttrs(tuple(repeats)))
    np.testing.assert_array_equal(found, np.tile(x, repeats))


@pytest.mark.parametrize(
    ("op", "shape", "attrs", "weights", "reason"),
    [
        ("reshape", (2, 3), ReshapeAttrs(()), {}, "not in the node"),
        ("reshape", (2, 3), ReshapeAttrs((-1, -1)), {}, "cannot be reshaped"),
        ("reshape", (2, 3), ReshapeAttrs((6,), axis=3), {}, "cannot be reshaped"),
        ("reshape", (2, 3), ReshapeAttrs((4, 2)), {}, "does not have the elements"),
        ("reshape", (2, 3), ReshapeAttrs((4, -1)), {}, "does not have the elements"),
        ("reshape", (2, 3), ReshapeAttrs((6, 1, 0)), {}, "dimension 2"),
        ("flatten", (2, 3), FlattenAttrs(3), {}, "axis 3"),
        ("permute", (2, 3), PermuteAttrs((0, 0)), {}, "does not permute"),
        ("squeeze", (2, 3), AxesAttrs((0,)), {}, "not of size 1"),
        ("squeeze", (2, 3), AxesAttrs((2,)), {}, "axis 2"),
        ("unsqueeze", (2, 3), AxesAttrs((3,)), {}, "axis 3"),
        ("pad", (2, 3), PadAttrs((1,), (1, 1)), {}, "do not fit"),
        ("pad", (2,), PadAttrs((1, 1), (1, 1)), {}, "do not fit"),
        ("pad", (2, 3), PadAttrs((1,), (1,), "wrap"), {}, "none of"),
        ("pad", (2, 3), PadAttrs((2,), (0,), "reflect"), {}, "reflect more"),
        ("pad", (2, 3), PadAttrs((-1,), (-1,)), {}, "leave nothing"),
        ("strided_slice", (2, 3), SliceAttrs((0,), (1, 1), (), (1,)), {}, "differ in number"),
        ("strided_slice", (2, 3), SliceAttrs((0,), (1,), (), (0,)), {}, "stride is 0"),
        ("strided_slice", (2, 3), SliceAttrs((1,), (1,), (), (1,)), {}, "nothing"),
        ("strided_slice_v2", (2, 3), SliceAttrs((0,), (1,), (2,), (1,)), {}, "axis 2"),
        ("constant", (2, 3), ConstantAttrs((2,)), {"value": np.zeros(3)}, "do not fill"),
        ("cast", (2, 3), CastAttrs("complex64"), {}, "none of"),
        ("gather", (2, 3), GatherAttrs(0), {}, "is missing"),
        ("gather", (2, 3), GatherAttrs(0), {"indices": np.array([2])}, "an index"),
        ("tile", (2, 3), TileAttrs((0,)), {}, "below 1"),
    ],
)
def test_faults_name_the_node(op, shape, attrs, weights, reason):
    with pytest.raises(GraphError, match=reason):
        infer(op, [shape], attrs, weights=weights)
