"""`probe` end to end on tiny data: its optimum, its training by hand, several rates, stops, processes, odd labels.

The pre-trained model is one of 16 channels and two blocks for digits of 8 pixels.
"""

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

import openmae
from openmae.cli import run as openmae_run
from openmae.config import ClassifierShape, Preprocessing, ProbeConfig, ViTShape
from openmae.data.augment import Augmentation
from openmae.data.loader import Stream, training_loader
from openmae.data.preprocess import DataFacts
from openmae.data.readers import iterate_batches
from openmae.data.sources.open import open_source
from openmae.errors import Interrupted, RequestError
from openmae.model.probe import Probes
from openmae.planning.decisions import Machine, total_steps
from openmae.planning.probe import make_probe_plan
from openmae.recipes import PROBE_RECIPES
from openmae.tasks.pretrain.pretrain import pretrain
from openmae.tasks.probe import probe as task
from openmae.tasks.probe.features import micro_batch_size_for
from openmae.tasks.probe.probe import probe
from openmae.training.checkpoint import METADATA_KEY, read_model

from ...processes import run as run_processes
from ...processes import said
from ...shared import metrics, same_training_state, signal_at, snapshot, untimed
from ...tiny_runs import make_digits_config

TINY = {"batch_size": 8, "device": "cpu", "workers": 0, "save_every": 1000, "evaluate_every": 1000, "log_every": 1}


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    settings = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "steps": 30, "evaluate_every": 1000}
    pretrain(make_digits_config(out, **settings, save_every=1000, target="pixel"))
    return str(out)


@pytest.fixture
def no_report(monkeypatch):
    """Most of a tiny run's time would go into drawing its pictures."""
    monkeypatch.setattr(task, "write_report", lambda *arguments: None)


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


@pytest.fixture(scope="session")
def grey(tmp_path_factory):
    """Two classes, 26 images to train on and 7 to test. Tests only read it."""
    return folders(tmp_path_factory.mktemp("data") / "grey", train={"a": 13, "b": 13}, test={"a": 4, "b": 3})


def config(out, init, **changes):
    data = changes.pop("data", "embedded:digits")
    return ProbeConfig(data=str(data), out=str(out), init=str(init), **{**TINY, "steps": 4, **changes})


def weights(run):
    return load_file(Path(run) / "model.safetensors")


def losses(run):
    return [line["loss"] for line in metrics(run) if "loss" in line]


def summary_of(run):
    return json.loads((Path(run) / "summary.json").read_text())


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def command(data, init, out, *flags, steps=2):
    arguments = [*("probe", str(data), "--init", str(init), "--out", str(out), "--device", "cpu")]
    arguments += ["--workers", "0", "--batch-size", "4", "--steps", str(steps)]
    return openmae_run([*arguments, *map(str, flags)])


def digits_features(init, split, pool):
    """Pooled features of the digits, and their labels: pixels and statistics by hand, the encoder as it is loaded."""
    source, model = open_source("embedded:digits", split), openmae.load(str(init), "cpu")
    p = model.preprocessing
    images = torch.from_numpy(np.stack([source.read(i) for i in range(len(source))])).permute(0, 3, 1, 2)
    values = model.features((images / 255 - p.mean[0]) / p.std[0], pool=pool)
    return values, torch.tensor([source.label(i) for i in range(len(source))])


