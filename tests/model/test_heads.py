"""The classifier against timm's Vision Transformer, and by hand: pooling, drop path, the probe, what is frozen, sizes.

Errors are the largest difference of a logit over the largest logit.
"""

from functools import partial

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from openmae.config import ClassifierShape, ViTShape
from openmae.data.mixing import drop_path_masks, drop_path_rates
from openmae.model.heads import Classifier
from openmae.model.positions import resample_positions

BATCH, CLASSES, RATE = 6, 7, 0.3


def shape_of(pool="mean", head="fine-tune", **changes):
    encoder = {"image_size": (24, 32), "patch_size": 8, "channels": 3, "width": 48, "depth": 4, "num_heads": 3}
    return ClassifierShape(encoder=ViTShape(**{**encoder, **changes}), num_classes=CLASSES, pool=pool, head=head)


def visible(model, seed=0):
    """Weights none of which hides another: what begins as 0 or 1 gets values too."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=chance))
    return model


def timm_model(shape, model, drop_path=0.0):
    """timm's model with the classifier's weights: all of them, and no others."""
    twin = VisionTransformer(
        img_size=shape.encoder.image_size,
        patch_size=shape.encoder.patch_size,
        in_chans=shape.encoder.channels,
        num_classes=shape.num_classes,
        global_pool={"mean": "avg", "cls": "token"}[shape.pool],
        embed_dim=shape.encoder.width,
        depth=shape.encoder.depth,
        num_heads=shape.encoder.num_heads,
        drop_path_rate=drop_path,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    twin.load_state_dict({name.removeprefix("encoder."): value for name, value in model.state_dict().items()})
    return twin


def pair(pool, drop_path=0.0):
    shape = shape_of(pool)
    model = visible(Classifier.from_shape(shape))
    images = torch.randn(BATCH, 3, *shape.encoder.image_size, generator=torch.Generator().manual_seed(1))
    return model, timm_model(shape, model, drop_path), images


def error(got, expected):
    return float(((got - expected).abs().max() / expected.abs().max()).detach())


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_it_is_timms_model(pool):
    """Measured: 0."""
    model, twin, images = pair(pool)
    assert error(model.eval()(images), twin.eval()(images)) < 1e-6


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_drop_path_is_timms_for_the_same_masks(pool):
    """timm's masks are drawn again from its seed: block by block, attention before MLP. Measured: 0."""
    model, twin, images = pair(pool, RATE)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in twin.blocks]
    scales = torch.ones(len(rates), 2, BATCH)
    torch.manual_seed(3)
    expected = twin.train()(images)
    torch.manual_seed(3)
    for block, rate in enumerate(rates):
        for branch in range(2 if rate else 0):
            scales[block, branch] = torch.empty(BATCH, 1, 1).bernoulli_(1 - rate).flatten() / (1 - rate)
    assert int((scales == 0).sum()) >= 3
    assert error(model.train()(images, scales), expected) < 1e-6
    assert error(model(images), expected) > 1e-3  # the masks matter


def test_drop_path_rises_as_timms():
    """Measured: 3e-9 (timm's linspace is in float32)."""
    for depth in (2, 4, 12):
        twin = VisionTransformer(img_size=8, patch_size=8, embed_dim=4, num_heads=1, depth=depth, drop_path_rate=RATE)
        expected = [getattr(block.drop_path1, "drop_prob", 0.0) for block in twin.blocks]
        assert drop_path_rates(RATE, depth, None) == pytest.approx(expected, abs=1e-7)
    assert drop_path_rates(RATE, 1, None) == [0.0]


def test_each_rate_is_how_often_its_branches_drop():
    """20,000 samples: five standard deviations are .018."""
    masks = drop_path_masks(torch.arange(20_000), drop_path_rates(RATE, 4, None))
    assert (masks == 0).double().mean(dim=2).numpy() == pytest.approx(
        np.tile([[0.0], [0.1], [0.2], [0.3]], 2), abs=0.018
    )
    assert masks.double().mean(dim=2).numpy() == pytest.approx(np.ones((4, 2)), abs=0.03)
    assert (masks[3, 0] != masks[3, 1]).any()  # the branches are dropped apart


def test_frozen_blocks_drop_nothing():
    assert drop_path_rates(RATE, 4, 2) == pytest.approx([0, 0, 0.2, 0.3])
    assert drop_path_rates(RATE, 4, 0.5) == pytest.approx([0, 0, 0, 0.3])
    assert drop_path_rates(RATE, 4, 0) == [0, 0, 0, 0]


def test_evaluation_drops_nothing():
    model, twin, images = pair("mean", RATE)
    assert error(model.eval()(images), twin.eval()(images)) < 1e-6
    assert torch.equal(model(images), model(images))


