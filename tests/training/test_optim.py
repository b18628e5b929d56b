"""Parameter groups, AdamW's step and the learning rate, each against its definition."""

import math

import pytest
import torch
from torch import nn

from openmae.config import ClassifierShape, SegmenterShape, ViTShape
from openmae.model.heads import Classifier
from openmae.model.mae import MAE
from openmae.training.optim import (
    CosineSchedule,
    PolynomialSchedule,
    adamw,
    adamw_from_groups,
    layer_decay_groups,
    set_learning_rate,
    sgd,
    weight_decay_groups,
)
from openmae.transfer.segmentation.segmenter import Segmenter


def group_names(model, decay=0.05):
    """The names of the decayed and of the spared parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = weight_decay_groups(model, decay)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (decay, 0.0)
    return {names[id(p)] for p in decayed["params"]}, {names[id(p)] for p in spared["params"]}


@pytest.mark.parametrize("mask_tokens_in_encoder", [False, True])
def test_every_trainable_parameter_is_in_one_group(tiny_shape, mask_tokens_in_encoder):
    model = MAE.from_shape(tiny_shape(mask_tokens_in_encoder=mask_tokens_in_encoder))
    decayed, spared = group_names(model)
    assert not decayed & spared
    assert decayed | spared == {name for name, p in model.named_parameters() if p.requires_grad}


def test_biases_and_norms_are_spared_and_tokens_are_decayed(tiny_shape):
    decayed, spared = group_names(MAE.from_shape(tiny_shape()))
    assert {"encoder.cls_token", "decoder.mask_token", "encoder.patch_embed.proj.weight"} <= decayed
    assert {"encoder.norm.weight", "encoder.norm.bias", "encoder.blocks.0.attn.qkv.bias"} <= spared
    assert all(name.endswith(".weight") or "token" in name for name in decayed)
    assert all(name.endswith(".bias") or "norm" in name for name in spared)


def test_frozen_positions_are_in_no_group(tiny_shape):
    decayed, spared = group_names(MAE.from_shape(tiny_shape()))
    assert not [name for name in decayed | spared if "pos_embed" in name]


def test_a_frozen_layer_is_left_out():
    model = nn.Linear(3, 2)
    model.weight.requires_grad = False
    assert group_names(model) == (set(), {"bias"})


def test_adamw_steps_as_the_textbook_says():
    """Three steps of Loshchilov & Hutter's algorithm 2, written out in float64."""
    rate, decay, betas = 0.01, 0.05, (0.9, 0.95)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = adamw(model, decay, betas)
    set_learning_rate(optimizer, rate)
    wanted = {name: p.detach().double() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in wanted.items()}
    second = {name: torch.zeros_like(p) for name, p in wanted.items()}
    for step in range(1, 4):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        for name, parameter in model.named_parameters():
            gradient = parameter.grad.double()
            first[name] = betas[0] * first[name] + (1 - betas[0]) * gradient
            second[name] = betas[1] * second[name] + (1 - betas[1]) * gradient**2
            scaled = (second[name] / (1 - betas[1] ** step)).sqrt() + 1e-8
            shrink = 1 - rate * decay if name == "weight" else 1.0
            wanted[name] = wanted[name] * shrink - rate * first[name] / (1 - betas[0] ** step) / scaled
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), wanted[name], rtol=1e-5, atol=1e-7)


def test_the_fused_step_equals_torchs_plain_one(tiny_shape):
    torch.manual_seed(0)
    ours, theirs = (MAE.from_shape(tiny_shape()) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    fused = adamw(ours, 0.05, (0.9, 0.95))
    plain = torch.optim.AdamW(weight_decay_groups(theirs, 0.05), lr=1e-2, betas=(0.9, 0.95), fused=False, foreach=False)
    set_learning_rate(fused, 1e-2)
    for _ in range(3):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            if mine.requires_grad:
                mine.grad = torch.randn_like(mine)
                other.grad = mine.grad.clone()
        fused.step()
        plain.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7, msg=name)


