"""A large image in the model's channels and number type, brought there when a part of it is cut out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.data.pixels import BadImage
from openmae.data.preprocess import conform
from openmae.data.resize import LARGE_PIXELS, Pixels
from openmae.data.strips import strips


class Conformed:
    """`conform` of the parts that are cut out: equal pixels, for it works on one after the other."""

    def __init__(self, image: Pixels, channels: int, dtype: str) -> None:
        self._image, self._channels, self._dtype = image, channels, dtype
        self.shape = (*image.shape[:2], channels)

    def __getitem__(self, rows_and_columns: Any) -> NDArray:
        return conform(self._image[rows_and_columns], self._channels, self._dtype)


def conformed(image: Pixels, channels: int, dtype: str, min_side: int) -> Pixels:
    """`conform` of an image; of a large one when parts of it are cut out.

    Raises:
        BadImage: as `conform` does, now and not then.
    """
    height, width = image.shape[:2]
    if isinstance(image, np.ndarray):
        # What a matrix product rounds depends on its shape: luma of floats is made of the whole.
        is_luma = image.dtype == np.float32 and channels < image.shape[2]
        if height * width <= LARGE_PIXELS or is_luma:
            return conform(image, channels, dtype, min_side)
        if image.dtype == np.float32 and not all(np.isfinite(image[rows]).all() for rows in strips(height, width)):
            raise BadImage("values that are not finite")
    if min(height, width) < min_side:
        raise BadImage(f"{height}x{width} px, smaller than a patch of {min_side} px")
    large = Conformed(image, channels, dtype)
    large[:1, :1]  # whether channels and type fit shows at one pixel
    return large
