"""The common formats, decoded with Pillow; PNGs that it would silently reduce to 8 bits with torchvision."""

import contextlib
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from openmae.config.checks import MAX_PIXELS
from openmae.data.decoding.nodata import FrameNodata, mask_union, zero_and_mask
from openmae.data.decoding.pixels import BadImage, apply_orientation, check_size, composite
from openmae.data.decoding.strips import in_strips
from openmae.data.resize import LARGE_PIXELS

# An explicit list, or Image.open would try all plugins, Ghostscript's among them. MPO is opened as JPEG.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "DIB", "JPEG2000", "AVIF")

_PNG = b"\x89PNG\r\n\x1a\n"

_limit_lock = threading.Lock()
_pixel_limits: list[int] = []  # Pillow's own limit, then the raised ones in use


def read_with_pillow(
    file: BinaryIO,
    background: float,
    max_pixels: int,
    frames: Iterable[tuple[int, FrameNodata | None]] = ((0, None),),
) -> Iterator[np.ndarray]:
    """Frames of a file, each upright and H x W x C, with nodata masked.

    Raises BadImage for a size beyond the limits, and whatever Pillow raises.
    """
    if is_deep_png(file) or _is_large_grey_with_alpha(file):
        ((_, nodata),) = frames
        yield _png(file, background, max_pixels, nodata)
        return
    with open_with_pillow(file, max_pixels) as image:
        for frame, nodata in frames:
            if frame:
                image.seek(frame)
            check_size(image.height, image.width, len(image.getbands()), max_pixels)
            image.load()
            yield apply_orientation(frame_to_array(image, background, nodata), orientation_of(image))


