"""A segmenter on whole images: as many windows at a time as fit into memory, and always the same classes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from openmae.config import Preprocessing
from openmae.errors import Fault
from openmae.inference.segmentation import WINDOWS_AT_ONCE, WholeImageSegmenter, Windows

IMAGE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 8, 40)).astype(np.uint8))
SIZE = (16, 80)


class Brightest(nn.Module):
    """For a segmenter: a pixel's class is its brightest channel. It has memory for so many windows."""

    shape = SimpleNamespace(num_classes=3)

    def __init__(self, room):
        super().__init__()
        self.room, self.seen = room, []

    def segment(self, images):
        self.seen.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images


def segmenter_of(model, stride=2, **settings):
    preprocessing = Preprocessing(channels=3, value_range=(0, 255), mean=(0.5,) * 3, std=(0.2,) * 3, image_size=(8, 8))
    settings = {"windows": Windows((8, 8), (stride, stride)), "precision": "fp32"} | settings
    return WholeImageSegmenter(model=model, preprocessing=preprocessing, device=torch.device("cpu"), **settings)


def test_windows_at_a_time_are_halved_until_they_fit():
    wanted = segmenter_of(Brightest(100)).class_map(IMAGE, SIZE)
    for room, tried in ((8, [8]), (3, [8, 4, 2]), (1, [8, 4, 2, 1])):
        model = Brightest(room)
        assert torch.equal(segmenter_of(model).class_map(IMAGE, SIZE), wanted)
        assert model.seen[: len(tried)] == tried
        assert max(model.seen[len(tried) :]) <= room
    assert wanted.shape == SIZE
    assert len(wanted.unique()) == 3


def test_too_little_memory_for_one_window_is_a_fault():
    with pytest.raises(Fault, match="out of memory with one window of 8x8 px of an image of 8x40 px"):
        segmenter_of(Brightest(0)).class_map(IMAGE, SIZE)
    model = Brightest(0)
    with pytest.raises(Fault, match="8x40 px at once: --inference slide takes windows of it"):
        segmenter_of(model, windows=None).class_map(IMAGE, SIZE)
    assert model.seen == [1]


def test_another_error_is_no_lack_of_memory():
    model = Brightest(100)
    model.segment = lambda images: torch.zeros(1) @ torch.zeros(2)
    with pytest.raises(RuntimeError, match="size"):
        segmenter_of(model).class_map(IMAGE, SIZE)


def test_the_settings_are_what_windows_come_from():
    assert Windows.from_settings("whole", 3, (8, 12)) is None
    assert Windows.from_settings("slide", 3, (8, 12)) == Windows((8, 12), (3, 3))
    assert WINDOWS_AT_ONCE == 8
