"""`pretrain --target token`: it learns the tokens, keeps its tokenizer or its hash, and refuses what does not fit."""

import json
import random
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from openmae import ConvertConfig, ReconstructConfig, convert, load, pretrain, reconstruct
from openmae.cli import run as command
from openmae.config import Preprocessing, PretrainConfig
from openmae.data.preprocess import to_unit
from openmae.errors import RequestError
from openmae.inference.mask_sampler import MaskSampler
from openmae.inference.reconstruction import reconstruct_patches
from openmae.interchange.init import read_stored_model
from openmae.interchange.tokenizers import read_tokenizer
from openmae.model.patches import unpatchify
from openmae.preflight.training import check_pretrain
from openmae.run.health import trivial_loss
from openmae.tasks.pretrain import pretrain as task
from openmae.tasks.pretrain.tokenizer import input_map

from ...processes import TINY, run, run_with_stops
from ...shared import metrics, same_training_state, save_tokenizer, untimed

STEPS = 24


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Forty smooth images of 24 x 24 pixels."""
    folder, generator = tmp_path_factory.mktemp("token"), np.random.default_rng(0)
    for number in range(40):
        coarse = generator.integers(0, 256, (3, 3, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((24, 24), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "run")


@pytest.fixture(scope="session")
def dalle(tmp_path_factory):
    """A small encoder of DALL-E's kind, as transformers writes it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dalle")
    config = FlavaImageCodebookConfig(hidden_size=16, vocab_size=32, num_groups=4, num_blocks_per_group=1)
    FlavaImageCodebook(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained(images, tokenizer, tmp_path_factory, digits_config):
    """A finished run. Tests only read it."""
    out = tmp_path_factory.mktemp("token-run") / "run"
    pretrain(config_of(digits_config, images, out, tokenizer, steps=12, picture_every=12))
    return out


@pytest.fixture(scope="session")
def dalle_run(images, dalle, tmp_path_factory, digits_config):
    """A finished run on tokens of DALL-E's encoder. Tests only read it."""
    out = tmp_path_factory.mktemp("dalle-run") / "run"
    pretrain(config_of(digits_config, images, out, dalle, patch_size=2))
    return out


def config_of(digits_config, images, out, named, **settings):
    named = None if named is None else str(named)
    defaults = {"data": str(images), "target": "token", "tokenizer": named, "patch_size": None, "steps": 4}
    return replace(digits_config(out), **{**defaults, "held_out": 8, **settings})


def arguments(images, out, workers, tokenizer, target="token", more=""):
    tiny = TINY.replace("--held-out 32", "--held-out 8")
    start = f"pretrain {images} --out {out} --target {target} --tokenizer {tokenizer}"
    return f"{start} --steps {STEPS} --workers {workers} --resume auto {tiny} {more}"


@pytest.mark.slow
def test_it_learns_to_predict_the_tokens(tokenizer, digits_config, tmp_path):
    """Below the entropy of the tokens' frequencies, on images that it never saw, each of one colour."""
    colours = np.random.default_rng(0).integers(0, 256, (60, 1, 1, 3)).astype(np.uint8)
    folder = tmp_path / "colours"
    folder.mkdir()
    for number, colour in enumerate(colours):
        Image.fromarray(np.broadcast_to(colour, (8, 8, 3)).copy()).save(folder / f"{number:02}.png")
    settings = {"steps": 60, "batch_size": 32, "base_lr": 0.05, "evaluate_every": 20, "save_every": 60, "held_out": 20}
    summary = pretrain(config_of(digits_config, folder, tmp_path / "run", tokenizer, **settings))
    assert summary["held_out_loss"] < 0.85 * summary["trivial_loss"]  # measured 0.75
    assert summary["health"] == "learning"


def test_the_checkpoint_carries_the_tokenizer_and_says_which(trained, tokenizer):
    stored, given = read_stored_model(trained / "model.safetensors"), read_tokenizer(str(tokenizer))
    assert stored.shape.tokenizer == given.shape
    assert stored.shape.encoder.patch_size == 2
    assert stored.description["tokenizer"]["sha256"] == given.sha256
    assert Preprocessing.from_dict(stored.description["tokenizer"]["preprocessing"]) == given.preprocessing
    for name, value in given.weights.items():
        assert torch.equal(stored.weights[f"target.vae.{name}"], value)
    assert str(tokenizer) not in str(stored.description)
    optimizer = load_file(trained / "checkpoints" / "step-00000012" / "optimizer.safetensors")
    assert not [name for name in optimizer if "target." in name]


def test_pictures_are_drawn_from_the_tokens(trained, images, tmp_path, capsys):
    with Image.open(trained / "pictures" / "step-00000012.png") as picture:
        assert picture.format == "PNG"
    paths = tuple(map(str, sorted(images.iterdir())[:3]))
    summary = reconstruct(ReconstructConfig(images=paths, init=str(trained), out=str(tmp_path / "sheet.png")))
    assert summary["images"] == 3
    assert np.isfinite(summary["psnr"])
    model = load(str(trained))
    pixels = model.prepare(list(paths))
    shown, whole = (model.reconstruct(pixels, paste=paste) for paste in (True, False))
    is_visible = ~shown.is_masked.expand_as(shown.truth)
    assert torch.equal(shown.prediction[is_visible], shown.truth[is_visible])
    assert not torch.equal(whole.prediction[is_visible], shown.truth[is_visible])
    # A hidden patch is drawn from its predicted token and from its neighbours' own ones, where these are seen.
    target, mae = model.mae.target, model.mae
    masking = MaskSampler("random", 0.75, (4, 4), None)(torch.arange(3))
    with torch.no_grad():
        is_masked_pixel = shown_mask(masking)
        own = target.tokens(torch.where(is_masked_pixel, 0.0, pixels))
        tokens = mae.predict_all(pixels, masking).argmax(dim=-1)
        for image, kept in enumerate(masking.keep_ids.tolist()):
            tokens[image, kept] = own[image, kept]
        drawn = reconstruct_patches(mae, pixels, masking, model.preprocessing).prediction
        expected = to_unit(unpatchify(target.decode(tokens, (4, 4)), (4, 4), 2), model.preprocessing).clamp(0, 1)
    is_hidden = ~torch.isclose(drawn, to_unit(pixels, model.preprocessing).clamp(0, 1))
    assert is_hidden.float().mean() > 0.5
    torch.testing.assert_close(drawn[is_hidden], expected[is_hidden])
    others = torch.where(is_masked_pixel, torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)), pixels)
    with torch.no_grad():
        assert not torch.equal(target.tokens(others), target.tokens(pixels))
        again = reconstruct_patches(mae, others, masking, model.preprocessing)
    assert torch.equal(again.is_masked, is_masked_pixel)
    assert not torch.equal(again.truth, to_unit(pixels, model.preprocessing).clamp(0, 1))
    assert torch.equal(again.prediction, drawn)  # nothing of it tells of hidden pixels


