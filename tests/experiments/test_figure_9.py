"""`openmae experiment figure-9` on digits: what it leaves, going on after a stop, what chooses, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import openmae
from openmae.cli import run as openmae_run
from openmae.config import ExperimentConfig
from openmae.data.sources.open import open_source
from openmae.errors import Interrupted, RequestError
from openmae.experiments.experiment import experiment
from openmae.experiments.figure_9.plan import plan_figure_9
from openmae.experiments.figure_9.study import with_blocks, with_defaults
from openmae.experiments.trials import final_figures, trial
from openmae.experiments.trials.side_by_side import run_side_by_side
from openmae.planning import probe as probe_planning
from openmae.run.lock import locked
from openmae.tasks.pretrain.pretrain import pretrain

from ..shared import run_trials_here, snapshot
from ..tiny_runs import make_digits_config

ROWS = ["kNN", "probe", "0.5 blocks", "1 blocks", "full", "scratch"]
TRAINED = ("full", "scratch", "0.5-blocks", "1-blocks")


@pytest.fixture(scope="module", autouse=True)
def short():
    """Trials in this process, a probe of 20 steps, no reports of runs: pictures are most of what a tiny one costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_planning, "TARGET_STEPS", 20)
        for name in ("probe", "finetune"):
            patch.setattr(f"openmae.tasks.{name}.{name}.write_report", lambda *arguments: None)
        run_trials_here(patch)
        yield


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    settings = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "steps": 4, "evaluate_every": 1000}
    pretrain(make_digits_config(out, **settings, save_every=1000, target="pixel"))
    return str(out)


def config(out, init, **changes):
    settings = {
        "name": "figure-9",
        "data": "embedded:digits",
        "labels": ("10%",),
        "epochs": (1.0,),
        "blocks": (0.5, 1.0),
        "base_lr": (0.01, 0.1),
        "seeds": 2,
        "batch_size": 32,
        "held_out": 400,
        "device": "cpu",
        "workers": 0,
    }
    return ExperimentConfig(out=str(out), init=init, **{**settings, **changes})


@pytest.fixture(scope="module")
def finished(pretrained, tmp_path_factory):
    """One share of the labels. Tests only read it."""
    out = tmp_path_factory.mktemp("experiments") / "figure"
    experiment(config(out, pretrained))
    return out


def results(out):
    """Each row of results.json by its name: its one protocol, with that one's name."""
    rows = json.loads((out / "results.json").read_text())["rows"]
    found = {}
    for row in rows:
        [(name, measured)] = row["protocols"].items()
        found[row["row"]] = {"protocol": name, **measured}
    return found


def runs_of(out):
    """Every run by its row's name without the share, its seed and its own name: probe/0/probe."""
    paths = [path.parent for path in (out / "runs").glob("*/seed-*/*/summary.json")]
    row = re.compile(r"(.*)-10%/seed-(\d)/(.*)")
    return {"/".join(row.fullmatch(str(path.relative_to(out / "runs"))).groups()): path for path in paths}


def counted(monkeypatch):
    """Which runs are started, or asked for what they found, from here on."""
    calls = []
    for name in ("probe", "finetune", "knn"):
        real = getattr(trial, name)

        def call(settings, real=real):
            calls.append("/".join(Path(settings.out).parts[-3:]))
            return real(settings)

        monkeypatch.setattr(trial, name, call)
    return calls


