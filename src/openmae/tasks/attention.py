"""`openmae attention`: maps of what the class token attends to, drawn over the images."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from openmae.config import Grid, check_range, grid_of
from openmae.config.features import AttentionConfig
from openmae.data.preprocess import to_unit
from openmae.errors import RequestError, shown
from openmae.inference.images import gather_images, matched_to_images
from openmae.inference.load import load
from openmae.inference.models import EncoderModel, ImageLike
from openmae.machine.device import total_memory
from openmae.machine.files import atomic_write, disk_faults
from openmae.model.attention_maps import class_attention
from openmae.pictures.sheet import BACKGROUND, CELL, GAP, INK, LINE, sheet, to_picture
from openmae.planning.micro_batch import MEMORY_SHARE
from openmae.preflight.pictures import check_sheet_path

MIN_SIDE = 224  # of an image on the sheet, in pixels; CELL where each head has a map of its own
COLOURS = "inferno"  # perceptually uniform: equal steps of attention look equally large, in print without colours too
SHARE_OF_COLOUR = 0.65  # of the map; the rest is the image, in grey
BAR = (256, 14)  # width and height of the colour bar, in pixels


def attention(config: AttentionConfig) -> dict[str, Any]:
    """Write a sheet of pictures, a row for each image: the image, the class token's attention, and each head's.

    The attention is the mean over heads. Each map is coloured from 0 to its own largest value. The text below it gives
    that value, as a share of the class token's attention, and the share of a patch if all patches had the same.

    Returns:
        images, skipped, layer, the grid of patches, and for each image highest, the largest share of a patch, and
        to_itself, the share of the class token; both of the mean over heads.

    Raises:
        RequestError: no readable image, an unknown model, a layer or size that does not fit.
    """
    config = config.plain()
    check_sheet_path(config.images, config.out)
    model = load(config.init, config.device, verbose=True)
    depth = model.encoder.shape.depth
    check_range("--layer", config.layer, 1, depth)
    size = config.size or model.preprocessing.image_size
    grid = grid_of(*size, model.encoder.shape.patch_size)
    check_memory(grid, model)
    model, lines = matched_to_images(model, config)
    images, skipped = gather_images(config, model)
    for line in [*lines, *(f"skipped {shown(line)}" for line in skipped)]:
        print(line)
    layer = config.layer or depth
    rows, highest, to_itself = [], [], []
    for number, image in enumerate(images, 1):  # one by one: the attention weights of all heads take much memory
        to_patches, itself = (
            t[0].cpu() for t in class_attention(model.encoder, model.prepare(image, size, config.max_pixels), layer)
        )
        mean = to_patches.mean(0)
        rows.append(row(image, model, size, [mean, *to_patches] if config.heads else [mean], config.max_pixels))
        highest.append(float(mean.max()))
        to_itself.append(float(itself.mean()))
        print(attention_line(image, number, mean, to_itself[-1]))
    heads = [f"head {number + 1}" for number in range(len(to_patches))] if config.heads else []
    blocks = 2 if len(rows) > 4 and not heads else 1
    headers = ["image", f"class token's attention, block {layer} of {depth}, mean of the heads", *heads]
    out = Path(config.out)
    with disk_faults(out), atomic_write(out) as partial:
        with_bar(sheet(rows, headers, blocks)).save(partial)
    print(f"wrote {shown(out)}")
    return {
        "images": len(images),
        "skipped": len(skipped),
        "layer": layer,
        "grid": list(grid),
        "highest": highest,
        "to_itself": to_itself,
    }


def check_memory(grid: Grid, model: EncoderModel) -> None:
    """Raise RequestError where a block's attention weights, which grow with the square of the patches, do not fit."""
    tokens = 1 + grid[0] * grid[1]
    needed, memory = 8 * model.encoder.shape.num_heads * tokens**2, total_memory(model.device)  # scores and weights
    if needed > MEMORY_SHARE * memory:
        raise RequestError(
            f"the attention of {tokens - 1:,} patches needs {needed / 1e9:.3g} GB, {model.device} has "
            f"{memory / 1e9:.3g}: give a smaller --image-size"
        )


