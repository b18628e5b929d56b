"""Reading crops of large images without decoding the whole: integers of a `.npy` or of an uncompressed TIFF.

Always read whole are floats, all of which must be checked (NaN, infinities, values beyond 1e18), integers that may not
fit into 16 bits, and whatever is compressed: a damaged segment outside of a crop would not be noticed, and whether an
image is replaced would depend on the crops of a run, where it must depend on the file alone. Uncompressed integers
cannot be damaged in that way: the header shows whether the file holds all of them.
"""

import math
import os
from typing import Any, BinaryIO, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from openmae.data.decoding.nodata import Nodata
from openmae.data.decoding.npy import NPY, read_npy_header
from openmae.data.decoding.pixels import BadImage, to_supported_dtype
from openmae.data.decoding.tiff import (
    BLACK_IS_ZERO,
    ORIENTATION,
    RGB,
    TIFF_SIGNATURES,
    UNSIGNED_INTEGER,
    full_pages,
    gdal_nodata_of,
    is_alpha,
    open_tiff,
)
from openmae.data.resize import LARGE_PIXELS, Pixels

# Numbers of the TIFF specification.
_UNCOMPRESSED, _NO_PREDICTOR, _MSB_FIRST = 1, 1, 1  # Compression, Predictor, FillOrder
_XMP = 700  # a tag


class Layout(NamedTuple):
    """Where the values of an image are in its file.

    Attributes:
        dtype: of the numbers, in the byte order of the file.
        shape: height, width, channels.
        segment: the sides of a part that lies in one piece, in the order of its axes there.
        order: at which of these axes rows, columns and channels stand.
        offsets: (rows, columns) of the segments: at which byte each begins.
    """

    dtype: np.dtype
    shape: tuple[int, int, int]
    segment: tuple[int, int, int]
    order: tuple[int, int, int]
    offsets: NDArray[np.int64]


