"""The plan of a fine-tuning: settings that the user left open, each decided with its reason."""

from dataclasses import replace

import torch

from openmae.config import ClassifierShape, FinetuneConfig, Preprocessing, ResolvedFinetuneConfig, ViTShape, flag_of
from openmae.config.training.finetune import CLASS_ONLY_SETTINGS
from openmae.data.augment import check_rand_augment, crop_fraction_of
from openmae.data.labels.labelled import LabelledData
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError
from openmae.interchange.stored import StoredModel
from openmae.model import cost
from openmae.planning.decisions import (
    CROP_ASPECT_REASON,
    NARROW,
    Decisions,
    Machine,
    Plan,
    Previous,
    decide_base_lr,
    decide_device_and_defaults,
    decide_intervals,
    largest_doubling,
    limit_warmup,
    planned_epochs,
    planned_steps,
    saved_encoder_shape,
    survey_data_and_machine,
)
from openmae.planning.encoder import adopt_encoder, check_channels, decide_model, decide_size, encoder_shape
from openmae.planning.micro_batch import check_memory, decide_micro_batch
from openmae.planning.preprocessing import (
    check_scale,
    choose_axes,
    choose_nodata,
    decide_statistics,
    matched_to_data,
    preprocessing_of,
)
from openmae.recipes import FINETUNE_RECIPES
from openmae.recipes.finetune import RAND_AUGMENT

# At small batches the paper's base rate would hardly change the weights: no smaller peak rate is decided than these.
MIN_FINETUNE_RATE = {"narrow": 1e-3, "medium": 5e-4, "wide": 1.25e-4}
SMALL_IMAGE = 64  # pixels; in a smaller image a crop of 8 % of the area shows next to nothing
MIXED_EPOCHS = 50  # mixup, cutmix and erasing slow learning down: too much for fewer epochs


class FinetunePlan(Plan[ResolvedFinetuneConfig, ClassifierShape]):
    """A fine-tuning config without open settings, and what follows from it."""

    @classmethod
    def from_config(
        cls,
        config: ResolvedFinetuneConfig,
        num_classes: int,
        preprocessing: Preprocessing,
        like: ViTShape | None = None,
    ) -> "FinetunePlan":
        """The plan of a config that is resolved already, as of a run that is resumed.

        Args:
            like: as of `classifier_shape`.
        """
        return cls(config, classifier_shape(config, num_classes, like), preprocessing, {})


def plan_finetune(
    config: FinetuneConfig,
    init: StoredModel | None,
    data: LabelledData,
    device: torch.device,
    num_processes: int,
    previous: Previous[ResolvedFinetuneConfig] | None,
) -> tuple[FinetunePlan, DataFacts | None]:
    """The plan of the previous run where one is resumed; else a new plan, and the facts about the data behind it.

    Args:
        init: the model to start from; None from scratch.
        num_processes: on this machine, which share it.

    Raises:
        RequestError: none of the sampled images can be read, or the settings do not fit.
    """
    if previous is not None:
        resolved = replace(previous.config, device=str(device))
        return FinetunePlan.from_config(
            resolved, data.num_outputs, previous.preprocessing, saved_encoder_shape(previous)
        ), None
    config = replace(config, task=data.task)
    facts, machine = survey_data_and_machine(config, data.train, data.parts, device, num_processes)
    start = None if init is None else (init.encoder_shape, init.preprocessing)
    return make_finetune_plan(config, facts, data.num_outputs, data.is_multi_label, machine, start), facts


def classifier_shape(config: ResolvedFinetuneConfig, num_classes: int, like: ViTShape | None = None) -> ClassifierShape:
    """The shape of the model that a resolved config describes. Raises RequestError where numbers do not fit together.

    Args:
        like: the encoder to start from, for what no setting names (layer scale, relative positions, …).
    """
    return ClassifierShape(encoder=encoder_shape(config, like), num_classes=num_classes, pool=config.pool)


