"""A class map in colour over its photograph."""

import numpy as np
from jaxtyping import Integer, UInt8

ALPHA = 0.5


def overlaid(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Integer[np.ndarray, "h w"],
    colours: UInt8[np.ndarray, "k 3"],
    alpha: float = ALPHA,
) -> UInt8[np.ndarray, "h w 3"]:
    """The photograph with each pixel's class colour laid over it; pixels with a label below 0 stay as they are.

    Args:
        colours: of each class, see `class_colours`.
        alpha: the share of the colour, 0..1.
    """
    assert image.shape == (*labels.shape, 3) and image.dtype == np.uint8, (image.shape, image.dtype, labels.shape)
    mixed = image.copy()
    is_shown = labels >= 0
    mixed[is_shown] = np.rint(
        (1 - alpha) * image[is_shown].astype(np.float32) + alpha * colours[labels[is_shown]].astype(np.float32)
    ).astype(np.uint8)
    return mixed
