"""Compiled kernels are cached by a hash of the sources; hypothesis profiles; shared data."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

SHARED = Path(__file__).resolve().parents[2] / "shared"
JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") in {"", "0"}

settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("jit") and not JIT:
            item.add_marker(pytest.mark.skip(reason="too slow with the JIT off"))
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="reference data (../shared) is not here"))


@pytest.fixture
def shared() -> Path:
    return SHARED
