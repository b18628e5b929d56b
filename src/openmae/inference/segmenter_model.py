"""A trained segmenter as `openmae.load` returns it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openmae.config.checks import MAX_PIXELS
from openmae.data.augment import resized_crop
from openmae.data.masks.augment import scaled_size
from openmae.inference.models import EncoderModel, ImageLike
from openmae.inference.segmentation import Windows, class_map
from openmae.transfer.segmenter import Segmenter


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
        if self.description["inference"] == "whole":
            return None
        stride = self.description["stride"]
        return Windows(self.preprocessing.image_size, (stride, stride))

    def segment(
        self, images: ImageLike | Sequence[ImageLike], *, max_pixels: int = MAX_PIXELS, batch_size: int = 8
    ) -> list[Tensor]:
        """The class of each pixel of whole images, each at its own size: (H, W) int64 on the CPU, indices of `classes`.

        Args:
            max_pixels: image files of more pixels are refused.
            batch_size: windows at a time.

        Raises:
            RequestError: an image cannot be read or does not fit the model.
        """
        items = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else list(images)
        doubts: list[str] = []
        maps = [self._segment(item, max_pixels, batch_size, doubts) for item in items]
        if doubts:
            warnings.warn(f"{len(doubts)} of {len(items)} images, the first: {doubts[0]}", stacklevel=2)
        return maps

    def _segment(self, item: ImageLike, max_pixels: int, batch_size: int, doubts: list[str]) -> Tensor:
        _, pixels = self._decoded(item, max_pixels, doubts)
        height, width = pixels.shape[:2]
        p = self.preprocessing
        image = resized_crop(pixels, (0, 0, height, width), scaled_size((height, width), p.image_size))
        with torch.no_grad():
            return class_map(
                self.segmenter,
                image,
                (height, width),
                p,
                self.windows,
                device=self.device,
                precision="fp32",
                batch_size=batch_size,
            ).cpu()
