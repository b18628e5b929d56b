"""Numeric labels: telling them from class names, reading them from a source, and using them as regression targets."""

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

COLUMN = "label"  # the name of regression targets that come without one
MISSING = ("", "nan", "na", "n/a", "null", "none")  # cells of missing numbers, in any case
MAX_SHOWN = 3  # examples in a message
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@runtime_checkable
class Numbered(Protocol):
    """A source with numeric labels beside, or instead of, classes: (n,) float64, NaN where there is none."""

    numbers: NDArray[np.float64] | None


class NumberedSource(SourceView):
    """A source whose labels are regression targets: `targets` (n, T) float64, a row of NaN where one is missing."""

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
    """A cell or class name as a number; NaN for a word of `MISSING`, None for anything else."""
    text = text.strip()
    if text.lower() in MISSING:
        return float("nan")
    return float(text) if _NUMBER.fullmatch(text) else None


def kind_of_names(names: Iterable[str]) -> str | None:
    """Whether class names look like numbers.

    Returns:
        "fractional" where most are numbers and some have a fraction; "whole" where all are whole numbers; None where
        they are names. Words of `MISSING` are ignored.
    """
    numbers = [number for number in map(number_of, names) if number is None or number == number]
    known = [number for number in numbers if number is not None]
    if 2 * len(known) > len(numbers) and any(number != np.floor(number) for number in known):
        return "fractional"
    return "whole" if known and len(known) == len(numbers) else None


def range_of_names(names: Iterable[str]) -> str:
    """`20 to 59`: the lowest and the highest of the names that are numbers."""
    known = [number for number in map(number_of, names) if number is not None and number == number]
    return f"{min(known):.6g} to {max(known):.6g}"


def stored_numbers(source: Source) -> NDArray[np.float64] | None:
    """The numeric labels of a source's table or index (of a tile its image's), see `Numbered`; None without any."""
    if isinstance(source, Tiled):
        of_images = stored_numbers(source.source)
        return None if of_images is None else of_images[source.image_numbers]
    return source.numbers if isinstance(source, Numbered) else None


def non_class_numbers(source: Source) -> NDArray[np.float64] | None:
    """The `stored_numbers` of a source if they cannot be class ids: some are fractional or below -1; else None."""
    numbers = stored_numbers(source)
    if numbers is None:
        return None
    known = numbers[~np.isnan(numbers)]
    return numbers if ((known < -1) | (known != np.floor(known))).any() else None


def numeric_labels(source: Source) -> NDArray[np.float64] | None:
    """A source's labels as numbers, (n,) with NaN where there is none; None where they are class names.

    Class names that are all numeric (folders 20.5, 21) count as numbers; labels without class names are numbers.
    """
    numbers = stored_numbers(source)
    if numbers is not None:
        is_hidden = bool(
            (np.isnan(numbers) | (numbers == -1)).all()
        )  # -1 throughout: hidden labels, as of test splits on the Hugging Face hub
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
    """The source with its labels as regression targets.

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
    """Raise RequestError where most class names are numbers, some of them fractional."""
    if kind_of_names(names) != "fractional":
        return
    known = sorted((n, name) for name in names if (n := number_of(name)) is not None and n == n)
    few = ", ".join(shown(name) for _, name in known[:MAX_SHOWN]) + (", …" if len(known) > MAX_SHOWN else "")
    raise RequestError(
        f"the {len(names)} different labels of {shown(data)} are numbers, some with a fraction ({few}): {advice}"
    )
