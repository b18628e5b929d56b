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
        labels: as in `Batch`; None where they are not asked for.
        drop_path: (depth, 2, B) scales of each block's branches; None where none is dropped.
    """

    images: Tensor
    keys: Tensor
    masking: Masking | None = None
    labels: Tensor | None = None
    drop_path: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def tensors(self) -> list[Tensor]:
        masks = [] if self.masking is None else [self.masking.keep_ids, self.masking.masked_ids]
        return [tensor for tensor in (self.images, *masks, self.labels, self.drop_path) if tensor is not None]

    def split(self, size: int) -> "list[ModelInput]":
        """Pieces of at most `size` samples, for a loss that asks for images and masking alone."""
        pieces = []
        for start in range(0, len(self), size):
            of_piece = slice(start, start + size)
            masking = self.masking and Masking(self.masking.keep_ids[of_piece], self.masking.masked_ids[of_piece])
            pieces.append(ModelInput(self.images[of_piece], self.keys[of_piece], masking))
        return pieces
