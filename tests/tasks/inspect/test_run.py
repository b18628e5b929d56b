"""What `openmae inspect RUN` says of runs that ended well, were killed, are under way, damaged or hostile."""

import json
import os
import shlex
import shutil

import pytest
from PIL import Image

import openmae
from openmae import InspectConfig
from openmae.cli import run as command
from openmae.run.lock import locked
from openmae.tasks.inspect.run_screen import PLAIN_BARS, sparkline
from openmae.tasks.inspect.screen import WIDTH

from ...shared import metrics, signal_at, snapshot


def inspected(path, **settings):
    return openmae.inspect(InspectConfig(path=str(path), **settings))


@pytest.fixture
def copied(pixel_run, tmp_path):
    """A finished run that a test may spoil."""
    return shutil.copytree(pixel_run, tmp_path / "run")


def test_a_finished_run(pixel_run, tmp_path, capsys):
    before = snapshot(pixel_run)
    found = inspected(pixel_run, out=str(tmp_path / "look"))
    lines = metrics(pixel_run)
    losses = [line["loss"] for line in lines if "loss" in line]
    held_out = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    assert (found["kind"], found["task"], found["status"]) == ("run", "pre-training", "complete")
    assert (found["step"], found["num_steps"], found["data"]) == (12, 12, "embedded:digits")
    assert (found["loss"], found["lowest_loss"]) == (losses[-1], min(losses))
    assert found["held_out_loss"] == held_out[-1]
    assert found["settings"]["width"] == 24
    assert found["memory"] == max(line["memory"] for line in lines if "memory" in line)
    assert [entry["is_whole"] for entry in found["checkpoints"]] == [True, True]
    folder = pixel_run / "checkpoints" / "step-00000012"
    assert found["checkpoints"][0]["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert found["resume"]["can"]
    assert json.loads((tmp_path / "look" / "inspect.json").read_text()) == json.loads(json.dumps(found))
    assert Image.open(tmp_path / "look" / "curve.png").size[0] > 500
    printed = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in printed if str(tmp_path) not in line and "--resume" not in line) <= WIDTH
    assert snapshot(pixel_run) == before


def test_the_verdict_is_the_runs_own(pixel_run):
    summary = json.loads((pixel_run / "summary.json").read_text())
    assert inspected(pixel_run)["health"] == summary["health"]


def test_the_command_resumes_an_interrupted_run(digits_config, tmp_path, capsys):
    run = tmp_path / "a run"
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, 7)
        with pytest.raises(openmae.Interrupted):
            openmae.pretrain(digits_config(run))
    found = inspected(run)
    assert (found["status"], found["step"] <= 7, found["num_steps"]) == ("interrupted", True, 12)
    assert found["resume"]["why"] == "from step 7"
    words = shlex.split(found["resume"]["command"])
    assert command(words[1:]) == 0
    assert inspected(run)["status"] == "complete"


def test_a_run_under_way_is_said_to_run_and_is_not_disturbed(copied):
    (copied / "summary.json").write_text('{"status": "running"}')
    with locked(copied):
        found = inspected(copied)
        assert (found["status"], found["resume"]["can"]) == ("running", False)
        with pytest.raises(openmae.RequestError, match="another process writes into"), locked(copied):
            pass
    assert inspected(copied)["status"] == "ended without a word"  # killed: nobody holds it
    with locked(copied):  # and looking holds nothing
        pass


def test_a_run_that_has_just_begun(copied):
    (copied / "metrics.jsonl").unlink()
    shutil.rmtree(copied / "checkpoints")
    found = inspected(copied)
    assert (found["step"], found["loss"], found["checkpoints"]) == (0, None, [])
    assert found["resume"] == {"can": False, "why": "it has no checkpoint", "command": None}


def test_a_line_cut_short_is_left_out(copied):
    path = copied / "metrics.jsonl"
    whole = inspected(copied)
    with path.open("a") as file:
        file.write('{"step": 13, "loss": 0.0')
    cut = inspected(copied)
    assert (cut["loss"], cut["lines"]) == (whole["loss"], whole["lines"])


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(copied):
    path = copied / "checkpoints" / "step-00000012" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = inspected(copied)
    assert [entry["is_whole"] for entry in found["checkpoints"]] == [False, True]
    assert "model.safetensors is not what was written" in found["checkpoints"][0]["problem"]
    assert found["resume"]["why"].startswith("it is complete")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"width": "wide", "decoder_width": 7}',
        "[" * 100_000,
        '{"decoder_width": {"a": [1, 2]}, "steps": -5, "epochs": 1e309}',
        '{"blocks": 1, "model": "\\u001b[2J", "recipe": "x\\ny"}',
        '{"architectures": ["ViTMAEForPreTraining"], "hidden_size": 768}',
        '{"steps": ' + "9" * 5000 + "}",
        "\udcff\udcfe",
    ],
)
def test_a_foreign_or_hostile_config_is_said_and_survived(copied, capsys, text):
    (copied / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    found = inspected(copied)
    assert found["task"] is None
    assert "config.json" in found["problem"]
    assert found["resume"]["can"] is False
    assert found["loss"] is not None
    assert "\x1b" not in capsys.readouterr().out


def test_hostile_lines_and_summaries_are_survived(copied, tmp_path):
    hostile = [
        '{"step": "12", "loss": 1}',
        '{"step": -4, "loss": 1.0}',
        '{"step": 14, "loss": NaN, "images_seen": 5}',
        '{"step": 15, "loss": Infinity, "epoch": 1e-300, "images_seen": 9}',
        '{"step": 16, "loss": [1], "held_out_loss": "low", "effective_rank": {}, "seconds": true}',
        '{"step": ' + "9" * 400 + ', "loss": 1.0}',
        '{"step": 16, "memory": ' + "9" * 400 + "}",
        '{"step": 17, "epoch": 1e-310, "held_out_loss": 0.5, "effective_rank": "high", "images_seen": 9}',
        "[1, 2]",
        "{" * 50_000,
        "\x00\x00",
    ]
    with (copied / "metrics.jsonl").open("a") as file:
        file.write("\n".join(hostile) + "\n")
    (copied / "summary.json").write_text('{"status": ["complete"], "rollbacks": "many", "top1": null}')
    found = inspected(copied, out=str(tmp_path / "a $look_ $"))
    assert (found["status"], found["step"]) == ("unknown", 17)
    json.dumps(found, allow_nan=False)
    assert (tmp_path / "a $look_ $" / "curve.png").exists()


def test_a_pipe_is_no_reason_to_wait(copied):
    for name in ("metrics.jsonl", "summary.json", "config.json"):
        (copied / name).unlink()
        os.mkfifo(copied / name)
    assert inspected(copied)["lines"] == 0


def test_a_name_that_looks_like_a_formula_is_drawn(copied, tmp_path):
    odd = copied.rename(tmp_path / "$x_{$")
    inspected(odd, out=str(tmp_path / "look"))
    assert (tmp_path / "look" / "curve.png").exists()


def test_an_occupied_out_is_refused(pixel_run, tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    assert command(["inspect", str(pixel_run), "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["mine"]


def test_a_sparkline_goes_from_low_to_high():
    assert sparkline([8.0, 4.0, 0.0], bars=PLAIN_BARS) == PLAIN_BARS[-1] + PLAIN_BARS[4] + PLAIN_BARS[0]
    assert len(sparkline(list(range(1000)), columns=40)) == 40
    assert sparkline([1.0, 1.0], bars="ab") == "aa"
