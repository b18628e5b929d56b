"""Crop, resize, flip and normalise a batch of whole images at once, on whatever device they lie.

Antialiased bicubic resizing is linear and separable: of each image, rows (h × H) · pixels · columns (W × w). The two
small matrices of weights follow from its box; the rest are two batched matrix products, 0.17 GFLOP an image for 224 px
out of 256. A reader then only copies bytes. It needs images of one shape, as a raw pack's are.
"""

import torch
from torch import Tensor

from openmae.config import Preprocessing
from openmae.data.batch import Batch, Crops
from openmae.data.preprocess import normalise, normalise_

VALUES_AT_ONCE = 1 << 24  # of the images as float32, 64 MB: beside them lie three more of about that size
_CUBIC = -0.5  # the a of Keys (1981): torch's and Pillow's where they antialias


def model_input(batch: Batch, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """A training batch as the model takes it, on `device`: (B, C, h, w) float32, cropped there if it is not yet."""
    images = batch.images.to(device, non_blocking=True)
    if batch.crops is None:
        return normalise(images, preprocessing)
    return crop_and_normalise(images, batch.crops.to(device), preprocessing)


@torch.no_grad()
def crop_and_normalise(images: Tensor, crops: Crops, preprocessing: Preprocessing) -> Tensor:
    """Cut a box out of each image, resize it (bicubic, antialiased), perhaps flip it, and normalise.

    This is `F.interpolate(…, mode="bicubic", antialias=True)` of each box as float32: 8-bit images are clipped to
    0..255, where the reader's way also rounds, twice. Always in float32, autocast or not. On CUDA torch multiplies
    float32 in full unless someone allows TF32 (`torch.set_float32_matmul_precision`, `allow_tf32`, or
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE in the environment), which would cost about 0.1 grey levels (an estimate).

    Nothing here waits for the device, and no shape depends on a value.

    Args:
        images: (B, H, W, C) uint8 or float32, on any device.
        crops: of each image, on the same device; the boxes lie within the images.
        preprocessing: its `image_size` is h, w.

    Returns:
        (B, C, h, w) float32.
    """
    per_image = images[0].numel()
    parts = []
    with torch.autocast(images.device.type, enabled=False):
        size = max(1, VALUES_AT_ONCE // per_image)
        for part, boxes, is_flipped in zip(
            images.split(size), crops.boxes.split(size), crops.is_flipped.split(size), strict=True
        ):
            values = _resized_crops(part, boxes, is_flipped, preprocessing.image_size)
            if images.dtype == torch.uint8:  # bicubic weights overshoot at edges, to what no picture holds
                values.clamp_(0, 255)
            parts.append(values)
    return normalise_(parts[0] if len(parts) == 1 else torch.cat(parts), preprocessing)


def _resized_crops(images: Tensor, boxes: Tensor, is_flipped: Tensor, size: tuple[int, int]) -> Tensor:
    B, H, W, C = images.shape
    top, left, height, width = boxes.unbind(1)
    rows = resize_weights(top, height, H, size[0])
    columns = resize_weights(left, width, W, size[1])
    columns = torch.where(is_flipped[:, None, None], columns.flip(1), columns)
    values = torch.bmm(rows, images.to(torch.float32).reshape(B, H, W * C))  # (B, h, W * C)
    values = values.view(B, size[0], W, C).permute(0, 3, 1, 2).reshape(B, C * size[0], W)
    return torch.bmm(values, columns.mT).view(B, C, *size)


def resize_weights(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """What each pixel along a side adds to each pixel of the resized box: torch's antialiased bicubic, as a matrix.

    Args:
        start, length: (B,) of each box along this side, in pixels.
        side: of the images.
        size: of the result.

    Returns:
        (B, size, side) float32; each row adds up to 1, outside the box all is 0.
    """
    place = torch.arange(side, device=start.device) - start[:, None]  # (B, side), in the box
    is_inside = (place >= 0) & (place < length[:, None])
    scale = (length.to(torch.float32) / size)[:, None, None]
    centre = scale * (torch.arange(size, device=start.device, dtype=torch.float32)[:, None] + 0.5)  # (B, size, 1)
    # Where the box shrinks, the kernel widens, so that it averages over what becomes one pixel.
    distance = (place[:, None, :] - centre + 0.5).div_(scale.clamp(min=1)).abs_()
    weights = _cubic(distance).mul_(is_inside[:, None, :])
    return weights.div_(weights.sum(2, keepdim=True))


def _cubic(x: Tensor) -> Tensor:
    """Keys's kernel at distances of at least 0, 0 from 2 on."""
    a = _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    x = x.clamp(max=2)
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, far)
