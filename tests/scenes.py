"""A tiny set of images with masks, and a tiny segmenter of it."""

import numpy as np
import pytest
from PIL import Image

from openmae import SegmentConfig, segment


def write_scenes(root, split, count, seed, side=24):
    """Dark grounds with a light rectangle (class 1) and a red one (class 2); the edge of each is ignored."""
    chance = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (root / folder / split).mkdir(parents=True)
    for number in range(count):
        image = chance.integers(0, 60, (side, side + number % 2 * 4, 3)).astype(np.uint8)
        classes = np.zeros(image.shape[:2], np.uint8)
        for kind, colour in ((1, (220, 220, 220)), (2, (230, 30, 30))):
            top, left = chance.integers(0, side - 10, 2)
            box = slice(top, top + 10), slice(left, left + 10)
            classes[box] = 255
            inner = slice(top + 1, top + 9), slice(left + 1, left + 9)
            image[box], classes[inner] = colour, kind
        Image.fromarray(image).save(root / "images" / split / f"{number:02}.png")
        Image.fromarray(classes).save(root / "masks" / split / f"{number:02}.png")


def config_of(data, out, **settings):
    defaults = {
        "data": str(data),
        "init": "none",
        "width": 16,
        "depth": 4,
        "num_heads": 2,
        "patch_size": 2,
        "image_size": 12,
        "head_width": 16,
        "augment": "crop",
        "resize_range": (0.8, 1.5),
        "base_lr": 0.3,
        "steps": 10,
        "batch_size": 8,
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "evaluate_every": 5,
        "save_every": 4,
        "log_every": 1,
        "drop_path": 0.1,
        "class_names": str(data / "names.txt"),
    }
    return SegmentConfig(out=str(out), **defaults | settings)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, "train", 24, 0)
    write_scenes(root, "val", 7, 1)
    (root / "names.txt").write_text("ground\nlight\nred\n")
    return root


@pytest.fixture(scope="session")
def segmenter(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("segmenters") / "run"
    return out, segment(config_of(scenes, out, steps=90, evaluate_every=45))
