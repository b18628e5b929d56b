"""Crops, flips, jitter and RandAugment of one image. All randomness derives from the sample's key.

Pre-training crops and flips (paper, table 1e); fine-tuning crops more widely and adds RandAugment (table 9).
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.config import AUGMENTS, CROP_ASPECTS, Preprocessing, check_name
from openmae.data.jitter import JITTER, colour_operations, jitter
from openmae.data.randomness import seeded_global_rng
from openmae.data.resize import LARGE_PIXELS, Pixels, resize, resize_in_strips
from openmae.errors import RequestError

CROP_SCALE = (0.2, 1.0)  # of the area, in pre-training
CROP_RATIO = (3 / 4, 4 / 3)  # width over height, relative to the model's
CROP_ATTEMPTS = 10
FIXED_CROP = 224 / 256  # of the short side, for `crop-fixed`
NUM_UNIFORMS = 4 * CROP_ATTEMPTS + 1 + len(JITTER)  # for crop, flip and jitter
_DECIMAL = r"\d+(?:\.\d+)?"
# timm silently ignores parts of a policy that it does not know; here only parts that have an effect are accepted.
_POLICY_PARTS = (
    rf"(m)\d+|(n)[1-9]|(p)(?:0(?:\.\d+)?|1(?:\.0+)?)|(mstd){_DECIMAL}|(mmax)[1-9]\d*|(inc)[01]|(t)(?:weights|3aw?)"
)

Box = tuple[int, int, int, int]  # top, left, height, width


class Crop(NamedTuple):
    """A crop of an image: the box, which is resized and then perhaps mirrored left to right."""

    box: Box
    is_flipped: bool


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The augmentation of a training image: crop, flip, optionally jitter, optionally RandAugment.

    Attributes:
        kind: none (centre crop, no flip), crop-fixed, crop or crop-jitter.
        crop_scale: smallest and largest area of a random crop, as a fraction of the image's (crop and crop-jitter).
        crop_aspect: model: random crops have the model's aspect, times `CROP_RATIO`, and lie anywhere; square: as in
            older runs, which stretched crops for models that are not square, and centred those of very long images.
        rand_augment: timm's policy, like rand-m9-mstd0.5-inc1, after `kind`; for uint8 images, grey or RGB.
        fill: 0..255 for each channel, for pixels that RandAugment moves in from outside; None: timm's grey.

    Raises:
        RequestError: an unknown kind, an impossible scale, or a policy of which timm would ignore a part.
    """

    kind: str = "crop"
    crop_scale: tuple[float, float] = CROP_SCALE
    crop_aspect: str = "model"
    rand_augment: str | None = None
    fill: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_name("--augment", self.kind, AUGMENTS)
        check_name("--crop-aspect", self.crop_aspect, CROP_ASPECTS)
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise RequestError(
                f"the crop's scale got {low:g} to {high:g}: it must lie above 0 and at most at 1, rising"
            )
        if self.rand_augment is not None:
            _check_policy(self.rand_augment)
        if self.fill is not None and (len(self.fill) not in (1, 3) or not all(0 <= v <= 255 for v in self.fill)):
            raise RequestError(f"the fill of --rand-augment got {self.fill}: it must be 1 or 3 values of 0 to 255")

    def __call__(
        self,
        image: Pixels,
        size: tuple[int, int],
        uniforms: NDArray[np.float64],
        key: int,
        value_range: tuple[float, float],
    ) -> Tensor:
        """Augment one image.

        Args:
            image: H × W × C of uint8 or float32.
            size: height and width of the result.
            uniforms: (NUM_UNIFORMS,) uniform random numbers, for crop, flip and jitter.
            key: the sample's key, which seeds RandAugment.
            value_range: black and white of float32 images, for jitter.

        Returns:
            (C, height, width), uint8 for uint8 input, else float32.
        """
        crop = self.crop(image, size, uniforms)
        result = resized_crop(image, crop.box, size)
        result = result.flip(-1) if crop.is_flipped else result
        if self.kind == "crop-jitter":
            result = jitter(result, uniforms[4 * CROP_ATTEMPTS + 1 :].tolist(), value_range)
        return result if self.rand_augment is None else rand_augment(result, self.rand_augment, self.fill, key)

    def load(self) -> None:
        """Import what it needs, which takes seconds: before readers are forked, which else would do so each."""
        if self.kind == "crop-jitter":
            colour_operations()
        if self.rand_augment is not None:
            _rand_augment_transform(self.rand_augment, self.fill)

    @property
    def only_crops(self) -> bool:
        """Whether crop and flip are all: then they may also be made on the device (`crop_and_normalise`)."""
        return self.kind != "crop-jitter" and self.rand_augment is None

    def crop(self, image: Pixels, size: tuple[int, int], uniforms: NDArray[np.float64]) -> Crop:
        """The crop of an H × W × C image for a result of `size`, from (NUM_UNIFORMS,) uniform random numbers."""
        if self.kind == "none":
            return Crop(centre_box(image, size), False)
        height, width = image.shape[:2]
        if self.kind == "crop-fixed":
            box = fixed_size_box(height, width, size, uniforms[0], uniforms[1])
        else:
            attempts = uniforms[: 4 * CROP_ATTEMPTS].reshape(CROP_ATTEMPTS, 4)
            aspect = None if self.crop_aspect == "square" else size[1] / size[0]
            box = random_size_box(height, width, self.crop_scale, attempts, aspect)
        return Crop(box, bool(uniforms[4 * CROP_ATTEMPTS] < 0.5))


