"""Values that stand for none: NaN, what a TIFF marks so (GDAL's tag 42113), and what a person says (`--nodata`).

A decoded image with such values is a NumPy masked array; they are 0 beneath its mask. What a model sees there is the
mean of the channel, and patches that are mostly empty leave the loss.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmae.config import Preprocessing
from openmae.config.checks import MARKED, OFF
from openmae.data.decoding.pixels import BadImage
from openmae.data.decoding.strips import in_strips, strips

SIGN_IS_ENOUGH = 1e30  # lowest values of number types are written in many lengths: -3.4e38, -1.79769e308
MAX_MAGNITUDE = 1e18  # sums of a few hundred squares of more do not fit float32
GDAL_NODATA = 42113


@dataclass(frozen=True)
class Nodata:
    """Which values of an image stand for none.

    Attributes:
        value: what a person says, beside NaN and what a file marks itself.
    """

    value: float | None = None

    @classmethod
    def of(cls, setting: float | str) -> "Nodata | None":
        """What a setting says: `marked`, a value, or `off`, as in runs from before there was a choice.

        None for `off`: values are taken as they are, and NaN makes an image unreadable.
        """
        if setting == OFF:
            return None
        return cls() if setting == MARKED else cls(float(setting))

    def mask(self, array: NDArray, marked: float | None = None) -> NDArray[np.bool_] | None:
        """Where an array, in the number type of its file, stands for none; None where nowhere.

        Args:
            marked: the value that the file marks.
        """
        if not self.may_match(array.dtype, marked):
            return None
        values = self._values(array.dtype, marked)
        if array.ndim < 2:
            mask = _is_any(array, values)
        else:
            mask = in_strips(array.shape, lambda rows: _is_any(array[rows], values))
        return mask if mask.any() else None

    def may_match(self, dtype: np.dtype, marked: float | None = None) -> bool:
        """Whether numbers of this type can be ones that stand for none."""
        return dtype.kind == "f" or bool(self._values(dtype, marked))

    def _values(self, dtype: np.dtype, marked: float | None) -> list[float]:
        return [value for value in (self.value, marked) if value is not None and _can_hold(dtype, value)]


@dataclass(frozen=True)
class FrameNodata:
    """Which values of one picture of a file stand for none.

    Attributes:
        rule: what holds for the file.
        marked: the value that the file marks, in the numbers that its values become.
        marked_index: the entry of the palette that it marks.
    """

    rule: Nodata
    marked: float | None = None
    marked_index: float | None = None

    def may_match(self, dtype: np.dtype) -> bool:
        """Whether values of this type can stand for none."""
        return self.marked_index is not None or self.rule.may_match(dtype, self.marked)

    def mask(self, values: NDArray) -> NDArray[np.bool_] | None:
        """Where values of H x W x C, without alpha, stand for none; None where nowhere."""
        return self.rule.mask(values, self.marked)

    def mask_of_indices(self, indices: NDArray) -> NDArray[np.bool_] | None:
        """Where a picture with a palette, H x W, has the entry that stands for none: H x W x 1."""
        return None if self.marked_index is None else Nodata().mask(indices[..., None], self.marked_index)


def _can_hold(dtype: np.dtype, value: float) -> bool:
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return abs(value) >= SIGN_IS_ENOUGH or bool(np.isfinite(dtype.type(value)))
    if dtype.kind not in "iu" or not float(value).is_integer():
        return False
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= float(limits.max))


def _is_any(array: NDArray, values: list[float]) -> NDArray[np.bool_]:
    found = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    for value in values:
        if array.dtype.kind != "f":  # the highest of 64 bits is not a float
            found |= array == array.dtype.type(min(int(value), np.iinfo(array.dtype).max))
        elif abs(value) >= SIGN_IS_ENOUGH:
            found |= (array >= SIGN_IS_ENOUGH) if value > 0 else (array <= -SIGN_IS_ENOUGH)
        else:
            found |= array == array.dtype.type(value)
    return found


def zero_masked(array: NDArray, mask: NDArray[np.bool_] | None) -> NDArray:
    """The array with 0 for what stands for none: nothing else of it is ever computed with."""
    if mask is None:
        return array
    array = array if array.flags.writeable and array.flags.owndata else array.copy()
    array[mask] = 0
    return array


def zero_and_mask(image: NDArray, mask: NDArray[np.bool_] | None) -> NDArray:
    """The image with 0 beneath its mask; itself where nothing of it is empty."""
    return image if mask is None or not mask.any() else np.ma.MaskedArray(zero_masked(image, mask), mask)


def mask_union(one: NDArray[np.bool_] | None, other: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Where one mask or the other is; None where neither is."""
    return one if other is None else other if one is None else one | other


