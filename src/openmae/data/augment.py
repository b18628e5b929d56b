"""Crops and flips of pre-training (paper, table 1e). All chance comes in as numbers drawn from the sample's key."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as colour

CROP_SCALE = (0.2, 1.0)  # of the area
CROP_RATIO = (3 / 4, 4 / 3)  # width over height
CROP_ATTEMPTS = 10
FIXED_CROP = 224 / 256  # of the side, for `crop-fixed`
# The paper names no strengths for its jitter ablation: brightness, contrast, saturation, hue as commonly used.
JITTER = (0.4, 0.4, 0.4, 0.1)
NUM_CHANCES = 4 * CROP_ATTEMPTS + 1 + len(JITTER)  # the crop's, the flip's, the jitter's

Box = tuple[int, int, int, int]  # top, left, height, width


def augment(
    image: NDArray, kind: str, size: tuple[int, int], chance: NDArray[np.float64], value_range: tuple[float, float]
) -> Tensor:
    """Crop, resize and perhaps flip one image.

    Args:
        image: H × W × C of uint8 or float32.
        kind: none (centre crop, no flip), crop-fixed, crop or crop-jitter.
        size: height and width of the result.
        chance: (NUM_CHANCES,) uniform numbers.
        value_range: black and white, for jitter of float32.

    Returns:
        (C, height, width), uint8 for uint8 input, else float32.
    """
    height, width = image.shape[:2]
    if kind == "none":
        return resized_crop(image, centre_box(image, size), size)
    crop_chance, flip_chance, jitter_chance = np.split(chance, [4 * CROP_ATTEMPTS, 4 * CROP_ATTEMPTS + 1])
    if kind == "crop-fixed":
        box = fixed_size_box(height, width, size, crop_chance[0], crop_chance[1])
    else:
        box = random_size_box(height, width, crop_chance.reshape(CROP_ATTEMPTS, 4))
    result = resized_crop(image, box, size)
    if flip_chance[0] < 0.5:
        result = result.flip(-1)
    return jitter(result, jitter_chance.tolist(), value_range) if kind == "crop-jitter" else result


def centre_box(image: NDArray, size: tuple[int, int]) -> Box:
    """The largest centred box of an H × W × C image with the aspect of `size`."""
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1])
    box_height, box_width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def fixed_size_box(height: int, width: int, size: tuple[int, int], top: float, left: float) -> Box:
    """A box of fixed size at a random place: what a crop of 224 from a short side of 256 sees (table 1e)."""
    scale = min(height / size[0], width / size[1]) * FIXED_CROP
    box_height, box_width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return int(top * (height - box_height + 1)), int(left * (width - box_width + 1)), box_height, box_width


def random_size_box(height: int, width: int, chance: NDArray[np.float64]) -> Box:
    """A box of random area and aspect; after ten misses the largest centred one (torchvision's algorithm).

    Args:
        chance: (attempts, 4) uniform numbers: area, aspect, top, left.
    """
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for area_chance, ratio_chance, top_chance, left_chance in chance.tolist():
        area = height * width * (CROP_SCALE[0] + area_chance * (CROP_SCALE[1] - CROP_SCALE[0]))
        ratio = math.exp(low + ratio_chance * (high - low))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = int(top_chance * (height - box_height + 1)), int(left_chance * (width - box_width + 1))
            return top, left, box_height, box_width
    ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
    box_height, box_width = min(height, round(width / ratio)), min(width, round(height * ratio))
    box_height, box_width = max(1, box_height), max(1, box_width)
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resized_crop(image: NDArray, box: Box, size: tuple[int, int]) -> Tensor:
    """Cut `box` out of an H × W × C image and resize it (bicubic, antialiased) to (C, *size)."""
    top, left, height, width = box
    pixels = image[top : top + height, left : left + width]
    # torch warns of read-only memory, which Pillow's pictures are.
    crop = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)
    if (height, width) == size:
        return crop.contiguous()
    return F.interpolate(crop[None], size=size, mode="bicubic", antialias=True)[0].contiguous()


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
