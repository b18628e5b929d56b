"""Decode the bytes of an image file to an H x W x C array, or raise `BadImage` with the reason.

Four decoders, each in its own file: Pillow for the common formats, libjpeg-turbo for plain JPEGs, which are the most
frequent, tifffile for what Pillow would reduce or refuse (stacks, many channels, 16-bit RGB, floats), NumPy for `.npy`.
Whatever they raise becomes `BadImage`; a truncated image is never returned.
"""

import io
import re
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from openmae.config.checks import MAX_PIXELS, OFF
from openmae.data.decoding.jpeg import JPEG, decode_plain, read_header
from openmae.data.decoding.jpeg_mask import jpeg_mask
from openmae.data.decoding.nodata import (
    FrameNodata,
    Nodata,
    attach_mask,
    check_floats,
    contiguous,
    mask_union,
    nodata_mask,
    values_of,
    zero_masked,
)
from openmae.data.decoding.npy import CHANNELS_LAST, NPY, read_npy
from openmae.data.decoding.pillow import frame_to_array, open_with_pillow, orientation_of, read_with_pillow
from openmae.data.decoding.pixels import BadImage, apply_orientation, check_size
from openmae.data.decoding.tiff import TIFF_SIGNATURES, read_tiff

__all__ = ["MAX_PIXELS", "BadImage", "decode", "from_pil_image", "masked_array", "reason_of", "to_channels"]


def decode(
    data: bytes | BinaryIO,
    background: float = 1.0,
    max_pixels: int = MAX_PIXELS,
    axes: str | None = CHANNELS_LAST,
    nodata: float | str = OFF,
) -> np.ndarray:
    """Decode one image file to H x W x C of uint8, uint16 or float32, C-contiguous, perhaps read-only.

    Reading from an open file takes less memory than from bytes: at most 2.5 times the decoded array, that included.

    The EXIF orientation is applied; an animation gives its first frame; palettes and CMYK, YCbCr and LAB become RGB;
    grey stays one channel; alpha is composited on `background`, a fraction of the full range (1.0 is white). TIFF pages
    of one shape are stacked as channels. 16 bits stay uint16 in PNG, TIFF, PGM and `.npy` (Pillow has only 8 bits for
    the rare JPEG 2000 and PPM in 16-bit colour). Floats keep their values and must be finite.

    `max_pixels` bounds H x W, and 4 times it H x W x C, both read from headers before any pixel.

    `axes` is the order of channels, rows and columns in a `.npy` of three dimensions; None: inferred from its shape.

    `nodata` says which values are nodata (missing): `marked` for NaN and the value that a TIFF states, a number for
    that value too, `off` for none. An image with nodata is a masked array, 0 beneath its mask; unless `off`, floats
    beyond 1e18 are refused.

    Raises BadImage for everything that is wrong with the data, and nothing else.
    """
    try:
        return _decoded(data, background, max_pixels, axes, Nodata.from_setting(nodata))
    except BadImage:
        raise
    except Exception as error:  # the decoders raise OSError, ValueError, SyntaxError, struct.error and many more
        raise BadImage(reason_of(error)) from error


def _decoded(
    data: bytes | BinaryIO, background: float, max_pixels: int, axes: str | None, rule: Nodata | None
) -> np.ndarray:
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    head = file.read(len(NPY))
    if not head:
        raise BadImage("empty file")
    if head.startswith(JPEG):
        if not isinstance(data, bytes):
            data = head + file.read()
        plain = _read_plain_jpeg(data, max_pixels)
        if plain is not None:
            return plain if rule is None else _masked(plain, rule, jpeg_mask(data, plain.shape))
    with warnings.catch_warnings():
        # Only the decoders' own modules, so that threads that interleave here cannot silence the whole program.
        # A DecompressionBombWarning is not needed: our limit is checked first, and may have been raised on purpose.
        warnings.filterwarnings("ignore", module=r"(PIL|tifffile|torchvision|openmae\.data)\b")
        if head.startswith(NPY):
            image = read_npy(file, max_pixels, axes, rule)
        elif head.startswith(TIFF_SIGNATURES):
            image = read_tiff(file, background, max_pixels, rule)
        else:
            nodata = None if rule is None else FrameNodata(rule)
            (image,) = read_with_pillow(file, background, max_pixels, [(0, nodata)])
            image = attach_mask(values_of(image), nodata_mask(image))
    check_floats(image, rule)
    return contiguous(image)


