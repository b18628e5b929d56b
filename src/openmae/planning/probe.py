"""Deciding what the person left open in linear probing, each decision with its reason."""

from dataclasses import replace

import torch

from openmae.config import (
    DEFAULT_POOL,
    ClassifierShape,
    Preprocessing,
    ProbeConfig,
    ResolvedProbeConfig,
    ViTShape,
    flag_of,
)
from openmae.data.augment import crop_fraction_of
from openmae.data.labels.labelled import LabelledData
from openmae.data.preprocess import DataFacts
from openmae.data.value_scale import match_scale
from openmae.errors import RequestError
from openmae.interchange.stored import StoredModel
from openmae.model import cost
from openmae.planning.decisions import (
    CROPS_LIKE_EVALUATION,
    Decisions,
    Machine,
    Plan,
    Previous,
    check_warmup,
    decide_machine,
    decide_pace,
    doubled,
    epochs_of,
    look,
    steps_of,
)
from openmae.planning.encoder import check_channels
from openmae.planning.micro_batch import MEMORY_SHARE, decide_micro_batch
from openmae.planning.preprocessing import as_read, check_scale, choose_axes, choose_nodata
from openmae.recipes import PROBE_RECIPES

# Rates at their peak, tried side by side where a person names none; the paper's .1 x 16384 / 256 is 6.4.
LARS_RATES = (1.6, 3.2, 6.4, 12.8, 25.6)
SGD_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
# Of a squared error, over the width: on features that are normed a rate below 1.9 / width cannot diverge (momentum .9),
# and one a few times that seldom does.
SQUARED_SGD_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
MAX_BATCH = 16384
STEPS_WANTED = 2000  # with features kept a step costs next to nothing, and few of them do not converge


class ProbePlan(Plan[ResolvedProbeConfig, ClassifierShape]):
    """A probe's config without open questions and what follows from it."""


def plan_probe(
    config: ProbeConfig,
    init: StoredModel,
    data: LabelledData,
    device: torch.device,
    num_processes: int,
    previous: Previous[ResolvedProbeConfig] | None,
) -> tuple[ProbePlan, DataFacts | None]:
    """The plan of a run's earlier start, or a new one and the look at the data that it rests on.

    Args:
        init: the weights that are probed.
        num_processes: on this machine, which share it.

    Raises:
        RequestError: no image of the look can be read, or the settings do not fit.
    """
    encoder = init.encoder_shape
    if previous is not None:
        settled = replace(previous.config, device=str(device))
        return ProbePlan(settled, probe_shape(settled, encoder, data.num_outputs), previous.preprocessing, {}), None
    config = replace(config, task=data.task)
    facts, machine = look(config, data.train, data.parts, device, num_processes)
    return make_probe_plan(config, facts, data.num_outputs, machine, encoder, init.preprocessing), facts


def probe_shape(config: ResolvedProbeConfig, encoder: ViTShape, num_classes: int) -> ClassifierShape:
    """The classifier that the chosen head makes of the encoder, at the probe's image size."""
    resized = replace(encoder, image_size=config.size)
    return ClassifierShape(encoder=resized, num_classes=num_classes, pool=config.pool, head="probe")


