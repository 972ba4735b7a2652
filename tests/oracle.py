"""Plain NumPy twins of every kernel: another algorithm, the same answer.

Imports NumPy only, never quantjit.
"""

import itertools

import numpy as np


def round_half_away(x):
    """Round half away from zero, float64."""
    x = np.asarray(x, np.float64)
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


def to_codes(x, scale, zero_point=0):
    """float32 division by the step, plus zero point, half away from zero, saturated: int8."""
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.asarray(x, np.float32) / np.float32(scale) + np.float32(zero_point)
    shifted = np.nan_to_num(y + np.copysign(np.float32(0.5), y), nan=127)
    return np.trunc(np.clip(shifted, -128, 127)).astype(np.int8)


def to_reals(codes, scale, zero_point=0):
    """step * (code - zero point), float32."""
    return np.float32(scale) * (codes.astype(np.float32) - np.float32(zero_point))


def by_channel(values, ndim):
    """Shape (channels,) or (1,) values so that they broadcast over an NCHW blob."""
    values = np.asarray(values)
    return values.reshape((-1,) + (1,) * (ndim - 2)) if values.size > 1 else values.reshape(())


def pool_windows(x, kernel, stride, pads, out, filler):
    """Windows (n, c, oh, ow, kh, kw) of an NCHW blob; pads: top, left, may be negative."""
    wide = [(o - 1) * s + k for o, s, k in zip(out, stride, kernel, strict=True)]
    canvas = np.full((*x.shape[:2], *wide), filler, np.float64)
    rows, columns = (np.arange(size) - pad for size, pad in zip(wide, pads, strict=True))
    in_h = (rows >= 0) & (rows < x.shape[2])
    in_w = (columns >= 0) & (columns < x.shape[3])
    canvas[:, :, np.ix_(in_h, in_w)[0], np.ix_(in_h, in_w)[1]] = x[
        :, :, rows[in_h][:, None], columns[in_w]
    ]
    windows = np.lib.stride_tricks.sliding_window_view(canvas, kernel, axis=(2, 3))
    return windows[:, :, :: stride[0], :: stride[1]]


def max_pool(x, kernel, stride, pads, out, lowest=-np.inf):
    """Maximum of the taps inside the input and of `lowest`; 0 where there is none."""
    windows = pool_windows(x, kernel, stride, pads, out, np.nan)
    is_empty = np.isnan(windows).all(axis=(4, 5))
    best = np.nan_to_num(windows, nan=-1e300).max(axis=(4, 5))
    return np.where(is_empty, 0, np.maximum(best, lowest)).astype(x.dtype)


def average_pool(x, kernel, stride, pads, out):
    """(sums, counts) of the taps inside the input, float64."""
    windows = pool_windows(x, kernel, stride, pads, out, np.nan)
    return np.nansum(windows, axis=(4, 5)), (~np.isnan(windows)).sum(axis=(4, 5))


def adaptive_average_pool(x, out):
    """Means over overlapping windows, by fractions of the side."""
    from fractions import Fraction
    from math import ceil, floor

    def spans(size, count):
        return [
            slice(floor(Fraction(i * size, count)), ceil(Fraction((i + 1) * size, count)))
            for i in range(count)
        ]

    return np.array(
        [
            [x[:, :, h, w].mean(axis=(2, 3), dtype=np.float64) for w in spans(x.shape[3], out[1])]
            for h in spans(x.shape[2], out[0])
        ]
    ).transpose(2, 3, 0, 1)


def unary(name, x):
    """Activations in float64."""
    x = np.asarray(x, np.float64)
    from math import erf

    functions = {
        "relu": lambda: np.maximum(x, 0),
        "relu6": lambda: np.clip(x, 0, 6),
        "sigmoid": lambda: 0.5 * (1 + np.tanh(x / 2)),
        "tanh": lambda: np.tanh(x),
        "swish": lambda: x * 0.5 * (1 + np.tanh(x / 2)),
        "exp": lambda: np.exp(x),
        "softplus": lambda: np.logaddexp(0, x),
        "erf": lambda: np.vectorize(erf)(x),
        "gelu": lambda: x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2))),
        "abs": lambda: np.where(x < 0, -x, x),
        "neg": lambda: 0 - x,
        "log": lambda: np.log2(x) * np.log(2),
        "sqrt": lambda: x**0.5,
        "floor": lambda: x - np.mod(x, 1),
        "ceil": lambda: -(-x // 1),
        "reciprocal": lambda: x**-1,
    }
    return functions[name]()


