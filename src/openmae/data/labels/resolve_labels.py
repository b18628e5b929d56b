"""What DATA's labels are taken for: the names of classes, several of them for an image, or numbers to predict."""

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
_MAX_UNNAMED = 1000  # classes without names that are believed whatever the number of images


@dataclass(frozen=True, kw_only=True)
class ResolvedLabels:
    """The parts of DATA with their labels.

    Attributes:
        targets: of each part, see `targets_of`.
        classes: their names; none where labels are numbers.
        columns: the names of the numbers; none of classes.
        unmatched: rows of the label file that name no image of DATA.
        note: what a person has to know of what labels were taken for; empty where there is no doubt.
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
    """Take labels for what `task` says: classification or regression; None: for classes, if that is not in doubt.

    Args:
        advice: what to do about numbers with a fraction.

    Raises:
        RequestError: labels cannot be used so, or are fractional numbers and nobody said what they are.
    """
    if task == "regression":
        return _as_numbers(data, parts, label_file)
    ask = advice if task is None else None
    if label_file is None:
        parts = {split: _named(data, source, parts, ask) for split, source in parts.items()}
        table = None
    else:
        table = read_label_file(label_file, _names(parts))
        parts = _relabelled(parts, table)
    targets = {split: targets_of(source) for split, source in parts.items()}
    classes = _class_names(data, parts, targets, advice)
    note = ""
    if ask is not None and not (table is not None and table.is_of_columns):
        check_names(data if label_file is None else label_file, classes, ask)
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


def _named(data: str, source: Source, parts: dict[str, Source], ask: str | None) -> Source:
    """The source with its fractional numbers for class names; as it is where whole ones number its classes.

    Raises:
        RequestError: there are other numbers than that in some part, and nobody said that they are classes.
    """
    own, of_parts = stored_numbers(source), [stored_numbers(part) for part in parts.values()]
    if own is None:
        return source
    values = np.unique(np.concatenate([numbers for numbers in of_parts if numbers is not None]))
    values = values[~np.isnan(values)]
    is_fractional = bool((values != np.floor(values)).any())
    # One negative number, such as -1 on the Hugging Face hub, marks what is hidden; several are numbers.
    is_negative = (values < -1).sum() > 1
    names = [str(int(value)) if value == np.floor(value) else repr(value) for value in values.tolist()]
    if ask is not None and (is_fractional or is_negative):
        few = ", ".join(names[:MAX_SHOWN]) + (", …" if len(names) > MAX_SHOWN else "")
        what = "with a fraction" if is_fractional else "below 0"
        raise RequestError(
            f"the {len(names)} different labels of {shown(data)} are numbers, some {what} ({few}): {ask}"
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
    """One list for all parts; numbers where the names are unknown."""
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
