"""Arrays that end, or begin, at memory that may not be touched."""

import ctypes
import mmap
import sys

import numpy as np
import pytest

_PAGE = mmap.PAGESIZE
_keep = []  # a map lives as long as the tests: a kernel that strays must hit its guard


def place(array, *, at_end):
    """Copy an array to where a page without access follows its end, or precedes its start."""
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is protected by Linux calls")
    size = -(-max(array.nbytes, 1) // _PAGE) * _PAGE
    area = mmap.mmap(-1, size + 2 * _PAGE)
    _keep.append(area)
    buffer = np.frombuffer(area, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (0, size + _PAGE):
        address = ctypes.c_void_p(buffer.ctypes.data + guard)
        assert libc.mprotect(address, ctypes.c_size_t(_PAGE), 0) == 0, ctypes.get_errno()
    start = _PAGE + (size - array.nbytes if at_end else 0)
    placed = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    placed[...] = array
    return placed
