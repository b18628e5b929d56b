"""The files that `openmae segment --predict` writes for each image: a mask file and an overlay."""

from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openmae.errors import RequestError
from openmae.machine.files import atomic_write, disk_faults
from openmae.pictures.class_colours import class_colours
from openmae.pictures.overlay import overlaid
from openmae.tasks.prediction.files import write_overlay

MAX_PALETTE, MAX_CLASSES = 256, 2**16  # in a mask file of 8 and of 16 bits


def write_prediction(
    out: Path, path: PurePosixPath, image: NDArray[np.uint8], labels: NDArray, num_classes: int
) -> None:
    """Write OUT/masks/PATH.png and OUT/overlays/PATH.jpg, each whole or not at all.

    The mask's values are the classes' ids: 8 bits with the classes' colours as palette, or 16-bit grey for more than
    256 classes.

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
    mask_path = out / "masks" / f"{path}.png"
    with disk_faults(mask_path), atomic_write(mask_path) as partial:
        mask.save(partial, format="PNG")
    write_overlay(out, path, overlaid(image, labels, class_colours(num_classes)))


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
