"""Reconstruction targets: what is predicted, and the loss (paper, section 3, table 1d).

A target defines the number of outputs for each patch, computes the true values from the images, and the loss of each
patch.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from openmae.config import MAEShape
from openmae.model.masking import Masking
from openmae.model.patches import gather, patchify

NORMALISATION_EPS = 1e-6


class Target(nn.Module, ABC):
    """What is predicted for each masked patch: `num_outputs` values, and their loss.

    Attributes:
        why_no_pictures: why predictions cannot be turned into pixels; None where they can.
    """

    why_no_pictures: str | None = None

    def __init__(self, shape: MAEShape) -> None:
        super().__init__()
        self.patch_size = shape.encoder.patch_size
        self.num_outputs = shape.outputs

    @abstractmethod
    def truth(self, images: Float[Tensor, "b c h w"], masking: Masking) -> Shaped[Tensor, "b masked *values"]:
        """The true values of the masked patches, in the order of `masked_ids`."""

    @abstractmethod
    def patch_losses(
        self, prediction: Float[Tensor, "b masked p"], truth: Shaped[Tensor, "b masked *values"]
    ) -> Float[Tensor, "b masked"]:
        """The loss of each masked patch."""

    def to_patches(self, prediction: Float[Tensor, "b n p"]) -> Float[Tensor, "b n values"]:
        """The normalised pixels of patches as they were predicted, for pictures."""
        return prediction

    def forward(
        self, prediction: Float[Tensor, "b masked p"], images: Float[Tensor, "b c h w"], masking: Masking
    ) -> Float[Tensor, "b masked"]:
        """The loss of each masked patch, in float32 (float64 for float64 input)."""
        prediction = prediction.to(images.dtype)  # bf16 under autocast: compute the loss at full precision
        return self.patch_losses(prediction, self.truth(images, masking))


class PixelTarget(Target):
    """The pixels of the masked patches, with the mean squared error."""

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


class PCATarget(PixelTarget):
    """The largest principal components of the masked patches' pixels (table 1d: 96 of 768).

    Where the paper says nothing: the pixels are not normalised patch by patch, and the coefficients are not whitened.
    They are divided by one number, `scale`, which makes their mean square 1: a decoder's first outputs are small, and
    the coefficient of a patch's brightness grows with the square root of its number of values. The loss is the mean
    squared error, so with all coefficients it is that of the pixels divided by `scale` squared.

    Buffers `mean` (values,), `components` (coefficients, values: orthonormal rows, largest variance first) and `scale`
    lie in every checkpoint. They are NaN until they were fitted or restored.
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    def __init__(self, shape: MAEShape) -> None:
        super().__init__(shape)
        values = shape.encoder.patch_dim
        self.register_buffer("mean", torch.full((values,), torch.nan))
        self.register_buffer("components", torch.full((self.num_outputs, values), torch.nan))
        self.register_buffer("scale", torch.tensor(torch.nan))

    @property
    def is_fitted(self) -> bool:
        """Whether there are components. Waits for the device."""
        return bool(self.components.isfinite().all())

    def coefficients(self, patches: Float[Tensor, "b n values"]) -> Float[Tensor, "b n p"]:
        """The coefficients of patches, as they are."""
        with torch.autocast(patches.device.type, enabled=False):  # in bf16 they would be off by 0.4 %
            return (patches - self.mean.to(patches.dtype)) @ self.components.to(patches.dtype).T

    def truth(self, images: Float[Tensor, "b c h w"], masking: Masking) -> Float[Tensor, "b masked p"]:
        return self.coefficients(super().truth(images, masking)) / self.scale

    def to_patches(self, prediction: Float[Tensor, "b n p"]) -> Float[Tensor, "b n values"]:
        with torch.autocast(prediction.device.type, enabled=False):
            return self.scale * prediction @ self.components.to(prediction.dtype) + self.mean.to(prediction.dtype)

    def set_components(
        self, mean: Float[Tensor, " values"], components: Float[Tensor, "p values"], scale: Float[Tensor, ""]
    ) -> None:
        """Take what was fitted, in this module's number type and on its device."""
        self.mean.copy_(mean)
        self.components.copy_(components)
        self.scale.copy_(scale)


class PatchCovariance:
    """Mean and covariance of patches, summed up in float64 a batch at a time."""

    def __init__(self, values: int) -> None:
        self.count = 0
        self.sums = torch.zeros(values, dtype=torch.float64)
        self.products = torch.zeros(values, values, dtype=torch.float64)

    def add(self, patches: Float[Tensor, "n values"]) -> None:
        """Count patches in."""
        patches = patches.double()
        self.count += len(patches)
        self.sums += patches.sum(dim=0)
        self.products += patches.T @ patches

    def components(self, count: int) -> tuple[Tensor, Tensor, Tensor, float]:
        """The first `count` principal components.

        The sign of each is chosen so that its largest value is positive: what `eigh` returns may differ by machine.

        Returns:
            The mean (values,), the components (count, values), the root mean square of their coefficients, and the
            share of the variance that they explain.
        """
        mean = self.sums / self.count
        covariance = self.products / self.count - mean[:, None] * mean
        variances, vectors = torch.linalg.eigh(covariance)
        rows = vectors.T.flip(0)[:count]
        largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
        variances = variances.flip(0).clamp(min=0)
        share = float(variances[:count].sum() / variances.sum()) if variances.any() else 0.0
        scale = variances[:count].mean().sqrt()
        return mean, rows * largest.sign(), scale if scale > 0 else torch.ones_like(scale), share


def patch_statistics(
    patches: Float[Tensor, "b n p"],
) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 1"]]:
    """Mean and standard deviation (unbiased variance, + 1e-6) of each patch over all its values."""
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + NORMALISATION_EPS).sqrt()
