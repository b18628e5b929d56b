"""From predicted patches to images that can be shown and measured (paper, figures 2 to 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from openmae.config import Grid, Preprocessing
from openmae.data.preprocess import to_unit
from openmae.errors import RequestError
from openmae.model.mae import MAE
from openmae.model.masking import Masking
from openmae.model.patches import patchify, unpatchify
from openmae.model.targets import NormPixelTarget, patch_statistics
from openmae.model.token_target import TokenTarget

MASKED_GREY = 0.5


@dataclass(frozen=True)
class Reconstruction:
    """Images, which of their pixels were masked, and the model's predictions; all tensors are on the CPU.

    Attributes:
        masked: (B, C, H, W) in 0..1, the images with masked patches grey.
        prediction: (B, C, H, W) in 0..1, masked patches as predicted; visible ones too, unless they were pasted.
        truth: (B, C, H, W) in 0..1, the images.
        is_masked: (B, 1, H, W) bool.
        is_empty: (B, 1, H, W) bool: the pixels of empty patches, which are mostly nodata (missing values).
        leaks: whether predicted patches were given the true mean and standard deviation, which leaks
            part of the answer.
    """

    masked: Tensor
    prediction: Tensor
    truth: Tensor
    is_masked: Tensor
    is_empty: Tensor
    leaks: bool

    @property
    def is_measured(self) -> Tensor:
        """The pixels on which a prediction can be scored, masked and not empty: (B, 1, H, W) bool."""
        return self.is_masked & ~self.is_empty

    @property
    def is_unknown(self) -> Tensor:
        """The pixels that the model does not see, masked or empty: (B, 1, H, W) bool."""
        return self.is_masked | self.is_empty


def reconstruct_patches(
    mae: MAE,
    images: Tensor,
    masking: Masking,
    preprocessing: Preprocessing,
    *,
    undo: str = "neighbours",
    paste: bool = True,
    is_empty: Tensor | None = None,
) -> Reconstruction:
    """Predict the masked patches of normalised images (B, C, H, W) and convert them to pixels in 0..1.

    A norm-pixel model predicts patches from which their mean and standard deviation were removed (paper, section 3), so
    both have to come from elsewhere. A model of tokens draws a patch from its neighbours' tokens, too. Those of visible
    patches are of the image with its hidden patches blank, and a little worse for it: a tokenizer looks around a patch.

    Args:
        undo: where these statistics are taken from: "neighbours", the visible patches around it; or "true", the patch
            itself, which leaks part of the answer.
        paste: show visible patches as they are, not as predicted.
        is_empty: which patches are mostly nodata, (B, N) bool; None where none is.
    """
    size = mae.encoder.shape.patch_size
    grid = mae.grid(images)
    patches = patchify(images, size)
    prediction = mae.predict_all(images, masking).to(patches.dtype)
    is_masked = masking.is_masked
    is_masked_pixel = _by_pixel(is_masked, grid, size)
    leaks = False
    if isinstance(mae.target, NormPixelTarget):
        mean, std = patch_statistics(patches)
        if undo == "neighbours":
            mean, std = estimate_from_visible(mean, is_masked, grid), estimate_from_visible(std, is_masked, grid)
        else:
            leaks = True
        prediction = prediction * std + mean
    elif isinstance(mae.target, TokenTarget):
        tokens = prediction.argmax(dim=-1)
        if paste:
            seen = images.masked_fill(is_masked_pixel, 0)  # the mean; else the tokens would tell of hidden pixels
            tokens = torch.where(is_masked, tokens, mae.target.tokens(seen))
        prediction = mae.target.decode(tokens, grid).to(patches.dtype)
    else:
        prediction = mae.target.to_patches(prediction)
    if paste:
        prediction = torch.where(is_masked[..., None], prediction, patches)
    is_empty_pixel = torch.zeros_like(is_masked_pixel)
    if is_empty is not None:
        is_empty_pixel = _by_pixel(is_empty.to(is_masked.device), grid, size)
    truth = to_unit(images, preprocessing).clamp(0, 1)
    predicted = to_unit(unpatchify(prediction, grid, size), preprocessing).clamp(0, 1)
    return Reconstruction(
        masked=torch.where(is_masked_pixel, MASKED_GREY, truth).cpu(),
        prediction=grey_where_truth_is_grey(predicted, truth).cpu(),
        truth=truth.cpu(),
        is_masked=is_masked_pixel.cpu(),
        is_empty=is_empty_pixel.cpu(),
        leaks=leaks,
    )


def check_draws(mae: MAE) -> None:
    """Raise RequestError where nothing turns what the model predicts into pixels."""
    if mae.target.why_no_pictures is not None:
        raise RequestError(f"the model cannot be drawn: {mae.target.why_no_pictures}")


def _by_pixel(of_patches: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """(B, N) of patches → (B, 1, H, W): each pixel has the value of its patch."""
    return unpatchify(of_patches[..., None].expand(-1, -1, patch_size * patch_size), grid, patch_size)


def grey_where_truth_is_grey(prediction: Tensor, truth: Tensor) -> Tensor:
    """Average the prediction over the channels for each image whose true channels are equal; both are (B, C, H, W)."""
    difference = truth.amax(1, keepdim=True) - truth.amin(1, keepdim=True)
    is_grey = difference.amax((2, 3), keepdim=True) < 0.5 / 255  # half of one of 256 levels
    return torch.where(is_grey, prediction.mean(1, keepdim=True), prediction)


def estimate_from_visible(values: Tensor, is_masked: Tensor, grid: Grid) -> Tensor:
    """Estimate the value of each masked patch as a mean over the visible ones, weighted by 1 / distance⁴.

    Args:
        values: (B, N, 1), of which only those of visible patches are used.
        is_masked: (B, N) bool.

    Returns:
        (B, N, 1): the estimates; visible patches keep their own value.
    """
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], device=values.device), torch.arange(grid[1], device=values.device), indexing="ij"
    )
    positions = torch.stack([rows.flatten(), columns.flatten()], dim=1).float()
    weight = 1 / torch.cdist(positions, positions).clamp(min=1) ** 4  # (N, N); of a patch to itself it is 0
    weight = weight[None] * (~is_masked)[:, None, :]
    estimate = weight @ values / weight.sum(-1, keepdim=True)
    return torch.where(is_masked[..., None], estimate, values)
