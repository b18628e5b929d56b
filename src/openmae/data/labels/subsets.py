"""Subsets, splits and class weights from the labels of a source's images.

Labels are (n,) int64 class ids or, multi-label, (n, K) float32 of 0 and 1; -1 where there is none. Regression targets
are (n, T) float64; a row of NaN where there is none.
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

_SUBSET_KEY, _SPLIT_KEY = 0x1ABE1, 0x5EED1  # differ, so that a subset is drawn independently of the held-out split


class Oversampled(SourceView):
    """A class-balanced view: each class has as many entries as the largest, its images repeated in turn.

    Repeated entries share a name. Images without a label are left out. For `--balance sampling`.
    """

    def __init__(self, source: Source, labels: Labels) -> None:
        super().__init__(source)
        labels = _one_label(labels, "sampling")
        order = np.argsort(labels, kind="stable")
        self._members = order[np.searchsorted(labels[order], 0) :]  # by class
        _, self._starts, self._counts = np.unique(labels[self._members], return_index=True, return_counts=True)
        self._max_count = int(self._counts.max())

    def __len__(self) -> int:
        return self._max_count * len(self._counts)

    def source_index(self, index: int) -> int:
        group, position = divmod(index, self._max_count)
        return int(self._members[self._starts[group] + position % self._counts[group]])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._members.tobytes() + self._counts.tobytes()).hexdigest()
        return f"{self.source.fingerprint()}[balanced {digest}]"


def labels_of(source: Source) -> NDArray[np.int64]:
    """The class of each image, -1 where there is none or several: (n,)."""
    labels = (source.label(i) for i in range(len(source)))
    return np.fromiter((label if isinstance(label, int) else -1 for label in labels), np.int64, count=len(source))


def targets_of(source: Source) -> Labels:
    """As `labels_of`, but (n, K) for multi-label files and (n, T) for regression targets."""
    if isinstance(source, IndexedSubset):
        return targets_of(source.source)[source.indices]
    return source.targets if isinstance(source, LabelledSource | NumberedSource) else labels_of(source)


def parse_labels(text: str, available: int) -> int:
    """The number of images that `--labels` requests, as `500` or `0.5%` of `available`; at least 1, halves rounded up.

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
    """A fixed stratified sample of `count` images, at least one of each class: sorted indices.

    For one seed a sample is contained in every other of at least twice its size. Of multi-label data and regression
    targets the sample is plainly random, and contained in every larger one. Raises RequestError if there are fewer
    images than `count`, or more classes.
    """
    groups = indices_by_class(labels)
    sizes = np.array([len(group) for group in groups], np.int64)
    if count > sizes.sum():
        raise RequestError(f"--labels {count}: there are {sizes.sum()} labelled images to train on; ask for fewer")
    if count < len(sizes):
        raise RequestError(
            f"--labels: {count} images for {len(sizes)} classes; ask for at least {len(sizes)}, one of each class"
        )
    counts = _allocate(sizes, count, np.ones_like(sizes), sizes)
    return np.sort(_draw(groups, counts, _SUBSET_KEY, seed))


def split_stratified(labels: Labels, held_out: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A stratified split that leaves at least one image of each class: sorted indices (the rest, the held-out ones).

    Images without a label are in neither. Multi-label data and regression targets are split at random. Raises
    RequestError if too many are requested.
    """
    groups = indices_by_class(labels)
    sizes = np.array([len(group) for group in groups], np.int64)
    if held_out > (sizes - 1).sum():
        of_each = " of each class" if labels.ndim == 1 else ""
        raise RequestError(
            f"--held-out {held_out}: of {sizes.sum()} labelled images {(sizes - 1).sum()} can be held out "
            f"if one{of_each} is to train on; hold out fewer, or give a test part"
        )
    counts = _allocate(sizes, held_out, np.zeros_like(sizes), sizes - 1)
    held_out_ids = np.sort(_draw(groups, counts, _SPLIT_KEY, seed))
    return np.setdiff1d(np.flatnonzero(is_labelled(labels)), held_out_ids), held_out_ids


def class_weights(labels: Labels, num_classes: int) -> NDArray[np.float32]:
    """Loss weights n / (K · count) of the classes, 0 for one without images: (K,). For `--balance weights`."""
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
    """The ids of the classes with at least one image."""
    if labels.ndim == 2:
        return np.flatnonzero((labels > 0).any(axis=0))
    return np.unique(labels[labels >= 0]).astype(np.int64)


def indices_by_class(labels: Labels) -> list[NDArray[np.int64]]:
    """Indices of the labelled images by class, without empty classes; multi-label and regression: one group."""
    if labels.ndim == 2:
        return [np.flatnonzero(is_labelled(labels))]
    order = np.argsort(labels, kind="stable")
    order = order[np.searchsorted(labels[order], 0) :]
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


def _allocate(
    sizes: NDArray[np.int64], count: int, minimum: NDArray[np.int64], maximum: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Divide `count` in proportion to `sizes` (largest remainder method), each part within `minimum` and `maximum`.

    In integers throughout. With `minimum` 1, no part shrinks when `count` at least doubles: x >= 1 rounded up is at
    most 2x rounded down. That is why subsets nest.
    """
    counts, is_free = np.zeros_like(sizes), np.ones(len(sizes), bool)
    while is_free.any():
        left, total = count - counts[~is_free].sum(), sizes[is_free].sum()
        below, above = is_free & (sizes * left < minimum * total), is_free & (sizes * left > maximum * total)
        if not (below | above).any():
            counts[is_free], remainders = np.divmod(sizes[is_free] * left, total)
            largest = np.argsort(-remainders, kind="stable")[: count - counts.sum()]
            counts[np.flatnonzero(is_free)[largest]] += 1
            break
        counts[below], counts[above] = minimum[below], maximum[above]
        is_free &= ~(below | above)
    assert counts.sum() == count
    return counts


def _draw(groups: list[NDArray[np.int64]], counts: NDArray[np.int64], *key: int) -> NDArray[np.int64]:
    """The first `counts` members of each group, in a fixed random order."""
    drawn = [
        group[Permutation(len(group), *key, number)(np.arange(count))]
        for number, (group, count) in enumerate(zip(groups, counts.tolist(), strict=True))
    ]
    return np.concatenate([np.empty(0, np.int64), *drawn])
