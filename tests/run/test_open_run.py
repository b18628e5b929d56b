"""The verbs of every run, by a program of sixty lines: stopped, killed, resumed, on two processes."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from openmae.errors import Interrupted, RequestError
from openmae.training.checkpoint import checkpoint_folders

from ..processes import said, start, wait
from .line import LineConfig, fit_line


def fit_in_a_process(out, kill_at, rank):
    """Fit the line as this process of several, which a SIGKILL may end in the middle of a step."""

    def on_step(step):
        if step == kill_at and int(os.environ.get("RANK", 0)) == rank:
            os.kill(os.getpid(), signal.SIGKILL)

    fit_line(LineConfig(out=out, resume="auto"), on_step)


class Fitting:
    """What a started process does before it is asked for its version."""

    def __init__(self, out, kill_at=None, rank=0):
        self.arguments = (str(out), kill_at, rank)

    def __call__(self):
        fit_in_a_process(*self.arguments)


def bytes_of(out):
    folder = next(iter(checkpoint_folders(out)))
    return [(out / "model.safetensors").read_bytes(), *((folder / n).read_bytes() for n in ("optimizer.safetensors",))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, fit_line(LineConfig(out=str(out)))


def test_a_run_is_trained_watched_and_summarised(whole):
    out, summary = whole
    assert summary["status"] == "complete"
    assert summary["slope"] == pytest.approx(1.0, abs=0.2)
    assert json.loads((out / "summary.json").read_bytes())["step"] == 20
    assert json.loads((out / "config.json").read_bytes())["batch_size"] == 8
    assert fit_line(LineConfig(out=str(out), resume="auto"))["status"] == "complete"
    with pytest.raises(RequestError, match="exists already: --resume auto continues"):
        fit_line(LineConfig(out=str(out)))
    with pytest.raises(RequestError, match="has --batch-size 8, not 4"):
        fit_line(LineConfig(out=str(out), resume="auto", batch_size=4))


@pytest.mark.parametrize("step", [0, 11, 19])
def test_a_stopped_run_goes_on_to_the_same_bytes(whole, tmp_path, step):
    out = tmp_path / "run"

    def stop_here(now):
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"SIGTERM at step {step + 1}: saved"):
        fit_line(LineConfig(out=str(out)), stop_here)
    assert fit_line(LineConfig(out=str(out), resume="auto"))["status"] == "complete"
    assert bytes_of(out) == bytes_of(whole[0])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(whole, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    assert wait(start("--version", log, patch=Fitting(out, kill_at=12))) == [-signal.SIGKILL], said(log)
    assert wait(start("--version", log, patch=Fitting(out))) == [0], said(log)
    assert bytes_of(out) == bytes_of(whole[0])


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_go_on_when_one_is_killed(whole, tmp_path):
    out, log = tmp_path / "two", tmp_path / "log"
    assert wait(start("--version", log, 2, Fitting(out))) == [0, 0], said(log)
    one, two = (load_file(folder / "model.safetensors") for folder in (whole[0], out))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)  # measured 5e-7
    killed = tmp_path / "killed"
    codes = wait(start("--version", log, 2, Fitting(killed, kill_at=12, rank=1)))
    assert codes[1] == -signal.SIGKILL, said(log)
    assert wait(start("--version", log, 2, Fitting(killed))) == [0, 0], said(log)
    assert bytes_of(killed) == bytes_of(out)
