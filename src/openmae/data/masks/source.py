"""Images with a class id for every pixel, as a source; and subsets of it."""

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmae.config.checks import MAX_PIXELS
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.regions import StoredImage
from openmae.data.masks.label_map import LabelMap
from openmae.data.masks.mask_file import decode_mask
from openmae.data.masks.numbering import Numbering
from openmae.data.masks.palette import Palette
from openmae.data.sources.folder import FolderSource, Ignored
from openmae.data.sources.open import Source
from openmae.data.sources.views import IndexedSubset

_NO_CLASSES = 4096  # deeper than any path: an image as a whole has no class, whatever its folder is called


@runtime_checkable
class Masked(Source, Protocol):
    """A source whose images have labels for every pixel."""

    def label_map(self, index: int) -> LabelMap:
        """The class id of each pixel, `IGNORED` where none counts: (H, W), the size of the image as it is read.

        Raises BadImage for a mask that cannot be used.
        """
        ...

    def labels(self, index: int) -> NDArray[np.int16]:
        """`label_map`, looked up as a whole."""
        ...


class MaskedSource:
    """Pairs of image and mask file below a root.

    Args:
        images, masks: paths relative to it, sorted by image; what has one position belongs together.
        numbering: what stored values mean.
        classes: the names of the classes.
        reading: what `FolderSource` takes to read images.
    """

    def __init__(
        self,
        root: Path,
        images: list[bytes],
        masks: list[bytes],
        *,
        numbering: Numbering,
        classes: tuple[str, ...] | None = None,
        palette: Palette | None = None,
        ignored: Ignored | None = None,
        **reading: Any,
    ) -> None:
        assert len(images) == len(masks) and images == sorted(images)
        self.images = FolderSource(root, images, class_depth=_NO_CLASSES, ignored=ignored, **reading)
        self.masks = FolderSource(root, masks)
        # The masks' source sorts them by their own paths.
        positions = {mask: position for position, mask in enumerate(sorted(masks))}
        self._mask_ids = np.array([positions[mask] for mask in masks], np.int32)
        self.numbering, self.palette, self.classes = numbering, palette, classes
        self.ignored = ignored or Ignored()
        self.axes, self.nodata = self.images.axes, self.images.nodata
        self._max_pixels = reading.get("max_pixels", MAX_PIXELS)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def mask_name(self, index: int) -> str:
        """The path of the mask file, relative to the root."""
        return self.masks.name(int(self._mask_ids[index]))

    def label(self, index: int) -> None:
        """None: an image as a whole has no label, see `labels`."""
        return None

    def read(self, index: int) -> np.ndarray:
        return self.images.read(index)

    def stored_image(self, index: int) -> StoredImage | None:
        return self.images.stored_image(index)

    def label_map(self, index: int) -> LabelMap:
        """The class id of each pixel, `IGNORED` where none counts: (H, W), the size of the image as it is read.

        Raises BadImage for a mask that cannot be read, has another size than the image, or values that are no classes.
        """
        return self.numbering.label_map(self.stored_labels(index))

    def labels(self, index: int) -> NDArray[np.int16]:
        """`label_map`, looked up as a whole."""
        return self.label_map(index).whole()

    def mask_pixels(self, index: int) -> int:
        """How many pixels the mask has, by its file's header; 0 where that cannot be read."""
        try:
            height, width = self.masks.size(int(self._mask_ids[index]))
        except BadImage:
            return 0
        return height * width

    def stored_labels(self, index: int) -> NDArray[np.integer]:
        """The values as the mask stores them: (H, W). Raises BadImage as `labels`, but for values of no class."""
        header = self.images.header(index)
        try:
            values = decode_mask(self.masks.encoded(int(self._mask_ids[index])), self.palette, self._max_pixels)
        except BadImage as error:
            raise BadImage(f"mask: {error}") from error
        if values.shape != header.size:
            image, mask = (f"{height} x {width}" for height, width in (header.size, values.shape))
            turned = ", which EXIF turns" if header.size == values.shape[::-1] and header.orientation != 1 else ""
            raise BadImage(f"a mask of {mask} pixels for an image of {image}{turned}")
        return values

    def numbered(self, numbering: Numbering, classes: tuple[str, ...]) -> "MaskedSource":
        """The same pairs with other meanings of the stored values."""
        other = copy.copy(self)
        other.numbering, other.classes = numbering, classes
        return other

    def fingerprint(self) -> str:
        rule = replace(self.numbering, num_classes=None, unused=())
        text = repr((rule, self.classes, self.palette)).encode("utf-8", "backslashreplace")
        masks = self.masks.fingerprint()
        digest = hashlib.sha256(text + masks.encode() + self._mask_ids.tobytes()).hexdigest()
        return f"{self.images.fingerprint()} {digest}"


class MaskedSubset(IndexedSubset):
    """The pairs of `source` at `indices`, in that order."""

    source: Masked

    def __init__(self, source: Masked, indices: ArrayLike) -> None:
        super().__init__(source, indices)

    def label_map(self, index: int) -> LabelMap:
        return self.source.label_map(self._checked(index))

    def labels(self, index: int) -> NDArray[np.int16]:
        return self.label_map(index).whole()
