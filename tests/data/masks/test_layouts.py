"""Where images and masks of each split are found, and what is left out."""

import os

import pytest

from openmae.config import SplitPaths
from openmae.data.masks.pairs import find_pairs
from openmae.errors import RequestError

from .made import mask, png, put_images, put_masks, put_pairs, write


def pairs(data):
    """By split: (image, mask) paths."""
    found = find_pairs(data if isinstance(data, SplitPaths) else str(data))
    return {
        split: [(os.fsdecode(i), os.fsdecode(m)) for i, m in zip(part.images, part.masks, strict=True)]
        for split, part in found.parts.items()
    }


def notes(data):
    return find_pairs(data if isinstance(data, SplitPaths) else str(data)).notes


def refused(data, *parts):
    with pytest.raises(RequestError) as caught:
        find_pairs(data if isinstance(data, SplitPaths) else str(data))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("masks", ["masks", "annotations", "labels", "semantic", "Masks"])
@pytest.mark.parametrize("train", ["train", "training"])
def test_splits_below_kinds(tmp_path, masks, train):
    put_pairs(tmp_path, f"{train}/1", f"{train}/deep/2", "validation/3", masks=masks)
    assert pairs(tmp_path) == {
        "train": [(f"images/{train}/{n}.jpg", f"{masks}/{train}/{n}.png") for n in ("1", "deep/2")],
        "val": [("images/validation/3.jpg", f"{masks}/validation/3.png")],
    }


def test_splits_above_kinds(tmp_path):
    for split in ("train", "val", "test"):
        put_pairs(tmp_path / split, "1")
    assert pairs(tmp_path) == {
        split: [(f"{split}/images/1.jpg", f"{split}/masks/1.png")] for split in ("train", "val", "test")
    }


@pytest.mark.parametrize("suffix", ["annot", "_labels", "_masks", "-annotations"])
def test_masks_beside_splits(tmp_path, suffix):
    for split in ("train", "val", "test"):
        put_pairs(tmp_path, "1", "2", images=split, masks=split + suffix)
    write(tmp_path / "class_dict.csv", b"name,r,g,b\n")
    assert pairs(tmp_path) == {
        split: [(f"{split}/{n}.jpg", f"{split}{suffix}/{n}.png") for n in "12"] for split in ("train", "val", "test")
    }


def test_no_split_and_folders_around(tmp_path):
    put_pairs(tmp_path / "data/set", "1", "a b/ü")
    write(tmp_path / "data/set/annotations.json", b"{}")
    expected = [("images/1.jpg", "masks/1.png"), ("images/a b/ü.jpg", "masks/a b/ü.png")]
    assert pairs(tmp_path) == {"train": [tuple(f"data/set/{name}" for name in pair) for pair in expected]}
    assert pairs(tmp_path / "data/set") == {"train": expected}


def test_split_names_of_kinds_may_differ(tmp_path):
    put_images(tmp_path, "images/training/1.jpg", "images/validation/2.jpg")
    put_masks(tmp_path, "annotations/train/1.png", "annotations/val/2.png")
    assert {split: len(of) for split, of in pairs(tmp_path).items()} == {"train": 1, "val": 1}


def test_several_folders_of_one_split(tmp_path):
    """Equal names in them are not mixed up; 1 is in both."""
    put_pairs(tmp_path / "below", "train_a/1", "train_b/1", "val/1")
    assert pairs(tmp_path / "below")["train"] == [(f"images/train_{n}/1.jpg", f"masks/train_{n}/1.png") for n in "ab"]
    for name in ("train", "train_2"):
        put_pairs(tmp_path / "beside", "1", images=name, masks=name + "annot")
        put_pairs(tmp_path / "above" / name, "1")
    assert pairs(tmp_path / "beside")["train"] == [(f"{n}/1.jpg", f"{n}annot/1.png") for n in ("train", "train_2")]
    assert pairs(tmp_path / "above")["train"] == [
        (f"{n}/images/1.jpg", f"{n}/masks/1.png") for n in ("train", "train_2")
    ]


def test_paths_for_each_split(tmp_path):
    put_pairs(tmp_path / "one", "1")
    put_pairs(tmp_path / "two/x", "1", masks="labels")
    data = SplitPaths(train=str(tmp_path / "one"), test=str(tmp_path / "two"))
    assert pairs(data) == {
        "train": [("one/images/1.jpg", "one/masks/1.png")],
        "test": [("two/x/images/1.jpg", "two/x/labels/1.png")],
    }
    put_images(tmp_path / "three", "1.jpg")
    refused(SplitPaths(train=str(tmp_path / "three")), "no masks beside images in --train", "put them in images/ and")
    put_pairs(tmp_path / "four", "train/1", "val/1")
    refused(SplitPaths(train=str(tmp_path / "four")), "--train", "holds train and val")


