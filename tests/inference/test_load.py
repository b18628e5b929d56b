"""From a run folder to a model that takes whatever an image comes as."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import openmae
from openmae.errors import RequestError
from openmae.inference.load import load
from openmae.interchange.init import find_model, read_stored_model
from openmae.interchange.load_weights import load_for_pretraining


def png(path, mode="L", size=(12, 10), value=None):
    """A picture of noise, or of one value, as a file."""
    shape = (*size[::-1], *({"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]))
    values = np.random.default_rng(0).integers(0, 256, shape) if value is None else np.full(shape, value)
    Image.fromarray(values.astype(np.uint8), mode).save(path)
    return path


@pytest.fixture(scope="module")
def model(pixel_run):
    return load(str(pixel_run), "cpu")


def rewritten(run, tmp_path, change_weights=None, change_description=None):
    """A copy of a run's model.safetensors with other weights or another description."""
    source, target = run / "model.safetensors", tmp_path / "model.safetensors"
    with safe_open(source, "pt") as file:
        description = json.loads(file.metadata()["openmae"])
    weights = load_file(source)
    if change_weights:
        change_weights(weights)
    if change_description:
        change_description(description)
    save_file(weights, target, metadata={"openmae": json.dumps(description)})
    return str(target)


def test_a_run_a_checkpoint_and_a_file_name_the_same_model(pixel_run):
    checkpoint = pixel_run / "checkpoints" / "step-00000012"
    assert find_model(pixel_run) == pixel_run / "model.safetensors"
    assert find_model(checkpoint) == checkpoint / "model.safetensors"
    assert find_model(checkpoint / "model.safetensors") == checkpoint / "model.safetensors"


def test_a_run_without_its_last_model_falls_back_to_a_checkpoint(pixel_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pixel_run, run)
    (run / "model.safetensors").unlink()
    assert find_model(run).parent.name == "step-00000012"
    (run / "checkpoints" / "step-00000012" / "state.json").write_text("{}")
    assert find_model(run).parent.name == "step-00000010"
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    with pytest.raises(RequestError, match=r"holds no model: step-00000012 is damaged \(state\.json"):
        find_model(run)


def test_a_model_that_is_not_there_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        find_model(tmp_path / "nothing")
    with pytest.raises(RequestError, match=r"neither model\.safetensors nor checkpoints/"):
        find_model(tmp_path)


def test_it_knows_how_it_was_trained(model):
    assert model.description["masking"] == {"kind": "random", "ratio": 0.75}
    assert (model.description["step"], model.description["seed"]) == (12, 0)
    assert model.preprocessing.channels == 1
    assert not model.mae.training
    assert openmae.load is load


def test_another_shape_names_the_tensor(pixel_run, tmp_path):
    def widen(weights):
        weights["encoder.norm.weight"] = torch.zeros(25)

    def lose(weights):
        del weights["decoder.mask_token"]

    def add(weights):
        weights["encoder.extra"] = torch.zeros(1)

    for change, match in (
        (widen, r"encoder\.norm\.weight is \(25,\) there and \(24,\) here"),
        (lose, r"lacks decoder\.mask_token \(1, 1, 16\)"),
        (add, r"has encoder\.extra"),
    ):
        with pytest.raises(RequestError, match=match):
            load(rewritten(pixel_run, tmp_path, change_weights=change), "cpu")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("shape"),
        lambda d: d.pop("preprocessing"),
        lambda d: d["shape"].pop("encoder"),
        lambda d: d["shape"]["encoder"].update(width=-24),
        lambda d: d["shape"]["encoder"].update(width="24"),
        lambda d: d["shape"]["encoder"].update(image_size=8),
        lambda d: d["shape"]["encoder"].update(unknown=1),
        lambda d: d["shape"].update(target="tokens"),
        lambda d: d["preprocessing"].update(std=[0.0]),
        lambda d: d["preprocessing"].update(mean=[0.1, 0.2]),
    ],
)
def test_a_description_that_makes_no_model_is_refused(pixel_run, tmp_path, change):
    with pytest.raises(RequestError, match="description that does not make a model"):
        load(rewritten(pixel_run, tmp_path, change_description=change), "cpu")


def test_weights_go_over_to_another_grid_but_not_their_positions(pixel_run, digits_config):
    from dataclasses import replace

    from openmae.model.mae import MAE

    init = read_stored_model(pixel_run / "model.safetensors")
    weights, shape = init.weights, init.shape
    larger = MAE.from_shape(replace(shape, encoder=replace(shape.encoder, image_size=(16, 12))))
    positions = larger.encoder.pos_embed.clone()
    lines = load_for_pretraining(larger, init)
    assert torch.equal(larger.encoder.norm.weight, weights["encoder.norm.weight"])
    assert torch.equal(larger.encoder.pos_embed, positions)
    assert torch.equal(larger.decoder.predict.weight, weights["decoder.predict.weight"])
    assert "positions are the sin-cos table of the new size" in lines[-1]


# --- prepare ---


