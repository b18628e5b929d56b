"""The files that `openmae segment --predict` writes for each image: a mask file and an overlay."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openmae.data.decoding.extensions import EXTENSIONS
from openmae.errors import RequestError
from openmae.machine.files import PARTIAL_PREFIX, atomic_write, disk_faults, write_csv
from openmae.pictures.class_colours import class_colours
from openmae.pictures.overlay import overlaid

MAX_PALETTE, MAX_CLASSES = 256, 2**16  # in a mask file of 8 and of 16 bits
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


def write_classes(out: Path, classes: Sequence[str]) -> None:
    """Write OUT/classes.csv: of each class the value of its pixels in the mask files, its name, its colour (#rrggbb).

    Raises:
        Fault: it cannot be written.
    """
    colours = class_colours(len(classes))
    rows = [[k, name, f"#{colours[k].tobytes().hex()}"] for k, name in enumerate(classes)]
    write_csv(out / "classes.csv", [["id", "name", "colour"], *rows])


def write_prediction(
    out: Path, path: PurePosixPath, image: NDArray[np.uint8], labels: NDArray, num_classes: int
) -> None:
    """Write OUT/masks/PATH.png and OUT/overlays/PATH.jpg, each whole or not at all.

    The mask's values are the classes' ids: 8 bits with the classes' colours as palette, or 16-bit grey for more than
    256 classes. The overlay is for the eye alone, so it is a JPEG: of a photograph a fifth to a tenth of a PNG.

    Args:
        path: see `prediction_paths`.
        image: (H, W, 3).
        labels: (H, W) predicted classes, none ignored.

    Raises:
        RequestError: more classes than a mask file can hold.
        Fault: a file cannot be written.
    """
    mask = mask_picture(labels, num_classes)
    # A name may hold a dot, so the extension is appended and never replaces one.
    mask_path, overlay_path = out / "masks" / f"{path}.png", out / "overlays" / f"{path}.jpg"
    with disk_faults(mask_path), atomic_write(mask_path) as partial:
        mask.save(partial, format="PNG")
    overlay = Image.fromarray(overlaid(image, labels, class_colours(num_classes)))
    if max(overlay.size) > MAX_JPEG_SIDE:
        overlay.thumbnail((MAX_JPEG_SIDE, MAX_JPEG_SIDE))
    with disk_faults(overlay_path), atomic_write(overlay_path) as partial:
        overlay.save(partial, format="JPEG", quality=JPEG_QUALITY)


def mask_picture(labels: NDArray, num_classes: int) -> Image.Image:
    """A class map as a picture whose values are the classes' ids, see `write_prediction`."""
    if num_classes > MAX_CLASSES:
        raise RequestError(f"{num_classes:,} classes: a mask file of 16 bits holds {MAX_CLASSES:,}")
    assert labels.ndim == 2 and 0 <= labels.min() <= labels.max() < num_classes, (labels.shape, num_classes)
    if num_classes > MAX_PALETTE:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8), "P")
    # With as many colours as a palette can have, else Pillow writes fewer bits, which not every program reads.
    picture.putpalette(class_colours(MAX_PALETTE).tobytes())
    return picture
