"""What a run folder remembers for when the run is started again, beside its settings."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from openmae.machine.files import disk_faults, write_json
from openmae.run.folder import C

SMALLER_MICRO_BATCH = "out_of_memory_with"  # in config.json, beside the micro-batch that will do


def remember_micro_batch(run: Path, micro_batch_size: int, too_many: int) -> None:
    """Write down that a run needs smaller micro-batches, for when it is started again."""
    _remember(run, {"micro_batch_size": micro_batch_size, SMALLER_MICRO_BATCH: too_many})


def remember_no_compile(run: Path) -> None:
    """Write down that a run does not compile: what it has trained so far goes on without, to the same weights."""
    _remember(run, {"compile": False})


def _remember(run: Path, settings: dict[str, Any]) -> None:
    values = json.loads((run / "config.json").read_bytes()) | settings
    # Processes that fail together write the same; one of them may come too late.
    with disk_faults(run), suppress(FileNotFoundError):
        write_json(run / "config.json", values)


def with_remembered_micro_batch(config: C) -> C:
    """The settings of a run that is started again before its first checkpoint, with the micro-batch that will do."""
    try:
        values = json.loads((Path(config.out) / "config.json").read_bytes())
        remembered = values["micro_batch_size"] if SMALLER_MICRO_BATCH in values else None
    except (OSError, ValueError, KeyError, TypeError):
        remembered = None
    if config.micro_batch_size is not None or remembered is None:
        return config
    return replace(config, micro_batch_size=remembered)
