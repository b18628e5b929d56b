"""A tiny set of images with objects in COCO's format: coloured rectangles, their boxes and polygons."""

import json

import numpy as np
import pytest
from PIL import Image

CATEGORIES = {3: "red", 7: "green", 11: "blue"}  # ids with gaps, as COCO's
_COLOURS = {3: (230, 40, 30), 7: (40, 210, 60), 11: (30, 70, 240)}


def write_objects(folder, train=24, val=8, side=96, with_masks=True, seed=0):
    """Write images/{train,val}/NN.png, instances_train.json and instances_val.json below a folder; return it.

    An image is `side` high and `side` or 3/4 of it wide, dark, with one to three rectangles of the three `CATEGORIES`
    that do not overlap; the last image of each split has none.

    Args:
        with_masks: objects have polygons, not only boxes.
    """
    for split, count in (("train", train), ("val", val)):
        chance = np.random.default_rng((seed, split == "val"))
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for number in range(count):
            height, width = side, side * 3 // 4 if number % 3 == 2 else side
            image = chance.integers(0, 60, (height, width, 3)).astype(np.uint8)
            for left, top, right, bottom in _rectangles(chance, height, width) if number < count - 1 else []:
                category = int(chance.choice(list(CATEGORIES)))
                image[top:bottom, left:right] = _COLOURS[category]
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": 10 * number + 5,
                    "category_id": category,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
                if with_masks:
                    annotation["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
                annotations.append(annotation)
            name = f"{number:02}.png"
            images.append({"id": 10 * number + 5, "file_name": name, "height": height, "width": width})
            Image.fromarray(image).save(folder / "images" / split / name)
        write_coco(folder / f"instances_{split}.json", images, annotations)
    return folder


def write_coco(path, images, annotations, categories=CATEGORIES):
    """Write a COCO JSON file; `categories` are names by id."""
    named = [{"id": number, "name": name} for number, name in categories.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": named}))


def _rectangles(chance, height, width):
    """One to three boxes (left, top, right, bottom) in different quarters of an image."""
    quarters = chance.permutation(4)[: chance.integers(1, 4)]
    boxes = []
    for row, column in (divmod(int(quarter), 2) for quarter in quarters):
        high, wide = (int(chance.integers(half // 3, half * 7 // 8)) for half in (height // 2, width // 2))
        top = row * (height // 2) + int(chance.integers(0, height // 2 - high))
        left = column * (width // 2) + int(chance.integers(0, width // 2 - wide))
        boxes.append((left, top, left + wide, top + high))
    return boxes


@pytest.fixture(scope="session")
def objects(tmp_path_factory):
    """The folder of a set of 24 training and 8 validation images."""
    return write_objects(tmp_path_factory.mktemp("data") / "objects")
