"""Binary ops with broadcasting, per-channel scaling and the activations, float32."""

import math

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel

ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM = range(6)
"""Codes of `combine_into`."""

SIGMOID, TANH, SWISH, EXP, ELU, SOFTPLUS, ERF, GELU = range(8)
"""Codes of `activate_into`."""

LARGEST_EXPONENT = 88.722839  # exp of more is infinite in float32


@kernel
def _combine_rows(
    op: int, left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Combine two rows of out's length: one loop an op, so that each is vectorized."""
    if op == ADD:
        for i in range(out.size):
            out[i] = left[i] + right[i]
    elif op == SUB:
        for i in range(out.size):
            out[i] = left[i] - right[i]
    elif op == MUL:
        for i in range(out.size):
            out[i] = left[i] * right[i]
    elif op == DIV:
        for i in range(out.size):
            out[i] = left[i] / right[i]
    elif op == MAXIMUM:
        for i in range(out.size):
            out[i] = right[i] if left[i] < right[i] else left[i]
    else:
        for i in range(out.size):
            out[i] = right[i] if right[i] < left[i] else left[i]


@kernel
def _combine_row_scalar(
    op: int, left: NDArray[np.float32], right: np.float32, out: NDArray[np.float32]
) -> None:
    """Combine a row with one number on its right."""
    if op == ADD:
        for i in range(out.size):
            out[i] = left[i] + right
    elif op == SUB:
        for i in range(out.size):
            out[i] = left[i] - right
    elif op == MUL:
        for i in range(out.size):
            out[i] = left[i] * right
    elif op == DIV:
        for i in range(out.size):
            out[i] = left[i] / right
    elif op == MAXIMUM:
        for i in range(out.size):
            out[i] = right if left[i] < right else left[i]
    else:
        for i in range(out.size):
            out[i] = right if right < left[i] else left[i]


@kernel
def combine_into(
    op: int,
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    shape: NDArray[np.int64],
    left_strides: NDArray[np.int64],
    right_strides: NDArray[np.int64],
    index: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Combine two broadcast operands.

    op: one of the codes above.  left, right: float32, flat.  shape: int64 (rank,), of out.
    left_strides, right_strides: int64 (rank,), in elements, 0 where the operand is repeated; the
    last is 1 or 0.  index: int64 (rank,), scratch.  out: float32, flat.
    """
    rank = shape.size
    size = shape[rank - 1]
    index[:] = 0
    left_at, right_at = 0, 0
    for start in range(0, out.size, size):
        row = out[start : start + size]
        if left_strides[rank - 1] == 0:
            row[:] = left[left_at]
            if right_strides[rank - 1] == 0:
                _combine_row_scalar(op, row, right[right_at], row)
            else:
                _combine_rows(op, row, right[right_at : right_at + size], row)
        elif right_strides[rank - 1] == 0:
            _combine_row_scalar(op, left[left_at : left_at + size], right[right_at], row)
        else:
            _combine_rows(
                op, left[left_at : left_at + size], right[right_at : right_at + size], row
            )
        for axis in range(rank - 2, -1, -1):
            index[axis] += 1
            left_at += left_strides[axis]
            right_at += right_strides[axis]
            if index[axis] < shape[axis]:
                break
            left_at -= shape[axis] * left_strides[axis]
            right_at -= shape[axis] * right_strides[axis]
            index[axis] = 0


@kernel
def scale_channels_into(
    x: NDArray[np.float32],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write x * scale[c] + bias[c].

    x, out: float32 (n, channels, size); scale, bias: float32 (channels,).
    """
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            line, row, gain, shift = x[n, c], out[n, c], scale[c], bias[c]
            for i in range(row.size):
                row[i] = line[i] * gain + shift


@kernel
def clip_into(
    x: NDArray[np.float32], minimum: np.float32, maximum: np.float32, out: NDArray[np.float32]
) -> None:
    """Write x limited to [minimum, maximum]; x, out: float32 (n,)."""
    for i in range(out.size):
        value = maximum if maximum < x[i] else x[i]
        out[i] = minimum if value < minimum else value


@kernel
def prelu_into(
    x: NDArray[np.float32], slope: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Write x, or slope[c] * x where x < 0; x, out: float32 (n, channels, size)."""
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            line, row, gain = x[n, c], out[n, c], slope[c]
            for i in range(row.size):
                row[i] = line[i] * gain if line[i] < 0 else line[i]


@kernel
def hard_sigmoid_into(
    x: NDArray[np.float32],
    alpha: np.float32,
    beta: np.float32,
    factor: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write clamp(alpha * x + beta, 0, 1), times factor if that has elements.

    x, out: float32 (n,); factor: float32 (n,) or (0,): hard swish passes x itself.
    """
    zero, one = np.float32(0), np.float32(1)
    for i in range(out.size):
        value = x[i] * alpha + beta
        value = one if one < value else value
        out[i] = zero if value < zero else value
    if factor.size:
        for i in range(out.size):
            out[i] = factor[i] * out[i]


@kernel
def activate_into(op: int, x: NDArray[np.float32], alpha: float, out: NDArray[np.float32]) -> None:
    """Write a transcendental function of x.

    op: one of the codes above; alpha: that of ELU.  x, out: float32 (n,).  GELU is TNN's: the tanh
    form.  Computed in float64, whose libm functions are the same with and without the JIT, and
    rounded once (sigmoid and swish: exp is rounded, the rest is float32 as in TNN).
    """
    one, infinity = np.float32(1), np.float32(np.inf)
    for i in range(out.size):
        value = np.float64(x[i])
        if op in (SIGMOID, SWISH):
            decay = np.float32(math.exp(-value)) if -value < LARGEST_EXPONENT else infinity
            chance = one / (one + decay)
            out[i] = x[i] * chance if op == SWISH else chance
        elif op == TANH:
            out[i] = math.tanh(value)
        elif op == EXP:
            out[i] = math.exp(value) if value < LARGEST_EXPONENT else infinity
        elif op == ELU:
            out[i] = x[i] if value >= 0 else alpha * math.expm1(value)
        elif op == SOFTPLUS:
            out[i] = max(value, 0.0) + math.log1p(math.exp(-abs(value)))
        elif op == ERF:
            out[i] = math.erf(value)
        else:
            inner = 0.7978845834732056 * (value + 0.0447149984538 * value * value * value)
            out[i] = 0.5 * value * (math.tanh(inner) + 1.0)
