"""What the masks of a data set hold, as JSON values: pairs, values by pixels, classes, and what would be refused.

All of it is computed from surveys (one pass over all masks) by the functions that open the data for training, so that a
report and `openmae segment` agree.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.data.annotated.hold_out import absent_in_train, hold_out
from openmae.data.masks.checks import check_usable
from openmae.data.masks.classes import DecidedClasses, check_train_classes, decide_classes
from openmae.data.masks.open import beyond_classes, class_pixels, indices_kept, pixels_by_value
from openmae.data.masks.pairs import FoundPairs
from openmae.data.masks.palette import IGNORED, Palette
from openmae.data.masks.source import MaskedSource
from openmae.data.masks.survey import MaskSurvey
from openmae.data.survey.findings import count_reasons
from openmae.errors import RequestError, shown

RARE = 0.001  # of the training pixels that have a class
MAX_NAMED = 100  # files without a partner in the JSON; all are counted


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What training would make of surveyed masks.

    Attributes:
        decided: the classes; None where they cannot be decided.
        bad: by split, the reason by name for each pair that cannot be used.
        pixels: by split, the pixels of each class in the pairs that can be used; without those held out of train.
        refusal: why training would not begin; None where it would.
    """

    decided: DecidedClasses | None
    bad: dict[str, dict[str, str]]
    pixels: dict[str, NDArray[np.int64]]
    refusal: str | None


def judge_masks(
    data: str,
    sources: Mapping[str, MaskedSource],
    surveys: Mapping[str, MaskSurvey],
    *,
    names: dict[int, str] | None,
    palette: Palette | None,
    ignore_index: int | None,
    reduce_zero_label: bool,
) -> Judgement:
    """Decide and check what `open_segmentation` decides and checks, but go on after what it would refuse.

    Args:
        data: for messages.
        surveys: of the sources, by split.
        names, palette, ignore_index, reduce_zero_label: see `decide_classes`.
    """
    bad = {split: dict(survey.bad) for split, survey in surveys.items()}
    pixels: dict[str, NDArray[np.int64]] = {}
    refusals: list[str] = []
    try:
        check_usable(data, sources, bad)
    except RequestError as error:
        refusals.append(str(error))
    try:
        decided = decide_classes(
            pixels_by_value(surveys),
            names=names,
            palette=palette,
            ignore_index=ignore_index,
            reduce_zero_label=reduce_zero_label,
        )
    except RequestError as error:
        return Judgement(decided=None, bad=bad, pixels=pixels, refusal=(*refusals, str(error))[0])
    bad = {s: of_split | beyond_classes(sources[s], surveys[s], decided.numbering) for s, of_split in bad.items()}
    kept = {split: indices_kept(source, bad[split]) for split, source in sources.items()}
    try:
        check_usable(data, sources, bad)
        kept["train"], _ = hold_out(data, kept, None, 0)
    except RequestError as error:
        refusals.append(str(error))
    pixels = {split: class_pixels(survey, decided, kept[split]) for split, survey in surveys.items()}
    try:
        check_train_classes(data, pixels["train"].tolist(), decided.classes, decided.numbering)
    except RequestError as error:
        refusals.append(str(error))
    return Judgement(decided=decided, bad=bad, pixels=pixels, refusal=next(iter(refusals), None))


