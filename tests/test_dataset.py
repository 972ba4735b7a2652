"""Sample inputs: what is read, what is refused and with which words."""

import contextlib
import hashlib
import io
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections import deque

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quantjit.dataset import (
    MARKS,
    ArraySamples,
    Dataset,
    Identity,
    Sample,
    decode,
    load_image,
    parse_numbers,
    prefetch,
)
from quantjit.errors import DataError, UsageError
from quantjit.images import Preprocess, resize, to_tensor

SHAPE = (1, 3, 2, 4)
INPUT = {"data": SHAPE}


def picture(height=2, width=4, channels=3):
    """All values differ, so that a swapped axis or channel shows."""
    count = height * width * channels
    return (np.arange(count) * 7 % 256).astype(np.uint8).reshape(height, width, channels)


def encoded(pixels, suffix="png", **options):
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.squeeze(pixels))
    image.save(out, suffix, **options)
    return out.getvalue()


def png(width, height, depth, colour, rows):
    """Write a PNG of any depth by hand: Pillow cannot."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def open_(path, inputs=None, preprocess=None, **options):
    return Dataset.open(path, inputs or INPUT, preprocess, **options)


def load(path, inputs=None, preprocess=None):
    return open_(path, inputs, preprocess).load(0)


def names(dataset):
    return [file.name for file in dataset.files]


def fill(folder, count, bad=()):
    """Write `count` texts, the i-th full of i; those in `bad` hold letters."""
    for i in range(count):
        text = "x\n" if i in bad else f"{i}\n" * 24
        (folder / f"{i:03}.txt").write_text(text, encoding="ascii")
    return folder


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("104,117,123", (104, 117, 123)),
        (" 104 , -117.5,+1 ", (104, -117.5, 1)),
        ("1/128", (1 / 128,)),
        ("1 / 127.5, 2", (1 / 127.5, 2)),
        ("1e-3", (0.001,)),
    ],
)
def test_parse_numbers(text, numbers):
    assert parse_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "1,,2", "a", "1/0", "1/2/3", "nan", "1e999", "1 2", "inf"])
def test_parse_numbers_refuses(text):
    with pytest.raises(ValueError, match=r"is no number: give e\.g\. 104,117,123 or 1/128"):
        parse_numbers(text)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"bias": ()}, "bias must be one or more numbers"),
        ({"scale": (1e39,)}, r"scale must be one or more numbers of float32, got \(1e\+39,\)"),
        ({"scale": (float("nan"),)}, "scale must be"),
        ({"channel_order": "BGR"}, "channel order must be rgb or bgr, got 'BGR'"),
        ({"resize": "fit"}, "resize must be stretch, crop or none, got 'fit'"),
        ({"resize_shorter": 0}, "shorter side must be 1 pixel or more, got 0"),
    ],
)
def test_preprocess_refuses(wrong, words):
    with pytest.raises(UsageError, match=words):
        Preprocess(**wrong)


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize(("field", "flag"), [("bias", "-n/--bias"), ("scale", "-s/--scale")])
def test_as_many_numbers_as_channels(tmp_path, field, flag, count):
    wrong = Preprocess(**{field: (1.0,) * count})
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    with pytest.raises(UsageError, match=f"{flag} has {count} values for 3 channels"):
        open_(tmp_path, preprocess=wrong)
    with pytest.raises(UsageError, match=f"{flag} has {count} values for 3 channels"):
        load_image(encoded(picture()), SHAPE, wrong)


def test_numbers_are_not_asked_for_without_images(tmp_path):
    assert len(open_(fill(tmp_path, 1), preprocess=Preprocess(bias=(1.0, 2.0)))) == 1


# ------------------------------------------------------------------ files


def test_files_of_a_folder(tmp_path):
    for name in ("b.JPG", "a10.png", "a9.Bmp", "Z.jpeg", "é.npy", "c.npz", "d.TXT"):
        (tmp_path / name).touch()
    for name in (".hidden.png", "labels.csv", "noext"):
        (tmp_path / name).touch()
    (tmp_path / "deeper.png").mkdir()
    (tmp_path / "deeper.png" / "x.png").touch()
    assert names(open_(tmp_path)) == [
        "Z.jpeg", "a10.png", "a9.Bmp", "b.JPG", "c.npz", "d.TXT", "deeper.png", "é.npy",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"deeper\.png: cannot be read: it is a folder"):
        open_(tmp_path).load(6)
    assert names(open_(str(tmp_path), limit=2)) == ["Z.jpeg", "a10.png"]


def test_links_are_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "there" / "data").write_bytes(encoded(picture()))
    (tmp_path / "here" / "a.png").symlink_to(tmp_path / "there" / "data")
    (tmp_path / "here" / "b.png").symlink_to(tmp_path / "there" / "gone")
    dataset = open_(tmp_path / "here")
    assert names(dataset) == ["a.png", "b.png"]
    assert np.array_equal(dataset.load(0)[0].arrays["data"][0], picture().transpose(2, 0, 1))
    with pytest.raises(DataError, match=r"b\.png: cannot be read: No such file"):
        dataset.load(1)


@pytest.mark.skipif(os.name != "posix", reason="needs a second process that appends quickly")
def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3, 1000, 1000), np.float32))
    dataset = open_(path, {"data": (1, 3, 1000, 1000)})
    assert len(dataset.load(0)) == 2
    script = "import sys\nf = open(sys.argv[1], 'ab', 0)\nwhile True: f.write(b'x')"
    with subprocess.Popen([sys.executable, "-c", script, str(path)]) as writer:
        size = path.stat().st_size
        while path.stat().st_size == size:
            time.sleep(0.001)
        try:
            with pytest.raises(DataError, match=r"a\.npy: changed while it was read"):
                deque((dataset.load(0) for _ in range(200)), 0)  # the writer may sleep through one
        finally:
            writer.kill()


def test_identities(tmp_path):
    fill(tmp_path, 2)
    dataset, asked = open_(tmp_path), []

    def is_known(identity):
        asked.append(identity)
        return identity.name == "001.txt"

    for mark in MARKS:
        first, samples = dataset.load_unknown(0, mark, is_known)
        assert first.name == "000.txt"
        assert np.array_equal(samples[0].arrays["data"], dataset.load(0)[0].arrays["data"])
        second, known = dataset.load_unknown(1, mark, is_known)
        assert known is None
        assert second in asked
    digest = hashlib.sha256((tmp_path / "000.txt").read_bytes()).hexdigest()
    status = (tmp_path / "000.txt").stat()
    assert Identity("000.txt", f"sha256:{digest}") in asked
    assert Identity("000.txt", f"stat:{status.st_size}:{status.st_mtime_ns}") in asked


def test_shards_are_all_files_once(tmp_path):
    dataset = open_(fill(tmp_path, 11))
    shards = [names(dataset.shard(number, 4)) for number in range(1, 5)]
    assert sorted(name for shard in shards for name in shard) == names(dataset)
    assert shards[0] == ["000.txt", "004.txt", "008.txt"]
    with pytest.raises(DataError, match="shard 12/12 is empty: there are 11 files"):
        dataset.shard(12, 12)


def test_one_file_and_a_list(tmp_path):
    fill(tmp_path, 3)
    assert names(open_(tmp_path / "002.txt")) == ["002.txt"]
    chosen = open_([tmp_path / "002.txt", str(tmp_path / "000.txt")])
    assert names(chosen) == ["000.txt", "002.txt"]
    assert [sample.arrays["data"].max() for sample in chosen] == [0, 2]


def test_nothing_to_read(tmp_path):
    suffixes = r"\.jpg \.jpeg \.png \.bmp \.txt \.npy \.npz"
    with pytest.raises(DataError, match=f"{tmp_path.name}: holds no input: .*{suffixes}"):
        open_(tmp_path)
    (tmp_path / "a.gif").touch()
    with pytest.raises(DataError, match=r"a\.gif: holds no input"):
        open_(tmp_path / "a.gif")
    with pytest.raises(DataError, match="list of files: holds no input"):
        open_([])
    with pytest.raises(DataError, match="gone: no such file or folder"):
        open_(tmp_path / "gone")
    with pytest.raises(DataError):
        open_("x" * 5000)
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(DataError, match=r"d\.txt: cannot be read: "):
        open_([tmp_path / "d.txt"]).load(0)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"limit": 0}, "limit must be 1 file or more, got 0"),
        ({"max_bad": 1.5}, "share of bad files must be from 0 to 1, got 1.5"),
        ({"max_bad": float("nan")}, "share of bad files must be from 0 to 1"),
    ],
)
def test_options_are_checked(tmp_path, option, words):
    with pytest.raises(UsageError, match=words):
        open_(tmp_path, **option)


# ------------------------------------------------------------------ decoding


def test_colours():
    pixels = picture()
    grey = pixels[..., :1]
    for suffix in ("png", "bmp"):
        assert np.array_equal(decode(encoded(pixels, suffix), 3), pixels)
        assert np.array_equal(decode(encoded(grey, suffix), 3), np.repeat(grey, 3, axis=2))
        assert np.array_equal(decode(encoded(grey, suffix), 1), grey)
        assert np.array_equal(decode(encoded(pixels, suffix), 4)[..., :3], pixels)
        assert (decode(encoded(pixels, suffix), 4)[..., 3] == 255).all()
    weighted = pixels.astype(int) @ [77, 150, 29] // 256
    assert np.array_equal(decode(encoded(pixels), 1)[..., 0], weighted)


def test_alpha_is_dropped_not_blended():
    pixels = picture(channels=4)
    pixels[0, :, 3] = 0
    assert np.array_equal(decode(encoded(pixels), 3), pixels[..., :3])
    assert np.array_equal(decode(encoded(pixels), 4), pixels)
    grey = Image.fromarray(pixels[..., :2], "LA")
    assert np.array_equal(decode(encoded(grey), 3), pixels[..., [0, 0, 0]])
    assert np.array_equal(decode(encoded(grey), 4), pixels[..., [0, 0, 0, 1]])


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(8))])
def test_palettes(transparency):
    """A palette with transparency is one that Pillow warns of when it becomes RGB."""
    image = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4), "P")
    colours = picture(1, 8)
    image.putpalette(colours.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(decode(encoded(image, **options), 3), colours.reshape(2, 4, 3))


def test_black_and_white():
    image = Image.fromarray(np.eye(4, dtype=bool))
    assert np.array_equal(decode(encoded(image), 3)[..., 1], np.eye(4) * 255)


def test_sixteen_bits_are_cut_to_the_high_byte():
    deep = (np.arange(24) * 2741).astype(">u2").reshape(2, 4, 3)
    high = (deep >> 8).astype(np.uint8)
    grey = png(4, 2, 16, 0, [row.tobytes() for row in deep[..., 0]])
    for channels in (1, 3, 4):
        found = decode(grey, channels)
        assert np.array_equal(found[..., 0], high[..., 0])
        assert found.shape == (2, 4, channels)
    assert (decode(grey, 4)[..., 3] == 255).all()
    assert np.array_equal(decode(png(4, 2, 16, 2, [row.tobytes() for row in deep]), 3), high)


def test_few_bits_are_spread_over_the_range():
    assert decode(png(4, 1, 2, 0, [b"\x1b"]), 1).ravel().tolist() == [0, 85, 170, 255]


def smooth(height=16, width=24):
    y, x = np.mgrid[:height, :width]
    return np.dstack([x * 10, y * 15, (x + y) * 6]).astype(np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg(mode, progressive):
    image = Image.fromarray(smooth()).convert(mode)
    data = encoded(image, "jpeg", quality=95, subsampling=0, progressive=progressive)
    expected = np.asarray(image.convert("RGB")).astype(int)
    found = decode(data, 3)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 8


def segment(marker, data):
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


@pytest.mark.parametrize(
    "beside",
    [
        segment(0xE1, b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06"),  # cut off
        segment(0xE2, b"MPF\0II\x2a\0\x08\0\0\0\x01\0\x01\xb0\x07\0\x04\0\0\0\0\0\0\0"),
        b"\xff" + segment(0xFE, b"a comment behind padding"),
    ],
)
def test_what_lies_beside_the_pixels_of_a_jpeg_is_not_read(beside):
    """Pillow warns of each of the first two when it reads the file as it is."""
    plain = encoded(smooth(), "jpeg")
    assert np.array_equal(decode(plain[:2] + beside + plain[2:], 3), decode(plain, 3))


def test_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x112] = 6  # a quarter turn
    for suffix in ("jpeg", "png"):
        turned = encoded(smooth(), suffix, exif=exif.tobytes())
        assert np.array_equal(decode(turned, 3), decode(encoded(smooth(), suffix), 3))


def test_an_animation_is_its_first_picture():
    frames = [Image.fromarray(picture()), Image.fromarray(picture()[::-1].copy())]
    data = encoded(frames[0], save_all=True, append_images=frames[1:])
    assert b"acTL" in data
    assert np.array_equal(decode(data, 3), picture())


PNG, JPEG, BMP = (encoded(smooth(), suffix) for suffix in ("png", "jpeg", "bmp"))
OLD_BMP = b"BM" + struct.pack("<IIIIHHHH", 26 + 8, 0, 26, 12, 1, 2, 1, 24) + bytes(8)


def with_size(data, place, layout, *size):
    wrong = bytearray(data)
    struct.pack_into(layout, wrong, place, *size)
    return bytes(wrong)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"no image", "it is no JPEG, PNG or BMP"),
        (encoded(picture(), "gif"), "it is no JPEG, PNG or BMP"),
        (PNG[:20], "it ends too early"),
        (PNG[: len(PNG) // 2], ""),
        (PNG[:60] + b"\xff" * 9 + PNG[69:], ""),
        (PNG[:33], ""),
        (JPEG[:3], "it ends too early"),
        (JPEG[:2], "it is 0 x 0 pixels large"),
        (JPEG[: len(JPEG) // 2], ""),
        (JPEG[:30], ""),
        (BMP[:12], "it ends too early"),
        (BMP[: len(BMP) // 2], ""),
        (with_size(PNG, 16, ">II", 100_000, 100_000), "it is 100000 x 100000 pixels large"),
        (with_size(PNG, 16, ">II", 9_500, 9_500), "it is 9500 x 9500 pixels large"),
        (with_size(PNG, 16, ">II", 0, 5), "it is 0 x 5 pixels large"),
        (with_size(BMP, 18, "<ii", 70_000, -70_000), "it is 70000 x 70000 pixels large"),
        (with_size(JPEG, JPEG.index(b"\xff\xc0") + 5, ">HH", 60_000, 60_000), "60000 x 60000"),
    ],
)
def test_images_that_cannot_be_decoded(tmp_path, data, words):
    file = tmp_path / "a.png"
    file.write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.png: cannot be decoded: .*{words}") as caught:
        load(file)
    assert caught.value.path == str(file)


def test_bmp_of_os2():
    assert decode(OLD_BMP, 3).shape == (2, 1, 3)


@given(st.sampled_from([PNG, JPEG, BMP]), st.data())
def test_damage_is_an_image_or_a_data_error(data, source):
    wrong = bytearray(data)
    for _ in range(source.draw(st.integers(1, 4))):
        place = source.draw(st.integers(0, len(wrong) - 1))
        wrong[place] = source.draw(st.integers(0, 255))
    wrong = wrong[: source.draw(st.integers(0, len(wrong)))]
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        with contextlib.suppress(DataError):
            assert decode(bytes(wrong), 3).ndim == 3
    assert not leaked


@pytest.mark.parametrize("shape", [(1, 2, 2, 4), (1, 24), (1, 5, 2, 4)])
def test_networks_that_take_no_image(shape):
    with pytest.raises(DataError, match=r"does not fit the network input .*; give \.npy or \.txt"):
        load_image(PNG, shape, Preprocess())


# ------------------------------------------------------------------ image -> tensor


def test_preprocessing_in_the_channel_order_of_the_network(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    bias, scale = (104.0, 117.0, 123.0), (1.0, 0.017, 1 / 127)
    for order, picked in (("rgb", [0, 1, 2]), ("bgr", [2, 1, 0])):
        (sample,) = load(tmp_path, preprocess=Preprocess(bias, scale, order))
        array = sample.arrays["data"]
        assert sample.file == str(tmp_path / "a.png")
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.shape == SHAPE
        assert np.array_equal(array[0], oracle.image_to_tensor(picture(), picked, bias, scale))


def test_one_number_for_all_channels_and_four_for_three():
    """TNN's tool takes four numbers for three channels."""
    one = to_tensor(picture(), SHAPE, Preprocess((3.0,), (2.0,)))
    four = to_tensor(picture(), SHAPE, Preprocess((3.0, 3, 3, 9), (2.0, 2, 2, 9)))
    assert np.array_equal(one, four)
    assert np.array_equal(one[0], oracle.image_to_tensor(picture(), [0, 1, 2], [3], [2]))


