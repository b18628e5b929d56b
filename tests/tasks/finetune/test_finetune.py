"""`finetune` end to end on tiny data: against timm's own training, through stops, processes, and whatever labels come.

The pre-trained model is one of 16 channels and two blocks for digits of 8 pixels.
"""

import csv
import itertools
import json
import math
import os
import re
import shutil
import signal
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import openmae
from openmae.cli import run as openmae_run
from openmae.config import FinetuneConfig, Preprocessing
from openmae.data.augment import Augmentation
from openmae.data.labels.subsets import labels_of
from openmae.data.loader import Stream
from openmae.data.mixing import Mixing
from openmae.data.sources.open import open_source
from openmae.errors import Interrupted, RequestError
from openmae.machine.parallel import Processes
from openmae.recipes import FINETUNE_RECIPES
from openmae.run.open_run import Run
from openmae.tasks.finetune import evaluation as finetune_evaluation
from openmae.tasks.finetune import finetune as task
from openmae.tasks.finetune import step as finetune_step
from openmae.tasks.finetune.finetune import finetune
from openmae.tasks.pretrain.pretrain import pretrain
from openmae.training.checkpoint import METADATA_KEY, read_model
from openmae.training.telemetry import read_lines

from ...processes import run as run_processes
from ...processes import said
from ...shared import metrics, same_training_state, signal_at, snapshot, untimed
from ...tiny_runs import make_digits_config

TINY = {"batch_size": 8, "device": "cpu", "workers": 0, "save_every": 1000, "evaluate_every": 1000, "log_every": 1}
# Everything that draws chance, in micro-batches, with an average.
FULL = {
    "steps": 5,
    "micro_batch_size": 4,
    "save_every": 2,
    "evaluate_every": 2,
    "base_lr": 0.3,
    "crop_scale": (0.3, 1.0),
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "drop_path": 0.3,
    "ema": 0.5,
}


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    settings = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "steps": 4, "evaluate_every": 1000}
    pretrain(make_digits_config(out, **settings, save_every=1000, target="pixel"))
    return str(out)


@pytest.fixture
def no_report(monkeypatch):
    """Most of a tiny run's time would go into drawing its pictures."""
    monkeypatch.setattr(task, "write_report", lambda *arguments: None)


def config(out, init, **changes):
    data = changes.pop("data", "embedded:digits")
    return FinetuneConfig(data=str(data), out=str(out), init=str(init), **{**TINY, "steps": 4, **changes})


def full_config(out, init, **changes):
    return config(out, init, **{**FULL, **changes})