def test_cases_of_extensions_and_surrogate_names(tmp_path):
    put_images(tmp_path, "images/1.JPG", "images/2.jpeg", "images/3.PNG")
    put_masks(tmp_path, "masks/1.PNG", "masks/2.png", "masks/3.Png")
    for folder in ("images", "masks"):
        write(tmp_path / folder / os.fsdecode(b"\xff.png"), png(mask(0, 1)))
    assert pairs(tmp_path)["train"] == [
        ("images/1.JPG", "masks/1.PNG"),
        ("images/2.jpeg", "masks/2.png"),
        ("images/3.PNG", "masks/3.Png"),
        ("images/\udcff.png", "masks/\udcff.png"),
    ]


def test_what_has_no_partner_is_named(tmp_path):
    put_pairs(tmp_path, "train/1", "val/1")
    put_images(tmp_path, "images/train/2.jpg", "images/train/3.jpg")
    put_masks(tmp_path, "masks/val/9.png")
    put_images(tmp_path, "previews/1.jpg")
    assert {split: len(of) for split, of in pairs(tmp_path).items()} == {"train": 1, "val": 1}
    assert notes(tmp_path) == (
        f"left alone in {tmp_path}: previews (1 images)",
        "train: 2 images have no mask (images/train/2.jpg, images/train/3.jpg); left out",
        "val: 1 mask has no image (masks/val/9.png); left out",
    )


@pytest.mark.parametrize("layout", ["below", "above", "bare", "beside"])
def test_a_test_split_without_masks_is_left_out(tmp_path, layout):
    if layout == "beside":
        put_pairs(tmp_path, "1", images="train", masks="trainannot")
        put_images(tmp_path, "test/2.jpg")
    elif layout == "below":
        put_pairs(tmp_path, "train/1")
        put_images(tmp_path, "images/test/2.jpg")
    else:
        put_pairs(tmp_path / "train", "1")
        put_images(tmp_path, "test/images/2.jpg" if layout == "above" else "test/2.jpg")
    assert list(pairs(tmp_path)) == ["train"]
    (note,) = notes(tmp_path)
    assert note.startswith("test has no masks (1 images in ")


def test_two_files_of_one_name(tmp_path):
    put_pairs(tmp_path, "1")
    put_masks(tmp_path, "masks/1.bmp.png")
    write(tmp_path / "masks/1.jpg", b"a preview")
    assert pairs(tmp_path) == {"train": [("images/1.jpg", "masks/1.png")]}  # the only PNG
    put_images(tmp_path, "images/1.png")
    refused(tmp_path, "images/1.jpg and images/1.png in ", "are images for one mask, masks/1.png")
    os.remove(tmp_path / "images/1.png")
    put_masks(tmp_path, "masks/1.PNG")
    refused(tmp_path, "masks/1.PNG and masks/1.png in ", "are masks for one image, images/1.jpg")


@pytest.mark.parametrize(
    "names",
    [
        ["1.jpg"],
        ["images/1.jpg"],
        ["images/train/1.jpg", "images/val/1.jpg"],
        ["train/1.jpg", "val/2.jpg"],
        ["cats/1.jpg", "dogs/1.jpg"],
        ["masks/1.png"],
    ],
)
def test_no_masks_at_all(tmp_path, names):
    put_images(tmp_path, *names)
    refused(tmp_path, f"no masks beside images in {tmp_path}", "images/ and masks/ (or annotations/", "trainannot")


def test_other_refusals(tmp_path):
    put_pairs(tmp_path / "no_train", "val/1", "test/1")
    refused(tmp_path / "no_train", "no train images with masks", "which has val and test")
    put_images(tmp_path / "apart", "images/1.jpg")
    put_masks(tmp_path / "apart", "masks/2.png")
    refused(tmp_path / "apart", "no train images with masks", "masks/2.png")
    put_pairs(tmp_path / "both", "1")
    put_masks(tmp_path / "both", "labels/1.png")
    refused(tmp_path / "both", "holds labels and masks: leave one")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no images in", "found nothing")
    refused("embedded:photos", "have no masks")
    refused(tmp_path / "nowhere", "no such file or folder")
    write(tmp_path / "x.parquet", b"PAR1")
    refused(tmp_path / "x.parquet", "is a file: give a folder")


def test_linked_folders(tmp_path):
    put_pairs(tmp_path / "pool", "1")
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/masks").mkdir()
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            (tmp_path / "data" / kind / split).symlink_to(tmp_path / "pool" / kind)
    assert {split: len(of) for split, of in pairs(tmp_path / "data").items()} == {"train": 1, "val": 1}
    (warning,) = find_pairs(str(tmp_path / "data")).warnings
    assert warning.startswith("1 of 1 images of val are in train too")
