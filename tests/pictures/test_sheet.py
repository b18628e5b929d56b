"""Sheets and curves: the right size, the right pixels, any number of channels."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from openmae.errors import Fault
from openmae.pictures.sheet import BACKGROUND, CELL, GAP, LINE, loss_curve, sheet, to_picture, wrapped

HEADERS = ["masked", "reconstruction", "truth"]
HEADER = 8 + LINE  # one line of it


def rows(count, channels=3, size=(8, 8)):
    return [[torch.full((channels, *size), 0.25 * column) for column in range(3)] for _ in range(count)]


@pytest.mark.parametrize(
    ("count", "blocks", "across", "down"), [(1, 1, 1, 1), (4, 1, 1, 4), (5, 2, 2, 3), (1, 2, 1, 1), (6, 3, 3, 2)]
)
def test_a_sheet_holds_all_rows(count, blocks, across, down):
    picture = sheet(rows(count), HEADERS, blocks)
    assert picture.size == (across * (3 * (CELL + GAP) + 2 * GAP), HEADER + down * (CELL + GAP) + GAP)


def test_images_stand_under_their_headers():
    picture = sheet(rows(1), HEADERS)
    for column, value in enumerate((0, 64, 128)):
        left = GAP + column * (CELL + GAP)
        assert picture.getpixel((left, HEADER)) == (value,) * 3
        assert picture.getpixel((left + CELL - 1, HEADER + CELL - 1)) == (value,) * 3
        assert picture.getpixel((left + CELL, HEADER)) == BACKGROUND
    assert len(picture.crop((0, 0, CELL, HEADER)).getcolors()) > 1  # the header's letters


def test_images_that_are_not_square_keep_their_form():
    width, height = sheet(rows(1, size=(80, 160)), HEADERS).size
    assert (width, height) == (3 * (160 + GAP) + 2 * GAP, HEADER + 80 + 2 * GAP)
    assert sheet(rows(1, size=(300, 300)), HEADERS).size[1] == HEADER + 300 + 2 * GAP  # never made smaller


@pytest.mark.parametrize(
    ("channels", "wanted"), [(1, (10, 10, 10)), (2, (10, 10, 10)), (3, (10, 20, 30)), (5, (10, 20, 30))]
)
def test_any_number_of_channels_becomes_a_picture(channels, wanted):
    image = torch.arange(1, channels + 1).view(-1, 1, 1).expand(-1, 2, 3) * 10 / 255
    picture = to_picture(image)
    assert (picture.mode, picture.size) == ("RGB", (3, 2))
    assert picture.getpixel((2, 1)) == wanted


def test_values_outside_are_clipped():
    values = np.asarray(to_picture(torch.tensor([[[-1.0, 0.5, 2.0]]])))
    assert values[0, :, 0].tolist() == [0, 128, 255]


def test_a_long_header_is_broken_and_never_cut():
    font, text = ImageFont.load_default(13), "a header far too long for its column"
    assert wrapped("short", font, 100) == ["short"]
    lines = wrapped(text, font, 100)
    assert len(lines) > 1
    assert " ".join(lines) == text
    assert all(font.getlength(line) <= 100 for line in lines)
    taller = sheet(rows(1), [*HEADERS[:2], "LEAKS: the true statistics of each patch"])
    assert taller.size[1] == sheet(rows(1), HEADERS).size[1] + LINE


LINES = [
    {"images_seen": 16, "loss": 1.0},
    {"images_seen": 16, "held_out_loss": 1.1},
    {"images_seen": 32, "loss": 0.1},
]


@pytest.mark.parametrize("lines", [[], LINES[:1], LINES], ids=["none", "one", "all"])
def test_a_loss_curve_is_a_png(tmp_path, lines):
    path = tmp_path / "loss.png"
    loss_curve(path, lines, "a run")
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (840, 480))


def test_a_curve_that_cannot_be_written_is_a_fault(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Fault, match="was not saved"):
        loss_curve(tmp_path / "file" / "loss.png", LINES, "a run")
