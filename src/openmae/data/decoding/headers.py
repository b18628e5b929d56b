"""Size and number type of an image from the header of its file, without decoding."""

import io
import math
import os
import sys
import warnings
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

from PIL import ExifTags, Image

from openmae.config.checks import MAX_PIXELS
from openmae.data.decoding.jpeg import read_header as read_jpeg_header
from openmae.data.decoding.npy import CHANNELS_LAST, NPY, read_npy_header
from openmae.data.decoding.pillow import FORMATS, is_deep_png, orientation_of
from openmae.data.decoding.pixels import MAX_CHANNELS, BadImage, check_size
from openmae.data.decoding.tiff import ORIENTATION, TIFF_SIGNATURES, open_tiff

_HEAD = 16_384  # bytes that hold the header of a .npy and of most JPEGs
_PNG, _END = b"\x89PNG\r\n\x1a\n", b"IEND"
_PNG_METADATA = (b"IHDR", b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks in which Pillow looks for an orientation
_MAX_CHUNK = 16 << 20
_NO_PIXELS = b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82"
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange rows and columns
_BYTES = {"I": 4, "F": 4}  # of a value, by Pillow's mode; modes that begin with I;16 have 2


class Header(NamedTuple):
    """Size and number type of an image, as the header of its file gives them.

    Attributes:
        height, width: in pixels, before the orientation is applied.
        channels: alpha counts; of a palette image, those of its colours.
        value_bytes: bytes of a decoded value.
        orientation: EXIF orientation, 1..8.
    """

    height: int
    width: int
    channels: int
    value_bytes: int
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return (self.width, self.height) if self.orientation in _TURNED else (self.height, self.width)

    @property
    def decoded_bytes(self) -> int:
        return math.prod(self[:4])


def read_size(file: BinaryIO, max_pixels: int = MAX_PIXELS, axes: str | None = CHANNELS_LAST) -> tuple[int, int]:
    """Height and width in pixels of the image that `decode` would give, as `read_header` finds them."""
    return read_header(file, max_pixels, axes).size


def read_header(file: BinaryIO, max_pixels: int = MAX_PIXELS, axes: str | None = CHANNELS_LAST) -> Header:
    """The header of the image that `decode` would return; the file is read from its start.

    Args:
        axes: see `decode`.

    Raises BadImage where the header cannot be read, or its size is beyond the limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(PIL|tifffile|openmae\.data)\b")
            header = _read(file, axes)
    except BadImage:
        raise
    except Exception as error:  # of whatever library
        raise BadImage(f"no header that can be read: {type(error).__name__}") from error
    check_size(header.height, header.width, 1, max_pixels)
    return header


def _read(file: BinaryIO, axes: str | None) -> Header:
    head = file.read(_HEAD)
    file.seek(0)
    if head.startswith(NPY):
        header = read_npy_header(file, sys.maxsize, axes)  # the caller checks the size
        return Header(*header.sides(axes), header.dtype.itemsize)
    if head.startswith(TIFF_SIGNATURES):
        with open_tiff(file) as tiff:
            pages: Any = islice(tiff.pages, MAX_CHANNELS + 1)  # an image of more is not decoded
            full = [page for page in pages if not page.is_reduced]  # no thumbnail
            if not full:
                raise BadImage("TIFF without a full-size page")
            page, channels = full[0], full[0].samplesperpixel * len(full)
            sides, value_bytes = (page.imagelength, page.imagewidth), -(-page.bitspersample // 8)
            return Header(*sides, channels, value_bytes, page.tags.valueof(ORIENTATION, default=1))
    jpeg = read_jpeg_header(head)
    if jpeg is not None and jpeg.is_bare:
        return Header(jpeg.height, jpeg.width, jpeg.components, 1)
    is_deep = is_deep_png(file)
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
        orientation = _png_orientation(file) if head.startswith(_PNG) else orientation_of(image)
        value_bytes = 2 if is_deep or image.mode.startswith("I;16") else _BYTES.get(image.mode, 1)
        channels = 3 if image.mode == "P" else len(image.getbands())
        return Header(image.height, image.width, channels, value_bytes, orientation)


def _png_orientation(file: BinaryIO) -> int:
    """The orientation that Pillow finds, also behind the pixels, which are skipped here and not decoded."""
    file.seek(len(_PNG))
    chunks = list[bytes]()
    while len(start := file.read(8)) == 8:
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        if kind in _PNG_METADATA and length <= _MAX_CHUNK:
            chunks.append(start + file.read(length + 4))
        elif kind == _END:
            break
        else:
            file.seek(length + 4, os.SEEK_CUR)
    if len(chunks) < 2:  # only IHDR, as in most files
        return 1
    try:
        with Image.open(io.BytesIO(b"".join([_PNG, *chunks, _NO_PIXELS])), formats=("PNG",)) as image:
            return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))  # PNG's own would load pixels
    except Exception:  # as in `orientation_of`: a damaged block says nothing
        return 1
