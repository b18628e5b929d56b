"""The decisions that segmentation and detection share: whole models on an encoder, trained or new."""

from collections.abc import Callable, Mapping
from typing import Any

from openmae.config import (
    Preprocessing,
    ResolvedTransferConfig,
    TransferConfig,
    ViTShape,
    check_name,
    flag_of,
)
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError
from openmae.planning.decisions import (
    Decisions,
    Machine,
    decide_device_and_defaults,
    decide_intervals,
    limit_warmup,
    planned_epochs,
    planned_steps,
)
from openmae.planning.encoder import adopt_encoder, check_channels, decide_model, decide_size
from openmae.planning.micro_batch import check_memory, decide_micro_batch
from openmae.planning.preprocessing import (
    check_scale,
    choose_axes,
    choose_nodata,
    decide_statistics,
    matched_to_data,
    preprocessing_of,
)

AS_INIT = "as --init"  # a reason that the plan leaves out: nobody has to decide about it

Start = tuple[ViTShape, Preprocessing]  # the encoder to start from, and its preprocessing


def decide_by_init(
    init: Start | None, recipes: Mapping[str, Callable[[], dict[str, Any]]], decisions: Decisions
) -> None:
    """What the encoder to start from, `--freeze` and the recipe say. Raises RequestError where a setting contradicts.

    Args:
        init: None from scratch.
    """
    decide, recipe = decisions.decide, decisions.config.recipe
    check_name("--recipe", recipe, recipes)
    if recipe is not None and (patch_size := recipes[recipe]().get("patch_size")) is not None:
        decide("patch_size", patch_size, f"recipe {recipe}")  # resampled, where the model has another
    if init is not None:
        adopt_encoder(*init, decisions)
    own = "none" if init is None else init[0].relative_positions
    if own != "none":
        decide("relative_positions", own, AS_INIT)
    if decisions.config.freeze:
        for name, value in (("drop_path", 0.0), ("layer_decay", 1.0), ("relative_positions", own)):
            decide(name, value, "the encoder is frozen")
    decisions.apply_recipe(recipes)
    decide("crop_aspect", "model", AS_INIT)


def decide_encoder_from_scratch(facts: DataFacts, machine: Machine, decisions: Decisions) -> None:
    """Shape and normalisation of an encoder that is not loaded."""
    if (model := decisions.get("model")) is not None:
        decide_size(decisions, model)
    decide_model(facts, machine, decisions)
    decide_statistics(facts, decisions)


def check_relative_positions(own: str, config: ResolvedTransferConfig, addable: tuple[str, ...]) -> None:
    """Raise RequestError where relative positions are requested that the encoder cannot get.

    Args:
        own: what the encoder has.
        addable: what an encoder without any can get.
    """
    wanted = config.relative_positions
    if own != wanted and (own != "none" or wanted not in addable):
        has = f"--init has {own} relative positions" if own != "none" else f"only {' or '.join(addable)} can be added"
        raise RequestError(f"--relative-positions got {wanted}, but {has}: leave it out")
    if own != wanted and config.freeze:
        raise RequestError(
            f"--relative-positions {wanted} would stay zero in an encoder that --freeze keeps: leave one out"
        )


def decide_fine_tuning(config: TransferConfig, count: int, decisions: Decisions) -> None:
    """Layer decay, weight decay, betas, drop path, warm-up and intervals, as in fine-tuning (table 9)."""
    decide, scratch = decisions.decide, config.is_from_scratch
    decide("layer_decay", 1.0 if scratch else 0.75, "nothing to preserve" if scratch else "as fine-tuning (table 9)")
    decide("weight_decay", 0.05, "as fine-tuning (table 9)")
    decide("betas", (0.9, 0.999), "as fine-tuning (table 9)")
    drop_path = 0.0 if decisions.get("width") <= 192 else 0.1
    decide("drop_path", drop_path, "as fine-tuning (table 9)" if drop_path else "a small encoder")
    decide("warmup_epochs", 0.05 * planned_epochs(decisions, count), "5 % of the steps")
    steps = planned_steps(decisions, count)
    decide("evaluate_every", max(1, steps // 5), "about 5 times: whole images take long")
    decide_intervals(steps, decisions)


def decide_rest(facts: DataFacts, machine: Machine, init: Start | None, decisions: Decisions) -> None:
    """Axes, nodata, device, precision and workers; a warm-up as long as the run is shortened."""
    choose_axes(facts, decisions)
    choose_nodata(None if init is None else init[1], decisions)
    decide_device_and_defaults(machine, decisions, decisions.get("width"))
    limit_warmup(decisions, facts.count)
    decisions.decide("micro_batch_size", decisions.get("batch_size"), "all at once")


def check_draft(draft: ResolvedTransferConfig, facts: DataFacts, init: Start | None, decisions: Decisions) -> None:
    """Raise RequestError where images, rates or settings of a random crop do not fit."""
    has = f"the model takes {draft.channels} channels, but the images have {facts.channels}"
    check_channels(facts, draft.channels, f"{has}: {'use another --init' if init else 'leave --channels out'}")
    peak = draft.base_lr * draft.batch_size / 256
    if draft.min_lr > peak:
        raise RequestError(f"--min-lr got {draft.min_lr:g}, above the peak rate of {peak:.3g}: give less")
    config = decisions.config
    check_scale(facts.dtype if init is None else init[1].dtype, facts, config.value_range)
    for name in ("resize_range", "max_class_share") if getattr(draft, "augment", "") == "none" else ():
        if getattr(config, name, None) is not None:
            raise RequestError(f"{flag_of(name)} is for random crops, not for --augment none: leave it out")


def fit_memory(bytes_needed: Callable[[int], float], machine: Machine, decisions: Decisions) -> None:
    """Decide the micro-batch. Raises RequestError where not even that fits.

    Args:
        bytes_needed: from a micro-batch size to the bytes that it needs.
    """
    decide_micro_batch(decisions, bytes_needed, machine)
    micro_batch_size = decisions.get("micro_batch_size")
    check_memory(
        micro_batch_size, bytes_needed(micro_batch_size), machine, "give a smaller --image-size or --head-width"
    )


def matched_preprocessing(
    resolved: ResolvedTransferConfig, facts: DataFacts, init: Start | None, decisions: Decisions
) -> tuple[Preprocessing, tuple[str, ...]]:
    """How images become the model's input, and lines about how their values are mapped to the model's."""
    dtype = facts.dtype if init is None else init[1].dtype
    preprocessing, notes = matched_to_data(
        preprocessing_of(resolved, dtype),
        None if init is None else init[1],
        facts,
        decisions.config.value_range,
        resolved.nodata,
    )
    return preprocessing, tuple(notes)
