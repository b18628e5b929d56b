"""A detector: a ViT, a feature pyramid, and Mask R-CNN (paper, table 4 and A.3)."""

from typing import TYPE_CHECKING

from jaxtyping import Float, Int64
from torch import Tensor, nn

from openmae.config import DetectorShape
from openmae.model.vit import ViT
from openmae.transfer.detection.detections import Detections

if TYPE_CHECKING:  # transfer knows no data: it takes this as it is
    from openmae.data.instances import Instances


class Detector(nn.Module):
    """Objects of images: their boxes and classes, and their masks where the shape has them.

    Images are squares of the encoder's size, padded at the bottom and on the right. A class token takes part in
    attention and is left out of the maps; they are not normed.

    All parameters are trainable at first, positions too, except those of blocks after the last map, which never run.
    """

    def __init__(self, encoder: ViT, shape: DetectorShape) -> None:
        # Here, for they load torchvision, which takes a second and is of no use to what only asks for this class.
        from openmae.transfer.detection.mask_rcnn import MaskRCNN
        from openmae.transfer.detection.pyramids import make_pyramid

        super().__init__()
        self.shape = shape
        self.encoder = encoder
        self.encoder.norm = nn.Identity()
        self.pyramid = make_pyramid(shape)
        self.head = MaskRCNN(shape)
        self.encoder.requires_grad_(True)
        # DistributedDataParallel waits for the gradient of each trainable parameter.
        last = shape.pyramid_blocks[-1]
        self.encoder.blocks[last + 1 :].requires_grad_(False)
        windowed = {bool(block.window_size) for block in self.encoder.blocks[: last + 1]}
        if self.encoder.windowed_relative is not None and True not in windowed:
            self.encoder.windowed_relative.requires_grad_(False)
        if self.encoder.global_relative is not None and False not in windowed:
            self.encoder.global_relative.requires_grad_(False)

    @classmethod
    def from_shape(cls, shape: DetectorShape) -> "Detector":
        """A newly initialised detector, its encoder initialised as for pre-training."""
        return cls(ViT(shape.encoder), shape)

    def train_only_heads(self) -> None:
        """Freeze the encoder; pyramid and heads are trained."""
        self.encoder.requires_grad_(False)

    def maps(
        self, images: Float[Tensor, "b c s s"], branch_scales: Float[Tensor, "depth 2 b"] | None = None
    ) -> list[Float[Tensor, "b w _ _"]]:
        """The five maps of the images, finest first."""
        return self.pyramid(self.encoder.feature_maps(images, self.shape.pyramid_blocks, branch_scales))

    def forward(
        self,
        images: Float[Tensor, "b c s s"],
        instances: "Instances",
        keys: Int64[Tensor, " b"],
        branch_scales: Float[Tensor, "depth 2 b"] | None = None,
    ) -> dict[str, Float[Tensor, " b"]]:
        """The losses of each image, in float32: objectness, proposal_box, class, box, and mask where there is a head.

        Each is a mean over what was drawn in that image, so that their mean over a global batch does not depend on how
        it is divided; of an image without objects the last two are 0. Every trainable parameter takes part, also where
        no image has objects.

        Args:
            images: normalised.
            instances: on the images' device, `counts` and `sizes` better on the CPU, where they are read.
            keys: from which anchors and regions are drawn; on the CPU.
            branch_scales: drop path, for each block (see `Block`).
        """
        return self.head(self.maps(images, branch_scales), instances, keys)

    def detect(self, images: Float[Tensor, "b c s s"], sizes: Int64[Tensor, "b 2"]) -> list[Detections]:
        """The objects of each image: at most 100 with a score above .05, of a class none that overlap by more than .5.

        The model should be in evaluation mode.

        Args:
            sizes: height and width of each image within its square.
        """
        return self.head.detect(self.maps(images), sizes)
