"""The table of features: what other programs read from it, and that it is whole or not there."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from openmae.config.features import EmbedConfig
from openmae.data.sources.open import open_source
from openmae.errors import Fault, RequestError
from openmae.inference.load import load
from openmae.tasks import embed as embed_module
from openmae.tasks.embed import embed

STRANGE = b"no utf-8 \xff\n.png"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Class folders of 12 and 5 digits; one of train is cut short, one has a name that no table can hold."""
    folder, digits = tmp_path_factory.mktemp("images"), open_source("embedded:digits", "train")
    for part, numbers in (("train", range(12)), ("test", range(12, 17))):
        for number in numbers:
            path = folder / part / f"digit {digits.label(number) % 2}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.read(number)[..., 0]).save(path)
    cut = folder / "train" / "digit 0" / "cut.png"
    cut.write_bytes((folder / "train" / "digit 0" / "000.png").read_bytes()[:60])
    os.rename(folder / "train" / "digit 1" / "001.png", os.fsencode(folder / "train" / "digit 1") + b"/" + STRANGE)
    return folder


@pytest.fixture
def config(pixel_run, images, tmp_path):
    settings = {"data": str(images), "init": str(pixel_run), "out": str(tmp_path / "table.npz"), "max_bad": 0.1}
    return EmbedConfig(**settings, batch_size=5, device="cpu", workers=0)


def read_npz(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_an_npz_is_read_without_pickles_and_holds_what_the_model_says(config, pixel_run, images, capsys):
    summary = embed(config)
    table = read_npz(config.out)
    assert table.keys() == {"features", "paths", "labels", "split", "about"}
    assert summary["shape"] == [17, 24] == list(table["features"].shape)
    assert table["features"].dtype == np.float32
    assert table["split"].tolist() == ["train"] * 12 + ["test"] * 5
    assert json.loads(table["about"].item())["classes"] == ["digit 0", "digit 1"]
    model = load(str(pixel_run), "cpu")
    for path, label, split, features in zip(
        table["paths"].tolist(), table["labels"], table["split"], table["features"], strict=True
    ):
        assert path.split("/")[:2] == [split, f"digit {label}"]
        if "xff" not in path:
            expected = model.features(images / path)[0].numpy()
            assert np.abs(features - expected).max() < 1e-5 * np.abs(expected).max()  # measured 0
    assert [path for path in table["paths"] if "xff" in path] == [r"train/digit 1/no utf-8 \xff\n.png"]
    printed = capsys.readouterr().out
    assert "images     13 of train, 5 of test (--split chooses)" in printed
    assert "unreadable, left out: train/digit 0/cut.png (" in printed
    assert "features 17 x 24 float32" in printed


def test_parquet_holds_the_same(config, tmp_path):
    embed(config)
    embed(dataclasses.replace(config, out=str(tmp_path / "table.parquet")))
    arrays, table = read_npz(config.out), pq.read_table(tmp_path / "table.parquet")
    assert table.column_names == ["path", "label", "split", "features"]
    assert str(table.schema.field("features").type) in (
        "fixed_size_list<item: float>[24]",
        "fixed_size_list<element: float>[24]",
    )
    for column, array in (("path", "paths"), ("label", "labels"), ("split", "split")):
        assert table[column].to_pylist() == arrays[array].tolist()
    assert np.array_equal(np.array(table["features"].to_pylist(), np.float32), arrays["features"])
    assert json.loads(table.schema.metadata[b"openmae"]) == json.loads(arrays["about"].item())


def test_a_table_longer_than_a_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(embed_module, "ROWS_AT_ONCE", 3)
    columns = {
        "features": np.arange(40, dtype=np.float16).reshape(10, 2, 1, 2),
        "paths": np.array([f"{n}.png" for n in range(10)]),
        "labels": np.arange(10) - 1,
        "split": np.array(["train"] * 10),
    }
    embed_module.write_table(tmp_path / "t.parquet", columns, "{}")
    table = pq.read_table(tmp_path / "t.parquet")
    assert np.array_equal(np.array(table["features"].to_pylist()), columns["features"].reshape(10, 4))
    assert table["path"].to_pylist() == columns["paths"].tolist()
    assert json.loads(table.schema.metadata[b"shape"]) == [2, 1, 2]


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_a_second_time_gives_the_same_bytes(config, tmp_path, ending):
    paths = [tmp_path / f"{number}.{ending}" for number in (1, 2)]
    for path, workers in zip(paths, (0, 2), strict=True):
        embed(dataclasses.replace(config, out=str(path), workers=workers))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_grid_half_and_one_split(config):
    embed(config)
    full = read_npz(config.out)
    embed(dataclasses.replace(config, pool="grid", half=True, split="test", image_size=(8, 12)))
    table = read_npz(config.out)
    assert table["features"].shape == (5, 4, 6, 24)
    assert table["features"].dtype == np.float16
    assert table["split"].tolist() == ["test"] * 5
    embed(dataclasses.replace(config, half=True))
    half = read_npz(config.out)["features"]
    assert np.array_equal(half, full["features"].astype(np.float16))


def test_large_images_without_labels(config, pixel_run, tmp_path):
    """What the table says of an image is what the model says of it: both look at the same part of it."""
    (tmp_path / "flat").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8)
    for number, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / "flat" / f"{number}.png")
    embed(dataclasses.replace(config, data=str(tmp_path / "flat")))
    table = read_npz(config.out)
    assert table["labels"].tolist() == [-1] * 3
    assert table["paths"].tolist() == ["0.png", "1.png", "2.png"]
    assert table["split"].tolist() == ["train"] * 3
    expected = load(str(pixel_run), "cpu").features(list(values)).numpy()
    assert np.abs(table["features"] - expected).max() < 1e-5 * np.abs(expected).max()  # measured 0


