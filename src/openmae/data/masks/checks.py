"""What images with masks must have to be trained on, as one pass over all masks found it."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from openmae.data.masks.classes import DecidedClasses, check_train_classes
from openmae.data.masks.source import MaskedSource
from openmae.data.masks.survey import MaskSurvey
from openmae.errors import RequestError, shown


def check_usable(data: str, sources: Mapping[str, MaskedSource], bad: Mapping[str, Mapping[str, str]]) -> None:
    """Raise RequestError where all pairs of a split are bad."""
    for split, source in sources.items():
        if len(bad[split]) == len(source):
            name, reason = next(iter(bad[split].items()))
            raise RequestError(
                f"none of the {len(source):,} masks of {split} in {shown(data)} can be used: {shown(name)}: {reason}"
            )


def check_share_of_bad(
    data: str, surveys: Mapping[str, MaskSurvey], bad: Mapping[str, Mapping[str, str]], max_bad: float
) -> None:
    """Raise RequestError where more than `max_bad` of a surveyed split are bad: a figure would be of the rest."""
    for split, survey in surveys.items():
        count = len(survey.sizes)
        if len(bad[split]) > max_bad * count:
            name, reason = next(iter(bad[split].items()))
            raise RequestError(
                f"{len(bad[split])} of {count:,} pairs of {split} in {shown(data)} cannot be used, the first "
                f"{shown(name)} ({reason}): more than --max-bad {max_bad:g}; openmae inspect names them, a higher "
                "--max-bad skips them"
            )


def check_pixels(
    data: str,
    pixels: Mapping[str, NDArray[np.int64]],
    held_out: NDArray[np.int64],
    num_held_out: int,
    decided: DecidedClasses,
) -> None:
    """Raise RequestError where train has fewer than two classes, or no pixel of another split has one.

    Args:
        pixels: by split, the pixels of each class.
        held_out: those of the `num_held_out` images that are held out of train.
    """
    check_train_classes(data, pixels["train"].tolist(), decided.classes, decided.numbering)
    others = {} if not num_held_out else {"the split of train": held_out}
    for split, counts in {**pixels, **others}.items():
        if not counts.sum():
            raise RequestError(
                f"all pixels of the masks of {split} in {shown(data)} are ignored: nothing can be measured on it; see "
                "which values stand for classes, or hold out more images"
            )
