"""Real `openmae` processes for tests and for the drill: started, signalled, killed, waited for.

They are forked from a server that has loaded torch once: a start takes tenths of a second, where
`python -m openmae` takes several. Each has its own process id, signal handlers and reader processes.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from openmae.cli import main
from openmae.training.checkpoint import checkpoint_folders
from openmae.training.telemetry import read_lines

TINY = (
    "--image-size 8 --patch-size 2 --width 24 --depth 1 --num-heads 3 --decoder-width 16 --decoder-depth 1 "
    "--batch-size 16 --held-out 32 --device cpu --precision fp32 --log-every 2 --save-every 5 --evaluate-every 7 "
    "--picture-every 100000"
)
TIMES = {"seconds", "images_per_second", "data_wait", "memory"}  # fields that differ between equal runs
PATIENCE = 60.0  # seconds until a process that should have ended or moved on is given up

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["openmae.tasks.pretrain.pretrain", "openmae.pictures.sheet", "torch.nn.parallel"])


def start(
    arguments: str | Sequence[str], log: Path, count: int = 1, patch: Callable | None = None
) -> list[BaseProcess]:
    """Start `openmae ARGUMENTS` in `count` processes that work as one; what they say is appended to `log`.

    Args:
        patch: a function of a module, called in each process before anything else.
    """
    arguments = arguments.split() if isinstance(arguments, str) else list(arguments)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    common["LOCAL_WORLD_SIZE"] = str(count)
    processes: list[BaseProcess] = []
    for rank in range(count):
        environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
        process = _server.Process(target=_openmae, args=(arguments, environment, str(log), patch))
        process.start()
        processes.append(process)
    return processes


def _openmae(arguments: list[str], environment: dict[str, str], log: str, patch: Callable[[], None] | None) -> None:
    import torch

    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    # Forked processes would start their readers through the server too; a user's are started the default way.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    if patch is not None:
        patch()
    main(arguments)


def wait(processes: Sequence[BaseProcess], timeout: float = PATIENCE) -> list[int | None]:
    """Exit codes, minus the signal's number for a process that a signal ended; None for one that had to be killed."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


def run(arguments: str | Sequence[str], log: Path, count: int = 1, timeout: float = PATIENCE) -> list[int | None]:
    """Start, wait, return the exit codes."""
    return wait(start(arguments, log, count), timeout)


def send(processes: Sequence[BaseProcess], number: int) -> None:
    """Send all of them a signal; those that have ended take no harm."""
    for process in processes:
        if process.is_alive() and process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def wait_for_step(run_folder: Path, step: int, processes: Sequence[BaseProcess], timeout: float = PATIENCE) -> bool:
    """Wait until metrics.jsonl has that step; False when a process ended before."""
    deadline = time.monotonic() + timeout
    while last_step(run_folder) < step:
        if any(not process.is_alive() for process in processes) or time.monotonic() > deadline:
            return False
        time.sleep(0.003)
    return True


def run_with_stops(
    arguments: str, out: Path, log: Path, count: int, stops: Sequence[tuple[signal.Signals, int]]
) -> None:
    """Run `openmae ARGUMENTS` to its end, resumed after each of these signals, which all processes get at a step."""
    for number, step in stops:
        processes = start(arguments, log, count)
        assert wait_for_step(out, step, processes), said(log)
        send(processes, number)
        wanted = -signal.SIGKILL if number == signal.SIGKILL else 3
        assert wait(processes) == [wanted] * count, said(log)
    assert run(arguments, log, count) == [0] * count, said(log)


def last_step(run_folder: Path) -> int:
    return max((line["step"] for line in read_lines(run_folder / "metrics.jsonl")), default=0)


def same(one: Path, two: Path) -> bool:
    """Whether two runs ended with the same bytes and wrote the same lines but for times and rates."""
    folders = [next(iter(checkpoint_folders(out)), out) for out in (one, two)]
    files = ("model.safetensors", "optimizer.safetensors")
    with contextlib.suppress(OSError):
        equal = all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in files)
        return equal and folders[0].name == folders[1].name and lines_of(one) == lines_of(two)
    return False


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_lines(out / "metrics.jsonl")]


def summary_of(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / "summary.json").read_text())
    except (OSError, ValueError):
        return {}


def said(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def ends(arguments: list[str], log: Path, patch: Callable[[], None] | None = None, timeout: float = 60) -> int | None:
    return wait(start(arguments, log, patch=patch), timeout)[0]


def resources(pid: int | None) -> tuple[int, int]:
    """Resident bytes and open files of a process and its children."""
    total, files = 0, 0
    for process in (str(pid), *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            files += len(os.listdir(f"/proc/{process}/fd"))
    return total, files
