"""Which images are the same, and which look the same, among a million: without comparing each with each.

Equal ones are found by sorting their keys. Hashes that differ in at most d of 64 bits agree on at least two of d + 2
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

MAX_HASH_DISTANCE = 4  # bits that may differ
MAX_THUMB_DIFFERENCE = (
    20.0  # mean difference of the tiny pictures, in 0..255: the same shape in other colours is another image
)
MAX_IN_BAND = 5000  # that share two bands are all compared; of more, each with so many that follow in order
MAX_EDGES = 4_000_000  # kept before they are merged


def equal_groups(keys: NDArray[np.void]) -> NDArray[np.int64]:
    """A number for each key, the same where they are equal: (n,)."""
    return np.unique(keys, return_inverse=True)[1].reshape(-1).astype(np.int64)


@dataclass(frozen=True)
class NearDuplicates:
    """Which images look the same.

    Attributes:
        groups: (n,) a number for each image; linked images, directly or through others, have the same.
        seen: (n,) bits of the parts that an image or one that looks the same directly belongs to.
        partner: (n,) an image of another part that looks the same, the lowest part first; -1 where there is none.
        is_complete: False where so many hashes share two bands that not all were compared.
    """

    groups: NDArray[np.int64]
    seen: NDArray[np.uint8]
    partner: NDArray[np.int64]
    is_complete: bool


def find_near_duplicates(
    hashes: NDArray[np.uint64], thumbs: NDArray[np.uint8], parts: NDArray[np.uint8], distance: int = MAX_HASH_DISTANCE
) -> NearDuplicates:
    """Find all pairs whose hashes differ in at most `distance` bits and whose tiny pictures are near each other.

    Args:
        hashes: (n,).
        thumbs: (n, …) uint8.
        parts: (n,) which part of the data each belongs to, from 0: train, val, test.
    """
    n = len(hashes)
    if n == 0:
        nothing = np.empty(0, np.int64)
        return NearDuplicates(nothing, nothing.astype(np.uint8), nothing, True)
    # Those that are equal in both count once from here on, or a thousand copies would be half a million pairs.
    hashes, flat = np.ascontiguousarray(hashes), thumbs.reshape(n, -1)
    keys = as_keys(np.concatenate([hashes.view(np.uint8).reshape(n, 8), flat], axis=1))
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    which = which.reshape(-1)
    hashes, flat = hashes[first], flat[first]
    members = np.full((len(first), int(parts.max()) + 1), -1, np.int64)  # of each, one image of each part
    members[which, parts] = np.arange(n)
    beside = members.copy()  # and of those that look the same
    links = _Links(len(first))
    for one, other in near_pairs(hashes, distance):
        apart = np.abs(flat[one].astype(np.int16) - flat[other]).mean(axis=1)
        one, other = one[apart <= MAX_THUMB_DIFFERENCE], other[apart <= MAX_THUMB_DIFFERENCE]
        for part in range(members.shape[1]):
            np.maximum.at(beside[:, part], one, members[other, part])
            np.maximum.at(beside[:, part], other, members[one, part])
        links.add(one, other)
    beside = beside[which]
    seen = np.bitwise_or.reduce(np.where(beside >= 0, 1 << np.arange(beside.shape[1]), 0), axis=1)
    beside[np.arange(n), parts] = -1
    partner = np.full(n, -1, np.int64)
    for part in reversed(range(beside.shape[1])):
        partner = np.where(beside[:, part] >= 0, beside[:, part], partner)
    return NearDuplicates(links.groups()[which], seen.astype(np.uint8), partner, not is_crowded(hashes, distance))


def as_keys(rows: NDArray[np.uint8]) -> NDArray[np.void]:
    """(n, k) bytes → (n,) keys that can be sorted and compared whole."""
    rows = np.ascontiguousarray(rows)
    return rows.view(np.dtype((np.void, rows.shape[1]))).reshape(-1)


def near_pairs(hashes: NDArray[np.uint64], distance: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs of indices whose hashes differ in at most `distance` bits, some at a time.

    A pair may come more than once. Where they are crowded (see `is_crowded`) some may be missing.
    """
    for band in _bands(hashes, distance):
        # Within a band by the whole hash: where there are too many, near ones stand beside each other.
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
    """Whether so many share two bands that `near_pairs` does not compare them all."""
    return any(np.unique(band, return_counts=True)[1].max() > MAX_IN_BAND for band in _bands(hashes, distance))


def _bands(hashes: NDArray[np.uint64], distance: int) -> Iterator[NDArray[np.uint64]]:
    """The hashes with all bits cleared but for those of two of `distance` + 2 bands, for each two of them."""
    edges = np.linspace(0, 64, distance + 3).round().astype(int).tolist()
    masks = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
    for one, other in itertools.combinations(masks, 2):
        yield hashes & np.uint64(one | other)


class _Links:
    """Groups of linked things, in bounded memory."""

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
        """(count,) a number for each, the same for those that are linked."""
        if not self.edges:
            return np.arange(self.count)
        one, other = (np.concatenate(side) for side in zip(*self.edges, strict=True))
        graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(self.count, self.count))
        return connected_components(graph, directed=False)[1].astype(np.int64)
