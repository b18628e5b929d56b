"""Deciding what the person left open in linear probing, each decision with its reason."""

from dataclasses import dataclass, replace

from openmae.config import DEFAULT_POOL, ClassifierShape, Preprocessing, ProbeConfig, SettledProbe, ViTShape, flag_of
from openmae.data.augment import margin_of
from openmae.data.decoding.nodata import stored_nodata
from openmae.data.preprocess import DataFacts
from openmae.data.scale import match_scale
from openmae.errors import RequestError
from openmae.model import cost
from openmae.planning.decisions import (
    CROPS_LIKE_EVALUATION,
    MEMORY_SHARE,
    Choices,
    Machine,
    check_scale,
    check_warmup,
    choose_axes,
    choose_nodata,
    decide_machine,
    decide_pace,
)
from openmae.recipes import PROBE_RECIPES

# Rates at their peak, tried side by side where a person names none; the paper's .1 x 16384 / 256 is 6.4.
LARS_RATES = (1.6, 3.2, 6.4, 12.8, 25.6)
SGD_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
# Of a squared error, over the width: on features that are normed a rate below 1.9 / width cannot diverge (momentum .9),
# and one a few times that seldom does.
SQUARED_SGD_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
LARGEST_BATCH = 16384
STEPS_WANTED = 2000  # with features kept a step costs next to nothing, and few of them do not converge


@dataclass(frozen=True)
class SettledProbing:
    """A probe's config without open questions and what follows from it."""

    config: SettledProbe
    shape: ClassifierShape
    preprocessing: Preprocessing
    reasons: dict[str, str]
    notes: tuple[str, ...] = ()  # what was understood of the data

    @classmethod
    def of(
        cls, config: SettledProbe, encoder: ViTShape, num_classes: int, preprocessing: Preprocessing
    ) -> "SettledProbing":
        """What a run that was settled before goes on with."""
        return cls(config, probe_shape(config, encoder, num_classes), preprocessing, {})


def probe_shape(config: SettledProbe, encoder: ViTShape, num_classes: int) -> ClassifierShape:
    """The classifier that the chosen head makes of the encoder, at the probe's image size."""
    resized = replace(encoder, image_size=config.size)
    return ClassifierShape(encoder=resized, num_classes=num_classes, pool=config.pool, head="probe")


def settle_probe(
    config: ProbeConfig,
    facts: DataFacts,
    num_classes: int,
    machine: Machine,
    encoder: ViTShape,
    preprocessing: Preprocessing,
) -> SettledProbing:
    """Fill every open setting.

    Args:
        facts: of the training images.
        encoder, preprocessing: of the weights that are probed.

    Raises:
        RequestError: the settings do not fit each other or the data.
    """
    choices = Choices(config)
    decide, get = choices.decide, choices.get
    decide("task", "classification", "labels are the names of classes")
    choices.take_recipe(PROBE_RECIPES)
    decide("image_size", preprocessing.image_size, "as --init")
    decide("pool", DEFAULT_POOL, "as of embed and knn; table 10 has the class token")
    decide("augment", "none", "features are computed once and kept (table 10 has crop: slower, a little better)")
    if get("augment") == "none":
        for name in ("crop_scale", "micro_batch_size"):
            if getattr(config, name) is not None:
                raise RequestError(f"{flag_of(name)} is for --augment crop: give it too, or leave {flag_of(name)} out")
    decide("crop_scale", (0.08, 1.0), "table 10")
    decide("crop_aspect", "model", CROPS_LIKE_EVALUATION)
    decide("optimizer", "lars", "table 10")
    decide("momentum", 0.9, "table 10")
    decide("weight_decay", 0.0, "table 10")
    decide("min_lr", 0.0, "table 10")
    batch = 64
    while batch * 2 <= min(LARGEST_BATCH if get("augment") == "none" else 1024, facts.count // 16):
        batch *= 2
    decide("batch_size", min(batch, facts.count), f"{facts.count:,} images")
    batch = get("batch_size")
    peaks: tuple[float, ...] = LARS_RATES if get("optimizer") == "lars" else SGD_RATES
    if config.is_regression and get("optimizer") == "sgd":
        peaks = tuple(peak / encoder.width for peak in SQUARED_SGD_RATES)
    rates = tuple(float(f"{peak * 256 / batch:.4g}") for peak in peaks)
    decide("base_lr", rates, "tried side by side, the best is kept")
    if get("min_lr") > 0 and len(get("base_lr")) > 1:
        raise RequestError(
            f"--min-lr got {get('min_lr'):g} for {len(get('base_lr'))} rates side by side, whose schedules are shares "
            "of one: give one --base-lr, or leave it out"
        )
    if config.steps is None:
        wanted = round(STEPS_WANTED * batch / facts.count)
        decide("epochs", float(max(90, wanted) if get("augment") == "none" else 90), "table 10, or enough steps")
    epochs = get("epochs") if config.steps is None else config.steps * batch / facts.count
    decide("warmup_epochs", min(10.0, 0.1 * epochs), "a tenth of the epochs, at most table 10's 10")
    decide_pace(config.steps if config.steps is not None else max(1, round(epochs * facts.count / batch)), choices)
    choose_axes(facts, choices)
    choose_nodata(preprocessing, choices)
    decide_machine(machine, choices, encoder.width)
    check_warmup(choices, facts.count)
    guessed = {"micro_batch_size": config.micro_batch_size or batch}
    settled = SettledProbe(**{**config.to_dict(), **choices.chosen, **guessed})
    shape = probe_shape(settled, encoder, num_classes)
    if facts.channels != encoder.channels and {facts.channels, encoder.channels} != {1, 3}:
        raise RequestError(
            f"the model takes {encoder.channels} channels, the images have {facts.channels}: use another --init"
        )
    check_scale(preprocessing.dtype, facts, config.value_range)
    if config.micro_batch_size is None and settled.augment != "none":
        per_image = cost.classifier_activation_bytes(shape, 0.0, 2 if settled.precision == "bf16" else 4)
        micro = batch
        while micro > 2 and micro * per_image > MEMORY_SHARE * machine.memory:
            micro //= 2
        choices.reasons["micro_batch_size"] = "all at once" if micro == batch else "what fits into memory"
        settled = replace(settled, micro_batch_size=micro)
    if settled.augment == "none":
        for name in ("crop_scale", "crop_aspect"):
            choices.reasons.pop(name, None)  # not used, and not worth a word
    kept = 4 * facts.count * encoder.width
    if settled.augment == "none" and kept > MEMORY_SHARE * machine.memory:
        raise RequestError(
            f"the features of {facts.count:,} images take {kept / 1e9:.3g} GB: --augment crop computes them as it goes"
        )
    resized = replace(preprocessing, image_size=settled.size, margin=margin_of(settled.size, facts.short_side))
    resized, notes = match_scale(resized, facts.depths, config.value_range, stated=facts.stated_range)
    resized = replace(resized, axes=facts.axes.order or resized.axes, nodata=stored_nodata(settled.nodata))
    return SettledProbing(settled, shape, resized, choices.reasons, tuple(notes))
