"""What holds for any grid, patch, ratio and noise: patches, masks, positions, an encoder that order does not touch."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from openmae.config import grid_of, num_kept
from openmae.errors import RequestError
from openmae.model.mae import MAE
from openmae.model.masking import Masking, block_masking, given_masking, grid_masking, noise_per_image, random_masking
from openmae.model.patches import gather, patchify, unpatchify
from openmae.model.positions import resample_positions, sincos_positions

MANY = settings(max_examples=200)

SIDES = st.integers(1, 9)
GRIDS = st.tuples(SIDES, SIDES)
SEEDS = st.integers(0, 2**32 - 1)
RATIOS = st.floats(0.01, 0.99)


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- patches -----------------------------------------------------------------------------------------------------


@MANY
@given(GRIDS, st.integers(1, 6), st.integers(1, 5), st.integers(1, 3))
def test_patches_and_back(grid: tuple[int, int], side: int, channels: int, batch: int):
    rows, columns = grid
    images = torch.arange(batch * channels * rows * side * columns * side).view(
        batch, channels, rows * side, columns * side
    )
    patches = patchify(images, side)
    assert patches.shape == (batch, rows * columns, side * side * channels)
    assert torch.equal(unpatchify(patches, grid, side), images)
    assert torch.equal(patchify(unpatchify(patches, grid, side), side), patches)
    assert grid_of(rows * side, columns * side, side) == grid


@MANY
@given(GRIDS, st.integers(1, 6), st.integers(1, 5), st.data())
def test_order_within_and_of_patches(grid: tuple[int, int], side: int, channels: int, data: st.DataObject):
    """Patches row by row; within a patch row, column, channel: checked at one place, by indexing."""
    rows, columns = grid
    images = torch.arange(channels * rows * side * columns * side).view(1, channels, rows * side, columns * side)
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    y, x = data.draw(st.integers(0, side - 1)), data.draw(st.integers(0, side - 1))
    channel = data.draw(st.integers(0, channels - 1))
    value = patchify(images, side)[0, row * columns + column, (y * side + x) * channels + channel]
    assert value == images[0, channel, row * side + y, column * side + x]


@MANY
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_a_grid_or_a_helpful_refusal(height: int, width: int, side: int):
    if height % side == 0 and width % side == 0:
        assert grid_of(height, width, side) == (height // side, width // side)
    else:
        with pytest.raises(RequestError, match=f"{height}x{width} px") as caught:
            grid_of(height, width, side)
        words = str(caught.value).split("--image-size ")
        if height >= side and width >= side:  # the size that it names would do
            suggested = [int(word) for word in words[1].split()[:2]]
            grid_of(*suggested, side)


# --- masks -------------------------------------------------------------------------------------------------------


def check_partition(masking: Masking, batch: int, count: int) -> None:
    """Visible and masked patches are each image's N patches, each once, and everything derived agrees."""
    assert masking.num_visible + masking.num_masked == count
    everything = torch.arange(count).expand(batch, -1)
    assert torch.equal(masking.shuffled_ids.sort(dim=1).values, everything)
    assert torch.equal(masking.shuffled_ids, torch.cat([masking.keep_ids, masking.masked_ids], dim=1))
    assert masking.is_masked.shape == (batch, count)
    assert masking.is_masked.gather(1, masking.masked_ids).all()
    assert not masking.is_masked.gather(1, masking.keep_ids).any()
    tokens = torch.arange(batch * count * 2.0).view(batch, count, 2)
    assert torch.equal(masking.unshuffle(gather(tokens, masking.shuffled_ids)), tokens)


@MANY
@given(st.integers(2, 120), RATIOS, st.integers(1, 4), SEEDS)
def test_random_masks(count: int, ratio: float, batch: int, seed: int):
    kept = int(count * (1 - ratio))
    noise = uniform(seed, batch, count)
    assume(0 < kept < count)
    masking = random_masking(noise, ratio)
    check_partition(masking, batch, count)
    assert masking.num_visible == kept
    visible, hidden = noise.gather(1, masking.keep_ids), noise.gather(1, masking.masked_ids)
    assert (visible.max(dim=1).values <= hidden.min(dim=1).values).all()  # the lowest noise stays
    again = random_masking(noise.clone(), ratio)
    assert torch.equal(again.shuffled_ids, masking.shuffled_ids)


@MANY
@given(st.integers(2, 60), RATIOS, SEEDS)
def test_random_masks_follow_their_noise(count: int, ratio: float, seed: int):
    """Patches that swap their noise swap their fate: no place is preferred."""
    assume(0 < int(count * (1 - ratio)) < count)
    noise = uniform(seed, 1, count)
    assume(len(noise.unique()) == count)  # float32 has ties, where the first wins
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(
        random_masking(noise[:, order], ratio).is_masked, random_masking(noise, ratio).is_masked[:, order]
    )


