"""The plan of a linear probe: settings that the user left open, each decided with its reason."""

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
    CROP_ASPECT_REASON,
    Decisions,
    Machine,
    Plan,
    Previous,
    decide_device_and_defaults,
    decide_intervals,
    largest_doubling,
    limit_warmup,
    planned_epochs,
    planned_steps,
    survey_data_and_machine,
)
from openmae.planning.encoder import check_channels
from openmae.planning.micro_batch import MEMORY_SHARE, decide_micro_batch
from openmae.planning.preprocessing import check_scale, choose_axes, choose_nodata, with_reading_settings
from openmae.recipes import PROBE_RECIPES

# Peak learning rates, tried side by side where a user gives none; the paper's .1 x 16384 / 256 is 6.4.
LARS_RATES = (1.6, 3.2, 6.4, 12.8, 25.6)
SGD_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
# For a squared error, to be divided by the width: on normalised features a rate below 1.9 / width cannot diverge
# (momentum .9), and one a few times that seldom does.
SQUARED_SGD_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
MAX_BATCH = 16384
TARGET_STEPS = 2000  # with cached features a step costs next to nothing, and fewer steps do not converge


class ProbePlan(Plan[ResolvedProbeConfig, ClassifierShape]):
    """A probe's config without open settings, and what follows from it."""


def plan_probe(
    config: ProbeConfig,
    init: StoredModel,
    data: LabelledData,
    device: torch.device,
    num_processes: int,
    previous: Previous[ResolvedProbeConfig] | None,
) -> tuple[ProbePlan, DataFacts | None]:
    """The plan of the previous run where one is resumed; else a new plan, and the facts about the data behind it.

    Args:
        init: the model that is probed.
        num_processes: on this machine, which share it.

    Raises:
        RequestError: none of the sampled images can be read, or the settings do not fit.
    """
    encoder = init.encoder_shape
    if previous is not None:
        resolved = replace(previous.config, device=str(device))
        return ProbePlan(resolved, probe_shape(resolved, encoder, data.num_outputs), previous.preprocessing, {}), None
    config = replace(config, task=data.task)
    facts, machine = survey_data_and_machine(config, data.train, data.parts, device, num_processes)
    return make_probe_plan(config, facts, data.num_outputs, machine, encoder, init.preprocessing), facts


def probe_shape(config: ResolvedProbeConfig, encoder: ViTShape, num_classes: int) -> ClassifierShape:
    """The shape of the classifier that encoder and chosen head make, at the probe's image size."""
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
    """Decide every open setting.

    Args:
        facts: about the training images.
        encoder, preprocessing: of the model that is probed.

    Raises:
        RequestError: the settings do not fit each other or the data.
    """
    decisions = Decisions(config)
    decide, get = decisions.decide, decisions.get
    decide("task", "classification", "labels are the names of classes")
    decisions.apply_recipe(PROBE_RECIPES)
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
    decide_device_and_defaults(machine, decisions, encoder.width)
    limit_warmup(decisions, facts.count)
    decide("micro_batch_size", get("batch_size"), "all at once")
    draft = decisions.resolved(ResolvedProbeConfig)
    shape = probe_shape(draft, encoder, num_classes)
    has = f"the model takes {encoder.channels} channels, the images have {facts.channels}"
    check_channels(facts, encoder.channels, f"{has}: use another --init")
    check_scale(preprocessing.dtype, facts, config.value_range)
    _fit_memory(draft, shape, facts, machine, decisions)
    if draft.augment == "none":
        for name in ("crop_scale", "crop_aspect", "micro_batch_size"):
            decisions.reasons.pop(name, None)  # not used: no line in the plan

    resolved = decisions.resolved(ResolvedProbeConfig)
    resized = replace(
        preprocessing, image_size=resolved.size, crop_fraction=crop_fraction_of(resolved.size, facts.short_side)
    )
    resized, notes = match_scale(resized, facts.depths, config.value_range, stated=facts.stated_range)
    resized = with_reading_settings(resized, facts, resolved.nodata, resized.axes)
    return ProbePlan(resolved, shape, resized, decisions.reasons, tuple(notes))


def _decide_optimisation(config: ProbeConfig, facts: DataFacts, width: int, decisions: Decisions) -> None:
    """The crops, the optimiser, its learning rates and the number of steps."""
    decide, get, count = decisions.decide, decisions.get, facts.count
    is_cached = get("augment") == "none"
    decide("crop_scale", (0.08, 1.0), "table 10")
    decide("crop_aspect", "model", CROP_ASPECT_REASON)
    decide("optimizer", "lars", "table 10")
    decide("momentum", 0.9, "table 10")
    decide("weight_decay", 0.0, "table 10")
    decide("min_lr", 0.0, "table 10")
    batch = largest_doubling(64, min(MAX_BATCH if is_cached else 1024, count // 16))
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
        enough = round(TARGET_STEPS * batch / count)
        decide("epochs", float(max(90, enough) if is_cached else 90), "table 10, or enough steps")
    warmup_epochs = min(10.0, 0.1 * planned_epochs(decisions, count))
    decide("warmup_epochs", warmup_epochs, "a tenth of the epochs, at most table 10's 10")
    decide_intervals(planned_steps(decisions, count), decisions)


def _fit_memory(
    config: ResolvedProbeConfig, shape: ClassifierShape, facts: DataFacts, machine: Machine, decisions: Decisions
) -> None:
    """A micro-batch of crops that fits into memory. Raises RequestError where cached features would not fit."""
    if config.augment != "none":
        per_image = cost.classifier_activation_bytes(shape, 0.0, 2 if config.precision == "bf16" else 4)
        decide_micro_batch(decisions, lambda size: size * per_image, machine, smallest=2)
        return
    num_bytes = 4 * facts.count * shape.encoder.width
    if num_bytes > MEMORY_SHARE * machine.memory:
        raise RequestError(
            f"the features of {facts.count:,} images take {num_bytes / 1e9:.3g} GB: --augment crop computes them as it "
            "goes"
        )
