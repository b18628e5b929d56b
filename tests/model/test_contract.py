"""What every size and every option promises: finite, trained whole, counted right, initialised as the paper says."""

import dataclasses
import math

import pytest
import timm
import torch
from torch import Tensor, nn

from openmae.config import SIZES, DecoderShape, MAEShape, ViTShape, num_kept
from openmae.errors import RequestError
from openmae.model import cost
from openmae.model.mae import MAE
from openmae.model.masking import Masking, block_masking, given_masking, grid_masking, noise_per_image, random_masking
from openmae.model.patches import gather, patchify, unpatchify
from openmae.model.positions import sincos_positions
from openmae.model.targets import NormPixelTarget, PixelTarget

PAPER_DECODER = DecoderShape(width=512, depth=8, num_heads=16)


def shape_of_size(size: str, image_size: int = 224, depth: int | None = None) -> MAEShape:
    width, own_depth, num_heads, patch = SIZES[size]
    encoder = ViTShape(
        image_size=(image_size, image_size),
        patch_size=patch,
        channels=3,
        width=width,
        depth=depth or own_depth,
        num_heads=num_heads,
    )
    return MAEShape(encoder=encoder, decoder=PAPER_DECODER)


def masking_of(kind: str, batch: int, grid: tuple[int, int], seed: int = 0) -> Masking:
    count = noise_per_image(kind, grid)
    noise = torch.rand(batch, count, generator=torch.Generator().manual_seed(seed))
    if kind == "random":
        return random_masking(noise, 0.75)
    if kind == "block":
        return block_masking(noise, grid, 0.5)
    if kind == "grid":
        return grid_masking(batch, grid)
    return given_masking((torch.arange(grid[0] * grid[1]) % 3 != 0).expand(batch, -1))


def check_that_all_of_it_trains(shape: MAEShape, kind: str = "random") -> None:
    torch.manual_seed(0)
    mae, encoder = MAE.from_shape(shape), shape.encoder
    images = torch.randn(2, encoder.channels, *encoder.image_size)
    masking = masking_of(kind, 2, encoder.grid)
    output = mae(images, masking)
    assert output.prediction.shape == (2, masking.num_masked, encoder.patch_dim)
    assert output.patch_losses.shape == (2, masking.num_masked)
    assert mae.predict_all(images, masking).shape == (2, encoder.num_patches, encoder.patch_dim)
    assert output.loss.isfinite()
    assert output.loss == output.patch_losses.mean()

    output.loss.backward()
    for name, value in mae.named_parameters():
        if value.requires_grad:
            assert value.grad is not None, name
            assert value.grad.isfinite().all(), name
            assert value.grad.any(), name
        else:
            assert name in ("encoder.pos_embed", "decoder.pos_embed")
    trainable = sum(p.numel() for p in mae.parameters() if p.requires_grad)
    assert trainable == cost.num_parameters(shape)
    assert sum(p.numel() for p in mae.parameters()) - trainable == cost.num_positions(shape)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_every_size_trains(size: str):
    """Four patches are enough. From Base on two blocks are, too: whole, Huge alone takes ten gigabytes."""
    check_that_all_of_it_trains(shape_of_size(size, 2 * SIZES[size][3], depth=None if SIZES[size][0] < 768 else 2))


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "norm-pixel"},
        {"mask_tokens_in_encoder": True},
        {"mask_tokens_in_encoder": True, "target": "norm-pixel", "decoder_depth": 1},
        {"channels": 1},
        {"channels": 5},
        {"image_size": (12, 20)},
        {"decoder_depth": 1},
        {"depth": 1, "decoder_depth": 1, "channels": 1, "patch_size": 2, "image_size": (2, 8)},
    ],
    ids=str,
)
def test_every_option_trains(tiny_shape, changes: dict):
    check_that_all_of_it_trains(tiny_shape(**changes))


@pytest.mark.parametrize("in_encoder", [False, True])
@pytest.mark.parametrize("kind", ["random", "block", "grid", "given"])
def test_every_mask_trains(tiny_shape, kind: str, in_encoder: bool):
    check_that_all_of_it_trains(tiny_shape(image_size=(20, 28), mask_tokens_in_encoder=in_encoder), kind)


def test_a_flat_patch_has_a_finite_normalised_loss(tiny_shape):
    mae = MAE.from_shape(tiny_shape(target="norm-pixel"))
    output = mae(torch.full((2, 3, 16, 16), 0.3), masking_of("random", 2, (4, 4)))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in mae.parameters() if p.requires_grad)


