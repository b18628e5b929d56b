"""The masks of a data set: opened as `openmae segment` opens them, read once, and what follows for training."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from openmae.config import InspectConfig, flag_of, words_of
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.nodata import filled
from openmae.data.masks.class_names import read_class_names
from openmae.data.masks.classes import check_numbering
from openmae.data.masks.findings import Judgement, judge_masks, mask_findings
from openmae.data.masks.open import open_sources, splits_of
from openmae.data.masks.pairs import FoundPairs, find_pairs, has_masks
from openmae.data.masks.palette import read_palette
from openmae.data.masks.source import MaskedSource
from openmae.data.masks.survey import MaskSurvey, survey_masks
from openmae.data.randomness import Permutation
from openmae.data.sources.open import Splits
from openmae.data.sources.reading import reading_options
from openmae.errors import RequestError, quoted, shown
from openmae.machine.device import num_cores
from openmae.pictures.segmentation_sheet import Row, SegmentedImage, segmentation_sheet
from openmae.pictures.sheet import ValueRange, rgb_picture
from openmae.tasks.inspect.screen import given_words

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure

MASK_SETTINGS = ("class_names", "palette", "ignore_index", "reduce_zero_label")
MAX_BAD = 0.01  # the default of --max-bad
NUM_OVERLAYS = 8


@dataclass(frozen=True, kw_only=True)
class OpenedMasks:
    """The images and masks of a data set.

    Attributes:
        images: the images alone, as splits to examine.
        looked_at: by split, the pairs whose masks were decoded: all or, with --limit, some.
    """

    images: Splits
    found: FoundPairs
    looked_at: dict[str, MaskedSource]
    surveys: dict[str, MaskSurvey]
    judged: Judgement

    @property
    def findings(self) -> dict[str, Any]:
        return mask_findings(self.found, self.looked_at, self.surveys, self.judged)


def open_masks(config: InspectConfig) -> OpenedMasks | None:
    """Open DATA as images with masks and read every mask; None where it is in none of their layouts.

    Raises:
        RequestError: it is no such data and a setting is of masks, or what `open_segmentation` says of files.
    """
    if not has_masks(config.dataset):
        for name in MASK_SETTINGS:
            if name in config.explicit():
                raise RequestError(
                    f"{flag_of(name)} is for images with masks, and {shown(str(config.dataset))} has none: leave it out"
                )
        return None
    check_numbering(config.ignore_index, config.reduce_zero_label, config.palette, config.class_names)
    palette = None if config.palette is None else read_palette(config.palette)
    names = None if config.class_names is None else read_class_names(config.class_names)
    found = find_pairs(config.dataset)
    reading = reading_options(config, None)
    axes, default_axes = reading.pop("axes"), reading.pop("default_axes")
    sources = open_sources(found, palette, reading, axes, default_axes)
    looked_at = (
        sources
        if config.limit is None
        else open_sources(_limited(found, config.limit, config.seed), palette, reading, axes, default_axes)
    )
    surveys = {split: survey_masks(source, num_cores()) for split, source in looked_at.items()}
    judged = judge_masks(
        str(config.dataset),
        looked_at,
        surveys,
        names=names,
        palette=palette,
        ignore_index=config.ignore_index,
        reduce_zero_label=config.reduce_zero_label,
    )
    images = splits_of(found, {split: source.images for split, source in sources.items()})
    return OpenedMasks(images=images, found=found, looked_at=looked_at, surveys=surveys, judged=judged)


def _limited(found: FoundPairs, limit: int, seed: int) -> FoundPairs:
    """The pairs of the images that the census looks at."""
    parts = {}
    for split, pairs in found.parts.items():
        count = len(pairs.images)
        indices = np.sort(Permutation(count, seed)(np.arange(min(limit, count)))).tolist()
        parts[split] = replace(
            pairs, images=[pairs.images[i] for i in indices], masks=[pairs.masks[i] for i in indices]
        )
    return replace(found, parts=parts)


def mask_problems(masks: dict[str, Any]) -> list[str]:
    """What to mend about masks before training, the most serious first."""
    lines = [] if masks["refusal"] is None else [f"openmae segment would refuse: {masks['refusal']}."]
    for split, facts in masks["splits"].items():
        bad, count = facts["unusable"], facts["looked_at"]
        kinds = [f"{facts[kind]:,} {words}" for kind, words in KINDS.items() if facts[kind]]
        if bad > MAX_BAD * count:
            lines.append(
                f"{bad:,} of {count:,} pairs of {split} cannot be used ({', '.join(kinds)}): more than --max-bad "
                f"{MAX_BAD:g} allows, so training would stop. Mend or remove them."
            )
        elif bad:
            lines.append(f"{bad:,} of {count:,} pairs of {split} would be left out ({', '.join(kinds)}): mend them.")
    if values := masks["values_of_no_class"]:
        named = ", ".join(map(str, values[:5])) + (", …" if len(values) > 5 else "")
        plural = "s" * (len(values) != 1)
        lines.append(f"Value{plural} {named} stand{'' if plural else 's'} for no class: give names, or --ignore-index.")
    for split, names in masks["absent_in_train"].items():
        if names:
            lines.append(f"{split} has {_classes(names)} that train lacks, such as {', '.join(names[:3])}.")
    if rare := masks["rare"]:
        lines.append(
            f"Less than 0.1 % of the training pixels: {_classes(rare)}, such as {', '.join(list(rare)[:3])}. Rare "
            "classes are hard to learn, and each counts as much in mIoU as any other."
        )
    return lines


def _classes(names: Collection[str]) -> str:
    return f"{len(names):,} class{'es' * (len(names) != 1)}"


KINDS = {
    "wrong_size": "of another size than the image",
    "unreadable_mask": "with an unreadable mask",
    "of_no_class": "with values of no class",
    "unreadable_image": "with an unreadable image",
}


def segment_command(config: InspectConfig, masks: Mapping[str, Any]) -> str | None:
    """The command that trains on the data; None where it would refuse."""
    if masks["refusal"] is not None:
        return None
    words = ["openmae", "segment", *words_of(config.dataset), "--init", "RUN", "--out", "OUT"]
    return quoted(*words, *given_words(config, (*MASK_SETTINGS, "axes", "value_range", "nodata", "max_pixels")))


def overlay_sheet(masks: OpenedMasks, title: str, seed: int, value_range: ValueRange) -> "Figure | None":
    """A few images beside their masks in colour, drawn at random; None where the classes are not known."""
    decided = masks.judged.decided
    if decided is None:
        return None
    numbered = {s: source.numbered(decided.numbering, decided.classes) for s, source in masks.looked_at.items()}
    places = [(split, i) for split, source in numbered.items() for i in range(len(source))]
    chosen = np.sort(Permutation(len(places), seed)(np.arange(min(NUM_OVERLAYS, len(places))))).tolist()
    rows = []
    for split, i in (places[place] for place in chosen):
        source = numbered[split]
        try:
            content: SegmentedImage | str = _overlaid(source, i, value_range)
        except BadImage as error:
            content = str(error)
        rows.append(Row(content=content, name=shown(source.name(i)), score=split))
    text = f"{len(rows)} of {len(places):,} pairs, drawn at random; ignored pixels are left as they are."
    return segmentation_sheet(f"Images and masks: {title}", text, rows, decided.classes)


def _overlaid(source: MaskedSource, index: int, value_range: ValueRange) -> SegmentedImage:
    labels, image = source.labels(index), source.read(index)
    picture = np.asarray(rgb_picture(filled(image), max(image.shape[:2]), value_range))
    return SegmentedImage(image=picture, truth=labels)
