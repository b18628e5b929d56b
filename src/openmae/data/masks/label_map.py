"""The labels of one image, kept as its mask stores them and looked up only where they are used."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from openmae.data.decoding.strips import in_strips, strips
from openmae.data.masks.palette import IGNORED


class Labels(Protocol):
    """(H, W) class ids, of which parts can be taken: an array, or what looks a part up when it is taken."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, pixels: Any) -> NDArray[np.integer]: ...


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """The labels of an image, looked up part by part: of 100 megapixels a crop is used, and 2 bytes a pixel are much.

    Attributes:
        values: (H, W) as the mask stores them; each is that of a class or ignored.
        ids: the class id of each value, see `Numbering.table`.
        is_ignored: (H, W) pixels that are ignored whatever their value; None: there are none.
    """

    values: NDArray[np.integer]
    ids: NDArray[np.int16]
    is_ignored: NDArray[np.bool_] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, pixels: Any) -> NDArray[np.int16]:
        """The class ids of some pixels, `IGNORED` where none counts; `pixels` is an index of an array."""
        ids = self.ids[self.values[pixels]]
        if self.is_ignored is not None:
            ids[self.is_ignored[pixels]] = IGNORED
        return ids

    def whole(self) -> NDArray[np.int16]:
        """All of them, (H, W). An index array of NumPy has 8 bytes a pixel, so they are looked up in strips."""
        return in_strips(self.shape, lambda rows: self[rows])


def count_values(values: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The stored values of a mask that occur, rising, and the pixels of each.

    Args:
        values: (H, W), from -1 (a colour that the palette ignores) to 65535.
    """
    counts = np.zeros((1 << 8 if values.dtype == np.uint8 else 1 << 16) + 1, np.int64)
    for rows in strips(*values.shape):
        counts += np.bincount(values[rows].ravel().astype(np.int64) + 1, minlength=len(counts))
    found = np.flatnonzero(counts)
    return found - 1, counts[found]
