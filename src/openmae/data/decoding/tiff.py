"""TIFF: which of Pillow and tifffile decodes a page, and several pages stacked as the channels of one image.

Pillow reduces or refuses some pages (stacks, many channels, 16-bit RGB, floats), and tifffile alone has fewer codecs.
"""

import logging
import math
import re
import zlib
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np

from openmae.data.decoding.nodata import (
    GDAL_NODATA,
    FrameNodata,
    Nodata,
    attach_mask,
    nodata_mask,
    values_of,
    zero_and_mask,
    zero_masked,
)
from openmae.data.decoding.pillow import read_with_pillow
from openmae.data.decoding.pixels import BadImage, apply_orientation, check_size, composite, to_supported_dtype
from openmae.data.decoding.strips import in_strips

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the first bytes of TIFF and BigTIFF, in both byte orders

# Numbers of the TIFF specification.
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6  # PhotometricInterpretation
ORIENTATION = 274  # a tag
UNSIGNED_INTEGER = 1  # SampleFormat
_PREMULTIPLIED_ALPHA, _ALPHA = 1, 2  # ExtraSamples; 0 is a channel without a stated meaning, such as near infrared
_UNCOMPRESSED, _DEFLATE, _PACKBITS, _OLD_DEFLATE = 1, 8, 32773, 32946  # Compression

# tifffile logs each damaged tag, to stderr without a handler; what matters becomes a BadImage.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def open_tiff(file: BinaryIO) -> Any:
    """Open a TIFF with tifffile; under a fixed name, since tifffile fails for file names of bytes."""
    from tifffile import TiffFile

    file.seek(0)
    return TiffFile(file, name="unnamed")


def full_pages(tiff: Any, max_pixels: int) -> list[Any]:
    """The pages of a TIFF without thumbnails and pyramid levels. Raises BadImage for a size beyond the limits."""
    pages: list[Any] = []
    for page in tiff.pages:  # reads one directory at a time: in a file of endless pages `check_size` ends the loop
        if not page.is_reduced:
            pages.append(page)
        # No page is counted while only thumbnails were found, hence the 1.
        check_size(page.imagelength, page.imagewidth, page.samplesperpixel * len(pages) or 1, max_pixels)
    return pages


def is_alpha(extra_samples: tuple[int, ...]) -> bool:
    """Whether a page has one channel beside grey or RGB and this is alpha, by its ExtraSamples tag."""
    return len(extra_samples) == 1 and extra_samples[0] in (_PREMULTIPLIED_ALPHA, _ALPHA)


def read_tiff(file: BinaryIO, background: float, max_pixels: int, rule: Nodata | None = None) -> np.ndarray:
    """Pages of one shape and type, stacked as channels; nodata, by `rule` and the pages' own tags, is masked.

    Raises BadImage for an unsupported image, and whatever the two libraries raise.
    """
    # Pages and never `series`: for that tifffile parses OME's XML, which may name other files, and opens them.
    with open_tiff(file) as tiff:
        pages = full_pages(tiff, max_pixels)
        if not pages or any(page.shape != pages[0].shape for page in pages):
            shapes = ", ".join(sorted({str(page.shape) for page in pages}))
            raise BadImage(f"TIFF pages of different shapes: {shapes}" if pages else "TIFF without a full-size page")
        imagej = re.search(r"^images=(\d+)", pages[0].description or "", re.MULTILINE)
        if imagej and tiff.is_imagej and int(imagej[1]) > len(tiff.pages):
            raise BadImage(f"ImageJ stack of {imagej[1]} images with {len(tiff.pages)} directories: save them as pages")
        if all(map(_is_lossless_in_pillow, pages)):  # it has codecs (LZW, JPEG) that tifffile alone lacks
            frames = [(page.index, _nodata_in_pillow(page, gdal_nodata_of(page, pages[0]), rule)) for page in pages]
            images: Iterable[np.ndarray] = read_with_pillow(file, background, max_pixels, frames)
        else:
            images = (
                _read_with_tifffile(page, file, background, rule, gdal_nodata_of(page, pages[0])) for page in pages
            )
        return _stack_channels(images, len(pages))


def gdal_nodata_of(page: Any, first: Any) -> float | None:
    """The nodata value in the GDAL tag of a page, else in that of the file's first page; None where neither has one."""
    text = page.tags.valueof(GDAL_NODATA, default=first.tags.valueof(GDAL_NODATA))
    try:
        return float(str(text).strip("\0 ").replace(",", "."))  # GDAL once wrote decimal commas in some locales
    except ValueError:  # no such tag, or a word in it
        return None


