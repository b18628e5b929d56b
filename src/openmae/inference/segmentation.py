"""A segmenter put to use: the class map of a whole image of any size."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Int64, Num
from torch import Tensor

from openmae.config import Preprocessing
from openmae.data.preprocess import normalise
from openmae.inference.windows import resized_class_map, sliding_logits
from openmae.machine.device import autocast
from openmae.transfer.segmenter import Segmenter


class InferenceSettings(Protocol):
    """The settings that say how whole images are segmented."""

    @property
    def inference(self) -> str: ...
    @property
    def stride(self) -> int: ...
    @property
    def size(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Windows:
    """How whole images are segmented: in windows of a crop's size, or (None) at once.

    Attributes:
        size: height and width in pixels.
        stride: pixels between windows, down and across.
    """

    size: tuple[int, int]
    stride: tuple[int, int]

    @classmethod
    def from_config(cls, config: InferenceSettings) -> "Windows | None":
        return None if config.inference == "whole" else cls(config.size, (config.stride, config.stride))


@torch.no_grad()
def class_map(
    model: Segmenter,
    image: Num[Tensor, "c h w"],
    size: tuple[int, int],
    preprocessing: Preprocessing,
    windows: Windows | None,
    *,
    device: torch.device,
    precision: str,
    batch_size: int,
) -> Int64[Tensor, "H W"]:
    """The most likely class of each pixel, on the device.

    Args:
        model: in evaluation mode.
        image: raw values, not normalised, its short side that of the model's crops.
        size: height and width of the result.
        batch_size: windows at a time.
    """
    images = normalise(image[None].to(device), preprocessing)
    with autocast(device, precision):
        if windows is None:
            logits = model.segment(images)
        else:
            logits = sliding_logits(
                model.segment, images, windows.size, windows.stride, model.shape.num_classes, batch_size
            )
    return resized_class_map(logits.float(), size)
