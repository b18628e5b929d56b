"""A detector's small mask pasted into its image."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from openmae.data.coco.run_lengths import RunLengths, encoded

MASK_THRESHOLD = 0.5


def pasted(mask: Float[np.ndarray, "m m"], box: NDArray[np.float64], size: tuple[int, int]) -> RunLengths:
    """A detector's mask resampled into its box: the pixels where it is at least a half.

    Bilinear between the centres of the mask's cells, and falling to zero at half a cell outside, as zero padding would.
    In NumPy, for a hundred small products of torch wait for its threads longer than they compute.

    Args:
        mask: how likely each cell of the box belongs to the object.
        box: left, top, right, bottom in pixels of the image, within it.
        size: height and width of the image.
    """
    left, top, right, bottom = box.tolist()
    # Pixels whose centres lie in the box; outside it the mask is below a half everywhere.
    columns = range(*(int(np.ceil(edge - 0.5)) for edge in (left, right)))
    rows = range(*(int(np.ceil(edge - 0.5)) for edge in (top, bottom)))
    down, across = _weights(rows, top, bottom, len(mask)), _weights(columns, left, right, len(mask))
    crop = (down @ mask @ across.T) >= MASK_THRESHOLD
    return encoded(crop, columns.start, rows.start, size)


def _weights(pixels: range, low: float, high: float, cells: int) -> Float[np.ndarray, "p m"]:
    """How much each cell of a mask counts for each pixel, along one side of its box."""
    if not len(pixels):
        return np.zeros((0, cells), np.float32)
    places = (np.arange(pixels.start, pixels.stop) + 0.5 - low) / (high - low) * cells - 0.5
    weights: NDArray[np.float32] = (1 - abs(places[:, None] - np.arange(cells))).clip(0).astype(np.float32)
    return weights
