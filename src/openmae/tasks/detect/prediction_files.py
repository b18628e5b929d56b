"""The files that `openmae detect` writes of what it found: predictions.json in COCO's format of results."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.inference.detection.whole_image import ImageDetections
from openmae.machine.files import atomic_write, disk_faults
from openmae.pictures.class_colours import class_colours
from openmae.pictures.objects import DrawnObjects, Pen, with_objects
from openmae.tasks.prediction.files import write_overlay

Id = int | str


def coco_results(found: ImageDetections, image_id: Id, category_ids: Sequence[Id]) -> list[dict[str, Any]]:
    """What was found in an image as entries of COCO's results.

    Boxes are left, top, width and height in pixels of the image as it is stored, rounded to hundredths.
    """
    results: list[dict[str, Any]] = []
    for k, (box, label, score) in enumerate(zip(found.boxes.tolist(), found.labels, found.scores, strict=True)):
        left, top, right, bottom = box
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_ids[int(label)],
            "bbox": [round(side, 2) for side in (left, top, right - left, bottom - top)],
            "score": round(float(score), 5),
        }
        if found.masks is not None:
            entry["segmentation"] = found.masks[k]
        results.append(entry)
    return results


def write_results(path: Path, results: Iterable[dict[str, Any]]) -> None:
    """Write a JSON list, an entry a line, whole or not at all.

    Raises:
        Fault: it cannot be written.
    """
    with disk_faults(path), atomic_write(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write("[")
        for number, entry in enumerate(results):
            file.write(("," if number else "") + "\n" + json.dumps(entry))
        file.write("\n]\n")


def write_detections(
    out: Path, path: PurePosixPath, image: NDArray[np.uint8], found: ImageDetections, classes: Sequence[str]
) -> None:
    """Write OUT/overlays/PATH.jpg: the image with the objects that were found.

    Args:
        path: see `prediction_paths`.
        image: (H, W, 3), as it is stored.

    Raises:
        Fault: it cannot be written.
    """
    size = (image.shape[0], image.shape[1])
    objects = DrawnObjects(size=size, boxes=found.boxes, labels=found.labels, scores=found.scores, masks=found.masks)
    drawn = with_objects(image, objects, classes, class_colours(len(classes)), Pen.for_image(size))
    write_overlay(out, path, drawn)
