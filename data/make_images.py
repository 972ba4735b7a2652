"""Render the images of the demo data: ten kinds of shapes under every nuisance we could think of.

Image i of a split depends on (split, i) alone, so any one of them can be made again.  Random
numbers are taken from the raw words of PCG64, whose stream NumPy guarantees, and not from
``Generator`` methods, whose streams it may change.

Run ``python data/make_images.py`` to write ``calib/*.jpg``, ``calib_labels.csv`` and
``eval.npz`` again, with ``--sheet FILE`` to write a contact sheet to look at instead.
"""

import argparse
import io
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
SIZE = 48
SPLITS = {"train": 1, "calib": 2, "eval": 3, "valid": 4}
CALIB_IMAGES, EVAL_IMAGES = 64, 1500
JPEG_QUALITY = 85


class Stream:
    """Uniform and normal numbers from one seed, the same with every NumPy version."""

    def __init__(self, *seed):
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def array(self, low, high, *shape):
        words = self._bits.random_raw(int(np.prod(shape))).reshape(shape)
        return low + (high - low) * ((words >> np.uint64(11)) * 2.0**-53)

    def uniform(self, low, high):
        return float(self.array(low, high, 1)[0])

    def integer(self, low, high):
        """Return an integer in [low, high]."""
        return int(self.uniform(low, high + 1))

    def chance(self, probability):
        return self.uniform(0, 1) < probability

    def normal(self, *shape):
        """Box-Muller."""
        radius = np.sqrt(-2 * np.log(1 - self.array(0, 1, *shape)))
        return radius * np.cos(self.array(0, 2 * np.pi, *shape))


def _polygon(corners, turn=0.0):
    angle = np.arange(corners) * (2 * np.pi / corners) + turn
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star():
    points = _polygon(10, -np.pi / 2)
    points[1::2] *= 0.45
    return points


def _cross():
    a = 0.34
    quarter = np.array([[a, a], [1, a], [1, -a]])
    turns = [np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) for t in _QUARTERS]
    return np.concatenate([quarter @ turn for turn in reversed(turns)])


def _arrow():
    half = np.array([[1.0, 0.0], [0.1, 0.75], [0.1, 0.28], [-1.0, 0.28]])
    return np.concatenate([half, (half * [1, -1])[:0:-1]])


def _crescent():
    outer = np.linspace(0.2 * np.pi, 1.8 * np.pi, 22)
    inner = np.linspace(1.72 * np.pi, 0.28 * np.pi, 16)
    edge = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    hollow = np.stack([np.cos(inner) * 0.76 + 0.33, np.sin(inner) * 0.76], axis=1)
    return np.concatenate([edge, hollow]) + np.array([0.2, 0])


def _heart():
    t = np.arange(30) * (2 * np.pi / 30)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2], axis=1) / 16


def _spiral():
    t = np.linspace(0.12, 1, 34)
    angle = t * 3.9 * np.pi
    return np.stack([t * np.cos(angle), t * np.sin(angle)], axis=1)


_QUARTERS = np.arange(4) * (np.pi / 2)
SHAPES = {
    "disc": _polygon(28),
    "triangle": _polygon(3, np.pi / 6),
    "square": _polygon(4, np.pi / 4),
    "pentagon": _polygon(5, -np.pi / 2),
    "star": _star(),
    "cross": _cross(),
    "arrow": _arrow(),
    "crescent": _crescent(),
    "heart": _heart(),
    "spiral": _spiral(),
}
CLASSES = tuple(SHAPES)
STROKES = {"spiral"}  # drawn as a line, the others as closed outlines
_ROW, _COLUMN = np.mgrid[0:SIZE, 0:SIZE] + 0.5  # pixel centres


