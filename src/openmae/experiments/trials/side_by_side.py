"""Trials as processes side by side: started, watched, stopped together; one that fails does not stop the others."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from openmae.errors import Interrupted, RequestError, shown
from openmae.experiments.trials.trial import RESULT, TRIAL, Trial, read_result, read_trial
from openmae.machine.files import disk_faults, write_json
from openmae.machine.signals import StopRequest, before_immediate_exit
from openmae.run.folder import DATA_PATHS

LOG = "log.txt"
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_SAVE = 60  # when all are to stop, before they are killed
# -P: files in the person's current folder are no modules of ours
PROGRAM = ("-P", "-m", "openmae.experiments.trials.process")  # of this Python
NOT_COMPARED = DATA_PATHS | {"max_bad"}  # what may change of a row that goes on
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class Job:
    """A trial and where it stands.

    Attributes:
        state: waiting, running, done, failed or stopped.
        why: the last line of a failed trial's log.
        exit_code: of its process.
        seconds: that it ran, in this start.
    """

    trial: Trial
    folder: Path
    state: str = "waiting"
    why: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    device: str = ""
    started: float = 0.0
    process: subprocess.Popen | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What trials run on.

    Attributes:
        jobs: trials at a time.
        devices: which they are spread over; "" is the best there is.
        threads: CPU threads of each, the same for every `jobs`, so that results do not depend on it.
        workers: processes of each that read images.
    """

    jobs: int
    devices: tuple[str, ...] = ("",)
    threads: int = 1
    workers: int | None = None


def check_rows(out: Path, trials: Iterable[Trial]) -> None:
    """Raise RequestError where OUT/runs holds one of the rows with other settings.

    Of an experiment that goes on, the data may have another path, for config.json says what data it is. Of rows that
    were copied from another experiment only the path says that.
    """
    may_move = (out / "config.json").exists()
    for trial in trials:
        folder, now = out / "runs" / trial.folder, trial.to_dict()
        stored = read_trial(folder)
        if stored and may_move:
            stored, now = _without_paths(stored), _without_paths(now)
        if stored and stored != now and not is_shared(stored, now):
            raise RequestError(
                f"{folder} holds this row with other settings ({_difference(stored, now)}): remove it to run the row "
                "anew, or choose another --out"
            )