def make_finetune_plan(
    config: FinetuneConfig,
    facts: DataFacts,
    num_classes: int,
    is_multi_label: bool,
    machine: Machine,
    init: tuple[ViTShape, Preprocessing] | None,
) -> FinetunePlan:
    """Decide every open setting.

    Args:
        facts: about the training images.
        init: the encoder's shape and preprocessing; None from scratch.

    Raises:
        RequestError: the settings do not fit each other or the data.
    """
    decisions = Decisions(config)
    decide, get = decisions.decide, decisions.get
    decide("task", "classification", "labels are the names of classes")
    for name in CLASS_ONLY_SETTINGS if config.is_regression else ():
        decide(name, 0.0, "numbers are not mixed or smoothed (--task regression)")
    if init is not None:
        adopt_encoder(*init, decisions)
    decisions.apply_recipe(FINETUNE_RECIPES)
    if init is not None and get("model") is not None:
        raise RequestError(f"--recipe {config.recipe} is for training from scratch: give --init none with it")
    if init is None:
        if get("model") is not None:
            decide_size(decisions, get("model"))
        decide_model(facts, machine, decisions)
        decide_statistics(facts, decisions)
    decide("image_size", init[0].image_size if init is not None else None, "as --init")
    decide("pool", "mean", "the paper's: patch tokens, then a LayerNorm")
    _decide_optimisation(config, facts, machine, decisions)
    _decide_regularisation(config, facts, is_multi_label, decisions)
    choose_axes(facts, decisions)
    choose_nodata(None if init is None else init[1], decisions)
    decide_device_and_defaults(machine, decisions, get("width"))
    limit_warmup(decisions, facts.count)
    decide("micro_batch_size", get("batch_size"), "all at once")
    draft = decisions.resolved(ResolvedFinetuneConfig)
    shape = classifier_shape(draft, num_classes, None if init is None else init[0])
    dtype = init[1].dtype if init is not None else facts.dtype
    _check(config, draft, shape, facts, is_multi_label, dtype)
    _fit_memory(shape, machine, decisions)

    resolved = decisions.resolved(ResolvedFinetuneConfig)
    preprocessing = preprocessing_of(resolved, dtype, crop_fraction_of(resolved.size, facts.short_side))
    model = None if init is None else init[1]
    preprocessing, notes = matched_to_data(preprocessing, model, facts, config.value_range, resolved.nodata)
    return FinetunePlan(resolved, shape, preprocessing, decisions.reasons, tuple(notes))


