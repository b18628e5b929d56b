"""What comes in computes what the foreign library's own model computes, on a photograph.

Every error is relative to the largest value. Measured in float32 on a CPU, by the models below: at most 1.3e-6 where
1e-5 is allowed; what a mistake would do is measured in `test_a_mistake_would_show`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import openmae
from openmae.errors import RequestError
from openmae.inference.load import ClassifierModel, EncoderModel, MAEModel
from openmae.interchange.incoming.conversion import Hints
from openmae.interchange.incoming.convert import convert_checkpoint
from openmae.interchange.incoming.files import read_raw_checkpoint
from openmae.interchange.report import group_blocks

from ..foreign import (
    TOLERANCE,
    beit_classifier,
    beit_pretrained,
    photograph,
    relative_error,
    renamed,
    saved,
    timm_vit,
    vit_classifier,
    vit_mae,
    vit_model,
    vitdet,
)

IMAGES = photograph((64, 64))


def encoded(init: Path | str, images: Tensor = IMAGES, **options: Any) -> Tensor:
    return openmae.load(str(init), "cpu", **options).encode(images)


def reference_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's flat names for the weights of transformers' ViTMAE: written out apart from the reader."""
    result: dict[str, Tensor] = {}
    stacks = {"vit.layers": ("blocks", 3), "decoder.decoder_layers": ("decoder_blocks", 2)}
    for theirs, (ours, depth) in stacks.items():
        for i in range(depth):
            for kind in ("weight", "bias"):
                parts = [state[f"{theirs}.{i}.attention.{p}_proj.{kind}"] for p in "qkv"]
                result[f"{ours}.{i}.attn.qkv.{kind}"] = torch.cat(parts)
                result[f"{ours}.{i}.attn.proj.{kind}"] = state[f"{theirs}.{i}.attention.o_proj.{kind}"]
                result[f"{ours}.{i}.norm1.{kind}"] = state[f"{theirs}.{i}.layernorm_before.{kind}"]
                result[f"{ours}.{i}.norm2.{kind}"] = state[f"{theirs}.{i}.layernorm_after.{kind}"]
                for layer in ("fc1", "fc2"):
                    result[f"{ours}.{i}.mlp.{layer}.{kind}"] = state[f"{theirs}.{i}.mlp.{layer}.{kind}"]
    result["cls_token"] = state["vit.embeddings.cls_token"]
    result["pos_embed"] = state["vit.embeddings.position_embeddings"]
    for kind in ("weight", "bias"):
        result[f"patch_embed.proj.{kind}"] = state[f"vit.embeddings.patch_embeddings.projection.{kind}"]
        result[f"norm.{kind}"] = state[f"vit.layernorm.{kind}"]
        for name in ("embed", "norm", "pred"):
            result[f"decoder_{name}.{kind}"] = state[f"decoder.decoder_{name}.{kind}"]
    result["mask_token"] = state["decoder.mask_token"]
    result["decoder_pos_embed"] = state["decoder.decoder_pos_embed"]
    return result


