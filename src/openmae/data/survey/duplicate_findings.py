"""Copies and near-duplicates of a data set, within and across splits, as JSON values."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.config import SPLITS
from openmae.data.survey.census import BLANK, LOW_DETAIL
from openmae.data.survey.duplicates import as_keys, equal_groups, find_near_duplicates
from openmae.data.survey.findings import SplitCensus
from openmae.errors import shown

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


def find_duplicates(splits: list[SplitCensus], max_pairs: int) -> Duplicates:
    """Find copies and near-duplicates, and which of them are in several splits (leaks)."""
    records = [split.census.readable for split in splits]
    records = [of_split[(of_split["flags"] & BLANK) == 0] for of_split in records]
    positions = np.repeat(np.arange(len(splits)), [len(of_split) for of_split in records])  # in `splits`
    split_ids = np.array([SPLITS.index(split.name) for split in splits], np.uint8)[positions]
    joined = np.concatenate(records)
    rows = np.stack([positions, joined["index"]], axis=1)
    labels = np.concatenate([split.labels[of_split["index"]] for split, of_split in zip(splits, records, strict=True)])
    equal = equal_groups(as_keys(joined["digest"]))
    has_detail = np.flatnonzero((joined["flags"] & LOW_DETAIL) == 0)
    near = find_near_duplicates(joined["hash"][has_detail], joined["thumb"][has_detail], split_ids[has_detail])
    n = len(rows)
    similar = np.full(n, -1, np.int64)
    similar[has_detail] = near.groups
    split_bits, match = 1 << split_ids.astype(np.int64), np.full(n, -1, np.int64)  # as in `NearDuplicates`
    split_bits[has_detail] |= near.split_bits
    if len(has_detail):
        near_match = near.match_in_other_split
        match[has_detail] = np.where(near_match >= 0, has_detail[near_match], -1)
    _add_equal(equal, split_ids, split_bits, match)

    def name(row: int) -> str:
        return shown(splits[rows[row, 0]].source.name(int(rows[row, 1])))

    def named(groups: list[NDArray[np.int64]]) -> list[list[dict[str, Any]]]:
        return [
            [{"split": SPLITS[split_ids[row]], "name": name(row)} for row in group[:MAX_NAMED].tolist()]
            for group in groups[:MAX_LISTED]
        ]

    exact_groups = _groups(equal)
    near_groups = [group for group in _groups(similar) if len(np.unique(equal[group])) > 1]
    leaks = {}
    for evaluated in (1, 2):
        for other in range(evaluated):
            is_leak = (split_ids == evaluated) & (split_bits >> other & 1 > 0)
            if is_leak.any():
                leaks[f"{SPLITS[evaluated]} in {SPLITS[other]}"] = int(is_leak.sum())
    earlier_splits = (1 << split_ids.astype(np.int64)) - 1  # train is earlier than val, val than test
    leaked = np.flatnonzero((match >= 0) & ((split_bits & earlier_splits) > 0))
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
                "split": SPLITS[split_ids[row]],
                "name": name(row),
                "looks_like": name(int(match[row])),
                "in": SPLITS[split_ids[match[row]]],
                "is_equal": bool(equal[row] == equal[match[row]]),
            }
            for row in leaked[:MAX_LISTED].tolist()
        ],
    }
    pairs = [(int(match[row]), row) for row in _evenly_spaced(leaked, max_pairs).tolist()]
    for group in near_groups[: max_pairs - len(pairs)]:
        first = int(group[0])
        other = int(group[equal[group] != equal[first]][0])
        if (first, other) not in pairs and (other, first) not in pairs:
            pairs.append((first, other))
    return Duplicates(rows, findings, pairs)


def _add_equal(
    equal: NDArray[np.int64], split_ids: NDArray[np.uint8], split_bits: NDArray[np.int64], match: NDArray[np.int64]
) -> None:
    """Add exact copies to `split_bits` and `match`, in place; as a match a copy replaces a near-duplicate.

    Copies are known of all images, near-duplicates only of those with enough detail for a perceptual hash.
    """
    if not len(equal):
        return
    members = np.full((int(equal.max()) + 1, len(SPLITS)), -1, np.int64)
    members[equal, split_ids] = np.arange(len(equal))  # an image of each split, by group
    bits = np.bitwise_or.reduce(np.where(members >= 0, 1 << np.arange(len(SPLITS)), 0), axis=1)
    split_bits |= bits[equal]
    for split in reversed(range(len(SPLITS))):
        copy = members[equal, split]
        is_better = (copy >= 0) & (split_ids != split)
        match[is_better] = copy[is_better]


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