class StoredImage:
    """An H x W x C image in its file: slicing reads only the slice; equal to the decoded image."""

    def __init__(self, file: BinaryIO, layout: Layout) -> None:
        self._layout, self.shape = layout, layout.shape
        self._descriptor = os.dup(
            file.fileno()
        )  # so that the content stays available if the file is replaced or deleted

    def __del__(self) -> None:
        os.close(self._descriptor)

    def __getitem__(self, rows_and_columns: tuple[slice, slice]) -> NDArray:
        """A slice, of uint8 or uint16. Raises BadImage where the file was truncated since its header was read."""
        stored, (height, width, channels) = self._layout, self.shape
        (top, bottom, _), (left, right, _) = (
            side.indices(length) for side, length in zip(rows_and_columns, (height, width), strict=True)
        )
        part = np.empty((max(0, bottom - top), max(0, right - left), channels), stored.dtype)
        if not part.size:
            return to_supported_dtype(part)
        tall, wide = (stored.segment[axis] for axis in stored.order[:2])
        for row in range(top // tall, -(-bottom // tall)):
            for column in range(left // wide, -(-right // wide)):
                y, x = row * tall, column * wide
                of_y = slice(max(top, y), min(bottom, y + tall))
                of_x = slice(max(left, x), min(right, x + wide))
                box = (slice(of_y.start - y, of_y.stop - y), slice(of_x.start - x, of_x.stop - x), slice(0, channels))
                in_file = tuple(box[stored.order.index(axis)] for axis in range(3))
                found = self._read(int(stored.offsets[row, column]), in_file).transpose(stored.order)
                part[of_y.start - top : of_y.stop - top, of_x.start - left : of_x.stop - left] = found
        return to_supported_dtype(part)

    def _read(self, start: int, box: tuple[slice, ...]) -> NDArray:
        """A box of the segment that begins at byte `start`."""
        dtype, sides = self._layout.dtype, self._layout.segment
        lengths = [side.stop - side.start for side in box]
        part = np.empty(lengths, dtype)
        axis = 2  # the box spans all axes after this one, so along it the bytes are contiguous
        while axis > 0 and lengths[axis] == sides[axis]:
            axis -= 1
        steps = [dtype.itemsize * math.prod(sides[a + 1 :]) for a in range(3)]
        first = start + sum(side.start * step for side, step in zip(box, steps, strict=True))
        numbers, size = memoryview(part.reshape(-1).view(np.uint8).data), dtype.itemsize * math.prod(lengths[axis:])
        for number, position in enumerate(np.ndindex(*lengths[:axis])):
            offset = first + sum(a * step for a, step in zip(position, steps, strict=False))
            self._fill(numbers[number * size : (number + 1) * size], offset)
        return part

    def _fill(self, piece: memoryview, offset: int) -> None:
        while len(piece):
            try:
                count = os.preadv(self._descriptor, [piece], offset)
            except OSError as error:  # an I/O error of a disk or server
                raise BadImage(error.strerror or type(error).__name__) from error
            if count <= 0:
                raise BadImage("cut off while it was read")
            piece, offset = piece[count:], offset + count


@runtime_checkable
class HasStoredImages(Protocol):
    """A source with images of which a crop may be readable without decoding the whole."""

    def stored_image(self, index: int) -> StoredImage | None:
        """The image in its file; None where it is small, or must be decoded whole. Raises BadImage."""
        ...


def can_read_regions(source: object, index: int) -> bool:
    """Whether crops of an image can be read without decoding the whole."""
    try:
        return stored_image_of(source, index) is not None
    except BadImage:  # reported when it is read
        return False


def stored_image_of(source: object, index: int) -> StoredImage | None:
    """`stored_image` of any source; None where it has no such images."""
    return source.stored_image(index) if isinstance(source, HasStoredImages) else None


class Readable(Protocol):
    """A source of images."""

    def read(self, index: int) -> NDArray: ...


def open_pixels(source: Readable, index: int) -> Pixels:
    """An image to crop from: lazily read where that is possible, else decoded.

    Raises BadImage, see `Source.read`.
    """
    stored = stored_image_of(source, index)
    return source.read(index) if stored is None else stored


def open_stored_image(file: BinaryIO, max_pixels: int, axes: str | None, rule: Nodata | None) -> StoredImage | None:
    """The image of an opened file; None where it is small, or must be decoded whole.

    Args:
        axes, rule: see `read_npy`.
    """
    try:
        head = file.read(len(NPY))
        find = _npy_layout if head.startswith(NPY) else _tiff_layout if head.startswith(TIFF_SIGNATURES) else None
        layout = None if find is None else find(file, max_pixels, axes, rule)
    except Exception:  # decoding the whole image reports what is wrong
        return None
    return None if layout is None or math.prod(layout.shape[:2]) <= LARGE_PIXELS else StoredImage(file, layout)


def _npy_layout(file: BinaryIO, max_pixels: int, axes: str | None, rule: Nodata | None) -> Layout | None:
    header = read_npy_header(file, max_pixels, axes)
    if header.dtype.name not in ("uint8", "uint16") or (rule is not None and rule.may_match(header.dtype)):
        return None
    (a, b, c), order = (*header.shape, 1)[:3], header.order(axes)
    if header.is_fortran or order[0] > order[1]:  # columns lie in one piece, and resizing goes by rows
        return None
    return Layout(header.dtype, header.sides(axes), (a, b, c), order, np.array([[header.start]]))


def _tiff_layout(file: BinaryIO, max_pixels: int, axes: str | None, rule: Nodata | None) -> Layout | None:
    with open_tiff(file) as tiff:
        pages = full_pages(tiff, max_pixels)
        page, bits = pages[0], pages[0].bitspersample
        if len(pages) > 1 or tiff.is_imagej or not _is_plain(page):
            return None
        dtype = np.dtype(f"{tiff.byteorder}u{bits // 8}")
        if rule is not None and rule.may_match(dtype, gdal_nodata_of(page, page)):
            return None
        height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
        tall = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
        wide = page.tilewidth if page.is_tiled else width
        grid = (-(-height // tall), -(-width // wide))
        offsets = np.array(page.dataoffsets, np.int64).reshape(grid)
        lengths = np.full(grid, tall)
        if not page.is_tiled:
            lengths[-1] = height - tall * (grid[0] - 1)
        counts = lengths * wide * channels * dtype.itemsize
        is_whole = (np.array(page.databytecounts).reshape(grid) == counts).all()
        if not is_whole or offsets.min() <= 0 or (offsets + counts).max() > file.seek(0, os.SEEK_END):
            return None
        return Layout(dtype, (height, width, channels), (tall, wide, channels), (0, 1, 2), offsets)


def _is_plain(page: Any) -> bool:
    """Whether the values in the file are the image's: integers without compression, alpha or another orientation."""
    return (
        page.compression == _UNCOMPRESSED
        and page.predictor == _NO_PREDICTOR
        and page.fillorder == _MSB_FIRST
        and page.photometric in (BLACK_IS_ZERO, RGB)
        and page.sampleformat == UNSIGNED_INTEGER
        and page.bitspersample in (8, 16)
        and page.axes in ("YX", "YXS")
        and not is_alpha(page.extrasamples)
        and page.tags.valueof(ORIENTATION, default=1) == 1  # the first row is the top, the first column the left
        and (ORIENTATION in page.tags or _XMP not in page.tags)  # without the tag Pillow takes the XMP's orientation
    )
