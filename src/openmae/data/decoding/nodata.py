"""Nodata (missing) values: NaN, the value that a TIFF states in GDAL's tag 42113, and that of `--nodata`.

A decoded image with nodata is a NumPy masked array, 0 beneath its mask. The model sees the channel's mean there, and
patches that are mostly nodata are left out of the loss.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmae.config import Preprocessing
from openmae.config.checks import MARKED, OFF
from openmae.data.decoding.pixels import BadImage
from openmae.data.decoding.strips import in_strips, strips

EXTREME = 1e30  # beyond this only the sign is compared: fill values are rounded differently (-3.4e38, -1.79769e308)
MAX_MAGNITUDE = 1e18  # sums of a few hundred squares of larger values overflow float32
GDAL_NODATA = 42113


@dataclass(frozen=True)
class Nodata:
    """The rule that says which values of an image are nodata.

    Attributes:
        value: a nodata value from the command line, beside NaN and the value that a file states.
    """

    value: float | None = None

    @classmethod
    def from_setting(cls, setting: float | str) -> "Nodata | None":
        """The rule of a setting: `marked`, a value, or `off`, as in runs older than the setting.

        None for `off`: no value is nodata, and NaN makes an image unreadable.
        """
        if setting == OFF:
            return None
        return cls() if setting == MARKED else cls(float(setting))

    def mask(self, array: NDArray, marked: float | None = None) -> NDArray[np.bool_] | None:
        """The nodata mask of an array in the number type of its file; None where it has no nodata.

        Args:
            marked: the nodata value that the file states.
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
        """Whether arrays of this type can contain nodata."""
        return dtype.kind == "f" or bool(self._values(dtype, marked))

    def _values(self, dtype: np.dtype, marked: float | None) -> list[float]:
        return [value for value in (self.value, marked) if value is not None and _can_hold(dtype, value)]


@dataclass(frozen=True)
class FrameNodata:
    """The nodata rule of one image of a file.

    Attributes:
        rule: the rule of the file.
        marked: the nodata value that the file states, on the scale of the decoded values.
        marked_index: the palette index that the file states as nodata.
    """

    rule: Nodata
    marked: float | None = None
    marked_index: float | None = None

    def may_match(self, dtype: np.dtype) -> bool:
        """Whether decoded values of this type can contain nodata."""
        return self.marked_index is not None or self.rule.may_match(dtype, self.marked)

    def mask(self, values: NDArray) -> NDArray[np.bool_] | None:
        """The nodata mask of H x W x C values without alpha; None where they have no nodata."""
        return self.rule.mask(values, self.marked)

    def mask_of_indices(self, indices: NDArray) -> NDArray[np.bool_] | None:
        """The nodata mask, H x W x 1, of the palette indices of an image, H x W; None where none is nodata."""
        return None if self.marked_index is None else Nodata().mask(indices[..., None], self.marked_index)


def _can_hold(dtype: np.dtype, value: float) -> bool:
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return abs(value) >= EXTREME or bool(np.isfinite(dtype.type(value)))
    if dtype.kind not in "iu" or not float(value).is_integer():
        return False
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= float(limits.max))


def _is_any(array: NDArray, values: list[float]) -> NDArray[np.bool_]:
    mask = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    for value in values:
        if array.dtype.kind != "f":  # the highest 64-bit integer is not exact as a float
            mask |= array == array.dtype.type(min(int(value), np.iinfo(array.dtype).max))
        elif abs(value) >= EXTREME:
            mask |= (array >= EXTREME) if value > 0 else (array <= -EXTREME)
        else:
            mask |= array == array.dtype.type(value)
    return mask


def zero_masked(array: NDArray, mask: NDArray[np.bool_] | None) -> NDArray:
    """The array with 0 in place of nodata, so that extreme or non-finite values enter no computation."""
    if mask is None:
        return array
    array = array if array.flags.writeable and array.flags.owndata else array.copy()
    array[mask] = 0
    return array


def zero_and_mask(image: NDArray, mask: NDArray[np.bool_] | None) -> NDArray:
    """A masked array of the image, 0 beneath the mask; the image itself where the mask is empty."""
    return image if mask is None or not mask.any() else np.ma.MaskedArray(zero_masked(image, mask), mask)