@pytest.fixture(scope="session")
def full_run(pretrained, tmp_path_factory):
    """Uninterrupted, with everything on and no pictures. Tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "full"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "write_report", lambda *arguments: None)
        finetune(full_config(out, pretrained))
    return out


def weights(run):
    return load_file(Path(run) / "model.safetensors")


def losses(run):
    return [line["loss"] for line in metrics(run) if "loss" in line]


def summary_of(run):
    return json.loads((Path(run) / "summary.json").read_text())


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- against timm ---


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.usefixtures("no_report")
def test_a_run_is_what_timm_makes_of_it(pretrained, tmp_path, pool):
    """timm's model, parameter groups, smoothed loss and average, and a schedule by hand, on the same batches.

    Layer decay with mean pooling only: timm counts the encoder's norm to the last block, the released code
    (docs/paper.md) to the head. A key's bias has a true gradient of zero, which AdamW makes a step of rounding of.
    Measured: losses 1.1e-7; weights and average 1.2e-4 of how far a tensor has moved (its norm), at worst.
    """
    import timm.loss
    import timm.optim
    from timm.models.vision_transformer import VisionTransformer
    from timm.utils import ModelEmaV3

    settings = {
        "pool": pool,
        "augment": "none",
        "rand_augment": "none",
        "label_smoothing": 0.1,
        "layer_decay": (decay := 0.6 if pool == "mean" else 1.0),
        "weight_decay": 0.3,
        "betas": (0.9, 0.99),
        "base_lr": 0.2,
        "min_lr": 1e-3,
        "warmup_epochs": 2 * 8 / 1434,
        "ema": 0.75,
        "seed": 3,
        "drop_path": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "erasing": 0.0,
    }
    first = tmp_path / "first"
    finetune(
        config(first, pretrained, steps=1, **{**settings, "warmup_epochs": None})
    )  # its only step has a rate of 0: the weights it began with
    out = tmp_path / "run"
    finetune(config(out, pretrained, steps=6, **settings))

    twin = VisionTransformer(
        img_size=8,
        patch_size=4,
        in_chans=1,
        num_classes=10,
        global_pool={"mean": "avg", "cls": "token"}[pool],
        embed_dim=16,
        depth=2,
        num_heads=2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    before = weights(first)
    head = {name for name in before if not name.startswith("encoder.")}
    start = weights(pretrained)
    assert all(torch.equal(before[name], start[name]) for name in before.keys() - head)
    twin.load_state_dict({name.removeprefix("encoder."): value for name, value in before.items()})
    optimizer = torch.optim.AdamW(
        timm.optim.param_groups_layer_decay(
            twin, weight_decay=0.3, layer_decay=decay, no_weight_decay_list=twin.no_weight_decay()
        ),
        lr=0.0,
        betas=(0.9, 0.99),
    )
    average = ModelEmaV3(twin, decay=0.75)
    loss_fn = timm.loss.LabelSmoothingCrossEntropy(0.1)
    stream = stream_of(out)
    preprocessing = json.loads((out / "config.json").read_text())["preprocessing"]
    expected = []
    for step in range(6):
        indices, _ = stream.locate(range(8 * step, 8 * step + 8))
        images = torch.from_numpy(np.stack([stream.source.read(i) for i in indices.tolist()])).permute(0, 3, 1, 2)
        images = (images / 255 - preprocessing["mean"][0]) / preprocessing["std"][0]
        labels = torch.from_numpy(labels_of(stream.source)[indices])
        peak, low = 0.2 * 8 / 256, 1e-3
        rate = peak * step / 2 if step < 2 else low + (peak - low) * 0.5 * (1 + math.cos(math.pi * (step - 2) / 4))
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        loss = loss_fn(twin(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(twin)
        expected.append(float(loss.detach()))
    assert losses(out) == pytest.approx(expected, rel=1e-6)
    raw = {
        name.removeprefix("weight/encoder.").removeprefix("weight/"): value
        for name, value in load_file(out / "checkpoints" / "step-00000006" / "optimizer.safetensors").items()
        if name.startswith("weight/")
    }
    saved = {name.removeprefix("encoder."): value for name, value in weights(out).items()}
    for values in (raw, saved, twin.state_dict(), average.module.state_dict()):
        for block in range(2):
            values[f"blocks.{block}.attn.qkv.bias"][16:32] = 0  # the keys'
    for got, wanted in ((raw, twin.state_dict()), (saved, average.module.state_dict())):
        assert got.keys() == wanted.keys()
        for name in wanted:
            moved, differs = (wanted[name] - before_of(before, name)).norm(), (got[name] - wanted[name]).norm()
            assert differs < 1e-3 * moved, name


def before_of(before, name):
    return before[name] if name in before else before["encoder." + name]


def stream_of(run):
    """The order in which a finished run saw the digits."""
    values = json.loads((run / "config.json").read_text())
    source = open_source("embedded:digits", "train")
    preprocessing = Preprocessing.from_dict(values["preprocessing"])
    return Stream(source, preprocessing, Augmentation(kind="none"), values["seed"], 1, with_labels=True)


# --- every setting of a recipe matters ---

PLAIN = {
    "steps": 4,
    "batch_size": 8,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "image_size": 8,
    "statistics": "measured",
    "base_lr": 0.3,
    "min_lr": 0.0,
    "warmup_epochs": 0.0001,
    "weight_decay": 0.05,
    "betas": (0.9, 0.999),
    "layer_decay": 1.0,
    "ema": 0.0,
    "augment": "crop",
    "crop_scale": (0.5, 1.0),
    "rand_augment": "none",
    "erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "label_smoothing": 0.0,
    "drop_path": 0.0,
    "pool": "mean",
    "seed": 0,
    "epochs": None,
}
OTHER = {
    "augment": "none",
    "crop_scale": (0.1, 0.4),
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "pool": "cls",
    "image_size": (12, 8),
    "erasing": 1.0,
    "betas": (0.9, 0.95),
    "weight_decay": 0.3,
    "batch_size": 16,
    "warmup_epochs": 0.01,
    "min_lr": 5e-3,
    "ema": 0.9999,
    "base_lr": 0.2,
    "layer_decay": 0.65,
    "drop_path": 0.5,
    "statistics": "imagenet",
    "epochs": 0.04,
    "model": "tiny",
}


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "write_report", lambda *arguments: None)
        finetune(config(out, "none", **PLAIN))
    return out


def test_every_setting_of_a_recipe_has_its_turn():
    settings = {name for recipe in FINETUNE_RECIPES.values() for name in recipe()}
    assert settings == OTHER.keys()
    assert settings <= {field.name for field in fields(FinetuneConfig)}


@pytest.mark.parametrize("name", [*OTHER, None])
@pytest.mark.usefixtures("no_report")
def test_each_setting_changes_what_is_trained(plain_run, tmp_path, name):
    """Through a recipe, as a user would ask for it; with none changed the bytes are the same."""
    changes = {} if name is None else {name: OTHER[name]}
    if name == "epochs":
        changes["steps"] = None
    if name == "model":  # a name for these three
        changes |= {"width": None, "depth": None, "num_heads": None, "steps": 1}
    settings = {**PLAIN, **changes}
    if name == "augment":  # the centre crop of an image has no scale to choose
        settings["crop_scale"] = None
    asked = {} if name is None else {name: settings[name]}
    settings |= dict.fromkeys(asked)  # left open, so that the recipe decides
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FINETUNE_RECIPES, "for-a-test", lambda: asked)
        finetune(config(tmp_path / "run", "none", recipe="for-a-test", **settings))
    before, after = weights(plain_run), weights(tmp_path / "run")
    is_same = torch.equal(before["encoder.patch_embed.proj.weight"], after["encoder.patch_embed.proj.weight"])
    assert is_same == (name is None)
    if name is None:
        assert all(torch.equal(before[key], after[key]) for key in before)
    if name == "epochs":
        assert summary_of(tmp_path / "run")["step"] == 7  # .04 x 1434 / 8
    if name == "model":
        assert before["encoder.cls_token"].shape[-1] == 16
        assert after["encoder.cls_token"].shape[-1] == 192


@pytest.mark.usefixtures("no_report")
def test_each_step_mixes_anew_and_its_parts_alike(pretrained, tmp_path, monkeypatch):
    drawn, real = [], Mixing.draw

    def draw(*arguments):
        drawn.append(real(*arguments))
        return drawn[-1]

    monkeypatch.setattr(Mixing, "draw", draw)
    finetune(full_config(tmp_path / "run", pretrained))
    assert len(drawn) == 10
    assert drawn[::2] == drawn[1::2]  # two micro-batches
    assert len({kept for kept, _ in drawn}) == 5


@pytest.mark.usefixtures("no_report")
def test_what_rand_augment_moves_in_is_the_mean_colour(pretrained, tmp_path, monkeypatch):
    made, real = [], task.Augmentation

    def augmentation(**settings):
        made.append(settings)
        return real(**settings)

    monkeypatch.setattr(task, "Augmentation", augmentation)
    finetune(full_config(tmp_path / "run", pretrained, steps=1))
    mean = json.loads((tmp_path / "run" / "config.json").read_text())["mean"][0]
    assert made == [
        {
            "kind": "crop",
            "crop_scale": (0.3, 1.0),
            "crop_aspect": "model",
            "rand_augment": "rand-m9-mstd0.5-inc1",
            "fill": (round(255 * mean),),
        }
    ]


# --- stopping and going on ---


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.usefixtures("no_report")
def test_a_stopped_run_goes_on_as_if_nothing_had_been(pretrained, full_run, tmp_path, monkeypatch, step):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, step)
        with pytest.raises(Interrupted, match=f"SIGTERM at step {step}: saved"):
            finetune(full_config(out, pretrained))
    assert summary_of(out)["status"] == "interrupted"
    finetune(full_config(out, pretrained, resume="auto"))
    as_the_full_run(full_run, out)


def as_the_full_run(full_run, out):
    same_training_state(full_run, out, step=5)
    assert untimed(metrics(full_run)) == untimed(metrics(out))
    assert {**summary_of(full_run), "seconds": 0} == {**summary_of(out), "seconds": 0}


@pytest.mark.usefixtures("no_report")
def test_a_stop_in_the_middle_of_accumulation_loses_nothing(pretrained, full_run, tmp_path, monkeypatch):
    """A signal in the first of two micro-batches of step 3: the step is finished, then saved."""
    out, counter, real = tmp_path / "run", itertools.count(1), finetune_step.normalise

    def normalise_and_signal(images, preprocessing):
        if next(counter) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(images, preprocessing)

    with monkeypatch.context() as patch:
        patch.setattr(finetune_step, "normalise", normalise_and_signal)
        with pytest.raises(Interrupted, match="SIGTERM at step 3: saved"):
            finetune(full_config(out, pretrained))
    finetune(full_config(out, pretrained, resume="auto"))
    as_the_full_run(full_run, out)


@pytest.mark.usefixtures("no_report")
def test_a_crash_costs_only_the_steps_behind_the_last_save(pretrained, full_run, tmp_path, monkeypatch):
    out, counter, real = tmp_path / "run", itertools.count(1), task.train_step

    def train_step(*arguments):
        if next(counter) == 4:
            raise ZeroDivisionError
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(task, "train_step", train_step)
        with pytest.raises(ZeroDivisionError):
            finetune(full_config(out, pretrained))
    finetune(full_config(out, pretrained, resume="auto"))
    as_the_full_run(full_run, out)


def test_a_stop_in_the_last_evaluation_is_made_up_for(pretrained, tmp_path, monkeypatch):
    """DATA with val and test: the final figure comes after the last checkpoint."""
    data = folders(tmp_path / "data", train={"a": 4, "b": 4}, val={"a": 1, "b": 1}, test={"a": 2, "b": 1})
    out, real = tmp_path / "run", finetune_evaluation.predict

    def predict(model, source, *arguments, stop, **options):
        if len(source) == 3:
            stop.received = "SIGTERM"
        return real(model, source, *arguments, stop=stop, **options)

    settings = {"data": data, "steps": 2, "evaluate_every": 1, "rand_augment": "none"}
    with monkeypatch.context() as patch:
        patch.setattr(finetune_evaluation, "predict", predict)
        with pytest.raises(Interrupted, match="final evaluation: saved, --resume auto continues"):
            finetune(config(out, pretrained, **settings))
    assert not (out / "predictions.csv").exists()
    assert summary_of(out)["status"] == "interrupted"
    summary = finetune(config(out, pretrained, resume="auto", **settings))
    assert (summary["status"], summary["images"], summary["report"]) == ("complete", 3, "test")
    assert "val_top1" in summary
    assert len(table(out / "predictions.csv")) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_reader_processes_change_nothing(pretrained, full_run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, 3)
        with pytest.raises(Interrupted, match="at step 3: saved"):
            finetune(full_config(out, pretrained, workers=2))
    finetune(full_config(out, pretrained, workers=1, resume="auto"))
    as_the_full_run(full_run, out)


@pytest.mark.parametrize("micro", [8, 6])  # 6 leaves a smaller last one
@pytest.mark.usefixtures("no_report")
def test_micro_batches_change_nothing(pretrained, full_run, tmp_path, micro):
    """Measured: 2.1e-7."""
    finetune(full_config(tmp_path / "run", pretrained, micro_batch_size=micro))
    assert losses(tmp_path / "run") == pytest.approx(losses(full_run), rel=1e-5)
    one, two = (summary_of(run)["held_out_loss"] for run in (tmp_path / "run", full_run))
    assert one == pytest.approx(two, rel=1e-5)


@pytest.mark.usefixtures("no_report")
def test_more_steps_continue_a_finished_run(pretrained, full_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(full_run, out)
    before = snapshot(out)
    assert finetune(full_config(out, pretrained, resume="auto"))["step"] == 5
    assert snapshot(out) == before
    assert finetune(full_config(out, pretrained, resume="auto", steps=6))["step"] == 6


# --- several processes ---


@pytest.mark.slow
def test_two_processes_do_what_one_does(pretrained, tmp_path):
    """Batches of 6 are 4 and 2 images, 7 test images are 4 and 3, of which one is broken.

    Measured: losses 1.8e-7.
    """
    data = folders(tmp_path / "data", train={"a": 9, "b": 8}, val={"a": 4, "b": 3})
    (tmp_path / "data" / "val" / "b" / "1.png").write_bytes(b"no picture")
    arguments = f"finetune {data} --init {pretrained} --steps 4 --batch-size 6 --log-every 1 --device cpu --workers 0 "
    arguments += "--mixup 0.8 --cutmix 1 --drop-path 0.3 --erasing 0.5 --ema 0.5 --base-lr 0.3 --evaluate-every 2"
    outs = [tmp_path / "one", tmp_path / "two"]
    assert openmae_run([*arguments.split(), "--out", str(outs[0])]) == 0
    assert run_processes(f"{arguments} --out {outs[1]}", tmp_path / "log", 2) == [0, 0], said(tmp_path / "log")
    assert losses(outs[1]) == pytest.approx(losses(outs[0]), rel=1e-6)
    one, two = (summary_of(out) for out in outs)
    assert one.keys() == two.keys()
    for name in ("top1", "images", "unreadable", "top1_lower_bound", "train_images", "report_images"):
        assert one[name] == two[name], name
    assert (two["images"], two["unreadable"], two["report_images"]) == (6, 1, 7)
    assert one["held_out_loss"] == pytest.approx(two["held_out_loss"], rel=1e-5)
    first, second = (table(out / "predictions.csv") for out in outs)
    assert [row["name"] for row in first] == [row["name"] for row in second]
    assert len({row["name"] for row in second}) == 7
    for mine, other in zip(first, second, strict=True):
        assert (mine["label"], mine["predicted"], mine["unreadable"]) == (
            *(other["label"], other["predicted"], other["unreadable"]),
        )
        if mine["confidence"]:
            assert float(mine["confidence"]) == pytest.approx(float(other["confidence"]), rel=1e-4)


def test_a_batch_too_small_for_the_processes_is_refused():
    run = SimpleNamespace(processes=Processes(count=3))
    with pytest.raises(RequestError, match=r"--batch-size 4 for 3 processes: give at least 2 each"):
        Run.check_batch_size(run, 4, min_per_process=2)
    Run.check_batch_size(run, 4)
    Run.check_batch_size(run, 6, min_per_process=2)


# --- the moving average ---


@pytest.mark.usefixtures("no_report")
def test_what_is_kept_is_the_average(pretrained, tmp_path):
    """By hand from the weights after each step; the first step has a rate of 0. Measured: 0."""
    out, plain = tmp_path / "run", tmp_path / "plain"
    settings = {"save_every": 1, "keep": 9, "steps": 4, "base_lr": 0.3, "warmup_epochs": 0.001}
    finetune(config(out, pretrained, ema=0.5, **settings))
    finetune(config(plain, pretrained, ema=0.0, **settings))
    average = None
    for step in range(1, 5):
        folder = f"checkpoints/step-{step:08d}"
        raw = load_file(plain / folder / "model.safetensors")
        beside = load_file(out / folder / "optimizer.safetensors")
        assert all(torch.equal(beside[f"weight/{name}"], value) for name, value in raw.items())
        average = raw if average is None else {name: 0.5 * average[name] + 0.5 * raw[name] for name in raw}
        saved = load_file(out / folder / "model.safetensors")
        assert max(float((saved[name] - average[name]).abs().max()) for name in raw) < 1e-7
        if step > 1:
            assert not torch.equal(saved["head.weight"], raw["head.weight"])
    last = [line for line in metrics(out) if "held_out_loss" in line][-1]
    logits = openmae.load(str(out), "cpu").classifier(pixels(out))
    targets = torch.from_numpy(labels_of(open_source("embedded:digits", "val")))
    assert last["held_out_loss"] == pytest.approx(
        float(nn.functional.cross_entropy(logits.detach(), targets)), rel=1e-5
    )


def pixels(run):
    """The validation digits as the run's model sees them."""
    source, preprocessing = open_source("embedded:digits", "val"), read_model(run / "model.safetensors")[1]
    p = preprocessing["preprocessing"]
    images = torch.from_numpy(np.stack([source.read(i) for i in range(len(source))])).permute(0, 3, 1, 2)
    return (images / 255 - p["mean"][0]) / p["std"][0]


