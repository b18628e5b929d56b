"""`openmae experiment figure-9` on digits: what it leaves, going on after a stop, what chooses, and what is refused."""

import csv
import json
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
from openmae.experiments import figure_9 as task
from openmae.experiments.experiment import experiment
from openmae.planning import probe as probe_planning
from openmae.run.lock import locked
from openmae.tasks.pretrain.pretrain import pretrain

from ..shared import snapshot
from ..tiny_runs import make_digits_config

PROTOCOLS = ["kNN", "probe", "full", "scratch", "0.5 blocks", "1 blocks"]
TRAINED = ("full", "scratch", "0.5-blocks", "1-blocks")


@pytest.fixture(scope="module", autouse=True)
def short():
    """A probe of 20 steps, and no reports of runs: pictures are most of what a tiny one costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_planning, "TARGET_STEPS", 20)
        for name in ("probe", "finetune"):
            patch.setattr(f"openmae.tasks.{name}.{name}.write_report", lambda *arguments: None)
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
    return json.loads((out / "results.json").read_text())


def table(out):
    with open(out / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def counted(monkeypatch):
    """Which runs are started, or asked for what they found, from here on."""
    calls = []
    for name in ("probe", "finetune", "knn"):
        real = getattr(task, name)

        def call(settings, real=real):
            calls.append(Path(settings.out).name)
            return real(settings)

        monkeypatch.setattr(task, name, call)
    return calls


def test_the_table_and_the_picture(finished):
    kept = results(finished)
    assert list(kept) == [f"{protocol} 10%" for protocol in PROTOCOLS]
    rows = table(finished)
    assert [row["protocol"] for row in rows] == PROTOCOLS
    for row in rows:
        top1, rate, chosen_by = kept[f"{row['protocol']} 10%"]
        assert float(row["top1"]) == pytest.approx(sum(top1) / len(top1), abs=1e-4)
        assert int(row["seeds"]) == len(top1) == (2 if row["protocol"] == "probe" else 1)
        assert (rate in (0.01, 0.1)) == (row["protocol"] not in ("kNN", "probe"))
        assert (chosen_by is None) == (row["protocol"] == "kNN")
    lines = (finished / "results.md").read_text().splitlines()
    assert lines[0] == "| | 10% |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == [*PROTOCOLS[:2], *PROTOCOLS[4:], *PROTOCOLS[2:4]]
    assert "±" in lines[3]
    with Image.open(finished / "figure-9.png") as picture:
        assert picture.size == (840, 540)
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_every_run_has_the_same_images(finished):
    """1,434 digits, 400 held out, a tenth of the rest: 103; all choose and are measured alike."""
    runs = {path.name: path for path in (finished / "runs").iterdir()}
    wanted = {"10%-knn", "10%-probe-0", "10%-probe-1"}
    assert runs.keys() == wanted | {f"10%-{name}-{rate}" for name in TRAINED for rate in ("0.01", "0.1")}
    splits = [json.loads((path / "split.json").read_text()) for name, path in runs.items() if "knn" not in name]
    assert all(split == splits[0] for split in splits)
    assert (len(splits[0]["train"]), len(splits[0]["held_out"])) == (103, 400)
    assert not set(splits[0]["train"]) & set(splits[0]["held_out"])
    for name, path in runs.items():
        summary = json.loads((path / "summary.json").read_text())
        is_trained = name.removeprefix("10%-").rpartition("-")[0] in TRAINED
        assert summary["images"] == (400 if is_trained else 363), name
        assert summary["status"] == "complete"


def test_the_split_of_train_chooses_and_only_the_chosen_is_tested(finished, pretrained, tmp_path, monkeypatch):
    """Found rates are those of the best on the split; the figure beside is the test part's, of one model a row."""
    for protocol, name in (("full", "full"), ("scratch", "scratch"), ("0.5 blocks", "0.5-blocks")):
        top1, rate, chosen_by = results(finished)[f"{protocol} 10%"]
        found = {}
        for other in (0.01, 0.1):
            path = finished / "runs" / f"10%-{name}-{other:g}"
            found[other] = json.loads((path / "summary.json").read_text())["top1"]
            assert json.loads((path / "config.json").read_text())["base_lr"] == other
        assert (rate, chosen_by) == (max(found, key=found.get), max(found.values()))
        # The test part, by another way: images as a user would hand them over.
        model, source = (
            openmae.load(str(finished / "runs" / f"10%-{name}-{rate:g}"), "cpu"),
            open_source("embedded:digits", "val"),
        )
        answers = model.classify([source.read(i) for i in range(len(source))]).argmax(1).tolist()
        right = sum(answer == source.label(i) for i, answer in enumerate(answers))
        assert top1 == pytest.approx([100 * right / len(source)])

    # Where the split says one thing and test would say another, the split is heard; test is looked at once.
    seen, asked = [], []
    found = {0.01: 90.0, 0.1: 20.0}
    monkeypatch.setattr(task, "probe", lambda c: {"top1": 1.0, "choice_top1": 2.0})
    monkeypatch.setattr(task, "knn", lambda c: {"top1": 1.0})
    monkeypatch.setattr(task, "finetune", lambda c: asked.append(c) or {"top1": found[c.base_lr]})

    def load(path, device, verbose=False):
        seen.append(Path(path).name)
        return openmae.load(str(finished / "runs" / "10%-full-0.01") if len(seen) > 1 else path, device)

    monkeypatch.setattr(task, "load", load)
    init = tmp_path / "init"
    shutil.copytree(pretrained, init)
    experiment(config(tmp_path / "out", str(init), blocks=(), seeds=1))
    assert seen == ["init", "10%-full-0.01", "10%-scratch-0.01"]
    assert {(c.report, c.held_out, c.labels) for c in asked} == {("held-out", 400, "10%")}
    assert [results(tmp_path / "out")[f"{name} 10%"][1:] for name in ("full", "scratch")] == [[0.01, 90.0]] * 2


