"""What a census of a data set found, as JSON values: counts, sizes, formats, classes, statistics.

All of it is computed from the census of each split (`data/survey/census.py`: one pass that keeps a record of every
image) and from the labels; no image is read here.
"""

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

SIDES = (224, 96, 32)  # px, images with a shorter side are counted: the paper's size, a usual one on a CPU, a thumbnail
NUM_COMMON_SIZES = 5


@dataclass(frozen=True)
class SplitCensus:
    """A split, its census and its labels.

    Attributes:
        name: train, val or test.
        labels: (images,) the class id of each image of the source, -1 where there is none.
        tiled: the source cut into tiles; None without `--tiles`.
    """

    name: str
    source: Source
    census: Census
    labels: NDArray[np.int64]
    tiled: Tiled | None = None


def split_findings(split: SplitCensus) -> dict[str, Any]:
    """Counts, sizes, formats, channels and number types of one split."""
    records, readable = split.census.records, split.census.readable
    short_sides = np.minimum(readable["height"], readable["width"])
    formats = np.bincount(records["format"], minlength=len(FORMATS))
    formats[0] = 0  # of images that are in no file of their own
    file_sizes = records["bytes"][records["bytes"] >= 0]  # -1: in no file
    number_types = _value_counts(readable["dtype"])
    ignored = split.source.ignored
    return {
        "images": len(split.source),
        "looked_at": len(records),
        "unreadable": len(split.census.bad),
        "unreadable_reasons": count_reasons(split.census.bad.values()),
        "short_side": _min_median_max(short_sides),
        "long_side": _min_median_max(np.maximum(readable["height"], readable["width"])),
        **_size_findings(readable),
        "smaller_than": {str(side): _fraction(short_sides < side) for side in SIDES},
        "formats": {FORMATS[i]: int(formats[i]) for i in np.argsort(-formats, kind="stable") if formats[i]},
        "wrong_extensions": _count_flagged(readable, WRONG_EXTENSION),
        "channels": {str(channels): count for channels, count in _value_counts(readable["channels"])},
        "number_types": {DTYPES[dtype]: count for dtype, count in number_types},
        "highest": {
            DTYPES[dtype]: float(readable["top"][readable["dtype"] == dtype].max()) for dtype, _ in number_types
        },
        "bits": {str(bits): count for bits, count in sorted(_bit_depths(readable).items())},
        "turned_by_exif": _count_flagged(readable, EXIF_ROTATED),
        "transparent": _count_flagged(readable, TRANSPARENT),
        "blank": _count_flagged(readable, BLANK),
        "with_empty_values": int((readable["empty"] > 0).sum()),
        "empty_share": round(float(readable["empty"].mean()), 6) if len(readable) else 0.0,
        "nearly_blank": int(((readable["flags"] & (BLANK | LOW_DETAIL)) == LOW_DETAIL).sum()),
        "file_bytes": {**(_min_median_max(file_sizes) or {}), "total": int(file_sizes.sum())}
        if len(file_sizes)
        else None,
        "ignored": {
            "extensions": ignored.extensions,
            "unusable": {shown(name): shown(why) for name, why in ignored.unusable.items()},
            "unusable_unnamed": ignored.unnamed,
            "hidden": ignored.hidden,
        },
        **({} if split.tiled is None else {"tiles": _tile_findings(split.tiled, split.census)}),
    }


def _size_findings(records: NDArray) -> dict[str, Any]:
    """How many sizes there are, and the most common ones."""
    # One integer a size: of a million, np.unique takes 0.04 s for integers and 1.9 s for rows.
    sizes, counts = np.unique((records["width"].astype(np.int64) << 32) | records["height"], return_counts=True)
    most_common = np.argsort(-counts, kind="stable")[:NUM_COMMON_SIZES]
    return {
        "sizes": len(sizes),
        "common_sizes": [
            {"width": int(sizes[i] >> 32), "height": int(sizes[i] & 0xFFFFFFFF), "images": int(counts[i])}
            for i in most_common
        ],
    }


def _tile_findings(tiled: Tiled, census: Census) -> dict[str, int]:
    """Counts of tiles. Only `looked_at` and `blank` are of the images that were read; the others need just headers."""
    return {
        "size": tiled.size,
        "tiles": len(tiled),
        "images_cut": tiled.num_cut,
        "looked_at": census.num_tiles,
        "blank": census.blank_tiles,
    }


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason occurs. Those that differ only in numbers count as one, with # in place of the numbers."""
    by_pattern: dict[str, Counter[str]] = {}
    for reason in reasons:
        by_pattern.setdefault(re.sub(r"\d[\d,.]*", "#", reason), Counter())[reason] += 1
    totals = {
        (next(iter(counts)) if len(counts) == 1 else pattern): counts.total() for pattern, counts in by_pattern.items()
    }
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def class_findings(splits: list[SplitCensus]) -> dict[str, Any] | None:
    """Images by class and split, the largest and smallest class of the first split, missing classes.

    None where no image has a class.
    """
    highest = max((int(split.labels.max()) for split in splits if len(split.labels)), default=-1)
    if highest < 0:
        return None
    names = splits[0].source.classes or ()
    names = (*names, *map(str, range(len(names), highest + 1)))  # a class without a name goes by its id
    counts = {split.name: np.bincount(split.labels[split.labels >= 0], minlength=len(names)) for split in splits}
    occurs = sum(counts.values()) > 0
    first = counts[splits[0].name]  # train
    ids = np.flatnonzero(first)
    smallest, largest = (int(ids[first[ids].argmin()]), int(first.argmax())) if len(ids) else (None, None)
    return {
        "count": len(names),
        "unlabelled": {split.name: int((split.labels < 0).sum()) for split in splits},
        "smallest": None if smallest is None else {"class": shown(names[smallest]), "images": int(first[smallest])},
        "largest": None if largest is None else {"class": shown(names[largest]), "images": int(first[largest])},
        "imbalance": None if smallest is None or largest is None else round(float(first[largest] / first[smallest]), 2),
        "missing": {
            split: [shown(names[i]) for i in np.flatnonzero(occurs & (found == 0))]
            for split, found in counts.items()
            if found.any()
        },
        "empty": [shown(names[i]) for i in np.flatnonzero(~occurs)],
        "images": {split: {shown(names[i]): int(n) for i, n in enumerate(found)} for split, found in counts.items()},
    }


