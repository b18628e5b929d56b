"""What openmae decides when nobody says: sound for many kinds of data, and never without a reason."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openmae.config import IMAGENET_MEAN, PretrainConfig, ResolvedPretrainConfig
from openmae.data.preprocess import DataFacts, normalise
from openmae.errors import RequestError
from openmae.interchange.stored import StoredModel
from openmae.planning.decisions import Machine, total_steps
from openmae.planning.encoder import heads_for
from openmae.planning.pretrain import PretrainPlan, make_pretrain_plan, planned_memory

CPU = Machine("cpu", False, 2, 16 << 30)
GPU = Machine("cuda", True, 8, 80 << 30)
PHOTOS = DataFacts(
    count=50_000,
    channels=3,
    dtype="uint8",
    short_side=480,
    value_range=(0.0, 255.0),
    mean=(127.5, 127.5, 127.5),
    std=(0.2, 0.2, 0.2),
)
GREY = replace(PHOTOS, channels=1, mean=(102.0,), std=(76.5,))
DATA = {
    "cifar": replace(PHOTOS, short_side=32),
    "digits": replace(GREY, count=1400, short_side=8),
    "photos": PHOTOS,
    "imagenet": replace(PHOTOS, count=1_281_167, short_side=375),
    "thumbnails": replace(PHOTOS, short_side=100),
    "a handful": replace(PHOTOS, count=5),
    "grey": GREY,
    "microscope": replace(GREY, dtype="uint16", value_range=(100.0, 4000.0)),
    "satellite": replace(PHOTOS, channels=13, dtype="uint16", mean=(0.4,) * 13, std=(0.2,) * 13),
}
# `held_out` is decided where the data is opened; `model` is a name for a width, a depth and heads.
MAY_STAY_OPEN = {"tiles", "recipe", "mask_file", "init", "model", "epochs", "steps", "held_out"}
MAY_STAY_OPEN |= {"pca_coefficients", "tokenizer"}  # of --target pca and token only
MAY_STAY_OPEN |= {"watch", "watch_data", "watch_every"}  # nothing of them reaches the training
MAY_STAY_OPEN |= {"train", "val", "test"}  # in place of `data`


def config(**settings):
    return PretrainConfig(data="images", out="run", **settings)


def settled(facts=PHOTOS, machine=CPU, **settings):
    return make_pretrain_plan(config(**settings), facts, machine)


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "cuda"])
@pytest.mark.parametrize("facts", DATA.values(), ids=DATA)
def test_nothing_stays_open_and_each_decision_has_a_reason(facts, machine):
    result = settled(facts, machine)
    asked, given = config().to_dict(), result.config.to_dict()
    assert {name for name, value in given.items() if value is None} <= MAY_STAY_OPEN
    assert (given["epochs"] is None) != (given["steps"] is None)
    decided = {name for name in given if given[name] != asked[name]}
    assert decided == result.reasons.keys()
    assert all(result.reasons.values())
    assert result.preprocessing.channels == result.shape.encoder.channels == facts.channels
    assert result.preprocessing.image_size == result.shape.encoder.image_size
    assert result.preprocessing.dtype == facts.dtype
    assert result.shape.encoder.num_patches >= 4


def test_device_and_held_out_images_are_settled_with_the_rest():
    """The device by its full name, asked for or not; of the images held out what the data says, unless asked for."""
    second = replace(GPU, name="cuda:1")
    for asked, reasons in ((None, {"device", "held_out"}), ("cuda:1", {"held_out"})):
        plan = make_pretrain_plan(config(device=asked), PHOTOS, second, num_held_out=256)
        assert (plan.config.device, plan.config.held_out) == ("cuda:1", 256)
        assert reasons == {"device", "held_out"} & plan.reasons.keys()
    assert make_pretrain_plan(config(), PHOTOS, CPU, num_held_out=0).reasons["held_out"] == "too few images"
    given = make_pretrain_plan(config(held_out=7), PHOTOS, CPU, num_held_out=5)
    assert (given.config.held_out, "held_out" in given.reasons) == (7, False)
    assert Machine.of(torch.device("cpu"), 1).name == "cpu"


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "cuda"])
@pytest.mark.parametrize("facts", DATA.values(), ids=DATA)
def test_warm_up_and_rate_stay_in_bounds(facts, machine):
    c = settled(facts, machine).config
    assert c.warmup_epochs <= min(40.0, 0.05 * c.epochs)
    peak = c.base_lr * c.batch_size / 256
    floor = 1e-3 if c.width <= 192 else 5e-4 if c.width <= 384 else 1.5e-4
    assert floor * 0.999 <= peak
    assert c.base_lr >= 1.5e-4
    assert 8 <= c.batch_size <= 1024


@pytest.mark.parametrize(
    ("name", "machine", "size", "patch", "model"),
    [
        ("cifar", GPU, 32, 4, "small"),
        ("digits", CPU, 8, 4, "tiny"),
        ("photos", GPU, 224, 16, "small"),
        ("photos", CPU, 96, 8, "tiny"),
        ("imagenet", GPU, 224, 16, "base"),
        ("thumbnails", GPU, 96, 8, "small"),
        ("a handful", GPU, 224, 16, "tiny"),
    ],
)
def test_sizes_follow_the_images_and_the_device(name, machine, size, patch, model):
    c = settled(DATA[name], machine).config
    assert (c.image_size, c.patch_size, c.model) == (size, patch, model)


def test_many_images_make_a_large_model():
    assert settled(replace(PHOTOS, count=3_000_000), GPU).config.model == "large"


@pytest.mark.parametrize(
    ("model", "decoder"),
    [("tiny", (192, 4)), ("small", (256, 4)), ("base", (512, 8)), ("large", (512, 8)), ("huge", (512, 8))],
)
def test_the_decoder_matches_the_encoder(model, decoder):
    shape = settled(model=model).shape
    assert (shape.decoder.width, shape.decoder.depth) == decoder
    assert shape.decoder.width % shape.decoder.num_heads == 0
    assert shape.decoder.width <= shape.encoder.width


@pytest.mark.parametrize("width", [4, 24, 64, 100, 192, 260, 768])
def test_any_width_gets_heads_that_divide_it(width):
    shape = settled(width=width, depth=2).shape  # its own check would refuse others
    assert shape.encoder.width == width
    assert shape.encoder.num_heads == heads_for(width, 64)


def test_flags_win_over_every_default():
    asked = {
        "model": "base",
        "patch_size": 32,
        "image_size": (64, 96),
        "mask": "block",
        "mask_ratio": 0.5,
        "epochs": 3.0,
    }
    result = settled(**asked, decoder_depth=1, target="pixel", batch_size=24, base_lr=1e-5, warmup_epochs=2.5)
    for name, value in asked.items():
        assert getattr(result.config, name) == value
        assert name not in result.reasons
    assert result.shape.encoder.grid == (2, 3)
    c = result.config
    assert (c.decoder_depth, c.target, c.batch_size, c.base_lr, c.warmup_epochs) == (1, "pixel", 24, 1e-5, 2.5)


def test_the_recipe_fills_table_8():
    c = settled(recipe="mae-large", machine=GPU).config
    assert (c.width, c.depth, c.num_heads, c.patch_size, c.image_size) == (1024, 24, 16, 16, 224)
    assert (c.decoder_width, c.decoder_depth, c.decoder_num_heads) == (512, 8, 16)
    assert (c.batch_size, c.base_lr, c.weight_decay, c.betas) == (4096, 1.5e-4, 0.05, (0.9, 0.95))
    assert (c.epochs, c.warmup_epochs, c.mask, c.mask_ratio) == (1600, 40, "random", 0.75)
    assert (c.target, c.augment, c.mean) == ("norm-pixel", "crop", IMAGENET_MEAN)


def test_a_recipes_warm_up_is_shortened_where_the_run_is_shorter():
    result = settled(recipe="mae-large", machine=GPU, epochs=10.0)
    assert result.config.warmup_epochs == pytest.approx(0.5)
    assert "more than this run's epochs" in result.reasons["warmup_epochs"]
    by_steps = settled(recipe="mae-large", machine=GPU, steps=100, batch_size=500)  # one epoch
    assert by_steps.config.warmup_epochs == pytest.approx(0.05)
    assert settled(recipe="mae-large", machine=GPU, epochs=41.0).config.warmup_epochs == 40


@pytest.mark.parametrize("length", [{"epochs": 2.0}, {"steps": 100, "batch_size": 500}])
def test_an_asked_warm_up_as_long_as_the_run_is_refused(length):
    with pytest.raises(RequestError, match=r"--warmup-epochs got 2 for a run of [12] epochs: give fewer"):
        settled(warmup_epochs=2.0, **length)
    assert settled(warmup_epochs=0.0, **length).config.warmup_epochs == 0


@pytest.mark.parametrize(
    ("short_side", "size", "patch"), [(1, 1, 1), (2, 2, 1), (3, 3, 1), (6, 6, 2), (7, 6, 2), (8, 8, 4), (63, 60, 4)]
)
def test_small_images_get_small_patches(short_side, size, patch):
    if short_side == 1:
        with pytest.raises(RequestError, match="no patch visible"):
            settled(replace(PHOTOS, short_side=1))
        return
    c = settled(replace(PHOTOS, short_side=short_side)).config
    assert (c.image_size, c.patch_size) == (size, patch)


def test_a_side_that_no_usual_patch_divides_is_refused_with_one_that_would_do():
    with pytest.raises(RequestError, match=r"8 px does not divide an image of 97x97 px: --image-size 96 96 would do"):
        settled(replace(PHOTOS, short_side=120), image_size=97)
    assert settled(replace(PHOTOS, short_side=97)).config.image_size == 96
    assert settled(replace(PHOTOS, short_side=120), image_size=98).config.patch_size == 7


def test_a_given_range_with_measured_statistics_normalises_raw_values():
    """Mean and deviation are measured on raw values; a 12-bit image in 16 bits has its own range."""
    facts = replace(GREY, dtype="uint16", value_range=(90.0, 3900.0), mean=(2000.0,), std=(500.0,))
    preprocessing = settled(facts, value_range=(0.0, 4095.0)).preprocessing
    assert preprocessing.value_range == (0.0, 4095.0)
    values = torch.tensor([1500.0, 2000.0, 2500.0]).view(1, 1, 1, 3)
    expected = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3)
    torch.testing.assert_close(normalise(values, preprocessing), expected, atol=1e-3, rtol=0)
    own = settled(facts).preprocessing
    torch.testing.assert_close(normalise(values, own), expected, atol=1e-3, rtol=0)


def test_the_recipe_of_huge_has_patches_of_14():
    c = settled(recipe="mae-huge", machine=GPU).config
    assert (c.width, c.patch_size, c.image_size) == (1280, 14, 224)


def test_flags_win_over_the_recipe():
    result = settled(recipe="mae-large", machine=GPU, steps=50, batch_size=64, target="pixel", depth=2)
    c = result.config
    assert (c.steps, c.epochs, c.batch_size, c.target, c.depth, c.width) == (50, None, 64, "pixel", 2, 1024)
    assert "recipe" in result.reasons["base_lr"]


def test_statistics_follow_the_kind_of_data():
    assert settled(PHOTOS).preprocessing.mean == IMAGENET_MEAN
    assert settled(GREY).preprocessing.mean == (0.4,)
    assert settled(PHOTOS, statistics="measured").preprocessing.mean == (0.5, 0.5, 0.5)
    assert settled(GREY, channels=3).preprocessing.mean == pytest.approx((0.4,) * 3)
    assert settled(DATA["microscope"]).preprocessing.value_range == (100.0, 4000.0)
    own = settled(PHOTOS, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)).preprocessing
    assert (own.mean, own.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("machine", "model", "precision"),
    [
        (GPU, "tiny", "bf16"),
        (replace(GPU, has_bf16=False), "large", "fp32"),
        (CPU, "base", "fp32"),
        (replace(CPU, has_bf16=True), "base", "bf16"),
        (replace(CPU, has_bf16=True), "tiny", "fp32"),
    ],
)
def test_precision_is_the_faster_one(machine, model, precision):
    assert settled(machine=machine, model=model).config.precision == precision


def model_of(first: PretrainPlan) -> StoredModel:
    """A model that was trained with these settings; its weights are not looked at."""
    return StoredModel(Path("a run"), {}, first.shape, first.preprocessing, {})


def test_weights_of_eight_bit_images_take_sixteen_bits_as_eight():
    """Or 0..65535 would be read on the weights' scale of 0..255."""
    first = settled(GREY)
    again = make_pretrain_plan(config(), DATA["microscope"], CPU, model_of(first))
    assert (again.preprocessing.dtype, again.preprocessing.value_range) == ("uint8", (0.0, 255.0))
    own = make_pretrain_plan(config(value_range=(0.0, 4095.0)), DATA["microscope"], CPU, model_of(first))
    assert (own.preprocessing.dtype, own.preprocessing.value_range) == ("uint16", (0.0, 4095.0))


