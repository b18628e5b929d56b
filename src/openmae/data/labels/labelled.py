"""Labelled data: which images train, which things are chosen by, which give the final figure."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.config import Dataset, TargetScale
from openmae.config.checks import OFF
from openmae.data.labels.resolve_labels import ADVICE, resolve_labels
from openmae.data.labels.subsets import (
    Labels,
    classes_present,
    indices_by_class,
    is_labelled,
    parse_labels,
    split_stratified,
    stratified,
)
from openmae.data.sources.open import Source, open_splits
from openmae.data.sources.views import IndexedSubset, tile_image_ids
from openmae.errors import RequestError, shown

_MAX_SPLIT = 5000


@dataclass(frozen=True)
class LabelledData:
    """What a task with labels works on; every image in it has a label.

    Attributes:
        train: after the held-out split was taken out and `--labels` has chosen.
        validation: what things are chosen by: DATA's val part if there is a test part too, else a split of train.
        test: what the final figure is of: DATA's test part, else its val part.
        classes: their names; none where numbers are predicted.
        scale: of the numbers to predict (regression), by the training images; None of classes.
        note: what a person has to know of what labels were taken for; empty where there is no doubt.
        unlabelled: images left out because they have no label, of all parts.
        unmatched: rows of the label file that name no image of DATA.
        taken, told: what was taken for what, and all that is said of it: see `openmae.data.sources.open.Splits`.
    """

    train: Source
    validation: Source | None
    test: Source | None
    classes: tuple[str, ...]
    is_multi_label: bool
    is_validation_split: bool
    final_split: str  # "test", "val" or "split of train"
    unlabelled: int
    unmatched: int
    scale: TargetScale | None = None
    note: str = ""

    origins: dict[str, str] = field(default_factory=dict)
    source_lines: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        return "classification" if self.scale is None else "regression"

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the numbers to predict; none of classes."""
        return () if self.scale is None else self.scale.columns

    @property
    def num_outputs(self) -> int:
        """What a model has to give for an image: a score for each class, or the numbers."""
        return self.num_classes or len(self.columns)

    @property
    def parts(self) -> tuple[Source, ...]:
        """All parts that there are."""
        return tuple(part for part in (self.train, self.validation, self.test) if part is not None)

    @property
    def report(self) -> Source:
        """What the final figure is of."""
        source = self.test if self.test is not None else self.validation
        assert source is not None
        return source

    def held_out_names(self) -> list[str]:
        """The names of the images that were held out of train."""
        if self.validation is None or not self.is_validation_split:
            return []
        return [self.validation.name(i) for i in range(len(self.validation))]

    @cached_property
    def fingerprint(self) -> str:
        """Of all parts as they were when it was first asked for."""
        parts = (self.train, self.validation, self.test)
        return " ".join("none" if part is None else part.fingerprint() for part in parts)


def open_labelled(
    dataset: Dataset,
    *,
    labels: str | None,
    label_file: str | None,
    held_out: int | None,
    seed_of_split: int = 0,
    background: float,
    max_pixels: int,
    axes: str | None = None,
    default_axes: str | None = None,
    nodata: float | str = OFF,
    needs_validation: bool = False,
    task: str | None = None,
    advice: str = ADVICE,
    split_rules: int | None = None,
) -> LabelledData:
    """Open the parts of DATA that have labels, and split train where a part is missing.

    The split comes first, then `labels` chooses from the rest (a share is one of the rest): runs that differ in
    `--labels` are measured on the same images.

    Args:
        labels: how many images to train on, see `parse_labels`; None for all.
        held_out: the size of the split; None for a fifth below 2,500 images, above a tenth, at most 5,000.
        split_rules: how the parts are found, see `open_splits`.
        needs_validation: something is chosen on the way (a rate, the best step); that must not be on the test part.
        task, advice: see `resolve_labels`.

    Raises:
        RequestError: DATA or its labels cannot be used, or an option does not fit them.
    """
    data = str(dataset)
    reading: dict[str, Any] = {"background": background, "max_pixels": max_pixels}
    reading |= {"axes": axes, "default_axes": default_axes, "nodata": nodata}
    opened = open_splits(dataset, split_rules=split_rules, **reading)
    found = resolve_labels(data, opened.sources, label_file, task, advice)
    parts, targets, classes = found.parts, found.targets, found.classes
    check_labelled(data, targets["train"], classes)
    for split in ("val", "test"):
        if split in parts:
            check_part(data, split, targets[split], targets["train"], classes)
    labelled = {split: np.flatnonzero(is_labelled(part)) for split, part in targets.items()}
    held_parts: dict[str, Source] = {
        split: _take(parts[split], labelled[split]) for split in ("val", "test") if split in parts
    }
    rest, held = labelled["train"], labelled["train"][:0]
    has_both = len(held_parts) == 2
    final_split = next((split for split in ("test", "val") if split in held_parts), "split of train")
    if has_both and held_out:
        raise RequestError(f"--held-out {held_out} splits train, but {shown(data)} has a val part: leave it out")
    if not has_both and (needs_validation or not held_parts or held_out):
        apart = tile_image_ids(parts["train"])
        rest, held = _hold_out(data, targets["train"], held_out, seed_of_split, apart)
    if labels is not None:
        rest = rest[stratified(targets["train"][rest], parse_labels(labels, len(rest)), seed_of_split)]
    numbers = targets["train"][rest].T.tolist() if found.columns else []
    return LabelledData(
        train=_take(parts["train"], rest),
        validation=IndexedSubset(parts["train"], held) if len(held) else held_parts["val"] if has_both else None,
        test=held_parts.get(final_split),
        classes=classes,
        is_multi_label=found.is_multi_label,
        is_validation_split=len(held) > 0,
        final_split=final_split,
        unlabelled=sum(len(parts[split]) - len(indices) for split, indices in labelled.items()),
        unmatched=found.unmatched,
        scale=TargetScale.of(found.columns, numbers) if found.columns else None,
        note=found.note,
        origins=opened.origins,
        source_lines=tuple(opened.lines),
    )


