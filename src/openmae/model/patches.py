"""Images to patches and back (paper, section 3), for any height, width and number of channels.

A patch is a vector of `patch_size² · channels` values in the order row, column, channel; patches are
indexed row by row. The grid is always passed as `(rows, columns)`: images need not be square.
"""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from openmae.config import Grid, grid_of


def patchify(images: Shaped[Tensor, "b c h w"], patch_size: int) -> Shaped[Tensor, "b n p"]:
    """Cut images into non-overlapping patches: (B, C, H, W) → (B, N, patch_size² · C)."""
    batch, channels, height, width = images.shape
    rows, columns = grid_of(height, width, patch_size)
    x = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    x = x.permute(0, 2, 4, 3, 5, 1)  # (B, rows, columns, p, p, C)
    return x.reshape(batch, rows * columns, patch_size * patch_size * channels)


def unpatchify(patches: Shaped[Tensor, "b n p"], grid: Grid, patch_size: int) -> Shaped[Tensor, "b c h w"]:
    """Put patches back into images, the inverse of `patchify`: (B, N, patch_size² · C) → (B, C, H, W)."""
    batch, count, values = patches.shape
    rows, columns = grid
    if count != rows * columns or values % (patch_size * patch_size):
        raise ValueError(
            f"{count} patches of {values} values do not fill a grid of {rows}x{columns} with {patch_size} px patches"
        )
    channels = values // (patch_size * patch_size)
    x = patches.reshape(batch, rows, columns, patch_size, patch_size, channels)
    x = x.permute(0, 5, 1, 3, 2, 4)  # (B, C, rows, p, columns, p)
    return x.reshape(batch, channels, rows * patch_size, columns * patch_size)


def gather(tokens: Shaped[Tensor, "b n d"], ids: Int[Tensor, "b k"]) -> Shaped[Tensor, "b k d"]:
    """Select tokens by index, for each sample its own: (B, N, D), (B, K) → (B, K, D)."""
    return torch.gather(tokens, 1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