def _distance(points, closed):
    """Distance of every pixel centre to a line, and whether it lies inside: two (SIZE, SIZE)."""
    ends = np.roll(points, -1, axis=0) if closed else points[1:]
    nearest = np.full((SIZE, SIZE), np.inf)
    inside = np.zeros((SIZE, SIZE), dtype=bool)
    rows, columns = _ROW[:, 0], _COLUMN[0]
    for (x0, y0), (x1, y1) in zip(points[: len(ends)], ends, strict=True):
        dx, dy = x1 - x0, y1 - y0
        x, y = columns - x0, rows[:, None] - y0
        along = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
        np.minimum(nearest, (x - along * dx) ** 2 + (y - along * dy) ** 2, out=nearest)
        spans = np.flatnonzero((rows < y0) != (rows < y1))
        if spans.size:
            crossing = x0 + (rows[spans] - y0) * dx / dy
            inside[spans] ^= columns < crossing[:, None]
    return np.sqrt(nearest), inside


def _paint(image, coverage, colour):
    image += coverage[..., None] * (colour - image)


def _colour_apart(stream, other, least):
    """Return a colour at least that far from the other one."""
    while True:
        colour = stream.array(0, 255, 3)
        if np.sqrt(((colour - other) ** 2).sum()) >= least:
            return colour


def _background(stream):
    first = stream.array(0, 255, 3)
    second = first + stream.array(-80, 80, 3)
    angle = stream.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * _COLUMN + np.sin(angle) * _ROW) / SIZE
    if stream.chance(0.5):  # a coarse wave
        wave, phase = stream.array(0.1, 0.5, 2), stream.uniform(0, 6)
        ramp = ramp + 0.6 * np.sin(wave[0] * _COLUMN + phase) * np.sin(wave[1] * _ROW + phase)
    image = first + np.clip(ramp, -1, 2)[..., None] * (second - first)
    return np.clip(image, 0, 255)


def _clutter(stream, image, count):
    for _ in range(count):
        colour = stream.array(0, 255, 3)
        centre = stream.array(0, SIZE, 2)
        corners = stream.integer(2, 4)
        points = centre + stream.array(-7, 7, corners, 2)
        distance, inside = _distance(points, closed=corners > 2)
        if corners > 2 and stream.chance(0.6):
            signed = np.where(inside, distance, -distance)
            _paint(image, np.clip(signed + 0.5, 0, 1), colour)
        else:
            _paint(image, np.clip(stream.uniform(0.4, 1.6) - distance + 0.5, 0, 1), colour)


def _shape(stream, image, name):
    radius = stream.uniform(12, 20)
    angle = stream.uniform(-0.6, 0.6)
    stretch = np.exp(stream.uniform(-0.18, 0.18))
    skew = stream.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    frame = turn @ np.array([[stretch, skew], [0, 1 / stretch]])
    room = 0.8 * (SIZE / 2 - 0.85 * radius)
    centre = SIZE / 2 + stream.array(-room, room, 2)
    points = SHAPES[name] @ frame * radius + centre
    points += stream.array(-0.04, 0.04, *points.shape) * radius / np.sqrt(len(points) / 4)
    distance, inside = _distance(points, closed=name not in STROKES)

    around = image[int(centre[1]), int(centre[0])].copy()
    colour = _colour_apart(stream, around, 150)
    signed = np.where(inside, distance, -distance)
    style = stream.uniform(0, 1)
    if name in STROKES:
        coverage = np.clip(stream.uniform(0.04, 0.1) * radius + 0.5 - distance, 0, 1)
    elif style < 0.4:  # filled
        coverage = np.clip(signed + 0.5, 0, 1)
    elif style < 0.85:  # outline
        coverage = np.clip(stream.uniform(0.6, 1.6) + 0.5 - distance, 0, 1)
    else:  # hatched
        tilt, pitch = stream.uniform(0, np.pi), stream.uniform(1.0, 2.2)
        stripes = np.sin((np.cos(tilt) * _COLUMN + np.sin(tilt) * _ROW) * pitch)
        coverage = np.clip(signed + 0.5, 0, 1) * np.clip(0.9 + stripes, 0, 1)
    _paint(image, coverage * stream.uniform(0.8, 1.0), colour)

    if stream.chance(0.35):  # a bar across it
        tilt = stream.uniform(0, 2 * np.pi)
        normal = np.array([np.cos(tilt), np.sin(tilt)])
        middle = centre + normal * stream.uniform(-0.8, 0.8) * radius
        across = np.abs((_COLUMN - middle[0]) * normal[0] + (_ROW - middle[1]) * normal[1])
        bar = np.clip(stream.uniform(0.06, 0.16) * radius + 0.5 - across, 0, 1)
        _paint(image, bar, stream.array(0, 255, 3))


