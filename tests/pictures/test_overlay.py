"""Class colours are distinct and lasting; they cover what has a class, and nothing else."""

import numpy as np
import pytest

from openmae.pictures.class_colours import class_colours
from openmae.pictures.overlay import overlaid


@pytest.mark.parametrize("num_classes", [0, 1, 150, 256, 257, 3000, 2**16])
def test_colours_are_distinct_and_do_not_depend_on_how_many_follow(num_classes):
    colours = class_colours(num_classes)
    assert (colours.shape, colours.dtype) == ((num_classes, 3), np.uint8)
    assert len(np.unique(colours, axis=0)) == num_classes
    assert (class_colours(2**16)[:num_classes] == colours).all()


def test_the_first_colours_are_far_apart_and_no_greys():
    colours = class_colours(20).astype(int)
    apart = np.abs(colours[:, None] - colours[None]).max(2) + 255 * np.eye(20, dtype=int)
    assert apart.min() >= 50  # of 255; measured: 51
    assert (colours.max(1) - colours.min(1)).min() >= 50  # measured: 51
    assert class_colours(3).tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 17]]  # as in pictures of earlier runs


def test_callers_cannot_change_the_colours():
    class_colours(3)[:] = 0
    assert class_colours(3).any()


@pytest.mark.parametrize("dtype", [np.int64, np.int16])
def test_an_overlay_is_half_the_colour_and_leaves_ignored_pixels(dtype):
    image = np.array([[[10, 20, 30], [200, 100, 0], [1, 2, 3]]], np.uint8)
    colours = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    before = image.copy()
    found = overlaid(image, np.array([[0, 1, -1]], dtype), colours)
    assert found.tolist() == [[[5, 10, 15], [228, 178, 128], [1, 2, 3]]]
    assert (image == before).all()
    full = overlaid(image, np.array([[0, 1, -1]], dtype), colours, alpha=1.0)
    assert full.tolist() == [[[0, 0, 0], [255, 255, 255], [1, 2, 3]]]
