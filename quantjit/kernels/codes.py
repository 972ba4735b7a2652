"""Between real values and int8 codes: real = scale * (q - zero_point), one scale or one a channel.

The arithmetic is that of TNN's naive device in float32, operation by operation:
``NaiveQuantBias`` and ``NaiveDequantBias`` (``source/tnn/utils/naive_compute.cc``),
``CPU_INT8_BIAS_CALCULATE`` (``source/tnn/device/cpu/acc/compute/compute_int8.cc``).  Kernels with
``even`` in their names round half to even, as onnxruntime
(``onnxruntime/core/mlas/lib/quantize.cpp``, ``qladd.cpp``).
"""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel
from quantjit.kernels.numeric import round_even_to_int8, round_to_int8


@kernel
def quantize_into(
    x: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int8],
    out: NDArray[np.int8],
) -> None:
    """Write rnd(x / scale + zero_point), 0 where the scale is 0.

    x: float32 (n, channels, size); scale, zero_point: (channels,); out: int8 like x.
    """
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            line, row = x[n, c], out[n, c]
            step, zero = scale[c], np.float32(int(zero_point[c]))
            if step == 0:
                row[:] = 0
                continue
            for i in range(row.size):
                row[i] = round_to_int8(line[i] / step + zero)


@kernel
def dequantize_into(
    codes: NDArray[np.int8],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int8],
    adds: bool,
    out: NDArray[np.float32],
) -> None:
    """Write scale * (q - zero_point), or add it to what is there.

    codes: int8 (n, channels, size); scale, zero_point: (channels,); out: float32 like codes.
    """
    for n in range(codes.shape[0]):
        for c in range(codes.shape[1]):
            line, row = codes[n, c], out[n, c]
            step, zero = scale[c], np.float32(int(zero_point[c]))
            if adds:
                for i in range(row.size):
                    row[i] += step * (np.float32(line[i]) - zero)
            else:
                for i in range(row.size):
                    row[i] = step * (np.float32(line[i]) - zero)


@kernel
def requantize_into(
    x: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int8],
    out: NDArray[np.int8],
) -> None:
    """Write rnd(x / scale + zero_point) as `quantize_into`, but divide by a zero scale too.

    There TNN's unchecked division saturates: -128 where x < 0, else 127 (0 / 0 as well).
    """
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            line, row = x[n, c], out[n, c]
            step, zero = scale[c], np.float32(int(zero_point[c]))
            if step == 0:
                for i in range(row.size):
                    row[i] = -128 if line[i] < 0 else 127
                continue
            for i in range(row.size):
                row[i] = round_to_int8(line[i] / step + zero)


@kernel
def add_int8_into(
    left: NDArray[np.int8],
    right: NDArray[np.int8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.int8],
    out: NDArray[np.int8],
) -> None:
    """Write rnd((s0 * (q0 - z0) + s1 * (q1 - z1)) / s2 + z2).

    left, right, out: int8 (n, channels, size); scales: float32, zero_points: int8 (3, channels):
    of left, right and out.  A zero output scale saturates as in `requantize_into`.
    """
    for n in range(left.shape[0]):
        for c in range(left.shape[1]):
            first, second, row = left[n, c], right[n, c], out[n, c]
            step_0, step_1, step_2 = scales[0, c], scales[1, c], scales[2, c]
            zero_0 = np.float32(int(zero_points[0, c]))
            zero_1 = np.float32(int(zero_points[1, c]))
            zero_2 = np.float32(int(zero_points[2, c]))
            for i in range(row.size):
                total = step_0 * (np.float32(first[i]) - zero_0)
                total += step_1 * (np.float32(second[i]) - zero_1)
                if step_2 == 0:
                    row[i] = -128 if total < 0 else 127
                else:
                    row[i] = round_to_int8(total / step_2 + zero_2)


@kernel
def translate_into(
    codes: NDArray[np.int8], tables: NDArray[np.int8], offset: int, out: NDArray[np.int8]
) -> None:
    """Write table[c][q + 128], any function of one code, into a part of each row.

    codes: int8 (n, channels, size); tables: int8 (channels, 256); out: int8 (n, channels, total),
    written from offset to offset + size.
    """
    for n in range(codes.shape[0]):
        for c in range(codes.shape[1]):
            line, table = codes[n, c], tables[c]
            row = out[n, c, offset : offset + line.size]
            for i in range(row.size):
                row[i] = table[int(line[i]) + 128]


@kernel
def relu_int8_into(codes: NDArray[np.int8], out: NDArray[np.int8]) -> None:
    """Write max(0, q), without rescaling; codes, out: int8 (n,)."""
    for i in range(out.size):
        out[i] = codes[i] if codes[i] > 0 else 0


@kernel
def quantize_even_into(
    x: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int8],
    out: NDArray[np.int8],
) -> None:
    """Write rint(x / scale) + zero_point, the zero point where the scale is 0.

    x: float32 (n, channels, size); scale, zero_point: (channels,); out: int8 like x.
    """
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            line, row = x[n, c], out[n, c]
            step, zero = scale[c], np.float32(int(zero_point[c]))
            if step == 0:
                row[:] = zero_point[c]
                continue
            for i in range(row.size):
                row[i] = round_even_to_int8(line[i] / step, zero)


@kernel
def add_even_int8_into(
    left: NDArray[np.int8],
    right: NDArray[np.int8],
    factors: NDArray[np.float32],
    shift: np.float32,
    offset: int,
    out: NDArray[np.int8],
) -> None:
    """Write rint(f0 * c0 + (f1 * c1 + shift)) - offset, saturated; c = q + offset.

    left, right, out: int8 (size,).  factors: float32 (2,), scales of the operands / scale of out;
    shift: zero point of out less the factors times those of the operands; offset: 128 where the
    runtime's codes are uint8, else 0.  Each bracket is rounded once, to float32: a product of a
    factor and a code is exact in float64, so that rounding its sum is a fused multiply-add.
    """
    first, second, start = np.float64(factors[0]), np.float64(factors[1]), np.float64(shift)
    back = np.float32(-offset)
    for i in range(out.size):
        part = np.float64(np.float32(second * (int(right[i]) + offset) + start))
        total = np.float32(first * (int(left[i]) + offset) + part)
        out[i] = round_even_to_int8(total, back)