@pytest.mark.parametrize(
    ("count", "ratio", "kept"),
    [(196, 0.75, 49), (256, 0.75, 64), (100, 0.8, 19), (100, 0.9, 9), (100, 0.7, 30), (49, 0.75, 12), (4, 0.75, 1)],
)
def test_the_kept_count_is_truncated_in_floating_point(count: int, ratio: float, kept: int):
    """100 · (1 − 0.8) is 19.999…: 19 patches stay, as in the released program (docs/paper.md)."""
    assert num_kept(count, ratio) == kept
    assert random_masking(uniform(0, 2, count), ratio).num_visible == kept


def test_random_masks_are_uniform_and_each_images_own():
    """Every patch stays in 1/4 of the images (5 standard deviations), and two patches stay in 12/49 · 11/48 of them."""
    images = 20_000
    is_kept = ~random_masking(uniform(0, images, 49), 0.75).is_masked
    deviation = (images * 12 / 49 * 37 / 49) ** 0.5
    assert (is_kept.sum(0) - images * 12 / 49).abs().max() < 5 * deviation
    pairs = (is_kept[:, :-1] & is_kept[:, 1:]).sum(0)
    expected = images * 12 / 49 * 11 / 48
    assert (pairs - expected).abs().max() < 5 * expected**0.5
    assert len(is_kept[:500].unique(dim=0)) == 500


@pytest.mark.slow
@MANY
@given(GRIDS, RATIOS, st.integers(1, 4), SEEDS)
def test_block_masks_hide_exactly_what_is_asked(grid: tuple[int, int], ratio: float, batch: int, seed: int):
    count = grid[0] * grid[1]
    assume(0 < int(count * (1 - ratio)) < count)
    noise = uniform(seed, batch, noise_per_image("block", grid))
    masking = block_masking(noise, grid, ratio)
    check_partition(masking, batch, count)
    assert masking.num_visible == int(count * (1 - ratio))
    alone = block_masking(noise[-1:], grid, ratio)  # the same noise gives the same mask, whatever the batch
    assert torch.equal(alone.shuffled_ids[0], masking.shuffled_ids[-1])


def alike_neighbours(masking: Masking, grid: tuple[int, int]) -> float:
    """The fraction of neighbouring patches, across and down, that are both visible or both masked."""
    fields = masking.is_masked.view(-1, *grid)
    across, down = fields[:, :, 1:] == fields[:, :, :-1], fields[:, 1:] == fields[:, :-1]
    return float(torch.cat([across.flatten(1), down.flatten(1)], dim=1).float().mean())


# Neighbours alike, random and block: .50 and .87 at a ratio of .5, .62 and .89 at .75. Blocks lie within the image,
# as BEiT's do, so corners are seldom hidden (7 % and 16 %) and the centre nearly always (83 % and 98 %).
@pytest.mark.parametrize("ratio", [0.5, 0.75])
@pytest.mark.parametrize("grid", [(14, 14), (10, 20)])
def test_block_masks_are_blocks(grid: tuple[int, int], ratio: float):
    images, count = 2000, grid[0] * grid[1]
    random = random_masking(uniform(0, images, count), ratio)
    block = block_masking(uniform(1, images, noise_per_image("block", grid)), grid, ratio)
    expected = ratio**2 + (1 - ratio) ** 2
    assert alike_neighbours(random, grid) == pytest.approx(expected, abs=0.01)
    assert alike_neighbours(block, grid) > 0.78
    often = block.is_masked.float().mean(0)
    assert often.min() > 0.04
    assert often.max() < 0.995
    assert len(block.is_masked.unique(dim=0)) > 0.98 * images


@MANY
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.integers(1, 3))
def test_grid_masks_keep_one_of_each_2x2(grid: tuple[int, int], batch: int):
    assume(grid != (1, 1))
    rows, columns = grid
    masking = grid_masking(batch, grid)
    check_partition(masking, batch, rows * columns)
    is_kept = ~masking.is_masked.view(batch, rows, columns)
    for top in range(0, rows, 2):
        for left in range(0, columns, 2):
            assert (is_kept[:, top : top + 2, left : left + 2].sum((1, 2)) == 1).all()
            assert is_kept[:, top, left].all()
    if rows % 2 == columns % 2 == 0:
        assert masking.num_masked == 0.75 * rows * columns


@MANY
@given(st.integers(2, 60), st.integers(1, 4), st.data())
def test_given_masks_are_what_is_given(count: int, batch: int, data: st.DataObject):
    masked = data.draw(st.integers(1, count - 1))
    noise = uniform(data.draw(SEEDS), batch, count)
    is_masked = noise.argsort(dim=1).argsort(dim=1) < masked
    masking = given_masking(is_masked)
    check_partition(masking, batch, count)
    assert torch.equal(masking.is_masked, is_masked)
    assert (masking.keep_ids.diff(dim=1) > 0).all()
    assert (masking.masked_ids.diff(dim=1) > 0).all()