def mask_findings(
    found: FoundPairs, sources: Mapping[str, MaskedSource], surveys: Mapping[str, MaskSurvey], judged: Judgement
) -> dict[str, Any]:
    """Pairs by split, values with pixels and images, classes that are rare or absent, and what cannot be used.

    Args:
        found: all pairs, of which the sources hold some or all.
    """
    decided = judged.decided
    values = value_rows(surveys, decided)
    total = sum(row["pixels"] for row in values)
    of_no_class = [row for row in values if row["meaning"] == "no class"]
    return {
        "splits": {
            split: _split_findings(found, split, len(sources.get(split, ())), judged.bad.get(split, {}))
            for split in found.unpaired
        },
        "unusable_reasons": count_reasons(reason for of_split in judged.bad.values() for reason in of_split.values()),
        "bad": [
            {
                "split": split,
                "name": shown(source.name(i)),
                "mask": shown(source.mask_name(i)),
                "reason": judged.bad[split][source.name(i)],
            }
            for split, source in sources.items()
            for i in range(len(source))
            if source.name(i) in judged.bad[split]
        ],
        "pixels": total,
        "ignored_share": _share(sum(row["pixels"] for row in values if row["meaning"] == "ignored"), total),
        "no_class_share": _share(sum(row["pixels"] for row in of_no_class), total),
        "values_of_no_class": [row["value"] for row in of_no_class],
        "values": values,
        "classes": None if decided is None else [shown(name) for name in decided.classes],
        "ignore_index": None if decided is None else decided.numbering.ignore_index,
        "reduce_zero_label": decided is not None and decided.numbering.reduce_zero_label,
        **_uneven_classes(judged, {row["value"] for row in values}),
        "notes": [
            *found.notes,
            *(() if decided is None else (*decided.notes, *absent_in_train(judged.pixels, decided.classes))),
        ],
        "refusal": judged.refusal,
    }


def value_rows(surveys: Mapping[str, MaskSurvey], decided: DecidedClasses | None) -> list[dict[str, Any]]:
    """Each stored value with what it means, its pixels, their share, and the images that have it; by pixels."""
    pixels, images = pixels_by_value(surveys), Counter[int]()
    for survey in surveys.values():
        images.update(survey.images_by_value)
    total = sum(pixels.values())
    values = sorted(pixels, key=lambda value: (-pixels[value], value))
    ids: list[int | None] = [None] * len(values)
    if decided is not None:
        ids = list(decided.numbering.ids_of(np.array(values, np.int32).reshape(-1)).tolist())
    rows = []
    for value, class_id in zip(values, ids, strict=True):
        name = None
        meaning = "unknown" if class_id is None else "ignored" if class_id == IGNORED else "no class"
        if decided is not None and class_id is not None and class_id >= 0:
            meaning, name = "class", shown(decided.classes[class_id])
        row = {"value": value, "meaning": meaning, "class": name}
        rows.append(row | {"pixels": pixels[value], "share": _share(pixels[value], total), "images": images[value]})
    return rows


def _split_findings(found: FoundPairs, split: str, looked_at: int, bad: Mapping[str, str]) -> dict[str, Any]:
    alone, pairs = found.unpaired[split], found.parts.get(split)
    kinds = Counter(_kind_of(reason) for reason in bad.values())
    return {
        "pairs": 0 if pairs is None else len(pairs.images),
        "looked_at": looked_at,
        "unusable": len(bad),
        **{kind: kinds[kind] for kind in ("wrong_size", "unreadable_mask", "of_no_class", "unreadable_image")},
        "images_without_mask": len(alone.images),
        "masks_without_image": len(alone.masks),
        "named_without_mask": [shown(os.fsdecode(file)) for file in alone.images[:MAX_NAMED]],
        "named_without_image": [shown(os.fsdecode(file)) for file in alone.masks[:MAX_NAMED]],
    }


def _kind_of(reason: str) -> str:
    """What is wrong with a pair, by the reason that `MaskedSource` and `Numbering` give."""
    if reason.startswith("a mask of "):
        return "wrong_size"
    if reason.startswith("mask: "):
        return "of_no_class" if reason.endswith(" in no class") else "unreadable_mask"
    return "unreadable_image"


def _uneven_classes(judged: Judgement, stored: set[int]) -> dict[str, Any]:
    """The classes in no mask, those that only an evaluation split has, and those that are rare in train."""
    if judged.decided is None:
        return {"absent": [], "absent_in_train": {}, "rare": {}}
    classes, numbering, pixels = judged.decided.classes, judged.decided.numbering, judged.pixels
    train = pixels["train"]
    named = [i for i in range(len(classes)) if i not in numbering.unused]
    share = train / max(int(train.sum()), 1)
    return {
        "absent": [shown(classes[i]) for i in named if numbering.stored_value(i) not in stored],
        "absent_in_train": {
            split: [shown(classes[i]) for i in np.flatnonzero((counts > 0) & (train == 0))]
            for split, counts in pixels.items()
            if split != "train"
        },
        "rare": {shown(classes[i]): round(float(share[i]), 8) for i in np.flatnonzero((train > 0) & (share < RARE))},
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
