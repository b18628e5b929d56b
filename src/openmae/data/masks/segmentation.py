"""The data of semantic segmentation: the splits of masked images, their classes, and how these were decided."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openmae.data.masks.source import Masked


@dataclass(frozen=True, kw_only=True)
class SegmentationData:
    """The splits of a segmentation task; every image in them has a mask.

    Attributes:
        train: the training images, without the held-out split.
        validation: for choosing a step: the val split if there is a test split with masks too, or what `--held-out`
            takes from train beside a val or test split; else None.
        test: for the final metrics: the test split, else the val split, else held out of train.
        final_split: which of these `test` is: "test", "val" or "split of train".
        is_validation_split: something was held out of train, see `held_out`.
        classes: names of the classes, in order of ids; `class 7` where there is no name.
        pixels: (classes,) the training pixels of each class; None where the survey was skipped.
        ignore_index: the stored value of ignored pixels, as decided; None: no value is ignored.
        bad: by split, the reason by name for each pair that was left out because it cannot be used.
        notes: remarks on what was left out and how classes were decided, a line each.
        origins, source_lines: where the splits were found: `origins` and `lines` of `openmae.data.sources.open.Splits`.
    """

    train: Masked
    validation: Masked | None
    test: Masked
    final_split: str
    is_validation_split: bool
    classes: tuple[str, ...]
    pixels: NDArray[np.int64] | None
    ignore_index: int | None
    reduce_zero_label: bool
    bad: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    origins: dict[str, str] = field(default_factory=dict)
    source_lines: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def parts(self) -> tuple[Masked, ...]:
        """All splits that exist."""
        return tuple(part for part in (self.train, self.validation, self.test) if part is not None)

    @property
    def final_source(self) -> Masked:
        """The split that the final metrics are of."""
        return self.test

    def without_test(self) -> "SegmentationData":
        """The final metrics are of what chooses: `validation`, where there is one beside `test`."""
        if self.validation is None:
            return self
        final_split = "split of train" if self.is_validation_split else "val"
        return replace(self, test=self.validation, validation=None, final_split=final_split)

    @property
    def held_out(self) -> Masked | None:
        """What was held out of train: `test` where DATA has neither val nor test, else `validation`."""
        if not self.is_validation_split:
            return None
        return self.test if self.final_split == "split of train" else self.validation

    def held_out_names(self) -> list[str]:
        """The names of the images that were held out of train; empty where none were."""
        source = self.held_out
        return [] if source is None else [source.name(i) for i in range(len(source))]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the splits and of what their values mean, when this was first called."""
        parts = ["none" if part is None else part.fingerprint() for part in (self.train, self.validation, self.test)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()
