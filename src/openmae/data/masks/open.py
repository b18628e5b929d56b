"""Opening the data of semantic segmentation: pairs, classes, splits."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.config import Dataset
from openmae.config.checks import OFF
from openmae.data.annotated.divided import divide
from openmae.data.annotated.hold_out import MAX_BAD, absent_in_train, hold_out
from openmae.data.masks.checks import check_pixels, check_share_of_bad, check_usable
from openmae.data.masks.class_names import read_class_names
from openmae.data.masks.classes import DecidedClasses, check_numbering, decide_classes
from openmae.data.masks.numbering import Numbering
from openmae.data.masks.pairs import FoundPairs, find_pairs
from openmae.data.masks.palette import IGNORED, Palette, read_palette
from openmae.data.masks.segmentation import SegmentationData
from openmae.data.masks.source import Masked, MaskedSource, MaskedSubset
from openmae.data.masks.survey import MaskSurvey, survey_masks
from openmae.data.sources.axes import decide_axes, shapes_of_files
from openmae.data.sources.open import Source, Splits
from openmae.machine.device import num_cores
from openmae.machine.parallel import Processes


def open_segmentation(
    dataset: Dataset,
    *,
    class_names: str | None = None,
    palette: str | None = None,
    ignore_index: int | None = None,
    reduce_zero_label: bool = False,
    held_out: int | None = None,
    needs_validation: bool = False,
    background: float,
    max_pixels: int,
    axes: str | None = None,
    default_axes: str | None = None,
    nodata: float | str = OFF,
    seed_of_split: int = 0,
    max_bad: float | None = None,
    threads: int | None = None,
    processes: Processes | None = None,
    known_classes: tuple[str, ...] | None = None,
    known_ignore_index: int | None = None,
    known_bad: Mapping[str, Mapping[str, str]] | None = None,
) -> SegmentationData:
    """Open the images and masks of DATA's splits, decide on their classes, and hold out a split where there is none.

    Every mask is decoded once for it, unless `known_classes` says what was decided. Pairs that cannot be used (an
    unreadable mask, a size other than the image's, values that are no classes) are left out, and named in `bad`.

    Args:
        class_names, palette: paths, see `read_class_names` and `read_palette`.
        ignore_index: the stored value that is ignored, -1 for none, None: see `decide_classes`.
        reduce_zero_label: 0 is ignored, and every other value is one more than its class, as in ADE20K.
        held_out: how many images to hold out of train; None: a fifth of fewer than 2,500, else a tenth, at most 1,000,
            and only where there is no val and no test split, or one alone and `needs_validation`.
        needs_validation: something is chosen by a split that is not the final one.
        background, max_pixels, axes, default_axes, nodata: see `open_splits`.
        max_bad: the largest share of a split's pairs that may be unusable; None: .01.
        threads: for the pass over all masks; None: one for each core.
        processes: those that make the pass together, each over its share; None: this one.
        known_classes: `classes` of a run that is resumed: no mask is decoded here.
        known_ignore_index, known_bad: `ignore_index` and `bad` of that run.

    Raises:
        RequestError: DATA is in none of the known layouts, no mask of a split or too few of them can be used, train has
            fewer than two classes, or an option does not fit the data.
    """
    check_numbering(ignore_index, reduce_zero_label, palette, class_names)
    colours = None if palette is None else read_palette(palette)
    names = None if class_names is None or known_classes is not None else read_class_names(class_names)
    data, found = str(dataset), find_pairs(dataset)
    reading = {"background": background, "max_pixels": max_pixels, "nodata": nodata}
    sources, surveys = open_sources(found, colours, reading, axes, default_axes), dict[str, MaskSurvey]()
    if known_classes is None:
        surveys = _surveyed(sources, threads, processes)
        check_usable(data, sources, {split: survey.bad for split, survey in surveys.items()})
        values = pixels_by_value(surveys)
        decided = decide_classes(
            values, names=names, palette=colours, ignore_index=ignore_index, reduce_zero_label=reduce_zero_label
        )
        bad = {s: survey.bad | beyond_classes(sources[s], survey, decided.numbering) for s, survey in surveys.items()}
    else:
        decided = DecidedClasses.of_known(known_classes, known_ignore_index, reduce_zero_label)
        bad = {split: dict((known_bad or {}).get(split, {})) for split in sources}
    check_usable(data, sources, bad)
    check_share_of_bad(data, surveys, bad, MAX_BAD if max_bad is None else max_bad)
    kept = {s: indices_kept(of, bad[s]) for s, of in sources.items()}
    rest, held_out_ids = hold_out(data, kept, held_out, seed_of_split, needs_validation)
    pixels = {s: class_pixels(survey, decided, rest if s == "train" else kept[s]) for s, survey in surveys.items()}
    if surveys:
        check_pixels(data, pixels, class_pixels(surveys["train"], decided, held_out_ids), len(held_out_ids), decided)
    return SegmentationData(
        **_divided(sources, decided, {**kept, "train": rest}, held_out_ids),
        classes=decided.classes,
        pixels=pixels.get("train"),
        ignore_index=decided.numbering.ignore_index,
        reduce_zero_label=reduce_zero_label,
        bad={split: reasons for split, reasons in bad.items() if reasons},
        notes=(*found.notes, *decided.notes, *absent_in_train(pixels, decided.classes)),
        origins={split: pairs.origin for split, pairs in found.parts.items()},
        source_lines=tuple(splits_of(found, sources).lines),
    )


def _surveyed(
    sources: Mapping[str, MaskedSource], threads: int | None, processes: Processes | None
) -> dict[str, MaskSurvey]:
    if threads is None:
        threads = num_cores() // (1 if processes is None else processes.local_count)
    return {split: survey_masks(source, threads, processes) for split, source in sources.items()}


def _divided(
    sources: Mapping[str, MaskedSource],
    decided: DecidedClasses,
    kept: Mapping[str, NDArray[np.int64]],
    held_out_ids: NDArray[np.int64],
) -> dict[str, Any]:
    """The fields of `SegmentationData` about splits: of each split the images `kept`, of train those held out."""
    numbered = {split: source.numbered(decided.numbering, decided.classes) for split, source in sources.items()}
    whole: dict[str, Masked] = {s: _take(numbered[s], kept[s]) for s in ("val", "test") if s in numbered}
    taken = MaskedSubset(numbered["train"], held_out_ids) if len(held_out_ids) else None
    return {"train": _take(numbered["train"], kept["train"]), **divide(whole, taken)}


def open_sources(
    found: FoundPairs, palette: Palette | None, reading: dict[str, Any], axes: str | None, default_axes: str | None
) -> dict[str, MaskedSource]:
    """The splits, whose stored values have no meaning yet."""
    shapes = chain.from_iterable(shapes_of_files(pairs.root, pairs.images) for pairs in found.parts.values())
    reading = {**reading, "axes": decide_axes(shapes, axes, default_axes)}
    return {
        split: MaskedSource(
            pairs.root,
            pairs.images,
            pairs.masks,
            numbering=Numbering(),
            palette=palette,
            ignored=found.ignored,
            **reading,
        )
        for split, pairs in found.parts.items()
    }


def pixels_by_value(surveys: Mapping[str, MaskSurvey]) -> dict[int, int]:
    """The pixels of each stored value, over all splits."""
    total: dict[int, int] = {}
    for survey in surveys.values():
        for value, count in survey.pixels_by_value.items():
            total[value] = total.get(value, 0) + count
    return total


def beyond_classes(source: MaskedSource, survey: MaskSurvey, numbering: Numbering) -> dict[str, str]:
    """The reason, by name, for each mask with values that are no classes."""
    beyond = np.flatnonzero(numbering.ids_of(survey.values) < IGNORED)
    images, starts = np.unique(survey.images[beyond], return_index=True)
    if not len(images):
        return {}
    return {
        source.name(image): f"mask: {numbering.reason_of(survey.values[entries], survey.pixels[entries])}"
        for image, entries in zip(images.tolist(), np.split(beyond, starts[1:]), strict=True)
    }


def indices_kept(source: MaskedSource, bad: Mapping[str, str]) -> NDArray[np.int64]:
    """The indices of the pairs that are not `bad`, which are by name."""
    return np.array([i for i in range(len(source)) if source.name(i) not in bad], np.int64)


def class_pixels(survey: MaskSurvey, decided: DecidedClasses, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pixels of each class in the masks at `indices`: (classes,)."""
    ids = decided.numbering.ids_of(survey.values)
    counts = np.zeros(len(decided.classes), np.int64)
    is_counted = (ids >= 0) & np.isin(survey.images, indices)
    np.add.at(counts, ids[is_counted], survey.pixels[is_counted])
    return counts


def _take(source: MaskedSource, indices: NDArray[np.int64]) -> Masked:
    return source if len(indices) == len(source) else MaskedSubset(source, indices)


def splits_of(found: FoundPairs, sources: Mapping[str, Source]) -> Splits:
    """The splits as they are told of: where they were found, what was left out, what is to be distrusted."""
    return Splits(
        sources=dict(sources),
        origins={split: pairs.origin for split, pairs in found.parts.items()},
        ignored=(found.ignored.line,) if found.ignored.line else (),
        warnings=found.warnings,
    )