# --- through the command line ---


def folders(root, **parts):
    """Grey pictures of 12 x 11 pixels: PART/CLASS/NUMBER.png, dark to light from class to class."""
    chance = np.random.default_rng(0)
    for part, classes in parts.items():
        for place, (name, count) in enumerate(sorted(classes.items())):
            folder = root / (part if part != "all" else ".") / name
            folder.mkdir(parents=True)
            for number in range(count):
                values = 200 * place / max(1, len(classes) - 1) + chance.uniform(0, 50, (11, 12))
                Image.fromarray(values.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def command(data, init, out, *flags, steps=2):
    arguments = [*("finetune", str(data), "--init", str(init), "--out", str(out), "--device", "cpu")]
    arguments += ["--workers", "0", "--batch-size", "4", "--steps", str(steps)]
    return openmae_run([*arguments, *map(str, flags)])


def test_class_folders_with_a_validation_part(pretrained, tmp_path):
    """A dark class and a light one: it learns them, and what it leaves says the same everywhere."""
    data = folders(tmp_path / "data", train={"ant": 12, "bee": 12}, val={"ant": 4, "bee": 5})
    out = tmp_path / "run"
    assert command(data, pretrained, out, "--base-lr", 1, "--layer-decay", 1, steps=30) == 0
    summary = summary_of(out)
    assert (summary["status"], summary["report"], summary["images"]) == ("complete", "val", 9)
    assert summary["top1"] == 100
    assert not (out / "split.json").exists()
    for name in ("classes.csv", "predictions.csv", "pictures/confusion.png", "pictures/most-wrong.png", "config.json"):
        assert (out / name).stat().st_size > 0
    assert [row["class"] for row in table(out / "classes.csv")] == ["ant", "bee"]
    model = openmae.load(str(out), "cpu")
    assert model.classes == ("ant", "bee")
    rows = table(out / "predictions.csv")
    names = {str(path.relative_to(data)) for path in (data / "val").rglob("*.png")}
    assert len(rows) == 9
    assert {part.name for part in map(Path, names)} >= {Path(row["name"]).name for row in rows}
    for row in rows:
        path = next(data / name for name in names if name.endswith(row["name"]))
        chances = model.classify(path)[0]
        assert model.classes[int(chances.argmax())] == row["predicted"]
        assert float(chances.max()) == pytest.approx(float(row["confidence"]), rel=1e-4)
    description = read_model(out / "model.safetensors")[1]
    assert (description["kind"], description["classes"], description["step"]) == ("classifier", ["ant", "bee"], 30)
    assert description["preprocessing"]["margin"] == 224 / 256  # `load` keeps it, and so did the evaluation
    assert str(tmp_path) not in json.dumps(description)
    again = tmp_path / "again"
    assert command(data, out, again) == 0  # a classifier is one to start from, with a fresh head
    assert json.loads((again / "config.json").read_text())["width"] == 16
    assert json.loads((again / "config.json").read_text())["openmae"] == openmae.__version__


def test_a_split_is_made_and_written_down(pretrained, tmp_path, no_report):
    data = folders(tmp_path / "data", all={"a": 20, "b": 10})
    outs = [tmp_path / "run", tmp_path / "seeded", tmp_path / "few"]
    assert command(data, pretrained, outs[0]) == 0
    assert command(data, pretrained, outs[1], "--seed", 5) == 0
    assert command(data, pretrained, outs[2], "--labels", 6) == 0
    split = json.loads((outs[0] / "split.json").read_text())
    assert split.keys() == {"held_out"}
    assert [sum(name.startswith(c) for name in split["held_out"]) for c in ("a", "b")] == [4, 2]
    assert len(set(split["held_out"])) == 6
    summary = summary_of(outs[0])
    assert (summary["train_images"], summary["images"], summary["report"]) == (24, 6, "split of train")
    assert (outs[1] / "split.json").read_bytes() == (outs[0] / "split.json").read_bytes()
    few = json.loads((outs[2] / "split.json").read_text())
    assert few["held_out"] == split["held_out"]
    assert [sum(name.startswith(c) for name in few["train"]) for c in ("a", "b")] == [4, 2]
    assert not set(few["train"]) & set(few["held_out"])
    assert summary_of(outs[2])["train_images"] == 6


def test_a_share_of_the_labels(pretrained, tmp_path, no_report):
    data = folders(tmp_path / "data", train={"a": 12, "b": 4}, val={"a": 1, "b": 1})
    assert command(data, pretrained, tmp_path / "half", "--labels", "50%") == 0
    names = json.loads((tmp_path / "half" / "split.json").read_text())["train"]
    assert [sum(f"{c}/" in name for name in names) for c in ("a", "b")] == [6, 2]


@pytest.mark.parametrize(("has_val", "measured_on", "images"), [(True, "val", 2), (False, "split of train", 3)])
def test_a_search_does_not_see_the_test_part(pretrained, tmp_path, no_report, has_val, measured_on, images):
    parts = {"train": {"a": 9, "b": 6}, "test": {"a": 2, "b": 2}} | ({"val": {"a": 1, "b": 1}} if has_val else {})
    data = folders(tmp_path / "data", **parts)
    for path in (data / "test").rglob("*.png"):
        path.write_bytes(b"no picture")  # it would be an error to look
    assert command(data, pretrained, tmp_path / "run", "--report", "held-out") == 0
    summary = summary_of(tmp_path / "run")
    assert (summary["report"], summary["images"], summary["unreadable"]) == (measured_on, images, 0)


def test_several_labels_from_a_file(pretrained, tmp_path):
    data = folders(tmp_path / "data", all={".": 30})
    rows = [f"{n}.png,{n % 2},{int(n % 3 == 0)},{int(n > 14)}" for n in range(30)]
    (tmp_path / "labels.csv").write_text("path,odd,third,late\n" + "\n".join(rows))
    out = tmp_path / "run"
    assert command(data, pretrained, out, "--label-file", tmp_path / "labels.csv", "--mixup", 0.8, steps=3) == 0
    summary = summary_of(out)
    assert {"map", "f1", "exact_match", "held_out_loss"} <= summary.keys()
    assert "top1" not in summary
    assert (summary["classes"], summary["images"]) == (3, 6)
    assert [row["class"] for row in table(out / "classes.csv")] == ["late", "odd", "third"]
    model, rows = openmae.load(str(out), "cpu"), table(out / "predictions.csv")
    assert len(rows) == 6
    for row in rows:
        number = int(row["name"].removesuffix(".png"))
        true = [
            name for name, is_on in (("late", number > 14), ("odd", number % 2), ("third", number % 3 == 0)) if is_on
        ]
        assert json.loads(row["label"]) == true
        chances = model.classify(data / row["name"])[0]
        assert [c for c, chance in zip(model.classes, chances, strict=True) if chance > 0.5] == json.loads(
            row["predicted"]
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [("--blocks", 0), ("--blocks", 0.5), ("--blocks", 1), ("--blocks", 2), ("--pool", "cls")]
)
def test_the_rest_stays_as_it_was(pretrained, tmp_path, no_report, flags):
    assert command("embedded:digits", pretrained, tmp_path / "run", *flags, "--base-lr", 1, steps=3) == 0
    before, after = weights(pretrained), weights(tmp_path / "run")
    changed = {name for name in after if name in before and not torch.equal(before[name], after[name])}
    last = {name for name in after if name.startswith("encoder.blocks.1.")}
    half = {name for name in last if ".norm2." in name or ".mlp." in name}
    blocks = {name for name in after if name.startswith("encoder.blocks.")}
    whole = {name for name in after if name.startswith("encoder.")}
    wanted = {0: set(), 0.5: half, 1: last, 2: blocks, "cls": whole}[flags[1]]
    assert changed == wanted
    assert after["head.weight"].abs().max() > 1e-3
    moments = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "optimizer.safetensors")
    head = {name for name in after if not name.startswith("encoder.")}
    assert {name.removeprefix("exp_avg/") for name in moments if name.startswith("exp_avg/")} == wanted | head


