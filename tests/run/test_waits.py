"""What a run waits for is said once it has waited for a while."""

import time

from openmae.run import waits as module
from openmae.run.waits import Waits


def test_a_long_wait_is_said_and_a_short_one_is_not(monkeypatch):
    monkeypatch.setattr(module, "FIRST_LINE", 0.2)
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.01)
    lines: list[str] = []
    with Waits(lines.append) as waits:
        with waits.waiting_for("nothing much"):
            pass
        with waits.waiting_for("the readers' next batch"):
            time.sleep(0.4)
        time.sleep(0.3)  # no wait
    assert lines == ["waiting    for the readers' next batch: 0 s so far"]


def test_the_lines_grow_rarer_and_name_the_innermost_wait(monkeypatch):
    monkeypatch.setattr(module, "FIRST_LINE", 0.05)
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.01)
    lines: list[str] = []
    with Waits(lines.append) as waits, waits.waiting_for("the evaluation"), waits.waiting_for("another process"):
        time.sleep(0.5)  # after .05, .2 and not before .8
    assert [line.split(":")[0] for line in lines] == ["waiting    for another process"] * 2


def test_the_first_line_comes_after_five_seconds():
    assert (module.FIRST_LINE, module.POLL_INTERVAL) == (5.0, 0.25)
