"""Plain NumPy twins of every kernel: another algorithm, the same answer.

Imports NumPy only, never quantjit.
"""

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
