"""Images with annotated objects, as a source; and subsets of it."""

import copy
import hashlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from openmae.data.coco.annotations import Annotations
from openmae.data.coco.objects import Objects
from openmae.data.decoding.regions import StoredImage
from openmae.data.sources.folder import FolderSource, Ignored
from openmae.data.sources.open import Source
from openmae.data.sources.views import IndexedSubset

Id = int | str
_NO_CLASSES = 4096  # deeper than any path: an image as a whole has no class, whatever its folder is called


@runtime_checkable
class Annotated(Source, Protocol):
    """A source whose images have annotated objects."""

    def annotations(self, index: int) -> Annotations:
        """The objects of an image."""
        ...

    def image_id(self, index: int) -> Id:
        """The id of an image in its COCO file."""
        ...


class AnnotatedSource:
    """Image files below a root, and their objects.

    Args:
        images: paths relative to the root, sorted; each once.
        objects: of these images, in their order.
        image_ids: of these images, in their order.
        classes: the names of the classes.
        reading: what `FolderSource` takes to read images.
    """

    def __init__(
        self,
        root: Path,
        images: list[bytes],
        objects: Objects,
        image_ids: list[Id],
        *,
        classes: tuple[str, ...],
        ignored: Ignored | None = None,
        **reading: Any,
    ) -> None:
        assert images == sorted(images) and len(images) == len(image_ids) == len(objects.starts) - 1
        self.images = FolderSource(root, images, class_depth=_NO_CLASSES, ignored=ignored, **reading)
        self.objects = objects
        self.classes: tuple[str, ...] | None = classes
        is_of_numbers = all(isinstance(number, int) and abs(number) < 1 << 62 for number in image_ids)
        self._image_ids = np.array(image_ids, np.int64) if is_of_numbers else list(image_ids)
        self.ignored = self.images.ignored
        self.axes, self.nodata = self.images.axes, self.images.nodata

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def label(self, index: int) -> None:
        """None: an image as a whole has no label, see `annotations`."""
        return None

    def read(self, index: int) -> np.ndarray:
        return self.images.read(index)

    def stored_image(self, index: int) -> StoredImage | None:
        return self.images.stored_image(index)

    def annotations(self, index: int) -> Annotations:
        """The objects of an image."""
        return self.objects.of(index)

    def image_id(self, index: int) -> Id:
        """The id of an image in its COCO file."""
        number = self._image_ids[index]
        return number if isinstance(number, str) else int(number)

    def without_segmentations(self) -> "AnnotatedSource":
        """The same images, read for boxes alone."""
        other = copy.copy(self)
        other.objects = self.objects.without_segmentations()
        return other

    def fingerprint(self) -> str:
        names = repr(self.classes).encode("utf-8", "backslashreplace")
        digest = hashlib.sha256(names + self.objects.fingerprint().encode()).hexdigest()
        return f"{self.images.fingerprint()} {digest}"


class AnnotatedSubset(IndexedSubset):
    """The images of `source` at `indices` with their objects, in that order."""

    source: Annotated

    def __init__(self, source: Annotated, indices: ArrayLike) -> None:
        super().__init__(source, indices)

    def annotations(self, index: int) -> Annotations:
        return self.source.annotations(self._checked(index))

    def image_id(self, index: int) -> Id:
        return self.source.image_id(self._checked(index))
