"""The report of a segmenter: tables of its classes, its confusions and its images, and pictures."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openmae.data.decoding.decode import BadImage
from openmae.inference.segmentation_metrics import ConfusionMatrix
from openmae.inference.segmentation_result import ImageScore, SegmentationResult, check_result
from openmae.machine.files import write_csv
from openmae.pictures.class_bars import class_bars
from openmae.pictures.confusion import draw_confusion
from openmae.pictures.segmentation_sheet import Row, SegmentedImage, segmentation_sheet
from openmae.pictures.text import save_picture

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure

MAX_SHOWN = 8  # images on a sheet
MAX_CONFUSION = 20  # classes in the picture of the confusion matrix; of more, the most frequent

# The image, the truth and the prediction of an index, made again for the few that are shown. May raise BadImage.
Read = Callable[[int], SegmentedImage]


def write_report(run: Path, result: SegmentationResult, read: Read, title: str) -> None:
    """Write RUN/classes.csv, confusion.csv, images.csv, and RUN/pictures: segmentation, worst, confusion, classes.

    The tables are CSV (RFC 4180) in UTF-8; bytes in names that are not Unicode are escaped. Shares are in per cent;
    what is not defined (the IoU of a class that does not occur) is empty.

    Args:
        read: gives the image, truth and prediction of an index.

    Raises:
        RequestError: no image could be read, or no pixel counts.
        Fault: a file cannot be written.
    """
    check_result(result)
    matrix, pictures = result.matrix.cpu(), run / "pictures"
    write_csv(run / "classes.csv", _class_rows(matrix, result.classes))
    write_csv(run / "confusion.csv", _confusion_rows(matrix, result.classes))
    write_csv(run / "images.csv", _image_rows(result))
    what = f"mIoU {matrix.miou:.1f} %, pixel accuracy {matrix.pixel_accuracy:.1f} % on {_images(result)}."
    bare = " Ignored pixels keep the photograph's colours."

    def save_sheet(name: str, images: Sequence[ImageScore], heading: str, remark: str) -> None:
        rows = [_row(image, read) for image in images]
        save_picture(pictures / name, segmentation_sheet(f"{heading}: {title}", remark, rows, result.classes))

    save_sheet("segmentation.png", _spread(result.images), "Segmented images", what + bare)
    worst = _worst(result.images)
    save_sheet("worst.png", worst, "The images with the lowest pixel accuracy", what + " The lowest first." + bare)
    save_picture(pictures / "confusion.png", _confusion_picture(matrix, result.classes, title, what))
    shares = 100 * matrix.pixels / matrix.num_pixels
    bars = class_bars(matrix.class_iou, shares, result.classes, title=f"IoU of the classes: {title}", subtitle=what)
    save_picture(pictures / "classes.png", bars)


def result_text(summary: dict[str, float], split: str, prefix: str = "") -> str:
    """The result in one line, from the metrics of `segmentation_metrics`."""
    present, images, unreadable = (int(summary[prefix + name]) for name in ("present_classes", "images", "unreadable"))
    return (
        f"mIoU {summary[prefix + 'miou']:.1f} % over {present} class{'es' * (present != 1)} that "
        f"occur{'s' * (present == 1)}, pixel accuracy {summary[prefix + 'pixel_accuracy']:.1f} % on "
        f"{images:,} image{'s' * (images != 1)} of {split}"
        + (f", {unreadable:,} more cannot be read" if unreadable else "")
    )


def _images(result: SegmentationResult) -> str:
    count, bad = len(result.images), len(result.bad)
    return f"{count:,} image{'s' * (count != 1)}" + (f", {bad:,} more cannot be read" if bad else "")


def _class_rows(matrix: ConfusionMatrix, classes: Sequence[str]) -> Iterable[list[object]]:
    yield ["class", "pixels", "share", "iou", "accuracy"]
    pixels, num_pixels = matrix.pixels, matrix.num_pixels
    for k, (iou, accuracy) in enumerate(zip(matrix.class_iou, matrix.class_accuracy, strict=True)):
        share = 100 * pixels[k] / num_pixels
        yield [classes[k], pixels[k], f"{share:.6g}", _defined(iou), _defined(accuracy)]


def _confusion_rows(matrix: ConfusionMatrix, classes: Sequence[str]) -> Iterable[list[object]]:
    """Pixels: a row for each true class, a column for each predicted one."""
    yield ["true class", *classes]
    for name, row in zip(classes, matrix.counts.tolist(), strict=True):
        yield [name, *row]


def _image_rows(result: SegmentationResult) -> Iterable[list[object]]:
    yield ["name", "miou", "pixel_accuracy", "pixels", "unreadable"]
    for image in result.images:
        yield [image.name, _defined(image.miou), _defined(image.pixel_accuracy), image.pixels, ""]
    for name, reason in result.bad.items():
        yield [name, "", "", "", reason]


def _defined(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"


def _spread(images: Sequence[ImageScore]) -> list[ImageScore]:
    """A few images from all over the set."""
    places = np.linspace(0, len(images) - 1, min(MAX_SHOWN, len(images))).round().astype(int)
    return [images[place] for place in places]


def _worst(images: Sequence[ImageScore]) -> list[ImageScore]:
    """Those with the lowest pixel accuracy; of equal ones those with the lower index."""
    scored = [image for image in images if image.pixels]
    return sorted(scored, key=lambda image: (image.pixel_accuracy, image.index))[:MAX_SHOWN]


def _row(image: ImageScore, read: Read) -> Row:
    try:
        content: SegmentedImage | str = read(image.index)
    except BadImage as error:  # it was readable a moment ago
        content = str(error)
    score = (
        f"mIoU {image.miou:.1f} %, pixel accuracy {image.pixel_accuracy:.1f} %"
        if image.pixels
        else "all pixels ignored"
    )
    return Row(content=content, name=image.name, score=score)


def _confusion_picture(matrix: ConfusionMatrix, classes: Sequence[str], title: str, what: str) -> "Figure":
    """Of more than 20 classes the most frequent, all other predictions in one last column."""
    pixels, counts = matrix.pixels, matrix.counts.numpy()
    is_part = len(classes) > MAX_CONFUSION
    ids: NDArray[np.int64] = np.arange(len(classes))
    if is_part:
        ids = np.argsort(-pixels, kind="stable")[:MAX_CONFUSION]
        counts = counts[ids]
        counts = np.concatenate([counts[:, ids], np.delete(counts, ids, axis=1).sum(1, keepdims=True)], axis=1)
    part = f" of the {len(ids)} most frequent of {len(classes)} classes" if is_part else ""
    return draw_confusion(
        counts,
        pixels[ids],
        [classes[k] for k in ids],
        title=f"Confusion matrix{part}: {title}",
        subtitle=what,
        unit="pixels",
    )
