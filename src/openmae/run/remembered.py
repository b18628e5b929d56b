"""What a run folder remembers for the next start, beside the settings: a smaller micro-batch, not to compile."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from openmae.machine.files import disk_faults, write_json
from openmae.run.folder import RequestedConfigT

SMALLER_MICRO_BATCH = "out_of_memory_with"  # in config.json, beside the micro-batch size that fits
DOES_NOT_COMPILE = "compile_failed"  # beside `compile`, which a user may have given


def remember_micro_batch(run: Path, micro_batch_size: int, too_many: int) -> None:
    """Write down that a run needs smaller micro-batches, for when it is started again."""
    _remember(run, {"micro_batch_size": micro_batch_size, SMALLER_MICRO_BATCH: too_many})


def remember_no_compile(run: Path) -> None:
    """Write down that a run does not compile, for when it is started again."""
    _remember(run, {"compile": False, DOES_NOT_COMPILE: True})


def _remember(run: Path, settings: dict[str, Any]) -> None:
    values = json.loads((run / "config.json").read_bytes()) | settings
    # Processes that fail together write the same; one of them may come too late.
    with disk_faults(run), suppress(FileNotFoundError):
        write_json(run / "config.json", values)


def with_remembered(config: RequestedConfigT, remembers_micro_batch: bool = True) -> RequestedConfigT:
    """The settings of a run that is started again before its first checkpoint, with what its folder remembers.

    A micro-batch size or --compile that is requested takes precedence.
    """
    try:
        values = json.loads((Path(config.out) / "config.json").read_bytes())
        smaller = values["micro_batch_size"] if SMALLER_MICRO_BATCH in values else None
        does_not_compile = bool(values.get(DOES_NOT_COMPILE))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return config
    if smaller is not None and remembers_micro_batch and config.micro_batch_size is None:
        config = replace(config, micro_batch_size=smaller)
    if does_not_compile and getattr(config, "compile", False) is None:  # only pre-training has the setting
        without: dict[str, Any] = {"compile": False}
        config = replace(config, **without)
    return config
