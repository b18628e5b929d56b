"""Data of segmentation: classes, splits, what is left out, and that a resumed run has the same."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from openmae.config import SplitPaths
from openmae.data.masks.open import open_segmentation, open_sources
from openmae.data.masks.pairs import find_pairs
from openmae.data.masks.survey import survey_masks
from openmae.errors import RequestError

from .made import mask, png, put_images, put_masks, put_pairs, write

COCO = Path(__file__).parents[4] / "shared" / "data" / "coco-sample"  # beside a checkout, where it is at hand


def opened(root, **options):
    data = root if isinstance(root, SplitPaths) else str(root)
    return open_segmentation(data, **({"background": 1.0, "max_pixels": 10**8, "threads": 2, "max_bad": 1} | options))


def names(source):
    return [source.name(i) for i in range(len(source))]


def refused(root, match, **options):
    with pytest.raises(RequestError, match=match) as caught:
        opened(root, **options)
    assert "\n" not in str(caught.value)


def text(tmp_path, content, name="names.txt"):
    write(tmp_path.parent / f"{tmp_path.name}_{name}", content.encode())
    return str(tmp_path.parent / f"{tmp_path.name}_{name}")


def test_classes_by_the_highest_value(tmp_path):
    put_pairs(tmp_path, "train/1", "train/2", values=(0, 1, 255))
    put_pairs(tmp_path, "val/1", values=(0, 4, 255))
    data = opened(tmp_path)
    assert data.classes == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert data.ignore_index == 255
    assert data.pixels.tolist() == [16, 16, 0, 0, 0]
    assert data.notes == (
        "5 classes from the highest value in the masks, 4 (--class-names FILE would say more); 2 of them in no mask "
        "(class 2, class 3)",
        "val has 1 class that no training mask has: class 4",
    )
    assert data.source_lines == (
        "parts      train from images/train and masks/train (2 images), val from images/val and masks/val (1 image)",
    )
    assert set(np.unique(data.train.labels(0))) == {-1, 0, 1}
    pickle.loads(pickle.dumps(data))


@pytest.mark.parametrize(
    ("values", "options", "ignore_index", "num_classes"),
    [
        ((0, 1, 65535), {}, 65535, 2),
        ((*range(0, 400, 2), 255), {}, 65535, 399),
        ((*range(0, 400, 2), 65535), {}, 65535, 399),
        ((0, 1, 30), {"ignore_index": 1}, 1, 31),
        (tuple(range(256)), {"ignore_index": -1}, None, 256),
        ((0, 1, 2, 255), {"reduce_zero_label": True}, 255, 2),
    ],
)
def test_the_ignored_value(tmp_path, values, options, ignore_index, num_classes):
    put_images(tmp_path, "images/1.png", "images/2.png", size=(20, 20))
    put_masks(tmp_path, "masks/1.png", "masks/2.png", values=values, size=(20, 20))
    data = opened(tmp_path, **options)
    assert data.ignore_index == ignore_index
    assert data.num_classes == num_classes
    assert data.pixels.sum() == np.sum([(data.train.labels(i) >= 0).sum() for i in range(len(data.train))])
    assert (ignore_index == 65535) == any("65535" in note for note in data.notes)


SHADES = {
    "grey": ([[0, 128]], "of the numbers 0 to 128 the masks hold only 2 \\(0, 128\\): "),
    "nearly white": ([[0, 254]], "of the numbers 0 to 254 the masks hold only 2 \\(0, 254\\): "),
    "greys": ([[0, 38, 75, 113, 128, 255]], "of the numbers 0 to 128 the masks hold only 5 \\(0, 38, 75"),
    "soft edges": ([[0] * 3000 + [255] * 3000 + list(range(256))], r"hold 255 values \(0, 1, 2, 3, 4, … 254\), but"),
}


@pytest.mark.parametrize("case", SHADES)
def test_shades_are_no_classes(tmp_path, case):
    values, message = SHADES[case]
    stored = np.array(values, np.uint8)
    for name in ("1", "2"):
        put_images(tmp_path, f"images/{name}.png", size=stored.shape)
        write(tmp_path / f"masks/{name}.png", png(stored))
    refused(tmp_path, f"{message}.*--class-names FILE .* id,name .*--palette FILE")
    found = sorted(set(stored.ravel().tolist()) - {255})
    data = opened(tmp_path, class_names=text(tmp_path, "".join(f"{value},name {value}\n" for value in found)))
    assert data.num_classes == found[-1] + 1


def test_black_and_white_without_an_ignored_value(tmp_path):
    put_pairs(tmp_path, "1", "2", values=(0, 255))
    refused(tmp_path, r"of the numbers 0 to 255 the masks hold only 2 \(0, 255\)", ignore_index=-1)


def test_many_numbers_with_gaps_are_classes(tmp_path):
    """COCO's stuff: ids to 200, of which a part of the data holds 130. And few numbers however sparse."""
    chosen = (0, 200, *np.random.default_rng(0).choice(np.arange(1, 200), 128, replace=False).tolist())
    for name, values in (("stuff", chosen), ("voc", (0, 20, 255))):
        put_images(tmp_path / name, "images/1.png", "images/2.png", size=(12, 12))
        put_masks(tmp_path / name, "masks/1.png", "masks/2.png", values=values, size=(12, 12))
    assert opened(tmp_path / "stuff").num_classes == 201
    assert opened(tmp_path / "voc").num_classes == 21


