"""The numbers that a regression model predicts: their names, and the mean and standard deviation to scale them by."""

import math
from dataclasses import dataclass
from typing import Any, Self

from openmae.config.checks import check_types
from openmae.errors import RequestError

MAX_NUMBER = 1e100  # its square is still a finite double


@dataclass(frozen=True, kw_only=True)
class TargetScale:
    """How numbers become a model's targets: (number - mean) / std; kept in every checkpoint.

    Attributes:
        columns: the names of the numbers, in the order of the model's outputs.
        mean, std: of the training images' numbers, one for each column, in their own units.
    """

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        check_types(self)
        if not self.columns or not len(self.columns) == len(self.mean) == len(self.std):
            raise RequestError(
                f"{len(self.columns)} columns with {len(self.mean)} means and {len(self.std)} deviations: one each"
            )
        for value in self.std:
            if not value > 0:
                raise RequestError(f"a column's deviation got {value:g}: it must be above 0")
        if max(map(abs, (*self.mean, *self.std))) > MAX_NUMBER:
            raise RequestError(f"a column's mean or deviation is beyond {MAX_NUMBER:g}")

    @classmethod
    def from_numbers(cls, columns: tuple[str, ...], values: list[list[float]]) -> Self:
        """The scale of the training images' numbers, a list for each column.

        Sums are rounded once (`math.fsum`), so that every machine and version computes the same bits.

        Raises:
            RequestError: all numbers of a column are the same.
        """
        means, deviations = [], []
        for name, numbers in zip(columns, values, strict=True):
            if len(numbers) == 1:
                raise RequestError(f"there is one training image with {name!r}, and nothing to learn of it: give more")
            if min(numbers) == max(numbers):
                raise RequestError(
                    f"all {len(numbers)} training images have the same {name!r} ({numbers[0]:g}): there is nothing to "
                    "learn, leave the column out"
                )
            means.append(mean := math.fsum(numbers) / len(numbers))
            deviations.append(math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / len(numbers)))
            if not deviations[-1]:
                raise RequestError(
                    f"the numbers of {name!r} differ by too little to be told apart ({min(numbers):g} to "
                    f"{max(numbers):g}): give them in another unit"
                )
        return cls(columns=columns, mean=tuple(means), std=tuple(deviations))

    @classmethod
    def from_description(cls, values: dict[str, Any]) -> Self:
        """From a checkpoint's metadata. Raises RequestError, TypeError or KeyError where they hold no scale."""
        return cls(columns=tuple(values["columns"]), mean=tuple(values["target_mean"]), std=tuple(values["target_std"]))

    def to_description(self) -> dict[str, Any]:
        """As a checkpoint's metadata hold it."""
        return {"columns": list(self.columns), "target_mean": list(self.mean), "target_std": list(self.std)}
