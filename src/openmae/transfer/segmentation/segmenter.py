"""A segmentation model: a ViT, a feature pyramid, UperNet, and an auxiliary head (paper, table 5 and A.4)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openmae.config import SegmenterShape
from openmae.model.vit import ViT
from openmae.transfer.pyramid import Pyramid
from openmae.transfer.segmentation.upernet import FCNHead, UperNetHead

AUXILIARY_MAP = 2  # of the pyramid: the one at the patches' own resolution


class Segmenter(nn.Module):
    """A class for each pixel: logits from the maps of four blocks of the encoder.

    The class token takes part in attention and is left out of the maps; they are not normed. Images may have any size:
    they are padded at the bottom and on the right with zeros (the mean, after normalisation) to whole patches, and
    `at_size` cuts the result.

    All parameters are trainable at first, positions too, except those of blocks after the last map, which never run.
    """

    def __init__(self, encoder: ViT, shape: SegmenterShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = encoder
        self.encoder.norm = nn.Identity()
        width = shape.encoder.width
        self.pyramid = Pyramid(width)
        self.head = UperNetHead(width, shape.head_width, shape.num_classes)
        self.auxiliary = FCNHead(width, shape.auxiliary_width, shape.num_classes)
        self.encoder.requires_grad_(True)
        # DistributedDataParallel waits for the gradient of each trainable parameter.
        self.encoder.blocks[shape.pyramid_blocks[-1] + 1 :].requires_grad_(False)

    @classmethod
    def from_shape(cls, shape: SegmenterShape) -> "Segmenter":
        """A newly initialised segmentation model, its encoder initialised as for pre-training."""
        return cls(ViT(shape.encoder), shape)

    def train_only_heads(self) -> None:
        """Freeze the encoder; pyramid and heads are trained."""
        self.encoder.requires_grad_(False)

    def maps(
        self, images: Float[Tensor, "b c h w"], branch_scales: Float[Tensor, "depth 2 b"] | None = None
    ) -> list[Float[Tensor, "b d _ _"]]:
        """The pyramid's four maps of images of any size, finest first."""
        images = padded_to_patches(images, self.shape.encoder.patch_size)
        return self.pyramid(self.encoder.feature_maps(images, self.shape.pyramid_blocks, branch_scales))

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        branch_scales: Float[Tensor, "depth 2 b"] | None = None,
        channel_scales: Float[Tensor, "b w"] | None = None,
    ) -> tuple[Float[Tensor, "b classes rows columns"], Float[Tensor, "b classes r c"]]:
        """Logits with one cell for each quarter of a patch's side, and the auxiliary head's with one for each patch.

        They are of the padded images: `at_size` makes logits of the images' pixels from them.

        Args:
            branch_scales: drop path, for each block (see `Block`).
            channel_scales: dropout before the classifiers, (B, head_width + auxiliary_width), the main head's first.
        """
        main_scales = auxiliary_scales = None
        if channel_scales is not None:
            main_scales, auxiliary_scales = channel_scales.split([self.shape.head_width, self.shape.auxiliary_width], 1)
        maps = self.maps(images, branch_scales)
        return self.head(maps, main_scales), self.auxiliary(maps[AUXILIARY_MAP], auxiliary_scales)

    def at_size(
        self, logits: Float[Tensor, "b classes rows columns"], height: int, width: int
    ) -> Float[Tensor, "b classes {height} {width}"]:
        """Logits, of either head, for the pixels of images of this size: resampled bilinearly, the padding cut off."""
        patch_size = self.shape.encoder.patch_size
        padded = (height + -height % patch_size, width + -width % patch_size)
        full = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
        return full[:, :, :height, :width]

    def segment(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes h w"]:
        """Logits of each pixel, without the auxiliary head; the model should be in evaluation mode."""
        height, width = images.shape[-2:]
        return self.at_size(self.head(self.maps(images)), height, width)


def padded_to_patches(images: Float[Tensor, "b c h w"], patch_size: int) -> Float[Tensor, "b c h2 w2"]:
    """Images padded with zeros at the bottom and on the right to whole patches."""
    height, width = images.shape[-2:]
    down, right = -height % patch_size, -width % patch_size
    return F.pad(images, (0, right, 0, down)) if down or right else images
