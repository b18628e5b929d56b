"""Opening the data of detection: COCO JSON, the images it lists, classes, splits."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.config import Dataset
from openmae.config.checks import OFF
from openmae.data.annotated.divided import divide
from openmae.data.annotated.hold_out import MAX_BAD, absent_in_train, hold_out
from openmae.data.coco.detection_data import DetectionData
from openmae.data.coco.files import FoundFiles, find_annotation_files
from openmae.data.coco.source import Annotated, AnnotatedSource, AnnotatedSubset
from openmae.data.coco.split import AnnotatedSplit, match_split
from openmae.data.coco.table import read_categories
from openmae.data.sources.axes import decide_axes, shapes_of_files
from openmae.data.sources.folder_part import FolderPart, leak_warnings
from openmae.data.sources.open import Source, Splits
from openmae.errors import RequestError, shown
from openmae.machine.parallel import Processes

_NAMED = 3


def open_detection(
    dataset: Dataset,
    *,
    held_out: int | None = None,
    needs_validation: bool = False,
    background: float,
    max_pixels: int,
    axes: str | None = None,
    default_axes: str | None = None,
    nodata: float | str = OFF,
    seed_of_split: int = 0,
    max_bad: float | None = None,
    boxes_only: bool = False,
    processes: Processes | None = None,
    known_classes: tuple[str, ...] | None = None,
) -> DetectionData:
    """Open the images and objects of DATA's splits, and hold out a split where there is none.

    The header of every image is read. Images that cannot be used are left out, and named in `bad`; objects that cannot
    be used are dropped, counted and named in `notes`.

    Args:
        held_out, needs_validation: see `hold_out`.
        background, max_pixels, axes, default_axes, nodata: see `open_splits`.
        max_bad: the largest share of a split's images that may be unusable; None: .01.
        boxes_only: read no masks.
        processes: those that read the headers together, each over its share; None: this one.
        known_classes: `classes` of a run that is resumed, which must be the data's.

    Raises:
        RequestError: DATA is in none of the known layouts, images or objects of a split cannot be used, train has no
            objects, or an option does not fit the data.
    """
    data, found = str(dataset), find_annotation_files(dataset)
    categories = read_categories(list(found.parts.values()))
    classes = tuple(categories.values())
    if known_classes is not None and classes != known_classes:
        raise RequestError(
            f"{shown(data)} has {len(classes)} classes ({_listed(classes)}), and the run was begun with "
            f"{len(known_classes)} ({_listed(known_classes)}): give the data that it was begun with"
        )
    reading: dict[str, Any] = {"background": background, "max_pixels": max_pixels, "nodata": nodata}
    shapes = chain.from_iterable(shapes_of_files(file.root, file.images) for file in found.parts.values())
    reading["axes"] = decide_axes(shapes, axes, default_axes)
    splits = {s: match_split(file, categories, reading, boxes_only, processes) for s, file in found.parts.items()}
    for split, of_split in splits.items():
        check_share_of_bad(data, split, of_split, MAX_BAD if max_bad is None else max_bad)
    has_masks, mask_notes = decide_masks(splits, boxes_only)
    sources = {split: of_split.open(classes, found.ignored, reading) for split, of_split in splits.items()}
    if not has_masks:
        sources = {split: source.without_segmentations() for split, source in sources.items()}
    every = {split: np.arange(len(source)) for split, source in sources.items()}
    rest, held_out_ids = hold_out(data, every, held_out, seed_of_split, needs_validation, what="annotations")
    counts = {
        s: source.objects.counts(rest if s == "train" else every[s], len(classes)) for s, source in sources.items()
    }
    check_objects(data, counts, sources["train"].objects.counts(held_out_ids, len(classes)), len(held_out_ids))
    whole: dict[str, Annotated] = {split: source for split, source in sources.items() if split != "train"}
    train = sources["train"]
    return DetectionData(
        train=AnnotatedSubset(train, rest) if len(held_out_ids) else train,
        **divide(whole, AnnotatedSubset(train, held_out_ids) if len(held_out_ids) else None),
        classes=classes,
        category_ids=tuple(categories),
        has_masks=has_masks,
        objects=counts["train"],
        bad={split: of_split.bad for split, of_split in splits.items() if of_split.bad},
        notes=(
            *found.notes,
            *(line for split, of_split in splits.items() for line in of_split.remarks.lines(split)),
            *unlisted_images(found, splits),
            *mask_notes,
            *absent_in_train(counts, classes, "training object"),
        ),
        origins={split: of_split.file for split, of_split in splits.items()},
        source_lines=tuple(splits_of(found, splits, sources).lines),
    )


def check_share_of_bad(data: str, split: str, found: AnnotatedSplit, max_bad: float) -> None:
    """Raise RequestError where more than `max_bad` of a split's images are bad: a figure would be of the rest."""
    count = len(found.images) + len(found.bad)
    if len(found.bad) > max_bad * count:
        name, reason = next(iter(found.bad.items()))
        raise RequestError(
            f"{len(found.bad)} of {count:,} images of {split} in {shown(data)} cannot be used, the first {shown(name)} "
            f"({reason}): more than --max-bad {max_bad:g}; openmae inspect names them, a higher --max-bad skips them"
        )