def test_stretch_is_the_default():
    found = load_image(encoded(picture(5, 3)), SHAPE, Preprocess())[0]
    assert np.array_equal(found, resize(picture(5, 3), 2, 4).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("size", "shorter", "between"),
    [
        ((6, 9), None, (3, 4)),  # just covers 2 x 4
        ((6, 9), 4, (4, 6)),
        ((9, 6), 6, (9, 6)),  # nothing to resize
        ((6, 9), 1, (3, 4)),  # too small to cut from
        ((2, 4), None, (2, 4)),
    ],
)
def test_crop_cuts_the_centre_of_the_resized_image(size, shorter, between):
    how = Preprocess(resize="crop", resize_shorter=shorter)
    whole = resize(picture(*size), *between)
    top, left = (between[0] - 2) // 2, (between[1] - 4) // 2
    expected = whole[top : top + 2, left : left + 4].transpose(2, 0, 1)
    assert np.array_equal(to_tensor(picture(*size), SHAPE, how)[0], expected)


@pytest.mark.jit
def test_crop_of_a_thin_line_stays_small():
    """Resized as a whole it would have 200 x 800 000 pixels."""
    line = np.full((1, 4000, 3), 9, np.uint8)
    how = Preprocess(resize="crop", resize_shorter=200)
    assert (to_tensor(line, SHAPE, how) == 9).all()