def _nodata_in_pillow(page: Any, marked: float | None, rule: Nodata | None) -> FrameNodata | None:
    """The nodata rule of a page for the values that Pillow decodes it to; None without a rule.

    Pillow scales fewer than 8 bits to 0..255 and inverts pages whose 0 is white, so what the file states (`marked`) is
    converted in the same way. The rule's own value is inverted only: it is compared with the scaled values
    (docs/data.md, Nodata values).
    """
    if rule is None:
        return None
    if page.photometric == PALETTE:
        return FrameNodata(rule, marked_index=marked)
    if page.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        # Pillow converts the colours of CMYK and LAB: no decoded value is the one that the file states.
        return FrameNodata(rule, marked if page.photometric in (RGB, YCBCR) else None)
    bits = page.bitspersample
    highest, scale = (65535, 1) if bits == 16 else (255, 255 // (2**bits - 1))
    marked = None if marked is None else marked * scale
    if page.photometric == BLACK_IS_ZERO:
        return FrameNodata(rule, marked)
    inverted = rule if rule.value is None or bits < 8 else Nodata(highest - rule.value)
    return FrameNodata(inverted, None if marked is None else highest - marked)


def _stack_channels(images: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Concatenate `count` H x W x C images along the channels, with only one of them in memory beside the result."""
    whole, mask, start = None, None, 0
    for image in images:
        if count == 1:
            return attach_mask(values_of(image), nodata_mask(image))
        if whole is None:
            whole = np.empty((*image.shape[:2], count * image.shape[2]), image.dtype)
        if image.dtype != whole.dtype:
            raise BadImage("TIFF pages of different types")
        if image.shape[:2] != whole.shape[:2] or start + image.shape[2] > whole.shape[2]:
            raise BadImage("TIFF pages of different shapes")
        whole[..., start : start + image.shape[2]] = values_of(image)
        if (own_mask := nodata_mask(image)) is not None:
            mask = np.zeros(whole.shape, bool) if mask is None else mask
            mask[..., start : start + image.shape[2]] = own_mask
        start += image.shape[2]
    assert whole is not None
    if start != whole.shape[2]:
        raise BadImage("TIFF pages of different shapes")
    return attach_mask(whole, mask)


def _is_lossless_in_pillow(page: Any) -> bool:
    """Whether Pillow reads this page without dropping bits or channels."""
    bits, extra_samples = page.bitspersample, page.extrasamples
    if page.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
        return True  # palette, CMYK, YCbCr, LAB: its colour conversions are the better ones
    if page.samplesperpixel == 1 and page.photometric == BLACK_IS_ZERO and page.sampleformat == UNSIGNED_INTEGER:
        return bits in (1, 2, 4, 8, 16)
    num_colours = 3 if page.photometric == RGB else 1
    has_only_alpha = not extra_samples or is_alpha(extra_samples)
    is_complete = page.samplesperpixel == num_colours + len(extra_samples)
    return bits in (1, 8) and page.sampleformat == UNSIGNED_INTEGER and is_complete and has_only_alpha


def _read_with_tifffile(
    page: Any, file: BinaryIO, background: float, rule: Nodata | None, marked: float | None
) -> np.ndarray:
    """A page as H x W x C, upright and without alpha, with nodata masked. Raises BadImage."""
    _check_supported(page)
    if page.compression in (_DEFLATE, _OLD_DEFLATE):
        _check_inflated_sizes(page, file)
    array = page.asarray(maxworkers=1)
    array = np.moveaxis(array, 0, 2) if page.axes == "SYX" else array.reshape(*array.shape[:2], -1)
    has_alpha = is_alpha(page.extrasamples)
    mask = None if rule is None else rule.mask(array, marked)
    if mask is not None and has_alpha:  # alpha is never nodata, unless it is NaN
        mask[..., -1] = array[..., -1] != array[..., -1]  # NaN alone differs from itself
    if page.photometric == WHITE_IS_ZERO and array.dtype.kind == "u":
        array = in_strips(array.shape, lambda rows: np.iinfo(array.dtype).max - array[rows])
    array = to_supported_dtype(zero_masked(array, mask))
    if has_alpha:
        array = composite(array, background, premultiplied=page.extrasamples[0] == _PREMULTIPLIED_ALPHA)
        mask = None if mask is None else mask[..., :-1]
    return apply_orientation(zero_and_mask(array, mask), page.tags.valueof(ORIENTATION, default=1))


def _check_supported(page: Any) -> None:
    """Raise BadImage for axes or a compression that tifffile cannot read here."""
    if page.axes not in ("YX", "YXS", "SYX"):
        raise BadImage(f"TIFF page with axes {page.axes}")
    if page.compression not in (_UNCOMPRESSED, _DEFLATE, _PACKBITS, _OLD_DEFLATE):
        raise BadImage(
            f"TIFF compression {page.compression.name} for {page.samplesperpixel} x {page.bitspersample} bit: save it "
            "with deflate (zip), or without compression"
        )


def _check_inflated_sizes(page: Any, file: BinaryIO) -> None:
    """Raise BadImage for a strip or tile that inflates beyond its declared size (a decompression bomb)."""
    size = math.prod(page.chunks) * page.dtype.itemsize
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        if len(zlib.decompressobj().decompress(file.read(count), size + 1)) > size:
            raise BadImage("a TIFF segment that inflates beyond its declared size")
