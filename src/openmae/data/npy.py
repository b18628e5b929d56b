"""NumPy's `.npy` files, read without the reader that unpickles."""

import math
from ast import literal_eval
from typing import BinaryIO, NamedTuple

import numpy as np

from openmae.data.pixels import BadImage, as_known_type, check_size

NPY = b"\x93NUMPY"  # how such a file begins


class NpyHeader(NamedTuple):
    """What the array is, and at which byte it begins."""

    dtype: np.dtype
    shape: tuple[int, ...]
    is_fortran: bool
    start: int

    @property
    def is_narrowed(self) -> bool:
        """Whether these are integers that become uint16."""
        return self.dtype.kind in "iu" and self.dtype.name not in ("uint8", "uint16")


def read_npy_header(file: BinaryIO, max_pixels: int) -> NpyHeader:
    """The checked header of a `.npy` file of H x W or H x W x C real numbers, all of which the file holds.

    We parse it ourselves, as a literal: no pickle is ever reached and no size is believed before it is checked.

    Raises BadImage for what is not taken, and what the parser raises for all else.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(10_000)  # NumPy's own bound on a header it parses
    version, width = head[6], 2 if head[6] == 1 else 4
    if version not in (1, 2):
        raise BadImage(f".npy of version {version}, expected 1 or 2")
    start = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    if start > len(head):
        raise BadImage(".npy with a header that is cut off or too long")
    header = literal_eval(head[8 + width : start].decode("latin-1").strip())
    if not isinstance(header["descr"], str) or np.dtype(header["descr"]).kind not in "biuf":
        raise BadImage(".npy of something other than plain numbers")
    dtype, shape = np.dtype(header["descr"]), header["shape"]
    if len(shape) not in (2, 3):
        raise BadImage(f".npy of {len(shape)} dimensions, expected H x W or H x W x C")
    check_size(shape[0], shape[1], math.prod(shape[2:]), max_pixels)
    count = math.prod(shape)
    if size - start < count * dtype.itemsize:
        raise BadImage(f".npy cut off: {size - start} bytes of {count * dtype.itemsize}")
    return NpyHeader(dtype, tuple(shape), bool(header["fortran_order"]), start)


def read_npy(file: BinaryIO, max_pixels: int) -> np.ndarray:
    """H x W x C of a `.npy` file of H x W or H x W x C real numbers.

    Integers other than uint8 and uint16 become uint16 (by type and not by value, so one folder has one range) and
    must fit.

    Raises BadImage for what is not taken, and what the parser or NumPy raises for all else.
    """
    header = read_npy_header(file, max_pixels)
    numbers = np.empty(math.prod(header.shape), header.dtype)
    file.seek(header.start)
    if file.readinto(numbers.view(np.uint8)) != numbers.nbytes:  # type: ignore[attr-defined]
        raise BadImage(".npy cut off while it was read")
    array = numbers.reshape(header.shape, order="F" if header.is_fortran else "C")
    return as_image(array[..., None] if array.ndim == 2 else array, header)


def as_image(array: np.ndarray, header: NpyHeader) -> np.ndarray:
    """H x W x C of a known type. Raises BadImage for integers that do not fit into uint16."""
    if header.is_narrowed:
        if array.min() < 0 or array.max() > 65535:
            raise BadImage(f"{header.dtype.name} values that do not fit 0..65535: save as uint16 or float32")
        return array.astype(np.uint16)
    return as_known_type(array)
