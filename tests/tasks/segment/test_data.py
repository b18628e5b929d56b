"""`openmae segment` on each kind of data: a palette, numbers with gaps, nothing ignored, 16 bits, five channels."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from openmae import segment
from openmae.errors import Interrupted

from ...scenes import config_of
from ...shared import metrics, same_training_state, signal_at, untimed

SHORT = {"steps": 4, "save_every": 2, "evaluate_every": 4, "depth": 4, "width": 8, "head_width": 8, "batch_size": 4}
COLOURS = np.full((256, 3), 7, np.uint8)
COLOURS[:3] = [[0, 0, 0], [200, 200, 200], [200, 0, 0]]


@pytest.fixture
def data(scenes, tmp_path):
    """A copy of the scenes, to be changed."""
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    return root


def trained(data, out, **settings):
    summary = segment(config_of(data, out, **SHORT | settings))
    assert summary["status"] == "complete"
    assert np.isfinite(summary["loss"])
    return summary


def change(data, kind, function):
    """Save anew what `function` makes of each image or mask."""
    for path in sorted((data / kind).glob("*/*.png")):
        Image.fromarray(function(np.asarray(Image.open(path)))).save(path)


def classes_of(out):
    with (out / "classes.csv").open() as file:
        return [row["class"] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_palette_gives_the_model_of_numbers_and_goes_on(data, scenes, tmp_path, monkeypatch):
    change(data, "masks", lambda values: COLOURS[values])
    (data / "colours.txt").write_text("7 7 7 void\n0 0 0 ground\n200 200 200 light\n200 0 0 red\n")
    palette = {"class_names": None, "palette": str(data / "colours.txt")}
    whole, out = tmp_path / "whole", tmp_path / "run"
    summary = trained(data, whole, **palette)
    of_numbers = trained(scenes, tmp_path / "numbers")
    assert (summary["loss"], summary["miou"]) == (of_numbers["loss"], of_numbers["miou"])
    assert classes_of(whole) == ["ground", "light", "red"]
    signal_at(monkeypatch, 3)
    with pytest.raises(Interrupted):
        segment(config_of(data, out, **SHORT | palette))
    monkeypatch.undo()
    trained(data, out, **palette, resume="auto")
    same_training_state(whole, out, SHORT["steps"])
    assert untimed(metrics(whole)) == untimed(metrics(out))


@pytest.mark.slow
def test_nothing_is_ignored(data, tmp_path):
    """With -1 the edges, 255, are a class like any other."""
    change(data, "masks", lambda values: np.where(values == 255, 3, values).astype(np.uint8))
    (data / "names.txt").write_text("ground\nlight\nred\nedge\n")
    summary = trained(data, tmp_path / "run", ignore_index=-1)
    val = sorted((data / "masks" / "val").iterdir())
    assert summary["classes"] == 4
    assert summary["pixels"] == sum(np.asarray(Image.open(path)).size for path in val)


@pytest.mark.slow
def test_numbers_with_gaps(data, tmp_path):
    change(data, "masks", lambda values: np.where(values == 2, 9, values).astype(np.uint8))
    (data / "names.txt").write_text("0,ground\n1,light\n9,red\n")
    assert trained(data, tmp_path / "run")["classes"] == 10
    assert classes_of(tmp_path / "run")[9] == "red"


def test_a_part_of_train_is_held_out(data, tmp_path):
    for kind in ("images", "masks"):
        shutil.rmtree(data / kind / "val")
    summary = trained(data, tmp_path / "run")
    held_out = json.loads((tmp_path / "run" / "split.json").read_text())["held_out"]
    assert (summary["report"], summary["report_images"], summary["train_images"]) == ("split of train", 4, 20)
    assert len(held_out) == 4


def test_images_of_16_bits(data, tmp_path):
    change(data, "images", lambda pixels: pixels[..., 0].astype(np.uint16) * 257)
    assert trained(data, tmp_path / "run", augment="crop-jitter")["images"] == 7


@pytest.mark.slow
def test_arrays_of_five_channels(data, tmp_path):
    for path in sorted((data / "images").glob("*/*.png")):
        pixels = np.asarray(Image.open(path))
        np.save(path.with_suffix(".npy"), np.concatenate([pixels, pixels[..., :2]], axis=2))
        path.unlink()
    assert trained(data, tmp_path / "run", channels=5)["images"] == 7
