"""Runs on numbers through stops, kills and several processes; runs from before there were any."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmae.cli import run as openmae_run
from openmae.config import ResolvedFinetuneConfig, ResolvedProbeConfig
from openmae.errors import Interrupted, RequestError
from openmae.tasks.finetune import finetune as finetune_module
from openmae.tasks.finetune.finetune import finetune
from openmae.tasks.probe import probe as probe_module
from openmae.tasks.probe.probe import probe

from ...processes import run as run_processes
from ...processes import said, same, send, start, wait, wait_for_step
from ...shared import metrics, same_training_state, signal_at, snapshot, untimed
from .regression_runs import CONFIGS, TINY, config, losses, summary_of, table


@pytest.fixture
def no_report(monkeypatch):
    """Most of a tiny run's time would go into drawing its pictures."""
    for module in (finetune_module, probe_module):
        monkeypatch.setattr(module, "write_report", lambda *arguments: None)


# --- stopping and going on ---

LONG = {
    finetune: {"steps": 5, "micro_batch_size": 4, "ema": 0.5, "drop_path": 0.3, "erasing": 0.5, "base_lr": 0.3},
    probe: {"steps": 5, "base_lr": (8.0, 64.0), "held_out": 10, "augment": "crop"},
}
OFTEN = {"save_every": 2, "evaluate_every": 2}


@pytest.mark.parametrize("run", [finetune, probe])
@pytest.mark.usefixtures("no_report")
def test_a_stopped_run_goes_on_as_if_nothing_had_been(pretrained, greys, tmp_path, monkeypatch, run):
    settings = {**LONG[run], **OFTEN}
    whole = tmp_path / "whole"
    run(config(run, greys, whole, pretrained, **settings))
    for step in (1, 4):
        out = tmp_path / f"stopped-{step}"
        with monkeypatch.context() as patch:
            signal_at(patch, step)
            with pytest.raises(Interrupted, match=f"SIGTERM at step {step}: saved"):
                run(config(run, greys, out, pretrained, **settings))
        resumed = run(config(run, greys, out, pretrained, resume="auto", **settings))
        same_training_state(whole, out, step=5)
        assert untimed(metrics(whole)) == untimed(metrics(out))
        assert {**summary_of(whole), "seconds": 0} == {**resumed, "seconds": 0}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["finetune", "probe"])
def test_a_killed_run_of_two_processes_goes_on_to_the_same_bytes(pretrained, greys, tmp_path, command):
    arguments = f"{command} {greys} --label-file {greys}.csv --task regression --init {pretrained} --steps 60 "
    arguments += "--batch-size 6 --device cpu --workers 0 --log-every 1 --save-every 10 --evaluate-every 50"
    arguments += " --drop-path 0.3 --ema 0.5" if command == "finetune" else " --base-lr 8 64 --held-out 10"
    whole, out, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert run_processes(f"{arguments} --out {whole}", log, 2) == [0, 0], said(log)
    processes = start(f"{arguments} --out {out}", log, 2)
    assert wait_for_step(out, 15, processes), said(log)
    send(processes, signal.SIGKILL)
    assert wait(processes) == [-signal.SIGKILL] * 2
    assert run_processes(f"{arguments} --out {out} --resume auto", log, 2) == [0, 0], said(log)
    assert "resumed at step" in said(log)
    assert same(whole, out)
    assert {**summary_of(whole), "seconds": 0} == {**summary_of(out), "seconds": 0}


