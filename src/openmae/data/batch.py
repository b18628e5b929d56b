"""A micro-batch of training samples, and how samples are stacked into one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.data.hand_over import allocate_batch
from openmae.data.sources.open import Label
from openmae.errors import RequestError


@dataclass(frozen=True)
class Crops:
    """Crops of the images of a batch that are still to be made, on the device.

    Attributes:
        boxes: (B, 4) int64: top, left, height, width in pixels.
        is_flipped: (B,) bool: whether the crop is mirrored left to right.
    """

    boxes: Tensor
    is_flipped: Tensor

    def pin_memory(self) -> "Crops":
        return Crops(self.boxes.pin_memory(), self.is_flipped.pin_memory())

    def to(self, device: torch.device) -> "Crops":
        return Crops(self.boxes.to(device, non_blocking=True), self.is_flipped.to(device, non_blocking=True))


@dataclass(frozen=True)
class Batch:
    """A micro-batch of training samples.

    Attributes:
        images: (B, C, H, W), uint8 or float32, not normalised; where there are `crops`, whole ones: (B, H, W, C).
        keys: (B,) int64, a hash of (seed, epoch, index) for each sample, from which its randomness derives.
        bad: name and reason of each input that could not be read and was replaced.
        labels: (B,) int64 class ids; multi-label: (B, classes) float32; regression: (B, columns) float64, in their own
            units; None where not requested or unknown.
        crops: what is still to be cut out of the images; None where they are cropped.
        blank: how many samples were blank tiles and replaced.
        empty: (B, N) bool: patches that are mostly nodata; None where no patch is.
    """

    images: Tensor
    keys: Tensor
    bad: dict[str, str]
    labels: Tensor | None = None
    crops: Crops | None = None
    blank: int = 0
    empty: Tensor | None = None

    def pin_memory(self) -> "Batch":
        crops = None if self.crops is None else self.crops.pin_memory()
        images, keys = self.images.pin_memory(), self.keys.pin_memory()
        return Batch(images, keys, self.bad, pinned(self.labels), crops, self.blank, self.empty)


def pinned(tensor: Tensor | None) -> Tensor | None:
    """The tensor in page-locked memory, from which a GPU copies asynchronously."""
    return None if tensor is None else tensor.pin_memory()


def stack_images(images: Sequence[Tensor | NDArray]) -> Tensor:
    """Stack images of one shape and type: (B, ...); a reader process writes straight into shared memory."""
    tensors = [image for image in images if isinstance(image, Tensor)]
    if tensors:
        return torch.stack(tensors, out=allocate_batch((len(images), *tensors[0].shape), tensors[0].dtype))
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    batch = allocate_batch((len(images), *arrays[0].shape), torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype)
    np.stack(arrays, out=batch.numpy())  # not by torch, which warns about read-only memory such as a pack's pages
    return batch


def stack_labels(labels: Sequence[Label]) -> Tensor | None:
    """Stack the labels of a batch; None where no image has one.

    Raises:
        RequestError: some have one and others not.
    """
    known = [label for label in labels if label is not None]
    if not known:
        return None
    if missing := len(labels) - len(known):
        raise RequestError(f"{missing} of {len(labels)} images of a batch have no label: give them one")
    values = np.stack([np.asarray(label) for label in known])
    if values.dtype == np.float64:  # regression: in float64 until they are standardised
        return torch.from_numpy(values)
    return torch.from_numpy(values.astype(np.int64 if values.ndim == 1 else np.float32))
