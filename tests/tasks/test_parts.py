"""The parts of a data set, named outright or found by name, in every command that takes DATA; and older runs."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from openmae import FinetuneConfig, PackConfig, ProbeConfig, finetune, pack, pretrain, probe
from openmae.cli import run as command
from openmae.config import ResolvedFinetuneConfig, ResolvedPretrainConfig, ResolvedProbeConfig
from openmae.errors import Interrupted, RequestError
from openmae.planning import probe as probe_planning
from openmae.tasks.finetune import finetune as finetune_task
from openmae.tasks.probe import probe as probe_task

from ..shared import run_trials_here, same_training_state, signal_at
from ..tiny_runs import make_digits_config

SIZE = {"image_size": 16, "patch_size": 4}
TUNING = {"steps": 6, "batch_size": 8, "device": "cpu", "workers": 0, "save_every": 2}
NAMED = "--train {root}/train --val {root}/eval"
LINE = "parts      train from {root}/train (24 images), val from {root}/eval (12 images)"


def save_classes(folder, count):
    chance = np.random.default_rng(count)
    for name, low in (("dark", 0), ("light", 120)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            values = chance.integers(low, low + 130, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(values).resize((20, 20), Image.Resampling.BICUBIC).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes, 24 images of train and 12 of eval. Tests only read it."""
    root = tmp_path_factory.mktemp("data") / "photos"
    save_classes(root / "train", 12)
    save_classes(root / "eval", 6)
    return root


