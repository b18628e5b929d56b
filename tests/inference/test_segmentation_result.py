"""The result of several processes is that of one; what cannot be evaluated is refused."""

import pickle

import numpy as np
import pytest
import torch

from openmae.data.masks.palette import IGNORED
from openmae.errors import RequestError
from openmae.inference.segmentation_metrics import ConfusionMatrix
from openmae.inference.segmentation_result import (
    ImageScore,
    SegmentationResult,
    check_result,
    merge_results,
    segmentation_metrics,
)


def result(indices, bad=None, num_classes=4, truth=None):
    matrix, images = ConfusionMatrix.empty(num_classes), []
    for index in indices:
        chance = np.random.default_rng(index)
        prediction = torch.from_numpy(chance.integers(0, 3, (5, 6)))
        true = torch.from_numpy(chance.integers(-1, 3, (5, 6))) if truth is None else torch.full((5, 6), truth)
        own = ConfusionMatrix.count(true, prediction, num_classes)
        matrix += own
        images.append(ImageScore.of(index, f"{index}.jpg", own))
    return SegmentationResult(
        matrix=matrix, images=tuple(images), bad=bad or {}, classes=tuple(map(str, range(num_classes)))
    )


def test_parts_of_processes_make_the_whole():
    whole = result(range(7), {"a": "2", "b": "1"})
    parts = [result([0, 3, 6], {"b": "1"}), result([]), result([1, 2, 4, 5], {"a": "2"})]
    found = merge_results([pickle.loads(pickle.dumps(part)) for part in parts])  # as they are gathered
    assert found.matrix.counts.tolist() == whole.matrix.counts.tolist()
    assert found.images == whole.images
    assert list(found.bad.items()) == [("a", "2"), ("b", "1")]


@pytest.mark.parametrize(
    "second", [result([5]), result([6], {"x": "bad"}), result([6], num_classes=5)], ids=["image", "bad", "classes"]
)
def test_parts_that_do_not_belong_together_are_refused(second):
    with pytest.raises(AssertionError):
        merge_results([result([5], {"x": "bad"}), second])


def test_a_matrix_of_other_images_is_refused():
    one, two = result([0]), result([1, 2])
    with pytest.raises(AssertionError, match="other images"):
        SegmentationResult(matrix=two.matrix, images=one.images, bad={}, classes=one.classes)


def test_metrics_by_name():
    given = result(range(3), {"x": "bad"})
    found = segmentation_metrics(given, "val_")
    assert found["val_miou"] == given.matrix.miou
    assert found["val_pixel_accuracy"] == given.matrix.pixel_accuracy
    assert (found["val_present_classes"], found["val_absent_classes"]) == (3, 1)
    assert (found["val_images"], found["val_unreadable"]) == (3, 1)
    assert found["val_pixels"] == sum(image.pixels for image in given.images) < 3 * 30
    assert all(name.startswith("val_") for name in found)


def test_what_cannot_be_evaluated_is_refused():
    with pytest.raises(RequestError, match="no image"):
        check_result(result([]))
    with pytest.raises(RequestError, match=r"none of 3 images can be read \(2 of them: truncated\)"):
        check_result(result([], {"a": "truncated", "b": "empty file", "c": "truncated"}))
    with pytest.raises(RequestError, match="all pixels of the masks of 2 images are ignored"):
        segmentation_metrics(result([0, 1], truth=IGNORED))
