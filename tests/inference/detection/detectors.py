"""A tiny detector that was never trained, stored as a run stores it: what it finds is random, and always the same."""

import pytest
import torch

from openmae.config import DetectorShape, Preprocessing, ViTShape
from openmae.training.checkpoint import save_model
from openmae.transfer.detection.detector import Detector

from ...objects import CATEGORIES


def make_detector(folder, has_masks=True, **changes):
    """Write `model.safetensors` into a folder; return the folder."""
    side = 48
    encoder = ViTShape(image_size=(side, side), patch_size=8, channels=3, width=16, depth=4, num_heads=2)
    shape = DetectorShape(
        encoder=encoder,
        num_classes=len(CATEGORIES),
        has_masks=has_masks,
        pyramid="table-4",
        pyramid_blocks=(0, 1, 2, 3),
        head_width=16,
        box_width=16,
        roi_samples=8,
    )
    preprocessing = Preprocessing(
        channels=3, value_range=(0, 255), mean=(0.5,) * 3, std=(0.2,) * 3, image_size=(side, side)
    )
    description = {
        "kind": "detector",
        "shape": shape.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "classes": list(CATEGORIES.values()),
        "category_ids": list(CATEGORIES),
        "recipe": None,
        "seed": 0,
        "step": 0,
    }
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "model.safetensors", Detector.from_shape(shape), description | changes)
    return folder


@pytest.fixture(scope="session")
def detector_file(tmp_path_factory):
    """The folder of a detector with masks."""
    return make_detector(tmp_path_factory.mktemp("detectors") / "untrained")
