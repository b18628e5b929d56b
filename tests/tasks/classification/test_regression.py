"""Numbers as targets: probing and fine-tuning against scikit-learn, the choice among rates, what a run leaves."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as judge

import openmae
from openmae.config import Preprocessing
from openmae.data.augment import Augmentation
from openmae.data.loader import Stream
from openmae.tasks.finetune import finetune as finetune_module
from openmae.tasks.finetune.finetune import finetune
from openmae.tasks.probe import probe as probe_module
from openmae.tasks.probe.probe import probe
from openmae.training.checkpoint import read_model

from .regression_runs import config, features, losses, opened, summary_of, table


@pytest.fixture
def no_report(monkeypatch):
    """Most of a tiny run's time would go into drawing its pictures."""
    for module in (finetune_module, probe_module):
        monkeypatch.setattr(module, "write_report", lambda *arguments: None)


# --- the probe against scikit-learn ---


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_a_probe_is_scikit_learns_ridge(pretrained, greys, tmp_path):
    """Whole-batch steps with weight decay λ end at a ridge of α = n λ / 2 a column, on features that are standardised
    alike: (X'X + n λ / 2 · T) w = X'z, where the loss is a mean over T columns.

    Measured: predictions on the images of the split differ by 4.8e-6 of the numbers' deviation, coefficients by 6.3e-6
    of the largest.
    """
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    decay, data = 0.05, opened(greys)
    (values, numbers), (test_values, test_numbers) = (
        features(pretrained, data.train),
        features(pretrained, data.final_source),
    )
    scaler = StandardScaler().fit(values)
    standard = (numbers - data.scale.mean) / data.scale.std
    ridge = Ridge(alpha=len(values) * decay / 2 * 2).fit(scaler.transform(values), standard)
    # What was trained on batches is measured with running statistics, whose variance is the unbiased one.
    unbiased = np.sqrt((len(values) - 1) / len(values))
    expected = ridge.predict(scaler.transform(test_values) * unbiased) * data.scale.std + data.scale.mean

    out, count = tmp_path / "run", len(data.train)
    settings = {"optimizer": "sgd", "base_lr": (0.1 * 256 / count,), "weight_decay": decay, "batch_size": count}
    summary = probe(config(probe, greys, out, pretrained, **settings, steps=1500, log_every=1500))
    model = openmae.load(str(out), "cpu")
    found = model.predict([data.final_source.read(i) for i in range(len(data.final_source))]).numpy()
    error = (np.abs(found - expected) / data.scale.std).max()
    coefficients = model.regressor.head.weight.detach().numpy()
    differs = np.abs(coefficients - ridge.coef_).max() / np.abs(ridge.coef_).max()
    print("ridge: predictions", error, "coefficients", differs, "r2", summary["r2"])
    assert error < 1e-4
    assert differs < 1e-3
    assert summary["r2"] == pytest.approx(judge.r2_score(test_numbers, expected), abs=1e-4)
    assert 0.3 < summary["r2"] < 0.999, "neither nothing nor all explained: a mistake would show"
    assert summary["mae"] == pytest.approx(judge.mean_absolute_error(test_numbers, expected), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
@pytest.mark.usefixtures("no_report")
def test_the_rates_it_tries_unasked_find_the_optimum(pretrained, tmp_path, optimizer):
    """Least squares on the digits' features; nothing diverges, also at the largest rate.

    Measured: the optimum explains .2839 of the variance of the training images' numbers; LARS ends 1.6e-4 below, SGD
    4e-5.
    """
    from sklearn.linear_model import LinearRegression

    data = opened("embedded:digits", needs_validation=True)
    values, numbers = features(pretrained, data.train)
    best = LinearRegression().fit(values, numbers).score(values, numbers)
    out = tmp_path / "run"
    settings = {"optimizer": optimizer, "batch_size": 256, "steps": 400, "log_every": 50}
    summary = probe(config(probe, "embedded:digits", out, pretrained, **settings))
    model = openmae.load(str(out), "cpu")
    images = [data.train.read(i) for i in range(len(data.train))]
    reached = judge.r2_score(numbers, model.predict(images).numpy())
    print("optimum", optimizer, best, best - reached, summary["r2"])
    assert best - 2e-3 < reached < best + 1e-6
    rates = [float(row["held_out_loss"]) for row in table(out / "rates.csv")]
    assert len(rates) == 5
    assert max(rates) < 1.2, "no rate does worse than guessing the mean"
    assert summary["skipped_steps"] == 0


@pytest.mark.usefixtures("no_report")
def test_a_rate_that_diverges_does_not_disturb_the_others(pretrained, greys, tmp_path):
    """Squared errors have no largest gradient: at 30 the numbers grow beyond all others, and the rest learns on."""
    settings = {"optimizer": "sgd", "steps": 60, "held_out": 10, "batch_size": 50}
    rates = (0.05, 0.1, 30.0)
    summary = probe(config(probe, greys, tmp_path / "all", pretrained, base_lr=rates, **settings))
    probe(config(probe, greys, tmp_path / "two", pretrained, base_lr=rates[:2], **settings))
    assert summary["status"] == "complete"
    assert summary["chosen_base_lr"] in rates[:2]
    both = [table(tmp_path / name / "rates.csv") for name in ("all", "two")]
    for one, two in zip(*both, strict=False):
        assert float(one["r2"]) == pytest.approx(float(two["r2"]), rel=1e-5)
    assert float(both[0][2]["r2"]) < -100


@pytest.mark.usefixtures("no_report")
def test_the_rate_is_chosen_by_r2_on_a_split_of_train_and_never_on_test(pretrained, tmp_path, capsys):
    """The test part calls dark light: the rate that learns is best on the split and the worst one there."""
    chance, data, lines = np.random.default_rng(0), tmp_path / "data", ["path,light"]
    for part, count in (("train", 40), ("test", 10)):
        (data / part).mkdir(parents=True)
        for number in range(count):
            light = chance.uniform(0, 200)
            Image.fromarray((light + chance.uniform(0, 50, (8, 8))).astype(np.uint8)).save(
                data / part / f"{number}.png"
            )
            lines.append(f"{part}/{number}.png,{light if part == 'train' else 200 - light}")
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    out, rates = tmp_path / "run", (1e-6, 0.2, 2e-6)
    summary = probe(config(probe, data, out, pretrained, steps=60, base_lr=rates, optimizer="sgd", held_out=8))
    assert (summary["chosen_base_lr"], summary["chosen_by"]) == (0.2, "split of train")
    assert (summary["report"], summary["images"], summary["train_images"]) == ("test", 10, 32)
    assert summary["r2"] < -0.5
    assert summary["choice_r2"] > 0.8
    rows = {float(row["base_lr"]): float(row["r2"]) for row in table(out / "rates.csv")}
    assert max(rows, key=rows.get) == 0.2
    assert {float(row["images"]) for row in table(out / "rates.csv")} == {8}
    told = capsys.readouterr().out
    assert f"0.2: R2 {rows[0.2]:.4f}" in told
    assert "(split of train); 0.2 is kept" in told


# --- fine-tuning ---


@pytest.mark.usefixtures("no_report")
def test_the_loss_is_of_numbers_on_their_scale(pretrained, greys, tmp_path):
    """A fresh head says next to nothing, so that the first loss is the mean square of the batch's standardised numbers,
    each with its own image. Measured: 8e-5 apart, which is what the head says."""
    out = tmp_path / "run"
    summary = finetune(config(finetune, greys, out, pretrained, steps=3, augment="none", rand_augment="none"))
    data, values = opened(greys), json.loads((out / "config.json").read_text())
    preprocessing = Preprocessing.from_dict(values["preprocessing"])
    stream = Stream(data.train, preprocessing, Augmentation(kind="none"), values["seed"], 1, with_labels=True)
    wanted = []
    for step in range(3):
        indices, _ = stream.locate(range(8 * step, 8 * step + 8))
        numbers = np.array([data.train.label(int(i)) for i in indices])
        wanted.append(np.square((numbers - data.scale.mean) / data.scale.std).mean())
    assert losses(out)[0] == pytest.approx(wanted[0], rel=1e-4)
    assert abs(wanted[0] - wanted[1]) > 0.01
    assert summary["columns"] == 2
    assert "classes" not in summary
    off = {name: values[name] for name in ("mixup", "cutmix", "label_smoothing", "balance")}
    assert off == {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "balance": "none"}


@pytest.mark.usefixtures("no_report")
def test_a_recipe_mixes_no_numbers(pretrained, greys, tmp_path):
    """Table 9 smooths and mixes; its other settings stand."""
    settings = {"recipe": "imagenet-base", "image_size": 8, "steps": 2, "batch_size": 4, "crop_scale": (0.5, 1.0)}
    finetune(config(finetune, greys, tmp_path / "run", pretrained, **settings))
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [values[name] for name in ("mixup", "cutmix", "label_smoothing")] == [0, 0, 0]
    assert (values["erasing"], values["layer_decay"], values["drop_path"]) == (0.25, 0.65, 0.1)


@pytest.mark.parametrize("run", [finetune, probe])
def test_what_a_run_leaves_says_the_same_everywhere(pretrained, greys, tmp_path, capsys, run):
    out = tmp_path / "run"
    strong = {"base_lr": 0.5} if run is finetune else {"base_lr": (200.0,)}
    summary = run(config(run, greys, out, pretrained, steps=150, log_every=50, **strong))
    told = capsys.readouterr().out
    assert "48 labelled images to train on, 2 numbers to predict" in told
    assert summary_of(out) == summary
    assert summary["r2"] == pytest.approx((summary["r2_light"] + summary["r2_even"]) / 2)
    assert summary["mae"] == pytest.approx((summary["mae_light"] + summary["mae_even"]) / 2)
    assert summary["r2"] > 0.5
    assert f"R2 {summary['r2']:.4f}, mean absolute error {summary['mae']:.4g} (means over columns) on 12 images" in told
    assert f"R2 {summary['r2_even']:.4f}" in told
    model, rows = openmae.load(str(out), "cpu"), table(out / "predictions.csv")
    assert isinstance(model, openmae.RegressionModel)
    assert model.columns == ("light", "even")
    assert len(rows) == 12
    predicted = model.predict([greys / row["name"] for row in rows])
    assert (tuple(predicted.shape), predicted.dtype) == ((12, 2), torch.float64)
    written = np.array([[float(row[f"predicted_{column}"]) for column in model.columns] for row in rows])
    # Not measured apart; images one by one or together may round otherwise.
    np.testing.assert_allclose(written / model.scale.std, predicted.numpy() / model.scale.std, atol=1e-5)
    true = np.array([[float(row[column]) for column in model.columns] for row in rows])
    listed = {row["path"]: row for row in table(f"{greys}.csv")}
    assert all(
        [float(listed[row["name"]][c]) for c in model.columns] == t.tolist() for row, t in zip(rows, true, strict=True)
    )
    assert summary["r2"] == pytest.approx(judge.r2_score(true, written), abs=1e-6)
    columns = table(out / "columns.csv")
    assert [row["column"] for row in columns] == ["light", "even"]
    for k, row in enumerate(columns):
        assert float(row["r2"]) == pytest.approx(summary[f"r2_{row['column']}"], rel=1e-5)
        assert float(row["mae"]) == pytest.approx(summary[f"mae_{row['column']}"], rel=1e-5)
        assert float(row["rmse"]) == pytest.approx(judge.root_mean_squared_error(true[:, k], written[:, k]), rel=1e-4)
    for name in ("scatter", "most-wrong"):
        assert Image.open(out / "pictures" / f"{name}.png").size[0] >= 600
    assert not (out / "classes.csv").exists()
    description = read_model(out / "model.safetensors")[1]
    assert (description["kind"], description["columns"]) == ("regressor", ["light", "even"])
    scale = opened(greys).scale
    assert (description["target_mean"], description["target_std"]) == (list(scale.mean), list(scale.std))
    assert model.scale == scale
    assert str(tmp_path) not in json.dumps(description)
    assert json.loads((out / "config.json").read_text())["task"] == "regression"


def test_an_image_that_cannot_be_read_is_counted_and_never_replaced(pretrained, greys, tmp_path):
    data = shutil.copytree(greys, tmp_path / "greys")
    shutil.copy(f"{greys}.csv", f"{data}.csv")
    broken = opened(greys).final_source.name(3)
    (data / broken).write_bytes(b"no picture")
    summary = finetune(config(finetune, data, tmp_path / "run", pretrained, max_bad=0.1))
    assert (summary["images"], summary["unreadable"], summary["report_images"]) == (11, 1, 12)
    rows = table(tmp_path / "run" / "predictions.csv")
    assert [row["name"] for row in rows if row["unreadable"]] == [broken]