def masked_array(image: np.ndarray, nodata: float | str, own: np.ndarray | None = None) -> np.ndarray:
    """An H x W x C array masked as `decode` masks a file.

    `own` is a further mask of known nodata, beside the array's own if it is a masked array.

    Raises BadImage for floats that are not finite or, with `nodata`, beyond 1e18.
    """
    rule, before = Nodata.from_setting(nodata), nodata_mask(image)
    own = before if own is None else own if before is None else own | before
    image = _masked(values_of(image).view(), rule, own)  # a view, so that the caller's array is not written to
    check_floats(image, rule)
    return image


def _masked(image: np.ndarray, rule: Nodata | None, own: np.ndarray | None = None) -> np.ndarray:
    """The image with the nodata of `rule` and of the mask `own` masked."""
    mask = None if rule is None else rule.mask(image)
    mask = mask_union(mask, own)
    return attach_mask(zero_masked(image, mask), mask)


def from_pil_image(image: Image.Image, background: float = 1.0, nodata: float | str = OFF) -> np.ndarray:
    """A PIL image as `decode` returns it: upright, without palette or alpha, masked. Raises BadImage."""
    rule = Nodata.from_setting(nodata)
    try:
        pixels = frame_to_array(image, background, None if rule is None else FrameNodata(rule))
        pixels = apply_orientation(pixels, orientation_of(image))
        pixels = contiguous(attach_mask(values_of(pixels), nodata_mask(pixels)))
        check_floats(pixels, rule)
        return pixels
    except BadImage:
        raise
    except Exception as error:  # PIL images are lazy: the file may be read only now
        raise BadImage(reason_of(error)) from error


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Give an H x W x C image `channels` channels: the same, grey repeated to 3, or RGB to luma (ITU-R 601, rounded).

    The dtype is kept. Raises BadImage for every other combination: which channels to use is not guessed.
    """
    existing = image.shape[2]
    if existing == channels:
        return image
    if (existing, channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (existing, channels) == (3, 1):
        if image.dtype == np.float32:
            return image @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)
        luma = image.astype(np.uint32) @ np.array([[299], [587], [114]], dtype=np.uint32)
        return ((luma + 500) // 1000).astype(image.dtype)
    raise BadImage(f"{existing} channel{'s' * (existing != 1)}, the model takes {channels}")


def _read_plain_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """Decode a plain JPEG without Pillow; None where Pillow must decode it."""
    header = read_header(data)
    if header is None:
        return None
    check_size(header.height, header.width, header.components, max_pixels)
    orientation = 1 if header.is_bare else _pillow_orientation(data, max_pixels)
    if orientation is None:
        return None
    image = decode_plain(data, header.components)
    return None if image is None else np.ascontiguousarray(apply_orientation(image, orientation))


def _pillow_orientation(data: bytes, max_pixels: int) -> int | None:
    """The EXIF orientation of a JPEG as Pillow reads it (EXIF, XMP); None where Pillow sees no grey or RGB JPEG."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")
            with open_with_pillow(io.BytesIO(data), max_pixels) as image:
                if image.format != "JPEG" or image.mode not in ("L", "RGB"):
                    return None
                return orientation_of(image)
    except Exception:  # Pillow reports what is wrong when it decodes the image
        return None


def reason_of(error: Exception) -> str:
    """One short line for an exception of any library, without paths and addresses."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that is read here"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>|(?<!\w)/\S+", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:160].strip(" :")
