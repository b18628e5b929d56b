"""`Divided`: the splits of a task's data, and which of them the final metrics are of."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Self, TypeVar

from openmae.data.annotated.hold_out import OF_TRAIN
from openmae.data.sources.open import Source

S = TypeVar("S", bound=Source)


@dataclass(frozen=True, kw_only=True)
class Divided(Generic[S]):
    """The splits of a task; every image in them is annotated.

    Attributes:
        train: the training images, without the held-out split.
        validation: for choosing a step: the val split if there is an annotated test split too, or what `--held-out`
            takes from train beside a val or test split; else None.
        test: for the final metrics: the test split, else the val split, else held out of train.
        final_split: which of these `test` is: "test", "val" or "split of train".
        is_validation_split: something was held out of train, see `held_out`.
        bad: by split, the reason by name for each image that was left out because it cannot be used.
        notes: remarks on what was left out and what was decided, a line each.
        origins, source_lines: where the splits were found: `origins` and `lines` of `openmae.data.sources.open.Splits`.
    """

    train: S
    validation: S | None
    test: S
    final_split: str
    is_validation_split: bool
    bad: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    origins: dict[str, str] = field(default_factory=dict)
    source_lines: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[S, ...]:
        """All splits that exist."""
        return tuple(part for part in (self.train, self.validation, self.test) if part is not None)

    @property
    def final_source(self) -> S:
        """The split that the final metrics are of."""
        return self.test

    def without_test(self) -> Self:
        """The final metrics are of what chooses: `validation`, where there is one beside `test`."""
        if self.validation is None:
            return self
        final_split = OF_TRAIN if self.is_validation_split else "val"
        return replace(self, test=self.validation, validation=None, final_split=final_split)

    @property
    def held_out(self) -> S | None:
        """What was held out of train: `test` where DATA has neither val nor test, else `validation`."""
        if not self.is_validation_split:
            return None
        return self.test if self.final_split == OF_TRAIN else self.validation

    def held_out_names(self) -> list[str]:
        """The names of the images that were held out of train; empty where none were."""
        source = self.held_out
        return [] if source is None else [source.name(i) for i in range(len(source))]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the splits and of what their annotations mean, when this was first called."""
        parts = ["none" if part is None else part.fingerprint() for part in (self.train, self.validation, self.test)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def divide(whole: Mapping[str, S], taken: S | None) -> dict[str, Any]:
    """The fields of `Divided` about evaluation splits.

    Args:
        whole: the val and test splits that exist.
        taken: what was held out of train.
    """
    final_split = next((split for split in ("test", "val") if split in whole), OF_TRAIN)
    test = taken if final_split == OF_TRAIN else whole[final_split]
    assert test is not None
    return {
        "validation": whole["val"] if len(whole) == 2 else taken if taken is not test else None,
        "test": test,
        "final_split": final_split,
        "is_validation_split": taken is not None,
    }
