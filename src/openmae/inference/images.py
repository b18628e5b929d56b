"""The images that a sheet of pictures shows: named files, or the first of a data set."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from openmae.config import AttentionConfig, ReconstructConfig
from openmae.data.decoding.decode import BadImage
from openmae.data.sources.axes import decide_axes, shapes_of_files
from openmae.data.sources.folder import FolderSource
from openmae.data.sources.open import Source, open_source
from openmae.data.sources.reading import reading_options
from openmae.errors import RequestError
from openmae.inference.matched import M, matched_model
from openmae.inference.models import EncoderModel, ImageLike


def protect_images(names: tuple[str, ...], out: str) -> None:
    """Raise RequestError where the sheet would replace an image that was named or lies in a named folder."""
    place = Path(os.path.realpath(out))
    for name in names:
        if place.is_relative_to(os.path.realpath(name)):
            raise RequestError(f"--out {out} is, or lies among, the images to show: choose another name")


def matched_to_images(model: M, config: AttentionConfig | ReconstructConfig) -> tuple[M, list[str]]:
    """`matched_model` for the named files or the named data set."""
    names, reading = config.images, reading_options(config, model.preprocessing)
    if _are_files(names):
        shapes = shapes_of_files(Path.cwd(), map(os.fsencode, names))
        reading["axes"] = decide_axes(shapes, reading["axes"], reading.pop("default_axes"))
        return matched_model(model, [FolderSource(Path.cwd(), names, **reading)], config.value_range)
    return matched_model(model, _parts(names[0], reading) if len(names) == 1 else (), config.value_range)


def gather_images(
    config: AttentionConfig | ReconstructConfig, model: EncoderModel
) -> tuple[list[ImageLike], list[str]]:
    """The named files or the first `--limit` images of the named data set, and a line about each that cannot be read.

    Raises:
        RequestError: none can be read.
    """
    names, size, limit = config.images, config.size, config.limit
    skipped: list[str] = []
    images: list[ImageLike] = []
    if _are_files(names):
        for name in names:
            try:
                model.prepare(name, size, config.max_pixels)
                images.append(name)
            except RequestError as error:
                skipped.append(str(error))
    elif len(names) == 1:
        source = next(_parts(names[0], reading_options(config, model.preprocessing)))
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
        missing = next(name for name in names if not _is_file(name))
        raise RequestError(f"{missing} is not an image file: name image files, or one data set alone")
    if not images:
        raise RequestError(f"no image could be read: {'; '.join(skipped[:3])}")
    return images, skipped


def _is_file(name: str) -> bool:
    return Path(name).is_file() and not name.endswith(".parquet")


def _are_files(names: tuple[str, ...]) -> bool:
    return all(map(_is_file, names))


def _parts(data: str, reading: dict[str, Any]) -> Generator[Source, None, None]:
    """The parts of a data set that there are, the least trained on first."""
    for split in ("test", "val", "train"):
        if (source := open_source(data, split, **reading)) is not None:
            yield source
