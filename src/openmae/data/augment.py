"""Crops, flips, jitter and RandAugment of one image. All chance comes from the sample's key.

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
from torchvision.transforms.v2 import functional as colour

from openmae.config import AUGMENTS, CROP_ASPECTS, Preprocessing, check_name
from openmae.data.randomness import seeded_global_rng
from openmae.data.resize import LARGE_PIXELS, Pixels, resize, resize_in_strips
from openmae.errors import RequestError

CROP_SCALE = (0.2, 1.0)  # of the area, in pre-training
CROP_RATIO = (3 / 4, 4 / 3)  # width over height, of the model's
CROP_ATTEMPTS = 10
FIXED_CROP = 224 / 256  # of the side, for `crop-fixed`
# The paper names no strengths for its jitter ablation: brightness, contrast, saturation, hue as commonly used.
JITTER = (0.4, 0.4, 0.4, 0.1)
NUM_UNIFORMS = 4 * CROP_ATTEMPTS + 1 + len(JITTER)  # the crop's, the flip's, the jitter's
_DECIMAL = r"\d+(?:\.\d+)?"
# timm passes over what it does not understand; here only what has an effect is let through.
_POLICY_PARTS = (
    rf"(m)\d+|(n)[1-9]|(p)(?:0(?:\.\d+)?|1(?:\.0+)?)|(mstd){_DECIMAL}|(mmax)[1-9]\d*|(inc)[01]|(t)(?:weights|3aw?)"
)

Box = tuple[int, int, int, int]  # top, left, height, width


class Crop(NamedTuple):
    """What of an image a sample shows: the box, resized and then perhaps mirrored left to right."""

    box: Box
    is_flipped: bool


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What happens to an image on its way into a training batch: crop, flip, perhaps jitter, perhaps RandAugment.

    Attributes:
        kind: none (centre crop, no flip), crop-fixed, crop or crop-jitter.
        crop_scale: smallest and largest area of a random crop, of the image's (crop and crop-jitter).
        crop_aspect: model: random crops have the model's aspect give or take a third, wherever they lie; square: as in
            older runs, which stretched for models that are not square and saw the centre of images too long to crop.
        rand_augment: timm's policy, like rand-m9-mstd0.5-inc1, on top of `kind`; for uint8 images, grey or RGB.
        fill: 0..255 for each channel, where RandAugment moves pixels in from outside; None is a middle grey.

    Raises:
        RequestError: an unknown kind, a scale that is none, a policy timm would not understand wholly.
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
        chance: NDArray[np.float64],
        key: int,
        value_range: tuple[float, float],
    ) -> Tensor:
        """Augment one image.

        Args:
            image: H × W × C of uint8 or float32.
            size: height and width of the result.
            chance: (NUM_UNIFORMS,) uniform numbers, for crop, flip and jitter.
            key: the sample's, for RandAugment.
            value_range: black and white, for jitter of float32.

        Returns:
            (C, height, width), uint8 for uint8 input, else float32.
        """
        crop = self.crop(image, size, chance)
        result = resized_crop(image, crop.box, size)
        result = result.flip(-1) if crop.is_flipped else result
        if self.kind == "crop-jitter":
            result = jitter(result, chance[4 * CROP_ATTEMPTS + 1 :].tolist(), value_range)
        return result if self.rand_augment is None else rand_augment(result, self.rand_augment, self.fill, key)

    @property
    def only_crops(self) -> bool:
        """Whether crop and flip are all that happens: then it matters not where they are made."""
        return self.kind != "crop-jitter" and self.rand_augment is None

    def crop(self, image: Pixels, size: tuple[int, int], chance: NDArray[np.float64]) -> Crop:
        """Which crop of an H × W × C image the chances give, for a result of `size`."""
        if self.kind == "none":
            return Crop(centre_box(image, size), False)
        height, width = image.shape[:2]
        if self.kind == "crop-fixed":
            box = fixed_size_box(height, width, size, chance[0], chance[1])
        else:
            attempts = chance[: 4 * CROP_ATTEMPTS].reshape(CROP_ATTEMPTS, 4)
            aspect = None if self.crop_aspect == "square" else size[1] / size[0]
            box = random_size_box(height, width, self.crop_scale, attempts, aspect)
        return Crop(box, bool(chance[4 * CROP_ATTEMPTS] < 0.5))


def centre_box(image: Pixels, size: tuple[int, int]) -> Box:
    """The largest centred box of an H × W × C image with the aspect of `size`."""
    return evaluation_box(image, size, crop_fraction=1.0)


def evaluation_box(image: Pixels, size: tuple[int, int], crop_fraction: float) -> Box:
    """The centred box that is `crop_fraction` of the largest one with the aspect of `size`, by its sides.

    Cut out and resized to `size`, it shows what a centre crop of a resized image shows (docs/paper.md, evaluation).
    """
    assert 0 < crop_fraction <= 1
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1]) * crop_fraction
    box_height, box_width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def evaluation_crop_fraction(size: tuple[int, int]) -> float:
    """What an evaluation keeps of the short side: 224/256 up to a size of 224, above that all (docs/paper.md).

    For images hardly larger than `size` it only throws pixels away: there `crop_fraction_of` keeps all.
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
    """A box of fixed size at a random place: what a crop of 224 from a short side of 256 sees (table 1e)."""
    scale = min(height / size[0], width / size[1]) * FIXED_CROP
    box_height, box_width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return int(top * (height - box_height + 1)), int(left * (width - box_width + 1)), box_height, box_width


