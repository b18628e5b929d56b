"""A trained segmenter as `openmae.load` returns it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from openmae.config.checks import MAX_PIXELS, check_range
from openmae.data.augment import resized_crop
from openmae.data.masks.augment import scaled_size
from openmae.errors import RequestError
from openmae.inference.models import EncoderModel, ImageLike, check_images
from openmae.inference.segmentation import WINDOWS_AT_ONCE, WholeImageSegmenter, Windows
from openmae.transfer.segmentation.segmenter import Segmenter


@dataclass(frozen=True)
class SegmenterModel(EncoderModel):
    """A trained segmenter with its preprocessing and class names.

    Attributes:
        segmenter: in evaluation mode.
    """

    segmenter: Segmenter

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.description["classes"])

    @property
    def windows(self) -> Windows | None:
        """How it segments whole images unless told otherwise: as it was evaluated in training."""
        return self.whole_image_segmenter().windows

    def whole_image_segmenter(
        self,
        *,
        inference: str | None = None,
        stride: int | None = None,
        precision: str = "fp32",
        windows_at_once: int = WINDOWS_AT_ONCE,
    ) -> WholeImageSegmenter:
        """The model for whole images.

        Args:
            inference: slide or whole. None: slide where a stride is given, else as it was evaluated in training.
            stride: pixels between windows; None: as in training.

        Raises:
            RequestError: the stride is larger than the model's crops.
        """
        size = self.preprocessing.image_size
        if stride is not None and stride > min(size):
            raise RequestError(f"--stride got {stride}, more than the model's crops of {min(size)} px: give less")
        inference = inference or (self.description["inference"] if stride is None else "slide")
        return WholeImageSegmenter(
            model=self.segmenter,
            preprocessing=self.preprocessing,
            windows=Windows.from_settings(inference, stride or self.description["stride"], size),
            device=self.device,
            precision=precision,
            windows_at_once=windows_at_once,
        )

    def segment(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        max_pixels: int = MAX_PIXELS,
        batch_size: int = WINDOWS_AT_ONCE,
    ) -> list[Tensor]:
        """The class of each pixel of whole images, each at its own size: (H, W) int64 on the CPU, indices of `classes`.

        Args:
            max_pixels: image files of more pixels are refused.
            batch_size: windows at a time; fewer where memory runs out.

        Raises:
            RequestError: there are no images, or one cannot be read or does not fit the model.
            Fault: a score is not finite, or not even one window fits into memory.
        """
        check_images(images)
        check_range("batch_size", batch_size, 1)
        items = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else list(images)
        segmenter, doubts = self.whole_image_segmenter(windows_at_once=batch_size), list[str]()
        maps = [self._segment(segmenter, item, max_pixels, doubts) for item in items]
        if doubts:
            warnings.warn(f"{len(doubts)} of {len(items)} images, the first: {doubts[0]}", stacklevel=2)
        return maps

    def _segment(self, segmenter: WholeImageSegmenter, item: ImageLike, max_pixels: int, doubts: list[str]) -> Tensor:
        _, pixels = self._decoded(item, max_pixels, doubts)
        size = (pixels.shape[0], pixels.shape[1])
        image = resized_crop(pixels, (0, 0, *size), scaled_size(size, self.preprocessing.image_size))
        return segmenter.class_map(image, size).cpu()
