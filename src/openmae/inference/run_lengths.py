"""Masks of objects as COCO's compressed run lengths, and a detector's small masks pasted into images as such."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

RunLengths = dict[str, Any]  # {"size": [height, width], "counts": str}, as COCO's results have them
MASK_THRESHOLD = 0.5


def run_lengths_of(segmentation: Any, size: tuple[int, int]) -> RunLengths:
    """The run lengths of a segmentation of a COCO file: polygons, or run lengths, compressed or not.

    Args:
        size: height and width of the image.
    """
    from faster_coco_eval.core import mask as coco_masks

    height, width = size
    if isinstance(segmentation, list):
        coded = coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        coded = coco_masks.frPyObjects(segmentation, height, width)
    else:
        coded = segmentation
    return _as_json(coded)


def box_run_lengths(box: NDArray[np.float64], size: tuple[int, int]) -> RunLengths:
    """A box's rectangle (left, top, right, bottom) as a mask."""
    left, top, right, bottom = box.tolist()
    return run_lengths_of([[left, top, right, top, right, bottom, left, bottom]], size)


def mask_of(run_lengths: RunLengths) -> Bool[np.ndarray, "h w"]:
    """The mask that run lengths stand for."""
    from faster_coco_eval.core import mask as coco_masks

    return np.asarray(coco_masks.decode(run_lengths)).astype(bool)


def encoded(crop: Bool[np.ndarray, "h w"], left: int, top: int, size: tuple[int, int]) -> RunLengths:
    """The run lengths of a mask that is zero outside a crop, whose left upper pixel is given.

    The image itself is never made: an object costs what its own box costs, not what a photograph of 24 megapixels does.
    """
    from faster_coco_eval.core import mask as coco_masks

    height, width = size
    assert 0 <= left <= left + crop.shape[1] <= width and 0 <= top <= top + crop.shape[0] <= height, (left, top, size)
    columns = np.zeros((crop.shape[1], crop.shape[0] + 2), np.int8)  # run lengths go down the columns
    columns[:, 1:-1] = crop.T
    edges = np.diff(columns, axis=1)
    (column, first), (_, last) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    begins, ends = ((left + column) * height + top + row for row in (first, last))
    if len(begins):  # a run that ends at the lower edge goes on where the next column begins at the upper one
        is_apart = begins[1:] != ends[:-1]
        begins, ends = begins[np.r_[True, is_apart]], ends[np.r_[is_apart, True]]
    bounds = np.stack([begins, ends], axis=1).ravel()
    counts = np.diff(bounds, prepend=0, append=height * width)
    counts = counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts
    return _as_json(coco_masks.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width))


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


def _as_json(coded: dict[str, Any]) -> RunLengths:
    """With text in place of bytes, which JSON does not have."""
    counts = coded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in coded["size"]], "counts": text}
