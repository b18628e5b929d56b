"""Images of a report side by side, each with what it is, what was said of it, and its name."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from openmae.config import Preprocessing
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.nodata import filled
from openmae.data.preprocess import conform
from openmae.data.sources.open import Source
from openmae.data.value_scale import Rescale
from openmae.pictures.sheet import to_picture
from openmae.pictures.text import FAINT, INK, PAD, box, fitted, headings, headings_height, page, write, write_headings

TILE = 200  # height of an image, in pixels
WRONG = "#b3261e"


@dataclass(frozen=True)
class Tile:
    """An image by its index in the source, what it is, what was said of it, and whether that is to stand out."""

    index: int
    true: str
    said: str
    is_wrong: bool


def tiled_picture(
    title: str, below: str, tiles: list[Tile], source: Source, preprocessing: Preprocessing, tile_width: int = TILE
) -> Figure:
    """The tiles in rows below a heading; an image that cannot be read any more says so."""
    across = max(min(1200 // tile_width, len(tiles)), 3)
    width, height = PAD + across * (tile_width + PAD), TILE + 62
    lines = headings(title, below, width)
    top = headings_height(lines)
    figure = page(width, top + -(-len(tiles) // across) * height)
    write_headings(figure, lines)
    for number, tile in enumerate(tiles):
        line, column = divmod(number, across)
        x, y = PAD + column * (tile_width + PAD), top + line * height
        try:
            picture = np.asarray(_shown_as_it_is(source.read(tile.index), preprocessing, tile_width))
        except BadImage as error:  # it was readable a moment ago
            text = fitted(f"unreadable: {error}", tile_width, 8)
            write(figure, x + tile_width / 2, y + TILE / 2, text, 8, WRONG, "center")
        else:
            down, left = y + (TILE - picture.shape[0]) // 2, x + (tile_width - picture.shape[1]) // 2
            axes = figure.add_axes(box(figure, left, down, picture.shape[1], picture.shape[0]))
            axes.imshow(picture, aspect="auto", interpolation="nearest", origin="upper")
            axes.axis("off")
        write(figure, x, y + TILE + 11, tile.true, 9)
        write(figure, x, y + TILE + 26, tile.said, 9, WRONG if tile.is_wrong else INK)
        write(figure, x, y + TILE + 40, fitted(source.name(tile.index), tile_width, 7), 7, FAINT)
    return figure


def _shown_as_it_is(image: NDArray, preprocessing: Preprocessing, width: int) -> Image.Image:
    """A decoded image as an RGB picture that just fits `width` × TILE pixels; small ones keep their hard pixels."""
    step = max(1, min(image.shape[0] // (4 * TILE), image.shape[1] // (4 * width)))
    part = filled(image[::step, ::step])
    values = conform(part, image.shape[2], preprocessing.dtype, rescale=Rescale.from_preprocessing(preprocessing))
    low, high = preprocessing.value_range
    picture = to_picture(torch.from_numpy((values.astype(np.float32) - low) / (high - low)).permute(2, 0, 1))
    scale = min(width / picture.width, TILE / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    is_small = scale >= 2
    return picture.resize(size, Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS)
