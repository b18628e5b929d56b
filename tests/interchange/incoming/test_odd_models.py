"""Foreign models of odd settings: the same features, or one line; never other features without a word."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._hub import save_for_hf

import openmae
from openmae.errors import RequestError
from openmae.inference.load import ClassifierModel, EncoderModel

from ..foreign import TOLERANCE, photograph, relative_error, saved, timm_vit, vit_classifier, vit_model, vitdet

IMAGES = photograph((64, 64))
SMALL = {"img_size": 64, "embed_dim": 128, "depth": 3, "num_heads": 2}


def timm_folder(folder: Path, name: str = "vit_tiny_patch16_224", **changes: Any) -> torch.nn.Module:
    theirs = timm_vit(name, **changes)
    save_for_hf(theirs, folder, model_args={**SMALL, **changes})
    return theirs


@pytest.mark.slow
@pytest.mark.parametrize("width", [1152, 1280, 1408, 1664])
def test_huge_encoders_have_sixteen_heads(width: int, tmp_path: Path) -> None:
    """The released ViT-Huge has heads 80 wide and no file that says so."""
    theirs = timm_vit(embed_dim=width, num_heads=16, depth=1, num_classes=0)
    path = saved(dict(theirs.state_dict()), tmp_path / "huge.safetensors")
    model = openmae.load(str(path), "cpu")
    assert model.encoder.shape.num_heads == 16
    with torch.no_grad():
        assert relative_error(model.encode(IMAGES), theirs.forward_features(IMAGES)) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"global_pool": "map"},
        {"global_pool": "max"},
        {"global_pool": "max", "fc_norm": False},
        {"global_pool": "avgmax", "fc_norm": False},
        {"global_pool": "token", "fc_norm": True},
        {"global_pool": "avg", "pool_include_prefix": True},
        {"global_pool": "map", "class_token": False},
    ],
    ids=str,
)
def test_a_head_that_pools_otherwise_is_left_and_the_encoder_is_theirs(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = timm_folder(tmp_path / "f", **changes)
    model = openmae.load(str(tmp_path / "f"), "cpu")
    assert type(model) is EncoderModel
    assert model.report is not None
    assert {"head.weight", "head.bias"} <= model.report.unused.keys()
    assert any("head is left" in remark for remark in model.report.remarks)
    with torch.no_grad():
        assert relative_error(model.encode(IMAGES), theirs.forward_features(IMAGES)) < TOLERANCE


def test_a_bare_file_says_what_was_taken_for_granted(tmp_path: Path) -> None:
    path = saved(dict(timm_vit().state_dict()), tmp_path / "vit.safetensors")
    model = openmae.load(str(path), "cpu")
    assert isinstance(model, ClassifierModel)
    assert model.report is not None
    said = " ".join(model.report.remarks)
    assert "taken to read the class token" in said
    assert "exact GELU" in said


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vit_tiny_patch16_224", {"act_layer": "quick_gelu"}, "act_layer quick_gelu"),
        ("vit_tiny_patch16_224", {"act_layer": "gelu_tanh"}, "act_layer gelu_tanh"),
        ("vit_base_patch16_rpn_224", {}, "ResPostBlock"),
        ("vit_base_patch16_rope_ape_224", {}, "is timm's vit_base_patch16_rope_ape_224"),
        ("vit_tiny_r_s16_p8_224", {}, "patch_embed.backbone"),
    ],
)
def test_timm_folders_that_compute_something_else(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    timm_folder(tmp_path / "f", name, **changes)
    with pytest.raises(RequestError, match=message):
        openmae.load(str(tmp_path / "f"))


def test_heads_and_eps_come_from_the_architecture(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1)
    save_for_hf(theirs, tmp_path / "f", model_args={"img_size": 64, "depth": 1})
    config = json.loads((tmp_path / "f" / "config.json").read_text())
    config["architecture"] = "vit_tiny_patch16_224"
    (tmp_path / "f" / "config.json").write_text(json.dumps(config))
    model = openmae.load(str(tmp_path / "f"), "cpu")
    assert model.encoder.shape.num_heads == 3
    assert model.report is not None
    assert any("3 heads (as it says)" in remark for remark in model.report.remarks)


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "vit_base_patch16_rope_ape_224"])
def test_timm_names_that_compute_something_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = timm_vit(name)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: theirs)
    with pytest.raises(RequestError, match=r"blocks of another kind|a plain Vision Transformer"):
        openmae.load(f"timm:{name}")


@pytest.mark.parametrize("name", ["hf-hub:a/b", "local-dir:/tmp", "../x", "", "a\x1b[31m"])
def test_timm_names_reach_no_other_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    with pytest.raises(RequestError, match="names no model of timm"):
        openmae.load(f"timm:{name}")


def without(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda state: state.__delitem__(name)


def beside(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda state: state.__setitem__(name, torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.1.attn.qkv.bias"), "lacks blocks.1.attn.q.bias, which others of its blocks have"),
        (beside("blocks.1.ls1.gamma", 128), "has encoder.blocks.1.ls1.gamma, which"),
        (beside("blocks.0.attn.q_bias", 128), "has encoder.blocks.0.attn.q.bias, which"),
        (beside("patch_embed.norm.weight", 128), "no place for"),
        (beside("blocks." + "1" * 5000 + ".norm1.weight", 128), "which does not fit its other blocks"),
    ],
    ids=["bias", "scale", "two biases", "patch norm", "number"],
)
def test_one_block_unlike_the_others(change: Callable[..., None], message: str, tmp_path: Path) -> None:
    state = dict(timm_vit(num_classes=0).state_dict())
    change(state)
    with pytest.raises(RequestError, match=message):
        openmae.load(str(saved(state, tmp_path / "odd.safetensors")))


def rewritten(folder: Path, **settings: Any) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return str(folder)


@pytest.mark.parametrize("value", ["4", 4.0, True, -4, float("nan"), [4]], ids=str)
def test_heads_that_are_no_number_are_not_guessed(value: Any, tmp_path: Path) -> None:
    vit_model().save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="num_attention_heads is"):
        openmae.load(rewritten(tmp_path, num_attention_heads=value))


@pytest.mark.parametrize("value", ["1e-6", -1, float("nan"), [1]], ids=str)
def test_an_eps_that_is_no_number_is_not_guessed(value: Any, tmp_path: Path) -> None:
    vit_model().save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="layer_norm_eps is"):
        openmae.load(rewritten(tmp_path, layer_norm_eps=value))


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 10**9},
        {"image_size": 5},
        {"window_size": 10**9},
        {"window_size": "4"},
        {"window_size": True},
        {"window_block_indices": ["x"]},
        {"window_block_indices": [10**9]},
    ],
    ids=str,
)
def test_hostile_windows(settings: dict[str, Any], tmp_path: Path) -> None:
    vitdet(use_relative_position_embeddings=False).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=r"patches and has 17 positions|no such blocks"):
        openmae.load(rewritten(tmp_path, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [float("nan")] * 3, "image_std": [1, 1, 1]},
        {"image_mean": [10**400] * 3, "image_std": [1, 1, 1]},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1e-320},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": "x"},
    ],
    ids=["nan", "huge", "tiny factor", "text"],
)
def test_hostile_image_settings(settings: dict[str, Any], tmp_path: Path) -> None:
    vit_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(RequestError, match="the checkpoint's"):
        openmae.load(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "mean", "high"),
    [
        ({"do_normalize": False}, 0.0, 255.0),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": False}, 0.5, 1.0),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": [1]}, 0.5, 255.0),
    ],
    ids=["no normalising", "no scaling", "no filter"],
)
def test_what_the_processor_leaves_out(settings: dict[str, Any], mean: float, high: float, tmp_path: Path) -> None:
    vit_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    p = openmae.load(str(tmp_path), "cpu").preprocessing
    assert (p.mean, p.value_range) == ((mean,) * 3, (0.0, high))


def test_a_config_outweighs_the_size_that_is_asked_for(tmp_path: Path) -> None:
    """--image-size 128 32 of a model of 64 x 64 px: resampled, not taken for its grid."""
    vit_model().save_pretrained(tmp_path)
    assert openmae.load(str(tmp_path), "cpu", image_size=(128, 32)).encoder.shape.image_size == (64, 64)


def test_no_terminal_commands_come_out_of_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from openmae.cli import run

    bad = "\x1b]0;x\x07\n"
    theirs = vit_classifier()
    theirs.save_pretrained(tmp_path / "labels")
    init = rewritten(tmp_path / "labels", id2label={str(i): f"{i}{bad}\ud800" for i in range(5)})
    state = {**timm_vit(num_classes=0).state_dict(), f"x{bad}": torch.zeros(1)}
    torch.save(state, tmp_path / "names.pth")
    torch.save({**state, f"blocks.0.{bad}": torch.zeros(1)}, tmp_path / "parts.pth")
    capsys.readouterr()  # transformers has drawn its progress bars
    for path, code in ((init, 0), (str(tmp_path / "names.pth"), 0), (str(tmp_path / "parts.pth"), 2)):
        assert run(["inspect", path]) == code
        assert run(["convert", path, f"{path}-out", "--to", "openmae"]) == code
    told = capsys.readouterr()
    strange = [line for line in (told.out + told.err).split("\n") if not line.isprintable()]
    assert not strange
    assert told.err.count("\n") == 2


@pytest.mark.parametrize("name", ["../x", "a/..", "./x", "a/-b"])
def test_push_names_are_seen_to_before_anything_is_written(name: str) -> None:
    with pytest.raises(RequestError, match="--push got"):
        openmae.config.ConvertConfig(init="a", out="b", to="timm", push=name)
