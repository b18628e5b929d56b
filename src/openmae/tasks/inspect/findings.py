"""Findings from the census of a data set, as JSON values: counts, sizes, classes, statistics."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.data.depths import bits_for
from openmae.data.labels.numbers import kind_of_names, non_class_numbers, numeric_labels
from openmae.data.preprocess import DataFacts, imagenet_statistics
from openmae.data.sources.open import Source
from openmae.data.sources.tiles import Tiled
from openmae.data.survey.census import (
    BLANK,
    DTYPES,
    EXIF_ROTATED,
    FORMATS,
    LOW_DETAIL,
    TRANSPARENT,
    WRONG_EXTENSION,
    Census,
    Sums,
)
from openmae.errors import shown

SMALL = (224, 96, 32)  # px: the paper's image size, a usual size on a CPU, a thumbnail


@dataclass(frozen=True)
class SplitFindings:
    """A split and its census.

    Attributes:
        labels: (images,) the class of each image of the source, -1 where there is none.
        tiled: the source cut into tiles; None without `--tiles`.
    """

    split: str
    source: Source
    census: Census
    labels: NDArray[np.int64]
    tiled: Tiled | None = None


def part_findings(part: SplitFindings) -> dict[str, Any]:
    """Counts, sizes, formats, channels and types of one split."""
    records, good = part.census.records, part.census.good
    short = np.minimum(good["height"], good["width"])
    long = np.maximum(good["height"], good["width"])
    sizes = (good["width"].astype(np.int64) << 32) | good["height"]
    values, counts = np.unique(sizes, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:5]
    formats = np.bincount(records["format"], minlength=len(FORMATS))
    in_files = records["bytes"][records["bytes"] >= 0]
    ignored = part.source.ignored
    return {
        "images": len(part.source),
        "looked_at": len(records),
        "unreadable": len(part.census.bad),
        "unreadable_reasons": count_reasons(part.census.bad.values()),
        "short_side": _spread(short),
        "long_side": _spread(long),
        "sizes": len(values),
        "common_sizes": [
            {"width": int(values[i] >> 32), "height": int(values[i] & 0xFFFFFFFF), "images": int(counts[i])}
            for i in most
        ],
        "smaller_than": {str(side): _share(short < side) for side in SMALL},
        "formats": {FORMATS[i]: int(formats[i]) for i in np.argsort(-formats, kind="stable") if i and formats[i]},
        "wrong_extensions": _flagged(good, WRONG_EXTENSION),
        "channels": {str(number): count for number, count in _counted(good["channels"])},
        "number_types": {DTYPES[number]: count for number, count in _counted(good["dtype"])},
        "highest": {
            DTYPES[number]: float(good["top"][good["dtype"] == number].max()) for number, _ in _counted(good["dtype"])
        },
        "bits": {str(bits): count for bits, count in sorted(_bits(good).items())},
        "turned_by_exif": _flagged(good, EXIF_ROTATED),
        "transparent": _flagged(good, TRANSPARENT),
        "blank": _flagged(good, BLANK),
        "with_empty_values": int((good["empty"] > 0).sum()),
        "empty_share": round(float(good["empty"].mean()), 6) if len(good) else 0.0,
        "nearly_blank": int(((good["flags"] & (BLANK | LOW_DETAIL)) == LOW_DETAIL).sum()),
        "file_bytes": {**(_spread(in_files) or {}), "total": int(in_files.sum())} if len(in_files) else None,
        "ignored": {
            "extensions": ignored.extensions,
            "unusable": {shown(name): shown(why) for name, why in ignored.unusable.items()},
            "unusable_unnamed": ignored.unnamed,
            "hidden": ignored.hidden,
        },
        **({} if part.tiled is None else {"tiles": _tile_findings(part.tiled, part.census)}),
    }


def _tile_findings(tiled: Tiled, census: Census) -> dict[str, int]:
    """The number of tiles, from the headers of all images; and of blank tiles among those of images that were read."""
    return {
        "size": tiled.size,
        "tiles": len(tiled),
        "images_cut": tiled.num_cut,
        "looked_at": census.num_tiles,
        "blank": census.blank_tiles,
    }


def count_reasons(bad: Iterable[str]) -> dict[str, int]:
    """How often each reason occurs; reasons that differ only in numbers count as one."""
    kinds: dict[str, Counter[str]] = {}
    for reason in bad:
        kinds.setdefault(re.sub(r"\d[\d,.]*", "#", reason), Counter())[reason] += 1
    totals = {(next(iter(each)) if len(each) == 1 else kind): each.total() for kind, each in kinds.items()}
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def class_findings(parts: list[SplitFindings]) -> dict[str, Any] | None:
    """Images by class and split, the largest and smallest class of train, missing classes; None without labels."""
    highest = max((int(part.labels.max()) for part in parts if len(part.labels)), default=-1)
    if highest < 0:
        return None
    names = parts[0].source.classes or tuple(map(str, range(highest + 1)))
    counts = {
        part.split: np.bincount(part.labels[part.labels >= 0], minlength=max(len(names), highest + 1)) for part in parts
    }
    names = (*names, *map(str, range(len(names), highest + 1)))
    first = counts[parts[0].split]
    present = np.flatnonzero(sum(counts.values()))
    inhabited = np.flatnonzero(first)
    low, high = (int(inhabited[first[inhabited].argmin()]), int(first.argmax())) if len(inhabited) else (None, None)
    return {
        "count": len(names),
        "unlabelled": {part.split: int((part.labels < 0).sum()) for part in parts},
        "smallest": None if low is None else {"class": shown(names[low]), "images": int(first[low])},
        "largest": None if high is None else {"class": shown(names[high]), "images": int(first[high])},
        "imbalance": None if low is None or high is None else round(float(first[high] / first[low]), 2),
        "missing": {
            split: [shown(names[i]) for i in present if not found[i]] for split, found in counts.items() if found.any()
        },
        "empty": [shown(name) for i, name in enumerate(names) if i not in set(present.tolist())],
        "images": {split: {shown(names[i]): int(n) for i, n in enumerate(found)} for split, found in counts.items()},
    }


def number_findings(parts: list[SplitFindings]) -> dict[str, Any] | None:
    """Count and range of numeric labels (a column, or fractional folder names); None for class names or ids."""
    names = parts[0].source.classes or ()
    if all(non_class_numbers(part.source) is None for part in parts) and kind_of_names(names) != "fractional":
        return None
    found = [numbers for part in parts if (numbers := numeric_labels(part.source)) is not None]
    known = np.concatenate([np.empty(0), *found])
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    return {"count": len(known), "lowest": float(known.min()), "highest": float(known.max())}


def statistics_findings(part: SplitFindings, facts: DataFacts | None) -> dict[str, Any] | None:
    """Mean and deviation by channel of the most common kind of image, relative to the value range, beside ImageNet's.

    Every image has the same weight, whatever its size. Grey images of a colour set count as three equal channels.

    Args:
        facts: from `survey`; decides channels, number type and value range.
    """
    if facts is None:
        return None
    sums: Sums | None = None
    for (channels, dtype), found in sorted(part.census.sums.items()):
        if dtype == facts.dtype and channels in (facts.channels, 1 if facts.channels == 3 else facts.channels):
            spread = np.ones(facts.channels if channels == 1 else 1)
            more = Sums(found.count, *(each * spread for each in (found.mean, found.square, found.low, found.high)))
            if sums is None:
                sums = more
            else:
                sums.add(more)
    if sums is None:
        return None
    low, high = facts.value_range
    mean, deviation = sums.statistics()
    is_photographic = facts.channels in (1, 3) and facts.dtype == "uint8"
    reference = imagenet_statistics(facts.channels) if is_photographic else (None, None)
    return {
        "images": sums.count,
        "value_range": [low, high],
        "mean": _rounded((mean - low) / (high - low)),
        "deviation": _rounded(deviation / (high - low)),
        "lowest": sums.low.tolist(),
        "highest": sums.high.tolist(),
        "imagenet_mean": None if reference[0] is None else _rounded(reference[0]),
        "imagenet_deviation": None if reference[1] is None else _rounded(reference[1]),
    }


def misfits(parts: list[SplitFindings], facts: DataFacts | None) -> dict[str, int]:
    """How many readable images training would refuse, by reason: other channels or types than most of the data."""
    found: Counter[str] = Counter()
    for part in parts if facts is not None else ():
        assert facts is not None
        good = part.census.good
        fits = {facts.channels} | ({1, 3} if facts.channels in (1, 3) else set())
        is_other = ~np.isin(good["channels"], sorted(fits))
        for channels, count in zip(*np.unique(good["channels"][is_other], return_counts=True), strict=True):
            found[f"{channels} channels where the data has {facts.channels}"] += int(count)
        is_float = good["dtype"] == DTYPES.index("float32")
        is_wrong = ~is_other & (is_float != (facts.dtype == "float32"))
        for dtype, count in zip(*np.unique(good["dtype"][is_wrong], return_counts=True), strict=True):
            found[f"{DTYPES[dtype]} values where the data is {facts.dtype}"] += int(count)
    return dict(found)


def _spread(values: NDArray) -> dict[str, int] | None:
    if not len(values):
        return None
    return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}


def _share(is_true: NDArray[np.bool_]) -> float:
    return round(float(is_true.mean()), 4) if len(is_true) else 0.0


def _flagged(records: NDArray, flag: int) -> int:
    return int(((records["flags"] & flag) > 0).sum())


def _counted(values: NDArray) -> list[tuple[int, int]]:
    """Each value with its count, the most frequent first."""
    found, counts = np.unique(values, return_counts=True)
    return [(int(found[i]), int(counts[i])) for i in np.argsort(-counts, kind="stable")]


def _bits(records: NDArray) -> Counter[int]:
    """How many 16-bit images need each number of bits for their highest value."""
    tops, counts = np.unique(records["top"][records["dtype"] == DTYPES.index("uint16")], return_counts=True)
    found = Counter[int]()
    for top, count in zip(tops.tolist(), counts.tolist(), strict=True):
        found[bits_for(top)] += count
    return found


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
