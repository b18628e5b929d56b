"""Labels from a CSV file: one class, several classes, or a 0/1 column for each class."""

import csv
import hashlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmae.data.labels.named_file import check_label_file, label_file_error
from openmae.data.labels.numbers import number_of
from openmae.data.sources.open import Source
from openmae.errors import RequestError, shown

MAX_TABLE_BYTES = 4 << 30  # or a label column of unique ids would make a class of every image
PATH_COLUMNS = ("path", "file", "filename", "image", "name")
_EXPECTED = "expected columns path,label or path,labels (names separated by ;) or path and a 0/1 column for each class"
_NUMBERS = "; --task regression takes columns of numbers"
AMBIGUOUS = -1

Target = int | tuple[int, ...]  # ids of the columns or names in order of appearance; -1 for a label left empty


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """The labels of n images from a label file.

    Attributes:
        classes: the names, sorted.
        targets: (n,) int64, or (n, classes) float32 of 0 and 1 if `is_multi_label`; -1 where there is no label.
        is_of_columns: the classes are the columns of the header.
        unlisted: images without a label.
        unmatched: rows that name no image of the data.
    """

    classes: tuple[str, ...]
    targets: NDArray[np.int64] | NDArray[np.float32]
    is_multi_label: bool
    is_of_columns: bool
    unlisted: int
    unmatched: int


class LabelledSource:
    """A source whose labels are replaced: `targets` (n,) int64 or (n, K) float32, -1 where there is none.

    With several labels an image, a label is a (K,) row of zeros and ones.
    """

    def __init__(
        self, source: Source, targets: NDArray[np.int64] | NDArray[np.float32], classes: Sequence[str]
    ) -> None:
        assert len(targets) == len(source)
        self.source, self.targets = source, targets
        self.classes: tuple[str, ...] | None = tuple(classes)
        self.ignored = source.ignored

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def label(self, index: int) -> int | NDArray[np.float32] | None:
        label = self.targets[index]
        if self.targets.ndim == 2:
            return label if label[0] >= 0 else None
        return int(label) if label >= 0 else None

    def read(self, index: int) -> np.ndarray:
        return self.source.read(index)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.classes).encode("utf-8", "surrogateescape") + self.targets.tobytes())
        return f"{self.source.fingerprint()} {digest.hexdigest()}"


def read_label_file(path: str, names: Sequence[str]) -> LabelTable:
    """Read the labels of the images called `names` (as `Source.name` gives them) from a CSV.

    A row's path is relative to DATA; where no image has that name, more or fewer leading folders may be given as long
    as only one image matches. Raises RequestError for a file that cannot be used, contradicts itself or names no image.
    """
    rows = rows_of(path)
    _, header = next(rows, (0, []))
    kind = _kind(path, header)
    columns = [name.strip() for name in header[1:]] if kind == "columns" else []
    ids = {name: i for i, name in enumerate(columns)}
    targets, unmatched = dict[int, Target](), 0
    for where, row, image in rows_with_images(path, rows, len(header), names):
        if image is None:
            unmatched += 1
            continue
        if kind == "columns":
            target: Target = _flags(where, row, columns)
        elif kind == "labels":
            found = sorted({name.strip() for name in re.split("[;|]", row[1])} - {""})
            target = tuple(sorted(ids.setdefault(name, len(ids)) for name in found))
        else:
            target = ids.setdefault(row[1].strip(), len(ids)) if row[1].strip() else -1
        if targets.setdefault(image, target) != target:
            raise RequestError(
                f"{where}: {shown_cell(row[0])} is listed before with another label: keep one of the rows"
            )
    if not targets:
        example = f", such as {shown_cell(names[0])}" if names else ""
        raise RequestError(f"{shown(path)}: none of its {unmatched} rows names an image of the data{example}")
    return _table(path, targets, ids, len(names), kind, unmatched)