# --- the optimum ---


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "rate"), [("lars", 10.0), ("sgd", 2.0)])
@pytest.mark.usefixtures("no_report")
def test_the_optimum_is_scikit_learns(pretrained, tmp_path, optimizer, rate):
    """Logistic regression without a penalty, on features that are standardised alike; whole-batch steps.

    Measured: the loss on the training images is 0.5678 there, and 6.4e-4 (LARS) or 3.5e-4 (SGD) higher here; top-1
    on the 363 test images is the same or one image off.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (values, labels), (test_values, test_labels) = (digits_features(pretrained, p, "mean") for p in ("train", "val"))
    scaler = StandardScaler().fit(values.double())
    standard = scaler.transform(values.double())
    best = LogisticRegression(C=np.inf, max_iter=5000, tol=1e-6).fit(standard, labels)
    least = -best.predict_log_proba(standard)[range(len(labels)), labels].mean()
    wanted = 100 * best.score(scaler.transform(test_values.double()), test_labels)

    out = tmp_path / "run"
    settings = {"optimizer": optimizer, "base_lr": (rate,), "batch_size": 1434, "steps": 400, "pool": "mean"}
    summary = probe(config(out, pretrained, **settings, log_every=400))
    classifier = openmae.load(str(out), "cpu").classifier
    with torch.no_grad():
        reached = float(F.cross_entropy(classifier.head(classifier.fc_norm(values)), labels))
    print("optimum", optimizer, least, reached - least, "top1", wanted, summary["top1"])
    assert least - 1e-6 < reached < least + 2e-3
    assert summary["top1"] == pytest.approx(wanted, abs=100 * 3.5 / 363)


# --- the training by hand ---


def step_by_hand(kind, head, velocity, rate, momentum, decay):
    """LARS as in docs/paper.md, here without weight decay (test_lars holds it against timm's), or SGD."""
    for name, weight in head.named_parameters():
        gradient = weight.grad
        if kind == "sgd":
            gradient = gradient + decay * weight.detach()
        elif weight.ndim > 1:
            gradient = gradient * 0.001 * weight.detach().norm() / gradient.norm()
        velocity[name] = momentum * velocity.get(name, 0) + gradient
        weight.data -= rate * velocity[name]
        weight.grad = None


@pytest.mark.parametrize("augment", ["none", "crop"])
@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
@pytest.mark.usefixtures("no_report")
def test_a_run_by_hand(pretrained, tmp_path, optimizer, augment):
    """Optimiser, BatchNorm and schedule, with each batch through the encoder as it comes.

    So features that are kept (`none`) are what the encoder gives for each batch. Measured: losses 1.1e-7,
    weights 8.8e-7 of how far they moved (norms).
    """
    decay = 0.0 if optimizer == "lars" else 0.3
    settings = {
        "augment": augment,
        "optimizer": optimizer,
        "crop_scale": (0.3, 0.8) if augment == "crop" else None,
        "momentum": 0.8,
        "weight_decay": decay,
        "base_lr": (3200.0,) if optimizer == "lars" else (1.0,),
        "min_lr": 1e-3,
        "warmup_epochs": 2 * 8 / 1434,
        "pool": "cls",
        "seed": 3,
    }
    first, out = tmp_path / "first", tmp_path / "run"
    # A single step has a rate of 0: the weights it began with.
    probe(config(first, pretrained, steps=1, **{**settings, "warmup_epochs": 0.5 * 8 / 1434}))
    probe(config(out, pretrained, steps=6, **settings))

    head = torch.nn.Linear(16, 10)
    head.load_state_dict({name: weights(first)[f"head.{name}"] for name in ("weight", "bias")})
    start = head.weight.detach().clone()
    values = json.loads((out / "config.json").read_text())
    preprocessing = Preprocessing.from_dict(values["preprocessing"])
    augmentation = Augmentation(kind=augment, crop_scale=(0.3, 0.8))
    stream = Stream(open_source("embedded:digits", "train"), preprocessing, augmentation, 3, 1, with_labels=True)
    model = openmae.load(pretrained, "cpu")
    peak = settings["base_lr"][0] * 8 / 256
    mean, variance, velocity, expected = torch.zeros(16), torch.ones(16), {}, []
    whole = {
        "steps": range(6),
        "batch_size": 8,
        "share": range(8),
        "micro_batch_size": 8,
        "workers": 0,
        "pin_memory": False,
    }
    for step, batch in enumerate(iterate_batches(training_loader(stream, **whole))):
        features = model.features((batch.images / 255 - preprocessing.mean[0]) / preprocessing.std[0], pool="cls")
        normed = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
        mean, variance = 0.9 * mean + 0.1 * features.mean(0), 0.9 * variance + 0.1 * features.var(0)
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 2) / 4))
        loss = F.cross_entropy(head(normed), batch.labels)
        loss.backward()
        rate = peak * step / 2 if step < 2 else 1e-3 + (peak - 1e-3) * cosine
        step_by_hand(optimizer, head, velocity, rate, 0.8, decay)
        expected.append(float(loss.detach()))
    found = weights(out)
    moved = head.weight.detach() - start
    print("losses", np.abs(np.array(losses(out)) / expected - 1).max(), "moved", float(moved.norm()))
    assert losses(out) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(found["fc_norm.running_mean"], mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["fc_norm.running_var"], variance, rtol=1e-5, atol=1e-6)
    assert moved.norm() > 0.01
    assert (found["head.weight"] - head.weight).norm() < 1e-5 * moved.norm()
    assert (found["head.bias"] - head.bias).norm() < 1e-5 * head.bias.norm()


