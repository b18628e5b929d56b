"""The tables of a detector's report by hand, and its pictures on hostile names."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from openmae.data.decoding.decode import BadImage
from openmae.errors import Fault, RequestError
from openmae.inference.detection.metrics import MeasuredImage
from openmae.inference.detection.result import DetectionPart, detection_metrics, merge_parts
from openmae.tasks.detect.report import detected_image, result_text, write_report

from ...inference.detection.objects_found import random_image
from ...inference.detection.test_detection_metrics import SQUARES, found_of, truth_of

CLASSES = ("s,ky", 'ro"ad', "new\nline")
NAMES = ("new\nline", "latin\udce9.jpg", "c")


def result(bad=None, classes=CLASSES, names=NAMES):
    truths = [truth_of(SQUARES[:2], [0, 1]), truth_of([SQUARES[0]], [0]), truth_of([])]
    founds = [
        found_of([SQUARES[0], SQUARES[3]], [0.9, 0.6], [0, 0]),
        found_of([SQUARES[0], SQUARES[1]], [0.8, 0.3], [0, 1]),
        found_of([], []),
    ]
    images = [
        MeasuredImage(index=k, name=name, size=(100, 100), truth=truth, found=found)
        for k, (name, truth, found) in enumerate(zip(names, truths, founds, strict=False))
    ]
    return merge_parts([DetectionPart(images=tuple(images), bad=bad or {})], classes, False)


def photograph(index):
    return np.full((50, 50, 3), 100, np.uint8)


def write(run, given, read=photograph):
    ids = [10 * image.index for image in given.images]
    write_report(run, given, read, "a run", image_ids=ids, category_ids=range(3, 3 + len(given.classes)))


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_by_hand(tmp_path):
    write(tmp_path, result(bad={"bad\n1": "truncated"}))
    assert table(tmp_path / "classes.csv") == [
        {"class": "s,ky", "objects": "2", "box_ap": "100.0000", "box_ap50": "100.0000"},
        {"class": 'ro"ad', "objects": "1", "box_ap": "0.0000", "box_ap50": "0.0000"},
        {"class": "new\nline", "objects": "0", "box_ap": "", "box_ap50": ""},
    ]
    rows = [tuple(row.values()) for row in table(tmp_path / "images.csv")]
    assert rows == [
        ("new\nline", "2", "1", "1", "1", "2", ""),
        ("latin\\udce9.jpg", "1", "1", "0", "0", "2", ""),
        ("c", "0", "0", "0", "0", "0", ""),
        ("bad\n1", "", "", "", "", "", "truncated"),
    ]
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert [(entry["image_id"], entry["category_id"]) for entry in predictions] == [(0, 3), (0, 3), (10, 3), (10, 4)]
    assert predictions[1]["bbox"] == [60, 0, 10, 10]
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {"detection.png", "worst.png", "precision_recall.png", "classes.png"}
    for name in pictures:
        with Image.open(tmp_path / "pictures" / name) as image:
            image.load()
            assert image.format == "PNG"


def test_only_the_images_shown_are_read_again_and_one_may_have_vanished(tmp_path):
    seen = []

    def reading(index):
        seen.append(index)
        if index == 1:
            raise BadImage("No such file or directory")
        return photograph(index)

    write(tmp_path, result(), reading)
    assert seen == [0, 1, 2, 0]  # all three; then the one that has something missed or false


def test_masks_and_many_classes(tmp_path):
    images = [random_image(np.random.default_rng(k), k, 90) for k in range(3)]
    given = merge_parts([DetectionPart(images=tuple(images), bad={})], tuple(f"class {k}" for k in range(90)), True)
    write(tmp_path, given)
    assert list(table(tmp_path / "classes.csv")[0]) == [
        *("class", "objects", "box_ap", "box_ap50", "mask_ap", "mask_ap50"),
    ]
    assert "segmentation" in json.loads((tmp_path / "predictions.json").read_text())[0]


def test_what_a_picture_shows():
    image = result().images[0]
    shown = detected_image(image, photograph(0))
    assert shown.truth.is_wrong.tolist() == [False, True]
    assert shown.prediction.is_wrong.tolist() == [False, True]
    assert len(detected_image(result().images[1], photograph(1)).prediction) == 1  # .3 is not likely


def test_the_result_in_a_line():
    found = detection_metrics(result(bad={"x": "truncated"}), "val_")
    assert result_text(found, "val", "val_") == (
        "box AP 50.0 %, AP50 50.0 % over 3 objects of 2 classes in 3 images of val, 1 more cannot be read"
    )
    one = {"box_ap": 100.0, "box_ap50": 100.0, "mask_ap": 9.96, "present_classes": 1, "objects": 1}
    assert (
        result_text(one | {"images": 1, "unreadable": 0}, "test")
        == "box AP 100.0 %, AP50 100.0 %, mask AP 10.0 % over 1 object of 1 class in 1 image of test"
    )


def test_nothing_to_report_is_refused_before_a_file_is_written(tmp_path):
    with pytest.raises(RequestError, match="no image"):
        write(tmp_path, result(names=()))
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_is_a_fault(tmp_path):
    (tmp_path / "run").write_text("no folder")
    with pytest.raises(Fault, match="was not saved"):
        write(tmp_path / "run", result())
