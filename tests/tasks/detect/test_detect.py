"""`openmae detect`: it learns, measures every image once, goes on to the same bytes, and refuses what cannot be."""

import json
import random
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import openmae
from openmae import DetectConfig, detect
from openmae.errors import Interrupted, RequestError
from openmae.preflight.training import check_detect
from openmae.tasks.detect.detect import open_data

from ...objects import CATEGORIES, write_objects
from ...processes import run, run_with_stops
from ...shared import metrics, same_training_state, signal_at, untimed

STEPS = 12


def config_of(data, out, **settings):
    defaults = {
        "data": str(data),
        "init": "none",
        "width": 32,
        "depth": 4,
        "num_heads": 2,
        "patch_size": 8,
        "image_size": 48,
        "head_width": 16,
        "roi_samples": 16,
        "base_lr": 0.1,
        "steps": 6,
        "batch_size": 4,
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "evaluate_every": 100,
        "save_every": 4,
        "log_every": 1,
        "drop_path": 0.1,
    }
    return DetectConfig(out=str(out), **defaults | settings)


def arguments(data, out, workers, micro=4, head="table-4"):
    return (
        f"detect {data} --init none --out {out} --width 16 --depth 4 --num-heads 2 --patch-size 8 --image-size 48 "
        f"--head-width 8 --roi-samples 8 --pyramid {head} --steps {STEPS} --batch-size 4 --micro-batch-size {micro} "
        f"--device cpu --precision fp32 --drop-path 0.1 --log-every 1 --save-every 3 --evaluate-every 100 "
        f"--workers {workers} --resume auto"
    )


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_objects(tmp_path_factory.mktemp("data") / "few", train=8, val=3, side=48)


@pytest.fixture(scope="module")
def detected(few, tmp_path_factory):
    out = tmp_path_factory.mktemp("detectors") / "run"
    return out, detect(config_of(few, out))


def test_what_a_run_leaves(detected):
    out, summary = detected
    assert summary["status"] == "complete"
    assert (summary["report"], summary["report_images"], summary["classes"]) == ("val", 3, 3)
    for name in ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"):
        assert 0 <= summary[name] <= 100
    assert summary["box_ap"] == pytest.approx([line["box_ap"] for line in metrics(out) if "box_ap" in line][-1])
    for name in ("classes.csv", "images.csv", "predictions.json", "pictures/detection.png", "pictures/worst.png"):
        assert (out / name).stat().st_size > 0
    found = json.loads((out / "predictions.json").read_text())
    assert {one["category_id"] for one in found} <= set(CATEGORIES)


@pytest.mark.slow
def test_its_encoder_is_an_init_like_any_other(detected, few, tmp_path):
    own = {"width": None, "depth": None, "num_heads": None}
    assert openmae.load(str(detected[0]), "cpu").features(few / "images" / "val" / "00.png").shape == (1, 32)
    summary = detect(config_of(few, tmp_path / "run", init=str(detected[0]), steps=2, **own))
    assert summary["status"] == "complete"


@pytest.mark.slow
def test_a_frozen_encoder_stays(detected, few, tmp_path):
    out = tmp_path / "run"
    own = {"width": None, "depth": None, "num_heads": None, "freeze": True, "drop_path": 0.0}
    detect(config_of(few, out, init=str(detected[0]), **own))
    before, after = (load_file(run / "model.safetensors") for run in (detected[0], out))
    changed = {name.split(".")[0] for name in after if name in before and not torch.equal(before[name], after[name])}
    assert changed == {"pyramid", "head"}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_it_learns(objects, tmp_path):
    """Coloured rectangles, from scratch."""
    summary = detect(config_of(objects, tmp_path / "run", steps=60, image_size=64, head_width=32, drop_path=0.0))
    assert summary["box_ap50"] > 20  # measured 39.5 after 40 steps, 1.1 after 10
    assert summary["mask_ap50"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"pyramid": "simple"}, {"window_size": 3, "relative_positions": "bias"}])
def test_vitdet_and_windows_train_from_a_trained_encoder(pixel_run, few, tmp_path, settings):
    """A class token that windows have no place for is left out, and said to be."""
    own = {"width": None, "depth": None, "num_heads": None, "patch_size": None, "init": str(pixel_run)}
    out = tmp_path / "run"
    summary = detect(config_of(few, out, **own, **settings))
    assert summary["status"] == "complete"
    names = load_file(out / "model.safetensors").keys()
    assert ("encoder.cls_token" in names) == ("window_size" not in settings)
    tables = [value for name, value in load_file(out / "model.safetensors").items() if name.endswith("relative.table")]
    assert bool(tables) == ("window_size" in settings)
    assert all(table.abs().max() > 0 for table in tables)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bytes(few, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "run"
    detect(config_of(few, whole, workers=2, steps=10))
    signal_at(monkeypatch, 7)
    with pytest.raises(Interrupted):
        detect(config_of(few, out, steps=10))
    monkeypatch.undo()
    detect(config_of(few, out, steps=10, resume="auto"))
    same_training_state(whole, out, 10)
    assert untimed(metrics(whole)) == untimed(metrics(out))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("count", "workers"), [(1, 2), (2, 0)])
