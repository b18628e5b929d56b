"""What the evaluation of a segmenter on a split found: one confusion matrix, and a row for each image."""

import math
from collections import Counter
from dataclasses import dataclass

from openmae.errors import RequestError
from openmae.inference.segmentation_metrics import ConfusionMatrix


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """How well one image is segmented.

    Attributes:
        index, name: of the image in its source.
        miou: over the image's own classes, in truth or as predicted; per cent; NaN where no pixel counts.
        pixel_accuracy: in per cent; NaN where no pixel counts.
        pixels: those that count.
    """

    index: int
    name: str
    miou: float
    pixel_accuracy: float
    pixels: int

    @staticmethod
    def of(index: int, name: str, matrix: ConfusionMatrix) -> "ImageScore":
        """The score of an image by its own confusion matrix."""
        return ImageScore(
            index=index,
            name=name,
            miou=matrix.miou,
            pixel_accuracy=matrix.pixel_accuracy,
            pixels=matrix.num_pixels,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationResult:
    """The result of a split, or of one process's part of it.

    Attributes:
        matrix: of all images together.
        images: sorted by index, each once.
        bad: name and reason of each image, or mask file, that could not be read. No image is replaced by another.
        classes: their names.
    """

    matrix: ConfusionMatrix
    images: tuple[ImageScore, ...]
    bad: dict[str, str]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.matrix.num_classes == len(self.classes), (self.matrix.num_classes, len(self.classes))
        indices = [image.index for image in self.images]
        assert indices == sorted(set(indices)), "an image occurs twice, or they are not sorted"
        assert sum(image.pixels for image in self.images) == self.matrix.num_pixels, "the matrix is of other images"


def merge_results(parts: list[SegmentationResult]) -> SegmentationResult:
    """The results of several processes as one; some may be empty. No image may occur twice."""
    assert len({part.classes for part in parts}) == 1, "parts of one model"
    bad = {name: reason for part in parts for name, reason in part.bad.items()}
    assert len(bad) == sum(len(part.bad) for part in parts), "an unreadable image occurs twice"
    matrix = parts[0].matrix.cpu()
    for part in parts[1:]:
        matrix += part.matrix.cpu()
    return SegmentationResult(
        matrix=matrix,
        images=tuple(sorted((image for part in parts for image in part.images), key=lambda image: image.index)),
        bad=dict(sorted(bad.items())),
        classes=parts[0].classes,
    )


def check_result(result: SegmentationResult) -> None:
    """Raises RequestError: no image could be read, or no pixel of any image has a class."""
    if not result.images:
        if not result.bad:
            raise RequestError("no image to evaluate on: give a split that holds some")
        reason, count = Counter(result.bad.values()).most_common(1)[0]
        raise RequestError(f"none of {len(result.bad)} images can be read ({count} of them: {reason})")
    if not result.matrix.num_pixels:
        raise RequestError(
            f"all pixels of the masks of {len(result.images)} images are ignored: see which values stand for classes"
        )


def segmentation_metrics(result: SegmentationResult, prefix: str = "") -> dict[str, float]:
    """The metrics of an evaluation by name, `prefix` before each.

    miou, pixel_accuracy and mean_accuracy in per cent; present_classes (those that occur, in truth or as predicted,
    over which the mean IoU is taken) and absent_classes; images (the readable ones, over which all metrics are
    computed), unreadable, pixels (those that count).

    Raises:
        RequestError: no image could be read, or no pixel counts.
    """
    check_result(result)
    matrix = result.matrix
    present = int((matrix.union > 0).sum())
    values = {
        "miou": matrix.miou,
        "pixel_accuracy": matrix.pixel_accuracy,
        "mean_accuracy": matrix.mean_accuracy,
        "present_classes": present,
        "absent_classes": matrix.num_classes - present,
        "images": len(result.images),
        "unreadable": len(result.bad),
        "pixels": matrix.num_pixels,
    }
    assert all(math.isfinite(value) for value in values.values()), values
    return {prefix + name: value for name, value in values.items()}
