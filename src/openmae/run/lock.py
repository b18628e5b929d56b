"""Checks of the path of a run folder, and a lock against other programs while it is written."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.util import register_after_fork
from pathlib import Path
from typing import Any

from openmae.config import Dataset, paths_of
from openmae.data.sources.named import folder_of, is_json
from openmae.errors import RequestError, shown


def check_run_folder(path: Path, flag: str = "--out") -> None:
    """Raise RequestError, naming the `flag`, where the path is no folder and none can be made there."""
    try:
        str(path).encode()
        nearest_existing = next(parent for parent in (path, *path.absolute().parents) if _is_there(parent))
        if not nearest_existing.is_dir():
            raise RequestError(f"{flag} {shown(path)} cannot be a folder: {shown(nearest_existing)} is none")
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        reason = (
            "its name is no UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
        )
        raise RequestError(f"{flag} {shown(str(path)[:200])} cannot be a folder: {reason}") from None


def check_file_path(path: Path, flag: str) -> None:
    """Raise RequestError, naming the `flag`, where no file can be made: a parent is no folder, a name is too long."""
    try:
        nearest_existing = next(parent for parent in path.absolute().parents if _is_there(parent))
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise RequestError(f"{flag} {shown(str(path)[:200])} cannot be written: {error.strerror}") from None
    if not nearest_existing.is_dir():
        raise RequestError(f"{flag} {shown(path)} cannot be written: {shown(nearest_existing)} is no folder")


def _is_there(path: Path) -> bool:
    """As `os.path.lexists`, but raises where the name is too long."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_vacant(run: Path) -> bool:
    """Whether nothing can be lost there: no folder, an empty one, or a run that failed before its first checkpoint."""
    if not run.exists():
        return True
    if not run.is_dir():
        return False
    return not any(run.iterdir()) or (status_of(run) == "failed" and not (run / "checkpoints").exists())


def check_vacant(run: Path) -> None:
    """Raise RequestError where something could be lost."""
    if not is_vacant(run):
        raise already_exists_error(run)


def check_free(folder: Path) -> None:
    """Raise RequestError where a folder for files that nothing resumes holds something."""
    if not is_vacant(folder):
        raise RequestError(f"{folder} exists already: delete it, or give another --out")


def already_exists_error(run: Path) -> RequestError:
    """The error for a run folder that holds a run, where `--resume never` asks for a new one."""
    return RequestError(f"{run} exists already: --resume auto continues the run there, another --out starts one")


def cannot_resume_error(path: Path, why: str = "no such run or checkpoint") -> RequestError:
    """The error for a `--resume PATH` from which no run can be resumed."""
    return RequestError(f"--resume {path} cannot be resumed: {why}")


def check_outside(data: Dataset, out: str) -> None:
    """Raise RequestError where the run folder would lie among its data."""
    for given in paths_of(data):
        path = folder_of(given)
        if os.path.isdir(path) and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(path)):
            where = f"{path}, where the images of {given} are looked for" if is_json(given) else path
            raise RequestError(f"--out {out} lies inside {where}: the run's pictures would become its data")


def status_of(run: Path) -> str | None:
    """What its summary says of how it stands; None where it says nothing."""
    return summary_of(run).get("status")


def summary_of(run: Path) -> dict[str, Any]:
    """RUN/summary.json; {} where there is none that can be read."""
    try:
        summary = json.loads((run / "summary.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}


@contextmanager
def locked(run: Path, flag: str = "--out") -> Iterator[None]:
    """Lock the folder, so that no other program of this package writes into it at the same time.

    Raises:
        RequestError: another process holds the lock.
    """
    lock = _Lock(os.open(run, os.O_RDONLY))
    # A lock lasts while any process has it open, and reader processes outlive a killed run by seconds.
    register_after_fork(lock, _Lock.close)
    try:
        fcntl.flock(lock.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RequestError(f"another process writes into {run}: wait for it, or choose another {flag}") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        lock.close()


def is_locked(run: Path) -> bool:
    """Whether a program is writing into the folder now; False where that cannot be known."""
    try:
        descriptor = os.open(run, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released with the descriptor
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


@dataclass(frozen=True)
class _Lock:
    descriptor: int

    def close(self) -> None:
        os.close(self.descriptor)