def numeric_label_findings(splits: list[SplitCensus]) -> dict[str, Any] | None:
    """Count and range of numeric labels (targets of a regression); None for class names or ids.

    Labels are numeric where a table's cannot be class ids (fractions, or below -1), or where class names are fractions.
    """
    is_column = any(non_class_numbers(split.source) is not None for split in splits)
    if not is_column and kind_of_names(splits[0].source.classes or ()) != "fractional":
        return None
    found = [numbers for split in splits if (numbers := numeric_labels(split.source)) is not None]
    known = np.concatenate([np.empty(0), *found])
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    return {"count": len(known), "lowest": float(known.min()), "highest": float(known.max())}


def statistics_findings(split: SplitCensus, facts: DataFacts | None) -> dict[str, Any] | None:
    """Mean and standard deviation by channel, with the value range as 0..1, beside ImageNet's.

    They are of the images that have the channels and number type of `facts`; grey images of a colour set count as three
    equal channels. Every image has the same weight, whatever its size.

    Args:
        facts: from `survey`; None where no image can be read.

    Returns:
        None without `facts`, or where no image of the split is of that kind.
    """
    if facts is None:
        return None
    sums: Sums | None = None
    for (channels, dtype), found in sorted(split.census.sums.items()):
        if dtype == facts.dtype and channels in (facts.channels, 1 if facts.channels == 3 else facts.channels):
            ones = np.ones(facts.channels if channels == 1 else 1)  # repeat the sums of grey images for each channel
            by_channel = Sums(found.count, *(each * ones for each in (found.mean, found.square, found.low, found.high)))
            if sums is None:
                sums = by_channel
            else:
                sums.add(by_channel)
    if sums is None:
        return None
    low, high = facts.value_range
    mean, std = sums.statistics()
    is_photographic = facts.channels in (1, 3) and facts.dtype == "uint8"
    imagenet_mean, imagenet_std = imagenet_statistics(facts.channels) if is_photographic else (None, None)
    return {
        "images": sums.count,
        "value_range": [low, high],
        "mean": _rounded((mean - low) / (high - low)),
        "deviation": _rounded(std / (high - low)),
        "lowest": sums.low.tolist(),
        "highest": sums.high.tolist(),
        "imagenet_mean": None if imagenet_mean is None else _rounded(imagenet_mean),
        "imagenet_deviation": None if imagenet_std is None else _rounded(imagenet_std),
    }


def misfits(splits: list[SplitCensus], facts: DataFacts | None) -> dict[str, int]:
    """How many readable images training would refuse for their channels or number type, by reason.

    Grey and RGB are converted to each other, and so are integers of 8 and 16 bits.
    """
    if facts is None:
        return {}
    reasons: Counter[str] = Counter()
    for split in splits:
        readable = split.census.readable
        fitting = {facts.channels} | ({1, 3} if facts.channels in (1, 3) else set())
        has_other_channels = ~np.isin(readable["channels"], sorted(fitting))
        for channels, count in zip(
            *np.unique(readable["channels"][has_other_channels], return_counts=True), strict=True
        ):
            reasons[f"{channels} channels where the data has {facts.channels}"] += int(count)
        is_float = readable["dtype"] == DTYPES.index("float32")
        has_other_dtype = ~has_other_channels & (is_float != (facts.dtype == "float32"))
        for dtype, count in zip(*np.unique(readable["dtype"][has_other_dtype], return_counts=True), strict=True):
            reasons[f"{DTYPES[dtype]} values where the data is {facts.dtype}"] += int(count)
    return dict(reasons)


def _min_median_max(values: NDArray) -> dict[str, int] | None:
    if not len(values):
        return None
    return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}


def _fraction(is_true: NDArray[np.bool_]) -> float:
    return round(float(is_true.mean()), 4) if len(is_true) else 0.0


def _count_flagged(records: NDArray, flag: int) -> int:
    return int(((records["flags"] & flag) > 0).sum())


def _value_counts(values: NDArray) -> list[tuple[int, int]]:
    """Each value with its count, the most frequent first."""
    found, counts = np.unique(values, return_counts=True)
    return [(int(found[i]), int(counts[i])) for i in np.argsort(-counts, kind="stable")]


def _bit_depths(records: NDArray) -> Counter[int]:
    """How many 16-bit images need each number of bits for their highest value."""
    highest, counts = np.unique(records["top"][records["dtype"] == DTYPES.index("uint16")], return_counts=True)
    images = Counter[int]()
    for value, count in zip(highest.tolist(), counts.tolist(), strict=True):
        images[bits_for(value)] += count
    return images


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