@contextlib.contextmanager
def open_with_pillow(file: BinaryIO, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image and read its header. Raises BadImage for more than `max_pixels`."""
    file.seek(0)
    with raised_pixel_limit(max_pixels):
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise too_many_pixels(error, max_pixels) from error
        with image:
            yield image


def too_many_pixels(error: Image.DecompressionBombError, max_pixels: int) -> BadImage:
    """Pillow's DecompressionBombError in our words."""
    found = re.search(r"\d+", str(error))
    return BadImage(f"{found[0] if found else 'too many'} pixels, the limit is {max_pixels} pixels (--max-pixels)")


def frame_to_array(image: Image.Image, background: float, nodata: FrameNodata | None = None) -> np.ndarray:
    """H x W x C of an opened PIL image, not yet upright, without palette or alpha; nodata masked."""
    image.load()
    width, height = image.size
    is_ppm = image.format == "PPM"  # a crop of it has no format

    def strip(rows: slice) -> Image.Image:
        is_whole = rows.stop - rows.start == height
        return image if is_whole else image.crop((0, rows.start, width, rows.stop))

    values = in_strips((height, width), lambda rows: _pixels_of(strip(rows), is_ppm, background))
    if nodata is None or not nodata.may_match(values.dtype):
        return values
    of_palette = nodata.mask_of_indices(np.asarray(image)) if image.mode == "P" else None
    of_palette = None if of_palette is None else np.repeat(of_palette, values.shape[2], axis=2)
    mask = None if image.has_transparency_data else nodata.mask(values)
    if image.has_transparency_data:  # compositing changes values, so they are compared before it
        mask = in_strips(values.shape, lambda rows: _frame_mask(_colours_of(strip(rows)), nodata))
    return zero_and_mask(values, mask_union(of_palette, mask))


def _frame_mask(colours: np.ndarray, nodata: FrameNodata) -> NDArray[np.bool_]:
    mask = nodata.mask(colours)
    return np.zeros(colours.shape, bool) if mask is None else mask


def _colours_of(image: Image.Image) -> np.ndarray:
    """H x W x C of an image with transparency, as if all of it were opaque."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    return np.asarray(_with_alpha(image))[..., :-1]


def _with_alpha(image: Image.Image) -> Image.Image:
    return image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")


def _pixels_of(image: Image.Image, is_ppm: bool, background: float) -> np.ndarray:
    mode = image.mode
    if mode.startswith("I;16"):
        array = np.asarray(image).astype(np.uint16)[..., None]  # astype: some files are big-endian
        return _composite_transparent_colour(array, image.info.get("transparency"), background)
    if mode == "I" and is_ppm:  # a 16-bit PGM, which Pillow scales to 0..65535
        return np.asarray(image).astype(np.uint16)[..., None]
    if mode in ("I", "F"):
        return np.asarray(image).astype(np.float32)[..., None]
    if image.has_transparency_data:
        return composite(np.asarray(_with_alpha(image)), background)
    if mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "RGB"):
        image = image.convert("RGB")
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def is_deep_png(file: BinaryIO) -> bool:
    """Whether this is a PNG of 16 bits and several channels, which Pillow silently reduces to 8 bits."""
    _, bits, colour = _png_header(file)
    return bits == 16 and colour in (2, 4, 6)


def _is_large_grey_with_alpha(file: BinaryIO) -> bool:
    """Whether this is a large 8-bit PNG of grey and alpha, for which Pillow takes 4 bytes a pixel instead of 2."""
    pixels, bits, colour = _png_header(file)
    return pixels > LARGE_PIXELS and (bits, colour) == (8, 4)


def _png_header(file: BinaryIO) -> tuple[int, int, int]:
    """Number of pixels, bit depth and colour type of a PNG; zeros for other files."""
    file.seek(0)
    head = file.read(26)
    if not head.startswith(_PNG) or head[12:16] != b"IHDR" or len(head) < 26:
        return 0, 0, 0
    return int.from_bytes(head[16:20]) * int.from_bytes(head[20:24]), head[24], head[25]


def _png(file: BinaryIO, background: float, max_pixels: int, nodata: FrameNodata | None) -> np.ndarray:
    """Decode a PNG with torchvision, after Pillow has decoded it without an error."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    with open_with_pillow(file, max_pixels) as image:
        check_size(image.height, image.width, len(image.getbands()), max_pixels)
        image.load()
        transparent, orientation = image.info.get("transparency"), orientation_of(image)
    del image  # frees its memory
    data = torch.empty(file.seek(0, 2), dtype=torch.uint8)
    file.seek(0)
    file.readinto(data.numpy())  # type: ignore[attr-defined]
    array = decode_png(data, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()  # (H, W, C)
    del data
    has_alpha = array.shape[2] in (2, 4)
    mask = None if nodata is None else nodata.mask(array[..., :-1] if has_alpha else array)
    if has_alpha:
        array = composite(array, background)
    elif isinstance(transparent, int | tuple):
        opened = array
        array = in_strips(
            opened.shape, lambda rows: _composite_transparent_colour(opened[rows], transparent, background)
        )
    return apply_orientation(zero_and_mask(array, mask), orientation)


def _composite_transparent_colour(array: np.ndarray, transparent: Any, background: float) -> np.ndarray:
    """Composite an image that declares one colour transparent (PNG's tRNS chunk); `transparent`: it, or None."""
    if not isinstance(transparent, int | tuple):
        return array
    opaque = (array != np.asarray(transparent)).any(axis=2, keepdims=True)
    return np.where(opaque, array, np.array(round(background * 65535), array.dtype))


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, for `apply_orientation`; 1 where there is none."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


@contextlib.contextmanager
def raised_pixel_limit(max_pixels: int) -> Iterator[None]:
    """Within the context, Pillow opens images of up to `max_pixels`, if that is more than by default.

    Pillow's limit is global to the process: it is restored when the last thread that raised it has left.
    """
    own = Image.MAX_IMAGE_PIXELS
    if max_pixels <= MAX_PIXELS or (own is None and not _pixel_limits):
        yield
        return
    with _limit_lock:
        if not _pixel_limits:
            _pixel_limits.append(Image.MAX_IMAGE_PIXELS or 0)
        _pixel_limits.append(max_pixels)
        Image.MAX_IMAGE_PIXELS = max(_pixel_limits)
    try:
        yield
    finally:
        with _limit_lock:
            _pixel_limits.remove(max_pixels)
            Image.MAX_IMAGE_PIXELS = max(_pixel_limits) if len(_pixel_limits) > 1 else _pixel_limits.pop()