def render(split, index):
    """Return image `index` of a split, uint8 (SIZE, SIZE, 3) RGB, and its label, a class number.

    Classes follow each other in turn.  The image is not yet a JPEG.
    """
    stream = Stream(SPLITS[split], index)
    label = index % len(CLASSES)
    image = _background(stream)
    _clutter(stream, image, stream.integer(0, 3))
    _shape(stream, image, CLASSES[label])
    _clutter(stream, image, stream.integer(0, 1))
    soft = image.copy()
    soft[1:-1, 1:-1] = (
        4 * image[1:-1, 1:-1]
        + 2 * (image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:])
        + (image[:-2, :-2] + image[:-2, 2:] + image[2:, :-2] + image[2:, 2:])
    ) / 16
    image += stream.uniform(0, 1) * (soft - image)
    image = (image - 127.5) * stream.uniform(0.7, 1.1) + 127.5 + stream.uniform(-20, 20)
    image += stream.uniform(1, 9) * stream.normal(SIZE, SIZE, 1)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def encode(image):
    """Return the JPEG bytes of an image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def decode(jpeg):
    """Return the uint8 (height, width, 3) RGB image of JPEG bytes."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def calib_name(index):
    """Return the file name of a calibration image."""
    return f"{index:02d}_{CLASSES[index % len(CLASSES)]}.jpg"


def load_eval(path):
    """Return the evaluation images, uint8 (n, SIZE, SIZE, 3) RGB, and labels, int64 (n,)."""
    with np.load(path) as data:
        jpeg, offsets, labels = data["jpeg"], data["offsets"], data["labels"]
    pairs = pairwise(offsets)
    images = [decode(jpeg[start:stop].tobytes()) for start, stop in pairs]
    return np.stack(images), labels.astype(np.int64)


def write_calib(folder, table):
    """Write the calibration images as JPEG files, and a table of their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file,label"]
    for index in range(CALIB_IMAGES):
        image, label = render("calib", index)
        (folder / calib_name(index)).write_bytes(encode(image))
        lines.append(f"{calib_name(index)},{label}")
    table.write_text("\n".join(lines) + "\n", encoding="ascii")


def write_eval(path):
    """Write the evaluation set: JPEG bytes one after the other, where each begins, and labels."""
    pairs = [render("eval", index) for index in range(EVAL_IMAGES)]
    files = [encode(image) for image, _ in pairs]
    np.savez_compressed(
        path,
        jpeg=np.frombuffer(b"".join(files), dtype=np.uint8),
        offsets=np.cumsum([0] + [len(file) for file in files], dtype=np.int64),
        labels=np.array([label for _, label in pairs], dtype=np.uint8),
        classes=np.array(CLASSES),
    )


def write_sheet(path, split, count, columns=20):
    """Write a contact sheet, one class per column when `columns` is a multiple of the classes."""
    images = np.stack([decode(encode(render(split, index)[0])) for index in range(count)])
    rows = images.reshape(-1, columns, SIZE, SIZE, 3).swapaxes(1, 2)
    Image.fromarray(rows.reshape(-1, columns * SIZE, 3)).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--sheet", type=Path, help="write a contact sheet there, nothing else")
    parser.add_argument("--split", choices=SPLITS, default="eval", help="of the contact sheet")
    options = parser.parse_args()
    if options.sheet:
        write_sheet(options.sheet, options.split, 200)
        return
    write_calib(HERE / "calib", HERE / "calib_labels.csv")
    write_eval(HERE / "eval.npz")


if __name__ == "__main__":
    main()
