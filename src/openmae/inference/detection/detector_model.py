"""A trained detector as `openmae.load` returns it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor

from openmae.config.checks import MAX_PIXELS, check_range
from openmae.data.augment import resized_crop
from openmae.data.coco.augment import fitted_size
from openmae.data.coco.run_lengths import mask_of
from openmae.inference.detection.whole_image import ImageDetections, WholeImageDetector
from openmae.inference.models import EncoderModel, ImageLike, check_images
from openmae.transfer.detection.detector import Detector

THRESHOLD = 0.05


class FoundObjects(NamedTuple):
    """The objects found in an image, the likeliest first; on the CPU.

    Attributes:
        boxes: (K, 4) left, top, right, bottom in pixels of the image as it is stored.
        labels: (K,) ids of `DetectorModel.classes`.
        scores: (K,) in 0 … 1.
        masks: (K, H, W) where each object is, of the image's size; None where only boxes are found.
    """

    boxes: Float[Tensor, "k 4"]
    labels: Int64[Tensor, " k"]
    scores: Float[Tensor, " k"]
    masks: Bool[Tensor, "k h w"] | None


@dataclass(frozen=True)
class DetectorModel(EncoderModel):
    """A trained detector with its preprocessing and class names.

    Attributes:
        detector: in evaluation mode.
    """

    detector: Detector

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.description["classes"])

    @property
    def category_ids(self) -> tuple[int | str, ...]:
        """The id of each class in the COCO files that the model was trained on."""
        return tuple(self.description["category_ids"])

    def whole_image_detector(self, *, precision: str = "fp32") -> WholeImageDetector:
        """The model for whole images."""
        return WholeImageDetector(
            model=self.detector, preprocessing=self.preprocessing, device=self.device, precision=precision
        )

    def detect(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        max_pixels: int = MAX_PIXELS,
        threshold: float = THRESHOLD,
    ) -> list[FoundObjects]:
        """The objects of each image: at most 100, of a class none that overlap by more than half.

        Args:
            images: of any sizes.
            max_pixels: image files of more pixels are refused.
            threshold: objects with a lower score are left out; below .05 there are none.

        Raises:
            RequestError: there are no images, or one cannot be read or does not fit the model.
            Fault: see `WholeImageDetector.detect`.
        """
        check_images(images)
        check_range("threshold", threshold, 0, 1)
        items = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else list(images)
        detector, doubts = self.whole_image_detector(), list[str]()
        found = [self._detect(detector, item, max_pixels, threshold, doubts) for item in items]
        if doubts:
            warnings.warn(f"{len(doubts)} of {len(items)} images, the first: {doubts[0]}", stacklevel=2)
        return found

    def _detect(
        self, detector: WholeImageDetector, item: ImageLike, max_pixels: int, threshold: float, doubts: list[str]
    ) -> FoundObjects:
        _, pixels = self._decoded(item, max_pixels, doubts)
        size = (pixels.shape[0], pixels.shape[1])
        image = resized_crop(pixels, (0, 0, *size), fitted_size(size, self.preprocessing.image_size))
        return _as_tensors(detector.detect(image, size).above(threshold), size)


def _as_tensors(found: ImageDetections, size: tuple[int, int]) -> FoundObjects:
    masks = None
    if found.masks is not None:
        masks = torch.zeros(len(found), *size, dtype=torch.bool)
        for mask, coded in zip(masks, found.masks, strict=True):
            mask.copy_(torch.from_numpy(mask_of(coded)))
    return FoundObjects(
        boxes=torch.from_numpy(found.boxes).float(),
        labels=torch.from_numpy(found.labels),
        scores=torch.from_numpy(found.scores).float(),
        masks=masks,
    )
