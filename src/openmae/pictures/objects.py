"""Objects drawn into a photograph: boxes, class names, masks as a tint."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from openmae.data.coco.run_lengths import RunLengths, mask_of
from openmae.pictures.text import DPI, fitted, font_file

ALPHA = 0.45  # the share of a class's colour where its mask is
MARK = "×"  # before the name of a missed object or a false prediction
POINTS = 72 / DPI  # of a pixel
Place = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnObjects:
    """Objects of an image, the most important first.

    Attributes:
        size: height and width of the image whose pixels boxes and masks are in; drawn at any scale.
        boxes: (K, 4) left, top, right, bottom.
        labels: (K,) class ids.
        scores: (K,); None of true objects.
        masks: K run lengths; None where only boxes are drawn.
        is_crowd: (K,) regions of many objects; None where there are none.
        is_wrong: (K,) missed objects or false predictions, which are marked; None where that is not known.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64] | None = None
    masks: Sequence[RunLengths] | None = None
    is_crowd: NDArray[np.bool_] | None = None
    is_wrong: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def caption(self, k: int, classes: Sequence[str]) -> tuple[str, str, str]:
        """What stands before, as and after the name of an object."""
        before = f"{MARK} " if self.is_wrong is not None and self.is_wrong[k] else ""
        after = "" if self.scores is None else f" {self.scores[k]:.2f}"
        after += " (crowd)" if self.is_crowd is not None and self.is_crowd[k] else ""
        return before, classes[self.labels[k]], after


@dataclass(frozen=True, kw_only=True)
class Pen:
    """Widths in pixels: of a box's line, of a letter's height, and of a name at most."""

    line: int = 2
    letters: int = 11
    name: int = field(default=150)

    @classmethod
    def for_image(cls, size: tuple[int, int]) -> "Pen":
        """For an image that is looked at as it is, small or large."""
        letters = min(max(round(min(size) / 32), 10), 64)
        return cls(line=max(1, letters // 6), letters=letters, name=14 * letters)


def with_objects(
    image: UInt8[np.ndarray, "h w 3"],
    objects: DrawnObjects,
    classes: Sequence[str],
    colours: UInt8[np.ndarray, "k 3"],
    pen: Pen,
) -> UInt8[np.ndarray, "h w 3"]:
    """The photograph with objects drawn over it, at whatever scale it is of the one they are of.

    The first objects lie on top. Their names do not cover one another: of many objects the last have none.
    """
    picture = _tinted(image, objects, colours)
    drawn = Image.fromarray(picture)
    canvas = ImageDraw.Draw(drawn)
    height, width = image.shape[:2]
    scale = np.tile([width / objects.size[1], height / objects.size[0]], 2)
    boxes = objects.boxes * scale
    for k in reversed(range(len(objects))):
        left, top, right, bottom = boxes[k].round().astype(int).tolist()
        left, top = min(left, width - 1), min(top, height - 1)  # a sliver at the edge rounds to beyond it
        right, bottom = min(max(right - 1, left), width - 1), min(max(bottom - 1, top), height - 1)
        colour = _colour(colours, objects.labels[k])
        canvas.rectangle((left, top, right, bottom), outline=colour, width=pen.line)
    taken: list[Place] = []
    for k in range(len(objects)):
        _draw_name(canvas, objects, k, boxes[k], classes, colours, pen, (height, width), taken)
    return np.asarray(drawn)


def _tinted(image: NDArray[np.uint8], objects: DrawnObjects, colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Masks one at a time, for those of a large photograph fill the memory together."""
    picture = image.copy()
    if objects.masks is None:
        return picture
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(image.shape[:2], objects.size, strict=True)
    )
    for k in reversed(range(len(objects))):
        # Only within the box, and a pixel around it.
        low = np.floor(objects.boxes[k][:2]) - 1
        high = np.ceil(objects.boxes[k][2:]) + 1
        (left, right), (top, bottom) = (
            np.searchsorted(places, [a, b]) for places, a, b in zip((columns, rows), low, high, strict=True)
        )
        is_inside = mask_of(objects.masks[k])[rows[top:bottom, None], columns[left:right]]
        part = picture[top:bottom, left:right]
        colour = colours[objects.labels[k]].astype(np.float32)
        part[is_inside] = np.rint((1 - ALPHA) * part[is_inside].astype(np.float32) + ALPHA * colour).astype(np.uint8)
    return picture


def _draw_name(
    canvas: ImageDraw.ImageDraw,
    objects: DrawnObjects,
    k: int,
    box: NDArray[np.float64],
    classes: Sequence[str],
    colours: NDArray[np.uint8],
    pen: Pen,
    size: tuple[int, int],
    taken: list[Place],
) -> None:
    """Write an object's name where it covers no other name, if there is such a place at its box."""
    before, name, after = objects.caption(k, classes)
    text = before + fitted(name, pen.name, pen.letters * POINTS) + after
    font = ImageFont.truetype(font_file(text), pen.letters)
    across, down = int(np.ceil(font.getlength(text))) + 4, pen.letters + 4
    place = _free_place(box, across, down, size, taken)
    if place is None:
        return
    taken.append(place)
    colour = _colour(colours, objects.labels[k])
    canvas.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour)
    is_light = np.dot(colour, (0.299, 0.587, 0.114)) > 140
    ink = (0, 0, 0) if is_light else (255, 255, 255)
    canvas.text((place[0] + 2, (place[1] + place[3]) / 2), text, ink, font, anchor="lm")


def _free_place(
    box: NDArray[np.float64], across: int, down: int, size: tuple[int, int], taken: list[Place]
) -> Place | None:
    """The first place at the box, within the image, that meets no other: above it, in it, below it."""
    left, top, right, bottom = box.round().astype(int).tolist()
    height, width = size
    for x in (left, right - across):
        x = min(max(x, 0), width - across)
        for y in (top - down, top, bottom - down, bottom):
            place = (x, y, x + across, y + down)
            is_inside = x >= 0 and y >= 0 and y + down <= height
            if is_inside and not any(_meet(place, other) for other in taken):
                return place
    return None


def _meet(one: Place, other: Place) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _colour(colours: NDArray[np.uint8], label: np.int64) -> tuple[int, ...]:
    return tuple(colours[label].tolist())
