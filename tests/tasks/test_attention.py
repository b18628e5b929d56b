"""The sheet of attention maps: the right values in the right places."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from openmae.config.features import AttentionConfig
from openmae.data.sources.open import open_source
from openmae.errors import RequestError
from openmae.inference.load import load
from openmae.model.attention_maps import attention_weights
from openmae.pictures.sheet import CELL, GAP
from openmae.tasks import attention as attention_module
from openmae.tasks.attention import attention, overlay


@pytest.fixture(scope="module")
def digit(tmp_path_factory):
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    Image.fromarray(open_source("embedded:digits", "train").read(0)[..., 0]).save(path)
    return path


@pytest.fixture
def config(pixel_run, digit, tmp_path):
    return AttentionConfig(images=(str(digit),), init=str(pixel_run), out=str(tmp_path / "sheet.png"), device="cpu")


def test_the_summary_says_what_the_weights_are(config, pixel_run, digit, capsys):
    summary = attention(config)
    model = load(str(pixel_run), "cpu")
    weights = attention_weights(model.encoder, model.prepare(digit))[0, :, 0].mean(0)
    assert summary["highest"] == [pytest.approx(float(weights[1:].max()), rel=1e-5)]
    assert summary["to_itself"] == [pytest.approx(float(weights[0]), rel=1e-5)]
    assert (summary["images"], summary["skipped"], summary["layer"], summary["grid"]) == (1, 0, 1, [4, 4])
    said = capsys.readouterr().out
    assert f"digit.png: attention to a patch {float(weights[1:].min()):.2g} to {float(weights[1:].max()):.2g}" in said
    assert "(all alike: 0.062)" in said


def test_the_sheet_has_a_row_for_each_image_and_a_column_for_each_head(config, digit, tmp_path):
    attention(config)
    plain = Image.open(config.out).size
    attention(dataclasses.replace(config, images=(str(digit),) * 2))
    two = Image.open(config.out).size
    attention(dataclasses.replace(config, heads=True))
    heads = Image.open(config.out).size
    assert two[0] == plain[0]
    assert two[1] > plain[1] + 224
    assert heads[0] == 5 * (CELL + GAP) + 2 * GAP  # the image, the mean and three heads


def test_larger_images_give_finer_maps(config):
    assert attention(dataclasses.replace(config, image_size=(16, 12)))["grid"] == [8, 6]


def test_a_map_is_bright_where_the_weight_is(config):
    picture = Image.new("RGB", (64, 32), (100, 100, 100))
    weights = torch.full((2, 4), 0.01)
    weights[1, 2] = 0.9
    found = np.asarray(overlay(picture, weights)).astype(int).sum(-1)
    assert found.shape == (32, 64)
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert 16 <= row < 32
    assert 32 <= column < 48
    assert found[24, 40] > 2 * found[8, 8]
    even = np.asarray(overlay(picture, torch.full((2, 4), 0.125)))
    assert (even == even[0, 0]).all()
    assert np.isfinite(np.asarray(overlay(picture, torch.zeros(2, 4)))).all()


def test_equal_attention_scaled_alike_whatever_its_size(config):
    picture = Image.new("L", (32, 32), 128).convert("RGB")
    weights = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    one, two = (np.asarray(overlay(picture, scale * weights)).astype(int) for scale in (1, 1e-4))
    assert abs(one - two).max() <= 1


def test_a_data_set_shows_its_first_images(config, monkeypatch):
    shown = []
    monkeypatch.setattr(attention_module, "attention_line", lambda image, *values: shown.append(image) or "")
    summary = attention(dataclasses.replace(config, images=("embedded:digits",), limit=3))
    assert summary["images"] == 3
    source = open_source("embedded:digits", "val")
    assert all(np.array_equal(image, source.read(index)) for index, image in enumerate(shown))


def test_an_unreadable_file_is_named_and_left_out(config, digit, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    summary = attention(dataclasses.replace(config, images=(str(tmp_path / "bad.png"), str(digit))))
    assert (summary["images"], summary["skipped"]) == (1, 1)
    assert "skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 2}, "--layer got 2: it must be at least 1 and at most 1"),
        ({"image_size": 9}, "a patch of 2 px does not divide"),
        ({"images": ("nowhere.png",)}, "nowhere.png"),
    ],
)
def test_wrong_requests(config, changes, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        attention(dataclasses.replace(config, **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ()}, "attention got no image"),
        ({"out": "sheet.jpg"}, "must be a file that ends in .png"),
        ({"layer": 0}, "--layer got 0"),
        ({"limit": 0}, "--limit got 0"),
    ],
)
def test_wrong_settings(config, changes, message):
    with pytest.raises(RequestError, match=message):
        dataclasses.replace(config, **changes)


def test_the_image_is_spared(config, digit):
    with pytest.raises(RequestError, match="choose another name"):
        attention(dataclasses.replace(config, out=str(digit)))


def test_a_size_whose_weights_would_fill_the_memory_is_refused(config):
    with pytest.raises(RequestError, match=r"the attention of [\d,]+ patches needs .* GB, cpu has .*: give a smaller"):
        attention(dataclasses.replace(config, image_size=4000))
