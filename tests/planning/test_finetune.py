"""What `finetune` decides when nobody says: sound for many kinds of data and models, and never without a reason."""

from dataclasses import replace

import pytest

from openmae.config import SIZES, FinetuneConfig, Preprocessing, ResolvedFinetuneConfig, ViTShape
from openmae.errors import RequestError
from openmae.model import cost
from openmae.planning.decisions import total_steps
from openmae.planning.finetune import FinetunePlan, make_finetune_plan

from .test_pretrain import CPU, DATA, GPU, PHOTOS

MAY_STAY_OPEN = {"recipe", "labels", "label_file", "held_out", "epochs", "steps", "blocks", "model", "statistics"}
MAY_STAY_OPEN |= {"train", "val", "test"}  # in place of `data`
MANY = replace(PHOTOS, count=1_281_167)


def pretrained(size="base", facts=PHOTOS, side=224, patch=16):
    """The shape and preprocessing of a run on such data."""
    width, depth, heads, _ = SIZES[size]
    c = facts.channels
    shape = ViTShape(image_size=(side, side), patch_size=patch, channels=c, width=width, depth=depth, num_heads=heads)
    return shape, Preprocessing(
        channels=c,
        value_range=facts.value_range,
        mean=(0.4,) * c,
        std=(0.2,) * c,
        image_size=(side, side),
        dtype=facts.dtype,
        background=0.5,
    )


def settled(facts=PHOTOS, machine=GPU, init=None, multi=False, classes=10, **settings):
    name = "run" if init is not None else "none"
    config = FinetuneConfig(data="data", out="out", init=name, **settings)
    return make_finetune_plan(config, facts, classes, multi, machine, init)