# --- the probe's head ---


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_probes_norm_by_hand(pool):
    """BatchNorm without affine, eps 1e-6, momentum .1, behind the encoder's norm. Measured: 1.2e-7."""
    model = Classifier.from_shape(shape_of(pool, "probe"))
    visible(model.encoder)
    images = torch.randn(BATCH, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    tokens = nn.functional.layer_norm(
        model.encoder.tokens(images), (48,), model.encoder.norm.weight, model.encoder.norm.bias, 1e-6
    )
    features = (tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1)).detach().double()
    mean, variance = features.mean(0), features.var(0, correction=0)
    weight, bias = model.head.weight.detach().double(), model.head.bias.detach().double()
    expected = (features - mean) / (variance + 1e-6).sqrt() @ weight.T + bias
    assert error(model.train()(images).detach().double(), expected) < 1e-6
    running = 0.9 + 0.1 * features.var(0, correction=1)
    expected = (features - 0.1 * mean) / (running + 1e-6).sqrt() @ weight.T + bias
    assert error(model.eval()(images).detach().double(), expected) < 1e-6
    assert [name for name, _ in model.named_parameters() if not name.startswith("encoder.")] == [
        *("head.weight", "head.bias")
    ]


# --- how it begins ---


def test_how_a_head_begins():
    """19,200 numbers: their standard deviation is known to .5 %."""
    torch.manual_seed(0)
    encoder = ViTShape(image_size=(8, 8), patch_size=8, channels=1, width=192, depth=1, num_heads=3)
    fine = Classifier.from_shape(ClassifierShape(encoder=encoder, num_classes=100, pool="mean"))
    assert float(fine.head.weight.detach().std()) == pytest.approx(2e-5, rel=0.03)
    assert not fine.head.bias.any()
    assert bool((fine.fc_norm.weight == 1).all())
    assert not fine.fc_norm.bias.any()
    assert fine.fc_norm.eps == 1e-6
    probe = Classifier.from_shape(ClassifierShape(encoder=encoder, num_classes=100, pool="cls", head="probe"))
    assert float(probe.head.weight.detach().std()) == pytest.approx(0.01, rel=0.03)
    assert not probe.head.bias.any()


# --- partial fine-tuning ---

BLOCK = {
    *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"),
    *("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
}
MLP_HALF = {name for name in BLOCK if name.startswith(("norm2", "mlp"))}
STEM = {"encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias"}
TOP = {
    "mean": {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"},
    "cls": {"encoder.norm.weight", "encoder.norm.bias", "head.weight", "head.bias"},
}


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize(
    ("blocks", "below"),
    [
        (0.0, set()),
        (0.5, {f"encoder.blocks.3.{name}" for name in MLP_HALF}),
        (1.0, {f"encoder.blocks.3.{name}" for name in BLOCK}),
        (3.0, {f"encoder.blocks.{k}.{name}" for k in (1, 2, 3) for name in BLOCK}),
        (4.0, {f"encoder.blocks.{k}.{name}" for k in range(4) for name in BLOCK}),
        (None, {f"encoder.blocks.{k}.{name}" for k in range(4) for name in BLOCK} | STEM),
    ],
)
def test_what_is_trained(pool, blocks, below):
    model = Classifier.from_shape(shape_of(pool))
    model.train_only(blocks)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == below | TOP[pool]
    model(torch.randn(2, 3, 24, 32)).square().sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == below | TOP[pool]


@pytest.mark.parametrize("blocks", [5.0, 1.5, 0.25])
def test_blocks_that_are_not_there(blocks):
    with pytest.raises(ValueError, match=r"--blocks got .*0, 0\.5 and 1 to 4 are known"):
        Classifier.from_shape(shape_of()).train_only(blocks)


# --- other image sizes ---


def cubic_matrix(old, new):
    """Bicubic resampling of a line of `old` values to `new` as a matrix: Keys' kernel (a = −.75), ends repeated."""
    matrix = np.zeros((new, old))
    for row in range(new):
        place = (row + 0.5) * old / new - 0.5  # align_corners False: pixels are areas
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            x, a = abs(place - tap), -0.75
            weight = (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(tap, 0), old - 1)] += weight
    return matrix


@pytest.mark.parametrize("grid", [(6, 8), (14, 14), (2, 7), (3, 4)])
def test_positions_are_resampled_as_written_out_by_hand(grid):
    """Measured: 2.2e-6."""
    positions = torch.randn(1, 1 + 3 * 4, 16, generator=torch.Generator().manual_seed(0))
    got = resample_positions(positions, (3, 4), grid, num_prefix_tokens=1)
    table = positions[0, 1:].double().numpy().reshape(3, 4, 16)
    expected = np.einsum("rh,cw,hwd->rcd", cubic_matrix(3, grid[0]), cubic_matrix(4, grid[1]), table)
    assert torch.equal(got[:, :1], positions[:, :1])
    assert got[0, 1:].numpy() == pytest.approx(expected.reshape(-1, 16), abs=1e-5)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_larger_image_that_is_no_square_gives_what_timm_gives(pool):
    """timm's model is made for the size, with positions resampled by hand. Measured: 2.9e-7."""
    model, _, _ = pair(pool)
    images = torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    table = model.encoder.pos_embed.detach()[0].double().numpy()
    body = np.einsum("rh,cw,hwd->rcd", cubic_matrix(3, 5), cubic_matrix(4, 3), table[1:].reshape(3, 4, -1))
    weights = {**model.state_dict()}
    weights["encoder.pos_embed"] = torch.from_numpy(np.concatenate([table[:1], body.reshape(15, -1)])[None]).float()
    larger = Classifier.from_shape(shape_of(pool, image_size=(40, 24)))
    larger.load_state_dict(weights)
    expected = timm_model(larger.shape, larger).eval()(images)
    assert error(model.eval()(images), expected) < 1e-6
