"""Long images through runs: the size that is chosen, what of an image is seen, runs from before there was a choice."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from openmae import FinetuneConfig, PackConfig, ProbeConfig, finetune, pack, pretrain, probe
from openmae.config import ResolvedFinetuneConfig, ResolvedPretrainConfig, ResolvedProbeConfig
from openmae.data.preprocess import survey
from openmae.data.sources.open import open_source
from openmae.errors import Interrupted
from openmae.planning.image_size import box_coverage, format_aspect, grid_for_aspect, mean_coverage, pack_image_size
from openmae.planning.pretrain import make_pretrain_plan
from openmae.run.folder import MAY_CHANGE
from openmae.tasks.finetune import finetune as finetune_task
from openmae.tasks.probe import probe as probe_task

from ...planning.test_pretrain import CPU, GPU, PHOTOS, config
from ...shared import same_training_state, signal_at

TUNING = {"steps": 6, "batch_size": 8, "held_out": 6, "device": "cpu", "workers": 0, "save_every": 2}


def long(short_side, aspect, **changes):
    return replace(PHOTOS, short_side=short_side, aspects=(aspect,), **changes)


# --- the size that is chosen ---


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "cuda"])
@pytest.mark.parametrize("short_side", [8, 16, 50, 128, 480])
@pytest.mark.parametrize("aspect", [1 / 16, 1 / 8, 1 / 2.5, 2.1, 10 / 3, 8, 12, 16])
@pytest.mark.parametrize("model", [None, "huge"])
def test_a_size_left_open_has_the_images_aspect_in_no_more_patches(machine, short_side, aspect, model):
    square = make_pretrain_plan(config(model=model), replace(PHOTOS, short_side=short_side), machine)
    found = make_pretrain_plan(config(model=model), long(short_side, aspect), machine)
    patch, (height, width) = found.config.patch_size, found.config.size
    count = found.shape.encoder.num_patches
    assert count <= square.shape.encoder.num_patches
    assert min(height, width) <= short_side
    assert patch >= square.config.patch_size
    if square.shape.encoder.num_patches > 2 * max(aspect, 1 / aspect):
        assert box_coverage(aspect, (height, width)) > 0.9
        assert count >= square.shape.encoder.num_patches / 3
    assert (width > height) == (aspect > 1)
    assert format_aspect(found_aspect(aspect)) in found.reasons["image_size"]


def found_aspect(aspect):
    return round(aspect, 6)


@pytest.mark.parametrize("aspect", [1 / 2, 2 / 3, 1.0, 1.5, 2.0])
def test_up_to_two_to_one_a_square_stays(aspect):
    for machine in (CPU, GPU):
        square, found = (make_pretrain_plan(config(), facts, machine) for facts in (PHOTOS, long(480, aspect)))
        assert found.config == square.config


def test_a_size_that_is_given_stays():
    facts = long(50, 12.0)
    assert make_pretrain_plan(config(image_size=32), facts, CPU).config.size == (32, 32)
    assert make_pretrain_plan(config(image_size=(32, 96)), facts, CPU).config.size == (32, 96)
    of_patch = make_pretrain_plan(config(patch_size=8), facts, CPU).config
    assert (of_patch.patch_size, of_patch.size) == (8, (8, 96))  # of 6 x 6 patches that a square would have
    assert make_pretrain_plan(config(), facts, CPU).config.size == (48, 576)


def test_the_median_aspect_is_of_most_images_and_knows_no_direction():
    assert replace(PHOTOS, aspects=(12.0, 12.0, 1.0)).aspect == 12
    assert replace(PHOTOS, aspects=(3.0, 1 / 3)).aspect == 1
    assert [format_aspect(a) for a in (1.0, 10 / 3, 1 / 8)] == ["1:1", "3.33:1", "1:8"]
    assert mean_coverage(replace(PHOTOS, aspects=(12.0, 1.0, 0.5)), (10, 20)) == pytest.approx(
        (1 / 6 + 1 / 2 + 1 / 4) / 3
    )


def test_grids_are_the_nearest_there_are():
    assert grid_for_aspect(12.0, 144) == (3, 36)
    assert grid_for_aspect(1 / 12, 144) == (36, 3)
    assert grid_for_aspect(100.0, 4) == (1, 4)
    assert grid_for_aspect(3.0, 1) == (1, 1)


# --- runs ---


@pytest.fixture(scope="module")
def banners(tmp_path_factory):
    """Two classes of smooth images of 20 x 120 pixels."""
    root, chance = tmp_path_factory.mktemp("banners"), np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 90)):
        (root / name).mkdir()
        for number in range(20):
            coarse = Image.fromarray(chance.integers(low, low + 160, (3, 15, 3), dtype=np.uint8))
            coarse.resize((120, 20), Image.Resampling.BICUBIC).save(root / name / f"{number}.png")
    return root


def banner_config(banners, out, digits_config, **changes):
    return digits_config(
        out, **{"data": str(banners), "image_size": None, "patch_size": None, "held_out": 8, **changes}
    )


@pytest.fixture(scope="module")
def model(banners, tmp_path_factory):
    """A model that was told no size."""
    from ...tiny_runs import make_digits_config

    out = tmp_path_factory.mktemp("runs") / "banners"
    pretrain(banner_config(banners, out, make_digits_config))
    return out


def test_what_was_understood_is_said_and_stored(banners, digits_config, tmp_path, capsys):
    pretrain(banner_config(banners, tmp_path / "run", digits_config))
    told = capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (stored["image_size"], stored["patch_size"], stored["crop_aspect"]) == ([16, 96], 8, "model")
    assert (
        "seen       100 % of an image in the mean, by an evaluation at 16x96 px; the images' median aspect is 6:1"
        in told
    )
    pretrain(banner_config(banners, tmp_path / "square", digits_config, image_size=16, patch_size=4))
    assert "seen       17 % of an image in the mean, by an evaluation at 16x16 px" in capsys.readouterr().out


def test_fine_tuning_and_probe_say_it_too(banners, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(finetune_task, "write_report", lambda *arguments: None)
    monkeypatch.setattr(probe_task, "write_report", lambda *arguments: None)
    for number, run in enumerate((finetune_of, probe_of)):
        run(banners, model, tmp_path / str(number))
        told = capsys.readouterr().out
        # The centre of 7/8 of the sides would enlarge nothing: 20 px are enough for 16.
        assert "seen       77 % of an image in the mean, by an evaluation at 16x96 px; the images' median" in told
        assert json.loads((tmp_path / str(number) / "config.json").read_text())["crop_aspect"] == "model"


def pretrain_of(banners, model, out, **changes):
    from ...tiny_runs import make_digits_config

    settings = {"image_size": (8, 48), "patch_size": 4, "save_every": 2, "steps": 6}
    return pretrain(banner_config(banners, out, make_digits_config, **{**settings, **changes}))


def finetune_of(banners, model, out, **changes):
    return finetune(FinetuneConfig(data=str(banners), init=str(model), out=str(out), **{**TUNING, **changes}))


def probe_of(banners, model, out, **changes):
    settings = {**TUNING, "augment": "crop", "base_lr": (1.0,), **changes}
    return probe(ProbeConfig(data=str(banners), init=str(model), out=str(out), **settings))


TASKS = {
    "pretrain": (pretrain_of, ResolvedPretrainConfig),
    "finetune": (finetune_of, ResolvedFinetuneConfig),
    "probe": (probe_of, ResolvedProbeConfig),
}


@pytest.mark.parametrize("name", TASKS)
def test_older_runs_go_on_as_they_began(banners, model, tmp_path, monkeypatch, name):
    """Neither their config.json nor their checkpoints name the choice; new runs do, and end elsewhere."""
    task, kind = TASKS[name]
    for module in (finetune_task, probe_task):
        monkeypatch.setattr(module, "write_report", lambda *arguments: None)
    assert "crop_aspect" not in MAY_CHANGE
    task(banners, model, tmp_path / "whole", crop_aspect="square")
    to_dict = kind.to_dict
    with monkeypatch.context() as patch:
        patch.setattr(kind, "to_dict", lambda self: {k: v for k, v in to_dict(self).items() if k != "crop_aspect"})
        signal_at(patch, 3)
        with pytest.raises(Interrupted):
            task(banners, model, tmp_path / "old", crop_aspect="square")
    for file in (tmp_path / "old").rglob("*.json"):
        assert "crop_aspect" not in file.read_text(), file
    assert task(banners, model, tmp_path / "old", resume="auto")["step"] == 6
    same_training_state(tmp_path / "whole", tmp_path / "old", 6)
    assert json.loads((tmp_path / "old" / "config.json").read_text())["crop_aspect"] == "square"
    task(banners, model, tmp_path / "new")
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "new")]
    assert weights[0] != weights[1]


# --- packs ---


def test_a_raw_pack_keeps_long_images(banners, tmp_path, capsys):
    pack(PackConfig(data=str(banners), out=str(tmp_path / "pack"), format="raw", workers=0))
    told = capsys.readouterr().out
    assert "the centre 20x120 px x 3 of each image" in told
    assert "is lost, 0 % of an image in the mean" in told
    source = open_source(str(tmp_path / "pack"))
    assert survey(source).raw_shape == (20, 120, 3)
    assert np.array_equal(source.read(0), open_source(str(banners)).read(0))
    assert pack_image_size(long(480, 8.0), 256) == (90, 720)
    assert pack_image_size(long(480, 1 / 8), 256) == (720, 90)
    assert pack_image_size(long(480, 2.0), 256) == 256
    assert pack_image_size(long(3, 100.0), 256) == (3, 300)


def test_a_pack_that_was_begun_with_a_square_stays_one(banners, tmp_path):
    """As packs from before there was a choice: it was begun with its short side."""
    whole, out = tmp_path / "whole", tmp_path / "pack"
    pack(PackConfig(data=str(banners), out=str(whole), format="raw", workers=0, size=20))
    shutil.copytree(whole, out)
    (out / "pack.json").rename(out / ".partial-pack.json")  # all is there but the end
    settings = {"data": str(banners), "out": str(out), "format": "raw", "workers": 0, "resume": "auto"}
    pack(PackConfig(**settings))
    assert (out / "pack.json").read_bytes() == (whole / "pack.json").read_bytes()
    assert pack(PackConfig(**settings))["status"] == "complete"
