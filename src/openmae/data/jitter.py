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
