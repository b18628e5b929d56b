"""Pictures of a data set: a contact sheet with the images' sizes, and pairs of near-duplicates."""

from typing import TYPE_CHECKING

import numpy as np

from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.nodata import filled
from openmae.data.randomness import Permutation
from openmae.data.survey.findings import SplitCensus
from openmae.errors import shown
from openmae.pictures.sheet import ValueRange, rgb_picture
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
    wrapped_lines,
)

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure

SHEET, ACROSS, TILE = 48, 8, 150
MAX_BAD_SHOWN = 8  # unreadable images that are shown in addition
PAIR_TILE = 210
WRONG = "#b3261e"
LINE = 15

ImageRef = tuple[SplitCensus, int]  # an image: its split, and its index in the source


def sample_images(splits: list[SplitCensus], seed: int) -> list[ImageRef]:
    """A random sample of the images that were looked at, in their order, followed by some unreadable ones."""
    indices = np.concatenate([split.census.records["index"] for split in splits])
    split_numbers = np.repeat(np.arange(len(splits)), [len(split.census.records) for split in splits])
    rows = np.sort(Permutation(len(indices), seed)(np.arange(min(SHEET, len(indices)))))
    images = [(splits[split_numbers[row]], int(indices[row])) for row in rows.tolist()]
    sampled = {(split.name, index) for split, index in images}
    bad = [(split, index) for split in splits for index in list(split.census.bad)[:MAX_BAD_SHOWN]]
    return images + [(split, index) for split, index in bad if (split.name, index) not in sampled][:MAX_BAD_SHOWN]


def contact_sheet(images: list[ImageRef], report: dict, value_range: ValueRange) -> "Figure":
    """A grid of images with names and sizes; an unreadable one is a crossed box with the reason."""
    across = min(ACROSS, max(len(images), 4))
    height = TILE + 2 * LINE + PAD
    bad = f", {report['unreadable']:,} cannot be read" if report["unreadable"] else ""
    width = PAD + across * (TILE + PAD)
    text = (
        f"{len(images)} of {report['images']:,} images, drawn at random{bad}. Each is shown whole; its size is in "
        "pixels, width x height x channels."
    )
    lines = headings(f"Contact sheet: {report['path']}", text, width)
    top = heading_height(lines)
    figure = page(width, top + -(-len(images) // across) * height)
    draw_heading(figure, lines)
    for number, image_ref in enumerate(images):
        row, column = divmod(number, across)
        _draw(figure, image_ref, PAD + column * (TILE + PAD), top + row * height, TILE, value_range)
    return figure


def pair_sheet(pairs: list[tuple[ImageRef, ImageRef]], report: dict, value_range: ValueRange) -> "Figure":
    """Pairs side by side, the name and the split beneath each image."""
    across = min(3, len(pairs))
    wide, height = 2 * PAIR_TILE + 3 * PAD, PAIR_TILE + 3 * LINE + PAD
    width = PAD + across * wide
    text = (
        f"{report['near_groups']:,} groups of images look the same without being the same file, "
        f"{report['exact_groups']:,} are equal copies; {len(pairs)} pairs are shown, those of different splits first."
    )
    lines = headings(f"Images that look the same: {report['path']}", text, width)
    top = heading_height(lines)
    figure = page(width, top + -(-len(pairs) // across) * height)
    draw_heading(figure, lines)
    for number, pair in enumerate(pairs):
        row, column = divmod(number, across)
        for side, image_ref in enumerate(pair):
            left, upper = PAD + column * wide + side * (PAIR_TILE + 6), top + row * height
            _draw(figure, image_ref, left, upper, PAIR_TILE, value_range)
            crosses = pair[0][0] is not pair[1][0]
            draw_text(
                figure,
                left,
                upper + PAIR_TILE + 2 * LINE + 10,
                f"in {image_ref[0].name}",
                8,
                WRONG if crosses else FAINT,
            )
    return figure


def _draw(figure: "Figure", image_ref: ImageRef, left: float, top: float, tile: int, value_range: ValueRange) -> None:
    split, index = image_ref
    try:
        image = split.source.read(index)
    except BadImage as error:
        axes = figure.add_axes(box(figure, left, top, tile, tile), xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
        axes.plot([0, 1], [0, 1], [0, 1], [1, 0], color="#e3b7b3", lw=1)
        for edge in axes.spines.values():
            edge.set_color(WRONG)
        for number, line in enumerate(wrapped_lines(str(error), tile - 12)):
            draw_text(figure, left + tile / 2, top + tile / 2 + 14 * (number - 1), line, 8, WRONG, "center")
        size = "unreadable"
    else:
        picture = np.asarray(rgb_picture(filled(image), tile, value_range))
        down, right = (tile - picture.shape[0]) / 2, (tile - picture.shape[1]) / 2
        axes = figure.add_axes(box(figure, left + right, top + down, picture.shape[1], picture.shape[0]))
        axes.imshow(picture, aspect="auto", interpolation="nearest", origin="upper")
        axes.axis("off")
        size = f"{image.shape[1]} x {image.shape[0]} x {image.shape[2]}"
        size += "" if image.dtype == np.uint8 else f" {image.dtype}"
    draw_text(figure, left, top + tile + 10, fitted(shown(split.source.name(index)), tile, 8), 8, INK)
    draw_text(figure, left, top + tile + 10 + LINE, size, 7, FAINT)