def test_the_table_and_the_picture(finished):
    stored = json.loads((finished / "results.json").read_text())
    assert list(stored) == ["experiment", "scale", "rows"]
    assert (stored["experiment"], stored["scale"]) == ("figure-9", "laptop")
    assert [row["row"] for row in stored["rows"]] == [f"{name}, 10%" for name in ROWS]
    for row in stored["rows"]:
        assert list(row) == ["row", "settings", "protocols", "cost"]
        assert row["settings"]["labels"] == "10%"
        assert row["cost"]["gflop_an_image"] > 0
    assert stored["rows"][2]["settings"] | {"blocks": 0.5, "base_lr": [0.01, 0.1]} == stored["rows"][2]["settings"]
    for name, measured in results(finished).items():
        protocol = {"kNN, 10%": "knn", "probe, 10%": "linear"}.get(name, "finetune")
        assert measured["protocol"] == protocol
        assert len(measured["values"]) == (2 if protocol == "linear" else 1)
        assert measured["paper"] is None  # they are of all labels
        assert ("base_lr" in measured) == (protocol == "finetune")
        assert ("chosen_by" in measured) == (protocol != "knn")
    lines = (finished / "results.md").read_text().splitlines()
    at = lines.index("| | 10% |")
    assert [line.split("|")[1].strip() for line in lines[at + 2 : at + 8]] == ROWS
    assert "±" in lines[at + 3]
    with Image.open(finished / "figure-9.png") as picture:
        assert picture.size == (840, 540)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_every_run_has_the_same_images(finished):
    """1,434 digits, 400 held out, a tenth of the rest: 103; all choose and are measured alike."""
    runs = runs_of(finished)
    wanted = {"kNN/0/knn", "probe/0/probe", "probe/1/probe"}
    assert runs.keys() == wanted | {f"{name}/0/finetune-{rate}" for name in TRAINED for rate in ("0.01", "0.1")}
    splits = [json.loads((path / "split.json").read_text()) for name, path in runs.items() if "knn" not in name]
    assert all(split == splits[0] for split in splits)
    assert (len(splits[0]["train"]), len(splits[0]["held_out"])) == (103, 400)
    assert not set(splits[0]["train"]) & set(splits[0]["held_out"])
    for name, path in runs.items():
        summary = json.loads((path / "summary.json").read_text())
        assert summary["images"] == (400 if "finetune" in name else 363), name
        assert summary["status"] == "complete"


def test_the_split_of_train_chooses_and_only_the_chosen_is_tested(finished, pretrained, tmp_path, monkeypatch):
    """Found rates are those of the best on the split; the figure beside is the test part's, of one model a row."""
    for row in ("full", "scratch", "0.5 blocks"):
        measured, found = results(finished)[f"{row}, 10%"], {}
        folder = finished / "runs" / f"{row.replace(' ', '-')}-10%" / "seed-0"
        for other in (0.01, 0.1):
            path = folder / f"finetune-{other:g}"
            found[other] = json.loads((path / "summary.json").read_text())["top1"]
            assert json.loads((path / "config.json").read_text())["base_lr"] == other
        assert measured["base_lr"] == [max(found, key=found.get)]
        assert measured["chosen_by"] == [max(found.values())]
        # The test part, by another way: images as a user would hand them over.
        model = openmae.load(str(folder / f"finetune-{measured['base_lr'][0]:g}"), "cpu")
        source = open_source("embedded:digits", "val")
        answers = model.classify([source.read(i) for i in range(len(source))]).argmax(1).tolist()
        right = sum(answer == source.label(i) for i, answer in enumerate(answers))
        assert measured["values"] == pytest.approx([100 * right / len(source)])

    # Where the split says one thing and test would say another, the split is heard; test is looked at once.
    seen, asked = [], []
    found = {0.01: 90.0, 0.1: 20.0}
    chosen = str(finished / "runs" / "full-10%" / "seed-0" / "finetune-0.01")
    monkeypatch.setattr(trial, "probe", lambda c: {"top1": 1.0, "choice_top1": 2.0})
    monkeypatch.setattr(trial, "knn", lambda c: {"top1": 1.0})
    monkeypatch.setattr(trial, "finetune", lambda c: asked.append(c) or {"top1": found[c.base_lr]})
    monkeypatch.setattr(final_figures, "load", lambda path, device: seen.append(path) or openmae.load(chosen, device))
    experiment(config(tmp_path / "out", pretrained, blocks=(), seeds=1))
    assert [Path(path).relative_to(tmp_path / "out" / "runs").parts[::2] for path in seen] == [
        ("full-10%", "finetune-0.01"),
        ("scratch-10%", "finetune-0.01"),
    ]
    assert {(c.report, c.held_out, c.labels) for c in asked} == {("held-out", 400, "10%")}
    for name in ("full", "scratch"):
        measured = results(tmp_path / "out")[f"{name}, 10%"]
        assert (measured["base_lr"], measured["chosen_by"]) == ([0.01], [90.0])


