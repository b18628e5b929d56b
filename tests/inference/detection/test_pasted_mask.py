"""Masks as run lengths: byte for byte COCO's, without an image of zeros around each object."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from faster_coco_eval.core import mask as judge
from hypothesis import given
from hypothesis import strategies as st

from openmae.data.coco.run_lengths import box_run_lengths, encoded, mask_of, run_lengths_of
from openmae.inference.detection.pasted_mask import pasted


@given(
    st.integers(0, 10**6),
    *(st.integers(0, 3) for _ in range(4)),
    st.integers(0, 7),
    st.integers(0, 7),
    st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
)
def test_a_crop_is_encoded_as_the_whole_image(seed, left, top, right, bottom, rows, columns, share):
    crop = np.random.default_rng(seed).random((rows, columns)) < share
    whole = np.pad(crop, ((top, bottom), (left, right)))
    if not whole.size:
        return
    found = encoded(crop, left, top, whole.shape)
    assert found["counts"] == judge.encode(np.asfortranarray(whole.astype(np.uint8)))["counts"].decode()
    assert found["size"] == list(whole.shape)
    assert np.array_equal(mask_of(found), whole)


def test_polygons_and_both_kinds_of_run_lengths():
    polygons = [[1, 1, 4, 1, 4, 3, 1, 3], [6, 0, 8, 0, 8, 5, 6, 5]]
    wanted = np.zeros((5, 9), bool)
    wanted[1:3, 1:4], wanted[:, 6:8] = True, True
    found = run_lengths_of(polygons, wanted.shape)
    assert np.array_equal(mask_of(found), wanted)
    assert run_lengths_of(found, wanted.shape) == found
    counts = np.diff(np.flatnonzero(np.diff(np.pad(wanted.T.ravel().astype(int), 1, constant_values=-1))))
    assert counts.sum() == 45
    assert run_lengths_of({"size": [5, 9], "counts": counts.tolist()}, wanted.shape) == found
    assert np.array_equal(
        mask_of(box_run_lengths(np.array([6.0, 0, 8, 5]), wanted.shape)),
        np.pad(np.ones((5, 2), bool), ((0, 0), (6, 1))),
    )


@given(st.integers(0, 10**6))
def test_a_mask_is_pasted_as_grid_sample_does(seed):
    chance = np.random.default_rng(seed)
    height, width = (int(side) for side in chance.integers(1, 60, 2))
    low, high = np.sort(chance.random((2, 2)), axis=0) * [width, height]
    box = np.concatenate([low, high]) if chance.random() < 0.7 else np.concatenate([np.floor(low), np.ceil(high)])
    if (box[2:] - box[:2]).min() <= 1e-3:
        return
    mask = torch.from_numpy(chance.random((28, 28)).astype(np.float32)) if chance.random() < 0.7 else torch.ones(28, 28)
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(height, dtype=torch.float64) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    wanted = F.grid_sample(mask.double()[None, None], grid[None], align_corners=False)[0, 0].numpy()
    is_clear = abs(wanted - 0.5) > 1e-5
    found = mask_of(pasted(mask.numpy(), box, (height, width)))
    assert np.array_equal(found[is_clear], wanted[is_clear] > 0.5)


def test_a_full_mask_fills_its_box_and_a_sliver_may_have_no_pixel():
    found = mask_of(pasted(np.ones((28, 28), np.float32), np.array([2.0, 1.0, 5.0, 4.0]), (6, 7)))
    assert np.array_equal(found, np.pad(np.ones((3, 3), bool), ((1, 2), (2, 2))))
    assert not mask_of(pasted(np.ones((28, 28), np.float32), np.array([2.6, 1.0, 3.4, 4.0]), (6, 7))).any()
    assert not mask_of(pasted(np.ones((28, 28), np.float32), np.array([2.0, 1.0, 2.0, 4.0]), (6, 7))).any()
    assert not mask_of(pasted(np.zeros((28, 28), np.float32), np.array([0.0, 0, 7, 6]), (6, 7))).any()


def test_a_hundred_objects_of_a_large_photograph_take_the_memory_of_one():
    import tracemalloc

    size, masks = (4000, 6000), np.random.default_rng(0).random((4, 28, 28)).astype(np.float32)
    tracemalloc.start()
    coded = [pasted(mask, np.array([100.0, 100, 400, 300]), size) for mask in masks]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4000 * 6000 / 8  # an image of zeros alone is 24 MB; measured 1.9 MB
    assert all(len(mask["counts"]) < 10_000 for mask in coded)
    assert pytest.approx(0.5, abs=0.15) == judge.area(coded[0]) / (300 * 200)
