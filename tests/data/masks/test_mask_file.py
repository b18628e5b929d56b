"""Every kind of mask file gives the numbers that were written, or says why not."""

import io
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from openmae.data.decoding.decode import BadImage
from openmae.data.masks.mask_file import decode_mask
from openmae.data.masks.palette import IGNORED, Palette

from .made import encoded, indexed, mask, picture, png, raw_png

ROAD, SKY, VOID, GREY = (128, 64, 128), (70, 130, 180), (0, 0, 0), (255, 255, 255)
PALETTE = Palette(names=("road", "sky", "white"), colours=(ROAD, SKY, GREY), ignored=(VOID,))
SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def same(data, expected, palette=None):
    found = decode_mask(data, palette)
    assert found.dtype in ((np.uint8, np.uint16) if palette is None else (np.int16,))
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


@given(hnp.arrays(np.uint8, SIZES))
@settings(max_examples=30, deadline=None)
def test_numbers_of_8_bits_come_back(values):
    same(png(values), values)
    same(indexed(values), values)


@given(hnp.arrays(np.uint16, SIZES))
@settings(max_examples=30, deadline=None)
def test_numbers_of_16_bits_come_back(values):
    same(png(values), values)


@given(hnp.arrays(np.int64, SIZES, elements=st.integers(-1, 2)))
@settings(max_examples=30, deadline=None)
def test_colours_come_back_as_classes(ids):
    pixels = np.array([*PALETTE.colours, VOID], np.uint8)[ids]
    same(png(pixels), ids, PALETTE)
    opaque = np.concatenate([pixels, np.full((*ids.shape, 1), 255, np.uint8)], axis=2)
    same(png(opaque), ids, PALETTE)
    buffer = io.BytesIO()
    Image.fromarray(pixels).quantize(8, dither=Image.Dither.NONE).save(buffer, "PNG")
    same(buffer.getvalue(), ids, PALETTE)


@given(st.sampled_from([1, 2, 4]), st.sampled_from([0, 3]), st.lists(st.integers(0, 255), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_numbers_of_few_bits_are_not_spread(bits, colour_type, rows):
    """Pillow makes 85 of class 1 in grey of 2 bits."""
    per_byte = 8 // bits
    expected = [[row >> (8 - bits * (i + 1)) & (2**bits - 1) for i in range(per_byte)] for row in rows]
    data = raw_png([[row] for row in rows], per_byte, bits, colour_type)
    if colour_type == 3:  # a palette must come before the pixels
        end = 8 + 25
        colours = bytes(3 * 2**bits)
        chunk = len(colours).to_bytes(4) + b"PLTE" + colours + zlib.crc32(b"PLTE" + colours).to_bytes(4)
        data = data[:end] + chunk + data[end:]
    same(data, expected)


def test_one_bit_and_transparent_indices():
    values = np.array([[0, 1, 1], [1, 0, 0]])
    same(png(values.astype(bool)), values)
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(indexed(values)))
    image.save(buffer, "PNG", transparency=0)
    same(buffer.getvalue(), values)
    same(png(np.stack([values, np.full_like(values, 255)], axis=2).astype(np.uint8)), values)  # opaque grey and alpha


def test_black_and_white_by_a_palette():
    black_white = Palette(names=("ground", "cell"), colours=((0, 0, 0), (255, 255, 255)))
    same(png(np.array([[0, 255]], np.uint8)), [[0, 1]], black_white)
    same(png(np.array([[False, True]])), [[0, 1]], black_white)


def test_an_orientation_is_applied():
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    same(png(values, exif=exif), np.rot90(values, -1))


RGBA = np.full((2, 2, 4), 255, np.uint8)
CLEAR = np.zeros((2, 2, 4), np.uint8)
GREY_CLEAR = np.zeros((3, 2, 2), np.uint8)


@pytest.mark.parametrize(
    ("data", "palette", "reason"),
    [
        (encoded(mask(0, 1), "JPEG"), None, "a JPEG, whose compression invents class numbers at edges: save masks as"),
        (encoded(mask(0, 1), "TIFF"), None, "a TIFF where a PNG is expected"),
        (encoded(mask(0, 1), "BMP"), None, "a BMP where a PNG is expected"),
        (b"", None, "empty file"),
        (b"nonsense", None, "not an image where a PNG is expected"),
        (png(picture()), None, "colours, not class numbers: give --palette FILE"),
        (png(RGBA), None, "colours, not class numbers: give --palette FILE"),
        (png(CLEAR), PALETTE, "4 transparent pixels, whose class is unclear"),
        (png(GREY_CLEAR), None, "6 transparent pixels, whose class is unclear"),
        (png(np.full((2, 2, 3), 7, np.uint8)), PALETTE, r"colour 7 7 7 \(4 pixels\) not in --palette"),
        (
            png(np.array([[[1, 2, 3], [9, 9, 9], [9, 9, 9]]], np.uint8)),
            PALETTE,
            r"9 9 9 \(2 .* and 1 other colours not",
        ),
        (png(mask(300)), PALETTE, "16 bits, the colours of --palette have 8"),
        (raw_png([[0, 1, 255, 255]], 1, 16, 4), None, "16 bits with alpha"),
        (raw_png([[0] * 6], 1, 16, 2), None, "colours, not class numbers"),
        (png(mask(0, 1, size=(40, 60)))[:-40], None, "truncated|broken|OSError"),
        (png(mask(0, 1))[:30], None, "."),
        (raw_png([[0]], 1 << 20, 8), None, "limit|truncated|OSError"),
    ],
)
def test_refusals(data, palette, reason):
    with pytest.raises(BadImage, match=reason):
        decode_mask(data, palette)


def test_too_many_pixels_and_animations():
    with pytest.raises(BadImage, match=r"4 x 6 x 1 values, the limit is 23 pixels \(--max-pixels\)"):
        decode_mask(png(mask(0, 1)), max_pixels=23)
    with pytest.raises(BadImage, match=r"limit is \d+ pixels"):
        decode_mask(raw_png([[0]], 1 << 20, 8, height=1 << 20))
    buffer = io.BytesIO()
    frames = [Image.fromarray(mask(i, i + 1)) for i in range(2)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(BadImage, match="an animation"):
        decode_mask(buffer.getvalue())


@given(st.binary(max_size=60), st.integers(8, 60))
@settings(max_examples=60, deadline=None)
def test_damage_is_a_bad_image_and_nothing_else(noise, start):
    good = png(mask(0, 1, 2))
    data = good[:start] + noise + good[start + len(noise) :]
    reason = ""
    try:
        decode_mask(data)
    except BadImage as error:
        reason = str(error)
    assert "\n" not in reason


def test_a_palette_can_be_pickled_after_use():
    same(png(np.array([[ROAD]], np.uint8)), [[0]], PALETTE)
    same(png(np.array([[VOID]], np.uint8)), [[IGNORED]], pickle.loads(pickle.dumps(PALETTE)))
