"""A segmenter put to use: the class map of a whole image of any size."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64, Num
from torch import Tensor

from openmae.config import Preprocessing
from openmae.data.preprocess import normalise
from openmae.errors import Fault
from openmae.inference.windows import resized_class_map, sliding_logits
from openmae.machine.device import autocast, is_out_of_memory
from openmae.transfer.segmentation.segmenter import Segmenter

WINDOWS_AT_ONCE = 8


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
    def from_settings(cls, inference: str, stride: int | None, size: tuple[int, int]) -> "Windows | None":
        """As `--inference` (slide or whole) and `--stride` say, for crops of `size`.

        Without a stride, as of a model that was trained to see images whole, it is two thirds of a crop.
        """
        if inference == "whole":
            return None
        stride = stride or max(1, 2 * min(size) // 3)
        return cls(size, (stride, stride))


@dataclass(frozen=True, kw_only=True)
class WholeImageSegmenter:
    """A segmenter and how it is used on whole images.

    Attributes:
        model: in evaluation mode when it is used.
        windows: None: each image at once.
        windows_at_once: fewer where memory runs out.
    """

    model: Segmenter
    preprocessing: Preprocessing
    windows: Windows | None
    device: torch.device
    precision: str
    windows_at_once: int = WINDOWS_AT_ONCE

    def class_map(self, image: Num[Tensor, "c h w"], size: tuple[int, int]) -> Int64[Tensor, "H W"]:
        """The most likely class of each pixel, on the device.

        Args:
            image: raw values, not normalised, its short side that of the model's crops.
            size: height and width of the result.

        Raises:
            Fault: a logit is not finite, or not even one window fits into memory.
        """
        count = 1 if self.windows is None else self.windows_at_once
        while True:
            try:
                return self._class_map(image, size, count)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if count == 1:
                    raise Fault(self._out_of_memory(image)) from None
            count //= 2  # after the handler, which keeps the failed attempt's tensors alive

    @torch.no_grad()
    def _class_map(self, image: Tensor, size: tuple[int, int], windows_at_once: int) -> Tensor:
        images = normalise(image[None].to(self.device), self.preprocessing)
        with autocast(self.device, self.precision):
            if self.windows is None:
                logits = self.model.segment(images)
            else:
                logits = sliding_logits(
                    self.model.segment,
                    images,
                    self.windows.size,
                    self.windows.stride,
                    self.model.shape.num_classes,
                    windows_at_once,
                )
        return resized_class_map(logits.float(), size)

    def _out_of_memory(self, image: Tensor) -> str:
        height, width = image.shape[-2:]
        if self.windows is None:
            return f"out of memory with an image of {height}x{width} px at once: --inference slide takes windows of it"
        window_height, window_width = self.windows.size
        return (
            f"out of memory with one window of {window_height}x{window_width} px of an image of {height}x{width} px at "
            "a time: a device with more memory is needed (--device cpu)"
        )
