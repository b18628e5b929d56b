"""Table 7: the paper's figures, which DATA fills which column, what is refused."""

import re
from pathlib import Path

import pytest

from openmae.errors import RequestError
from openmae.experiments.plan import plan_experiment
from openmae.experiments.studies.transfer import PAPER_TARGETS

from ..objects import write_objects
from .test_experiments import noise_images
from .test_table_5 import config, write_scenes

PAPER_MD = Path(__file__).parents[2] / "docs" / "paper.md"
NAMES = {"pixels": "pixel", "normalised pixels": "norm-pixel", "dVAE tokens": "token"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with labels, one with masks and one with objects, all of colour images."""
    root = tmp_path_factory.mktemp("data")
    masked = write_scenes(root / "masked", {"train": 12, "val": 3, "test": 3})
    return noise_images(root / "labelled"), masked, str(write_objects(root / "objects", train=12, val=4, side=32))


def planned(out, *data, **changes):
    return plan_experiment(config(out, tuple(data), name="table-7", **changes))


def test_the_papers_figures():
    part = PAPER_MD.read_text(encoding="utf-8").partition("| table 7:")[2]
    told = {}
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0] in NAMES:
            columns = [tuple(float(number) for number in re.findall(r"[\d.]+", cell))[:2] for cell in cells[1:]]
            told[NAMES[cells[0]]] = dict(zip(("finetune", "box_ap", "miou"), columns, strict=True))
    assert told == PAPER_TARGETS


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_content_says_which_column(data, tmp_path, order):
    plan = planned(tmp_path, *(data[number] for number in order))
    assert plan.study.protocols == ("finetune", "miou")
    assert [row.name for row in plan.study.rows] == ["default", "norm-pixel", "token"]
    for trial in plan.trials:
        by_kind = {stage.kind: stage.settings for stage in trial.stages}
        assert list(by_kind) == ["tokenizer"] * (trial.row == "token") + ["pretrain", "finetune", "segment"]
        assert by_kind["pretrain"]["data"] == by_kind["finetune"]["data"] == data[0]
        assert by_kind["segment"]["data"] == data[1]
    assert plan.data.transfers["segment"].chosen_on == "val"
    assert plan.study.rows[0].paper == {"finetune": 83.3, "miou": 48.0}


@pytest.mark.parametrize(("number", "protocols"), [(0, ("finetune",)), (1, ("miou",))])
def test_one_alone_has_its_column(data, tmp_path, number, protocols):
    plan = planned(tmp_path, data[number])
    assert plan.study.protocols == protocols
    last = plan.trials[-1].stages
    assert [stage.kind for stage in last] == ["tokenizer", "pretrain", "segment" if number else "finetune"]
    if number:
        assert {stage.settings["train"] for stage in last[:2]} == {f"{data[1]}/images/train"}
        assert "on the training images of the DATA with masks" in plan.report([], is_last=False)


def test_what_is_refused(data, tmp_path):
    with pytest.raises(RequestError, match="both have masks: table-7 takes one with a class an image, one with"):
        planned(tmp_path / "out", data[1], write_scenes(tmp_path / "more", {"train": 4, "val": 2}))
    with pytest.raises(RequestError, match="twice"):
        planned(tmp_path / "out", data[1], data[1])
    with pytest.raises(RequestError, match="--base-lr would be that of 3 columns"):
        planned(tmp_path / "out", *data, base_lr=(0.1,))
    with pytest.raises(RequestError, match="takes one with labels, one with masks and one with objects"):
        planned(tmp_path / "out", *data, "fourth")


def test_all_three(data, tmp_path):
    plan = planned(tmp_path, data[2], data[0], data[1])
    assert plan.study.protocols == ("finetune", "box_ap", "mask_ap", "miou")
    for trial in plan.trials:
        by_kind = {stage.kind: stage.settings for stage in trial.stages}
        assert list(by_kind)[-3:] == ["finetune", "detect", "segment"]
        assert by_kind["detect"]["data"] == data[2]
        assert by_kind["pretrain"]["data"] == data[0]
    assert plan.study.rows[0].paper == {"finetune": 83.3, "miou": 48.0, "box_ap": 49.5}


def test_objects_alone(data, tmp_path):
    plan = planned(tmp_path, data[2])
    assert plan.study.protocols == ("box_ap", "mask_ap")
    assert plan.trials[0].stages[0].settings["train"] == f"{data[2]}/images/train"
    assert "Not measured here, for no DATA is of their kind: ADE20K, ImageNet-1K" in plan.report([], is_last=False)
