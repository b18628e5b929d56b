"""`openmae tokenizer`: it learns, says how it is, goes on to the same bytes, and refuses what cannot be."""

import json
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from openmae import TokenizerConfig, inspect, tokenizer
from openmae.config import InspectConfig
from openmae.errors import Interrupted, RequestError
from openmae.interchange.tokenizers import read_tokenizer
from openmae.tasks.tokenizer import tokenizer as task
from openmae.tasks.tokenizer.held_out import collapse_line
from openmae.tasks.tokenizer.tokenizer import temperature_at

from ...processes import run, run_with_stops
from ...shared import metrics, same_training_state, untimed

STEPS = 24


def config_of(out, **settings):
    defaults = {
        "data": "embedded:digits",
        "image_size": 8,
        "patch_size": 2,
        "stride": 2,
        "codebook": 16,
        "width": 16,
        "depth": 1,
        "steps": 12,
        "batch_size": 16,
        "held_out": 32,
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "evaluate_every": 4,
        "picture_every": 12,
        "save_every": 5,
        "log_every": 2,
    }
    return TokenizerConfig(out=str(out), **defaults | settings)


def arguments(out, workers):
    return (
        f"tokenizer embedded:digits --out {out} --image-size 8 --patch-size 2 --stride 2 --codebook 16 --width 16 "
        f"--depth 1 --steps {STEPS} --batch-size 16 --micro-batch-size 3 --held-out 32 --device cpu --precision fp32 "
        f"--log-every 2 --save-every 5 --evaluate-every 7 --picture-every 100000 --workers {workers} --resume auto"
    )


def alike(some, others):
    """Weights and running usage are equal but for rounding, which Adam magnifies where gradients are near 0."""
    one, two = (load_file(run / "model.safetensors") for run in (some, others))
    torch.testing.assert_close(one["usage"], two["usage"], rtol=1e-3, atol=1e-5)
    for name, value in one.items():
        assert (two[name] - value).abs().mean() < 1e-3 * value.abs().mean() + 1e-5, name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizers") / "run"
    return out, tokenizer(config_of(out, steps=150, evaluate_every=50, picture_every=150))


def test_it_learns_and_uses_its_codes(trained):
    out, summary = trained
    measured = [line for line in metrics(out) if "psnr" in line]
    assert len(measured) == 3
    assert measured[-1]["psnr"] > measured[0]["psnr"] + 1
    assert measured[-1]["held_out_loss"] < 0.8 * measured[0]["held_out_loss"]
    assert summary["codes_used"] >= 10  # of 16
    assert 6 < summary["perplexity"] <= summary["codes_used"]
    losses = [line["loss"] for line in metrics(out) if "loss" in line]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_its_pictures_are_a_sheet_of_pairs(trained):
    with Image.open(next((trained[0] / "pictures").glob("*.png"))) as picture:
        assert picture.width > 8 * 160
        assert len(picture.convert("RGB").getcolors(100_000)) > 20


def test_it_is_read_as_a_tokenizer(trained):
    stored = read_tokenizer(str(trained[0]))
    assert stored.shape.codebook == 16
    assert stored.preprocessing.image_size == (8, 8)
    assert len(stored.weights["usage"]) == 16


def test_inspect_says_what_it_is(trained, capsys):
    report = inspect(InspectConfig(path=str(trained[0])))
    assert report["task"] == "tokenizer"
    assert report["other_figures"]["psnr"] > 0
    assert report["resume"]["command"].startswith("openmae tokenizer ")
    assert "perplexity" in capsys.readouterr().out


def test_its_defaults_are_decided_with_reasons(tmp_path, capsys):
    folder, generator = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for number in range(30):
        pixels = generator.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    config = TokenizerConfig(data=str(folder), out=str(tmp_path / "run"), steps=8, device="cpu", workers=0)
    assert tokenizer(config)["status"] == "complete"
    text = capsys.readouterr().out
    assert "it sees them as 20x20 px, 2 px a token" in text
    assert "--codebook 512: the root of 2,900 patches, between 512 and 8192" in text
    assert "--stride 2: half a patch" in text


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "run"
    tokenizer(config_of(whole, workers=2))
    take = task.train_step

    def stop_at_eight(*arguments):
        if arguments[6] == temperature_at(7 / 12, task.ResolvedTokenizerConfig.from_dict(settings)):
            signal.raise_signal(signal.SIGTERM)
        return take(*arguments)

    settings = json.loads((whole / "config.json").read_bytes())
    monkeypatch.setattr(task, "train_step", stop_at_eight)
    with pytest.raises(Interrupted):
        tokenizer(config_of(out))
    monkeypatch.setattr(task, "train_step", take)
    tokenizer(config_of(out, resume="auto"))
    same_training_state(whole, out, 12)
    assert untimed(metrics(whole)) == untimed(metrics(out))