def test_no_resizing():
    how = Preprocess(resize="none")
    assert load_image(encoded(picture()), SHAPE, how).shape == SHAPE
    with pytest.raises(DataError, match="is 3 x 5 pixels, the network takes 4 x 2"):
        load_image(encoded(picture(5, 3)), SHAPE, how)


# ------------------------------------------------------------------ texts


def text(tmp_path, content):
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    return file


def test_txt(tmp_path):
    values = np.linspace(-3, 3, 24, dtype=np.float32)
    for end in ("\n", "\r\n", " "):
        content = end.join(f"{value:.9g}" for value in values).encode()
        (sample,) = load(text(tmp_path, content), preprocess=Preprocess((5.0,), (2.0,)))
        assert sample.arrays["data"].dtype == np.float32
        assert np.array_equal(sample.arrays["data"].ravel(), values)


def test_txt_of_two(tmp_path):
    file = text(tmp_path, b"1\n" * 24 + b"2\n" * 24)
    first, second = load(file)
    assert (first.file, second.file) == (f"{file}[0]", f"{file}[1]")
    assert first.arrays["data"].shape == second.arrays["data"].shape == SHAPE
    assert (first.arrays["data"].max(), second.arrays["data"].min()) == (1, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"expected 24 numbers \(1 \* 3 \* 2 \* 4\), found 0"),
        (b"1\n" * 25, r"expected 24 numbers \(1 \* 3 \* 2 \* 4\), found 25"),
        (b"1\n2\nthree\n", "line 3: expected a number of float32, found 'three'"),
        (b"1,2,3\n", "line 1: .* found '1,2,3'"),
        (b"1\n\nnan\n", "line 3: .* found 'nan'"),
        (b"1\n2 -inf\n", "line 2: .* found '-inf'"),
        (b"1\n1e39\n", "line 2: .* found '1e39'"),
        (b"1\n1_0\n", "line 2: .* found '1_0'"),
        (b"\xff\xfe1\n", "line 1: .* found"),
        (b"7" * 100_000 + b"\n" + b"1\n" * 10, "line 1: .* found '77777777777777777777'"),
    ],
)
def test_txt_refuses(tmp_path, content, words):
    with pytest.raises(DataError, match=rf"a\.txt: {words}"):
        load(text(tmp_path, content))


