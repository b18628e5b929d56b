"""Bytes of an image file -> H x W x C, or a named reason why not.

Four readers: Pillow for the common formats, libjpeg-turbo for plain JPEGs, of which there are most, tifffile for what
Pillow would narrow or refuse (stacks, many channels, 16-bit RGB, floats), NumPy for `.npy`. Whatever a reader raises
becomes `BadImage`; half an image is never returned.
"""

import io
import logging
import math
import re
import warnings
import zlib
from ast import literal_eval
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from openmae.data.jpeg import decode_plain, read_header

# An explicit list: Image.open would otherwise offer the bytes to every plugin it has, Ghostscript's among them. MPO is
# opened as JPEG.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "DIB", "JPEG2000", "AVIF")
# fmt: off
EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".npy",
))
# fmt: on
MAX_PIXELS = 178_956_970  # where Pillow, left alone, warned long ago and now refuses: twice its MAX_IMAGE_PIXELS
MAX_CHANNELS = 64

_NPY = b"\x93NUMPY"
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ALPHA = (1, 2)  # TIFF ExtraSamples: 1 colour premultiplied, 2 not; 0 is a channel like any other (near infrared, say)


# tifffile logs each damaged tag; what matters of it becomes a BadImage. Without a handler it would go to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class BadImage(Exception):
    """Why an input cannot be used: one short line without the file's path, fit for a table of counts."""


