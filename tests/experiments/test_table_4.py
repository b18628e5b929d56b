"""Table 4: the paper's figures, its plan, what is refused, and one whole experiment with real processes."""

import json
import re
import shlex
from pathlib import Path

import pytest

from openmae.cli import parse, resolve_config
from openmae.config import DetectConfig
from openmae.errors import RequestError
from openmae.experiments.experiment import experiment
from openmae.experiments.plan import plan_experiment
from openmae.experiments.studies.transfer import PAPER

from ..objects import write_objects
from .test_table_5 import config as config_of_table_5

PAPER_MD = Path(__file__).parents[2] / "docs" / "paper.md"
pytestmark = pytest.mark.timeout(500)  # real processes, which a busy machine makes wait


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    return str(write_objects(tmp_path_factory.mktemp("data") / "objects", train=16, val=4, side=32))


def config(out, data, **changes):
    return config_of_table_5(out, data, **{"name": "table-4", **changes})


def test_the_papers_figures():
    """Those of docs/paper.md, for B and L."""
    part = PAPER_MD.read_text(encoding="utf-8").partition("| table 4:")[2].partition("| table 5:")[0]
    told = {"box_ap": {}, "mask_ap": {}}
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and re.match(r"[\d.]+, [\d.]+$", cells[1]):
            name = re.sub(r"\W", "", cells[0]).lower()
            for protocol, cell in zip(told, cells[1:], strict=True):
                told[protocol][name] = tuple(float(number) for number in cell.split(", "))
    assert told == {name: PAPER[name] for name in told}


def test_its_plan(objects, tmp_path):
    """Every row has the same budget and rates; those that choose are no images that are measured."""
    plan = plan_experiment(config(tmp_path, objects))
    assert [row.name for row in plan.study.rows] == ["MAE", "random init"]
    assert plan.study.protocols == ("box_ap", "mask_ap")
    by_row = {trial.row: trial.stages for trial in plan.trials}
    assert [stage.kind for stage in by_row["MAE"]] == ["pretrain", "detect"]
    assert [stage.kind for stage in by_row["random init"]] == ["detect"]
    own = {"init", "width", "depth", "num_heads", "patch_size", "channels"}
    mae, scratch = ({k: v for k, v in s[-1].settings.items() if k not in own} for s in by_row.values())
    assert mae == scratch
    assert (mae["report"], mae["image_size"]) == ("held-out", 32)
    assert by_row["MAE"][0].settings["train"] == f"{objects}/images/train"
    found = plan.data.transfers["detect"]
    assert (found.num_test, found.final_split, found.chosen_on) == (4, "val", "a split of train")
    assert plan.study.rows[0].paper == {"box_ap": 50.3, "mask_ap": 44.9}


def test_boxes_alone(tmp_path):
    data = str(write_objects(tmp_path / "data", train=8, val=4, side=32, with_masks=False))
    plan = plan_experiment(config(tmp_path / "out", data))
    assert plan.study.protocols == ("box_ap",)
    assert {trial.stages[-1].protocols for trial in plan.trials} == {("box_ap",)}


def test_what_is_refused(objects, tmp_path):
    with pytest.raises(RequestError, match="--label-file is not for table-4, which measures by objects"):
        config(tmp_path, objects, label_file="labels.csv")
    with pytest.raises(RequestError, match="--palette is about masks, which table-4 has none of"):
        config(tmp_path, objects, palette="colours.txt")
    only_train = str(write_objects(tmp_path / "data", train=8, val=1, side=32))
    (tmp_path / "data" / "instances_val.json").unlink()
    with pytest.raises(RequestError, match="neither a test nor a val part with objects in COCO's JSON"):
        plan_experiment(config(tmp_path / "out", only_train))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_paper_scale_prints_commands_that_can_be_typed(objects, tmp_path, capsys):
    assert experiment(config(tmp_path / "out", objects, scale="paper"))["rows"] == []
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("openmae ")]
    assert [line.split()[1] for line in lines] == ["pretrain", "detect", "detect", "detect", "pretrain", "detect"]
    configs = [resolve_config(parse(shlex.split(line)[1:])) for line in lines]
    recipes = [one.recipe for one in configs if isinstance(one, DetectConfig)]
    assert recipes == ["coco-base", "coco-base", "coco-large", "coco-large"]


@pytest.mark.slow
def test_the_whole_experiment(objects, tmp_path):
    """Real processes."""
    out = tmp_path / "out"
    found = experiment(config(out, objects, base_lr=(3.2e-2,)))
    assert found == json.loads((out / "results.json").read_text())
    for row in found["rows"]:
        for name in ("box_ap", "mask_ap"):
            measured = row["protocols"][name]
            assert 0 <= measured["values"][0] <= 100
            assert measured["base_lr"] == [3.2e-2]
    text = (out / "results.md").read_text()
    assert "| detection, box AP, %: paper | ours" in text
    assert "it sees no objects" in text
    assert (out / "table-4.png").stat().st_size > 1000
