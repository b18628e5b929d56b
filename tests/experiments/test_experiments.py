"""`openmae experiment` at its smallest, with real processes: what it leaves, `--jobs`, kills, and every table once."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmae.cli import parse, resolve_config
from openmae.cli import run as openmae_run
from openmae.config import ExperimentConfig, PretrainConfig
from openmae.errors import Fault, RequestError
from openmae.experiments.experiment import experiment
from openmae.experiments.trials import side_by_side
from openmae.experiments.trials.trial import Place, Trial, run_trial

from ..shared import snapshot

PROTOCOLS = {"finetune", "linear", "knn"}
pytestmark = pytest.mark.timeout(400)  # real processes, which a busy machine makes wait


def config(out, name="table-1c", **changes):
    settings = {"data": "embedded:digits", "scale": "tiny", "device": "cpu", "jobs": 2}
    return ExperimentConfig(name=name, out=str(out), **{**settings, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Table 1c: two rows. Tests only read it."""
    out = tmp_path_factory.mktemp("experiments") / "table-1c"
    experiment(config(out))
    return out


def results(out):
    return json.loads((out / "results.json").read_text())


def values(out):
    """What was measured, by row and protocol: all that must not depend on how the rows were run."""
    return {row["row"]: row["protocols"] for row in results(out)["rows"]}


def test_what_it_leaves(finished):
    found = results(finished)
    assert list(found) == ["experiment", "scale", "rows"]
    assert (found["experiment"], found["scale"]) == ("table-1c", "tiny")
    assert [row["row"] for row in found["rows"]] == ["default", "mask tokens in the encoder"]
    for row in found["rows"]:
        assert list(row) == ["row", "settings", "protocols", "cost"]
        assert row["protocols"].keys() == PROTOCOLS
        assert all(len(measured["values"]) == 1 for measured in row["protocols"].values())
        tuned = row["protocols"]["finetune"]
        assert tuned["base_lr"][0] in (3e-3, 1e-2)
        assert 0 <= tuned["chosen_by"][0] <= 100
        assert row["cost"]["seconds"][0] > 0
    default, with_tokens = found["rows"]
    assert default["protocols"]["linear"]["paper"] == 73.5
    assert with_tokens["protocols"]["finetune"]["paper"] == 84.2
    assert "paper" in default["protocols"]["knn"]
    assert default["protocols"]["knn"]["paper"] is None
    assert with_tokens["settings"] == {**default["settings"], "mask_tokens_in_encoder": True}
    assert with_tokens["cost"]["flops_to_default"] > 1 == default["cost"]["flops_to_default"]
    text = (finished / "results.md").read_text()
    assert "encoder with mask tokens | 84.2" in text
    for row in ("default", "mask-tokens-in-the-encoder"):
        assert (finished / "runs" / row / "seed-0" / "log.txt").stat().st_size > 1000


def test_a_finished_one_repeats_nothing(finished, monkeypatch):
    before = snapshot(finished / "runs")
    monkeypatch.setattr(side_by_side, "PROGRAM", ("nothing that runs",))
    written = [(finished / name).read_bytes() for name in ("results.json", "results.md")]
    experiment(config(finished, jobs=1))
    assert snapshot(finished / "runs") == before
    assert [(finished / name).read_bytes() for name in ("results.json", "results.md")] == written


def test_finished_rows_of_another_table_are_taken(finished, tmp_path, monkeypatch):
    """As docs/results.md does it: the rows that two tables share are copied into the other's runs/."""
    shutil.copytree(finished / "runs", tmp_path / "out" / "runs")
    monkeypatch.setattr(side_by_side, "PROGRAM", ("nothing that runs",))
    with pytest.raises(
        (Fault, RequestError), match=r"3 of 4 runs failed, first block 50, seed 0: .*; what else there was is finished"
    ):
        experiment(config(tmp_path / "out", "table-1f"))
    rows = {row["row"]: row for row in results(tmp_path / "out")["rows"]}
    assert rows["default"]["protocols"] == values(finished)["default"]
    assert rows["grid 75"]["failed"]
    assert rows["grid 75"]["protocols"] == {}
    text = (tmp_path / "out" / "results.md").read_text()
    assert "Failed" in text
    assert "grid, 75 %" in text


