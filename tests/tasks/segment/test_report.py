"""The tables of a segmenter's report by hand, and its pictures on hostile names."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from openmae.data.decoding.decode import BadImage
from openmae.errors import Fault, RequestError
from openmae.inference.segmentation_metrics import ConfusionMatrix
from openmae.inference.segmentation_result import ImageScore, SegmentationResult, segmentation_metrics
from openmae.pictures.segmentation_sheet import SegmentedImage
from openmae.tasks.segment.report import result_text, write_report

TRUTH = [[[0, 0], [1, -1]], [[1, 1], [1, 1]], [[-1, -1], [-1, -1]]]
PREDICTION = [[[0, 1], [1, 2]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]]
CLASSES = ("s,ky", 'ro"ad', "new\nline")


def read(index):
    return SegmentedImage(
        image=np.full((2, 2, 3), 100, np.uint8),
        truth=np.array(TRUTH[index]),
        prediction=np.array(PREDICTION[index]),
    )


def result(names=("a.jpg", "b.jpg", "c.jpg"), classes=CLASSES, bad=None):
    matrix, images = ConfusionMatrix.empty(len(classes)), []
    for index, name in enumerate(names):
        content = read(index)
        own = ConfusionMatrix.count(torch.from_numpy(content.truth), torch.from_numpy(content.prediction), len(classes))
        matrix += own
        images.append(ImageScore.of(index, name, own))
    return SegmentationResult(matrix=matrix, images=tuple(images), bad=bad or {}, classes=classes)


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_by_hand(tmp_path):
    given = result(("new\nline", "latin\udce9.jpg", "c"), bad={"bad\n1": "truncated"})
    write_report(tmp_path, given, read, "a run")
    assert table(tmp_path / "classes.csv") == [
        {"class": "s,ky", "pixels": "2", "share": "28.5714", "iou": "25.0000", "accuracy": "50.0000"},
        {"class": 'ro"ad', "pixels": "5", "share": "71.4286", "iou": "50.0000", "accuracy": "60.0000"},
        {"class": "new\nline", "pixels": "0", "share": "0", "iou": "", "accuracy": ""},
    ]
    assert table(tmp_path / "confusion.csv") == [
        {"true class": "s,ky", "s,ky": "1", 'ro"ad': "1", "new\nline": "0"},
        {"true class": 'ro"ad', "s,ky": "2", 'ro"ad': "3", "new\nline": "0"},
        {"true class": "new\nline", "s,ky": "0", 'ro"ad': "0", "new\nline": "0"},
    ]
    assert table(tmp_path / "images.csv") == [
        {"name": "new\nline", "miou": "50.0000", "pixel_accuracy": "66.6667", "pixels": "3", "unreadable": ""},
        {"name": "latin\\udce9.jpg", "miou": "25.0000", "pixel_accuracy": "50.0000", "pixels": "4", "unreadable": ""},
        {"name": "c", "miou": "", "pixel_accuracy": "", "pixels": "0", "unreadable": ""},
        {"name": "bad\n1", "miou": "", "pixel_accuracy": "", "pixels": "", "unreadable": "truncated"},
    ]
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {"segmentation.png", "worst.png", "confusion.png", "classes.png"}
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
        return read(index)

    write_report(tmp_path, result(), reading, "t")
    # All three on the first sheet; on that of the worst those with pixels that count, the worst first.
    assert seen == [0, 1, 2, 1, 0]


def test_of_many_classes_the_most_frequent_are_drawn_and_all_are_in_the_tables(tmp_path):
    classes = tuple(f"class {k}" for k in range(300))
    write_report(tmp_path, result(classes=classes), read, "t")
    assert len(table(tmp_path / "classes.csv")) == len(table(tmp_path / "confusion.csv")) == 300
    with Image.open(tmp_path / "pictures" / "confusion.png") as image:
        assert max(image.size) < 1600


def test_the_result_in_a_line():
    found = segmentation_metrics(result(bad={"x": "truncated"}), "val_")
    assert result_text(found, "val", "val_") == (
        "mIoU 37.5 % over 2 classes that occur, pixel accuracy 57.1 % on 3 images of val, 1 more cannot be read"
    )
    one = {"miou": 100.0, "pixel_accuracy": 100.0, "present_classes": 1, "images": 1, "unreadable": 0}
    assert (
        result_text(one, "test") == "mIoU 100.0 % over 1 class that occurs, pixel accuracy 100.0 % on 1 image of test"
    )


def test_nothing_to_report_is_refused_before_a_file_is_written(tmp_path):
    with pytest.raises(RequestError, match="no image"):
        write_report(tmp_path, result(()), read, "t")
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_is_a_fault(tmp_path):
    (tmp_path / "run").write_text("no folder")
    with pytest.raises(Fault, match="was not saved"):
        write_report(tmp_path / "run", result(), read, "t")