@pytest.mark.parametrize("augment", ["none", "crop"])
@pytest.mark.usefixtures("no_report")
def test_the_encoder_is_kept_as_it_is(pretrained, tmp_path, augment):
    probe(config(tmp_path / "run", pretrained, augment=augment, base_lr=(30.0,)))
    before, after = weights(pretrained), weights(tmp_path / "run")
    names = {name for name in after if name.startswith("encoder.")}
    assert names == {name for name in before if name.startswith("encoder.")}
    assert all(torch.equal(before[name], after[name]) for name in names)
    # The norm before the head has statistics, and nothing that learns.
    rest = {"fc_norm.running_mean", "fc_norm.running_var", "fc_norm.num_batches_tracked", "head.weight", "head.bias"}
    assert after.keys() - names == rest


# --- several rates ---


@pytest.mark.parametrize(("optimizer", "rates"), [("lars", (8.0, 64.0, 400.0)), ("sgd", (0.1, 1.0, 20.0))])
@pytest.mark.parametrize("augment", ["none", "crop"])
@pytest.mark.usefixtures("no_report")
def test_rates_side_by_side_are_separate_runs(pretrained, grey, tmp_path, optimizer, rates, augment):
    """Measured: equal in every bit. A rate is a share of the largest one, so others may round."""
    settings = {"data": grey, "steps": 6, "held_out": 6, "optimizer": optimizer, "augment": augment}
    probe(config(tmp_path / "all", pretrained, base_lr=rates, **settings))
    folder = "checkpoints/step-00000006/model.safetensors"
    together = load_file(tmp_path / "all" / folder)
    assert sum(name.endswith(".weight") for name in together) == 3
    worst = 0.0
    for number, rate in enumerate(rates):
        out = tmp_path / f"{rate:g}"
        probe(config(out, pretrained, base_lr=(rate,), **settings))
        assert json.loads((out / "split.json").read_text()) == json.loads((tmp_path / "all/split.json").read_text())
        alone = load_file(out / folder)
        assert torch.equal(alone["fc_norm.running_var"], together["fc_norm.running_var"])
        for name in ("weight", "bias"):
            one, two = alone[f"heads.0.{name}"], together[f"heads.{number}.{name}"]
            worst = max(worst, float((one - two).abs().max() / one.abs().max()))
    assert worst < 1e-6
    assert not torch.equal(together["heads.0.weight"], together["heads.2.weight"])


def test_heads_begin_alike_however_many_there_are():
    shape = ClassifierShape(
        encoder=ViTShape(image_size=(8, 8), patch_size=4, channels=1, width=200, depth=1, num_heads=2),
        num_classes=50,
        pool="cls",
        head="probe",
    )
    heads = []
    for count in (1, 3):
        torch.manual_seed(0)
        heads += Probes(shape, count).heads
    assert all(torch.equal(head.weight, heads[0].weight) for head in heads)
    assert float(heads[0].weight.detach().std()) == pytest.approx(0.01, rel=0.03)
    assert not heads[0].bias.any()
    assert len({head.weight.data_ptr() for head in heads}) == 4


@pytest.mark.usefixtures("no_report")
def test_the_rate_is_chosen_on_a_split_of_train_and_never_on_test(pretrained, tmp_path, capsys):
    """The test part calls dark light: the rate that learns is best on the split and the worst one there."""
    data = folders(tmp_path / "data", train={"a": 16, "b": 16}, test={"b": 5, "c": 5})
    (data / "test" / "c").rename(data / "test" / "a")
    out = tmp_path / "run"
    summary = probe(
        config(out, pretrained, data=data, steps=60, base_lr=(1e-6, 3.0, 2e-6), optimizer="sgd", held_out=8)
    )
    assert (summary["chosen_base_lr"], summary["chosen_by"]) == (3.0, "split of train")
    assert (summary["top1"], summary["report"], summary["images"]) == (0, "test", 10)
    assert (summary["report_images"], summary["train_images"], summary["choice_top1"]) == (10, 24, 100)
    rows = {float(row["base_lr"]): float(row["top1"]) for row in table(out / "rates.csv")}
    assert list(rows) == [1e-6, 3.0, 2e-6]
    assert max(rows, key=rows.get) == 3.0
    assert rows[3.0] == 100
    assert {float(row["images"]) for row in table(out / "rates.csv")} == {8}
    assert "3: 100.00 %" in (told := capsys.readouterr().out)
    assert "(split of train); 3 is kept" in told
    # What is kept is that head, with the norm that they share.
    checkpoint, kept = load_file(out / "checkpoints/step-00000060/model.safetensors"), weights(out)
    assert torch.equal(kept["head.weight"], checkpoint["heads.1.weight"])
    assert torch.equal(kept["fc_norm.running_mean"], checkpoint["fc_norm.running_mean"])
    held_out = json.loads((out / "split.json").read_text())["held_out"]
    assert len(set(held_out)) == 8
    assert all([*data.rglob(f"train/{name.removeprefix('train/')}")] for name in held_out)