def mask_union(one: NDArray[np.bool_] | None, other: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """The union of two masks; None where both are None."""
    return one if other is None else other if one is None else one | other


def attach_mask(image: NDArray, mask: NDArray[np.bool_] | None) -> NDArray:
    """An H x W x C image with a nodata mask. Raises BadImage where all of it is nodata."""
    if mask is None:
        return image
    if mask.all():
        raise BadImage("no values: all of them are nodata")
    return np.ma.MaskedArray(image, mask)


def nodata_mask(image: object) -> NDArray[np.bool_] | None:
    """The nodata mask of an H x W x C image; None where it has none."""
    if not isinstance(image, np.ma.MaskedArray) or image.mask is np.ma.nomask:
        return None
    return np.asarray(image.mask)


def values_of(image: NDArray) -> NDArray:
    """The values of an image as a plain array, 0 where they are nodata."""
    return np.asarray(image.data) if isinstance(image, np.ma.MaskedArray) else image


def contiguous(image: NDArray) -> NDArray:
    """The image and its mask, C-contiguous."""
    mask = nodata_mask(image)
    values = np.ascontiguousarray(values_of(image))
    return values if mask is None else np.ma.MaskedArray(values, np.ascontiguousarray(mask))


def valid_values(image: NDArray) -> list[NDArray]:
    """The values of each channel that are not nodata, flattened."""
    mask = nodata_mask(image)
    planes = np.moveaxis(values_of(image), 2, 0)
    return [plane.ravel() if mask is None else plane[~mask[..., c]] for c, plane in enumerate(planes)]


def filled(image: NDArray) -> NDArray:
    """The image as a plain array, with the channel's mean in place of nodata."""
    mask = nodata_mask(image)
    if mask is None:
        return values_of(image)
    means = [float(values.mean()) if len(values) else 0.0 for values in valid_values(image)]
    return fill_in(values_of(image).copy(), mask, means)


def fill_in(values: NDArray, mask: NDArray[np.bool_], fill: "list[float] | tuple[float, ...]") -> NDArray:
    """Replace masked values by the channel's `fill`, in place; for integers it is rounded and clipped."""
    number = np.array(fill, np.float64)
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        number = np.rint(number).clip(limits.min, limits.max)
    for channel, value in enumerate(number.astype(values.dtype)):
        values[..., channel][mask[..., channel]] = value
    return values


def mask_in_channels(mask: NDArray[np.bool_], channels: int) -> NDArray[np.bool_]:
    """The mask that belongs to `to_channels` of an image: grey repeated, or nodata where any of three channels is."""
    existing = mask.shape[2]
    if existing == channels:
        return mask
    return np.repeat(mask, channels, axis=2) if existing == 1 else np.asarray(mask.any(axis=2, keepdims=True))


def resolve_nodata(requested: float | str | None, model: Preprocessing | None) -> float | str:
    """The nodata setting to read images with: the requested one, else the model's, else `marked`."""
    settings = (requested, None if model is None else model.nodata)
    return next((setting for setting in settings if setting is not None), MARKED)


def stored_nodata(setting: float | str) -> float | str | None:
    """The setting as preprocessing stores it: None for `marked`."""
    return None if setting == MARKED else setting


def fill_values(preprocessing: Preprocessing) -> tuple[float, ...]:
    """What the model sees in place of nodata: the mean of each channel, as raw values."""
    low, high = preprocessing.value_range
    return tuple(low + mean * (high - low) for mean in preprocessing.mean)


def check_floats(image: NDArray, rule: Nodata | None) -> None:
    """Raise BadImage for floats that are not finite or, where a nodata rule masked NaN, extreme."""
    if image.dtype != np.float32:
        return
    values = values_of(image)  # 0 where they are nodata
    if rule is None and not all(np.isfinite(values[rows]).all() for rows in strips(*image.shape[:2])):
        raise BadImage("values that are not finite")
    if rule is not None and (extreme := max(float(values.max()), -float(values.min()))) > MAX_MAGNITUDE:
        raise BadImage(f"values of {extreme:.3g} in size: --nodata VALUE says which are nodata")
