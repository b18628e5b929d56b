"""TIFF: what Pillow would reduce or refuse (stacks, many channels, 16-bit RGB, floats) with tifffile."""

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

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how such a file begins

_RGB, _PALETTE, _YCBCR = 2, 3, 6  # TIFF's PhotometricInterpretation; 0 and 1 are grey, white or black at 0
_ALPHA = (1, 2)  # TIFF ExtraSamples: 1 colour premultiplied, 2 not; 0 is a channel like any other (near infrared, say)

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
    for page in tiff.pages:  # one directory at a time, so that a chain without end stops here
        if not page.is_reduced:
            pages.append(page)
        check_size(page.imagelength, page.imagewidth, page.samplesperpixel * len(pages) or 1, max_pixels)
    return pages


def is_alpha(extra: tuple[int, ...]) -> bool:
    """Whether the one channel beside the colours is alpha, by TIFF's ExtraSamples."""
    return len(extra) == 1 and extra[0] in _ALPHA


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
        if all(map(_suits_pillow, pages)):  # it has codecs (LZW, JPEG) that tifffile alone lacks
            frames = [(page.index, _nodata_of(page, mark_of_page(page, pages[0]), rule)) for page in pages]
            layers: Iterable[np.ndarray] = read_with_pillow(file, background, max_pixels, frames)
        else:
            layers = (_tiff_page(page, file, background, rule, mark_of_page(page, pages[0])) for page in pages)
        return _stacked(layers, len(pages))


def mark_of_page(page: Any, first: Any) -> float | None:
    """The nodata value in GDAL's tag of a page, or of the first page for all; None where there is none."""
    text = page.tags.valueof(GDAL_NODATA, default=first.tags.valueof(GDAL_NODATA))
    try:
        return float(str(text).strip("\0 ").replace(",", "."))  # GDAL once wrote decimal commas in some locales
    except ValueError:  # no such tag, or a word in it
        return None


def _nodata_of(page: Any, mark: float | None, rule: Nodata | None) -> FrameNodata | None:
    """The nodata rule of a page as Pillow decodes it."""
    if rule is None:
        return None
    if page.photometric == _PALETTE:
        return FrameNodata(rule, marked_index=mark)
    if page.photometric not in (0, 1):
        return FrameNodata(rule, mark if page.photometric in (_RGB, _YCBCR) else None)
    bits = page.bitspersample
    full, scale = (65535, 1) if bits == 16 else (255, 255 // (2**bits - 1))  # how Pillow scales fewer than 8 bits
    mark = None if mark is None else mark * scale
    if page.photometric == 1:
        return FrameNodata(rule, mark)
    of_file = rule if rule.value is None or bits < 8 else Nodata(full - rule.value)
    return FrameNodata(of_file, None if mark is None else full - mark)


def _stacked(layers: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Concatenate H x W x C layers along the channels, with only one layer in memory beside the result."""
    whole, empty, start = None, None, 0
    for layer in layers:
        if count == 1:
            return attach_mask(values_of(layer), nodata_mask(layer))
        if whole is None:
            whole = np.empty((*layer.shape[:2], count * layer.shape[2]), layer.dtype)
        if layer.dtype != whole.dtype:
            raise BadImage("TIFF pages of different types")
        if layer.shape[:2] != whole.shape[:2] or start + layer.shape[2] > whole.shape[2]:
            raise BadImage("TIFF pages of different shapes")
        whole[..., start : start + layer.shape[2]] = values_of(layer)
        if (mask := nodata_mask(layer)) is not None:
            empty = np.zeros(whole.shape, bool) if empty is None else empty
            empty[..., start : start + layer.shape[2]] = mask
        start += layer.shape[2]
    assert whole is not None
    if start != whole.shape[2]:
        raise BadImage("TIFF pages of different shapes")
    return attach_mask(whole, empty)


def _suits_pillow(page: Any) -> bool:
    """Whether Pillow reads this TIFF page without dropping bits or channels."""
    bits, extra = page.bitspersample, page.extrasamples
    if page.photometric not in (0, 1, 2):  # palette, CMYK, YCbCr, LAB: its colour conversions are the better ones
        return True
    if page.samplesperpixel == 1 and page.photometric == 1 and page.sampleformat == 1:
        return bits in (1, 2, 4, 8, 16)
    base = 3 if page.photometric == 2 else 1
    plain = page.samplesperpixel == base + len(extra) and (not extra or is_alpha(extra))
    return bits in (1, 8) and page.sampleformat == 1 and plain


def _tiff_page(page: Any, file: BinaryIO, background: float, rule: Nodata | None, mark: float | None) -> np.ndarray:
    if page.axes not in ("YX", "YXS", "SYX"):
        raise BadImage(f"TIFF page with axes {page.axes}")
    if page.compression not in (1, 8, 32773, 32946):  # none, deflate, PackBits, the older deflate
        raise BadImage(
            f"TIFF compression {page.compression.name} for {page.samplesperpixel} x {page.bitspersample} bit: save it "
            "with deflate (zip), or without compression"
        )
    if page.compression in (8, 32946):
        size = math.prod(page.chunks) * page.dtype.itemsize
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.seek(offset)
            if len(zlib.decompressobj().decompress(file.read(count), size + 1)) > size:
                raise BadImage("a TIFF segment that inflates beyond its declared size")
    array = page.asarray(maxworkers=1)
    array = np.moveaxis(array, 0, 2) if page.axes == "SYX" else array.reshape(*array.shape[:2], -1)
    mask, extra = None if rule is None else rule.mask(array, mark), page.extrasamples
    if mask is not None and is_alpha(extra):
        mask[..., -1] = array[..., -1] != array[..., -1]  # alpha is never nodata, unless it is NaN
    if page.photometric == 0 and array.dtype.kind == "u":  # white is zero
        array = in_strips(array.shape, lambda rows: np.iinfo(array.dtype).max - array[rows])
    array = to_supported_dtype(zero_masked(array, mask))
    if is_alpha(extra):
        array = composite(array, background, premultiplied=extra[0] == 1)
        mask = None if mask is None else mask[..., :-1]
    orientation = page.tags.valueof(274, default=1)
    return apply_orientation(zero_and_mask(array, mask), orientation)