def attention_line(image: ImageLike, number: int, mean: Tensor, to_itself: float) -> str:
    """A line about an image's map: the range of its values, and the class token's attention to itself."""
    name = shown(os.path.basename(image)) if isinstance(image, (str, Path)) else f"image {number}"
    return (
        f"{name}: attention to a patch {float(mean.min()):.2g} to {float(mean.max()):.2g} "
        f"(all alike: {1 / mean.numel():.2g}), {to_itself:.0%} to the class token itself"
    )


def row(
    image: ImageLike, model: EncoderModel, size: tuple[int, int], maps: list[Tensor], max_pixels: int
) -> list[Tensor]:
    """An image and maps over it, all of one size: each (3, H, W) in 0..1, with a line of text below.

    Args:
        maps: (rows, columns) each.
    """
    side = MIN_SIDE if len(maps) == 1 else CELL
    shown_size = (size[0] * (scale := max(1, -(-side // min(size)))), size[1] * scale)
    # Prepared again at the size of the picture: the model may see fewer pixels than a user would like to.
    picture = to_picture(to_unit(model.prepare(image, shown_size, max_pixels), model.preprocessing)[0])
    cells = [captioned(picture, f"{size[0]} x {size[1]} px")]
    for weights in maps:
        text = f"0 to {float(weights.max()):.2g}, all alike {1 / weights.numel():.2g}"
        cells.append(captioned(overlay(picture, weights), text))
    return cells


def overlay(picture: Image.Image, weights: Tensor) -> Image.Image:
    """A map, coloured from 0 to its largest value, over the picture in grey."""
    from matplotlib import colormaps

    width, height = picture.size
    # Bilinear, between the patches' centres: bicubic interpolation would overshoot, to attention below 0.
    relative = weights / weights.max().clamp(min=torch.finfo(weights.dtype).tiny)
    scaled = F.interpolate(relative[None, None], (height, width), mode="bilinear", align_corners=False)
    colours = colormaps[COLOURS](scaled[0, 0].clamp(0, 1).numpy())[..., :3]
    grey = np.asarray(picture.convert("L"), dtype=np.float64)[..., None] / 255
    mixed = SHARE_OF_COLOUR * colours + (1 - SHARE_OF_COLOUR) * grey
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def captioned(picture: Image.Image, text: str) -> Tensor:
    """The picture with a line of text below: (3, H + LINE, W) in 0..1."""
    canvas = Image.new("RGB", (picture.width, picture.height + LINE), BACKGROUND)
    canvas.paste(picture, (0, 0))
    font = ImageFont.load_default(12 if picture.width >= MIN_SIDE else 10)
    ImageDraw.Draw(canvas).text((1, picture.height + 1), text, INK, font)
    return torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1) / 255


def with_bar(picture: Image.Image) -> Image.Image:
    """The sheet with a colour bar below, which shows the colours over black and over white."""
    from matplotlib import colormaps

    width, height = BAR
    canvas = Image.new("RGB", (picture.width, picture.height + height + 3 * GAP), BACKGROUND)
    canvas.paste(picture, (0, 0))
    draw, font, top = ImageDraw.Draw(canvas), ImageFont.load_default(12), picture.height + GAP
    width = min(width, max(40, picture.width - 220))
    colours = colormaps[COLOURS](np.linspace(0, 1, width))[:, :3] * SHARE_OF_COLOUR
    grey = np.linspace(0, 1, height)[:, None, None] * (1 - SHARE_OF_COLOUR)
    bar = Image.fromarray(((colours[None] + grey) * 255).round().astype(np.uint8))
    draw.text((2 * GAP, top), "0", INK, font)
    canvas.paste(bar, (2 * GAP + 12, top))
    draw.text((2 * GAP + 18 + width, top), "highest value of each map", INK, font)
    return canvas
