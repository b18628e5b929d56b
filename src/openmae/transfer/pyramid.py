"""A feature pyramid from a plain ViT, whose maps all have one resolution (paper, A.4).

It is BEiT's for segmentation: four maps from blocks at different depths, resampled to four resolutions.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openmae.model.block import is_without_numbers
from openmae.model.sync_batch_norm import SyncBatchNorm

PAPER_BLOCKS = {12: (3, 5, 7, 11), 24: (7, 11, 15, 23)}  # by depth (docs/paper.md, segmentation)


def pyramid_blocks(depth: int) -> tuple[int, int, int, int]:
    """The four blocks, counted from 0, after which an encoder's maps are taken, finest first.

    The paper's for 12 and 24 blocks, else the last blocks of the four quarters; below 4 blocks some repeat.

    Raises:
        ValueError: there is no block.
    """
    if depth < 1:
        raise ValueError(f"a pyramid needs an encoder of 1 block at least, got {depth}")
    return PAPER_BLOCKS.get(depth) or quarter_blocks(depth)


def quarter_blocks(depth: int) -> tuple[int, int, int, int]:
    """The last blocks, counted from 0, of an encoder's four quarters: those of table 4, and ViTDet's global ones."""
    first, second, third, last = (-(-depth * quarter // 4) - 1 for quarter in (1, 2, 3, 4))
    return first, second, third, last


class Pyramid(nn.Module):
    """Four maps of a ViT to one cell per 1/4, 1/2, 1 and 2 patches; all keep its width.

    | map | cell | layers |
    |---|---|---|
    | 1 | 1/4 patch | 2×2 deconvolution, norm, GELU, 2×2 deconvolution |
    | 2 | 1/2 patch | 2×2 deconvolution |
    | 3 | 1 patch | none |
    | 4 | 2 patches | 2×2 max-pooling; the last row and column of an odd grid are pooled alone |

    Args:
        norm: makes the norm of this many channels.
    """

    def __init__(self, width: int, norm: Callable[[int], nn.Module] = SyncBatchNorm) -> None:
        super().__init__()
        self.upsample_4 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            norm(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        self.upsample_2 = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set every parameter; the norm's are set by its own class.

        | parameter | value |
        |---|---|
        | deconvolutions | U(±1/√(4 · width)), weight and bias: PyTorch's default, as in BEiT |
        | norm | 1, 0; running mean 0 and variance 1 |
        """
        if is_without_numbers(self):
            return
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d | nn.GroupNorm | nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, SyncBatchNorm):
                module.init_weights()

    def forward(self, maps: Sequence[Float[Tensor, "b d r c"]]) -> list[Float[Tensor, "b d _ _"]]:
        """Resample four maps of equal shape.

        Raises:
            ValueError: there are not four.
        """
        if len(maps) != 4:
            raise ValueError(f"the pyramid takes 4 maps, got {len(maps)}")
        first, second, third, last = maps
        return [self.upsample_4(first), self.upsample_2(second), third, F.max_pool2d(last, 2, ceil_mode=True)]