def test_micro_batches_change_nothing_but_rounding(tmp_path):
    losses = []
    for micro in (16, 5):
        tokenizer(config_of(tmp_path / str(micro), micro_batch_size=micro))
        losses.append([line["loss"] for line in metrics(tmp_path / str(micro)) if "loss" in line])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)  # measured 2e-6
    alike(tmp_path / "16", tmp_path / "5")


@pytest.mark.slow
@pytest.mark.parametrize(("count", "workers"), [(1, 2), (2, 0)])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, count, workers):
    chance, whole, out, log = random.Random(count), tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert run(arguments(whole, 0), log, count) == [0] * count, log.read_text()
    stops = [(signal.SIGKILL, chance.randrange(4, 10)), (signal.SIGTERM, chance.randrange(12, 20))]
    run_with_stops(arguments(out, workers), out, log, count, stops)
    same_training_state(whole, out, STEPS)
    assert untimed(metrics(whole)) == untimed(metrics(out))


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    losses, log = [], tmp_path / "log"
    for count in (1, 2):
        assert run(arguments(tmp_path / str(count), 0), log, count) == [0] * count, log.read_text()
        losses.append([line["loss"] for line in metrics(tmp_path / str(count)) if "loss" in line])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    alike(tmp_path / "1", tmp_path / "2")


def test_without_held_out_images_nothing_is_measured_on_them(tmp_path):
    summary = tokenizer(config_of(tmp_path / "run", held_out=0))
    assert not {"psnr", "held_out_loss", "perplexity"} & summary.keys()
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 1


def test_hardly_any_patches_get_a_smaller_codebook(tmp_path, capsys):
    tokenizer(config_of(tmp_path / "run", codebook=None, steps=1))
    assert "--codebook 64: a quarter of 256 patches" in capsys.readouterr().out


def test_the_temperature_falls_and_stays():
    config = config_of("run", temperature=(1.0, 0.25))
    assert temperature_at(0, config) == 1
    assert temperature_at(0.35, config) == pytest.approx(0.5)
    assert temperature_at(0.7, config) == temperature_at(1, config) == pytest.approx(0.25)


def test_a_collapse_is_said_with_what_to_do():
    config = config_of("run", codebook=512, balance=0.05)
    few = {"perplexity": 4.0, "codes_used": 9.0}
    line = collapse_line(few, config, 5000, 900, 1000)
    assert line.startswith("warning: the codebook has collapsed: 9 of 512 codes in use (perplexity 4)")
    assert "--balance" in line
    assert collapse_line(few, config, 5000, 100, 1000) is None  # too early
    assert collapse_line({"perplexity": 40.0, "codes_used": 90.0}, config, 5000, 900, 1000) is None
    assert collapse_line(few, config, 36, 900, 1000) is None  # of 36 tokens few can differ


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook": 1}, "--codebook got 1: it must be at least 2"),
        (
            {"codebook": 5000, "steps": 10},
            r"--codebook got 5,000, more than the 2,560 patches that are seen in training",
        ),
        ({"codebook": 40_000, "steps": 1000}, r"--codebook got 40,000, more than the 22,944 patches of 1,434 images"),
        ({"width": 12}, "--width got 12: .* need a width that 8 divides"),
        ({"image_size": 32, "patch_size": 16}, "short side is about 8 px, smaller than a patch of 16 px"),
        ({"channels": 5}, "--channels got 5, but the images have 1"),
        ({"patch_size": 3}, "a patch of 3 px does not divide an image of 8x8 px"),
        ({"temperature": (1.0, 0.0)}, "--temperature got 0: it must be at least 0.001"),
        ({"temperature": (0.1, 2.0)}, "--temperature rises from 0.1 to 2: give the higher one first"),
        ({"stride": 4}, "--stride got 4, more than a patch of 2 px: .* give at most the patch size"),
        ({"epochs": 1.0}, "got both --epochs 1 and --steps 12"),
        ({"augment": "crop-jitter"}, "--augment got 'crop-jitter'"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(tmp_path, settings, message):
    with pytest.raises(RequestError, match=message):
        tokenizer(config_of(tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_command_is_said_to_be_one(pixel_run):
    with pytest.raises(RequestError, match=r"it is a run of another command"):
        tokenizer(replace(config_of(pixel_run), resume="auto"))


def test_other_settings_do_not_go_on(trained, tmp_path):
    out = trained[0]
    with pytest.raises(RequestError, match="has --codebook 16, not 32"):
        tokenizer(replace(config_of(out, steps=150, evaluate_every=50, picture_every=150), resume="auto", codebook=32))
