"""Creating a run folder: locked against other programs, with its settings and its status."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from openmae.machine.files import disk_faults, write_json
from openmae.run.lock import locked
from openmae.version import __version__


def make_and_lock(folder: Path, lock: ExitStack, flag: str = "--out") -> None:
    """Make a folder, where there is none, and lock it until `lock` is closed.

    Raises:
        RequestError: another program writes into it; the message tells to choose another `flag`.
        Fault: it cannot be made.
    """
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock.enter_context(locked(folder, flag))


def create_run(run: Path, record: dict[str, Any], lock: ExitStack) -> None:
    """Create a run folder with its settings and the status "running". Raises as `make_and_lock`."""
    make_and_lock(run, lock)
    write_config(run, record)
    with disk_faults(run):
        write_json(run / "summary.json", {"status": "running"})


def write_config(run: Path, record: dict[str, Any]) -> None:
    """Write config.json: the settings that were used, and the program's version. Raises Fault."""
    with disk_faults(run):
        write_json(run / "config.json", {"openmae": __version__, **record})
