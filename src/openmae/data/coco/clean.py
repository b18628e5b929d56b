"""From what a COCO file says to objects that can be trained on and measured: boxes checked and clipped, areas known."""

import numpy as np
from numpy.typing import NDArray

from openmae.data.coco.objects import Objects
from openmae.data.coco.remarks import Remarks
from openmae.data.coco.shapes import area_of, run_lengths
from openmae.data.coco.table import Table
from openmae.errors import RequestError, shown

_MIN_SUSPECTED = 8  # boxes: fewer may lie anywhere by chance
_CORNER_SHARE, _BEYOND_SHARE = 0.98, 0.25
_TOLERANCE = 1.0  # pixels that a box may reach beyond its image without being counted as clipped


def check_format(file: str, table: Table, sizes: NDArray[np.int64]) -> None:
    """Raise RequestError where the boxes seem to be written in another way than COCO's.

    Args:
        file: for messages.
        sizes: (n, 2) height and width of each image; 0 where it cannot be used.
    """
    own = sizes[table.owners]
    is_known = np.isfinite(table.boxes).all(axis=1) & (own[:, 0] > 0)
    boxes, (heights, widths) = table.boxes[is_known], own[is_known].T
    if len(boxes) < _MIN_SUSPECTED:
        return
    are_shares = (boxes >= 0).all() and (boxes <= 1).all() and min(heights.min(), widths.min()) > 2
    left, top, width, height = boxes.T
    are_corners = np.mean((width > left) & (height > top)) >= _CORNER_SHARE
    is_beyond = (left + width > widths + _TOLERANCE) | (top + height > heights + _TOLERANCE)
    fit_as_corners = np.mean((width <= widths + _TOLERANCE) & (height <= heights + _TOLERANCE)) >= _CORNER_SHARE
    example = ", ".join(f"{value:g}" for value in boxes[int(np.argmax(is_beyond))].tolist())
    if are_shares:
        raise RequestError(
            f"{file}: no number of its {len(boxes):,} boxes is above 1 (the first: {example}): they seem to be shares "
            "of the images' sides; COCO's bbox is [left, top, width, height] in pixels, so multiply them by these"
        )
    if are_corners and fit_as_corners and np.mean(is_beyond) >= _BEYOND_SHARE:
        raise RequestError(
            f"{file}: {np.mean(is_beyond):.0%} of its {len(boxes):,} boxes reach beyond their images (such as "
            f"{example}), and none would as left, top, right, bottom: COCO's bbox is [left, top, width, height], so "
            "subtract left from the third number and top from the fourth"
        )


def clean(table: Table, sizes: NDArray[np.int64], remarks: Remarks, boxes_only: bool) -> tuple[Objects, list[str]]:
    """The objects of images that can be used, the boxes clipped to their images, the areas filled in.

    Args:
        sizes: (n, 2) height and width of each image as it is read; 0 where it cannot be used, its objects are left out.
        remarks: is told what was dropped or clipped.
        boxes_only: leave the segmentations out.

    Returns:
        The objects, and the names of those that are no crowds and have no segmentation.
    """
    own = sizes[table.owners].astype(np.float64)
    is_used = own[:, 0] > 0
    boxes = table.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    limits = np.tile(own[:, ::-1], 2)  # width, height, width, height
    clipped = np.minimum(np.maximum(boxes, 0), limits)
    with np.errstate(invalid="ignore"):
        is_flat = ~((table.boxes[:, 2] > 0) & (table.boxes[:, 3] > 0))
        is_outside = ~((clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1]))
        is_beyond = (np.abs(boxes - clipped) > _TOLERANCE).any(axis=1)
    is_unknown = ~np.isfinite(boxes).all(axis=1)
    is_other_size = np.array([_has_other_size(s, size) for s, size in zip(table.segmentations, own, strict=True)], bool)
    dropped = table.is_wrong.copy()  # which remarks were told of
    for is_so, kind in (
        (is_unknown, "objects without a box of four numbers, dropped"),
        (is_flat, "boxes without width or height, dropped"),
        (is_outside, "boxes wholly outside of their images, dropped"),
        (is_other_size, "run lengths that do not make up their image, dropped with their objects"),
        (is_beyond, "boxes that reach beyond their images, clipped"),
    ):
        found = is_so & is_used & ~dropped
        for position in np.flatnonzero(found).tolist():
            remarks.add(kind, table.name(position))
        if is_so is not is_beyond:
            dropped |= found
    kept = np.flatnonzero(is_used & ~dropped)
    areas = table.areas.copy()
    for position in kept[np.isnan(areas[kept])].tolist():
        left, top, right, bottom = clipped[position].tolist()
        segmentation, (height, width) = table.segmentations[position], sizes[table.owners[position]].tolist()
        box_area = (right - left) * (bottom - top)
        areas[position] = area_of(segmentation, (height, width)) if segmentation else box_area
    without = [table.name(i) for i in kept.tolist() if not table.is_crowd[i] and table.segmentations[i] is None]
    objects = Objects.from_arrays(
        len(sizes),
        table.owners[kept],
        clipped[kept],
        table.labels[kept],
        table.is_crowd[kept],
        areas[kept],
        None if boxes_only else [table.segmentations[i] for i in kept.tolist()],
    )
    return objects, [shown(name) for name in without]


def _has_other_size(segmentation: object, size: NDArray[np.float64]) -> bool:
    """Whether run lengths are of another size than the image, or do not make up their own."""
    if not isinstance(segmentation, dict) or size[0] == 0:
        return False
    return segmentation["size"] != size.tolist() or run_lengths(segmentation) is None
