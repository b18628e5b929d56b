"""NumPy's `.npy` files, read without the reader that unpickles."""

import math
from ast import literal_eval

import numpy as np

from openmae.data.pixels import BadImage, as_known_type, check_size

NPY = b"\x93NUMPY"  # how such a file begins


def read_npy_header(data: bytes) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Number type, shape, whether the first axis runs fastest, and where the numbers begin.

    We parse the header ourselves, as a literal: no pickle is ever reached and no size is believed before it is checked.

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
    if len(shape) not in (2, 3):
        raise BadImage(f".npy of {len(shape)} dimensions, expected H x W or H x W x C")
    return np.dtype(header["descr"]), shape, header["fortran_order"], start


def read_npy(data: bytes, max_pixels: int) -> np.ndarray:
    """H x W x C of a `.npy` file of H x W or H x W x C real numbers.

    Integers other than uint8 and uint16 become uint16 (by type and not by value, so one folder has one range) and
    must fit.

    Raises BadImage for what is not taken, and what the parser or NumPy raises for all else.
    """
    dtype, shape, is_fortran, start = read_npy_header(data)
    check_size(shape[0], shape[1], math.prod(shape[2:]), max_pixels)
    count = math.prod(shape)
    if len(data) - start < count * dtype.itemsize:
        raise BadImage(f".npy cut off: {len(data) - start} bytes of {count * dtype.itemsize}")
    array = np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if is_fortran else "C")
    array = array[..., None] if array.ndim == 2 else array
    if dtype.kind in "iu" and dtype.name not in ("uint8", "uint16"):
        if array.min() < 0 or array.max() > 65535:
            raise BadImage(f"{dtype.name} values that do not fit 0..65535: save as uint16 or float32")
        return array.astype(np.uint16)
    return as_known_type(array)
