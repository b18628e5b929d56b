"""The data of detection: the splits of annotated images, their classes, and whether objects have masks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmae.data.annotated.divided import Divided
from openmae.data.coco.source import Annotated, Id


@dataclass(frozen=True, kw_only=True)
class DetectionData(Divided[Annotated]):
    """The splits of a detection task; images without objects are among them.

    Attributes:
        classes: names of the classes, in order of category ids.
        category_ids: the COCO files' id of each class.
        has_masks: every object that is no crowd has a segmentation, and the data was not opened for boxes alone.
        objects: (classes,) how many objects of each class train has, crowds not counted.
    """

    classes: tuple[str, ...]
    category_ids: tuple[Id, ...]
    has_masks: bool
    objects: NDArray[np.int64]

    @property
    def num_classes(self) -> int:
        return len(self.classes)
