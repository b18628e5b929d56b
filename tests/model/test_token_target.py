"""The token target (table 1d): its truth, its loss, what the tokenizer is given, and the way back to pixels."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from openmae.config import TokenizerShape
from openmae.errors import RequestError
from openmae.model import cost
from openmae.model.mae import MAE
from openmae.model.masking import Masking
from openmae.model.token_target import TokenTarget, full_precision
from openmae.model.tokenizer import DiscreteVAE
from openmae.model.tokenizer_cost import encoder_parameters, stored_parameters, tokens_flops
from openmae.training.optim import weight_decay_groups

SCALE, SHIFT = torch.tensor([0.5, 1.5, 0.8]), torch.tensor([0.1, -0.2, 0.3])
DALLE = TokenizerShape(kind="dalle", patch_size=None, stride=8, channels=3, codebook=8192, width=256, depth=2)


def tokenizer_shape(stride=4, **changes):
    settings = {"patch_size": 4, "stride": stride, "channels": 3, "codebook": 11, "width": 16, "depth": 1}
    return TokenizerShape(**{**settings, **changes})


def token_shape(tiny_shape, stride=4, **changes):
    return tiny_shape(target="token", tokenizer=tokenizer_shape(stride), **changes)


def tokenizer_of(shape, seed=0):
    torch.manual_seed(seed)
    return DiscreteVAE(shape).eval()


def with_tokenizer(target, seed=0):
    vae = tokenizer_of(target.shape, seed)
    target.set_tokenizer(vae, SCALE, SHIFT)
    return vae


def masking_of(batch, patches=16, hidden=12):
    order = torch.rand(batch, patches, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    return Masking(order[:, hidden:], order[:, :hidden])


def images_of(batch, side=16):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


class FakeDalle(torch.nn.Module):
    """Stands in for DALL-E's encoder: keeps its input, and gives each 8 x 8 pixels a token by their brightness."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = None

    def tokens(self, images):
        self.seen = images
        return (F.avg_pool2d(images.mean(1), 8).flatten(1) * 8000 * self.weight).long()


@pytest.mark.parametrize("mask_tokens", [False, True])
@pytest.mark.parametrize("stride", [4, 2])
def test_all_of_the_model_trains_and_nothing_of_the_tokenizer(tiny_shape, stride, mask_tokens):
    shape = token_shape(tiny_shape, stride, mask_tokens_in_encoder=mask_tokens)
    mae = MAE.from_shape(shape)
    with_tokenizer(mae.target)
    images, masking = images_of(3), masking_of(3)
    output = mae.train()(images, masking)
    assert output.prediction.shape == (3, 12, 11)
    assert output.patch_losses.shape == (3, 12)
    assert mae.predict_all(images, masking).shape == (3, 16, 11)
    output.loss.backward()
    frozen = {name for name, value in mae.named_parameters() if not value.requires_grad}
    assert {name for name in frozen if not name.startswith("target.")} == {"encoder.pos_embed", "decoder.pos_embed"}
    for name, value in mae.named_parameters():
        assert (value.grad is None) == (name in frozen), name
    trained = [p for group in weight_decay_groups(mae, 0.05) for p in group["params"]]
    assert sum(p.numel() for p in trained) == cost.num_parameters(shape)
    assert not list(mae.buffers())  # several processes would send them around before every step
    assert not mae.target.vae.training


