"""Segmentations of objects: polygons and run lengths, checked, measured and rasterised.

Run lengths count the pixels of a mask column by column, first those that are 0. COCO writes them as a list or
compressed: each number in groups of five bits, from the third odd and even one on as differences.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_NUMBERS = 6  # of a polygon: three points
MAX_NUMBER = 1e12  # beyond it nothing in a file means pixels
Mask = NDArray[np.uint8]


def checked_segmentation(segmentation: Any) -> tuple[Any, str]:
    """A segmentation as COCO writes it, and what is wrong with it.

    Returns:
        Polygons as a list of lists, or run lengths; None where there is none, or it is wrong. The reason, empty where
        nothing is wrong; of several polygons those that are wrong are left out.
    """
    if not segmentation:
        return None, ""
    if isinstance(segmentation, dict):
        return (segmentation, "") if _is_run_lengths(segmentation) else (None, "run lengths that cannot be read")
    if not isinstance(segmentation, list):
        return None, "segmentations that are neither polygons nor run lengths"
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    kept = [polygon for polygon in polygons if _is_polygon(polygon)]
    return kept or None, "" if len(kept) == len(polygons) else "polygons that are not six or more numbers, two a point"


def _is_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) < MIN_NUMBERS or len(polygon) % 2:
        return False
    try:  # by functions of C: a large set has tens of millions of numbers
        return set(map(type, polygon)) <= {int, float} and sum(map(abs, polygon)) <= MAX_NUMBER
    except OverflowError:  # an integer beyond floats
        return False


def _is_run_lengths(segmentation: dict[str, Any]) -> bool:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (
        isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side <= 1 << 20 for side in size)
    ):
        return False
    return isinstance(counts, str) or (
        isinstance(counts, list) and all(type(n) is int and 0 <= n <= MAX_NUMBER for n in counts)
    )


def run_lengths(segmentation: dict[str, Any]) -> NDArray[np.int64] | None:
    """The run lengths of a mask; None where they do not make up its size."""
    counts = segmentation["counts"]
    lengths = _uncompressed(counts) if isinstance(counts, str) else np.array(counts, np.int64)
    height, width = segmentation["size"]
    if lengths is None or not len(lengths) or lengths.min() < 0 or lengths.max() > height * width:
        return None
    return lengths if lengths.sum() == height * width else None


def _uncompressed(text: str) -> NDArray[np.int64] | None:
    """The numbers of COCO's compressed run lengths; None for other text."""
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return None
    is_last = (codes & 32) == 0  # of a number's groups
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not is_last[-1]:
        return None
    ends = np.flatnonzero(is_last) + 1
    starts = np.concatenate([[0], ends[:-1]])
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts)
    if place.max() > 11:  # beyond 60 bits
        return None
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    is_negative = (codes[ends - 1] & 16) != 0
    numbers -= np.where(is_negative, np.int64(1) << (5 * (ends - starts)), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def decoded(segmentation: dict[str, Any]) -> Mask:
    """The mask of run lengths that `run_lengths` accepts: (H, W)."""
    lengths = run_lengths(segmentation)
    assert lengths is not None
    height, width = segmentation["size"]
    return np.repeat((np.arange(len(lengths)) % 2).astype(np.uint8), lengths).reshape(width, height).T


def rasterised(polygons: list[NDArray[np.float64]], height: int, width: int) -> Mask:
    """The pixels that lie in any of the polygons, (height, width), as COCO's own tools draw them.

    Args:
        polygons: each (points, 2): x and y in pixels; what lies outside is cut off.
    """
    from faster_coco_eval import mask_api_new_cpp as api

    # The number of points that are drawn grows with the outline, and files hold anything.
    limit = np.array([width, height], np.float64)
    clipped = [polygon.clip(-2 * limit - 2, 3 * limit + 2).ravel().tolist() for polygon in polygons]
    drawn = api.decode(api.frPyObjects(clipped, height, width))
    return np.asarray(drawn.max(axis=2) if drawn.shape[2] > 1 else drawn[..., 0])


def points_of(polygons: list[list[float]]) -> list[NDArray[np.float64]]:
    """Polygons as arrays of points: (points, 2)."""
    return [np.array(polygon, np.float64).reshape(-1, 2) for polygon in polygons]


def bounds(mask: Mask) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of the pixels that are set; None where none is."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _bounds_of_runs(segmentation: dict[str, Any]) -> tuple[int, int, int, int] | None:
    """`bounds` without the mask: its stated size may be any, and is compared with the image's only later."""
    lengths, height = run_lengths(segmentation), segmentation["size"][0]
    if lengths is None:
        return None
    ends = lengths.cumsum()
    begins, ends = (ends - lengths)[1::2], ends[1::2]
    begins, ends = begins[begins < ends], ends[begins < ends]
    if not len(begins):
        return None
    first, last = begins // height, (ends - 1) // height  # columns
    goes_on = bool((last > first).any())  # from the lowest row of a column to the first one of the next
    top = 0 if goes_on else int((begins % height).min())
    bottom = height if goes_on else int(((ends - 1) % height).max()) + 1
    return int(first.min()), top, int(last.max()) + 1, bottom


def box_of(segmentation: Any) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a segmentation that `checked_segmentation` returned."""
    if isinstance(segmentation, dict):
        found = _bounds_of_runs(segmentation)
        return (math.nan,) * 4 if found is None else found
    points = np.concatenate(points_of(segmentation))
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def area_of(segmentation: Any, size: tuple[int, int]) -> float:
    """The pixels that a checked segmentation covers of an image of this height and width."""
    mask = decoded(segmentation) if isinstance(segmentation, dict) else rasterised(points_of(segmentation), *size)
    return float(mask.sum())