def rows_of(path: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row that is not blank. Raises RequestError, see `read_label_file`."""
    check_label_file(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            yield from ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
    except UnicodeDecodeError:
        raise RequestError(f"{shown(path)} is not UTF-8: save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise RequestError(f"{shown(path)}, line {reader.line_num}: not CSV that can be read ({error})") from None
    except (OSError, ValueError) as error:
        raise label_file_error(path, error) from None


def _kind(path: str, header: list[str]) -> str:
    """The kind of label file by its header: `label`, `labels` or `columns`."""
    if not header:
        raise RequestError(f"{shown(path)} is empty: {_EXPECTED}")
    first, *rest = (name.strip().lower() for name in header)
    found = ",".join(shown_cell(name) for name in header[:5])
    if first not in PATH_COLUMNS:
        raise RequestError(f"{shown(path)} begins with {found}; {_EXPECTED} (the first {', '.join(PATH_COLUMNS)})")
    if len(rest) == 1 and rest[0] in ("label", "labels"):
        return rest[0]
    if len(rest) < 2 or {"label", "labels"} & set(rest):
        raise RequestError(f"{shown(path)} has columns {found}; {_EXPECTED}, and no others{_NUMBERS}")
    names = [name.strip() for name in header[1:]]
    if "" in names or len(set(names)) < len(names):
        raise RequestError(f"{shown(path)}: each class column needs a name of its own, got {found}")
    return "columns"


def _flags(where: str, row: list[str], columns: list[str]) -> tuple[int, ...]:
    for name, cell in zip(columns, row[1:], strict=True):
        if cell.strip() not in ("0", "1"):
            number = number_of(cell)
            numbers = _NUMBERS if number is not None and number == number else ""
            raise RequestError(
                f"{where}: column {shown_cell(name)} has {shown_cell(cell) or 'nothing'}; expected 0 or 1{numbers}"
            )
    return tuple(i for i, cell in enumerate(row[1:]) if cell.strip() == "1")


def _table(
    path: str, grouped_by_image: dict[int, Target], ids: dict[str, int], count: int, kind: str, unmatched: int
) -> LabelTable:
    """Renumber classes from order of appearance to alphabetical order."""
    classes, is_multi_label = sorted(ids), kind != "label"
    new_ids = {ids[name]: i for i, name in enumerate(classes)} | {-1: -1}
    targets: NDArray[np.int64] | NDArray[np.float32]
    if is_multi_label:
        if not classes:
            raise RequestError(f"{shown(path)}: every label is empty; name at least one class")
        if count * len(classes) * 4 > MAX_TABLE_BYTES:
            raise RequestError(f"{shown(path)} names {len(classes)} classes for {count} images: is that column labels?")
        targets = np.full((count, len(classes)), -1, np.float32)
        for image, target in grouped_by_image.items():
            targets[image] = 0
            assert isinstance(target, tuple)
            targets[image, [new_ids[i] for i in target]] = 1
        unlisted = count - len(grouped_by_image)
    else:
        targets = np.full(count, -1, np.int64)
        for image, target in grouped_by_image.items():
            assert isinstance(target, int)
            targets[image] = new_ids[target]
        unlisted = int((targets < 0).sum())
    return LabelTable(
        classes=tuple(classes),
        targets=targets,
        is_multi_label=is_multi_label,
        is_of_columns=kind == "columns",
        unlisted=unlisted,
        unmatched=unmatched,
    )


def rows_with_images(
    path: str, rows: Iterable[tuple[int, list[str]]], num_cells: int, names: Sequence[str]
) -> Iterator[tuple[str, list[str], int | None]]:
    """For each row: its position, for messages; its cells; the index of the image that it names, None for no image.

    Raises:
        RequestError: a row has more or fewer cells than the header, or names several images.
    """
    images = ImageNames(names)
    for line, row in rows:
        where = f"{shown(path)}, line {line}"
        if len(row) != num_cells:
            raise RequestError(f"{where}: {len(row)} cells, the header has {num_cells}")
        image = images.find(row[0])
        if image == AMBIGUOUS:
            raise RequestError(
                f"{where}: several images are called {shown_cell(row[0])}: give the path within the data"
            )
        yield where, row, image


class ImageNames:
    """Finds an image by the path that a row gives."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names: dict[str, int] = {}
        for i, name in enumerate(
            names
        ):  # splits from different folders of the same name may have files of the same name
            self._names[name] = AMBIGUOUS if name in self._names else i
        self._depth = max((name.count("/") for name in names), default=0)
        self._ends: dict[str, int] | None = None  # all trailing parts of all paths; built when first needed

    def find(self, text: str) -> int | None:
        """The image's index; None if there is no such image; AMBIGUOUS if there are several."""
        if text in self._names:
            return self._names[text]
        path = posixpath.normpath(text.strip().replace("\\", "/"))
        if path in self._names:
            return self._names[path]
        if self._ends is None:
            self._ends = {}
            for name, i in self._names.items():
                parts = name.split("/")
                for start in range(1, len(parts)):
                    end = "/".join(parts[start:])
                    self._ends[end] = AMBIGUOUS if end in self._ends else i
        if path in self._ends:
            return self._ends[path]
        parts = path.split("/")
        shorter = ("/".join(parts[start:]) for start in range(max(1, len(parts) - self._depth - 1), len(parts)))
        return next((self._names[end] for end in shorter if end in self._names), None)


def shown_cell(text: str) -> str:
    """A cell of a table for messages: one line of at most 80 characters."""
    return shown(text if len(text) <= 80 else text[:77] + "...")
