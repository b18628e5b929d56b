"""`openmae segment`: it learns, measures every image once, goes on to the same bytes, and refuses what cannot be."""

import csv
import json
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import openmae
from openmae import SegmentConfig, segment
from openmae.data.masks.palette import IGNORED
from openmae.errors import Interrupted, RequestError
from openmae.tasks.segment.step import pixel_losses

from ...processes import run, run_with_stops
from ...scenes import config_of
from ...shared import metrics, same_training_state, signal_at, untimed

STEPS = 20


def arguments(data, out, workers, micro=8):
    return (
        f"segment {data} --init none --out {out} --width 16 --depth 4 --num-heads 2 --patch-size 2 --image-size 12 "
        f"--head-width 8 --steps {STEPS} --batch-size 8 --micro-batch-size {micro} --device cpu --precision fp32 "
        f"--drop-path 0.1 --log-every 1 --save-every 4 --evaluate-every 100 --workers {workers} --resume auto"
    )


def test_it_learns(segmenter):
    out, summary = segmenter
    measured = [line["miou"] for line in metrics(out) if "miou" in line]
    assert len(measured) == 2
    assert summary["status"] == "complete"
    assert summary["miou"] == pytest.approx(measured[-1])
    assert summary["miou"] > 85  # measured 99.0 after 100 steps
    assert summary["pixel_accuracy"] > 95
    assert summary["images"] == 7
    assert summary["classes"] == 3
    assert summary["report"] == "val"


