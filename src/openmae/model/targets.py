"""Reconstruction targets: what is predicted, and the loss (paper, section 3, table 1d).

A target defines the number of outputs for each patch, computes the true values from the images, and the loss of each
patch. PCA coefficients and tokens could be further subclasses.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from openmae.config import ViTShape
from openmae.model.masking import Masking
from openmae.model.patches import gather, patchify

NORMALISATION_EPS = 1e-6


class Target(nn.Module, ABC):
    """What is predicted for each masked patch: `num_outputs` values, and their loss."""

    num_outputs: int

    @abstractmethod
    def truth(self, images: Float[Tensor, "b c h w"], masking: Masking) -> Shaped[Tensor, "b masked *values"]:
        """The true values of the masked patches, in the order of `masked_ids`."""

    @abstractmethod
    def patch_losses(
        self, prediction: Float[Tensor, "b masked p"], truth: Shaped[Tensor, "b masked *values"]
    ) -> Float[Tensor, "b masked"]:
        """The loss of each masked patch."""

    def forward(
        self, prediction: Float[Tensor, "b masked p"], images: Float[Tensor, "b c h w"], masking: Masking
    ) -> Float[Tensor, "b masked"]:
        """The loss of each masked patch, in float32 (float64 for float64 input)."""
        prediction = prediction.to(images.dtype)  # bf16 under autocast: compute the loss at full precision
        return self.patch_losses(prediction, self.truth(images, masking))


class PixelTarget(Target):
    """The pixels of the masked patches, with the mean squared error."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.patch_size = shape.patch_size
        self.num_outputs = shape.patch_dim

    def truth(self, images: Float[Tensor, "b c h w"], masking: Masking) -> Float[Tensor, "b masked p"]:
        return gather(patchify(images, self.patch_size), masking.masked_ids)

    def patch_losses(
        self, prediction: Float[Tensor, "b masked p"], truth: Float[Tensor, "b masked p"]
    ) -> Float[Tensor, "b masked"]:
        return (prediction - truth).square().mean(dim=-1)


class NormPixelTarget(PixelTarget):
    """Pixels normalised by the mean and standard deviation of their own patch (table 1d)."""

    def truth(self, images: Float[Tensor, "b c h w"], masking: Masking) -> Float[Tensor, "b masked p"]:
        patches = super().truth(images, masking)
        mean, std = patch_statistics(patches)
        return (patches - mean) / std


def patch_statistics(
    patches: Float[Tensor, "b n p"],
) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 1"]]:
    """Mean and standard deviation (unbiased variance, + 1e-6) of each patch over all its values."""
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + NORMALISATION_EPS).sqrt()


TARGET_CLASSES: dict[str, type[PixelTarget]] = {"pixel": PixelTarget, "norm-pixel": NormPixelTarget}
