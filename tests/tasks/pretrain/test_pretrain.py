"""`pretrain` end to end on tiny data: what it leaves, that it learns, and that stopping it changes nothing.

The golden losses are written anew, after a change that is meant to change them, by

    python -m tests.tasks.pretrain.test_pretrain
"""

import itertools
import json
import os
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from openmae.config import PretrainConfig
from openmae.errors import Fault, Interrupted, RequestError
from openmae.inference.load import load
from openmae.run.progress import Progress
from openmae.tasks.pretrain import held_out as held_out_module
from openmae.tasks.pretrain import pretrain as task
from openmae.tasks.pretrain.data import open_training_data
from openmae.tasks.pretrain.pretrain import pretrain
from openmae.training.checkpoint import read_model
from openmae.training.telemetry import read_lines

from ...processes import TIMES
from ...shared import gradients_config, metrics, pixel_config, same_training_state, signal_at, snapshot, untimed

GOLDEN = Path(__file__).with_name("golden_losses.json")


def golden_losses(out):
    """The losses of twenty steps; every setting that matters is written here, so that no default can move them."""
    config = PretrainConfig(
        data="embedded:digits",
        out=str(out),
        image_size=8,
        patch_size=2,
        channels=1,
        width=32,
        depth=2,
        num_heads=2,
        decoder_width=24,
        decoder_depth=1,
        decoder_num_heads=2,
        mask="random",
        mask_ratio=0.75,
        target="norm-pixel",
        augment="crop",
        mean=(0.3,),
        std=(0.35,),
        value_range=(0.0, 255.0),
        background=1.0,
        held_out=16,
        steps=20,
        batch_size=32,
        micro_batch_size=16,
        base_lr=0.016,
        warmup_epochs=0.1,
        weight_decay=0.5,  # so large that twenty steps show it
        betas=(0.9, 0.95),
        seed=1,
        device="cpu",
        precision="fp32",
        workers=0,
        log_every=1,
        evaluate_every=10,
        picture_every=1000,
        save_every=1000,
    )
    pretrain(config)
    lines = metrics(out)
    return {
        "loss": [line["loss"] for line in lines if "loss" in line],
        "held_out_loss": [line["held_out_loss"] for line in lines if "held_out_loss" in line],
    }


# --- what a run is ---


def test_a_run_leaves_its_surface(norm_pixel_run):
    files = set(snapshot(norm_pixel_run))
    checkpoint = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    wanted = {"config.json", "metrics.jsonl", "summary.json", "model.safetensors", "pictures/step-00000012.png"}
    wanted |= {f"checkpoints/step-{step:08d}/{name}" for step in (10, 12) for name in checkpoint}
    assert {name for name in files if not name.startswith("tensorboard/")} == wanted
    assert len(files) == len(wanted) + 1
    summary = json.loads((norm_pixel_run / "summary.json").read_text())
    assert summary.keys() == {
        *("status", "step", "images_seen", "epoch", "loss", "held_out_loss", "bad_inputs", "seconds"),
        *("skipped_steps", "loss_spikes", "rollbacks"),
        *("health", "effective_rank", "trivial_loss"),
    }
    assert (summary["status"], summary["step"], summary["images_seen"]) == ("complete", 12, 192)
    assert summary["bad_inputs"] == 0
    with Image.open(norm_pixel_run / "pictures" / "step-00000012.png") as picture:
        assert picture.format == "PNG"


def test_its_lines_say_what_the_surface_promises(norm_pixel_run):
    lines = metrics(norm_pixel_run)
    training = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "held_out_loss" in line]
    assert [line["step"] for line in training] == [1, 2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in held_out] == [4, 8, 12]
    common = {"step", "epoch", "images_seen"}
    assert all(line.keys() == common | {"loss", "lr", "grad_norm"} | TIMES for line in training)
    assert all(line.keys() == common | {"held_out_loss", "effective_rank", "trivial_loss"} for line in held_out)
    assert training[0]["lr"] == 0
    assert training[-1]["images_seen"] == 12 * 16


