"""What `openmae inspect DATA` says of images with objects, against what opening them for training says."""

import pytest

import openmae
from openmae import InspectConfig
from openmae.errors import RequestError

from ...data.coco.made import annotation, listed, numbered, opened, put_images, write_one
from ...objects import write_coco


def inspected(path, **settings):
    return openmae.inspect(InspectConfig(path=str(path), **{"workers": 0, **settings}))


def test_objects_are_counted_by_class_and_size(objects, capsys):
    report = inspected(objects)
    found, data = report["objects"], opened(objects)
    assert [row["train"] for row in found["classes"]] == data.objects.tolist()
    assert [(row["id"], row["class"]) for row in found["classes"]] == [(3, "red"), (7, "green"), (11, "blue")]
    train = found["splits"]["train"]
    assert train["objects"] == sum(train["sizes"].values()) == data.objects.sum()
    assert (train["images"], train["without_objects"], found["splits"]["val"]["images"]) == (24, 1, 8)
    assert (train["sizes"]["large"], found["has_masks"], found["refusal"]) == (0, True, None)
    assert report["classes"] is None  # folders are no classes here
    assert found["command"] == f"openmae detect {objects} --init RUN --out OUT"
    printed = capsys.readouterr().out
    assert found["command"] in printed
    assert max(len(line) for line in printed.splitlines() if "openmae" not in line and str(objects) not in line) <= 100


def test_json_files_may_be_named_outright(objects, tmp_path):
    names = {split: str(objects / f"instances_{split}.json") for split in ("train", "val")}
    report = openmae.inspect(InspectConfig(**names, workers=0))
    assert [report["objects"]["splits"][split]["images"] for split in names] == [24, 8]
    put_images(tmp_path, "a.png")
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(RequestError, match=r"left alone: a.json \(is no JSON: line 1, column 2\)"):
        openmae.inspect(InspectConfig(train=str(tmp_path / "a.json"), workers=0))
    write_coco(tmp_path / "a.json", listed("c.png"), numbered([annotation(1)]))
    with pytest.raises(RequestError, match="none of the 1 images"):
        openmae.inspect(InspectConfig(train=str(tmp_path / "a.json"), workers=0))


def test_what_was_given_is_in_the_command(objects):
    found = inspected(objects, value_range=(0, 100), nodata=-9999)["objects"]
    assert found["command"] == f"openmae detect {objects} --init RUN --out OUT --value-range 0 100 --nodata -9999"


def test_what_would_be_dropped_or_refused_is_said(tmp_path, capsys):
    some = [annotation(1, (2, 3, 0, 8)), *(annotation(i) for i in (1, 2, 3))]
    folder = write_one(tmp_path, some)
    put_images(folder, "4.png", size=(9, 9))
    report = inspected(folder)
    train = report["objects"]["splits"]["train"]
    assert (train["unusable"], train["objects"]) == (1, 3)
    assert train["dropped_or_clipped"] == {"boxes without width or height, dropped": 1}
    assert "1 of 4 images of train" in report["objects"]["refusal"]
    assert report["objects"]["command"] is None
    assert any("openmae detect would refuse" in line for line in report["to_mend"])
    assert any("1 boxes without width or height, dropped" in line for line in report["to_mend"])
    assert "annotated at 20 x 30 pixels, but the file has 9 x 9" in str(train["named_unusable"])


def test_images_are_examined_where_no_annotation_fits(tmp_path):
    put_images(tmp_path, "a.png", "b.png")
    write_coco(tmp_path / "train.json", listed("c.png"), numbered([annotation(1)]))
    report = inspected(tmp_path)
    assert report["images"] == 2
    assert "none of the 1 images" in report["objects"]["refusal"]


def test_several_files_that_may_be_a_split_s_are_said(tmp_path, capsys):
    folder = write_one(tmp_path, [annotation(1)])
    (folder / "train_new.json").write_bytes((folder / "train.json").read_bytes())
    report = inspected(folder)
    assert report["images"] == 4
    assert "train.json and train_new.json may both be" in report["objects"]["refusal"]
    assert report["would_choose"], "what pre-training on the images would choose"
    printed = " ".join(capsys.readouterr().out.split())
    assert "objects cannot be used, see below" in printed
    assert "openmae detect would refuse: train.json and train_new.json" in printed


def test_too_few_images_to_hold_one_out_are_said(tmp_path):
    found = inspected(write_one(tmp_path, [annotation(1)], count=1))["objects"]
    assert "has 1 training image with annotations and none to measure on" in found["refusal"]
    assert found["command"] is None


def test_images_without_annotations_have_no_objects(tmp_path):
    put_images(tmp_path, "a.png", "b.png")
    assert inspected(tmp_path)["objects"] is None