def test_from_scratch_has_the_models_shape_and_preprocessing(finished, pretrained):
    model = openmae.load(pretrained, "cpu")
    stored = json.loads((finished / "runs" / "scratch-10%" / "seed-0" / "trial.json").read_text())
    settings = stored["stages"][0]["settings"]
    assert settings["init"] == "none"
    for name in ("width", "depth", "num_heads", "patch_size", "channels"):
        assert settings[name] == getattr(model.encoder.shape, name)
    assert tuple(settings["mean"]) == model.preprocessing.mean
    assert tuple(settings["std"]) == model.preprocessing.std


def test_a_finished_table_repeats_nothing(finished, monkeypatch):
    before, calls = results(finished), counted(monkeypatch)
    runs, text = snapshot(finished / "runs"), (finished / "results.md").read_bytes()
    settings = json.loads((finished / "config.json").read_text())
    experiment(ExperimentConfig.from_dict(settings))
    assert calls == []
    assert results(finished) == before
    assert snapshot(finished / "runs") == runs
    assert (finished / "results.md").read_bytes() == text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stopped_one_goes_on_to_the_same_table(finished, pretrained, tmp_path, monkeypatch):
    """Stopped after two rows, in the third's second run."""
    out, number = tmp_path / "out", 0

    def finetune(settings):
        nonlocal number
        number += 1
        if number == 2:
            raise Interrupted("SIGTERM at step 1: saved")
        return real(settings)

    real = trial.finetune
    with monkeypatch.context() as patch:
        patch.setattr(trial, "finetune", finetune)
        with pytest.raises(Interrupted):
            experiment(config(out, pretrained))
    assert list(results(out)) == ["kNN, 10%", "probe, 10%"]
    done = snapshot(out / "runs")
    calls = counted(monkeypatch)
    experiment(config(out, pretrained))
    assert calls == [f"{name}-10%/seed-0/finetune-{rate}" for name in TRAINED for rate in ("0.01", "0.1")]
    assert {name: snapshot(out / "runs")[name] for name in done} == done
    assert results(out) == results(finished)
    assert table(out) == table(finished)


def table(out):
    return [line for line in (out / "results.md").read_text().splitlines() if line.startswith("|")]


