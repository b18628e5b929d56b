"""The shape of a segmentation model: what determines the names and sizes of its weights."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from openmae.config.checks import check_range, check_types
from openmae.config.shapes import LIMITS, ViTShape
from openmae.errors import RequestError

MAX_SEGMENT_CLASSES = 32_767  # labels of crops are int16


@dataclass(frozen=True, kw_only=True)
class SegmenterShape:
    """What determines the weights of a segmentation model: encoder, feature pyramid, UperNet head, auxiliary head.

    Attributes:
        pyramid_blocks: the blocks, counted from 0, after which the four maps of the pyramid are taken, finest first.
        head_width: channels inside the UperNet head; the encoder's width in the paper (A.4).
        auxiliary_width: channels inside the auxiliary head.
    """

    encoder: ViTShape
    num_classes: int
    pyramid_blocks: tuple[int, int, int, int]
    head_width: int
    auxiliary_width: int = 256

    def __post_init__(self) -> None:
        check_types(self)
        check_range("the number of classes", self.num_classes, 1, MAX_SEGMENT_CLASSES)
        check_range("--head-width", self.head_width, 1, LIMITS["width"])
        check_range("the width of the auxiliary head", self.auxiliary_width, 1, LIMITS["width"])
        blocks = self.pyramid_blocks
        if list(blocks) != sorted(blocks) or blocks[0] < 0 or blocks[-1] >= self.encoder.depth:
            raise RequestError(
                f"the pyramid's blocks are {' '.join(map(str, blocks))}: give four in ascending order from 0 to "
                f"{self.encoder.depth - 1}, for this encoder has {self.encoder.depth} blocks"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        blocks = tuple(values["pyramid_blocks"])
        return cls(**{**values, "encoder": ViTShape.from_dict(values["encoder"]), "pyramid_blocks": blocks})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "encoder": self.encoder.to_dict(), "pyramid_blocks": list(self.pyramid_blocks)}
