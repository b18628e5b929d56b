"""The discrete VAE: shapes for any grid and stride, tokens, Gumbel noise, and codes that are kept in use."""

import math

import pytest
import torch

from openmae.config import TokenizerShape
from openmae.errors import RequestError
from openmae.model.tokenizer import MIN_USAGE, DiscreteVAE, gumbel_noise, perplexity, stride_factors


def shape_of(**changes):
    settings = {"patch_size": 8, "stride": 4, "channels": 3, "codebook": 12, "width": 16, "depth": 1}
    return TokenizerShape(**settings | changes)


def forward_of(model, images, temperature=0.5):
    rows, columns = images.shape[2] // model.shape.stride, images.shape[3] // model.shape.stride
    noise = gumbel_noise(list(range(len(images))), rows * columns, model.shape.codebook, images.device)
    return model(images, noise, temperature)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6, 7, 8])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3)])
def test_one_token_for_each_place_and_back(stride, grid):
    model = DiscreteVAE(shape_of(stride=stride, channels=2))
    images = torch.randn(2, 2, grid[0] * stride, grid[1] * stride)
    tokens = model.tokens(images)
    assert tokens.shape == (2, grid[0] * grid[1])
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, model.tokens(images))
    assert model.decode(tokens, grid).shape == images.shape
    assert forward_of(model, images).image_losses.shape == (2,)


@pytest.mark.parametrize(
    ("stride", "factors"), [(1, [1]), (2, [2]), (4, [2, 2]), (6, [2, 3]), (7, [7]), (12, [2, 2, 3])]
)
def test_a_stride_is_the_product_of_its_layers(stride, factors):
    assert stride_factors(stride) == factors


def test_every_parameter_is_initialised_and_gets_a_gradient():
    model = DiscreteVAE(shape_of())
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    torch.manual_seed(0)
    model.init_weights()
    for block in (module for module in model.modules() if type(module).__name__ == "ResidualBlock"):
        torch.nn.init.normal_(block.convolution_2.weight, std=0.02)  # from 0 its inputs would get no gradient
    output = forward_of(model, torch.randn(2, 3, 16, 16))
    (output.image_losses + output.balance_losses).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_it_is_its_plain_form():
    """What the forward computes, written out."""
    torch.manual_seed(0)
    model = DiscreteVAE(shape_of())
    with torch.no_grad():
        model.usage.uniform_(0.01, 0.2)
        model.usage[3] = 0  # counts as rare, and not as infinitely rare
    images, temperature = torch.randn(3, 3, 8, 12), 0.3
    noise = gumbel_noise([5, 6, 7], 6, 12, images.device)
    output = model(images, noise, temperature)
    for index in range(3):
        logits = model.to_logits(model.encoder(images[index][None]))[0].reshape(12, 6).T
        choice = torch.stack(
            [((row + n) / temperature).softmax(0) for row, n in zip(logits, noise[index], strict=True)]
        )
        codes = torch.stack([sum(p * code for p, code in zip(row, model.codebook, strict=True)) for row in choice])
        decoded = model.decoder(codes.T.reshape(1, 16, 2, 3))
        error = ((decoded[0] - images[index]) ** 2).mean()
        balance = torch.stack(
            [(row.softmax(0) * (model.usage * 12).clamp(min=MIN_USAGE).log()).sum() for row in logits]
        ).mean()
        torch.testing.assert_close(output.image_losses[index], error, atol=1e-5, rtol=1e-5)  # measured 5e-7
        torch.testing.assert_close(output.balance_losses[index], balance, atol=1e-5, rtol=1e-5)  # measured 1e-7


def test_the_noise_is_a_samples_own_and_gumbels():
    device = torch.device("cpu")
    noise = gumbel_noise([3, 2**64 - 1], 50, 400, device)
    assert torch.equal(gumbel_noise([2**64 - 1], 50, 400, device)[0], noise[1])
    assert not torch.equal(noise[0], noise[1])
    euler, count = 0.5772, noise.numel()
    assert noise.mean().item() == pytest.approx(euler, abs=5 * 1.283 / count**0.5)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.05)
    # With it the largest of the logits is drawn from their softmax.
    logits = torch.tensor([0.0, 1.0, 2.0])
    drawn = (logits + gumbel_noise(list(range(40)), 500, 3, device)).argmax(dim=-1)
    shares = drawn.flatten().bincount() / drawn.numel()
    torch.testing.assert_close(shares, logits.softmax(0), atol=0.015, rtol=0)  # 4 deviations of 20,000 draws


def test_the_balance_loss_pulls_towards_rare_codes():
    model = DiscreteVAE(shape_of())
    with torch.no_grad():
        model.usage.fill_(0.5 / 11)
        model.usage[0] = 0.5
    output = forward_of(model, torch.randn(4, 3, 16, 16))
    (gradient,) = torch.autograd.grad(output.balance_losses.sum(), model.to_logits.bias)
    assert gradient[0] > 0  # a step against it makes code 0 rarer
    assert (gradient[1:] < 0).all()


def test_usage_is_a_running_mean_and_leaves_out_skipped_steps():
    model, step = DiscreteVAE(shape_of(codebook=4)), torch.tensor([6.0, 2.0, 0.0, 0.0])
    model.record_usage(step, torch.tensor(0.0))
    torch.testing.assert_close(model.usage, 0.9 * torch.full((4,), 0.25) + 0.1 * torch.tensor([0.75, 0.25, 0, 0]))
    before = model.usage.clone()
    model.record_usage(torch.full((4,), math.nan), torch.tensor(1.0))
    assert torch.equal(model.usage, before)


def test_perplexity_counts_the_codes_in_use():
    assert perplexity(torch.tensor([[0, 1], [2, 3]]), 512) == pytest.approx(4)
    assert perplexity(torch.zeros(7, dtype=torch.int64), 512) == pytest.approx(1)
    assert perplexity(torch.tensor([0, 0, 0, 1]), 2) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )


def test_first_logits_stand_out_of_the_noise():
    torch.manual_seed(0)
    logits = DiscreteVAE(shape_of(codebook=256, width=64)).logits(torch.randn(8, 3, 32, 32))
    assert logits.std() > 1.283  # Gumbel noise's


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 12}, "--width got 12: the norms of a tokenizer need a width that 8 divides"),
        ({"codebook": 1}, "--codebook got 1: it must be at least 2"),
        ({"stride": 0}, "--stride got 0: it must be at least 1"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        DiscreteVAE(shape_of(**changes))
