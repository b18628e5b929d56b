"""Trials as processes: spread, watched, stopped together, and gone with their parent. Stand-ins for the real ones."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from openmae.errors import Interrupted, RequestError
from openmae.experiments.trials import side_by_side
from openmae.experiments.trials.process import wait_for_folder
from openmae.experiments.trials.side_by_side import Resources, check_rows, last_line, prepare, run_side_by_side
from openmae.experiments.trials.trial import Stage, Trial
from openmae.run.lock import locked

# Writes down what it was given, and does what its row says.
STAND_IN = """
import json, os, signal, sys, threading, time
from pathlib import Path
folder = Path(sys.argv[1])
row = json.loads((folder / "trial.json").read_text())["row"]
(folder / "started.json").write_text(json.dumps({"at": time.time(), "device": sys.argv[2], "workers": sys.argv[3],
    "threads": os.environ["OMP_NUM_THREADS"], "pid": os.getpid()}))
def saved(number, frame):
    (folder / "saved").touch()
    sys.exit(3)
signal.signal(signal.SIGTERM, saved)
if row == "bad":
    print("a line before"), print("openmae: no such label: name one"), sys.exit(2)
if row == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60 if row == "endless" else 0.3)
(folder / "result.json").write_text(json.dumps({"protocols": {"knn": {"value": 50.0}}, "cost": {}}))
(folder / "ended").write_text(str(time.time()))
"""


RESULT = '{"protocols": {"knn": {"value": 50.0}}, "cost": {"seconds": 1}}'


def trials(*rows):
    return [Trial(row=row, seed=0, stages=(Stage(kind="knn", settings={"k": (10,)}),)) for row in rows]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    monkeypatch.setattr(side_by_side, "PROGRAM", (str(path),))
    monkeypatch.setattr(side_by_side, "SECONDS_BETWEEN_LOOKS", 0.05)


def run(all_jobs, watch=lambda: None, **resources):
    ended = []
    resources = Resources(**{"jobs": 1, **resources})
    run_side_by_side(all_jobs, resources, watch, lambda job: ended.append((job.trial.row, job.state)))
    return ended


def started(job):
    return json.loads((job.folder / "started.json").read_text())


@pytest.mark.usefixtures("stand_in")
def test_as_many_at_a_time_as_asked(tmp_path):
    jobs, most = prepare(tmp_path, trials(*"abcde")), []
    run(jobs, lambda: most.append(sum(job.state == "running" for job in jobs)), jobs=3)
    assert max(most) == 3
    assert {job.state for job in jobs} == {"done"}


@pytest.mark.usefixtures("stand_in")
def test_they_are_spread_over_devices_with_equal_threads(tmp_path):
    jobs = prepare(tmp_path, trials(*"abcd"))
    run(jobs, jobs=2, devices=("cuda:0", "cuda:1"), threads=3, workers=5)
    devices = [started(job)["device"] for job in jobs]
    assert sorted(devices[:2]) == sorted(devices[2:]) == ["cuda:0", "cuda:1"]
    assert {(started(job)["threads"], started(job)["workers"]) for job in jobs} == {("3", "5")}


@pytest.mark.usefixtures("stand_in")
def test_one_that_fails_is_named_and_the_others_go_on(tmp_path):
    jobs = prepare(tmp_path, trials("bad", "a", "killed", "b"))
    assert set(run(jobs, jobs=2)) == {("bad", "failed"), ("a", "done"), ("killed", "failed"), ("b", "done")}
    why = {job.trial.row: (job.why, job.exit_code) for job in jobs}
    assert why["bad"] == ("no such label: name one", 2)
    assert why["killed"] == ("ended by SIGKILL", -signal.SIGKILL)


@pytest.mark.usefixtures("stand_in")
def test_what_is_finished_is_not_run_again_and_what_failed_is(tmp_path):
    run(prepare(tmp_path, trials("a", "bad")), jobs=2)
    before = started(prepare(tmp_path, trials("a"))[0])
    jobs = prepare(tmp_path, trials("a", "bad"))
    assert [job.state for job in jobs] == ["done", "waiting"]
    assert run(jobs) == [("bad", "failed")]
    assert started(jobs[0]) == before


def test_a_row_of_other_settings_is_refused_by_name(tmp_path):
    prepare(tmp_path, trials("a"))
    other = Trial(row="a", seed=0, stages=(Stage(kind="knn", settings={"k": (20,)}),))
    with pytest.raises(RequestError, match=r"holds this row with other settings \(knn: k was \[10\] and is \[20\]\)"):
        check_rows(tmp_path, [other])


def test_data_may_have_moved(tmp_path):
    """What it is, its fingerprint says; a row goes on where it is now."""

    def trial(data):
        return Trial(row="a", seed=0, stages=(Stage(kind="knn", settings={"k": (10,), "data": data}),))

    (prepare(tmp_path, [trial("here")])[0].folder / "result.json").write_text(RESULT)
    with pytest.raises(RequestError, match=r"\(knn: data was here and is there\)"):
        check_rows(tmp_path, [trial("there")])  # copied from another experiment: it may be of other data
    (tmp_path / "config.json").write_text("{}")
    check_rows(tmp_path, [trial("there")])
    (job,) = prepare(tmp_path, [trial("there")])
    assert job.state == "done"
    assert json.loads((job.folder / "trial.json").read_text())["stages"][0]["settings"]["data"] == "there"


@pytest.mark.usefixtures("stand_in")
def test_a_stop_lets_all_save_and_starts_no_more(tmp_path):
    jobs = prepare(tmp_path, trials("endless", "a", "b"))

    def stop():
        if (jobs[0].folder / "started.json").exists() and jobs[1].state == "done":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"SIGTERM: \d of 3 runs are done, the others saved; the same command goes"):
        run_side_by_side(jobs, Resources(jobs=2), stop, lambda job: None)
    assert (jobs[0].folder / "saved").exists()
    assert jobs[0].state == "stopped"
    with pytest.raises(ProcessLookupError):
        os.kill(started(jobs[0])["pid"], 0)


@pytest.mark.usefixtures("stand_in")
def test_what_breaks_lets_all_save_first(tmp_path):
    """A full disk, or a picture that cannot be drawn, while another row ends."""
    jobs = prepare(tmp_path, trials("endless", "a"))

    def ended(job):
        wait_for(jobs[0].folder / "started.json")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        run_side_by_side(jobs, Resources(jobs=2), lambda: None, ended)
    assert (jobs[0].folder / "saved").exists()


def test_a_trial_dies_with_its_parent_even_where_that_is_killed(tmp_path):
    """The real watching thread: SIGTERM when the pipe closes, so that the trial saves first."""
    child = tmp_path / "child.py"
    child.write_text(
        textwrap.dedent("""
            import os, sys, time
            from pathlib import Path
            from openmae.experiments.trials.process import end_with_parent
            end_with_parent()
            Path(sys.argv[1], "pid").write_text(str(os.getpid()))
            time.sleep(60)
        """)
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            f"subprocess.Popen([sys.executable, {str(child)!r}, {str(tmp_path)!r}], stdin=subprocess.PIPE,"
            " start_new_session=True)\n"
            "time.sleep(60)",
        ]
    )
    pid = int(wait_for(tmp_path / "pid"))
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20
    while time.monotonic() < until and is_running(pid):
        time.sleep(0.1)
    assert not is_running(pid)


def wait_for(path: Path) -> str:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for (a zombie) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_last_line_of_a_log(tmp_path):
    log = tmp_path / "log.txt"
    assert last_line(log) == ""
    log.write_text("one\nopenmae: two\n\n")
    assert last_line(log) == "two"


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"a": 1}',
        '{"protocols": 7}',
        '{"protocols": {}}',
        '{"protocols": {"linear": {"value": 1.0}}}',
        '{"protocols": {"knn": 7}}',
        '{"protocols": {"knn": {"value": "x"}}}',
        '{"protocols": {"knn": {"value": NaN}}}',
        '{"protocols": {"knn": {"value": 1.0}}, "cost": {"seconds": "x"}}',
    ],
)
def test_a_damaged_result_is_found_anew(tmp_path, damage):
    (job,) = prepare(tmp_path, trials("a"))
    (job.folder / "result.json").write_text(RESULT)
    assert prepare(tmp_path, trials("a"))[0].state == "done"
    (job.folder / "result.json").write_text(damage)
    assert prepare(tmp_path, trials("a"))[0].state == "waiting"


@pytest.mark.parametrize("damage", [None, "{", '{"stages": 7}', '{"stages": [7]}'])
def test_a_result_without_its_trial_is_found_anew(tmp_path, damage):
    """Nobody knows what it is the result of."""
    (job,) = prepare(tmp_path, trials("a"))
    (job.folder / "result.json").write_text(RESULT)
    (job.folder / "trial.json").unlink()
    if damage is not None:
        (job.folder / "trial.json").write_text(damage)
    check_rows(tmp_path, trials("a"))
    assert prepare(tmp_path, trials("a"))[0].state == "waiting"
    assert not (job.folder / "result.json").exists()


def test_a_trial_waits_for_one_that_still_saves(tmp_path):
    """The parent was killed and started again at once."""
    held = ExitStack()
    held.enter_context(locked(tmp_path))
    threading.Timer(0.5, held.close).start()
    with ExitStack() as lock:
        wait_for_folder(tmp_path, lock)
    held.enter_context(locked(tmp_path))
    with held, ExitStack() as lock, pytest.raises(RequestError, match="another process writes into"):
        wait_for_folder(tmp_path, lock, seconds=0.3)


@pytest.mark.slow
def test_files_in_the_current_folder_are_no_modules(tmp_path, monkeypatch):
    """A person may well have a statistics.py beside the images."""
    (tmp_path / "statistics.py").write_text("raise SystemExit('not yours')")
    monkeypatch.chdir(tmp_path)
    (job,) = prepare(tmp_path / "out", trials("a"))
    run([job])
    assert job.state == "failed"  # its only stage has no data
    assert "not yours" not in (job.folder / "log.txt").read_text()


def test_a_signal_without_a_name_is_named_by_its_number(tmp_path, monkeypatch, stand_in):
    (tmp_path / "stand_in.py").write_text("import os; os.kill(os.getpid(), 37)")
    (job,) = prepare(tmp_path, trials("a"))
    run([job])
    assert (job.state, job.why) == ("failed", "ended by signal 37")


def test_one_that_ends_without_a_result_or_a_word_is_named(tmp_path, stand_in):
    (tmp_path / "stand_in.py").write_text("")
    (job,) = prepare(tmp_path, trials("a"))
    run([job])
    assert (job.state, job.why) == ("failed", "ended with exit code 0 and no result")
