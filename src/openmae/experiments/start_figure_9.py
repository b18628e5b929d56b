"""Starting an experiment, or continuing one: rows that are finished must be of the same settings."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from openmae.config import ExperimentConfig, flag_of
from openmae.errors import RequestError
from openmae.machine.files import disk_faults, write_json
from openmae.preflight.experiment import check_folder_and_labels
from openmae.run.create import make_and_lock

MAY_CHANGE = {"device", "workers", "out"}
MAY_GROW = {"labels", "epochs", "blocks"}


def create_experiment(out: Path, config: ExperimentConfig, fingerprint: str, encoder: str, lock: ExitStack) -> None:
    """Check what a previous start left in OUT, lock it until `lock` is closed, and write OUT/config.json.

    Args:
        fingerprint: of the data.
        encoder: a hash of the encoder's weights.

    Raises:
        RequestError: the folder holds something else, or rows of other settings, data or weights, or another
            program writes into it.
    """
    check_folder_and_labels(config, out)
    record = json.loads(json.dumps({**config.to_dict(), "data_fingerprint": fingerprint, "encoder": encoder}))
    if out.exists() and any(out.iterdir()):
        try:
            stored = {
                "value_range": None,
                "axes": None,
                "nodata": None,
                **json.loads((out / "config.json").read_bytes()),
            }
            if stored["name"] != config.name:
                raise ValueError
            epochs = dict(zip(stored["labels"], stored["epochs"], strict=True))
            blocks = set(stored["blocks"])
        except (OSError, ValueError, KeyError, TypeError):
            raise RequestError(f"{out} holds no {config.name}: choose another --out") from None
        now = dict(zip(config.labels, config.epochs, strict=True))
        changed = [n for n in record.keys() - MAY_CHANGE - MAY_GROW if record[n] != stored.get(n, record[n])]
        changed += [] if epochs.keys() <= now.keys() else ["labels"]
        changed += ["epochs"] if any(now.get(share, value) != value for share, value in epochs.items()) else []
        changed += [] if blocks <= set(config.blocks) else ["blocks"]
        advice = "go on with the settings it began with (--labels and --blocks may be added), or choose another --out"
        if {"data_fingerprint", "encoder"} & set(changed):
            what = "data" if "data_fingerprint" in changed else "encoder"
            raise RequestError(f"the {what} is not what the {config.name} in {out} began with: restore it, or {advice}")
        if changed:
            name = min(changed)
            raise RequestError(
                f"{flag_of(name)} got {record[name]}, the {config.name} in {out} has {stored[name]}: {advice}"
            )
    make_and_lock(out, lock)
    with disk_faults(out):
        write_json(out / "config.json", record)


def read_finished_rows(path: Path) -> dict[str, Any]:
    """The results that are finished already. Raises RequestError where the file cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RequestError(f"{path} cannot be read ({error}): remove it to begin the table again") from None
