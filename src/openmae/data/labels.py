"""Labelled data: which images train, which are held out, which give the final figure.

Labels are (n,) int64, or (n, K) float32 of 0 and 1 where an image may have several; -1 where there is none.
"""

import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmae.data.chance import Permutation
from openmae.data.folder import Ignored
from openmae.data.label_file import LabelledSource, LabelTable, read_label_file
from openmae.data.sources import SPLITS, Label, Source, open_source
from openmae.errors import RequestError, shown

Labels = NDArray[np.int64] | NDArray[np.float32]

_SUBSET_KEY, _SPLIT_KEY = 0x1ABE1, 0x5EED1  # a subset must not be drawn as the held-out split was
_LARGEST_SPLIT = 5000
_MOST_UNNAMED = 1000  # classes without names that are believed whatever the number of images


class Part:
    """The images of `source` at `indices`, in that order."""

    def __init__(self, source: Source, indices: ArrayLike) -> None:
        self.source, self.indices = source, np.array(indices, np.int64)
        assert self.indices.ndim == 1 and (self.indices >= 0).all() and (self.indices < len(source)).all()
        self.classes: tuple[str, ...] | None = source.classes
        self.ignored: Ignored = source.ignored

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(self._index(index))

    def label(self, index: int) -> Label:
        return self.source.label(self._index(index))

    def read(self, index: int) -> np.ndarray:
        return self.source.read(self._index(index))

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()}[{hashlib.sha256(self.indices.tobytes()).hexdigest()}]"

    def _index(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return int(self.indices[index])


class Oversampled:
    """A source that shows all its classes equally often: each has as many entries as the largest, its members in turn.

    Entries of the same image share its name. Images without a label are left out. For `--balance sampling`.
    """

    def __init__(self, source: Source, labels: Labels) -> None:
        self.source = source
        labels = _one_label(labels, "sampling")
        order = np.argsort(labels, kind="stable")
        self._members = order[np.searchsorted(labels[order], 0) :]  # by class
        _, self._starts, self._counts = np.unique(labels[self._members], return_index=True, return_counts=True)
        self._most = int(self._counts.max())
        self.classes: tuple[str, ...] | None = source.classes
        self.ignored: Ignored = source.ignored

    def __len__(self) -> int:
        return self._most * len(self._counts)

    def name(self, index: int) -> str:
        return self.source.name(self._index(index))

    def label(self, index: int) -> Label:
        return self.source.label(self._index(index))

    def read(self, index: int) -> np.ndarray:
        return self.source.read(self._index(index))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._members.tobytes() + self._counts.tobytes()).hexdigest()
        return f"{self.source.fingerprint()}[balanced {digest}]"

    def _index(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which, turn = divmod(index, self._most)
        return int(self._members[self._starts[which] + turn % self._counts[which]])


def labels_of(source: Source) -> NDArray[np.int64]:
    """The class of each image, -1 where there is none or several: (n,)."""
    found = (source.label(i) for i in range(len(source)))
    return np.fromiter((label if isinstance(label, int) else -1 for label in found), np.int64, count=len(source))


def targets_of(source: Source) -> Labels:
    """As `labels_of`, but (n, K) where a label file gives images several labels."""
    if isinstance(source, Part):
        return targets_of(source.source)[source.indices]
    return source.targets if isinstance(source, LabelledSource) else labels_of(source)


def parse_labels(text: str, available: int) -> int:
    """What `--labels` asks for, as `500` or `0.5%`, in images: at least 1, at most `available`; halves are rounded up.

    Raises RequestError for anything else.
    """
    match = re.fullmatch(r"\s*(?:(\d{1,15})|(\d{1,15}(?:\.\d{1,15})?)\s*%)\s*", text, re.ASCII)
    if not match:
        raise RequestError(f"--labels {shown(text)}: expected a number of images, as 500, or a share of them, as 1%")
    count = int(match[1]) if match[1] else int(Fraction(match[2]) * available / 100 + Fraction(1, 2))
    if Fraction(match[1] or match[2]) == 0:
        raise RequestError(f"--labels {shown(text)}: nothing to train on; ask for at least one image of each class")
    if count > available or (match[2] and Fraction(match[2]) > 100):
        raise RequestError(f"--labels {shown(text)}: there are {available} labelled images to train on; ask for fewer")
    return max(1, count)


def stratified(labels: Labels, count: int, seed: int = 0) -> NDArray[np.int64]:
    """A fixed choice of `count` images with the classes in proportion and at least one of each: sorted indices.

    For one seed a choice lies inside every other of at least twice its size. Several labels an image: a plain random
    choice, each inside every larger one. Raises RequestError if there are fewer images than that, or more classes.
    """
    groups = _members(labels)
    sizes = np.array([len(group) for group in groups], np.int64)
    if count > sizes.sum():
        raise RequestError(f"--labels {count}: there are {sizes.sum()} labelled images to train on; ask for fewer")
    if count < len(sizes):
        raise RequestError(
            f"--labels: {count} images for {len(sizes)} classes; ask for at least {len(sizes)}, one of each class"
        )
    seats = _allot(sizes, count, np.ones_like(sizes), sizes)
    return np.sort(_draw(groups, seats, _SUBSET_KEY, seed))


def split_stratified(labels: Labels, held_out: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold images out, the classes in proportion, at least one of each kept: sorted indices (the rest, those).

    Images without a label are in neither. Several labels an image: a plain random split. Raises RequestError if too
    many are asked for.
    """
    groups = _members(labels)
    sizes = np.array([len(group) for group in groups], np.int64)
    if held_out > (sizes - 1).sum():
        raise RequestError(
            f"--held-out {held_out}: of {sizes.sum()} labelled images {(sizes - 1).sum()} can be held out "
            "if one of each class is to train on; hold out fewer, or give a test part"
        )
    seats = _allot(sizes, held_out, np.zeros_like(sizes), sizes - 1)
    held = np.sort(_draw(groups, seats, _SPLIT_KEY, seed))
    return np.setdiff1d(np.flatnonzero(_is_labelled(labels)), held), held


def class_weights(labels: Labels, num_classes: int) -> NDArray[np.float32]:
    """n / (K · count) for each class, 0 for one without images: (K,). For `--balance weights`."""
    labels = _one_label(labels, "weights")
    counts = np.bincount(labels[labels >= 0], minlength=num_classes)
    weights = counts.sum() / (num_classes * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)


@dataclass(frozen=True)
class LabelledData:
    """What a task with labels works on; every image in it has a label.

    Attributes:
        train: after the held-out split was taken out and `--labels` has chosen.
        validation: what things are chosen by: DATA's val part if there is a test part too, else a split of train.
        test: what the final figure is of: DATA's test part, else its val part.
        unlabelled: images left out because they have no label, of all parts.
        unmatched: rows of the label file that name no image of DATA.
    """

    train: Source
    validation: Source | None
    test: Source | None
    classes: tuple[str, ...]
    is_multi_label: bool
    is_validation_split: bool
    report_name: str  # "test", "val" or "split of train"
    unlabelled: int
    unmatched: int

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def report(self) -> Source:
        """What the final figure is of."""
        source = self.test if self.test is not None else self.validation
        assert source is not None
        return source

    def split_names(self) -> list[str]:
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
    data: str,
    *,
    labels: str | None,
    label_file: str | None,
    held_out: int | None,
    seed_of_split: int = 0,
    background: float,
    max_pixels: int,
    needs_choice: bool = False,
) -> LabelledData:
    """Open the parts of DATA that have labels, and split train where a part is missing.

    The split comes first, then `labels` chooses from the rest (a share is one of the rest): runs that differ in
    `--labels` are measured on the same images.

    Args:
        labels: how many images to train on, see `parse_labels`; None for all.
        held_out: the size of the split; None for a fifth below 2,500 images, above a tenth, at most 5,000.
        needs_choice: something is chosen on the way (a rate, the best step), which must not be done on the test part.

    Raises:
        RequestError: DATA or its labels cannot be used, or an option does not fit them.
    """
    opened = {split: open_source(data, split, background=background, max_pixels=max_pixels) for split in SPLITS}
    parts = {split: source for split, source in opened.items() if source is not None}
    unmatched, is_multi_label = 0, False
    if label_file is not None:
        names = [source.name(i) for source in parts.values() for i in range(len(source))]
        table = read_label_file(label_file, names)
        parts, unmatched, is_multi_label = _relabelled(parts, table), table.unmatched, table.is_multi_label
    targets = {split: targets_of(source) for split, source in parts.items()}
    classes = _class_names(data, parts, targets)
    check_labelled(data, targets["train"], classes)
    for split in ("val", "test"):
        if split in parts:
            check_part(data, split, targets[split], targets["train"], classes)
    labelled = {split: np.flatnonzero(_is_labelled(part)) for split, part in targets.items()}
    held_parts: dict[str, Source] = {
        split: _take(parts[split], labelled[split]) for split in ("val", "test") if split in parts
    }
    rest, held = labelled["train"], labelled["train"][:0]
    has_both = len(held_parts) == 2
    report_name = next((split for split in ("test", "val") if split in held_parts), "split of train")
    if has_both and held_out:
        raise RequestError(f"--held-out {held_out} splits train, but {shown(data)} has a val part: leave it out")
    if not has_both and (needs_choice or not held_parts or held_out):
        rest, held = _hold_out(data, targets["train"], held_out, seed_of_split)
    if labels is not None:
        rest = rest[stratified(targets["train"][rest], parse_labels(labels, len(rest)), seed_of_split)]
    return LabelledData(
        train=_take(parts["train"], rest),
        validation=Part(parts["train"], held) if len(held) else held_parts["val"] if has_both else None,
        test=held_parts.get(report_name),
        classes=classes,
        is_multi_label=is_multi_label,
        is_validation_split=len(held) > 0,
        report_name=report_name,
        unlabelled=sum(len(parts[split]) - len(indices) for split, indices in labelled.items()),
        unmatched=unmatched,
    )


def check_labelled(data: str, labels: Labels, classes: tuple[str, ...]) -> None:
    """Raise RequestError unless some training images have labels, and not all the same."""
    known = labels[_is_labelled(labels)]
    if len(known) == 0:
        raise RequestError(
            f"no training image of {shown(data)} has a label: put every image into a class folder, add a `label` "
            "column, or give --label-file"
        )
    if (known == known[0]).all():
        which = " and ".join(shown(classes[i]) for i in _present(known)) or "none"
        raise RequestError(
            f"all {len(known)} labelled training images of {shown(data)} have one label ({which}): "
            "at least two classes are needed"
        )


def check_part(data: str, part: str, labels: Labels, train_labels: Labels, classes: tuple[str, ...]) -> None:
    """Raise RequestError unless the `part` (val or test) has labels, and only classes that are in train."""
    known = labels[_is_labelled(labels)]
    if len(known) == 0:
        raise RequestError(
            f"the {part} part of {shown(data)} has no labels: give them in --label-file, or move it away"
        )
    missing = np.setdiff1d(_present(known), _present(train_labels))
    if len(missing):
        first = missing[0]
        count = int((known[:, first] > 0).sum() if known.ndim == 2 else (known == first).sum())
        more = f", nor of {len(missing) - 1} other classes in {part}" if len(missing) > 1 else ""
        raise RequestError(
            f"the {part} part of {shown(data)} has {count} images of class {shown(classes[first])}, "
            f"but train has none of it{more}: add some to train, or take them out of {part}"
        )


def _hold_out(
    data: str, labels: Labels, held_out: int | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`split_stratified` of the size asked for or, by default, of one that leaves a member of each class."""
    if held_out is not None and held_out < 1:
        raise RequestError(
            f"--held-out {held_out} leaves nothing to measure on or choose by: {shown(data)} has no val and test parts"
        )
    groups = _members(labels)
    count = sum(map(len, groups))
    most = count - len(groups)
    default = count // 5 if count < 2500 else min(count // 10, _LARGEST_SPLIT)
    if most == 0:
        raise RequestError(
            f"{shown(data)} has one labelled training image of each class, so none can be held out: give more, "
            "or val and test parts"
        )
    return split_stratified(labels, held_out if held_out is not None else min(max(1, default), most), seed)


def _relabelled(parts: dict[str, Source], table: LabelTable) -> dict[str, Source]:
    found: dict[str, Source] = {}
    start = 0
    for split, source in parts.items():
        found[split] = LabelledSource(source, table.targets[start : start + len(source)], table.classes)
        start += len(source)
    return found


def _class_names(data: str, parts: dict[str, Source], targets: dict[str, Labels]) -> tuple[str, ...]:
    """One list for all parts; numbers where the names are unknown."""
    known = {source.classes for source in parts.values() if source.classes is not None}
    if len(known) > 1:
        raise RequestError(
            f"the parts of {shown(data)} ({', '.join(parts)}) differ in their class names: make them one"
        )
    highest = max(int(labels.max(initial=-1)) for labels in targets.values() if labels.ndim == 1) if not known else -1
    if highest >= max(_MOST_UNNAMED, *map(len, targets.values())):
        raise RequestError(f"{shown(data)} has label {highest} but fewer images than that: number the classes from 0")
    classes = known.pop() if known else tuple(map(str, range(highest + 1)))
    for split, labels in targets.items():
        if labels.ndim == 1 and labels.max(initial=-1) >= len(classes):
            raise RequestError(f"the {split} part of {shown(data)} has label {labels.max()}, beyond the class names")
    return classes


def _take(source: Source, indices: NDArray[np.int64]) -> Source:
    return source if len(indices) == len(source) else Part(source, indices)


def _one_label(labels: Labels, balance: str) -> NDArray[np.int64]:
    if labels.ndim == 2:
        raise RequestError(f"--balance {balance} needs one label an image, and these have several: leave it out")
    return labels.astype(np.int64)


def _is_labelled(labels: Labels) -> NDArray[np.bool_]:
    return (labels if labels.ndim == 1 else labels[:, 0]) >= 0


def _present(labels: Labels) -> NDArray[np.int64]:
    """The ids of the classes that some image has."""
    if labels.ndim == 2:
        return np.flatnonzero((labels > 0).any(axis=0))
    return np.unique(labels[labels >= 0]).astype(np.int64)


def _members(labels: Labels) -> list[NDArray[np.int64]]:
    """The labelled images' indices by class, classes without any left out; several labels an image: as one class."""
    if labels.ndim == 2:
        return [np.flatnonzero(_is_labelled(labels))]
    order = np.argsort(labels, kind="stable")
    order = order[np.searchsorted(labels[order], 0) :]
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


def _allot(
    sizes: NDArray[np.int64], count: int, least: NDArray[np.int64], most: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Share `count` out in proportion to `sizes` by the largest remainder, each within `least` and `most`.

    Whole numbers throughout. With `least` 1, and `count` doubled or more, no share shrinks: x >= 1 rounded up is at
    most 2x rounded down. That is why subsets nest.
    """
    seats, is_free = np.zeros_like(sizes), np.ones(len(sizes), bool)
    while is_free.any():
        left, total = count - seats[~is_free].sum(), sizes[is_free].sum()
        below, above = is_free & (sizes * left < least * total), is_free & (sizes * left > most * total)
        if not (below | above).any():
            seats[is_free], remainders = np.divmod(sizes[is_free] * left, total)
            largest = np.argsort(-remainders, kind="stable")[: count - seats.sum()]
            seats[np.flatnonzero(is_free)[largest]] += 1
            break
        seats[below], seats[above] = least[below], most[above]
        is_free &= ~(below | above)
    assert seats.sum() == count
    return seats


def _draw(groups: list[NDArray[np.int64]], seats: NDArray[np.int64], *key: int) -> NDArray[np.int64]:
    """The first `seats` of each group in a fixed random order of its members."""
    drawn = [
        group[Permutation(len(group), *key, number)(np.arange(count))]
        for number, (group, count) in enumerate(zip(groups, seats.tolist(), strict=True))
    ]
    return np.concatenate([np.empty(0, np.int64), *drawn])
