"""Folders of figure 9 from before its rows were trials.

Their results.json is {"kNN 10%": [[top-1 of each seed], the chosen rate, top-1 on the split that it was chosen by]}.
"""

from collections.abc import Sequence
from pathlib import Path

from openmae.errors import RequestError
from openmae.experiments.studies.study import Study
from openmae.experiments.trials.trial import RESULT, TRIAL, Trial
from openmae.machine.files import disk_faults, write_json
from openmae.run.reader import read_json_object


def keep_old_results(out: Path, study: Study, trials: Sequence[Trial]) -> None:
    """Write trial.json and result.json of what such a folder finished; what it had begun is run anew.

    Raises:
        RequestError: its results cannot be read.
    """
    results, why = read_json_object(out / "results.json")
    if why and (out / "results.json").exists():
        raise RequestError(f"{out}: {why}: remove it to begin the table again")
    if "experiment" in results:
        return
    rows = {row.name: row for row in study.rows}
    for trial in trials:
        row, folder = rows[trial.row], out / "runs" / trial.folder
        values, rate, chosen_by = results.get(f"{row.label} {row.labels}", ([], None, None))
        if trial.seed >= len(values):
            continue
        found = {"value": values[trial.seed], "base_lr": rate, "chosen_by": chosen_by}
        protocols = {name: {key: v for key, v in found.items() if v is not None} for name in row.protocols or ()}
        with disk_faults(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / TRIAL, trial.to_dict())
            write_json(folder / RESULT, {"protocols": protocols, "cost": {}})