def attach_mask(image: NDArray, mask: NDArray[np.bool_] | None) -> NDArray:
    """An H x W x C image, masked where it is empty. Raises BadImage where it is empty everywhere."""
    if mask is None:
        return image
    if mask.all():
        raise BadImage("no values: all of them stand for none (nodata)")
    return np.ma.MaskedArray(image, mask)


def mask_of(image: object) -> NDArray[np.bool_] | None:
    """Where an H x W x C image is empty; None where nowhere."""
    if not isinstance(image, np.ma.MaskedArray) or image.mask is np.ma.nomask:
        return None
    return np.asarray(image.mask)


def values_of(image: NDArray) -> NDArray:
    """The values of an image as a plain array, 0 where it is empty."""
    return np.asarray(image.data) if isinstance(image, np.ma.MaskedArray) else image


def contiguous(image: NDArray) -> NDArray:
    """The image in rows, C-contiguous, with its mask."""
    mask = mask_of(image)
    values = np.ascontiguousarray(values_of(image))
    return values if mask is None else np.ma.MaskedArray(values, np.ascontiguousarray(mask))


def valid_values(image: NDArray) -> list[NDArray]:
    """Of each channel the values that stand for something, in one row."""
    mask = mask_of(image)
    planes = np.moveaxis(values_of(image), 2, 0)
    return [plane.ravel() if mask is None else plane[~mask[..., c]] for c, plane in enumerate(planes)]


def filled(image: NDArray) -> NDArray:
    """The image as a plain array, with the mean of its own channel where it is empty."""
    mask = mask_of(image)
    if mask is None:
        return values_of(image)
    means = [float(values.mean()) if len(values) else 0.0 for values in valid_values(image)]
    return fill_in(values_of(image).copy(), mask, means)


def fill_in(values: NDArray, mask: NDArray[np.bool_], fill: "list[float] | tuple[float, ...]") -> NDArray:
    """Put a value for each channel where the mask is; in place. Integers are rounded and clipped to their type."""
    number = np.array(fill, np.float64)
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        number = np.rint(number).clip(limits.min, limits.max)
    for channel, value in enumerate(number.astype(values.dtype)):
        values[..., channel][mask[..., channel]] = value
    return values


def mask_in_channels(mask: NDArray[np.bool_], channels: int) -> NDArray[np.bool_]:
    """The mask of the image that `to_channels` makes: grey repeated, or empty where any of three channels is."""
    have = mask.shape[2]
    if have == channels:
        return mask
    return np.repeat(mask, channels, axis=2) if have == 1 else np.asarray(mask.any(axis=2, keepdims=True))


def resolve_nodata(requested: float | str | None, model: Preprocessing | None) -> float | str:
    """The setting to read images with: what a person says, else what a model's images were read with, else `marked`."""
    return next((way for way in (requested, None if model is None else model.nodata) if way is not None), MARKED)


def stored_nodata(setting: float | str) -> float | str | None:
    """What a record of preprocessing says of a setting: nothing where only files say which values stand for none."""
    return None if setting == MARKED else setting


def fill_values(preprocessing: Preprocessing) -> tuple[float, ...]:
    """What the model sees where an image is empty: the mean of each channel, in its raw values."""
    low, high = preprocessing.value_range
    return tuple(low + mean * (high - low) for mean in preprocessing.mean)


def check_floats(image: NDArray, rule: Nodata | None) -> None:
    """Raise BadImage for floats that no model can take: not finite or, where there is a rule for them, extreme."""
    if image.dtype != np.float32:
        return
    values = values_of(image)  # 0 where it is empty
    if rule is None and not all(np.isfinite(values[rows]).all() for rows in strips(*image.shape[:2])):
        raise BadImage("values that are not finite")
    if rule is not None and (extreme := max(float(values.max()), -float(values.min()))) > MAX_MAGNITUDE:
        raise BadImage(f"values of {extreme:.3g} in size: --nodata VALUE says which stand for none")
