"""The common formats, read with Pillow; what it would narrow without a word is decoded by torchvision."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from openmae.data.pixels import check_size, composite, upright

# An explicit list: Image.open would otherwise offer the bytes to every plugin it has, Ghostscript's among them. MPO is
# opened as JPEG.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "DIB", "JPEG2000", "AVIF")

_PNG = b"\x89PNG\r\n\x1a\n"


def read_with_pillow(data: bytes, background: float, max_pixels: int, frames: Iterable[int] = (0,)) -> list[np.ndarray]:
    """Frames of a file, upright and H x W x C each.

    Raises BadImage for a size that is not taken, and what Pillow raises for all else.
    """
    arrays = []
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        for frame in frames:
            if frame:
                image.seek(frame)
            check_size(image.height, image.width, len(image.getbands()), max_pixels)
            image.load()
            array = _deep_png(data, image, background) if _is_deep_png(data) else pixels_of(image, background)
            arrays.append(upright(array, orientation_of(image)))
    return arrays


def pixels_of(image: Image.Image, background: float) -> np.ndarray:
    """H x W x C of an opened image as it lies in the file, without palette or alpha."""
    mode = image.mode
    if mode.startswith("I;16"):
        array = np.asarray(image).astype(np.uint16)[..., None]  # astype: some files are big-endian
        return _keyed(array, image.info.get("transparency"), background)
    if mode == "I" and image.format == "PPM":  # a 16-bit PGM, which Pillow scales to 0..65535
        return np.asarray(image).astype(np.uint16)[..., None]
    if mode in ("I", "F"):
        return np.asarray(image).astype(np.float32)[..., None]
    if image.has_transparency_data:
        image = image.convert("LA" if mode in ("1", "L", "LA", "La") else "RGBA")
        return composite(np.asarray(image), background)
    if mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "RGB"):
        image = image.convert("RGB")
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _is_deep_png(data: bytes) -> bool:
    """Whether this is a PNG of 16 bits and several channels, which Pillow narrows to 8 bits without a word."""
    return data.startswith(_PNG) and data[12:16] == b"IHDR" and data[24] == 16 and data[25] in (2, 4, 6)


def _deep_png(data: bytes, image: Image.Image, background: float) -> np.ndarray:
    """Decode with torchvision what Pillow, having just read it whole, has vouched for."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    values = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    array = values.permute(1, 2, 0).numpy()  # (H, W, C)
    if array.shape[2] in (2, 4):
        return composite(array, background)
    return _keyed(array, image.info.get("transparency"), background)


def _keyed(array: np.ndarray, transparent: Any, background: float) -> np.ndarray:
    """Composite an image that declares one colour transparent (PNG's tRNS); `transparent` is that colour or None."""
    if not isinstance(transparent, int | tuple):
        return array
    opaque = (array != np.asarray(transparent)).any(axis=2, keepdims=True)
    return np.where(opaque, array, np.array(round(background * 65535), array.dtype))


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, for `upright`; 1 where it says none."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1
