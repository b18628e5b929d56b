"""Very large images: the same pixels in strips as at once, and what a reader takes for one."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.big_png import reading, write_png

from openmae.data import conformed as conformed_module
from openmae.data import resize as resizing
from openmae.data.augment import resized_crop
from openmae.data.conformed import conformed
from openmae.data.decoding import decode as decoding
from openmae.data.decoding import strips
from openmae.data.decoding.decode import BadImage, decode, from_pil_image
from openmae.data.decoding.pixels import composite
from openmae.data.preprocess import conform
from openmae.data.sources.folder import FolderSource
from openmae.data.sources.largest import largest_image
from openmae.data.sources.views import split_held_out
from openmae.data.value_scale import Rescale

RNG = np.random.default_rng(8)
RGBA = RNG.integers(0, 256, (41, 57, 4), dtype=np.uint8)
RGBA[:20, :, 3] = 255  # strips without alpha among those with
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "I;16B")


def picture(mode):
    rgba = Image.fromarray(RGBA)
    if mode in ("La", "PA", "RGBa"):
        return rgba.convert({"La": "LA", "PA": "P", "RGBa": "RGBA"}[mode]).convert(mode)
    if mode.startswith("I;16"):
        values = RNG.integers(0, 65536, RGBA.shape[:2], dtype=np.uint16)
        return Image.frombytes(mode, RGBA.shape[1::-1], values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    return rgba.convert("RGB").convert(mode) if mode in ("YCbCr", "HSV", "CMYK") else rgba.convert(mode)


def png(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.fixture
def in_small_strips(monkeypatch):
    """Call it, and strips are of two rows."""

    def begin(pixels=120):
        monkeypatch.setattr(strips, "STRIP_PIXELS", pixels)
        monkeypatch.setattr(resizing, "LARGE_PIXELS", 0)
        monkeypatch.setattr(conformed_module, "LARGE_PIXELS", 0)
        monkeypatch.setattr("openmae.data.decoding.pillow.LARGE_PIXELS", 0)
        monkeypatch.setattr("openmae.data.augment.LARGE_PIXELS", 0)

    return begin


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("background", [1.0, 0.3])
def test_every_kind_of_picture_is_the_same_in_strips(in_small_strips, mode, background):
    image = picture(mode)
    whole = from_pil_image(image, background)
    in_small_strips()
    np.testing.assert_array_equal(from_pil_image(image, background), whole)
    assert whole.shape[:2] == RGBA.shape[:2]


def deep_png(channels, transparent=None):
    torchvision = pytest.importorskip("torchvision")
    del torchvision
    import struct
    import zlib

    values = RNG.integers(0, 65536, (41, 57, channels), dtype=np.uint16)
    values[::3] = 7

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", 57, 41, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    key = chunk(b"tRNS", struct.pack(">HHH", 7, 7, 7)) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


FILES = {
    "palette with alpha": lambda: png(picture("RGBA").quantize(8), transparency=bytes([0, 9, 99, 255, 1, 2, 3, 4])),
    "grey with a transparent one": lambda: png(picture("L"), transparency=7),
    "a transparent colour": lambda: png(picture("RGB"), transparency=tuple(RGBA[0, 0, :3].tolist())),
    "16 bits, a transparent one": lambda: png(picture("I;16"), transparency=7),
    "grey and alpha": lambda: png(picture("LA")),
    "grey and alpha, turned": lambda: png(picture("LA"), exif=orientation(6)),
    "16 bits RGBA": lambda: deep_png(4),
    "16 bits grey and alpha": lambda: deep_png(2),
    "16 bits RGB": lambda: deep_png(3),
    "16 bits RGB, a transparent one": lambda: deep_png(3, transparent=True),
    "turned": lambda: png(picture("RGBA"), exif=orientation(6)),
}


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_is_the_same_in_strips_and_from_an_open_file(in_small_strips, tmp_path, kind):
    data = FILES[kind]()
    whole = decode(data, 0.4)
    in_small_strips()
    np.testing.assert_array_equal(decode(data, 0.4), whole)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        np.testing.assert_array_equal(decode(file, 0.4), whole)


@pytest.mark.parametrize("premultiplied", [False, True])
@pytest.mark.parametrize("background", [0.0, 0.37, 1.0])
def test_8_bits_are_mixed_from_a_table_as_by_the_formula(premultiplied, background):
    """The formula as it stood before the table, in float32 throughout."""
    array = np.stack(np.meshgrid(np.arange(256), np.arange(256)), -1).astype(np.uint8)
    alpha = array[..., 1:].astype(np.float32) / 255.0
    colour = array[..., :1] if premultiplied else array[..., :1] * alpha
    wanted = np.rint(colour + np.float32(background * 255.0) * (1 - alpha)).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(composite(array, background, premultiplied), wanted)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("have", "channels"), [(1, 1), (1, 3), (3, 1), (3, 3), (5, 5), (6, 6)])
def test_cut_converted_and_resized_in_strips_is_the_same_to_the_byte(in_small_strips, dtype, have, channels):
    trials = []
    for _ in range(12):
        height, width = RNG.integers(1, 300, 2).tolist()
        image = RNG.integers(0, 256 if dtype == "uint8" else 65536, (height, width, have)).astype(dtype)
        box_height, box_width = int(RNG.integers(1, height + 1)), int(RNG.integers(1, width + 1))
        box = (height - box_height, (width - box_width) // 2, box_height, box_width)
        size = (box_height, box_width) if RNG.random() < 0.2 else tuple(RNG.integers(1, 64, 2).tolist())
        image.flags.writeable = bool(RNG.random() < 0.5)
        as_dtype = "uint8" if dtype == "uint16" and RNG.random() < 0.5 else dtype
        trials.append((image, as_dtype, box, size, resized_crop(conform(image, channels, as_dtype), box, size)))
    in_small_strips(700)
    for image, as_dtype, box, size, wanted in trials:
        found = resized_crop(conformed(image, channels, as_dtype, 1), box, size)
        assert found.dtype == wanted.dtype
        assert found.is_contiguous()
        assert torch.equal(found, wanted), (image.shape, box, size)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("as_dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("have", "channels"), [(1, 3), (3, 1), (5, 5)])
def test_a_stated_range_in_strips_is_the_same_to_the_byte(in_small_strips, dtype, as_dtype, have, channels):
    image = RNG.integers(0, 256 if dtype == "uint8" else 65536, (90, 70, have)).astype(dtype)
    box, size = (11, 3, 60, 52), (24, 20)
    rescale = Rescale(dtype, (10.0, 200.0 if dtype == "uint8" else 4095.0), (0.0, 255.0))
    wanted = resized_crop(conform(image, channels, as_dtype, rescale=rescale), box, size)
    in_small_strips(700)
    found = resized_crop(conformed(image, channels, as_dtype, 1, rescale), box, size)
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("image", "channels", "dtype", "min_side"), [
    (np.zeros((40, 40, 4), np.uint8), 3, "uint8", 8),
    (np.zeros((40, 40, 3), np.float32), 3, "uint8", 8),
    (np.zeros((40, 6, 3), np.uint8), 3, "uint8", 8),
    (np.full((40, 40, 1), np.nan, np.float32), 1, "float32", 8),
])  # fmt: skip
def test_what_does_not_fit_is_refused_when_it_is_read(in_small_strips, image, channels, dtype, min_side):
    with pytest.raises(BadImage) as at_once:
        conform(image, channels, dtype, min_side)
    in_small_strips()
    with pytest.raises(BadImage) as in_strips:
        conformed(image, channels, dtype, min_side)
    assert str(in_strips.value) == str(at_once.value)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("have", "count"), [(1, 2), (2, 1), (4, 1)])
def test_a_reader_takes_at_most_two_and_a_half_times_the_image(tmp_path, have, count):
    """150 megapixels of grey, with alpha, and of RGBA, under a model of RGB: measured 2.02, 2.01 and 1.78 times."""
    write_png(tmp_path / "large.png", 10_000, 15_000, have)
    found = reading(tmp_path, "large.png", count=count)
    assert found["bad"] == [{}] * count
    assert found["bytes"] <= 2.5 * 150e6 * have


def test_more_pixels_than_pillow_takes_unasked(monkeypatch, tmp_path):
    """Pillow refuses above twice its own limit, which stays what it was."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    monkeypatch.setattr("openmae.data.decoding.pillow.MAX_PIXELS", 1000)
    data = png(picture("RGB"))  # 2,337 pixels
    for limit in (1000, 2336):
        with pytest.raises(BadImage, match=rf"limit is {limit} pixels \(--max-pixels\)"):
            decode(data, max_pixels=limit)
    assert decode(data, max_pixels=2337).shape == (41, 57, 3)
    assert Image.MAX_IMAGE_PIXELS == 500
    jpeg = io.BytesIO()
    picture("RGB").save(jpeg, "JPEG", exif=orientation(3))
    assert decode(jpeg.getvalue(), max_pixels=2337).shape == (41, 57, 3)
    monkeypatch.setattr(decoding, "_read_plain_jpeg", lambda *arguments: None)
    assert decode(jpeg.getvalue(), max_pixels=2337).shape == (41, 57, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(data, max_pixels=2337).shape == (41, 57, 3)
    assert Image.MAX_IMAGE_PIXELS is None


def test_a_tiff_that_is_read_from_its_open_file(tmp_path, monkeypatch):
    """The name of a folder's file is bytes, which tifffile does not take: none of 8 MB or more could be read."""
    pages = RNG.integers(0, 65536, (5, 50, 57), dtype=np.uint16)
    pytest.importorskip("tifffile").imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    monkeypatch.setattr("openmae.data.sources.folder.STREAMED_BYTES", 0)
    source = FolderSource(tmp_path, ["a.tif"])
    np.testing.assert_array_equal(source.read(0), pages.transpose(1, 2, 0))
    assert source.size(0) == (50, 57)


def test_the_largest_image_is_known_from_headers(tmp_path):
    """Decoded bytes count, as the file has them; what is damaged, or beyond the limit, does not."""
    folder = tmp_path / "data"
    folder.mkdir()
    tifffile = pytest.importorskip("tifffile")
    (folder / "a.png").write_bytes(png(picture("RGBA")))
    (folder / "b.png").write_bytes(deep_png(3))
    (folder / "broken.png").write_bytes(b"no image")
    write_png(folder / "beyond.png", 2000, 2000, 1)
    files = ["a.png", "b.png", "broken.png", "beyond.png"]
    limit = 1_000_000

    def largest(*more, **options):
        return largest_image(FolderSource(folder, [*files, *more], max_pixels=limit), **options)

    assert largest() == (41, 57, 3, 41 * 57 * 3 * 2, 4, 4)
    np.save(folder / "c.npy", np.zeros((41, 57, 2), np.float32))
    assert largest("c.npy") == (41, 57, 2, 41 * 57 * 2 * 4, 5, 5)
    tifffile.imwrite(folder / "d.tif", np.zeros((5, 50, 57), np.uint16), photometric="minisblack")
    assert largest("c.npy", "d.tif") == (50, 57, 5, 50 * 57 * 5 * 2, 6, 6)
    assert largest("c.npy", "d.tif", max_headers=3).num_seen == 3
    part = split_held_out(FolderSource(folder, files, max_pixels=limit), 1)[0]
    assert largest_image(part).num_images == 4


def test_files_of_which_parts_are_read_alone_are_not_the_largest(tmp_path, monkeypatch):
    """But where images are read whole they are."""
    monkeypatch.setattr("openmae.data.sources.folder.LARGE_PIXELS", 0)
    monkeypatch.setattr("openmae.data.decoding.regions.LARGE_PIXELS", 0)
    np.save(tmp_path / "a.npy", np.zeros((90, 90, 3), np.uint8))
    source = FolderSource(tmp_path, ["a.npy"])
    assert largest_image(source) is None
    (tmp_path / "b.png").write_bytes(png(picture("RGB")))
    source = FolderSource(tmp_path, ["a.npy", "b.png"])
    assert largest_image(source)[:3] == (41, 57, 3)
    assert largest_image(source, is_cropped=False)[:3] == (90, 90, 3)


def test_headers_alone_are_read(tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", 10_000, 10_000, 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert largest_image(FolderSource(tmp_path, ["a.png"])).decoded_bytes == 100_000_000
