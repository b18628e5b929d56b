"""Segmentation of images of any size: windows that overlap, and the class map at the image's own size."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from openmae.errors import Fault, RequestError

# (B, C, H, W) images → (B, classes, H, W) logits.
Segment = Callable[[Tensor], Tensor]

VALUES_AT_ONCE = 2**24  # logits of a strip of rows at the full width: 64 MB


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side; the last one is flush with the end. One at 0 where the side is no longer.

    Args:
        length, window, stride: in pixels.

    Raises:
        RequestError: windows would leave pixels out, or have no size.
    """
    if not 1 <= stride <= window:
        raise RequestError(
            f"a stride of {stride} with windows of {window} pixels: give one from 1 to the window's size"
        )
    assert length >= 1, length
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def sliding_logits(
    segment: Segment,
    images: Float[Tensor, "b c h w"],
    window: tuple[int, int],
    stride: tuple[int, int],
    num_classes: int,
    windows_at_once: int = 8,
) -> Float[Tensor, "b k h w"]:
    """The logits of images that are larger than the model's input: where windows overlap, their mean.

    A direction in which the images are smaller than a window is taken as it is: the model pads. (As the paper's
    evaluation on ADE20K: windows of 512, stride 341.)

    Args:
        window, stride: (rows, columns) in pixels.
        windows_at_once: how many windows, of all images, the model sees at a time.

    Returns:
        float32, on the images' device.

    Raises:
        RequestError: see `window_starts`.
    """
    batch, _, height, width = images.shape
    rows, columns = window_starts(height, window[0], stride[0]), window_starts(width, window[1], stride[1])
    window_height, window_width = min(window[0], height), min(window[1], width)
    places = [(image, row, column) for image in range(batch) for row in rows for column in columns]
    total = torch.zeros(batch, num_classes, height, width, device=images.device)
    for start in range(0, len(places), windows_at_once):
        part = places[start : start + windows_at_once]
        crops = [images[i, :, y : y + window_height, x : x + window_width] for i, y, x in part]
        logits = segment(torch.stack(crops))
        assert logits.shape == (len(part), num_classes, window_height, window_width), logits.shape
        for (i, y, x), scores in zip(part, logits.float(), strict=True):
            total[i, :, y : y + window_height, x : x + window_width] += scores
    times = _times_covered(height, rows, window_height)[:, None] * _times_covered(width, columns, window_width)
    return total.div_(times.to(images.device))


def _times_covered(length: int, starts: list[int], window: int) -> Float[Tensor, " length"]:
    times = torch.zeros(length)
    for start in starts:
        times[start : start + window] += 1
    return times


def resized_class_map(
    logits: Float[Tensor, "1 k h w"], size: tuple[int, int], values_at_once: int = VALUES_AT_ONCE
) -> Int64[Tensor, "H W"]:
    """The class with the highest logit at each pixel, after bilinear resizing to `size` (align_corners false).

    As `F.interpolate` and `argmax`, but in strips of rows: the logits of 150 classes for a photograph of 24 megapixels
    would take 14 GB.

    Args:
        size: (rows, columns) of the image.
        values_at_once: how many resized logits there may be at a time (one row at least).

    Raises:
        Fault: a logit is not finite.
    """
    if not bool(logits.isfinite().all()):
        raise Fault(
            "the scores of an image are not finite: the model's weights are broken or its numbers overflow "
            "(--precision fp32 would tell)"
        )
    _, num_classes, old_height, old_width = logits.shape
    height, width = size
    logits = logits.float()
    if (old_height, old_width) == size:
        return logits[0].argmax(0)
    # Where each row comes from, in single precision as in F.interpolate.
    scale = torch.tensor(old_height, dtype=torch.float32) / height
    position = ((torch.arange(height, dtype=torch.float32) + 0.5) * scale - 0.5).clamp(min=0).to(logits.device)
    upper = position.long().clamp(max=old_height - 1)
    lower = (upper + 1).clamp(max=old_height - 1)
    weight = (position - upper).clamp(0, 1)[:, None]
    strip = max(1, values_at_once // (num_classes * max(width, old_width)))
    parts = []
    for start in range(0, height, strip):
        rows = slice(start, start + strip)
        between = torch.lerp(logits[:, :, upper[rows]], logits[:, :, lower[rows]], weight[rows])  # (1, K, strip, w)
        wide = F.interpolate(between, (between.shape[2], width), mode="bilinear", align_corners=False)
        parts.append(wide[0].argmax(0))
    return torch.cat(parts)
