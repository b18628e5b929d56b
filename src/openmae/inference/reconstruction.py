"""From predicted patches to images that can be shown and measured (paper, figures 2 to 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from openmae.config import Grid, Preprocessing
from openmae.data.preprocess import to_unit
from openmae.model.mae import MAE
from openmae.model.masking import Masking
from openmae.model.patches import patchify, unpatchify
from openmae.model.targets import NormPixelTarget, patch_statistics

MASKED_GREY = 0.5


@dataclass(frozen=True)
class Reconstruction:
    """Images, their masks and the model's predictions; all tensors are on the CPU.

    Attributes:
        masked: (B, C, H, W) in 0..1, masked patches grey.
        prediction: (B, C, H, W) in 0..1.
        truth: (B, C, H, W) in 0..1.
        is_masked: (B, 1, H, W) bool.
        is_empty: (B, 1, H, W) bool: of patches whose values stand for none (nodata).
        leaks: whether the true patch statistics were used to undo the normalisation of a prediction.
    """

    masked: Tensor
    prediction: Tensor
    truth: Tensor
    is_masked: Tensor
    is_empty: Tensor
    leaks: bool

    @property
    def is_measured(self) -> Tensor:
        """Which pixels a prediction can be compared on, being masked and not empty: (B, 1, H, W) bool."""
        return self.is_masked & ~self.is_empty

    @property
    def is_unknown(self) -> Tensor:
        """Which pixels show nothing, being masked or empty: (B, 1, H, W) bool."""
        return self.is_masked | self.is_empty


def reconstruct_patches(
    mae: MAE,
    images: Tensor,
    masking: Masking,
    preprocessing: Preprocessing,
    *,
    undo: str = "neighbours",
    paste: bool = True,
    empty: Tensor | None = None,
) -> Reconstruction:
    """Predict the masked patches of normalised images (B, C, H, W) and convert them to pixels in 0..1.

    A norm-pixel model predicts each patch up to its mean and standard deviation.

    Args:
        undo: where these statistics are taken from: "neighbours", the visible patches around it; or "true", the patch
            itself, which leaks part of the answer.
        paste: show visible patches as they are, not as predicted.
        empty: which patches have no values to compare with (nodata), (B, N) bool; None where all have.
    """
    size = mae.encoder.shape.patch_size
    grid = mae.grid(images)
    patches = patchify(images, size)
    prediction = mae.predict_all(images, masking).to(patches.dtype)
    is_masked = masking.is_masked
    leaks = False
    if isinstance(mae.target, NormPixelTarget):
        mean, std = patch_statistics(patches)
        if undo == "neighbours":
            mean, std = estimate_from_visible(mean, is_masked, grid), estimate_from_visible(std, is_masked, grid)
        else:
            leaks = True
        prediction = prediction * std + mean
    else:
        prediction = mae.target.to_patches(prediction)
    if paste:
        prediction = torch.where(is_masked[..., None], prediction, patches)
    pixel_mask = unpatchify(is_masked[..., None].expand(-1, -1, size * size), grid, size)
    is_empty = torch.zeros_like(pixel_mask)
    if empty is not None:
        is_empty = unpatchify(empty.to(is_masked.device)[..., None].expand(-1, -1, size * size), grid, size)
    truth = to_unit(images, preprocessing).clamp(0, 1)
    shown = to_unit(unpatchify(prediction, grid, size), preprocessing).clamp(0, 1)
    return Reconstruction(
        masked=torch.where(pixel_mask, MASKED_GREY, truth).cpu(),
        prediction=keep_grey(shown, truth).cpu(),
        truth=truth.cpu(),
        is_masked=pixel_mask.cpu(),
        is_empty=is_empty.cpu(),
        leaks=leaks,
    )


def keep_grey(prediction: Tensor, truth: Tensor) -> Tensor:
    """Make the prediction grey for each image that is grey itself; both are (B, C, H, W)."""
    spread = truth.amax(1, keepdim=True) - truth.amin(1, keepdim=True)
    is_grey = spread.amax((2, 3), keepdim=True) < 0.5 / 255
    return torch.where(is_grey, prediction.mean(1, keepdim=True), prediction)


def estimate_from_visible(values: Tensor, is_masked: Tensor, grid: Grid) -> Tensor:
    """Estimate the value of each masked patch as a mean over the visible ones, weighted by 1 / distance⁴.

    Args:
        values: (B, N, 1), of which only those of visible patches are used.
        is_masked: (B, N) bool.
    """
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], device=values.device), torch.arange(grid[1], device=values.device), indexing="ij"
    )
    positions = torch.stack([rows.flatten(), columns.flatten()], dim=1).float()
    weight = 1 / torch.cdist(positions, positions).clamp(min=1) ** 4  # (N, N)
    weight = weight[None] * (~is_masked)[:, None, :]
    estimate = weight @ values / weight.sum(-1, keepdim=True)
    return torch.where(is_masked[..., None], estimate, values)
