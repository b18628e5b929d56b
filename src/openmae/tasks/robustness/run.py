"""The run folder of `openmae robustness`: checks, finished parts for resuming, result files."""

import csv
import json
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from openmae.config import Preprocessing, flag_of
from openmae.config.robustness import RobustnessConfig
from openmae.errors import RequestError
from openmae.machine.files import atomic_write, disk_faults, write_json
from openmae.preflight.evaluation import ROWS_FILE
from openmae.run.create import create_run
from openmae.run.quarantine import write_quarantine
from openmae.tasks.robustness.report import EvaluationSet, Row
from openmae.training.telemetry import read_lines


def finished_rows(run: Path, settings: dict[str, Any], sets: list[EvaluationSet]) -> dict[str, Row]:
    """The rows of an earlier start, by part.

    Raises:
        RequestError: they are of another model or other settings, or of parts that are not requested now.
    """
    rows = {}
    for line in read_lines(run / ROWS_FILE):
        with suppress(TypeError):
            row = Row.from_dict(line)
            rows[row.part] = row
    names = {part.name for image_set in sets for part in image_set.parts}
    for row in rows.values():
        for name, value in settings.items():
            previous = row.settings.get(name)
            if previous != value:
                what = "another --init" if name == "model" else f"{flag_of(name)} {previous}, not {value}"
                raise RequestError(f"the run in {run} has {what}: start another with a new --out")
        if row.part not in names:
            raise RequestError(f"the run in {run} has measured {row.part}: give that set too, or choose another --out")
    return rows


def start_run(
    run: Path, config: RobustnessConfig, preprocessing: Preprocessing, finished: dict[str, Row], lock: ExitStack
) -> None:
    """Create the run folder and lock it until `lock` is closed."""
    create_run(run, {**config.to_dict(), "preprocessing": preprocessing.to_dict()}, lock)
    with disk_faults(run):
        write_rows(run, list(finished.values()))  # without a last line that a crash truncated


def write_rows(run: Path, rows: list[Row]) -> None:
    """Rewrite the rows of all finished parts."""
    with atomic_write(run / ROWS_FILE) as partial:
        partial.write_text("".join(json.dumps(row.to_dict()) + "\n" for row in rows))


def add_row(run: Path, row: Row) -> None:
    """Append the row of a finished part."""
    path = run / ROWS_FILE
    with disk_faults(path, is_resumable=True), path.open("a") as file:
        file.write(json.dumps(row.to_dict()) + "\n")


def finish_run(run: Path, sets: list[EvaluationSet], rows: dict[str, Row], summary: dict[str, Any]) -> None:
    """Write robustness.csv, quarantine.jsonl and summary.json, which says that the run is complete."""
    bad = {name: reason for row in rows.values() for name, reason in row.bad.items()}
    with disk_faults(run, is_resumable=True):
        with atomic_write(run / "robustness.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["set", "corruption", "severity", "images", "unreadable", "error"])
            for image_set in sets:
                for part in image_set.parts:
                    row = rows[part.name]
                    cells = (image_set.variant.title, part.corruption or "", part.severity or "")
                    writer.writerow([*cells, row.images, len(row.bad), 100 * row.error])
        write_quarantine(run, ((name, reason, None) for name, reason in bad.items()))
        write_json(run / "summary.json", summary)  # last: a run that says complete is