def test_the_rate_is_zero_at_first_and_the_peak_when_warm():
    schedule = CosineSchedule(peak=2.0, minimum=0.5, warmup_steps=4, total_steps=20)
    assert [schedule(step) for step in range(5)] == [0.0, 0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("step", [4, 7, 12, 19])
def test_the_rate_follows_half_a_cosine(step):
    schedule = CosineSchedule(peak=2.0, minimum=0.5, warmup_steps=4, total_steps=20)
    wanted = 0.5 + 1.5 * (1 + math.cos(math.pi * (step - 4) / 16)) / 2
    assert schedule(step) == pytest.approx(wanted, rel=1e-12)


def test_the_rate_ends_at_the_minimum_and_stays_there():
    schedule = CosineSchedule(peak=2.0, minimum=0.5, warmup_steps=4, total_steps=20)
    assert schedule(12) == pytest.approx(1.25)  # halfway
    assert schedule(19) > 0.5
    assert schedule(20) == schedule(21) == schedule(1000) == 0.5


def test_a_fractional_warm_up_is_not_rounded():
    schedule = CosineSchedule(peak=1.0, minimum=0.0, warmup_steps=2.5, total_steps=10)
    assert [schedule(step) for step in range(3)] == pytest.approx([0, 0.4, 0.8])
    assert schedule(2.5) == 1.0
    assert schedule(3) == pytest.approx((1 + math.cos(math.pi * 0.5 / 7.5)) / 2)


@pytest.mark.parametrize("warmup_steps", [0, 5, 8])
def test_degenerate_warm_ups_stay_finite(warmup_steps):
    """No warm-up at all, and one as long as the run or longer."""
    schedule = CosineSchedule(peak=1.0, minimum=0.1, warmup_steps=warmup_steps, total_steps=5)
    rates = [schedule(step) for step in range(10)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[0] == (1.0 if warmup_steps == 0 else 0.0)


def test_set_rate_reaches_every_group(tiny_shape):
    optimizer = adamw(MAE.from_shape(tiny_shape()), 0.05, (0.9, 0.95))
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_the_rate_is_the_releaseds_in_epochs_with_each_layers_scale():
    """docs/paper.md: t = epoch + i / steps per epoch; a layer's scale multiplies the result, minimum included.

    Largest relative difference: 1e-14 from the formula, 5e-15 from timm's CosineLRScheduler.
    """
    timm_scheduler = pytest.importorskip("timm.scheduler")
    rate, minimum, warm, epochs, steps = 5e-4, 1e-6, 5, 20, 7
    scales = [0.65**3, 1.0]
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": [w], "lr_scale": s} for w, s in zip(weights, scales, strict=False)] + [{"params": weights[2:]}]
    optimizer = adamw_from_groups(groups, (0.9, 0.999))
    schedule = CosineSchedule(peak=rate, minimum=minimum, warmup_steps=warm * steps, total_steps=epochs * steps)
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    theirs = timm_scheduler.CosineLRScheduler(
        plain, (epochs - warm) * steps, minimum, warmup_t=warm * steps, warmup_prefix=True, t_in_epochs=False
    )
    for epoch in range(epochs):
        for i in range(steps):
            t = epoch + i / steps
            if t < warm:
                wanted = rate * t / warm
            else:
                wanted = minimum + (rate - minimum) * 0.5 * (1 + math.cos(math.pi * (t - warm) / (epochs - warm)))
            set_learning_rate(optimizer, schedule(epoch * steps + i))
            got = [group["lr"] for group in optimizer.param_groups]
            assert got == pytest.approx([wanted * scale for scale in (*scales, 1.0)], rel=1e-12)
            theirs.step_update(epoch * steps + i)
            assert got[2] == pytest.approx(plain.param_groups[0]["lr"], rel=1e-12)
    set_learning_rate(optimizer, schedule(epochs * steps))
    assert [group["lr"] for group in optimizer.param_groups] == [minimum * scales[0], minimum, minimum]


# Layer-wise decay. 4x4 patches of 16x16 pixels, three blocks.


def classifier(pool="mean"):
    encoder = ViTShape(image_size=(16, 16), patch_size=4, channels=3, width=32, depth=3, num_heads=2)
    model = Classifier.from_shape(ClassifierShape(encoder=encoder, num_classes=5, head="fine-tune", pool=pool))
    model.train_only(None)  # positions too
    return model


def by_name(model, groups):
    """Of each parameter: the scale of its rate and its weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("layer_decay", [0.65, 0.75, 1.0])
@pytest.mark.parametrize(("pool", "global_pool"), [("mean", "avg"), ("cls", "token")])
def test_layer_decay_is_timms_name_by_name(pool, global_pool, layer_decay):
    """One difference: timm counts the encoder's norm to the last block, the released settings to the head."""
    vit = pytest.importorskip("timm.models.vision_transformer")
    theirs = vit.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=5, global_pool=global_pool
    )
    groups = pytest.importorskip("timm.optim").param_groups_layer_decay(
        theirs, 0.05, theirs.no_weight_decay(), layer_decay=layer_decay
    )
    wanted = by_name(theirs, groups)
    if pool == "cls":
        for name in ("norm.weight", "norm.bias"):
            assert wanted[name] == (layer_decay, 0.0)
            wanted[name] = (1.0, 0.0)
    ours = classifier(pool)
    got = by_name(ours, layer_decay_groups(ours, depth=3, layer_decay=layer_decay, weight_decay=0.05))
    assert {name.removeprefix("encoder."): value for name, value in got.items()} == wanted


def test_layer_decay_scales_are_the_releaseds():
    """depth + 2 ids, scale decay^(depth + 1 - id), a decayed and a spared group each; the stem comes first."""
    groups = layer_decay_groups(classifier(), depth=3, layer_decay=0.5, weight_decay=0.3)
    wanted = [(0.5**power, decay) for power in (4, 3, 2, 1, 0) for decay in (0.3, 0.0)]
    assert [(group["lr_scale"], group["weight_decay"]) for group in groups] == wanted


def test_layer_decay_leaves_out_what_is_frozen_and_empty_groups():
    model = classifier()
    model.train_only(0.5)
    groups = layer_decay_groups(model, depth=3, layer_decay=0.5, weight_decay=0.3)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(by_name(model, groups)) == trainable
    assert sorted(group["lr_scale"] for group in groups) == [0.5, 0.5, 1.0, 1.0]  # last block and head


def test_layer_decay_that_fits_no_name_is_an_error(tiny_shape):
    model = classifier()
    for depth in (2, 4):
        with pytest.raises(AssertionError, match="blocks"):
            layer_decay_groups(model, depth=depth, layer_decay=0.75, weight_decay=0.05)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(AssertionError, match=r"extra\.weight"):
        layer_decay_groups(model, depth=3, layer_decay=0.75, weight_decay=0.05)
    with pytest.raises(AssertionError, match=r"decoder\.mask_token"):
        layer_decay_groups(MAE.from_shape(tiny_shape()), depth=2, layer_decay=0.75, weight_decay=0.05)
    with pytest.raises(AssertionError, match=r"cls_token"):  # the bare encoder: timm's names
        layer_decay_groups(model.encoder, depth=3, layer_decay=0.75, weight_decay=0.05)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.9)])