def test_weights_to_start_from_bring_their_shape_and_statistics():
    first = settled(GREY, width=48, depth=2, num_heads=4, image_size=32, patch_size=8, target="pixel")
    again = make_pretrain_plan(config(), PHOTOS, GPU, model_of(first))
    assert again.shape == first.shape
    assert (again.preprocessing.mean, again.preprocessing.channels) == (first.preprocessing.mean, 1)
    assert again.reasons["width"] == "as --init"
    other = make_pretrain_plan(config(image_size=64), PHOTOS, GPU, model_of(first))
    assert other.shape.encoder.grid == (8, 8)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"mask": "grid", "mask_ratio": 0.5}, "--mask-ratio got 0.5"),
        ({"mask_ratio": 0.999}, "no patch visible"),
        ({"mask_ratio": 1e-20}, "no patch masked"),
        ({"image_size": 30, "patch_size": 16}, "does not divide"),
        ({"image_size": 8, "patch_size": 16}, "smaller than one patch"),
        ({"width": 50, "depth": 1, "num_heads": 5}, "--width got 50"),
        ({"num_heads": 5}, "--num-heads got 5"),
        ({"decoder_num_heads": 5}, "--decoder-num-heads got 5"),
        ({"channels": 5}, "--channels got 5, but the images have 3"),
        ({"patch_size": 512, "image_size": 1024}, "short side is about 480 px, smaller than a patch of 512"),
        ({"recipe": "mae-larg"}, "did you mean 'mae-large'"),
        ({"mean": (0.5,), "std": (0.5,)}, "--mean got 1 values for 3 channels"),
    ],
)
def test_what_does_not_fit_together_is_refused(settings, match):
    with pytest.raises(RequestError, match=match):
        settled(**settings)