def decode(data: bytes, background: float = 1.0, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one image file to H x W x C of uint8, uint16 or float32, C-contiguous, perhaps read-only.

    The EXIF orientation is applied; an animation gives its first frame; palettes and CMYK, YCbCr and LAB become RGB;
    grey stays one channel; alpha is composited on `background`, a fraction of the full range (1.0 is white). TIFF pages
    of one shape are stacked as channels. 16 bits stay uint16 in PNG, TIFF, PGM and `.npy` (Pillow has only 8 bits for
    the rare JPEG 2000 and PPM in 16-bit colour). Floats keep their values and must be finite.

    `max_pixels` bounds H x W, and 4 times it H x W x C, both read from headers before any pixel. To read
    larger images than the default through Pillow, a program must also raise `PIL.Image.MAX_IMAGE_PIXELS`, once.

    Raises BadImage for everything that is wrong with the data, and nothing else.
    """
    if not data:
        raise BadImage("empty file")
    plain = _read_plain_jpeg(data, max_pixels)
    if plain is not None:
        return plain
    try:
        with warnings.catch_warnings():
            # Only the decoders' own modules, so that threads that interleave here cannot silence the whole program.
            # A DecompressionBombWarning needs no ear: our limit is checked first, and may have been raised on purpose.
            warnings.filterwarnings("ignore", module=r"(PIL|tifffile|torchvision|openmae\.data)\b")
            if data.startswith(_NPY):
                image = _read_npy(data, max_pixels)
            elif data.startswith(_TIFF):
                image = _read_tiff(data, background, max_pixels)
            else:
                image = _read_with_pillow(data, background, max_pixels)[0]
    except BadImage:
        raise
    except Exception as error:  # the readers raise OSError, ValueError, SyntaxError, struct.error and many more
        raise BadImage(_reason(error)) from error
    if image.dtype == np.float32 and not np.isfinite(image).all():
        raise BadImage("values that are not finite")
    return np.ascontiguousarray(image)


def from_picture(image: Image.Image, background: float = 1.0) -> np.ndarray:
    """An opened Pillow image as `decode` gives it: upright, without palette or alpha. Raises BadImage."""
    try:
        return np.ascontiguousarray(_upright(_pixels(image, background), _orientation(image)))
    except Exception as error:  # its pixels may be read only now
        raise BadImage(_reason(error)) from error


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Give an H x W x C image `channels` channels: the same, grey repeated to 3, or RGB to luma (ITU-R 601, rounded).

    The dtype is kept. Raises BadImage for every other pair: which channels to drop or invent is not ours to guess.
    """
    have = image.shape[2]
    if have == channels:
        return image
    if (have, channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (have, channels) == (3, 1):
        if image.dtype == np.float32:
            return image @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)
        luma = image.astype(np.uint32) @ np.array([[299], [587], [114]], dtype=np.uint32)
        return ((luma + 500) // 1000).astype(image.dtype)
    raise BadImage(f"{have} channel{'s' * (have != 1)}, the model takes {channels}")


def _check_size(height: int, width: int, channels: int, max_pixels: int) -> None:
    if min(height, width, channels) < 1:
        raise BadImage(f"no pixels: {height} x {width} x {channels}")
    if height * width > max_pixels or height * width * channels > 4 * max_pixels:
        raise BadImage(f"{height} x {width} x {channels} values, the limit is {max_pixels} pixels")
    if channels > MAX_CHANNELS:
        raise BadImage(f"{channels} channels or pages, the limit is {MAX_CHANNELS}")


def _read_plain_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """A JPEG without the way through Pillow, or None where that must look at it."""
    header = read_header(data)
    if header is None:
        return None
    _check_size(header.height, header.width, header.components, max_pixels)
    if header.height * header.width > MAX_PIXELS:  # a higher limit is also Pillow's to allow
        return None
    orientation = 1 if header.is_bare else _vouched_orientation(data)
    if orientation is None:
        return None
    image = decode_plain(data, header.components)
    return None if image is None else np.ascontiguousarray(_upright(image, orientation))


def _vouched_orientation(data: bytes) -> int | None:
    """Which side of a JPEG is up, as Pillow reads its EXIF and XMP; None where Pillow takes it for something else."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                if image.format != "JPEG" or image.mode not in ("L", "RGB"):
                    return None
                return _orientation(image)
    except Exception:  # Pillow, reading it whole, will say what is wrong
        return None


def _read_with_pillow(
    data: bytes, background: float, max_pixels: int, frames: Iterable[int] = (0,)
) -> list[np.ndarray]:
    arrays = []
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        for frame in frames:
            if frame:
                image.seek(frame)
            _check_size(image.height, image.width, len(image.getbands()), max_pixels)
            image.load()
            array = _deep_png(data, image, background) if _is_deep_png(data) else _pixels(image, background)
            arrays.append(_upright(array, _orientation(image)))
    return arrays


def _pixels(image: Image.Image, background: float) -> np.ndarray:
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
        return _composite(np.asarray(image), background)
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
        return _composite(array, background)
    return _keyed(array, image.info.get("transparency"), background)


def _keyed(array: np.ndarray, transparent: Any, background: float) -> np.ndarray:
    """Composite an image that declares one colour transparent (PNG's tRNS); `transparent` is that colour or None."""
    if not isinstance(transparent, int | tuple):
        return array
    opaque = (array != np.asarray(transparent)).any(axis=2, keepdims=True)
    return np.where(opaque, array, np.array(round(background * 65535), array.dtype))


def _composite(array: np.ndarray, background: float, premultiplied: bool = False) -> np.ndarray:
    """H x W x (C + 1), alpha last -> H x W x C of the same dtype."""
    full = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
    colour, alpha = array[..., :-1], array[..., -1:].astype(np.float32) / full
    if alpha.min() == 1.0:
        return colour
    mixed = (colour if premultiplied else colour * alpha) + np.float32(background * full) * (1 - alpha)
    return mixed.astype(np.float32) if array.dtype.kind == "f" else np.rint(mixed).clip(0, full).astype(array.dtype)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF or TIFF orientation (1..8; anything else counts as 1)."""
    if orientation in (5, 6, 7, 8):  # rows and columns are exchanged
        array = array.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _read_npy(data: bytes, max_pixels: int) -> np.ndarray:
    """Parse the header ourselves, as a literal: no pickle is ever reached and no size is believed before it is checked.

    Integers other than uint8 and uint16 become uint16 (by type and not by value, so one folder has one range) and
    must fit.
    """
    version, width = data[6], 2 if data[6] == 1 else 4
    if version not in (1, 2):
        raise BadImage(f".npy of version {version}, expected 1 or 2")
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if start > min(len(data), 10_000):  # NumPy's own bound on a header it parses
        raise BadImage(".npy with a header that is cut off or too long")
    header = literal_eval(data[8 + width : start].decode("latin-1").strip())
    if not isinstance(header["descr"], str) or np.dtype(header["descr"]).kind not in "biuf":
        raise BadImage(".npy of something other than plain numbers")
    dtype, shape = np.dtype(header["descr"]), header["shape"]
    if len(shape) not in (2, 3):
        raise BadImage(f".npy of {len(shape)} dimensions, expected H x W or H x W x C")
    _check_size(shape[0], shape[1], math.prod(shape[2:]), max_pixels)
    count = math.prod(shape)
    if len(data) - start < count * dtype.itemsize:
        raise BadImage(f".npy cut off: {len(data) - start} bytes of {count * dtype.itemsize}")
    array = np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if header["fortran_order"] else "C")
    array = array[..., None] if array.ndim == 2 else array
    if dtype.kind in "iu" and dtype.name not in ("uint8", "uint16"):
        if array.min() < 0 or array.max() > 65535:
            raise BadImage(f"{dtype.name} values that do not fit 0..65535: save as uint16 or float32")
        return array.astype(np.uint16)
    return _plain(array)


def _plain(array: np.ndarray) -> np.ndarray:
    """Any real array -> uint8, uint16 or float32, in the machine's byte order."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise BadImage(f"{array.dtype.name} values, expected uint8, uint16 or float32")
    return array.astype(array.dtype.name if array.dtype.name in ("uint8", "uint16") else np.float32)


def _read_tiff(data: bytes, background: float, max_pixels: int) -> np.ndarray:
    from tifffile import TiffFile

    # Pages and never `series`: for that tifffile parses OME's XML, which may name other files, and opens them.
    with TiffFile(io.BytesIO(data)) as tiff:
        pages: list[Any] = []
        page: Any
        for page in tiff.pages:  # one directory at a time, so that a chain without end stops here
            if not page.is_reduced:  # thumbnails and pyramid levels
                pages.append(page)
            _check_size(page.imagelength, page.imagewidth, page.samplesperpixel * len(pages) or 1, max_pixels)
        if not pages or any(page.shape != pages[0].shape for page in pages):
            shapes = ", ".join(sorted({str(page.shape) for page in pages}))
            raise BadImage(f"TIFF pages of different shapes: {shapes}" if pages else "TIFF without a full-size page")
        said = re.search(r"^images=(\d+)", pages[0].description or "", re.MULTILINE)
        if said and tiff.is_imagej and int(said[1]) > len(tiff.pages):
            raise BadImage(f"ImageJ stack of {said[1]} images with {len(tiff.pages)} directories: save them as pages")
        if all(map(_suits_pillow, pages)):  # it has codecs (LZW, JPEG) that tifffile alone lacks
            layers = _read_with_pillow(data, background, max_pixels, [page.index for page in pages])
        else:
            layers = [_tiff_page(page, data, background) for page in pages]
        if len({layer.dtype for layer in layers}) > 1:
            raise BadImage("TIFF pages of different types")
        return layers[0] if len(layers) == 1 else np.concatenate(layers, axis=2)


def _suits_pillow(page: Any) -> bool:
    """Whether Pillow reads this TIFF page without dropping bits or channels."""
    bits, extra = page.bitspersample, page.extrasamples
    if page.photometric not in (0, 1, 2):  # palette, CMYK, YCbCr, LAB: its colour conversions are the better ones
        return True
    if page.samplesperpixel == 1 and page.photometric == 1 and page.sampleformat == 1:
        return bits in (1, 2, 4, 8, 16)
    base = 3 if page.photometric == 2 else 1
    plain = page.samplesperpixel == base + len(extra) and (not extra or (len(extra) == 1 and extra[0] in _ALPHA))
    return bits in (1, 8) and page.sampleformat == 1 and plain


def _tiff_page(page: Any, data: bytes, background: float) -> np.ndarray:
    if page.axes not in ("YX", "YXS", "SYX"):
        raise BadImage(f"TIFF page with axes {page.axes}")
    if page.compression not in (1, 5, 8, 32773, 32946):  # none, LZW, deflate, PackBits, the older deflate
        raise BadImage(
            f"TIFF compression {page.compression.name} for {page.samplesperpixel} x {page.bitspersample} bit"
        )
    if page.compression in (8, 32946):
        size = math.prod(page.chunks) * page.dtype.itemsize
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if len(zlib.decompressobj().decompress(data[offset : offset + count], size + 1)) > size:
                raise BadImage("a TIFF segment that inflates beyond its declared size")
    array = page.asarray(maxworkers=1)
    array = np.moveaxis(array, 0, 2) if page.axes == "SYX" else array.reshape(*array.shape[:2], -1)
    if page.photometric == 0 and array.dtype.kind == "u":  # white is zero
        array = np.iinfo(array.dtype).max - array
    array = _plain(array)
    extra = page.extrasamples
    if len(extra) == 1 and extra[0] in _ALPHA:
        array = _composite(array, background, premultiplied=extra[0] == 1)
    return _upright(array, page.tags.valueof(274, default=1))


def _reason(error: Exception) -> str:
    """One short line for an exception of any library, without paths and addresses."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that is read here"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>|(?<!\w)/\S+", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:160].strip(" :")