def test_adamw_over_layers_equals_a_plain_one_for_each(betas):
    """Weights after five steps, each layer by torch's unfused AdamW at its own rate; largest difference 6e-8."""
    torch.manual_seed(0)
    ours, theirs = classifier(), classifier()
    theirs.load_state_dict(ours.state_dict())
    optimizer = adamw_from_groups(layer_decay_groups(ours, depth=3, layer_decay=0.5, weight_decay=0.3), betas)
    settings = by_name(theirs, layer_decay_groups(theirs, depth=3, layer_decay=0.5, weight_decay=0.3))
    plain = [
        torch.optim.AdamW(
            [parameter], lr=1e-2 * settings[name][0], weight_decay=settings[name][1], betas=betas, foreach=False
        )
        for name, parameter in theirs.named_parameters()
    ]
    set_learning_rate(optimizer, 1e-2)
    for _ in range(5):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        optimizer.step()
        for one in plain:
            one.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7, msg=name)


# SGD


def twin_weights(dtype=torch.float32):
    torch.manual_seed(0)
    ours = nn.Linear(7, 5, dtype=dtype)
    theirs = nn.Linear(7, 5, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def give_gradients(ours, theirs, step):
    chance = torch.Generator().manual_seed(step)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.grad = torch.randn(mine.shape, generator=chance, dtype=mine.dtype)
        other.grad = mine.grad.clone()


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 0.0), (0.9, 0.1), (0.5, 0.1), (0.0, 0.1)])
def test_sgd_equals_torchs_plain_one_however_many_steps_are_skipped(momentum, weight_decay):
    """Largest difference over 20 steps in float64: 9e-16. The first step is skipped too: torch's own fused
    one then starts from unfilled memory, which is filled with large numbers here."""
    ours, theirs = twin_weights(torch.float64)
    junk = [torch.full_like(p, 1e6) for p in ours.parameters() for _ in range(50)]
    del junk
    optimizer = sgd([{"params": list(ours.parameters()), "weight_decay": weight_decay}], momentum)
    plain = torch.optim.SGD(theirs.parameters(), momentum=momentum, weight_decay=weight_decay, foreach=False)
    for step in range(20):
        rate = 0.1 * (1 + step % 3)
        set_learning_rate(optimizer, rate)
        plain.param_groups[0]["lr"] = rate
        give_gradients(ours, theirs, step)
        is_skipped = step in (0, 1, 7)
        optimizer.found_inf = torch.tensor(float(is_skipped))
        before = [p.detach().clone() for p in ours.parameters()]
        moving = {key: value.clone() for p in ours.parameters() for key, value in optimizer.state[p].items()}
        if is_skipped:
            ours.weight.grad[0, 0] = float("nan")
        optimizer.step()
        if is_skipped:
            assert all(torch.equal(*pair) for pair in zip(ours.parameters(), before, strict=True))
            after = {key: value for p in ours.parameters() for key, value in optimizer.state[p].items()}
            assert all(torch.equal(after[key], moving[key]) for key in after)
        else:
            plain.step()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-14)


