"""Every form of the emitted kernels that this CPU runs, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantjit.errors import UnsupportedError
from quantjit.kernels import FORM_VARIABLE, simd

TESTS = Path(__file__).parent
FORMS = [form for form in simd.available() if form not in {simd.FORM, "portable"}]


@pytest.mark.jit
@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_another_form_gives_the_same_results(form):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    environment = os.environ | {FORM_VARIABLE: form}
    done = subprocess.run(
        [*command, str(TESTS / "test_tiled.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout


@pytest.mark.jit
def test_a_form_that_the_cpu_lacks_is_named(monkeypatch):
    monkeypatch.setenv(FORM_VARIABLE, "neon2048")
    with pytest.raises(UnsupportedError, match="portable"):
        simd.choose()
    monkeypatch.setenv(FORM_VARIABLE, " Portable ")
    assert simd.choose() == "portable"
    monkeypatch.delenv(FORM_VARIABLE)
    assert simd.choose() == simd.available()[0]