def check_labelled(data: str, labels: Labels, classes: tuple[str, ...]) -> None:
    """Raise RequestError unless some training images have labels, and not all the same class."""
    known = labels[is_labelled(labels)]
    if len(known) == 0:
        what, instead = ("a label", "put every image into a class folder, add a `label` column, or give --label-file")
        if labels.dtype == np.float64:
            what, instead = "all its numbers", "give them in --label-file, or in a `label` column"
        raise RequestError(f"no training image of {shown(data)} has {what}: {instead}")
    if not classes:
        return
    if (known == known[0]).all():
        which = " and ".join(shown(classes[i]) for i in classes_present(known)) or "none"
        raise RequestError(
            f"all {len(known)} labelled training images of {shown(data)} have one label ({which}): "
            "at least two classes are needed"
        )


def check_part(data: str, part: str, labels: Labels, train_labels: Labels, classes: tuple[str, ...]) -> None:
    """Raise RequestError unless the `part` (val or test) has labels, and only classes that are in train."""
    known = labels[is_labelled(labels)]
    if len(known) == 0:
        raise RequestError(
            f"the {part} part of {shown(data)} has no labels: give them in --label-file, or move it away"
        )
    if not classes:
        return
    missing = np.setdiff1d(classes_present(known), classes_present(train_labels))
    if len(missing):
        first = missing[0]
        count = int((known[:, first] > 0).sum() if known.ndim == 2 else (known == first).sum())
        more = f", nor of {len(missing) - 1} other classes in {part}" if len(missing) > 1 else ""
        raise RequestError(
            f"the {part} part of {shown(data)} has {count} images of class {shown(classes[first])}, "
            f"but train has none of it{more}: add some to train, or take them out of {part}"
        )


def _hold_out(
    data: str, labels: Labels, held_out: int | None, seed: int, numbers: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`split_stratified` of the size asked for or, by default, of one that leaves a member of each class.

    Args:
        numbers: which image each sample is a tile of: images are held out then, with all their tiles.
    """
    if numbers is not None:
        _, first = np.unique(numbers, return_index=True)
        _, held = _hold_out(data, labels[first], held_out, seed)
        is_held, labelled = np.isin(numbers, numbers[first[held]]), is_labelled(labels)
        return np.flatnonzero(labelled & ~is_held), np.flatnonzero(labelled & is_held)
    if held_out is not None and held_out < 1:
        raise RequestError(
            f"--held-out {held_out} leaves nothing to measure on or choose by: {shown(data)} has no val and test parts"
        )
    groups = indices_by_class(labels)
    count = sum(map(len, groups))
    most = count - len(groups)
    default = count // 5 if count < 2500 else min(count // 10, _MAX_SPLIT)
    if most == 0:
        raise RequestError(
            f"{shown(data)} has one labelled training image{' of each class' * (labels.dtype != np.float64)}, so none "
            "can be held out: give more, or val and test parts"
        )
    return split_stratified(labels, held_out if held_out is not None else min(max(1, default), most), seed)


def _take(source: Source, indices: NDArray[np.int64]) -> Source:
    return source if len(indices) == len(source) else IndexedSubset(source, indices)