@pytest.mark.slow
def test_what_a_killed_knn_left_stops_nothing(finished, pretrained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    folder = out / "runs" / "kNN-10%" / "seed-0"
    (folder / "result.json").unlink()
    (folder / "knn" / "summary.json").unlink()
    experiment(config(out, pretrained))
    assert results(out) == results(finished)


@pytest.mark.slow
def test_shares_blocks_and_seeds_may_be_added(finished, pretrained, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    calls = []
    monkeypatch.setattr(trial, "finetune", lambda c: calls.append(c) or {"top1": 9.0})
    monkeypatch.setattr(trial, "probe", lambda c: calls.append(c) or {"top1": 1.0, "choice_top1": 2.0})
    monkeypatch.setattr(trial, "knn", lambda c: calls.append(c) or {"top1": 1.0})
    monkeypatch.setattr(trial, "final_top1", lambda c: {"finetune": 8.0})
    before = results(finished)
    experiment(config(out, pretrained, labels=("10%", "100%"), epochs=(1.0, 2.0), seeds=3))
    asked = {Path(c.out).parts[-3] for c in calls}
    assert asked == {"probe-10%", *(f"{name}-100%" for name in ("kNN", "probe", *TRAINED))}
    assert [c.seed for c in calls if Path(c.out).parts[-3] == "probe-10%"] == [2]
    assert {c.epochs for c in calls if "finetune" in c.out} == {2.0}
    after = results(out)
    assert after["probe, 10%"]["values"] == [*before["probe, 10%"]["values"], 1.0]
    assert all(after[name] == measured for name, measured in before.items() if "probe" not in name)
    papers = {name: measured["paper"] for name, measured in after.items() if measured["paper"] is not None}
    assert papers == {"probe, 100%": 73.5, "0.5 blocks, 100%": 79.1, "1 blocks, 100%": 81.0, "full, 100%": 84.9}
    lines = table(out)
    assert lines[0] == "| | 10% | 100% | paper, 100% |"
    assert lines[4].endswith("| 8.0 | 79.1 |")
    assert lines[-1].endswith("| 8.0 |  |")


OLD_SETTINGS = (
    "name",
    "data",
    "init",
    "out",
    "labels",
    "epochs",
    "blocks",
    "base_lr",
    "seeds",
    "batch_size",
    "held_out",
)


@pytest.mark.slow
def test_a_folder_of_the_old_code_goes_on(finished, pretrained, tmp_path, monkeypatch):
    """Its rows were in results.json, its runs had other names, and config.json had neither scale nor threads."""
    out = tmp_path / "out"
    out.mkdir()
    stored = json.loads((finished / "config.json").read_text())
    old = {name: stored[name] for name in (*OLD_SETTINGS, "device", "workers", "data_fingerprint", "encoder")}
    (out / "config.json").write_text(json.dumps(old))
    rows = {"kNN 10%": [[40.0], None, None], "probe 10%": [[50.0, 60.0], None, 70.5], "full 10%": [[30.0], 0.1, 31.0]}
    (out / "results.json").write_text(json.dumps(rows))
    calls = []
    monkeypatch.setattr(trial, "finetune", lambda c: calls.append(Path(c.out).parts[-3]) or {"top1": 9.0})
    monkeypatch.setattr(trial, "final_top1", lambda c: {"finetune": 8.0})
    for _ in range(2):
        experiment(config(out, pretrained))
        assert calls == [f"{name}-10%" for name in ("scratch", "0.5-blocks", "1-blocks") for _ in range(2)]
        found = results(out)
        assert list(found) == [f"{name}, 10%" for name in ROWS]
        assert found["kNN, 10%"] == {"protocol": "knn", "values": [40.0], "paper": None}
        assert found["probe, 10%"]["values"] == [50.0, 60.0]
        assert found["probe, 10%"]["chosen_by"] == [70.5, 70.5]
        full = {"protocol": "finetune", "values": [30.0], "paper": None, "base_lr": [0.1], "chosen_by": [31.0]}
        assert found["full, 10%"] == full
    assert table(out)[3] == "| probe | 55.0 ± 7.1 |"


def test_results_that_cannot_be_read_are_not_overwritten(finished, pretrained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "results.json").write_text("{")
    with pytest.raises(RequestError, match=r"results\.json cannot be read .* remove it to begin the table again"):
        experiment(config(out, pretrained))
    assert (out / "results.json").read_text() == "{"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_lr": (0.02,)}, r"--base-lr got \[0\.02\], the figure-9 in \S+ has \[0\.01, 0\.1\]: go on with"),
        ({"epochs": (2.0,)}, r"--epochs got \[2\.0\]"),
        ({"seeds": 1}, r"--seeds got 1, the figure-9 in \S+ has 2"),
        ({"batch_size": 64}, r"--batch-size got 64"),
        ({"held_out": 300}, r"--held-out got 300"),
        ({"blocks": (0.5,)}, r"--blocks got \[0\.5\]"),
        ({"labels": ("20%",)}, r"--labels got \['20%'\]"),
        ({"scale": "tiny"}, r"--scale got tiny, the figure-9 in \S+ has laptop"),
        ({"data": "DATA"}, r"the data is not what the figure-9 in \S+ began with: restore it, or"),
    ],
)
def test_rows_of_other_settings_are_not_kept(finished, pretrained, tmp_path, changes, message):
    if changes.get("data"):
        changes = {"data": str(folders(tmp_path / "data", train=400, test=20)), "held_out": 100}
    before = snapshot(finished)
    with pytest.raises(RequestError, match=message):
        experiment(config(finished, pretrained, **changes))
    assert snapshot(finished) == before


