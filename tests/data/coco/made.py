"""Small folders of images with COCO JSON, made for tests."""

import numpy as np
from PIL import Image

from openmae.config import Preprocessing
from openmae.data.coco.open import open_detection

from ...objects import write_coco

READING = {"background": 1.0, "max_pixels": 10**8}
SIZE = (20, 30)  # height, width


def put_images(folder, *names, size=SIZE):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def listed(*names, size=SIZE):
    """The entries of images with ids from 1."""
    return [{"id": i, "file_name": name, "height": size[0], "width": size[1]} for i, name in enumerate(names, 1)]


def annotation(image_id=1, bbox=(2, 3, 10, 8), category_id=3, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": None if bbox is None else list(bbox), **more}


def numbered(annotations):
    return [{"id": i, **one} for i, one in enumerate(annotations, 1)]


def write_one(folder, annotations, name="train.json", count=4, **options):
    """Images 1.png … beside a JSON file with these annotations."""
    names = [f"{i}.png" for i in range(1, count + 1)]
    put_images(folder, *names)
    write_coco(folder / name, listed(*names), numbered(annotations), **options)
    return folder


def opened(folder, **options):
    return open_detection(str(folder), **READING, **options)


def objects_of(data):
    """The objects of every image of train and what was held out of it, by name."""
    return {s.name(i): s.annotations(i) for s in data.parts for i in range(len(s))}


def preprocessing(side, dtype="uint8", channels=3):
    return Preprocessing(
        image_size=(side, side),
        channels=channels,
        dtype=dtype,
        value_range=(0.0, 255.0),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )
