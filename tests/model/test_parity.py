"""The same weights, images and noise give what an independent program gives, and what a plain one gives.

Errors are relative to the largest value of the tensor that is compared, and gradients are compared by name. So an
attention's key bias, whose true gradient is zero (a softmax does not see what is added to all its scores), is
judged against the whole qkv bias; alone, it would be rounding divided by rounding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from openmae.config import MAEShape
from openmae.model import masking as masks
from openmae.model import targets
from openmae.model.mae import MAE
from openmae.model.masking import Masking
from openmae.model.patches import gather
from openmae.model.positions import sincos_positions

from .plain_mae import plain_mae

# An encoder whose heads, width and depth are not its decoder's, so that nothing can be mistaken for anything.
SHAPE = {"image_size": (64, 64), "patch_size": 8, "width": 96, "depth": 3, "num_heads": 3}
SHAPE |= {"decoder_width": 64, "decoder_depth": 2, "decoder_num_heads": 4}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}


@dataclass
class Result:
    """Attributes:
    loss: a scalar.
    prediction: (B, masked, values), in the order of `masked_ids`.
    gradients: of every trainable parameter, under the name that openmae gives it.
    """

    loss: Tensor
    prediction: Tensor
    gradients: dict[str, Tensor]


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


def forward_error(got: Result, expected: Result) -> float:
    return max(relative_error(got.loss, expected.loss), relative_error(got.prediction, expected.prediction))


def gradient_error(got: Result, expected: Result) -> float:
    assert got.gradients.keys() == expected.gradients.keys()
    return max(relative_error(got.gradients[name], expected.gradients[name]) for name in expected.gradients)


def visible_weights(model: nn.Module, seed: int = 0) -> None:
    """Draw weights that leave no mistake unseen: no zero bias, no LayerNorm at its start, no soft attention."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                if "norm" in name:
                    value.copy_(noise * 0.1 + (1 if name.endswith("weight") else 0))
                else:
                    value.copy_(noise * 0.08)


