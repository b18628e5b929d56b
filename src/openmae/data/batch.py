"""A batch of training samples as readers hand it over, and how it is stacked."""

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
    """What of each image of a batch a training step is to see.

    Attributes:
        boxes: (B, 4) int64: top, left, height, width in pixels.
        is_flipped: (B,) bool: mirrored left to right afterwards.
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
        keys: (B,) int64, one for each sample: seed, epoch and index, hashed.
        bad: name and reason of each input that could not be read and was replaced.
        labels: (B,) int64 or, with several for an image, (B, classes) float32; of numbers (B, columns) float64, in
            their own units; None where not asked for or unknown.
        crops: what is still to be cut out of the images; None where they are cropped.
        blank: how many of the samples were blank tiles and replaced.
        empty: (B, N) bool: patches whose values stand for none, mostly (nodata); None where there are no such.
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
    """In page-locked memory, from where a GPU copies without the CPU's help."""
    return None if tensor is None else tensor.pin_memory()


def stack(images: Sequence[Tensor | NDArray]) -> Tensor:
    """Images of one size and type as a batch: (B, ...); in a reader process straight into what it shares."""
    tensors = [image for image in images if isinstance(image, Tensor)]
    if tensors:
        return torch.stack(tensors, out=allocate_batch((len(images), *tensors[0].shape), tensors[0].dtype))
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    batch = allocate_batch((len(images), *arrays[0].shape), torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype)
    np.stack(arrays, out=batch.numpy())  # by NumPy, for torch warns of read-only memory, which a pack's pages are
    return batch


def stack_labels(labels: Sequence[Label]) -> Tensor | None:
    """The labels of a batch; None where no image has one.

    Raises:
        RequestError: some have one and others not.
    """
    known = [label for label in labels if label is not None]
    if not known:
        return None
    if missing := len(labels) - len(known):
        raise RequestError(f"{missing} of {len(labels)} images of a batch have no label: give them one")
    values = np.stack([np.asarray(label) for label in known])
    if values.dtype == np.float64:  # numbers: rounded when they are on their scale, not before
        return torch.from_numpy(values)
    return torch.from_numpy(values.astype(np.int64 if values.ndim == 1 else np.float32))