@pytest.mark.parametrize("layout", ["folder", "old names", "new names"])
def test_transformers_vit_mae(layout: str, tmp_path: Path) -> None:
    theirs = vit_mae(norm_pix_loss=True)
    options: dict[str, Any] = {}
    if layout == "folder":
        theirs.save_pretrained(tmp_path)
        path = tmp_path
    else:
        from safetensors.torch import load_file

        theirs.save_pretrained(tmp_path / "saved")
        old = load_file(tmp_path / "saved" / "model.safetensors")
        state = old if layout == "old names" else dict(theirs.state_dict())
        path = saved(state, tmp_path / "bare.safetensors")
        options["num_heads"] = 4
    model = openmae.load(str(path), "cpu", **options)
    assert isinstance(model, MAEModel)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs.config.mask_ratio = 0.0
        expected = theirs.vit(IMAGES, noise=torch.arange(16.0).expand(2, 16)).last_hidden_state
        theirs.config.mask_ratio = 0.75
        output = theirs(IMAGES, noise=noise)
        from openmae.model.masking import random_masking

        ours = model.mae(IMAGES, random_masking(noise, 0.75))
    assert relative_error(model.encode(IMAGES), expected) < TOLERANCE
    assert relative_error(ours.loss, output.loss) < TOLERANCE
    assert model.report is not None
    assert not model.report.unused
    assert len(model.report.loaded) == len(model.mae.state_dict())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_reference_layout(prefix: str, tmp_path: Path) -> None:
    """Complete, with optimiser and arguments beside it, behind DataParallel's prefix, and the encoder alone."""
    import argparse

    theirs = vit_mae(layer_norm_eps=1e-6)
    state = renamed(reference_names(dict(theirs.state_dict())), lambda name: prefix + name)
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    arguments = argparse.Namespace(norm_pix_loss=False, model="mae_vit_tiny", lr=None)
    torch.save({"model": state, "optimizer": optimizer, "epoch": 799, "args": arguments}, tmp_path / "full.pth")
    with torch.no_grad():
        theirs.config.mask_ratio = 0.0
        expected = theirs.vit(IMAGES, noise=torch.arange(16.0).expand(2, 16)).last_hidden_state
    model = openmae.load(str(tmp_path / "full.pth"), "cpu", num_heads=4)
    assert isinstance(model, MAEModel)
    assert relative_error(model.encode(IMAGES), expected) < TOLERANCE
    assert model.description["shape"]["target"] == "pixel"
    alone = {name: value for name, value in state.items() if "decoder" not in name and "mask_token" not in name}
    torch.save({"model": alone}, tmp_path / "encoder.pth")
    encoder = openmae.load(str(tmp_path / "encoder.pth"), "cpu", num_heads=4)
    assert type(encoder) is EncoderModel
    assert torch.equal(encoder.encode(IMAGES), model.encode(IMAGES))


def test_transformers_vit(tmp_path: Path) -> None:
    theirs = vit_model()
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(IMAGES).last_hidden_state
    model = openmae.load(str(tmp_path), "cpu")
    assert relative_error(model.encode(IMAGES), expected) < TOLERANCE
    assert model.report is not None
    assert sorted(model.report.unused) == ["pooler.dense.bias", "pooler.dense.weight"]


def test_transformers_classifier(tmp_path: Path) -> None:
    theirs = vit_classifier()
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(IMAGES).logits.softmax(dim=1)
    model = openmae.load(str(tmp_path), "cpu")
    assert isinstance(model, ClassifierModel)
    assert model.classes == tuple(f"class {i}" for i in range(5))
    assert relative_error(model.classify(IMAGES), expected) < TOLERANCE


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (96, 64)])
def test_other_sizes_as_transformers_resamples(size: tuple[int, int], tmp_path: Path) -> None:
    """Bicubic, align_corners false, not antialiased: non-square and larger images alike."""
    theirs = vit_model()
    theirs.save_pretrained(tmp_path)
    images = photograph(size)
    with torch.no_grad():
        expected = theirs(images, interpolate_pos_encoding=True).last_hidden_state
    assert relative_error(encoded(tmp_path, images), expected) < TOLERANCE