# ------------------------------------------------------------------ arrays


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8, np.int64, ">f4"])
def test_npy(tmp_path, dtype):
    array = (np.arange(48) % 25).astype(dtype).reshape(2, 3, 2, 4)
    np.save(tmp_path / "a.npy", array)
    samples = load(tmp_path, preprocess=Preprocess((5.0,), (2.0,)))
    assert [sample.arrays["data"].dtype for sample in samples] == [np.float32] * 2
    assert np.array_equal([sample.arrays["data"][0] for sample in samples], array)
    np.save(tmp_path / "a.npy", np.asfortranarray(array[0]))
    (sample,) = load(tmp_path)
    assert np.array_equal(sample.arrays["data"], array[:1])


def test_npy_beyond_float32_is_infinite(tmp_path):
    np.save(tmp_path / "a.npy", np.full(SHAPE, 1e300))
    assert np.isinf(load(tmp_path)[0].arrays["data"]).all()


def bytes_of(array, **options):
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def archive(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as NumPy data"),
        (b"text", "cannot be read as NumPy data"),
        (b"PK\x03\x04 and no more", "cannot be read as NumPy data"),
        (bytes_of(np.zeros(SHAPE))[:-1], "cannot be read as NumPy data"),
        (bytes_of(np.array([{}]), allow_pickle=True), "cannot be read as NumPy data"),
        (bytes_of(np.zeros(SHAPE, complex)), "holds complex128, expected numbers"),
        (bytes_of(np.zeros(SHAPE, "U3")), "holds <U3, expected numbers"),
        (bytes_of(np.zeros((3, 4, 2))), "expected shape 3x2x4 or Nx3x2x4, found 3x4x2$"),
        (bytes_of(np.zeros((0, 3, 2, 4))), "found 0x3x2x4"),
        (bytes_of(np.float32(1)), "found a single number"),
        (bytes_of(np.zeros((2, 4, 3), np.uint8)), "found 2x4x3; channels come first: transpose"),
        (bytes_of(np.zeros((5, 2, 4, 3))), "found 5x2x4x3; channels come first"),
        (archive(a=np.zeros(SHAPE)), r"is an \.npz archive: give it that suffix"),
    ],
)
def test_npy_refuses(tmp_path, content, words):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.npy: .*{words}"):
        load(tmp_path)


