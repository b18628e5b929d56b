"""Figure 6: the rows of table 1f, images that were not trained on, and the sheet of three models."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmae.config import ExperimentConfig, PretrainConfig
from openmae.errors import RequestError
from openmae.experiments.experiment import experiment
from openmae.experiments.plan import plan_experiment
from openmae.experiments.results.plain_report import plain_report
from openmae.experiments.studies.figure_6 import SAMPLINGS, draw_samplings, figure_6, held_out_losses
from openmae.experiments.studies.study import Measured, RowResult
from openmae.experiments.trials.side_by_side import check_rows, prepare
from openmae.experiments.trials.trial import OWN_MODEL, RESULT, TRIAL
from openmae.experiments.trials.unseen import RECONSTRUCTED, reconstruct_unseen, unseen_images
from openmae.tasks.pretrain.data import open_training_data


def config(out, **changes):
    settings = {"name": "figure-6", "data": "embedded:digits", "scale": "tiny", "device": "cpu"}
    return ExperimentConfig(out=str(out), **{**settings, **changes})


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return plan_experiment(config(tmp_path_factory.mktemp("plan") / "figure-6"))


def test_its_rows_are_those_of_table_1f(plan, tmp_path):
    table = plan_experiment(config(tmp_path / "table", name="table-1f"))
    own = {trial.row: trial.stages for trial in plan.trials}
    others = {trial.row: trial.stages for trial in table.trials}
    assert list(own) == ["default", "block 50", "grid 75"]
    for row, stages in own.items():
        assert [stage.kind for stage in stages] == ["pretrain", "reconstruct"]
        assert stages[0].settings == others[row][0].settings, "so that the pre-training is the same"
        assert stages[1].settings["init"] == OWN_MODEL


def test_a_pre_training_of_table_1f_is_taken(plan, tmp_path):
    """Its runs stay, what the trial came to is found anew; other settings of what both do are refused."""
    table = plan_experiment(config(tmp_path / "table", name="table-1f"))
    prepare(tmp_path, table.trials)
    folder = tmp_path / "runs" / "block-50" / "seed-0"
    (folder / "pretrain").mkdir()
    (folder / RESULT).write_text('{"protocols": {}}')
    jobs = {job.trial.row: job for job in prepare(tmp_path, plan.trials)}
    assert jobs["block 50"].folder == folder
    assert jobs["block 50"].state == "waiting"
    assert (folder / "pretrain").is_dir()
    assert json.loads((folder / TRIAL).read_text()) == jobs["block 50"].trial.to_dict()
    longer = plan_experiment(config(tmp_path / "other", steps=9))
    with pytest.raises(RequestError, match="pretrain: steps was 8 and is 9"):
        check_rows(tmp_path, longer.trials)


def test_one_seed_unless_asked(tmp_path):
    """The default row is not repeated: nothing is compared with it."""
    many = plan_experiment(config(tmp_path / "out", scale="laptop"))
    assert [trial.seed for trial in many.trials] == [0, 0, 0]
    many = plan_experiment(config(tmp_path / "out", scale="laptop", seeds=2))
    assert [trial.seed for trial in many.trials] == [0, 0, 0, 1, 1, 1]


def test_images_that_were_not_trained_on(gradients, tmp_path):
    """DATA's test part; without one its val part; else what pre-training holds out."""
    whole = PretrainConfig(data=str(gradients), out=str(tmp_path / "run"))
    source, what = unseen_images(whole, open_training_data(whole))
    assert (len(source), what) == (1, "held out of train"), "a twentieth of 24"
    parts = {name: str(gradients) for name in ("train", "val", "test")}
    for names, expected in ((("train", "val", "test"), "test"), (("train", "val"), "val")):
        split = PretrainConfig(**{name: parts[name] for name in names}, out=str(tmp_path / "run"))
        source, what = unseen_images(split, open_training_data(split))
        assert what == expected
        assert len(source) == 24


