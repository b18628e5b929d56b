"""The annotated objects of a batch of images, as a detector trains on them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from openmae.data.pinned import pinned


@dataclass(frozen=True)
class Instances:
    """The objects of a batch's images, one image after the other; crowds are left out.

    Images lie in the top left corner of equal squares, which are padded at the bottom and on the right.

    Attributes:
        boxes: (T, 4) left, top, right, bottom in pixels of the padded image; each has an area.
        labels: (T,) class ids, from 0.
        counts: (B,) how many of them are each image's.
        sizes: (B, 2) height and width of each image within its square.
        masks: (T, H, W) 1 where the object is, of the padded image; None where only boxes are known.
    """

    boxes: Float[Tensor, "t 4"]
    labels: Int64[Tensor, " t"]
    counts: Int64[Tensor, " b"]
    sizes: Int64[Tensor, "b 2"]
    masks: UInt8[Tensor, "t h w"] | None = None

    def tensors(self) -> list[Tensor]:
        """All of them."""
        known = (self.boxes, self.labels, self.counts, self.sizes, self.masks)
        return [tensor for tensor in known if tensor is not None]

    def __len__(self) -> int:
        """How many images they are of."""
        return len(self.counts)

    def to(self, device: torch.device) -> "Instances":
        """All on the device but counts and sizes, which the CPU reads."""
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        boxes, labels = (tensor.to(device, non_blocking=True) for tensor in (self.boxes, self.labels))
        return Instances(boxes, labels, self.counts, self.sizes, masks)

    def pin_memory(self) -> "Instances":
        return Instances(self.boxes.pin_memory(), self.labels.pin_memory(), self.counts, self.sizes, pinned(self.masks))
