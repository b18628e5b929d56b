"""Masks of objects as COCO's compressed run lengths."""

from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

RunLengths = dict[str, Any]  # {"size": [height, width], "counts": str}, as COCO's results have them


def run_lengths_of(segmentation: Any, size: tuple[int, int]) -> RunLengths:
    """The run lengths of a segmentation of a COCO file: polygons, or run lengths, compressed or not.

    Args:
        size: height and width of the image.
    """
    from faster_coco_eval.core import mask as coco_masks

    height, width = size
    if isinstance(segmentation, list):
        # Far beyond the image nothing changes, but the library takes time and memory for the whole outline.
        low, high = -2.0 * max(size) - 2, 3.0 * max(size) + 2
        polygons = [np.clip(polygon, low, high).tolist() for polygon in segmentation]
        coded = coco_masks.merge(coco_masks.frPyObjects(polygons, height, width))
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


def _as_json(coded: dict[str, Any]) -> RunLengths:
    """With text in place of bytes, which JSON does not have."""
    counts = coded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in coded["size"]], "counts": text}