@pytest.mark.slow
def test_two_processes_do_what_one_does(pretrained, greys, tmp_path):
    """Batches of 6 are 4 and 2 images. Measured: losses 1e-7 apart, figures 5e-8."""
    arguments = f"finetune {greys} --label-file {greys}.csv --task regression --init {pretrained} --steps 4 "
    arguments += (
        "--batch-size 6 --log-every 1 --device cpu --workers 0 --drop-path 0.3 --base-lr 0.3 --evaluate-every 2"
    )
    outs = [tmp_path / "one", tmp_path / "two"]
    assert openmae_run([*arguments.split(), "--out", str(outs[0])]) == 0
    assert run_processes(f"{arguments} --out {outs[1]}", tmp_path / "log", 2) == [0, 0], said(tmp_path / "log")
    assert losses(outs[1]) == pytest.approx(losses(outs[0]), rel=1e-5)
    one, two = (summary_of(out) for out in outs)
    assert one.keys() == two.keys()
    for name in ("r2", "mae", "mae_even", "held_out_loss", "images"):
        assert one[name] == pytest.approx(two[name], rel=1e-4), name
    names = [[row["name"] for row in table(out / "predictions.csv")] for out in outs]
    assert names[0] == names[1]
    assert len(set(names[0])) == 12


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("a number", "is not the data that this run began with"),
        ("a column", "has the numbers light, tilt, the run began with light, even: restore it"),
        ("a column less", "has the numbers light, the run began with light, even"),
        ("the task", r"has --task regression, not classification: leave --task out"),
    ],
)
@pytest.mark.usefixtures("no_report")
def test_a_run_goes_on_with_what_it_began_with(pretrained, greys, tmp_path, change, match):
    data, out = shutil.copytree(greys, tmp_path / "greys"), tmp_path / "run"
    text = Path(f"{greys}.csv").read_text()
    Path(f"{data}.csv").write_text(text)
    finetune(config(finetune, data, out, pretrained))
    before = snapshot(out)
    if change == "a number":
        text = re.sub(r"(?m)^(07\.png,)\S+,", r"\g<1>5100.5,", text)
    elif change == "a column":
        text = text.replace("even", "tilt")
    elif change == "a column less":
        text = re.sub(r"(?m),[^,\n]*$", "", text)
    Path(f"{data}.csv").write_text(text)
    task = {"task": "classification"} if change == "the task" else {}
    with pytest.raises(RequestError, match=match):
        finetune(config(finetune, data, out, pretrained, resume="auto", steps=6, **task))
    assert snapshot(out) == before


@pytest.mark.parametrize(("run", "settled"), [(finetune, ResolvedFinetuneConfig), (probe, ResolvedProbeConfig)])
@pytest.mark.usefixtures("no_report")
def test_a_run_from_before_there_was_a_choice_goes_on(pretrained, tmp_path, monkeypatch, run, settled):
    """With classes that are fractional numbers, which were not asked about; to the bytes of one that names its task."""
    data, chance = tmp_path / "photos", np.random.default_rng(0)
    for age in ("20.5", "30", "40.5"):
        (data / age).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(chance.integers(0, 256, (8, 8), np.uint8)).save(data / age / f"{number}.png")
    old, new = tmp_path / "old", tmp_path / "new"
    settings = {"data": str(data), "init": pretrained, **TINY, "save_every": 2}
    to_dict = settled.to_dict

    def without_task(self):
        return {name: value for name, value in to_dict(self).items() if name != "task"}

    for out in (old, new):
        with monkeypatch.context() as patch:
            if out == old:
                patch.setattr(settled, "to_dict", without_task)
            run(CONFIGS[run](**settings, out=str(out), steps=4, task="classification"))
    records = [json.loads((old / "config.json").read_text())]
    records += [json.loads(path.read_text())["settings"] for path in old.rglob("state.json")]
    assert len(records) > 1
    assert not any("task" in record for record in records)
    with pytest.raises(RequestError, match="are numbers, some with a fraction"):
        run(CONFIGS[run](**settings, out=str(tmp_path / "asked"), steps=4))
    for out in (old, new):
        run(CONFIGS[run](**settings, out=str(out), steps=6, resume="auto"))
    same_training_state(old, new, step=6)
    assert json.loads((old / "config.json").read_text())["task"] == "classification"
