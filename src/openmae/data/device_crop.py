"""Crop, resize, flip and normalise a whole batch at once, on the device of its images.

Antialiased bicubic resizing is linear and separable: of each image, rows (h × H) · pixels · columns (W × w). The two
small weight matrices follow from its box; the rest are two batched matrix products, 0.17 GFLOP an image for 224 px out
of 256 px. Reader processes then only copy bytes. All images must have one shape, as those of a raw pack have.
"""

import torch
from torch import Tensor

from openmae.config import Preprocessing
from openmae.data.batch import Batch, Crops
from openmae.data.preprocess import normalise, normalise_

VALUES_AT_ONCE = 1 << 24  # of the images as float32, 64 MB; temporaries take about three times as much again
_CUBIC = -0.5  # the a of Keys (1981): torch's and Pillow's where they antialias


def model_input(batch: Batch, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """A training batch as the model's input on `device`: (B, C, h, w) float32, cropped there if it is not yet."""
    images = batch.images.to(device, non_blocking=True)
    if batch.crops is None:
        return normalise(images, preprocessing)
    return crop_and_normalise(images, batch.crops.to(device), preprocessing)


@torch.no_grad()
def crop_and_normalise(images: Tensor, crops: Crops, preprocessing: Preprocessing) -> Tensor:
    """Crop a box from each image, resize it (bicubic, antialiased), perhaps flip it, and normalise.

    Equals `F.interpolate(…, mode="bicubic", antialias=True)` of each box as float32; 8-bit images are clipped to
    0..255, where crops made by readers are also rounded, twice. Always in float32, also under autocast. On CUDA torch
    multiplies float32 in full precision unless someone allows TF32 (`torch.set_float32_matmul_precision`, `allow_tf32`,
    or TORCH_ALLOW_TF32_CUBLAS_OVERRIDE in the environment), which would cost about 0.1 grey levels (an estimate).

    Nothing here synchronises with the device: no shape depends on a value.

    Args:
        images: (B, H, W, C) uint8 or float32, on any device.
        crops: one for each image, on the same device; the boxes lie within the images.
        preprocessing: its `image_size` is h, w.

    Returns:
        (B, C, h, w) float32.
    """
    per_image = images[0].numel()
    chunks = []
    with torch.autocast(images.device.type, enabled=False):
        size = max(1, VALUES_AT_ONCE // per_image)
        for chunk, boxes, is_flipped in zip(
            images.split(size), crops.boxes.split(size), crops.is_flipped.split(size), strict=True
        ):
            values = _resized_crops(chunk, boxes, is_flipped, preprocessing.image_size)
            if images.dtype == torch.uint8:  # bicubic weights overshoot at edges
                values.clamp_(0, 255)
            chunks.append(values)
    return normalise_(chunks[0] if len(chunks) == 1 else torch.cat(chunks), preprocessing)


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
    """The weights of torch's antialiased bicubic resizing along one side, as matrices.

    Args:
        start, length: (B,) each box along this side, in pixels.
        side: length of the images' side.
        size: length of the result's side.

    Returns:
        (B, size, side) float32; each row sums to 1 and is 0 outside the box.
    """
    offset = torch.arange(side, device=start.device) - start[:, None]  # (B, side), from the start of the box
    is_inside = (offset >= 0) & (offset < length[:, None])
    scale = (length.to(torch.float32) / size)[:, None, None]
    centre = scale * (torch.arange(size, device=start.device, dtype=torch.float32)[:, None] + 0.5)  # (B, size, 1)
    # Downscaling widens the kernel, so that it averages over the pixels that become one (antialiasing).
    distance = (offset[:, None, :] - centre + 0.5).div_(scale.clamp(min=1)).abs_()
    weights = _cubic(distance).mul_(is_inside[:, None, :])
    return weights.div_(weights.sum(2, keepdim=True))


def _cubic(x: Tensor) -> Tensor:
    """Keys's cubic convolution kernel at distances x >= 0; 0 from 2 on."""
    a = _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    x = x.clamp(max=2)
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, far)