def test_from_scratch_at_a_size_that_is_no_square(tmp_path, no_report):
    out = tmp_path / "run"
    flags = ["--width", 16, "--depth", 1, "--num-heads", 2, "--patch-size", 4, "--image-size", 12, 8]
    assert command("embedded:digits", "none", out, *flags) == 0
    assert read_model(out / "model.safetensors")[1]["shape"]["encoder"]["image_size"] == [12, 8]
    assert weights(out)["encoder.pos_embed"].shape == (1, 7, 16)
    values = json.loads((out / "config.json").read_text())
    assert (values["layer_decay"], values["betas"], values["ema"]) == (1.0, [0.9, 0.95], 0.0)


def test_positions_are_resampled_for_another_size(pretrained, tmp_path, no_report):
    """The head alone is trained: positions are what torch makes of the pre-trained ones."""
    out = tmp_path / "run"
    assert command("embedded:digits", pretrained, out, "--image-size", 16, 8, "--blocks", 0) == 0
    before, after = (weights(run)["encoder.pos_embed"] for run in (pretrained, out))
    assert torch.equal(before[:, :1], after[:, :1])
    image = before[:, 1:].unflatten(1, (2, 2)).permute(0, 3, 1, 2)
    image = nn.functional.interpolate(image, size=(4, 2), mode="bicubic", align_corners=False)
    assert torch.equal(after[:, 1:], image.permute(0, 2, 3, 1).flatten(1, 2))
    assert openmae.load(str(out), "cpu").classify(np.zeros((9, 5), np.uint8)).shape == (1, 10)


