"""Labels that are numbers: told from class names, read from what a source has, and kept as targets to predict."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from openmae.config.target_scale import MAX_NUMBER
from openmae.data.sources.open import Source
from openmae.data.sources.tiles import Tiled
from openmae.data.sources.views import SourceView
from openmae.errors import RequestError, shown

COLUMN = "label"  # what numbers are called that come without the name of a column
MISSING = ("", "nan", "na", "n/a", "null", "none")  # cells without a number, whatever their case
MAX_SHOWN = 3  # that a message names
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@runtime_checkable
class Numbered(Protocol):
    """A source that has numbers beside, or instead of, classes: (n,) float64, NaN where there is none."""

    numbers: NDArray[np.float64] | None


class NumberedSource(SourceView):
    """A source whose labels are numbers to predict: `targets` (n, T) float64, a row of NaN where one is missing."""

    def __init__(self, source: Source, targets: NDArray[np.float64], columns: Sequence[str]) -> None:
        assert targets.dtype == np.float64 and targets.shape == (len(source), len(columns))
        super().__init__(source)
        self.classes = None
        self.targets, self.columns = targets, tuple(columns)

    def __len__(self) -> int:
        return len(self.source)

    def source_index(self, index: int) -> int:
        return index

    def label(self, index: int) -> NDArray[np.float64] | None:
        row = self.targets[self._checked(index)]
        return None if np.isnan(row).any() else row

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.columns).encode("utf-8", "surrogateescape") + self.targets.tobytes())
        return f"{self.source.fingerprint()}[numbers {digest.hexdigest()}]"


def number_of(text: str) -> float | None:
    """The number that a cell or a name is; NaN for one of the usual words for a missing one, None for anything else."""
    text = text.strip()
    if text.lower() in MISSING:
        return float("nan")
    return float(text) if _NUMBER.fullmatch(text) else None


def kind_of_names(names: Iterable[str]) -> str | None:
    """Whether class names look like numbers.

    Returns:
        "fractional" where most are numbers and some have a fraction; "whole" where all are whole numbers; None where
        they are names. Words for a missing number say nothing.
    """
    numbers = [number for number in map(number_of, names) if number is None or number == number]
    known = [number for number in numbers if number is not None]
    if 2 * len(known) > len(numbers) and any(number != np.floor(number) for number in known):
        return "fractional"
    return "whole" if known and len(known) == len(numbers) else None


def range_of_names(names: Iterable[str]) -> str:
    """`20 to 59`: the least and the largest of the numbers among the names."""
    known = [number for number in map(number_of, names) if number is not None and number == number]
    return f"{min(known):.6g} to {max(known):.6g}"


def stored_numbers(source: Source) -> NDArray[np.float64] | None:
    """The numbers that a source has as numbers, a tile its image's; None where it has none."""
    if isinstance(source, Tiled):
        of_images = stored_numbers(source.source)
        return None if of_images is None else of_images[source.image_numbers]
    return source.numbers if isinstance(source, Numbered) else None


def non_class_numbers(source: Source) -> NDArray[np.float64] | None:
    """The numbers of a source where its classes do not say them: some have a fraction, or lie below -1; else None."""
    numbers = stored_numbers(source)
    if numbers is None:
        return None
    known = numbers[~np.isnan(numbers)]
    return numbers if ((known < -1) | (known != np.floor(known))).any() else None


def numeric_labels(source: Source) -> NDArray[np.float64] | None:
    """The numbers that a source's labels are, (n,) with NaN where there is none; None where they are names.

    Class names that all are numbers (folders called 20.5, 21) are those; labels without names are numbers themselves.
    """
    numbers = stored_numbers(source)
    if numbers is not None:
        is_hidden = bool((np.isnan(numbers) | (numbers == -1)).all())  # as on the Hugging Face hub, of a whole part
        return np.full_like(numbers, np.nan) if is_hidden else numbers
    labels = [source.label(index) for index in range(len(source))]
    if not all(label is None or isinstance(label, int) for label in labels):
        return None
    if source.classes is None:
        return np.array([np.nan if label is None else label for label in labels], np.float64)
    of_class = [number_of(name) for name in source.classes]
    if any(number is None for number in of_class):
        return None
    return np.array([np.nan if label is None else of_class[int(label)] for label in labels], np.float64)


def with_number_labels(data: str, source: Source) -> NumberedSource:
    """A source with the numbers that its own labels are.

    Raises:
        RequestError: they are names, or too large.
    """
    numbers = numeric_labels(source)
    if numbers is None:
        name = next((n for n in source.classes or () if number_of(n) is None), "several labels an image")
        raise RequestError(
            f"--task regression needs numbers, and {shown(data)} has the class {shown(name)}: give --label-file with "
            "path and a column of numbers, or leave --task out"
        )
    if (abs(numbers) > MAX_NUMBER).any():
        raise RequestError(f"{shown(data)} has a label beyond {MAX_NUMBER:g}: take it out, or give it no label")
    return NumberedSource(source, numbers[:, None], (COLUMN,))


def check_names(data: str, names: Sequence[str], advice: str) -> None:
    """Raise RequestError where class names are numbers, some of them with a fraction."""
    if kind_of_names(names) != "fractional":
        return
    known = sorted((n, name) for name in names if (n := number_of(name)) is not None and n == n)
    few = ", ".join(shown(name) for _, name in known[:MAX_SHOWN]) + (", …" if len(known) > MAX_SHOWN else "")
    raise RequestError(
        f"the {len(names)} different labels of {shown(data)} are numbers, some with a fraction ({few}): {advice}"
    )
