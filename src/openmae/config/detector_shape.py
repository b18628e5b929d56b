"""The shape of a detector: what determines the names and sizes of its weights, and how it is put together."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from openmae.config.checks import check_name, check_range, check_types
from openmae.config.shapes import LIMITS, ViTShape
from openmae.errors import RequestError

PYRAMIDS = ("table-4", "simple")
HEAD_NORMS = ("batch", "layer", "none")
MAX_DETECT_CLASSES = 32_767
# Of Mask R-CNN in every program.
ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height to width, of the anchors at each place
BOX_CELLS, MASK_CELLS = 7, 14  # sides of a region's cells for the two heads
POSITIVE_SHARE = 0.25  # of the regions that are trained on, where there are as many objects


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """How Mask R-CNN is put together where programs differ; the defaults are table 4's (docs/paper.md).

    Attributes:
        roi_aligned: RoIAlign takes pixels' centres as they lie (shifted by half a pixel).
        roi_sampling: points along a cell of RoIAlign; 0: as many as its size asks for.
        l1_beta: below it the losses of boxes are quadratic; 0: plain L1.
        train_proposals, test_proposals: regions of an image that the region proposal network hands on in training, and
            otherwise.
        rpn_convolutions: of the region proposal network, before its two outputs.
        box_convolutions, box_linears: layers of the box head, before its two outputs.
        mask_convolutions: layers of the mask head, before its deconvolution.
        head_norm: after the convolutions of FPN, box and mask head: batch (synchronised), layer (of channels) or none.
    """

    roi_aligned: bool = True
    roi_sampling: int = 0
    l1_beta: float = 0.0
    train_proposals: int = 1000
    test_proposals: int = 1000
    rpn_convolutions: int = 2
    box_convolutions: int = 4
    box_linears: int = 1
    mask_convolutions: int = 4
    head_norm: str = "batch"

    def __post_init__(self) -> None:
        check_types(self)
        check_range("the points of RoIAlign", self.roi_sampling, 0, 64)
        check_range("the beta of the box losses", self.l1_beta, 0, 100)
        for proposals in (self.train_proposals, self.test_proposals):
            check_range("the proposals of an image", proposals, 1, 100_000)
        check_range("the convolutions of the RPN", self.rpn_convolutions, 1, 16)
        check_range("the convolutions of the box head", self.box_convolutions, 0, 16)
        check_range("the linear layers of the box head", self.box_linears, 1, 16)
        check_range("the convolutions of the mask head", self.mask_convolutions, 1, 16)
        check_name("the norm of the heads", self.head_norm, HEAD_NORMS)


@dataclass(frozen=True, kw_only=True)
class DetectorShape:
    """What determines a detector: encoder, feature pyramid, FPN, region proposals, box head and mask head.

    Attributes:
        encoder: its image size is that of the padded square.
        num_classes: without the background.
        has_masks: whether there is a mask head.
        pyramid: table-4: four maps of four depths; simple: ViTDet's, from the last map alone.
        pyramid_blocks: the blocks, counted from 0, after which maps are taken, finest first: four, or the last for
            `simple`.
        head_width: channels of FPN and of the heads' convolutions; 256 in the paper.
        box_width: of the box head's linear layers; 1024 in the paper.
        roi_samples: regions of an image that the heads train on; 512 in the paper.
    """

    encoder: ViTShape
    num_classes: int
    has_masks: bool
    pyramid: str
    pyramid_blocks: tuple[int, ...]
    head_width: int
    box_width: int
    roi_samples: int = 512
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        check_types(self)
        check_name("--pyramid", self.pyramid, PYRAMIDS)
        check_range("the number of classes", self.num_classes, 1, MAX_DETECT_CLASSES)
        check_range("--head-width", self.head_width, 1, LIMITS["width"])
        check_range("the width of the box head", self.box_width, 1, LIMITS["width"])
        check_range("--roi-samples", self.roi_samples, 1, 100_000)
        blocks, wanted = self.pyramid_blocks, 1 if self.pyramid == "simple" else 4
        if len(blocks) != wanted or list(blocks) != sorted(blocks) or blocks[0] < 0 or blocks[-1] >= self.encoder.depth:
            raise RequestError(
                f"the pyramid's blocks are {' '.join(map(str, blocks))}: give {wanted} in ascending order from 0 to "
                f"{self.encoder.depth - 1}, for this encoder has {self.encoder.depth} blocks"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        blocks, conventions = tuple(values["pyramid_blocks"]), Conventions(**values["conventions"])
        encoder = ViTShape.from_dict(values["encoder"])
        return cls(**{**values, "encoder": encoder, "pyramid_blocks": blocks, "conventions": conventions})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "encoder": self.encoder.to_dict(), "pyramid_blocks": list(self.pyramid_blocks)}
