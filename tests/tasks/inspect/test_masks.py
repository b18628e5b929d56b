"""What `openmae inspect DATA` says of images with masks, against known folders and what `openmae segment` opens."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

import openmae
from openmae import InspectConfig, RequestError
from openmae.cli import run as command
from openmae.data.masks.open import open_segmentation
from openmae.tasks.inspect.mask_screen import mask_lines
from openmae.tasks.inspect.screen import WIDTH

from ...data.masks.made import mask, png, put_images, put_masks, put_pairs, write
from ...shared import snapshot


def inspected(path, **settings):
    return openmae.inspect(InspectConfig(path=str(path), **{"workers": 0, **settings}))


@pytest.fixture
def faulty(tmp_path):
    """Seven pairs in train (one with a value of no class, one of another size, one unreadable), two in val; an image
    and a mask alone."""
    root = tmp_path / "faulty"
    put_pairs(root, *(f"train/{i}" for i in range(4)), values=(0, 0, 0, 1, 255))
    put_pairs(root, "val/8", "val/9", values=(0, 2))
    put_images(root, *(f"images/train/{name}.jpg" for name in ("beyond", "small", "torn", "alone")))
    put_masks(root, "masks/train/beyond.png", values=(0, 7))
    put_masks(root, "masks/train/small.png", size=(3, 3))
    write(root / "masks/train/torn.png", png(mask(0, 1))[:40])
    put_masks(root, "masks/train/widow.png")
    write(root / "names.txt", b"ground\nroad\nsky\nlake\n")
    return root


def test_pairs_and_values_are_counted_and_masks_are_no_images(faulty, capsys):
    found = inspected(faulty, class_names=str(faulty / "names.txt"))
    masks = found["masks"]
    assert (found["splits"]["train"]["images"], found["splits"]["val"]["images"]) == (7, 2)
    assert found["classes"] is None  # folders are no classes here
    train = masks["splits"]["train"]
    assert (train["pairs"], train["unusable"], masks["splits"]["val"]["unusable"]) == (7, 3, 0)
    assert [train[kind] for kind in ("wrong_size", "unreadable_mask", "of_no_class", "unreadable_image")] == [
        1,
        1,
        1,
        0,
    ]
    assert train["named_without_mask"] == ["images/train/alone.jpg"]
    assert train["named_without_image"] == ["masks/train/widow.png"]
    # Four masks of 24 pixels repeat 0 0 0 1 255, two 0 2, one 0 7.
    rows = {row["value"]: (row["meaning"], row["class"], row["pixels"], row["images"]) for row in masks["values"]}
    assert rows == {
        0: ("class", "ground", 4 * 15 + 2 * 12 + 12, 7),
        1: ("class", "road", 4 * 5, 4),
        255: ("ignored", None, 4 * 4, 4),
        2: ("class", "sky", 24, 2),
        7: ("no class", None, 12, 1),
    }
    assert [row["value"] for row in masks["values"]] == [0, 2, 1, 255, 7]
    assert sum(row["share"] for row in masks["values"]) == pytest.approx(1, abs=1e-5)
    assert masks["ignored_share"] == pytest.approx(16 / 168, abs=1e-6)
    assert (masks["values_of_no_class"], masks["absent"]) == ([7], ["lake"])
    assert masks["absent_in_train"] == {"val": ["sky"]}
    said = capsys.readouterr().out
    assert "What openmae pretrain would choose" not in said
    assert any("3 of 7 pairs of train cannot be used" in line and "would stop" in line for line in found["to_mend"])
    assert all(len(line) <= WIDTH or line.startswith("  openmae ") for line in said.splitlines())


def test_it_finds_what_segment_opens(faulty):
    names = str(faulty / "names.txt")
    opened = open_segmentation(str(faulty), class_names=names, background=1.0, max_pixels=10**6, threads=1, max_bad=1)
    masks = inspected(faulty, class_names=names)["masks"]
    assert masks["classes"] == list(opened.classes)
    assert masks["notes"] == list(opened.notes)
    assert {(entry["split"], entry["name"], entry["reason"]) for entry in masks["bad"]} == {
        (split, name, reason) for split, bad in opened.bad.items() for name, reason in bad.items()
    }
    assert masks["refusal"] is None


REFUSED = {
    "one class": ((0,), {}, "at least two classes are needed"),
    "all ignored": ((255,), {}, "ignored"),
    "too many classes": ((0, 9000), {}, "so many classes need --class-names"),
    "none usable": ((0, 5), {"class_names": "names.txt"}, "can be used"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_segment_would_refuse_is_said_in_its_words(tmp_path, case):
    values, settings, said = REFUSED[case]
    put_pairs(tmp_path, "a", "b", "c", values=values)
    write(tmp_path / "names.txt", b"ground\n")
    settings = {name: str(tmp_path / file) for name, file in settings.items()}
    with pytest.raises(RequestError, match=said) as refusal:
        open_segmentation(str(tmp_path), background=1.0, max_pixels=10**6, threads=1, **settings)
    found = inspected(tmp_path, **settings)
    assert found["masks"]["refusal"] == str(refusal.value)
    assert found["masks"]["command"] is None
    assert found["to_mend"][0] == f"openmae segment would refuse: {refusal.value}."
    assert found["images"] == 3


def test_the_command_is_taken_and_settings_are_those_given(tmp_path, capsys):
    put_pairs(tmp_path / "d a", "1", "2", "3", values=(0, 1, 2, 20))
    found = inspected(tmp_path / "d a", reduce_zero_label=True, ignore_index=200)
    words = shlex.split(found["masks"]["command"])
    assert words == [
        *("openmae", "segment", str(tmp_path / "d a"), "--init", "RUN", "--out", "OUT"),
        *("--ignore-index", "200", "--reduce-zero-label"),
    ]
    assert f"  {found['masks']['command']}\n" in capsys.readouterr().out
    assert [row["meaning"] for row in found["masks"]["values"]].count("ignored") == 1


def test_named_splits_and_a_limit(tmp_path):
    put_pairs(tmp_path / "one", *(str(i) for i in range(9)))
    put_pairs(tmp_path / "two", "a", "b")
    settings = {"train": str(tmp_path / "one"), "val": str(tmp_path / "two"), "limit": 4}
    found = openmae.inspect(InspectConfig(workers=0, **settings))
    splits = found["masks"]["splits"]
    assert {s: (facts["pairs"], facts["looked_at"]) for s, facts in splits.items()} == {"train": (9, 4), "val": (2, 2)}
    assert (found["images"], found["looked_at"]) == (11, 6)
    assert "--train" in found["masks"]["command"]


def test_colours_are_named_by_a_palette(tmp_path):
    put_images(tmp_path, "images/a.png", "images/b.png")
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0], pixels[1] = (9, 9, 9), (1, 2, 3)
    for name in ("a", "b"):
        write(tmp_path / f"masks/{name}.png", png(pixels))
    write(tmp_path / "palette.txt", b"0 0 0 ground\n1 2 3 road\n9 9 9 void\n")
    rows = inspected(tmp_path, palette=str(tmp_path / "palette.txt"))["masks"]["values"]
    assert [(row["class"], row["meaning"], row["pixels"]) for row in rows] == [
        ("ground", "class", 24),
        (None, "ignored", 12),
        ("road", "class", 12),
    ]


def test_the_folder_has_overlays_and_every_unusable_pair(faulty, tmp_path):
    before = snapshot(faulty)
    out = tmp_path / "look"
    inspected(faulty, class_names=str(faulty / "names.txt"), out=str(out))
    assert Image.open(out / "masks.png").height > 500
    bad = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert {entry["name"] for entry in bad} == {f"images/train/{name}.jpg" for name in ("beyond", "small", "torn")}
    assert json.loads((out / "inspect.json").read_text())["masks"]["pixels"] == 168
    assert snapshot(faulty) == before


def test_settings_of_masks_are_for_masks(tmp_path, capsys):
    put_images(tmp_path, "a.png", "b.png")
    write(tmp_path / "names.txt", b"a\nb\n")
    for flags in (["--class-names", str(tmp_path / "names.txt")], ["--reduce-zero-label"]):
        assert command(["inspect", str(tmp_path), *flags]) == 2
        assert f"{flags[0]} is for images with masks" in capsys.readouterr().err
    assert inspected(tmp_path)["masks"] is None


def test_a_table_of_many_values_is_short(capsys):
    rows = [
        {"value": i, "meaning": "class", "class": f"class {i}" * 9, "pixels": 9, "share": 0.02, "images": 1}
        for i in range(50)
    ]
    lines = mask_lines({"splits": {}, "notes": [], "bad": [], "values": rows})
    assert len(lines) < 22
    assert lines[-1].strip() == "and 34 more with 68.00% of all pixels"
    assert all(len(line) <= WIDTH for line in lines)
