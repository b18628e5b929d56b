"""`pretrain --crop-on device`: the same run but for round-off, whatever stops it, and refused where it cannot be."""

import json
import random
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from openmae import PackConfig, pack
from openmae.benchmarks.ours import make_ours, pretrain_plan_for
from openmae.cli import run as command
from openmae.config import PretrainConfig, ResolvedPretrainConfig
from openmae.data.batch import Batch
from openmae.data.device_crop import model_input
from openmae.errors import RequestError
from openmae.planning.decisions import Machine
from openmae.planning.pretrain import make_pretrain_plan
from openmae.run.folder import MAY_CHANGE
from openmae.tasks.pretrain.pretrain import pretrain

from ...planning.test_pretrain import CPU as CPU_MACHINE
from ...planning.test_pretrain import GPU, PHOTOS
from ...processes import TINY, run, run_with_stops
from ...shared import metrics, same_training_state, untimed, whole_micro_batches

CPU = torch.device("cpu")
PACKED = replace(PHOTOS, raw_shape=(256, 256, 3))
STEPS = 30


@pytest.fixture(scope="session")
def packs(tmp_path_factory):
    """The same forty smooth images of 24 x 24 pixels as files and as packs."""
    root = tmp_path_factory.mktemp("crop-on")
    (root / "files").mkdir()
    chance = np.random.default_rng(0)
    for number in range(40):
        coarse = Image.fromarray(chance.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((24, 24), Image.Resampling.BICUBIC).save(root / "files" / f"{number:02d}.png")
    for form in ("raw", "jpeg"):
        pack(PackConfig(data=str(root / "files"), out=str(root / form), format=form, workers=0))
    return root


def config_on(packs, out, crop_on, digits_config, **changes):
    settings = {"data": str(packs / "raw"), "crop_on": crop_on, "image_size": 16, "patch_size": 4, "held_out": 8}
    return digits_config(out, **{**settings, **changes})


# --- one step ---


def test_a_step_is_that_of_the_float_crops():
    """Equal to the last bit."""
    results = []
    raw = replace(pretrain_plan_for("tiny", 4, CPU, "fp32").preprocessing, mean=(0.0,) * 3, std=(1.0,) * 3)
    raw = replace(raw, value_range=(0.0, 1.0))  # changes no value
    cut = [Batch(model_input(micro_batch, raw, CPU), micro_batch.keys, {}) for micro_batch in whole_micro_batches()]
    for micro_batches in (whole_micro_batches(), cut):
        ours = make_ours(pretrain_plan_for("tiny", 4, CPU, "fp32", micro_batch_size=3), CPU)
        ours.micro_batches = micro_batches
        loss, norm, skipped = ours.step()
        assert not skipped
        gradients = [state["exp_avg"] for state in ours.optimizer.state.values()]  # a tenth of each, after one step
        assert len(gradients) > 30
        assert all(gradient.any() for gradient in gradients)
        results.append([loss, norm, *gradients])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


# --- runs ---


@pytest.fixture(scope="module")
def on_device(packs, tmp_path_factory):
    """A finished run, cropped on the device. Tests only read it."""
    from ...tiny_runs import make_digits_config

    out = tmp_path_factory.mktemp("runs") / "device"
    pretrain(config_on(packs, out, "device", make_digits_config))
    return out


@pytest.mark.parametrize("augment", ["crop", "crop-fixed", "none"])
def test_its_losses_are_near_a_readers(packs, digits_config, tmp_path, augment):
    """Only what a reader rounds away differs. Measured in twelve steps: 1.7e-4 of the loss at most."""
    lines = {}
    for crop_on in ("device", "reader"):
        out = tmp_path / crop_on
        pretrain(config_on(packs, out, crop_on, digits_config, augment=augment, log_every=1))
        lines[crop_on] = untimed(metrics(out))
    assert lines["device"] != lines["reader"]
    for one, other in zip(lines["device"], lines["reader"], strict=True):
        for name in {"loss", "held_out_loss"} & one.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-3), (name, one["step"])


def test_readers_and_micro_batches_change_nothing(packs, on_device, digits_config, tmp_path):
    """Not a bit with readers; of losses with micro-batches 1.2e-7 (measured): gradients add up in another order."""
    pretrain(config_on(packs, tmp_path / "readers", "device", digits_config, workers=2))
    same_training_state(on_device, tmp_path / "readers")
    pretrain(config_on(packs, tmp_path / "parts", "device", digits_config, micro_batch_size=6))
    for whole, micro_batches in zip(metrics(on_device), metrics(tmp_path / "parts"), strict=True):
        for name in {"loss", "held_out_loss"} & whole.keys():
            assert whole[name] == pytest.approx(micro_batches[name], rel=1e-6), whole["step"]


def test_several_crops_of_an_image(packs, on_device, digits_config, tmp_path):
    summary = pretrain(config_on(packs, tmp_path / "run", "device", digits_config, crops_per_decode=4))
    assert (summary["status"], summary["images_seen"]) == ("complete", 12 * 16)
    assert metrics(tmp_path / "run")[0]["loss"] != metrics(on_device)[0]["loss"]


def arguments(packs, out, workers):
    tiny = TINY.replace("--image-size 8 --patch-size 2", "--image-size 16 --patch-size 4")
    tiny = tiny.replace("--held-out 32", "--held-out 8 --seed 3 --crop-on device")
    return f"pretrain {packs / 'raw'} --out {out} --steps {STEPS} --workers {workers} --resume auto {tiny}"


