"""What detect decides, and what it refuses."""

from dataclasses import replace

import pytest

from openmae.config import DetectConfig, Preprocessing, ViTShape
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError
from openmae.planning.decisions import Machine
from openmae.planning.detect import make_detect_plan, training_flops
from openmae.recipes import DETECT_RECIPES
from openmae.training.optim import StepSchedule

FACTS = DataFacts(
    count=300, channels=3, dtype="uint8", short_side=480, value_range=(0, 255), mean=(100.0,) * 3, std=(50.0,) * 3
)
CPU = Machine("cpu", has_bf16=False, workers=1, memory=16 << 30)
GPU = Machine("cuda", has_bf16=True, workers=4, memory=80 << 30)
BASE = ViTShape(image_size=(224, 224), patch_size=16, channels=3, width=768, depth=12, num_heads=12)
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


def plan(machine=CPU, encoder=TINY, facts=FACTS, has_masks=True, **settings):
    config = DetectConfig(data="objects", out="out", init="run" if encoder else "none", **settings)
    return make_detect_plan(config, facts, 7, has_masks, machine, None if encoder is None else (encoder, PHOTOS))


def test_narrow_for_few_images_and_the_papers_for_many():
    few, many = plan(encoder=BASE), plan(GPU, BASE, replace(FACTS, count=20_000))
    assert (few.config.image_size, few.config.head_width, few.config.roi_samples) == (320, 64, 64)
    assert (many.config.head_width, many.config.roi_samples, many.shape.box_width) == (256, 512, 1024)
    assert few.config.resize_range == (0.5, 2.0)
    assert few.config.batch_size == 4
    assert few.reasons["head_width"] == "300 images; the paper's is 256"
    assert plan().config.head_width == 48, "no wider than the encoder"


@pytest.mark.parametrize(("width", "peak"), [(192, 1e-3), (384, 3e-4), (768, 1e-4)])
def test_the_rate_of_small_batches_is_not_scaled_down_to_nothing(width, peak):
    config = plan(encoder=replace(BASE, width=width, num_heads=width // 64)).config
    assert config.base_lr * config.batch_size / 256 == pytest.approx(peak)


def test_windows_where_the_grid_is_large():
    small, large = plan(encoder=BASE), plan(GPU, BASE)
    assert (small.config.window_size, small.shape.encoder.class_token) == (0, True)  # 20 x 20 patches
    assert (large.config.image_size, large.config.window_size) == (480, 14)  # 30 x 30
    assert large.shape.encoder.global_blocks == (2, 5, 8, 11)
    assert not large.shape.encoder.class_token, "windows have no place for it"


def test_no_windows_where_every_block_would_see_the_whole_image():
    found = plan(GPU, replace(BASE, depth=4))
    assert found.config.window_size == 0
    assert found.reasons["window_size"] == "each of 4 blocks is the last of a quarter, which sees the whole image"


def test_the_square_is_the_long_sides():
    wide = replace(FACTS, short_side=100, aspects=(1.6,))
    assert plan(facts=wide).config.image_size == 160


def test_the_recipe_is_table_4s():
    found = plan(GPU, BASE, recipe="coco-base")
    c, encoder = found.config, found.shape.encoder
    assert (c.image_size, c.batch_size, c.epochs, c.window_size) == (1024, 64, 100.0, 14)
    assert c.base_lr * 64 / 256 == pytest.approx(8e-5)
    assert (c.weight_decay, c.drop_path, c.layer_decay, c.warmup_epochs) == (0.1, 0.1, 1.0, 0.25)
    assert c.resize_range == (0.1, 2.0)
    assert (encoder.relative_positions, encoder.shares_relative_positions) == ("bias", True)
    assert (found.shape.pyramid_blocks, found.shape.head_width, found.shape.roi_samples) == ((2, 5, 8, 11), 256, 512)
    assert found.shape.conventions.head_norm == "batch"


def test_the_recipe_is_vitdets():
    found = plan(GPU, replace(BASE, patch_size=14), recipe="vitdet-huge")
    c, encoder = found.config, found.shape.encoder
    assert (c.patch_size, c.pyramid, c.schedule, c.layer_decay, c.drop_path) == (16, "simple", "steps", 0.9, 0.5)
    assert c.epochs * 118_287 / 64 == pytest.approx(0.75 * 184_375)
    assert (encoder.relative_positions, encoder.class_token) == ("decomposed", False)
    assert (found.shape.pyramid_blocks, found.shape.conventions.head_norm) == ((11,), "layer")


@pytest.mark.parametrize("recipe", DETECT_RECIPES)
def test_every_recipe_makes_a_plan(recipe):
    assert plan(GPU, BASE, recipe=recipe).config.recipe == recipe
    assert DETECT_RECIPES[recipe].__doc__


def test_vitdets_milestones():
    schedule = StepSchedule(peak=1e-4, warmup_steps=250, total_steps=184_375)
    assert schedule(0) == pytest.approx(1e-7)
    rates = {step: schedule(step) for step in (250, 163_888, 163_889, 177_546, 177_547, 184_374)}
    expected = {250: 1e-4, 163_888: 1e-4, 163_889: 1e-5, 177_546: 1e-5, 177_547: 1e-6, 184_374: 1e-6}
    assert rates == pytest.approx(expected)


def test_what_the_encoder_has_of_its_own_stays():
    vitdet = replace(BASE, relative_positions="decomposed", class_token=False, window_size=7, global_blocks=(5, 11))
    found = plan(encoder=vitdet)
    assert found.config.window_size == 7
    assert found.shape.encoder.relative_positions == "decomposed"
    with pytest.raises(RequestError, match="--relative-positions got bias, but --init has decomposed"):
        plan(encoder=vitdet, relative_positions="bias")
    with pytest.raises(RequestError, match="would stay zero in an encoder that --freeze keeps"):
        plan(encoder=BASE, relative_positions="bias", freeze=True)


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_detectors_own_encoder_keeps_its_tables_shared_or_not(is_shared):
    own = replace(TINY, class_token=False, window_size=3, global_blocks=(1, 3), relative_positions="bias")
    own = replace(own, final_norm=False, shares_relative_positions=is_shared)
    shape = plan(encoder=own, relative_positions="bias", image_size=64).shape
    assert replace(shape.encoder, final_norm=False) == own
    assert training_flops(shape) > 0


def test_boxes_alone():
    assert not plan(has_masks=False).shape.has_masks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": (64, 96)}, "--image-size got 64 96, but images are padded to a square"),
        ({"schedule": "steps", "min_lr": 1e-5}, "--min-lr 1e-05 is for --schedule cosine"),
        ({"augment": "none", "resize_range": (0.5, 2.0)}, "--resize-range is for random crops"),
        ({"image_size": 100}, "a patch of 8 px does not divide"),
        ({"pyramid": "table-5"}, "--pyramid"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        plan(**settings)


def test_memory_is_checked():
    with pytest.raises(RequestError, match="images at a time need about"):
        plan(replace(CPU, memory=1 << 24))