TWO = {"left": (1, 3, 2, 4), "right": (1, 5)}


def test_npz_of_several_inputs(tmp_path):
    left, right = np.random.default_rng(0).random((2, 3, 2, 4)), np.arange(10).reshape(2, 5)
    (tmp_path / "a.npz").write_bytes(archive(right=right, left=left, other=np.array(["unused"])))
    samples = load(tmp_path, TWO)
    assert [list(sample.arrays) for sample in samples] == [["left", "right"]] * 2
    for index, sample in enumerate(samples):
        assert np.array_equal(sample.arrays["left"], left[index : index + 1].astype(np.float32))
        assert np.array_equal(sample.arrays["right"], right[index : index + 1])


def test_npz_of_one_input_may_have_any_name(tmp_path):
    (tmp_path / "a.npz").write_bytes(archive(whatever=np.ones(SHAPE)))
    assert load(tmp_path)[0].arrays["data"].sum() == 24
    (tmp_path / "a.npz").write_bytes(archive(whatever=np.ones(SHAPE), data=np.zeros(SHAPE)))
    assert load(tmp_path)[0].arrays["data"].sum() == 0


def damaged():
    data = bytearray(archive(left=np.ones(SHAPE), right=np.ones((1, 5))))
    data[data.index(b"NUMPY") + 200] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (archive(left=np.ones(SHAPE)), "lacks the network input 'right'; it holds left"),
        (archive(), "lacks the network input 'left'; it holds nothing"),
        (archive(left=np.ones(SHAPE), right=np.ones(6)), "array 'right': expected shape 5 or Nx5"),
        (
            archive(left=np.ones(SHAPE), right=np.ones((2, 5))),
            r"its arrays have different batch sizes: \[1, 2\]",
        ),
        (archive(left=np.array({}), right=np.ones(5)), "array 'left': cannot be read: Object arr"),
        (damaged(), "array 'left': cannot be read: Bad CRC"),
        (bytes_of(np.ones(SHAPE)), r"is a single array: give it the suffix \.npy"),
        (b"PK", "cannot be read as NumPy data"),
    ],
)
def test_npz_refuses(tmp_path, content, words):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.npz: {words}"):
        load(tmp_path, TWO)


