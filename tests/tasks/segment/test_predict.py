"""`openmae segment IMAGES --predict`: what it writes is what the model says, and bad images are named."""

import itertools
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import openmae
from openmae import SegmentConfig, segment
from openmae.data.augment import resized_crop
from openmae.data.decoding import regions
from openmae.data.masks.augment import scaled_size
from openmae.data.preprocess import normalise
from openmae.data.readers import ReaderKilled
from openmae.errors import Fault, Interrupted, RequestError
from openmae.tasks.prediction import predict as prediction
from openmae.tasks.segment import predict

from ... import processes
from ...processes import summary_of


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


def reference(model, pixels, inference, stride):
    """The class map by hand: the image at once, or the mean of windows of 12 px, cut here."""
    height, width = pixels.shape[:2]
    small = resized_crop(pixels, (0, 0, height, width), scaled_size((height, width), (12, 12)))
    images, total, times = normalise(small[None], model.preprocessing), 0, 0
    with torch.no_grad():
        if inference == "whole":
            total = model.segmenter.segment(images)
        else:
            last = images.shape[3] - 12
            for left in sorted({*range(0, last, stride), last}):
                place = (left, last - left)
                total = total + F.pad(model.segmenter.segment(images[..., left : left + 12]), place)
                times = times + F.pad(torch.ones(12), place)
            total = total / times
    return F.interpolate(total, (height, width), mode="bilinear")[0].argmax(0).numpy()


def test_whole_and_sliding_are_settings(segmenter, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 120, 3)).astype(np.uint8)
    (tmp_path / "new").mkdir()
    Image.fromarray(pixels).save(tmp_path / "new" / "wide.png")
    model, masks = openmae.load(str(segmenter[0]), "cpu"), {}
    cases = {"usual": {}, "whole": {"inference": "whole"}, "dense": {"stride": 2}}
    for name, settings in cases.items():
        segment(config_of(tmp_path / "new", segmenter[0], tmp_path / name, **settings))
        masks[name] = np.asarray(Image.open(tmp_path / name / "masks" / "wide.png"))
        wanted = reference(model, pixels, settings.get("inference", "slide"), settings.get("stride", 8))
        assert (masks[name] == wanted).mean() > 0.999, name  # measured 1; the sums have another order
    for one, other in itertools.combinations(masks.values(), 2):
        assert (one != other).mean() > 0.01


def test_a_stride_beyond_the_crops_is_refused_before_the_folder_is_made(predicted, segmenter, tmp_path):
    for settings, message in (
        ({}, "--stride got 99, more than the model's crops of 12 px"),
        ({"inference": "whole"}, "--stride 99 is for --inference slide"),
    ):
        with pytest.raises(RequestError, match=message):
            segment(config_of(predicted[0] / "new", segmenter[0], tmp_path / "far", stride=99, **settings))
        assert not (tmp_path / "far").exists()


def test_each_image_is_decoded_once(predicted, segmenter, tmp_path, monkeypatch):
    indices, stored_image_of = [], regions.stored_image_of

    def counted(source, index):
        indices.append(index)
        return stored_image_of(source, index)

    monkeypatch.setattr(regions, "stored_image_of", counted)
    segment(config_of(predicted[0] / "new", segmenter[0], tmp_path / "out", max_bad=0.5))
    assert sorted(indices) == list(range(9))


def test_too_many_bad_images_end_it(predicted, segmenter, tmp_path):
    with pytest.raises(RequestError, match="1 of 9 images cannot be read"):
        segment(config_of(predicted[0] / "new", segmenter[0], tmp_path / "out"))
    assert summary_of(tmp_path / "out") == {"status": "failed"}
    assert "broken" in (tmp_path / "out" / "quarantine.jsonl").read_text()
    again = segment(config_of(predicted[0] / "new", segmenter[0], tmp_path / "out", max_bad=0.5))
    assert summary_of(tmp_path / "out") == again
    assert len((tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "error", "status"),
    [(signal.SIGINT, Interrupted, "interrupted"), (signal.SIGTERM, Interrupted, "interrupted"), (0, Fault, "failed")],
)
def test_how_it_ended_is_written(predicted, segmenter, tmp_path, monkeypatch, number, error, status):
    write = predict.write_prediction

    def ended(*arguments):
        write(*arguments)
        if number:
            os.kill(os.getpid(), number)
        else:
            raise Fault("the disk is full")

    monkeypatch.setattr(predict, "write_prediction", ended)
    with pytest.raises(error):
        segment(config_of(predicted[0] / "new", segmenter[0], tmp_path / "out", max_bad=0.5))
    assert summary_of(tmp_path / "out") == {"status": status}
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == 1


def arguments(predicted, segmenter, out, *more):
    common = ("--predict", "--device", "cpu", "--workers", "0")
    return ["segment", str(predicted[0] / "new"), "--init", str(segmenter[0]), "--out", str(out), *common, *more]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_write_what_one_writes(predicted, segmenter, tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"
    assert processes.run(arguments(predicted, segmenter, out, "--max-bad", "0.5"), log, 2) == [0, 0], log.read_text()
    files = sorted(path.relative_to(out) for path in out.rglob("*.png"))
    assert len(files) == 8
    assert all((out / path).read_bytes() == (predicted[0] / "out" / path).read_bytes() for path in files)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_fail_together(predicted, segmenter, tmp_path):
    """Whether what is wrong is known to all of them, or happened in one: no process waits for another."""
    log, out = tmp_path / "log", tmp_path / "out"
    assert processes.run(arguments(predicted, segmenter, out), log, 2) == [2, 2], log.read_text()
    assert summary_of(out) == {"status": "failed"}
    started = processes.start(arguments(predicted, segmenter, out, "--max-bad", "0.5"), log, 2, patch=kill_readers)
    assert processes.wait(started) == [1, 1], log.read_text()
    assert summary_of(out) == {"status": "failed"}


def kill_readers():
    """The readers of the second process are killed."""

    def killed(*arguments, **options):
        raise ReaderKilled("a reader process was killed")
        yield

    if os.environ["RANK"] == "1":
        prediction.whole_images = killed


def test_a_folder_with_masks_is_not_segmented_as_images(segmenter, scenes, tmp_path):
    with pytest.raises(RequestError, match="holds masks beside images"):
        segment(config_of(scenes, segmenter[0], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_masks_that_fit_no_layout_are_not_segmented_either(segmenter, scenes, tmp_path):
    for name in ("masks", "labels"):
        shutil.copytree(scenes / "masks" / "val", tmp_path / "data" / name)
    shutil.copytree(scenes / "images" / "val", tmp_path / "data" / "images")
    with pytest.raises(RequestError, match="holds masks beside images"):
        segment(config_of(tmp_path / "data", segmenter[0], tmp_path / "out"))


def test_parts_mean_nothing(segmenter, scenes, tmp_path):
    for name in ("train/z.png", "val/z.png", "a.PNG"):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scenes / "images" / "val" / "00.png", tmp_path / "new" / name)
    assert segment(config_of(tmp_path / "new", segmenter[0], tmp_path / "out"))["images"] == 3


def test_another_kind_of_model_is_refused(pixel_run, scenes, tmp_path):
    with pytest.raises(RequestError, match="is no segmenter: train one"):
        segment(config_of(scenes / "images" / "val", pixel_run, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(predicted, segmenter):
    root, _ = predicted
    with pytest.raises(RequestError, match="exists"):
        segment(config_of(root / "new", segmenter[0], root / "out"))
