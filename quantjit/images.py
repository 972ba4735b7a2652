"""Images become tensors: decoded, resized and normalized as by TNN's tool.

They are treated as there (``tools/quantization``, stb_image): decoded as RGB, alpha dropped, 16
bits cut to their high byte, EXIF orientation ignored, stretched to the network's size, then
``(pixel - bias) * scale`` in the order of the network's channels.  The one difference is the JPEG
decoder: up to 3 grey levels, 0.06 on average, seen on 100 photographs.
"""

import struct
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray

from quantjit.errors import DataError, UsageError
from quantjit.kernels import image as kernels

FLOAT32_MAX = float(np.finfo(np.float32).max)

_MAX_PIXELS = 89_478_485  # beyond it Pillow warns of a decompression bomb
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_BESIDES = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # all but JFIF (E0) and Adobe's colours (EE)

_LARGE_PIXELS = 2**24
_one_large_image = threading.Lock()
"""Images beyond `_LARGE_PIXELS` are decoded one at a time: each needs much memory."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes a tensor; arrays and texts are taken as they are.

    bias, scale: one value or one a channel, in the network's channel order.
    channel_order: "rgb" or "bgr", what the network expects.
    resize: "stretch" to the network's size; "crop": the shorter side becomes `resize_shorter`
    pixels (None, or too few: just enough to cover the network's size) and the centre is cut out;
    "none": images of another size cannot be used.  Raises UsageError for anything else.
    """

    bias: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    channel_order: str = "rgb"
    resize: str = "stretch"
    resize_shorter: int | None = None

    def __post_init__(self) -> None:
        for name, values in (("bias", self.bias), ("scale", self.scale)):
            if not values or not all(abs(value) <= FLOAT32_MAX for value in values):
                raise UsageError(f"{name} must be one or more numbers of float32, got {values}")
        if self.channel_order not in {"rgb", "bgr"}:
            raise UsageError(f"channel order must be rgb or bgr, got {self.channel_order!r}")
        if self.resize not in {"stretch", "crop", "none"}:
            raise UsageError(f"resize must be stretch, crop or none, got {self.resize!r}")
        if self.resize_shorter is not None and self.resize_shorter < 1:
            raise UsageError(f"the shorter side must be 1 pixel or more, got {self.resize_shorter}")

    def sized(self, file: Path, data: bytes, shape: Shape) -> NDArray[np.uint8]:
        """Return an encoded image as uint8 (H, W, C) of the network's size, not yet normalized.

        shape: (1, C, H, W).  Raises DataError.
        """
        pixels = decode_image(file, data, shape[1])
        if self.resize == "none" and pixels.shape[:2] != shape[2:]:
            found, wanted = (f"{w} x {h}" for h, w in (pixels.shape[:2], shape[2:]))
            raise DataError(file, f"is {found} pixels, the network takes {wanted}")
        return self.fitted(pixels, shape)

    def fitted(self, pixels: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
        """Return uint8 (h, w, C) pixels stretched or cropped to the network's size."""
        if self.resize == "crop":
            return _crop(pixels, shape[2], shape[3], self.resize_shorter)
        return resize(pixels, shape[2], shape[3])


PRESETS: Mapping[str, Preprocess] = {
    "imagenet-torch": Preprocess(
        (123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375), "rgb", "crop"
    ),
    "imagenet-caffe": Preprocess((103.939, 116.779, 123.68), (1.0,), "bgr", "crop"),
    "tf": Preprocess((127.5,), (1 / 127.5,), "rgb", "crop"),
    "unit": Preprocess((0.0,), (1 / 255,), "rgb"),
}
"""Preprocessing by name: what the networks of a framework are usually trained with."""


def check_numbers(preprocess: Preprocess, shape: Shape) -> None:
    """Every channel needs its bias and scale; TNN's tool is often given four for three."""
    channels = shape[1] if len(shape) == 4 else 0
    for flag, values in (("-n/--bias", preprocess.bias), ("-s/--scale", preprocess.scale)):
        if channels and len(values) not in {1, channels} and not len(values) == 4 > channels:
            raise UsageError(f"{flag} has {len(values)} values for {channels} channels")


def image_tensor(
    file: Path, data: bytes, shape: Shape, preprocess: Preprocess
) -> NDArray[np.float32]:
    """Return an encoded image as float32 (1, C, H, W); `file` is what it is called in errors."""
    if len(shape) != 4 or shape[1] not in {1, 3, 4}:
        raise DataError(file, f"an image does not fit the network input {shape}; give .npy or .txt")
    check_numbers(preprocess, shape)
    return _normalized(preprocess.sized(file, data, shape), shape, preprocess)


def decode_image(file: Path, data: bytes, channels: int) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG or BMP as uint8 (h, w, channels); see `quantjit.dataset.decode`."""
    try:
        width, height, data, is_deep_grey = _essentials(data)
        if not 0 < width * height <= _MAX_PIXELS:
            raise ValueError(f"it is {width} x {height} pixels large")
        with _one_large_image if width * height > _LARGE_PIXELS else nullcontext():
            return _pixels(data, channels, is_deep_grey=is_deep_grey)
    except struct.error:
        raise DataError(file, "cannot be decoded: it ends too early") from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on a corrupt file
        raise DataError(file, f"cannot be decoded: {first_line(error)}") from None


def _pixels(data: bytes, channels: int, *, is_deep_grey: bool) -> NDArray[np.uint8]:
    reader: Any  # the pillow plugin, whose `read` also takes a mode
    with iio.imopen(data, "r", plugin="pillow") as reader:
        if is_deep_grey:
            grey = (np.asarray(reader.read(index=0)) >> 8).astype(np.uint8)
            pixels = np.repeat(grey[..., None], 3, axis=2)
        else:  # RGBA also for palettes with transparency, which RGB warns of
            mode = "RGBA" if data.startswith(_PNG) or channels == 4 else "RGB"
            pixels = np.asarray(reader.read(index=0, mode=mode), np.uint8)
    if channels == 1:
        red, green, blue = (pixels[..., c].astype(np.uint16) for c in range(3))
        pixels = ((77 * red + 150 * green + 29 * blue) >> 8).astype(np.uint8)[..., None]
    elif channels == 4 and pixels.shape[2] == 3:
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    return np.ascontiguousarray(pixels[..., :channels])


def _essentials(data: bytes) -> tuple[int, int, bytes, bool]:
    """Return width, height, the image without what lies beside its pixels, and if it is grey 16.

    Sizes are known before anything is decoded, and EXIF, other pictures and animations, which the
    decoder would read and warn of, are left out.  Raises ValueError or struct.error.
    """
    if data.startswith(b"\xff\xd8"):
        return *_jpeg_essentials(data), False
    if data.startswith(_PNG):
        width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
        return width, height, _png_essentials(data), (depth, colour) == (16, 0)
    if data.startswith(b"BM"):
        is_old = struct.unpack_from("<I", data, 14) == (12,)
        width, height = struct.unpack_from("<HH" if is_old else "<ii", data, 18)
        return abs(width), abs(height), data, False
    raise ValueError("it is no JPEG, PNG or BMP" if data else "it is empty")


def _jpeg_essentials(data: bytes) -> tuple[int, int, bytes]:
    width = height = 0
    kept, place = [data[:2]], 2
    while data[place : place + 1] == b"\xff":
        marker, length = struct.unpack_from(">xBH", data, place)
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 5)
        elif marker == 0xDA:  # the pixels
            break
        if marker not in _JPEG_BESIDES:
            kept.append(data[place : place + 2 + length])
        place += 2 + length
    kept.append(data[place:])
    return width, height, b"".join(kept)


def _png_essentials(data: bytes) -> bytes:
    kept, place = [data[:8]], 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(data[place : place + 12 + length])
        place += 12 + length
        if kind == b"IEND":
            break
    return b"".join(kept)


def to_tensor(
    pixels: NDArray[np.uint8], shape: Shape, preprocess: Preprocess
) -> NDArray[np.float32]:
    """Resize and normalize uint8 (h, w, C) pixels to float32 (1, C, H, W)."""
    check_numbers(preprocess, shape)
    return _normalized(preprocess.fitted(pixels, shape), shape, preprocess)


def _normalized(
    pixels: NDArray[np.uint8], shape: Shape, preprocess: Preprocess
) -> NDArray[np.float32]:
    channels, height, width = shape[1:]
    out = np.empty((1, channels, height, width), np.float32)
    kernels.normalize_into(
        pixels,
        preprocess.channel_order == "bgr",
        _per_channel(preprocess.bias, channels),
        _per_channel(preprocess.scale, channels),
        out[0],
    )
    return out


def _per_channel(values: tuple[float, ...], channels: int) -> NDArray[np.float32]:
    given = np.array(values, np.float32)
    return np.full(channels, given[0], np.float32) if given.size == 1 else given[:channels]


def _crop(
    pixels: NDArray[np.uint8], height: int, width: int, shorter: int | None
) -> NDArray[np.uint8]:
    """Resize so that the shorter side is `shorter`, then cut height x width out of the centre."""
    h, w = pixels.shape[:2]
    factor = max(height / h, width / w)
    if shorter is not None:
        factor = max(factor, shorter / min(h, w))  # never smaller than what is cut out
    h, w = max(height, round(h * factor)), max(width, round(w * factor))
    return _resample(pixels, (h, w), ((h - height) // 2, (w - width) // 2), (height, width))


def resize(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize uint8 (h, w, channels) as ``stbir_resize_uint8`` of stb_image_resize.h v0.97, exactly.

    Each axis by itself: Mitchell's filter, widened, when it shrinks or keeps its length,
    Catmull-Rom when it grows; edges are clamped, values are taken as linear light.  An image of
    the wanted size is returned as it is.
    """
    return _resample(pixels, (height, width), (0, 0), (height, width))


def _resample(
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    corner: tuple[int, int],
    window: tuple[int, int],
) -> NDArray[np.uint8]:
    """Return the window (height, width) at corner (top, left) of the image resized to `size`."""
    (top, left), (height, width) = corner, window
    h, w, channels = pixels.shape
    if (h, w) == size:
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])
    first, taps = _filter(w, size[1])
    across, across_taps = first[left : left + width], taps[left : left + width]
    first, taps = _filter(h, size[0])
    down, down_taps = first[top : top + height], taps[top : top + height]
    between = np.empty((h, width, channels), np.float32)
    line = np.empty((w, channels), np.float32)
    kernels.resample_rows_into(np.ascontiguousarray(pixels), across, across_taps, line, between)
    out = np.empty((height, width * channels), np.uint8)
    line = np.empty(width * channels, np.float32)
    kernels.resample_columns_into(between.reshape(h, -1), down, down_taps, line, out)
    return out.reshape(height, width, channels)


@lru_cache(maxsize=64)
def _filter(size: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Table of one axis: first source index and taps of each target pixel."""
    first = np.empty(target, np.int64)
    if target > size:
        taps = np.zeros((target, 5), np.float32)
        kernels.growing_taps_into(size, first, taps)
    else:
        taps = np.zeros((target, 4 * size // target + 3), np.float32)
        kernels.shrinking_taps_into(size, first, taps)
    return first, taps


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
