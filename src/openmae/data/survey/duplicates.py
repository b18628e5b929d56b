"""Exact copies and near-duplicates among a million images, without comparing all pairs.

Copies are found by sorting digests. Near-duplicates are pairs of perceptual hashes that differ in at most d of their 64
bits. Cut into d + 2 bands of bits, such hashes agree on at least two bands (the pigeonhole principle), so only hashes
that share two bands are compared, and every such pair is found.

Two bands of d + 2, and not one of d + 1: for d = 4 that is 15 sorts by 21 bits instead of 5 by 13, and among a million
hashes a hundredth of the comparisons.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MAX_HASH_DISTANCE = 4  # bits of the perceptual hashes that may differ
MAX_THUMB_DIFFERENCE = 20.0  # mean, in 0..255: the same shape in other colours is another image
# Each hash is compared with this many of those that share two bands with it: more are no longer searched completely.
MAX_IN_BAND = 5000
MAX_EDGES = 4_000_000  # pairs that are kept until they are reduced to their connected components


def equal_groups(keys: NDArray[np.void]) -> NDArray[np.int64]:
    """A group id for each key, the same where keys are equal: (n,)."""
    return np.unique(keys, return_inverse=True)[1].reshape(-1).astype(np.int64)


@dataclass(frozen=True)
class NearDuplicates:
    """For each of n images, which others look the same. Equal images look the same, too.

    Attributes:
        groups: (n,) a group id for each image: the connected components of near-duplicate pairs.
        split_bits: (n,) bit s is set where split s holds the image itself or a direct near-duplicate of it.
        match_in_other_split: (n,) the index of a direct near-duplicate in another split, in the first one that has any;
            -1 where none has.
        is_complete: False where so many hashes share two bands that not all pairs were compared.
    """

    groups: NDArray[np.int64]
    split_bits: NDArray[np.uint8]
    match_in_other_split: NDArray[np.int64]
    is_complete: bool


def find_near_duplicates(
    hashes: NDArray[np.uint64],
    thumbs: NDArray[np.uint8],
    splits: NDArray[np.uint8],
    max_distance: int = MAX_HASH_DISTANCE,
) -> NearDuplicates:
    """Find the pairs whose hashes differ in at most `max_distance` bits and whose thumbnails are similar.

    All of them, unless the result says that it is not complete.

    Args:
        hashes: (n,) perceptual hashes.
        thumbs: (n, …) uint8.
        splits: (n,) the number of each image's split: 0 train, 1 val, 2 test.
    """
    n = len(hashes)
    if n == 0:
        no_ids = np.empty(0, np.int64)
        return NearDuplicates(no_ids, no_ids.astype(np.uint8), no_ids, True)
    # From here on images that are equal in both are one, or a thousand copies would be half a million pairs.
    hashes, thumbs = np.ascontiguousarray(hashes), thumbs.reshape(n, -1)
    keys = as_keys(np.concatenate([hashes.view(np.uint8).reshape(n, 8), thumbs], axis=1))
    _, first, unique_ids = np.unique(keys, return_index=True, return_inverse=True)
    unique_ids = unique_ids.reshape(-1)  # (n,) which of the unique ones each image is
    hashes, thumbs = hashes[first], thumbs[first]
    equal = np.full((len(first), int(splits.max()) + 1), -1, np.int64)  # an image of each split that is equal
    equal[unique_ids, splits] = np.arange(n)
    similar = equal.copy()  # an image of each split that is equal or similar
    components = _Components(len(first))
    for left, right in near_pairs(hashes, max_distance):
        difference = np.abs(thumbs[left].astype(np.int16) - thumbs[right]).mean(axis=1)
        is_similar = difference <= MAX_THUMB_DIFFERENCE
        left, right = left[is_similar], right[is_similar]
        for split in range(equal.shape[1]):
            np.maximum.at(similar[:, split], left, equal[right, split])
            np.maximum.at(similar[:, split], right, equal[left, split])
        components.add(left, right)
    similar = similar[unique_ids]
    split_bits = np.bitwise_or.reduce(np.where(similar >= 0, 1 << np.arange(similar.shape[1]), 0), axis=1)
    similar[np.arange(n), splits] = -1
    match = np.full(n, -1, np.int64)
    for split in reversed(range(similar.shape[1])):  # the first split comes last and overwrites the others
        match = np.where(similar[:, split] >= 0, similar[:, split], match)
    is_complete = not is_truncated(hashes, max_distance)
    return NearDuplicates(components.groups()[unique_ids], split_bits.astype(np.uint8), match, is_complete)


def as_keys(rows: NDArray[np.uint8]) -> NDArray[np.void]:
    """(n, k) bytes → (n,) keys that can be sorted and compared whole."""
    rows = np.ascontiguousarray(rows)
    return rows.view(np.dtype((np.void, rows.shape[1]))).reshape(-1)


def near_pairs(hashes: NDArray[np.uint64], max_distance: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs of indices whose hashes differ in at most `max_distance` bits, in chunks.

    A pair may come more than once. Some may be missing where `is_truncated`.
    """
    for masked in _hashes_in_two_bands(hashes, max_distance):
        # Equal ones are sorted by the whole hash: where there are too many of them, neighbours are the most similar.
        order = np.lexsort((hashes, masked))
        ordered, masked = hashes[order], masked[order]
        ends = np.searchsorted(masked, masked, side="right")
        starts = np.arange(len(order))
        # Each hash is compared with the next, then with the one after it, as long as that shares its two bands.
        for step in range(1, MAX_IN_BAND + 1):
            starts = starts[starts + step < ends[starts]]
            if not len(starts):
                break
            is_near = np.bitwise_count(ordered[starts] ^ ordered[starts + step]) <= max_distance
            if is_near.any():
                yield order[starts[is_near]], order[starts[is_near] + step]


def is_truncated(hashes: NDArray[np.uint64], max_distance: int) -> bool:
    """Whether so many hashes share two bands that `near_pairs` does not compare them all."""
    return any(
        np.unique(masked, return_counts=True)[1].max() > MAX_IN_BAND
        for masked in _hashes_in_two_bands(hashes, max_distance)
    )


def _hashes_in_two_bands(hashes: NDArray[np.uint64], max_distance: int) -> Iterator[NDArray[np.uint64]]:
    """For each pair of the `max_distance` + 2 bands, the hashes with all other bits set to 0."""
    edges = np.linspace(0, 64, max_distance + 3).round().astype(int).tolist()
    bands = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
    for one, other in itertools.combinations(bands, 2):
        yield hashes & np.uint64(one | other)


class _Components:
    """Connected components of pairs that are added in chunks, in bounded memory."""

    def __init__(self, count: int) -> None:
        self.count, self.num_pending = count, 0
        self.edges: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        self.edges.append((left, right))
        self.num_pending += len(left)
        if self.num_pending > MAX_EDGES:  # one edge for each element, to the first of its component, says the same
            groups = self.groups()
            _, first = np.unique(groups, return_index=True)
            self.edges, self.num_pending = [(np.arange(self.count), first[groups])], 0

    def groups(self) -> NDArray[np.int64]:
        """(count,) the id of each element's connected component."""
        if not self.edges:
            return np.arange(self.count)
        left, right = (np.concatenate(side) for side in zip(*self.edges, strict=True))
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(self.count, self.count))
        return connected_components(graph, directed=False)[1].astype(np.int64)
