"""The images that a sheet of pictures shows: named files, or the first of a data set."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from openmae.config import AttentionConfig, ReconstructConfig
from openmae.data.decoding.decode import BadImage
from openmae.data.sources.axes import decide_axes, shapes_of_files
from openmae.data.sources.folder import FolderSource
from openmae.data.sources.named import are_files, check_images
from openmae.data.sources.open import Source, open_source
from openmae.data.sources.reading import reading_options
from openmae.errors import RequestError
from openmae.inference.matched import M, matched_model
from openmae.inference.models import EncoderModel, ImageLike


def matched_to_images(model: M, config: AttentionConfig | ReconstructConfig) -> tuple[M, list[str]]:
    """`matched_model`, for the image files or the data set that the config names."""
    names, reading = config.images, reading_options(config, model.preprocessing)
    if are_files(names):
        shapes = shapes_of_files(Path.cwd(), map(os.fsencode, names))
        reading["axes"] = decide_axes(shapes, reading["axes"], reading.pop("default_axes"))
        return matched_model(model, [FolderSource(Path.cwd(), names, **reading)], config.value_range)
    return matched_model(model, _splits(names[0], reading) if len(names) == 1 else (), config.value_range)


def gather_images(
    config: AttentionConfig | ReconstructConfig, model: EncoderModel
) -> tuple[list[ImageLike], list[str]]:
    """The image files that the config names, or the first images of its data set; and a line about each unreadable one.

    Raises:
        RequestError: none can be read.
    """
    names, size, limit = config.images, config.size, config.limit
    skipped: list[str] = []
    images: list[ImageLike] = []
    if are_files(names):
        for name in names:
            try:
                model.prepare(name, size, config.max_pixels)
                images.append(name)
            except RequestError as error:
                skipped.append(str(error))
    else:
        check_images(names)
        source = next(_splits(names[0], reading_options(config, model.preprocessing)))
        for index in range(len(source)):
            if len(images) == limit:
                break
            try:
                image = source.read(index)
                model.prepare(image, size)
                images.append(image)
            except (BadImage, RequestError) as error:
                skipped.append(f"{source.name(index)}: {error}")
    if not images:
        raise RequestError(f"no image could be read: {'; '.join(skipped[:3])}")
    return images, skipped


def _splits(data: str, reading: dict[str, Any]) -> Generator[Source, None, None]:
    """The splits that a data set has, those least trained on first."""
    for split in ("test", "val", "train"):
        if (source := open_source(data, split, **reading)) is not None:
            yield source
