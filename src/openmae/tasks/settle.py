"""Deciding what the person left open, each decision with its reason (ARCHITECTURE: defaults without a recipe)."""

from dataclasses import dataclass, replace
from typing import Any

from openmae.config import (
    SIZES,
    DecoderShape,
    MAEShape,
    Preprocessing,
    PretrainConfig,
    SettledConfig,
    ViTShape,
    check_name,
    num_kept,
)
from openmae.data.preprocess import DataFacts, imagenet_statistics
from openmae.errors import RequestError
from openmae.model import cost
from openmae.recipes import PRETRAIN_RECIPES

# Small batches at the paper's base rate would hardly move: no peak rate below these without being asked.
LOWEST_PEAK_RATE = {"narrow": 1e-3, "medium": 5e-4, "wide": 1.5e-4}
MEMORY_SHARE = 0.6  # of the device, that a micro-batch may plan to fill


@dataclass(frozen=True)
class Machine:
    """What decisions may depend on: device type (cpu, cuda, mps), bf16 units, reader processes, memory in bytes."""

    device: str
    has_bf16: bool
    workers: int
    memory: int


@dataclass(frozen=True)
class Settled:
    """A config without open questions and what follows from it."""

    config: SettledConfig
    preprocessing: Preprocessing
    reasons: dict[str, str]

    @property
    def shape(self) -> MAEShape:
        return shape_of(self.config)


def shape_of(config: SettledConfig) -> MAEShape:
    """The model that a settled config describes. Raises RequestError where the numbers do not fit together."""
    c = config
    encoder = ViTShape(
        image_size=c.size,
        patch_size=c.patch_size,
        channels=c.channels,
        width=c.width,
        depth=c.depth,
        num_heads=c.num_heads,
    )
    decoder = DecoderShape(width=c.decoder_width, depth=c.decoder_depth, num_heads=c.decoder_num_heads)
    return MAEShape(encoder=encoder, decoder=decoder, target=c.target, mask_tokens_in_encoder=c.mask_tokens_in_encoder)


