"""timm builds from what `convert --to timm` writes a model that computes what ours computes.

Errors are relative to the largest value; the measured ones stand beside the tolerance.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import openmae
from openmae.errors import RequestError
from openmae.interchange.init import read_stored_model
from openmae.interchange.outgoing.to_timm import to_timm

from ..outgoing_models import (
    CLASSES,
    make_classifier,
    make_encoder,
    make_mae,
    make_preprocessing,
    out_of,
    photo_images,
    photograph,
    relative_error,
    save_run,
)

TOLERANCE = 1e-5


def timm_of(folder: Path, **changes):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **changes).eval()


# Measured: 1.3e-6 at most, 8e-7 of the folded heads of probes.
@pytest.mark.parametrize("head", ["fine-tune", "probe"])
@pytest.mark.parametrize("kind", ["cls", "mean"])
@torch.no_grad()
def test_a_classifier_gives_the_same_logits(tmp_path, kind, head):
    classifier, shape = make_classifier(kind, head)
    theirs = timm_of(out_of(save_run(tmp_path / "init", classifier, shape), "timm"))
    images = photo_images(shape.encoder)
    assert relative_error(theirs(images), classifier(images)) < TOLERANCE
    assert theirs.pretrained_cfg["label_names"] == CLASSES
    assert theirs.num_classes == len(CLASSES)
    assert (theirs.global_pool == "avg") == (kind == "mean")


# Measured: 1.2e-6 (Base), 6.4e-7 of the others.
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_size": (32, 64)},
        {"channels": 1},
        {"channels": 5},
        {"image_size": (32, 32), "width": 768, "num_heads": 12, "patch_size": 16},
        {"image_size": (112, 112), "patch_size": 14},
    ],
    ids=["small", "non-square", "grey", "five channels", "base, two blocks", "patches of 14"],
)
@torch.no_grad()
def test_an_encoder_gives_the_same_tokens(tmp_path, changes):
    mae, shape = make_mae(make_encoder(**changes))
    theirs = timm_of(out_of(save_run(tmp_path / "init", mae, shape), "timm"))
    images = photo_images(shape.encoder)
    assert relative_error(theirs.forward_features(images), mae.encoder(images)) < TOLERANCE
    assert relative_error(theirs(images), mae.encoder(images)[:, 0]) < TOLERANCE
    assert isinstance(theirs.head, torch.nn.Identity)


@torch.no_grad()
def test_the_encoder_of_a_classifier_that_norms_the_mean(tmp_path):
    classifier, shape = make_classifier("mean")
    theirs = timm_of(out_of(save_run(tmp_path / "init", classifier, shape), "timm", part="encoder"))
    images = photo_images(shape.encoder)
    assert relative_error(theirs.forward_features(images), classifier.encoder.tokens(images)) < TOLERANCE


def swap_queries_and_keys(weights, config):
    for name in list(weights):
        if ".qkv." in name:
            q, k, v = weights[name].chunk(3)
            weights[name] = torch.cat([k, q, v])


def change(**arguments):
    def apply(weights, config):
        config["model_args"] |= arguments

    return apply


def forget_the_probe(weights, config):
    weights["head.bias"] *= 0


# Measured: the least visible is GELU by tanh (4.0e-4), then the eps (5.8e-3).
@pytest.mark.parametrize(
    "mistake",
    [
        swap_queries_and_keys,
        change(num_heads=6),
        change(act_layer="gelu_tanh"),
        change(norm_layer="layernorm", _eps=1e-5),
        change(global_pool="avg", fc_norm=False),
        forget_the_probe,
    ],
    ids=["queries and keys swapped", "heads", "tanh", "eps", "pooling", "head"],
)
@torch.no_grad()
def test_a_mistake_shows(tmp_path, mistake):
    """The comparisons above mean something only if they fail for a wrong file."""
    classifier, shape = make_classifier("cls", "probe")
    folder = out_of(save_run(tmp_path / "init", classifier, shape), "timm")
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    mistake(weights, config)
    eps = config["model_args"].pop("_eps", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    theirs = timm_of(folder)
    if eps:
        for module in theirs.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = eps
    images = photo_images(shape.encoder)
    assert relative_error(theirs(images), classifier(images)) > 10 * TOLERANCE


@torch.no_grad()
def test_another_image_size_is_resampled_otherwise(tmp_path):
    """timm antialiases a position table on the way (bicubic a = -0.5), MAE's convention does not (a = -0.75).

    Measured with a table of noise: 1.7e-2 of the largest value. With our table in it the model is equal: 6.3e-7.
    """
    mae, shape = make_mae()
    folder = out_of(save_run(tmp_path / "init", mae, shape), "timm")
    theirs = timm_of(folder, img_size=64)
    images = photo_images(make_encoder(image_size=(64, 64)))
    error = relative_error(theirs.forward_features(images), mae.encoder(images))
    assert 1e-3 < error < 0.5
    theirs.pos_embed.copy_(mae.encoder.positions((8, 8)))
    assert relative_error(theirs.forward_features(images), mae.encoder(images)) < TOLERANCE


# Measured on a square photograph, in units of the deviation: one grey level (.0175) with the whole image; .23 (mean
# 3.5e-4) with a margin, in the outermost pixels: timm resizes before it cuts, so there it sees what is beyond the cut.
@pytest.mark.parametrize(("margin", "limit"), [(1.0, 0.02), (224 / 256, 0.3)])
def test_images_are_prepared_alike(tmp_path, crop_fraction, limit):
    mae, shape = make_mae(make_encoder(image_size=(224, 224), patch_size=16))
    preprocessing = make_preprocessing(shape.encoder, crop_fraction=crop_fraction)
    init = save_run(tmp_path / "init", mae, shape, preprocessing)
    model = timm_of(out_of(init, "timm"))
    settings = timm.data.resolve_model_data_config(model)
    assert settings["crop_pct"] == crop_fraction
    assert settings["interpolation"] == "bicubic"
    square = photograph()[:, 100:500]
    theirs = timm.data.create_transform(**settings)(Image.fromarray(square))
    ours = openmae.load(str(init), "cpu").prepare(square)[0]
    assert float((theirs - ours).abs().max()) < limit
    assert float((theirs - ours).abs().mean()) < 1e-3


def test_values_of_another_range_become_timms(tmp_path):
    mae, shape = make_mae(make_encoder(channels=1))
    preprocessing = make_preprocessing(shape.encoder, value_range=(20.0, 220.0))
    init = save_run(tmp_path / "init", mae, shape, preprocessing)
    model = timm_of(out_of(init, "timm"))
    flat = np.full((32, 32), 97, np.uint8)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(Image.fromarray(flat))
    ours = openmae.load(str(init), "cpu").prepare(flat)[0]
    assert float((theirs - ours).abs().max()) < 1e-5


def test_what_is_left_out_is_said(tmp_path, capsys):
    mae, shape = make_mae()
    out_of(save_run(tmp_path / "init", mae, shape), "timm")
    told = capsys.readouterr().out
    count = sum(name.startswith("decoder.") for name in mae.state_dict())
    assert f"left out   decoder: {count} tensors" in told


def test_another_encoder_is_refused(tmp_path):
    mae, shape = make_mae()
    model = read_stored_model(save_run(tmp_path / "init", mae, shape) / "model.safetensors")
    other = replace(model, shape=replace(shape, encoder=replace(shape.encoder, layer_scale=True)))
    with pytest.raises(RequestError, match=r"layer_scale True.*--to openmae"):
        to_timm(other)
