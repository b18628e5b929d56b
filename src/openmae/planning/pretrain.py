"""Deciding what the person left open, each decision with its reason (ARCHITECTURE: defaults without a recipe)."""

from dataclasses import dataclass, replace

from openmae.config import (
    DecoderShape,
    MAEShape,
    Preprocessing,
    PretrainConfig,
    SettledConfig,
    ViTShape,
    check_tiles,
    flag_of,
    num_kept,
)
from openmae.data.augment import Augmentation
from openmae.data.decoding.nodata import stored_nodata
from openmae.data.preprocess import DataFacts, facts_in_scale
from openmae.data.scale import match_own_scale, match_scale, with_scale_of
from openmae.errors import RequestError, shown
from openmae.interchange.stored import Described
from openmae.model import cost
from openmae.planning.decisions import (
    CROPS_LIKE_EVALUATION,
    LOWEST_PEAK_RATE,
    MEMORY_SHARE,
    Choices,
    Machine,
    check_scale,
    check_warmup,
    choose_axes,
    choose_nodata,
    decide_machine,
    decide_model,
    decide_pace,
    decide_size,
    decide_statistics,
    heads_for,
)
from openmae.recipes import PRETRAIN_RECIPES


@dataclass(frozen=True)
class Settled:
    """A config without open questions and what follows from it."""

    config: SettledConfig
    preprocessing: Preprocessing
    reasons: dict[str, str]
    like: ViTShape | None = None
    notes: tuple[str, ...] = ()  # what was understood of the data

    @property
    def shape(self) -> MAEShape:
        return shape_of(self.config, self.like)


def shape_of(config: SettledConfig, like: ViTShape | None = None) -> MAEShape:
    """The model that a settled config describes. Raises RequestError where the numbers do not fit together.

    Args:
        like: an encoder that others trained, for what no setting names (layer scale, the eps of its norms).
    """
    c = config
    encoder = ViTShape(
        image_size=c.size,
        patch_size=c.patch_size,
        channels=c.channels,
        width=c.width,
        depth=c.depth,
        num_heads=c.num_heads,
    )
    if like is not None:
        encoder = like.resized(encoder.image_size, encoder.patch_size)
    decoder = DecoderShape(width=c.decoder_width, depth=c.decoder_depth, num_heads=c.decoder_num_heads)
    return MAEShape(encoder=encoder, decoder=decoder, target=c.target, mask_tokens_in_encoder=c.mask_tokens_in_encoder)


