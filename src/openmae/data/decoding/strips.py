"""Pixelwise operations in strips of rows: the same result in a fraction of the memory."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

STRIP_PIXELS = 1 << 17  # few enough that a strip's intermediate numbers stay in a core's cache


def strips(height: int, width: int) -> Iterator[slice]:
    """The rows of an image in consecutive slices of at least one row."""
    rows = max(1, STRIP_PIXELS // max(1, width))
    return (slice(start, min(start + rows, height)) for start in range(0, height, rows))


def in_strips(shape: Sequence[int], function: Callable[[slice], NDArray]) -> NDArray:
    """Concatenate what `function` returns for the rows of each strip, (rows, W, C): (H, W, C).

    Args:
        shape: height and width, what follows is ignored.
    """
    (height, width), whole = shape[:2], None
    for rows in strips(height, width):
        strip = function(rows)
        if rows.stop - rows.start == height:
            return strip
        if whole is None:
            whole = np.empty((height, *strip.shape[1:]), strip.dtype)
        whole[rows] = strip
    assert whole is not None
    return whole
