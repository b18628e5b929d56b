"""Parameter groups, AdamW's step and the learning rate, each against its definition."""

import math

import pytest
import torch
from torch import nn

from openmae.model.mae import MAE
from openmae.training.optim import CosineSchedule, adamw, set_rate, weight_decay_groups


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
    set_rate(optimizer, rate)
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
    set_rate(fused, 1e-2)
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
    set_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