def _decide_optimisation(config: FinetuneConfig, facts: DataFacts, machine: Machine, decisions: Decisions) -> None:
    decide, count, width = decisions.decide, facts.count, decisions.get("width")
    batch = largest_doubling(16, min(256 if machine.device == "cpu" else 1024, max(16, count // 16)))
    decide("batch_size", batch, f"{count:,} images on {machine.device}")
    if config.steps is None:
        epochs = 100.0 if count < 2500 else 50.0 if count < 25_000 or machine.device != "cpu" else 20.0
        decide("epochs", epochs, f"{count:,} images on {machine.device}")
    base = 1e-4 if config.is_from_scratch else 1e-3
    decide_base_lr(decisions, base, MIN_FINETUNE_RATE)
    decide("min_lr", 0.0 if config.is_from_scratch else 1e-6, "table 11" if config.is_from_scratch else "as released")
    if config.is_from_scratch:
        decide("layer_decay", 1.0, "nothing to preserve (table 11)")
        decide("weight_decay", 0.3 if width >= 768 else 0.05, "table 11" if width >= 768 else "a small model")
        decide("betas", (0.9, 0.95), "table 11")
    else:
        decide("layer_decay", 0.75, "table 9")
        decide("weight_decay", 0.05, "table 9")
        decide("betas", (0.9, 0.999), "table 9")
    decide("ema", 0.0, "table 11 has .9999, for 300 epochs of ImageNet" if config.is_from_scratch else "table 9")
    warmup_epochs = min(5.0, 0.1 * planned_epochs(decisions, count))
    decide("warmup_epochs", warmup_epochs, "a tenth of the epochs, at most the paper's 5")
    decide_intervals(planned_steps(decisions, count), decisions)


def _decide_regularisation(
    config: FinetuneConfig, facts: DataFacts, is_multi_label: bool, decisions: Decisions
) -> None:
    decide, get = decisions.decide, decisions.get
    epochs = planned_epochs(decisions, facts.count)
    size = get("image_size")
    side = size if isinstance(size, int) else min(size)
    is_narrow, is_long = get("width") <= NARROW, epochs >= MIXED_EPOCHS and facts.count >= 25_000
    is_moved = config.is_regression and "; where a crop or a flip changes the number, give --augment none"
    decide("augment", "crop", f"table 9{is_moved or ''}")
    decide("crop_aspect", "model", CROP_ASPECT_REASON)
    small = side < SMALL_IMAGE
    decide("crop_scale", (0.5, 1.0) if small else (0.08, 1.0), f"for images of {side} px" if small else "as released")
    is_picture = facts.dtype == "uint8" and facts.channels in (1, 3)
    if not is_picture:
        decide("rand_augment", "none", "for 8-bit grey or RGB images only")
    elif small:
        decide("rand_augment", "none", f"its strengths are for larger images than {side} px")
    decide("rand_augment", RAND_AUGMENT, "table 9")
    table = "table 11" if config.is_from_scratch else "table 9"
    run = f"{epochs:.4g} epochs of {facts.count:,} images"
    why = table if is_long else f"{table} has more, for longer runs than {run}"
    decide("mixup", 0.8 if is_long and not is_narrow else 0.0, why)
    decide("cutmix", 1.0 if is_long else 0.0, why)
    if config.is_from_scratch:
        decide("erasing", 0.0, "table 11 has none")
    decide("erasing", 0.25 if is_long else 0.0, "as released" if is_long else f"released for longer runs than {run}")
    if is_multi_label:
        decide("label_smoothing", 0.0, "several labels an image")
    decide("label_smoothing", 0.1, table)
    if config.blocks is not None:
        decide("drop_path", 0.0, "few blocks are trained")
    if is_narrow:
        decide("drop_path", 0.0, "a small model")
    is_large = get("width") >= (1024 if config.is_from_scratch else 1280)
    decide("drop_path", 0.2 if is_large else 0.1, table)


def _check(
    config: FinetuneConfig,
    resolved: ResolvedFinetuneConfig,
    shape: ClassifierShape,
    facts: DataFacts,
    is_multi_label: bool,
    dtype: str,
) -> None:
    channels = shape.encoder.channels
    has = f"the model takes {channels} channels, but the images have {facts.channels}"
    check_channels(facts, channels, f"{has}: use another --init")
    check_scale(dtype, facts, config.value_range)
    if config.crop_scale is not None and resolved.augment in ("none", "crop-fixed"):
        raise RequestError(
            f"--crop-scale is for crops of random size, not for --augment {resolved.augment}: leave it out"
        )
    if config.label_smoothing and is_multi_label:
        raise RequestError("--label-smoothing is for one label an image, these have several: leave it out")
    if resolved.rand_augment != "none":
        check_rand_augment(channels, facts.dtype)
    if resolved.blocks is not None and resolved.blocks > shape.encoder.depth:
        raise RequestError(f"--blocks got {resolved.blocks:g}: the model has {shape.encoder.depth}")
    if resolved.mixup or resolved.cutmix:
        for name in ("batch_size", "micro_batch_size"):
            if getattr(resolved, name) % 2:
                raise RequestError(
                    f"{flag_of(name)} got {getattr(resolved, name)}: mixup and cutmix mix pairs, give an even number"
                )


def _fit_memory(shape: ClassifierShape, machine: Machine, decisions: Decisions) -> None:
    """A micro-batch that fits into memory; even, as images are mixed in pairs."""
    config = decisions.resolved(ResolvedFinetuneConfig)

    def bytes_needed(micro_batch_size: int) -> float:
        activations = cost.classifier_activation_bytes(shape, config.blocks, 2 if config.precision == "bf16" else 4)
        copies = 20 if config.ema else 16
        return copies * cost.classifier_parameters(shape) + micro_batch_size * activations

    decide_micro_batch(decisions, bytes_needed, machine, smallest=2, is_even=True)
    micro_batch_size = decisions.get("micro_batch_size")
    check_memory(micro_batch_size, bytes_needed(micro_batch_size), machine, "give a smaller --image-size, or --blocks")
