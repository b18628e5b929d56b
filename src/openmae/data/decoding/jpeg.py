"""Plain JPEGs, decoded by libjpeg-turbo without Pillow: the same pixels in three quarters of the time.

Everything unusual is left to Pillow, which also reports errors: None never means that an image is bad.
"""

from typing import NamedTuple

import numpy as np
import simplejpeg

JPEG = b"\xff\xd8\xff"  # how such a file begins
_SOI, _SOS, _SOF_BASELINE, _SOF_PROGRESSIVE, _APP0 = 0xD8, 0xDA, 0xC0, 0xC2, 0xE0
_QUANTISATION, _HUFFMAN, _RESTART, _COMMENT = 0xDB, 0xC4, 0xDD, 0xFE
# Segments that affect only the pixels; ICC profiles (APP2) are frequent, and no loader applies them.
_PLAIN = frozenset((_QUANTISATION, _HUFFMAN, _RESTART, _COMMENT))
_ICC = b"ICC_PROFILE\0"


class JpegHeader(NamedTuple):
    """The segments before the first scan.

    `is_bare`: there is no segment (EXIF, XMP, Photoshop, Adobe) that may turn or recolour the image, so that Pillow
    is not needed for it.
    """

    height: int
    width: int
    components: int
    is_bare: bool


def read_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG of the plain kind: 8 bits, Huffman-coded, baseline or progressive, 1 or 3 components.

    None for everything else, and for what is no JPEG.
    """
    if not data.startswith(JPEG):
        return None
    offset, frame, is_bare = 2, None, True
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker, length = data[offset + 1], (data[offset + 2] << 8) + data[offset + 3]
        body = offset + 4
        if marker == _SOS:
            return None if frame is None else JpegHeader(*frame, is_bare)
        if length < 2 or offset + 2 + length > len(data):
            return None
        if marker in (_SOF_BASELINE, _SOF_PROGRESSIVE):
            if frame is not None or length < 8 or data[body] != 8 or data[body + 5] not in (1, 3):
                return None
            height, width = (data[body + 1] << 8) + data[body + 2], (data[body + 3] << 8) + data[body + 4]
            if length != 8 + 3 * data[body + 5] or not height or not width:
                return None
            frame = (height, width, data[body + 5])
        elif marker == _APP0:
            is_bare &= data[body : body + 5] == b"JFIF\0" and length >= 16
        elif marker == _APP0 + 2:
            if data[body : body + len(_ICC)] != _ICC:  # MPF: several pictures in one file
                return None
        elif _APP0 < marker <= _APP0 + 15:
            is_bare = False
        elif marker not in _PLAIN:
            return None
        offset += 2 + length
    return None


def decode_plain(data: bytes, components: int) -> np.ndarray | None:
    """H x W x C uint8 of a JPEG with a `read_header`; equal to Pillow's, bit for bit. C is 1 or 3.

    None where libjpeg warns (truncated, damaged), or where it takes the colours for other than YCbCr.
    """
    try:
        if simplejpeg.decode_jpeg_header(data, strict=True)[2] != ("Gray" if components == 1 else "YCbCr"):
            return None
        # The slow, exact DCT and upsampling: the fast ones gain 2 % and are up to 55 grey levels off.
        return simplejpeg.decode_jpeg(data, "GRAY" if components == 1 else "RGB", strict=True)
    except ValueError:
        return None
