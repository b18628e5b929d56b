"""The segmentation model: sizes, gradients, dropout, drop path, relative positions, freezing."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from openmae.config import SegmenterShape
from openmae.errors import RequestError

from .segmenters import make_segmenter, segmenter_shape


@pytest.mark.parametrize("patch_size", [14, 16])
def test_images_of_any_size_get_logits_for_each_pixel(patch_size):
    shape = segmenter_shape(patch_size, (2 * patch_size, 3 * patch_size))
    model = make_segmenter(shape).eval()

    @settings(max_examples=15, deadline=None)
    @given(height=st.integers(1, 70), width=st.integers(1, 70))
    def holds(height, width):
        images = torch.randn(1, 3, height, width)
        rows, columns = -(-height // patch_size), -(-width // patch_size)
        with torch.no_grad():
            logits, auxiliary = model(images)
            assert logits.shape == (1, 5, 4 * rows, 4 * columns)
            assert auxiliary.shape == (1, 5, rows, columns)
            full = model.segment(images)
        assert full.shape == (1, 5, height, width)
        assert torch.equal(full, model.at_size(logits, height, width))
        assert torch.isfinite(full).all()

    holds()


def test_padding_is_zeros_at_the_bottom_and_on_the_right():
    model, images = make_segmenter().eval(), torch.randn(1, 3, 14, 21)
    padded = F.pad(images, (0, 3, 0, 2))
    with torch.no_grad():
        assert torch.equal(model.segment(images), model.segment(padded)[:, :, :14, :21])


@pytest.mark.parametrize("relative_positions", ["none", "bias"])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_parameter_gets_a_gradient(batch, relative_positions):
    model = make_segmenter(segmenter_shape(relative_positions=relative_positions)).train()
    logits, auxiliary = model(torch.randn(batch, 3, 16, 24))
    (logits.square().mean() + auxiliary.square().mean()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without
    assert [n for n, p in model.named_parameters() if not p.grad.any()] == []


def test_blocks_after_the_last_map_do_not_run_and_are_frozen():
    model = make_segmenter(replace(segmenter_shape(), pyramid_blocks=(0, 0, 1, 2))).train()
    with torch.no_grad():
        model.encoder.blocks[3].mlp.fc1.weight.fill_(torch.nan)
    logits, _ = model(torch.randn(2, 3, 16, 24))
    assert torch.isfinite(logits).all()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("encoder.blocks.3.")}


@pytest.mark.parametrize("size", [(16, 24), (20, 12)], ids=["own grid", "other grid"])
def test_fresh_relative_biases_change_nothing(size):
    """Largest difference measured: 0; another attention kernel than here may round otherwise."""
    plain = make_segmenter().eval()
    biased = make_segmenter(segmenter_shape(relative_positions="bias")).eval()
    tables = {name for name in biased.state_dict() if name.endswith(".relative.table")}
    assert len(tables) == 4
    assert biased.state_dict().keys() - tables == plain.state_dict().keys()
    biased.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(biased.segment(images), plain.segment(images), rtol=0, atol=1e-6)
        biased.encoder.blocks[0].attn.relative.table.normal_()
        assert (biased.segment(images) - plain.segment(images)).abs().max() > 1e-4


def test_the_class_token_attends_and_is_no_part_of_the_maps():
    model, images = make_segmenter().eval(), torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        maps = model.encoder.feature_maps(images, (0, 1, 2, 3))
        for number, found in enumerate(maps):
            tokens = model.encoder.tokens(images, num_blocks=number + 1)
            assert torch.equal(found[0, :, 1, 2], tokens[0, 1 + 1 * 6 + 2])
        model.encoder.cls_token.add_(1)
        assert not torch.equal(model.encoder.feature_maps(images, (3,))[0], maps[3])


def test_drop_path_of_all_branches_leaves_the_embedding():
    model, images = make_segmenter(), torch.randn(2, 3, 16, 24)
    scales = torch.ones(4, 2, 2)
    scales[:, :, 0] = 0
    with torch.no_grad():
        first, last = model.encoder.feature_maps(images, (0, 3), scales)
        whole = model.encoder.feature_maps(images, (3,))[0]
    assert torch.equal(first[0], last[0])
    torch.testing.assert_close(last[1], whole[1])


def test_channel_scales_are_the_main_heads_first():
    model, images = make_segmenter().eval(), torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        whole, whole_auxiliary = model(images)
        scales = torch.cat([torch.zeros(1, 12), torch.ones(1, 8)], dim=1)
        logits, auxiliary = model(images, channel_scales=scales)
    assert not logits.any()  # the bias is 0 at first
    assert whole.any()
    assert torch.equal(auxiliary, whole_auxiliary)


def test_a_frozen_encoder_gets_no_gradient():
    model = make_segmenter().train()
    assert all(p.requires_grad for p in model.parameters())
    model.train_only_heads()
    logits, auxiliary = model(torch.randn(2, 3, 16, 24))
    (logits.sum() + auxiliary.sum()).backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == {
        n for n, _ in model.named_parameters() if n.startswith("encoder.")
    }


def test_a_shape_survives_its_description():
    shape = segmenter_shape(relative_positions="bias")
    assert SegmenterShape.from_dict(shape.to_dict()) == shape


@pytest.mark.parametrize("blocks", [(0, 1, 2, 4), (-1, 0, 1, 2), (2, 1, 2, 3)])
def test_blocks_that_the_encoder_lacks_are_refused(blocks):
    with pytest.raises(RequestError, match="ascending order from 0 to 3"):
        replace(segmenter_shape(), pyramid_blocks=blocks)