@pytest.fixture(scope="module")
def model(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "model"
    pretrain(make_digits_config(out, data=str(root), **SIZE, held_out=None))
    return out


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Most of a tiny run's time would go into drawing its pictures."""
    for module in (finetune_task, probe_task):
        monkeypatch.setattr(module, "write_report", lambda *arguments: None)


TINY = "--width 24 --depth 1 --num-heads 3 --decoder-width 16 --decoder-depth 1 --image-size 16 --patch-size 4"
TRAINING = "--batch-size 8 --steps 2 --device cpu --workers 0 --out {out}"
COMMANDS = {
    "pretrain": f"pretrain {NAMED} {TINY} {TRAINING}",
    "finetune": f"finetune {NAMED} --init {{model}} {TRAINING}",
    "probe": f"probe {NAMED} --init {{model}} {TRAINING}",
    "knn": f"knn {NAMED} --init {{model}} --k 3 --device cpu --workers 0 --out {{out}}",
    "embed": f"embed {NAMED} --init {{model}} --device cpu --workers 0 --out {{out}}.npz",
    "pack": f"pack {NAMED} {{out}} --workers 0",
    "inspect": f"inspect {NAMED} --workers 0",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_parts_and_says_so(root, model, tmp_path, capsys, name):
    arguments = COMMANDS[name].format(root=root, model=model, out=tmp_path / "out")
    assert command(arguments.split()) == 0, capsys.readouterr().err
    told = " ".join(capsys.readouterr().out.split())
    assert " ".join(LINE.format(root=root).split()) in told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_was_taken_for_what(root, model, tmp_path, capsys, name):
    named = NAMED.format(root=root)
    arguments = COMMANDS[name].format(root=root, model=model, out=tmp_path / "out").replace(named, str(root))
    assert command(arguments.split()) == 0, capsys.readouterr().err
    told = " ".join(capsys.readouterr().out.split())
    assert "parts train from train (24 images), val from eval (12 images)" in told


@pytest.mark.slow
def test_an_experiment_takes_the_parts(root, model, tmp_path, capsys, monkeypatch):
    run_trials_here(monkeypatch)
    monkeypatch.setattr(probe_planning, "TARGET_STEPS", 20)
    arguments = f"experiment figure-9 {NAMED} --init {model} --out {tmp_path / 'out'} --labels 100% --epochs 1"
    arguments += " --blocks 0.5 --base-lr 0.01 --seeds 1 --batch-size 8 --held-out 4 --device cpu --workers 0"
    assert command(arguments.format(root=root).split()) == 0, capsys.readouterr().err
    stored = json.loads((tmp_path / "out" / "runs" / "probe-100%" / "seed-0" / "probe" / "config.json").read_text())
    assert (stored["data"], stored["train"], stored["val"]) == (None, f"{root}/train", f"{root}/eval")
    assert stored["parts"] == {"train": f"{root}/train", "val": f"{root}/eval"}


def test_only_the_evaluation_part_can_be_embedded_alone(root, model, tmp_path, capsys):
    arguments = f"--init {model} --device cpu --workers 0 --out {tmp_path / 'out.npz'}"
    assert command(f"embed --test {root}/eval {arguments}".split()) == 0
    with np.load(tmp_path / "out.npz") as table:
        assert set(table["split"].tolist()) == {"test"}
        assert table["paths"].tolist()[0] == "eval/dark/0.png"
    assert command(f"embed --test {root}/eval --split val {arguments}".split()) == 2
    assert "--split got val, but --test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("pretrain {root} --val {root}/eval", "got both DATA"),
        ("finetune --val {root}/eval --init {model}", "without --train: give --train PATH too"),
        ("pretrain --train {root}", "holds train and val: give the folder of each part, as --train"),
        ("pretrain --train {root}/train --val {root}/none", "no such file or folder"),
        ("pack {root} x --train {root}/train", "got both DATA"),
        ("pack --train {root}/train --verify", "--verify checks a pack: name it in place of --train"),
    ],
)
def test_what_is_unclear_is_refused_in_one_line(root, model, tmp_path, capsys, arguments, wanted):
    out = "" if arguments.startswith("pack") else f"--out {tmp_path / 'out'}"
    assert command(f"{arguments.format(root=root, model=model)} {out}".split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert wanted in line
    assert not (tmp_path / "out").exists()


def test_a_run_or_table_does_not_come_to_lie_in_a_part(root, model, capsys):
    for arguments in (
        f"pretrain --train {root}/train --val {root}/eval --out {root}/eval/run",
        f"embed --train {root}/train --test {root}/eval --init {model} --out {root}/eval/table.npz",
        f"inspect --train {root}/train --val {root}/eval --out {root}/eval/look",
        f"pack --train {root}/train --val {root}/eval {root}/eval/pack",
    ):
        assert command(arguments.split()) == 2
        assert f"{root}/eval" in capsys.readouterr().err
    assert sorted(path.name for path in (root / "eval").iterdir()) == ["dark", "light"]


def test_the_parts_are_the_same_data_however_they_were_named(root, tmp_path):
    """Equal bytes, and a run goes on whichever way its data is named when it is started again."""
    runs = {"whole": {"data": str(root)}, "parts": {"data": None, "train": f"{root}/train", "val": f"{root}/eval"}}
    for name, named in runs.items():
        pretrain(make_digits_config(tmp_path / name, **named, **SIZE, held_out=None))
    same_training_state(tmp_path / "whole", tmp_path / "parts")
    for name, other in (("whole", "parts"), ("parts", "whole")):
        pretrain(make_digits_config(tmp_path / name, **runs[other], **SIZE, held_out=None, steps=14, resume="auto"))
        stored = json.loads((tmp_path / name / "config.json").read_text())
        assert {key: stored[key] for key in ("data", "train", "val", "test")} == {
            **dict.fromkeys(("data", "train", "val", "test")),
            **runs[other],
        }
    same_training_state(tmp_path / "whole", tmp_path / "parts", 14)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_was_left_out_and_what_is_trained_on(root, model, tmp_path, capsys, name):
    data = tmp_path / "data"
    (data / "val").mkdir(parents=True)
    (data / "train").symlink_to(root / "train")
    (data / "val" / "dark").symlink_to(root / "train" / "dark")
    (data / "val" / "twice").symlink_to(root / "train" / "dark")
    (data / "notes.txt").write_text("words")
    named = NAMED.format(root=root)
    arguments = COMMANDS[name].format(root=root, model=model, out=tmp_path / "out").replace(named, str(data))
    code = command(arguments.split())
    told = capsys.readouterr()
    assert code == 0, told.err
    said = " ".join(told.out.split())
    assert "ignored 1 .txt, val/twice (the same folder as val/dark, which is read)" in said
    assert (
        "12 of 12 images of val are in train too, through a link or as they were named: a figure on val is on" in said
    )


# --- runs from before ---


def pretrain_of(data, model, out, **changes):
    settings = {"data": str(data), **SIZE, "steps": 6, "save_every": 2, "held_out": 6}
    return pretrain(make_digits_config(out, **{**settings, **changes}))


def finetune_of(data, model, out, **changes):
    return finetune(FinetuneConfig(data=str(data), init=str(model), out=str(out), **{**TUNING, **changes}))


def probe_of(data, model, out, **changes):
    settings = {**TUNING, "augment": "crop", "base_lr": (1.0,), **changes}
    return probe(ProbeConfig(data=str(data), init=str(model), out=str(out), **settings))


TASKS = {
    "pretrain": (pretrain_of, ResolvedPretrainConfig),
    "finetune": (finetune_of, ResolvedFinetuneConfig),
    "probe": (probe_of, ResolvedProbeConfig),
}


@pytest.mark.parametrize("name", TASKS)
def test_older_runs_go_on_with_the_parts_they_began_with(root, model, tmp_path, monkeypatch, name):
    """Where eval/ was a class beside train/: neither config.json nor checkpoints name the rules."""
    task, kind = TASKS[name]
    task(root, model, tmp_path / "whole", split_rules=1)
    to_dict = kind.to_dict
    with monkeypatch.context() as patch:
        patch.setattr(kind, "to_dict", lambda self: {k: v for k, v in to_dict(self).items() if k != "split_rules"})
        signal_at(patch, 3)
        with pytest.raises(Interrupted):
            task(root, model, tmp_path / "old", split_rules=1)
    for file in (tmp_path / "old").rglob("*.json"):
        assert "split_rules" not in file.read_text(), file
    assert task(root, model, tmp_path / "old", resume="auto")["step"] == 6
    same_training_state(tmp_path / "whole", tmp_path / "old", 6)
    stored = json.loads((tmp_path / "old" / "config.json").read_text())
    assert (stored["split_rules"], stored["parts"]) == (1, {"train": f"all of {root}"})
    task(root, model, tmp_path / "new")
    stored = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (stored["split_rules"], stored["parts"]) == (2, {"train": "train", "val": "eval"})
    with pytest.raises(RequestError, match="--split-rules 2, not 1: leave"):
        task(root, model, tmp_path / "new", resume="auto", split_rules=1)


def test_older_packs_go_on_with_the_parts_they_began_with(root, tmp_path, monkeypatch):
    settings = {"data": str(root), "workers": 0, "format": "raw"}
    with monkeypatch.context() as patch:
        patch.setattr("openmae.data.sources.open.SPLIT_RULES", 1)
        pack(PackConfig(out=str(tmp_path / "whole"), **settings))
    shutil.copytree(tmp_path / "whole", tmp_path / "old")
    (tmp_path / "old" / "pack.json").rename(tmp_path / "old" / ".partial-pack.json")  # all is there but the end
    pack(PackConfig(out=str(tmp_path / "old"), resume="auto", **settings))
    for name in ("whole", "old"):
        manifest = json.loads((tmp_path / name / "pack.json").read_text())
        assert manifest["splits"]["train"]["classes"] == ["eval", "train"]
    assert pack(PackConfig(out=str(tmp_path / "whole"), resume="auto", **settings))["images"] == 36
    pack(PackConfig(out=str(tmp_path / "new"), **settings))
    assert json.loads((tmp_path / "new" / "pack.json").read_text())["splits"].keys() == {"train", "val"}
