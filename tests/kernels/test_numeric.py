import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantjit.kernels.numeric import round_to_int8


@given(st.floats(-300, 300, width=32))
def test_rounds_half_away_from_zero(value):
    value = np.float32(value)
    assert round_to_int8(value) == oracle.to_codes(value, 1)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (0.5, 1),
        (-0.5, -1),
        (2.5, 3),
        (-2.5, -3),
        (0.49999997, 1),  # 0.5 added in float32 makes 1, as in TNN
        (126.5, 127),
        (127.4, 127),
        (1e30, 127),
        (-127.5, -128),
        (-1e30, -128),
        (np.inf, 127),
        (-np.inf, -128),
        (np.nan, 127),
    ],
)
def test_edges(value, code):
    assert round_to_int8(np.float32(value)) == code
