"""Windows and shared relative positions: windowed attention equals full attention masked to windows."""

import pytest
import torch
import torch.nn.functional as F

from openmae.config import ViTShape
from openmae.errors import RequestError
from openmae.model.block import Attention, windowed_attention
from openmae.model.cost import encoder_parameters
from openmae.model.relative_positions import RelativePositionBias, offset_ids
from openmae.model.vit import ViT

WIDTH, HEADS = 16, 2


def shape_of(grid=(5, 6), **changes):
    settings = {
        "depth": 4,
        "relative_positions": "bias",
        "class_token": False,
        "window_size": 3,
        "global_blocks": (1, 3),
    }
    size = (4 * grid[0], 4 * grid[1])
    common = {"image_size": size, "patch_size": 4, "channels": 3, "width": WIDTH, "num_heads": HEADS}
    return ViTShape(**common, **{**settings, "shares_relative_positions": True, **changes})


def random_biases(vit, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name.endswith("relative.table"):
                parameter.normal_(generator=generator)
    return vit


def masked_full_attention(attn, x, grid, size, bias):
    """All tokens of the padded grid at once; scores between different windows are minus infinity."""
    rows, columns = grid[0] + -grid[0] % size, grid[1] + -grid[1] % size
    x = F.pad(x.unflatten(1, grid), (0, 0, 0, columns - grid[1], 0, rows - grid[0])).flatten(1, 2)
    row, column = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
    window = row // size * columns + column // size
    within = row % size * size + column % size  # the place in a window
    scores = torch.zeros(1, HEADS, rows * columns, rows * columns)
    if bias is not None:
        scores += bias[:, :, within[:, None], within[None, :]]
    scores.masked_fill_(window[:, None] != window[None, :], -torch.inf)
    return attn(x, bias=scores).unflatten(1, (rows, columns))[:, : grid[0], : grid[1]].flatten(1, 2)


@pytest.mark.parametrize("is_biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize(("grid", "size"), [((6, 9), 3), ((5, 7), 3), ((2, 3), 4), ((16, 20), 14)])
def test_windows_equal_full_attention_masked_to_windows(grid, size, is_biased):
    """Largest difference measured: 1.8e-7. Padding takes part, as in windowed_attention's docstring."""
    torch.manual_seed(0)
    attn, x, bias = Attention(WIDTH, HEADS), torch.randn(2, grid[0] * grid[1], WIDTH), None
    if is_biased:
        relative = RelativePositionBias((size, size), HEADS, class_token=False)
        torch.nn.init.normal_(relative.table)
        bias = relative.scores((size, size))
    with torch.no_grad():
        found = windowed_attention(attn, x, grid, size, bias)
        expected = masked_full_attention(attn, x, grid, size, bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found - attn(x)).abs().max() > 1e-3


@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (4, 3)])
def test_biases_without_a_class_token_are_those_beside_it(grid):
    torch.manual_seed(0)
    with_class, without = RelativePositionBias(grid, HEADS), RelativePositionBias(grid, HEADS, class_token=False)
    torch.nn.init.normal_(with_class.table)
    with torch.no_grad():
        without.table.copy_(with_class.table[:-3])
    expected = with_class.table[offset_ids(grid)].permute(2, 0, 1)[None, :, 1:, 1:]
    assert torch.equal(without.scores(grid), expected)
    (without.scores(grid) * torch.arange(expected.numel()).view_as(expected)).sum().backward()
    (expected * torch.arange(expected.numel()).view_as(expected)).sum().backward()
    torch.testing.assert_close(without.table.grad, with_class.table.grad[:-3])


def test_one_table_for_windows_and_one_for_the_rest():
    vit = ViT(shape_of())
    tables = {name: tuple(value.shape) for name, value in vit.state_dict().items() if "relative" in name}
    assert tables == {"windowed_relative.table": (25, HEADS), "global_relative.table": (9 * 11, HEADS)}
    assert encoder_parameters(vit.shape) == sum(p.numel() for p in vit.parameters())
    images = torch.randn(2, 3, 20, 24)
    plain = ViT(shape_of(relative_positions="none", shares_relative_positions=False))
    plain.load_state_dict({n: v for n, v in vit.state_dict().items() if "relative" not in n})
    with torch.no_grad():
        torch.testing.assert_close(vit.tokens(images), plain.tokens(images), rtol=0, atol=1e-6)
        for table in (vit.windowed_relative.table, vit.global_relative.table):
            table.normal_()
            assert (vit.tokens(images) - plain.tokens(images)).abs().max() > 1e-3
            table.zero_()


def test_shared_tables_equal_equal_tables_of_each_block():
    shared, single = random_biases(ViT(shape_of())), ViT(shape_of(shares_relative_positions=False))
    weights = {n: v for n, v in shared.state_dict().items() if "_relative" not in n}
    for number in range(4):
        table = shared.global_relative.table if number in (1, 3) else shared.windowed_relative.table
        weights[f"blocks.{number}.attn.relative.table"] = table.detach()
    single.load_state_dict(weights)
    images = torch.randn(2, 3, 20, 24)
    assert torch.equal(shared.tokens(images), single.tokens(images))
    maps = shared.feature_maps(images, (0, 3))
    for found, expected in zip(maps, single.feature_maps(images, (0, 3)), strict=True):
        assert torch.equal(found, expected)
    for block in shared.blocks:
        block.recomputes = True
    assert torch.equal(shared.tokens(images), single.tokens(images))


@pytest.mark.parametrize(
    "changes", [{"relative_positions": "none"}, {"relative_positions": "decomposed"}], ids=["none", "decomposed"]
)
def test_only_biases_are_shared(changes):
    with pytest.raises(RequestError, match="biases are shared"):
        shape_of(**changes)


def test_files_of_other_encoders_stay_as_they_were():
    shape = shape_of(shares_relative_positions=False)
    assert "shares_relative_positions" not in shape.to_dict()
    assert ViTShape.from_dict(shape_of().to_dict()) == shape_of()