def test_how_much_noise_a_mask_takes():
    assert noise_per_image("random", (3, 5)) == 15
    assert noise_per_image("grid", (3, 5)) == noise_per_image("given", (3, 5)) == 0
    noise = uniform(0, 2, noise_per_image("block", (3, 5)))
    assert block_masking(noise, (3, 5), 0.5).num_masked == 8


# --- positions ---------------------------------------------------------------------------------------------------


@MANY
@given(GRIDS, st.integers(1, 8))
def test_positions_of_one_grid_are_a_part_of_a_larger_ones(grid: tuple[int, int], quarter: int):
    """A patch's position depends on its row and column alone, not on how many there are."""
    (rows, columns), width = grid, 4 * quarter
    side = max(grid) + 1
    table = sincos_positions(grid, width)
    assert table.shape == (1, 1 + rows * columns, width)
    assert not table[:, 0].any()
    square = sincos_positions((side, side), width)[0, 1:].view(side, side, width)
    assert torch.equal(table[0, 1:].view(rows, columns, width), square[:rows, :columns])
    # The first half tells columns, the second rows, in the same way.
    assert torch.equal(square[0, :, : width // 2], square[-1, :, : width // 2])
    assert torch.equal(square[:, 0, width // 2 :], square[:, -1, width // 2 :])
    assert torch.equal(square[0, :, : width // 2], square[:, 0, width // 2 :])
    angles = torch.arange(side).double()
    torch.testing.assert_close(square[0, :, 0].double(), angles.sin())  # the first frequency is 1
    torch.testing.assert_close(square[0, :, quarter].double(), angles.cos())


@MANY
@given(GRIDS, GRIDS, SEEDS)
def test_resampled_positions_equal_timms(old: tuple[int, int], new: tuple[int, int], seed: int):
    """Without the antialiasing that timm adds by default. Measured: equal to the last bit."""
    table = uniform(seed, 1, 1 + old[0] * old[1], 8) - 0.5
    resampled = resample_positions(table, old, new, num_prefix_tokens=1)
    assert resampled.shape == (1, 1 + new[0] * new[1], 8)
    assert torch.equal(resampled[:, 0], table[:, 0])
    if old == new:
        assert torch.equal(resampled, table)
    expected = resample_abs_pos_embed(table, list(new), list(old), antialias=False)
    torch.testing.assert_close(resampled, expected, rtol=0, atol=1e-6)


def test_resampling_keeps_rows_and_columns_apart():
    """A table that knows only columns still does on a larger grid, and one that grows by rows still grows."""
    column, row = np.meshgrid(np.arange(6), np.arange(4))
    table = torch.from_numpy(np.stack([column, row], axis=-1).reshape(1, 24, 2)).float()
    table = torch.cat([torch.full((1, 1, 2), 7.0), table], dim=1)
    field = resample_positions(table, (4, 6), (8, 9), num_prefix_tokens=1)[0, 1:].view(8, 9, 2)
    torch.testing.assert_close(field[:, :, 0], field[:1, :, 0].expand(8, -1))
    torch.testing.assert_close(field[:, :, 1], field[:, :1, 1].expand(-1, 9))
    assert (field[0, :, 0].diff() > 0).all()
    assert (field[:, 0, 1].diff() > 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_resampling_keeps_the_number_type(dtype: torch.dtype):
    table = uniform(0, 1, 10, 4).to(dtype)
    assert resample_positions(table, (3, 3), (2, 5), num_prefix_tokens=1).dtype == dtype


# --- the encoder -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tiny_shape):
    torch.manual_seed(0)
    return MAE.from_shape(tiny_shape(image_size=(12, 20), depth=1)).encoder.double().requires_grad_(False)


@MANY
@given(st.integers(1, 15), SEEDS)
def test_the_encoder_does_not_care_about_order(encoder, kept: int, seed: int):
    """Permuting `keep_ids` permutes what comes out, and leaves the class token alone."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, 12, 20, generator=generator, dtype=torch.float64)
    keep_ids = torch.stack([torch.randperm(15, generator=generator)[:kept] for _ in range(2)])
    order = torch.randperm(kept, generator=generator)
    latent, permuted = encoder(images, keep_ids), encoder(images, keep_ids[:, order])
    assert latent.shape == (2, 1 + kept, 24)
    torch.testing.assert_close(permuted[:, 0], latent[:, 0])
    torch.testing.assert_close(permuted[:, 1:], latent[:, 1:][:, order])
