"""NumPy's `.npy` files, read without NumPy's own reader, which may unpickle."""

import math
from ast import literal_eval
from typing import BinaryIO, NamedTuple

import numpy as np

from openmae.data.decoding.nodata import Nodata, attach_mask, zero_masked
from openmae.data.decoding.pixels import BadImage, check_size, to_supported_dtype

NPY = b"\x93NUMPY"  # how such a file begins
CHANNELS_FIRST, CHANNELS_LAST = "CYX", "YXC"
MAX_HEADER_LENGTH = 10_000  # NumPy's own bound on a header it parses
CLEARLY = 4  # the channel axis must be this many times smaller than the others


class NpyHeader(NamedTuple):
    """Type and shape of the array, and the byte at which it begins."""

    dtype: np.dtype
    shape: tuple[int, ...]
    is_fortran: bool
    start: int

    @property
    def is_narrowed(self) -> bool:
        """Whether these are integers that become uint16."""
        return self.dtype.kind in "iu" and self.dtype.name not in ("uint8", "uint16")

    def order(self, axes: str | None) -> tuple[int, int, int]:
        """Which axes are height, width and channels; channels is 2 where there are only two axes.

        Args:
            axes: C, Y and X in the order of three axes; None: inferred from the shape, BadImage where it is ambiguous.
        """
        if len(self.shape) == 2:
            return 0, 1, 2
        axes = evident_order(self.shape) if axes is None else axes
        if axes is None:
            what = " x ".join(map(str, self.shape))
            raise BadImage(f"{what}: which axis holds the channels is not clear (--axes CYX says it)")
        return axes.index("Y"), axes.index("X"), axes.index("C")

    def sides(self, axes: str | None) -> tuple[int, int, int]:
        """Height, width and channels. Raises BadImage as `order` does."""
        height, width, channels = ((*self.shape, 1)[axis] for axis in self.order(axes))
        return height, width, channels


def shape_of(head: bytes) -> tuple[int, ...] | None:
    """The shape from a file's first bytes; None where they are no supported header."""
    try:
        return _parsed(head).shape
    except Exception:  # reported when the file is read
        return None


def read_npy_header(file: BinaryIO, max_pixels: int, axes: str | None = CHANNELS_LAST) -> NpyHeader:
    """The checked header of a `.npy` of real numbers with two or three axes; the file is long enough for all of them.

    Args:
        axes: see `read_npy`.

    Raises BadImage for an unsupported array, and whatever the parser raises.
    """
    size = file.seek(0, 2)
    file.seek(0)
    header = _parsed(file.read(MAX_HEADER_LENGTH))
    check_size(*header.sides(axes), max_pixels)
    num_bytes = math.prod(header.shape) * header.dtype.itemsize
    if size - header.start < num_bytes:
        raise BadImage(f".npy cut off: {size - header.start} bytes of {num_bytes}")
    return header


def _parsed(head: bytes) -> NpyHeader:
    """Parse the header ourselves, as a literal: no pickle is ever reached, no size is believed before it is checked."""
    version, width = head[6], 2 if head[6] == 1 else 4
    if version not in (1, 2):
        raise BadImage(f".npy of version {version}, expected 1 or 2")
    start = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    if start > len(head):
        raise BadImage(".npy with a header that is cut off or too long")
    header = literal_eval(head[8 + width : start].decode("latin-1").strip())
    if not isinstance(header["descr"], str) or np.dtype(header["descr"]).kind not in "biuf":
        raise BadImage(".npy of something other than plain numbers")
    shape = header["shape"]
    if not (isinstance(shape, tuple) and all(isinstance(side, int) for side in shape)):
        raise BadImage(".npy with a shape that is none")
    if len(shape) not in (2, 3):
        raise BadImage(f".npy of {len(shape)} dimensions, expected H x W or H x W x C")
    return NpyHeader(np.dtype(header["descr"]), shape, bool(header["fortran_order"]), start)


def evident_order(shape: tuple[int, ...]) -> str | None:
    """CYX where the first of three axes is the smallest by at least 4 times, YXC where the last is; else None."""
    first, second, third = shape
    if CLEARLY * first <= min(second, third):
        return CHANNELS_FIRST
    return CHANNELS_LAST if CLEARLY * third <= min(first, second) else None


def read_npy(
    file: BinaryIO, max_pixels: int, axes: str | None = CHANNELS_LAST, rule: Nodata | None = None
) -> np.ndarray:
    """H x W x C of a `.npy` file of real numbers, of two axes (H x W) or of three in the order that `axes` says.

    Integers other than uint8 and uint16 become uint16 (by type and not by value, so one folder has one range) and
    must fit.

    Args:
        axes: C, Y and X in some order; None: inferred from the shape.
        rule: which values, as the file holds them, are nodata.

    Raises BadImage for an unsupported array, and whatever the parser or NumPy raises.
    """
    header = read_npy_header(file, max_pixels, axes)
    numbers = np.empty(math.prod(header.shape), header.dtype)
    file.seek(header.start)
    if file.readinto(numbers.view(np.uint8)) != numbers.nbytes:  # type: ignore[attr-defined]
        raise BadImage(".npy cut off while it was read")
    array = numbers.reshape(header.shape, order="F" if header.is_fortran else "C")
    array = (array[..., None] if array.ndim == 2 else array).transpose(header.order(axes))
    mask = None if rule is None else rule.mask(array)
    return attach_mask(as_image(zero_masked(array, mask), header), mask)


def as_image(array: np.ndarray, header: NpyHeader) -> np.ndarray:
    """H x W x C of a known type. Raises BadImage for integers that do not fit into uint16."""
    if header.is_narrowed:
        if array.min() < 0 or array.max() > 65535:
            raise BadImage(f"{header.dtype.name} values that do not fit 0..65535: save as uint16 or float32")
        return array.astype(np.uint16)
    return to_supported_dtype(array)
