"""The result of several processes is that of one; what cannot be evaluated is refused; images are scored by hand."""

import pickle

import numpy as np
import pytest

from openmae.errors import RequestError
from openmae.inference.detection.result import (
    FALSE,
    ON_CROWD,
    UNLIKELY,
    DetectionPart,
    check_result,
    detection_metrics,
    matches,
    merge_parts,
    score_of,
)

from .objects_found import random_image
from .test_detection_metrics import SQUARES, found_of, image_of, truth_of

CLASSES = ("a", "b", "c", "never")


def part(indices, bad=None):
    images = [random_image(np.random.default_rng(100 + index), index, 3) for index in indices]
    return DetectionPart(images=tuple(images), bad=bad or {})


def test_parts_of_processes_make_the_whole():
    whole = merge_parts([part(range(7), {"b": "1", "a": "2"})], CLASSES, True)
    parts = [part([0, 3, 6], {"b": "1"}), part([]), part([5, 1, 2, 4], {"a": "2"})]
    found = merge_parts([pickle.loads(pickle.dumps(part)) for part in parts], CLASSES, True)  # as they are gathered
    assert detection_metrics(found) == detection_metrics(whole)
    assert found.scores == whole.scores
    assert list(found.bad.items()) == [("a", "2"), ("b", "1")]


@pytest.mark.parametrize("second", [part([5]), part([6], {"x": "bad"})], ids=["image", "bad"])
def test_parts_that_do_not_belong_together_are_refused(second):
    with pytest.raises(AssertionError):
        merge_parts([part([5], {"x": "bad"}), second], CLASSES, True)


def test_metrics_by_name():
    given = merge_parts([part(range(4), {"x": "bad"})], CLASSES, True)
    found = detection_metrics(given, "val_")
    assert found["val_box_ap"] == given.boxes.numbers["ap"]
    assert found["val_mask_ap50"] == given.masks.numbers["ap50"]
    assert (found["val_present_classes"], found["val_absent_classes"]) == (3, 1)
    assert (found["val_images"], found["val_unreadable"]) == (4, 1)
    assert found["val_objects"] == sum((~image.truth.is_crowd).sum() for image in given.images) > 0
    assert found["val_detections"] == sum(len(image.found) for image in given.images) > 0
    assert "val_box_ap_small" in found
    assert all(name.startswith("val_") for name in found)
    boxes_only = detection_metrics(merge_parts([part(range(4))], CLASSES, False))
    assert not any(name.startswith("mask") for name in boxes_only)


def test_sizes_that_do_not_occur_are_left_out():
    small = image_of(0, truth_of([SQUARES[0]]), found_of([SQUARES[0]], [1]))
    found = detection_metrics(merge_parts([DetectionPart(images=(small,), bad={})], ("a",), False))
    assert found["box_ap_small"] == pytest.approx(100)
    assert not {"box_ap_medium", "box_ap_large", "box_ar_large"} & found.keys()


def test_what_cannot_be_evaluated_is_refused():
    with pytest.raises(RequestError, match="no image"):
        check_result(merge_parts([part([])], CLASSES, True))
    with pytest.raises(RequestError, match=r"none of 3 images can be read \(2 of them: truncated\)"):
        check_result(merge_parts([part([], {"a": "truncated", "b": "empty file", "c": "truncated"})], CLASSES, True))
    empty = image_of(0, truth_of([SQUARES[0]], is_crowd=[True]), found_of([], []))
    with pytest.raises(RequestError, match="no object to find in 1 images"):
        detection_metrics(merge_parts([DetectionPart(images=(empty,), bad={})], ("a",), False))


def test_what_is_missed_and_what_is_false_by_hand():
    truth = truth_of([*SQUARES, [0, 50, 90, 90]], [0, 0, 0, 1, 0], [False] * 4 + [True])
    found = found_of(
        [[1, 0, 11, 10], SQUARES[0], SQUARES[1], SQUARES[2], SQUARES[3], [0, 50, 9, 60], [80, 0, 90, 9]],
        [0.6, 0.9, 0.5, 0.4, 0.9, 0.7, 0.8],
        [0, 0, 0, 0, 0, 0, 1],
    )
    image = image_of(3, truth, found)
    # A second box for the first object; one unlikely; one of another class; one on the crowd; one on nothing.
    assert matches(image).tolist() == [FALSE, 0, 1, UNLIKELY, FALSE, ON_CROWD, FALSE]
    score = score_of(image)
    assert (score.objects, score.found, score.missed, score.false, score.mistakes) == (4, 2, 2, 3, 5)
    nothing = score_of(image_of(0, truth_of([]), found_of([], [])))
    assert (nothing.objects, nothing.found, nothing.false) == (0, 0, 0)
