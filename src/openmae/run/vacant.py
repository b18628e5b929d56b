"""Whether a run may begin where `--out` says. Imports no torch: it is asked before that is loaded."""

import json
import os
from pathlib import Path
from typing import Any

from openmae.config import Dataset, paths_of
from openmae.errors import RequestError


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
        raise exists_already(run)


def exists_already(run: Path) -> RequestError:
    """What is said of a run folder that `--resume` says nothing of."""
    return RequestError(f"{run} exists already: --resume auto continues the run there, another --out starts one")


def cannot_be_resumed(path: Path, why: str = "no such run or checkpoint") -> RequestError:
    """What is said of a `--resume PATH` that holds nothing to go on from."""
    return RequestError(f"--resume {path} cannot be resumed: {why}")


def check_outside(data: Dataset, out: str) -> None:
    """Raise RequestError where the run folder would lie among its data."""
    for path in paths_of(data):
        if os.path.isdir(path) and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(path)):
            raise RequestError(f"--out {out} lies inside {path}: the run's pictures would become its data")


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
