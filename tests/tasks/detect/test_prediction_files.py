"""predictions.json as COCO's tools read it, and overlays."""

import json
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from openmae.inference.detection.whole_image import ImageDetections
from openmae.pictures.class_colours import class_colours
from openmae.tasks.detect.prediction_files import coco_results, write_detections, write_results

from ...inference.detection.objects_found import random_found, random_truth


def some(with_masks=True):
    chance = np.random.default_rng(0)
    size = (50, 70)
    found = random_found(chance, random_truth(chance, size, 6, 3), size, 4, 3, with_masks=with_masks)
    assert len(found) > 3
    return found, size


def test_an_entry_is_what_was_found():
    found = ImageDetections(
        np.array([[1.004, 2.0, 11.008, 4.5]]), np.array([1]), np.array([0.9876543]), [{"size": [5, 20], "counts": "a"}]
    )
    assert coco_results(found, "a-7", [3, 90]) == [
        {
            "image_id": "a-7",
            "category_id": 90,
            "bbox": [1.0, 2.0, 10.0, 2.5],
            "score": 0.98765,
            "segmentation": {"size": [5, 20], "counts": "a"},
        }
    ]


def test_coco_s_own_tools_read_the_file(tmp_path):
    from faster_coco_eval import COCO

    found, size = some()
    write_results(tmp_path / "predictions.json", coco_results(found, 5, [10, 20, 30]))
    dataset = {
        "images": [{"id": 5, "height": size[0], "width": size[1]}],
        "categories": [{"id": k, "name": str(k)} for k in (10, 20, 30)],
        "annotations": [],
    }
    read = COCO(dataset).loadRes(str(tmp_path / "predictions.json"))
    assert len(read.anns) == len(found)
    assert {ann["category_id"] for ann in read.anns.values()} <= {10, 20, 30}
    for ann in read.anns.values():
        assert read.annToMask(ann).shape == size


def test_nothing_found_is_an_empty_list_and_boxes_alone_have_no_masks(tmp_path):
    write_results(tmp_path / "none.json", [])
    assert json.loads((tmp_path / "none.json").read_text()) == []
    found, _ = some(with_masks=False)
    assert all("segmentation" not in entry for entry in coco_results(found, 1, [1, 2, 3]))


def test_an_overlay_has_the_boxes_of_what_was_found(tmp_path):
    image = np.full((60, 80, 3), 100, np.uint8)
    found = ImageDetections(np.array([[10.0, 20, 50, 55]]), np.array([1]), np.array([0.8]))
    write_detections(tmp_path, PurePosixPath("a/b.c"), image, found, ("x", "y"))
    with Image.open(tmp_path / "overlays" / "a" / "b.c.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (80, 60))
        drawn = np.asarray(picture).astype(int)
    assert class_colours(2)[1].tolist() == [0, 255, 0]
    assert drawn[54, 20:45, 1].min() > drawn[54, 20:45, [0, 2]].max() + 50  # a thin line, blurred by the JPEG
    assert abs(drawn[40:50, 60:] - 100).max() < 10
