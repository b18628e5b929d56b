"""Average precision as COCO defines it, of boxes or of masks: over all classes, by size, and of each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openmae.data.coco.annotations import Annotations
from openmae.data.coco.run_lengths import RunLengths, box_run_lengths, run_lengths_of
from openmae.inference.detection.whole_image import ImageDetections

What = Literal["box", "mask"]
IOU_TYPES = {"box": "bbox", "mask": "segm"}
SIZES = ("all", "small", "medium", "large")  # below 32², below 96², above, in pixels of the stored image
MAX_FOUND = (1, 10, 100)  # the likeliest of an image that count


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredImage:
    """An image's true objects and those that were found in it.

    Attributes:
        index, name: of the image in its source.
        size: height and width of the image as it is stored, of which all boxes and masks are.
    """

    index: int
    name: str
    size: tuple[int, int]
    truth: Annotations
    found: ImageDetections


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePrecision:
    """The average precision of boxes or of masks over a set of images; all in per cent.

    Attributes:
        numbers: the twelve of COCO's summary, averaged over the classes that occur: ap (over IoU .5, .55, … .95), ap50,
            ap75, ap_small, ap_medium, ap_large, and the average recall ar1, ar10, ar100 (with as many objects an
            image), ar_small, ar_medium, ar_large. NaN where no such object occurs.
        class_ap, class_ap50: (K,) of each class; NaN of a class without true objects (crowds aside).
        precision: (K, 101) at IoU .5, for a recall of 0, .01, … 1; NaN as before.
    """

    numbers: dict[str, float]
    class_ap: NDArray[np.float64]
    class_ap50: NDArray[np.float64]
    precision: NDArray[np.float64]


def average_precision(images: Sequence[MeasuredImage], num_classes: int, what: What) -> AveragePrecision:
    """Measure what was found in a set of images, of which each occurs once.

    What is found on a crowd counts neither way. An object that has only a box is measured as a mask that fills it. As
    in common programs the size of a found mask is that of the mask and not of its box.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    classes = sorted({int(k) for image in images for k in image.truth.labels})
    truth, found = _as_coco(images, classes, what)
    judge = COCOeval_faster(
        COCO(truth, print_function=_say_nothing),
        COCO(found, print_function=_say_nothing),
        IOU_TYPES[what],
        print_function=_say_nothing,
    )
    judge.params.maxDets = list(MAX_FOUND)
    if classes and images:
        judge.evaluate()
        judge.accumulate()
        precision, recall = (np.asarray(judge.eval[name]) for name in ("precision", "recall"))
    else:
        precision, recall = np.full((10, 101, 0, 4, 3), -1.0), np.full((10, 0, 4, 3), -1.0)
    precision = np.where(precision < 0, np.nan, 100 * precision)  # (IoUs, recalls, classes, sizes, most found)
    recall = np.where(recall < 0, np.nan, 100 * recall)  # (IoUs, classes, sizes, most found)
    of_all = precision[..., 0, -1]
    numbers = {"ap": _mean(of_all), "ap50": _mean(of_all[0]), "ap75": _mean(of_all[5])}
    numbers |= {f"ap_{size}": _mean(precision[..., k, -1]) for k, size in enumerate(SIZES) if k}
    numbers |= {f"ar{most}": _mean(recall[..., 0, k]) for k, most in enumerate(MAX_FOUND)}
    numbers |= {f"ar_{size}": _mean(recall[..., k, -1]) for k, size in enumerate(SIZES) if k}
    return AveragePrecision(
        numbers=numbers,
        class_ap=_of_all_classes(of_all.mean((0, 1)), classes, num_classes),
        class_ap50=_of_all_classes(of_all[0].mean(0), classes, num_classes),
        precision=_of_all_classes(of_all[0].T, classes, num_classes),
    )


def _as_coco(images: Sequence[MeasuredImage], classes: list[int], what: What) -> tuple[dict[str, Any], dict[str, Any]]:
    """Truth and what was found as COCO's files have them; numbered from 1, for 0 stands for no match there.

    Classes without truth are left out: they have no precision, and many of them would cost much time.
    """
    common = {
        "images": [{"id": k, "height": i.size[0], "width": i.size[1]} for k, i in enumerate(images, start=1)],
        "categories": [{"id": k, "name": str(k)} for k in classes],
    }
    truth, found, known = list[dict[str, Any]](), list[dict[str, Any]](), set(classes)
    for image_id, image in enumerate(images, start=1):
        true_masks = true_run_lengths(image.truth, image.size) if what == "mask" else None
        for k, (box, label) in enumerate(zip(image.truth.boxes, image.truth.labels, strict=True)):
            values = {"iscrowd": int(image.truth.is_crowd[k]), "area": float(image.truth.areas[k])}
            mask = None if true_masks is None else true_masks[k]
            truth.append(_object(len(truth) + 1, image_id, label, box, mask) | values)
        for k, (box, label) in enumerate(zip(image.found.boxes, image.found.labels, strict=True)):
            if int(label) not in known:
                continue
            mask = None
            if what == "mask":
                assert image.found.masks is not None
                mask = image.found.masks[k]
            values = {"iscrowd": 0, "score": float(image.found.scores[k]), "area": _area(box, mask)}
            found.append(_object(len(found) + 1, image_id, label, box, mask) | values)
    return common | {"annotations": truth}, common | {"annotations": found}


def _object(
    number: int, image_id: int, label: np.int64, box: NDArray[np.float64], mask: RunLengths | None
) -> dict[str, Any]:
    left, top, right, bottom = box.tolist()
    values: dict[str, Any] = {"id": number, "image_id": image_id, "category_id": int(label)}
    values |= {"bbox": [left, top, right - left, bottom - top]}
    return values if mask is None else values | {"segmentation": mask}


def _area(box: NDArray[np.float64], mask: RunLengths | None) -> float:
    if mask is None:
        return float((box[2] - box[0]) * (box[3] - box[1]))
    from faster_coco_eval.core import mask as coco_masks

    return float(coco_masks.area(mask))


def true_run_lengths(truth: Annotations, size: tuple[int, int]) -> list[RunLengths]:
    """The masks of an image's true objects; the rectangle of one that has only a box."""
    segmentations = truth.segmentations or [None] * len(truth)
    return [
        box_run_lengths(box, size) if segmentation is None else run_lengths_of(segmentation, size)
        for box, segmentation in zip(truth.boxes, segmentations, strict=True)
    ]


def _of_all_classes(values: NDArray[np.float64], classes: list[int], num_classes: int) -> NDArray[np.float64]:
    spread = np.full((num_classes, *values.shape[1:]), np.nan)
    spread[classes] = values
    return spread


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _say_nothing(*_: object) -> None:
    """For the library's progress."""