def test_a_broken_test_image_is_counted_and_named_and_never_replaced(pretrained, tmp_path):
    data = folders(tmp_path / "data", train={"a": 6, "b": 6}, test={"a": 3, "b": 3})
    (data / "test" / "b" / "2.png").write_bytes(b"no picture")
    out = tmp_path / "run"
    assert command(data, pretrained, out, steps=2) == 0
    summary = summary_of(out)
    assert (summary["images"], summary["unreadable"], summary["report_images"]) == (5, 1, 6)
    assert summary["bad_inputs"] == 0  # of the training images
    assert summary["top1_lower_bound"] == pytest.approx(summary["top1"] * 5 / 6)
    rows = table(out / "predictions.csv")
    assert [bool(row["unreadable"]) for row in rows] == [False] * 5 + [True]
    assert [line["name"] for line in read_lines(out / "quarantine.jsonl")] == [rows[-1]["name"]]
    assert rows[-1]["name"].endswith("b/2.png")
    # It is no training image: --max-bad does not count it when the run goes on.
    assert command(data, pretrained, out, "--resume", "auto", steps=3) == 0
    assert summary_of(out)["unreadable"] == 1
    assert [line["name"] for line in read_lines(out / "quarantine.jsonl")] == [rows[-1]["name"]]


def test_a_broken_training_image_is_replaced_and_counted(pretrained, tmp_path, no_report, capsys):
    data = folders(tmp_path / "data", train={"a": 6, "b": 6}, test={"a": 3, "b": 3})
    (data / "train" / "b" / "2.png").write_bytes(b"no picture")
    assert command(data, pretrained, tmp_path / "run", "--max-bad", 0.1, steps=4) == 0
    assert summary_of(tmp_path / "run")["bad_inputs"] == 1
    assert command(data, pretrained, tmp_path / "strict", steps=4) == 2
    assert "--max-bad 0.01" in capsys.readouterr().err


