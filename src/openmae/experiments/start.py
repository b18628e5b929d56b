"""Starting an experiment, or continuing one: rows that are finished must be of the same settings."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from openmae.config import ExperimentConfig, flag_of
from openmae.config.experiment import WITH_ALSO
from openmae.errors import RequestError
from openmae.experiments.trials.side_by_side import check_rows
from openmae.experiments.trials.trial import Trial
from openmae.machine.files import PARTIAL_PREFIX, disk_faults, write_json
from openmae.preflight.experiment import check_folder_and_labels
from openmae.run.create import make_and_lock
from openmae.run.reader import read_json_object

MAY_CHANGE = {"max_bad", "device", "workers", "jobs", "run", "out", "data", "train", "val", "test"}
MAY_GROW = {"seeds"}
CHANGES_TIMES = {"device", "workers"}
# Of figure 9: shares of the labels with their epochs, and numbers of blocks, may be added.
FIGURE_9_MAY_GROW = {"labels", "epochs", "blocks"}
ALSO = "also"  # of tables 4 and 5: rows may be added
DATA, ENCODER = "data_fingerprint", "encoder"
WHAT = {DATA: "data", ENCODER: "encoder"}


def find_experiment(config: ExperimentConfig) -> ExperimentConfig:
    """The config with what an earlier start in OUT decided; as it is where there was none.

    Raises:
        RequestError: the folder cannot be made, or holds something else.
    """
    out = Path(config.out)
    check_folder_and_labels(config, out)
    if (out / "runs").exists() and not (out / "runs").is_dir():
        raise RequestError(f"{out / 'runs'} is no folder: choose another --out")
    if not out.exists() or all(path.name == "runs" or path.name.startswith(PARTIAL_PREFIX) for path in out.iterdir()):
        return config  # finished rows of another experiment may lie in runs/
    found, why = read_json_object(out / "config.json")
    if found.get("name") != config.name and not (why and (out / "config.json").exists()):
        raise RequestError(f"{out} holds no {config.name}: choose another --out")
    stored = read_stored(out)
    if config.scale is not None and stored.get("scale") not in (None, config.scale):
        raise RequestError(
            f"--scale got {config.scale}, the {config.name} in {out} has {stored['scale']}: choose another --out"
        )
    decided = {name: stored.get(name) for name in ("scale", "threads") if getattr(config, name) is None}
    return replace(config, **{name: value for name, value in decided.items() if value is not None})


def read_stored(out: Path) -> dict[str, Any]:
    """What OUT/config.json holds; {} where there is none. Raises RequestError where it is damaged."""
    stored, _ = read_json_object(out / "config.json")
    if not stored and not (out / "config.json").exists():
        return {}
    try:
        ExperimentConfig.from_dict(stored)
    except (RequestError, TypeError, ValueError) as error:
        raise RequestError(f"{out / 'config.json'} is damaged ({error}): restore it, or choose another --out") from None
    return stored


def create_experiment(
    config: ExperimentConfig, fingerprints: dict[str, str], trials: Sequence[Trial], lock: ExitStack
) -> None:
    """Check what an earlier start left in OUT, lock it until `lock` is closed, and write OUT/config.json.

    Args:
        config: with `scale` and `threads` decided.
        fingerprints: of the data and, where one is given, the model.

    Raises:
        RequestError: the folder holds rows of other settings or data, or another program writes into it.
    """
    out = Path(config.out)
    record = json.loads(json.dumps({**config.to_dict(), **fingerprints}))
    if stored := read_stored(out):
        check_same(config.name, out, stored, record, MAY_CHANGE - (CHANGES_TIMES if config.is_timed else set()))
    check_rows(out, trials)
    make_and_lock(out, lock)
    with disk_faults(out):
        write_json(out / "config.json", record)


def check_same(name: str, out: Path, stored: dict[str, Any], record: dict[str, Any], may_change: set[str]) -> None:
    """Raise RequestError, naming the setting, where a start has other settings or data than the one before."""
    may_grow = MAY_GROW | (FIGURE_9_MAY_GROW if name == "figure-9" else {ALSO} if name in WITH_ALSO else set())
    changed = [key for key in record.keys() - may_change - may_grow if record[key] != stored.get(key, record[key])]
    changed += [key for key in MAY_GROW if (record[key] or 1) < (stored.get(key) or 1)]
    changed += [ALSO] if not set(stored.get(ALSO) or ()) <= set(record.get(ALSO) or ()) else []
    changed += _figure_9_changes(stored, record) if name == "figure-9" else []
    what_may = " and ".join(sorted(flag_of(key) for key in may_grow - {"epochs"}))
    advice = f"go on with the settings it began with ({what_may} may grow), or choose another --out"
    for key in WHAT:
        if key in changed:
            raise RequestError(f"the {WHAT[key]} is not what the {name} in {out} began with: restore it, or {advice}")
    if changed:
        key = min(changed)
        got, had = ("none" if values[key] is None else values[key] for values in (record, stored))
        raise RequestError(f"{flag_of(key)} got {got}, the {name} in {out} has {had}: {advice}")


def _figure_9_changes(stored: dict[str, Any], record: dict[str, Any]) -> list[str]:
    """Those of the settings that may grow which lack something that they had."""
    before, now = (dict(zip(c["labels"], c["epochs"], strict=True)) for c in (stored, record))
    changed = [] if before.keys() <= now.keys() else ["labels"]
    changed += ["epochs"] if any(now.get(share, epochs) != epochs for share, epochs in before.items()) else []
    return changed + ([] if set(stored["blocks"]) <= set(record["blocks"]) else ["blocks"])
