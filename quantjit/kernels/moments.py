"""Second moments of the codes that a layer reads, and weights that are rounded by them.

A layer with the weights w and the codes x makes w x; rounded to the codes v of the step s it is off
by (w - s v) x, in the mean square by (w - s v) H (w - s v)^T with H = E[x x^T].  `descend_into`
lowers this error code by code: the best v_j beside the others is where its derivative is 0, and
steps of coordinate descent never raise the error (Behdin et al. 2023, "QuantEase", arXiv
2309.01885; the objective is that of Frantar et al. 2022, "GPTQ", arXiv 2210.17323).

All sums are integers: exact, so that neither the order of the inputs nor the number of threads is
seen by them.
"""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel, parallel_kernel, prange

MOST_PIXELS = 16384  # of a block: 255**2 of each still add up to less than 2**31

REST_UNITS = 65536.0
"""Parts of a code that what a code leaves out is counted in."""

_FARTHEST = float(2**30)  # codes that a value may be off by


@kernel
def encode_into(
    image: NDArray[np.float32],
    steps: NDArray[np.float32],
    zeros: NDArray[np.int8],
    lowest: int,
    codes: NDArray[np.int16],
    rest: NDArray[np.int64],
) -> None:
    """Quantize an image and keep what the codes leave out, rounding and clipping both.

    image: (C, H, W), real.  steps, zeros: (C,).  lowest: code, -127 or -128.  codes: (C, H, W),
    less their zeros.  rest: (C, H, W), value less code in 1 / REST_UNITS of a step.  NaN is 0.
    """
    channels, height, width = image.shape
    for c in range(channels):
        inverse = 1.0 / np.float64(steps[c]) if steps[c] > 0 else 0.0
        low, high = float(lowest - int(zeros[c])), float(127 - int(zeros[c]))
        for y in range(height):
            for x in range(width):
                value = np.float64(image[c, y, x])
                value = np.float64(value * inverse if value == value and inverse > 0.0 else 0.0)
                value = np.float64(min(max(value, -_FARTHEST), _FARTHEST))
                code = min(max(np.rint(value), low), high)
                codes[c, y, x] = np.int16(int(code))
                rest[c, y, x] = int(np.rint((value - code) * REST_UNITS))


@kernel
def _reach(size: int, offset: int, stride: int, out: int) -> tuple[int, int]:
    """Return the first output and the one after the last whose tap lies inside; out >= 1."""
    first = (-offset + stride - 1) // stride if offset < 0 else 0
    last = (size - 1 - offset) // stride + 1 if offset < size else 0
    return min(first, out), min(max(last, 0), out)


@kernel
def lay_patches_into(
    codes: NDArray[np.int16],
    geometry: NDArray[np.int64],
    first: int,
    count: int,
    patches: NDArray[np.int16],
) -> None:
    """Lay what a convolution reads for `count` rows of outputs, from row `first` on, side by side.

    codes: (C, H, W), less their zeros.  geometry: see `quantjit.ops.convolution.geometry`.
    patches: (C * kernel_h * kernel_w, >= count * out_w), a row for each weight of an output, in the
    order of the weights.
    """
    kernel_h, kernel_w, stride_h, stride_w = geometry[0], geometry[1], geometry[2], geometry[3]
    top, left, dilation_h, dilation_w = geometry[4], geometry[5], geometry[6], geometry[7]
    out_w = geometry[9]
    channels, height, width = codes.shape
    row = 0
    for c in range(channels):
        for i in range(kernel_h):
            for j in range(kernel_w):
                offset = j * dilation_w - left
                start, stop = _reach(width, offset, stride_w, out_w)
                for out_y in range(count):
                    y = i * dilation_h - top + (first + out_y) * stride_h
                    target = patches[row, out_y * out_w : (out_y + 1) * out_w]
                    if not 0 <= y < height or stop <= start:
                        target[:] = np.int16(0)
                        continue
                    target[:start] = np.int16(0)
                    target[stop:] = np.int16(0)
                    source = codes[c, y, start * stride_w + offset :]
                    if stride_w == 1:
                        target[start:stop] = source[: stop - start]
                    else:
                        for x in range(stop - start):
                            target[start + x] = source[x * stride_w]
                row += 1


