"""`.npy` of channels first under every command: what was decided is said, stored and used again."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch

from openmae.cli import run as openmae_run
from openmae.commands import COMMANDS
from openmae.config import EmbedConfig, FinetuneConfig, InspectConfig, KnnConfig, PackConfig, ProbeConfig
from openmae.data.sources.open import open_source
from openmae.errors import Interrupted, RequestError
from openmae.inference.load import load
from openmae.tasks.embed import embed
from openmae.tasks.finetune.finetune import finetune
from openmae.tasks.inspect.inspect import inspect
from openmae.tasks.knn import knn
from openmae.tasks.pack.pack import pack
from openmae.tasks.pretrain.pretrain import pretrain
from openmae.tasks.probe.probe import probe
from openmae.training.checkpoint import read_model

from ..shared import gradients_config, same_training_state, signal_at


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same five-channel images, channels last, first, and first where the shape does not tell (16 × 16)."""
    root, chance = tmp_path_factory.mktemp("axes"), np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for label in ("a", "b"):
            for number in range(count):
                values = chance.integers(0, 200, (20, 20, 5), dtype=np.uint8) + np.uint8(50 * (label == "a"))
                small = values[:16, :16]
                for name, stored in (
                    ("last", values),
                    ("first", values.transpose(2, 0, 1)),
                    ("unclear", small.transpose(2, 0, 1)),
                    ("unclear-last", small),
                ):
                    path = root / name / part / label / f"{number}.npy"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.save(path, stored)
    return root


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory, digits_config):
    out = tmp_path_factory.mktemp("runs")
    for name in ("last", "first"):
        pretrain(gradients_config(digits_config, folders / name, out / name, steps=4, evaluate_every=100))
    return out


def settings(data, init, out):
    return {"data": str(data), "init": str(init), "out": str(out), "device": "cpu", "workers": 0}


def features(data, init, out, **extra):
    embed(EmbedConfig(**settings(data, init, out / "f.npz"), **extra))
    with np.load(out / "f.npz") as file:
        return file["features"]


def test_every_command_with_images_takes_the_flag():
    taken = {command.name for command in COMMANDS if "axes" in {f.name for f in fields(command.config)}}
    assert taken == {command.name for command in COMMANDS} - {"convert", "bench", "demo"}


@pytest.mark.parametrize("axes", ["CYZ", "cyx", "YX", "CCYX", ""])
def test_a_wrong_order_is_refused(axes, capsys):
    assert openmae_run(["pretrain", "data", "--out", "run", "--axes", axes]) == 2
    assert "--axes" in capsys.readouterr().err


def test_both_orders_train_to_the_same_weights_and_say_which(folders, runs):
    weights, told = zip(*(read_model(runs / name / "model.safetensors") for name in ("last", "first")), strict=True)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [kept["preprocessing"]["axes"] for kept in told] == ["YXC", "CYX"]
    assert [json.loads((runs / name / "config.json").read_text())["axes"] for name in ("last", "first")] == [
        "YXC",
        "CYX",
    ]


