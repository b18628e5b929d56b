"""`Objects`: the annotated objects of many images, held in a few arrays that reader processes share."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmae.data.coco.annotations import Annotations


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The objects of n images, those of one image after the other.

    Attributes:
        starts: (n + 1,) where each image's objects begin.
        boxes, labels, is_crowd, areas: of all objects, see `Annotations`.
        block, ends: the segmentations as JSON, one after the other, and where each ends; None where the data is read
            for boxes alone. A list of a million of them would be copied page by page into each reader process.
    """

    starts: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    block: bytes = b""
    ends: NDArray[np.int64] | None = None

    @classmethod
    def from_arrays(
        cls,
        num_images: int,
        owners: NDArray[np.int64],
        boxes: NDArray[np.float64],
        labels: NDArray[np.int64],
        is_crowd: NDArray[np.bool_],
        areas: NDArray[np.float64],
        segmentations: list[Any] | None,
    ) -> "Objects":
        """Objects in any order; `owners` says of which image each is. Of one image they keep their order."""
        order = np.argsort(owners, kind="stable")
        starts = np.searchsorted(owners[order], np.arange(num_images + 1))
        block, ends = b"", None
        if segmentations is not None:
            texts = [json.dumps(segmentations[i], separators=(",", ":")).encode() for i in order.tolist()]
            block, ends = b"".join(texts), np.cumsum([len(text) for text in texts], dtype=np.int64)
        return cls(
            starts=starts,
            boxes=boxes[order],
            labels=labels[order],
            is_crowd=is_crowd[order],
            areas=areas[order],
            block=block,
            ends=ends,
        )

    def of(self, index: int) -> Annotations:
        """The objects of an image."""
        start, stop = int(self.starts[index]), int(self.starts[index + 1])
        own = slice(start, stop)
        return Annotations(
            self.boxes[own],
            self.labels[own],
            self.is_crowd[own],
            self.areas[own],
            [] if self.ends is None else [self._segmentation(i) for i in range(start, stop)],
        )

    def counts(self, images: ArrayLike, num_classes: int) -> NDArray[np.int64]:
        """How many objects that are no crowds the images at these indices have of each class: (classes,)."""
        is_counted = np.isin(self.owners, np.asarray(images)) & ~self.is_crowd
        return np.bincount(self.labels[is_counted], minlength=num_classes).astype(np.int64)

    @property
    def owners(self) -> NDArray[np.int64]:
        """The index of each object's image: (m,)."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def without_segmentations(self) -> "Objects":
        return replace(self, block=b"", ends=None)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.block)
        for array in (self.starts, self.boxes, self.labels, self.is_crowd, self.areas):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _segmentation(self, i: int) -> Any:
        assert self.ends is not None
        return json.loads(self.block[int(self.ends[i - 1]) if i else 0 : int(self.ends[i])])