def test_autocast_scores_in_float32(tiny_shape):
    torch.manual_seed(0)
    for in_encoder in (False, True):
        mae = MAE.from_shape(tiny_shape(mask_tokens_in_encoder=in_encoder))
        images, masking = torch.randn(2, 3, 16, 16), masking_of("random", 2, (4, 4))
        with torch.autocast("cpu", torch.bfloat16):
            output = mae(images, masking)
        assert output.prediction.dtype == torch.bfloat16
        assert output.patch_losses.dtype == output.loss.dtype == torch.float32
        torch.testing.assert_close(output.loss, mae(images, masking).loss, rtol=2e-2, atol=0)  # bf16 has 8 bits


# --- counting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_counted(size: str):
    shape = shape_of_size(size)
    with torch.device("meta"):
        mae = MAE.from_shape(shape)
    trainable = sum(p.numel() for p in mae.parameters() if p.requires_grad)
    assert trainable == cost.num_parameters(shape)
    assert sum(p.numel() for p in mae.parameters()) == trainable + cost.num_positions(shape)


def test_base_has_the_known_number_of_parameters():
    shape = shape_of_size("base")
    assert cost.num_parameters(shape) == 111_655_680
    assert cost.num_positions(shape) == 252_160


def test_the_encoder_has_the_names_and_shapes_of_timm():
    with torch.device("meta"):
        ours = MAE.from_shape(shape_of_size("base")).encoder
        theirs = timm.create_model("vit_base_patch16_224", num_classes=0)
    expected = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in ours.state_dict().items()} == expected


def flops(shape: MAEShape) -> int:
    return cost.training_flops(shape, num_kept(shape.encoder.num_patches, 0.75))


@pytest.mark.parametrize(("size", "giga"), [("base", 57.99), ("large", 123.65), ("huge", 290.29)])
def test_work_equals_the_table(size: str, giga: float):
    assert flops(shape_of_size(size)) == pytest.approx(giga * 1e9, abs=0.005e9)


# The table counts these as they are usually written, with every patch projected and predicted: slightly more.
@pytest.mark.parametrize(("size", "giga"), [("base", 137.7), ("large", 401.8), ("huge", 1046.9)])
def test_work_with_mask_tokens_in_the_encoder(size: str, giga: float):
    shape = dataclasses.replace(shape_of_size(size), mask_tokens_in_encoder=True)
    assert flops(shape) == pytest.approx(giga * 1e9, rel=5e-3)


def test_work_equals_what_torch_counts(tiny_shape):
    """To the last operation, but for what the last decoder block saves, which `training_flops` leaves in."""
    from torch.utils.flop_counter import FlopCounterMode

    shape = tiny_shape(image_size=(32, 32), depth=3, decoder_depth=2)
    mae, masking = MAE.from_shape(shape), masking_of("random", 1, (8, 8))
    images = torch.randn(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        mae(images, masking).loss.backward()
    width, visible, tokens = shape.decoder.width, 17, 65
    # The last block's queries, scores, weighted sum, projection and MLP of the tokens that need not come out.
    saved = 3 * visible * (2 * width**2 * (1 + 1 + 8) + 4 * tokens * width)
    assert counter.get_total_flops() == flops(shape) - saved


# --- initial weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_encoder", [False, True])
def test_init_sets_every_value(tiny_shape, in_encoder: bool):
    mae = MAE.from_shape(tiny_shape(mask_tokens_in_encoder=in_encoder, image_size=(12, 20)))
    with torch.no_grad():
        for value in [*mae.parameters(), *mae.buffers()]:
            value.fill_(math.nan)
    mae.init_weights()
    assert all(value.isfinite().all() for value in [*mae.parameters(), *mae.buffers()])


@pytest.fixture(scope="module")
def fresh() -> MAE:
    """Large enough for its statistics to be sharp, its memory NaN before its last initialisation."""
    encoder = ViTShape(image_size=(64, 96), patch_size=16, channels=3, width=384, depth=2, num_heads=6)
    shape = MAEShape(encoder=encoder, decoder=DecoderShape(width=256, depth=2, num_heads=8))
    mae = MAE.from_shape(shape)
    torch.manual_seed(0)
    with torch.no_grad():
        for value in mae.parameters():
            value.fill_(math.nan)
    mae.init_weights()
    return mae


def check_uniform(values: Tensor, bound: float) -> None:
    """Uniform in ±bound: never beyond, nearly reached, with the mean, deviation and halves of a uniform."""
    values, count = values.detach(), values.numel()
    assert values.abs().max() <= bound
    assert values.abs().max() > bound * (1 - 12 / count)
    assert abs(values.mean()) < 5 * bound / math.sqrt(3 * count)
    assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=3 / math.sqrt(count))
    assert float((values.abs() < bound / 2).float().mean()) == pytest.approx(0.5, abs=3 / math.sqrt(count))


def check_normal(values: Tensor, std: float) -> None:
    values, count = values.detach(), values.numel()
    assert abs(values.mean()) < 4 * std / math.sqrt(count)
    assert float(values.std()) == pytest.approx(std, rel=3 / math.sqrt(count))
    assert values.abs().max() > 2 * std  # not cut off