def settle(config: PretrainConfig, facts: DataFacts, machine: Machine, init: Described | None = None) -> Settled:
    """Fill every open setting.

    Args:
        facts: of the training images.
        init: the weights to start from, whose settings are taken over.

    Raises:
        RequestError: the settings do not fit each other or the data.
    """
    choices = Choices(config)
    get = choices.get
    choices.take_recipe(PRETRAIN_RECIPES)
    if get("model") is not None:  # before --init: a contradiction must show
        decide_size(choices, get("model"))
    if init is not None:
        _take_over(init, choices, is_measured=config.statistics is not None or config.value_range is not None)
    decide_model(facts, machine, choices)
    _decide_decoder(choices)
    of_model: Preprocessing | None = None  # with another --value-range the data's own scale becomes the model's
    if init is not None and config.value_range in (None, init.preprocessing.value_range):
        check_scale(init.preprocessing.dtype, facts, config.value_range)
        of_model, notes = match_scale(init.preprocessing, facts.depths, config.value_range, stated=facts.stated_range)
    _decide_data(facts if of_model is None else facts_in_scale(facts, of_model), choices)
    _decide_optimisation(config, facts, machine, choices)

    choose_axes(facts, choices)
    choose_nodata(None if init is None else init.preprocessing, choices)
    decide_machine(machine, choices, get("width"))
    is_gpu = machine.device == "cuda"
    why = "faster on GPUs" if machine.can_compile else "needs triton and a GPU of compute capability 7.0 or more"
    choices.decide("compile", is_gpu and machine.can_compile, why if is_gpu else f"gains nothing on {machine.device}")
    is_bf16 = get("precision") == "bf16"
    choices.decide("bf16_residual", False, "not yet measured on a GPU" if is_bf16 else "this run computes in fp32")
    _decide_crop(facts, machine, choices)
    check_warmup(choices, facts.count)
    guessed = {"micro_batch_size": config.micro_batch_size or get("batch_size"), "recompute": bool(config.recompute)}
    reasons = choices.reasons
    settled = SettledConfig(**{**config.to_dict(), **choices.chosen, **guessed})
    like = None if init is None else init.encoder_shape
    _check_kept(settled, like)
    check_tiles(settled.tiles, settled.size)
    shape = shape_of(settled, like)
    if facts.channels != shape.encoder.channels and {facts.channels, shape.encoder.channels} != {1, 3}:
        raise RequestError(f"--channels got {shape.encoder.channels}, but the images have {facts.channels}")
    if facts.short_side < shape.encoder.patch_size:
        raise RequestError(
            f"the images' short side is about {facts.short_side} px, smaller than a patch of "
            f"{shape.encoder.patch_size} px: give a smaller --patch-size"
        )
    if settled.mask in ("random", "block"):
        num_kept(shape.encoder.num_patches, settled.mask_ratio)
    if settled.mask in ("grid", "given") and settled.mask_ratio != 0.75:
        what = "keeps one of each 2x2" if settled.mask == "grid" else "says itself what is hidden"
        raise RequestError(f"--mask-ratio got {settled.mask_ratio:g}: --mask {settled.mask} {what}, leave it out")
    if config.micro_batch_size is None:
        micro = micro_batch(shape, settled, machine)
        reasons["micro_batch_size"] = "all at once" if micro == settled.batch_size else "what fits into memory"
        settled = replace(settled, micro_batch_size=micro)
    if config.recompute is None:
        settled, reasons["recompute"] = _with_recompute(shape, settled, machine)
    needed = planned_memory(shape, settled, settled.micro_batch_size)
    if needed > machine.memory:
        raise RequestError(
            f"{settled.micro_batch_size} images at a time need about {needed / 1e9:.3g} GB of memory, "
            f"{machine.device} has {machine.memory / 1e9:.3g}: give a smaller --model or --image-size"
            + ("" if settled.recompute else ", or --recompute True")
        )
    preprocessing = Preprocessing(
        channels=settled.channels,
        value_range=settled.value_range,
        mean=settled.mean,
        std=settled.std,
        image_size=settled.size,
        background=settled.background,
        dtype=facts.dtype,
    )
    if of_model is not None:
        preprocessing = with_scale_of(preprocessing, of_model)
    else:
        preprocessing, notes = match_own_scale(preprocessing, facts.depths)
    axes = facts.axes.order or (None if init is None else init.preprocessing.axes)
    preprocessing = replace(preprocessing, axes=axes, nodata=stored_nodata(settled.nodata))
    return Settled(settled, preprocessing, reasons, like, tuple(notes))


def _check_kept(config: SettledConfig, like: ViTShape | None) -> None:
    """Raise RequestError where the encoder of `--init` is asked to have another shape than it has."""
    for name in ("width", "depth", "num_heads", "channels"):
        if like is not None and getattr(config, name) != getattr(like, name):
            raise RequestError(
                f"{flag_of(name)} got {getattr(config, name)}, but --init has {getattr(like, name)}: leave the model's "
                "flags out to take its shape"
            )


def _take_over(init: Described, choices: Choices, is_measured: bool) -> None:
    """Take over what the weights were trained with; mean and deviation too unless new ones are asked for."""
    decide, preprocessing = choices.decide, init.preprocessing
    for name in ("image_size", "patch_size", "channels", "width", "depth", "num_heads"):
        decide(name, getattr(init.encoder_shape, name), "as --init")
    if isinstance(init.shape, MAEShape):
        for name in ("width", "depth", "num_heads"):
            decide("decoder_" + name, getattr(init.shape.decoder, name), "as --init")
        decide("target", init.shape.target, "as --init")
    for name in ("value_range", "background", *(() if is_measured else ("mean", "std"))):
        decide(name, getattr(preprocessing, name), "as --init")


