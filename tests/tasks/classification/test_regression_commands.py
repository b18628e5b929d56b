"""Numbers from neighbours; what is refused; what other commands make of a regression model."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from sklearn import metrics as judge

import openmae
from openmae.cli import run as openmae_run
from openmae.config.features import KnnConfig
from openmae.errors import RequestError
from openmae.inference.neighbours import neighbour_means
from openmae.tasks.finetune.finetune import finetune
from openmae.tasks.knn import knn
from openmae.training.checkpoint import read_model

from ...processes import run as run_processes
from ...processes import said
from .regression_runs import config, summary_of, table

# --- neighbours ---


def knn_config(greys, pretrained, out, **changes):
    settings = {"data": str(greys), "label_file": f"{greys}.csv", "task": "regression", "init": pretrained}
    return KnnConfig(**{**settings, "out": str(out), "k": (5, 1, 20), "device": "cpu", "workers": 0, **changes})


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_neighbours_mean_what_scikit_learns_mean(temperature):
    from sklearn.neighbors import KNeighborsRegressor

    chance = np.random.default_rng(0)
    bank, queries = chance.normal(size=(200, 6)) + 1, chance.normal(size=(70, 6)) + 1
    numbers = chance.normal(size=(200, 3)) * [1, 50, 1e-3]
    found = neighbour_means(
        *(torch.from_numpy(bank).float(), torch.from_numpy(numbers), torch.from_numpy(queries).float()),
        ks=(1, 7, 20),
        temperature=temperature,
        chunk=16,
    )
    for k, ours in found.items():
        judge_of_k = KNeighborsRegressor(
            k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature), algorithm="brute"
        ).fit(bank.astype(np.float32).astype(np.float64), numbers)
        expected = judge_of_k.predict(queries.astype(np.float32).astype(np.float64))
        assert ours.dtype == torch.float64
        # At a temperature of .01; similarities are float32: measured 3e-6 of the largest number.
        assert np.abs(ours.numpy() - expected).max(0) == pytest.approx([0, 0, 0], abs=1e-4 * np.abs(numbers).max())
        assert (np.abs(ours.numpy() - expected) / np.abs(numbers).max(0)).max() < 1e-4


def test_what_neighbours_leave(pretrained, greys, tmp_path, capsys):
    out = tmp_path / "run"
    summary = knn(knn_config(greys, pretrained, out))
    assert json.loads((out / "summary.json").read_text()) == summary
    found = {path.name for path in out.rglob("*") if path.is_file()}
    assert found == {"config.json", "summary.json", "columns.csv", "predictions.csv", "scatter.png", "most-wrong.png"}
    assert summary["r2"] > 0.3
    for end in ("", "_k1", "_k20"):
        assert summary[f"r2{end}"] == pytest.approx((summary[f"r2_light{end}"] + summary[f"r2_even{end}"]) / 2)
    assert len({summary["mae"], summary["mae_k1"], summary["mae_k20"]}) == 3
    assert (summary["columns"], summary["k"], summary["images"]) == (2, 5, 12)
    assert "classes" not in summary
    rows = table(out / "predictions.csv")
    true, said_of = (np.array([[float(r[p + c]) for c in ("light", "even")] for r in rows]) for p in ("", "predicted_"))
    assert summary["r2"] == pytest.approx(judge.r2_score(true, said_of), abs=1e-5)
    told = capsys.readouterr().out
    assert f"R2 {summary['r2_k20']:.4f}, mean absolute error {summary['mae_k20']:.4g} with k = 20 (means over" in told
    assert json.loads((out / "config.json").read_text())["task"] == "regression"


@pytest.mark.slow
def test_two_processes_of_neighbours_say_what_one_says(pretrained, greys, tmp_path):
    arguments = f"knn {greys} --label-file {greys}.csv --task regression --init {pretrained} --k 5 --device cpu "
    arguments += "--workers 0 --batch-size 4"
    outs = [tmp_path / "one", tmp_path / "two"]
    assert openmae_run([*arguments.split(), "--out", str(outs[0])]) == 0
    assert run_processes(f"{arguments} --out {outs[1]}", tmp_path / "log", 2) == [0, 0], said(tmp_path / "log")
    assert {**summary_of(outs[0]), "seconds": 0} == {**summary_of(outs[1]), "seconds": 0}
    assert (outs[0] / "predictions.csv").read_bytes() == (outs[1] / "predictions.csv").read_bytes()


# --- what is refused, and in a line ---


def command(task, *arguments):
    return openmae_run([task, *map(str, arguments), "--device", "cpu"])


def test_what_does_not_go_with_numbers_is_refused_in_a_line(pretrained, greys, tmp_path, capsys):
    common = [greys, "--label-file", f"{greys}.csv", "--init", pretrained, "--task", "regression", "--workers", "0"]
    (tmp_path / "words.csv").write_text("path,age\n00.png,old\n01.png,2\n")
    (tmp_path / "short.csv").write_text("path,age\n00.png,1\n")
    (tmp_path / "missing.csv").write_text("path,a,b\n00.png,1,\n01.png,,2\n")
    (tmp_path / "near.csv").write_text("path,ph\n" + "".join(f"{i:02}.png,{i}e-300\n" for i in range(60)))
    (tmp_path / "names.csv").write_text("path,a,k20,a_k7\n" + "".join(f"{i:02}.png,{i},{i},{i}\n" for i in range(60)))
    cases = {
        "mixup": ("finetune", ["--mixup", "0.8"], r"--mixup is for classes, not for --task regression: leave it out"),
        "cutmix": ("finetune", ["--cutmix", "1"], r"--cutmix is for classes"),
        "smoothing": ("finetune", ["--label-smoothing", "0.1"], r"--label-smoothing is for classes"),
        "weights": ("finetune", ["--balance", "weights"], r"--balance weights is for classes"),
        "sampling": ("finetune", ["--balance", "sampling"], r"--balance sampling is for classes"),
        "a slip": ("probe", ["--task", "regresion"], r"--task got 'regresion': did you mean 'regression'\?"),
        "a slip of knn": (
            "knn",
            ["--task", "numbers"],
            r"--task got 'numbers': .*known are classification, regression",
        ),
        "words": ("probe", ["--label-file", tmp_path / "words.csv"], r"line 2: column age has old; expected a number"),
        "one number": ("probe", ["--label-file", tmp_path / "short.csv"], r"one labelled training image, so none can"),
        "too many": ("finetune", ["--labels", "99"], r"there are 48 labelled images to train on; ask for fewer"),
        "one of them": ("finetune", ["--labels", "1"], r"there is one training image with 'light'.*: give more"),
        "all of them": ("finetune", ["--held-out", "60"], r"59 can be held out if one is to train on; hold out"),
        "missing ones": ("probe", ["--label-file", tmp_path / "missing.csv"], r"has all its numbers: give them"),
        "too near": ("knn", ["--label-file", tmp_path / "near.csv"], r"'ph' differ by too little .* give them in an"),
        "a name twice": (
            "knn",
            ["--label-file", tmp_path / "names.csv", "--k", "5", "20"],
            r"the column k20 and --k 20 would both have the metric r2_k20: rename the column",
        ),
        "another twice": (
            "knn",
            ["--label-file", tmp_path / "names.csv", "--k", "5", "7"],
            r"the column a_k7 and --k 7 would both have the metric r2_a_k7: rename the column",
        ),
        "no folder of numbers": (
            "knn",
            ["--label-file", tmp_path / "none.csv"],
            r"--label-file \S+none\.csv cannot be read",
        ),
    }
    for name, (task, flags, message) in cases.items():
        assert command(task, *common, "--out", tmp_path / "run", *flags) == 2, name
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1, (name, told)
        assert re.search(message, told[0]), (name, told[0])
        assert not (tmp_path / "run").exists(), name


@pytest.mark.slow
def test_nobody_said_what_the_labels_are(pretrained, greys, tmp_path, capsys):
    """The case that began it: ages in the label column. Whole ones stay classes, with a line."""
    for kind, ages in (("fractional", [20.5 + i % 9 for i in range(60)]), ("whole", [20 + i % 3 for i in range(60)])):
        (tmp_path / f"{kind}.csv").write_text("path,label\n" + "".join(f"{i:02}.png,{a}\n" for i, a in enumerate(ages)))
    for task in ("finetune", "probe", "knn"):
        arguments = [greys, "--init", pretrained, "--workers", "0", "--label-file"]
        steps = [] if task == "knn" else ["--steps", "2", "--batch-size", "4"]
        out = tmp_path / task
        assert command(task, *arguments, tmp_path / "fractional.csv", "--out", out, *steps) == 2
        told = capsys.readouterr().err
        assert re.search(r"--task regression predicts the numbers, --task classification takes each", told), told
        assert not out.exists()
        assert command(task, *arguments, tmp_path / "whole.csv", "--out", out, *steps) == 0
        line = "3 whole numbers (20 to 22) are taken for the names of classes; --task regression would predict them"
        assert line in capsys.readouterr().out
        assert summary_of(out)["classes"] == 3
        assert json.loads((out / "config.json").read_text())["task"] == "classification"
        shutil.rmtree(out)
        assert command(task, *arguments, tmp_path / "whole.csv", "--task", "regression", "--out", out, *steps) == 0
        assert summary_of(out)["mae"] > 0


@pytest.fixture(scope="session")
def regression_run(pretrained, greys, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "regression"
    finetune(config(finetune, greys, out, pretrained, steps=20, base_lr=0.3))
    return out


@pytest.mark.slow
def test_other_commands_know_what_it_is(regression_run, pretrained, greys, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = {
        "reconstruct": (
            [greys / "00.png", "--out", "x.png"],
            "is a regression model: reconstruction needs the decoder",
        ),
        "robustness": (
            ["--out", "r", "--imagenet-a", greys],
            "predicts numbers: give a fine-tuned or probed classifier",
        ),
    }
    for task, (arguments, message) in refused.items():
        assert command(task, *arguments, "--init", regression_run) == 2
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1
        assert message in told[0]
    assert command("embed", greys, "--init", regression_run, "--out", "features.npz", "--workers", "0") == 0
    with np.load("features.npz") as found:
        model = openmae.load(str(regression_run), "cpu")
        outputs = model.regressor.head(torch.from_numpy(found["features"]))
    expected = model.predict([greys / f"{i:02}.png" for i in range(60)]).numpy()
    # Features are what the head sees. The error itself is not measured yet.
    given = outputs.detach().numpy() * model.scale.std + model.scale.mean
    assert np.abs((given - expected) / model.scale.std).max() < 1e-5
    assert command("attention", greys / "00.png", "--init", regression_run, "--out", "a.png") == 0
    numbers = [greys, "--label-file", f"{greys}.csv", "--task", "regression", "--init", regression_run]
    assert command("knn", *numbers, "--out", "k", "--workers", "0") == 0
    by_class_token = ["--label-file", f"{greys}.csv", "--task", "regression", "--init", pretrained, "--pool", "cls"]
    two = ["--steps", "2", "--workers", "0", "--batch-size", "4"]
    assert command("finetune", greys, *by_class_token, "--out", "cls", *two) == 0
    capsys.readouterr()
    assert command("pretrain", greys, "--init", "cls", "--out", "p", "--held-out", "4", *two) == 0
    assert "decoder: fresh, for cls/model.safetensors is a regression model" in capsys.readouterr().out
    assert command("finetune", "embedded:digits", "--init", regression_run, "--out", "f", *two) == 0


def test_inspect_says_what_it_predicts(regression_run, tmp_path, capsys):
    assert openmae_run(["inspect", str(regression_run / "model.safetensors"), "--out", str(tmp_path / "looks")]) == 0
    told = capsys.readouterr().out
    scale = openmae.load(str(regression_run), "cpu").scale
    assert "openmae regression model, step 20" in told
    assert f"predicts   light: mean {scale.mean[0]:.4g}, deviation {scale.std[0]:.4g} in training" in told
    assert "good for   numbers (load(…).predict)" in told
    found = json.loads((tmp_path / "looks" / "inspect.json").read_text())
    assert (found["model"], found["columns"]) == ("regressor", ["light", "even"])
    assert openmae_run(["inspect", str(regression_run)]) == 0
    told, summary = capsys.readouterr().out, summary_of(regression_run)
    for name in ("r2", "mae"):
        value = re.escape(f"{summary[name]:.4g}")
        assert re.search(rf"(?m)^{name} +{value}$", told), told
    assert "task regression" in told


@pytest.mark.parametrize(
    "change",
    [
        {"columns": ["light"]},
        {"columns": "light"},
        {"target_std": [1.0, 0.0]},
        {"target_mean": [1.0]},
        {"target_std": None},
    ],
)
def test_a_damaged_description_is_refused(regression_run, tmp_path, change):
    from safetensors.torch import save_file

    from openmae.training.checkpoint import METADATA_KEY

    values, description = read_model(regression_run / "model.safetensors")
    path = tmp_path / "model.safetensors"
    save_file(values, path, metadata={METADATA_KEY: json.dumps({**description, **change})})
    with pytest.raises(RequestError, match="has a description that does not make a model"):
        openmae.load(str(path), "cpu")
