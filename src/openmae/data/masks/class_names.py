"""The names of classes by number, from a text, CSV or JSON file (`--class-names FILE`)."""

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from openmae.data.masks.text_file import read_text
from openmae.errors import RequestError, shown

MAX_ID = 65535  # masks have at most 16 bits
_ID_COLUMNS = ("id", "idx", "index", "class_id", "label_id", "value", "number")
_NAME_COLUMNS = ("name", "class", "class_name", "label", "category")
_NUMBERED = re.compile(r"\s*\d+\s*[,\t;].*\S.*", re.ASCII)
_DIGITS = re.compile(r"\d{1,9}", re.ASCII)
_WITH_NUMBER = re.compile(r"\s*\d+(\s*:|\s)\s*\S.*", re.ASCII)
_EXPECTED = 'expected one name a line, rows of id,name, or JSON such as ["road", "sky"] or {"0": "road", "1": "sky"}'


def read_class_names(path: str) -> dict[int, str]:
    """Read the names of classes by their number.

    A text file has one name a line, counted from 0; a CSV or TSV an id and a name in each row (with a header, in the
    columns that it calls so); JSON is a list of names, a list of objects with `id` and `name`, or an object of names by
    number.

    Raises:
        RequestError: it cannot be read, is something else, or names a number twice.
    """
    text = read_text(path, "--class-names")
    where = f"--class-names {shown(path)}"
    lines = text.rstrip().splitlines()
    if not lines:
        raise RequestError(f"{where} is empty: {_EXPECTED}")
    suffix = Path(path).suffix.lower()
    if suffix == ".json" or text.lstrip()[0] in "[{":
        pairs = _from_json(where, text)
    elif suffix in (".csv", ".tsv") or all(map(_NUMBERED.fullmatch, lines[1:] if len(lines) > 1 else lines)):
        pairs = _from_table(where, lines)
    else:
        if all(map(_WITH_NUMBER.fullmatch, lines)):
            raise RequestError(f"{where} begins each line with a number, as {shown(lines[0][:40])}: {_EXPECTED}")
        pairs = list(enumerate(lines))
    names: dict[int, str] = {}
    for key, name in pairs:
        name = name.strip()
        if not name:
            raise RequestError(f"{where}: class {key} has an empty name; {_EXPECTED}")
        if not 0 <= key <= MAX_ID:
            raise RequestError(f"{where}: class number {key} ({shown(name)}) is not within 0 and {MAX_ID}")
        if names.setdefault(key, name) != name:
            raise RequestError(f"{where}: class {key} is both {shown(names[key])} and {shown(name)}: keep one of them")
    if not names:
        raise RequestError(f"{where} has no names: {_EXPECTED}")
    twice = next((name for name, count in Counter(names.values()).items() if count > 1), None)
    if twice is not None:
        numbers = " and ".join(str(key) for key, name in names.items() if name == twice)
        raise RequestError(f"{where}: classes {numbers} are both called {shown(twice)}: give each a name of its own")
    return names


def _from_json(where: str, text: str) -> list[tuple[int, str]]:
    try:
        # As pairs, or a number that stands twice would lose its first name unseen.
        found: Any = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} is not JSON that can be read ({error})") from None
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return list(enumerate(found))
    try:
        if text.lstrip()[0] == "[":
            entries = [dict(entry) for entry in found]
            found = [(entry["id"], entry["name"]) for entry in entries]
        pairs = [(_class_number(key), name) for key, name in found]
    except (TypeError, ValueError, KeyError, OverflowError):
        raise RequestError(f"{where} holds other JSON: {_EXPECTED}") from None
    if not all(isinstance(name, str) for _, name in pairs):
        raise RequestError(f"{where} holds other JSON: {_EXPECTED}")
    return pairs


def _class_number(key: Any) -> int:
    """A class number in JSON: an integer, or its digits. Raises ValueError for anything else, fractions too."""
    if isinstance(key, str) and _DIGITS.fullmatch(key.strip().removeprefix("-")):
        return int(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    raise ValueError(f"{key!r} is no class number")


def _from_table(where: str, lines: list[str]) -> list[tuple[int, str]]:
    between = next((char for char in "\t;" if char in lines[-1]), ",")
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=between, strict=True)]
    except csv.Error as error:
        raise RequestError(f"{where} is not CSV that can be read ({error})") from None
    rows = [row for row in rows if any(row)]
    if not rows:
        raise RequestError(f"{where} has no names: {_EXPECTED}")
    id_column, name_column, width = 0, 1, 2
    header = [cell.lower() for cell in rows[0]]
    has_numbers = any(_is_number(cell) for cell in header)
    if not has_numbers and (len(rows) == 1 or len(header) > 1 or header[0] in _NAME_COLUMNS):
        ids = [i for i, cell in enumerate(header) if cell in _ID_COLUMNS]
        names = [i for i, cell in enumerate(header) if cell in _NAME_COLUMNS]
        if len(header) != 2 and (not names or (len(header) > 1 and not ids)):
            raise RequestError(f"{where} has columns {', '.join(map(shown, header[:6]))}: {_EXPECTED}")
        rows = rows[1:]
        if ids and names:
            id_column, name_column, width = ids[0], names[0], len(header)
    if all(len(row) == 1 for row in rows):
        return list(enumerate(row[0] for row in rows))
    pairs = []
    for row in rows:
        if len(row) != width or not _DIGITS.fullmatch(row[id_column]):
            raise RequestError(f"{where}: got the row {shown(between.join(row)[:60])}; {_EXPECTED}")
        pairs.append((int(row[id_column]), row[name_column]))
    return pairs


def _is_number(cell: str) -> bool:
    if cell.isnumeric():  # ², which is no number here but no header either
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True
