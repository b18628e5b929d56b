"""`openmae segment IMAGES --predict`: what it writes is what the model says, and bad images are named."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import openmae
from openmae import SegmentConfig, segment
from openmae.errors import RequestError


def config_of(data, init, out, **settings):
    defaults = {"predict": True, "device": "cpu", "workers": 0}
    return SegmentConfig(data=str(data), init=str(init), out=str(out), **defaults | settings)


@pytest.fixture(scope="module")
def predicted(segmenter, scenes, tmp_path_factory):
    root = tmp_path_factory.mktemp("predictions")
    shutil.copytree(scenes / "images" / "val", root / "new" / "inner")
    (root / "new" / "inner" / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (5, 90), (30, 30, 30)).save(root / "new" / "long.jpg")
    summary = segment(config_of(root / "new", segmenter[0], root / "out", max_bad=0.5))
    return root, summary


def test_masks_are_what_the_model_says(predicted, segmenter):
    root, summary = predicted
    assert summary["images"] == 8
    assert summary["unreadable"] == 1
    model = openmae.load(str(segmenter[0]), "cpu")
    for name in ("inner/00.png", "inner/03.png", "long.jpg"):
        with Image.open(root / "out" / "masks" / f"{name.rpartition('.')[0]}.png") as mask:
            assert mask.mode == "P"
            values = np.asarray(mask)
        assert np.array_equal(values, model.segment(root / "new" / name)[0].numpy())


def test_overlays_have_the_size_of_their_images(predicted):
    root, _ = predicted
    for path in sorted((root / "out" / "overlays").rglob("*.jpg")):
        image = next((root / "new").rglob(f"{path.stem}.*"))
        assert Image.open(path).size == Image.open(image).size
    assert len(list((root / "out" / "overlays").rglob("*.jpg"))) == 8


def test_what_could_not_be_read_is_named(predicted):
    root, _ = predicted
    (line,) = (root / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "inner/broken.png"
    assert json.loads((root / "out" / "summary.json").read_bytes())["status"] == "complete"
    assert (root / "out" / "classes.csv").read_text().splitlines()[2].startswith("1,light,#")


def test_whole_and_sliding_are_settings(predicted, segmenter, tmp_path):
    root, _ = predicted
    for name, settings in (("whole", {"inference": "whole"}), ("dense", {"stride": 2})):
        segment(config_of(root / "new", segmenter[0], tmp_path / name, max_bad=0.5, **settings))
        assert len(list((tmp_path / name / "masks").rglob("*.png"))) == 8
    with pytest.raises(RequestError, match="--stride got 99, more than the model's crops of 12 px"):
        segment(config_of(root / "new", segmenter[0], tmp_path / "far", stride=99))


def test_too_many_bad_images_end_it(predicted, segmenter, tmp_path):
    with pytest.raises(RequestError, match="1 of 9 images cannot be read"):
        segment(config_of(predicted[0] / "new", segmenter[0], tmp_path / "out"))


def test_a_folder_with_masks_is_not_segmented_as_images(segmenter, scenes, tmp_path):
    with pytest.raises(RequestError, match="holds masks beside images"):
        segment(config_of(scenes, segmenter[0], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_another_kind_of_model_is_refused(pixel_run, scenes, tmp_path):
    with pytest.raises(RequestError, match="is no segmenter: train one"):
        segment(config_of(scenes / "images" / "val", pixel_run, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(predicted, segmenter):
    root, _ = predicted
    with pytest.raises(RequestError, match="exists"):
        segment(config_of(root / "new", segmenter[0], root / "out"))
