"""A trained detector as `openmae.load` returns it: what it finds in images of any size, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

import openmae
from openmae.data.augment import resized_crop
from openmae.data.preprocess import normalise
from openmae.errors import RequestError

from .detectors import make_detector


@pytest.fixture(scope="module")
def model(detector_file):
    return openmae.load(str(detector_file), "cpu")


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)


def test_boxes_are_the_model_s_own_in_pixels_of_the_image(model):
    pixels = picture(30, 80)
    (found,) = model.detect(pixels)
    small = resized_crop(pixels, (0, 0, 30, 80), (18, 48))
    images = torch.nn.functional.pad(normalise(small[None], model.preprocessing), (0, 0, 0, 30))
    with torch.no_grad():
        (wanted,) = model.detector.detect(images, torch.tensor([[18, 48]]))
    assert 0 < len(wanted.boxes) <= 100
    scale = torch.tensor([80 / 48, 30 / 18, 80 / 48, 30 / 18])
    assert torch.allclose(found.boxes, wanted.boxes * scale, atol=1e-4)
    assert torch.equal(found.labels, wanted.labels)
    assert torch.allclose(found.scores, wanted.scores)
    assert found.masks.shape == (len(found.boxes), 30, 80)
    assert found.masks.dtype == torch.bool
    for box, mask in zip(found.boxes, found.masks, strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        if len(rows):
            assert columns.min() >= box[0] - 0.5 - 1e-3
            assert rows.max() + 1 <= box[3] + 0.5 + 1e-3


def test_files_pictures_and_arrays_of_different_sizes(model, tmp_path):
    pixels = picture(40, 33)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = model.detect([pixels, Image.fromarray(pixels), tmp_path / "a.png", picture(90, 20, 1)])
    assert all(torch.equal(found[0].boxes, other.boxes) for other in found[1:3])
    assert found[3].boxes[:, 2].max() <= 20
    assert found[3].boxes[:, 3].max() <= 90
    assert model.classes == ("red", "green", "blue")
    assert model.category_ids == (3, 7, 11)


def test_a_threshold_leaves_out_what_is_unlikely(model):
    pixels = picture(40, 33)
    (every,) = model.detect(pixels)
    threshold = float(every.scores.median())
    (likely,) = model.detect(pixels, threshold=threshold)
    assert torch.equal(likely.scores, every.scores[every.scores >= threshold])
    assert len(likely.masks) == len(likely.scores)
    (none,) = model.detect(pixels, threshold=1)
    assert none.boxes.shape == (0, 4)
    assert none.masks.shape == (0, 40, 33)


def test_a_detector_of_boxes_has_no_masks(tmp_path):
    (found,) = openmae.load(str(make_detector(tmp_path / "boxes", has_masks=False)), "cpu").detect(picture(40, 33))
    assert len(found.boxes)
    assert found.masks is None


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (5, {}, "images got int: give paths"),
        ([], {}, "images got list: give paths"),
        ([5], {}, "int cannot be used: not a path"),
        (np.zeros((24, 24, 3), np.uint8), {"threshold": 2}, "threshold got 2"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_line(model, images, settings, message):
    with pytest.raises(RequestError, match=message):
        model.detect(images, **settings)


def test_too_large_an_image_is_refused(model, tmp_path):
    Image.fromarray(picture(40, 33)).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match=r"a\.png cannot be used"):
        model.detect(tmp_path / "a.png", max_pixels=1000)


def test_the_encoder_of_a_detector_gives_features(model):
    assert model.features(picture(40, 33)).shape == (1, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_ids": [1, 2]}, "2 category_ids for 3 classes"),
        ({"category_ids": [1, 2, 3.5]}, "are no ids"),
        ({"classes": ["a"]}, "1 names for 3 classes"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path, changes, message):
    folder = make_detector(tmp_path / "damaged", **changes)
    with pytest.raises(RequestError, match=message):
        openmae.load(str(folder), "cpu")
