"""A part as a group of processes: started, given up whole, and looked for when it has ended.

A process may leave the group (inductor's helpers may have their own): all carry the part's mark in the environment.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from gpu_parts.part import ROOT

MARK = "OPENMAE_GPU_CHECK_PART"
PATIENCE = 7.0  # seconds in which what belongs to a process that has ended must end too: torch's readers look every 5
LOOKS = 3  # at all processes: one that is being started shows its parent's environment, or none


class Group:
    """The processes of a part, started by one that runs `command`; they say what they say to `log`."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        path = os.pathsep.join([str(ROOT / "tools"), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment, MARK: self.mark}
        self.began = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            # A group, not a session: where the terminal or a time limit ends this program's session, they go too.
            self.process = subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment,
                process_group=0,
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def poll(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        """End all of them, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for _ in range(LOOKS):
            for pid in self.members():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.process.wait()

    def left_over(self) -> list[str]:
        """The command lines of what still runs some seconds after the first process ended. They are killed."""
        deadline = time.monotonic() + PATIENCE
        while (members := self.members()) and time.monotonic() < deadline:
            time.sleep(0.1)
        lines = [_command_line(pid) for pid in members]
        if members:
            self.kill()
        return [line for line in lines if line]

    def members(self) -> list[int]:
        """The ids of all that carry the mark and still run (Linux)."""
        found, mark = [], f"{MARK}={self.mark}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0") and not _has_ended(entry):
                    found.append(int(entry.name))
        return found


def _has_ended(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    except OSError:
        return ""
