"""The images that a sheet of pictures shows: named files, or the first of a data set."""

import os
from pathlib import Path
from typing import Any

from openmae.data.decode import BadImage
from openmae.data.sources import open_source
from openmae.errors import RequestError
from openmae.tasks.load import EncoderModel, ImageLike


def spare_images(names: tuple[str, ...], out: str) -> None:
    """Raise RequestError where the sheet would replace an image that was named or lies in a named folder."""
    place = Path(os.path.realpath(out))
    for name in names:
        if place.is_relative_to(os.path.realpath(name)):
            raise RequestError(f"--out {out} is, or lies among, the images to show: choose another name")


def gather_images(
    names: tuple[str, ...], model: EncoderModel, *, size: tuple[int, int] | None, limit: int, max_pixels: int
) -> tuple[list[ImageLike], list[str]]:
    """The named files or the first `limit` images of the named data set, and a line about each that cannot be read.

    Args:
        size: (height, width) in pixels that they must fit; None: the model's own.

    Raises:
        RequestError: none can be read.
    """
    files = [name for name in names if Path(name).is_file() and not name.endswith(".parquet")]
    skipped: list[str] = []
    images: list[ImageLike] = []
    if len(files) == len(names):
        for name in files:
            try:
                model.prepare(name, size, max_pixels)
                images.append(name)
            except RequestError as error:
                skipped.append(str(error))
    elif len(names) == 1:
        options: dict[str, Any] = {"background": model.preprocessing.background, "max_pixels": max_pixels}
        parts = (open_source(names[0], split, **options) for split in ("test", "val", "train"))
        source = next(part for part in parts if part is not None)
        for index in range(len(source)):
            if len(images) == limit:
                break
            try:
                image = source.read(index)
                model.prepare(image, size)
                images.append(image)
            except (BadImage, RequestError) as error:
                skipped.append(f"{source.name(index)}: {error}")
    else:
        missing = next(name for name in names if name not in files)
        raise RequestError(f"{missing} is not an image file: name image files, or one data set alone")
    if not images:
        raise RequestError(f"no image could be read: {'; '.join(skipped[:3])}")
    return images, skipped
