"""`pretrain --target pca`: the fit is recorded, kept, the same for any number of processes; bad input is refused."""

import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from openmae import ConvertConfig, convert, load, pretrain
from openmae.cli import run as command
from openmae.errors import RequestError
from openmae.interchange.init import read_stored_model

from ...processes import TINY, run, run_with_stops
from ...shared import metrics, same_training_state, untimed

STEPS = 24


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Twenty smooth images of 24 x 24 pixels."""
    folder, generator = tmp_path_factory.mktemp("pca"), np.random.default_rng(0)
    for number in range(20):
        coarse = generator.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((24, 24), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def trained(images, tmp_path_factory, digits_config):
    out = tmp_path_factory.mktemp("pca-run") / "run"
    pretrain(config_of(digits_config, images, out))
    return out


def config_of(digits_config, images, out, **settings):
    defaults = {"data": str(images), "target": "pca", "value_range": None, "steps": 4, "held_out": 4}
    return replace(digits_config(out), **defaults | settings)


def arguments(images, out, workers):
    tiny = TINY.replace("--held-out 32", "--held-out 4")
    return f"pretrain {images} --out {out} --target pca --steps {STEPS} --workers {workers} --resume auto {tiny}"


def components(run):
    weights = load_file(run / "model.safetensors")
    return {name: weights[name] for name in ("target.mean", "target.components", "target.scale")}


def test_the_fit_is_recorded_and_kept(trained):
    stored = read_stored_model(trained / "model.safetensors")
    assert stored.shape.pca_coefficients == stored.shape.encoder.patch_dim // 8
    assert stored.description["pca"] == {"crops": 128, "patches_per_crop": stored.shape.encoder.num_patches, "seed": 0}
    rows = components(trained)["target.components"]
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)  # measured 2e-7


def test_a_run_that_starts_from_it_keeps_its_components(trained, images, digits_config, tmp_path):
    """Another seed would fit others."""
    pretrain(config_of(digits_config, images, tmp_path / "on", init=str(trained), seed=5, target=None))
    pretrain(config_of(digits_config, images, tmp_path / "fresh", seed=5))
    kept, fresh = components(tmp_path / "on"), components(tmp_path / "fresh")
    for name, value in components(trained).items():
        assert torch.equal(kept[name], value)
        assert not torch.equal(fresh[name], value)
    description = read_stored_model(tmp_path / "on" / "model.safetensors").description
    assert description["pca"]["seed"] == 0
    assert description["seed"] == 5


def test_pictures_are_drawn_from_the_coefficients(trained):
    model = load(str(trained))
    size = model.preprocessing.image_size
    result = model.reconstruct(torch.zeros(2, model.preprocessing.channels, *size))
    assert result.prediction.shape[-2:] == size
    assert result.prediction.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "workers"), [(1, 2), (2, 0)])
def test_a_killed_run_goes_on_to_the_same_bytes(images, tmp_path, count, workers):
    chance, whole, out, log = random.Random(count), tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert run(arguments(images, whole, 0), log, count) == [0] * count, log.read_text()
    stops = [(signal.SIGKILL, chance.randrange(4, 10)), (signal.SIGTERM, chance.randrange(12, 20))]
    run_with_stops(arguments(images, out, workers), out, log, count, stops)
    same_training_state(whole, out, STEPS)
    assert untimed(metrics(whole)) == untimed(metrics(out))


@pytest.mark.slow
def test_two_processes_fit_what_one_does(images, tmp_path):
    for count in (1, 2):
        log = tmp_path / "log"
        assert run(arguments(images, tmp_path / str(count), 0), log, count) == [0] * count, log.read_text()
    one, two = (components(tmp_path / str(count)) for count in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    losses = [[line["loss"] for line in metrics(tmp_path / str(count)) if "loss" in line] for count in (1, 2)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target": "pixel", "pca_coefficients": 5},
            "--pca-coefficients is for --target pca, and this is --target pixel",
        ),
        ({"pca_coefficients": 1000}, "--pca-coefficients got 1000: it must be at least 1 and at most"),
        ({"pca_coefficients": 0}, "--pca-coefficients got 0: it must be at least 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(images, digits_config, tmp_path, settings, message):
    with pytest.raises(RequestError, match=message):
        pretrain(config_of(digits_config, images, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_fewer_patches_than_coefficients_are_refused(images, digits_config, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(images.iterdir())[:2]:
        (few / path.name).write_bytes(path.read_bytes())
    shape = {"image_size": 48, "patch_size": 24, "batch_size": 2}
    config = config_of(digits_config, few, tmp_path / "run", pca_coefficients=600, held_out=0, **shape)
    with pytest.raises(RequestError, match=r"--pca-coefficients got 600, .* 64 patches .*: give fewer"):
        pretrain(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("to", "name"), [("transformers", "out"), ("reference", "out.pth")])
def test_formats_of_pixels_refuse_its_decoder(trained, tmp_path, to, name):
    with pytest.raises(RequestError, match=r"this model's predicts .* PCA coefficients: --part encoder leaves it out"):
        convert(ConvertConfig(init=str(trained), out=str(tmp_path / name), to=to))
    assert convert(ConvertConfig(init=str(trained), out=str(tmp_path / name), to=to, part="encoder"))["tensors"]


def test_the_command_line_names_the_coefficients(trained, capsys):
    assert command(["inspect", str(trained / "model.safetensors")]) == 0
    assert "PCA coefficients" in capsys.readouterr().out
