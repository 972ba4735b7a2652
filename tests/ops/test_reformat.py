import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops_runner import codes, normal, run

from quantjit.errors import GraphError
from quantjit.quant import QuantParams


@st.composite
def blobs(draw):
    """(shape, QuantParams) per tensor or per channel, dead channels among them."""
    shape = draw(st.sampled_from([(4,), (2, 3), (1, 3, 4), (2, 3, 4, 5)]))
    size = shape[1] if len(shape) > 1 and draw(st.booleans()) else 1
    steps = st.sampled_from([0.0, 1e-3, 0.1, 0.5, 3.0])
    scale = draw(st.lists(steps, min_size=size, max_size=size))
    zero = draw(st.lists(st.integers(-128, 127), min_size=size, max_size=size))
    return shape, QuantParams(scale, zero)


@given(blobs(), st.integers(0, 99))
def test_quantize_is_exact(blob, seed):
    shape, params = blob
    x = normal(*shape, seed=seed, scale=20)
    scale, zero = (oracle.by_channel(v, x.ndim) for v in (params.scale, params.zero_point))
    expected = np.where(scale == 0, 0, oracle.to_codes(x, scale, zero))
    found = run("quantize", [x], quant=((), (params,)), dtype=np.int8)
    np.testing.assert_array_equal(found, expected)


@given(blobs(), st.integers(0, 99))
def test_dequantize_is_exact(blob, seed):
    shape, params = blob
    x = codes(*shape, seed=seed)
    scale, zero = (oracle.by_channel(v, x.ndim) for v in (params.scale, params.zero_point))
    found = run("dequantize", [x], quant=((params,), ()))
    np.testing.assert_array_equal(found, oracle.to_reals(x, scale, zero))


def test_halves_go_away_from_zero_and_the_ends_saturate():
    x = np.float32([-300, -127.5, -2.5, -0.5, -0.49, 0.49, 0.5, 2.5, 126.5, 127.5, np.inf])
    found = run("quantize", [x], quant=((), (QuantParams(1.0),)), dtype=np.int8)
    np.testing.assert_array_equal(found, [-128, -128, -3, -1, 0, 0, 1, 3, 127, 127, 127])


@given(st.floats(2.0**-10, 1024.0, width=32), st.integers(0, 99))
def test_a_round_trip_is_within_half_a_step(step, seed):
    x = normal(50, seed=seed).clip(-1, 1) * np.float32(step * 127)
    params = QuantParams(step)
    found = run("quantize", [x], quant=((), (params,)), dtype=np.int8)
    back = run("dequantize", [found], quant=((params,), ()))
    assert np.abs(back - x).max() <= step * 0.5001


@pytest.mark.parametrize("op", ["quantize", "dequantize"])
def test_a_scale_is_needed_and_must_fit(op):
    with pytest.raises(GraphError, match="no scale"):
        run(op, [normal(1, 2)], quant=((), ()))
    params = QuantParams([1.0, 2.0, 3.0])
    with pytest.raises(GraphError, match="3 scales"):
        run(op, [normal(1, 2)], quant=((params,), (params,)))