def some_images(batch: int, channels: int, size: tuple[int, int], patch: int, seed: int = 1) -> Tensor:
    """Noise whose contrast differs from patch to patch, down to 1e-3: there the 1e-6 of a normalised target counts."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    exponents = -3 * torch.rand(batch, 1, height // patch, width // patch, generator=generator, dtype=torch.float64)
    contrast = (10**exponents).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    noise = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    return noise * contrast


def uniform(*shape: int, seed: int = 2) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run_ours(mae: MAE, images: Tensor, masking: Masking) -> Result:
    mae.zero_grad()
    output = mae(images, masking)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in mae.named_parameters() if p.requires_grad}
    return Result(output.loss.detach(), output.prediction.detach(), gradients)


# --- transformers ------------------------------------------------------------------------------------------------


def plain_positions(rows: int, columns: int, width: int) -> Tensor:
    """The sin-cos table, one value at a time: (1, 1 + rows · columns, width), float64."""
    quarter = width // 4
    table = [[0.0] * width]
    for row in range(rows):
        for column in range(columns):
            omegas = [10000 ** (-i / quarter) for i in range(quarter)]
            by_column = [math.sin(column * w) for w in omegas] + [math.cos(column * w) for w in omegas]
            by_row = [math.sin(row * w) for w in omegas] + [math.cos(row * w) for w in omegas]
            table.append(by_column + by_row)
    return torch.tensor(table, dtype=torch.float64)[None]


def their_names(shape: MAEShape) -> dict[str, list[str]]:
    """Our parameter → theirs; three of theirs make one of our qkv."""
    names = {
        "encoder.cls_token": ["vit.embeddings.cls_token"],
        "encoder.pos_embed": ["vit.embeddings.position_embeddings"],
        "decoder.mask_token": ["decoder.mask_token"],
        "decoder.pos_embed": ["decoder.decoder_pos_embed"],
    }
    modules = {
        "encoder.patch_embed.proj": ["vit.embeddings.patch_embeddings.projection"],
        "encoder.norm": ["vit.layernorm"],
        "decoder.embed": ["decoder.decoder_embed"],
        "decoder.norm": ["decoder.decoder_norm"],
        "decoder.predict": ["decoder.decoder_pred"],
    }
    stacks = (
        ("encoder", "vit.layers", shape.encoder.depth),
        ("decoder", "decoder.decoder_layers", shape.decoder.depth),
    )
    for part, layers, depth in stacks:
        for i in range(depth):
            ours, theirs = f"{part}.blocks.{i}", f"{layers}.{i}"
            modules[f"{ours}.norm1"] = [f"{theirs}.layernorm_before"]
            modules[f"{ours}.norm2"] = [f"{theirs}.layernorm_after"]
            modules[f"{ours}.attn.qkv"] = [f"{theirs}.attention.{x}_proj" for x in "qkv"]
            modules[f"{ours}.attn.proj"] = [f"{theirs}.attention.o_proj"]
            modules[f"{ours}.mlp.fc1"] = [f"{theirs}.mlp.fc1"]
            modules[f"{ours}.mlp.fc2"] = [f"{theirs}.mlp.fc2"]
    for kind in ("weight", "bias"):
        names |= {f"{ours}.{kind}": [f"{name}.{kind}" for name in theirs] for ours, theirs in modules.items()}
    return names


def transformers_twin(mae: MAE, shape: MAEShape, activation: str = "gelu") -> ViTMAEForPreTraining:
    """Their program with our weights, but with position tables that are made here: theirs start as zeros."""
    encoder, decoder = shape.encoder, shape.decoder
    config = ViTMAEConfig(
        image_size=encoder.image_size[0],
        patch_size=encoder.patch_size,
        num_channels=encoder.channels,
        hidden_size=encoder.width,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.num_heads,
        intermediate_size=4 * encoder.width,
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.num_heads,
        decoder_intermediate_size=4 * decoder.width,
        mask_ratio=0.75,
        norm_pix_loss=shape.target == "norm-pixel",
        layer_norm_eps=1e-6,
        hidden_act=activation,
        attn_implementation="sdpa",  # their eager attention takes its softmax in float32, whatever it is given
    )
    theirs = ViTMAEForPreTraining(config).to(next(mae.parameters()).dtype)
    parameters, names = dict(theirs.named_parameters()), their_names(shape)
    assert set(parameters) == {name for group in names.values() for name in group}
    with torch.no_grad():
        for ours, group in names.items():
            for name, value in zip(group, mae.get_parameter(ours).chunk(len(group)), strict=True):
                parameters[name].copy_(value)
        for name, width in (("encoder.pos_embed", encoder.width), ("decoder.pos_embed", decoder.width)):
            parameters[names[name][0]].copy_(plain_positions(*encoder.grid, width).float())
    return theirs


def run_transformers(theirs: ViTMAEForPreTraining, shape: MAEShape, images: Tensor, noise: Tensor) -> Result:
    theirs.zero_grad()
    output = theirs(images, noise=noise)
    output.loss.backward()
    order = noise.argsort(dim=1)
    prediction = gather(output.logits.detach(), order[:, order.shape[1] // 4 :])
    parameters = dict(theirs.named_parameters())
    gradients = {
        ours: torch.cat([parameters[name].grad for name in group])
        for ours, group in their_names(shape).items()
        if not ours.endswith("pos_embed")
    }
    return Result(output.loss.detach(), prediction, gradients)


@dataclass
class Pair:
    """Our program and theirs, with everything that they are to be given."""

    ours: MAE
    theirs: ViTMAEForPreTraining
    shape: MAEShape
    images: Tensor
    noise: Tensor

    def results(self) -> tuple[Result, Result]:
        masking = masks.random_masking(self.noise, 0.75)
        theirs = run_transformers(self.theirs, self.shape, self.images, self.noise)
        return run_ours(self.ours, self.images, masking), theirs


@pytest.fixture(scope="module")
def make_pair(tiny_shape: Callable[..., MAEShape]) -> Callable[..., Pair]:
    def make(target: str = "norm-pixel", dtype: torch.dtype = torch.float64, activation: str = "gelu") -> Pair:
        shape = tiny_shape(**SHAPE, target=target)
        ours = MAE.from_shape(shape).to(dtype)
        visible_weights(ours)
        theirs = transformers_twin(ours, shape, activation)
        return Pair(ours, theirs, shape, some_images(2, 3, (64, 64), 8).to(dtype), uniform(2, 64))

    return make


# Measured, the worse target, loss and predictions / gradients: float64 1.2e-15 / 9.9e-16, float32 5.4e-7 / 7.5e-7.
@pytest.mark.parametrize("target", ["pixel", "norm-pixel"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_transformers(make_pair, target: str, dtype: torch.dtype):
    ours, theirs = make_pair(target, dtype).results()
    assert forward_error(ours, theirs) < TOLERANCE[dtype]
    assert gradient_error(ours, theirs) < TOLERANCE[dtype]


def attentions(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith("attn")]


def layer_norms(model: nn.Module) -> list[nn.LayerNorm]:
    return [module for module in model.modules() if isinstance(module, nn.LayerNorm)]


@torch.no_grad()
def swap_queries_and_keys(mae: MAE) -> None:
    for attention in attentions(mae):
        for value in (attention.qkv.weight, attention.qkv.bias):
            q, k, v = value.chunk(3)
            value.copy_(torch.cat([k, q, v]))


def change_heads(part: str) -> Callable[[MAE], None]:
    def change(mae: MAE) -> None:
        for attention in attentions(mae.get_submodule(part)):
            attention.num_heads *= 2

    return change


def change_eps(part: str) -> Callable[[MAE], None]:
    def change(mae: MAE) -> None:
        for norm in layer_norms(mae.get_submodule(part)):
            norm.eps = 1e-5

    return change


@torch.no_grad()
def transpose_positions(part: str, mae: MAE) -> None:
    positions = mae.get_parameter(f"{part}.pos_embed")
    positions.copy_(torch.cat(positions.chunk(2, dim=-1)[::-1], dim=-1))


@torch.no_grad()
def transpose_pixels(mae: MAE) -> None:
    kernel = mae.encoder.patch_embed.proj.weight
    kernel.copy_(kernel.transpose(2, 3).clone())


@torch.no_grad()
def drop_class_position(mae: MAE) -> None:
    mae.encoder.pos_embed[:, 0] = mae.encoder.pos_embed[:, 1]


MISTAKES: dict[str, Callable[[MAE], None]] = {
    "queries and keys swapped": swap_queries_and_keys,
    "encoder heads": change_heads("encoder"),
    "decoder heads": change_heads("decoder"),
    "encoder eps": change_eps("encoder"),
    "decoder eps": change_eps("decoder"),
    "encoder positions transposed": lambda mae: transpose_positions("encoder", mae),
    "decoder positions transposed": lambda mae: transpose_positions("decoder", mae),
    "pixels transposed": transpose_pixels,
    "class token with a position": drop_class_position,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_model_shows(make_pair, mistake: str):
    """The comparison above means something only if it fails for a wrong program, and in what comes out, not just in
    gradients. Measured: 1.1e-5 for an eps of 1e-5, which only float64 is sure to see; 1.9e-2 and more for the rest."""
    pair = make_pair()
    MISTAKES[mistake](pair.ours)
    ours, theirs = pair.results()
    tolerance = TOLERANCE[torch.float64 if mistake.endswith("eps") else torch.float32]
    assert forward_error(ours, theirs) > 100 * tolerance


def test_another_gelu_shows(make_pair):
    """Measured: 2.0e-4 for the tanh approximation."""
    ours, theirs = make_pair(activation="gelu_pytorch_tanh").results()
    assert forward_error(ours, theirs) > 10 * TOLERANCE[torch.float32]


def test_another_target_shows(make_pair, monkeypatch: pytest.MonkeyPatch):
    """A biased variance (3.4e-3), and an epsilon beside the deviation instead of in the variance (5.1e-2)."""
    pair = make_pair("norm-pixel")
    _, theirs = pair.results()
    masking = masks.random_masking(pair.noise, 0.75)

    def biased(patches: Tensor) -> tuple[Tensor, Tensor]:
        return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()

    def beside(patches: Tensor) -> tuple[Tensor, Tensor]:
        return patches.mean(-1, keepdim=True), patches.std(-1, keepdim=True) + 1e-6

    for wrong in (biased, beside):
        monkeypatch.setattr(targets, "patch_statistics", wrong)
        loss = run_ours(pair.ours, pair.images, masking).loss
        assert relative_error(loss, theirs.loss) > 100 * TOLERANCE[torch.float32]


def test_keeping_the_other_patches_shows(make_pair):
    pair = make_pair()
    _, theirs = pair.results()
    wrong = run_ours(pair.ours, pair.images, masks.random_masking(1 - pair.noise, 0.75))
    assert relative_error(wrong.loss, theirs.loss) > 100 * TOLERANCE[torch.float32]


# --- positions ---------------------------------------------------------------------------------------------------


# Measured: 3.0e-8, half a unit of float32's last place below 1.
@pytest.mark.parametrize(("grid", "width"), [((14, 14), 768), ((16, 16), 512), ((3, 7), 24), ((9, 2), 8), ((1, 5), 4)])
def test_positions_equal_a_plain_table(grid: tuple[int, int], width: int):
    table = sincos_positions(grid, width)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table.double(), plain_positions(*grid, width), rtol=0, atol=6e-8)
    if grid[0] != grid[1]:
        transposed = plain_positions(*grid[::-1], width)
        assert (table.double() - transposed).abs().max() > 0.1


# --- the plain program -------------------------------------------------------------------------------------------


def masking_of(kind: str, batch: int, grid: tuple[int, int]) -> Masking:
    noise = uniform(batch, masks.noise_per_image(kind, grid))
    if kind == "random":
        return masks.random_masking(noise, 0.75)
    if kind == "block":
        return masks.block_masking(noise, grid, 0.5)
    if kind == "grid":
        return masks.grid_masking(batch, grid)
    is_masked = torch.arange(grid[0] * grid[1]) % 5 < 2
    return masks.given_masking(torch.stack([is_masked.roll(i) for i in range(batch)]))


def run_plain(mae: MAE, images: Tensor, masking: Masking, normalise: bool) -> tuple[Result, Tensor, Tensor]:
    """Its result, its prediction of every patch, and its losses of the masked ones."""
    mae.zero_grad()
    output = plain_mae(mae, images, masking.shuffled_ids, masking.num_visible, normalise=normalise)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in mae.named_parameters() if p.requires_grad}
    everything = output.prediction.detach()
    losses = gather(output.patch_losses.detach()[..., None], masking.masked_ids)[..., 0]
    return Result(output.loss.detach(), gather(everything, masking.masked_ids), gradients), everything, losses


SQUARE, WIDE, LARGER = (64, 64), (48, 80), (96, 72)
# Mask, image size, image size that the model was made for, mask tokens in the encoder.
CASES = [
    ("random", SQUARE, SQUARE, False),
    ("block", SQUARE, SQUARE, False),
    ("grid", SQUARE, SQUARE, False),
    ("given", (40, 40), (40, 40), False),
    ("random", WIDE, WIDE, False),
    ("random", LARGER, SQUARE, False),
    ("block", WIDE, LARGER, False),
    ("random", SQUARE, SQUARE, True),
    ("random", LARGER, WIDE, True),
]


# Measured, the worst case, loss and predictions / gradients: float64 1.4e-15 / 2.0e-15, float32 7.4e-7 / 7.1e-7.
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("kind", "size", "own_size", "in_encoder"), CASES)
def test_cheap_forms_equal_the_plain_ones(tiny_shape, kind, size, own_size, in_encoder, dtype):
    """Gathered pixels, shuffled decoder tokens, a last block for masked tokens only, masked-only loss."""
    target = "pixel" if kind in ("block", "grid") else "norm-pixel"
    changes = SHAPE | {"image_size": own_size, "target": target, "mask_tokens_in_encoder": in_encoder}
    mae = MAE.from_shape(tiny_shape(**changes)).to(dtype)
    visible_weights(mae)
    images = some_images(2, 3, size, 8).to(dtype)
    masking = masking_of(kind, 2, (size[0] // 8, size[1] // 8))

    ours = run_ours(mae, images, masking)
    plain, everything, losses = run_plain(mae, images, masking, target == "norm-pixel")
    assert forward_error(ours, plain) < TOLERANCE[dtype]
    assert gradient_error(ours, plain) < TOLERANCE[dtype]
    with torch.no_grad():
        assert relative_error(mae.predict_all(images, masking), everything) < TOLERANCE[dtype]
        assert relative_error(mae(images, masking).patch_losses, losses) < TOLERANCE[dtype]


@pytest.mark.parametrize(("channels", "decoder_depth"), [(1, 1), (5, 1), (2, 3)])
def test_cheap_forms_equal_the_plain_ones_for_other_shapes(tiny_shape, channels: int, decoder_depth: int):
    mae = MAE.from_shape(tiny_shape(channels=channels, decoder_depth=decoder_depth, image_size=(12, 20))).double()
    visible_weights(mae)
    images = some_images(3, channels, (12, 20), 4)
    masking = masking_of("random", 3, (3, 5))
    plain, _, _ = run_plain(mae, images, masking, normalise=False)
    ours = run_ours(mae, images, masking)
    assert forward_error(ours, plain) < TOLERANCE[torch.float64]
    assert gradient_error(ours, plain) < TOLERANCE[torch.float64]
