"""Large images converted to the model's channels and number type only where they are cropped."""

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
    """An image to which `conform` is applied part by part, when it is sliced: it works on each pixel by itself."""

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
    """The image in the channels and number type of a model's preprocessing (`conformed`). Raises BadImage."""
    p = preprocessing
    return conformed(image, p.channels, p.dtype, min_side, Rescale.from_preprocessing(p), fill_values(p))


def conformed(
    image: Pixels,
    channels: int,
    dtype: str,
    min_side: int,
    rescale: Rescale | None = None,
    fill: tuple[float, ...] | None = None,
) -> Pixels:
    """`conform` of an image; a large one is converted lazily, when it is sliced.

    Raises:
        BadImage: see `conform`; also for a large image it is raised here, not when the image is sliced.
    """
    height, width = image.shape[:2]
    if isinstance(image, np.ndarray):
        # The rounding of a matrix product depends on its shape, so luma of floats is computed of the whole image.
        is_luma = image.dtype == np.float32 and channels < image.shape[2]
        if height * width <= LARGE_PIXELS or is_luma:
            return conform(image, channels, dtype, min_side, rescale, fill)
        values = values_of(image)  # 0 where it is nodata
        if image.dtype == np.float32 and not all(np.isfinite(values[rows]).all() for rows in strips(height, width)):
            raise BadImage("values that are not finite")
    if min(height, width) < min_side:
        raise BadImage(f"{height}x{width} px, smaller than a patch of {min_side} px")
    large = Conformed(image, channels, dtype, rescale, fill)
    large[:1, :1]  # one pixel shows whether channels and type fit
    return large
