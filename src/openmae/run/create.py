"""Making a run folder: held against other programs, with the settings in it and how it stands."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from openmae.machine.files import disk_faults, write_json
from openmae.run.lock import held
from openmae.version import __version__


def make_and_hold(folder: Path, lock: ExitStack, flag: str = "--out") -> None:
    """Make a folder, where there is none, and keep other programs out of it until `lock` is left.

    Raises:
        RequestError: another program writes into it; it is called by `flag`.
        Fault: it cannot be made.
    """
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock.enter_context(held(folder, flag))


def create_run(run: Path, record: dict[str, Any], lock: ExitStack) -> None:
    """Make a run folder: its settings, and that it is under way. Raises as `make_and_hold`."""
    make_and_hold(run, lock)
    write_config(run, record)
    with disk_faults(run):
        write_json(run / "summary.json", {"status": "running"})


def write_config(run: Path, record: dict[str, Any]) -> None:
    """Write config.json: the settings that were used, and the program's version. Raises Fault."""
    with disk_faults(run):
        write_json(run / "config.json", {"openmae": __version__, **record})