@pytest.mark.parametrize("name", ["a.png", "a.txt", "a.npy"])
def test_several_inputs_need_npz(tmp_path, name):
    (tmp_path / name).touch()
    words = r"the network has several inputs: give \.npz files with left, right"
    with pytest.raises(DataError, match=words):
        load(tmp_path, TWO)


# ------------------------------------------------------------------ all of them, and the bad ones


def test_bad_files_are_skipped_up_to_the_share(tmp_path):
    dataset = open_(fill(tmp_path, 20, bad=[7]))
    for _ in range(2):  # a second pass counts no file twice
        assert [sample.arrays["data"][0, 0, 0, 0] for sample in dataset] == [
            i for i in range(20) if i != 7
        ]
    (error,) = dataset.skipped
    assert error.path == str(tmp_path / "007.txt")
    fill(tmp_path, 20, bad=[7, 11])
    words = (
        rf"{tmp_path.name}: 2 of 20 files cannot be used, more than --max-bad 0\.05; "
        r"the last: .*011\.txt: line 1"
    )
    with pytest.raises(DataError, match=words):
        list(open_(tmp_path))


def test_the_share_is_met_exactly(tmp_path):
    """29 of 100 is 0.29, though 0.29 * 100 is below 29 in floating point."""
    dataset = open_(fill(tmp_path, 100, bad=range(29)), max_bad=0.29)
    assert len(list(dataset)) == 71