def test_448_pixels_as_transformers_resamples(tmp_path: Path) -> None:
    theirs = vit_model(image_size=224, num_hidden_layers=1)
    theirs.save_pretrained(tmp_path)
    images = photograph((448, 448), batch=1)
    with torch.no_grad():
        expected = theirs(images, interpolate_pos_encoding=True).last_hidden_state
    assert relative_error(encoded(tmp_path, images), expected) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"global_pool": "avg"},
        {"init_values": 0.1},
        {"no_embed_class": True},
        {"qkv_bias": False},
        {"global_pool": "avg", "class_token": False},
    ],
    ids=str,
)
def test_timm_vit(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = timm_vit(**changes)
    with torch.no_grad():
        expected = theirs(IMAGES).softmax(dim=1)
        features = theirs.forward_features(IMAGES)
    path = saved(dict(theirs.state_dict()), tmp_path / "timm.safetensors")
    model = openmae.load(str(path), "cpu", image_size=(64, 64) if "no_embed_class" in changes else None)
    assert isinstance(model, ClassifierModel)
    assert relative_error(model.classify(IMAGES), expected) < TOLERANCE
    assert relative_error(model.encode(IMAGES), features) < TOLERANCE


def test_timm_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that are not width / 64 and norms after pooling come from timm's own model; no network is asked."""
    import timm

    theirs = timm_vit(num_heads=4, global_pool="avg", fc_norm=False)
    create = timm.create_model
    asked = []

    def fake(name: str, pretrained: bool = False, **options: Any) -> Any:
        asked.append((name, pretrained))
        return theirs if pretrained else create(name, **options)

    monkeypatch.setattr(timm, "create_model", fake)
    model = openmae.load("timm:vit_tiny_patch16_224", "cpu")
    with torch.no_grad():
        expected = theirs(IMAGES).softmax(dim=1)
    assert asked == [("vit_tiny_patch16_224", True)]
    assert model.encoder.shape.num_heads == 4
    assert isinstance(model, ClassifierModel)
    assert relative_error(model.classify(IMAGES), expected) < TOLERANCE


def test_timm_without_network_is_one_line() -> None:
    with pytest.raises(RequestError, match="timm:no_such_model cannot be had from timm"):
        openmae.load("timm:no_such_model")


@pytest.mark.parametrize("shared", [False, True], ids=["each block", "shared"])
def test_beit_of_timm(shared: bool, tmp_path: Path) -> None:
    """Relative biases, layer scale, keys without bias: as released and as timm keeps them."""
    theirs = timm_vit(
        "beit_base_patch16_224",
        init_values=0.1,
        use_rel_pos_bias=not shared,
        use_shared_rel_pos_bias=shared,
        num_heads=4,
    )
    path = saved(dict(theirs.state_dict()), tmp_path / "beit.safetensors")
    with torch.no_grad():
        expected = theirs(IMAGES).softmax(dim=1)
        tokens = theirs.forward_features(IMAGES)
    model = openmae.load(str(path), "cpu")
    assert isinstance(model, ClassifierModel)
    assert model.encoder.shape.relative_positions == "bias"
    assert model.encoder.shape.num_heads == 4
    assert relative_error(model.classify(IMAGES), expected) < TOLERANCE
    assert relative_error(model.encode(IMAGES), tokens) < TOLERANCE
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)


def test_beit_of_transformers(tmp_path: Path) -> None:
    theirs = beit_classifier()
    theirs.save_pretrained(tmp_path / "classifier")
    with torch.no_grad():
        expected = theirs(IMAGES).logits.softmax(dim=1)
    model = openmae.load(str(tmp_path / "classifier"), "cpu")
    assert isinstance(model, ClassifierModel)
    assert relative_error(model.classify(IMAGES), expected) < TOLERANCE
    pretrained = beit_pretrained()
    pretrained.save_pretrained(tmp_path / "pretrained")
    with torch.no_grad():
        tokens = pretrained.layernorm(pretrained.beit(IMAGES).last_hidden_state)
    encoder = openmae.load(str(tmp_path / "pretrained"), "cpu")
    assert relative_error(encoder.encode(IMAGES), tokens) < TOLERANCE
    assert encoder.report is not None
    assert sorted(encoder.report.unused) == ["beit.embeddings.mask_token", "lm_head.bias", "lm_head.weight"]


@pytest.mark.parametrize("relative", [True, False])
def test_vitdet(relative: bool, tmp_path: Path) -> None:
    """Windows (the last ones filled up), decomposed relative positions, positions of the size before."""
    theirs = vitdet(use_relative_position_embeddings=relative)
    theirs.save_pretrained(tmp_path)
    images = photograph((96, 96))
    with torch.no_grad():
        expected = theirs(images).last_hidden_state.flatten(2).transpose(1, 2)
    model = openmae.load(str(tmp_path), "cpu")
    assert model.encoder.shape.window_size == 4
    assert model.encoder.shape.global_blocks == (1,)
    assert relative_error(model.encode(images), expected) < TOLERANCE
    assert model.features(images, pool="mean").shape == (2, 128)
    with pytest.raises(RequestError, match="no class token"):
        model.features(images, pool="cls")