def test_its_config_is_enough_to_run_it_again(norm_pixel_run, tmp_path):
    values = json.loads((norm_pixel_run / "config.json").read_text())
    config = PretrainConfig.from_dict(values)
    assert {name for name, value in config.to_dict().items() if value is None} <= {
        *("tiles", "recipe", "model", "mask_file", "epochs", "init", "watch", "watch_data", "watch_every"),
        *("train", "val", "test", "pca_coefficients", "tokenizer"),
    }
    pretrain(replace(config, out=str(tmp_path / "again")))
    same_training_state(norm_pixel_run, tmp_path / "again")
    assert untimed(metrics(norm_pixel_run)) == untimed(metrics(tmp_path / "again"))


def test_the_seed_decides(norm_pixel_run, digits_config, tmp_path):
    pretrain(digits_config(tmp_path / "run", target="norm-pixel", seed=1))
    assert untimed(metrics(tmp_path / "run"))[0] != untimed(metrics(norm_pixel_run))[0]


def test_the_checkpoint_says_how_to_use_it_and_nothing_of_the_machine(norm_pixel_run):
    _, description = read_model(norm_pixel_run / "model.safetensors")
    assert description.keys() == {
        *("format_version", "kind", "shape", "preprocessing", "masking", "recipe", "seed", "step")
    }
    assert str(norm_pixel_run) not in json.dumps(description)


@pytest.mark.parametrize("held_out", [None, 0, 7])
def test_what_is_held_out_is_never_trained_on(digits_config, gradients, tmp_path, held_out):
    data = open_training_data(gradients_config(digits_config, gradients, tmp_path / "run", held_out=held_out))
    training = {data.train.name(index) for index in range(len(data.train))}
    if held_out == 0:
        assert data.held_out is None
        assert len(training) == 24
        return
    looked_at = {data.held_out.name(index) for index in range(len(data.held_out))}
    assert len(looked_at) == (held_out or 1)
    assert not training & looked_at
    assert len(training | looked_at) == 24


def test_pictures_without_held_out_images_read_eight_at_most(digits_config, gradients, tmp_path, monkeypatch):
    read = []

    def read_all(source, *arguments):
        read.append(len(source))
        return real(source, *arguments)

    real = held_out_module.read_all
    monkeypatch.setattr(held_out_module, "read_all", read_all)
    summary = pretrain(gradients_config(digits_config, gradients, tmp_path / "run", held_out=0, steps=2))
    assert read == [8]
    assert "held_out_loss" not in summary
    assert (tmp_path / "run" / "pictures" / "step-00000002.png").exists()


def test_a_validation_part_is_held_out_whole(digits_config, tmp_path):
    data = open_training_data(digits_config(tmp_path / "run", held_out=None))
    training, looked_at = ({part.name(i) for i in range(len(part))} for part in (data.train, data.held_out))
    assert not training & looked_at
    assert len(looked_at) == 256


# --- that it learns ---


def test_golden_losses(tmp_path):
    wanted = json.loads(GOLDEN.read_text())
    for name, losses in golden_losses(tmp_path / "run").items():
        assert losses == pytest.approx(wanted[name], rel=1e-4), name


@pytest.mark.slow
def test_it_overfits_a_handful_of_images(digits_config, gradients, tmp_path):
    config = gradients_config(
        digits_config, gradients, tmp_path / "run", held_out=18, steps=200, base_lr=0.16, augment="none", save_every=200
    )
    pretrain(config)
    losses = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert losses[-1] < losses[0] / 20


def test_the_held_out_loss_falls(digits_config, gradients, tmp_path):
    config = gradients_config(digits_config, gradients, tmp_path / "run", steps=80, base_lr=0.1, save_every=80)
    summary = pretrain(config)
    losses = [line["held_out_loss"] for line in metrics(tmp_path / "run") if "held_out_loss" in line]
    assert summary["held_out_loss"] == losses[-1] < losses[0] / 3