def test_the_device_workers_and_jobs_may_change(finished, pretrained, monkeypatch):
    calls = counted(monkeypatch)
    experiment(config(finished, pretrained, workers=1, jobs=1, device=("cpu", "cpu")))
    assert calls == []


def test_two_at_once_do_not_write_one_table(finished, pretrained):
    with locked(finished), pytest.raises(RequestError, match="another process writes into"):
        experiment(config(finished, pretrained))


def test_rows_of_another_encoder_are_not_kept(finished, tmp_path):
    other = tmp_path / "other"
    settings = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "steps": 2, "seed": 5}
    pretrain(make_digits_config(other, **settings, target="pixel"))
    with pytest.raises(RequestError, match=r"the encoder is not what the figure-9 in \S+ began with"):
        experiment(config(finished, str(other)))


def test_scales_decide_what_is_left_open_and_flags_win(pretrained, tmp_path):
    bare = {"name": "figure-9", "data": "embedded:digits", "init": pretrained, "out": str(tmp_path / "out")}
    laptop = with_defaults(ExperimentConfig(**bare))
    assert (laptop.scale, laptop.labels, laptop.epochs) == ("laptop", ("1%", "10%", "100%"), (40.0, 10.0, 5.0))
    assert (laptop.base_lr, laptop.seeds, laptop.batch_size) == ((1e-3, 3e-3, 1e-2), 3, 128)
    assert (laptop.held_out, laptop.threads) == (1000, 1)
    assert with_blocks(laptop, 12).blocks == (0.5, 1.0, 2.0, 4.0)
    assert with_blocks(laptop, 2).blocks == (0.5, 1.0)
    given = with_defaults(ExperimentConfig(**bare, scale="tiny", seeds=4, base_lr=(0.1,), held_out=7))
    assert (given.seeds, given.base_lr, given.held_out, given.labels) == (4, (0.1,), 7, ("10%",))
    plan = plan_figure_9(ExperimentConfig(**bare, scale="tiny", device="cpu"))
    assert [t.row for t in plan.trials] == [f"{n}, 10%" for n in ("kNN", "probe", "full", "scratch", *ROWS[2:4])]
    assert plan.config.held_out == 286  # a fifth of 1,434, as fine-tuning decides
    assert plan.trials[1].stages[0].settings["steps"] == 20
    assert all(t.work > 0 for t in plan.trials)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)  # a process a row, each of which loads torch
def test_rows_run_side_by_side_as_processes(pretrained, tmp_path, monkeypatch, capfd):
    """One row fails: it is named, the others finish, and the same command tries it again."""
    monkeypatch.setattr("openmae.experiments.experiment.run_side_by_side", run_side_by_side)
    settings = {"blocks": (), "seeds": 1, "scale": "tiny", "jobs": 2, "device": "cpu", "workers": 0}
    given = ExperimentConfig(
        name="figure-9", data="embedded:digits", init=pretrained, out=str(tmp_path / "out"), **settings
    )
    hindrance = tmp_path / "out" / "runs" / "full-10%" / "seed-0" / "finetune-0.003"
    hindrance.parent.mkdir(parents=True)
    hindrance.write_text("no folder")
    with pytest.raises(RequestError, match=r"1 of 4 runs failed, first full, 10%, seed 0: .*log\.txt"):
        experiment(given)
    found = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [(row["row"], list(row["protocols"])) for row in found] == [
        ("kNN, 10%", ["knn"]),
        ("probe, 10%", ["linear"]),
        ("full, 10%", []),
        ("scratch, 10%", ["finetune"]),
    ]
    assert "failed" in found[2]
    assert "**Failed**: full, 10%" in (tmp_path / "out" / "results.md").read_text()
    hindrance.unlink()
    experiment(given)
    assert list(results(tmp_path / "out")) == [row["row"] for row in found]
    told = capfd.readouterr().out
    assert "Runs: 4, 1 to do, 2 at a time on cpu" in told
    assert "full, 10%, seed 0: done fine-tuning" in told


