"""Bit for bit what TNN's own tool and runtime made; `check_reference.py` compares all of it."""

import check_reference as reference
import pytest

pytestmark = [pytest.mark.shared, pytest.mark.jit, pytest.mark.slow]

INT8 = [
    ("squeezenet_v1.0", "b2w1t1"),
    ("squeezenet_v1.0", "b3w0t0"),
    ("mobilenet_v2", "b0w0t0"),
    ("rfb320", "b0w0t0"),
    ("rfb320", "b3w3t1"),
    ("rfb320", "b2w1t2"),
]
COMPAT = [
    ("rfb320", "b0w0t0"),
    ("rfb320", "b2w1t1"),
    ("rfb320", "b3w3t1"),
    ("rfb320", "b4w0t1"),
    ("rfb320", "b5w0t1"),
    ("squeezenet_v1.0", "b0w0t1"),
    ("mobilenet_v2", "b0w0t2"),
]


@pytest.mark.parametrize("model", reference.PREPROCESSING)
def test_float_outputs(model):
    assert reference.float_error(model, 2) <= 1e-6


@pytest.mark.parametrize(("model", "methods"), INT8)
def test_the_originals_files_run_to_the_bit(model, methods):
    differing, _, wrong, _ = reference.int8_mismatches(model, methods, 2)
    assert differing == 0
    assert wrong == 0


@pytest.mark.parametrize(("model", "methods"), COMPAT)
def test_compat_writes_what_the_original_wrote(model, methods):
    found = reference.compat_differences(model, methods)
    assert found["scales off"] == 0
    assert found["weights equal"] >= 0.999
    assert found["weights max off"] <= 1
    if methods[1] in "45":  # a mean or a deviation whose last digit differs
        assert found["biases differing"] <= 0.01 * found["biases"]
    elif not methods.endswith("t2"):  # there the original reads its biases out of bounds
        assert found["same .tnnmodel"]
