"""`Detections`: what a detector says of an image."""

from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor

MASK_SIDE = 28  # of the mask head's output


class Detections(NamedTuple):
    """The objects that a detector finds in an image, the likeliest first.

    Attributes:
        boxes: (K, 4) left, top, right, bottom in pixels of the padded image, within the image.
        labels: (K,) class ids, from 0.
        scores: (K,) in 0 … 1.
        masks: (K, 28, 28) how likely each cell of the box belongs to the object, in 0 … 1; None without a mask head.
    """

    boxes: Float[Tensor, "k 4"]
    labels: Int64[Tensor, " k"]
    scores: Float[Tensor, " k"]
    masks: Float[Tensor, "k m m"] | None
