"""Regression targets from a CSV file: a path and one or more columns of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmae.config.target_scale import MAX_NUMBER
from openmae.data.labels.label_file import MAX_TABLE_BYTES, PATH_COLUMNS, rows_of, rows_with_images, shown_cell
from openmae.data.labels.numbers import number_of
from openmae.errors import RequestError, shown

_EXPECTED = f"with --task regression expected path (or {', '.join(PATH_COLUMNS[1:])}) and a column for each number"


@dataclass(frozen=True, kw_only=True)
class NumberTable:
    """The regression targets of n images from a CSV.

    Attributes:
        columns: names of the targets, as in the header.
        targets: (n, columns) float64; a row of NaN where a number is missing.
        unmatched: rows that name no image of the data.
    """

    columns: tuple[str, ...]
    targets: NDArray[np.float64]
    unmatched: int


def read_number_file(path: str, names: Sequence[str]) -> NumberTable:
    """Read the targets of the images called `names` (as `Source.name` gives them) from a CSV.

    Paths are as in `read_label_file`. An empty cell, or nan, na, null or none in it, is a missing number.

    Raises RequestError for a file that cannot be used, has cells that are not numbers, contradicts itself or names no
    image.
    """
    rows = rows_of(path)
    _, header = next(rows, (0, []))
    columns = _columns(path, header)
    if len(names) * len(columns) * 8 > MAX_TABLE_BYTES:
        raise RequestError(
            f"{shown(path)} has {len(columns)} columns for {len(names)} images: take out what is no target"
        )
    found, unmatched = dict[int, tuple[float | None, ...]](), 0
    for where, row, image in rows_with_images(path, rows, len(header), names):
        if image is None:
            unmatched += 1
            continue
        numbers = tuple(_number(where, column, text) for column, text in zip(columns, row[1:], strict=True))
        if found.setdefault(image, numbers) != numbers:
            raise RequestError(
                f"{where}: {shown_cell(row[0])} is listed before with other numbers: keep one of the rows"
            )
    if not found:
        example = f", such as {shown_cell(names[0])}" if names else ""
        raise RequestError(f"{shown(path)}: none of its {unmatched} rows names an image of the data{example}")
    targets = np.full((len(names), len(columns)), np.nan, np.float64)
    for image, numbers in found.items():
        if None not in numbers:
            targets[image] = numbers
    return NumberTable(columns=columns, targets=targets, unmatched=unmatched)


def _columns(path: str, header: list[str]) -> tuple[str, ...]:
    if not header:
        raise RequestError(f"{shown(path)} is empty: {_EXPECTED}")
    found = ",".join(map(shown_cell, header[:5]))
    columns = tuple(name.strip() for name in header[1:])
    if header[0].strip().lower() not in PATH_COLUMNS or not columns:
        raise RequestError(f"{shown(path)} begins with {found}; {_EXPECTED}")
    if "" in columns or len(set(columns)) < len(columns):
        raise RequestError(f"{shown(path)}: each column needs a name of its own, got {found}")
    return columns


def _number(where: str, column: str, text: str) -> float | None:
    """The number of a cell; None where it is missing."""
    number = number_of(text)
    if number is None or abs(number) > MAX_NUMBER:
        raise RequestError(
            f"{where}: column {shown_cell(column)} has {shown_cell(text)}; expected a number such as 20.5, or nothing "
            "where it is missing"
        )
    return None if number != number else number
