"""The results of an experiment: results.json, results.md and a picture, rewritten after every trial."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openmae.experiments.studies.study import TIMES, Measured, Row, RowResult, Study
from openmae.experiments.trials.side_by_side import Job
from openmae.experiments.trials.trial import read_result
from openmae.machine.files import disk_faults, write_json

COSTS = (
    *("seconds", "images_per_second", "tokenizer_seconds"),
    *("finetune_seconds", "segment_seconds", "detect_seconds"),
)
NOT_SETTINGS = {"data", "train", "val", "test", "evaluate_every", "picture_every", "compile"}


def collect(
    study: Study, settings: Mapping[str, dict[str, Any]], jobs: Sequence[Job], flops: Mapping[str, float]
) -> list[RowResult]:
    """The rows of which something is known, in the order of the study.

    Args:
        settings: of each row, by its name.
        flops: of each row's training for an image, by the row's name; none of rows that are not pre-trained.
    """
    rows = []
    for row in study.rows:
        own = [job for job in jobs if job.trial.row == row.name]
        found = [read_result(job.folder, job.trial) for job in own if job.state == "done"]
        failed = next((job.why for job in own if job.state == "failed"), "")
        if found or failed:
            protocols = {name: _measured(name, row, found) for name in study.protocols_of(row)}
            rows.append(
                RowResult(
                    row,
                    {name: value for name, value in settings[row.name].items() if value is not None},
                    {name: measured for name, measured in protocols.items() if measured.values},
                    _cost(found, flops.get(row.name), flops.get(study.baseline)),
                    failed,
                )
            )
    return rows if study.derive is None else study.derive(rows)


def _measured(name: str, row: Row, found: Sequence[dict[str, Any]]) -> Measured:
    of_seeds = [result["protocols"][name] for result in found if name in result["protocols"]]
    details = {key: tuple(values[key] for values in of_seeds) for key in (of_seeds[0] if of_seeds else {})}
    return Measured(details.pop("value", ()), row.paper.get(name), details, name in TIMES)


def _cost(found: Sequence[dict[str, Any]], flops: float | None, default_flops: float | None) -> dict[str, Any]:
    """FLOPs of training and what it took, a value of each seed."""
    lists: dict[str, Any] = {}
    for name in COSTS:
        if values := [result["cost"][name] for result in found if result.get("cost", {}).get(name) is not None]:
            lists[name] = values
    if flops is None:
        return lists
    to_default = {} if default_flops is None else {"flops_to_default": round(flops / default_flops, 3)}
    return {"gflop_an_image": round(flops / 1e9, 6), **to_default, **lists}


def stored_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A row's settings as results.json holds them: without what names data or only says how it is watched."""
    kept = {name: value for name, value in settings.items() if name not in NOT_SETTINGS and value is not None}
    return json.loads(json.dumps(kept))


def write_results(out: Path, study: Study, scale: str | None, rows: Sequence[RowResult]) -> dict[str, Any]:
    """Write OUT/results.json; return what it holds."""
    results = {"experiment": study.name, "scale": scale, "rows": [row.to_dict() for row in rows]}
    with disk_faults(out):
        write_json(out / "results.json", results)
    return results
