"""Recipes hold the paper's tables and the released settings, and reach a run unchanged (docs/paper.md)."""

import re
from dataclasses import fields

import pytest

from openmae.cli import parse, resolve_config
from openmae.config import FinetuneConfig, Preprocessing, PretrainConfig, ProbeConfig, ViTShape
from openmae.data.preprocess import DataFacts
from openmae.planning.decisions import Machine, total_steps
from openmae.planning.finetune import make_finetune_plan
from openmae.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES, PROBE_RECIPES

ALL = [
    *((name, recipe, PretrainConfig) for name, recipe in PRETRAIN_RECIPES.items()),
    *((name, recipe, FinetuneConfig) for name, recipe in FINETUNE_RECIPES.items()),
    *((name, recipe, ProbeConfig) for name, recipe in PROBE_RECIPES.items()),
]
NAMES = [f"{config.__name__}-{name}" for name, _, config in ALL]
GPU = Machine("cuda", True, 8, 140 << 30)
IMAGENET = DataFacts(
    count=1_281_167,
    channels=3,
    dtype="uint8",
    short_side=375,
    value_range=(0.0, 255.0),
    mean=(124.0, 116.0, 104.0),
    std=(58.0, 57.0, 57.0),
)
SIZES = {"base": (768, 12, 12, 16), "large": (1024, 24, 16, 16), "huge": (1280, 32, 16, 14)}