@pytest.mark.slow
@pytest.mark.parametrize(("count", "workers"), [(1, 2), (2, 0)])
def test_a_killed_run_goes_on_to_the_same_bytes(packs, tmp_path, count, workers):
    chance, whole, out, log = random.Random(count), tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert run(arguments(packs, whole, 0), log, count) == [0] * count, log.read_text()
    stops = [(signal.SIGKILL, chance.randrange(4, 12)), (signal.SIGTERM, chance.randrange(14, 26))]
    run_with_stops(arguments(packs, out, workers), out, log, count, stops)
    same_training_state(whole, out, STEPS)
    assert untimed(metrics(whole)) == untimed(metrics(out))


def test_a_run_goes_on_as_it_began(packs, on_device, digits_config, tmp_path):
    """Also where the choice would be another one now: it changes pixels."""
    out = shutil.copytree(on_device, tmp_path / "run")
    assert "crop_on" not in MAY_CHANGE
    with pytest.raises(RequestError, match="--crop-on device, not reader"):
        pretrain(config_on(packs, out, "reader", digits_config, resume="auto", steps=14))
    assert pretrain(config_on(packs, out, None, digits_config, resume="auto", steps=14))["step"] == 14
    assert json.loads((out / "config.json").read_text())["crop_on"] == "device"


def test_an_older_run_on_a_raw_pack_goes_on_in_the_reader(packs, digits_config, tmp_path, monkeypatch):
    """Neither its config.json nor its checkpoints name the choice, and this machine would choose the device now."""
    old, new = tmp_path / "old", tmp_path / "new"
    to_dict = ResolvedPretrainConfig.to_dict
    for out in (old, new):
        with monkeypatch.context() as patch:
            if out == old:
                patch.setattr(ResolvedPretrainConfig, "to_dict", lambda self: without(to_dict(self), "crop_on"))
            pretrain(config_on(packs, out, "reader", digits_config))
    states = [json.loads(file.read_bytes())["settings"] for file in old.rglob("state.json")]
    assert states
    assert not any("crop_on" in record for record in [json.loads((old / "config.json").read_bytes()), *states])
    monkeypatch.setattr(Machine, "of", lambda *_: GPU)
    asked = config_on(packs, old, None, digits_config, resume="auto", steps=14)
    assert make_pretrain_plan(asked, PACKED, GPU).config.crop_on == "device"
    assert pretrain(asked)["step"] == 14
    assert json.loads((old / "config.json").read_bytes())["crop_on"] == "reader"
    pretrain(config_on(packs, new, "reader", digits_config, resume="auto", steps=14))
    same_training_state(old, new, 14)


def without(record, name):
    return {key: value for key, value in record.items() if key != name}


# --- the choice ---


@pytest.mark.parametrize(
    ("facts", "machine", "augment", "wanted", "why"),
    [
        (PACKED, GPU, None, "device", "readers need only copy"),
        (PACKED, GPU, "none", "device", "readers need only copy"),
        (PACKED, GPU, "crop-jitter", "reader", "--augment crop-jitter"),
        (PACKED, CPU_MACHINE, None, "reader", "faster than cropping on cpu"),
        (PACKED, Machine("mps", False, 4, 16 << 30), None, "reader", "not measured on mps"),
        (PHOTOS, GPU, None, "reader", "no raw pack"),
        (PHOTOS, CPU_MACHINE, None, "reader", "no raw pack"),
    ],
)
def test_it_is_decided_with_a_reason(facts, machine, augment, wanted, why):
    settled = make_pretrain_plan(PretrainConfig(data="images", out="run", augment=augment), facts, machine)
    assert settled.config.crop_on == wanted
    assert why in settled.reasons["crop_on"]


def test_what_is_asked_for_is_done():
    for crop_on in ("reader", "device"):
        for machine in (CPU_MACHINE, GPU):
            settled = make_pretrain_plan(PretrainConfig(data="images", out="run", crop_on=crop_on), PACKED, machine)
            assert settled.config.crop_on == crop_on
            assert "crop_on" not in settled.reasons


def test_runs_from_before_there_was_a_choice_cropped_in_the_reader():
    settled = make_pretrain_plan(PretrainConfig(data="images", out="run"), PHOTOS, CPU_MACHINE).config
    old = settled.to_dict()
    del old["crop_on"]
    assert ResolvedPretrainConfig.from_dict(old) == settled
    with pytest.raises(RequestError, match="--crop-on device: --augment crop-jitter"):
        replace(settled, crop_on="device", augment="crop-jitter")


@pytest.mark.parametrize(
    ("data", "flags", "wanted"),
    [
        ("files", "device", ["files is no raw pack", "openmae pack --format raw", "--crop-on reader"]),
        ("jpeg", "device", ["jpeg is no raw pack", "openmae pack --format raw", "--crop-on reader"]),
        ("raw", "device --augment crop-jitter", ["--augment crop-jitter", "give --augment crop,", "--crop-on reader"]),
        ("raw", "devise", ["--crop-on got 'devise'", "did you mean 'device'"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(packs, tmp_path, capsys, data, flags, wanted):
    out = tmp_path / "run"
    assert command(f"pretrain {packs / data} --out {out} --steps 2 {TINY} --crop-on {flags}".split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("openmae: ")
    assert all(words in line for words in wanted), line
    assert not out.exists()
