"""PSNR of reconstructions on masked pixels, and of two baselines without a model."""

import numpy as np
import torch
from torch import Tensor


def psnr(prediction: Tensor, truth: Tensor, is_masked: Tensor) -> float:
    """Peak signal-to-noise ratio in dB on the masked pixels only, clipped to [0, 1], errors pooled over all images.

    Args:
        prediction, truth: (B, C, H, W) in 0..1.
        is_masked: (B, 1, H, W) bool.
    """
    error = (prediction.clamp(0, 1) - truth.clamp(0, 1)).double().square()
    masked = is_masked.expand_as(error)
    return float(-10 * torch.log10(error[masked].mean().clamp(min=1e-12)))


def mean_of_visible(truth: Tensor, is_masked: Tensor) -> Tensor:
    """Baseline 1: each image's masked pixels filled with the mean of its visible ones, by channel."""
    visible = (~is_masked).to(truth.dtype)
    mean = (truth * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(is_masked, mean, truth)


def interpolate_visible(truth: Tensor, is_masked: Tensor) -> Tensor:
    """Baseline 2: masked pixels interpolated linearly from the visible ones (nearest outside their hull)."""
    from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator  # takes half a second
    from scipy.spatial import QhullError

    result = truth.clone()
    for image, hidden, filled in zip(truth, is_masked[:, 0].numpy(), result, strict=True):
        known, unknown = np.argwhere(~hidden), np.argwhere(hidden)
        values = image[:, ~hidden].T.numpy()
        if not len(known):  # where values are missing (nodata), all visible patches may be empty
            filled.fill_(0.5)
            continue
        try:
            guess = LinearNDInterpolator(known, values)(unknown)
        except QhullError:  # all visible pixels on one line
            guess = np.full((len(unknown), values.shape[1]), np.nan)
        outside = np.isnan(guess).any(axis=1)
        if outside.any():
            guess[outside] = NearestNDInterpolator(known, values)(unknown[outside])
        filled[:, hidden] = torch.from_numpy(guess.T).to(filled.dtype)
    return result