@pytest.mark.usefixtures("no_report")
def test_what_chooses_is_not_trained_on(pretrained, grey, tmp_path):
    """Of labels too: the split comes first, the subset is of the rest."""
    out = tmp_path / "run"
    summary = probe(config(out, pretrained, data=grey, labels="10", held_out=6, base_lr=(1.0, 2.0)))
    split = json.loads((out / "split.json").read_text())
    assert (len(set(split["train"])), len(set(split["held_out"])), summary["train_images"]) == (10, 6, 10)
    assert not set(split["train"]) & set(split["held_out"])


@pytest.mark.usefixtures("no_report")
def test_one_rate_needs_no_split(pretrained, grey, tmp_path):
    summary = probe(config(tmp_path / "run", pretrained, data=grey, base_lr=(1.0,)))
    assert (summary["chosen_by"], summary["train_images"], summary["report"]) == ("nothing: one rate", 26, "test")
    assert not (tmp_path / "run" / "split.json").exists()


@pytest.mark.usefixtures("no_report")
def test_a_validation_part_chooses_where_there_is_a_test_part(pretrained, tmp_path):
    data = folders(tmp_path / "data", train={"a": 8, "b": 8}, val={"a": 2, "b": 3}, test={"a": 1, "b": 2})
    summary = probe(config(tmp_path / "run", pretrained, data=data, base_lr=(1.0, 2.0)))
    assert (summary["chosen_by"], summary["train_images"], summary["images"]) == ("val", 16, 3)
    assert {float(row["images"]) for row in table(tmp_path / "run" / "rates.csv")} == {5}


def test_a_smallest_rate_is_of_one_rate(pretrained, grey, tmp_path):
    """Side by side schedules are shares of one, and so would the smallest rates be."""
    with pytest.raises(RequestError, match=r"--min-lr got 0\.1 for 2 rates side by side.*give one --base-lr"):
        probe(config(tmp_path / "run", pretrained, data=grey, base_lr=(1.0, 2.0), min_lr=0.1))


# --- table 10 ---

# By hand from docs/paper.md: the linear probe's column of the recipes, and what was released beside it.
TABLE_10 = {
    "optimizer": "lars",
    "momentum": 0.9,
    "base_lr": (0.1,),
    "weight_decay": 0.0,
    "batch_size": 16384,
    "warmup_epochs": 10.0,
    "min_lr": 0.0,
    "augment": "crop",
    "crop_scale": (0.08, 1.0),
    "pool": "cls",
    "image_size": 224,
}
MODELS = {"base": (768, 12, 12, 16), "large": (1024, 24, 16, 16), "huge": (1280, 32, 16, 14)}
IMAGENET = DataFacts(
    count=1_281_167,
    channels=3,
    dtype="uint8",
    short_side=375,
    value_range=(0.0, 255.0),
    mean=(124.0, 116.0, 104.0),
    std=(58.0, 57.0, 57.0),
)


@pytest.mark.parametrize(("model", "epochs", "steps"), [("base", 90, 7038), ("large", 50, 3910), ("huge", 50, 3910)])
def test_table_10_reaches_a_run(model, epochs, steps):
    width, depth, heads, patch = MODELS[model]
    shape = ViTShape(image_size=(224, 224), patch_size=patch, channels=3, width=width, depth=depth, num_heads=heads)
    processing = Preprocessing(
        channels=3,
        value_range=(0.0, 255.0),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        image_size=(224, 224),
    )
    asked = ProbeConfig(data="data", init="run", out="out", recipe=f"imagenet-{model}")
    settled = make_probe_plan(asked, IMAGENET, 1000, Machine("cuda", True, 8, 140 << 30), shape, processing)
    found = settled.config.to_dict()
    assert {name: found[name] for name in TABLE_10} == TABLE_10
    assert found["epochs"] == epochs
    assert total_steps(settled.config, IMAGENET.count) == steps
    assert [rate * 16384 / 256 for rate in settled.config.base_lr] == pytest.approx([6.4])
    assert (settled.preprocessing.crop_fraction, settled.preprocessing.image_size) == (224 / 256, (224, 224))
    assert (settled.shape.pool, settled.shape.head, settled.shape.encoder) == ("cls", "probe", shape)