def test_no_file_can_be_used(tmp_path):
    with pytest.raises(DataError, match=r"no file can be used; the first: .*000\.txt"):
        list(open_(fill(tmp_path, 2, bad=[0, 1]), max_bad=1.0))
    with pytest.raises(DataError, match=r"000\.txt: line 1"):
        list(open_(tmp_path / "000.txt", max_bad=1.0))


def test_spread(tmp_path):
    dataset = open_(fill(tmp_path, 20, bad=[5]))
    assert names(dataset.spread(4)) == ["000.txt", "005.txt", "010.txt", "015.txt"]
    list(dataset)
    assert names(dataset.spread(4)) == ["000.txt", "004.txt", "010.txt", "015.txt"]
    assert len(dataset.spread(99)) == 19


def test_arrays_in_memory():
    samples = ArraySamples([{"data": np.full(SHAPE, i, np.float32)} for i in range(3)])
    assert len(samples) == 3
    assert [sample.file for sample in prefetch(samples)] == ["input 0", "input 1", "input 2"]
    with pytest.raises(DataError, match="wrong"):
        samples.skip(DataError("input 0", "wrong"))
    with pytest.raises(DataError, match="inputs: there are none"):
        list(prefetch(ArraySamples([])))


class Counted:
    """Samples that count how many are loaded and not yet taken; `bad` raises at its index."""

    def __init__(self, count, bad=None):
        self.count, self.bad, self.loaded, self.lock = count, bad, 0, threading.Lock()

    def __len__(self):
        return self.count

    def load(self, index):
        with self.lock:
            self.loaded += 1
        if self.bad is not None and index == 3:
            raise self.bad
        return [Sample(str(index), {}), Sample(f"{index}b", {})]

    def skip(self, error):
        raise error

    def check(self):
        pass