def make_probe_plan(
    config: ProbeConfig,
    facts: DataFacts,
    num_classes: int,
    machine: Machine,
    encoder: ViTShape,
    preprocessing: Preprocessing,
) -> ProbePlan:
    """Fill every open setting.

    Args:
        facts: of the training images.
        encoder, preprocessing: of the weights that are probed.

    Raises:
        RequestError: the settings do not fit each other or the data.
    """
    decisions = Decisions(config)
    decide, get = decisions.decide, decisions.get
    decide("task", "classification", "labels are the names of classes")
    decisions.take_recipe(PROBE_RECIPES)
    decide("image_size", preprocessing.image_size, "as --init")
    decide("pool", DEFAULT_POOL, "as of embed and knn; table 10 has the class token")
    decide("augment", "none", "features are computed once and kept (table 10 has crop: slower, a little better)")
    if get("augment") == "none":
        for name in ("crop_scale", "micro_batch_size"):
            if getattr(config, name) is not None:
                raise RequestError(f"{flag_of(name)} is for --augment crop: give it too, or leave {flag_of(name)} out")
    _decide_optimisation(config, facts, encoder.width, decisions)
    choose_axes(facts, decisions)
    choose_nodata(preprocessing, decisions)
    decide_machine(machine, decisions, encoder.width)
    check_warmup(decisions, facts.count)
    decide("micro_batch_size", get("batch_size"), "all at once")
    draft = decisions.settled(ResolvedProbeConfig)
    shape = probe_shape(draft, encoder, num_classes)
    has = f"the model takes {encoder.channels} channels, the images have {facts.channels}"
    check_channels(facts, encoder.channels, f"{has}: use another --init")
    check_scale(preprocessing.dtype, facts, config.value_range)
    _fit_memory(draft, shape, facts, machine, decisions)
    if draft.augment == "none":
        for name in ("crop_scale", "crop_aspect", "micro_batch_size"):
            decisions.reasons.pop(name, None)  # not used, and not worth a word

    settled = decisions.settled(ResolvedProbeConfig)
    resized = replace(
        preprocessing, image_size=settled.size, crop_fraction=crop_fraction_of(settled.size, facts.short_side)
    )
    resized, notes = match_scale(resized, facts.depths, config.value_range, stated=facts.stated_range)
    resized = as_read(resized, facts, settled.nodata, resized.axes)
    return ProbePlan(settled, shape, resized, decisions.reasons, tuple(notes))


def _decide_optimisation(config: ProbeConfig, facts: DataFacts, width: int, decisions: Decisions) -> None:
    """The crops of an epoch, the optimiser, its rates and its steps."""
    decide, get, count = decisions.decide, decisions.get, facts.count
    is_kept = get("augment") == "none"
    decide("crop_scale", (0.08, 1.0), "table 10")
    decide("crop_aspect", "model", CROPS_LIKE_EVALUATION)
    decide("optimizer", "lars", "table 10")
    decide("momentum", 0.9, "table 10")
    decide("weight_decay", 0.0, "table 10")
    decide("min_lr", 0.0, "table 10")
    batch = doubled(64, min(MAX_BATCH if is_kept else 1024, count // 16))
    decide("batch_size", min(batch, count), f"{count:,} images")
    batch = get("batch_size")
    peaks: tuple[float, ...] = LARS_RATES if get("optimizer") == "lars" else SGD_RATES
    if config.is_regression and get("optimizer") == "sgd":
        peaks = tuple(peak / width for peak in SQUARED_SGD_RATES)
    rates = tuple(float(f"{peak * 256 / batch:.4g}") for peak in peaks)
    decide("base_lr", rates, "tried side by side, the best is kept")
    if get("min_lr") > 0 and len(get("base_lr")) > 1:
        raise RequestError(
            f"--min-lr got {get('min_lr'):g} for {len(get('base_lr'))} rates side by side, whose schedules are shares "
            "of one: give one --base-lr, or leave it out"
        )
    if config.steps is None:
        wanted = round(STEPS_WANTED * batch / count)
        decide("epochs", float(max(90, wanted) if is_kept else 90), "table 10, or enough steps")
    warmup_epochs = min(10.0, 0.1 * epochs_of(decisions, count))
    decide("warmup_epochs", warmup_epochs, "a tenth of the epochs, at most table 10's 10")
    decide_pace(steps_of(decisions, count), decisions)


def _fit_memory(
    config: ResolvedProbeConfig, shape: ClassifierShape, facts: DataFacts, machine: Machine, decisions: Decisions
) -> None:
    """A smaller micro-batch of crops. Raises RequestError where features are kept and there is no room for them."""
    if config.augment != "none":
        per_image = cost.classifier_activation_bytes(shape, 0.0, 2 if config.precision == "bf16" else 4)
        decide_micro_batch(decisions, lambda micro: micro * per_image, machine, smallest=2)
        return
    kept = 4 * facts.count * shape.encoder.width
    if kept > MEMORY_SHARE * machine.memory:
        raise RequestError(
            f"the features of {facts.count:,} images take {kept / 1e9:.3g} GB: --augment crop computes them as it goes"
        )
