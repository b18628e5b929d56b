"""`Annotations`: the objects of one image."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Annotations:
    """The objects of one image, at its stored size; boxes lie within it and have an area.

    Attributes:
        boxes: (N, 4) float64: left, top, right, bottom in pixels.
        labels: (N,) int64 class ids, from 0 (not the file's category ids).
        is_crowd: (N,) bool: a region of many objects: not trained on; in evaluation what is found there counts neither
            way.
        areas: (N,) float64 in square pixels: the file's, or the mask's, or the box's; they say which size counts.
        segmentations: N times the file's own: polygons as lists of x, y, x, y, …, or run lengths as {"size", "counts"};
            None where an object has only a box. Empty where the data is read for boxes alone.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    segmentations: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.boxes)