def test_grid_masks_without_a_ratio():
    assert settled(mask="grid").config.mask_ratio == 0.75


def test_the_micro_batch_halves_until_it_fits():
    whole = settled(machine=GPU, model="base", batch_size=512)
    assert whole.config.micro_batch_size == 512
    little = replace(GPU, memory=8 << 30)
    result = settled(machine=little, model="base", batch_size=512)
    micro = result.config.micro_batch_size
    assert micro < 512
    assert 512 % micro == 0
    assert result.reasons["micro_batch_size"] == "what fits into memory"
    assert planned_memory(result.shape, result.config, micro) <= 0.6 * little.memory
    assert planned_memory(result.shape, result.config, 2 * micro) > 0.6 * little.memory


def test_recomputing_begins_where_smaller_micro_batches_end():
    assert settled(machine=GPU, model="huge", batch_size=64).config.recompute is False
    tight = replace(GPU, memory=17 << 30)  # 16 bytes for each of Huge's 657 M parameters take 10.5 GB
    result = settled(machine=tight, model="huge", batch_size=64, image_size=448, precision="fp32")
    assert (result.config.micro_batch_size, result.config.recompute) == (1, True)
    assert result.reasons["recompute"] == "memory is short"
    plain = replace(result.config, recompute=False)
    assert planned_memory(result.shape, result.config, 1) < planned_memory(result.shape, plain, 1)
    asked = settled(machine=tight, model="huge", batch_size=64, image_size=448, precision="fp32", recompute=False)
    assert asked.config.recompute is False


def test_compiling_waits_for_a_gpu_and_its_compiler():
    assert settled(machine=GPU).config.compile
    assert not settled(machine=CPU).config.compile
    without = settled(machine=replace(GPU, can_compile=False))
    assert not without.config.compile
    assert without.reasons["compile"] == "needs triton and a GPU of compute capability 7.0 or more"


def test_a_bf16_residual_is_for_bf16():
    with pytest.raises(RequestError, match=r"--bf16-residual is for --precision bf16, and .* fp32: leave it out"):
        settled(bf16_residual=True)
    assert settled(machine=GPU, model="base", bf16_residual=True).config.bf16_residual
    old = settled().config.to_dict()
    for name in ("recompute", "bf16_residual"):  # a run of before there was a choice
        assert old.pop(name) is False
    assert ResolvedPretrainConfig.from_dict(old) == settled().config


def test_the_number_of_steps():
    c = settled(epochs=2.0, batch_size=32).config
    assert total_steps(c, 1000) == 62  # 62.5, rounded to even
    assert total_steps(c, 10) == 1
    assert total_steps(settled(steps=7).config, 1000) == 7
