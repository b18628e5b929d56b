"""Whole images: each once and in order, whatever the number of readers, and bad ones named."""

import numpy as np
import pytest
import torch

from openmae.config import Preprocessing
from openmae.data.annotated.whole_images import read_whole, rgb_picture, whole_images
from openmae.data.masks.open import open_segmentation

from ...scenes import write_scenes

PREPROCESSING = Preprocessing(channels=3, value_range=(0, 255), mean=(0.5,) * 3, std=(0.2,) * 3, image_size=(12, 12))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, "train", 3, 0)
    write_scenes(root, "val", 5, 1)
    (root / "images" / "val" / "01.png").write_bytes(b"no image")
    known = {"known_classes": ("a", "b", "c"), "known_ignore_index": 255}
    opened = open_segmentation(str(root), background=1.0, max_pixels=10**6, **known)
    assert len(opened.test) == 5  # no mask was read yet, so nothing is known as bad
    return opened.test


def read(source, workers):
    options = {"workers": workers, "with_labels": True, "with_pictures": True}
    return list(whole_images(source, PREPROCESSING, np.array([4, 0, 1, 2]), **options))


@pytest.mark.timeout(60)
def test_readers_give_what_the_main_process_gives(source):
    alone, shared = read(source, 0), read(source, 2)
    assert [whole.index for whole in alone] == [whole.index for whole in shared] == [4, 0, 1, 2]
    for one, other in zip(alone, shared, strict=True):
        assert (one.name, one.size) == (other.name, other.size)
        if isinstance(one.image, str):
            assert one.image == other.image
            continue
        assert torch.equal(one.image, other.image)
        assert np.array_equal(one.labels, other.labels)
        assert np.array_equal(one.picture, other.picture)
        assert one.picture.shape == (*one.size, 3)
        assert one.labels.shape == one.size
        assert min(one.image.shape[1:]) == 12


def test_a_bad_image_is_named_in_its_place(source):
    bad = [whole for whole in read(source, 0) if isinstance(whole.image, str)]
    assert [whole.name.rpartition("/")[2] for whole in bad] == ["01.png"]
    assert bad[0].labels is bad[0].picture is None


def test_without_labels_and_pictures_there_are_none(source):
    (whole,) = whole_images(source, PREPROCESSING, range(1), workers=0, with_labels=False)
    assert whole.labels is whole.picture is None
    whole = read_whole(source, PREPROCESSING, 0, with_labels=True)
    assert whole.labels is not None
    assert whole.picture is None


@pytest.mark.parametrize(
    ("dtype", "channels", "value_range", "pixel", "wanted"),
    [
        ("uint8", 3, (0, 255), (1, 128, 255), (1, 128, 255)),
        ("uint8", 1, (0, 255), (7,), (7, 7, 7)),
        ("uint8", 4, (0, 255), (1, 2, 3, 4), (1, 2, 3)),
        ("float32", 2, (-1, 1), (0, 1), (128, 128, 128)),
        ("float32", 3, (0, 10), (-5, 5, 20), (0, 128, 255)),
    ],
)
def test_pictures_by_hand(dtype, channels, value_range, pixel, wanted):
    statistics = {"mean": (0.5,) * channels, "std": (0.2,) * channels}
    p = Preprocessing(channels=channels, value_range=value_range, image_size=(2, 2), dtype=dtype, **statistics)
    picture = rgb_picture(np.array(pixel, dtype).reshape(1, 1, -1).repeat(2, 0), p)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[list(wanted)]] * 2
