"""Colour jitter, of which table 1e says that it does not help."""

from functools import cache
from typing import Any

from torch import Tensor

# The paper names no strengths for its jitter ablation: brightness, contrast, saturation, hue as commonly used.
JITTER = (0.4, 0.4, 0.4, 0.1)


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
    image, colour = image if is_rgb else image[:, None], colour_operations()
    image = colour.adjust_brightness(image, 1 + brightness)
    image = colour.adjust_contrast(image, 1 + contrast)
    if is_rgb:
        image = colour.adjust_saturation(image, 1 + saturation)
        image = colour.adjust_hue(image, hue)
    image = image if is_rgb else image[:, 0]
    return image * (high - low) + low if is_float else image


@cache
def colour_operations() -> Any:
    """torchvision's operations on colours. They bring torch's compiler with them, which takes seconds to import."""
    from torchvision.transforms.v2 import functional

    return functional


# Photometric distortion as segmentation programs have it since SSD: each with probability one half, contrast before or
# after saturation and hue. Values are of a scale from 0 to 1, hue of a whole turn.
BRIGHTNESS, FACTORS, HUE = 32 / 255, (0.5, 1.5), 18 / 360
NUM_DISTORTIONS = 9


def photometric_distortion(image: Tensor, chance: list[float], value_range: tuple[float, float]) -> Tensor:
    """Brightness, contrast and, for RGB, saturation and hue of a (C, H, W) image, each perhaps.

    Args:
        chance: `NUM_DISTORTIONS` uniform numbers: for each of the four whether and how much, then the order.
        value_range: black and white of a float32 image.
    """
    colour, is_float, is_rgb = colour_operations(), image.is_floating_point(), image.shape[0] == 3
    low, high = value_range if is_float else (0.0, 255.0)
    x = (image.float() - low) / (high - low)
    by = [FACTORS[0] + amount * (FACTORS[1] - FACTORS[0]) for amount in chance[1:8:2]]
    does_brightness, does_contrast, does_saturation, does_hue = (number < 0.5 for number in chance[0:8:2])
    if does_brightness:
        x = (x + BRIGHTNESS * (2 * chance[1] - 1)).clamp(0, 1)
    if does_contrast and chance[8] < 0.5:
        x = (x * by[1]).clamp(0, 1)
    if is_rgb and does_saturation:
        x = colour.adjust_saturation(x, by[2])
    if is_rgb and does_hue:
        x = colour.adjust_hue(x, HUE * (2 * chance[7] - 1))
    if does_contrast and chance[8] >= 0.5:
        x = (x * by[1]).clamp(0, 1)
    x = x * (high - low) + low
    return x if is_float else x.round().clamp(0, 255).to(image.dtype)
