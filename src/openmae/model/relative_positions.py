"""Relative positions: BEiT's bias table, which transfer has too (paper, A.3 and A.4), ViTDet's decomposed vectors.

Both compute a bias for the attention scores of every pair of tokens, which fused attention takes as its `attn_mask`.
MAE itself has none in pre-training.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openmae.config import Grid

CLASS_OFFSETS = 3  # BEiT's last rows: class token to patch, patch to class token, class token to itself


class RelativePositionBias(nn.Module):
    """A learned bias for each head and each (row, column) offset between query and key (BEiT).

    Offsets are indexed row by row, from query minus key = (1 - rows, 1 - columns) on; the class token's three are last.

    Args:
        class_token: whether the tokens begin with one.
    """

    def __init__(self, grid: Grid, num_heads: int, *, class_token: bool = True) -> None:
        super().__init__()
        self.grid, self.num_class_offsets = grid, CLASS_OFFSETS if class_token else 0
        num_offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1) + self.num_class_offsets
        self.table = nn.Parameter(torch.empty(num_offsets, num_heads))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Zero: at first positions have no influence."""
        nn.init.zeros_(self.table)

    def forward(self, q: Float[Tensor, "b heads n d"], grid: Grid) -> Float[Tensor, "1 heads n n"]:
        """The bias for the scores of the class token, where there is one, and the patches of `grid`."""
        return self.scores(grid)

    def scores(self, grid: Grid) -> Float[Tensor, "1 heads n n"]:
        """As `forward`, which needs no queries: the same bias is added to all."""
        table = resample_bias_table(self.table, self.grid, grid, self.num_class_offsets)
        if self.num_class_offsets:
            return table[offset_ids(grid).to(table.device)].permute(2, 0, 1)[None]  # (1, heads, 1 + N, 1 + N)
        return patch_scores(table, grid)


def patch_scores(table: Float[Tensor, "o heads"], grid: Grid) -> Float[Tensor, "1 heads n n"]:
    """The table's number for each pair of query and key, without a class token.

    Made of overlapping slices of the table: indices would be 134 MB for 64 × 64 patches, and their gradient slow.
    """
    rows, columns = grid
    image = table.T.unflatten(1, (2 * rows - 1, 2 * columns - 1))
    slices = image.unfold(1, rows, 1).unfold(2, columns, 1).flip(3, 4)  # (heads, rows, columns, rows, columns)
    return slices.flatten(3, 4).flatten(1, 2)[None]


def offset_ids(grid: Grid) -> Int[Tensor, "n n"]:
    """The table's index for each pair of query and key, the class token first."""
    rows, columns = grid
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    by_row = row[:, None] - row[None, :] + rows - 1
    by_column = column[:, None] - column[None, :] + columns - 1
    last = (2 * rows - 1) * (2 * columns - 1)
    ids = F.pad(by_row * (2 * columns - 1) + by_column, (1, 0, 1, 0))
    ids[0, :] = last
    ids[:, 0] = last + 1
    ids[0, 0] = last + 2
    return ids


def resample_bias_table(
    table: Float[Tensor, "o heads"], old_grid: Grid, new_grid: Grid, num_class_offsets: int = CLASS_OFFSETS
) -> Float[Tensor, "p heads"]:
    """Resample a bias table to another grid, bicubically over offsets; the class token's rows, the last, are unchanged.

    Other programs space the samples differently (BEiT geometrically), so results agree only at the table's own grid.
    """
    if old_grid == new_grid:
        return table
    offsets, class_rows = table.split([len(table) - num_class_offsets, num_class_offsets])
    image = offsets.T.reshape(1, -1, 2 * old_grid[0] - 1, 2 * old_grid[1] - 1)
    size = (2 * new_grid[0] - 1, 2 * new_grid[1] - 1)
    # Corners are aligned: the largest offset of one grid is mapped to that of the other.
    image = F.interpolate(image.float(), size=size, mode="bicubic", align_corners=True).to(table.dtype)
    return torch.cat([image.flatten(2)[0].T, class_rows])


class DecomposedRelativePositions(nn.Module):
    """A learned vector for each row offset and each column offset, multiplied with the query (ViTDet)."""

    def __init__(self, grid: Grid, head_width: int) -> None:
        super().__init__()
        self.rel_pos_h = nn.Parameter(torch.empty(2 * grid[0] - 1, head_width))
        self.rel_pos_w = nn.Parameter(torch.empty(2 * grid[1] - 1, head_width))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Zero: at first positions have no influence."""
        nn.init.zeros_(self.rel_pos_h)
        nn.init.zeros_(self.rel_pos_w)

    def forward(self, q: Float[Tensor, "b heads n d"], grid: Grid) -> Float[Tensor, "b heads n n"]:
        """The bias for the scores of the patches of `grid`; there is no class token."""
        rows, columns = grid
        by_row, by_column = _vectors(self.rel_pos_h, rows), _vectors(self.rel_pos_w, columns)
        q = q.unflatten(2, grid)  # (B, heads, rows, columns, d)
        scores = torch.einsum("bnrcd,rkd->bnrck", q, by_row)[..., :, None]
        scores = scores + torch.einsum("bnrcd,ckd->bnrck", q, by_column)[..., None, :]
        return scores.flatten(4, 5).flatten(2, 3)


def resample_vectors(table: Float[Tensor, "o d"], size: int) -> Float[Tensor, "p d"]:
    """Resample a table of vectors linearly to a side of `size` patches, as in ViTDet."""
    return table if len(table) == 2 * size - 1 else F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T


def _vectors(table: Float[Tensor, "o d"], size: int) -> Float[Tensor, "q k d"]:
    """The vector for each pair of query and key along one side."""
    table = resample_vectors(table, size)
    index = torch.arange(size, device=table.device)
    return table[index[:, None] - index[None, :] + size - 1]
