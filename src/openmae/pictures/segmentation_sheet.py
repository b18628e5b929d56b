"""A sheet of segmented images: photograph, truth and prediction side by side, and a legend of the classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openmae.pictures.captioned import WRONG
from openmae.pictures.class_colours import class_colours
from openmae.pictures.legend import draw_legend, legend_height
from openmae.pictures.overlay import overlaid
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
    per_cent,
)

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 320, 240  # of an image on the sheet at most, in pixels
CAPTION, HEADER, UNREADABLE = 30, 24, 60  # heights: below a row, above the first, of a row without an image
GAP = 8  # between columns
COLUMNS, COLUMNS_WITHOUT_PREDICTION = ("image", "truth", "prediction"), ("image", "mask")


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentedImage:
    """An image (H, W, 3) uint8 with its true and perhaps its predicted labels (H, W), below 0 where ignored."""

    image: NDArray[np.uint8]
    truth: NDArray
    prediction: NDArray | None = None

    def __post_init__(self) -> None:
        shape = self.image.shape[:2]
        assert all(labels.shape == shape for labels in self.maps), (shape, [labels.shape for labels in self.maps])

    @property
    def maps(self) -> list[NDArray]:
        """The labels that there are, in order of columns."""
        return [self.truth] if self.prediction is None else [self.truth, self.prediction]


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A row of the sheet: what is shown, or why nothing can be; the image's name and its score as captions."""

    content: SegmentedImage | str
    name: str
    score: str


def segmentation_sheet(title: str, subtitle: str, rows: Sequence[Row], classes: Sequence[str]) -> "Figure":
    """The rows below a heading; class maps in colour over the photograph, which ignored pixels leave bare.

    Where no row has a prediction, there is no column for it.
    """
    has_predictions = any(isinstance(row.content, SegmentedImage) and len(row.content.maps) > 1 for row in rows)
    columns = COLUMNS if has_predictions else COLUMNS_WITHOUT_PREDICTION
    legend, colours = _most_frequent(rows, len(classes)), class_colours(len(classes))
    pictures = [None if isinstance(row.content, str) else _pictures(row.content, colours) for row in rows]
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
            _draw_picture(figure, picture, left, y)
        y += height + CAPTION
        draw_text(figure, lefts[0], y - CAPTION + 11, fitted(row.name, 2 * WIDTH, 8), 8, FAINT)
        draw_text(figure, width - PAD, y - CAPTION + 11, fitted(row.score, WIDTH - PAD, 9), 9, INK, across="right")
    draw_legend(figure, below + 12, width, classes, colours, legend, "with fewer pixels")
    return figure


def _most_frequent(rows: Sequence[Row], num_classes: int) -> list[tuple[int, str]]:
    """The classes that occur, the most frequent first, with their share of what is shown in truth and prediction."""
    counts = np.zeros(num_classes, np.int64)
    for row in rows:
        if isinstance(row.content, SegmentedImage):
            for labels in row.content.maps:
                counts += np.bincount(labels[labels >= 0].ravel(), minlength=num_classes)
    order = np.argsort(-counts, kind="stable")
    return [(int(k), f" ({per_cent(counts[k] / counts.sum())})") for k in order if counts[k]]


def _pictures(content: SegmentedImage, colours: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Image, truth and prediction at the size of the sheet; small images are enlarged without smoothing."""
    height, width = content.image.shape[:2]
    scale = min(WIDTH / width, HEIGHT / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resampling = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    image = np.asarray(Image.fromarray(np.ascontiguousarray(content.image)).resize(size, resampling))
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(size[::-1], (height, width), strict=True)
    )
    maps = [labels[rows[:, None], columns] for labels in content.maps]
    return [image, *(overlaid(image, labels, colours) for labels in maps)]


def _draw_picture(figure: "Figure", picture: NDArray[np.uint8], left: float, top: float) -> None:
    height, width = picture.shape[:2]
    axes = figure.add_axes(box(figure, left + (WIDTH - width) // 2, top, width, height))
    axes.imshow(picture, aspect="auto", interpolation="nearest", origin="upper")
    axes.axis("off")
