"""results.json, to the letter of the surface."""

import json

import pytest

from openmae.experiments.results.results import collect, stored_settings, write_results
from openmae.experiments.studies.study import Measured, RowResult
from openmae.experiments.trials.side_by_side import Job
from openmae.experiments.trials.trial import RESULT, Trial

from .samples import DEFAULT_ROW, ODD, SMALL, TABLE, table_results


def test_the_file_holds_what_is_promised(tmp_path):
    found = write_results(tmp_path, TABLE, "tiny", table_results()[:1])
    assert json.loads((tmp_path / "results.json").read_text()) == found
    assert found == {
        "experiment": "table-9",
        "scale": "tiny",
        "rows": [
            {
                "row": "default",
                "settings": {"steps": 8},
                "protocols": {
                    "finetune": {"values": [69.0, 70.0, 71.0], "paper": 84.9},
                    "linear": {"values": [49.5, 50.0, 50.5], "paper": 73.5},
                    "knn": {"values": [40.0, 40.0, 40.0], "paper": None},
                },
                "cost": {"gflop_an_image": 0.5, "flops_to_default": 1.0, "seconds": [100.0]},
            }
        ],
    }
    assert list(found) == ["experiment", "scale", "rows"]
    assert list(found["rows"][0]) == ["row", "settings", "protocols", "cost"]


def test_details_stand_beside_the_values_and_a_failure_is_named():
    measured = Measured((70.0, 71.0), 84.9, {"base_lr": (0.01, 0.003)})
    found = RowResult(SMALL, {}, {"finetune": measured}, {}, "no memory").to_dict()
    tuned = {"values": [70.0, 71.0], "paper": 84.9, "base_lr": [0.01, 0.003]}
    assert found == {
        "row": "small",
        "settings": {},
        "protocols": {"finetune": tuned},
        "cost": {},
        "failed": "no memory",
    }


def test_the_spread_is_the_sample_standard_deviation():
    assert Measured((1.0, 2.0, 3.0, 4.0)).spread == pytest.approx((5 / 3) ** 0.5)
    assert Measured((1.0,)).spread is None


def job(tmp_path, row, seed, state, **found):
    trial = Trial(row=row.name, seed=seed, stages=())
    folder = tmp_path / trial.folder
    folder.mkdir(parents=True)
    if found:
        (folder / RESULT).write_text(json.dumps(found))
    return Job(trial, folder, state=state, why="why" if state == "failed" else "")


def test_trials_become_rows(tmp_path):
    tuned = [{"finetune": {"value": value, "base_lr": 0.01, "chosen_by": 60.0}} for value in (70.0, 71.0, 65.0)]
    jobs = [
        job(tmp_path, DEFAULT_ROW, 0, "done", protocols=tuned[0], cost={"seconds": 10.0, "images_per_second": None}),
        job(tmp_path, DEFAULT_ROW, 1, "done", protocols=tuned[1], cost={"seconds": 11.0, "images_per_second": 99.0}),
        job(tmp_path, SMALL, 0, "failed"),
        job(tmp_path, ODD, 0, "running"),
    ]
    settings = {name: {"steps": 8, "mask_ratio": None} for name in ("default", "small", "odd")}
    rows = collect(TABLE, settings, jobs, {"default": 2e9, "small": 1e9, "odd": 6.6e9})
    assert [row.row.name for row in rows] == ["default", "small"]
    assert rows[0].settings == {"steps": 8}
    details = {"base_lr": (0.01, 0.01), "chosen_by": (60.0, 60.0)}
    assert rows[0].protocols == {"finetune": Measured((70.0, 71.0), 84.9, details)}
    seconds = {"seconds": [10.0, 11.0], "images_per_second": [99.0]}
    assert rows[0].cost == {"gflop_an_image": 2.0, "flops_to_default": 1.0, **seconds}
    assert (rows[1].failed, rows[1].protocols, rows[1].cost["flops_to_default"]) == ("why", {}, 0.5)


def test_settings_are_kept_without_what_names_data():
    kept = stored_settings({"data": "x", "train": None, "steps": 8, "image_size": (8, 8), "compile": False, "k": None})
    assert kept == {"steps": 8, "image_size": [8, 8]}