def test_too_few_images_are_refused(gradients, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(gradients.iterdir())[:9]:
        (few / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RequestError, match="images that were not trained on: give a val or test part"):
        plan_experiment(config(tmp_path / "out", data=str(few)))


@pytest.mark.parametrize(
    "setting", [{"labels": ("10%",)}, {"label_file": "x.csv"}, {"held_out": 9}, {"base_lr": (1.0,)}]
)
def test_settings_of_labels_are_refused(setting, tmp_path):
    with pytest.raises(RequestError, match="not for figure-6, which needs no labels"):
        config(tmp_path, **setting)


def is_grey(images):
    """Which 2 x 2 patches of (B, 1, 8, 8) images are hidden, (B, 1, 4, 4)."""
    return (images.reshape(-1, 1, 4, 2, 4, 2) == 128).all(axis=(3, 5))


def test_a_model_draws_what_it_has_not_seen(pixel_run, tmp_path):
    data = PretrainConfig(data="embedded:digits", out=str(tmp_path / "run"), device="cpu")
    value = reconstruct_unseen(str(pixel_run), data, tmp_path / RECONSTRUCTED)
    with np.load(tmp_path / RECONSTRUCTED) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    assert {name: images.shape for name, images in kept.items()} == dict.fromkeys(
        ("truth", "masked", "prediction"), (8, 1, 8, 8)
    )
    is_masked = np.repeat(np.repeat(is_grey(kept["masked"]), 2, axis=2), 2, axis=3)
    assert 0.75 <= is_masked.mean() < 0.85, "12 of 16 patches, and what is as grey by chance"
    assert (kept["prediction"] == kept["truth"])[~is_masked].all(), "visible patches are pasted"
    error = (kept["prediction"] / 255 - kept["truth"] / 255)[is_masked] ** 2
    assert value == pytest.approx(-10 * np.log10(error.mean()), abs=0.5), "PSNR is of masked pixels"


def drawn(folder, grey):
    """A finished trial's folder, with what was drawn of one image."""
    folder.mkdir(parents=True)
    images = np.full((3, 1, 8, 8), grey, np.uint8)
    np.savez_compressed(folder / RECONSTRUCTED, truth=images, masked=images + 1, prediction=images + 2)
    return folder


def test_the_sheet_has_two_columns_a_sampling(tmp_path):
    folders = {"default": drawn(tmp_path / "a", grey=10), "block 50": drawn(tmp_path / "b", grey=20)}
    draw_samplings(tmp_path / "sheet.png", [], folders)
    with Image.open(tmp_path / "sheet.png") as picture:
        greys = np.asarray(picture.convert("L"))
    assert {10, 11, 12, 21, 22} <= set(np.unique(greys))
    draw_samplings(tmp_path / "none.png", [], {})
    assert not (tmp_path / "none.png").exists()


def test_what_results_md_says(plan):
    setup = plan.setup
    study = figure_6("figure-6", setup)
    rows = [
        RowResult(
            row, {}, {"psnr": Measured((20.0 + n,), None, {"held_out_loss": (0.5 + n,)})}, {"flops_to_default": 1.0}
        )
        for n, row in enumerate(study.rows)
    ]
    assert held_out_losses(rows) == [
        "Held-out loss, on masked patches of normalised images: random, 75 % 0.5000; block, 50 % 1.5000; "
        "grid, 75 % 2.5000."
    ]
    text = plain_report(study, rows, plan.budget)
    assert "| grid, 75 % | 22.0 |" in text
    assert "tasks of different difficulty" in text
    assert "Δ" not in text, "they are not compared with the default row"
    assert "disagrees" not in text.lower()
    without = [replace(row, protocols={}) for row in rows]
    assert held_out_losses(without) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_on_unlabelled_images(gradients, tmp_path):
    out = tmp_path / "figure-6"
    found = experiment(config(out, data=str(gradients), jobs=2))
    assert found == json.loads((out / "results.json").read_text())
    assert [row["row"] for row in found["rows"]] == list(SAMPLINGS)
    for row in found["rows"]:
        assert row["protocols"].keys() == {"psnr"}
        psnr = row["protocols"]["psnr"]
        assert psnr["paper"] is None
        assert len(psnr["values"]) == len(psnr["held_out_loss"]) == 1
        assert 0 < psnr["values"][0] < 60
    text = (out / "results.md").read_text()
    assert text.startswith("# Figure 6")
    assert "Visible patches are pasted" in text
    with Image.open(out / "figure-6.png") as picture:
        assert picture.width > 7 * 160
    finished = {path: path.stat().st_mtime_ns for path in Path(out / "runs").rglob("result.json")}
    assert experiment(config(out, data=str(gradients))) == found, "the same command has nothing left to do"
    assert {path: path.stat().st_mtime_ns for path in Path(out / "runs").rglob("result.json")} == finished
