"""How large an image is, from the header of its file: no pixel is decoded."""

import io
import os
import sys
import warnings
from typing import Any, BinaryIO

from PIL import ExifTags, Image

from openmae.data.jpeg import read_header
from openmae.data.npy import CHANNELS_LAST, NPY, read_npy_header
from openmae.data.pillow import FORMATS, orientation_of
from openmae.data.pixels import MAX_PIXELS, BadImage, check_size
from openmae.data.tiff import TIFF, open_tiff

_HEAD = 16_384  # bytes that hold the header of a .npy and of most JPEGs
_PNG, _END = b"\x89PNG\r\n\x1a\n", b"IEND"
_PNG_SAYS = (b"IHDR", b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks in which Pillow looks for an orientation
_LONGEST_CHUNK = 16 << 20
_NO_PIXELS = b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82"
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange rows and columns


def read_size(file: BinaryIO, max_pixels: int = MAX_PIXELS, axes: str | None = CHANNELS_LAST) -> tuple[int, int]:
    """Height and width in pixels of the image that `decode` would give for this file, which is read from its start.

    Args:
        axes: as of `decode`.

    Raises BadImage where the header says none, or one that is not taken.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(PIL|tifffile|openmae\.data)\b")
            height, width, orientation = _read(file, axes)
    except BadImage:
        raise
    except Exception as error:  # of whatever library
        raise BadImage(f"no header that can be read: {type(error).__name__}") from error
    check_size(height, width, 1, max_pixels)
    return (width, height) if orientation in _TURNED else (height, width)


def _read(file: BinaryIO, axes: str | None) -> tuple[int, int, int]:
    """Height, width and orientation as they stand in the file."""
    head = file.read(_HEAD)
    file.seek(0)
    if head.startswith(NPY):
        header = read_npy_header(file, sys.maxsize, axes)  # who asks checks the size
        height, width, _ = header.sides(axes)
        return height, width, 1
    if head.startswith(TIFF):
        with open_tiff(file) as tiff:
            pages: Any = tiff.pages
            page = next((page for page in pages if not page.is_reduced), None)  # no thumbnail
            if page is None:
                raise BadImage("TIFF without a full-size page")
            return page.imagelength, page.imagewidth, page.tags.valueof(274, default=1)
    jpeg = read_header(head)
    if jpeg is not None and jpeg.is_bare:
        return jpeg.height, jpeg.width, 1
    with Image.open(file, formats=FORMATS) as image:
        orientation = _png_orientation(file) if head.startswith(_PNG) else orientation_of(image)
        return image.height, image.width, orientation


def _png_orientation(file: BinaryIO) -> int:
    """Where Pillow finds it, also behind the pixels, which it would decode to get there: here they are stepped over."""
    file.seek(len(_PNG))
    said = list[bytes]()
    while len(start := file.read(8)) == 8:
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        if kind in _PNG_SAYS and length <= _LONGEST_CHUNK:
            said.append(start + file.read(length + 4))
        elif kind == _END:
            break
        else:
            file.seek(length + 4, os.SEEK_CUR)
    if len(said) < 2:  # the IHDR alone, as of most
        return 1
    try:
        with Image.open(io.BytesIO(b"".join([_PNG, *said, _NO_PIXELS])), formats=("PNG",)) as image:
            return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))  # PNG's own would load pixels
    except Exception:  # as in `orientation_of`: a damaged block says nothing
        return 1
