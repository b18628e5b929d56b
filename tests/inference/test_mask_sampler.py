"""Masks come from a sample's key alone, and a user's mask is looked at before it is used."""

import pickle

import numpy as np
import pytest
import torch

from openmae.data.randomness import sample_keys, uniforms
from openmae.errors import RequestError
from openmae.inference.mask_sampler import MaskSampler, read_mask

GRID = (6, 4)


def keys(count, seed=0):
    return torch.from_numpy(sample_keys(seed, 0, np.arange(count)))


@pytest.mark.parametrize("kind", ["random", "block"])
def test_a_mask_is_a_function_of_its_key(kind):
    """Neither the batch a sample is in nor its place there changes its mask."""
    sampler = MaskSampler(kind, 0.75, GRID)
    together = sampler(keys(8))
    alone = [sampler(key[None]) for key in keys(8)]
    assert torch.equal(together.is_masked, torch.cat([masking.is_masked for masking in alone]))
    assert torch.equal(sampler(keys(8).flip(0)).is_masked, together.is_masked.flip(0))
    assert not torch.equal(sampler(keys(8, seed=1)).is_masked, together.is_masked)
    assert len({tuple(row.tolist()) for row in together.is_masked}) > 4


@pytest.mark.parametrize("kind", ["random", "block"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_exactly_the_asked_share_is_hidden(kind, ratio):
    sampler = MaskSampler(kind, ratio, GRID)
    masking = sampler(keys(5))
    assert masking.is_masked.sum(1).tolist() == [24 - int(24 * (1 - ratio))] * 5
    assert sampler.num_visible == int(24 * (1 - ratio))


def test_random_masks_hide_where_the_noise_is_high():
    masking = MaskSampler("random", 0.75, GRID)(keys(3))
    noise = torch.from_numpy(uniforms(keys(3).numpy(), 24, "mask"))
    for row, is_masked in zip(noise, masking.is_masked, strict=True):
        assert row[is_masked].min() > row[~is_masked].max()


def test_grid_keeps_one_of_each_2x2():
    is_masked = MaskSampler("grid", 0.75, GRID)(keys(2)).is_masked.view(2, *GRID)
    assert not is_masked[:, ::2, ::2].any()
    assert (~is_masked).sum().item() == 2 * 6


def test_a_grid_mask_needs_two_patches():
    with pytest.raises(RequestError, match="single patch"):
        MaskSampler("grid", 0.75, (1, 1))
    assert MaskSampler("grid", 0.75, (1, 2)).num_visible == 1


def test_the_given_mask_is_every_samples(tmp_path):
    wanted = np.zeros(GRID, bool)
    wanted[1:3, 2] = True
    np.save(tmp_path / "mask.npy", wanted)
    given = read_mask(str(tmp_path / "mask.npy"), GRID)
    is_masked = MaskSampler("given", 0.75, GRID, given)(keys(3)).is_masked
    assert torch.equal(is_masked.view(3, *GRID), torch.from_numpy(wanted).expand(3, *GRID))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_zeros_and_ones_are_booleans(tmp_path, dtype):
    np.save(tmp_path / "mask.npy", np.eye(4, dtype=dtype))
    assert torch.equal(read_mask(str(tmp_path / "mask.npy"), (4, 4)), torch.eye(4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.zeros((4, 6), bool), r"has shape \(4, 6\), the grid of patches is \(6, 4\)"),
        (np.zeros(24, bool), "has shape"),
        (np.ones(GRID, bool), "hides 24 of 24"),
        (np.zeros(GRID, bool), "hides 0 of 24"),
        (np.full(GRID, 0.5), "float64 values"),
        (np.full(GRID, 2), "int64 values"),
        (np.array([["a"] * 4] * 6), "values: it must hold booleans"),
    ],
)
def test_another_array_is_refused(tmp_path, values, match):
    np.save(tmp_path / "mask.npy", values)
    with pytest.raises(RequestError, match=match):
        read_mask(str(tmp_path / "mask.npy"), GRID)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["object array", "bare pickle"])
def test_a_pickle_is_refused_and_not_executed(tmp_path, form):
    path, trace = tmp_path / "mask.npy", tmp_path / "executed"
    if form == "object array":
        np.save(path, np.array([[Bomb(trace)]], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(RequestError, match=r"cannot be read as \.npy"):
        read_mask(str(path), GRID)
    assert not trace.exists()


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY", b"PK\x03\x04 no zip", b"text"])
def test_what_is_no_npy_is_refused(tmp_path, content):
    path = tmp_path / "mask.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match=r"mask\.npy"):
        read_mask(str(path), GRID)


def test_an_archive_of_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "mask.npz", a=np.zeros(GRID, bool))
    with pytest.raises(RequestError, match=r"mask\.npz"):
        read_mask(str(tmp_path / "mask.npz"), GRID)
