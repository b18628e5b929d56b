"""Palettes in the forms that are about, and what is no palette."""

import numpy as np
import pytest

from openmae.data.decoding.decode import BadImage
from openmae.data.masks.palette import IGNORED, Palette, read_palette
from openmae.errors import RequestError

CAMVID = "64 128 64\tAnimal\n192 0 128\t\tArchway\n0 0 0\tVoid\n192 192 0\tWall\n"


def read(tmp_path, text):
    path = tmp_path / "colours.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_palette(str(path))


@pytest.mark.parametrize(
    "text",
    [
        CAMVID,
        "name,r,g,b\nAnimal,64,128,64\nArchway,192,0,128\nVOID,0,0,0\nWall,192,192,0\n",
        '\ufeff"name", "r", "g", "b"\n"Animal", 64, 128, 64\nArchway, 192, 0, 128\nunlabeled, 0, 0, 0\nWall,192,192,0',
        "# colours\n\nAnimal 64 128 64\r\nArchway\t192\t0\t128\nUnlabelled 0 0 0\nWall 192 192 0",
        "64;128;64;Animal\n192;0;128;Archway\n0;0;0;ignore\n192;192;0;Wall",
    ],
)
def test_forms(tmp_path, text):
    """An ignored colour takes no class number, wherever it stands."""
    palette = read(tmp_path, text)
    assert palette.names == ("Animal", "Archway", "Wall")
    assert palette.colours == ((64, 128, 64), (192, 0, 128), (192, 192, 0))
    assert palette.ignored == ((0, 0, 0),)


def test_names_of_several_words_and_with_digits(tmp_path):
    palette = read(tmp_path, "1 2 3 traffic light 2\nlane 4 7 8 9\nvoid 0 0 0\nignore 1 1 1\n")
    assert palette.names == ("traffic light 2", "lane 4")
    assert palette.ignored == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no classes"),
        ("name,r,g,b\n", "lists no classes"),
        ("void 0 0 0\n", "lists no classes"),
        ("a 1 2 3\nb 1 2 3\n", "line 2: 1 2 3 is the colour of line 1 too"),
        ("a 1 2 3\nvoid 1 2 3\n", "line 2: 1 2 3 is the colour of line 1 too"),
        ("a 1 2 3\na 3 2 1\n", "line 2: a is listed before with another colour"),
        ("a 1 2 3\nb 1 2 256\n", "line 2: got b 1 2 256, expected three numbers from 0 to 255"),
        ("a 1 2 3\nb 1 2\n", "line 2: got b 1 2"),
        ("a 1.5 2 3\n", "line 1: got a 1.5"),
        ("a 1 -2 3\n", "line 1: got"),
        ("a 1 2 3\nroad\n", "line 2: got road"),
        ("0,road,1,2,3\n", "line 1: got 0,road,1,2,3"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_refusals(tmp_path, text, message):
    with pytest.raises(RequestError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        read_palette(str(tmp_path / "none"))
    with pytest.raises(RequestError, match="is no file"):
        read_palette(str(tmp_path))


def test_every_colour_is_told_apart():
    """Colours that differ in one channel only, and those of the ends of the table."""
    colours = tuple((r, g, b) for r in (0, 1, 255) for g in (0, 254, 255) for b in (0, 7, 255))
    palette = Palette(names=tuple(map(str, colours[1:])), colours=colours[1:], ignored=colours[:1])
    ids = palette.ids_of(np.array([colours], np.uint8))
    np.testing.assert_array_equal(ids, [[IGNORED, *range(26)]])
    for unlisted in ((0, 0, 1), (255, 255, 254), (2, 0, 0)):
        with pytest.raises(BadImage, match="not in --palette"):
            palette.ids_of(np.array([[unlisted]], np.uint8))


def test_a_palette_of_equal_colours_is_refused():
    with pytest.raises(RequestError, match="two classes have one colour"):
        Palette(names=("a", "b"), colours=((1, 1, 1), (1, 1, 1)))
