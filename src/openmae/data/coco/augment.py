"""Joint augmentation of an image and its objects: large-scale jitter (paper, table 4; A.3).

All randomness is numbers drawn from the sample's key. Scaling and cropping are one operation: the crop is a box of the
image as it is stored, which alone is resized; objects are moved by the same mapping.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from openmae.config.training.detect import DETECT_AUGMENTS
from openmae.data.augment import resized_crop
from openmae.data.coco.annotations import Annotations
from openmae.data.coco.shapes import Mask, bounds, decoded, points_of, rasterised
from openmae.data.masks.augment import Box, crop_box, nearest, padded
from openmae.data.resize import Pixels

NUM_BOX_UNIFORMS = 4  # scale, flip, top, left
MIN_SIDE = 1.0  # pixels of the result: boxes of less are dropped


class CroppedObjects(NamedTuple):
    """The objects of a sample.

    Attributes:
        boxes: (t, 4) float32 left, top, right, bottom in pixels of the square.
        labels: (t,) int64.
        masks: (t, height, width) uint8 of the square; None where they are not wanted.
        size: height and width of the image within the square.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: Mask | None
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class DetectionAugmentation:
    """The augmentation of a training image with its objects.

    Attributes:
        kind: none (scaled so that its long side is the square's), or jitter: scaled by a random factor of that, cropped
            where that is larger than the square, and mirrored left to right half of the time.
        resize_range: smallest and largest factor.
    """

    kind: str
    resize_range: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        assert self.kind in DETECT_AUGMENTS
        assert 0 < self.resize_range[0] <= self.resize_range[1]

    def __call__(
        self,
        image: Pixels,
        annotations: Annotations,
        size: tuple[int, int],
        uniforms: NDArray[np.float64],
        fill: tuple[float, ...],
        with_masks: bool,
    ) -> tuple[Tensor, CroppedObjects]:
        """Augment one image.

        Args:
            image: H × W × C of uint8 or float32.
            size: height and width of the result.
            uniforms: (NUM_BOX_UNIFORMS,) uniform random numbers.
            fill: what is beyond the image, below and on the right, for each channel.

        Returns:
            The square, (C, height, width), with the image at its top left; the objects that are visible in it.
        """
        (low, high), shape = self.resize_range, image.shape[:2]
        factor = 1.0 if self.kind == "none" else low + uniforms[0] * (high - low)
        scaled = fitted_size(shape, size, factor)
        inner = min(scaled[0], size[0]), min(scaled[1], size[1])  # what of the square the image fills
        box = crop_box(shape, scaled, inner, float(uniforms[2]), float(uniforms[3]))
        is_flipped = self.kind != "none" and bool(uniforms[1] < 0.5)
        pixels = resized_crop(image, box, inner)
        objects = crop_objects(annotations, box, inner, size, is_flipped, with_masks)
        return padded(pixels.flip(-1) if is_flipped else pixels, size, fill), objects


def fitted_size(shape: tuple[int, ...], size: tuple[int, int], factor: float = 1.0) -> tuple[int, int]:
    """Height and width of an image scaled to `factor` times the size at which it just fits into `size`.

    For a square `size` the long side is `factor` times the square's.
    """
    height, width = shape[0], shape[1]
    scale = factor * min(size[0] / height, size[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def crop_objects(
    annotations: Annotations,
    box: Box,
    inner: tuple[int, int],
    size: tuple[int, int],
    is_flipped: bool,
    with_masks: bool,
) -> CroppedObjects:
    """The objects that are visible in a crop, without crowds.

    Boxes are clipped to the crop; where there are masks they are the bounds of the pixels that are visible. Objects of
    which less than a pixel's side or no pixel is left are dropped.

    Args:
        box: the crop, of the stored image: top, left, height, width.
        inner: the height and width to which it is scaled.
        size: of the square, at whose top left it lies.
    """
    top, left, height, width = box
    scale = np.array([inner[1] / width, inner[0] / height])  # of x and y
    boxes = (annotations.boxes - np.array([left, top, left, top])) * np.tile(scale, 2)
    boxes = boxes.clip(0, np.array([inner[1], inner[0]] * 2))
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = np.flatnonzero((sides >= MIN_SIDE).all(axis=1) & ~annotations.is_crowd)
    boxes, masks = boxes[kept], None
    if with_masks:
        masks, is_visible = np.zeros((len(kept), *size), np.uint8), np.zeros(len(kept), bool)
        for position, i in enumerate(kept.tolist()):
            found = _draw(masks[position], annotations.segmentations[i], boxes[position], box, inner, scale)
            if found is not None:
                boxes[position], is_visible[position] = found, True
        if not is_visible.all():
            kept, boxes, masks = kept[is_visible], boxes[is_visible], masks[is_visible]
    if is_flipped:
        boxes[:, [0, 2]] = inner[1] - boxes[:, [2, 0]]
        if masks is not None:
            masks[:, :, : inner[1]] = masks[:, :, : inner[1]][:, :, ::-1].copy()
    return CroppedObjects(boxes.astype(np.float32), annotations.labels[kept], masks, inner)


def _draw(
    mask: Mask, segmentation: Any, visible: NDArray[np.float64], box: Box, inner: tuple[int, int], scale: NDArray
) -> tuple[int, int, int, int] | None:
    """Draw an object's segmentation into a mask of the square; its bounds, None where no pixel of it is visible.

    Args:
        visible: the object's box in the crop.
    """
    if isinstance(segmentation, dict):
        left, top, drawn = 0, 0, np.asarray(nearest(decoded(segmentation), box, inner))
    else:
        # Only around the object: a large square holds many small ones. Polygons may reach a little beyond their boxes.
        points = [(points - (box[1], box[0])) * scale for points in points_of(segmentation)]
        corners = np.concatenate([*points, visible.reshape(2, 2)])
        limit = np.array([inner[1], inner[0]])
        left, top = np.floor(corners.min(axis=0) - 1).clip(0, limit).astype(int).tolist()
        right, bottom = np.ceil(corners.max(axis=0) + 1).clip(0, limit).astype(int).tolist()
        if right <= left or bottom <= top:
            return None
        drawn = rasterised([of_one - (left, top) for of_one in points], bottom - top, right - left)
    found = bounds(drawn)
    if found is None:
        return None
    mask[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return found[0] + left, found[1] + top, found[2] + left, found[3] + top
