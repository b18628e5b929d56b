"""The heads of segmentation: UperNet, and the fully convolutional one that helps it in training (paper, A.4).

Xiao et al., Unified Perceptual Parsing for Scene Understanding, 2018. Resampling is bilinear, corners not aligned.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openmae.model.block import is_without_numbers
from openmae.model.sync_batch_norm import SyncBatchNorm

POOL_SIZES = (1, 2, 3, 6)  # rows and columns of pyramid pooling's maps


class ConvNormReLU(nn.Module):
    """A convolution without bias that keeps the map's size, a batch norm over all processes, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = SyncBatchNorm(outputs)

    def forward(self, x: Float[Tensor, "b i r c"]) -> Float[Tensor, "b o r c"]:
        return F.relu(self.norm(self.conv(x)))


class UperNetHead(nn.Module):
    """Pyramid pooling on the coarsest map, top-down addition, and the fusion of all four at the finest resolution."""

    def __init__(self, width: int, head_width: int, num_classes: int) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(ConvNormReLU(width, head_width, 1) for _ in POOL_SIZES)
        self.bottleneck = ConvNormReLU(width + len(POOL_SIZES) * head_width, head_width, 3)
        self.laterals = nn.ModuleList(ConvNormReLU(width, head_width, 1) for _ in range(3))
        self.outputs = nn.ModuleList(ConvNormReLU(head_width, head_width, 3) for _ in range(3))
        self.fusion = ConvNormReLU(4 * head_width, head_width, 3)
        self.classifier = nn.Conv2d(head_width, num_classes, 1)
        self.init_weights()

    def init_weights(self) -> None:
        """Set every parameter (see `init_head`)."""
        init_head(self)

    def forward(
        self, maps: Sequence[Float[Tensor, "b d _ _"]], channel_scales: Float[Tensor, "b w"] | None = None
    ) -> Float[Tensor, "b classes r c"]:
        """Logits at the resolution of the first map.

        Args:
            maps: four, finest first, such as the pyramid's.
            channel_scales: dropout: factors of each image's channels before the classifier.
        """
        lateral = [layer(x) for layer, x in zip(self.laterals, maps, strict=False)]
        coarsest = maps[-1]
        pooled = [
            resized(layer(F.adaptive_avg_pool2d(coarsest, size)), coarsest)
            for layer, size in zip(self.pooled, POOL_SIZES, strict=True)
        ]
        above = last = self.bottleneck(torch.cat([coarsest, *pooled], dim=1))
        outputs = [last]
        for x, layer in zip(reversed(lateral), reversed(self.outputs), strict=True):
            above = x + resized(above, x)
            outputs.insert(0, layer(above))
        finest = outputs[0]
        x = self.fusion(torch.cat([finest, *(resized(x, finest) for x in outputs[1:])], dim=1))
        return self.classifier(with_dropped_channels(x, channel_scales))


class FCNHead(nn.Module):
    """One 3×3 convolution and a classifier on one map: its loss trains the encoder, its logits are not used."""

    def __init__(self, width: int, auxiliary_width: int, num_classes: int) -> None:
        super().__init__()
        self.conv = ConvNormReLU(width, auxiliary_width, 3)
        self.classifier = nn.Conv2d(auxiliary_width, num_classes, 1)
        self.init_weights()

    def init_weights(self) -> None:
        """Set every parameter (see `init_head`)."""
        init_head(self)

    def forward(
        self, x: Float[Tensor, "b d r c"], channel_scales: Float[Tensor, "b w"] | None = None
    ) -> Float[Tensor, "b classes r c"]:
        """Logits at the map's resolution; `channel_scales` as in `UperNetHead`."""
        return self.classifier(with_dropped_channels(self.conv(x), channel_scales))


@torch.no_grad()
def init_head(head: UperNetHead | FCNHead) -> None:
    """Set every parameter of a head.

    | parameter | value |
    |---|---|
    | convolutions | Kaiming normal for ReLU, by outputs; they have no bias |
    | batch norms | 1, 0; running mean 0 and variance 1 |
    | classifier | N(0, .01), bias 0 |
    """
    if is_without_numbers(head):
        return
    for module in head.modules():
        if isinstance(module, ConvNormReLU):
            nn.init.kaiming_normal_(module.conv.weight, mode="fan_out", nonlinearity="relu")
            module.norm.init_weights()
    nn.init.normal_(head.classifier.weight, std=0.01)
    assert head.classifier.bias is not None
    nn.init.zeros_(head.classifier.bias)


def resized(x: Float[Tensor, "b d r c"], like: Float[Tensor, "b _ rows columns"]) -> Float[Tensor, "b d rows columns"]:
    """A map resampled bilinearly to the rows and columns of another."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def with_dropped_channels(
    x: Float[Tensor, "b d r c"], channel_scales: Float[Tensor, "b d"] | None
) -> Float[Tensor, "b d r c"]:
    """A map times a factor for each image and channel: dropout of whole channels, drawn by the caller."""
    return x if channel_scales is None else x * channel_scales.to(x.dtype)[:, :, None, None]
