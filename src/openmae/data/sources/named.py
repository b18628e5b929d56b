"""Whether what DATA names is there, and what it is. Imports no torch: it is asked before that is loaded."""

import difflib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from openmae.config import SPLITS, Dataset
from openmae.data.decoding.extensions import EXTENSIONS
from openmae.errors import RequestError, shown

EMBEDDED = "embedded:"
EMBEDDED_NAMES = ("photos", "digits")


def check_named(data: Dataset, wanted: Sequence[str] = SPLITS, takes_json: bool = False) -> None:
    """Raise RequestError where DATA, or one of its `wanted` parts, names nothing that images are read from.

    Args:
        takes_json: whether that may be a JSON file, which says where its images are.
    """
    paths = [data] if isinstance(data, str) else [path for split, path in data.paths.items() if split in wanted]
    for path in paths:
        if path.startswith(EMBEDDED):
            check_embedded(path.removeprefix(EMBEDDED))
        elif not (takes_json and is_json(path)):
            is_folder(path)


def check_embedded(name: str) -> None:
    """Raise RequestError, with the nearest name, where no such images come inside the wheels."""
    if name not in EMBEDDED_NAMES:
        near = difflib.get_close_matches(name, EMBEDDED_NAMES, n=1, cutoff=0.0)[0]
        raise RequestError(
            f"embedded:{name!r} is unknown: did you mean embedded:{near}? There are {', '.join(EMBEDDED_NAMES)}"
        )


def is_folder(data: str) -> bool:
    """Whether it is a folder rather than a parquet file. Raises RequestError where it is neither."""
    try:
        mode = os.stat(data).st_mode
    except FileNotFoundError:
        raise RequestError(f"no such file or folder: {shown(data)}") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot open {shown(data)}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(mode):
        return True
    if not stat.S_ISREG(mode):
        raise RequestError(f"{shown(data)} is neither a folder nor a file: give the folder that holds the images")
    try:
        if is_parquet(data):
            return False
    except OSError as error:
        raise RequestError(f"cannot open {shown(data)}: {error.strerror or error}") from None
    what = "is a single file" if Path(data).suffix.lower() in EXTENSIONS else "is not a parquet file"
    raise RequestError(f"{shown(data)} {what}: give the folder that holds the images, or a .parquet file")


def is_json(path: str) -> bool:
    """Whether it is a JSON file, by its name."""
    return path.lower().endswith(".json") and os.path.isfile(path)


def is_parquet(path: str) -> bool:
    """Whether a file is one, by its name or its first bytes."""
    if path.lower().endswith(".parquet"):
        return True
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def names_in(folder: Path, flag: str) -> list[str]:
    """What lies in a folder that a `flag` names, but for hidden files. Raises RequestError where it cannot be read."""
    try:
        return [name for name in sorted(os.listdir(folder)) if not name.startswith((".", "__MACOSX"))]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"{flag} {shown(folder)} cannot be read as a folder: {why}") from None


def are_files(names: Sequence[str]) -> bool:
    """Whether all are image files and none is a data set, as far as can be told without opening them."""
    return all(map(_is_file, names))


def check_images(names: Sequence[str]) -> None:
    """Raise RequestError unless these are files, or one data set that is there."""
    if are_files(names):
        return
    if len(names) == 1:
        check_named(names[0])
        return
    missing = next(name for name in names if not _is_file(name))
    raise RequestError(f"{missing} is not an image file: name image files, or one data set alone")


def _is_file(name: str) -> bool:
    return Path(name).is_file() and not name.endswith(".parquet")


def folder_of(path: str) -> str:
    """The folder in which what DATA names is looked for: itself, or the one around COCO JSON and its images.

    Where no image lies beside or below the JSON file, as in annotations/, the images are looked for one folder higher.
    """
    if not is_json(path):
        return path
    folder, seen = os.path.dirname(os.path.abspath(path)), set[str]()
    for place, folders, names in os.walk(folder, followlinks=True):
        if any(os.path.splitext(name)[1].lower() in EXTENSIONS for name in names if not name.startswith(".")):
            return folder
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        seen.add(real)
    return os.path.dirname(folder)