def decide_masks(splits: Mapping[str, AnnotatedSplit], boxes_only: bool) -> tuple[bool, list[str]]:
    """Whether all objects have masks; where not, a line that counts and names those that have none."""
    without = {split: found.without_mask for split, found in splits.items() if found.without_mask}
    if boxes_only:
        return False, []
    if not without:
        return True, []
    if all(len(without.get(split, [])) == _num_objects(found) for split, found in splits.items()):
        return False, ["no object has a segmentation: boxes only"]
    parts = [
        f"{len(names):,} of {_num_objects(splits[split]):,} objects of {split} ({_listed(names)})"
        for split, names in without.items()
    ]
    return False, [f"{' and '.join(parts)} have no segmentation: boxes only"]


def check_objects(
    data: str, counts: Mapping[str, NDArray[np.int64]], held_out: NDArray[np.int64], num_held_out: int
) -> None:
    """Raise RequestError where a split has no objects.

    Args:
        counts: by split, the objects of each class that are no crowds; of train without those held out.
        held_out: those of the `num_held_out` images that are held out of train.
    """
    for split, of_split in {**counts, **({"the split of train": held_out} if num_held_out else {})}.items():
        if not of_split.sum():
            purpose = "trained on" if split == "train" else "measured on it"
            raise RequestError(
                f"{split} of {shown(data)} has no annotated objects that can be used: nothing can be {purpose}; "
                "openmae inspect says what was dropped"
            )


def unlisted_images(found: FoundFiles, splits: Mapping[str, AnnotatedSplit]) -> list[str]:
    """A line for the images that no JSON file lists; empty where there are none."""
    listed, there = set[tuple[str, bytes]](), set[tuple[str, bytes]]()
    for split, of_split in splits.items():
        root, files = str(of_split.root), found.parts[split].images
        listed |= {(root, image) for image in of_split.images}
        listed |= {(root, name.encode("utf-8", "surrogateescape")) for name in of_split.bad}
        there |= {(root, image) for image in files}
    unlisted = sorted(there - listed)
    if not unlisted:
        return []
    names = [image.decode("utf-8", "surrogateescape") for _, image in unlisted[:_NAMED]]
    more = ", …" if len(unlisted) > _NAMED else ""
    return [f"left alone: {len(unlisted):,} images that no JSON lists ({', '.join(map(shown, names))}{more})"]


def splits_of(
    found: FoundFiles, splits: Mapping[str, AnnotatedSplit], sources: Mapping[str, AnnotatedSource]
) -> Splits:
    """The splits as they are told of: where they were found, what was left out, what is to be distrusted."""
    links = {
        split: FolderPart(root=of.root, files=of.images, depth=0, is_table=False, ignored=found.ignored)
        for split, of in splits.items()
    }
    opened: dict[str, Source] = dict(sources)
    return Splits(
        sources=opened,
        origins={split: of_split.file for split, of_split in splits.items()},
        ignored=(found.ignored.line,) if found.ignored.line else (),
        warnings=tuple(leak_warnings(links)),
    )


def _num_objects(found: AnnotatedSplit) -> int:
    return int((~found.objects.is_crowd).sum())


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(shown(name) for name in names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
