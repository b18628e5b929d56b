"""The files that `--predict` writes: where those of an image go, overlays, the table of classes."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openmae.data.decoding.extensions import EXTENSIONS
from openmae.machine.files import PARTIAL_PREFIX, atomic_write, disk_faults, write_csv
from openmae.pictures.class_colours import class_colours

MAX_NAME_BYTES = 255 - len(PARTIAL_PREFIX) - len(".jpg") - 1  # of a file or folder, on all common file systems
MAX_JPEG_SIDE = 65500  # pixels; libjpeg's limit
JPEG_QUALITY = 90


def prediction_paths(names: Sequence[str]) -> list[PurePosixPath]:
    """Where the predictions for images of these names go: relative, without extension, no two in one another's way.

    Folders stay. `a/b.jpg` becomes `a/b`; where another image would be written there too (`a/b.png`, or `a/B.jpg`,
    which some file systems take for the same), each keeps its whole name, `a/b.jpg`, and where that does not help
    either gets a part of its hash appended. What leads out of a folder (`..`, a leading `/`) is replaced.
    """
    lengths = [0] * len(names)  # how much of each name is kept, see `_candidate`
    while True:
        paths = [_candidate(name, length) for name, length in zip(names, lengths, strict=True)]
        keys = [str(path).casefold() for path in paths]
        counts = Counter(keys)
        # The mask of `x` must not be named as the folder of `x.png/y`, nor its overlay as that of `x.jpg/y`.
        folders = {str(parent).casefold() for path in paths for parent in path.parents}
        clashing = [
            number
            for number, (key, length) in enumerate(zip(keys, lengths, strict=True))
            if length < 2 and (counts[key] > 1 or not folders.isdisjoint((f"{key}.png", f"{key}.jpg")))
        ]
        if not clashing:
            break
        shortest = min(lengths[number] for number in clashing)
        for number in clashing:
            lengths[number] += lengths[number] == shortest
    assert len(set(keys)) == len(keys), "an image's name occurs twice"
    return paths


def _candidate(name: str, length: int) -> PurePosixPath:
    """The path for a name; 0: without the extension of an image, 1: whole, 2: with a part of its hash."""
    parts = [_safe(part) for part in name.split("/") if part not in ("", ".")] or ["_"]
    stem, extension = os.path.splitext(parts[-1])
    if length == 0 and stem and extension.lower() in EXTENSIONS:
        parts[-1] = stem
    if length == 2:
        parts[-1] = _with_hash(parts[-1], name)
    return PurePosixPath(*parts)


def _safe(part: str) -> str:
    """A file's or folder's name that stays below its folder, and that file systems take."""
    part = "_" if part == ".." else part.replace("\0", "_")
    try:
        os.fsencode(part)
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can hold
        part = part.encode("utf-8", "backslashreplace").decode()
    return part if len(os.fsencode(part)) <= MAX_NAME_BYTES else _with_hash(part, part)


def _with_hash(part: str, whole: str) -> str:
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    room = MAX_NAME_BYTES - len(digest) - 1
    return os.fsencode(part)[:room].decode("utf-8", "ignore") + "-" + digest


def write_classes(out: Path, classes: Sequence[str], ids: Sequence[int | str] | None = None) -> None:
    """Write OUT/classes.csv: of each class its id in the files beside it, its name, its colour (#rrggbb).

    Args:
        ids: 0, 1, … unless given.

    Raises:
        Fault: it cannot be written.
    """
    colours, ids = class_colours(len(classes)), range(len(classes)) if ids is None else ids
    rows = [[k, name, f"#{colour.tobytes().hex()}"] for k, name, colour in zip(ids, classes, colours, strict=True)]
    write_csv(out / "classes.csv", [["id", "name", "colour"], *rows])


def write_overlay(out: Path, path: PurePosixPath, picture: NDArray[np.uint8]) -> None:
    """Write OUT/overlays/PATH.jpg, whole or not at all. It is for the eye alone, and a fifth to a tenth of a PNG.

    Args:
        path: see `prediction_paths`.
        picture: (H, W, 3).

    Raises:
        Fault: it cannot be written.
    """
    # A name may hold a dot, so the extension is appended and never replaces one.
    overlay_path = out / "overlays" / f"{path}.jpg"
    overlay = Image.fromarray(picture)
    if max(overlay.size) > MAX_JPEG_SIDE:
        overlay.thumbnail((MAX_JPEG_SIDE, MAX_JPEG_SIDE))
    with disk_faults(overlay_path), atomic_write(overlay_path) as partial:
        overlay.save(partial, format="JPEG", quality=JPEG_QUALITY)