def softmax(x, axis):
    """float64, by the plain formula."""
    powers = np.exp(np.asarray(x, np.float64))
    return powers / powers.sum(axis=axis, keepdims=True)


def normalize(x, axes, epsilon):
    """(x - mean) / sqrt(var + epsilon) over axes, float64."""
    x = np.asarray(x, np.float64)
    variance = x.var(axis=axes, keepdims=True)
    return (x - x.mean(axis=axes, keepdims=True)) / np.sqrt(variance + epsilon)


def local_response(x, size, alpha, beta, bias):
    """LRN by a banded matrix over the channels, float64."""
    x = np.asarray(x, np.float64)
    c = np.arange(x.shape[1])
    band = np.abs(c[:, None] - c) <= (size - 1) // 2
    squares = np.einsum("ij,nj...->ni...", band.astype(float), x**2)
    return x / (bias + alpha / size * squares) ** beta


def resize_linear(x, out, align_corners):
    """Bilinear by np.interp along each axis, float64."""
    for axis, count in zip((2, 3), out, strict=True):
        size = x.shape[axis]
        if align_corners:
            at = np.arange(count) * ((size - 1) / max(count - 1, 1))
        else:
            at = (np.arange(count) + 0.5) * size / count - 0.5 if count > 1 else np.zeros(1)
        lines = np.moveaxis(x, axis, -1)
        places = np.arange(size)
        x = np.stack([np.interp(at, places, line) for line in lines.reshape(-1, size)])
        x = np.moveaxis(x.reshape(*lines.shape[:-1], count), -1, axis)
    return x