def _decide_decoder(choices: Choices) -> None:
    decide, get = choices.decide, choices.get
    width, depth = get("width"), get("depth")
    why = f"matches an encoder of {width} x {depth}"
    if width >= 768:
        decide("decoder_width", 512, why + " (the paper's)")
        decide("decoder_depth", 8, why + " (the paper's)")
    else:
        decide("decoder_width", width if width <= 192 else max(192, width * 2 // 3 // 32 * 32), why)
        decide("decoder_depth", max(1, min(4, depth // 3)), why)
    decide("decoder_num_heads", heads_for(get("decoder_width"), 32), "heads 32 wide, as the paper's decoder")


def _decide_data(facts: DataFacts, choices: Choices) -> None:
    decide = choices.decide
    decide("mask", "random", "the paper's default")
    decide("mask_ratio", 0.75, "the paper's default")
    decide("target", "norm-pixel", "the paper's best (table 1d)")
    decide("augment", "crop", "the paper's default (table 1e)")
    decide("crop_aspect", "model", CROPS_LIKE_EVALUATION)
    decide_statistics(facts, choices)


def _decide_crop(facts: DataFacts, machine: Machine, choices: Choices) -> None:
    """Where crops are made. Raises RequestError where the device is asked to and cannot."""
    augment = choices.get("augment")
    if not Augmentation(kind=augment).only_crops:
        obstacle = f"--augment {augment} goes on with the crop where it is read"
        remedy = "--augment crop"
    elif facts.raw_shape is None:
        named = shown(str(choices.config.dataset))
        obstacle = f"{named} is no raw pack, and only there all images are known to have one shape"
        remedy = "DATA from openmae pack --format raw"
    else:
        is_gpu = machine.device == "cuda"
        whys = {"cuda": "a raw pack: its readers need only copy", "cpu": "faster than cropping on cpu"}
        why = whys.get(machine.device, f"not measured on {machine.device}")
        choices.decide("crop_on", "device" if is_gpu else "reader", why)
        return
    if choices.get("crop_on") == "device":
        raise RequestError(f"--crop-on device: {obstacle}; give {remedy}, or --crop-on reader")
    choices.decide("crop_on", "reader", obstacle)


def _decide_optimisation(config: PretrainConfig, facts: DataFacts, machine: Machine, choices: Choices) -> None:
    decide, get = choices.decide, choices.get
    largest = 256 if machine.device == "cpu" else 1024
    batch = 8
    while batch * 2 <= min(largest, max(8, facts.count // 16)):
        batch *= 2
    decide("batch_size", batch, f"{facts.count:,} images on {machine.device}")
    batch = get("batch_size")
    if config.steps is None:
        epochs = 100.0 if machine.device == "cpu" else 400.0 if facts.count >= 100_000 else 800.0
        decide("epochs", epochs, f"{facts.count:,} images on {machine.device}")
    width = get("width")
    lowest = LOWEST_PEAK_RATE["narrow" if width <= 192 else "medium" if width <= 384 else "wide"]
    paper = 1.5e-4 * batch / 256
    why = "the paper's" if paper >= lowest else f"the paper's 1.5e-4 gives {paper:.1e} at this batch, too little"
    decide("base_lr", max(paper, lowest) * 256 / batch, why)
    decide("min_lr", 0.0, "table 8")
    decide("weight_decay", 0.05, "table 8")
    decide("betas", (0.9, 0.95), "table 8")
    epochs = get("epochs") if config.steps is None else config.steps * batch / facts.count
    decide("warmup_epochs", min(40.0, 0.05 * epochs), "5 % of the steps, at most the paper's 40 epochs")
    steps = config.steps if config.steps is not None else max(1, round(epochs * facts.count / batch))
    decide_pace(steps, choices)
    decide("picture_every", max(1, min(5000, steps // 8)), "about 8 times")


def micro_batch(shape: MAEShape, config: SettledConfig, machine: Machine) -> int:
    """The largest of batch, batch / 2, … whose planned memory fits the device."""
    micro = config.batch_size
    while micro > 1 and planned_memory(shape, config, micro) > MEMORY_SHARE * machine.memory:
        micro //= 2
    return micro


def _with_recompute(shape: MAEShape, config: SettledConfig, machine: Machine) -> tuple[SettledConfig, str]:
    """Recomputing only where a single image at a time does not fit without it."""
    if planned_memory(shape, config, config.micro_batch_size) <= MEMORY_SHARE * machine.memory:
        return config, "memory suffices"
    return replace(config, recompute=True), "memory is short"


def planned_memory(shape: MAEShape, config: SettledConfig, micro: int) -> int:
    """Bytes for weights, gradients and AdamW's two moments in float32, and the activations of `micro` images."""
    count = shape.encoder.num_patches
    visible = count if config.mask == "given" else max(1, int(count * (1 - config.mask_ratio)))
    bytes_per_value = 2 if config.precision == "bf16" else 4
    activations = cost.activation_bytes(shape, visible, bytes_per_value, recompute=config.recompute)
    return 16 * cost.num_parameters(shape) + micro * activations