@pytest.mark.parametrize("micro", [4, 3])  # 3 leaves a smaller last one
def test_micro_batches_add_up_to_the_batch(digits_config, pixel_run, tmp_path, micro):
    pretrain(pixel_config(digits_config, tmp_path / "run", micro_batch_size=micro))
    for whole, parts in zip(metrics(pixel_run), metrics(tmp_path / "run"), strict=True):
        for name in {"loss", "held_out_loss"} & whole.keys():
            assert whole[name] == pytest.approx(parts[name], rel=1e-6), whole["step"]


def test_reader_processes_change_nothing(digits_config, pixel_run, tmp_path):
    pretrain(pixel_config(digits_config, tmp_path / "run", workers=1))
    same_training_state(pixel_run, tmp_path / "run")
    assert untimed(metrics(pixel_run)) == untimed(metrics(tmp_path / "run"))


def test_training_goes_on_from_given_weights(digits_config, pixel_run, tmp_path):
    """The first step has a rate of 0: what comes out are the weights that went in."""
    out = tmp_path / "run"
    settings = dict.fromkeys(("image_size", "patch_size", "width", "depth", "num_heads"))
    settings |= dict.fromkeys(("decoder_width", "decoder_depth"))
    pretrain(digits_config(out, init=str(pixel_run), steps=1, **settings))
    before, after = (load_file(run / "model.safetensors") for run in (pixel_run, out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((out / "config.json").read_text())["target"] == "pixel"


def test_a_model_that_contradicts_the_weights_is_refused_by_their_shape(digits_config, pixel_run, tmp_path):
    open_settings = dict.fromkeys(("width", "depth", "num_heads", "decoder_width", "decoder_depth"))
    with pytest.raises(RequestError, match=r"--width got 192, but --init has 24"):
        pretrain(digits_config(tmp_path / "run", model="tiny", init=str(pixel_run), **open_settings))
    assert not (tmp_path / "run").exists()


def test_a_decoder_of_another_shape_starts_anew(digits_config, pixel_run, tmp_path, capsys):
    """A decoder of another shape is begun anew, and that is said; the encoder goes on."""
    pretrain(digits_config(tmp_path / "run", init=str(pixel_run), decoder_width=20, steps=1, epochs=None))
    assert "decoder: fresh, for decoder.blocks.0" in capsys.readouterr().out


# --- stopping and going on ---


@pytest.mark.parametrize(
    ("step", "number"),
    [
        (1, signal.SIGTERM),
        (4, signal.SIGINT),  # an evaluation is due
        (5, signal.SIGUSR1),  # a save is due, and the next line holds half its steps
        (7, signal.SIGTERM),
        (11, signal.SIGTERM),
    ],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(digits_config, pixel_run, tmp_path, monkeypatch, step, number):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, step, number)
        with pytest.raises(Interrupted, match=f"{number.name} at step {step}: saved"):
            pretrain(pixel_config(digits_config, out))
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("interrupted", step)
    assert (out / "checkpoints" / f"step-{step:08d}").is_dir()
    summary = pretrain(pixel_config(digits_config, out, resume="auto"))
    assert (summary["status"], summary["step"]) == ("complete", 12)
    same_training_state(pixel_run, out)
    assert untimed(metrics(pixel_run)) == untimed(metrics(out))


def test_a_stop_in_the_middle_of_accumulation_loses_nothing(digits_config, tmp_path, monkeypatch):
    """A signal in the second of four micro-batches of step 6: the step is finished, then saved."""
    whole, out, counter, real = tmp_path / "whole", tmp_path / "run", itertools.count(1), task.model_input

    def prepare_and_signal(*arguments):
        if next(counter) == 5 * 4 + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    pretrain(pixel_config(digits_config, whole, micro_batch_size=4))
    with monkeypatch.context() as patch:
        patch.setattr(task, "model_input", prepare_and_signal)
        with pytest.raises(Interrupted, match="SIGTERM at step 6: saved"):
            pretrain(pixel_config(digits_config, out, micro_batch_size=4))
    pretrain(pixel_config(digits_config, out, micro_batch_size=4, resume="auto"))
    same_training_state(whole, out)
    assert untimed(metrics(whole)) == untimed(metrics(out))


def test_a_stop_in_the_last_step_leaves_its_evaluation_for_later(digits_config, pixel_run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, 12)
        with pytest.raises(Interrupted, match="SIGTERM at step 12: saved"):
            pretrain(pixel_config(digits_config, out))
    assert "held_out_loss" not in metrics(out)[-1]
    assert pretrain(pixel_config(digits_config, out, resume="auto"))["status"] == "complete"
    assert untimed(metrics(pixel_run)) == untimed(metrics(out))


def test_checkpoints_that_cannot_be_used_are_not_overwritten(digits_config, tmp_path):
    """Neither where all are damaged nor where a newer openmae wrote them may a resume start from the beginning."""
    out = tmp_path / "run"
    pretrain(pixel_config(digits_config, out))
    manifests = sorted(out.glob("checkpoints/*/manifest.json"))
    for path in manifests:
        path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    before = snapshot(out)
    with pytest.raises(RequestError, match=r"no checkpoint of .* is whole .*format_version 2, this openmae reads 1"):
        pretrain(pixel_config(digits_config, out, resume="auto"))
    assert snapshot(out) == before
    for path in manifests:
        path.write_text("{}")
    with pytest.raises(RequestError, match=r"no checkpoint of .* is whole"):
        pretrain(pixel_config(digits_config, out, resume="auto"))


def test_a_crash_between_saves_costs_only_the_steps_behind_the_last(digits_config, pixel_run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(task, "train_step", crashing_at(8))
        with pytest.raises(ZeroDivisionError):
            pretrain(pixel_config(digits_config, out))
    assert metrics(out)[-1]["step"] > 5
    pretrain(pixel_config(digits_config, out, resume="auto"))
    same_training_state(pixel_run, out)
    assert untimed(metrics(pixel_run)) == untimed(metrics(out))


def crashing_at(step):
    counter, real = itertools.count(1), task.train_step

    def train_step(*arguments, **options):
        if next(counter) == step:
            raise ZeroDivisionError
        return real(*arguments, **options)

    return train_step


def test_a_damaged_newest_checkpoint_is_named_and_passed_over(digits_config, pixel_run, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(pixel_run, out)
    (out / "checkpoints" / "step-00000012" / "optimizer.safetensors").write_bytes(b"")
    pretrain(pixel_config(digits_config, out, resume="auto"))
    said = capsys.readouterr().out
    assert "step-00000012 is damaged (optimizer.safetensors is not what was written)" in said
    assert "resumed at step 10" in said
    same_training_state(pixel_run, out)


def test_a_finished_run_is_left_as_it_is(digits_config, pixel_run, capsys):
    before = snapshot(pixel_run)
    summary = pretrain(pixel_config(digits_config, pixel_run, resume="auto"))
    assert summary == json.loads((pixel_run / "summary.json").read_text())
    assert "is complete at step 12" in capsys.readouterr().out
    assert snapshot(pixel_run) == before


def test_more_steps_continue_a_finished_run(digits_config, pixel_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(pixel_run, out)
    summary = pretrain(pixel_config(digits_config, out, resume="auto", steps=14))
    assert (summary["status"], summary["step"]) == ("complete", 14)
    assert [line["step"] for line in metrics(out) if "loss" in line] == [1, 2, 4, 6, 8, 10, 12, 14]


def test_auto_starts_what_is_not_there(digits_config, pixel_run, tmp_path):
    pretrain(pixel_config(digits_config, tmp_path / "run", resume="auto"))
    same_training_state(pixel_run, tmp_path / "run")


def test_a_named_checkpoint_goes_on_in_another_folder(digits_config, pixel_run, tmp_path):
    out = tmp_path / "run"
    checkpoint = pixel_run / "checkpoints" / "step-00000010"
    pretrain(pixel_config(digits_config, out, resume=str(checkpoint)))
    same_training_state(pixel_run, out)
    assert [line["step"] for line in metrics(out)] == [12, 12]


def test_a_run_that_goes_on_in_another_folder_can_itself_be_resumed_at_once(
    digits_config, pixel_run, tmp_path, monkeypatch
):
    """Killed in its first step, before any save of its own."""
    out = tmp_path / "run"
    checkpoint = pixel_run / "checkpoints" / "step-00000010"
    with monkeypatch.context() as patch:
        patch.setattr(task, "train_step", crashing_at(1))
        with pytest.raises(ZeroDivisionError):
            pretrain(pixel_config(digits_config, out, resume=str(checkpoint)))
    assert (out / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert snapshot(out / "checkpoints" / "step-00000010").keys() == snapshot(checkpoint).keys()
    assert pretrain(pixel_config(digits_config, out, resume="auto"))["step"] == 12
    same_training_state(pixel_run, out)


def test_a_persons_copy_of_a_checkpoint_is_left_alone(digits_config, pixel_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(pixel_run, out)
    best = out / "checkpoints" / "step-00000010-best"
    shutil.copytree(out / "checkpoints" / "step-00000010", best)
    before = snapshot(best)
    assert pretrain(pixel_config(digits_config, out, resume="auto", steps=16, keep=2))["step"] == 16
    assert snapshot(best) == before
    assert sorted(os.listdir(out / "checkpoints")) == ["step-00000010-best", "step-00000015", "step-00000016"]


def test_a_named_earlier_checkpoint_makes_the_later_ones_void(digits_config, pixel_run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(pixel_run, out)
    signal_at(monkeypatch, 1)
    with pytest.raises(Interrupted, match="at step 11"):
        pretrain(pixel_config(digits_config, out, resume=str(out / "checkpoints" / "step-00000010")))
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000010", "step-00000011"]


def test_a_named_checkpoint_spoils_no_other_run(digits_config, pixel_run, norm_pixel_run):
    before = snapshot(norm_pixel_run)
    with pytest.raises(RequestError, match="exists already and is not the run of --resume"):
        pretrain(pixel_config(digits_config, norm_pixel_run, resume=str(pixel_run)))
    assert snapshot(norm_pixel_run) == before


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"seed": 3}, "--seed 0, not 3"),
        ({"batch_size": 8}, "--batch-size 16, not 8"),
        ({"target": "norm-pixel"}, "--target pixel, not norm-pixel"),
        ({"mask_ratio": 0.5}, "--mask-ratio 0.75, not 0.5"),
        ({"image_size": (8, 16)}, r"--image-size 8, not 8 16"),
        ({"init": "elsewhere"}, "no --init, not elsewhere"),
        ({"recipe": "mae-large"}, "no --recipe, not mae-large"),
        ({"precision": "bf16"}, "--precision fp32, not bf16"),
        ({"crop_on": "device"}, "--crop-on reader, not device"),
    ],
)
def test_changed_settings_are_refused_by_name(digits_config, pixel_run, changes, flag):
    before = snapshot(pixel_run)
    with pytest.raises(RequestError, match=flag):
        pretrain(pixel_config(digits_config, pixel_run, resume="auto", **changes))
    assert snapshot(pixel_run) == before


def test_a_size_said_in_another_way_is_no_change(digits_config, pixel_run):
    assert pretrain(pixel_config(digits_config, pixel_run, resume="auto", image_size=(8, 8)))["step"] == 12


@pytest.mark.parametrize("changes", [{"steps": 11}, {"steps": None, "epochs": 0.01}])
def test_fewer_steps_are_refused(digits_config, pixel_run, tmp_path, changes):
    out = tmp_path / "run"
    if "epochs" in changes:
        pretrain(pixel_config(digits_config, out, steps=None, epochs=0.1))
    else:
        shutil.copytree(pixel_run, out)
    before = snapshot(out)
    with pytest.raises(RequestError, match=r"it can go on with more, not (11|0\.01)"):
        pretrain(pixel_config(digits_config, out, resume="auto", **changes))
    assert snapshot(out) == before


def test_the_summary_says_that_it_runs_while_it_runs(digits_config, tmp_path, monkeypatch):
    out, found = tmp_path / "run", []
    add = Progress.add

    def add_and_look(self, *arguments):
        found.append(json.loads((out / "summary.json").read_text())["status"])
        add(self, *arguments)

    monkeypatch.setattr(Progress, "add", add_and_look)
    pretrain(pixel_config(digits_config, out, steps=3))
    pretrain(pixel_config(digits_config, out, steps=5, resume="auto"))
    assert found == ["running"] * 5
    assert json.loads((out / "summary.json").read_text())["status"] == "complete"


def test_a_run_that_failed_before_its_first_checkpoint_may_be_started_again(
    digits_config, pixel_run, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(task, "train_step", crashing_at(3))
        with pytest.raises(ZeroDivisionError):
            pretrain(pixel_config(digits_config, out, seed=5))
    pretrain(pixel_config(digits_config, out))  # no --resume, another seed
    same_training_state(pixel_run, out)
    assert untimed(metrics(pixel_run)) == untimed(metrics(out))


def test_a_given_mask_may_not_change(digits_config, tmp_path):
    """It is kept in the checkpoint, and reconstructions hide the same patches without the file."""
    out, file = tmp_path / "run", tmp_path / "mask.npy"
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:4] = True
    np.save(file, mask)
    config = digits_config(out, mask="given", mask_file=str(file), steps=4)
    pretrain(config)
    np.save(file, ~mask)
    before = snapshot(out)
    with pytest.raises(RequestError, match=r"mask\.npy is not the mask that this run began with: restore it"):
        pretrain(replace(config, resume="auto", steps=6))
    assert snapshot(out) == before
    file.unlink()
    result = load(str(out), "cpu").reconstruct(np.zeros((8, 8), np.uint8))
    assert torch.equal(result.is_masked[0, 0, ::2, ::2], torch.from_numpy(mask))


@pytest.mark.parametrize("resume", ["never", "no such run"])
def test_an_existing_folder_is_not_touched_unasked(digits_config, pixel_run, tmp_path, resume):
    before = snapshot(pixel_run)
    with pytest.raises(RequestError, match=r"exists already|cannot be resumed"):
        pretrain(pixel_config(digits_config, pixel_run, resume=resume))
    assert snapshot(pixel_run) == before


def test_a_folder_of_something_else_is_not_touched(digits_config, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for resume in ("never", "auto"):
        with pytest.raises(RequestError, match=r"exists already|holds no run"):
            pretrain(pixel_config(digits_config, tmp_path, resume=resume))
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_other_data_is_refused(digits_config, gradients, tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(gradients, data)
    config = gradients_config(digits_config, data, out, steps=2)
    pretrain(config)
    (data / "03.png").unlink()
    before = snapshot(out)
    with pytest.raises(RequestError, match="is not the data that this run began with"):
        pretrain(replace(config, resume="auto", steps=4))
    assert snapshot(out) == before


def test_data_may_move_and_the_weights_to_start_from_may_go(digits_config, gradients, tmp_path):
    data, first, out = tmp_path / "data", tmp_path / "first", tmp_path / "run"
    shutil.copytree(gradients, data)
    config = gradients_config(digits_config, data, first, steps=1)
    pretrain(config)
    pretrain(replace(config, out=str(out), init=str(first)))
    shutil.rmtree(first)
    data.rename(tmp_path / "moved")
    moved = replace(config, data=str(tmp_path / "moved"), out=str(out), init=str(first), resume="auto", steps=2)
    assert pretrain(moved)["step"] == 2


# --- what goes wrong ---


@pytest.fixture
def with_bad_files(gradients, tmp_path):
    """The gradients with three files that are no images."""
    data = tmp_path / "data"
    shutil.copytree(gradients, data)
    (data / "empty.jpg").write_bytes(b"")
    (data / "text.png").write_text("no picture")
    (data / "cut.png").write_bytes((data / "00.png").read_bytes()[:60])
    return data


def test_bad_files_are_skipped_counted_and_named(digits_config, with_bad_files, tmp_path, capsys):
    before = snapshot(with_bad_files)
    summary = pretrain(gradients_config(digits_config, with_bad_files, tmp_path / "run", max_bad=0.2))
    assert (summary["status"], summary["bad_inputs"]) == ("complete", 3)
    lines = read_lines(tmp_path / "run" / "quarantine.jsonl")
    assert {line["name"] for line in lines} == {"empty.jpg", "text.png", "cut.png"}
    assert {line["name"]: line["reason"] for line in lines}["empty.jpg"] == "empty file"
    assert len(lines) == 3
    assert snapshot(with_bad_files) == before


def test_too_many_bad_files_stop_the_run_each_time(digits_config, with_bad_files, tmp_path):
    out = tmp_path / "run"
    config = gradients_config(digits_config, with_bad_files, out)
    for resume in ("never", "auto", "auto"):
        with pytest.raises(RequestError, match=r"of 27 inputs cannot be read.*--max-bad 0\.01"):
            pretrain(replace(config, resume=resume))
        assert json.loads((out / "summary.json").read_text())["status"] == "failed"
        assert not (out / "model.safetensors").exists()
        assert not (out / "checkpoints").exists()
    assert pretrain(replace(config, resume="auto", max_bad=0.2))["status"] == "complete"


def test_replacements_do_not_depend_on_reader_processes(digits_config, with_bad_files, tmp_path):
    runs = [tmp_path / "none", tmp_path / "one"]
    for workers, run in enumerate(runs):
        pretrain(gradients_config(digits_config, with_bad_files, run, max_bad=0.2, workers=workers))
    same_training_state(*runs)


def test_nothing_readable_leaves_nothing_behind(digits_config, tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for number in range(3):
        (data / f"{number}.png").write_text("no picture")
    with pytest.raises(RequestError, match="none of 3 images looked at can be read"):
        pretrain(gradients_config(digits_config, data, out, held_out=None))
    assert not out.exists()


def test_a_loss_that_is_not_finite_ends_the_run(digits_config, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Fault, match=r"not finite at step .*--base-lr"):
        pretrain(pixel_config(digits_config, out, base_lr=1e30))
    assert json.loads((out / "summary.json").read_text())["status"] == "failed"
    assert all(np.isfinite(line["loss"]) for line in metrics(out) if "loss" in line)


def test_a_full_disk_ends_the_run_with_its_last_checkpoint(digits_config, pixel_run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    from openmae.training import checkpoint

    def full(*arguments, **options):
        if (out / "checkpoints" / "step-00000005").exists():
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    real = checkpoint.save_file
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(Fault, match="step-00000010 was not saved, the disk is full"):
            pretrain(pixel_config(digits_config, out))
    assert json.loads((out / "summary.json").read_text())["status"] == "failed"
    pretrain(pixel_config(digits_config, out, resume="auto"))
    same_training_state(pixel_run, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(golden_losses(Path(folder) / "run"), indent=1) + "\n")