def test_a_row_goes_on_where_the_folder_has_moved(finished, tmp_path):
    """What it began with names the old place: fine-tuning and probe are done, kNN runs anew."""
    shutil.copytree(finished, tmp_path / "moved")
    folder = tmp_path / "moved" / "runs" / "default" / "seed-0"
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "knn")
    trial = Trial.from_dict(json.loads((folder / "trial.json").read_text()))
    found = run_trial(trial, Place(folder=folder, device="cpu", workers=0))
    assert found["protocols"]["knn"]["value"] == values(finished)["default"]["knn"]["values"][0]
    assert found["protocols"]["finetune"]["value"] == values(finished)["default"]["finetune"]["values"][0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("config.json", r"config\.json is damaged"),
        ("runs", r"runs is no folder: choose another --out"),
    ],
)
def test_a_damaged_folder_is_refused_in_a_line(finished, tmp_path, damage, message):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    if damage == "runs":
        shutil.rmtree(out / "runs")
    text = (out / "config.json").read_text()
    (out / damage).write_text(text.replace('"seeds": null', '"seeds": "abc"') if damage == "config.json" else "")
    with pytest.raises(RequestError, match=message):
        experiment(config(out))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 9}, r"--steps got 9, the table-1c in \S+ has none: go on with the settings it began with"),
        ({"width": 48}, r"--width got 48"),
        ({"scale": "laptop"}, r"--scale got laptop, the table-1c in \S+ has tiny"),
        ({"base_lr": (0.1,)}, r"--base-lr got \[0\.1\]"),
        ({"threads": 2}, r"--threads got 2, the table-1c in \S+ has 1"),
        ({"name": "table-1d"}, r"holds no table-1d: choose another --out"),
        ({"data": "embedded:photos"}, r"no training image of embedded:photos has a label"),
    ],
)
def test_changed_settings_are_refused_by_name(finished, changes, message):
    before = snapshot(finished)
    with pytest.raises(RequestError, match=message):
        experiment(config(finished, **changes))
    assert snapshot(finished) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel-1", "embedded:digits"], "the experiment got 'tabel-1': did you mean 'table-1'?"),
        (["table-1a", "embedded:photos", "--scale", "tiny"], "no training image of embedded:photos has a label"),
        (["table-1a", "embedded:digits", "--epochs", "1e300"], "--epochs got 1e+300: it must be above 0 and at most"),
        (
            ["table-1a", "embedded:digits", "--seeds", "1000000000"],
            "--seeds got 1e+09: it must be at least 1 and at most",
        ),
        (["table-1a", "embedded:digits", "--jobs", "4000"], "--jobs got 4000: 4000 on cpu need about"),
        (
            ["table-1a", "embedded:digits", "--scale", "small"],
            "--scale got 'small': known are tiny, laptop, gpu, paper",
        ),
        (["table-1a", "embedded:digits", "--init", "x"], "--init is for figure-9, table-1a trains its own models"),
        (["figure-9", "embedded:digits"], "figure-9 compares ways of using a trained model: name it, --init RUN"),
        (["table-1a", "embedded:digits", "--run"], "--run is for --scale paper"),
        (["table-1a", "embedded:digits", "--steps", "2", "--epochs", "1"], "got both --epochs 1 and --steps 2"),
        (["table-1a", "embedded:digits", "--labels", "1%", "10%"], "--labels got 2 values, and table-1a takes one"),
        (["table-1a", "embedded:digits", "--batch-size", "5000"], "--batch-size got 5000, and there are"),
        (["table-1a", "embedded:digits", "--device", "cpu", "tpu"], "--device got 'tpu'"),
        (
            ["table-1a", "embedded:digits", "--scale", "paper", "--width", "8"],
            "--width is the paper's at --scale paper",
        ),
    ],
)
def test_bad_input_is_refused_in_a_line_before_anything_is_written(tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    rest = [] if "--device" in arguments else ["--device", "cpu"]
    assert openmae_run(["experiment", *arguments, "--out", str(out), *rest]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert message in told[0]
    assert not out.exists()


def test_it_is_not_for_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="starts its own processes, see --jobs: start it without torchrun"):
        experiment(config(tmp_path / "out"))


def noise_images(root):
    """Ten colour images of two classes to train on, and four to test with, of 32 px."""
    for part, count in (("train", 10), ("test", 4)):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
            for number in range(count // 2):
                noise = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
                Image.fromarray(noise).save(root / part / name / f"{number}.png")
    return str(root)


def test_data_without_a_part_to_measure_on_is_refused(tmp_path):
    """What chooses the rates would measure them, too."""
    whole = noise_images(tmp_path / "whole")
    with pytest.raises(RequestError, match="has neither a test nor a val part: make one"):
        experiment(config(tmp_path / "out", data=f"{whole}/train"))
    assert not (tmp_path / "out").exists()


def test_too_many_broken_files_are_refused_before_anything_runs(tmp_path):
    data = Path(noise_images(tmp_path / "data"))
    (data / "train" / "a" / "empty.png").touch()
    with pytest.raises(
        RequestError, match=r"1 of 11 images looked at cannot be read: .*empty\.png.*more than --max-bad 0"
    ):
        experiment(config(tmp_path / "out", data=str(data)))
    assert not (tmp_path / "out").exists()


def test_more_coefficients_than_patches_are_refused(tmp_path):
    """PCA's components are fitted on patches: ten images of four patches have too few for 96 coefficients."""
    settings = {"data": noise_images(tmp_path / "data"), "image_size": 32, "patch_size": 16}
    with pytest.raises(RequestError, match=r"PCA, 96 coefficients needs at least as many patches to fit on"):
        experiment(config(tmp_path / "out", "table-1d", **settings))
    assert not (tmp_path / "out").exists()


def test_paper_scale_prints_each_rows_commands_and_cost(tmp_path, capsys):
    data = noise_images(tmp_path / "data")
    found = experiment(config(tmp_path / "out", "table-1d", scale="paper", data=data))
    assert found == {"experiment": "table-1d", "scale": "paper", "rows": []}
    assert not (tmp_path / "out").exists()
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("openmae ")]
    assert [line.split()[1] for line in commands] == ["pretrain", "finetune", "probe", "knn"] * 4
    assert "--recipe table-1d-pixel" in commands[0]
    targets = ("pixel", "norm-pixel", "pca", "token")
    assert all(f"--recipe table-1d-{target} " in commands[4 * i] for i, target in enumerate(targets))
    assert all("--recipe imagenet-large --init" in commands[4 * i + 1] for i in range(4))
    assert all("--target" not in line and "--steps" not in line and "--width" not in line for line in commands)
    assert all(f"--init {tmp_path}/out/runs/default/seed-0/pretrain" in line for line in commands[1:4])
    assert sum("EFLOP, about" in line for line in lines) == 17


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table-1", "table-2", "figure-5", "figure-6", "figure-7", "figure-8"])
def test_what_paper_scale_prints_can_be_typed(tmp_path, capsys, name):
    """Every command goes through the real command line, up to its checks of the settings."""
    experiment(config(tmp_path / "out", name, scale="paper", data=noise_images(tmp_path / "data"), jobs=None))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("openmae ")]
    configs = [resolve_config(parse(shlex.split(line)[1:])) for line in lines]
    assert len(configs) > 2
    trained = [config for config in configs if isinstance(config, PretrainConfig)]
    assert any(config.mask_tokens_in_encoder for config in trained) == (name in ("table-1", "table-2"))