def test_vitdet_as_released(tmp_path: Path) -> None:
    """The flat names, behind `backbone.net.`, beside a pyramid; windows are found from the relative positions."""
    theirs = vitdet()
    pairs = (("embeddings.position_embeddings", "pos_embed"), ("embeddings.projection", "patch_embed.proj"))

    def flat(name: str) -> str:
        for old, new in (*pairs, ("encoder.layer", "blocks"), ("attention", "attn")):
            name = name.replace(old, new)
        return f"backbone.net.{name}"

    state = renamed(dict(theirs.state_dict()), flat)
    state["backbone.simfp_2.0.weight"] = torch.zeros(4, 4)
    torch.save({"model": state}, tmp_path / "model_final.pth")
    images = photograph((96, 96))
    with torch.no_grad():
        expected = theirs(images).last_hidden_state.flatten(2).transpose(1, 2)
    model = openmae.load(str(tmp_path / "model_final.pth"), "cpu")
    assert relative_error(model.encode(images), expected) < TOLERANCE
    assert model.report is not None
    assert list(model.report.unused) == ["backbone.simfp_2.0.weight"]


def test_moco_v3_has_twelve_heads_at_384(tmp_path: Path) -> None:
    """Its ViT-S has heads 32 wide; which of its two encoders is read is said."""
    theirs = timm_vit(embed_dim=384, num_heads=12, depth=1, num_classes=0)
    state = dict(theirs.state_dict())
    both = renamed(state, lambda name: f"module.base_encoder.{name}")
    both |= renamed({n: v * 0 for n, v in state.items()}, lambda name: f"module.momentum_encoder.{name}")
    both["module.base_encoder.head.0.weight"] = torch.zeros(4096, 384)
    both["module.predictor.0.weight"] = torch.zeros(4, 4)
    torch.save({"epoch": 300, "state_dict": both}, tmp_path / "moco.pth.tar")
    with torch.no_grad():
        expected = theirs.forward_features(IMAGES)
    model = openmae.load(str(tmp_path / "moco.pth.tar"), "cpu")
    assert model.encoder.shape.num_heads == 12
    assert relative_error(model.encode(IMAGES), expected) < TOLERANCE
    assert model.report is not None
    assert "MoCo v3" in model.report.kind
    assert any("base_encoder" in remark for remark in model.report.remarks)


def test_dino_reads_the_teacher(tmp_path: Path) -> None:
    theirs = timm_vit(num_classes=0)
    state = dict(theirs.state_dict())
    teacher = renamed(state, lambda name: f"backbone.{name}")
    teacher |= {"head.mlp.0.weight": torch.zeros(8, 128), "head.last_layer.weight_v": torch.zeros(8, 8)}
    student = renamed({n: v * 0 for n, v in state.items()}, lambda name: f"module.backbone.{name}")
    torch.save({"student": student, "teacher": teacher, "epoch": 100}, tmp_path / "dino.pth")
    with torch.no_grad():
        expected = theirs.forward_features(IMAGES)
    model = openmae.load(str(tmp_path / "dino.pth"), "cpu")
    assert relative_error(model.encode(IMAGES), expected) < TOLERANCE
    assert model.report is not None
    assert "DINO" in model.report.kind
    assert any("'teacher'" in remark for remark in model.report.remarks)


def swapped(state: dict[str, Tensor], first: str, second: str) -> dict[str, Tensor]:
    return {n.replace(first, "*").replace(second, first).replace("*", second): v for n, v in state.items()}


@pytest.mark.parametrize("mistake", ["q and k", "q and v", "heads", "tanh gelu", "eps"])
def test_a_mistake_would_show(mistake: str, tmp_path: Path) -> None:
    """Each mistake moves the features by more than the tolerance (measured: eps 1e-5 by 4e-5, the others by > 1e-3)."""
    theirs = vit_model()
    with torch.no_grad():
        expected = theirs(IMAGES).last_hidden_state
    state = dict(theirs.state_dict())
    if mistake in ("q and k", "q and v"):
        state = swapped(state, "q_proj", f"{mistake[-1]}_proj")
    path = saved(state, tmp_path / "vit.safetensors")
    model = openmae.load(str(path), "cpu", num_heads=8 if mistake == "heads" else 4)
    if mistake == "eps":
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 1e-5
    if mistake == "tanh gelu":
        for block in model.encoder.blocks:
            mlp = block.mlp
            mlp.forward = lambda x, m=mlp: m.fc2(torch.nn.functional.gelu(m.fc1(x), approximate="tanh"))
    assert relative_error(model.encode(IMAGES), expected) > TOLERANCE