def test_a_killed_run_goes_on_to_the_same_bytes(few, tmp_path, count, workers):
    chance, whole, out, log = random.Random(count), tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert run(arguments(few, whole, 0), log, count) == [0] * count, log.read_text()
    stops = [(signal.SIGKILL, chance.randrange(4, 6)), (signal.SIGTERM, chance.randrange(8, 10))]
    run_with_stops(arguments(few, out, workers), out, log, count, stops)
    same_training_state(whole, out, STEPS)
    assert untimed(metrics(whole)) == untimed(metrics(out))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_do_what_one_does(few, tmp_path):
    """Batch norms see the whole batch, regions are drawn by image, losses are means over images."""
    losses, summaries, log = [], [], tmp_path / "log"
    for count in (1, 2):
        assert run(arguments(few, tmp_path / str(count), 0), log, count) == [0] * count, log.read_text()
        losses.append([line["loss"] for line in metrics(tmp_path / str(count)) if "loss" in line])
        summaries.append(json.loads((tmp_path / str(count) / "summary.json").read_bytes()))
    # A proposal may fall on the other side of a threshold by rounding, so only the first steps must agree closely.
    np.testing.assert_allclose(losses[0][:3], losses[1][:3], rtol=1e-4)
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.1)
    assert summaries[0]["report_images"] == summaries[1]["report_images"] == 3


@pytest.mark.slow
def test_micro_batches_change_nothing_without_batch_norms(few, tmp_path):
    """ViTDet's heads have layer norms: the step is that of the whole batch."""
    losses = []
    for micro in (4, 1):
        out = tmp_path / str(micro)
        detect(config_of(few, out, pyramid="simple", micro_batch_size=micro, steps=3))
        losses.append([line["loss"] for line in metrics(out) if "loss" in line])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.slow
def test_out_of_memory_halves_the_micro_batch(few, tmp_path, monkeypatch, capsys):
    from openmae.tasks.detect import detect as module

    whole = module.train_step

    def step(model, optimizer, inputs, task):
        if len(inputs.micro_batches[0].images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, optimizer, inputs, task)

    monkeypatch.setattr(module, "train_step", step)
    summary = detect(config_of(few, tmp_path / "run", steps=2))
    assert summary["status"] == "complete"
    assert "out of memory: now 2 images at a time" in capsys.readouterr().out


@pytest.mark.slow
def test_a_batch_of_one_trains(few, tmp_path):
    summary = detect(config_of(few, tmp_path / "run", batch_size=1, steps=3))
    assert summary["status"] == "complete"
    assert np.isfinite(summary["loss"])


@pytest.mark.slow
def test_json_files_may_be_named_outright(few, tmp_path):
    files = {split: str(few / f"instances_{split}.json") for split in ("train", "val")}
    config = replace(config_of(None, tmp_path / "run"), data=None, **files)
    check_detect(config)
    assert (len(open_data(config, None, None).train), tmp_path.joinpath("run").exists()) == (8, False)
    with pytest.raises(RequestError, match=r"is a file: give the folder around it and its images, or --train"):
        open_data(config_of(files["train"], tmp_path / "run"), None, None)


def test_boxes_alone(few, tmp_path):
    summary = detect(config_of(few, tmp_path / "run", boxes_only=True, steps=2))
    assert "box_ap" in summary
    assert "mask_ap" not in summary


@pytest.mark.slow
def test_bad_images_are_counted_and_named(few, tmp_path):
    data = tmp_path / "objects"
    shutil.copytree(few, data)
    (data / "images" / "train" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (data / "images" / "train" / "05.png").unlink()
    with pytest.raises(RequestError, match="more than --max-bad"):
        detect(config_of(data, tmp_path / "strict"))
    detect(config_of(data, tmp_path / "run", max_bad=0.5, steps=2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert {line["name"].rpartition("/")[2] for line in lines} == {"03.png", "05.png"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize_range": (2.0, 0.5)}, "--resize-range got 2 0.5: two factors, rising"),
        ({"augment": "crop"}, "--augment got 'crop'"),
        ({"freeze": True}, "--freeze needs a trained model"),
        ({"crop_aspect": "square"}, "--crop-aspect square is not for detect"),
        ({"data": "nowhere"}, "nowhere"),
        ({"image_size": 52}, "a patch of 8 px does not divide an image of 52x52 px"),
        ({"channels": 5}, "the model takes 5 channels, but the images have 3"),
        ({"predict": True, "init": "somewhere"}, "is for training, and --predict only uses --init"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(few, tmp_path, settings, message):
    config = config_of(few, tmp_path / "run").to_dict()
    with pytest.raises(RequestError, match=message):
        detect(DetectConfig.from_dict(config | settings))
    assert not (tmp_path / "run").exists()


def test_other_settings_do_not_go_on(detected, few):
    config = config_of(few, detected[0], resume="auto")
    assert detect(config)["status"] == "complete"
    with pytest.raises(RequestError, match=r"has --roi-samples 16, not 32"):
        detect(replace(config, roi_samples=32))