PLAIN = {
    "steps": 6,
    "batch_size": 8,
    "optimizer": "sgd",
    "momentum": 0.9,
    "base_lr": (0.5,),
    "weight_decay": 0.0,
    "warmup_epochs": 0.05,
    "min_lr": 0.0,
    "augment": "crop",
    "crop_scale": (0.5, 1.0),
    "pool": "cls",
    "image_size": 8,
}
OTHER = {
    "optimizer": "lars",
    "momentum": 0.5,
    "base_lr": (0.4,),
    "weight_decay": 0.5,
    "batch_size": 10,
    "warmup_epochs": 0.5,
    "min_lr": 0.001,
    "augment": "none",
    "crop_scale": (0.1, 0.4),
    "pool": "mean",
    "image_size": (12, 8),
    "epochs": 3.0,
}


@pytest.fixture(scope="session")
def plain_run(pretrained, grey, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "write_report", lambda *arguments: None)
        probe(config(out, pretrained, data=grey, **PLAIN))
    return out


def test_every_setting_of_a_recipe_has_its_turn():
    assert {name for recipe in PROBE_RECIPES.values() for name in recipe()} == OTHER.keys()


@pytest.mark.parametrize("name", [*OTHER, None])
@pytest.mark.usefixtures("no_report")
def test_each_setting_changes_what_is_trained(pretrained, grey, plain_run, tmp_path, name):
    """Through a recipe, as a user would ask for it; with none changed the bytes are the same."""
    settings = {**PLAIN, **({} if name is None else {name: OTHER[name]})}
    if name == "epochs":
        settings["steps"] = None
    if name == "augment":  # features that are kept have no crop to choose
        settings["crop_scale"] = None
    asked = {} if name is None else {name: settings[name]}
    settings |= dict.fromkeys(asked)  # left open, so that the recipe decides
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROBE_RECIPES, "for-a-test", lambda: asked)
        probe(config(tmp_path / "run", pretrained, data=grey, recipe="for-a-test", **settings))
    before, after = weights(plain_run), weights(tmp_path / "run")
    assert torch.equal(before["head.weight"], after["head.weight"]) == (name is None)
    if name is None:
        assert all(torch.equal(before[key], after[key]) for key in before)
    if name == "epochs":
        assert summary_of(tmp_path / "run")["step"] == round(3 * 26 / 8)


# --- stopping and going on ---

LONG = {"steps": 6, "save_every": 2, "evaluate_every": 2, "base_lr": (8.0, 64.0), "held_out": 6}


