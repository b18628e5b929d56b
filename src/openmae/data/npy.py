"""NumPy's `.npy` files, read without the reader that unpickles."""

import math
from ast import literal_eval
from typing import NamedTuple

import numpy as np

from openmae.data.pixels import BadImage, as_known_type, check_size

NPY = b"\x93NUMPY"  # how such a file begins
CHANNELS_FIRST, CHANNELS_LAST = "CYX", "YXC"
CLEARLY = 4  # times smaller than the others is the axis that holds the channels


class Header(NamedTuple):
    """What a `.npy` says of itself; the numbers begin at `start`."""

    dtype: np.dtype
    shape: tuple[int, ...]
    is_fortran: bool
    start: int

    def order(self, axes: str | None) -> tuple[int, int, int]:
        """At which axes height, width and channels stand; channels at 2 where there are but two.

        Args:
            axes: C, Y and X in the order of three axes; None: by the shape. Raises BadImage where that does not tell.
        """
        if len(self.shape) == 2:
            return 0, 1, 2
        axes = evident_order(self.shape) if axes is None else axes
        if axes is None:
            what = " x ".join(map(str, self.shape))
            raise BadImage(f"{what}: which axis holds the channels is not clear (--axes CYX says it)")
        return axes.index("Y"), axes.index("X"), axes.index("C")


def read_npy(data: bytes, max_pixels: int, axes: str | None = "YXC") -> np.ndarray:
    """H x W x C of a `.npy` file of real numbers, of two axes (H x W) or of three in the order that `axes` says.

    Integers other than uint8 and uint16 become uint16 (by type and not by value, so one folder has one range) and
    must fit.

    Args:
        axes: C, Y and X in some order; None: by the shape, where that tells.

    Raises BadImage for what is not taken, and what the parser or NumPy raises for all else.
    """
    header = read_npy_header(data)
    dtype, shape, order = header.dtype, header.shape, header.order(axes)
    height, width, channels = (shape[axis] if axis < len(shape) else 1 for axis in order)
    check_size(height, width, channels, max_pixels)
    count = math.prod(shape)
    if len(data) - header.start < count * dtype.itemsize:
        raise BadImage(f".npy cut off: {len(data) - header.start} bytes of {count * dtype.itemsize}")
    flat = np.frombuffer(data, dtype, count, header.start)
    array = flat.reshape(shape, order="F" if header.is_fortran else "C")
    array = (array[..., None] if array.ndim == 2 else array).transpose(order)
    if dtype.kind in "iu" and dtype.name not in ("uint8", "uint16"):
        if array.min() < 0 or array.max() > 65535:
            raise BadImage(f"{dtype.name} values that do not fit 0..65535: save as uint16 or float32")
        return array.astype(np.uint16)
    return as_known_type(array)


def shape_of(data: bytes) -> tuple[int, ...] | None:
    """The shape that a file's first bytes say; None where they are no header that is read here."""
    try:
        return read_npy_header(data).shape
    except Exception:  # whoever reads the file says what is wrong with it
        return None


def read_npy_header(data: bytes) -> Header:
    """Parse the header ourselves, as a literal: no pickle is ever reached, no size is believed before it is checked.

    Args:
        data: the file's first 10,000 bytes, or more of it.

    Raises BadImage for what is not taken, and what the parser or NumPy raises for all else.
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
    shape = header["shape"]
    if not (isinstance(shape, tuple) and all(isinstance(side, int) for side in shape)):
        raise BadImage(".npy with a shape that is none")
    if len(shape) not in (2, 3):
        raise BadImage(f".npy of {len(shape)} dimensions, expected H x W or H x W x C")
    return Header(np.dtype(header["descr"]), shape, bool(header["fortran_order"]), start)


def evident_order(shape: tuple[int, ...]) -> str | None:
    """CYX where the first of three axes is the smallest by at least 4 times, YXC where the last is; else None."""
    first, second, third = shape
    if CLEARLY * first <= min(second, third):
        return CHANNELS_FIRST
    return CHANNELS_LAST if CLEARLY * third <= min(first, second) else None
