"""A detector put to use: the objects of a whole image of any size."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Num
from numpy.typing import NDArray
from torch import Tensor

from openmae.config import Preprocessing
from openmae.data.coco.run_lengths import RunLengths
from openmae.data.preprocess import normalise
from openmae.errors import Fault
from openmae.inference.detection.pasted_mask import pasted
from openmae.machine.device import autocast, is_out_of_memory
from openmae.transfer.detection.detections import Detections
from openmae.transfer.detection.detector import Detector


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """The objects found in an image, the likeliest first, in pixels of the image as it is stored.

    Attributes:
        boxes: (K, 4) left, top, right, bottom, within the image.
        labels: (K,) class ids, from 0.
        scores: (K,) in 0 … 1.
        masks: K times the run lengths of the object; None where only boxes are found.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    masks: list[RunLengths] | None = None

    def __post_init__(self) -> None:
        assert self.boxes.shape == (len(self), 4), self.boxes.shape
        assert len(self.labels) == len(self.scores) == len(self), (len(self.labels), len(self.scores), len(self))
        assert self.masks is None or len(self.masks) == len(self), "a mask for each object"

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, threshold: float) -> "ImageDetections":
        """Those with at least this score."""
        ids = np.flatnonzero(self.scores >= threshold)
        masks = None if self.masks is None else [self.masks[k] for k in ids]
        return ImageDetections(self.boxes[ids], self.labels[ids], self.scores[ids], masks)


@dataclass(frozen=True, kw_only=True)
class WholeImageDetector:
    """A detector and how it is used on whole images, one at a time.

    Attributes:
        model: in evaluation mode when it is used.
    """

    model: Detector
    preprocessing: Preprocessing
    device: torch.device
    precision: str

    def detect(self, image: Num[Tensor, "c h w"], size: tuple[int, int]) -> ImageDetections:
        """The objects of an image.

        Args:
            image: raw values, not normalised, its long side that of the model's square.
            size: height and width of the image as it is stored, of which the boxes are.

        Raises:
            Fault: a box, a score or a weight is not finite, or the image does not fit into memory.
        """
        try:
            found = self._detect(image)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            side = max(self.preprocessing.image_size)
            raise Fault(
                f"out of memory with one image of {side}x{side} px at a time: a device with more memory is needed "
                "(--device cpu)"
            ) from None
        boxes, scores = (x.cpu().double().numpy() for x in (found.boxes, found.scores))
        # What is not a number is no object, either: only where nothing is found need the weights be looked at.
        is_sound = np.isfinite(boxes).all() and np.isfinite(scores).all() if len(boxes) else self._has_finite_weights()
        if not is_sound:
            raise Fault(
                "the detector's boxes or scores are not finite: the model is damaged, or --precision fp32 helps"
            )
        (height, width), (stored_height, stored_width) = image.shape[-2:], size
        # By side, for the smaller image's sides are rounded.
        boxes = boxes * np.tile([stored_width / width, stored_height / height], 2)
        boxes = boxes.clip(0, np.tile([stored_width, stored_height], 2))
        masks = None
        if found.masks is not None:  # one at a time, for a hundred of a large photograph fill the memory
            small = found.masks.float().cpu().numpy()
            masks = [pasted(mask, box, size) for mask, box in zip(small, boxes, strict=True)]
        return ImageDetections(boxes, found.labels.cpu().numpy(), scores, masks)

    def _has_finite_weights(self) -> bool:
        weights = [*self.model.parameters(), *self.model.buffers()]
        return all(bool(weight.isfinite().all()) for weight in weights if weight.is_floating_point())

    @torch.no_grad()
    def _detect(self, image: Tensor) -> Detections:
        (height, width), (rows, columns) = image.shape[-2:], self.preprocessing.image_size
        assert height <= rows and width <= columns, (image.shape, self.preprocessing.image_size)
        images = normalise(image[None].to(self.device), self.preprocessing)
        images = F.pad(images, (0, columns - width, 0, rows - height))
        with autocast(self.device, self.precision):
            (found,) = self.model.detect(images, torch.tensor([[height, width]]))
        return found
