"""Labelled data: the training, validation and test images of fine-tuning, probing and kNN."""

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
    """The splits of a supervised task; every image in them has a label.

    Attributes:
        train: the training images, without the held-out split, and only those that `--labels` selects.
        validation: for choosing a learning rate or step: DATA's val split if there is a test split too, else held out
            of train.
        test: for the final metrics: DATA's test split, else its val split; None: they are of `validation`.
        classes: names of the classes; empty for regression.
        is_validation_split: `validation` was held out of train.
        final_split: which split the final metrics are of: "test", "val" or "split of train".
        scale: mean and deviation of the regression targets of the training images; None for classification.
        note: a remark on how labels were interpreted; empty where there is no doubt.
        unlabelled: how many images of all splits were left out because they have no label.
        unmatched: rows of the label file that name no image of DATA.
        origins, source_lines: where the splits were found: `origins` and `lines` of `openmae.data.sources.open.Splits`.
    """

    train: Source
    validation: Source | None
    test: Source | None
    classes: tuple[str, ...]
    is_multi_label: bool
    is_validation_split: bool
    final_split: str
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
        """The names of the regression targets; empty for classification."""
        return () if self.scale is None else self.scale.columns

    @property
    def num_outputs(self) -> int:
        """How many outputs a model needs: one for each class or regression target."""
        return self.num_classes or len(self.columns)

    @property
    def parts(self) -> tuple[Source, ...]:
        """All splits that exist."""
        return tuple(part for part in (self.train, self.validation, self.test) if part is not None)

    @property
    def final_source(self) -> Source:
        """The split that the final metrics are of."""
        source = self.test if self.test is not None else self.validation
        assert source is not None
        return source

    def held_out_names(self) -> list[str]:
        """The names of the images that were held out of train; empty where none were."""
        if self.validation is None or not self.is_validation_split:
            return []
        return [self.validation.name(i) for i in range(len(self.validation))]

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprints of all splits when this was first called."""
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
    """Open the labelled splits of DATA, and hold a validation split out of train where val or test is missing.

    The held-out split is drawn first, then `labels` selects from the rest (a percentage is of the rest), so that runs
    that differ in `--labels` are evaluated on the same images.

    Args:
        labels: how many images to train on, see `parse_labels`; None for all.
        label_file: a CSV with the labels, see `read_label_file` and `read_number_file`.
        held_out: size of the held-out split; None: a fifth below 2,500 images, else a tenth, at most 5,000.
        seed_of_split: seed of the held-out split and of the selection by `labels`.
        split_rules: see `open_splits`, as all of `background`, `max_pixels`, `axes`, `default_axes` and `nodata`.
        needs_validation: something is chosen in training (a learning rate, the best step), which needs a split that is
            not the test split.
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
    evaluation_splits: dict[str, Source] = {
        split: _take(parts[split], labelled[split]) for split in ("val", "test") if split in parts
    }
    rest, held_out_ids = labelled["train"], labelled["train"][:0]
    has_both = len(evaluation_splits) == 2
    final_split = next((split for split in ("test", "val") if split in evaluation_splits), "split of train")
    if has_both and held_out:
        raise RequestError(f"--held-out {held_out} splits train, but {shown(data)} has a val part: leave it out")
    if not has_both and (needs_validation or not evaluation_splits or held_out):
        image_ids = tile_image_ids(parts["train"])
        rest, held_out_ids = _hold_out(data, targets["train"], held_out, seed_of_split, image_ids)
    if labels is not None:
        rest = rest[stratified(targets["train"][rest], parse_labels(labels, len(rest)), seed_of_split)]
    numbers = targets["train"][rest].T.tolist() if found.columns else []
    return LabelledData(
        train=_take(parts["train"], rest),
        validation=IndexedSubset(parts["train"], held_out_ids)
        if len(held_out_ids)
        else evaluation_splits["val"]
        if has_both
        else None,
        test=evaluation_splits.get(final_split),
        classes=classes,
        is_multi_label=found.is_multi_label,
        is_validation_split=len(held_out_ids) > 0,
        final_split=final_split,
        unlabelled=sum(len(parts[split]) - len(indices) for split, indices in labelled.items()),
        unmatched=found.unmatched,
        scale=TargetScale.from_numbers(found.columns, numbers) if found.columns else None,
        note=found.note,
        origins=opened.origins,
        source_lines=tuple(opened.lines),
    )


def check_labelled(data: str, labels: Labels, classes: tuple[str, ...]) -> None:
    """Raise RequestError unless some training images have labels, and of at least two classes."""
    known = labels[is_labelled(labels)]
    if len(known) == 0:
        what, remedy = ("a label", "put every image into a class folder, add a `label` column, or give --label-file")
        if labels.dtype == np.float64:
            what, remedy = "all its numbers", "give them in --label-file, or in a `label` column"
        raise RequestError(f"no training image of {shown(data)} has {what}: {remedy}")
    if not classes:
        return
    if (known == known[0]).all():
        which = " and ".join(shown(classes[i]) for i in classes_present(known)) or "none"
        raise RequestError(
            f"all {len(known)} labelled training images of {shown(data)} have one label ({which}): "
            "at least two classes are needed"
        )


def check_part(data: str, part: str, labels: Labels, train_labels: Labels, classes: tuple[str, ...]) -> None:
    """Raise RequestError unless the split `part` (val or test) has labels, all of classes that are in train."""
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
    data: str, labels: Labels, held_out: int | None, seed: int, image_ids: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`split_stratified` of the requested or default size, which leaves an image of each class in train.

    Args:
        image_ids: (n,) which image each sample is a tile of: whole images are held out, with all their tiles.
    """
    if image_ids is not None:
        _, first = np.unique(image_ids, return_index=True)
        _, held_out_images = _hold_out(data, labels[first], held_out, seed)
        is_held_out, labelled = np.isin(image_ids, image_ids[first[held_out_images]]), is_labelled(labels)
        return np.flatnonzero(labelled & ~is_held_out), np.flatnonzero(labelled & is_held_out)
    if held_out is not None and held_out < 1:
        raise RequestError(
            f"--held-out {held_out} leaves nothing to measure on or choose by: {shown(data)} has no val and test parts"
        )
    groups = indices_by_class(labels)
    count = sum(map(len, groups))
    max_held_out = count - len(groups)
    default = count // 5 if count < 2500 else min(count // 10, _MAX_SPLIT)
    if max_held_out == 0:
        raise RequestError(
            f"{shown(data)} has one labelled training image{' of each class' * (labels.dtype != np.float64)}, so none "
            "can be held out: give more, or val and test parts"
        )
    return split_stratified(labels, held_out if held_out is not None else min(max(1, default), max_held_out), seed)


def _take(source: Source, indices: NDArray[np.int64]) -> Source:
    return source if len(indices) == len(source) else IndexedSubset(source, indices)
