"""Table 5: the paper's figures, the rows of --also, what is refused, and one whole experiment with real processes."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from openmae.cli import parse, resolve_config
from openmae.cli import run as openmae_run
from openmae.config import ExperimentConfig, PretrainConfig, SegmentConfig
from openmae.config.named_init import named_inits, short_name
from openmae.data.masks.pairs import training_folder
from openmae.errors import RequestError
from openmae.experiments.experiment import experiment
from openmae.experiments.plan import plan_experiment
from openmae.experiments.start import MAY_CHANGE, check_same
from openmae.experiments.studies.transfer import PAPER, paper_figures
from openmae.experiments.transfer_setup import size_for
from openmae.experiments.trials import side_by_side
from openmae.tasks.pretrain.pretrain import pretrain

PAPER_MD = Path(__file__).parents[2] / "docs" / "paper.md"
pytestmark = pytest.mark.timeout(400)  # real processes, which a busy machine makes wait


def write_scenes(root, counts, side=24):
    """Dark grounds (0) with a light square (1) and a red edge below (2)."""
    for split, count in counts.items():
        chance = np.random.default_rng(len(split))
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            image = chance.integers(0, 90, (side, side, 3)).astype(np.uint8)
            labels = np.zeros((side, side), np.uint8)
            top, left = chance.integers(0, side - 10, 2)
            image[top : top + 10, left : left + 10], labels[top : top + 10, left : left + 10] = 220, 1
            image[-4:], labels[-4:] = (200, 20, 20), 2
            Image.fromarray(image).save(root / "images" / split / f"{number:02}.png")
            Image.fromarray(labels).save(root / "masks" / split / f"{number:02}.png")
    return str(root)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", {"train": 16, "val": 4})


@pytest.fixture(scope="module")
def other(scenes, tmp_path_factory):
    """A model of another width and of other patches, pre-trained for a step."""
    out = tmp_path_factory.mktemp("models") / "other"
    shape = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": 24}
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    settings = {"steps": 1, "batch_size": 4, "device": "cpu", "workers": 0, **shape, **decoder}
    pretrain(PretrainConfig(train=f"{scenes}/images/train", out=str(out), **settings))
    return str(out)


def config(out, data, **changes):
    settings = {"name": "table-5", "scale": "tiny", "device": "cpu", "jobs": 2, "data": data}
    return ExperimentConfig(out=str(out), **{**settings, **changes})


def test_the_papers_figures():
    """Those of docs/paper.md, for B and L."""
    part = PAPER_MD.read_text(encoding="utf-8").partition("| table 5:")[2].partition("| table 6:")[0]
    rows = {
        row[1]: (float(row[2]), float(row[3]))
        for row in re.finditer(r"^\| ([\w ]+) \| ([\d.]+) \| ([\d.]+) \|", part, re.M)
    }
    assert {re.sub(r"\W", "", name).lower(): figures for name, figures in rows.items()} == PAPER["miou"]
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("name", "figure"),
    [("MAE", 48.1), ("moco", 47.3), ("MoCo v3", 47.3), ("moco-v3", 47.3), ("BEiT", 47.1), ("supervised", 47.4)],
)
def test_usual_spellings(name, figure):
    assert paper_figures(name, 0, ("miou",)) == {"miou": figure}
    assert paper_figures(name + "x", 0, ("miou",)) == {}


def test_names_of_rows():
    found = named_inits(
        ("moco=runs/moco", "runs/lr=3/x", "timm:vit_base_patch16_224.mae", "hf:org/beit@main", "a/b.pth")
    )
    assert [(one.name, one.init) for one in found] == [
        ("moco", "runs/moco"),
        ("x", "runs/lr=3/x"),
        ("vit_base_patch16_224.mae", "timm:vit_base_patch16_224.mae"),
        ("beit", "hf:org/beit@main"),
        ("b", "a/b.pth"),
    ]


@given(st.lists(st.from_regex(r"[a-cA-C -]{1,3}", fullmatch=True), min_size=1, max_size=4))
def test_rows_have_folders_of_their_own(names):
    """What is taken has as many folders as rows, also where upper and lower case are one."""
    try:
        found = named_inits([f"{name}=run{number}" for number, name in enumerate(names)], ("MAE",))
    except RequestError:
        return
    assert len({one.name.replace(" ", "-").lower() for one in found}) == len(names)


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (("mae=x",), "a row is called 'mae' already"),
        (("random init=x",), "a row is called 'random init' already"),
        (("a/x", "b/x"), "a row is called 'x' already: write NAME=INIT"),
        (("one=x", "two=x"), "--also got x twice"),
        (("=x",), "its row cannot be called ''"),
        (("a?b=x",), "its row cannot be called 'a?b'"),
        (("..",), "its row cannot be called '..'"),
    ],
)
def test_what_no_row_can_be(tmp_path, also, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        config(tmp_path, "data", also=also)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table-5", "DATA", "--also", "nowhere"], "nowhere does not exist"),
        (["table-5", "DATA", "--also", "timm:a/b"], "names no model of timm"),
        (["table-5", "DATA", "--labels", "10%"], "--labels is not for table-5, which measures by masks"),
        (["table-5", "DATA", "DATA2"], "got 2 DATA, DATA DATA2, and table-5 takes one"),
        (["table-5", "embedded:digits"], "the images in the wheels have no masks"),
        (["table-1a", "embedded:digits", "--also", "x"], "--also is for table-4 and table-5, table-1a"),
        (["table-1a", "embedded:digits", "--reduce-zero-label"], "--reduce-zero-label is about masks"),
    ],
)
def test_what_is_refused(scenes, tmp_path, capsys, arguments, message):
    named = [scenes if word == "DATA" else word for word in arguments]
    assert (
        openmae_run(["experiment", *named, "--scale", "tiny", "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    )
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert message.replace("DATA ", f"{scenes} ") in told[0]
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_model_is_refused_before_anything_runs(scenes, tmp_path):
    (tmp_path / "bad").mkdir()
    with pytest.raises(RequestError, match=r"--also bad: "):
        experiment(config(tmp_path / "out", scenes, also=(str(tmp_path / "bad"),)))
    assert not (tmp_path / "out").exists()


def test_data_without_a_part_to_measure_on_is_refused(tmp_path):
    data = write_scenes(tmp_path / "data", {"train": 8})
    with pytest.raises(RequestError, match="neither a test nor a val part with masks: make one"):
        plan_experiment(config(tmp_path / "out", data))


def test_the_folder_of_the_training_images(scenes, tmp_path):
    assert training_folder(scenes) == Path(scenes) / "images" / "train"
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for split in ("train1", "train2", "val"):
            shutil.copytree(Path(scenes) / name / "val", tmp_path / name / split)
    with pytest.raises(
        RequestError, match=r"lie in images/train1 and images/train2.*one folder of their own"
    ) as refused:
        training_folder(str(tmp_path))
    assert refused.value.exit_code == 2
    for name in ("images", "masks"):
        (tmp_path / name / "train2").rename(tmp_path / name / "train1" / "more")
    assert training_folder(str(tmp_path)) == tmp_path / "images" / "train1"


@pytest.mark.parametrize(
    ("size", "patches", "crop"), [((24, 24), (4,), 24), ((64, 64), (8, 14), 56), ((32, 48), (16, 4), (32, 48))]
)
def test_crops_are_whole_patches_of_every_model(size, patches, crop):
    assert size_for(size, patches) == crop


def test_crops_that_cannot_be():
    with pytest.raises(RequestError, match="patches of 8, 14 px: give an --image-size of at least 56"):
        size_for((32, 64), (8, 14))


def test_its_plan(scenes, other, tmp_path):
    """Every row has the same budget and rates; those that choose are no images that are measured."""
    plan = plan_experiment(config(tmp_path, scenes, also=(f"beit={other}",), seeds=2))
    assert [row.name for row in plan.study.rows] == ["MAE", "random init", "beit"]
    assert [(trial.seed, trial.row) for trial in plan.trials][:4] == [
        (0, "MAE"), (0, "random init"), (0, "beit"), (1, "MAE")
    ]  # fmt: skip
    by_row = {trial.row: trial.stages for trial in plan.trials}
    assert [stage.kind for stage in by_row["MAE"]] == ["pretrain", "segment"]
    assert [stage.kind for stage in by_row["random init"]] == [stage.kind for stage in by_row["beit"]] == ["segment"]
    segment = [stages[-1] for stages in by_row.values()]
    own = {"init", "width", "depth", "num_heads", "patch_size", "channels"}
    shared = [{k: v for k, v in stage.settings.items() if k not in own} for stage in segment]
    assert shared[0] == shared[1] == shared[2]
    assert len({stage.rates for stage in segment}) == 1
    assert shared[0]["report"] == "held-out"
    assert shared[0]["image_size"] == 24
    pre = by_row["MAE"][0].settings
    assert (pre["train"], pre["data"], pre["val"], pre["target"]) == (
        f"{scenes}/images/train",
        None,
        None,
        "norm-pixel",
    )
    masked = plan.data.transfers["segment"]
    assert (masked.facts.count, masked.num_test, masked.final_split, masked.chosen_on) == (
        13,
        4,
        "val",
        "a split of train",
    )
    assert plan.study.rows[2].paper == {"miou": 47.1}
    assert plan.study.rows[1].paper == {}


def test_given_rates_are_segmentations(scenes, tmp_path):
    plan = plan_experiment(config(tmp_path, scenes, base_lr=(0.5,)))
    assert {trial.stages[-1].rates for trial in plan.trials} == {(0.5,)}


@pytest.mark.slow
def test_paper_scale_prints_commands_that_can_be_typed(scenes, other, tmp_path, capsys):
    found = experiment(config(tmp_path / "out", scenes, scale="paper", also=(f"x={other}",), reduce_zero_label=True))
    assert found["rows"] == []
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("openmae ")]
    assert [line.split()[1] for line in lines] == [
        "pretrain",
        "segment",
        "segment",
        "segment",
        "segment",
        "pretrain",
        "segment",
    ]
    assert ["ade20k-large" in line for line in lines if " segment " in line] == [False, False, False, True, True]
    assert "--recipe mae-base" in lines[0]
    assert "--recipe mae-large" in lines[5]
    configs = [resolve_config(parse(shlex.split(line)[1:])) for line in lines]
    segmenters = [one for one in configs if isinstance(one, SegmentConfig)]
    assert {(one.report, one.reduce_zero_label, one.base_lr) for one in segmenters} == {("test", True, 1.6e-3)}
    assert sum(one.is_from_scratch for one in segmenters) == 2
    assert f"--init {tmp_path}/out/runs/MAE/seed-0/pretrain" in lines[1]
    assert not (tmp_path / "out").exists()


def test_rows_may_be_added_and_not_taken_away(tmp_path):
    stored = {"also": ["a"], "data_fingerprint": "x", "seeds": 1}
    check_same("table-5", tmp_path, stored, {**stored, "also": ["a", "b"]}, MAY_CHANGE)
    with pytest.raises(RequestError, match=r"--also got \['b'\], the table-5 in .* has \['a'\]"):
        check_same("table-5", tmp_path, stored, {**stored, "also": ["b"]}, MAY_CHANGE)


@pytest.mark.slow
def test_the_whole_experiment(scenes, other, tmp_path, monkeypatch):
    """Real processes; a row that is added later is all that then runs."""
    out = tmp_path / "out"
    found = experiment(config(out, scenes, also=(f"beit={other}",), base_lr=(8e-3, 3.2e-2)))
    assert found == json.loads((out / "results.json").read_text())
    rows = {row["row"]: row for row in found["rows"]}
    assert list(rows) == ["MAE", "random init", "beit"]
    for row in rows.values():
        (measured,) = row["protocols"].values()
        assert 0 <= measured["values"][0] <= 100
        assert measured["base_lr"][0] in (8e-3, 3.2e-2)
        assert 0 <= measured["chosen_by"][0] <= 100
    assert [rows[name]["protocols"]["miou"]["paper"] for name in rows] == [48.1, None, 47.1]
    assert rows["beit"]["settings"]["init"] == other
    assert "gflop_an_image" not in rows["beit"]["cost"]
    text = (out / "results.md").read_text()
    assert "| segmentation, mIoU, %: paper | ours | Δ paper | Δ ours |" in text
    assert "it sees no masks" in text
    with Image.open(out / "table-5.png") as picture:
        assert picture.width > 300
    run = out / "runs" / "MAE" / "seed-0"
    chosen = rows["MAE"]["protocols"]["miou"]["base_lr"][0]
    summary = json.loads((run / f"segment-{chosen:g}" / "summary.json").read_text())
    assert summary["report"] == "split of train"
    assert summary["miou"] == rows["MAE"]["protocols"]["miou"]["chosen_by"][0]
    model = openmae_load(run / f"segment-{chosen:g}")
    assert rows["MAE"]["protocols"]["miou"]["values"][0] == pytest.approx(miou_of(model, Path(scenes)), abs=1e-3)
    monkeypatch.setattr(side_by_side, "PROGRAM", ("nothing that runs",))
    assert experiment(config(out, scenes, also=(f"beit={other}",), base_lr=(8e-3, 3.2e-2))) == found


def openmae_load(run):
    import openmae

    return openmae.load(str(run), "cpu")


def miou_of(model, scenes):
    """By hand: over all pixels of val. The rest is rounding of resized logits: 0 measured."""
    counts = torch.zeros(3, 3)
    for path in sorted((scenes / "images" / "val").iterdir()):
        (predicted,) = model.segment(str(path))
        truth = torch.from_numpy(np.array(Image.open(scenes / "masks" / "val" / path.name))).long()
        for true in range(3):
            for said in range(3):
                counts[true, said] += ((truth == true) & (predicted == said)).sum()
    ious = [counts[k, k] / (counts[k].sum() + counts[:, k].sum() - counts[k, k]) for k in range(3)]
    return 100 * float(sum(ious) / 3)


def test_short_names():
    assert [short_name(name) for name in ("runs/moco/", "model.safetensors", "hf:a/b", "timm:c.d", "runs/v1.5")] == [
        "moco", "model", "b", "c.d", "v1.5"
    ]  # fmt: skip
