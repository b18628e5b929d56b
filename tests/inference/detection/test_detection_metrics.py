"""Average precision against pycocotools, and by hand."""

import contextlib
import copy
import io
import math

import numpy as np
import pytest

from openmae.data.coco.annotations import Annotations
from openmae.data.coco.run_lengths import box_run_lengths
from openmae.inference.detection.metrics import MeasuredImage, average_precision
from openmae.inference.detection.whole_image import ImageDetections

from .objects_found import random_image

NUMBERS = "ap ap50 ap75 ap_small ap_medium ap_large ar1 ar10 ar100 ar_small ar_medium ar_large".split()


def judged_by_pycocotools(images, num_classes, kind):
    """COCO's own twelve numbers, of files as its users write them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = {
        "images": [{"id": i.index + 1, "height": i.size[0], "width": i.size[1]} for i in images],
        "categories": [{"id": k} for k in range(num_classes)],
        "annotations": [],
    }
    results = []
    for image in images:
        t, f, image_id = image.truth, image.found, image.index + 1
        for k in range(len(t)):
            left, top, right, bottom = t.boxes[k].tolist()
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": int(t.labels[k]),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(t.areas[k]),
                    "iscrowd": int(t.is_crowd[k]),
                    "segmentation": copy.deepcopy(t.segmentations[k]),
                }
            )
        for k in range(len(f)):
            left, top, right, bottom = f.boxes[k].tolist()
            where = (
                {"bbox": [left, top, right - left, bottom - top]} if kind == "bbox" else {"segmentation": f.masks[k]}
            )
            found = {"image_id": image_id, "category_id": int(f.labels[k]), "score": float(f.scores[k])}
            results.append(found | copy.deepcopy(where))
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = truth
        dataset.createIndex()
        judge = COCOeval(dataset, dataset.loadRes(results), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float("nan") if number < 0 else 100 * number for number in judge.stats]


def compare(seeds, most_images):
    """The largest difference of all numbers over as many sets of images; boxes and masks."""
    pytest.importorskip("pycocotools")
    worst, num_compared = 0.0, 0
    for seed in seeds:
        chance = np.random.default_rng(seed)
        num_classes = int(chance.integers(1, 6))
        images = [random_image(chance, k, num_classes) for k in range(int(chance.integers(1, most_images)))]
        if seed % 25 == 0:  # more than a hundred objects of an image are found, of which the likeliest count
            images.append(random_image(chance, len(images), 1, most=140, largest_side=60))
        if not any(len(image.found) for image in images):
            continue
        for what, kind in (("box", "bbox"), ("mask", "segm")):
            numbers = average_precision(images, num_classes, what).numbers
            ours = [numbers[name] for name in NUMBERS]
            theirs = judged_by_pycocotools(images, num_classes, kind)
            assert np.isnan(ours).tolist() == np.isnan(theirs).tolist(), (seed, what)
            worst = max([worst, *(abs(a - b) for a, b in zip(ours, theirs, strict=True) if not math.isnan(a))])
            num_compared += 1
    return worst, num_compared


def test_as_pycocotools():
    worst, _ = compare(range(6), 4)
    assert worst < 1e-9  # measured: 1.4e-14


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_as_pycocotools_in_500_cases():
    worst, num_compared = compare(range(1000, 1500), 6)
    assert worst < 1e-9  # measured: 2.8e-14, over 948 pairs of twelve numbers
    assert num_compared > 900


def truth_of(boxes, labels=None, is_crowd=None):
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return Annotations(
        boxes=boxes,
        labels=np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64),
        is_crowd=np.zeros(len(boxes), bool) if is_crowd is None else np.asarray(is_crowd),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(1),
    )


def found_of(boxes, scores, labels=None):
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64)
    return ImageDetections(boxes, labels, np.asarray(scores, np.float64))


def image_of(index, truth, found, size=(100, 100)):
    return MeasuredImage(index=index, name=str(index), size=size, truth=truth, found=found)


SQUARES = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]]


def test_by_hand():
    # Two of four objects of class 0 are found, and between them something that is none; class 2 occurs nowhere.
    truth = truth_of([*SQUARES, [0, 50, 40, 90]], [0, 0, 0, 0, 1])
    found = found_of([SQUARES[0], [0, 20, 10, 30], SQUARES[1], [0, 50, 40, 90]], [0.9, 0.8, 0.7, 0.6], [0, 0, 0, 1])
    result = average_precision([image_of(0, truth, found)], 3, "box")
    first = 100 * (26 * 1 + 25 * 2 / 3) / 101  # precision 1 up to a recall of .25, two thirds up to .5, then 0
    assert result.class_ap[:2] == pytest.approx([first, 100])
    assert result.class_ap50[:2] == pytest.approx([first, 100])
    assert np.isnan(result.class_ap[2])
    assert result.numbers["ap"] == pytest.approx((first + 100) / 2)
    assert result.numbers["ap_small"] == pytest.approx(first)  # class 1 has a medium object only
    assert result.numbers["ap_medium"] == pytest.approx(100)
    assert math.isnan(result.numbers["ap_large"])
    assert result.numbers["ar100"] == pytest.approx(75)
    assert result.precision.shape == (3, 101)
    assert result.precision[0, [0, 25, 26, 50, 51]] == pytest.approx([100, 100, 200 / 3, 200 / 3, 0])


@pytest.mark.parametrize("what", ["box", "mask"])
def test_nothing_found_is_zero_and_classes_without_objects_are_left_out(what):
    nothing = ImageDetections(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), [])
    images = [image_of(0, truth_of([SQUARES[0]], [1]), nothing), image_of(1, truth_of([]), nothing)]
    result = average_precision(images, 3, what)
    assert result.numbers["ap"] == result.numbers["ap_small"] == result.numbers["ar100"] == 0
    assert np.isnan(result.class_ap).tolist() == [True, False, True]
    for without_objects in ([], images[1:]):
        result = average_precision(without_objects, 3, what)
        assert all(math.isnan(number) for number in result.numbers.values())
        assert result.precision.shape == (3, 101)


def test_what_is_found_on_a_crowd_counts_neither_way():
    truth = truth_of([SQUARES[0], [20, 0, 100, 100]], is_crowd=[False, True])
    found = found_of([[30, 20, 40, 30], [50, 50, 60, 60], SQUARES[0]], [0.9, 0.8, 0.7])
    assert average_precision([image_of(0, truth, found)], 1, "box").numbers["ap"] == pytest.approx(100)
    apart = truth_of([SQUARES[0], [20, 0, 100, 100]])
    assert average_precision([image_of(0, apart, found)], 1, "box").numbers["ap"] < 20


def test_an_object_without_a_mask_is_measured_as_its_box():
    truth = truth_of([SQUARES[0]])
    found = ImageDetections(
        np.array([[0.0, 0, 10, 10]]), np.zeros(1, np.int64), np.ones(1), [box_run_lengths(truth.boxes[0], (100, 100))]
    )
    assert average_precision([image_of(0, truth, found)], 1, "mask").numbers["ap"] == pytest.approx(100)


def test_nothing_is_printed(capfd):
    average_precision([image_of(0, truth_of([SQUARES[0]]), found_of([SQUARES[0]], [1]))], 1, "box")
    assert capfd.readouterr() == ("", "")