@pytest.mark.parametrize("stride", [4, 2])
def test_the_loss_is_that_of_a_written_out_program(tiny_shape, stride):
    target = TokenTarget(token_shape(tiny_shape, stride))
    vae, images, masking = with_tokenizer(target), images_of(4), masking_of(4)
    prediction = torch.randn(4, 12, 11, generator=torch.Generator().manual_seed(2), requires_grad=True)
    losses = target(prediction, images, masking)
    side = 4 * stride
    for i in range(4):
        planes = [images[i, channel] * SCALE[channel] + SHIFT[channel] for channel in range(3)]
        seen = torch.stack(planes)[None]
        if stride != 4:
            seen = F.interpolate(seen, (side, side), mode="bicubic", antialias=True)
        logits = vae.to_logits(vae.encoder(seen))[0]  # (codes, rows, columns)
        for j, patch in enumerate(masking.masked_ids[i].tolist()):
            token = int(logits[:, patch // 4, patch % 4].argmax())
            expected = prediction[i, j].exp().sum().log() - prediction[i, j, token]
            torch.testing.assert_close(losses[i, j], expected)
    assert len(target.tokens(images).unique()) > 1
    losses.mean().backward()
    assert (prediction.grad != 0).all()


def test_autocast_does_not_touch_the_tokens(tiny_shape):
    """In bf16 some would be others: the control computes them so."""
    target = TokenTarget(token_shape(tiny_shape))
    vae, images = with_tokenizer(target), images_of(64)
    tokens = target.tokens(images)
    with torch.autocast("cpu", torch.bfloat16):
        again, rounded = target.tokens(images), vae.tokens(target.to_input(images))
        losses = target(torch.randn(64, 12, 11).bfloat16(), images, masking_of(64))
    assert torch.equal(again, tokens)
    assert not torch.equal(rounded, tokens)
    assert losses.dtype == torch.float32


def test_tokens_are_given_in_parts(tiny_shape):
    """So memory does not grow with the batch; the tokens are those of the whole."""
    target, counts = TokenTarget(token_shape(tiny_shape)), []
    vae, images = with_tokenizer(target), images_of(70)
    target.vae.encoder.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
    assert torch.equal(target.tokens(images), vae.tokens(target.to_input(images)))
    assert counts == [32, 32, 6]


@pytest.mark.parametrize("value", [True, False])
def test_what_else_is_set_for_convolutions_stays_so(value, monkeypatch):
    cudnn = torch.backends.cudnn
    for name in ("benchmark", "deterministic", "enabled"):
        monkeypatch.setattr(cudnn, name, value)
    with full_precision():
        assert (cudnn.benchmark, cudnn.deterministic, cudnn.enabled, cudnn.allow_tf32) == (value,) * 3 + (False,)
    assert (cudnn.benchmark, cudnn.deterministic, cudnn.enabled, cudnn.allow_tf32) == (value,) * 3 + (True,)


def test_any_grid_has_a_token_for_each_patch(tiny_shape):
    target = TokenTarget(token_shape(tiny_shape, 2))
    with_tokenizer(target)
    images = torch.randn(2, 3, 8, 20)
    assert target.to_input(images).shape == (2, 3, 4, 10)
    assert target.tokens(images).shape == (2, 2 * 5)


@pytest.mark.parametrize("stride", [4, 2])
def test_decoded_patches_are_the_models_pixels(tiny_shape, stride):
    target = TokenTarget(token_shape(tiny_shape, stride))
    vae, images = with_tokenizer(target), images_of(2)
    tokens = target.tokens(images)
    patches = target.decode(tokens, (4, 4))
    decoded = (vae.decode(tokens, (4, 4)) - SHIFT[:, None, None]) / SCALE[:, None, None]
    if stride != 4:
        decoded = F.interpolate(decoded, (16, 16), mode="bicubic", antialias=True)
    for patch in range(16):
        row, column = 4 * (patch // 4), 4 * (patch % 4)
        expected = decoded[:, :, row : row + 4, column : column + 4].permute(0, 2, 3, 1).flatten(1)
        torch.testing.assert_close(patches[:, patch], expected)


def test_a_new_model_draws_no_numbers_for_its_tokenizer(tiny_shape):
    """So a run's weights begin as those of another target do; and what was not set is NaN, not noise."""
    torch.manual_seed(0)
    target = TokenTarget(token_shape(tiny_shape))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    assert all(value.isnan().all() for value in target.state_dict().values())


def test_dalle_is_outside_of_the_checkpoint_and_is_given_clamped_pixels(tiny_shape):
    shape = tiny_shape(target="token", tokenizer=DALLE)
    target, encoder = MAE.from_shape(shape).target, FakeDalle()
    names = set(target.state_dict())
    # The model's input is twice the pixels of 0 to 1, less one.
    target.set_tokenizer(encoder, torch.full((3,), 0.4), torch.full((3,), 0.5))
    assert set(target.state_dict()) == names == {"input_scale", "input_shift"}
    assert "weight" not in " ".join(name for name, _ in target.named_parameters())
    pixels = torch.rand(2, 3, 16, 16)
    pixels[:, :, 4:12, 4:12] = torch.tensor([0.0, 1.0])[torch.randint(2, (2, 3, 8, 8))]  # bicubic overshoots
    tokens = target.tokens(2 * pixels - 1)
    expected = (F.interpolate(0.8 * pixels + 0.1, (32, 32), mode="bicubic", antialias=True)).clamp(0.1, 0.9)
    torch.testing.assert_close(encoder.seen, expected)
    assert F.interpolate(pixels, (32, 32), mode="bicubic", antialias=True).max() > 1
    assert tokens.shape == (2, 16)
    assert not encoder.weight.requires_grad
    target.to(torch.float64)
    assert encoder.weight.dtype == torch.float64  # it goes where the model goes
    assert target.why_no_pictures is not None


def test_a_shape_without_a_tokenizer_or_one_that_does_not_fit_is_refused(tiny_shape):
    with pytest.raises(RequestError, match=r"belongs to --target token.*: give both or neither"):
        tiny_shape(target="token")
    with pytest.raises(RequestError, match=r"belongs to --target token.*: give both or neither"):
        tiny_shape(tokenizer=tokenizer_shape())
    for changes in ({"patch_size": 8}, {"channels": 1}):
        with pytest.raises(RequestError, match=r"does not fit patches of 4 px with 3 channels.*; give another"):
            tiny_shape(target="token", tokenizer=tokenizer_shape(**changes))


def test_shapes_of_other_targets_are_stored_as_before(tiny_shape):
    assert "tokenizer" not in tiny_shape().to_dict()
    shape = token_shape(tiny_shape)
    assert type(shape).from_dict(shape.to_dict()) == shape
    assert shape.target_name == "tokens of a codebook of 11"


@pytest.mark.parametrize(("patch", "stride"), [(4, 4), (8, 4), (12, 6), (7, 7), (2, 1)])
def test_the_cost_is_that_which_torch_counts(patch, stride):
    shape = tokenizer_shape(stride, patch_size=patch, width=32, depth=2)
    vae = DiscreteVAE(shape)
    with FlopCounterMode(display=False) as counter:
        vae.tokens(torch.randn(1, 3, 3 * stride, 5 * stride))
    assert counter.get_total_flops() == tokens_flops(shape, (3, 5))
    encoder = sum(p.numel() for part in (vae.encoder, vae.to_logits) for p in part.parameters())
    assert encoder == pytest.approx(encoder_parameters(shape), rel=0.01)
    assert sum(p.numel() for p in vae.parameters()) == pytest.approx(stored_parameters(shape), rel=0.02)


def test_dalles_cost_is_the_published_one():
    assert encoder_parameters(DALLE) == pytest.approx(53.8e6, rel=1e-3)
    assert tokens_flops(DALLE, (14, 14)) == pytest.approx(2 * 26.1e9, rel=2e-3)
    assert stored_parameters(DALLE) == stored_parameters(None) == 0


def test_weights_of_another_tokenizer_are_refused(tiny_shape):
    target = TokenTarget(token_shape(tiny_shape))
    other = tokenizer_of(replace(target.shape, codebook=12))
    with pytest.raises(RuntimeError, match="codebook"):
        target.set_tokenizer(other, SCALE, SHIFT)
