"""What all decoders share: size limits, supported number types, alpha compositing, orientation."""

from functools import cache

import numpy as np

from openmae.data.decoding.strips import in_strips

MAX_CHANNELS = 64


class BadImage(Exception):
    """An input cannot be used. The message is one short line without the path, so that equal reasons can be counted."""


def check_size(height: int, width: int, channels: int, max_pixels: int) -> None:
    """Raise BadImage for an image without pixels or beyond the limits, before memory for it is allocated."""
    if min(height, width, channels) < 1:
        raise BadImage(f"no pixels: {height} x {width} x {channels}")
    if height * width > max_pixels or height * width * channels > 4 * max_pixels:
        raise BadImage(f"{height} x {width} x {channels} values, the limit is {max_pixels} pixels (--max-pixels)")
    if channels > MAX_CHANNELS:
        raise BadImage(f"{channels} channels or pages, the limit is {MAX_CHANNELS}")


def to_supported_dtype(array: np.ndarray) -> np.ndarray:
    """Convert a real array to uint8, uint16 or float32 in native byte order; no copy where it is that already.

    Raises BadImage for other types.
    """
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
        array *= np.uint8(255)
        return array
    if array.dtype.kind not in "iuf":
        raise BadImage(f"{array.dtype.name} values, expected uint8, uint16 or float32")
    return array.astype(array.dtype.name if array.dtype.name in ("uint8", "uint16") else np.float32, copy=False)


def composite(array: np.ndarray, background: float, premultiplied: bool = False) -> np.ndarray:
    """Composite H x W x (C + 1), alpha last, on a background: H x W x C of the same dtype.

    Args:
        background: a fraction of the full range.
        premultiplied: the colours are multiplied by alpha already.
    """
    if array[..., -1].min() == _full(array):
        return array[..., :-1]
    return in_strips(array.shape, lambda rows: _composite_rows(array[rows], background, premultiplied))


def _composite_rows(array: np.ndarray, background: float, premultiplied: bool) -> np.ndarray:
    if array.dtype == np.uint8:  # a lookup table of all combinations takes a quarter of the time
        indices = array[..., :-1].astype(np.intp)
        indices += array[..., -1:].astype(np.intp) << 8
        return _table(background, premultiplied).take(indices)
    return _blend(array[..., :-1], array[..., -1:], background, premultiplied)


def _blend(colour: np.ndarray, alpha: np.ndarray, background: float, premultiplied: bool) -> np.ndarray:
    full = _full(colour)
    alpha = alpha.astype(np.float32) / full
    mixed = (colour if premultiplied else colour * alpha) + np.float32(background * full) * (1 - alpha)
    return mixed.astype(np.float32) if colour.dtype.kind == "f" else np.rint(mixed).clip(0, full).astype(colour.dtype)


@cache
def _table(background: float, premultiplied: bool) -> np.ndarray:
    """The blend of 8-bit colour c with alpha a, at index 256 a + c."""
    values = np.arange(256, dtype=np.uint8)
    colour, alpha = np.broadcast_arrays(values, values[:, None])
    return _blend(colour, alpha, background, premultiplied).ravel()


def _full(array: np.ndarray) -> float:
    return 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)


def apply_orientation(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF or TIFF orientation (1..8; anything else counts as 1)."""
    if orientation in (5, 6, 7, 8):  # rows and columns are exchanged
        array = array.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array
