"""Which patches the encoder sees (paper, section 3 and figure 6): random, block, grid, or given.

A `Masking` is about patches only; the class token is added later. All randomness is passed in as `noise`, uniform in
[0, 1), so the same noise gives the same masking on every device and in every process.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from openmae.config import Grid, num_kept
from openmae.model.patches import gather

# Block sampling as in BEiT: at least 16 of 14×14 patches in a block, and an aspect ratio of at most 1 : 3.3.
MIN_BLOCK = 16 / 196
MIN_ASPECT_BLOCK = 0.3
MAX_BLOCKS = 32
BLOCK_NOISE = 4 * MAX_BLOCKS  # numbers for the blocks of one image, besides one for each patch


@dataclass(frozen=True)
class Masking:
    """A split of each image's N patches into visible and masked ones.

    Attributes:
        keep_ids: (B, visible) indices of the patches that the encoder gets, in that order.
        masked_ids: (B, masked) indices of the others, in the order in which the decoder predicts them.
    """

    keep_ids: Int[Tensor, "b visible"]
    masked_ids: Int[Tensor, "b masked"]

    @property
    def num_visible(self) -> int:
        return self.keep_ids.shape[1]

    @property
    def num_masked(self) -> int:
        return self.masked_ids.shape[1]

    @property
    def shuffled_ids(self) -> Int[Tensor, "b n"]:
        """Patch indices in the order of the decoder's tokens: visible first, then masked."""
        return torch.cat([self.keep_ids, self.masked_ids], dim=1)

    @property
    def is_masked(self) -> Bool[Tensor, "b n"]:
        """True where a patch is hidden, in the order of the image."""
        batch, count = self.keep_ids.shape[0], self.num_visible + self.num_masked
        result = torch.zeros(batch, count, dtype=torch.bool, device=self.keep_ids.device)
        return result.scatter(1, self.masked_ids, True)

    def unshuffle(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Restore the order of the image for tokens in shuffled order."""
        return gather(tokens, self.shuffled_ids.argsort(dim=1))


def noise_per_image(kind: str, grid: Grid) -> int:
    """How many uniform random numbers a masking of this kind needs for one image."""
    patches = grid[0] * grid[1]
    return {"random": patches, "block": patches + BLOCK_NOISE, "grid": 0, "given": 0}[kind]


def random_masking(noise: Float[Tensor, "b n"], ratio: float) -> Masking:
    """Keep the patches with the lowest noise: uniform sampling without replacement (section 3)."""
    kept = num_kept(noise.shape[1], ratio)
    order = noise.argsort(dim=1, stable=True)
    return Masking(order[:, :kept], order[:, kept:])


def block_masking(noise: Float[Tensor, "b k"], grid: Grid, ratio: float) -> Masking:
    """Mask large random rectangles until `ratio` of the patches is masked (figure 6, as in BEiT).

    The last block is thinned at random, and single patches are added should blocks not suffice, so that exactly the
    requested number of patches is masked in every image.
    """
    rows, columns = grid
    count = rows * columns
    to_mask = count - num_kept(count, ratio)
    blocks, tie = noise[:, :BLOCK_NOISE].reshape(-1, MAX_BLOCKS, 4), noise[:, BLOCK_NOISE:]
    row = torch.arange(rows, device=noise.device)[None, :, None]
    column = torch.arange(columns, device=noise.device)[None, None, :]
    min_area = max(1.0, MIN_BLOCK * count)
    max_log_aspect = math.log(1 / MIN_ASPECT_BLOCK)

    first_block = torch.full((noise.shape[0], rows, columns), MAX_BLOCKS, device=noise.device)
    for block in range(MAX_BLOCKS):
        remaining = to_mask - (first_block < MAX_BLOCKS).flatten(1).sum(1)
        area_noise, aspect_noise, top_noise, left_noise = blocks[:, block].unbind(1)
        area = min_area + area_noise * (remaining - min_area).clamp(min=0)
        aspect = ((2 * aspect_noise - 1) * max_log_aspect).exp()
        height = (area * aspect).sqrt().round().clamp(1, rows)
        width = (area / aspect).sqrt().round().clamp(1, columns)
        top = (top_noise * (rows - height + 1)).floor()[:, None, None]
        left = (left_noise * (columns - width + 1)).floor()[:, None, None]
        inside = (row >= top) & (row < top + height[:, None, None])
        inside = inside & (column >= left) & (column < left + width[:, None, None])
        inside = inside & (remaining > 0)[:, None, None]
        first_block = torch.where(inside & (first_block == MAX_BLOCKS), block, first_block)
    # Patches are masked in the order of the first block that covers them, in random order within a block.
    order = (first_block.flatten(1) + tie.double()).argsort(dim=1, stable=True)
    return Masking(order[:, to_mask:], order[:, :to_mask])


def grid_masking(batch: int, grid: Grid, device: torch.device | str = "cpu") -> Masking:
    """Keep the upper left patch of each 2×2 (figure 6), which masks 75 % of an even grid.

    Raises:
        ValueError: nothing would be masked (a grid of a single patch).
    """
    rows, columns = grid
    row = torch.arange(rows, device=device)[:, None]
    column = torch.arange(columns, device=device)[None, :]
    is_masked = ((row % 2 != 0) | (column % 2 != 0)).flatten()
    return given_masking(is_masked[None].expand(batch, -1))


def given_masking(is_masked: Bool[Tensor, "b n"]) -> Masking:
    """The masking of a given mask, True where a patch is masked.

    Raises:
        ValueError: the images of the batch have different numbers of masked patches, or all or none is masked.
    """
    counts = is_masked.sum(1)
    masked = int(counts[0])
    if not bool((counts == masked).all()):
        raise ValueError(f"each image of a batch must hide the same number of patches, got {counts.tolist()}")
    if not 0 < masked < is_masked.shape[1]:
        left = "no patch visible" if masked else "no patch masked"
        raise ValueError(f"the given mask hides {masked} of {is_masked.shape[1]} patches: that leaves {left}")
    order = is_masked.int().argsort(dim=1, stable=True)
    return Masking(order[:, :-masked], order[:, -masked:])
