"""The nodata mask of a packed JPEG: bits in comment segments, which all other decoders ignore."""

import zlib

import numpy as np
from numpy.typing import NDArray

from openmae.data.decoding.pixels import BadImage

_SOI, _COMMENT = b"\xff\xd8", b"\xff\xfe"
_NAME = b"openmae-empty\0"
_MAX_LENGTH = 65_533 - len(_NAME)  # bytes in a segment


def with_jpeg_mask(data: bytes, mask: NDArray[np.bool_]) -> bytes:
    """The JPEG with the mask of its H x W x C values inserted after its first marker."""
    packed = zlib.compress(np.packbits(mask).tobytes(), 9)
    pieces = [packed[start : start + _MAX_LENGTH] for start in range(0, len(packed), _MAX_LENGTH)]
    segments = [_COMMENT + (2 + len(_NAME) + len(piece)).to_bytes(2, "big") + _NAME + piece for piece in pieces]
    return _SOI + b"".join(segments) + data[len(_SOI) :]


def has_jpeg_mask(data: bytes) -> bool:
    """Whether a JPEG has a mask."""
    return data[2:4] == _COMMENT and data[6:].startswith(_NAME)


def jpeg_mask(data: bytes, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """The mask in a JPEG's comments for an image of this shape; None where it has none.

    Raises BadImage where the mask is damaged or of another size.
    """
    packed, start = bytearray(), len(_SOI)
    while data[start : start + 2] == _COMMENT and data[start + 4 : start + 4 + len(_NAME)] == _NAME:
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        packed += data[start + 4 + len(_NAME) : start + 2 + length]
        start += 2 + length
    if not packed:
        return None
    count = int(np.prod(shape))
    try:
        bits = zlib.decompressobj().decompress(bytes(packed), -(-count // 8) + 1)
    except zlib.error:
        bits = b""
    if len(bits) != -(-count // 8):
        raise BadImage("a mask of empty values that is damaged")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool).reshape(shape)