def shown_mask(masking):
    """(B, 1, H, W): which pixels of 8 x 8 are hidden, in patches of 2 x 2."""
    return masking.is_masked.view(-1, 1, 4, 4).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_the_guess_that_health_compares_with_is_the_entropy(trained):
    model = load(str(trained))
    target, generator = model.mae.target, torch.Generator().manual_seed(0)
    pixels = torch.randn(20, 3, 8, 8, generator=generator)
    masking = MaskSampler("random", 0.75, (4, 4), None)(torch.arange(20))
    counted = torch.rand(masking.masked_ids.shape, generator=generator) < 0.5
    tokens = target.truth(pixels, masking)
    for kept, chosen in ((None, tokens.flatten()), (counted, tokens[counted])):
        shares = np.bincount(chosen.numpy(), minlength=16) / len(chosen)
        expected = -sum(share * np.log(share) for share in shares if share)
        assert trivial_loss(target, lambda kept=kept: iter([(pixels, masking, kept)])) == pytest.approx(expected)


def test_a_run_that_learns_nothing_is_told_what_guessing_is(images, tokenizer, digits_config, tmp_path, capsys):
    out = tmp_path / "run"
    pretrain(config_of(digits_config, images, out, tokenizer, steps=12, evaluate_every=3, base_lr=1e-6))
    message = "is no better than guessing each token by how often it occurs"
    assert message in capsys.readouterr().out
    assert command(["inspect", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())  # wrapped
    assert message in said
    assert "mean patch" not in said


@pytest.mark.parametrize("own", ["uint8", "uint16"])
def test_the_tokenizer_sees_the_values_that_it_was_trained_on(own):
    """Raw values are prepared once as the model's are and mapped, and once as the tokenizer's are."""
    common = {"channels": 2, "image_size": (8, 8)}
    model = Preprocessing(value_range=(10.0, 200.0), mean=(0.3, 0.6), std=(0.2, 0.5), **common)
    other = Preprocessing(value_range=(0.0, 255.0), mean=(0.5, 0.4), std=(0.25, 0.3), dtype=own, **common)
    raw = torch.rand(2, 5, dtype=torch.float64) * 190 + 10
    scale, shift = input_map(model, other)
    unit = (raw - 10) / 190
    given = (unit - torch.tensor([[0.3], [0.6]])) / torch.tensor([[0.2], [0.5]])
    theirs = raw / 255 if own == "uint8" else unit  # another type's black and white are black and white
    expected = (theirs - torch.tensor([[0.5], [0.4]])) / torch.tensor([[0.25], [0.3]])
    torch.testing.assert_close(given * scale[:, None] + shift[:, None], expected, rtol=1e-5, atol=1e-6)
    scale, shift = input_map(model, None)
    torch.testing.assert_close(given * scale[:, None] + shift[:, None], 0.8 * unit + 0.1, rtol=1e-5, atol=1e-6)


def test_a_run_that_starts_from_it_keeps_its_tokenizer(trained, tokenizer, images, digits_config, tmp_path, capsys):
    config = config_of(digits_config, images, tmp_path / "on", None, init=str(trained), target=None, seed=5)
    pretrain(replace(config, mean=(0.1,) * 3, std=(0.3,) * 3, base_lr=0.0))
    assert "fresh" not in capsys.readouterr().out
    before, after = (read_stored_model(out / "model.safetensors") for out in (trained, tmp_path / "on"))
    assert after.description["tokenizer"] == before.description["tokenizer"]
    for name, value in before.weights.items():
        assert name.startswith("target.input_") or torch.equal(after.weights[name], value), name
    # Other statistics of the model's images, and the same input of the tokenizer.
    p = after.preprocessing
    assert p.mean == (0.1,) * 3
    expected, _ = input_map(p, read_tokenizer(str(tokenizer)).preprocessing)
    assert torch.equal(after.weights["target.input_scale"], expected)


@pytest.mark.parametrize("kind", ["ours", "dalle"])
def test_another_tokenizer_takes_the_place_of_its_own(
    kind, trained, dalle_run, tokenizer, images, digits_config, tmp_path, capsys
):
    """Its codes mean something else: the layer that predicts them starts fresh, the rest of the decoder is kept."""
    other = save_tokenizer(tmp_path / "other", seed=3) if kind == "ours" else tokenizer
    init = trained if kind == "ours" else dalle_run  # another codebook's size, and no weights of a tokenizer
    config = config_of(digits_config, images, tmp_path / "on", other, init=str(init), target=None, seed=5)
    pretrain(replace(config, base_lr=0.0))
    said = capsys.readouterr().out
    assert "decoder.predict: fresh, for --init predicts the tokens of another tokenizer" in said
    assert "decoder: fresh" not in said
    before, stored = (read_stored_model(out / "model.safetensors") for out in (init, tmp_path / "on"))
    for name, value in before.weights.items():
        is_new = name == "decoder.predict.weight" or name.startswith("target.")
        assert is_new or name == "decoder.predict.bias" or torch.equal(stored.weights[name], value), name
    assert not torch.equal(stored.weights["decoder.predict.weight"], before.weights["decoder.predict.weight"])
    stored = read_stored_model(tmp_path / "on" / "model.safetensors")
    assert stored.description["tokenizer"]["sha256"] == read_tokenizer(str(other)).sha256
    assert torch.equal(stored.weights["target.vae.codebook"], read_tokenizer(str(other)).weights["codebook"])


def test_a_run_goes_on_without_its_tokenizers_folder(images, digits_config, tmp_path, monkeypatch):
    out, tokenizer = tmp_path / "run", save_tokenizer(tmp_path / "tokenizer")
    pretrain(config_of(digits_config, images, out, tokenizer, steps=10))
    shutil.rmtree(tokenizer)
    pretrain(PretrainConfig(data=str(images), out=str(out), resume="auto", steps=12))
    pretrain(config_of(digits_config, images, out, tokenizer, steps=14, resume="auto"))  # the same command again
    save_tokenizer(tokenizer, seed=1)
    before = (out / "config.json").read_bytes()
    again = PretrainConfig(data=str(images), out=str(out), resume="auto", steps=16)
    other = save_tokenizer(tmp_path / "other", seed=1)
    for named in (tokenizer, other):
        with pytest.raises(RequestError, match=r"not the one that this run began with .* the checkpoint has its own"):
            pretrain(replace(again, tokenizer=str(named)))
    for missing in (tmp_path / "nowhere", "nowhere"):
        with pytest.raises(RequestError, match="nowhere does not exist"):
            pretrain(replace(again, tokenizer=str(missing)))
    asked = []
    monkeypatch.setattr("openmae.tasks.pretrain.tokenizer.read_tokenizer", lambda name: asked.append(name) or wrong)
    wrong = read_tokenizer(str(other))
    with pytest.raises(RequestError, match="not the one that this run began with"):
        pretrain(replace(again, tokenizer="hf:some/tokenizer"))
    assert asked == ["hf:some/tokenizer"]
    assert (out / "config.json").read_bytes() == before


def test_a_run_of_pixels_goes_on_without_a_tokenizer(pixel_run, tokenizer, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(pixel_run, out)
    before = (out / "config.json").read_bytes()
    config = PretrainConfig(data="embedded:digits", out=str(out), resume="auto", tokenizer=str(tokenizer))
    with pytest.raises(RequestError, match="is for --target token, and this run's target is pixel: leave it out"):
        pretrain(config)
    assert (out / "config.json").read_bytes() == before


def test_dalles_run_goes_on_with_the_same_encoder_and_no_other(dalle_run, dalle, images, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(dalle_run, out)
    again = {"data": str(images), "out": str(out), "resume": "auto", "steps": 6}
    moved = tmp_path / "moved"
    shutil.copytree(dalle, moved)
    assert pretrain(PretrainConfig(**again, tokenizer=str(moved)))["step"] == 6
    torch.manual_seed(1)
    config = FlavaImageCodebookConfig(hidden_size=16, vocab_size=32, num_groups=4, num_blocks_per_group=1)
    FlavaImageCodebook(config).save_pretrained(moved)
    with pytest.raises(RequestError, match=r"moved is not the one that this run began with .*: restore it"):
        pretrain(PretrainConfig(**{**again, "steps": 8}))


def test_dalles_encoder_is_not_kept_and_draws_nothing(dalle_run, images, digits_config, tmp_path, capsys):
    assert not list((dalle_run / "pictures").glob("*"))
    weights = load_file(dalle_run / "model.safetensors")
    assert {name for name in weights if name.startswith("target.")} == {"target.input_scale", "target.input_shift"}
    model = load(str(dalle_run))
    path = str(next(images.iterdir()))
    assert model.features(path).shape == (1, 24)
    for call in (
        lambda: model.reconstruct(path),
        lambda: reconstruct(ReconstructConfig(images=(path,), init=str(dalle_run), out=str(tmp_path / "sheet.png"))),
    ):
        with pytest.raises(RequestError, match="cannot be drawn: it predicts the tokens of DALL-E's encoder"):
            call()
    config = config_of(digits_config, images, tmp_path / "on", None, init=str(dalle_run), target=None)
    with pytest.raises(RequestError, match="which does not lie in it: give that as --tokenizer too"):
        pretrain(config)
    assert command(["inspect", str(dalle_run / "model.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "DALL-E's encoder, which is not kept here; 32 codes, sha256" in said
    assert "good for   pretrain, finetune, probe" in said


def test_the_plan_says_what_the_tokenizer_costs(images, tokenizer, dalle, digits_config, tmp_path, capsys):
    pretrain(config_of(digits_config, images, tmp_path / "ours", tokenizer, steps=1))
    ours = capsys.readouterr().out
    pretrain(config_of(digits_config, images, tmp_path / "dalle", dalle, steps=1, patch_size=2))
    theirs = capsys.readouterr().out
    assert "it predicts tokens of a codebook of 16" in ours
    assert "tokenizer  frozen, 16 codes, 0.0 M parameters; it sees 8x8 px, one token a patch" in ours
    assert "--patch-size 2: as --tokenizer" in ours
    assert "tokenizer  frozen, 32 codes, 0.1 M parameters; it sees 32x32 px, one token a patch" in theirs
    assert "pictures   none: it predicts the tokens of DALL-E's encoder" in theirs
    assert "openmae attention IMAGE" in theirs


REFUSED = [
    (
        {"patch_size": 4},
        r"gives one token for each 2 px, the model has patches of 4 px: give --patch-size 2 or train one",
    ),
    ({"channels": 1}, r"takes images of 3 channels, the model has 1: give --channels 3 or another tokenizer"),
    ({"tokenizer": None}, "--target token predicts the tokens of --tokenizer T, which is missing"),
    ({"recipe": "table-1d-token", "target": "pca"}, "--tokenizer is for --target token, and this is --target pca"),
    ({"target": "pixel"}, "--tokenizer is for --target token, and this is --target pixel"),
    ({"target": None}, "--tokenizer is for --target token: give both or neither"),
    ({"target": None, "resume": "auto"}, "--tokenizer is for --target token: give both or neither"),
    ({"target": None, "recipe": "table-1d-pixel"}, "--tokenizer is for --target token, and this is --target pixel"),
    ({"pca_coefficients": 3}, "--pca-coefficients is for --target pca, and this is --target token"),
    ({"tokenizer": "nowhere"}, "nowhere does not exist"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[str(settings) for settings, _ in REFUSED])
def test_what_does_not_fit_is_refused(images, tokenizer, digits_config, tmp_path, settings, message):
    with pytest.raises(RequestError, match=message):
        pretrain(config_of(digits_config, images, tmp_path / "run", tokenizer, **settings))
    assert not (tmp_path / "run").exists()


EARLY = [REFUSED[number] for number in (2, 3, 4, 5, 6, 7, 9)]


@pytest.mark.parametrize(("settings", "message"), EARLY, ids=[str(settings) for settings, _ in EARLY])
def test_what_needs_no_torch_is_refused_before_it_is_loaded(
    images, tokenizer, digits_config, tmp_path, settings, message
):
    with pytest.raises(RequestError, match=message):
        check_pretrain(config_of(digits_config, images, tmp_path / "run", tokenizer, **settings))


def test_another_target_beside_the_recipe_drops_its_tokenizer(images, digits_config, tmp_path):
    settings = {"recipe": "table-1d-token", "target": "pixel", "patch_size": 4}
    config = config_of(digits_config, images, tmp_path / "run", None, **settings)
    check_pretrain(config)
    pretrain(config)
    saved = json.loads((tmp_path / "run" / "config.json").read_bytes())
    assert (saved["target"], saved["tokenizer"], saved["recipe"]) == ("pixel", None, "table-1d-token")


def test_a_pixel_model_is_no_start_for_tokens_without_one(trained, pixel_run, digits_config, tokenizer, tmp_path):
    common = {"data": "embedded:digits", "init": str(pixel_run), "patch_size": 2}
    config = config_of(digits_config, None, tmp_path / "run", tokenizer, **common)
    with pytest.raises(RequestError, match="--tokenizer T, which is missing"):
        pretrain(replace(config, tokenizer=None))
    with pytest.raises(RequestError, match="and this is --target pixel: give both"):
        pretrain(replace(config, target=None))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("to", "name"), [("transformers", "out"), ("reference", "out.pth")])
def test_formats_of_pixels_refuse_its_decoder(trained, tmp_path, to, name):
    with pytest.raises(RequestError, match=r"predicts tokens of a codebook of 16: --part encoder leaves it out"):
        convert(ConvertConfig(init=str(trained), out=str(tmp_path / name), to=to))
    assert convert(ConvertConfig(init=str(trained), out=str(tmp_path / name), to=to, part="encoder"))["tensors"]


def test_our_format_keeps_the_tokenizer_and_timms_names_what_it_leaves(trained, dalle_run, tmp_path, capsys):
    convert(ConvertConfig(init=str(trained), out=str(tmp_path / "ours"), to="openmae"))
    assert "its tokenizer: ours, weights and decoder are kept" in capsys.readouterr().out
    model = load(str(tmp_path / "ours"))
    pixels = torch.zeros(1, 3, 8, 8)
    assert torch.equal(model.reconstruct(pixels).prediction, load(str(trained)).reconstruct(pixels).prediction)
    convert(ConvertConfig(init=str(dalle_run), out=str(tmp_path / "dalle"), to="openmae"))
    assert "DALL-E's encoder, which is not kept here" in capsys.readouterr().out
    result = convert(ConvertConfig(init=str(trained), out=str(tmp_path / "timm"), to="timm"))
    assert "target.vae.codebook" in result["left_out"]


def test_nodata_and_device_crops_go_with_it(images, tokenizer, digits_config, tmp_path, monkeypatch):
    """Patches without data leave the loss; a pack's crops are made on the device."""
    holes = tmp_path / "holes"
    holes.mkdir()
    for path in sorted(images.iterdir()):
        values = np.asarray(Image.open(path)).copy()
        values[:, :12] = 0
        Image.fromarray(values).save(holes / path.name)
    seen, loss_fn = [], task.loss_fn

    def recorded(model, inputs, precision):
        loss = loss_fn(model, inputs, precision)
        losses = model(inputs.images, inputs.masking).patch_losses.detach()
        seen.append((inputs.masking.masked_ids, losses, loss.item()))
        return loss

    monkeypatch.setattr(task, "loss_fn", recorded)
    settings = {"nodata": 0.0, "micro_batch_size": 5, "augment": "none"}
    pretrain(config_of(digits_config, holes, tmp_path / "run", tokenizer, **settings))
    assert len(seen) >= 4
    for masked_ids, patch_losses, loss in seen:
        has_data = masked_ids % 4 >= 2  # the left half of each image has none
        assert loss == pytest.approx(float(patch_losses[has_data].mean()))
        assert loss != pytest.approx(float(patch_losses.mean()))
    assert command(["pack", str(images), str(tmp_path / "pack"), "--format", "raw", "--size", "24"]) == 0
    summary = pretrain(
        config_of(digits_config, tmp_path / "pack", tmp_path / "packed", tokenizer, crop_on="device", held_out=0)
    )
    assert np.isfinite(summary["loss"])


@pytest.mark.slow
@pytest.mark.parametrize(("count", "workers", "kind"), [(1, 2, "ours"), (2, 0, "ours"), (1, 0, "dalle")])
def test_a_killed_run_goes_on_to_the_same_bytes(images, tokenizer, dalle, tmp_path, count, workers, kind):
    named = {"ours": tokenizer, "dalle": dalle}[kind]
    chance, whole, out, log = random.Random(count), tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert run(arguments(images, whole, 0, named), log, count) == [0] * count, log.read_text()
    stops = [(signal.SIGKILL, chance.randrange(4, 10)), (signal.SIGTERM, chance.randrange(12, 20))]
    run_with_stops(arguments(images, out, workers, named), out, log, count, stops)
    same_training_state(whole, out, STEPS)
    assert untimed(metrics(whole)) == untimed(metrics(out))


@pytest.mark.slow
def test_two_processes_compute_what_one_does(images, tokenizer, tmp_path):
    for count in (1, 2):
        log, out = tmp_path / "log", tmp_path / str(count)
        words = arguments(images, out, 0, tokenizer, more="--micro-batch-size 4")
        assert run(words, log, count) == [0] * count, log.read_text()
    losses = [[line["loss"] for line in metrics(tmp_path / str(count)) if "loss" in line] for count in (1, 2)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    weights = [load_file(tmp_path / str(count) / "model.safetensors") for count in (1, 2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] if name.startswith("target."))
