"""A detector's small mask pasted into its image."""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from openmae.data.coco.run_lengths import RunLengths, encoded

MASK_THRESHOLD = 0.5


def pasted(mask: Float[Tensor, "m m"], box: NDArray[np.float64], size: tuple[int, int]) -> RunLengths:
    """A detector's mask resampled into its box: the pixels where it is at least a half.

    Bilinear between the centres of the mask's cells, and falling to zero at half a cell outside, as zero padding would.

    Args:
        mask: how likely each cell of the box belongs to the object, on the CPU.
        box: left, top, right, bottom in pixels of the image, within it.
        size: height and width of the image.
    """
    left, top, right, bottom = box.tolist()
    # Pixels whose centres lie in the box; outside it the mask is below a half everywhere.
    columns = range(*(int(np.ceil(edge - 0.5)) for edge in (left, right)))
    rows = range(*(int(np.ceil(edge - 0.5)) for edge in (top, bottom)))
    down, across = _weights(rows, top, bottom, len(mask)), _weights(columns, left, right, len(mask))
    crop = (down @ mask.float() @ across.T) >= MASK_THRESHOLD
    return encoded(crop.numpy(), columns.start, rows.start, size)


def _weights(pixels: range, low: float, high: float, cells: int) -> Float[Tensor, "p m"]:
    """How much each cell of a mask counts for each pixel, along one side of its box."""
    centres = torch.arange(pixels.start, pixels.stop, dtype=torch.float64) + 0.5
    places = (centres - low) / (high - low) * cells - 0.5 if len(pixels) else centres
    return (1 - (places[:, None] - torch.arange(cells)).abs()).clamp(min=0).float()
