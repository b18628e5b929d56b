"""Interpreting DATA's labels: as class names, several class names for an image, or regression targets."""

from dataclasses import dataclass

import numpy as np

from openmae.data.labels.label_file import LabelledSource, LabelTable, read_label_file
from openmae.data.labels.number_file import read_number_file
from openmae.data.labels.numbers import (
    MAX_SHOWN,
    NumberedSource,
    check_names,
    kind_of_names,
    range_of_names,
    stored_numbers,
    with_number_labels,
)
from openmae.data.labels.subsets import Labels, targets_of
from openmae.data.sources.open import Source
from openmae.errors import RequestError, shown

ADVICE = "--task regression predicts the numbers, --task classification takes each for the name of a class"
_MAX_UNNAMED = 1000  # this many classes without names are accepted even of fewer images


@dataclass(frozen=True, kw_only=True)
class ResolvedLabels:
    """The splits of DATA with interpreted labels.

    Attributes:
        parts: the splits by name.
        targets: of each split, see `targets_of`.
        classes: names of the classes; empty for regression.
        columns: names of the regression targets; empty for classification.
        unmatched: rows of the label file that name no image of DATA.
        note: a remark on how labels were interpreted; empty where there is no doubt.
    """

    parts: dict[str, Source]
    targets: dict[str, Labels]
    classes: tuple[str, ...]
    columns: tuple[str, ...] = ()
    is_multi_label: bool = False
    unmatched: int = 0
    note: str = ""


def resolve_labels(
    data: str, parts: dict[str, Source], label_file: str | None, task: str | None, advice: str = ADVICE
) -> ResolvedLabels:
    """Interpret labels by `task`: classification or regression; None: classification, unless labels look like numbers.

    Args:
        advice: for the error message: what to do about fractional numbers.

    Raises:
        RequestError: labels do not fit the task, or are fractional numbers and no task is given.
    """
    if task == "regression":
        return _as_numbers(data, parts, label_file)
    advice_if_unsure = advice if task is None else None
    if label_file is None:
        parts = {split: _with_class_labels(data, source, parts, advice_if_unsure) for split, source in parts.items()}
        table = None
    else:
        table = read_label_file(label_file, _names(parts))
        parts = _relabelled(parts, table)
    targets = {split: targets_of(source) for split, source in parts.items()}
    classes = _class_names(data, parts, targets, advice)
    note = ""
    if advice_if_unsure is not None and not (table is not None and table.is_of_columns):
        check_names(data if label_file is None else label_file, classes, advice_if_unsure)
        if kind_of_names(classes) == "whole":
            note = (
                f"{len(classes)} whole numbers ({range_of_names(classes)}) are taken for the names of classes; "
                "--task regression would predict them"
            )
    return ResolvedLabels(
        parts=parts,
        targets=targets,
        classes=classes,
        is_multi_label=table is not None and table.is_multi_label,
        unmatched=0 if table is None else table.unmatched,
        note=note,
    )


def _as_numbers(data: str, parts: dict[str, Source], label_file: str | None) -> ResolvedLabels:
    found: dict[str, NumberedSource] = {}
    unmatched = 0
    if label_file is None:
        found = {split: with_number_labels(data, source) for split, source in parts.items()}
    else:
        table = read_number_file(label_file, _names(parts))
        unmatched = table.unmatched
        targets = np.split(table.targets, np.cumsum([len(source) for source in parts.values()])[:-1])
        for (split, source), own in zip(parts.items(), targets, strict=True):
            found[split] = NumberedSource(source, own, table.columns)
    return ResolvedLabels(
        parts=dict(found),
        targets={split: source.targets for split, source in found.items()},
        classes=(),
        columns=found["train"].columns,
        unmatched=unmatched,
    )


def _with_class_labels(data: str, source: Source, parts: dict[str, Source], advice_if_unsure: str | None) -> Source:
    """The source with its fractional numbers as class names; unchanged where its numbers are class ids.

    Raises:
        RequestError: some split has numbers that are no class ids, and classification was not requested.
    """
    own, of_parts = stored_numbers(source), [stored_numbers(part) for part in parts.values()]
    if own is None:
        return source
    values = np.unique(np.concatenate([numbers for numbers in of_parts if numbers is not None]))
    values = values[~np.isnan(values)]
    is_fractional = bool((values != np.floor(values)).any())
    # One negative number, such as -1 on the Hugging Face hub, marks hidden labels; several are regression targets.
    is_negative = (values < -1).sum() > 1
    names = [str(int(value)) if value == np.floor(value) else repr(value) for value in values.tolist()]
    if advice_if_unsure is not None and (is_fractional or is_negative):
        few = ", ".join(names[:MAX_SHOWN]) + (", …" if len(names) > MAX_SHOWN else "")
        what = "with a fraction" if is_fractional else "below 0"
        raise RequestError(
            f"the {len(names)} different labels of {shown(data)} are numbers, some {what} ({few}): {advice_if_unsure}"
        )
    if not is_fractional:
        return source
    labels = np.where(np.isnan(own), -1, np.searchsorted(values, own))
    return LabelledSource(source, labels.astype(np.int64), names)


def _names(parts: dict[str, Source]) -> list[str]:
    return [source.name(i) for source in parts.values() for i in range(len(source))]


def _relabelled(parts: dict[str, Source], table: LabelTable) -> dict[str, Source]:
    found: dict[str, Source] = {}
    start = 0
    for split, source in parts.items():
        found[split] = LabelledSource(source, table.targets[start : start + len(source)], table.classes)
        start += len(source)
    return found


def _class_names(data: str, parts: dict[str, Source], targets: dict[str, Labels], advice: str) -> tuple[str, ...]:
    """The class names that all splits share; numbers where the names are unknown."""
    known = {source.classes for source in parts.values() if source.classes is not None}
    if len(known) > 1:
        raise RequestError(
            f"the parts of {shown(data)} ({', '.join(parts)}) differ in their class names: make them one"
        )
    highest = max(int(labels.max(initial=-1)) for labels in targets.values() if labels.ndim == 1) if not known else -1
    if highest >= max(_MAX_UNNAMED, *map(len, targets.values())):
        raise RequestError(
            f"{shown(data)} has label {highest} but fewer images than that: number the classes from 0; if labels are "
            f"no classes, {advice}"
        )
    classes = known.pop() if known else tuple(map(str, range(highest + 1)))
    for split, labels in targets.items():
        if labels.ndim == 1 and labels.max(initial=-1) >= len(classes):
            raise RequestError(f"the {split} part of {shown(data)} has label {labels.max()}, beyond the class names")
    return classes