@pytest.mark.parametrize(("workers", "depth"), [(1, 0), (1, 1), (2, 4), (4, 3)])
def test_prefetch_keeps_the_order_and_stays_bounded(workers, depth):
    source, ahead = Counted(30), []
    for taken, sample in enumerate(prefetch(source, workers, depth)):
        assert sample.file == f"{taken // 2}" + "b" * (taken % 2)
        ahead.append(source.loaded - taken // 2)
    assert taken == 59
    assert max(ahead) <= max(1, depth)


def test_prefetch_ends_its_threads_when_the_caller_stops():
    before, source = set(threading.enumerate()), Counted(1000)
    samples = prefetch(source, 2, 4)
    next(samples)
    samples.close()
    assert set(threading.enumerate()) <= before
    assert source.loaded <= 4


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), DataError("3", "wrong"), ZeroDivisionError()]
)
def test_prefetch_ends_its_threads_on_an_error(error):
    before, source = set(threading.enumerate()), Counted(1000, error)
    with pytest.raises(type(error)):
        list(prefetch(source, 2, 4))
    assert set(threading.enumerate()) <= before
    assert source.loaded <= 4 + 3


def test_threads_decode_the_same(tmp_path):
    for i in range(24):
        (tmp_path / f"{i:02}.jpg").write_bytes(encoded(np.roll(smooth(), i, axis=1), "jpeg"))
    dataset = open_(tmp_path, {"data": (1, 3, 3, 5)})
    one_by_one = [dataset.load(index)[0].arrays["data"] for index in range(24)]
    together = [sample.arrays["data"] for sample in prefetch(dataset, 8, 16)]
    assert np.array_equal(one_by_one, together)
    assert len({array.tobytes() for array in together}) > 12


# ------------------------------------------------------------------ reference data


@pytest.mark.shared
@pytest.mark.jit
@pytest.mark.parametrize(
    ("model", "how"),
    [
        ("squeezenet_v1.0", Preprocess(channel_order="bgr")),
        ("mobilenet_v2", Preprocess(resize="crop", resize_shorter=227)),
    ],
)
def test_images_of_the_reference(shared, model, how):
    with np.load(shared / "golden" / model / "inputs.npz") as stored:
        files, images = stored["files"], stored["images"]
    order = [2, 1, 0] if how.channel_order == "bgr" else [0, 1, 2]
    for file, image in zip(files, images, strict=True):
        shape = (1, 3, *image.shape[:2])
        (sample,) = load(shared / "images" / "calib" / str(file), {"data": shape}, how)
        assert np.array_equal(sample.arrays["data"][0], image[..., order].transpose(2, 0, 1))
