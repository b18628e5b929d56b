"""`Batch`, a micro-batch of training samples, and how images and labels are stacked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.data.hand_over import allocate_batch
from openmae.data.instances import Instances
from openmae.data.pinned import pinned
from openmae.data.sources.open import Label
from openmae.errors import RequestError


@dataclass(frozen=True)
class Crops:
    """The crop of each image of a batch, for batches that are cropped on the device (`--crop-on device`).

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
        images: (B, C, H, W), uint8 or float32, not normalised; where there are `crops`, whole images: (B, H, W, C).
        keys: (B,) int64, a hash of (seed, epoch, index) for each sample, and of the crop's number where an image gives
            several crops; all random numbers of the sample are computed from it.
        bad: name and reason of each input that could not be read and was replaced.
        labels: (B,) int64 class ids; multi-label: (B, classes) float32; regression: (B, columns) float64, in their own
            units; None where not requested or unknown.
        crops: what the device has to cut out of the images; None where they are cropped already.
        num_blank: how many samples replace a blank tile.
        is_empty: (B, N) bool: patches that are mostly nodata (missing values); None where none of the batch is. It is
            not pinned: it is small, and few batches have it.
        instances: the objects in the images; None except for detection.
    """

    images: Tensor
    keys: Tensor
    bad: dict[str, str]
    labels: Tensor | None = None
    crops: Crops | None = None
    num_blank: int = 0
    is_empty: Tensor | None = None
    instances: Instances | None = None

    def pin_memory(self) -> "Batch":
        return replace(
            self,
            images=self.images.pin_memory(),
            keys=self.keys.pin_memory(),
            labels=pinned(self.labels),
            crops=None if self.crops is None else self.crops.pin_memory(),
            instances=None if self.instances is None else self.instances.pin_memory(),
        )


def stack_images(images: Sequence[Tensor | NDArray]) -> Tensor:
    """Stack images of one shape and type, all tensors or all arrays: (B, ...).

    A reader process stacks straight into the shared memory through which it hands the batch over.
    """
    tensors = [image for image in images if isinstance(image, Tensor)]
    if tensors:
        return torch.stack(tensors, out=allocate_batch((len(images), *tensors[0].shape), tensors[0].dtype))
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype  # torch has no public conversion of NumPy's types
    batch = allocate_batch((len(images), *arrays[0].shape), dtype)
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
        raise RequestError(f"{missing} of {len(labels)} images of a batch have no label: label all of them or none")
    values = np.stack([np.asarray(label) for label in known])
    if values.dtype == np.float64:  # regression: in float64 until they are standardised
        return torch.from_numpy(values)
    is_multi_label = values.ndim == 2  # a row of 0 and 1 for each image, and not one class id
    return torch.from_numpy(values.astype(np.float32 if is_multi_label else np.int64))