@pytest.mark.parametrize(
    ("take", "message"),
    [
        ("norm.weight", "lacks the encoder's norm.weight"),
        ("blocks.1.attn.proj.weight", r"lacks encoder.blocks.1.attn.proj.weight \(128, 128\)"),
        ("pos_embed", "lacks pos_embed"),
        ("patch_embed.proj.bias", "lacks encoder.patch_embed.proj.bias"),
        ("patch_embed.proj.weight", "no Vision Transformer"),
        ("blocks.0.attn.qkv.weight", "lacks encoder.blocks.0.attn.qkv.weight"),
    ],
)
def test_a_missing_encoder_weight_is_named(take: str, message: str, tmp_path: Path) -> None:
    state = dict(timm_vit(num_classes=0).state_dict())
    del state[take]
    with pytest.raises(RequestError, match=message):
        openmae.load(str(saved(state, tmp_path / "broken.safetensors")))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blocks.0.attn.q_norm.weight", (64,), "no place for"),
        ("reg_token", (1, 4, 128), "no place for"),
        ("norm_pre.weight", (128,), "no place for"),
        ("blocks.0.mlp.fc1.weight", (256, 128), "openmae's ViT has"),
        ("blocks.7.norm1.weight", (128,), "4 blocks, the last numbered 7"),
        ("blocks.0.norm1.weight", (64,), "norm1.weight is"),
    ],
)
def test_what_would_compute_something_else_is_refused(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    state = {**timm_vit(num_classes=0).state_dict(), name: torch.zeros(shape)}
    with pytest.raises(RequestError, match=message):
        openmae.load(str(saved(state, tmp_path / "other.safetensors")))


def test_heads_come_from_the_config_or_are_asked_for(tmp_path: Path) -> None:
    state = dict(timm_vit(embed_dim=96, num_heads=3, num_classes=0).state_dict())
    path = saved(state, tmp_path / "odd.safetensors")
    with pytest.raises(RequestError, match="give --num-heads"):
        openmae.load(str(path))
    assert openmae.load(str(path), num_heads=3).encoder.shape.num_heads == 3
    theirs = vit_model()
    theirs.save_pretrained(tmp_path / "folder")
    with pytest.raises(RequestError, match=r"--num-heads got 2, but .* has 4"):
        openmae.load(str(tmp_path / "folder"), num_heads=2)


def test_half_precision_is_widened_and_said(tmp_path: Path) -> None:
    theirs = vit_model().bfloat16()
    theirs.save_pretrained(tmp_path)
    model = openmae.load(str(tmp_path), "cpu")
    assert model.encoder.norm.weight.dtype == torch.float32
    assert model.report is not None
    assert "bfloat16 converted to float32" in model.report.remarks


def test_other_activations_are_refused(tmp_path: Path) -> None:
    vit_model(hidden_act="gelu_pytorch_tanh").save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="gelu_pytorch_tanh"):
        openmae.load(str(tmp_path))


def test_the_report_counts_every_weight_once(tmp_path: Path) -> None:
    theirs = vit_classifier()
    theirs.save_pretrained(tmp_path)
    found = convert_checkpoint(read_raw_checkpoint(tmp_path), "here")
    assert found.report is not None
    lines = "\n".join(found.report.lines())
    assert "encoder.blocks.0-2.attn.qkv.weight (384, 128)" in group_blocks(found.report.loaded)
    assert "loaded 44 weights: encoder 42, head 2" in lines
    assert "unused: none; missing: none" in lines


def test_hints_are_of_the_file_not_of_the_config(tmp_path: Path) -> None:
    """A grid that is no square cannot be guessed from a bare file."""
    theirs = timm_vit(img_size=(64, 96), num_classes=0)
    path = saved(dict(theirs.state_dict()), tmp_path / "wide.safetensors")
    with pytest.raises(RequestError, match="--image-size"):
        openmae.load(str(path))
    found = convert_checkpoint(read_raw_checkpoint(path), "here", Hints(image_size=(64, 96)))
    assert found.encoder_shape.grid == (4, 6)
