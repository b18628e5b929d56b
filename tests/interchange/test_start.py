"""Foreign weights in the commands: fine-tuned, probed, embedded, pre-trained further, or refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import openmae
from openmae import EmbedConfig, FinetuneConfig, KnnConfig, PretrainConfig, ProbeConfig
from openmae.cli import run
from openmae.config import ViTShape
from openmae.data.augment import Augmentation
from openmae.data.loader import Stream, training_loader
from openmae.data.preprocess import normalise
from openmae.data.readers import iterate_batches
from openmae.data.sources.open import open_source
from openmae.errors import RequestError
from openmae.inference.load import ClassifierModel
from openmae.interchange.init import read_init
from openmae.interchange.load_weights import load_encoder
from openmae.interchange.resize import fit_encoder
from openmae.model.relative_positions import resample_bias_table
from openmae.model.vit import ViT

from .foreign import TOLERANCE, beit_classifier, photograph, relative_error, saved, timm_vit, vit_mae, vitdet


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Twenty images of noise of 48 pixels for each of two classes, half of them to test on."""
    root, chance = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in ("train", "test"):
        for label, tint in (("dark", 0), ("light", 128)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(10):
                pixels = chance.integers(tint, tint + 128, (48, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return {"data": str(root), "device": "cpu", "workers": 0}


@pytest.fixture
def beit(tmp_path: Path) -> str:
    beit_classifier(num_hidden_layers=2).save_pretrained(tmp_path / "beit")
    return str(tmp_path / "beit")


@pytest.fixture
def encoder_only(tmp_path: Path) -> str:
    return str(saved(dict(timm_vit(num_classes=0, depth=2).state_dict()), tmp_path / "vit.safetensors"))


@pytest.mark.slow
def test_beit_is_fine_tuned_at_another_size_and_goes_on(beit: str, settings: Any, tmp_path: Path, capsys: Any) -> None:
    """Relative positions, layer scale and the eps of the norms stay through training, checkpoint and resuming."""
    common = {**settings, "init": beit, "image_size": 32, "batch_size": 4, "held_out": 4, "blocks": 1.0}
    whole = FinetuneConfig(**common, out=str(tmp_path / "whole"), steps=2, save_every=1)
    openmae.finetune(whole)
    said = capsys.readouterr().out
    assert "transformers BEiT encoder with a classifier of 5 classes" in said
    assert "resized encoder.blocks.0.attn.relative.table: (52, 4) -> (12, 4)" in said
    model = openmae.load(str(tmp_path / "whole"))
    shape = model.encoder.shape
    assert (shape.relative_positions, shape.layer_scale, shape.positions, shape.norm_eps) == (
        "bias",
        True,
        "none",
        1e-12,
    )
    openmae.finetune(FinetuneConfig(**common, out=str(tmp_path / "halves"), steps=1, save_every=1))
    openmae.finetune(FinetuneConfig(**common, out=str(tmp_path / "halves"), steps=2, save_every=1, resume="auto"))
    assert (tmp_path / "halves" / "model.safetensors").stat().st_size > 0
    again = openmae.load(str(tmp_path / "halves"))
    assert again.encoder.shape == shape


def test_frozen_foreign_encoders_are_measured(encoder_only: str, settings: Any, tmp_path: Path, capsys: Any) -> None:
    common = {**settings, "init": encoder_only, "image_size": 32}
    found = openmae.knn(KnnConfig(**common, out=str(tmp_path / "knn"), k=(3,)))
    assert 0 <= found["top1"] <= 100
    assert "timm Vision Transformer, safetensors" in capsys.readouterr().out
    probed = openmae.probe(ProbeConfig(**common, out=str(tmp_path / "probe"), steps=2, base_lr=(0.1,)))
    assert 0 <= probed["top1"] <= 100
    assert "resized encoder.pos_embed: (1, 17, 128) -> (1, 5, 128)" in capsys.readouterr().out


def test_vitdet_is_embedded(settings: Any, tmp_path: Path) -> None:
    vitdet().save_pretrained(tmp_path / "vitdet")
    out = tmp_path / "features.npz"
    openmae.embed(EmbedConfig(**settings, init=str(tmp_path / "vitdet"), out=str(out), split="test"))
    assert np.load(out)["features"].shape[1] == 128


def test_vitdet_is_probed_with_all_its_patches(settings: Any, tmp_path: Path) -> None:
    """It has no class token, so none of its tokens is left out of the mean that the heads are trained on."""
    vitdet().save_pretrained(tmp_path / "vitdet")
    out, chosen = tmp_path / "run", {"batch_size": 8, "steps": 1, "base_lr": (0.1,), "image_size": 64}
    openmae.probe(ProbeConfig(**settings, **chosen, init=str(tmp_path / "vitdet"), out=str(out), augment="crop"))
    model = openmae.load(str(out))
    assert isinstance(model, ClassifierModel)
    source = open_source(settings["data"], "train")
    assert source is not None
    stream = Stream(
        source, model.preprocessing, Augmentation(kind="crop", crop_scale=(0.08, 1.0)), 0, 16, with_labels=True
    )
    whole: dict[str, Any] = {"share": range(8), "micro_batch_size": 8, "workers": 0, "pin_memory": False}
    (batch,) = iterate_batches(training_loader(stream, steps=range(1), batch_size=8, **whole))
    features = model.features(normalise(batch.images, model.preprocessing), pool="mean")
    torch.testing.assert_close(model.classifier.fc_norm.running_mean, 0.1 * features.mean(0))


def test_pretraining_goes_on_with_a_fresh_decoder(
    encoder_only: str, settings: Any, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "run"
    openmae.pretrain(PretrainConfig(**settings, init=encoder_only, out=str(out), steps=1, batch_size=4, held_out=4))
    said = capsys.readouterr().out
    assert f"decoder: fresh, for {encoder_only} is an encoder alone" in said
    theirs, ours = read_init(encoder_only, verbose=False), read_init(str(out), verbose=False)
    # Positions are learned in timm's models: taken over, and frozen as pre-training freezes them.
    assert torch.equal(theirs.encoder_weights["pos_embed"], ours.encoder_weights["pos_embed"])


def test_pretraining_goes_on_with_a_foreign_decoder(settings: Any, tmp_path: Path, capsys: Any) -> None:
    vit_mae(norm_pix_loss=True).save_pretrained(tmp_path / "mae")
    common: dict[str, Any] = {**settings, "batch_size": 4, "held_out": 4, "base_lr": 0.0, "weight_decay": 0.0}
    out = tmp_path / "run"
    openmae.pretrain(PretrainConfig(**common, init=str(tmp_path / "mae"), out=str(out), steps=1))
    assert "decoder: fresh" not in capsys.readouterr().out
    before, after = read_init(str(tmp_path / "mae"), verbose=False), read_init(str(out), verbose=False)
    assert before.weights.keys() == after.weights.keys()
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in before.weights)


@pytest.mark.parametrize("command", ["reconstruct", "pretrain"])
def test_what_needs_more_than_the_encoder_is_refused(
    command: str, beit: str, encoder_only: str, tmp_path: Path, capsys: Any
) -> None:
    if command == "reconstruct":
        arguments = f"reconstruct embedded:photos --init {encoder_only} --out {tmp_path}/new.png"
        message = "is an encoder only: reconstruction needs the decoder"
    else:
        arguments = f"pretrain embedded:digits --init {beit} --out {tmp_path}/new --steps 1"
        message = "masked pre-training takes an encoder with a class token"
    assert run(arguments.split()) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]
    assert not list(tmp_path.glob("new*"))


def test_a_patch_of_14_as_timm_resamples_it(tmp_path: Path) -> None:
    """Patch projection by pseudo-inverse and positions, 64 px of patch 16 to 56 px of patch 14: the grid stays."""
    theirs = timm_vit(num_classes=0)
    path = saved(dict(theirs.state_dict()), tmp_path / "vit.safetensors")
    init = read_init(str(path), verbose=False)
    smaller = timm_vit(num_classes=0, img_size=56, patch_size=14)
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(dict(theirs.state_dict()), smaller)
    smaller.load_state_dict(filtered)
    ours = ViT(init.encoder_shape.resized((56, 56), 14)).eval()
    lines = load_encoder(ours, init)
    assert any("patch_embed.proj.weight: (128, 3, 16, 16) -> (128, 3, 14, 14)" in line for line in lines)
    images = photograph((56, 56))
    with torch.no_grad():
        assert relative_error(ours(images), smaller.forward_features(images)) < TOLERANCE


def test_resampled_biases_keep_their_corners_and_the_class_token() -> None:
    """A table that rises linearly with the offset does so at every size: bicubic resampling is exact on lines."""
    rows = torch.linspace(-1, 1, 7)[:, None].expand(7, 7).reshape(-1, 1)
    table = torch.cat([rows, torch.tensor([[5.0], [6.0], [7.0]])])
    larger = resample_bias_table(table, (4, 4), (6, 6))
    assert larger.shape == (11 * 11 + 3, 1)
    expected = torch.linspace(-1, 1, 11)[:, None].expand(11, 11).reshape(-1, 1)
    # Bicubic repeats the edge beyond it: exact inside, near the edge within 0.032 of a range of 2.
    assert (larger[:-3] - expected).abs().max() < 0.04
    assert torch.equal(larger[-3:], table[-3:])


def test_windows_of_another_size_are_refused() -> None:
    common: dict[str, Any] = {"patch_size": 16, "channels": 3, "width": 32, "depth": 1, "num_heads": 2}
    old = ViTShape(image_size=(64, 64), class_token=False, window_size=2, **common)
    new = ViTShape(image_size=(64, 64), class_token=False, window_size=4, **common)
    with pytest.raises(RequestError, match="windows of 2 patches, 4 are requested"):
        fit_encoder(dict(ViT(old).state_dict()), old, new, "a backbone")


@pytest.mark.parametrize("side", [64, 128])
def test_biases_of_whole_images_do_not_fit_into_windows(side: int) -> None:
    common: dict[str, Any] = {"patch_size": 16, "channels": 3, "width": 32, "depth": 2, "num_heads": 2}
    old = ViTShape(image_size=(64, 64), relative_positions="bias", **common)
    new = replace(old, image_size=(side, side), class_token=False, window_size=2, global_blocks=(1,))
    with pytest.raises(RequestError, match="windows of 2 are requested: give --window-size 0"):
        fit_encoder(dict(ViT(old).state_dict()), old, new, "a segmenter")