def test_init_of_linear_layers(fresh: MAE):
    """Xavier uniform, the fused qkv as one matrix: its bound is √(6 / 4D), not √(6 / 2D)."""
    linears = {name: module for name, module in fresh.named_modules() if isinstance(module, nn.Linear)}
    assert len(linears) == 4 * 4 + 2
    for module in linears.values():
        outputs, inputs = module.weight.shape
        check_uniform(module.weight, math.sqrt(6 / (inputs + outputs)))
        assert not module.bias.any()
    assert linears["encoder.blocks.0.attn.qkv"].weight.shape == (3 * 384, 384)


def test_init_of_the_patch_projection(fresh: MAE):
    projection = fresh.encoder.patch_embed.proj
    values = 3 * 16 * 16
    check_uniform(projection.weight, math.sqrt(6 / (values + 384)))
    check_uniform(projection.bias, 1 / math.sqrt(values))


def test_init_of_layer_norms(fresh: MAE):
    norms = [module for module in fresh.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * 2 + 1 + 2 * 2 + 1
    for norm in norms:
        assert norm.eps == 1e-6
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


def test_init_of_tokens(fresh: MAE):
    check_normal(fresh.encoder.cls_token, 0.02)
    check_normal(fresh.decoder.mask_token, 0.02)
    torch.manual_seed(1)
    shape = MAEShape(encoder=fresh.encoder.shape, decoder=fresh.decoder.shape, mask_tokens_in_encoder=True)
    with_token = MAE.from_shape(shape)
    assert with_token.decoder.mask_token is None
    check_normal(with_token.encoder_mask_token, 0.02)


def test_init_of_positions(fresh: MAE):
    """Positions left at zero by an init pass would train, and badly: no patch would know where it is."""
    for part, width in ((fresh.encoder, 384), (fresh.decoder, 256)):
        assert not part.pos_embed.requires_grad
        assert torch.equal(part.pos_embed, sincos_positions((4, 6), width))
        assert not part.pos_embed[:, 0].any()
        assert (part.pos_embed[:, 1:].square().sum(-1) - width / 2).abs().max() < 1e-3  # sin² + cos² for each pair


def test_blocks_differ_and_seeds_repeat(tiny_shape):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(MAE.from_shape(tiny_shape()).state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])
        if name.endswith(("qkv.weight", "cls_token", "mask_token", "patch_embed.proj.bias")):
            assert not torch.equal(value, states[2][name])
    first, second = (states[0][f"encoder.blocks.{i}.attn.qkv.weight"] for i in (0, 1))
    assert not torch.equal(first, second)


# --- who sees and who scores what --------------------------------------------------------------------------------


def masked_pixels(masking: Masking, shape: ViTShape) -> Tensor:
    """(B, C, H, W), true where a pixel's patch is hidden."""
    of_patches = masking.is_masked[..., None].expand(-1, -1, shape.patch_dim)
    return unpatchify(of_patches, shape.grid, shape.patch_size)


@pytest.mark.parametrize("in_encoder", [False, True])
@pytest.mark.parametrize("kind", ["random", "block", "grid", "given"])
def test_the_encoder_sees_exactly_the_visible_pixels(tiny_shape, kind: str, in_encoder: bool):
    shape = tiny_shape(mask_tokens_in_encoder=in_encoder)
    mae, masking = MAE.from_shape(shape), masking_of(kind, 2, (4, 4))
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    latent = mae.encode(images, masking)
    assert latent.shape == (2, 1 + (16 if in_encoder else masking.num_visible), 24)
    (latent * torch.randn_like(latent)).sum().backward()
    assert torch.equal(images.grad != 0, ~masked_pixels(masking, shape.encoder))


@pytest.mark.parametrize("target_class", [PixelTarget, NormPixelTarget])
def test_exactly_the_masked_pixels_are_scored(tiny_shape, target_class):
    shape, masking = tiny_shape().encoder, masking_of("random", 2, (4, 4))
    target = target_class(tiny_shape())
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    prediction = torch.randn(2, masking.num_masked, shape.patch_dim, requires_grad=True)
    losses = target(prediction, images, masking)
    losses.sum().backward()
    assert torch.equal(images.grad != 0, masked_pixels(masking, shape))
    assert (prediction.grad != 0).all()

    # Each loss is its own patch's, in the order of masked_ids.
    patches = gather(patchify(images, 4), masking.masked_ids)
    for sample in range(2):
        for place in range(masking.num_masked):
            truth = patches[sample, place]
            if target_class is NormPixelTarget:
                truth = (truth - truth.mean()) / torch.sqrt(truth.var(correction=1) + 1e-6)
            expected = ((prediction[sample, place] - truth) ** 2).sum() / shape.patch_dim
            torch.testing.assert_close(losses[sample, place], expected)


