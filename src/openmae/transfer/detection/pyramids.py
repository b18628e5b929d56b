"""From maps of a plain ViT to the five maps on which Mask R-CNN works, all of one width (paper, A.3; ViTDet)."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from openmae.config import DetectorShape
from openmae.model.block import is_without_numbers
from openmae.transfer.channel_norm import ChannelNorm
from openmae.transfer.detection.norms import NORMS, init_norms
from openmae.transfer.pyramid import Pyramid

CELLS = (0.25, 0.5, 1, 2, 4)  # sides of the maps' cells in patches, finest first
GROUPS = 32  # of GroupNorm, where they divide the width


def group_norm(width: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or as many as divide both 32 and the width."""
    return nn.GroupNorm(math.gcd(GROUPS, width), width)


def make_pyramid(shape: DetectorShape) -> "FPNPyramid | SimplePyramid":
    """The pyramid that a detector's shape names."""
    kind = SimplePyramid if shape.pyramid == "simple" else FPNPyramid
    return kind(shape.encoder.width, shape.head_width, shape.conventions.head_norm)


class FPNPyramid(nn.Module):
    """Four maps of four depths, resampled to four resolutions, and torchvision's FPN over them (paper, A.3).

    The fifth map is every second row and column of the fourth.
    """

    def __init__(self, width: int, head_width: int, head_norm: str) -> None:
        super().__init__()
        self.resample = Pyramid(width, group_norm)
        self.fpn = FeaturePyramidNetwork(
            [width] * 4, head_width, extra_blocks=LastLevelMaxPool(), norm_layer=NORMS[head_norm]
        )
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set every parameter.

        | parameter | value |
        |---|---|
        | resampling | see `Pyramid` |
        | convolutions of the FPN | U(±√(3 / inputs)), inputs counted with the kernel; bias 0 |
        | norms | 1, 0; running mean 0 and variance 1 |
        """
        if is_without_numbers(self):
            return
        self.resample.init_weights()
        init_pyramid_convolutions(self.fpn)

    def forward(self, maps: Sequence[Float[Tensor, "b d r c"]]) -> list[Float[Tensor, "b w _ _"]]:
        """Five maps, finest first, from four of equal shape."""
        named = OrderedDict((str(level), x) for level, x in enumerate(self.resample(maps)))
        return list(self.fpn(named).values())


class SimplePyramid(nn.Module):
    """The last map alone, resampled to four resolutions; each then has a 1×1 and a 3×3 convolution (ViTDet).

    The deconvolutions keep the encoder's width, as table 4's do, with LayerNorm over channels between them. The fifth
    map is every second row and column of the fourth.
    """

    def __init__(self, width: int, head_width: int, head_norm: str) -> None:
        super().__init__()
        self.resample = Pyramid(width, ChannelNorm)
        norm = NORMS[head_norm]
        self.levels = nn.ModuleList(
            nn.Sequential(
                Conv2dNormActivation(width, head_width, 1, norm_layer=norm, activation_layer=None),
                Conv2dNormActivation(head_width, head_width, 3, norm_layer=norm, activation_layer=None),
            )
            for _ in range(4)
        )
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set every parameter: as `FPNPyramid`'s."""
        if is_without_numbers(self):
            return
        self.resample.init_weights()
        init_pyramid_convolutions(self.levels)

    def forward(self, maps: Sequence[Float[Tensor, "b d r c"]]) -> list[Float[Tensor, "b w _ _"]]:
        """Five maps, finest first, from the only one.

        Raises:
            ValueError: there is not one.
        """
        if len(maps) != 1:
            raise ValueError(f"the simple pyramid takes 1 map, got {len(maps)}")
        found = [level(x) for level, x in zip(self.levels, self.resample([maps[0]] * 4), strict=True)]
        return [*found, F.max_pool2d(found[-1], 1, 2)]


def init_pyramid_convolutions(module: nn.Module) -> None:
    """Set convolutions and norms; see `FPNPyramid.init_weights`."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_uniform_(part.weight, a=1)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    init_norms(module)
