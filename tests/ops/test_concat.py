import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import codes, infer, normal, onnx_reference, run

from quantjit.errors import GraphError
from quantjit.ops.concat import ConcatAttrs, ShuffleAttrs, SplitAttrs
from quantjit.quant import QuantParams


@st.composite
def pieces(draw):
    """(shapes, axis) of blobs that differ along one axis only."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axis = draw(st.integers(0, len(shape) - 1))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes], axis


@given(pieces(), st.booleans())
def test_concat_and_split_v_undo_each_other(blobs, from_the_end):
    shapes, axis = blobs
    if from_the_end:
        axis -= len(shapes[0])
    arrays = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    joined = run("concat", arrays, ConcatAttrs(axis))
    np.testing.assert_array_equal(joined, np.concatenate(arrays, axis))
    sizes = tuple(shape[axis] for shape in shapes)
    parts = run("split_v", [joined], SplitAttrs(axis, sizes), outputs=len(sizes))
    parts = [parts] if len(sizes) == 1 else parts
    for part, x in zip(parts, arrays, strict=True):
        np.testing.assert_array_equal(part, x)


@given(pieces(), st.data())
def test_concat_int8_requantizes_exactly(blobs, data):
    shapes, axis = blobs
    steps = st.sampled_from([0.01, 0.5, 0.75, 1.0, 3.0])
    zeros = st.integers(-128, 127)
    params = [QuantParams(data.draw(steps), data.draw(zeros)) for _ in (*shapes, "out")]
    arrays = [codes(*shape, seed=i) for i, shape in enumerate(shapes)]
    found = run("concat", arrays, ConcatAttrs(axis), quant=(tuple(params[:-1]), (params[-1],)))
    out = params[-1]
    expected = [
        oracle.to_codes(
            (x.astype(np.float32) - p.zero_point.astype(np.float32)) * p.scale,
            out.scale,
            out.zero_point,
        )
        for x, p in zip(arrays, params[:-1], strict=True)
    ]
    np.testing.assert_array_equal(found, np.concatenate(expected, axis))


def test_concat_int8_copies_bytes_if_any_input_is_per_channel():
    arrays = [codes(2, 2, 3), codes(2, 1, 3, seed=1)]
    quant = (
        (QuantParams([0.5, 0.25]), QuantParams(2.0)),
        (QuantParams([1.0, 1.0, 1.0]),),
    )
    found = run("concat", arrays, ConcatAttrs(1), quant=quant)
    np.testing.assert_array_equal(found, np.concatenate(arrays, 1))


def test_concat_int8_into_per_channel_takes_the_first_scale():
    arrays = [codes(1, 1, 3), codes(1, 1, 3, seed=1)]
    quant = ((QuantParams(0.5),) * 2, (QuantParams([0.25, 1.0]),))
    found = run("concat", arrays, ConcatAttrs(1), quant=quant)
    wide = np.clip(np.concatenate(arrays, 1).astype(int) * 2, -128, 127)
    np.testing.assert_array_equal(found, wide)


def test_split_v_without_sizes_makes_equal_pieces():
    x = normal(2, 6)
    for part, expected in zip(
        run("split_v", [x], SplitAttrs(1, ()), outputs=3), np.split(x, 3, 1), strict=True
    ):
        np.testing.assert_array_equal(part, expected)


def test_split_copies():
    x = normal(2, 3)
    for out in run("split", [x], outputs=2):
        np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 3), (1, 6, 2, 3)])
@pytest.mark.parametrize("group", [1, 2, 3])
def test_shuffle_channel(shape, group):
    x = normal(*shape)
    found = run("shuffle_channel", [x], ShuffleAttrs(group))
    order = [c % group * (6 // group) + c // group for c in range(6)]
    np.testing.assert_array_equal(found, x[:, order])


def test_pixel_shuffle_like_onnxruntime():
    x = normal(2, 12, 3, 4)
    expected = onnx_reference("DepthToSpace", [x], {"blocksize": 2, "mode": "CRD"})
    np.testing.assert_array_equal(run("pixel_shuffle", [x], ShuffleAttrs(2)), expected)


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "outputs", "reason"),
    [
        ("concat", [(1, 2), (2, 2)], ConcatAttrs(1), 1, "cannot be joined"),
        ("concat", [(1, 2), (1, 2, 1)], ConcatAttrs(1), 1, "cannot be joined"),
        ("concat", [(1, 2)], ConcatAttrs(2), 1, "axis 2"),
        ("split_v", [(1, 4)], SplitAttrs(1, (1, 2)), 2, "do not make up"),
        ("split_v", [(1, 4)], SplitAttrs(1, (4,)), 2, "do not make up"),
        ("shuffle_channel", [(1, 4)], ShuffleAttrs(3), 1, "do not divide"),
        ("pixel_shuffle", [(1, 6, 2, 2)], ShuffleAttrs(2), 1, "cannot upscale"),
    ],
)
def test_faults_name_the_node(op, shapes, attrs, outputs, reason):
    with pytest.raises(GraphError, match=reason):
        infer(op, shapes, attrs, outputs)