def test_a_perfect_prediction_scores_zero(tiny_shape):
    masking = masking_of("random", 2, (4, 4))
    images = torch.randn(2, 3, 16, 16)
    for target in (PixelTarget(tiny_shape()), NormPixelTarget(tiny_shape())):
        assert not target(target.truth(images, masking), images, masking).any()


def test_samples_do_not_mix(tiny_shape):
    """Each image of a batch gives what it gives alone."""
    mae = MAE.from_shape(tiny_shape())
    images, masking = torch.randn(3, 3, 16, 16), masking_of("random", 3, (4, 4))
    together = mae(images, masking).prediction
    for i in range(3):
        alone = mae(images[i : i + 1], Masking(masking.keep_ids[i : i + 1], masking.masked_ids[i : i + 1]))
        torch.testing.assert_close(alone.prediction[0], together[i])


def test_the_order_of_patches_changes_nothing(tiny_shape):
    """Attention does not care: visible and masked patches may stand in any order, as long as positions go along."""
    mae = MAE.from_shape(tiny_shape()).double()
    images, masking = torch.randn(2, 3, 16, 16, dtype=torch.float64), masking_of("random", 2, (4, 4))
    shuffled = Masking(masking.keep_ids.flip(1), masking.masked_ids.roll(3, 1))
    torch.testing.assert_close(mae(images, shuffled).loss, mae(images, masking).loss)
    torch.testing.assert_close(mae(images, shuffled).prediction, mae(images, masking).prediction.roll(3, 1))
    torch.testing.assert_close(mae.predict_all(images, shuffled), mae.predict_all(images, masking))


def test_encoding_whole_images_equals_keeping_all_patches(tiny_shape):
    encoder = MAE.from_shape(tiny_shape()).encoder
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(encoder(images), encoder(images, torch.arange(16).expand(2, -1)))


# --- wrong requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": (15, 16)}, ["4 px", "15x16", "--image-size 16 16", "--patch-size"]),
        ({"image_size": (3, 16)}, ["3x16", "4 px", "--image-size"]),
        ({"num_heads": 5}, ["--num-heads got 5", "width of 24"]),
        ({"width": 30, "num_heads": 3}, ["--width got 30", "4 divides"]),
        ({"decoder_num_heads": 3}, ["--decoder-num-heads got 3", "width of 16"]),
        ({"decoder_width": 18}, ["--decoder-width got 18", "4 divides"]),
        ({"depth": 0}, ["--depth got 0", "at least 1"]),
        ({"channels": 0}, ["--channels got 0"]),
        ({"decoder_depth": 0}, ["--decoder-depth got 0"]),
        ({"target": "norm_pixel"}, ["--target", "did you mean 'norm-pixel'"]),
    ],
    ids=str,
)
def test_a_shape_that_cannot_be_is_refused(tiny_shape, changes: dict, words: list[str]):
    with pytest.raises(RequestError) as caught:
        tiny_shape(**changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(("count", "ratio", "words"), [(4, 0.8, "no patch visible"), (100, 0.0, "no patch masked")])
def test_a_ratio_that_leaves_nothing_is_refused(count: int, ratio: float, words: str):
    with pytest.raises(RequestError, match=f"{words}.*--mask-ratio") as caught:
        num_kept(count, ratio)
    assert f"{ratio:g} on {count} patches" in str(caught.value)
    with pytest.raises(RequestError, match=words):
        random_masking(torch.rand(2, count), ratio)


def test_masks_that_leave_nothing_are_refused():
    for value, words in ((True, "no patch visible"), (False, "no patch masked")):
        with pytest.raises(ValueError, match=words):
            given_masking(torch.full((2, 9), value))
    with pytest.raises(ValueError, match="no patch masked"):
        grid_masking(2, (1, 1))
    uneven = torch.tensor([[True, False, False], [True, True, False]])
    with pytest.raises(ValueError, match=r"same number of patches, got \[1, 2\]"):
        given_masking(uneven)


def test_an_image_that_patches_do_not_fill_is_refused(tiny_shape):
    mae, masking = MAE.from_shape(tiny_shape()), masking_of("random", 2, (4, 4))
    with pytest.raises(RequestError, match="16x18"):
        mae(torch.randn(2, 3, 16, 18), masking)
    with pytest.raises(ValueError, match="do not fill a grid of 2x3"):
        unpatchify(torch.randn(1, 5, 12), (2, 3), 2)


def test_wrong_shapes_are_caught_in_tests(tiny_shape):
    """The import hook of conftest.py is in force: signatures that say shapes are held to them."""
    from jaxtyping import TypeCheckError

    with pytest.raises(TypeCheckError):
        patchify(torch.zeros(3, 8, 8), 4)
    with pytest.raises(TypeCheckError):
        Masking(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 3, dtype=torch.int64))
