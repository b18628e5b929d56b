"""Decode a mask file, a PNG whose pixels are class numbers or a palette's colours, or raise `BadImage`."""

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openmae.config.checks import MAX_PIXELS
from openmae.data.decoding.decode import BadImage, reason_of
from openmae.data.decoding.formats import format_of
from openmae.data.decoding.pillow import open_with_pillow, orientation_of
from openmae.data.decoding.pixels import apply_orientation, check_size
from openmae.data.masks.palette import Palette

_GREY, _GREY_ALPHA = 0, 4  # colour types in a PNG's header


def decode_mask(data: bytes, palette: Palette | None = None, max_pixels: int = MAX_PIXELS) -> NDArray[np.integer]:
    """The values of a mask file as they are stored: (H, W), upright; uint8, uint16 or, of colours, int16.

    Without a palette these are the numbers in a PNG of 1, 2, 4, 8 or 16 bits, grey or with a palette of its own (then
    its indices, whatever their colours). With one, pixels are colours: those of an RGB, grey or palette PNG, each
    looked up, `IGNORED` where the palette says so.

    Raises BadImage for everything else, and nothing else: other formats (JPEG invents class numbers at edges), colours
    without a palette or not in it, transparency, damage, more than `max_pixels` pixels.
    """
    try:
        form = format_of(data)
        if form == "empty":
            raise BadImage("empty file")
        if form == "JPEG":
            raise BadImage("a JPEG, whose compression invents class numbers at edges: save masks as PNG")
        if form != "PNG":
            raise BadImage(f"{'not an image' if form == 'unknown' else 'a ' + form} where a PNG is expected")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")
            return _decoded(data, palette, max_pixels)
    except BadImage:
        raise
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error and many more
        raise BadImage(reason_of(error)) from error


def _decoded(data: bytes, palette: Palette | None, max_pixels: int) -> NDArray[np.integer]:
    bits, colour_type = data[24:25], data[25:26]
    with open_with_pillow(io.BytesIO(data), max_pixels) as image:
        check_size(image.height, image.width, len(image.getbands()), max_pixels)
        if getattr(image, "n_frames", 1) > 1:
            raise BadImage("an animation where one mask is expected")
        image.load()
        if palette is None:
            values: NDArray[np.integer] = _numbers(image, int(bits[0]), int(colour_type[0]))
        else:
            values = palette.ids_of(_colours(image, int(bits[0])))
        upright: NDArray[np.integer] = apply_orientation(values[..., None], orientation_of(image))[..., 0]
        return np.ascontiguousarray(upright)


def _numbers(image: Image.Image, bits: int, colour_type: int) -> NDArray[np.integer]:
    """The class numbers of a PNG with one number a pixel: (H, W)."""
    if colour_type == _GREY_ALPHA:
        if bits == 16:  # Pillow would reduce it to 8 bits
            raise BadImage("16 bits with alpha: save masks without alpha")
        return np.asarray(_opaque(image), np.uint8)[..., 0]
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise BadImage("colours, not class numbers: give --palette FILE")
    values: NDArray[Any] = np.asarray(image).astype(np.uint16 if bits == 16 else np.uint8, copy=False)
    # Pillow spreads grey of 2 and 4 bits over 0 to 255, so that class 1 would become 85 or 17.
    return values // (255 // (2**bits - 1)) if colour_type == _GREY and bits in (2, 4) else values


def _colours(image: Image.Image, bits: int) -> NDArray[np.uint8]:
    """The colours of a PNG: (H, W, 3)."""
    if bits == 16:
        raise BadImage("16 bits, the colours of --palette have 8")
    if image.mode in ("LA", "RGBA"):
        image = _opaque(image)
    image.info.pop("transparency", None)  # one colour's or index's: what was drawn is beneath it
    return np.asarray(image.convert("RGB"))


def _opaque(image: Image.Image) -> Image.Image:
    """The image. Raises BadImage where its last channel, alpha, is not full throughout."""
    count = int((np.asarray(image)[..., -1] != 255).sum())
    if count:
        raise BadImage(f"{count} transparent pixels, whose class is unclear: save masks without alpha")
    return image
