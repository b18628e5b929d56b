"""The report of a detector: tables of its classes and its images, what it found, and pictures."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openmae.data.decoding.decode import BadImage
from openmae.inference.detection.metrics import MeasuredImage, true_run_lengths
from openmae.inference.detection.result import (
    FALSE,
    MIN_SCORE,
    DetectionResult,
    ImageScore,
    check_result,
    matches,
)
from openmae.machine.files import write_csv
from openmae.pictures.class_bars import class_bars
from openmae.pictures.detection_sheet import DetectedImage, DetectedRow, detection_sheet
from openmae.pictures.objects import MARK, DrawnObjects
from openmae.pictures.precision_recall import precision_recall
from openmae.pictures.text import save_picture
from openmae.tasks.detect.prediction_files import Id, coco_results, write_results

MAX_SHOWN = 8  # images on a sheet

# The photograph of an index (h, w, 3), made again for the few that are shown. May raise BadImage.
Read = Callable[[int], NDArray[np.uint8]]


def write_report(
    run: Path, result: DetectionResult, read: Read, title: str, *, image_ids: Sequence[Id], category_ids: Sequence[Id]
) -> None:
    """Write RUN/classes.csv, images.csv, predictions.json, and RUN/pictures.

    The pictures are detection, worst, precision_recall and classes. The tables are CSV (RFC 4180) in UTF-8; bytes in
    names that are not Unicode are escaped. Average precision is in per cent; what is not defined (that of a class
    without objects) is empty. predictions.json has the format of COCO's results.

    Args:
        read: gives the photograph of an index.
        image_ids: of each image of the result, in its COCO file.
        category_ids: of each class, there.

    Raises:
        RequestError: no image could be read, or there is no object in any.
        Fault: a file cannot be written.
    """
    check_result(result)
    pictures = run / "pictures"
    write_csv(run / "classes.csv", _class_rows(result))
    write_csv(run / "images.csv", _image_rows(result))
    found = zip(result.images, image_ids, strict=True)
    entries = (coco_results(image.found, image_id, category_ids) for image, image_id in found)
    write_results(run / "predictions.json", itertools.chain.from_iterable(entries))
    what = f"{_precision(result)} on {_images(result)}."
    remark = (
        f" Predictions with a score of {MIN_SCORE:g} or more. {MARK} marks missed objects, and predictions that are "
        "false at IoU 0.5. Below, the objects of a class in truth and prediction."
    )
    by_index = {image.index: image for image in result.images}

    def save_sheet(name: str, scores: Sequence[ImageScore], heading: str, order: str = "") -> None:
        rows = [_row(score, by_index[score.index], read) for score in scores]
        save_picture(
            pictures / name, detection_sheet(f"{heading}: {title}", what + order + remark, rows, result.classes)
        )

    save_sheet("detection.png", _spread(result.scores), "Detected objects")
    order = " Those with the most of both first."
    save_sheet("worst.png", _worst(result.scores), "The images with the most missed and false objects", order)
    curves = precision_recall(
        result.boxes.precision,
        result.objects,
        result.classes,
        title=f"Precision over recall: {title}",
        subtitle=f"Boxes at IoU 0.5; the numbers are AP50. {what}",
    )
    save_picture(pictures / "precision_recall.png", curves)
    shares = 100 * result.objects / result.objects.sum()
    bars = class_bars(
        result.boxes.class_ap,
        shares,
        result.classes,
        title=f"Average precision of the classes: {title}",
        subtitle=f"Boxes at IoU 0.5 to 0.95. {what}",
        measure="box AP",
        unit="objects",
    )
    save_picture(pictures / "classes.png", bars)


def result_text(summary: dict[str, float], split: str, prefix: str = "") -> str:
    """The result in one line, from the metrics of `detection_metrics`."""
    objects, present, images, unreadable = (
        int(summary[prefix + name]) for name in ("objects", "present_classes", "images", "unreadable")
    )
    masks = f", mask AP {summary[prefix + 'mask_ap']:.1f} %" if prefix + "mask_ap" in summary else ""
    return (
        f"box AP {summary[prefix + 'box_ap']:.1f} %, AP50 {summary[prefix + 'box_ap50']:.1f} %{masks} over "
        f"{objects:,} object{'s' * (objects != 1)} of {present} class{'es' * (present != 1)} in "
        f"{images:,} image{'s' * (images != 1)} of {split}"
        + (f", {unreadable:,} more cannot be read" if unreadable else "")
    )


def _precision(result: DetectionResult) -> str:
    masks = "" if result.masks is None else f", mask AP {result.masks.numbers['ap']:.1f} %"
    numbers = result.boxes.numbers
    return f"Box AP {numbers['ap']:.1f} %, AP50 {numbers['ap50']:.1f} %{masks}"


def _images(result: DetectionResult) -> str:
    count, bad = len(result.images), len(result.bad)
    return f"{count:,} image{'s' * (count != 1)}" + (f", {bad:,} more cannot be read" if bad else "")


def _class_rows(result: DetectionResult) -> Iterable[list[object]]:
    kinds = {"box": result.boxes} | ({} if result.masks is None else {"mask": result.masks})
    yield ["class", "objects", *(f"{kind}_{name}" for kind in kinds for name in ("ap", "ap50"))]
    for k, (name, objects) in enumerate(zip(result.classes, result.objects, strict=True)):
        numbers = (number for found in kinds.values() for number in (found.class_ap[k], found.class_ap50[k]))
        yield [name, objects, *map(_defined, numbers)]


def _image_rows(result: DetectionResult) -> Iterable[list[object]]:
    """Found, missed and false at IoU .5, of those with a score of .5 or more; detections of any score."""
    yield ["name", "objects", "found", "missed", "false", "detections", "unreadable"]
    for image, score in zip(result.images, result.scores, strict=True):
        yield [image.name, score.objects, score.found, score.missed, score.false, len(image.found), ""]
    for name, reason in result.bad.items():
        yield [name, "", "", "", "", "", reason]


def _defined(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"


def _spread(scores: Sequence[ImageScore]) -> list[ImageScore]:
    """A few images from all over the set, of those with objects if there are enough."""
    with_objects = [score for score in scores if score.objects]
    scores = with_objects if len(with_objects) >= min(MAX_SHOWN, len(scores)) else scores
    places = np.linspace(0, len(scores) - 1, min(MAX_SHOWN, len(scores))).round().astype(int)
    return [scores[place] for place in places]


def _worst(scores: Sequence[ImageScore]) -> list[ImageScore]:
    """Those with the most missed and false objects; of equal ones those with the lower index."""
    wrong = [score for score in scores if score.mistakes]
    return sorted(wrong, key=lambda score: (-score.mistakes, score.index))[:MAX_SHOWN]


def _row(score: ImageScore, image: MeasuredImage, read: Read) -> DetectedRow:
    content: DetectedImage | str
    try:
        content = detected_image(image, read(image.index))
    except BadImage as error:  # it was readable a moment ago
        content = str(error)
    counted = f"{score.found} of {score.objects} object{'s' * (score.objects != 1)} found, {score.false} false"
    unlikely = image.found.scores[image.found.scores < MIN_SCORE]
    counted += f", {len(unlikely)} unlikely (at most {unlikely.max():.2f})" if len(unlikely) else ""
    return DetectedRow(content=content, name=image.name, score=counted)


def detected_image(image: MeasuredImage, photograph: NDArray[np.uint8]) -> DetectedImage:
    """An image with its true objects and the likely ones of those that were found, wrong ones marked."""
    truth, found, fates = image.truth, image.found.above(MIN_SCORE), matches(image)
    order = np.argsort(truth.areas, kind="stable")  # the small ones on top
    masks = true_run_lengths(truth, image.size) if image.found.masks is not None else None
    is_missed = ~np.isin(np.arange(len(truth)), fates) & ~truth.is_crowd
    return DetectedImage(
        image=photograph,
        truth=DrawnObjects(
            size=image.size,
            boxes=truth.boxes[order],
            labels=truth.labels[order],
            masks=None if masks is None else [masks[k] for k in order],
            is_crowd=truth.is_crowd[order],
            is_wrong=is_missed[order],
        ),
        prediction=DrawnObjects(
            size=image.size,
            boxes=found.boxes,
            labels=found.labels,
            scores=found.scores,
            masks=found.masks,
            is_wrong=fates[image.found.scores >= MIN_SCORE] == FALSE,
        ),
    )
