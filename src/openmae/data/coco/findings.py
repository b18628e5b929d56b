"""What the COCO annotations of a data set hold, as JSON values: objects by class and size, and what would be refused.

It is found by the functions that open the data for training, so that a report and `openmae detect` agree.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from openmae.config import Dataset, paths_of
from openmae.data.annotated.hold_out import MAX_BAD, absent_in_train, hold_out
from openmae.data.coco.files import FoundFiles, NoAnnotations, find_annotation_files
from openmae.data.coco.open import check_objects, check_share_of_bad, decide_masks, splits_of, unlisted_images
from openmae.data.coco.split import AnnotatedSplit, match_split
from openmae.data.coco.table import read_categories
from openmae.data.sources.axes import decide_axes, shapes_of_files
from openmae.data.sources.named import is_json
from openmae.data.sources.open import Splits
from openmae.errors import RequestError, shown

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}  # COCO's, in square pixels


@dataclass(frozen=True, kw_only=True)
class ExaminedObjects:
    """The annotations of a data set.

    Attributes:
        images: the images that can be used, as splits to examine; None where train has none.
        findings: as JSON values.
    """

    images: Splits | None
    findings: dict[str, Any]


def examine_objects(dataset: Dataset, reading: dict[str, Any]) -> ExaminedObjects | None:
    """Read the annotations of all splits, and go on after what training would refuse; None where there are none.

    Args:
        reading: see `reading_options`.

    Raises:
        RequestError: DATA names JSON files, and no images can be found by them.
    """
    names_json = any(map(is_json, paths_of(dataset)))  # and no folder, whose images could be reported on all the same
    try:
        found = find_annotation_files(dataset)
    except RequestError as error:
        if names_json:
            raise
        return None if isinstance(error, NoAnnotations) else ExaminedObjects(images=None, findings=_refused(error))
    shapes = chain.from_iterable(shapes_of_files(file.root, file.images) for file in found.parts.values())
    axes = decide_axes(shapes, reading["axes"], reading["default_axes"])
    reading = {name: value for name, value in reading.items() if name != "default_axes"} | {"axes": axes}
    splits, refusals, categories = dict[str, AnnotatedSplit](), list[str](), dict[Any, str]()
    try:
        categories = read_categories(list(found.parts.values()))
    except RequestError as error:
        refusals.append(str(error))
    for split, file in found.parts.items() if categories else ():
        try:
            splits[split] = match_split(file, categories, reading)
            check_share_of_bad(str(dataset), split, splits[split], MAX_BAD)
        except RequestError as error:
            refusals.append(str(error))
    classes = tuple(categories.values())
    sources = {split: of.open(classes, found.ignored, reading) for split, of in splits.items()}
    counts = {split: source.objects.counts(np.arange(len(source)), len(classes)) for split, source in sources.items()}
    every = {split: np.arange(len(source)) for split, source in sources.items()}
    try:
        if "train" in every:
            hold_out(str(dataset), every, None, 0, needs_validation=False, what="annotations")
        check_objects(str(dataset), counts, np.zeros(0, np.int64), 0)
    except RequestError as error:
        refusals.append(str(error))
    has_masks, notes = decide_masks(splits, boxes_only=not splits)
    absent = absent_in_train(counts, classes, "training object") if "train" in counts else []
    findings = {
        "splits": {split: _split_findings(of_split) for split, of_split in splits.items()},
        "has_masks": has_masks,
        "classes": [
            {"class": shown(name), "id": number, **{s: int(of_split[i]) for s, of_split in counts.items()}}
            for i, (number, name) in enumerate(categories.items())
        ],
        "notes": [*_notes(found, splits), *notes, *absent],
        "refusal": next(iter(refusals), None),
    }
    images = splits_of(found, splits, sources) if "train" in splits else None
    if images is None and names_json:
        raise RequestError(refusals[0])
    return ExaminedObjects(images=images, findings=findings)


def _refused(error: RequestError) -> dict[str, Any]:
    """The findings where no annotations are read."""
    return {"splits": {}, "has_masks": False, "classes": [], "notes": [], "refusal": str(error)}


def _split_findings(found: AnnotatedSplit) -> dict[str, Any]:
    objects = found.objects
    areas = objects.areas[~objects.is_crowd]
    return {
        "images": len(found.images) + len(found.bad),
        "unusable": len(found.bad),
        "named_unusable": [{"name": shown(name), "reason": reason} for name, reason in list(found.bad.items())[:100]],
        "without_objects": int((np.diff(objects.starts) == 0).sum()),
        "objects": len(areas),
        "crowds": int(objects.is_crowd.sum()),
        "without_mask": len(found.without_mask),
        "sizes": {name: int(((areas >= low) & (areas < high)).sum()) for name, (low, high) in SIZES.items()},
        "dropped_or_clipped": dict(found.remarks.counts),
    }


def _notes(found: FoundFiles, splits: dict[str, AnnotatedSplit]) -> list[str]:
    remarks = [line for split, of_split in splits.items() for line in of_split.remarks.lines(split)]
    return [*found.notes, *remarks, *unlisted_images(found, splits)]