def test_more_classes_than_a_model_has(tmp_path):
    """Labels of crops are int16: as one, 40000 would be −25536."""
    put_pairs(tmp_path, "1", "2", values=(0, 40000))
    refused(
        tmp_path,
        "--class-names numbers a class 40000: the highest that a model can have is 32766",
        class_names=text(tmp_path, "0,a\n40000,b\n"),
    )


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_bad_pairs_are_limited_in_every_split(tmp_path, split):
    put_pairs(tmp_path, *(f"{part}/{i}" for part in ("train", "val", "test") for i in range(4)))
    write(tmp_path / f"masks/{split}/2.png", b"x")
    message = rf"1 of 4 pairs of {split} in .*, the first images/{split}/2.jpg \(mask: .*\): more than --max-bad 0.01; "
    refused(tmp_path, message, max_bad=None)
    refused(tmp_path, "more than --max-bad 0.2", max_bad=0.2)
    assert list(opened(tmp_path, max_bad=0.25).bad) == [split]


class Ranks:
    """Two processes, one after the other: the first leaves what it gathers to the second."""

    def __init__(self, rank, left):
        self.rank, self.left, self.local_count = rank, left, 2

    def share(self, count):
        return range(count // 2) if self.rank == 0 else range(count // 2, count)

    def gather(self, value):
        self.left.append(value)
        return self.left[-2:]


def test_processes_survey_their_shares_and_get_the_whole(tmp_path):
    put_pairs(tmp_path, *map(str, range(9)), values=(0, 1, 2))
    write(tmp_path / "masks/7.png", b"x")
    alone, left = opened(tmp_path), []
    first, source = find_pairs(str(tmp_path)), {"background": 1.0, "max_pixels": 10**6}
    sources = open_sources(first, None, source, None, None)
    survey_masks(sources["train"], 1, Ranks(0, left))
    assert len(left[0]) == 4
    together = opened(tmp_path, processes=Ranks(1, left))
    assert len(left[1]) == 5
    assert (together.bad, together.pixels.tolist()) == (alone.bad, alone.pixels.tolist())
    assert together.fingerprint == alone.fingerprint


def test_named_classes(tmp_path):
    put_pairs(tmp_path, "train/1", "train/2", "val/1", values=(0, 1, 3, 255))
    put_masks(tmp_path, "masks/train/2.png", values=(0, 1, 2, 9, 9))
    path = text(tmp_path, json.dumps({"0": "void", "1": "b", "3": "d", "4": "e"}), "names.json")
    data = opened(tmp_path, class_names=path)
    assert data.classes == ("void", "b", "class 2", "d", "e")
    assert names(data.train) == ["images/train/1.jpg"]
    assert data.bad == {"train": {"images/train/2.jpg": "mask: value 9 (9 pixels) and 1 other values in no class"}}
    assert data.notes == (
        "4 classes from --class-names; 1 numbers between them have no name; 1 of them in no mask (e)",
        "class 0 is learnt though it is called void: --reduce-zero-label ignores it and numbers the others from 0, "
        "--ignore-index 0 ignores it",
    )


@pytest.mark.parametrize(
    ("content", "classes", "note"),
    [
        ("a\nb\nc\n", ("a", "b", "c"), "names are of what remains: value 1 is a"),
        ("background\na\nb\nc\n", ("a", "b", "c"), "names are of stored values: value 1 is a"),
        ("1,a\n2,b\n3,c", ("a", "b", "c"), "names are of stored values: value 1 is a"),
    ],
)
def test_names_without_zero(tmp_path, content, classes, note):
    put_pairs(tmp_path, "1", "2", values=(0, 1, 2, 3))
    data = opened(tmp_path, class_names=text(tmp_path, content), reduce_zero_label=True)
    assert data.classes == classes
    assert any(note in line for line in data.notes)
    assert data.bad == {}
    assert set(np.unique(data.train.labels(0))) == {-1, 0, 1, 2}


def test_a_palette(tmp_path):
    put_images(tmp_path, "images/1.png", "images/2.png")
    colours = np.array([[0, 0, 0], [9, 9, 9], [1, 2, 3]], np.uint8)
    for name in "12":
        write(tmp_path / f"masks/{name}.png", png(colours[mask(0, 1, 2)]))
    path = text(tmp_path, "void 0 0 0\na 9 9 9\nb 1 2 3\n")
    data = opened(tmp_path, palette=path)
    assert data.classes == ("a", "b")
    assert data.ignore_index is None
    assert data.pixels.tolist() == [8, 8]
    assert set(np.unique(data.train.labels(0))) == {-1, 0, 1}
    refused(tmp_path, "give --palette FILE")
    refused(tmp_path, "names the classes, too", palette=path, class_names=path)
    refused(tmp_path, "--ignore-index is about numbers", palette=path, ignore_index=0)
    refused(tmp_path, "--reduce-zero-label is about numbers", palette=path, reduce_zero_label=True)


def test_splits(tmp_path):
    everything = [f"{split}/{i}" for split in ("train", "val", "test") for i in range(3)]
    put_pairs(tmp_path / "three", *everything)
    data = opened(tmp_path / "three")
    assert (names(data.validation)[0], names(data.test)[0]) == ("images/val/0.jpg", "images/test/0.jpg")
    assert (data.final_split, data.is_validation_split, data.final_source) == ("test", False, data.test)
    assert list(data.origins) == ["train", "val", "test"]
    refused(tmp_path / "three", "has a val part: leave it out", held_out=1)
    put_pairs(tmp_path / "two", *everything[:6])
    data = opened(tmp_path / "two")
    assert (data.final_split, data.validation, len(data.parts), data.held_out_names()) == ("val", None, 2, [])
    data = opened(tmp_path / "two", held_out=1)
    assert (data.final_split, data.is_validation_split, len(data.train)) == ("val", True, 2)
    assert data.held_out_names() == names(data.validation)
    refused(tmp_path / "two", "one must be left", held_out=3)


def test_holding_out(tmp_path):
    put_pairs(tmp_path, *map(str, range(20)))
    data = opened(tmp_path)
    assert (len(data.train), len(data.test), data.validation) == (16, 4, None)
    assert (data.final_split, data.is_validation_split) == ("split of train", True)
    assert data.held_out_names() == names(data.test) == sorted(names(data.test))
    assert set(names(data.train)).isdisjoint(names(data.test))
    assert names(opened(tmp_path).test) == names(data.test)
    assert names(opened(tmp_path, seed_of_split=1).test) != names(data.test)
    assert len(opened(tmp_path, held_out=7).test) == 7
    refused(tmp_path, "leaves nothing to measure on", held_out=0)
    refused(tmp_path, "one must be left", held_out=20)


def test_a_resumed_run_has_the_same_data_without_a_survey(tmp_path, monkeypatch):
    put_pairs(tmp_path, *map(str, range(8)), values=(0, 1, 2, 7))
    write(tmp_path / "masks/3.png", b"broken")
    path = text(tmp_path, "0,a\n1,b\n2,c\n7,d\n")
    first = opened(tmp_path, class_names=path, ignore_index=2)
    monkeypatch.setattr("openmae.data.masks.open.survey_masks", None)
    Path(path).unlink()
    again = opened(
        tmp_path,
        class_names=path,
        ignore_index=2,
        known_classes=first.classes,
        known_ignore_index=first.ignore_index,
        known_bad=json.loads(json.dumps(first.bad)),
    )
    assert again.bad == first.bad == {"train": {"images/3.jpg": "mask: not an image where a PNG is expected"}}
    assert again.fingerprint == first.fingerprint
    assert again.pixels is None
    for part, same in zip(again.parts, first.parts, strict=True):
        assert names(part) == names(same)
        np.testing.assert_array_equal(part.labels(0), same.labels(0))


def test_refusals(tmp_path):
    put_pairs(tmp_path / "one", "1", "2", values=(1,))
    refused(tmp_path / "one", r"are class 1 or ignored \(value 255\): at least two classes are needed$")
    put_pairs(tmp_path / "ignored", "1", "2", values=(255,))
    refused(tmp_path / "ignored", r"all pixels of all masks are ignored \(value 255\)")
    put_pairs(tmp_path / "black", "1", "2", values=(0, 255))
    refused(tmp_path / "black", "black and white pictures, give a --palette FILE with the lines 0 0 0")
    put_pairs(tmp_path / "many", "1", "2", values=(0, 1, 2000))
    refused(tmp_path / "many", "the highest value in the masks is 2000: so many classes need --class-names FILE")
    put_pairs(tmp_path / "single", "1")
    refused(tmp_path / "single", "1 training image with masks and none to measure on")
    put_pairs(tmp_path / "broken", "train/1", "train/2", "val/1")
    write(tmp_path / "broken/masks/val/1.png", b"x")
    refused(tmp_path / "broken", "none of the 1 masks of val in .* can be used: images/val/1.jpg: mask: not an image")
    refused(tmp_path / "broken", "--class-names .* cannot be read", class_names=str(tmp_path / "none"))
    refused(tmp_path / "broken", "--palette .* cannot be read", palette=str(tmp_path / "none"))
    refused(tmp_path / "broken", "--ignore-index 70000: expected 0 to 65535", ignore_index=70000)
    names_file = text(tmp_path, "1,a\n2,b\n")
    refused(tmp_path / "one" / ".." / "single", r"value 0 \(8 pixels\) in no class", class_names=names_file)


@pytest.mark.timeout(60)
@pytest.mark.skipif(not COCO.exists(), reason="this data is not here")
def test_real_masks():
    data = opened(COCO, class_names=str(COCO / "semantic_classes.json"), reduce_zero_label=True)
    assert (len(data.train), len(data.test), data.final_split, data.bad) == (100, 100, "val", {})
    assert data.num_classes == 200
    assert (data.classes[0], data.classes[199]) == ("person", "rug-merged")
    labels = [data.train.labels(i) for i in range(len(data.train))]
    assert all(of_image.shape == data.train.read(i).shape[:2] for i, of_image in enumerate(labels[:5]))
    counts = np.bincount(np.concatenate([of_image.ravel() for of_image in labels]) + 1, minlength=201)
    np.testing.assert_array_equal(data.pixels, counts[1:])


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_whose_pixels_are_all_ignored_is_refused_before_anything_is_trained(tmp_path, split):
    put_pairs(tmp_path, "train/1", "train/2", values=(0, 1, 255))
    put_pairs(tmp_path, f"{split}/1", values=(255, 255, 255))
    refused(tmp_path, f"all pixels of the masks of {split} in .* are ignored")


def test_a_held_out_split_without_labels_is_refused(tmp_path):
    put_pairs(tmp_path, *(f"train/{i}" for i in range(6)), values=(0, 1, 255))
    held_out = opened(tmp_path, held_out=1).held_out_names()[0]
    put_pairs(tmp_path, held_out.removeprefix("images/").rpartition(".")[0], values=(255, 255, 255))
    refused(tmp_path, "all pixels of the masks of the split of train in .* are ignored", held_out=1)
