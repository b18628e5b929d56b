"""Resizing a large crop in strips of rows: the same bytes as at once, in a fraction of the memory.

torch resizes horizontally first, each row by itself, and then vertically; for 8-bit images it rounds in between. So the
first pass can be made strip by strip.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from openmae.data.decoding.strips import in_strips, strips

LARGE_PIXELS = 1 << 22  # larger crops are resized in strips


class Pixels(Protocol):
    """An image that can be sliced: an H x W x C array, or an object that reads or converts a part when it is sliced."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows_and_columns: Any) -> NDArray: ...


def resize(pixels: NDArray, size: tuple[int, int]) -> Tensor:
    """H x W x C -> (C, *size), bicubic and antialiased."""
    # torch warns about read-only memory, such as that of Pillow's images.
    planes = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)
    if planes.shape[1:] == size:
        return planes.contiguous()
    return F.interpolate(planes[None], size=size, mode="bicubic", antialias=True)[0].contiguous()


def resize_in_strips(image: Pixels, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """`resize` of a box (top, left, height, width) of an image, with the same result to the byte."""
    top, left, height, width = box

    def read_rows(rows: slice) -> NDArray:
        return image[top + rows.start : top + rows.stop, left : left + width]

    if (height, width) == size:
        return resize(in_strips((height, width), read_rows), size)
    narrow = [resize(read_rows(rows), (rows.stop - rows.start, size[1])) for rows in strips(height, width)]
    return F.interpolate(torch.cat(narrow, dim=1)[None], size=size, mode="bicubic", antialias=True)[0].contiguous()
