"""What the evaluation of a detector on a split found: average precision, and a row for each image."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openmae.errors import RequestError
from openmae.inference.detection.metrics import AveragePrecision, MeasuredImage, average_precision

FALSE, ON_CROWD, UNLIKELY = -1, -2, -3  # what becomes of a detection that finds no object
MIN_SCORE, MIN_IOU = 0.5, 0.5  # of what counts as found where single objects are counted


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """How many of an image's objects are found: of the same class, boxes at IoU .5, with a score of .5 or more.

    Attributes:
        index, name: of the image in its source.
        objects: the true ones without crowds.
        found: of these.
        false: predictions that are no object, or one that a likelier prediction has found already.
    """

    index: int
    name: str
    objects: int
    found: int
    false: int

    @property
    def missed(self) -> int:
        return self.objects - self.found

    @property
    def mistakes(self) -> int:
        """Objects that are missed and predictions that are false."""
        return self.missed + self.false


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionPart:
    """What one process measured.

    Attributes:
        images: the readable ones.
        bad: name and reason of each image that could not be read. No image is replaced by another.
    """

    images: tuple[MeasuredImage, ...]
    bad: dict[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionResult:
    """The result of a split.

    Attributes:
        images: sorted by index, each once.
        bad: name and reason of each image that could not be read.
        classes: their names.
        has_masks: whether masks are measured beside boxes.
    """

    images: tuple[MeasuredImage, ...]
    bad: dict[str, str]
    classes: tuple[str, ...]
    has_masks: bool

    def __post_init__(self) -> None:
        indices = [image.index for image in self.images]
        assert indices == sorted(set(indices)), "an image occurs twice, or they are not sorted"

    @cached_property
    def boxes(self) -> AveragePrecision:
        return average_precision(self.images, len(self.classes), "box")

    @cached_property
    def masks(self) -> AveragePrecision | None:
        return average_precision(self.images, len(self.classes), "mask") if self.has_masks else None

    @cached_property
    def scores(self) -> tuple[ImageScore, ...]:
        """Of each image."""
        return tuple(map(score_of, self.images))

    @cached_property
    def objects(self) -> NDArray[np.int64]:
        """(K,) true objects of each class, without crowds."""
        counts = np.zeros(len(self.classes), np.int64)
        for image in self.images:
            labels = image.truth.labels[~image.truth.is_crowd]
            counts += np.bincount(labels, minlength=len(counts))
        return counts


def merge_parts(parts: list[DetectionPart], classes: tuple[str, ...], has_masks: bool) -> DetectionResult:
    """What several processes measured as one result; some may be empty. No image may occur twice."""
    bad = {name: reason for part in parts for name, reason in part.bad.items()}
    assert len(bad) == sum(len(part.bad) for part in parts), "an unreadable image occurs twice"
    return DetectionResult(
        images=tuple(sorted((image for part in parts for image in part.images), key=lambda image: image.index)),
        bad=dict(sorted(bad.items())),
        classes=classes,
        has_masks=has_masks,
    )


def check_result(result: DetectionResult) -> None:
    """Raises RequestError: no image could be read, or there is no object in any."""
    if not result.images:
        if not result.bad:
            raise RequestError("no image to evaluate on: give a split that holds some")
        reason, count = Counter(result.bad.values()).most_common(1)[0]
        raise RequestError(f"none of {len(result.bad)} images can be read ({count} of them: {reason})")
    if not result.objects.sum():
        raise RequestError(
            f"no object to find in {len(result.images)} images: average precision needs some, see their annotations"
        )


def detection_metrics(result: DetectionResult, prefix: str = "") -> dict[str, float]:
    """The metrics of an evaluation by name, `prefix` before each.

    In per cent box_ap, box_ap50, box_ap75 and the others of `AveragePrecision.numbers`, and the same of masks where
    these are measured (mask_ap, …); those that are not defined (of large objects, where there is none) are left out.
    present_classes (those with objects, over which means are taken) and absent_classes; images (the readable ones, over
    which all metrics are computed), unreadable; objects (without crowds), detections.

    Raises:
        RequestError: no image could be read, or there is no object in any.
    """
    check_result(result)
    kinds = {"box": result.boxes} | ({} if result.masks is None else {"mask": result.masks})
    values = {f"{kind}_{name}": value for kind, found in kinds.items() for name, value in found.numbers.items()}
    values = {name: value for name, value in values.items() if not math.isnan(value)}
    present = int((result.objects > 0).sum())
    values |= {
        "present_classes": present,
        "absent_classes": len(result.classes) - present,
        "images": len(result.images),
        "unreadable": len(result.bad),
        "objects": int(result.objects.sum()),
        "detections": sum(len(image.found) for image in result.images),
    }
    assert all(math.isfinite(value) for value in values.values()), values
    return {prefix + name: value for name, value in values.items()}


def score_of(image: MeasuredImage) -> ImageScore:
    """How many of an image's objects are found."""
    fates = matches(image)
    objects = int((~image.truth.is_crowd).sum())
    return ImageScore(
        index=image.index,
        name=image.name,
        objects=objects,
        found=int((fates >= 0).sum()),
        false=int((fates == FALSE).sum()),
    )


def matches(image: MeasuredImage) -> NDArray[np.int64]:
    """(K,) of each detection the true object that it finds, or FALSE, ON_CROWD, or UNLIKELY (a score below a half).

    The likeliest first, each takes the object of its class that its box fits best, at IoU .5 or more; what lies on a
    crowd of its class counts neither way, as COCO has it.
    """
    from faster_coco_eval.core import mask as coco_masks

    truth, found = image.truth, image.found
    fates = np.where(found.scores < MIN_SCORE, UNLIKELY, FALSE)
    if not len(truth) or not len(found):
        return fates
    # Of a crowd it is the share of the detection that lies on it.
    overlaps = np.asarray(coco_masks.iou(*map(_corner_and_size, (found.boxes, truth.boxes)), truth.is_crowd.tolist()))
    overlaps[found.labels[:, None] != truth.labels] = 0
    is_free = ~truth.is_crowd
    for k in np.argsort(-found.scores, kind="stable"):
        if fates[k] == UNLIKELY:
            break
        best = int(np.where(is_free, overlaps[k], -1).argmax())
        if is_free[best] and overlaps[k, best] >= MIN_IOU:
            fates[k], is_free[best] = best, False
        elif overlaps[k][truth.is_crowd].max(initial=0) >= MIN_IOU:
            fates[k] = ON_CROWD
    return fates


def _corner_and_size(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