def test_a_finished_table_repeats_nothing(finished, monkeypatch):
    before, calls = results(finished), counted(monkeypatch)
    runs = snapshot(finished / "runs")
    written = [(finished / name).read_bytes() for name in ("results.csv", "results.md")]
    settings = json.loads((finished / "config.json").read_text())
    again = ExperimentConfig.from_dict(settings)
    experiment(again)
    assert calls == []
    assert results(finished) == before
    assert snapshot(finished / "runs") == runs
    assert [(finished / name).read_bytes() for name in ("results.csv", "results.md")] == written


@pytest.mark.slow
def test_a_stopped_one_goes_on_to_the_same_table(finished, pretrained, tmp_path, monkeypatch):
    """Stopped after two rows, in the third's second run."""
    out, number = tmp_path / "out", 0

    def finetune(settings):
        nonlocal number
        number += 1
        if number == 2:
            raise Interrupted("SIGTERM at step 1: saved")
        return real(settings)

    real = task.finetune
    with monkeypatch.context() as patch:
        patch.setattr(task, "finetune", finetune)
        with pytest.raises(Interrupted):
            experiment(config(out, pretrained))
    assert list(results(out)) == ["kNN 10%", "probe 10%"]
    assert len(table(out)) == 2
    done = snapshot(out / "runs")
    calls = counted(monkeypatch)
    experiment(config(out, pretrained))
    assert [name for name in calls if "knn" in name or "probe" in name] == []
    assert calls == [f"10%-{name}-{rate}" for name in TRAINED for rate in ("0.01", "0.1")]
    assert {name: snapshot(out / "runs")[name] for name in done} == done
    assert results(out) == results(finished)
    assert (out / "results.md").read_text() == (finished / "results.md").read_text()


@pytest.mark.slow
def test_what_a_killed_knn_left_stops_nothing(finished, pretrained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    values = results(out)
    del values["kNN 10%"]
    (out / "results.json").write_text(json.dumps(values))
    (out / "runs" / "10%-knn" / "summary.json").unlink()
    experiment(config(out, pretrained))
    assert results(out) == results(finished)


@pytest.mark.slow
def test_shares_and_blocks_may_be_added(finished, pretrained, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    calls = counted(monkeypatch)
    monkeypatch.setattr(task, "probe", lambda c: calls.append(Path(c.out).name) or {"top1": 1.0, "choice_top1": 2.0})
    monkeypatch.setattr(task, "finetune", lambda c: calls.append(Path(c.out).name) or {"top1": 9.0})
    chosen = str(finished / "runs" / "10%-full-0.01")
    monkeypatch.setattr(
        task, "load", lambda path, device, verbose=False: openmae.load(path if path == pretrained else chosen, device)
    )
    experiment(config(out, pretrained, labels=("10%", "20%"), epochs=(1.0, 2.0)))
    assert {name.split("-")[0] for name in calls} == {"20%"}
    assert [row["labels"] for row in table(out)].count("20%") == 6
    assert {key: value for key, value in results(out).items() if key.endswith("10%")} == results(finished)
    assert (out / "results.md").read_text().splitlines()[0] == "| | 10% | 20% |"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_lr": (0.02,)}, r"--base-lr got \[0\.02\], the figure-9 in \S+ has \[0\.01, 0\.1\]: go on with"),
        ({"epochs": (2.0,)}, r"--epochs got \[2\.0\]"),
        ({"seeds": 3}, r"--seeds got 3, the figure-9 in \S+ has 2"),
        ({"batch_size": 64}, r"--batch-size got 64"),
        ({"held_out": 300}, r"--held-out got 300"),
        ({"blocks": (0.5,)}, r"--blocks got \[0\.5\]"),
        ({"labels": ("20%",)}, r"--labels got \['20%'\]"),
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


def test_two_at_once_do_not_write_one_table(finished, pretrained):
    with locked(finished), pytest.raises(RequestError, match="another process writes into"):
        experiment(config(finished, pretrained))


def test_rows_of_another_encoder_are_not_kept(finished, tmp_path):
    other = tmp_path / "other"
    settings = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "steps": 2, "seed": 5}
    pretrain(make_digits_config(other, **settings, target="pixel"))
    with pytest.raises(RequestError, match=r"the encoder is not what the figure-9 in \S+ began with"):
        experiment(config(finished, str(other)))


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
    monkeypatch.setattr(task, "probe", lambda c: asked.append(c) or {"top1": 1.0, "choice_top1": 2.0})
    monkeypatch.setattr(task, "finetune", lambda c: asked.append(c) or {"top1": 9.0})
    with pytest.raises(RequestError, match="does not exist"):  # the chosen run, which was never made
        experiment(config(tmp_path / "out", pretrained, data=str(data), labels=("50%",)))
    assert {c.held_out for c in asked} == {None}
    assert list(results(tmp_path / "out")) == ["kNN 50%", "probe 50%"]


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
    shutil.move(data / "train", data / "images")
    with pytest.raises(RequestError, match="has neither a test nor a val part: make one"):
        experiment(config(tmp_path / "out", pretrained, data=str(data)))
    assert not (tmp_path / "out").exists()
    whole = folders(tmp_path / "whole", train=20, test=4)
    with pytest.raises(RequestError, match="lies inside"):
        experiment(config(whole / "out", pretrained, data=str(whole)))


def test_an_unknown_experiment():
    with pytest.raises(RequestError, match=r"the experiment got 'figure-8': did you mean 'figure-9'\?"):
        config("out", "init", name="figure-8")