@pytest.fixture(scope="session", params=["none", "crop"])
def whole_run(request, pretrained, grey, tmp_path_factory):
    """Uninterrupted, without pictures, and how features come. Tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "write_report", lambda *arguments: None)
        probe(config(out, pretrained, data=grey, augment=request.param, **LONG))
    return out, request.param


@pytest.mark.parametrize("step", [1, 3, 6])
@pytest.mark.usefixtures("no_report")
def test_a_stopped_run_goes_on_as_if_nothing_had_been(pretrained, grey, whole_run, tmp_path, monkeypatch, step):
    (whole, augment), out = whole_run, tmp_path / "run"
    settings = {"data": grey, "augment": augment, **LONG}
    with monkeypatch.context() as patch:
        signal_at(patch, step)
        with pytest.raises(Interrupted, match=f"SIGTERM at step {step}: saved"):
            probe(config(out, pretrained, **settings))
    assert summary_of(out)["status"] == "interrupted"
    probe(config(out, pretrained, resume="auto", **settings))
    same_training_state(whole, out, step=6)
    assert untimed(metrics(whole)) == untimed(metrics(out))
    for name in ("rates.csv", "split.json"):
        assert (whole / name).read_bytes() == (out / name).read_bytes()
    assert {**summary_of(whole), "seconds": 0} == {**summary_of(out), "seconds": 0}


@pytest.mark.usefixtures("no_report")
def test_more_steps_continue_a_finished_run(pretrained, grey, whole_run, tmp_path):
    (whole, augment), out = whole_run, tmp_path / "run"
    shutil.copytree(whole, out)
    before, settings = snapshot(out), {"data": grey, "augment": augment, **LONG, "resume": "auto"}
    assert probe(config(out, pretrained, **settings))["step"] == 6
    assert snapshot(out) == before
    assert probe(config(out, pretrained, **{**settings, "steps": 7}))["step"] == 7


@pytest.mark.parametrize("change", ["encoder", "another init", "a class more", "an image more", "rates"])
def test_a_run_goes_on_with_what_it_began_with(pretrained, tmp_path, capsys, no_report, change):
    data = folders(tmp_path / "data", train={"a": 6, "b": 6}, test={"a": 1, "b": 1})
    init, out, flags = tmp_path / "init.safetensors", tmp_path / "run", ["--base-lr", "1"]
    shutil.copy(Path(pretrained) / "model.safetensors", init)
    assert command(data, init, out, *flags) == 0
    before = snapshot(out)
    if change == "encoder":
        values, description = read_model(init)
        values["encoder.norm.bias"][0] += 1e-3
        save_file(values, init, metadata={METADATA_KEY: json.dumps(description)})
    elif change == "another init":
        init = pretrained
    elif change == "a class more":
        folders(data, train={"c": 3})
    elif change == "an image more":
        shutil.copy(data / "train" / "a" / "0.png", data / "train" / "a" / "9.png")
    elif change == "rates":
        flags = ["--base-lr", "1", "2", "--held-out", "2"]
    said_by = {
        "encoder": r"init\.safetensors is not the encoder that this run began with: restore it, or start a new run",
        "another init": r"has --init \S+init\.safetensors, not .*: leave --init out",
        "a class more": r"has 3 classes, the run began with 2: restore it, or start a new run",
        "an image more": r"is not the data that this run began with",
        "rates": r"has (no --held-out|--base-lr 1), not ",
    }
    assert command(data, init, out, "--resume", "auto", *flags, steps=3) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert re.search(said_by[change], told[0]), told
    assert snapshot(out) == before


# --- several processes ---


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["none", "crop"])
def test_two_processes_count_every_image_once(pretrained, tmp_path, augment):
    """Batches of 7 are 4 and 3 images, 7 test images in one batch and none, of which one is broken.

    The heads are others than of one process: the BatchNorm is per process, as released (docs/paper.md).
    """
    data = folders(tmp_path / "data", train={"a": 13, "b": 13}, test={"a": 4, "b": 3})
    (data / "test" / "b" / "1.png").write_bytes(b"no picture")
    arguments = f"probe {data} --init {pretrained} --steps 12 --batch-size 7 --log-every 1 --device cpu --workers 0 "
    arguments += f"--optimizer sgd --base-lr 1 30 --held-out 5 --evaluate-every 4 --augment {augment}"
    outs = [tmp_path / "one", tmp_path / "two"]
    assert openmae_run([*arguments.split(), "--out", str(outs[0])]) == 0
    assert run_processes(f"{arguments} --out {outs[1]}", tmp_path / "log", 2) == [0, 0], said(tmp_path / "log")
    one, two = (summary_of(out) for out in outs)
    assert one.keys() == two.keys()
    for name in ("images", "unreadable", "train_images", "report_images", "classes", "chosen_by", "top1_lower_bound"):
        assert one[name] == two[name], name
    assert (two["images"], two["unreadable"], two["report_images"], two["train_images"]) == (6, 1, 7, 21)
    assert two["top1"] == one["top1"] == 100
    first, second = (table(out / "predictions.csv") for out in outs)
    assert [(row["name"], row["label"]) for row in first] == [(row["name"], row["label"]) for row in second]
    assert len({row["name"] for row in second}) == len(second) == 7
    assert (outs[0] / "split.json").read_bytes() == (outs[1] / "split.json").read_bytes()
    assert {float(row["images"]) for row in table(outs[1] / "rates.csv")} == {5}
    # The same images in the first step, but each process norms its own part of the batch.
    assert losses(outs[1])[0] != losses(outs[0])[0]
    assert losses(outs[1])[0] == pytest.approx(losses(outs[0])[0], rel=0.1)


@pytest.mark.slow
def test_more_processes_than_images_in_a_batch_are_refused(pretrained, grey, tmp_path):
    arguments = f"probe {grey} --init {pretrained} --steps 2 --batch-size 1 --device cpu --workers 0 --base-lr 1"
    assert run_processes(f"{arguments} --out {tmp_path / 'run'}", tmp_path / "log", 2) == [2, 2]
    assert "--batch-size 1 for 2 processes: give at least 2 each: the BatchNorm of a probe needs as many" in said(
        tmp_path / "log"
    )


# --- through the command line ---


@pytest.mark.parametrize("flags", [["--pool", "mean"], ["--pool", "cls"], ["--image-size", "12"]])
def test_what_is_kept_classifies_as_it_was_measured(pretrained, tmp_path, flags):
    data, out = folders(tmp_path / "data", train={"ant": 20, "bee": 20}, test={"ant": 4, "bee": 5}), tmp_path / "run"
    (data / "test" / "bee" / "2.png").write_bytes(b"no picture")
    assert command(data, pretrained, out, "--optimizer", "sgd", "--base-lr", "1", "10", *flags, steps=30) == 0
    summary = summary_of(out)
    assert (summary["status"], summary["report"], summary["images"], summary["unreadable"]) == (
        "complete",
        "test",
        8,
        1,
    )
    assert summary["top1"] == 100
    assert summary["top1_lower_bound"] == pytest.approx(100 * 8 / 9)
    for name in ("classes.csv", "pictures/confusion.png", "pictures/most-wrong.png", "config.json", "rates.csv"):
        assert (out / name).stat().st_size > 0
    assert "2.png" in (out / "quarantine.jsonl").read_text()
    model = openmae.load(str(out), "cpu")
    assert model.classes == ("ant", "bee")
    assert model.preprocessing.image_size == ((12, 12) if "--image-size" in flags else (8, 8))
    rows = table(out / "predictions.csv")
    assert len(rows) == 9
    for row in rows:
        if row["unreadable"]:
            assert row["name"].endswith("2.png")
            continue
        path = data / "test" / row["label"] / Path(row["name"]).name
        chances = model.classify(path)[0]
        assert model.classes[int(chances.argmax())] == row["predicted"]
        assert float(chances.max()) == pytest.approx(float(row["confidence"]), rel=1e-4)
    description = read_model(out / "model.safetensors")[1]
    assert (description["kind"], description["classes"], description["step"]) == ("classifier", ["ant", "bee"], 30)
    assert str(tmp_path) not in json.dumps(description)


def test_several_labels_an_image(pretrained, tmp_path):
    """Rows name class a where an image is dark, b where it is light, c never alone: each class by itself."""
    data, out = folders(tmp_path / "data", all={"x": 12, "y": 12}), tmp_path / "run"
    lines = [f"x/{n}.png,a" for n in range(12)] + [f"y/{n}.png,b;c" for n in range(12)]
    (tmp_path / "labels.csv").write_text("path,labels\n" + "\n".join(lines) + "\n")
    flags = ["--label-file", tmp_path / "labels.csv", "--held-out", 6, "--optimizer", "sgd", "--base-lr", 1e-6, 30]
    assert command(data, pretrained, out, *flags, steps=40) == 0
    summary = summary_of(out)
    assert (summary["map"], summary["f1"], summary["chosen_base_lr"]) == (100, 100, 30)
    assert (summary["train_images"], summary["images"], summary["report"]) == (18, 6, "split of train")
    model = openmae.load(str(out), "cpu")
    dark, light = model.classify([data / "x" / "0.png", data / "y" / "0.png"])
    assert model.classes == ("a", "b", "c")
    assert (dark > 0.5).tolist() == [True, False, False]
    assert (light > 0.5).tolist() == [False, True, True]


@pytest.mark.parametrize("augment", ["none", "crop"])
@pytest.mark.usefixtures("no_report")
def test_unreadable_training_images_are_counted(pretrained, tmp_path, augment):
    data, out = folders(tmp_path / "data", train={"a": 10, "b": 10}, test={"a": 1, "b": 1}), tmp_path / "run"
    (data / "train" / "a" / "3.png").write_bytes(b"no picture")
    with pytest.raises(RequestError, match=r"1 of 20 .*3\.png"):
        probe(config(tmp_path / "strict", pretrained, data=data, augment=augment, base_lr=(1.0,), steps=9))
    settings = {"data": data, "augment": augment, "base_lr": (1.0,), "steps": 9, "max_bad": 0.1}
    assert probe(config(out, pretrained, **settings))["status"] == "complete"
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 1
    if augment == "none":  # as if it had never been there: labels stay with their features
        (data / "train" / "a" / "3.png").unlink()
        probe(config(tmp_path / "without", pretrained, **settings))
        assert all(torch.equal(value, weights(out)[name]) for name, value in weights(tmp_path / "without").items())


# --- what is refused ---


def bad_inputs(tmp_path, pretrained):
    """Each with its flags and what the one line must say."""
    good = folders(tmp_path / "good", train={"a": 4, "b": 4}, test={"a": 1, "b": 1})
    one = folders(tmp_path / "one", all={"a": 6})
    strange = folders(tmp_path / "strange", train={"a": 4, "b": 4}, test={"a": 1, "c": 1})
    unlabelled = folders(tmp_path / "unlabelled", all={".": 5})
    broken = folders(tmp_path / "broken", train={"a": 4, "b": 4}, test={"a": 1, "b": 1})
    for path in (broken / "train").rglob("*.png"):
        path.write_bytes(b"no picture")
    headless = tmp_path / "headless.safetensors"
    values, description = read_model(Path(pretrained) / "model.safetensors")
    metadata = {METADATA_KEY: json.dumps(description)}
    save_file({n: v for n, v in values.items() if not n.startswith("encoder.")}, headless, metadata=metadata)
    return {
        "no labels": (unlabelled, pretrained, [], r"no training image .* has a label: put every image into a class"),
        "one class": (one, pretrained, [], r"have one label \(a\): at least two classes are needed"),
        "a class in test alone": (strange, pretrained, [], r"class c, but train has none of it: add some to train"),
        "nothing readable": (broken, pretrained, [], r"none of 7 images looked at can be read"),
        "more labels than images": (good, pretrained, ["--labels", "9"], r"there are 7 labelled .*; ask for fewer"),
        "fewer than classes": (good, pretrained, ["--labels", "1"], r"1 images for 2 classes; ask for at least 2"),
        "no encoder": (good, headless, [], r"lacks encoder\.blocks\.0\.\S+ .*: it is damaged or of another model"),
        "no model": (good, tmp_path / "nowhere", [], r"nowhere does not exist: give a checkpoint"),
        "no data": (tmp_path / "missing", pretrained, [], r"missing"),
        "too much held out": (good, pretrained, ["--held-out", "7"], r"--held-out 7: of 8 .*hold out fewer"),
        "out among the data": (good, pretrained, ["--out", good / "run"], r"lies inside .*would become its data"),
        "an unknown recipe": (good, pretrained, ["--recipe", "imagenet-bas"], r"did you mean 'imagenet-base'\?"),
        "an unknown optimiser": (good, pretrained, ["--optimizer", "lasr"], r"did you mean 'lars'\?"),
        "an unknown augmentation": (good, pretrained, ["--augment", "crops"], r"did you mean 'crop'\?"),
        "a wrong pool": (good, pretrained, ["--pool", "max"], r"--pool got 'max'.*known are cls, mean"),
        "a rate of 0": (good, pretrained, ["--base-lr", "1", "0"], r"--base-lr got 0: it must be above 0"),
        "a rate twice": (good, pretrained, ["--base-lr", "1", "1"], r"--base-lr got a rate twice: 1 1"),
        "momentum of 1": (good, pretrained, ["--momentum", "1"], r"--momentum got 1: .*below 1"),
        "a size no patch fits": (good, pretrained, ["--image-size", "9"], r"--image-size 8 8 would do"),
        "no warm-up fits": (good, pretrained, ["--warmup-epochs", "9"], r"--warmup-epochs got 9 .*give fewer"),
        "nothing to probe": (good, "none", [], r"none does not exist"),
    }


def test_bad_input_is_refused_in_a_line_and_leaves_nothing(pretrained, tmp_path, capsys):
    for name, (data, init, flags, message) in bad_inputs(tmp_path, pretrained).items():
        before = sorted(tmp_path.rglob("*"))
        out = [] if "--out" in flags else ["--out", tmp_path / "run"]
        arguments = ["probe", data, "--init", init, "--device", "cpu", "--workers", "0", "--steps", "2"]
        assert openmae_run([str(part) for part in (*arguments, *out, "--batch-size", "4", *flags)]) == 2, name
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1, (name, told)
        assert re.search(message, told[0]), (name, told[0])
        assert sorted(tmp_path.rglob("*")) == before, name


def test_nothing_readable_to_measure_on_is_refused(pretrained, tmp_path, capsys, no_report):
    data = folders(tmp_path / "data", train={"a": 4, "b": 4}, test={"a": 1, "b": 1})
    for path in (data / "test").rglob("*.png"):
        path.write_bytes(b"no picture")
    assert command(data, pretrained, tmp_path / "run", "--base-lr", "1") == 2
    assert "none of 2 images (features of test) can be read" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "most", "size"), [(8, 8, 8), (5, 4, 3), (7, 3, 7), (3, 2, 3), (2, 1, 2), (9, 4, 3)])
def test_no_image_is_normed_alone(count, most, size):
    """A part of one image has no variance; where nothing else divides, all go together."""
    assert micro_batch_size_for(count, most) == size
    assert count % size != 1


@pytest.mark.usefixtures("no_report")
def test_a_micro_batch_that_leaves_one_image_over_trains(pretrained, tmp_path):
    summary = probe(config(tmp_path / "run", pretrained, augment="crop", batch_size=5, micro_batch_size=4, steps=2))
    assert summary["status"] == "complete"
