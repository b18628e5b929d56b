"""The feature pyramid: which blocks, which sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openmae.transfer.pyramid import Pyramid, pyramid_blocks

WIDTH = 8


@given(depth=st.integers(1, 256))
def test_blocks_ascend_to_the_last(depth):
    blocks = pyramid_blocks(depth)
    assert list(blocks) == sorted(blocks)
    assert blocks[0] >= 0
    assert blocks[-1] == depth - 1
    assert depth < 4 or len(set(blocks)) == 4


def test_blocks_of_the_paper():
    assert pyramid_blocks(12) == (3, 5, 7, 11)
    assert pyramid_blocks(24) == (7, 11, 15, 23)
    assert pyramid_blocks(32) == (7, 15, 23, 31)
    assert pyramid_blocks(2) == (0, 0, 1, 1)
    with pytest.raises(ValueError, match="got 0"):
        pyramid_blocks(0)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_sizes_of_any_grid(rows, columns):
    maps = [torch.randn(1, WIDTH, rows, columns) for _ in range(4)]
    first, second, third, last = Pyramid(WIDTH).eval()(maps)
    assert first.shape == (1, WIDTH, 4 * rows, 4 * columns)
    assert second.shape == (1, WIDTH, 2 * rows, 2 * columns)
    assert third is maps[2]
    assert last.shape == (1, WIDTH, (rows + 1) // 2, (columns + 1) // 2)
    assert last[0, 0, -1, -1] == maps[3][0, 0, (rows - 1) // 2 * 2 :, (columns - 1) // 2 * 2 :].max()


def test_another_norm():
    pyramid = Pyramid(WIDTH, lambda width: nn.GroupNorm(4, width))
    assert isinstance(pyramid.upsample_4[1], nn.GroupNorm)
    assert torch.isfinite(pyramid([torch.zeros(1, WIDTH, 2, 2)] * 4)[0]).all()


def test_init_weights_sets_every_value():
    pyramid = Pyramid(WIDTH)
    with torch.no_grad():
        for value in pyramid.state_dict().values():
            value.fill_(torch.nan if value.is_floating_point() else -1)
    pyramid.init_weights()
    assert all(torch.isfinite(value).all() for value in pyramid.state_dict().values())
    assert pyramid.upsample_2.weight.abs().max() <= (4 * WIDTH) ** -0.5


def test_four_maps_are_needed():
    with pytest.raises(ValueError, match="takes 4 maps, got 3"):
        Pyramid(WIDTH)([torch.zeros(1, WIDTH, 2, 2)] * 3)