def test_class_weights_reach_the_loss(pretrained, tmp_path, no_report):
    """The first step's loss, of nearly equal scores, is log 2 times the mean weight of the labels in its batch."""
    data = folders(tmp_path / "data", train={"a": 12, "b": 4}, val={"a": 1, "b": 1})
    flags = ["--log-every", 1, "--label-smoothing", 0, "--seed", 1]
    runs = [tmp_path / "none", tmp_path / "weights"]
    for out in runs:
        assert command(data, pretrained, out, "--balance", out.name, *flags) == 0
    assert losses(runs[0])[0] == pytest.approx(math.log(2), rel=1e-3)
    shown = losses(runs[1])[0] / math.log(2) * 4  # n images weigh 16 / (2 x 12) or 16 / (2 x 4)
    assert any(shown == pytest.approx(rare * 2 + (4 - rare) * 2 / 3, rel=1e-3) for rare in range(5))
    assert shown != pytest.approx(4, rel=1e-3)
    assert not torch.equal(weights(runs[0])["head.bias"], weights(runs[1])["head.bias"])


def test_balanced_sampling_shows_the_classes_equally(pretrained, tmp_path, no_report, monkeypatch):
    data = folders(tmp_path / "data", train={"a": 12, "b": 4}, val={"a": 1, "b": 1})
    seen, real = [], task.train_step

    def train_step(model, optimizer, parts, *rest):
        seen.extend(label for part in parts for label in part.labels.tolist())
        return real(model, optimizer, parts, *rest)

    monkeypatch.setattr(task, "train_step", train_step)
    for balance, rare in (("none", 4), ("sampling", 12)):
        seen.clear()
        epoch = 16 if balance == "none" else 24
        out = tmp_path / balance
        assert command(data, pretrained, out, "--balance", balance, steps=epoch // 4) == 0
        assert (seen.count(0), seen.count(1)) == (12, rare)


# --- bad input ---


def bad_inputs(tmp_path, pretrained):
    """Each with its flags and what the one line must say."""
    good = folders(tmp_path / "good", train={"a": 4, "b": 4}, test={"a": 1, "b": 1})
    one = folders(tmp_path / "one", all={"a": 6})
    strange = folders(tmp_path / "strange", train={"a": 4, "b": 4}, test={"a": 1, "c": 1})
    unlabelled = folders(tmp_path / "unlabelled", all={".": 5})
    broken = folders(tmp_path / "broken", train={"a": 4, "b": 4}, test={"a": 1, "b": 1})
    for path in (broken / "train").rglob("*.png"):
        path.write_bytes(b"no picture")
    untested = folders(tmp_path / "untested", train={"a": 4, "b": 4}, test={"a": 1, "b": 1})
    headless = tmp_path / "headless.safetensors"
    values, description = read_model(Path(pretrained) / "model.safetensors")
    metadata = {METADATA_KEY: json.dumps(description)}
    save_file({n: v for n, v in values.items() if not n.startswith("encoder.")}, headless, metadata=metadata)
    partial_weights = {n: v for n, v in values.items() if n != "encoder.blocks.1.norm2.weight"}
    save_file(partial_weights, tmp_path / "partial.safetensors", metadata=metadata)
    (tmp_path / "labels.csv").write_text("path,label\nnothing.png,x\n")
    (tmp_path / "several.csv").write_text(
        "path,labels\n" + "".join(f"{n}.png,{'a;b'[: 1 + n % 2 * 2]}\n" for n in range(5))
    )
    return {
        "no labels": (unlabelled, pretrained, [], r"no training image .* has a label: put every image into a class"),
        "one class": (one, pretrained, [], r"have one label \(a\): at least two classes are needed"),
        "a class in test alone": (strange, pretrained, [], r"class c, but train has none of it: add some to train"),
        "nothing readable": (broken, pretrained, [], r"none of 8 images looked at can be read"),
        "more labels than images": (good, pretrained, ["--labels", "9"], r"there are 8 labelled .*; ask for fewer"),
        "more than all": (good, pretrained, ["--labels", "101%"], r"there are 8 labelled .*; ask for fewer"),
        "fewer than classes": (good, pretrained, ["--labels", "1"], r"1 images for 2 classes; ask for at least 2"),
        "no number": (good, pretrained, ["--labels", "many"], r"--labels many: expected a number of images"),
        "no encoder": (good, headless, [], r"lacks encoder\.blocks\.0\.attn\.proj\.bias"),
        "half an encoder": (
            good,
            tmp_path / "partial.safetensors",
            [],
            r"lacks encoder\.blocks\.1\.norm2\.weight",
        ),
        "no model": (good, tmp_path / "nowhere", [], r"nowhere does not exist: give a checkpoint"),
        "a folder of images": (good, good, [], r"holds no model: neither model\.safetensors"),
        "no data": (tmp_path / "missing", pretrained, [], r"missing"),
        "rows of nothing": (
            *(unlabelled, pretrained, ["--label-file", tmp_path / "labels.csv"]),
            r"none of its 1 rows names an image",
        ),
        "balance of several": (
            *(unlabelled, pretrained, ["--label-file", tmp_path / "several.csv", "--balance", "weights"]),
            r"--balance weights needs one label an image.*leave it out",
        ),
        "blocks beyond": (good, pretrained, ["--blocks", "3"], r"--blocks got 3: the model has 2"),
        "a third of a block": (good, pretrained, ["--blocks", "0.3"], r"--blocks got 0\.3: a whole number .*or 0\.5"),
        "blocks of nothing": (good, "none", ["--blocks", "1"], r"--init none has nothing: leave one out"),
        "another width": (good, pretrained, ["--width", "32"], r"--width got 32, but --init has 16: leave it out"),
        "a size by name": (good, pretrained, ["--model", "tiny"], r"--model is for training from scratch"),
        "an odd batch": (good, pretrained, ["--batch-size", "5", "--mixup", "1"], r"--batch-size got 5: .*even number"),
        "an odd part": (
            good,
            pretrained,
            ["--micro-batch-size", "3", "--cutmix", "1"],
            r"--micro-batch-size got 3: .*even",
        ),
        "a wrong policy": (
            good,
            pretrained,
            ["--rand-augment", "rand-x9"],
            r"--rand-augment got 'rand-x9': it must look",
        ),
        "a size no patch fits": (good, pretrained, ["--image-size", "9"], r"--image-size 8 8 would do"),
        "a recipe from scratch": (
            *(good, pretrained, ["--recipe", "scratch-base"]),
            r"--recipe scratch-base is for training from scratch: give --init none",
        ),
        "an unknown recipe": (good, pretrained, ["--recipe", "imagenet-bas"], r"did you mean 'imagenet-base'\?"),
        "a wrong pool": (good, pretrained, ["--pool", "max"], r"--pool got 'max'.*known are cls, mean"),
        "no warm-up fits": (good, pretrained, ["--warmup-epochs", "9"], r"--warmup-epochs got 9 .*give fewer"),
        "too much held out": (untested, pretrained, ["--held-out", "7"], r"--held-out 7: of 8 .*hold out fewer"),
        "smoothing of all": (good, pretrained, ["--label-smoothing", "1"], r"--label-smoothing got 1: .*below 1"),
        "out among the data": (good, pretrained, ["--out", good / "run"], r"lies inside .*would become its data"),
    }


def test_bad_input_is_refused_in_a_line_and_leaves_nothing(pretrained, tmp_path, capsys):
    for name, (data, init, flags, message) in bad_inputs(tmp_path, pretrained).items():
        before = sorted(tmp_path.rglob("*"))
        out = [] if "--out" in flags else ["--out", tmp_path / "run"]
        arguments = ["finetune", data, "--init", init, "--device", "cpu", "--workers", "0", "--steps", "2"]
        extra = [] if "--batch-size" in flags else ["--batch-size", "4"]
        assert openmae_run([str(part) for part in (*arguments, *out, *extra, *flags)]) == 2, name
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1, (name, told)
        assert re.search(message, told[0]), (name, told[0])
        assert sorted(tmp_path.rglob("*")) == before, name


def test_nothing_readable_to_measure_on_is_refused(pretrained, tmp_path, capsys, no_report):
    data = folders(tmp_path / "data", train={"a": 4, "b": 4}, test={"a": 1, "b": 1})
    for path in (data / "test").rglob("*.png"):
        path.write_bytes(b"no picture")
    assert command(data, pretrained, tmp_path / "run") == 2
    assert "none of 2 images can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", ["a class more", "a class fewer", "a class renamed", "an image more", "another seed"]
)
def test_a_run_goes_on_with_what_it_began_with(pretrained, tmp_path, capsys, no_report, change):
    parts = {"train": {"a": 4, "b": 4, "c": 4}, "val": {"a": 1, "b": 1, "c": 1}}
    data = folders(tmp_path / "data", **parts)
    out = tmp_path / "run"
    assert command(data, pretrained, out) == 0
    before = snapshot(out)
    flags = ["--resume", "auto", "--seed", "3"] if change == "another seed" else ["--resume", "auto"]
    if change == "a class more":
        folders(data, train={"d": 3})
    elif change == "a class fewer":
        shutil.rmtree(data / "train" / "c")
        shutil.rmtree(data / "val" / "c")
    elif change == "a class renamed":
        for part in ("train", "val"):
            (data / part / "c").rename(data / part / "z")
    elif change == "an image more":
        shutil.copy(data / "train" / "a" / "0.png", data / "train" / "a" / "9.png")
    said_by = {
        "a class more": "has 4 classes, the run began with 3: restore it, or start a new run",
        "a class fewer": "has 2 classes, the run began with 3: restore it, or start a new run",
        "a class renamed": "has the class 'z', which the run did not begin with: restore it",
        "an image more": "is not the data that this run began with",
        "another seed": "has --seed 0, not 3: leave --seed out to continue",
    }
    assert command(data, pretrained, out, *flags, steps=3) == 2
    assert said_by[change] in capsys.readouterr().err
    assert snapshot(out) == before


def test_a_resume_from_another_kind_of_run_is_refused(pretrained, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(pretrained, out)
    before = snapshot(out)
    with pytest.raises(RequestError, match=r"holds no run that can be resumed|choose another --out"):
        finetune(replace(config(out, pretrained), resume="auto"))
    assert snapshot(out) == before
