"""A grid of images for a report, each with its label, the prediction and its name."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from openmae.config import Preprocessing
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.nodata import filled
from openmae.data.preprocess import conform
from openmae.data.sources.open import Source
from openmae.data.value_scale import Rescale
from openmae.pictures.sheet import to_picture
from openmae.pictures.text import FAINT, INK, PAD, box, draw_heading, draw_text, fitted, heading_height, headings, page

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure

IMAGE_HEIGHT = 200  # pixels
WRONG = "#b3261e"


@dataclass(frozen=True)
class CaptionedImage:
    """An image by its index in the source, captions for label and prediction, and whether to highlight the latter."""

    index: int
    label: str
    prediction: str
    is_wrong: bool


def captioned_grid(
    title: str,
    subtitle: str,
    images: list[CaptionedImage],
    source: Source,
    preprocessing: Preprocessing,
    image_width: int = IMAGE_HEIGHT,
) -> "Figure":
    """The images in rows below a heading; where one cannot be read any more, the reason in its place."""
    across = max(min(1200 // image_width, len(images)), 3)
    width, height = PAD + across * (image_width + PAD), IMAGE_HEIGHT + 62
    lines = headings(title, subtitle, width)
    top = heading_height(lines)
    figure = page(width, top + -(-len(images) // across) * height)
    draw_heading(figure, lines)
    for number, image in enumerate(images):
        line, column = divmod(number, across)
        x, y = PAD + column * (image_width + PAD), top + line * height
        try:
            picture = np.asarray(_thumbnail(source.read(image.index), preprocessing, image_width))
        except BadImage as error:  # it was readable a moment ago
            text = fitted(f"unreadable: {error}", image_width, 8)
            draw_text(figure, x + image_width / 2, y + IMAGE_HEIGHT / 2, text, 8, WRONG, "center")
        else:
            down, left = y + (IMAGE_HEIGHT - picture.shape[0]) // 2, x + (image_width - picture.shape[1]) // 2
            axes = figure.add_axes(box(figure, left, down, picture.shape[1], picture.shape[0]))
            axes.imshow(picture, aspect="auto", interpolation="nearest", origin="upper")
            axes.axis("off")
        draw_text(figure, x, y + IMAGE_HEIGHT + 11, image.label, 9)
        draw_text(figure, x, y + IMAGE_HEIGHT + 26, image.prediction, 9, WRONG if image.is_wrong else INK)
        draw_text(figure, x, y + IMAGE_HEIGHT + 40, fitted(source.name(image.index), image_width, 7), 7, FAINT)
    return figure


def _thumbnail(image: NDArray, preprocessing: Preprocessing, width: int) -> Image.Image:
    """A decoded image as an RGB picture that just fits `width` × TILE pixels; small ones are enlarged unsmoothed."""
    step = max(1, min(image.shape[0] // (4 * IMAGE_HEIGHT), image.shape[1] // (4 * width)))
    subsampled = filled(image[::step, ::step])
    values = conform(subsampled, image.shape[2], preprocessing.dtype, rescale=Rescale.from_preprocessing(preprocessing))
    low, high = preprocessing.value_range
    picture = to_picture(torch.from_numpy((values.astype(np.float32) - low) / (high - low)).permute(2, 0, 1))
    scale = min(width / picture.width, IMAGE_HEIGHT / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    is_small = scale >= 2
    return picture.resize(size, Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS)