def prepare(out: Path, trials: Iterable[Trial]) -> list[Job]:
    """Write each trial's trial.json, and find those that an earlier start finished.

    Where a folder holds the row of another experiment that only measures in other ways, its runs are taken, and what
    the trial comes to is found anew. `check_rows` has been called.
    """
    jobs = []
    for trial in trials:
        folder, now = out / "runs" / trial.folder, trial.to_dict()
        stored = read_trial(folder)
        with disk_faults(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if _without_paths(stored) != _without_paths(now):
                (folder / RESULT).unlink(missing_ok=True)
            if stored != now:
                write_json(folder / TRIAL, now)
        jobs.append(Job(trial, folder, state="done" if read_result(folder, trial) else "waiting"))
    return jobs


def _without_paths(trial: dict) -> dict:
    stages = [
        {**stage, "settings": {k: v for k, v in stage.get("settings", {}).items() if k not in NOT_COMPARED}}
        for stage in trial.get("stages", [])
    ]
    return {**trial, "stages": stages}


def is_shared(stored: dict, now: dict) -> bool:
    """Whether two trials, as dictionaries, are of one pre-training and nothing that both do differs."""
    before, after = ({stage["kind"]: stage for stage in trial.get("stages", [])} for trial in (stored, now))
    both = before.keys() & after.keys()
    is_same_row = (stored.get("row"), stored.get("seed")) == (now["row"], now["seed"])
    return is_same_row and "pretrain" in both and all(before[kind] == after[kind] for kind in both)


def _difference(stored: dict, now: dict) -> str:
    """What differs first between two trials."""
    before, after = stored.get("stages", []), now["stages"]
    for old, new in zip(before, after, strict=False):
        for name in sorted({*old.get("settings", {}), *new["settings"]}):
            values = old.get("settings", {}).get(name), new["settings"].get(name)
            if values[0] != values[1]:
                return f"{new['kind']}: {name} was {values[0]} and is {values[1]}"
    return "its stages"


def run_side_by_side(
    jobs: Sequence[Job], resources: Resources, watch: Callable[[], None], on_end: Callable[[Job], None]
) -> None:
    """Run all that wait, `resources.jobs` at a time.

    Args:
        watch: called every half second.
        on_end: called when a trial is done or has failed.

    Raises:
        Interrupted: a signal; all trials have saved and ended.
    """
    waiting = deque(job for job in jobs if job.state == "waiting")
    running: list[Job] = []
    with StopRequest() as stop, contextlib.ExitStack() as at_end:
        stop.defer()
        before_immediate_exit(lambda: _kill(running))
        at_end.callback(_stop, running)
        while (waiting or running) and not stop.is_received():
            while waiting and len(running) < resources.jobs:
                job = waiting.popleft()
                _start(job, resources, _least_busy(resources.devices, running))
                running.append(job)
            watch()
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for job in [job for job in running if job.process is not None and job.process.poll() is not None]:
                running.remove(job)
                _finish(job)
                on_end(job)
        if stop.is_received():
            _stop(running)
            watch()  # says that they have stopped
            num_done = sum(job.state == "done" for job in jobs)
            raise Interrupted(
                f"{stop.received}: {num_done} of {len(jobs)} runs are done, the others saved; the same command goes on"
            )


def _least_busy(devices: Sequence[str], running: Sequence[Job]) -> str:
    return min(devices, key=lambda device: sum(job.device == device for job in running))


def _start(job: Job, resources: Resources, device: str) -> None:
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(resources.threads))
    environment |= {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"), "PYTHONUNBUFFERED": "1"}
    workers = "" if resources.workers is None else str(resources.workers)
    command = [sys.executable, *PROGRAM, str(job.folder), device, workers]
    with disk_faults(job.folder), (job.folder / LOG).open("ab") as log:
        # A session of its own: a Ctrl-C in the terminal reaches this process alone, which then stops all of them.
        job.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    job.state, job.device, job.started = "running", device, time.monotonic()


def _finish(job: Job) -> None:
    assert job.process is not None
    job.seconds, job.exit_code = time.monotonic() - job.started, job.process.returncode
    _close(job.process.stdin)
    result = read_result(job.folder, job.trial)
    is_stopped = job.exit_code == Interrupted.exit_code  # by a signal that did not come from here
    job.state = "done" if job.exit_code == 0 and result else "stopped" if is_stopped else "failed"
    if job.state == "failed":
        job.why = last_line(job.folder / LOG) or f"ended with exit code {job.exit_code} and no result"
        if job.exit_code < 0:
            names = {number.value: number.name for number in signal.Signals}
            job.why = f"ended by {names.get(-job.exit_code, f'signal {-job.exit_code}')}"


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, printable, without the program's name."""
    try:
        lines = log.read_bytes()[-4000:].decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return shown(next((line.strip() for line in reversed(lines) if line.strip()), "").removeprefix("openmae: "))


def _stop(running: Sequence[Job]) -> None:
    """Ask all to save and end, wait until they have, and kill what does not."""
    for job in running:
        assert job.process is not None
        job.process.terminate()
    until = time.monotonic() + SECONDS_TO_SAVE
    for job in running:
        assert job.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.process.wait(max(0.1, until - time.monotonic()))
        job.state = "stopped"
    _kill(running)
    for job in running:
        assert job.process is not None
        _close(job.process.stdin)


def _kill(running: Sequence[Job]) -> None:
    """End what still runs, with its reader processes; a last resort."""
    for job in running:
        if job.process is not None and job.process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        pipe.close()
