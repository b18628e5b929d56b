"""A trained segmenter as `openmae.load` returns it: what it refuses, and how it is used on whole images."""

import numpy as np
import pytest
import torch

import openmae
from openmae.errors import RequestError
from openmae.inference.segmentation import Windows


@pytest.fixture(scope="module")
def model(segmenter):
    return openmae.load(str(segmenter[0]), "cpu")


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (5, {}, "images got int: give paths"),
        ([], {}, "images got list: give paths"),
        (None, {}, "images got NoneType: give paths"),
        ([5], {}, "int cannot be used: not a path"),
        (np.zeros((24, 24, 3), np.uint8), {"batch_size": 0}, "batch_size got 0: it must be at least 1"),
    ],
)
def test_what_cannot_be_segmented_is_refused_in_a_line(model, images, settings, message):
    with pytest.raises(RequestError, match=message):
        model.segment(images, **settings)


def test_windows_at_a_time_change_nothing(model):
    image = np.random.default_rng(0).integers(0, 255, (24, 70, 3)).astype(np.uint8)
    one, many = (model.segment(image, batch_size=count)[0] for count in (1, 16))
    assert one.shape == (24, 70)
    assert (one == many).float().mean() > 0.99  # measured 1


def test_settings_win_over_those_of_training(model):
    assert model.windows == Windows((12, 12), (8, 8))
    assert model.whole_image_segmenter().windows == model.windows
    assert model.whole_image_segmenter(inference="whole").windows is None
    assert model.whole_image_segmenter(stride=2).windows == Windows((12, 12), (2, 2))
    with pytest.raises(RequestError, match="--stride got 13, more than the model's crops of 12 px"):
        model.whole_image_segmenter(stride=13)
    assert model.whole_image_segmenter().device == torch.device("cpu")