def centre_box(image: Pixels, size: tuple[int, int]) -> Box:
    """The largest centred box of an H × W × C image with the aspect of `size`."""
    return evaluation_box(image, size, crop_fraction=1.0)


def evaluation_box(image: Pixels, size: tuple[int, int], crop_fraction: float) -> Box:
    """The centred box of the aspect of `size`, its sides `crop_fraction` of the largest such box's.

    Cropped and resized to `size`, it shows what a centre crop of the resized image shows (docs/paper.md, evaluation).
    """
    assert 0 < crop_fraction <= 1
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1]) * crop_fraction
    box_height, box_width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def evaluation_crop_fraction(size: tuple[int, int]) -> float:
    """The fraction of the short side that evaluation keeps (timm's `crop_pct`): 224/256 up to a size of 224, else 1.

    Of images hardly larger than `size` that would only lose pixels: see `crop_fraction_of` (docs/paper.md).
    """
    return 224 / 256 if max(size) <= 224 else 1.0


def crop_fraction_of(size: tuple[int, int], short_side: float) -> float:
    """`evaluation_crop_fraction`, but 1 where that crop would be enlarged: digits of 8 × 8 pixels have none to give.

    Args:
        short_side: in pixels, of the images that are measured.
    """
    crop_fraction = evaluation_crop_fraction(size)
    return crop_fraction if short_side * crop_fraction >= min(size) else 1.0


def fixed_size_box(height: int, width: int, size: tuple[int, int], top: float, left: float) -> Box:
    """A box of fixed size, at a position from two uniform numbers: 224 px out of a short side of 256 px (table 1e)."""
    scale = min(height / size[0], width / size[1]) * FIXED_CROP
    box_height, box_width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return int(top * (height - box_height + 1)), int(left * (width - box_width + 1)), box_height, box_width


