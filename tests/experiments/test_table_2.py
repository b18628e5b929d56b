"""Table 2: the paper's figures, speed-ups of rows of the same round, times measured alone."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from openmae.config import ExperimentConfig
from openmae.errors import RequestError
from openmae.experiments.experiment import experiment
from openmae.experiments.plan import plan_experiment
from openmae.experiments.results.plain_report import plain_report
from openmae.experiments.start import CHANGES_TIMES, MAY_CHANGE, check_same
from openmae.experiments.studies.study import Measured, RowResult
from openmae.experiments.studies.table_2 import PAPER, with_hours_and_speedups
from openmae.experiments.trials.speed import num_warm_up, speed_of
from openmae.machine.device import num_cores

ROWS = ["L mask tokens 8 blocks", "L 8 blocks", "L 1 block", "H mask tokens 8 blocks", "H 8 blocks", "H 1 block"]
PAPER_MD = Path(__file__).parents[2] / "docs" / "paper.md"


def config(out, **changes):
    settings = {"name": "table-2", "data": "embedded:digits", "scale": "tiny", "device": "cpu"}
    return ExperimentConfig(out=str(out), **{**settings, **changes})


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return plan_experiment(config(tmp_path_factory.mktemp("plan") / "table-2"))


def made_rows(plan, speeds, waits=0.0):
    """The rows with the speed of each round: None where a row lacks that round."""
    rows = []
    for row, of_rounds in zip(plan.study.rows, speeds, strict=True):
        kept = [(number, value) for number, value in enumerate(of_rounds) if value is not None]
        details = {
            "round": tuple(number for number, _ in kept),
            "data_wait": (waits,) * len(kept),
            "memory": (2**30,) * len(kept),
        }
        protocols = (
            {"speed": Measured(tuple(value for _, value in kept), None, details, is_median=True)} if kept else {}
        )
        cost = {"gflop_an_image": plan.flops[row.name] / 1e9}
        rows.append(RowResult(row, {}, protocols, cost))
    return rows


def test_the_paper_s_figures():
    """Those of docs/paper.md, in its order."""
    section = PAPER_MD.read_text(encoding="utf-8").partition("### Table 2")[2]
    lines = [line.split("|")[1:-1] for line in section.splitlines() if re.match(r"\| [LH]\b", line)]
    told = []
    for encoder, blocks, _, hours, speedup in lines:
        number = re.match(r" ([\d.]+)×", speedup)
        told.append(
            (
                encoder.split()[0].strip(","),
                "mask tokens" in encoder,
                int(blocks),
                float(re.match(r" ([\d.]+)", hours)[1]),
                None if number is None else float(number[1]),
            )
        )
    assert told == [(model, *row) for model, rows in PAPER.items() for row in rows]


def test_its_rows(plan):
    assert [row.name for row in plan.study.rows] == ROWS
    settings = [dict(row.changes) for row in plan.study.rows]
    assert [s["decoder_depth"] for s in settings] == [8, 8, 1] * 2
    assert [s.get("mask_tokens_in_encoder", False) for s in settings] == [True, False, False] * 2
    assert [s["width"] for s in settings] == [32] * 3 + [48] * 3
    assert {s["decoder_width"] for s in settings} == {16}, "one width for both sizes, as in the paper"
    assert {s["log_every"] for s in settings} == {1}


def test_rounds_take_turns(tmp_path):
    """Every row is measured three times, all rows of a round one after another, one process at a time."""
    plan = plan_experiment(config(tmp_path, scale="laptop"))
    assert [(trial.seed, trial.row) for trial in plan.trials] == [(n, row) for n in range(3) for row in ROWS]
    assert plan.resources.jobs == 1
    assert plan.config.threads == num_cores()
    assert plan_experiment(config(tmp_path, threads=1)).config.threads == 1
    five = plan_experiment(config(tmp_path, seeds=5, steps=3))
    assert len(five.trials) == 30
    assert {trial.stages[0].settings["steps"] for trial in five.trials} == {3}


def test_the_speed_of_a_run():
    """The median over the steps behind the warm-up; lines of evaluations are none of them."""
    lines = [
        {"step": n, "images_per_second": value, "data_wait": value / 1000, "memory": 100 - n}
        for n, value in enumerate((1.0, 2.0, 30.0, 10.0, 20.0, 40.0, 50.0, 1000.0))
    ]
    assert speed_of([*lines, {"step": 8, "held_out_loss": 1.0}]) == {"value": 35.0, "data_wait": 0.035, "memory": 100}
    assert [num_warm_up(steps) for steps in (1, 2, 8, 60)] == [0, 1, 2, 15]
    assert speed_of(lines[2:3])["value"] == 30, "of a single step there is no other"


def test_speed_ups_are_of_the_same_round(plan):
    """A slow round slows all of its rows: 2.5, 3 and 4 times, though the rows alone spread by ten."""
    speeds = [(10, 100, None, 20), (25, 300, 70, 80), (None, 350, 70, None), (), (5.0,), (7.0,)]
    rows = {row.row.name: row for row in with_hours_and_speedups(made_rows(plan, speeds), count=9000)}
    with_tokens, deep, shallow = (rows[name] for name in ROWS[:3])
    assert "speedup" not in with_tokens.protocols
    assert deep.protocols["speedup"].values == (2.5, 3.0, 4.0)
    assert deep.protocols["speedup"].details["round"] == (0, 1, 3)
    assert deep.protocols["speedup"].centre == 3.0
    assert deep.protocols["speedup"].paper == 2.8
    assert shallow.protocols["speedup"].values == (3.5,)
    assert with_tokens.protocols["hours"].values[0] == pytest.approx(800 * 9000 / 10 / 3600)
    assert with_tokens.protocols["hours"].paper == 42.4
    assert "speedup" not in rows["H 8 blocks"].protocols, "its row with mask tokens has no round yet"
    assert rows["H 8 blocks"].protocols["hours"].values == (pytest.approx(400.0),)
    assert "speed" not in rows["H mask tokens 8 blocks"].protocols


def test_what_results_md_says(plan):
    speeds = [(10, 11, 12), (25, 30, 30), (40, 40, 44), (5, 5, 5), (20, 20, 20), (25, 25, 25)]
    rows = with_hours_and_speedups(made_rows(plan, speeds, waits=0.02), plan.setup.count)
    text = plain_report(plan.study, rows, plan.budget)
    assert "| decoder of 8 blocks | 15.4 |" in text
    assert "| 2.8 | 2.5 (2.5 to 2.7) | 30.0 (25.0 to 30.0) |" in text
    assert "Δ" not in text
    assert "Spearman's rank correlation with the paper is 1.00 over 6 rows" in text, "hours"
    assert "at most 2% of a row's time" in text
    assert "extrapolated" in text
    assert "1.00×; decoder of 8 blocks" in text, "FLOPs beside memory"
    slow = plain_report(plan.study, made_rows(plan, speeds, waits=0.3), plan.budget)
    assert "**Data holds rows back**" in slow
    assert "L 1 block 30%" in slow


def test_the_picture(plan, tmp_path):
    speeds = [(10, 11, 12), (25, 30, 30), (40, 40, 44), (5, 5, 5), (20, 20, 20), (25, 25, 25)]
    rows = with_hours_and_speedups(made_rows(plan, speeds), 100)
    plan.study.draw(tmp_path / "none.png", rows[:1], [])
    assert not (tmp_path / "none.png").exists()
    plan.study.draw(tmp_path / "table-2.png", rows, [])
    with Image.open(tmp_path / "table-2.png") as picture:
        assert picture.width > 400


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"jobs": 2}, "--jobs got 2, and table-2 times its rows one at a time, on one device"),
        ({"device": ("cuda:0", "cuda:1")}, "--device got 2 devices, and table-2 times"),
        ({"epochs": (3.0,)}, "--epochs is not for table-2"),
        ({"width": 64}, "--width is not for table-2"),
        ({"label_file": "x.csv"}, "--label-file is not for table-2, which needs no labels"),
    ],
)
def test_what_is_refused(setting, why, tmp_path):
    with pytest.raises(RequestError, match=re.escape(why)) as refused:
        config(tmp_path, **setting)
    assert refused.value.exit_code == 2
    assert config(tmp_path, jobs=1).jobs == 1


def test_going_on_elsewhere_is_refused(tmp_path):
    """Times of two devices are not of one table."""
    stored = {"device": "cuda", "workers": None, "jobs": 1, "data_fingerprint": "a", "seeds": 1}
    with pytest.raises(RequestError, match=r"--device got cpu, the table-2 in .* has cuda"):
        check_same("table-2", tmp_path, stored, {**stored, "device": "cpu"}, MAY_CHANGE - CHANGES_TIMES)
    check_same("figure-6", tmp_path, stored, {**stored, "device": "cpu"}, MAY_CHANGE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_on_unlabelled_images(gradients, tmp_path):
    out = tmp_path / "table-2"
    found = experiment(config(out, data=str(gradients), batch_size=8, steps=4))
    assert found == json.loads((out / "results.json").read_text())
    assert [row["row"] for row in found["rows"]] == ROWS
    for row, paper in zip(found["rows"], [row for rows in PAPER.values() for row in rows], strict=True):
        protocols = row["protocols"]
        assert protocols["hours"]["paper"] == paper[2]
        assert protocols["hours"]["values"] == [
            pytest.approx(800 * 24 / protocols["speed"]["values"][0] / 3600, rel=0.1)
        ]
        assert ("speedup" in protocols) == (paper[3] is not None)
        if paper[3] is not None:
            assert protocols["speedup"]["paper"] == paper[3]
            assert protocols["speedup"]["round"] == [0]
        assert protocols["speed"]["memory"][0] > 0
        assert 0 <= protocols["speed"]["data_wait"][0] <= 1
    assert (out / "table-2.png").exists()
    assert not list(out.rglob("checkpoints")), "timed models are not kept"
    assert "paper: ViT-H" in (out / "results.md").read_text()
