"""The reference's layout, name by name: the manifest here is written out by hand, not taken from the code."""

import pytest
import torch

from openmae.config import SIZES, DecoderShape, MAEShape, Preprocessing, ViTShape
from openmae.errors import RequestError
from openmae.interchange.outgoing.to_reference import to_reference
from openmae.interchange.stored import StoredModel
from openmae.model.mae import MAE

from ..outgoing_models import (
    make_classifier,
    make_encoder,
    make_mae,
    make_preprocessing,
    out_of,
    photo_images,
    relative_error,
    save_run,
)


def block(width: int) -> dict[str, tuple[int, ...]]:
    return {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }


def encoder_manifest(width: int, depth: int, patch: int, count: int) -> dict[str, tuple[int, ...]]:
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + count, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **{f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block(width).items()},
        "norm.weight": (width,),
        "norm.bias": (width,),
    }


def decoder_manifest(width: int, patch: int, count: int) -> dict[str, tuple[int, ...]]:
    """8 blocks of width 512."""
    return {
        "decoder_embed.weight": (512, width),
        "decoder_embed.bias": (512,),
        "mask_token": (1, 1, 512),
        "decoder_pos_embed": (1, 1 + count, 512),
        **{f"decoder_blocks.{i}.{name}": shape for i in range(8) for name, shape in block(512).items()},
        "decoder_norm.weight": (512,),
        "decoder_norm.bias": (512,),
        "decoder_pred.weight": (patch * patch * 3, 512),
        "decoder_pred.bias": (patch * patch * 3,),
    }


PAPER = {"base": (768, 12, 16, 196), "large": (1024, 24, 16, 196), "huge": (1280, 32, 14, 256)}
# Trained and fixed values in all: docs/paper.md gives 111,655,680 + 252,160 for Base.
TOTALS = {"base": 111_907_840}


@pytest.mark.parametrize("size", PAPER)
def test_names_and_shapes_of_the_papers_sizes(tmp_path, size):
    width, depth, patch, count = PAPER[size]
    assert SIZES[size] == (width, depth, {"base": 12, "large": 16, "huge": 16}[size], patch)
    encoder = ViTShape(
        image_size=(224, 224), patch_size=patch, channels=3, width=width, depth=depth, num_heads=SIZES[size][2]
    )
    shape = MAEShape(encoder=encoder, decoder=DecoderShape(width=512, depth=8, num_heads=16))
    with torch.device("meta"):
        weights = MAE.from_shape(shape).state_dict()
    preprocessing: Preprocessing = make_preprocessing(encoder)
    found = to_reference(StoredModel(tmp_path, weights, shape, preprocessing, {})).weights
    expected = encoder_manifest(width, depth, patch, count) | decoder_manifest(width, patch, count)
    assert {name: tuple(value.shape) for name, value in found.items()} == expected
    if size in TOTALS:
        assert sum(value.numel() for value in found.values()) == TOTALS[size]


def read(path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True)
    beside = {"model", "num_heads", "image_size", "decoder_num_heads", "norm_pix_loss"}  # numbers, read by --init
    assert content.keys() <= beside
    return content["model"]


def test_the_file_holds_the_same_values(tmp_path):
    mae, shape = make_mae()
    weights = read(out_of(save_run(tmp_path / "init", mae, shape), "reference", "out.pth"))
    assert weights.keys() == (
        {name.removeprefix("encoder.") for name in mae.state_dict() if name.startswith("encoder.")}
        | {
            "decoder_" + name.removeprefix("decoder.").replace("predict.", "pred.")
            for name in mae.state_dict()
            if name.startswith("decoder.") and name != "decoder.mask_token"
        }
        | {"mask_token"}
    )
    assert torch.equal(weights["blocks.1.attn.qkv.weight"], mae.encoder.blocks[1].attn.qkv.weight)
    assert torch.equal(weights["decoder_blocks.0.mlp.fc2.bias"], mae.decoder.blocks[0].mlp.fc2.bias)
    assert torch.equal(weights["decoder_pred.weight"], mae.decoder.predict.weight)
    assert torch.equal(weights["mask_token"], mae.decoder.mask_token)
    assert torch.equal(weights["decoder_pos_embed"], mae.decoder.pos_embed)


# Measured: 1.3e-6 at most.
@pytest.mark.parametrize(("pool", "norm", "other"), [("mean", "fc_norm", "norm"), ("cls", "norm", "fc_norm")])
@torch.no_grad()
def test_a_fine_tuned_one_is_a_timm_model(tmp_path, pool, norm, other):
    import timm

    classifier, shape = make_classifier(pool)
    weights = read(out_of(save_run(tmp_path / "init", classifier, shape), "reference", "out.pth"))
    assert f"{norm}.weight" in weights
    assert f"{other}.weight" not in weights
    theirs = timm.models.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        num_classes=5,
        global_pool={"mean": "avg", "cls": "token"}[pool],
    ).eval()
    theirs.load_state_dict(weights)
    images = photo_images(shape.encoder)
    assert relative_error(theirs(images), classifier(images)) < 1e-5


def test_the_encoder_alone(tmp_path):
    mae, shape = make_mae(mask_tokens_in_encoder=True)
    init = save_run(tmp_path / "init", mae, shape)
    with pytest.raises(RequestError, match="--part encoder leaves both out"):
        out_of(init, "reference", "out.pth")
    weights = read(out_of(init, "reference", "out.pth", part="encoder"))
    encoder = encoder_manifest(48, 2, 8, 16)
    assert {name: tuple(value.shape) for name, value in weights.items()} == encoder


def test_a_probe_is_refused(tmp_path):
    with pytest.raises(RequestError, match="this is a probe: --to timm holds it"):
        out_of(save_run(tmp_path / "init", *make_classifier("cls", "probe")), "reference", "out.pth")


def test_another_grid(tmp_path):
    mae, shape = make_mae(make_encoder(image_size=(32, 64)))
    weights = read(out_of(save_run(tmp_path / "init", mae, shape), "reference", "out.pth"))
    assert weights["pos_embed"].shape == (1, 33, 48)
