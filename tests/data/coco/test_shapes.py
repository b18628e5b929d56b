"""Polygons and run lengths, beside COCO's own tools where they are installed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openmae.data.coco.shapes import area_of, bounds, box_of, checked_segmentation, decoded, rasterised, run_lengths

MASKS = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1))


def counts_of(mask):
    flat = np.concatenate([[0], mask.T.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *changes, mask.size]).tolist()


@given(mask=MASKS)
def test_run_lengths_of_any_mask(mask):
    segmentation = {"size": list(mask.shape), "counts": counts_of(mask)}
    np.testing.assert_array_equal(decoded(segmentation), mask)
    assert checked_segmentation(segmentation) == (segmentation, "")
    np.testing.assert_equal(box_of(segmentation), bounds(mask) or (np.nan,) * 4)


@given(mask=MASKS)
def test_compressed_run_lengths_as_the_library_writes_them(mask):
    from faster_coco_eval.core import mask as api

    segmentation = api.encode(np.asfortranarray(mask))
    text = segmentation["counts"] if isinstance(segmentation["counts"], str) else segmentation["counts"].decode()
    np.testing.assert_array_equal(decoded({"size": list(mask.shape), "counts": text}), mask)


def test_long_run_lengths():
    """Numbers of more than one group of bits, and differences below zero."""
    pytest.importorskip("pycocotools")
    from pycocotools import mask as api

    mask = np.zeros((700, 900), np.uint8)
    mask[100:600, 20:300], mask[5:690, 500:503], mask[0, 0] = 1, 1, 1
    text = api.encode(np.asfortranarray(mask))["counts"].decode()
    np.testing.assert_array_equal(decoded({"size": [700, 900], "counts": text}), mask)


@given(text=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12), side=st.integers(1, 9))
def test_any_text_is_run_lengths_of_the_size_or_none(text, side):
    lengths = run_lengths({"size": [side, side], "counts": text})
    assert lengths is None or (lengths.sum() == side * side and lengths.min() >= 0)


@pytest.mark.parametrize("counts", ["", "é", "~~", "0" * 3 + "P", "P" * 30 + "0", [], [-1, 5], [3]])
def test_run_lengths_that_make_up_nothing(counts):
    segmentation = {"size": [2, 2], "counts": counts}
    assert not checked_segmentation(segmentation)[0] or run_lengths(segmentation) is None


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        (None, (None, False)),
        ([], (None, False)),
        ([[0, 0, 4, 0, 4, 4]], ([[0, 0, 4, 0, 4, 4]], False)),
        ([0, 0, 4, 0, 4, 4], ([[0, 0, 4, 0, 4, 4]], False)),
        ([[0, 0, 4, 0]], (None, True)),
        ([[0, 0, 4, 0, 4, 4, 7]], (None, True)),
        ([[0, 0, 4, 0, 4, float("inf")]], (None, True)),
        ([[0, 0, 4, 0, 4, "4"]], (None, True)),
        ([[0, 0, 4, 0, 4, 10**400]], (None, True)),
        ([[]], (None, True)),
        ({"size": [2], "counts": "04"}, (None, True)),
        ("polygon", (None, True)),
    ],
)
def test_segmentations_are_checked(segmentation, expected):
    found, reason = checked_segmentation(segmentation)
    assert (found, bool(reason)) == expected


def test_polygons_as_coco_draws_them():
    pytest.importorskip("pycocotools")
    from pycocotools import mask as api

    chance = np.random.default_rng(0)
    for _ in range(50):
        polygons = [chance.uniform(-10, 50, (chance.integers(3, 9), 2)) for _ in range(chance.integers(1, 4))]
        expected = api.decode(api.merge(api.frPyObjects([p.ravel().tolist() for p in polygons], 30, 40)))
        np.testing.assert_array_equal(rasterised(polygons, 30, 40), expected)


def test_far_points_cost_no_memory():
    mask = rasterised([np.array([[-1e12, 0], [1e12, 0], [1e12, 1e12], [-1e12, 1e12]])], 20, 30)
    assert mask.all()
    assert mask.shape == (20, 30)


def test_run_lengths_of_any_size_cost_no_memory():
    """Of 2^40 pixels, as a file may say; they are compared with the image's size only later."""
    side = 1 << 20
    assert box_of({"size": [side, side], "counts": [side + 3, 5, side * side - side - 8]}) == (1, 3, 2, 8)
    assert run_lengths({"size": [side, side], "counts": [1, 10**12]}) is None


def test_boxes_and_areas():
    polygons = [[2, 3, 12, 3, 12, 11, 2, 11], [20, 1, 24, 1, 24, 5, 20, 5]]
    assert box_of(polygons) == (2, 1, 24, 11)
    assert area_of(polygons, (20, 30)) == 80 + 16
    mask = np.zeros((6, 7), np.uint8)
    mask[2:5, 3:5] = 1
    lengths = {"size": [6, 7], "counts": counts_of(mask)}
    assert box_of(lengths) == bounds(mask) == (3, 2, 5, 5)
    assert area_of(lengths, (6, 7)) == 6
    assert np.isnan(box_of({"size": [2, 2], "counts": [4]})).all()
