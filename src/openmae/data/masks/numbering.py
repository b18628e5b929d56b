"""From the values that masks store to class ids: which are ignored, which are classes, which are neither."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openmae.data.decoding.pixels import BadImage
from openmae.data.masks.class_names import MAX_ID
from openmae.data.masks.palette import IGNORED

_UNKNOWN = -2


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """What each stored value of a mask means.

    Attributes:
        num_classes: class ids are 0 … num_classes − 1; None: every value that is not ignored is a class.
        ignore_index: the stored value of ignored pixels; None: there is none.
        reduce_zero_label: 0 is ignored, and every other value is one more than its class.
        unused: class ids below `num_classes` that no pixel may have, as those without a name in a list with gaps.
    """

    num_classes: int | None = None
    ignore_index: int | None = None
    reduce_zero_label: bool = False
    unused: tuple[int, ...] = ()

    def labels_of(self, values: NDArray[np.int32]) -> NDArray[np.int32]:
        """The class ids of stored values, `IGNORED` for ignored pixels: (H, W) to (H, W).

        Raises BadImage where some values are no classes.
        """
        labels = self._table[values]
        is_unknown = labels == _UNKNOWN
        if is_unknown.any():
            found, counts = np.unique(values[is_unknown], return_counts=True)
            raise BadImage(self.reason_of(found, counts))
        return labels

    def ids_of(self, values: NDArray[np.int32]) -> NDArray[np.int32]:
        """As `labels_of`, but a value below `IGNORED` for what is no class."""
        return self._table[values]

    def reason_of(self, values: NDArray[np.int32], counts: NDArray[np.int64]) -> str:
        """Why a mask with these values, and so many pixels of each, is bad."""
        most = int(counts.argmax())
        others = f" and {len(values) - 1} other values" if len(values) > 1 else ""
        return f"value {values[most]} ({counts[most]} pixels){others} in no class"

    def stored_value(self, class_id: int) -> int:
        """The value by which masks store a class."""
        return class_id + self.reduce_zero_label

    @cached_property
    def _table(self) -> NDArray[np.int32]:
        """The class id of each value; the last entry is that of -1, a colour that the palette ignores."""
        ids = np.arange(MAX_ID + 2, dtype=np.int32) - self.reduce_zero_label
        if self.num_classes is not None:
            ids[ids >= self.num_classes] = _UNKNOWN
        ids[[class_id + self.reduce_zero_label for class_id in self.unused]] = _UNKNOWN
        if self.reduce_zero_label:
            ids[0] = IGNORED
        if self.ignore_index is not None and 0 <= self.ignore_index <= MAX_ID:
            ids[self.ignore_index] = IGNORED
        ids[-1] = IGNORED
        return ids
