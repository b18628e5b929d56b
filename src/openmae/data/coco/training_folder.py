"""The folder of the training images, for what trains on images alone."""

import os
from pathlib import Path

from openmae.config import Dataset
from openmae.data.coco.files import find_annotation_files
from openmae.data.coco.lookup import ImageLookup
from openmae.errors import RequestError, shown


def training_folder(dataset: Dataset) -> Path:
    """The folder that holds the training images and nothing else.

    Raises:
        RequestError: DATA is in none of the known layouts, or other images lie between the training images.
    """
    file = find_annotation_files(dataset).parts["train"]
    lookup = ImageLookup(file.images, file.path, file.split)
    listed = file.content.get("images", [])
    found = {lookup.find(str(image.get("file_name")))[0] for image in listed if isinstance(image, dict)} - {None}
    images = {path for path in found if path is not None}
    if not images:
        raise RequestError(f"none of the images that {file.shown} lists is there")
    folder = os.path.commonpath([os.path.dirname(path) for path in images])
    others = [path for path in file.images if path not in images and (not folder or path.startswith(folder + b"/"))]
    if others:
        between = shown(os.fsdecode(others[0]))
        raise RequestError(
            f"images that {file.shown} does not list lie among the training images ({between}): put these in a folder "
            "of their own, such as images/train/, for pre-training sees images alone"
        )
    return file.root / os.fsdecode(folder)
