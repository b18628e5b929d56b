"""A micro-batch as the model takes it, on the device."""

from dataclasses import dataclass

from torch import Tensor

from openmae.model.masking import Masking


@dataclass(frozen=True)
class ModelInput:
    """A micro-batch on the device.

    Attributes:
        images: (B, C, h, w) float32, normalised; or features, (B, width).
        keys: (B,) int64 of the samples, on the CPU.
        masking: what is hidden; None where nothing is.
        is_counted: (B, masked) float32, 1 for the masked patches that the loss counts, 0 for those that are empty; None
            where it counts all.
        num_counted: how many those are.
        labels: as in `Batch`; None where they are not asked for.
        drop_path: (depth, 2, B) scales of each block's branches; None where none is dropped.
    """

    images: Tensor
    keys: Tensor
    masking: Masking | None = None
    labels: Tensor | None = None
    drop_path: Tensor | None = None
    is_counted: Tensor | None = None
    num_counted: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def tensors(self) -> list[Tensor]:
        masks = [] if self.masking is None else [self.masking.keep_ids, self.masking.masked_ids]
        every = (self.images, *masks, self.labels, self.drop_path, self.is_counted)
        return [tensor for tensor in every if tensor is not None]

    @property
    def weight(self) -> int:
        """The weight of a mean over it among means over other pieces.

        It is the number of patches that count where some do not, else that of images.
        """
        return len(self) if self.is_counted is None else self.num_counted

    def split(self, size: int) -> "list[ModelInput]":
        """Pieces of at most `size` samples, for a loss that asks for images and masking alone."""
        pieces = []
        for start in range(0, len(self), size):
            of_piece = slice(start, start + size)
            masking = self.masking and Masking(self.masking.keep_ids[of_piece], self.masking.masked_ids[of_piece])
            counted = None if self.is_counted is None else self.is_counted[of_piece]
            count = 0 if counted is None else int(counted.sum())
            pieces.append(
                ModelInput(self.images[of_piece], self.keys[of_piece], masking, is_counted=counted, num_counted=count)
            )
        return pieces


def counted_patches(empty: Tensor | None, masking: Masking) -> Tensor | None:
    """Which masked patches the loss counts, (B, masked) bool in the order of `masked_ids`: those that are not empty.

    Args:
        empty: (B, N) bool, on the masking's device; None where no patch is.
    """
    return None if empty is None else ~empty.gather(1, masking.masked_ids)