# Table 9 with what was released beside it; layer decay, rate, drop path and epochs follow for each model.
TABLE_9 = {
    "augment": "crop",
    "crop_scale": (0.08, 1.0),
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.25,
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "pool": "mean",
    "betas": (0.9, 0.999),
    "weight_decay": 0.05,
    "batch_size": 1024,
    "warmup_epochs": 5.0,
    "min_lr": 1e-6,
    "ema": 0.0,
}
TABLE_11 = {
    **TABLE_9,
    "erasing": 0.0,
    "betas": (0.9, 0.95),
    "weight_decay": 0.3,
    "batch_size": 4096,
    "base_lr": 1e-4,
    "warmup_epochs": 20.0,
    "min_lr": 0.0,
    "layer_decay": 1.0,
    "ema": 0.9999,
}
# Model, image size, what differs, steps, peak rate.
WANTED = {
    "imagenet-base": (
        *("base", 224, {**TABLE_9, "base_lr": 5e-4, "layer_decay": 0.65, "drop_path": 0.1, "epochs": 100}),
        *(125_114, 2e-3),
    ),
    "imagenet-large": (
        *("large", 224, {**TABLE_9, "base_lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.2, "epochs": 50}),
        *(62_557, 4e-3),
    ),
    "imagenet-huge": (
        *("huge", 224, {**TABLE_9, "base_lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.3, "epochs": 50}),
        *(62_557, 4e-3),
    ),
    "imagenet-huge-448": (
        *("huge", 448, {**TABLE_9, "base_lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.3, "epochs": 50}),
        *(62_557, 4e-3),
    ),
    "scratch-base": ("base", 224, {**TABLE_11, "drop_path": 0.1, "epochs": 300}, 93_835, 1.6e-3),
    "scratch-large": ("large", 224, {**TABLE_11, "drop_path": 0.2, "epochs": 200}, 62_557, 1.6e-3),
    "scratch-huge": ("huge", 224, {**TABLE_11, "drop_path": 0.2, "epochs": 200}, 62_557, 1.6e-3),
}
OURS = ("cifar10", "few-labels")  # no table of the paper
TRANSFERS = ("inaturalist-2017", "inaturalist-2018", "inaturalist-2019", "places-205", "places-365")


def settled(recipe, model, **flags):
    """What a run on ImageNet with that recipe would go by."""
    width, depth, heads, patch = SIZES[model]
    shape = ViTShape(image_size=(224, 224), patch_size=patch, channels=3, width=width, depth=depth, num_heads=heads)
    preprocessing = Preprocessing(
        channels=3,
        value_range=(0.0, 255.0),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        image_size=(224, 224),
    )
    is_scratch = recipe.startswith("scratch")
    config = FinetuneConfig(data="data", out="out", init="none" if is_scratch else "run", recipe=recipe, **flags)
    return make_finetune_plan(config, IMAGENET, 1000, False, GPU, None if is_scratch else (shape, preprocessing))


@pytest.mark.parametrize("name", WANTED)
def test_the_tables_reach_a_run(name):
    model, side, wanted, steps, peak = WANTED[name]
    tuned = settled(name, model)
    found = tuned.config.to_dict()
    assert {key: found[key] for key in wanted} == wanted
    assert (found["width"], found["depth"], found["num_heads"], found["patch_size"]) == SIZES[model]
    assert tuned.shape.encoder.image_size == tuned.preprocessing.image_size == (side, side)
    assert tuned.preprocessing.mean == (0.485, 0.456, 0.406)
    assert tuned.preprocessing.std == (0.229, 0.224, 0.225)
    assert tuned.preprocessing.crop_fraction == (224 / 256 if side == 224 else 1)
    assert total_steps(tuned.config, IMAGENET.count) == steps
    assert tuned.config.base_lr * tuned.config.batch_size / 256 == pytest.approx(peak, rel=1e-12)


@pytest.mark.parametrize("name", TRANSFERS)
def test_transfers_go_by_table_9(name):
    found = settled(name, "large").config.to_dict()
    assert {key: found[key] for key in TABLE_9} == TABLE_9
    assert (found["layer_decay"], found["drop_path"]) == (0.75, 0.2)


def test_every_recipe_for_labels_is_held_against_a_table():
    assert WANTED.keys() | set(TRANSFERS) | set(OURS) == FINETUNE_RECIPES.keys()


@pytest.mark.parametrize("name", OURS)
def test_our_recipes_reach_a_run_and_leave_the_image_size_to_the_model(name):
    tuned = settled(name, "base")
    found = tuned.config.to_dict()
    assert {key: found[key] for key in FINETUNE_RECIPES[name]()} == FINETUNE_RECIPES[name]()
    assert tuned.shape.encoder.image_size == (224, 224)


def test_flags_win_over_a_recipe():
    tuned = settled("imagenet-huge", "huge", mixup=0.0, image_size=(448, 224), epochs=1.0, drop_path=0.0)
    assert (tuned.config.mixup, tuned.config.cutmix, tuned.config.drop_path) == (0.0, 1.0, 0.0)
    assert tuned.shape.encoder.grid == (32, 16)
    assert total_steps(tuned.config, IMAGENET.count) == 1251
    assert settled("imagenet-huge", "huge", steps=10).config.epochs is None


def test_table_10():
    """Actual rate 6.4; 90 epochs (50 are enough for L and H)."""
    for name, epochs in (("imagenet-base", 90), ("imagenet-large", 50), ("imagenet-huge", 50)):
        found = PROBE_RECIPES[name]()
        assert found["epochs"] == epochs
        assert [rate * found["batch_size"] / 256 for rate in found["base_lr"]] == pytest.approx([6.4])
        assert (found["optimizer"], found["momentum"], found["weight_decay"]) == ("lars", 0.9, 0)
        assert (found["batch_size"], found["warmup_epochs"]) == (16384, 10)
        assert (found["augment"], found["crop_scale"]) == ("crop", (0.08, 1.0))


@pytest.mark.parametrize(("name", "recipe", "config"), ALL, ids=NAMES)
def test_a_recipe_is_settings_that_there_are(name, recipe, config):
    settings = recipe()
    assert settings.keys() <= {field.name for field in fields(config)} - {"data", "init", "out", "recipe", "resume"}
    required = {"data": "data", "out": "out", **({} if config is PretrainConfig else {"init": "none"})}
    for setting, value in config(**required, **settings).to_dict().items():
        assert setting not in settings or value == settings[setting]


@pytest.mark.parametrize(("name", "recipe", "config"), ALL, ids=NAMES)
def test_a_recipe_says_its_command_and_its_claim(name, recipe, config):
    text = " ".join((recipe.__doc__ or "").split())
    command = re.search(r"Command: `openmae ([^`]+)`\.", text)
    assert command, text
    arguments = re.sub(r"--base-lr R --epochs E", "--base-lr 1e-3 --epochs 50", command[1]).split()
    asked = resolve_config(parse(arguments))
    assert type(asked) is config
    assert asked.recipe == name
    assert re.search(r"Claims \d\d\.\d", text), text
    assert re.search(r"Not yet run here\.|[Mm]easured", text), text