def test_too_many_unreadable_images_write_nothing(config, tmp_path, capsys):
    with pytest.raises(RequestError, match=r"1 of 18 images cannot be read: 'train/digit 0/cut.png' .*--max-bad 0.01"):
        embed(dataclasses.replace(config, max_bad=0.01))
    assert "unreadable, left out: train/digit 0/cut.png" in capsys.readouterr().out
    (tmp_path / "bad").mkdir()
    for name in "ab":
        (tmp_path / "bad" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(RequestError, match="none of 2 images"):
        embed(dataclasses.replace(config, data=str(tmp_path / "bad"), max_bad=1.0))
    assert not os.path.exists(config.out)


def test_a_table_that_cannot_be_written_whole_is_not_there(config, tmp_path, monkeypatch):
    def fill_the_disk(file, **arrays):
        file.write(b"some of it")
        raise OSError(28, "No space left on device")

    embed(config)
    before = Path(config.out).read_bytes()
    monkeypatch.setattr(embed_module.np, "savez", fill_the_disk)
    with pytest.raises(Fault, match="the disk is full"):
        embed(config)
    assert Path(config.out).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["table.npz"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "val"}, "--split got val, but .* has no such part"),
        ({"image_size": 7}, "a patch of 2 px does not divide"),
        ({"layer": 2}, "--layer got 2"),
        ({"data": "embedded:digts"}, "did you mean embedded:digits"),
    ],
)
def test_wrong_requests(config, changes, message):
    with pytest.raises(RequestError, match=message):
        embed(dataclasses.replace(config, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "features.csv"}, "must be a file that ends in .npz or .parquet"),
        ({"pool": "max"}, "--pool got 'max': .*known are cls, mean, grid"),
        ({"split": "dev"}, "--split got 'dev'"),
        ({"half": 1}, "--half got 1"),
        ({"max_bad": 2.0}, "--max-bad got 2"),
    ],
)
def test_wrong_settings(config, changes, message):
    with pytest.raises(RequestError, match=message):
        dataclasses.replace(config, **changes)


def test_the_images_are_spared(config, images, tmp_path):
    with pytest.raises(RequestError, match="lies among, the images"):
        embed(dataclasses.replace(config, out=str(images / "new" / "table.parquet")))
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(RequestError, match="is a folder"):
        embed(dataclasses.replace(config, out=str(tmp_path / "folder.npz")))
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="is no folder"):
        embed(dataclasses.replace(config, out=str(tmp_path / "file" / "table.npz")))
