"""`openmae detect IMAGES --predict`: what it writes is what the model finds, and bad images are named."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import openmae
from openmae import DetectConfig, detect
from openmae.errors import Fault, RequestError
from openmae.tasks.detect import predict

from ... import processes
from ...processes import summary_of


def config_of(data, init, out, **settings):
    defaults = {"predict": True, "device": "cpu", "workers": 0}
    return DetectConfig(data=str(data), init=str(init), out=str(out), **defaults | settings)


@pytest.fixture(scope="module")
def predicted(detector_file, objects, tmp_path_factory):
    root = tmp_path_factory.mktemp("detections")
    (root / "new" / "inner").mkdir(parents=True)
    for number in (0, 2):
        shutil.copy(objects / "images" / "val" / f"{number:02}.png", root / "new" / "inner")
    (root / "new" / "inner" / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (5, 90), (30, 30, 30)).save(root / "new" / "long.jpg")
    return root, detect(config_of(root / "new", detector_file, root / "out", max_bad=0.5))


def test_predictions_are_what_the_model_finds(predicted, detector_file):
    root, summary = predicted
    assert (summary["status"], summary["images"], summary["unreadable"]) == ("complete", 3, 1)
    assert summary_of(root / "out") == summary
    model = openmae.load(str(detector_file), "cpu")
    images = json.loads((root / "out" / "images.json").read_text())
    assert [image["file_name"] for image in images["images"]] == ["inner/00.png", "inner/02.png", "long.jpg"]
    assert images["categories"] == [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}, {"id": 11, "name": "blue"}]
    entries = json.loads((root / "out" / "predictions.json").read_text())
    for image in images["images"]:
        (found,) = model.detect(root / "new" / image["file_name"])
        own = [entry for entry in entries if entry["image_id"] == image["id"]]
        left, top, right, bottom = found.boxes.numpy().T
        wanted = np.stack([left, top, right - left, bottom - top], axis=1)
        assert np.allclose([entry["bbox"] for entry in own], wanted, atol=0.02)
        assert np.allclose([entry["score"] for entry in own], found.scores, atol=1e-4)
        assert [entry["category_id"] for entry in own] == [model.category_ids[k] for k in found.labels]
        assert all(entry["segmentation"]["size"] == [image["height"], image["width"]] for entry in own)


def test_overlays_have_the_size_of_their_images(predicted):
    root, _ = predicted
    overlays = sorted((root / "out" / "overlays").rglob("*.jpg"))
    assert [path.stem for path in overlays] == ["00", "02", "long"]
    for path in overlays:
        assert Image.open(path).size == Image.open(next((root / "new").rglob(f"{path.stem}.*"))).size


def test_what_could_not_be_read_is_named(predicted):
    root, _ = predicted
    (line,) = (root / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "inner/broken.png"
    assert (root / "out" / "classes.csv").read_text().splitlines()[2].startswith("7,green,#")


def test_too_many_bad_images_end_it(predicted, detector_file, tmp_path):
    with pytest.raises(RequestError, match="1 of 4 images cannot be read"):
        detect(config_of(predicted[0] / "new", detector_file, tmp_path / "out"))
    assert summary_of(tmp_path / "out") == {"status": "failed"}


def test_how_it_ended_is_written(predicted, detector_file, tmp_path, monkeypatch):
    def full(*arguments):
        raise Fault("the disk is full")

    monkeypatch.setattr(predict, "write_detections", full)
    with pytest.raises(Fault):
        detect(config_of(predicted[0] / "new", detector_file, tmp_path / "out", max_bad=0.5))
    assert summary_of(tmp_path / "out") == {"status": "failed"}


def test_another_kind_of_model_is_refused(pixel_run, predicted, tmp_path):
    with pytest.raises(RequestError, match="is no detector: train one"):
        detect(config_of(predicted[0] / "new", pixel_run, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_images_are_searched_one_at_a_time(tmp_path):
    with pytest.raises(RequestError, match="--micro-batch-size is for training"):
        config_of(tmp_path, tmp_path, tmp_path / "out", micro_batch_size=2)


def test_a_coco_set_is_searched_as_images(detector_file, objects, tmp_path):
    summary = detect(config_of(objects / "images" / "val", detector_file, tmp_path / "out"))
    assert summary["images"] == 8


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_processes_write_what_one_writes(predicted, detector_file, tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"
    arguments = ["detect", str(predicted[0] / "new"), "--init", str(detector_file), "--out", str(out), "--predict"]
    arguments += ["--device", "cpu", "--workers", "0", "--max-bad", "0.5"]
    assert processes.run(arguments, log, 2) == [0, 0], log.read_text()
    for name in ("predictions.json", "images.json"):
        assert (out / name).read_bytes() == (predicted[0] / "out" / name).read_bytes()
    assert len(list((out / "overlays").rglob("*.jpg"))) == 3
