"""A sheet of photographs with objects: the true ones beside the predicted ones, and a legend of the classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openmae.pictures.captioned import WRONG
from openmae.pictures.class_colours import class_colours
from openmae.pictures.legend import draw_legend, legend_height
from openmae.pictures.objects import DrawnObjects, Pen, with_objects
from openmae.pictures.text import (
    FAINT,
    INK,
    PAD,
    box,
    draw_heading,
    draw_text,
    fitted,
    heading_height,
    headings,
    page,
)

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 560, 420  # of an image on the sheet at most, in pixels
CAPTION, HEADER, UNREADABLE = 30, 24, 60  # heights: below a row, above the first, of a row without an image
GAP = 8  # between columns
COLUMNS = ("truth", "prediction")


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectedImage:
    """An image (H, W, 3) uint8 with its true and perhaps its predicted objects, which may be of another scale."""

    image: NDArray[np.uint8]
    truth: DrawnObjects
    prediction: DrawnObjects | None = None

    @property
    def columns(self) -> list[DrawnObjects]:
        return [self.truth] if self.prediction is None else [self.truth, self.prediction]


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectedRow:
    """A row of the sheet: what is shown, or why nothing can be; the image's name and its score as captions."""

    content: DetectedImage | str
    name: str
    score: str


def detection_sheet(title: str, subtitle: str, rows: Sequence[DetectedRow], classes: Sequence[str]) -> "Figure":
    """The rows below a heading. Where no row has a prediction, there is no column for it."""
    contents = [row.content for row in rows if isinstance(row.content, DetectedImage)]
    columns = COLUMNS[: max((len(content.columns) for content in contents), default=len(COLUMNS))]
    colours, legend = class_colours(len(classes)), _most_frequent(contents)
    pictures = [None if isinstance(row.content, str) else _pictures(row.content, classes, colours) for row in rows]
    heights = [UNREADABLE if row is None else row[0].shape[0] for row in pictures]
    width = 2 * PAD + len(columns) * WIDTH + (len(columns) - 1) * GAP
    lines = headings(title, subtitle, width)
    top = heading_height(lines)
    below = top + HEADER + sum(heights) + len(rows) * CAPTION
    figure = page(width, below + 12 + legend_height(len(legend)) + PAD)
    draw_heading(figure, lines)
    lefts = [PAD + number * (WIDTH + GAP) for number in range(len(columns))]
    for left, column in zip(lefts, columns, strict=True):
        draw_text(figure, left, top + HEADER / 2 - 4, column, 10)
    y = top + HEADER
    for row, parts, height in zip(rows, pictures, heights, strict=True):
        if isinstance(row.content, str):
            text = fitted(f"unreadable: {row.content}", width - 2 * PAD, 9)
            draw_text(figure, PAD, y + height / 2, text, 9, WRONG)
        for left, picture in zip(lefts, parts or (), strict=False):
            axes = figure.add_axes(box(figure, left, y, picture.shape[1], picture.shape[0]))
            axes.imshow(picture, aspect="auto", interpolation="nearest", origin="upper")
            axes.axis("off")
        y += height + CAPTION
        draw_text(figure, PAD, y - CAPTION + 11, fitted(row.name, width / 2 - 2 * PAD, 8), 8, FAINT)
        draw_text(figure, width - PAD, y - CAPTION + 11, fitted(row.score, width / 2, 9), 9, INK, across="right")
    draw_legend(figure, below + 12, width, classes, colours, legend, "with fewer objects")
    return figure


def _most_frequent(contents: Sequence[DetectedImage]) -> list[tuple[int, str]]:
    """The classes that occur in truth or prediction, those with the most objects first, with these numbers."""
    true = Counter(k for content in contents for k in content.truth.labels.tolist())
    predicted = Counter(k for c in contents if c.prediction is not None for k in c.prediction.labels.tolist())
    order = sorted(true.keys() | predicted.keys(), key=lambda k: (-true[k] - predicted[k], k))
    has_predictions = any(content.prediction is not None for content in contents)
    return [(k, f" ({true[k]}, {predicted[k]})" if has_predictions else f" ({true[k]})") for k in order]


def _pictures(content: DetectedImage, classes: Sequence[str], colours: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Truth and prediction at the size of the sheet; small images are enlarged without smoothing."""
    height, width = content.image.shape[:2]
    scale = min(WIDTH / width, HEIGHT / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resampling = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    image = np.asarray(Image.fromarray(np.ascontiguousarray(content.image)).resize(size, resampling))
    return [with_objects(image, objects, classes, colours, Pen()) for objects in content.columns]