def total_steps(config: SettledConfig, num_images: int) -> int:
    """Optimiser steps of a settled config."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, round(config.epochs * num_images / config.batch_size))


def settle(
    config: PretrainConfig, facts: DataFacts, machine: Machine, init: tuple[MAEShape, Preprocessing] | None = None
) -> Settled:
    """Fill every open setting.

    Args:
        facts: of the training images.
        init: shape and preprocessing of the weights to start from, whose settings are taken over.

    Raises:
        RequestError: the settings do not fit each other or the data.
    """
    chosen: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def decide(name: str, value: Any, why: str) -> None:
        if getattr(config, name) is None and name not in chosen:
            chosen[name], reasons[name] = value, why

    def get(name: str) -> Any:
        return chosen[name] if name in chosen else getattr(config, name)

    if config.recipe is not None:
        check_name("--recipe", config.recipe, PRETRAIN_RECIPES)
        for name, value in PRETRAIN_RECIPES[config.recipe]().items():
            if not (name == "epochs" and config.steps is not None):
                decide(name, value, f"recipe {config.recipe}")
    if get("model") is not None:  # before --init: a contradiction must show
        _decide_size(get("model"), decide, get)
    if init is not None:
        _take_over(*init, decide, is_measured=config.statistics is not None or config.value_range is not None)
    _decide_model(facts, machine, decide, get)
    _decide_decoder(decide, get)
    _decide_data(facts, decide, get)
    _decide_optimisation(config, facts, machine, decide, get)

    decide("seed", 0, "the default")
    decide("max_bad", 0.01, "the default")
    decide("device", machine.device, "the best here")
    # On a CPU with such units a small model is still slower in bf16: conversions cost more than products save.
    use_bf16 = machine.has_bf16 and (machine.device == "cuda" or get("width") >= 768)
    decide("precision", "bf16" if use_bf16 else "fp32", f"faster on {machine.device} at this width")
    decide("workers", machine.workers, "from the cores")
    _check_warmup(config, chosen, reasons, facts.count)
    guessed = {"micro_batch_size": config.micro_batch_size or get("batch_size")}
    settled = SettledConfig(**{**config.to_dict(), **chosen, **guessed})
    shape = shape_of(settled)
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
    needed = planned_memory(shape, settled, settled.micro_batch_size)
    if needed > machine.memory:
        raise RequestError(
            f"{settled.micro_batch_size} images at a time need about {needed / 1e9:.3g} GB of memory, "
            f"{machine.device} has {machine.memory / 1e9:.3g}: give a smaller --model or --image-size"
        )
    preprocessing = Preprocessing(
        channels=settled.channels,
        value_range=settled.value_range,
        mean=settled.mean,
        std=settled.std,
        image_size=settled.size,
        background=settled.background,
        dtype=init[1].dtype if init is not None and settled.value_range == init[1].value_range else facts.dtype,
    )
    return Settled(settled, preprocessing, reasons)


def _check_warmup(config: PretrainConfig, chosen: dict[str, Any], reasons: dict[str, str], count: int) -> None:
    """A warm-up as long as the run would never reach the rate: shorten a recipe's, refuse a person's."""
    epochs: float = chosen.get("epochs", config.epochs) or 0.0
    if config.steps is not None:
        epochs = config.steps * chosen.get("batch_size", config.batch_size or 1) / count
    if config.warmup_epochs is not None and config.warmup_epochs > 0 and config.warmup_epochs >= epochs:
        raise RequestError(f"--warmup-epochs got {config.warmup_epochs:g} for a run of {epochs:.4g} epochs: give fewer")
    if chosen.get("warmup_epochs", 0) >= epochs:
        chosen["warmup_epochs"] = 0.05 * epochs
        reasons["warmup_epochs"] = f"5 % of the steps: {reasons['warmup_epochs']} has more than this run's epochs"


def _take_over(shape: MAEShape, preprocessing: Preprocessing, decide: Any, is_measured: bool) -> None:
    """Take over what the weights were trained with; mean and deviation too unless new ones are asked for."""
    for name in ("image_size", "patch_size", "channels", "width", "depth", "num_heads"):
        decide(name, getattr(shape.encoder, name), "as --init")
    for name in ("width", "depth", "num_heads"):
        decide("decoder_" + name, getattr(shape.decoder, name), "as --init")
    decide("target", shape.target, "as --init")
    for name in ("value_range", "background", *(() if is_measured else ("mean", "std"))):
        decide(name, getattr(preprocessing, name), "as --init")


def _decide_model(facts: DataFacts, machine: Machine, decide: Any, get: Any) -> None:
    if get("width") is None or get("depth") is None or get("num_heads") is None:
        if get("width") is None and get("depth") is None:
            decide("model", *_model_for(facts.count, machine.device))
        _decide_size(get("model") or "tiny", decide, get)
        decide("num_heads", heads_for(get("width"), 64), "heads 64 wide, or the nearest that divides the width")
    small = facts.short_side < 224
    largest = 224 if machine.device != "cpu" or get("model") in ("base", "large", "huge") else 96
    side = min(facts.short_side, largest)
    if get("patch_size") is None and get("image_size") is None:
        step = 1 if side < 4 else 2 if side < 8 else 4 if side < 64 else 8 if side <= 128 else 16
        if not small and get("model") == "huge":
            step = 14
        side = max(step, side // step * step)
        decide("patch_size", step, f"for images of {side} px")
        decide(
            "image_size",
            side,
            "the images' own size" if side > facts.short_side - step else f"usual for {machine.device}",
        )
    elif get("image_size") is None:
        patch = get("patch_size")
        decide("image_size", max(patch, side // patch * patch), f"what {patch} px patches divide")
    elif get("patch_size") is None:
        size = get("image_size")
        sides = (size, size) if isinstance(size, int) else size
        wish = SIZES[get("model")][3] if get("model") and min(sides) > 128 else 16
        wish = min(wish, 4 if min(sides) < 64 else 8 if min(sides) <= 128 else wish)
        smallest = wish // 2 if min(sides) >= 16 else 1
        sizes = [p for p in (wish, 14, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1) if smallest <= p <= wish]
        fitting = [p for p in sizes if all(s % p == 0 for s in sides)]
        # None that divides: the smallest of all sizes would do, but thousands of tokens are no default.
        decide("patch_size", fitting[0] if fitting else wish, f"for images of {sides[0]}x{sides[1]} px")


def _decide_size(model: str, decide: Any, get: Any) -> None:
    width, depth, heads, _ = SIZES[model]
    if get("width") is None:  # a size's heads are for its own width
        decide("num_heads", heads, f"of {model}")
    decide("width", width, f"of {model}")
    decide("depth", depth, f"of {model}")


def _model_for(count: int, device: str) -> tuple[str, str]:
    if device == "cpu":
        return "tiny", "training on a CPU"
    for size, most in (("tiny", 20_000), ("small", 200_000), ("base", 2_000_000)):
        if count < most:
            return size, f"{count:,} images"
    return "large", f"{count:,} images"


def heads_for(width: int, head_width: int) -> int:
    """The number of heads whose width comes nearest to `head_width` and divides `width`."""
    return min((n for n in range(1, min(width, 1024) + 1) if width % n == 0), key=lambda n: abs(width / n - head_width))


def _decide_decoder(decide: Any, get: Any) -> None:
    width, depth = get("width"), get("depth")
    why = f"matches an encoder of {width} x {depth}"
    if width >= 768:
        decide("decoder_width", 512, why + " (the paper's)")
        decide("decoder_depth", 8, why + " (the paper's)")
    else:
        decide("decoder_width", width if width <= 192 else max(192, width * 2 // 3 // 32 * 32), why)
        decide("decoder_depth", max(1, min(4, depth // 3)), why)
    decide("decoder_num_heads", heads_for(get("decoder_width"), 32), "heads 32 wide, as the paper's decoder")


def _decide_data(facts: DataFacts, decide: Any, get: Any) -> None:
    decide("mask", "random", "the paper's default")
    decide("mask_ratio", 0.75, "the paper's default")
    decide("target", "norm-pixel", "the paper's best (table 1d)")
    decide("augment", "crop", "the paper's default (table 1e)")
    decide("background", 1.0, "white")
    decide("channels", facts.channels, "what the images have")
    decide("value_range", facts.value_range, f"of {facts.dtype} data")
    alike = facts.channels == 3 and facts.dtype == "uint8"
    decide(
        "statistics",
        "imagenet" if alike else "measured",
        "not used: --mean and --std are given"
        if get("mean") is not None
        else "colour photographs"
        if alike
        else f"{facts.channels} channels of {facts.dtype}",
    )
    if get("statistics") == "imagenet":
        mean, std = imagenet_statistics(get("channels"))
    else:
        low, high = get("value_range")
        mean = tuple(round((value - low) / (high - low), 4) for value in facts.mean)
        std = tuple(round(value / (high - low), 4) for value in facts.std)
        if get("channels") != facts.channels:  # grey shown as RGB or the reverse
            mean = (sum(mean) / len(mean),) * get("channels")
            std = (sum(std) / len(std),) * get("channels")
    decide("mean", mean, f"{get('statistics')} statistics")
    decide("std", std, f"{get('statistics')} statistics")


def _decide_optimisation(config: PretrainConfig, facts: DataFacts, machine: Machine, decide: Any, get: Any) -> None:
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
    decide("log_every", max(1, min(50, steps // 200)), "about 200 lines")
    decide("evaluate_every", max(1, min(1000, steps // 20)), "about 20 times")
    decide("picture_every", max(1, min(5000, steps // 8)), "about 8 times")
    decide("save_every", max(1, min(1000, steps // 10)), "about 10 times")


def micro_batch(shape: MAEShape, config: SettledConfig, machine: Machine) -> int:
    """The largest of batch, batch / 2, … whose planned memory fits the device."""
    micro = config.batch_size
    while micro > 1 and planned_memory(shape, config, micro) > MEMORY_SHARE * machine.memory:
        micro //= 2
    return micro


def planned_memory(shape: MAEShape, config: SettledConfig, micro: int) -> int:
    """Bytes for weights, gradients and AdamW's two moments in float32, and the activations of `micro` images."""
    count = shape.encoder.num_patches
    visible = count if config.mask == "given" else max(1, int(count * (1 - config.mask_ratio)))
    activations = cost.activation_bytes(shape, visible, 2 if config.precision == "bf16" else 4)
    return 16 * cost.num_parameters(shape) + micro * activations
