"""Exact copies and near-duplicates among a million images, without comparing all pairs.

Copies are found by sorting their keys. Hashes that differ in at most d of 64 bits agree on at least two of d + 2
bands of them (the pigeonhole principle), so only those that share two bands are compared, and every such pair is found.
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
MAX_IN_BAND = 5000  # hashes that share two bands are all compared; of more, each with so many of the next
MAX_EDGES = 4_000_000  # kept before they are merged


def equal_groups(keys: NDArray[np.void]) -> NDArray[np.int64]:
    """A group id for each key, the same where keys are equal: (n,)."""
    return np.unique(keys, return_inverse=True)[1].reshape(-1).astype(np.int64)


@dataclass(frozen=True)
class NearDuplicates:
    """Images that look the same.

    Attributes:
        groups: (n,) a group id for each image: the connected components of near-duplicate pairs.
        seen: (n,) bit mask of the splits of an image and of its direct near-duplicates.
        partner: (n,) a near-duplicate in another split, the first split preferred; -1 where there is none.
        is_complete: False where so many hashes share two bands that not all pairs were compared.
    """

    groups: NDArray[np.int64]
    seen: NDArray[np.uint8]
    partner: NDArray[np.int64]
    is_complete: bool


def find_near_duplicates(
    hashes: NDArray[np.uint64], thumbs: NDArray[np.uint8], parts: NDArray[np.uint8], distance: int = MAX_HASH_DISTANCE
) -> NearDuplicates:
    """Find all pairs whose hashes differ in at most `distance` bits and whose thumbnails are similar.

    Args:
        hashes: (n,).
        thumbs: (n, …) uint8.
        parts: (n,) the split of each, from 0: train, val, test.
    """
    n = len(hashes)
    if n == 0:
        no_ids = np.empty(0, np.int64)
        return NearDuplicates(no_ids, no_ids.astype(np.uint8), no_ids, True)
    # Images that are equal in both count once from here on, or a thousand copies would be half a million pairs.
    hashes, flat = np.ascontiguousarray(hashes), thumbs.reshape(n, -1)
    keys = as_keys(np.concatenate([hashes.view(np.uint8).reshape(n, 8), flat], axis=1))
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    which = which.reshape(-1)
    hashes, flat = hashes[first], flat[first]
    members = np.full((len(first), int(parts.max()) + 1), -1, np.int64)  # an image of each split with these values
    members[which, parts] = np.arange(n)
    similar = members.copy()  # an image of each split that is equal or similar
    links = _Links(len(first))
    for one, other in near_pairs(hashes, distance):
        apart = np.abs(flat[one].astype(np.int16) - flat[other]).mean(axis=1)
        one, other = one[apart <= MAX_THUMB_DIFFERENCE], other[apart <= MAX_THUMB_DIFFERENCE]
        for part in range(members.shape[1]):
            np.maximum.at(similar[:, part], one, members[other, part])
            np.maximum.at(similar[:, part], other, members[one, part])
        links.add(one, other)
    similar = similar[which]
    seen = np.bitwise_or.reduce(np.where(similar >= 0, 1 << np.arange(similar.shape[1]), 0), axis=1)
    similar[np.arange(n), parts] = -1
    partner = np.full(n, -1, np.int64)
    for part in reversed(range(similar.shape[1])):
        partner = np.where(similar[:, part] >= 0, similar[:, part], partner)
    return NearDuplicates(links.groups()[which], seen.astype(np.uint8), partner, not is_crowded(hashes, distance))


def as_keys(rows: NDArray[np.uint8]) -> NDArray[np.void]:
    """(n, k) bytes → (n,) keys that can be sorted and compared whole."""
    rows = np.ascontiguousarray(rows)
    return rows.view(np.dtype((np.void, rows.shape[1]))).reshape(-1)


def near_pairs(hashes: NDArray[np.uint64], distance: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs of indices whose hashes differ in at most `distance` bits, in chunks.

    A pair may come more than once. Where they are crowded (see `is_crowded`) some may be missing.
    """
    for band in _bands(hashes, distance):
        # Within a band by the whole hash: where there are too many, similar hashes are neighbours.
        order = np.lexsort((hashes, band))
        ordered, band = hashes[order], band[order]
        ends = np.searchsorted(band, band, side="right")
        starts, step = np.arange(len(order)), 1
        while step <= MAX_IN_BAND and len(starts := starts[starts + step < ends[starts]]):
            is_near = np.bitwise_count(ordered[starts] ^ ordered[starts + step]) <= distance
            if is_near.any():
                yield order[starts[is_near]], order[starts[is_near] + step]
            step += 1


def is_crowded(hashes: NDArray[np.uint64], distance: int) -> bool:
    """Whether so many hashes share two bands that `near_pairs` does not compare them all."""
    return any(np.unique(band, return_counts=True)[1].max() > MAX_IN_BAND for band in _bands(hashes, distance))


def _bands(hashes: NDArray[np.uint64], distance: int) -> Iterator[NDArray[np.uint64]]:
    """The hashes with only the bits of two of `distance` + 2 bands kept, for each pair of bands."""
    edges = np.linspace(0, 64, distance + 3).round().astype(int).tolist()
    masks = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
    for one, other in itertools.combinations(masks, 2):
        yield hashes & np.uint64(one | other)


class _Links:
    """Connected components of pairs that are added in chunks, in bounded memory."""

    def __init__(self, count: int) -> None:
        self.count, self.pending = count, 0
        self.edges: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        self.edges.append((one, other))
        self.pending += len(one)
        if self.pending > MAX_EDGES:
            groups = self.groups()
            _, first = np.unique(groups, return_index=True)
            self.edges, self.pending = [(np.arange(self.count), first[groups])], 0

    def groups(self) -> NDArray[np.int64]:
        """(count,) the id of each element's connected component."""
        if not self.edges:
            return np.arange(self.count)
        one, other = (np.concatenate(side) for side in zip(*self.edges, strict=True))
        graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(self.count, self.count))
        return connected_components(graph, directed=False)[1].astype(np.int64)