def test_a_run_goes_on_with_what_was_decided(folders, digits_config, tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    data = folders / "unclear"
    with pytest.raises(RequestError, match=r"5 x 16 x 16: which axis holds the channels is not clear"):
        pretrain(gradients_config(digits_config, data, whole))
    assert not whole.exists()
    pretrain(gradients_config(digits_config, data, whole, axes="CYX"))
    with monkeypatch.context() as patch:
        signal_at(patch, 5)
        with pytest.raises(Interrupted, match="resume auto"):
            pretrain(gradients_config(digits_config, data, stopped, axes="CYX"))
    pretrain(gradients_config(digits_config, data, stopped, resume="auto"))  # without saying it again
    same_training_state(whole, stopped)
    with pytest.raises(RequestError, match="--axes"):
        pretrain(gradients_config(digits_config, data, stopped, resume="auto", axes="YXC"))


def test_pictures_say_nothing_of_axes(gradients, digits_config, tmp_path, capsys):
    run = tmp_path / "run"
    pretrain(gradients_config(digits_config, gradients, run, steps=2))
    assert "--axes YXC: no .npy of three axes was seen" in capsys.readouterr().out
    assert "axes" not in read_model(run / "model.safetensors")[1]["preprocessing"]


def test_later_commands_read_what_does_not_tell_as_the_model_did(folders, runs, tmp_path, capsys):
    expected = features(folders / "unclear-last", runs / "last", tmp_path, axes="YXC")
    capsys.readouterr()
    assert np.array_equal(features(folders / "unclear", runs / "first", tmp_path), expected)
    assert "axes       CYX: as the model had them" in capsys.readouterr().out
    assert np.array_equal(features(folders / "unclear", runs / "last", tmp_path, axes="CYX"), expected)
    # What tells it itself comes before the model's word.
    first, last = (features(folders / name, runs / "last", tmp_path) for name in ("first", "last"))
    assert np.array_equal(first, last)


def test_labelled_commands_decide_alike(folders, runs, tmp_path, capsys):
    extra = {"steps": 2, "batch_size": 8, "evaluate_every": 2}
    for task, config, more in (
        (knn, KnnConfig, {"k": (3,)}),
        (probe, ProbeConfig, extra),
        (finetune, FinetuneConfig, extra),
    ):
        found = {}
        for name in ("last", "first"):
            run = tmp_path / f"{task.__name__}-{name}"
            summary = task(config(**settings(folders / name, runs / "last", run), **more))
            found[name] = {key: value for key, value in summary.items() if key != "seconds"}
            order = "YXC" if name == "last" else "CYX"
            printed = capsys.readouterr().out
            assert f"axes       {order}: " in printed or f"--axes {order}: " in printed
            assert json.loads((run / "config.json").read_text())["preprocessing"]["axes"] == order
        assert found["last"] == found["first"]


def test_from_python_a_file_is_read_as_the_model_had_them(folders, runs):
    last, first = (folders / name / "train" / "a" / "0.npy" for name in ("last", "first"))
    unclear, its_last = (folders / name / "train" / "a" / "0.npy" for name in ("unclear", "unclear-last"))
    had = load(str(runs / "first"), "cpu")
    expected = had.prepare(np.load(last))
    assert torch.equal(had.prepare(first), expected)
    assert torch.equal(had.prepare(unclear), had.prepare(np.load(its_last)))
    said = load(str(runs / "last"), "cpu", axes="CYX")
    assert torch.equal(said.prepare(unclear), had.prepare(np.load(its_last)))
    with pytest.raises(RequestError, match="--axes"):
        load(str(runs / "last"), "cpu", axes="XYZ")


def test_packs_and_inspect_decide_alike(folders, tmp_path, capsys):
    for name in ("last", "first"):
        pack(PackConfig(data=str(folders / name), out=str(tmp_path / name), format="raw", size=16, workers=0))
        report = inspect(InspectConfig(path=str(folders / name), workers=0))
        assert report["axes"] == ("YXC" if name == "last" else "CYX")
        assert report["splits"]["train"]["channels"] == {"5": 24}
        assert f"axes       {report['axes']}: " in capsys.readouterr().out
    packed = [np.load(tmp_path / name / "train.npy") for name in ("last", "first")]
    assert np.array_equal(*packed)
    assert json.loads((tmp_path / "first" / "pack.json").read_text())["axes"] == "CYX"
    assert open_source(str(tmp_path / "first")).read(0).shape == (16, 16, 5)
    for task, config in (
        (pack, PackConfig(data=str(folders / "unclear"), out=str(tmp_path / "u"), format="raw", workers=0)),
        (inspect, InspectConfig(path=str(folders / "unclear"), workers=0)),
    ):
        with pytest.raises(RequestError, match="--axes CYX"):
            task(config)
    report = inspect(InspectConfig(path=str(folders / "unclear"), workers=0, axes="CYX"))
    assert report["splits"]["train"]["common_sizes"][0]["width"] == 16