def folders(root, **parts):
    for part, count in parts.items():
        for place, name in enumerate("ab"):
            (root / part / name).mkdir(parents=True)
            for number in range(count // 2):
                values = np.full((8, 8), 200 * place + number % 50, np.uint8)
                Image.fromarray(values).save(root / part / name / f"{number}.png")
    return root


def test_an_own_validation_part_chooses(pretrained, tmp_path, monkeypatch):
    data = folders(tmp_path / "data", train=20, val=6, test=4)
    asked = []
    monkeypatch.setattr(trial, "probe", lambda c: asked.append(c) or {"top1": 1.0, "choice_top1": 2.0})
    monkeypatch.setattr(trial, "finetune", lambda c: asked.append(c) or {"top1": 9.0})
    monkeypatch.setattr(trial, "final_top1", lambda c: {"finetune": 8.0})
    experiment(config(tmp_path / "out", pretrained, data=str(data), labels=("50%",)))
    assert {c.held_out for c in asked} == {None}
    assert "chosen by val" in (tmp_path / "out" / "results.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", "1%", "200%", "--epochs", "1", "1"], "--labels 200%: there are 1034 labelled images"),
        (["--labels", "10%", "10%", "--epochs", "1", "1"], "--labels got a share twice: 10% 10%"),
        (["--labels", "10%"], "--epochs got 3 values for 1 --labels: give one for each"),
        (["--labels", "10%", "--epochs", "1", "--blocks", "0.3"], "--blocks got 0.3: a whole number of blocks, or 0.5"),
        (["--labels", "10%", "--epochs", "1", "--blocks", "2"], "--blocks got 2: the model has 2, and all of them"),
        (["--labels", "10%", "--epochs", "1", "--held-out", "2000"], "--held-out 2000: of 1434 labelled images"),
        (["--init", "nowhere"], "nowhere does not exist"),
        (["--out", "RUN"], "holds no figure-9: choose another --out"),
    ],
)
def test_bad_input_is_refused_in_a_line_before_anything_runs(pretrained, tmp_path, capsys, flags, message):
    out, init = tmp_path / "out", pretrained
    before = snapshot(Path(pretrained))
    rest = ["--device", "cpu", "--held-out", "400", "--blocks", "0.5"]
    if "--out" in flags:
        flags, out, rest = ["--labels", "10%", "--epochs", "1"], pretrained, rest
    if "--init" in flags:
        flags, init = ["--labels", "10%", "--epochs", "1"], "nowhere"
    given = {flag for flag in flags if flag.startswith("--")}
    pairs = [rest[i : i + 2] for i in range(0, len(rest), 2)]
    rest = [word for pair in pairs if pair[0] not in given for word in pair]
    arguments = ["experiment", "figure-9", "embedded:digits", "--init", init, "--out", str(out), *rest, *flags]
    assert openmae_run(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert message in told[0]
    assert not (tmp_path / "out").exists()
    assert snapshot(Path(pretrained)) == before


def test_data_without_a_test_part_is_refused(pretrained, tmp_path):
    data = folders(tmp_path / "data", train=20)
    with pytest.raises(RequestError, match="has neither a test nor a val part: make one"):
        experiment(config(tmp_path / "out", pretrained, data=str(data)))
    assert not (tmp_path / "out").exists()
    whole = folders(tmp_path / "whole", train=20, test=4)
    with pytest.raises(RequestError, match="lies inside"):
        experiment(config(whole / "out", pretrained, data=str(whole)))


def test_an_unknown_experiment():
    with pytest.raises(RequestError, match=r"the experiment got 'figure-3': did you mean 'figure-\d'\?"):
        config("out", "init", name="figure-3")
