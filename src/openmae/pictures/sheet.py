"""Pictures for people: sheets of images with headed columns, and the loss curve."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from openmae.machine.files import atomic_write, disk_faults

CELL = 160  # minimal width of an image on a sheet, in pixels
GAP = 6
LINE = 17  # height of a line of a header
INK, BACKGROUND = (40, 40, 40), (255, 255, 255)

ValueRange = tuple[str, tuple[float, float]] | None  # black and white of a number type


def sheet(rows: list[list[Tensor]], headers: list[str], blocks: int = 1) -> Image.Image:
    """A picture of rows of images, with a header over each column.

    Args:
        rows: each a list of (C, H, W) tensors in 0..1, all of one size; one image for each header.
        headers: the columns' names.
        blocks: how many rows are placed side by side.
    """
    height, width = rows[0][0].shape[-2:]
    scale = max(1, -(-CELL // width))
    height, width = height * scale, width * scale
    blocks = min(blocks, len(rows))
    lines = -(-len(rows) // blocks)
    font = ImageFont.load_default(13)
    titles = [wrapped(header, font, width) for header in headers]
    top = 8 + LINE * max(map(len, titles))
    block_width = len(headers) * (width + GAP) + 2 * GAP
    canvas = Image.new("RGB", (blocks * block_width, top + lines * (height + GAP) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for block in range(blocks):
        for column, title in enumerate(titles):
            left = block * block_width + GAP + column * (width + GAP)
            draw.multiline_text((left + 1, 4), "\n".join(title), INK, font, spacing=LINE - 13)
    for number, row in enumerate(rows):
        line, block = divmod(number, blocks)
        for column, image in enumerate(row):
            left = block * block_width + GAP + column * (width + GAP)
            picture = to_picture(image).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(picture, (left, top + line * (height + GAP)))
    return canvas


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """`text` wrapped between words to lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def to_picture(image: Tensor) -> Image.Image:
    """(C, H, W) in 0..1 → an RGB picture; with other channel counts than 1 and 3, of the first three (or one)."""
    if image.shape[0] not in (1, 3):
        image = image[:3] if image.shape[0] > 3 else image[:1]
    values = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values, "RGB")


def loss_curve(path: Path, lines: list[dict], title: str, label: str = "loss on masked patches") -> None:
    """Training and held-out loss over the images seen, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes half a second, and trains nothing
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120)
    FigureCanvasAgg(figure)  # without pyplot, so that a notebook's figures are not affected
    axes = figure.add_subplot()
    training = [(line["images_seen"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["images_seen"], line["held_out_loss"]) for line in lines if "held_out_loss" in line]
    if training:
        axes.plot(*zip(*training, strict=True), lw=1, color="#7aa6d6", label="training")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", ms=3, lw=1.5, color="#c2452d", label="held out, fixed masks")
    values = sorted(loss for _, loss in training + held_out)
    if values and values[0] > 0 and values[-1] / values[0] > 5:
        axes.set_yscale("log")
    axes.set(xlabel="images seen", ylabel=label, title=title)
    axes.grid(alpha=0.3)
    if training or held_out:
        axes.legend()
    figure.tight_layout()
    with disk_faults(path), atomic_write(path) as partial:
        figure.savefig(partial)


def rgb_picture(image: NDArray, side: int, value_range: ValueRange) -> Image.Image:
    """An H × W × C image as an RGB picture that fits `side` × `side`; small ones are enlarged without smoothing."""
    step = max(1, min(image.shape[:2]) // (4 * side))
    values = image[::step, ::step]
    values = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
    if values.dtype != np.uint8:
        known = value_range is not None and value_range[0] == str(values.dtype)
        low, high = value_range[1] if known and value_range else np.percentile(values, [0.1, 99.9])
        scaled = (values.astype(np.float32) - low) / max(high - low, 1e-12)
        values = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
    if values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    picture = Image.fromarray(np.ascontiguousarray(values))
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)