def segmenter():
    encoder = ViTShape(
        image_size=(16, 16), patch_size=8, channels=1, width=8, depth=2, num_heads=2, relative_positions="bias"
    )
    shape = SegmenterShape(encoder=encoder, num_classes=3, pyramid_blocks=(0, 0, 1, 1), head_width=4, auxiliary_width=4)
    return Segmenter.from_shape(shape)


def test_pyramid_and_heads_of_segmentation_have_the_full_rate():
    model = segmenter()
    groups = layer_decay_groups(model, depth=2, layer_decay=0.5, weight_decay=0.1)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = {"encoder.blocks.1": 0.5, "encoder.blocks.0": 0.25}.get(name[:16], 1 / 8)
        expected = expected if name.startswith("encoder.") else 1.0
        assert scales[id(parameter)] == expected, name


def test_relative_position_tables_are_not_decayed():
    model = segmenter()
    groups = layer_decay_groups(model, depth=2, layer_decay=0.5, weight_decay=0.1)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    tables = [p for name, p in model.named_parameters() if name.endswith("relative.table")]
    assert len(tables) == 2
    assert {decays[id(p)] for p in tables} == {0.0}
    assert decays[id(model.encoder.blocks[0].attn.qkv.weight)] == 0.1


@pytest.mark.parametrize("power", [1.0, 0.9, 2.0])
def test_the_polynomial_schedule_is_as_published(power):
    schedule = PolynomialSchedule(peak=1e-3, minimum=1e-5, warmup_steps=10, total_steps=110, power=power)
    assert schedule(0) == 1e-6
    assert schedule(5) == pytest.approx((1e-6 + 1e-3) / 2)
    assert schedule(10) == 1e-3
    assert schedule(60) == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5**power)
    assert schedule(110) == schedule(200) == 1e-5


def test_warm_up_does_not_start_above_a_small_peak():
    schedule = PolynomialSchedule(peak=1e-7, minimum=0.0, warmup_steps=10, total_steps=20)
    assert [schedule(step) for step in (0, 5, 10)] == [1e-7] * 3
