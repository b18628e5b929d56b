"""A micro-batch as the model's input, on the device."""

from dataclasses import dataclass

from torch import Tensor

from openmae.data.instances import Instances
from openmae.model.masking import Masking


@dataclass(frozen=True)
class ModelInput:
    """A micro-batch on the device.

    Attributes:
        images: (B, C, h, w) float32, normalised; or features, (B, width).
        keys: (B,) int64, the samples' random keys, on the CPU.
        masking: which patches are hidden; None where none are.
        labels: as in `Batch`; None in tasks without labels.
        drop_path: (depth, 2, B) scales of each block's branches; None where none is dropped.
        instances: the objects in the images; None except for detection.
        dropout: (B, channels) scales of the channels before a head; None where none is dropped.
        is_counted: (B, masked) float32, 1 for the masked patches that count in the loss, 0 for empty ones; None where
            all count.
        num_counted: the number of masked patches that count; 0 where `is_counted` is None.
    """

    images: Tensor
    keys: Tensor
    masking: Masking | None = None
    labels: Tensor | None = None
    drop_path: Tensor | None = None
    dropout: Tensor | None = None
    is_counted: Tensor | None = None
    num_counted: int = 0
    instances: Instances | None = None

    def __len__(self) -> int:
        return len(self.images)

    def tensors(self) -> list[Tensor]:
        """All tensors but the keys, which stay on the CPU."""
        masks = [] if self.masking is None else [self.masking.keep_ids, self.masking.masked_ids]
        tensors = (self.images, *masks, self.labels, self.drop_path, self.dropout, self.is_counted)
        objects = [] if self.instances is None else self.instances.tensors()
        return [*(tensor for tensor in tensors if tensor is not None), *objects]

    @property
    def weight(self) -> int:
        """The weight of this micro-batch's mean loss in the mean over several.

        It is the number of patches that count where some do not, else the number of images.
        """
        return len(self) if self.is_counted is None else self.num_counted

    def split(self, size: int) -> "list[ModelInput]":
        """Chunks of at most `size` samples, for losses of images and masking alone: without labels and drop path."""
        chunks = []
        for start in range(0, len(self), size):
            chunk = slice(start, start + size)
            masking = self.masking and Masking(self.masking.keep_ids[chunk], self.masking.masked_ids[chunk])
            counted = None if self.is_counted is None else self.is_counted[chunk]
            count = 0 if counted is None else int(counted.sum())
            chunks.append(
                ModelInput(self.images[chunk], self.keys[chunk], masking, is_counted=counted, num_counted=count)
            )
        return chunks


def counted_patches(empty: Tensor | None, masking: Masking) -> Tensor | None:
    """Which masked patches the loss counts, (B, masked) bool in the order of `masked_ids`: those that are not empty.

    Args:
        empty: (B, N) bool, on the masking's device; None where no patch is.
    """
    return None if empty is None else ~empty.gather(1, masking.masked_ids)
