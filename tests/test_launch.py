"""The launch scripts: they are shell that parses, they start processes that work as one, they read the run's status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .processes import TINY, last_step

LAUNCH = Path(__file__).parents[1] / "launch"
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "PROCESSES": "2", "OMP_NUM_THREADS": "1"}

# Two tasks on this machine: drops srun's own flag and runs the rest as Slurm would.
SRUN = """#!/usr/bin/env bash
shift
export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"; code=$?
wait $!
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >> "$REQUESTS"; fi
"""


@pytest.mark.parametrize("script", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_it_parses_and_may_be_run(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_without_a_run_folder_it_says_what_is_missing(script):
    environment = {**ENVIRONMENT, "HEAD": "x", "NODES": "2"}
    done = subprocess.run([script, "images"], capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "give --out RUN" in done.stderr


@pytest.mark.slow
def test_one_node_stops_at_a_signal_and_goes_on(tmp_path):
    run = tmp_path / "run"
    command = f"{LAUNCH / 'one-node.sh'} embedded:digits --out {run} --steps 300 --workers 0 {TINY}".split()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT)
        try:
            deadline = time.monotonic() + 60
            while last_step(run) < 10 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGUSR1)
            assert process.wait(timeout=60) == 3, (tmp_path / "log").read_text()
        finally:
            process.kill()
    assert 10 <= json.loads((run / "summary.json").read_text())["step"] < 300
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stdout
    assert json.loads((run / "summary.json").read_text())["status"] == "complete"


@pytest.fixture
def slurm(tmp_path):
    """`slurm(arguments)`: the job's exit code and what it asked of scontrol, with stand-ins for Slurm's programs."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    requests = tmp_path / "requests"
    environment = {
        **ENVIRONMENT,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "REQUESTS": str(requests),
        "SLURM_JOB_ID": str(1000 + os.getpid()),
        "SLURM_JOB_NODELIST": "here",
    }

    def submit(arguments):
        job = [LAUNCH / "slurm.sbatch", *arguments.split()]
        done = subprocess.run(job, capture_output=True, text=True, env=environment, timeout=100)
        return done.returncode, requests.read_text() if requests.exists() else "", done.stdout + done.stderr

    return submit


@pytest.mark.slow
def test_a_slurm_job_runs_its_tasks_as_one_and_ends_when_complete(slurm, tmp_path):
    code, requests, said = slurm(f"embedded:digits --out {tmp_path / 'run'} --steps 10 --workers 0 {TINY}")
    assert (code, requests) == (0, ""), said
    assert "is complete" in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["images_seen"] == 160


@pytest.mark.parametrize(
    ("status", "code", "asks"), [("interrupted", 0, True), ("running", 0, True), ("failed", 1, False), ("", 1, False)]
)
def test_a_slurm_job_asks_to_be_queued_again_when_that_helps(slurm, tmp_path, status, code, asks):
    if status:
        (tmp_path / "summary.json").write_text(json.dumps({"status": status}))
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\nexit 3\n")
    ended, requests, said = slurm(f"images --out {tmp_path}")
    assert ended == code, said
    assert requests.startswith("requeue ") == asks
