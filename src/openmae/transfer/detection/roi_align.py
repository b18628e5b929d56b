"""RoIAlign over the maps of a pyramid."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.ops import roi_align

from openmae.config import Conventions
from openmae.transfer.detection.pyramids import CELLS

NUM_MAPS = 4  # the fifth is for anchors only
CANONICAL_PATCHES = 14  # side of a region that is taken from the map with one cell a patch: 224 px of 16 px
CANONICAL_MAP = 2
ROUNDING = 1e-6  # a region of just this size belongs to the coarser map, as in torchvision


class PyramidRoIAlign(nn.Module):
    """Regions cut out of the map that fits their size, resampled to `side` × `side` cells.

    torchvision's MultiScaleRoIAlign always takes the unaligned form, guesses the maps' scales from the images' sizes
    within the padded square, rounds them to powers of two, and keeps the first guess.
    """

    def __init__(self, side: int, patch_size: int, conventions: Conventions) -> None:
        super().__init__()
        self.side, self.patch_size = side, patch_size
        self.is_aligned, self.sampling = conventions.roi_aligned, conventions.roi_sampling

    def levels(self, regions: Float[Tensor, "k 4"]) -> Int64[Tensor, " k"]:
        """The map of each region (equation 1 of the FPN paper), its sizes scaled with the patch."""
        sides = ((regions[:, 2] - regions[:, 0]) * (regions[:, 3] - regions[:, 1])).sqrt()
        level = CANONICAL_MAP + torch.log2(sides / (CANONICAL_PATCHES * self.patch_size)) + ROUNDING
        return level.floor().clamp(0, NUM_MAPS - 1).long()

    def forward(
        self, maps: Sequence[Float[Tensor, "b w _ _"]], regions: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "k w s s"]:
        """The cells of all regions, one image's after the other's, in float32.

        Args:
            regions: of each image, in pixels of the padded square; none is fine.
        """
        boxes = torch.cat(list(regions))
        images = torch.cat([torch.full_like(r[:, :1], number) for number, r in enumerate(regions)])
        numbered, levels = torch.cat([images, boxes], dim=1), self.levels(boxes)
        # shape[0]: `len` is a Python integer, which an exported program would keep as the only number of regions.
        cells = maps[0].new_zeros(boxes.shape[0], maps[0].shape[1], self.side, self.side, dtype=torch.float32)
        with torch.autocast(boxes.device.type, enabled=False):
            for level, (x, cell) in enumerate(zip(maps[:NUM_MAPS], CELLS[:NUM_MAPS], strict=True)):
                chosen = torch.where(levels == level)[0]
                scale = 1 / (cell * self.patch_size)
                found = roi_align(x.float(), numbered[chosen], self.side, scale, self.sampling, self.is_aligned)
                cells = cells.index_copy(0, chosen, found)
        return cells
