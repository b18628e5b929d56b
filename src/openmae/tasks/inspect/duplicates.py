"""Copies and near-duplicates of a data set, within and across splits, as JSON values."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.config import SPLITS
from openmae.data.survey.census import BLANK, LOW_DETAIL
from openmae.data.survey.duplicates import as_keys, equal_groups, find_near_duplicates
from openmae.errors import shown
from openmae.tasks.inspect.findings import SplitFindings

MAX_LISTED = 10_000  # groups and leaks in the JSON; all are counted
MAX_NAMED = 50  # images of a group


@dataclass(frozen=True)
class Duplicates:
    """Copies and images that look the same, over all splits.

    Attributes:
        rows: (n, 2) all images that are readable and not blank: the number of the split, and the index in it.
        findings: counts and names for JSON.
        pairs: rows that look the same, pairs across splits first; for a picture.
    """

    rows: NDArray[np.int64]
    findings: dict[str, Any]
    pairs: list[tuple[int, int]]


def find_duplicates(parts: list[SplitFindings], max_pairs: int) -> Duplicates:
    """Find copies and near-duplicates, and which of them are in several splits (leaks)."""
    goods = [part.census.good for part in parts]
    goods = [good[(good["flags"] & BLANK) == 0] for good in goods]
    of_part = np.repeat(np.arange(len(parts)), [len(good) for good in goods])
    split_ids = np.array([SPLITS.index(part.split) for part in parts], np.uint8)
    splits = split_ids[of_part] if len(parts) else np.empty(0, np.uint8)
    rows = np.stack([of_part, np.concatenate([good["index"] for good in goods])], axis=1)
    labels = np.concatenate([part.labels[good["index"]] for part, good in zip(parts, goods, strict=True)])
    equal = equal_groups(as_keys(np.concatenate([good["digest"] for good in goods])))
    has_detail = np.flatnonzero((np.concatenate([good["flags"] for good in goods]) & LOW_DETAIL) == 0)
    hashes = np.concatenate([good["hash"] for good in goods])[has_detail]
    thumbs = np.concatenate([good["thumb"] for good in goods])[has_detail]
    near = find_near_duplicates(hashes, thumbs, splits[has_detail])
    n = len(rows)
    looks = np.full(n, -1, np.int64)
    looks[has_detail] = near.groups
    seen, partner = 1 << splits.astype(np.int64), np.full(n, -1, np.int64)
    seen[has_detail] |= near.seen
    if len(has_detail):
        partner[has_detail] = np.where(near.partner >= 0, has_detail[near.partner], -1)
    _add_equal(equal, splits, seen, partner)

    def name(row: int) -> str:
        return shown(parts[rows[row, 0]].source.name(int(rows[row, 1])))

    def named(groups: list[NDArray[np.int64]]) -> list[list[dict[str, Any]]]:
        return [
            [{"split": SPLITS[splits[row]], "name": name(row)} for row in group[:MAX_NAMED].tolist()]
            for group in groups[:MAX_LISTED]
        ]

    exact_groups = _groups(equal)
    near_groups = [group for group in _groups(looks) if len(np.unique(equal[group])) > 1]
    leaks = {}
    for evaluated in (1, 2):
        for other in range(evaluated):
            is_leak = (splits == evaluated) & (seen >> other & 1 > 0)
            if is_leak.any():
                leaks[f"{SPLITS[evaluated]} in {SPLITS[other]}"] = int(is_leak.sum())
    leaked = np.flatnonzero((splits > 0) & (partner >= 0) & ((seen & ((1 << splits.astype(np.int64)) - 1)) > 0))
    in_conflict = [group for group in exact_groups if len(np.unique(labels[group][labels[group] >= 0])) > 1]
    findings = {
        "exact_duplicates": sum(len(group) - 1 for group in exact_groups),
        "exact_groups": len(exact_groups),
        "near_duplicates": sum(len(np.unique(equal[group])) - 1 for group in near_groups),
        "near_groups": len(near_groups),
        "near_search_complete": near.is_complete,
        "leaks": leaks,
        "copies_with_other_labels": sum(len(group) for group in in_conflict),
        "listed_exact": named(exact_groups),
        "listed_near": named(near_groups),
        "listed_leaks": [
            {
                "split": SPLITS[splits[row]],
                "name": name(row),
                "looks_like": name(int(partner[row])),
                "in": SPLITS[splits[partner[row]]],
                "is_equal": bool(equal[row] == equal[partner[row]]),
            }
            for row in leaked[:MAX_LISTED].tolist()
        ],
    }
    pairs = [(int(partner[row]), row) for row in _evenly_spaced(leaked, max_pairs).tolist()]
    for group in near_groups[: max_pairs - len(pairs)]:
        first = int(group[0])
        other = int(group[equal[group] != equal[first]][0])
        if (first, other) not in pairs and (other, first) not in pairs:
            pairs.append((first, other))
    return Duplicates(rows, findings, pairs)


def _add_equal(
    equal: NDArray[np.int64], splits: NDArray[np.uint8], seen: NDArray[np.int64], partner: NDArray[np.int64]
) -> None:
    """Prefer copies as partners; they are also known for images of too little detail for a perceptual hash."""
    if not len(equal):
        return
    owners = np.full((int(equal.max()) + 1, len(SPLITS)), -1, np.int64)
    owners[equal, splits] = np.arange(len(equal))
    has = np.bitwise_or.reduce(np.where(owners >= 0, 1 << np.arange(len(SPLITS)), 0), axis=1)
    seen |= has[equal]
    for split in reversed(range(len(SPLITS))):
        copy = owners[equal, split]
        is_better = (copy >= 0) & (splits != split)
        partner[is_better] = copy[is_better]


def _groups(numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows of each group id >= 0 that occurs more than once, in the order of their first rows."""
    order = np.argsort(numbers, kind="stable")
    order = order[numbers[order] >= 0]
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    starts, ends = np.concatenate([[0], cuts]), np.concatenate([cuts, [len(order)]])
    several = np.flatnonzero(ends - starts > 1)
    groups = [order[starts[i] : ends[i]] for i in several.tolist()]
    return sorted(groups, key=lambda group: int(group[0]))


def _evenly_spaced(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of them, evenly."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)] if len(rows) else rows
