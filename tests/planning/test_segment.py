"""What segment decides, and what it refuses."""

from dataclasses import replace

import pytest

from openmae.config import Preprocessing, SegmentConfig, ViTShape
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError
from openmae.machine.parallel import check_even_shares
from openmae.planning.decisions import Machine
from openmae.planning.segment import make_segment_plan, training_flops

FACTS = DataFacts(
    count=300, channels=3, dtype="uint8", short_side=480, value_range=(0, 255), mean=(100.0,) * 3, std=(50.0,) * 3
)
CPU = Machine("cpu", has_bf16=False, workers=1, memory=16 << 30)
GPU = Machine("cuda", has_bf16=True, workers=4, memory=80 << 30)
TINY = ViTShape(image_size=(64, 64), patch_size=8, channels=3, width=48, depth=4, num_heads=3)
PHOTOS = Preprocessing(
    channels=3,
    value_range=(0.0, 255.0),
    mean=(0.5,) * 3,
    std=(0.2,) * 3,
    image_size=(64, 64),
    background=1.0,
    dtype="uint8",
)


def plan(machine=CPU, encoder=TINY, **settings):
    config = SegmentConfig(data="scenes", out="out", init="run" if encoder else "none", **settings)
    return make_segment_plan(config, FACTS, 7, machine, None if encoder is None else (encoder, PHOTOS))


def test_small_on_a_cpu_and_the_papers_crop_on_a_gpu():
    small, large = plan(), plan(GPU)
    assert small.config.image_size == 128
    assert small.config.head_width == 32
    assert small.config.stride == 85
    assert large.config.image_size == 480  # the images' short side, for 512 px are not there
    assert large.config.head_width == 48  # the encoder's
    assert small.config.epochs == 50
    assert "narrow, for cpu" in small.reasons["head_width"]


def test_the_recipe_is_table_5s():
    c = plan(GPU, encoder=replace(TINY, width=768, num_heads=12, depth=12, patch_size=16), recipe="ade20k-base").config
    assert (c.image_size, c.batch_size, c.epochs, c.stride) == (512, 16, 100.0, 341)
    assert c.base_lr * 16 / 256 == pytest.approx(1e-4)
    assert (c.relative_positions, c.head_width, c.layer_decay, c.drop_path) == ("bias", 768, 0.65, 0.1)
    assert c.warmup_epochs * 20_210 / 16 == pytest.approx(1500)
    assert plan(GPU, recipe="ade20k-base", image_size=256).config.stride == 170


def test_a_frozen_encoder_drops_and_decays_nothing():
    frozen = plan(recipe="ade20k-base", freeze=True)
    assert (frozen.config.drop_path, frozen.config.layer_decay) == (0.0, 1.0)
    assert frozen.shape.encoder.relative_positions == "none"
    assert frozen.reasons["drop_path"] == "the encoder is frozen"


def test_whole_images_have_no_stride():
    assert plan(inference="whole").config.stride is None


def test_the_encoders_own_relative_positions_stay():
    beit = replace(TINY, positions="none", relative_positions="bias")
    assert plan(encoder=beit).shape.encoder.relative_positions == "bias"
    vitdet = replace(TINY, relative_positions="decomposed", class_token=False)
    assert plan(encoder=vitdet).shape.encoder.relative_positions == "decomposed"
    for encoder, wanted in ((beit, "none"), (vitdet, "bias"), (TINY, "decomposed")):
        with pytest.raises(RequestError, match="--relative-positions got"):
            plan(encoder=encoder, relative_positions=wanted)
    with pytest.raises(RequestError, match="for encoders with a class token"):
        plan(encoder=replace(TINY, class_token=False), relative_positions="bias")


def test_settings_that_would_do_nothing_are_refused():
    with pytest.raises(RequestError, match="--resize-range is for random crops"):
        plan(augment="none", resize_range=(0.5, 1.0))
    with pytest.raises(RequestError, match="--stride 8 is for --inference slide"):
        plan(inference="whole", stride=8)
    with pytest.raises(RequestError, match="--split-rules 1"):
        plan(split_rules=1)
    assert plan(augment="none").config.resize_range == (1.0, 1.0)


def test_processes_take_equally_many_images():
    check_even_shares(16, 4)
    with pytest.raises(RequestError, match=r"--batch-size 5 for 2 processes: .* such as 4"):
        check_even_shares(5, 2)


def test_work_grows_with_the_crop():
    one, four = plan(image_size=64).shape, plan(image_size=128).shape
    assert 3.9 < training_flops(four) / training_flops(one) < 6  # attention grows faster than the pixels
