"""Fixed 2-D sin-cos positions and their resampling to another grid (paper, section 3 and A.1)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openmae.config import Grid


def sincos_positions(grid: Grid, width: int) -> Float[Tensor, "1 n d"]:
    """The position table of a grid, the class token's (zero) first: (1, 1 + rows · columns, width).

    Channels are laid out [sin column, cos column, sin row, cos row] with frequencies
    10000^(−i / (width/4)); indices are the raw integers. Computed in float64, returned in float32.

    Raises:
        ValueError: `width` is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width that 4 divides, got {width}")
    rows, columns = grid
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row_angles = torch.arange(rows, dtype=torch.float64)[:, None] * frequencies
    column_angles = torch.arange(columns, dtype=torch.float64)[:, None] * frequencies
    by_row = torch.cat([row_angles.sin(), row_angles.cos()], dim=1)  # (rows, D/2)
    by_column = torch.cat([column_angles.sin(), column_angles.cos()], dim=1)  # (columns, D/2)
    table = torch.cat([by_column.repeat(rows, 1), by_row.repeat_interleave(columns, dim=0)], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table])[None].float()


def resample_positions(
    positions: Float[Tensor, "1 n d"], old_grid: Grid, new_grid: Grid, num_prefix_tokens: int
) -> Float[Tensor, "1 m d"]:
    """Resample a position table to another grid, bicubically; the first `num_prefix_tokens` positions are unchanged.

    `align_corners=False` and no antialiasing, as is the convention for ViT checkpoints: other programs compute the same
    table from the same weights.
    """
    if old_grid == new_grid:
        return positions
    class_position, table = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    image = table.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    image = F.interpolate(image.float(), size=new_grid, mode="bicubic", align_corners=False)
    table = image.to(positions.dtype).permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([class_position, table], dim=1)
