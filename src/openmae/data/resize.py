"""Resizing a large part of an image a strip of rows at a time: the same pixels as at once, in a fraction of the memory.

torch resizes rows first and columns then, each by itself; for 8-bit images it rounds in between. So what a strip's rows
become does not depend on the others.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from openmae.data.decoding.strips import in_strips, strips

LARGE_PIXELS = 1 << 22  # from here on memory matters more than a few calls


class Pixels(Protocol):
    """What can be cut: an H x W x C array, or what makes a part of one when it is asked for it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows_and_columns: Any) -> NDArray: ...


def resize(pixels: NDArray, size: tuple[int, int]) -> Tensor:
    """H x W x C -> (C, *size), bicubic and antialiased."""
    # torch warns of read-only memory, which Pillow's pictures are.
    planes = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)
    if planes.shape[1:] == size:
        return planes.contiguous()
    return F.interpolate(planes[None], size=size, mode="bicubic", antialias=True)[0].contiguous()


def resize_in_strips(image: Pixels, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """`resize` of a box (top, left, height, width) of an image, to the same bytes."""
    top, left, height, width = box

    def cut(rows: slice) -> NDArray:
        return image[top + rows.start : top + rows.stop, left : left + width]

    if (height, width) == size:
        return resize(in_strips((height, width), cut), size)
    narrow = [resize(cut(rows), (rows.stop - rows.start, size[1])) for rows in strips(height, width)]
    return F.interpolate(torch.cat(narrow, dim=1)[None], size=size, mode="bicubic", antialias=True)[0].contiguous()