def random_size_box(
    height: int, width: int, scale: tuple[float, float], chance: NDArray[np.float64], aspect: float | None = None
) -> Box:
    """A box of random area and aspect; where no attempt fits the image, the largest that may be, at a random place.

    torchvision's algorithm, but for two things: the aspect is about the model's, or resizing would stretch what
    evaluation shows as it is; and that largest box lies where the last attempt would have lain, not in the centre, or
    the ends of a long image would never be seen.

    Args:
        scale: smallest and largest area, of the image's.
        chance: (attempts, 4) uniform numbers: area, aspect, top, left.
        aspect: width over height of what the box is resized to; None: torchvision's algorithm as it is.
    """
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    of_model = 1.0 if aspect is None else aspect
    for area_chance, ratio_chance, top_chance, left_chance in chance.tolist():
        area = height * width * (scale[0] + area_chance * (scale[1] - scale[0]))
        ratio = math.exp(low + ratio_chance * (high - low)) * of_model
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = int(top_chance * (height - box_height + 1)), int(left_chance * (width - box_width + 1))
            return top, left, box_height, box_width
    ratio = min(max(width / height, CROP_RATIO[0] * of_model), CROP_RATIO[1] * of_model)
    box_height, box_width = min(height, round(width / ratio)), min(width, round(height * ratio))
    box_height, box_width = max(1, box_height), max(1, box_width)
    if aspect is None:
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
    top, left = int(top_chance * (height - box_height + 1)), int(left_chance * (width - box_width + 1))
    return top, left, box_height, box_width


def resized_crop(image: Pixels, box: Box, size: tuple[int, int]) -> Tensor:
    """Cut `box` out of an H × W × C image and resize it (bicubic, antialiased) to (C, *size)."""
    top, left, height, width = box
    if height * width > LARGE_PIXELS:
        return resize_in_strips(image, box, size)
    return resize(image[top : top + height, left : left + width], size)


def jitter(image: Tensor, chance: list[float], value_range: tuple[float, float]) -> Tensor:
    """Brightness, contrast and, for RGB, saturation and hue of a (C, H, W) image.

    Channels that are not RGB are jittered as grey images of their own.

    Args:
        chance: a uniform number for each of the four.
        value_range: black and white of a float32 image.
    """
    brightness, contrast, saturation, hue = (
        strength * (2 * number - 1) for strength, number in zip(JITTER, chance, strict=True)
    )
    low, high = value_range
    is_float, is_rgb = image.is_floating_point(), image.shape[0] == 3
    image = (image - low) / (high - low) if is_float else image  # torchvision's black and white are 0 and 1
    image = image if is_rgb else image[:, None]
    image = colour.adjust_brightness(image, 1 + brightness)
    image = colour.adjust_contrast(image, 1 + contrast)
    if is_rgb:
        image = colour.adjust_saturation(image, 1 + saturation)
        image = colour.adjust_hue(image, hue)
    image = image if is_rgb else image[:, 0]
    return image * (high - low) + low if is_float else image


def check_rand_augment(channels: int, dtype: str) -> None:
    """RandAugment's operations are Pillow's.

    Raises:
        RequestError: the images are not uint8, or neither grey nor RGB.
    """
    if channels not in (1, 3) or dtype != "uint8":
        raise RequestError(
            f"--rand-augment works on 8-bit grey or RGB images, these are {dtype} in {channels} channels: "
            "give --rand-augment none"
        )


def fill_colour(preprocessing: Preprocessing) -> tuple[int, ...]:
    """The mean colour of 8-bit images, 0..255 for each channel: what RandAugment fills with."""
    low, high = preprocessing.value_range
    return tuple(min(255, max(0, round(low + mean * (high - low)))) for mean in preprocessing.mean)


def rand_augment(image: Tensor, policy: str, fill: tuple[int, ...] | None, key: int) -> Tensor:
    """timm's RandAugment of a (1 or 3, H, W) uint8 image; equal keys give equal images.

    Grey images go through it as RGB ones.
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
    """timm's transform, built once a process: it imports timm, and is no part of what is sent to a worker."""
    from PIL import Image
    from timm.data.auto_augment import posterize, rand_augment_transform

    def posterize_to_black_too(picture: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
        # Magnitude 10 keeps no bit, which once gave a black picture; Pillow 12 refuses it, and timm 1.0.31 still asks.
        return posterize(picture, bits_to_keep, **options) if bits_to_keep else Image.new(picture.mode, picture.size)

    # timm's `translate_const` reaches nothing here: all of its RandAugment sets shift by a share of the sides.
    settings: dict[str, Any] = {"interpolation": Image.Resampling.BICUBIC}
    if fill is not None:
        settings["img_mean"] = fill * 3 if len(fill) == 1 else fill
    transform = rand_augment_transform(policy, settings)
    for operation in transform.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = posterize_to_black_too
    return transform


def _check_policy(policy: str) -> None:
    head, *parts = policy.split("-")
    found = [re.fullmatch(_POLICY_PARTS, part) for part in parts]
    names = [next(filter(None, match.groups())) for match in found if match]
    if head == "rand" and len(names) == len(parts) == len(set(names)):
        return
    raise RequestError(
        f"--rand-augment got {policy!r}: it must look like rand-m9-mstd0.5-inc1 (m magnitude, mstd its deviation, "
        "mmax its limit, n operations, p chance of each, inc 0 or 1, t weights, 3a or 3aw; each once)"
    )
