"""The plan of a pre-training: settings that the user left open, each decided with its reason."""

from dataclasses import replace
from typing import Protocol

import torch

from openmae.config import (
    DecoderShape,
    MAEShape,
    Preprocessing,
    PretrainConfig,
    ResolvedPretrainConfig,
    TokenizerShape,
    ViTShape,
    check_tiles,
    flag_of,
    num_kept,
)
from openmae.data.preprocess import DataFacts, facts_in_scale
from openmae.data.sources.open import Source
from openmae.data.value_scale import match_own_scale, match_scale, with_scale_of
from openmae.errors import RequestError
from openmae.interchange.stored import StoredModel
from openmae.interchange.tokenizers import StoredTokenizer
from openmae.model import cost
from openmae.planning.crop import decide_crop_on
from openmae.planning.decisions import (
    CROP_ASPECT_REASON,
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
from openmae.planning.encoder import check_channels, decide_model, decide_size, encoder_shape, heads_for
from openmae.planning.micro_batch import MEMORY_SHARE, check_memory, decide_micro_batch
from openmae.planning.preprocessing import (
    check_scale,
    choose_axes,
    choose_nodata,
    decide_statistics,
    preprocessing_of,
    with_reading_settings,
)
from openmae.planning.token_target import decide_tokenizer, tokenizer_memory
from openmae.recipes import PRETRAIN_RECIPES

# At small batches the paper's base rate would hardly change the weights: no smaller peak rate is decided than these.
MIN_PEAK_RATE = {"narrow": 1e-3, "medium": 5e-4, "wide": 1.5e-4}


class PretrainPlan(Plan[ResolvedPretrainConfig, MAEShape]):
    """A pre-training config without open settings, and what follows from it."""


class PretrainData(Protocol):
    """The training images, and those held out to measure on."""

    @property
    def train(self) -> Source: ...
    @property
    def held_out(self) -> Source | None: ...
    @property
    def num_held_out(self) -> int: ...


def plan_pretrain(
    config: PretrainConfig,
    init: StoredModel | None,
    data: PretrainData,
    device: torch.device,
    num_processes: int,
    previous: Previous[ResolvedPretrainConfig] | None,
    tokenizer: StoredTokenizer | None = None,
) -> tuple[PretrainPlan, DataFacts | None]:
    """The plan of the previous run where one is resumed; else a new plan, and the facts about the data behind it.

    Args:
        init: the model whose weights to start from.
        num_processes: on this machine, which share it.
        tokenizer: that of `--tokenizer`, or the one that `init` or the previous run's checkpoint carries.

    Raises:
        RequestError: none of the sampled images can be read, or the settings do not fit.
    """
    if previous is not None:
        resolved = replace(previous.config, device=str(device))
        shape = mae_shape(resolved, saved_encoder_shape(previous), None if tokenizer is None else tokenizer.shape)
        return PretrainPlan(resolved, shape, previous.preprocessing, {}), None
    others = () if data.held_out is None else [data.held_out]
    facts, machine = survey_data_and_machine(config, data.train, others, device, num_processes)
    return make_pretrain_plan(config, facts, machine, init, data.num_held_out, tokenizer), facts


def mae_shape(
    config: ResolvedPretrainConfig, like: ViTShape | None = None, tokenizer: TokenizerShape | None = None
) -> MAEShape:
    """The shape of the model that a resolved config describes. Raises RequestError where numbers do not fit together.

    Args:
        like: the encoder to start from, for what no setting names (layer scale, the eps of its norms).
    """
    c, encoder = config, encoder_shape(config, like)
    decoder = DecoderShape(width=c.decoder_width, depth=c.decoder_depth, num_heads=c.decoder_num_heads)
    return MAEShape(
        encoder=encoder,
        decoder=decoder,
        target=c.target,
        mask_tokens_in_encoder=c.mask_tokens_in_encoder,
        pca_coefficients=c.pca_coefficients,
        tokenizer=tokenizer,
    )


def make_pretrain_plan(
    config: PretrainConfig,
    facts: DataFacts,
    machine: Machine,
    init: StoredModel | None = None,
    num_held_out: int | None = None,
    tokenizer: StoredTokenizer | None = None,
) -> PretrainPlan:
    """Decide every open setting.

    Args:
        facts: about the training images.
        init: the model to start from: what it was trained with is decided first.
        num_held_out: images held out of training; None where the data is not opened.
        tokenizer: see `plan_pretrain`.

    Raises:
        RequestError: the settings do not fit each other or the data.
    """
    decisions = Decisions(config)
    get = decisions.get
    decisions.apply_recipe(PRETRAIN_RECIPES)
    if get("model") is not None:  # before --init, so that a contradiction is found
        decide_size(decisions, get("model"))
    if init is not None:
        _adopt_init(init, decisions, is_measured=config.statistics is not None or config.value_range is not None)
    tokenizer_shape = decide_tokenizer(decisions, tokenizer, init)
    decide_model(facts, machine, decisions)
    _decide_decoder(decisions)
    init_scale: Preprocessing | None = None  # None: the model's values are on the scale of the data
    if init is not None and config.value_range in (None, init.preprocessing.value_range):
        check_scale(init.preprocessing.dtype, facts, config.value_range)
        init_scale, notes = match_scale(init.preprocessing, facts.depths, config.value_range, stated=facts.stated_range)
    _decide_data(facts if init_scale is None else facts_in_scale(facts, init_scale), decisions)
    _decide_optimisation(facts, machine, decisions)
    choose_axes(facts, decisions)
    choose_nodata(None if init is None else init.preprocessing, decisions)
    decide_device_and_defaults(machine, decisions, get("width"))
    _decide_computing(machine, decisions)
    decide_crop_on(facts, machine, decisions)
    limit_warmup(decisions, facts.count)
    decisions.decide("micro_batch_size", get("batch_size"), "all at once")
    decisions.decide("recompute", False, "memory suffices")
    like = None if init is None else init.encoder_shape
    shape = _checked_shape(decisions.resolved(ResolvedPretrainConfig), facts, like, tokenizer_shape)
    _fit_memory(shape, machine, decisions)
    if num_held_out is not None:
        why = "of the validation part, or a twentieth of the images: never trained on"
        decisions.decide("held_out", num_held_out, why if num_held_out else "too few images")

    resolved = decisions.resolved(ResolvedPretrainConfig)
    preprocessing = preprocessing_of(resolved, facts.dtype)
    if init_scale is not None:
        preprocessing = with_scale_of(preprocessing, init_scale)
    else:
        preprocessing, notes = match_own_scale(preprocessing, facts.depths)
    preprocessing = with_reading_settings(
        preprocessing, facts, resolved.nodata, None if init is None else init.preprocessing.axes
    )
    return PretrainPlan(resolved, shape, preprocessing, decisions.reasons, tuple(notes))


def _checked_shape(
    config: ResolvedPretrainConfig, facts: DataFacts, like: ViTShape | None, tokenizer: TokenizerShape | None
) -> MAEShape:
    """`mae_shape`. Raises RequestError where model, `like`, images and mask do not fit each other."""
    for name in ("width", "depth", "num_heads", "channels"):
        if like is not None and getattr(config, name) != getattr(like, name):
            raise RequestError(
                f"{flag_of(name)} got {getattr(config, name)}, but --init has {getattr(like, name)}: leave the model's "
                "flags out to take its shape"
            )
    check_tiles(config.tiles, config.size)
    shape = mae_shape(config, like, tokenizer)
    encoder = shape.encoder
    check_channels(facts, encoder.channels, f"--channels got {encoder.channels}, but the images have {facts.channels}")
    if facts.short_side < encoder.patch_size:
        raise RequestError(
            f"the images' short side is about {facts.short_side} px, smaller than a patch of "
            f"{encoder.patch_size} px: give a smaller --patch-size"
        )
    if config.mask in ("random", "block"):
        num_kept(encoder.num_patches, config.mask_ratio)
    if config.mask in ("grid", "given") and config.mask_ratio != 0.75:
        what = "keeps one of each 2x2" if config.mask == "grid" else "says itself what is hidden"
        raise RequestError(f"--mask-ratio got {config.mask_ratio:g}: --mask {config.mask} {what}, leave it out")
    return shape


def _adopt_init(init: StoredModel, decisions: Decisions, is_measured: bool) -> None:
    """Decide as the weights were trained with; mean and standard deviation too unless they are measured anew."""
    decide, preprocessing = decisions.decide, init.preprocessing
    for name in ("image_size", "patch_size", "channels", "width", "depth", "num_heads"):
        decide(name, getattr(init.encoder_shape, name), "as --init")
    if isinstance(init.shape, MAEShape):
        for name in ("width", "depth", "num_heads"):
            decide("decoder_" + name, getattr(init.shape.decoder, name), "as --init")
        decide("target", init.shape.target, "as --init")
        if decisions.get("target") == init.shape.target == "pca":
            decide("pca_coefficients", init.shape.pca_coefficients, "as --init")
    for name in ("value_range", "background", *(() if is_measured else ("mean", "std"))):
        decide(name, getattr(preprocessing, name), "as --init")


def _decide_decoder(decisions: Decisions) -> None:
    decide, get = decisions.decide, decisions.get
    width, depth = get("width"), get("depth")
    why = f"matches an encoder of {width} x {depth}"
    if width >= 768:
        decide("decoder_width", 512, why + " (the paper's)")
        decide("decoder_depth", 8, why + " (the paper's)")
    else:
        decide("decoder_width", width if width <= 192 else max(192, width * 2 // 3 // 32 * 32), why)
        decide("decoder_depth", max(1, min(4, depth // 3)), why)
    decide("decoder_num_heads", heads_for(get("decoder_width"), 32), "heads 32 wide, as the paper's decoder")


def _decide_data(facts: DataFacts, decisions: Decisions) -> None:
    decide = decisions.decide
    decide("mask", "random", "the paper's default")
    decide("mask_ratio", 0.75, "the paper's default")
    decide("target", "norm-pixel", "the paper's best (table 1d)")
    decide("augment", "crop", "the paper's default (table 1e)")
    decide("crop_aspect", "model", CROP_ASPECT_REASON)
    decide_statistics(facts, decisions)
    if decisions.get("target") == "pca":
        values = decisions.get("channels") * decisions.get("patch_size") ** 2
        decide("pca_coefficients", max(1, values // 8), f"an eighth of a patch's {values} values (table 1d)")


def _decide_optimisation(facts: DataFacts, machine: Machine, decisions: Decisions) -> None:
    decide, count = decisions.decide, facts.count
    batch = largest_doubling(8, min(256 if machine.device == "cpu" else 1024, max(8, count // 16)))
    decide("batch_size", batch, f"{count:,} images on {machine.device}")
    if decisions.config.steps is None:
        epochs = 100.0 if machine.device == "cpu" else 400.0 if count >= 100_000 else 800.0
        decide("epochs", epochs, f"{count:,} images on {machine.device}")
    decide_base_lr(decisions, 1.5e-4, MIN_PEAK_RATE)
    decide("min_lr", 0.0, "table 8")
    decide("weight_decay", 0.05, "table 8")
    decide("betas", (0.9, 0.95), "table 8")
    warmup_epochs = min(40.0, 0.05 * planned_epochs(decisions, count))
    decide("warmup_epochs", warmup_epochs, "5 % of the steps, at most the paper's 40 epochs")
    steps = planned_steps(decisions, count)
    decide_intervals(steps, decisions)
    decide("picture_every", max(1, min(5000, steps // 8)), "about 8 times")


def _decide_computing(machine: Machine, decisions: Decisions) -> None:
    """Whether the model is compiled, and whether its residual stream is bf16."""
    is_gpu = machine.device == "cuda"
    why = "faster on GPUs" if machine.can_compile else "needs triton and a GPU of compute capability 7.0 or more"
    decisions.decide("compile", is_gpu and machine.can_compile, why if is_gpu else f"gains nothing on {machine.device}")
    is_bf16 = decisions.get("precision") == "bf16"
    decisions.decide("bf16_residual", False, "not yet measured on a GPU" if is_bf16 else "this run computes in fp32")


def _fit_memory(shape: MAEShape, machine: Machine, decisions: Decisions) -> None:
    """A micro-batch that fits into memory; recomputing only where a single image does not fit without it."""
    all_at_once = decisions.resolved(ResolvedPretrainConfig)
    decide_micro_batch(decisions, lambda micro: planned_memory(shape, all_at_once, micro), machine)
    micro = decisions.get("micro_batch_size")
    is_short = planned_memory(shape, all_at_once, micro) > MEMORY_SHARE * machine.memory
    if decisions.config.recompute is None and is_short:
        decisions.set("recompute", True, "memory is short")
    resolved = decisions.resolved(ResolvedPretrainConfig)
    advice = "give a smaller --model or --image-size" + ("" if resolved.recompute else ", or --recompute True")
    check_memory(micro, planned_memory(shape, resolved, micro), machine, advice)


def planned_memory(shape: MAEShape, config: ResolvedPretrainConfig, micro_batch_size: int) -> int:
    """Bytes for weights, gradients and AdamW's two moments in float32, and for the activations of a micro-batch."""
    count, bytes_per_value = shape.encoder.num_patches, 2 if config.precision == "bf16" else 4
    visible = count if config.mask == "given" else max(1, int(count * (1 - config.mask_ratio)))
    masked = count if config.mask == "given" else count - visible  # a given mask shows and hides at most all
    activations = cost.activation_bytes(shape, visible, bytes_per_value, masked=masked, recompute=config.recompute)
    return 16 * cost.num_parameters(shape) + micro_batch_size * activations + tokenizer_memory(shape, micro_batch_size)