def test_a_path_a_picture_and_an_array_are_the_same_image(model, tmp_path):
    path = png(tmp_path / "a.png")
    with Image.open(path) as picture:
        array = np.array(picture)
        prepared = [model.prepare(image) for image in (str(path), path, picture, array, array[..., None])]
    assert prepared[0].shape == (1, 1, 8, 8)
    assert all(torch.equal(prepared[0], other) for other in prepared[1:])
    together = model.prepare([path, array])
    assert torch.equal(together, torch.cat(prepared[:2]))


def test_values_are_normalised_by_the_trainings_statistics(model, tmp_path):
    p = model.preprocessing
    prepared = model.prepare(png(tmp_path / "a.png", value=255))
    torch.testing.assert_close(prepared, torch.full((1, 1, 8, 8), (1 - p.mean[0]) / p.std[0]))


def test_colours_become_grey_and_alpha_the_background(model, tmp_path):
    assert model.prepare(png(tmp_path / "rgb.png", "RGB")).shape == (1, 1, 8, 8)
    assert model.prepare(np.zeros((9, 9, 3), np.uint8)).shape == (1, 1, 8, 8)
    white = model.prepare(png(tmp_path / "white.png", value=255))
    for mode in ("RGBA", "LA"):
        transparent = png(tmp_path / f"{mode}.png", mode, value=0)
        torch.testing.assert_close(model.prepare(transparent), white, atol=1e-5, rtol=0)
        with Image.open(transparent) as picture:
            torch.testing.assert_close(model.prepare(picture), white, atol=1e-5, rtol=0)


def test_sixteen_bits_become_eight(model):
    wide = np.full((8, 8), 0x8081, np.uint16)
    assert torch.equal(model.prepare(wide), model.prepare((wide >> 8).astype(np.uint8)))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 5), np.uint8),
        np.zeros((1, 8), np.uint8),
        np.zeros((8, 8), np.float32),
        np.zeros((8, 8), np.float64),
        np.zeros((8, 8), np.int64),
        np.zeros((8, 8), bool),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((0, 8), np.uint8),
        "no/such/file.png",
        ".",
    ],
    ids=repr,
)
def test_what_does_not_fit_is_a_wrong_request(model, image):
    with pytest.raises(RequestError, match="cannot be used"):
        model.prepare(image)


def test_a_damaged_file_is_a_wrong_request(model, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(RequestError, match=r"a\.png cannot be used"):
        model.prepare(tmp_path / "a.png")


# --- encode and reconstruct ---


def test_features_are_the_same_each_time_and_alone_or_together(model, tmp_path):
    one, two = png(tmp_path / "a.png"), png(tmp_path / "b.png", value=77)
    features = model.encode([one, two])
    assert features.shape == (2, 1 + 16, 24)
    assert features.isfinite().all()
    assert torch.equal(features, model.encode([one, two]))
    torch.testing.assert_close(features[1:], model.encode(two), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features, model.encode(model.prepare([one, two])))
    assert not torch.allclose(features[0], features[1], atol=1e-2)
    assert not features.requires_grad


def test_features_see_every_patch(model, tmp_path):
    """A masked encoder would not notice a change in a patch that it does not see."""
    image = model.prepare(png(tmp_path / "a.png"))
    features = model.encode(image)
    for row in range(0, 8, 2):
        changed = image.clone()
        changed[..., row : row + 2, 6:] += 1
        assert not torch.allclose(model.encode(changed)[:, 0], features[:, 0], atol=1e-6)


def test_a_reconstruction_follows_its_seed_and_mask(model, tmp_path):
    images = [png(tmp_path / "a.png"), png(tmp_path / "b.png", value=77)]
    result = model.reconstruct(images)
    again, other = model.reconstruct(images), model.reconstruct(images, seed=1)
    assert result.prediction.shape == (2, 1, 8, 8)
    assert torch.equal(result.prediction, again.prediction)
    assert torch.equal(result.is_masked, again.is_masked)
    assert not torch.equal(result.is_masked, other.is_masked)
    assert result.is_masked.float().mean() == 0.75
    assert model.reconstruct(images, mask_ratio=0.5).is_masked.float().mean() == 0.5
    assert model.reconstruct(images, mask="grid").is_masked[:, :, :2, 2:4].all()


def test_a_reconstruction_with_a_given_mask(model, tmp_path):
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    np.save(tmp_path / "mask.npy", mask)
    for options in ({"mask": "given"}, {}):  # a file says by itself that its mask is meant
        result = model.reconstruct(png(tmp_path / "a.png"), mask_file=str(tmp_path / "mask.npy"), **options)
        assert result.is_masked[0, 0].nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


@pytest.mark.parametrize("options", [{"undo": "neighbors"}, {"undo": "both"}, {"mask": "blok"}, {"mask": "given"}])
def test_a_reconstruction_checks_its_names(model, tmp_path, options):
    with pytest.raises(RequestError, match=r"did you mean|got 'both'|mask"):
        model.reconstruct(png(tmp_path / "a.png"), **options)


def test_a_reconstruction_of_another_size(model, tmp_path):
    result = model.reconstruct(png(tmp_path / "a.png"), size=(12, 16))
    assert result.prediction.shape == (1, 1, 12, 16)
    with pytest.raises(RequestError, match="does not divide"):
        model.reconstruct(png(tmp_path / "a.png"), size=(7, 9))
