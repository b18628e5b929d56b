"""From the values that masks store to class ids: which are ignored, which are classes, which are neither."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openmae.config.segmenter_shape import MAX_SEGMENT_CLASSES
from openmae.data.decoding.pixels import BadImage
from openmae.data.masks.class_names import MAX_ID
from openmae.data.masks.label_map import LabelMap, count_values
from openmae.data.masks.palette import IGNORED

_UNKNOWN = -2


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """What each stored value of a mask means.

    Attributes:
        num_classes: class ids are 0 … num_classes − 1; None: every value that is not ignored is a class, up to what a
            model can have.
        ignore_index: the stored value of ignored pixels; None: there is none.
        reduce_zero_label: 0 is ignored, and every other value is one more than its class.
        unused: class ids below `num_classes` that no pixel may have, as those without a name in a list with gaps.
    """

    num_classes: int | None = None
    ignore_index: int | None = None
    reduce_zero_label: bool = False
    unused: tuple[int, ...] = ()

    def label_map(self, values: NDArray[np.integer]) -> LabelMap:
        """The labels of the stored values of a mask, (H, W). Raises BadImage where some values are no classes."""
        found, counts = count_values(values)
        is_unknown = self.ids_of(found) < IGNORED
        if is_unknown.any():
            raise BadImage(self.reason_of(found[is_unknown], counts[is_unknown]))
        return LabelMap(values=values, ids=self.table)

    def ids_of(self, values: NDArray[np.integer]) -> NDArray[np.int16]:
        """The class id of each of a few stored values, `IGNORED` for ignored ones, below it for what is no class."""
        return self.table[values]

    def reason_of(self, values: NDArray[np.integer], counts: NDArray[np.int64]) -> str:
        """Why a mask with these values, and so many pixels of each, is bad."""
        most = int(counts.argmax())
        others = f" and {len(values) - 1} other values" if len(values) > 1 else ""
        return f"value {values[most]} ({counts[most]} pixels){others} in no class"

    def stored_value(self, class_id: int) -> int:
        """The value by which masks store a class."""
        return class_id + self.reduce_zero_label

    @cached_property
    def table(self) -> NDArray[np.int16]:
        """The class id of each value; the last entry is that of -1, a colour that the palette ignores."""
        ids = np.arange(MAX_ID + 2, dtype=np.int32) - self.reduce_zero_label
        ids[ids >= (MAX_SEGMENT_CLASSES if self.num_classes is None else self.num_classes)] = _UNKNOWN
        ids[[class_id + self.reduce_zero_label for class_id in self.unused]] = _UNKNOWN
        if self.reduce_zero_label:
            ids[0] = IGNORED
        if self.ignore_index is not None and 0 <= self.ignore_index <= MAX_ID:
            ids[self.ignore_index] = IGNORED
        ids[-1] = IGNORED
        return ids.astype(np.int16)
