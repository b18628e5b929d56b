"""Labels of a source's images: the subsets, splits and weights that are made from them.

Labels are (n,) int64, or (n, K) float32 of 0 and 1 where an image may have several; -1 where there is none. Numbers to
predict are (n, T) float64; a row of NaN where there is none.
"""

import hashlib
import re
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from openmae.data.labels.label_file import LabelledSource
from openmae.data.labels.numbers import NumberedSource
from openmae.data.randomness import Permutation
from openmae.data.sources.open import Source
from openmae.data.sources.views import IndexedSubset, SourceView
from openmae.errors import RequestError, shown

Labels = NDArray[np.int64] | NDArray[np.float32] | NDArray[np.float64]

_SUBSET_KEY, _SPLIT_KEY = 0x1ABE1, 0x5EED1  # a subset must not be drawn as the held-out split was


class Oversampled(SourceView):
    """A source that shows all its classes equally often: each has as many entries as the largest, its members in turn.

    Entries of the same image share its name. Images without a label are left out. For `--balance sampling`.
    """

    def __init__(self, source: Source, labels: Labels) -> None:
        super().__init__(source)
        labels = _one_label(labels, "sampling")
        order = np.argsort(labels, kind="stable")
        self._members = order[np.searchsorted(labels[order], 0) :]  # by class
        _, self._starts, self._counts = np.unique(labels[self._members], return_index=True, return_counts=True)
        self._most = int(self._counts.max())

    def __len__(self) -> int:
        return self._most * len(self._counts)

    def source_index(self, index: int) -> int:
        which, turn = divmod(index, self._most)
        return int(self._members[self._starts[which] + turn % self._counts[which]])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._members.tobytes() + self._counts.tobytes()).hexdigest()
        return f"{self.source.fingerprint()}[balanced {digest}]"


def labels_of(source: Source) -> NDArray[np.int64]:
    """The class of each image, -1 where there is none or several: (n,)."""
    found = (source.label(i) for i in range(len(source)))
    return np.fromiter((label if isinstance(label, int) else -1 for label in found), np.int64, count=len(source))


def targets_of(source: Source) -> Labels:
    """As `labels_of`, but (n, K) where a label file gives images several labels, (n, T) where labels are numbers."""
    if isinstance(source, IndexedSubset):
        return targets_of(source.source)[source.indices]
    return source.targets if isinstance(source, LabelledSource | NumberedSource) else labels_of(source)


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

    For one seed a choice lies inside every other of at least twice its size. Several labels an image, or numbers: a
    plain random choice, each inside every larger one. Raises RequestError if there are fewer images than that, or more
    classes.
    """
    groups = indices_by_class(labels)
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

    Images without a label are in neither. Several labels an image, or numbers: a plain random split. Raises
    RequestError if too many are asked for.
    """
    groups = indices_by_class(labels)
    sizes = np.array([len(group) for group in groups], np.int64)
    if held_out > (sizes - 1).sum():
        of_each = " of each class" if labels.ndim == 1 else ""
        raise RequestError(
            f"--held-out {held_out}: of {sizes.sum()} labelled images {(sizes - 1).sum()} can be held out "
            f"if one{of_each} is to train on; hold out fewer, or give a test part"
        )
    seats = _allot(sizes, held_out, np.zeros_like(sizes), sizes - 1)
    held = np.sort(_draw(groups, seats, _SPLIT_KEY, seed))
    return np.setdiff1d(np.flatnonzero(is_labelled(labels)), held), held


def class_weights(labels: Labels, num_classes: int) -> NDArray[np.float32]:
    """n / (K · count) for each class, 0 for one without images: (K,). For `--balance weights`."""
    labels = _one_label(labels, "weights")
    counts = np.bincount(labels[labels >= 0], minlength=num_classes)
    weights = counts.sum() / (num_classes * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)


def _one_label(labels: Labels, balance: str) -> NDArray[np.int64]:
    if labels.ndim == 2:
        raise RequestError(f"--balance {balance} needs one label an image, and these have several: leave it out")
    return labels.astype(np.int64)


def is_labelled(labels: Labels) -> NDArray[np.bool_]:
    """Which images have a label, or several: (n,)."""
    if labels.dtype == np.float64:
        return ~np.isnan(labels[:, 0])
    return (labels if labels.ndim == 1 else labels[:, 0]) >= 0


def classes_present(labels: Labels) -> NDArray[np.int64]:
    """The ids of the classes that some image has."""
    if labels.ndim == 2:
        return np.flatnonzero((labels > 0).any(axis=0))
    return np.unique(labels[labels >= 0]).astype(np.int64)


def indices_by_class(labels: Labels) -> list[NDArray[np.int64]]:
    """The labelled images' indices by class, classes without any left out; several labels, numbers: as one class."""
    if labels.ndim == 2:
        return [np.flatnonzero(is_labelled(labels))]
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