def test_its_report(segmenter):
    out, summary = segmenter
    with (out / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["ground", "light", "red"]
    assert np.mean([float(row["iou"]) for row in rows]) == pytest.approx(summary["miou"], abs=1e-3)
    with (out / "images.csv").open() as file:
        images = list(csv.DictReader(file))
    assert len(images) == 7
    for name in ("segmentation", "worst", "confusion", "classes"):
        with Image.open(out / "pictures" / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_the_reported_figure_is_that_of_the_loaded_model(segmenter, scenes):
    """Computed here from class maps and masks, by nothing that the evaluation uses."""
    model = openmae.load(str(segmenter[0]), "cpu")
    assert model.classes == ("ground", "light", "red")
    paths = sorted((scenes / "images" / "val").iterdir())
    right = union = 0
    for path, classes in zip(paths, model.segment(paths), strict=True):
        truth = np.asarray(Image.open(scenes / "masks" / "val" / path.name))
        assert classes.shape == truth.shape
        one = np.stack([(truth == k) for k in range(3)]), np.stack([(classes.numpy() == k) for k in range(3)])
        known = truth != 255
        right = right + (one[0] & one[1] & known).sum((1, 2))
        union = union + ((one[0] | one[1]) & known).sum((1, 2))
    assert 100 * np.mean(right / union) == pytest.approx(segmenter[1]["miou"], abs=1e-4)


@pytest.mark.slow
def test_its_encoder_is_an_init_like_any_other(segmenter, scenes, tmp_path):
    features = openmae.load(str(segmenter[0]), "cpu").features(scenes / "images" / "val" / "00.png")
    assert features.shape == (1, 16)
    summary = segment(
        config_of(scenes, tmp_path / "run", init=str(segmenter[0]), width=None, depth=None, num_heads=None)
    )
    assert summary["status"] == "complete"


@pytest.mark.slow
def test_a_frozen_encoder_stays(segmenter, scenes, tmp_path):
    out = tmp_path / "run"
    settings = {"width": None, "depth": None, "num_heads": None, "freeze": True, "drop_path": 0.0}
    segment(config_of(scenes, out, init=str(segmenter[0]), **settings))
    before, after = (load_file(run / "model.safetensors") for run in (segmenter[0], out))
    changed = {name.split(".")[0] for name in after if name in before and not torch.equal(before[name], after[name])}
    assert changed == {"pyramid", "head", "auxiliary"}


@pytest.mark.slow
def test_relative_positions_start_at_zero_and_are_learned(pixel_run, scenes, tmp_path):
    out = tmp_path / "run"
    settings = {"init": str(pixel_run), "width": None, "depth": None, "num_heads": None, "patch_size": None}
    segment(config_of(scenes, out, **settings, relative_positions="bias", image_size=16))
    tables = [value for name, value in load_file(out / "model.safetensors").items() if name.endswith("relative.table")]
    assert tables
    assert all(table.abs().max() > 0 for table in tables)
    resumed = segment(config_of(scenes, out, **settings, relative_positions="bias", image_size=16, resume="auto"))
    assert resumed["status"] == "complete"


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bytes(scenes, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "run"
    segment(config_of(scenes, whole, workers=2))
    signal_at(monkeypatch, 7)
    with pytest.raises(Interrupted):
        segment(config_of(scenes, out))
    monkeypatch.undo()
    segment(config_of(scenes, out, resume="auto"))
    same_training_state(whole, out, 10)
    assert untimed(metrics(whole)) == untimed(metrics(out))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "workers"), [(1, 2), (2, 0)])
def test_a_killed_run_goes_on_to_the_same_bytes(scenes, tmp_path, count, workers):
    chance, whole, out, log = random.Random(count), tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert run(arguments(scenes, whole, 0), log, count) == [0] * count, log.read_text()
    stops = [(signal.SIGKILL, chance.randrange(4, 9)), (signal.SIGTERM, chance.randrange(11, 17))]
    run_with_stops(arguments(scenes, out, workers), out, log, count, stops)
    same_training_state(whole, out, STEPS)
    assert untimed(metrics(whole)) == untimed(metrics(out))


@pytest.mark.slow
def test_two_processes_do_what_one_does(scenes, tmp_path):
    """Batch norms see the whole batch, the loss is normalised over it, and every image is measured once."""
    losses, summaries, log = [], [], tmp_path / "log"
    for count in (1, 2):
        assert run(arguments(scenes, tmp_path / str(count), 0), log, count) == [0] * count, log.read_text()
        losses.append([line["loss"] for line in metrics(tmp_path / str(count)) if "loss" in line])
        summaries.append(json.loads((tmp_path / str(count) / "summary.json").read_bytes()))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert summaries[0]["images"] == summaries[1]["images"] == 7
    assert summaries[0]["pixels"] == summaries[1]["pixels"]


def test_the_loss_counts_labelled_pixels_alike(scenes):
    """Shares of micro-batches add up to the batch's, whatever is ignored in which."""
    logits, labels = torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4, 16, 16))
    labels[0], labels[1, :8] = IGNORED, IGNORED
    whole = pixel_losses(logits, labels)
    parts = [pixel_losses(logits[i : i + 1], labels[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(sum(parts), whole)
    resized = F.interpolate(logits, (16, 16), mode="bilinear").permute(0, 2, 3, 1)[labels >= 0]
    torch.testing.assert_close(whole, F.cross_entropy(resized, labels[labels >= 0], reduction="sum"))
    assert pixel_losses(logits[:1], labels[:1]) == 0


def test_a_batch_of_one_trains(scenes, tmp_path):
    summary = segment(config_of(scenes, tmp_path / "run", batch_size=1, steps=4))
    assert summary["status"] == "complete"
    assert np.isfinite(summary["loss"])


@pytest.mark.slow
def test_bad_pairs_are_counted_and_named(scenes, tmp_path):
    import shutil

    data = tmp_path / "scenes"
    shutil.copytree(scenes, data)
    (data / "images" / "train" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    Image.new("L", (9, 9)).save(data / "masks" / "train" / "05.png")
    Image.new("L", (24, 24), 77).save(data / "masks" / "train" / "06.png")
    with pytest.raises(RequestError, match="more than --max-bad"):
        segment(config_of(data, tmp_path / "strict"))
    summary = segment(config_of(data, tmp_path / "run", max_bad=0.2, steps=12))
    assert summary["status"] == "complete"
    lines = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert {line["name"].rpartition("/")[2] for line in lines} == {"03.png", "05.png", "06.png"}
    reasons = " ".join(line["reason"] for line in lines)
    assert "9 x 9" in reasons
    assert "77" in reasons


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 17}, "--stride got 17, more than --image-size 12"),
        ({"resize_range": (2.0, 0.5)}, "--resize-range got 2 0.5: two factors, rising"),
        ({"max_class_share": 0.0}, "--max-class-share got 0"),
        ({"augment": "crop-fixed"}, "--augment got 'crop-fixed'"),
        ({"freeze": True}, "--freeze needs a trained model"),
        ({"crop_aspect": "square"}, "--crop-aspect square is not for segment"),
        ({"data": "nowhere"}, "nowhere"),
        ({"class_names": "nofile.txt"}, "nofile.txt"),
        ({"image_size": 13}, "a patch of 2 px does not divide an image of 13x13 px"),
        ({"channels": 5}, "the model takes 5 channels, but the images have 3"),
        ({"predict": True, "init": "somewhere"}, "is for training, and --predict only uses --init"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(scenes, tmp_path, settings, message):
    config = config_of(scenes, tmp_path / "run").to_dict()
    with pytest.raises(RequestError, match=message):
        segment(SegmentConfig.from_dict(config | settings))
    assert not (tmp_path / "run").exists()


def test_other_settings_do_not_go_on(segmenter, scenes):
    out = segmenter[0]
    config = config_of(scenes, out, steps=90, evaluate_every=45, resume="auto")
    assert segment(config)["status"] == "complete"
    with pytest.raises(RequestError, match=r"has --max-class-share 0\.75, not 0\.5"):
        segment(replace(config, max_class_share=0.5))