def test_paper_scale_compares_sizes_by_their_own_recipes(tmp_path, capsys):
    data = noise_images(tmp_path / "data")
    experiment(config(tmp_path / "out", "figure-8", scale="paper", data=data))
    commands = [line.split(" --") for line in capsys.readouterr().out.splitlines() if line.startswith("openmae ")]
    recipes = [next(flag.removeprefix("recipe ") for flag in line if flag.startswith("recipe ")) for line in commands]
    assert recipes == [
        *(name for size in ("base", "large", "huge") for name in (f"mae-{size}", f"imagenet-{size}", f"scratch-{size}"))
    ]
    assert not any("steps" in flag or "epochs" in flag for line in commands for flag in line)  # the recipes' own


def start(out, name="table-1c", *flags):
    command = [sys.executable, "-m", "openmae", "experiment", name, "embedded:digits", "--scale", "tiny"]
    return subprocess.Popen(
        [*command, "--out", str(out), "--device", "cpu", *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def children_of(out: Path) -> list[int]:
    """Processes whose command line names the experiment's runs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{out}/runs/".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_until(condition, seconds=90.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come")


@pytest.mark.slow
def test_one_at_a_time_gives_the_same_numbers(finished, tmp_path):
    experiment(config(tmp_path / "out", jobs=1))
    assert values(tmp_path / "out") == values(finished)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_started_again_it_comes_to_the_same(finished, tmp_path, number):
    """In the middle of pre-training; rows end with their parent, however that ends."""
    out = tmp_path / "out"
    process = start(out, "table-1c", "--jobs", "2")
    wait_until(lambda: (out / "runs" / "default" / "seed-0" / "pretrain" / "checkpoints").exists())
    os.kill(process.pid, number)
    told = process.communicate(timeout=90)[0].decode()
    assert process.returncode == (-number if number == signal.SIGKILL else 3), told
    wait_until(lambda: not children_of(out), 60)
    if number == signal.SIGTERM:
        assert "the same command goes on" in told
    assert not (out / "runs" / "default" / "seed-0" / "result.json").exists()
    experiment(config(out, jobs=1))
    assert values(out) == values(finished)


@pytest.fixture(scope="module")
def table_1(tmp_path_factory):
    """All of table 1, with the time it took, in seconds."""
    out, started = tmp_path_factory.mktemp("experiments") / "table-1", time.monotonic()
    experiment(config(out, "table-1"))
    return out, time.monotonic() - started


@pytest.mark.slow
@pytest.mark.timeout(1200)  # 19 trials of some 15 seconds, two at a time; far more on a busy machine
def test_table_1_whole(table_1, finished):
    out, _ = table_1
    found = values(out)
    assert len(found) == 19
    assert all(protocols.keys() == PROTOCOLS for protocols in found.values())
    assert found["default"] == values(finished)["default"]
    text = (out / "results.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Table 1a: decoder depth",
        "## Table 1b: decoder width",
        "## Table 1c: mask token",
        "## Table 1d: target",
        "## Table 1e: augmentation",
        "## Table 1f: mask sampling",
        "## What this can show",
        "## How it was measured",
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "num_rows"),
    [
        *zip((f"table-1{part}" for part in "abcdef"), (5, 5, 2, 4, 4, 4), strict=True),
        ("figure-5", 10),
        ("figure-7", 5),
        ("figure-8", 6),
    ],
)
def test_every_experiment(table_1, tmp_path, name, num_rows):
    """Rows that table 1 has, too, are shared with it."""
    out = tmp_path / "out"
    if name != "figure-8":  # it has no row of table 1's
        shutil.copytree(table_1[0] / "runs", out / "runs")
    found = experiment(config(out, name))
    assert found == results(out)
    assert len(found["rows"]) == num_rows
    wanted = {"finetune"} if name == "figure-8" else PROTOCOLS
    assert all(row["protocols"].keys() == wanted for row in found["rows"])
    shared = values(table_1[0])
    assert all(row["protocols"] == shared[row["row"]] for row in found["rows"] if row["row"] in shared and num_rows < 6)
