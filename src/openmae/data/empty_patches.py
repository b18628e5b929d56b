"""Which patches of a training crop are empty, i.e. mostly nodata: they are left out of the loss (`--nodata`)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.data.augment import Box, resized_crop
from openmae.data.decoding.nodata import mask_in_channels, nodata_mask
from openmae.data.resize import Pixels

EMPTY_SHARE = 0.5  # a patch is empty if more of its values than this are nodata


def empty_patches_of(
    image: NDArray | Pixels, channels: int, box: Box, size: tuple[int, int], patch_size: int, is_flipped: bool = False
) -> Tensor | None:
    """`empty_patches` of a decoded image for a model of so many channels; None where it has no nodata values."""
    is_nodata = nodata_mask_for(image, channels)
    return None if is_nodata is None else empty_patches(is_nodata, box, size, patch_size, is_flipped)


def nodata_mask_for(image: NDArray | Pixels, channels: int) -> NDArray[np.bool_] | None:
    """The nodata mask of a decoded image for a model of so many channels (grey: 1 for all); None where it has none."""
    is_nodata = nodata_mask(image)
    return is_nodata if is_nodata is None or is_nodata.shape[2] == 1 else mask_in_channels(is_nodata, channels)


def empty_patches(
    is_nodata: NDArray[np.bool_], box: Box, size: tuple[int, int], patch_size: int, is_flipped: bool = False
) -> Tensor:
    """Which patches of a resized crop have more nodata than other values: (N,) bool.

    Args:
        is_nodata: H x W x C, the image's nodata mask.
        box: the crop, which is resized to `size` and perhaps mirrored.
    """
    share = _shares(is_nodata, box, size)
    share = share.flip(-1) if is_flipped else share
    rows, columns = size[0] // patch_size, size[1] // patch_size
    patches = share.reshape(len(share), rows, patch_size, columns, patch_size)
    return (patches.mean(dim=(0, 2, 4)) > EMPTY_SHARE).flatten()


def empty_values(is_nodata: NDArray[np.bool_], box: Box, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which values of a resized crop come from nodata values for the greater part: (*size, C)."""
    return np.asarray(_shares(is_nodata, box, size).permute(1, 2, 0).numpy() > EMPTY_SHARE)


def _shares(is_nodata: NDArray[np.bool_], box: Box, size: tuple[int, int]) -> Tensor:
    """The fraction of nodata in each value of a resized crop: (C, h, w)."""
    return resized_crop(_FloatMask(is_nodata), box, size)


class _FloatMask:
    """A mask as float32, converted when a part is cut out (`Pixels`)."""

    def __init__(self, mask: Pixels) -> None:
        self._mask, self.shape = mask, mask.shape

    def __getitem__(self, rows_and_columns: object) -> NDArray:
        return self._mask[rows_and_columns].astype(np.float32)


def stack_empty_patches(patches: Sequence[Tensor | None]) -> Tensor | None:
    """Stack the empty patches of a batch's images: (B, N) bool; None where no image has one."""
    known = next((empty for empty in patches if empty is not None), None)
    if known is None:
        return None
    rows = torch.stack([torch.zeros_like(known) if empty is None else empty for empty in patches])
    return rows if bool(rows.any()) else None