def random_size_box(
    height: int, width: int, scale: tuple[float, float], uniforms: NDArray[np.float64], aspect: float | None = None
) -> Box:
    """A box of random area and aspect; where no attempt fits the image, the largest allowed one, at a random position.

    torchvision's `RandomResizedCrop` with two differences: aspects are relative to the model's, or resizing would
    stretch what evaluation does not; and the fallback box lies where the last attempt would have, not in the centre,
    or the ends of a long image would never be seen.

    Args:
        scale: smallest and largest area, as fractions of the image's.
        uniforms: (attempts, 4) uniform random numbers: area, aspect, top, left.
        aspect: width over height of what the box is resized to; None: exactly torchvision's algorithm.
    """
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    model_aspect = 1.0 if aspect is None else aspect
    for u_area, u_ratio, u_top, u_left in uniforms.tolist():
        area = height * width * (scale[0] + u_area * (scale[1] - scale[0]))
        ratio = math.exp(low + u_ratio * (high - low)) * model_aspect
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = int(u_top * (height - box_height + 1)), int(u_left * (width - box_width + 1))
            return top, left, box_height, box_width
    ratio = min(max(width / height, CROP_RATIO[0] * model_aspect), CROP_RATIO[1] * model_aspect)
    box_height, box_width = min(height, round(width / ratio)), min(width, round(height * ratio))
    box_height, box_width = max(1, box_height), max(1, box_width)
    if aspect is None:
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
    top, left = int(u_top * (height - box_height + 1)), int(u_left * (width - box_width + 1))
    return top, left, box_height, box_width


def resized_crop(image: Pixels, box: Box, size: tuple[int, int]) -> Tensor:
    """Crop `box` from an H × W × C image and resize it (bicubic, antialiased) to (C, *size)."""
    top, left, height, width = box
    if height * width > LARGE_PIXELS:
        return resize_in_strips(image, box, size)
    return resize(image[top : top + height, left : left + width], size)


def check_rand_augment(channels: int, dtype: str) -> None:
    """Check that RandAugment, whose operations are Pillow's, can be applied.

    Raises:
        RequestError: the images are not uint8, or neither grey nor RGB.
    """
    if channels not in (1, 3) or dtype != "uint8":
        raise RequestError(
            f"--rand-augment works on 8-bit grey or RGB images, these are {dtype} in {channels} channels: "
            "give --rand-augment none"
        )


def fill_colour(preprocessing: Preprocessing) -> tuple[int, ...]:
    """The mean colour of 8-bit images, 0..255 for each channel, with which RandAugment fills."""
    low, high = preprocessing.value_range
    return tuple(min(255, max(0, round(low + mean * (high - low)))) for mean in preprocessing.mean)


def rand_augment(image: Tensor, policy: str, fill: tuple[int, ...] | None, key: int) -> Tensor:
    """timm's RandAugment of a (1 or 3, H, W) uint8 image; equal keys give equal images.

    Grey images are augmented as RGB ones.
    """
    from PIL import Image

    channels = image.shape[0]
    assert image.dtype == torch.uint8
    picture = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    transform = _rand_augment_transform(policy, fill)
    with seeded_global_rng(key, "rand-augment"):
        picture = transform(picture)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[:channels].contiguous()


@cache
def _rand_augment_transform(policy: str, fill: tuple[int, ...] | None) -> Callable[[Any], Any]:
    """timm's transform, built once per process: it imports timm and need not be pickled for workers."""
    from PIL import Image
    from timm.data.auto_augment import posterize, rand_augment_transform

    def posterize_to_black(picture: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
        # Magnitude 10 keeps 0 bits: older Pillow made that black, Pillow 12 raises, and timm 1.0.31 still asks for it.
        return posterize(picture, bits_to_keep, **options) if bits_to_keep else Image.new(picture.mode, picture.size)

    # timm's `translate_const` is not needed: all of its RandAugment sets translate by a fraction of the sides.
    settings: dict[str, Any] = {"interpolation": Image.Resampling.BICUBIC}
    if fill is not None:
        settings["img_mean"] = fill * 3 if len(fill) == 1 else fill
    transform = rand_augment_transform(policy, settings)
    for operation in transform.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = posterize_to_black
    return transform


def _check_policy(policy: str) -> None:
    head, *parts = policy.split("-")
    matches = [re.fullmatch(_POLICY_PARTS, part) for part in parts]
    names = [next(filter(None, match.groups())) for match in matches if match]
    if head == "rand" and len(names) == len(parts) == len(set(names)):
        return
    raise RequestError(
        f"--rand-augment got {policy!r}: it must look like rand-m9-mstd0.5-inc1 (m magnitude, mstd its deviation, "
        "mmax its limit, n operations, p chance of each, inc 0 or 1, t weights, 3a or 3aw; each once)"
    )
