"""Joint augmentation of an image and its labels: scaled, cropped, flipped, perhaps distorted (paper, table 5; A.4).

All randomness is numbers drawn from the sample's key. Scaling and cropping are one operation: the crop is a box of the
image as it is stored, which alone is resized.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.config.training.segment import SEGMENT_AUGMENTS
from openmae.data.augment import resized_crop
from openmae.data.jitter import NUM_DISTORTIONS, photometric_distortion
from openmae.data.masks.label_map import Labels
from openmae.data.masks.palette import IGNORED
from openmae.data.resize import Pixels

CROP_ATTEMPTS = 10
LONG_SIDE = 4  # times the crop's: images that would be longer are scaled by their long side (2048 beside 512)
NUM_MASK_UNIFORMS = 2 + 2 * CROP_ATTEMPTS + NUM_DISTORTIONS  # scale, flip, crops, distortion

Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True, kw_only=True)
class MaskAugmentation:
    """The augmentation of a training image with its labels.

    Attributes:
        kind: none (scaled so that it just covers the crop, the middle of it), crop or crop-jitter.
        resize_range: smallest and largest factor by which the image is scaled; at 1 it just covers the crop.
        max_class_share: a crop of which one class fills more, ignored pixels not counted, is drawn again.
    """

    kind: str
    resize_range: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75

    def __post_init__(self) -> None:
        assert self.kind in SEGMENT_AUGMENTS

    def __call__(
        self,
        image: Pixels,
        labels: Labels,
        size: tuple[int, int],
        uniforms: NDArray[np.float64],
        value_range: tuple[float, float],
        fill: tuple[float, ...],
    ) -> tuple[Tensor, NDArray[np.integer]]:
        """Augment one image.

        Args:
            image: H × W × C of uint8 or float32.
            labels: (H, W) class ids, of which only those of crops are taken.
            size: height and width of the crop.
            uniforms: (NUM_MASK_UNIFORMS,) uniform random numbers.
            value_range: black and white of float32 images, for the distortion.
            fill: what is beyond the image where it is smaller than the crop, for each channel.

        Returns:
            The crop, (C, height, width), and its labels, (height, width), `IGNORED` beyond the image.
        """
        low, high = self.resize_range
        factor = 1.0 if self.kind == "none" else low + uniforms[0] * (high - low)
        scaled = scaled_size(image.shape[:2], size, factor)
        inner = min(scaled[0], size[0]), min(scaled[1], size[1])  # what of the crop the image fills
        box = self._box(labels, scaled, inner, uniforms[2 : 2 + 2 * CROP_ATTEMPTS].reshape(CROP_ATTEMPTS, 2))
        pixels, cropped = resized_crop(image, box, inner), nearest(labels, box, inner)
        if self.kind != "none" and uniforms[1] < 0.5:
            pixels, cropped = pixels.flip(-1), cropped[:, ::-1]
        if self.kind == "crop-jitter":
            pixels = photometric_distortion(pixels, uniforms[2 + 2 * CROP_ATTEMPTS :].tolist(), value_range)
        return padded(pixels, size, fill), padded_labels(cropped, size)

    def _box(
        self,
        labels: Labels,
        scaled: tuple[int, int],
        inner: tuple[int, int],
        uniforms: NDArray[np.float64],
    ) -> Box:
        """The box of the stored image that becomes the crop; the last one drawn where none is varied enough."""
        if self.kind == "none":
            return crop_box(labels.shape, scaled, inner, 0.5, 0.5)
        box = (0, 0, 0, 0)
        for top, left in uniforms.tolist():
            box = crop_box(labels.shape, scaled, inner, top, left)
            if self.max_class_share >= 1 or largest_share(nearest(labels, box, inner)) <= self.max_class_share:
                break
        return box


def scaled_size(shape: tuple[int, ...], size: tuple[int, int], factor: float = 1.0) -> tuple[int, int]:
    """Height and width of an image scaled to `factor` times the size at which it just covers one of `size`.

    For a square `size` the short side is `factor` times the square's. Images of which the long side would be more than
    `LONG_SIDE` times that of `size` are scaled by their long side, as 2048 limits it beside 512.
    """
    height, width = shape[0], shape[1]
    covering = max(size[0] / height, size[1] / width)
    scale = factor * min(covering, LONG_SIDE * max(size) / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def crop_box(shape: tuple[int, ...], scaled: tuple[int, int], inner: tuple[int, int], top: float, left: float) -> Box:
    """The box of a stored image that becomes a crop of `inner` once the image is scaled to `scaled`.

    Args:
        shape: height and width of the stored image.
        top, left: where the crop lies, 0 to 1.
    """
    height = min(shape[0], max(1, round(inner[0] * shape[0] / scaled[0])))
    width = min(shape[1], max(1, round(inner[1] * shape[1] / scaled[1])))
    return round(top * (shape[0] - height)), round(left * (shape[1] - width)), height, width


def nearest(labels: Labels, box: Box, size: tuple[int, int]) -> NDArray[np.integer]:
    """A box of (H, W) labels at another size, each pixel's label that of the nearest: classes cannot be averaged."""
    top, left, height, width = box
    rows = top + ((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.int64)
    columns = left + ((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.int64)
    return labels[rows[:, None], columns]


def largest_share(labels: NDArray[np.integer]) -> float:
    """The share of the most frequent class among pixels that have one; 1 where none has."""
    known = labels[labels != IGNORED]
    return float(np.bincount(known).max() / known.size) if known.size else 1.0


def padded(image: Tensor, size: tuple[int, int], fill: tuple[float, ...]) -> Tensor:
    """A (C, h, w) image at the top left of one of `size`, the rest of each channel filled."""
    if tuple(image.shape[1:]) == size:
        return image.contiguous()
    values = torch.tensor(fill, dtype=torch.float64)
    values = (values if image.is_floating_point() else values.round().clamp(0, 255)).to(image.dtype)
    result = values[:, None, None].expand(-1, *size).clone()
    result[:, : image.shape[1], : image.shape[2]] = image
    return result


def padded_labels(labels: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
    """(h, w) labels at the top left of (height, width) ones, the rest `IGNORED`."""
    result = np.full(size, IGNORED, labels.dtype)
    result[: labels.shape[0], : labels.shape[1]] = labels
    return result