@kernel
def add_rest(rest: NDArray[np.int64], geometry: NDArray[np.int64], sums: NDArray[np.int64]) -> None:
    """Add up what the codes that each weight meets leave out, over all outputs.

    rest: (C, H, W).  geometry: as above.  sums: (C * kernel_h * kernel_w,).
    """
    kernel_h, kernel_w, stride_h, stride_w = geometry[0], geometry[1], geometry[2], geometry[3]
    top, left, dilation_h, dilation_w = geometry[4], geometry[5], geometry[6], geometry[7]
    out_h, out_w = geometry[8], geometry[9]
    channels, height, width = rest.shape
    row = 0
    for c in range(channels):
        for i in range(kernel_h):
            y0 = i * dilation_h - top
            above, below = _reach(height, y0, stride_h, out_h)
            for j in range(kernel_w):
                x0 = j * dilation_w - left
                start, stop = _reach(width, x0, stride_w, out_w)
                total = 0
                for out_y in range(above, below):
                    line = rest[c, y0 + out_y * stride_h]
                    for out_x in range(start, stop):
                        total += int(line[x0 + out_x * stride_w])
                sums[row] += total
                row += 1


@kernel
def add_moments(
    patches: NDArray[np.int16],
    count: int,
    sums: NDArray[np.int64],
    products: NDArray[np.int64],
) -> None:
    """Add up the codes that each weight meets, and the products of every two of a group.

    patches: (groups * size, >= count), count <= MOST_PIXELS.  sums: (groups * size,).  products:
    (groups, size, size), of which the lower triangle and the diagonal are filled.
    """
    groups, size = products.shape[0], products.shape[1]
    for row in range(groups * size):
        total = 0
        for p in range(count):
            total += int(patches[row, p])
        sums[row] += total
    for group in range(groups):
        base = group * size
        for i in range(0, size, 2):
            two = i + 1 < size
            one_row, next_row = base + i, base + i + (1 if two else 0)
            for j in range(0, i + 1, 2):
                # four products in one go: each loaded row is used twice
                left, right = base + j, base + min(j + 1, size - 1)
                a, b, c, d = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
                for p in range(count):
                    x, y = int(patches[one_row, p]), int(patches[next_row, p])
                    u, v = int(patches[left, p]), int(patches[right, p])
                    a = np.int32(a + np.int32(x * u))
                    b = np.int32(b + np.int32(x * v))
                    c = np.int32(c + np.int32(y * u))
                    d = np.int32(d + np.int32(y * v))
                products[group, i, j] += int(a)
                if j + 1 <= i:
                    products[group, i, j + 1] += int(b)
                if two:
                    products[group, i + 1, j] += int(c)
                    if j + 1 < size:
                        products[group, i + 1, j + 1] += int(d)


@parallel_kernel
def descend_into(
    weights: NDArray[np.float64],
    steps: NDArray[np.float64],
    moments: NDArray[np.float64],
    limits: NDArray[np.int64],
    sweeps: int,
    gradients: NDArray[np.float64],
    codes: NDArray[np.int64],
) -> None:
    """Change codes one at a time while that lowers the error of the outputs.

    weights: (rows, size), in units of the codes they meet.  steps: (rows,), > 0.  moments: (groups,
    size, size), whole; the rows are in as many equal groups.  limits: (2, rows), the least and the
    greatest code of a row.  sweeps: over all codes, at most.  gradients: (rows, size), overwritten.
    codes: (rows, size), to begin with and as they end.
    """
    rows, size = weights.shape
    groups = moments.shape[0]
    share = rows // groups
    for row in prange(rows):
        group = row // share
        step = steps[row]
        low, high = limits[0, row], limits[1, row]
        for i in range(size):
            gradients[row, i] = 0.0
        for j in range(size):
            error = weights[row, j] - step * codes[row, j]
            for i in range(size):
                gradients[row, i] += moments[group, j, i] * error
        for _ in range(sweeps):
            changes = 0
            for j in range(size):
                curvature = moments[group, j, j] * step
                if not curvature > 0.0:
                    continue
                wanted = np.rint(codes[row, j] + gradients[row, j] / curvature)
                code = int(min(max(wanted, float(low)), float(high)))
                change = code - codes[row, j]
                if change == 0:
                    continue
                changes += 1
                codes[row, j] = code
                for i in range(size):
                    gradients[row, i] -= moments[group, j, i] * (step * change)
            if changes == 0:
                break
