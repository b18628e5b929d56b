"""The data of semantic segmentation: the splits of masked images, their classes, and how these were decided."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmae.data.annotated.divided import Divided
from openmae.data.masks.source import Masked


@dataclass(frozen=True, kw_only=True)
class SegmentationData(Divided[Masked]):
    """The splits of a segmentation task; every image in them has a mask.

    Attributes:
        classes: names of the classes, in order of ids; `class 7` where there is no name.
        pixels: (classes,) the training pixels of each class; None where the survey was skipped.
        ignore_index: the stored value of ignored pixels, as decided; None: no value is ignored.
    """

    classes: tuple[str, ...]
    pixels: NDArray[np.int64] | None
    ignore_index: int | None
    reduce_zero_label: bool

    @property
    def num_classes(self) -> int:
        return len(self.classes)
