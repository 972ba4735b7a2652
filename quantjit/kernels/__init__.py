"""Numba kernels, and the only two ways to make one: `kernel` and `parallel_kernel`.

Rules: contiguous arrays and plain numbers in; the caller owns the output; no allocation in inner
loops; validation happens before, in Python; a kernel never raises.  Integers are widened with
``int()`` before they are multiplied and stores are saturated, so that a kernel gives the same
result with the JIT off (NUMBA_DISABLE_JIT=1).  ``prange`` runs over channels or rows, each writing
its own slice, so that any number of threads gives the same bits.

Compiled code is cached in a directory named after the sources, the Numba version and the CPU, so
that neither an edited callee nor another machine's instructions are ever run from the cache.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import llvmlite
import numba
from llvmlite import binding

config: Any = numba.config

P = ParamSpec("P")
R = TypeVar("R")

prange = numba.prange

FORM_VARIABLE = "QUANTJIT_KERNELS"
"""Environment variable that names the vector instructions to use; see `quantjit.kernels.simd`."""


@cache
def cache_directory() -> Path:
    """Return the directory of compiled kernels; it changes with the sources and the machine."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    form = os.environ.get(FORM_VARIABLE, "")
    facts = (numba.__version__, llvmlite.__version__, binding.get_host_cpu_name(), form)
    digest.update(repr(facts).encode())
    digest.update(repr(sorted(binding.get_host_cpu_features().items())).encode())
    name = digest.hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    roots = [Path(home)] if home else []
    roots += [Path("~/.cache").expanduser()] if os.environ.get("HOME") else []
    for root in roots:
        folder = root / "quantjit" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return (
        Path(tempfile.gettempdir())
        / f"quantjit-{os.getuid() if hasattr(os, 'getuid') else 0}-{name}"
    )


@contextmanager
def caching() -> Iterator[None]:
    """Let what is compiled inside be cached in `cache_directory`."""
    before = config.CACHE_DIR
    if not before:  # the user's own NUMBA_CACHE_DIR is kept
        config.CACHE_DIR = str(cache_directory())
    try:
        yield
    finally:
        config.CACHE_DIR = before


def _compile(function: Callable[P, R], *, parallel: bool) -> Callable[P, R]:
    with caching():
        compiled: Callable[P, R] = numba.njit(
            cache=True, nogil=True, fastmath=False, error_model="numpy", parallel=parallel
        )(function)
    return compiled


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a serial kernel on its first call; it releases the GIL."""
    return _compile(function, parallel=False)


def parallel_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel whose `prange` loops run on Numba's threads: for long work only.

    Call it from one Python thread at a time: Numba's `workqueue` threading layer aborts otherwise.
    """
    return _compile(function, parallel=True)
