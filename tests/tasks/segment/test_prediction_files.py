"""Mask files hold the classes' ids, whatever images are called; nothing is written outside the folder."""

import csv
import os
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from openmae.errors import Fault, RequestError
from openmae.pictures.class_colours import class_colours
from openmae.tasks.prediction.files import MAX_NAME_BYTES, prediction_paths, write_classes
from openmae.tasks.segment.prediction_files import mask_picture
from openmae.tasks.segment.prediction_files import write_prediction as write


def paths(*names):
    return [str(path) for path in prediction_paths(names)]


def made(num_classes, shape=(7, 11)):
    labels = np.random.default_rng(0).integers(0, num_classes, shape)
    labels.flat[:2] = 0, num_classes - 1
    return np.full((*shape, 3), 100, np.uint8), labels


@pytest.mark.parametrize(
    ("num_classes", "mode"), [(1, "P"), (2, "P"), (16, "P"), (150, "P"), (256, "P"), (257, "I;16"), (2**16, "I;16")]
)
def test_a_mask_read_by_pillow_gives_the_same_indices(tmp_path, num_classes, mode):
    image, labels = made(num_classes)
    write(tmp_path, PurePosixPath("a/b.c"), image, labels, num_classes)
    with Image.open(tmp_path / "masks" / "a" / "b.c.png") as mask:
        assert (mask.format, mask.mode, mask.size) == ("PNG", mode, (11, 7))
        assert (np.asarray(mask) == labels).all()
        if mode == "P":
            assert (np.asarray(mask.convert("RGB")) == class_colours(num_classes)[labels]).all()
    assert (tmp_path / "masks" / "a" / "b.c.png").read_bytes()[24] == (8 if mode == "P" else 16)  # bits, of IHDR
    with Image.open(tmp_path / "overlays" / "a" / "b.c.jpg") as overlay:
        assert (overlay.format, overlay.size) == ("JPEG", (11, 7))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2  # nothing unfinished is left


def test_what_no_mask_file_holds_is_refused():
    with pytest.raises(RequestError, match="65,537 classes"):
        mask_picture(np.zeros((2, 2), np.int64), 2**16 + 1)
    for label in (-1, 3):
        with pytest.raises(AssertionError):
            mask_picture(np.full((2, 2), label), 3)


def test_a_mask_that_cannot_be_written_is_a_fault(tmp_path):
    (tmp_path / "masks").write_text("no folder")
    with pytest.raises(Fault, match="was not saved"):
        write(tmp_path, PurePosixPath("a"), *made(3), 3)


def test_the_table_of_classes(tmp_path):
    write_classes(tmp_path, ("sky", "a,b"))
    with open(tmp_path / "classes.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["id", "name", "colour"], ["0", "sky", "#0000ff"], ["1", "a,b", "#00ff00"]]


def test_names_keep_their_folders_and_lose_the_extension_of_an_image():
    assert paths("val/a/1.jpg", "val/b/1.JPG", "v1.2", "x.tar.png") == ["val/a/1", "val/b/1", "v1.2", "x.tar"]
    assert paths("d.parquet#0", "d.parquet#1") == ["d.parquet#0", "d.parquet#1"]


def test_images_that_differ_in_extension_or_case_do_not_meet():
    assert paths("a.jpg", "a.png", "b.jpg") == ["a.jpg", "a.png", "b"]
    assert paths("a.jpg", "a.png", "a.jpg.tif") == ["a.jpg", "a.png", "a.jpg.tif"]
    assert paths("A.jpg", "a.png") == ["A.jpg", "a.png"]
    upper, lower = paths("a.JPG", "a.jpg")  # of a pack, read where file systems do not tell case
    assert upper.casefold() != lower.casefold()
    assert paths("x.jpg", "x.png/y.jpg") == ["x.jpg", "x.png/y"]
    assert paths("x.bmp", "x.jpg/y.jpg") == ["x.bmp", "x.jpg/y"]


@pytest.mark.parametrize(
    "name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "..", "/", ".", "", "a//b/./c.jpg", "n\0.jpg"]
)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    (path,) = prediction_paths([name])
    assert not path.is_absolute()
    assert ".." not in path.parts
    write(tmp_path / "out", path, *made(2), 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["masks", "overlays"]


@pytest.mark.parametrize("name", ["x" * 255, "猫" * 85, "\udcff" * 255, "a" * 251 + ".jpg", "\ud800.jpg"])
def test_names_as_long_as_a_file_system_takes_can_be_written(tmp_path, name):
    (path,) = prediction_paths([name])
    assert len(os.fsencode(path.name)) <= MAX_NAME_BYTES
    write(tmp_path, path, *made(2), 2)


PARTS = st.sampled_from(["a", "A", "a.png", "a.jpg", "a.jpg.png", "..", ".", "", "b", "B.png", "a.png.jpg"])


@given(st.sets(st.lists(PARTS, min_size=1, max_size=3).map("/".join), max_size=12).map(sorted))
def test_no_two_predictions_are_in_one_anothers_way(names):
    found = [str(path).casefold() for path in prediction_paths(names)]
    assert len(set(found)) == len(names)
    folders = {str(parent).casefold() for path in prediction_paths(names) for parent in path.parents}
    assert not folders & {path + end for path in found for end in (".png", ".jpg")}