def resize_nearest(x, out):
    """The pixel whose span holds the output pixel's corner."""
    rows = [h * x.shape[2] // out[0] for h in range(out[0])]
    columns = [w * x.shape[3] // out[1] for w in range(out[1])]
    return x[:, :, rows][:, :, :, columns]


def window_products(x, weight, stride, pads, dilation, group):
    """Convolution by windows and einsum, float64 or int64; pads: top, bottom, left, right."""
    kind = np.float64 if np.issubdtype(x.dtype, np.floating) else np.int64
    x, weight = x.astype(kind), weight.astype(kind)
    x = np.pad(x, ((0, 0), (0, 0), pads[:2], pads[2:]))
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    n, channels, *rest = windows.shape
    windows = windows.reshape(n, group, channels // group, *rest)
    weight = weight.reshape(group, -1, *weight.shape[1:])
    out = np.einsum("ngchwij,gocij->ngohw", windows, weight)
    return out.reshape(n, -1, *out.shape[3:])


def transposed_products(x, weight, stride, pads, dilation, group, out):
    """Deconvolution as a convolution of the input spread by zeros; pads: top, left; out: size."""
    n, channels, height, width = x.shape
    spread = np.zeros((n, channels, (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1))
    spread[:, :, :: stride[0], :: stride[1]] = x
    weight = weight.reshape(group, channels // group, *weight.shape[1:])
    flipped = weight.swapaxes(1, 2)[..., ::-1, ::-1].reshape(
        -1, channels // group, *weight.shape[3:]
    )
    border = [(k - 1) * d for k, d in zip(weight.shape[3:], dilation, strict=True)]
    whole = window_products(
        spread, flipped, (1, 1), (border[0],) * 2 + (border[1],) * 2, dilation, group
    )
    result = np.zeros((*whole.shape[:2], *out))
    rows, columns = (np.arange(size) + pad for size, pad in zip(out, pads, strict=True))
    in_h = (rows >= 0) & (rows < whole.shape[2])
    in_w = (columns >= 0) & (columns < whole.shape[3])
    places = np.ix_(in_h, in_w)
    result[:, :, places[0], places[1]] = whole[:, :, rows[in_h][:, None], columns[in_w]]
    return result


def requantize(
    sums, weight_scale, out_scale, zero_point=0, activation="none", add=None, after=None
):
    """int64 sums to int8 as TNN's naive device, float32 step by step; scales by channel or one.

    add, after: (codes, scale, zero point) of an operand added before or after the activation.
    """
    steps = by_channel(np.asarray(out_scale, np.float32), sums.ndim)
    live = steps >= np.finfo(np.float32).tiny

    def factor(scale):
        scale = by_channel(np.asarray(scale, np.float32), sums.ndim)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return np.where(live, scale / steps, np.float32(0))

    def addend(codes, scale, zero):
        zero = by_channel(np.asarray(zero), sums.ndim).astype(np.float32)
        return codes.astype(np.float32) * factor(scale) - zero * factor(scale)

    value = sums.astype(np.float32) * factor(weight_scale)
    if add is not None:
        value = value + addend(*add)
    if activation == "relu6":
        with np.errstate(divide="ignore", over="ignore"):
            six = to_codes(np.float32(6) / steps, 1)
        return np.maximum(np.minimum(to_codes(value, 1), six), 0).astype(np.int8)
    if activation == "relu":
        value = np.maximum(value, 0)
    if after is not None:
        value = value + addend(*after)
    zero = by_channel(np.asarray(zero_point), sums.ndim).astype(np.float32)
    return to_codes(value + zero, 1)


def float64_magnitudes(x):
    """Non-zero finite magnitudes, float64, flat."""
    x = np.abs(np.asarray(x, np.float64).ravel())
    return x[np.isfinite(x) & (x > 0)]


def power_of_two_histogram(x, bins):
    """Counts and width of `bins` power-of-two bins that just hold all non-zero magnitudes."""
    magnitudes = float64_magnitudes(x)
    if not magnitudes.size:
        return np.zeros(bins, np.int64), 0.0
    _, exponent = np.frexp(magnitudes.max())
    width = np.ldexp(1.0, int(exponent)) / bins
    # Scaled by a power of two, which is exact also where the edges would be denormal.
    return np.histogram(magnitudes / width, bins, (0, bins))[0], width


def clipped_divergence(counts, kept, codes=127):
    """KL divergence of a histogram in halves of codes from what the codes tell, both rebuilt.

    Less what is expected of a sample.  inf where there is mass that the codes know nothing of.
    """
    counts = np.asarray(counts, np.float64)
    inside = counts[:kept]
    # In units of a bin's part 1 / (2 codes), integers: an empty half is exactly 0.
    bins, halves = np.arange(kept) * 2 * codes, np.arange(2 * codes)[:, None] * kept
    overlaps = np.minimum(bins + 2 * codes, halves + kept) - np.maximum(bins, halves)
    overlaps = np.maximum(overlaps, 0) / (2 * codes)
    p, room = overlaps @ inside, overlaps @ (inside > 0)
    owner = (np.arange(2 * codes) + 1) // 2  # code 0 has the first half, the last code the last
    of_code, room_of_code = np.bincount(owner, p), np.bincount(owner, room)
    shares = np.divide(room, room_of_code[owner], out=np.zeros_like(p), where=room > 0)
    q = of_code[owner] * shares
    is_split = np.bincount(owner, p > 0) == 2
    noise = (1 - room_of_code[is_split] / of_code[is_split]).sum() / 2 * (1 - codes / kept)
    p[-1] += counts[kept:].sum()
    p, q = p / counts.sum(), q / counts.sum()
    seen = p > 0
    with np.errstate(divide="ignore"):
        return float((p[seen] * np.log(p[seen] / q[seen])).sum() - noise / counts.sum())


def clipped_squared_error(counts, absmax, threshold, codes):
    """Squared error when the values of a bin lie evenly over it, by Simpson's rule, exactly.

    Bins have width 1, the last one in use ends at absmax.
    """
    used = int(np.flatnonzero(counts).max()) + 1
    ends = np.append(np.arange(1, used), absmax).astype(np.float64)
    density = np.asarray(counts[:used], np.float64) / (ends - np.arange(used))
    step = threshold / codes
    changes = (np.arange(codes) + 0.5) * step
    places = np.unique(np.concatenate([[0], ends, changes[changes < absmax]]))
    low, high = places[:-1], places[1:]
    middle = (low + high) / 2
    nearest = np.clip(np.floor(middle / step + 0.5), 0, codes) * step
    simpson = ((low - nearest) ** 2 + 4 * (middle - nearest) ** 2 + (high - nearest) ** 2) / 6
    return float((density[middle.astype(int)] * (high - low) * simpson).sum())


def linear_counts(x, per_unit, bins, start=1e-7):
    """float32 counts of non-zero magnitudes in float32 bins, each increment rounded: (bins,)."""
    magnitudes = np.abs(np.asarray(x, np.float32).ravel())
    places = (magnitudes[magnitudes > 0] * np.float32(per_unit)).astype(np.int64)
    hits = np.bincount(np.minimum(places, bins - 1), minlength=bins)
    steps = np.full(hits.max() + 1, 1, np.float32)
    steps[0] = start
    return np.cumsum(steps, dtype=np.float32)[hits]


def float32_sum(values):
    """Sum in order, every step rounded to float32."""
    return np.cumsum(np.asarray(values, np.float32), dtype=np.float32)[-1]


def tnn_divergences(counts, targets=128):
    """TNN's divergence for t = targets ... bins - 1, float32, by matrices of overlaps."""
    one = np.float32(1)
    p = counts / float32_sum(counts)
    tail = float32_sum(np.concatenate([np.zeros(1, np.float32), p[targets:]]))
    found = []
    for kept in range(targets, p.size):
        width = np.float32(kept) / np.float32(targets)
        spread = np.zeros(p.size + 1, np.float32)
        for target in range(targets):
            start = np.float32(target) * width
            end = start + width
            left, right = int(np.ceil(start)), int(np.floor(end))
            places = [*range(left, right)]
            shares = [one] * len(places)
            if right < end:
                places, shares = [right, *places], [end - np.float32(right), *shares]
            if left > start:
                places, shares = [left - 1, *places], [np.float32(left) - start, *shares]
            weights = np.array(shares, np.float32)
            mass = float32_sum(weights * p[places])
            filled = float32_sum(weights * (p[places] != 0))
            level = mass / filled if filled else filled
            for place, share in zip(places, weights, strict=True):
                spread[place] += level * share if p[place] != 0 else 0
        whole = p[:kept].copy()
        whole[-1] += tail
        terms = (whole != 0).astype(np.float32)
        live = (spread[:kept] != 0) & (whole != 0)
        terms[live] = whole[live] * np.log(whole[live] / spread[:kept][live])
        found.append(float32_sum(terms))
        tail -= p[kept]
    return np.array(found, np.float32)


def float32_codes(row, factor):
    """row * factor, half away from zero in float32, clamped to 127: float32."""
    y = np.asarray(row, np.float32) * np.float32(factor)
    return np.clip(np.trunc(y + np.copysign(np.float32(0.5), y)), -127, 127)


def tnn_minmax_weights(row):
    """Codes and step of TNN's min-max, float32."""
    step = np.abs(row).max() / np.float32(127)
    return float32_codes(row, 1 / step if step > 0 else 1).astype(np.int8), step


def tnn_admm_weights(row, rounds=1000):
    """Codes and step of TNN's ADMM: all rounds, float32 sums in order."""
    tiny = np.float32(1e-9)
    step = np.abs(row).max() / np.float32(127 * 1.25)
    codes = np.zeros_like(row)
    for _ in range(rounds):
        y = row / (step + tiny)
        codes = np.clip(np.trunc(y + np.copysign(np.float32(0.5), y)), -127, 127)
        step = float32_sum(row * codes) / (float32_sum(codes * codes) + tiny)
    return codes.astype(np.int8), step


def tnn_asymmetric_weights(row):
    """Codes, step and zero point of TNN's asymmetric min-max, float32."""
    low, high = min(row.min(), np.float32(0)), max(row.max(), np.float32(0))
    step = (high - low) / np.float32(254)
    if step == 0:
        return np.zeros(row.size, np.int8), step, 0
    inverse = np.float32(1) / step
    zero = 127 - int(np.floor(np.float64(high * inverse) + 0.5))
    y = row * inverse
    rounded = np.trunc(y + np.copysign(np.float32(0.5), y))
    return np.clip(rounded + zero, -127, 127).astype(np.int8), step, zero


def weight_error(row, step):
    """Sum of squared errors of nearest codes in [-127, 127], float64."""
    row, step = np.asarray(row, np.float64), float(step)
    codes = np.clip(round_half_away(row / step), -127, 127)
    return float(((row - codes * step) ** 2).sum())


def best_weight_error(row):
    """Least squared error over all steps, exactly: codes change at |w| / (k - 1/2) only.

    Between two such steps the codes are fixed and the error is a parabola of the step.
    """
    row = np.abs(np.asarray(row, np.float64))
    row = row[row > 0]
    edges = np.unique((row[:, None] / (np.arange(1, 128) - 0.5)).ravel())
    edges = np.concatenate([edges[:1] / 2, edges, edges[-1:] * 2])
    best = np.inf
    for low, high in itertools.pairwise(edges):
        codes = np.clip(np.floor(row / ((low + high) / 2) + 0.5), 0, 127)
        norm = (codes**2).sum()
        step = np.clip((row * codes).sum() / norm, low, high) if norm else high
        best = min(best, float(((row - codes * step) ** 2).sum()))
    return best


def tnn_divergences_float64(counts, targets=128):
    """TNN's divergences in float64: Q from the mass as a function of the place, no bin empty."""
    p = np.asarray(counts, np.float64) / np.sum(counts, dtype=np.float64)
    places = np.arange(p.size + 1)
    mass = np.append(0, np.cumsum(p))
    found = []
    for kept in range(targets, p.size):
        ends = np.arange(targets + 1) * kept / targets
        q = np.diff(np.interp(places[: kept + 1], ends, np.interp(ends, places, mass)))
        whole = p[:kept].copy()
        whole[-1] += 1 - mass[kept]
        found.append((whole * np.log(whole / q)).sum())
    return np.array(found)


def cubic(x, b, c):
    """Mitchell and Netravali (1988), equation 8."""
    x = np.abs(x)
    near = (12 - 9 * b - 6 * c) * x**3 + (-18 + 12 * b + 6 * c) * x**2 + (6 - 2 * b)
    far = (-b - 6 * c) * x**3 + (6 * b + 30 * c) * x**2 - (12 * b + 48 * c) * x + (8 * b + 24 * c)
    return np.select([x < 1, x < 2], [near, far]) / 6


def _cubic_matrix(size, target):
    """Weights (target, size) of one axis, what lies outside folded onto the edges: float64."""
    ratio = target / size
    width, margin = max(1 / ratio, 1.0), 4 * max(size // target + 1, 1)
    inside = np.arange(-margin, size + margin)
    centres = (np.arange(target) + 0.5) / ratio
    b, c = (0, 1 / 2) if target > size else (1 / 3, 1 / 3)
    weights = cubic((centres[:, None] - (inside + 0.5)) / width, b, c)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((target, size))
    np.add.at(matrix.T, np.clip(inside, 0, size - 1), weights.T)
    return matrix


def resize_cubic(image, height, width):
    """Unrounded levels, float64 (height, width, channels), as two matrix products."""
    down, across = _cubic_matrix(image.shape[0], height), _cubic_matrix(image.shape[1], width)
    levels = np.einsum("yh,xw,hwc->yxc", down, across, image.astype(np.float64), optimize=True)
    return np.clip(levels, 0, 255)


def image_to_tensor(pixels, order, bias, scale):
    """uint8 (h, w, channels) to float32 (channels, h, w): (pixel - bias) * scale."""
    shifted = pixels[..., order].astype(np.float32) - np.float32(bias)
    return (shifted * np.float32(scale)).transpose(2, 0, 1)


def comparison(x, y):
    """Sums of x^2, (x - y)^2, x * y and y^2, and the largest |x - y|, as floats."""
    x, y = (np.asarray(values, np.float64).ravel() for values in (x, y))
    gram = np.stack([x, y]) @ np.stack([x, y]).T
    noise = (x - y) @ (x - y)
    largest = np.ptp([*(x - y), *(y - x), 0.0]) / 2
    return [float(value) for value in (gram[0, 0], noise, gram[0, 1], gram[1, 1], largest)]


def curve(name, x, alpha=0.0, beta=0.0):
    """Elementwise functions of exported networks, float64."""
    x = np.asarray(x, np.float64)
    with np.errstate(over="ignore"):
        return {
            "mish": lambda: x * np.tanh(np.logaddexp(0, x)),
            "gelu_erf": lambda: x * normal_probability(x),
            "scaled_swish": lambda: x / (1 + np.exp(-alpha * x)),
            "selu": lambda: beta * np.where(x > 0, x, alpha * (np.exp(x) - 1)),
            "celu": lambda: np.maximum(x, 0) + np.minimum(alpha * (np.exp(x / alpha) - 1), 0),
            "softsign": lambda: x / (1 + np.abs(x)),
            "thresholded_relu": lambda: np.where(x > alpha, x, 0),
        }[name]()


def normal_probability(x):
    """Share of a normal distribution below x, by the trapezoidal rule: float64."""
    flat = np.abs(np.asarray(x, np.float64)).reshape(-1, 1) * np.linspace(0, 1, 4001)
    density = np.exp(-(flat**2) / 2) / np.sqrt(2 * np.pi)
    area = np.trapezoid(density, flat, axis=1).reshape(np.shape(x))
    return 0.5 + np.sign(x) * area


def linear_codes(x, scale, zero_point, low, high):
    """Codes as ONNX rounds them, half to even, by an exact search: float64."""
    quotient = np.asarray(np.float32(x) / np.float32(scale), np.float64)
    below = np.floor(quotient)
    rest = quotient - below
    up = (rest > 0.5) | ((rest == 0.5) & (below % 2 == 1))
    return np.clip(below + up + zero_point, low, high)


# ------------------------------------------------------------------ onnxruntime's rounding


def round_even(value, zero_point=0):
    """Codes of real quotients: halves to even, then the zero point, saturated."""
    codes = np.rint(np.clip(np.asarray(value, np.float64), -1e6, 1e6)) + zero_point
    return np.clip(codes, -128, 127).astype(np.int8)


def add_even(left, right, scales, zero_points, offset):
    """QLinearAdd with exact products and sums of codes + offset, rounded where float32 does."""
    factors = (scales[:2] / scales[2]).astype(np.float32).astype(np.float64)
    zeros = zero_points.astype(np.float64) + offset
    product = np.float64(np.float32(factors[1] * zeros[1]))
    shift = np.float64(np.float32(zeros[2] - np.float32(factors[0] * zeros[0] + product)))
    part = (factors[1] * (right.astype(np.float64) + offset) + shift).astype(np.float32)
    total = factors[0] * (left.astype(np.float64) + offset) + part.astype(np.float64)
    return round_even(total.astype(np.float32), -offset)


def requantize_even(sums, factor, zero_point, low=-128, high=127):
    """Codes of int32 sums: float32 product, halves to even, zero point, clipped to low and high."""
    quotient = sums.astype(np.float32) * np.float32(factor)
    return np.clip(round_even(quotient, zero_point), low, high).astype(np.int8)


def patches(image, kernel, stride, pads, dilation, out):
    """What each weight of a convolution meets: (C * kh * kw, outputs) of a (C, H, W) image."""
    (kernel_h, kernel_w), (stride_h, stride_w), (top, left) = kernel, stride, pads
    rows = []
    for plane in image:
        for i in range(kernel_h):
            for j in range(kernel_w):
                row = np.zeros(out, image.dtype)
                for y in range(out[0]):
                    for x in range(out[1]):
                        at_y = y * stride_h + i * dilation[0] - top
                        at_x = x * stride_w + j * dilation[1] - left
                        if 0 <= at_y < plane.shape[0] and 0 <= at_x < plane.shape[1]:
                            row[y, x] = plane[at_y, at_x]
                rows.append(row.ravel())
    return np.array(rows)


def output_error(weights, steps, codes, second):
    """Mean square that errors of weights make of the outputs, a row each: e H e^T."""
    error = weights - steps[:, None] * codes
    return np.einsum("rk,kl,rl->r", error, second, error)