@pytest.mark.parametrize("is_scratch", [False, True], ids=["fine-tune", "scratch"])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "cuda"])
@pytest.mark.parametrize("facts", DATA.values(), ids=DATA)
def test_nothing_stays_open_and_each_decision_has_a_reason(facts, machine, is_scratch):
    side = min(224, facts.short_side // 8 * 8)
    init = None if is_scratch else pretrained("small", facts, side, 8 if side < 224 else 16)
    tuned = settled(facts, machine, init)
    asked = FinetuneConfig(data="data", out="out", init=tuned.config.init).to_dict()
    given = tuned.config.to_dict()
    assert {name for name, value in given.items() if value is None} <= MAY_STAY_OPEN
    assert (given["epochs"] is None) != (given["steps"] is None)
    assert {name for name in given if given[name] != asked[name]} - {"micro_batch_size"} <= tuned.reasons.keys()
    assert all(tuned.reasons.values())
    # What it settled settles to itself: a run can be repeated from its config.json.
    again = FinetunePlan.from_config(ResolvedFinetuneConfig.from_dict(given), 10, tuned.preprocessing)
    assert (again.config, again.shape) == (tuned.config, tuned.shape)
    c = tuned.config
    assert c.warmup_epochs <= min(5, 0.1 * c.epochs)
    assert (1e-4 if is_scratch else 1e-3) * c.batch_size / 256 <= c.base_lr * c.batch_size / 256 <= 4e-3
    assert c.batch_size <= max(16, facts.count // 16)
    assert 0 < c.evaluate_every <= max(1, total_steps(c, facts.count))
    if facts.dtype != "uint8" or facts.channels not in (1, 3):
        assert c.rand_augment == "none"


def test_the_model_and_its_preprocessing_are_kept():
    shape, preprocessing = pretrained()
    tuned = settled(init=(shape, preprocessing))
    assert tuned.shape.encoder == shape
    assert tuned.preprocessing == replace(preprocessing, crop_fraction=224 / 256)
    assert {tuned.reasons[name] for name in ("width", "mean", "background", "image_size")} == {"as --init"}
    for name, value in {"width": 384, "depth": 3, "channels": 1, "background": 1.0}.items():
        with pytest.raises(RequestError, match=r"but --init has .*: leave it out"):
            settled(init=(shape, preprocessing), **{name: value})
    assert settled(init=(shape, preprocessing), width=768).shape.encoder == shape
    smaller = settled(init=(shape, preprocessing), patch_size=14).shape.encoder  # its projection is resampled
    assert smaller == replace(shape, patch_size=14)
    for settings in ({"model": "base"}, {"statistics": "imagenet"}):
        with pytest.raises(RequestError, match=r"is for training from scratch \(--init none\): leave it out"):
            settled(init=(shape, preprocessing), **settings)


@pytest.mark.parametrize(
    ("size", "short_side", "crop_fraction"),
    [
        (224, 480, 224 / 256),
        (384, 480, 1),  # above 224 no margin
        ((224, 448), 480, 1),
        ((160, 224), 480, 224 / 256),
        (224, 224, 1),  # the images are as large as the model's: a margin would enlarge what is left
        (224, 256, 224 / 256),
        (224, 255, 1),
    ],
)
def test_what_a_test_image_loses_at_its_edges(size, short_side, crop_fraction):
    tuned = settled(replace(PHOTOS, short_side=short_side), init=pretrained(), image_size=size)
    assert tuned.preprocessing.crop_fraction == crop_fraction
    assert tuned.preprocessing.image_size == ((size, size) if isinstance(size, int) else size)


def test_long_runs_get_table_9_and_short_ones_what_they_have_time_for():
    tuned = settled(MANY, init=pretrained(), epochs=100.0).config
    table = {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.25, "label_smoothing": 0.1, "drop_path": 0.1}
    assert {name: getattr(tuned, name) for name in table} == table
    assert (tuned.layer_decay, tuned.weight_decay, tuned.betas, tuned.min_lr) == (0.75, 0.05, (0.9, 0.999), 1e-6)
    assert (tuned.crop_scale, tuned.rand_augment) == ((0.08, 1.0), "rand-m9-mstd0.5-inc1")
    for few in (settled(MANY, init=pretrained(), epochs=20.0), settled(init=pretrained(), steps=100)):
        assert (few.config.mixup, few.config.cutmix, few.config.erasing) == (0, 0, 0)


def test_table_11_from_scratch():
    wide = settled(MANY, model="base", epochs=300.0).config
    assert (wide.layer_decay, wide.weight_decay, wide.betas, wide.base_lr) == (1.0, 0.3, (0.9, 0.95), 1e-4)


def test_small_images_several_labels_and_frozen_blocks():
    small = settled(DATA["cifar"], init=pretrained("small", side=32, patch=4)).config
    assert (small.rand_augment, small.crop_scale) == ("none", (0.5, 1.0))
    assert settled(init=pretrained(), multi=True).config.label_smoothing == 0
    assert settled(init=pretrained(), blocks=4.0).config.drop_path == 0
    assert settled(init=pretrained(), recipe="imagenet-base", blocks=4.0).config.drop_path == 0.1  # as the paper
    assert settled(init=pretrained("tiny")).config.drop_path == 0


def test_a_warm_up_of_a_recipe_is_shortened_and_a_persons_refused():
    tuned = settled(init=pretrained(), recipe="imagenet-base", epochs=4.0)
    assert tuned.config.warmup_epochs == pytest.approx(0.2)
    with pytest.raises(RequestError, match=r"--warmup-epochs got 5 for a run of 4 epochs"):
        settled(init=pretrained(), epochs=4.0, warmup_epochs=5.0)


def test_micro_batches_fit_into_memory():
    """A recipe's batch of 1024 on ever smaller machines; the plan's own estimate stays below."""
    init = pretrained("large")
    parts = []
    for gigabytes in (700, 140, 40, 16):
        machine = replace(GPU, memory=gigabytes << 30)
        tuned = settled(machine=machine, init=init, recipe="imagenet-large")
        parts.append(tuned.config.micro_batch_size)
        activations = cost.classifier_activation_bytes(tuned.shape, None, 2)
        planned = 16 * cost.classifier_parameters(tuned.shape) + parts[-1] * activations
        assert planned <= 0.6 * machine.memory
        assert tuned.config.batch_size == 1024
    assert parts == sorted(parts, reverse=True)
    assert parts[0] > parts[-1]
    assert all(part % 2 == 0 for part in parts)  # pairs are mixed
    with pytest.raises(RequestError, match=r"need about .* GB of memory, cuda has .*: give a smaller --image-size"):
        settled(machine=replace(GPU, memory=4 << 30), init=init, image_size=448)
    assert settled(machine=GPU, init=init, micro_batch_size=32).config.micro_batch_size == 32


@pytest.mark.parametrize("name", ["batch_size", "micro_batch_size"])
def test_pairs_need_even_batches(name):
    settings = {"batch_size": 64, "mixup": 0.8, name: 7}
    with pytest.raises(RequestError, match=f"--{name.replace('_', '-')} got 7: .*give an even number"):
        settled(init=pretrained(), **settings)
    settings |= {"mixup": 0.0, "cutmix": 0.0, "batch_size": 63}
    assert settled(init=pretrained(), **settings).config.batch_size == 63


@pytest.mark.parametrize(
    ("facts", "settings", "message"),
    [
        (DATA["satellite"], {}, "takes 3 channels, but the images have 13: use another --init"),
        (DATA["microscope"], {"rand_augment": "rand-m9"}, "8-bit grey or RGB images"),
        (PHOTOS, {"blocks": 13.0}, "--blocks got 13: the model has 12"),
        (PHOTOS, {"image_size": 230}, "--image-size 224 224 would do"),
        (PHOTOS, {"recipe": "scratch-base"}, "is for training from scratch: give --init none"),
        (PHOTOS, {"recipe": "imagenet"}, "--recipe got 'imagenet'"),
    ],
)
def test_what_does_not_fit_is_refused(facts, settings, message):
    with pytest.raises(RequestError, match=message):
        settled(facts, init=pretrained(), **settings)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_is_shown_as_rgb_and_the_reverse(channels):
    facts = replace(PHOTOS, channels=4 - channels, mean=(1.0,) * (4 - channels), std=(1.0,) * (4 - channels))
    init = pretrained(facts=replace(PHOTOS, channels=channels))
    assert settled(facts, init=init).preprocessing.channels == channels
