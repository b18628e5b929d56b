"""A large image in the model's channels and number type, brought there when a part of it is cut out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.config import Preprocessing
from openmae.data.decoding.nodata import fill_values, values_of
from openmae.data.decoding.pixels import BadImage
from openmae.data.decoding.strips import strips
from openmae.data.preprocess import conform
from openmae.data.resize import LARGE_PIXELS, Pixels
from openmae.data.value_scale import Rescale


class Conformed:
    """`conform` of the parts that are cut out: equal pixels, for it works on one after the other."""

    def __init__(
        self,
        image: Pixels,
        channels: int,
        dtype: str,
        rescale: Rescale | None = None,
        fill: tuple[float, ...] | None = None,
    ) -> None:
        self._image, self._channels, self._dtype, self._rescale = image, channels, dtype, rescale
        self._fill = fill
        self.shape = (*image.shape[:2], channels)

    def __getitem__(self, rows_and_columns: Any) -> NDArray:
        part = self._image[rows_and_columns]
        return conform(part, self._channels, self._dtype, rescale=self._rescale, fill=self._fill)


def conform_to_model(image: Pixels, preprocessing: Preprocessing, min_side: int = 1) -> Pixels:
    """`conformed` to what a record says. Raises BadImage as that does."""
    p = preprocessing
    return conformed(image, p.channels, p.dtype, min_side, Rescale.of(p), fill_values(p))


def conformed(
    image: Pixels,
    channels: int,
    dtype: str,
    min_side: int,
    rescale: Rescale | None = None,
    fill: tuple[float, ...] | None = None,
) -> Pixels:
    """`conform` of an image; of a large one when parts of it are cut out.

    Raises:
        BadImage: as `conform` does, now and not then.
    """
    height, width = image.shape[:2]
    if isinstance(image, np.ndarray):
        # What a matrix product rounds depends on its shape: luma of floats is made of the whole.
        is_luma = image.dtype == np.float32 and channels < image.shape[2]
        if height * width <= LARGE_PIXELS or is_luma:
            return conform(image, channels, dtype, min_side, rescale, fill)
        values = values_of(image)  # 0 where it is empty
        if image.dtype == np.float32 and not all(np.isfinite(values[rows]).all() for rows in strips(height, width)):
            raise BadImage("values that are not finite")
    if min(height, width) < min_side:
        raise BadImage(f"{height}x{width} px, smaller than a patch of {min_side} px")
    large = Conformed(image, channels, dtype, rescale, fill)
    large[:1, :1]  # whether channels and type fit shows at one pixel
    return large
