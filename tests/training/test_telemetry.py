"""What a run tells: lines that survive a crash and a resume, and a screen that knows what it writes to."""

import io
import json
import os

import pytest
from rich.console import Console

from openmae.errors import Fault
from openmae.run.log import RunLog
from openmae.training import telemetry
from openmae.training.telemetry import ProgressBar, format_duration, read_lines


def test_a_line_holds_what_was_measured(tmp_path):
    log = RunLog(tmp_path)
    log.metrics(step=1, loss=0.5, grad_norm=None)
    log.metrics(step=2, loss=0.25, grad_norm=1.5)
    log.close()
    assert read_lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25, "grad_norm": 1.5},
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_drops_the_lines_behind_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": step / 8}) + "\n" for step in (1, 2, 2, 3, 4)))
    log = RunLog(tmp_path, resume_step=2)
    log.metrics(step=3, loss=9.0)
    log.close()
    assert [(line["step"], line["loss"]) for line in read_lines(path)] == [(1, 0.125), (2, 0.25), (2, 0.25), (3, 9.0)]


def test_a_fresh_run_keeps_no_old_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    RunLog(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + '{"step": 2, "loss": 0.5}\n'[:-cut])
    kept = [{"step": 1}] if cut > 1 else [{"step": 1}, {"step": 2, "loss": 0.5}]
    assert read_lines(path) == kept
    log = RunLog(tmp_path, resume_step=2)
    log.metrics(step=3)
    log.close()
    assert read_lines(path) == [*kept, {"step": 3}]


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_quarantine_names_each_input_once_even_after_a_resume(tmp_path):
    log = RunLog(tmp_path)
    assert log.quarantine.add({"a.jpg": "cut short"}) == ["a.jpg"]
    assert log.quarantine.add({"a.jpg": "cut short", "b\n.jpg": "empty"}) == ["b\n.jpg"]
    assert log.quarantine.add({}) == []
    log.close()
    log = RunLog(tmp_path, resume_step=7)
    assert log.quarantine.add({"b\n.jpg": "empty"}) == []
    assert log.quarantine.add({"c\udcff.jpg": "empty"}) == ["c\udcff.jpg"]  # a name that is no UTF-8
    log.close()
    lines = read_lines(tmp_path / "quarantine.jsonl")
    assert [line["name"] for line in lines] == ["a.jpg", "b\n.jpg", "c\udcff.jpg"]
    assert lines[0]["reason"] == "cut short"


def test_a_cut_quarantine_line_spoils_no_later_one(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"name": "a", "reason": "empty"}\n{"name": "b", "rea')
    log = RunLog(tmp_path, resume_step=1)
    log.quarantine.add({"c": "empty"})
    log.close()
    assert [line["name"] for line in read_lines(path)] == ["a", "c"]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    log = RunLog(tmp_path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Fault, match=r"summary\.json was not saved, the disk is full"):
        log.summary({"status": "complete"})
    log.close()
    assert not list(tmp_path.glob("*summary*"))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (5 * 3600 + 180, "5 h 03 min"),
        (47 * 3600, "47 h 00 min"),
        (52 * 3600, "2 d 4 h"),
    ],
)
def test_durations_in_words(seconds, words):
    assert format_duration(seconds) == words


class Clock:
    """`time.monotonic` that a test turns."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(telemetry.time, "monotonic", lambda: self.now)


def test_plain_lines_now_and_then_where_there_is_no_terminal(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with ProgressBar(4, 0, "pretrain") as screen:
        screen.print("a line [bold]as it is[/bold]")
        screen.update(1, "loss 0.5")  # too soon after the start
        clock.now += 20
        screen.update(2, "loss 0.4")
        screen.update(3, "loss 0.3")
        screen.update(4, "loss 0.2")
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "a line [bold]as it is[/bold]",
        "pretrain 2/4  loss 0.4  20 s left",
        "pretrain 4/4  loss 0.2",
    ]
    assert captured.err == ""


def test_time_left_counts_from_where_the_run_was_resumed(monkeypatch):
    clock = Clock(monkeypatch)
    screen = ProgressBar(100, 50, "pretrain")
    clock.now += 10
    assert screen.time_left(60) == pytest.approx(40)


def test_no_time_is_left_before_there_is_a_pace(monkeypatch, capsys):
    """A run said "30 h 56 min left" at its first line: readers had started and the step was compiled meanwhile."""
    clock = Clock(monkeypatch)
    screen = ProgressBar(101, 0, "pretrain", is_timed_from_start=False)
    clock.now += 70
    assert screen.time_left(1) is None
    screen.update(1, "loss 0.5")
    assert capsys.readouterr().out == "pretrain 1/101  loss 0.5\n"
    screen.start_clock(1)
    assert screen.time_left(1) is None
    clock.now += 2
    assert screen.time_left(2) == pytest.approx(2 * 99)
    clock.now += 60
    screen.exclude_time(60)  # compiled once more
    assert screen.time_left(2) == pytest.approx(2 * 99)


def test_a_bar_on_a_terminal(monkeypatch):
    text = io.StringIO()

    def console(**options):
        return Console(file=text, force_terminal=True, width=100, **{**options, "stderr": False})

    monkeypatch.setattr(telemetry, "Console", console)
    with ProgressBar(4, 0, "pretrain") as screen:
        screen.update(3, "loss 0.3")
        screen.print("timed")
    assert "━" in text.getvalue()
    assert "3/4" in text.getvalue()
    assert "loss 0.3" in text.getvalue()
    assert "timed\n" in text.getvalue()
