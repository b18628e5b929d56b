"""The plan of training a tokenizer: settings that the user left open, each decided with its reason."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from openmae.config import (
    Preprocessing,
    ResolvedTokenizerConfig,
    TokenizerConfig,
    TokenizerShape,
    check_tiles,
    grid_of,
    pair,
)
from openmae.data.preprocess import DataFacts
from openmae.data.value_scale import match_own_scale, value_lines
from openmae.errors import RequestError
from openmae.machine.files import format_bytes, nearest_existing
from openmae.model.tokenizer import DiscreteVAE
from openmae.planning.decisions import (
    CROP_ASPECT_REASON,
    Decisions,
    Machine,
    Plan,
    decide_device_and_defaults,
    decide_intervals,
    largest_doubling,
    limit_warmup,
    planned_epochs,
    planned_steps,
    total_steps,
)
from openmae.planning.encoder import check_channels, decide_patches
from openmae.planning.micro_batch import check_memory, decide_micro_batch
from openmae.planning.preprocessing import (
    choose_axes,
    choose_nodata,
    decide_statistics,
    preprocessing_of,
    with_reading_settings,
)
from openmae.planning.summary_lines import (
    CHECKPOINT_BYTES_PER_PARAMETER,
    decided_lines,
    device_line,
    format_rate,
    nodata_lines,
    steps_line,
)

MIN_CODEBOOK, MAX_DECIDED_CODEBOOK = 512, 8192  # DALL-E's has 8192
PEAK_RATE = 2e-3  # at every batch size; measured with batches of 64


class TokenizerPlan(Plan[ResolvedTokenizerConfig, TokenizerShape]):
    """A config without open settings, and what follows from it."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return grid_of(*self.config.size, self.config.patch_size)


def make_tokenizer_plan(
    config: TokenizerConfig, facts: DataFacts, machine: Machine, num_held_out: int
) -> TokenizerPlan:
    """Decide every open setting.

    Args:
        facts: about the training images.

    Raises:
        RequestError: the settings do not fit each other or the data.
    """
    decisions = Decisions(config)
    decide, get = decisions.decide, decisions.get
    decide_patches(facts, machine, decisions)
    height, width = pair(get("image_size"))
    rows, columns = grid_of(height, width, get("patch_size"))
    decide("stride", math.ceil(get("patch_size") / 2), "half a patch, as BEiT's: as good as a whole one, for less work")
    decide_statistics(facts, decisions)
    decide("augment", "crop", "as pretrain")
    decide("crop_aspect", "model", CROP_ASPECT_REASON)
    is_cpu = machine.device == "cpu"
    decide("width", 64 if is_cpu else 256, f"usual for {machine.device}")
    decide("depth", 1 if is_cpu else 2, f"usual for {machine.device}")
    decide("batch_size", largest_doubling(8, min(64 if is_cpu else 256, max(8, facts.count // 4))), "the default")
    _decide_optimisation(facts, decisions, is_cpu)
    _decide_codebook(decisions, facts, rows * columns)
    choose_axes(facts, decisions)
    choose_nodata(None, decisions)
    decide_device_and_defaults(machine, decisions, get("width"))
    limit_warmup(decisions, facts.count)
    decide("micro_batch_size", get("batch_size"), "all at once")
    resolved = decisions.resolved(ResolvedTokenizerConfig)
    _check(resolved, facts, rows * columns)
    decide_micro_batch(decisions, lambda micro: planned_memory(resolved, rows * columns, micro), machine)
    held_out_why = "of the validation part, or a twentieth of the images: never trained on"
    decide("held_out", num_held_out, held_out_why if num_held_out else "too few images")
    resolved = decisions.resolved(ResolvedTokenizerConfig)
    micro = resolved.micro_batch_size
    check_memory(micro, planned_memory(resolved, rows * columns, micro), machine, "give a smaller --codebook")
    preprocessing, notes = match_own_scale(preprocessing_of(resolved, facts.dtype), facts.depths)
    preprocessing = with_reading_settings(own_input(preprocessing, resolved), facts, resolved.nodata, None)
    return TokenizerPlan(resolved, resolved.shape, preprocessing, decisions.reasons, tuple(notes))


def own_input(preprocessing: Preprocessing, config: ResolvedTokenizerConfig) -> Preprocessing:
    """The preprocessing of what the tokenizer itself sees: images of grid × stride pixels."""
    rows, columns = grid_of(*config.size, config.patch_size)
    return replace(preprocessing, image_size=(rows * config.stride, columns * config.stride))


def _decide_optimisation(facts: DataFacts, decisions: Decisions, is_cpu: bool) -> None:
    decide, get, count = decisions.decide, decisions.get, facts.count
    if decisions.config.steps is None:
        steps = 2000 if is_cpu else 20_000
        decide("epochs", round(steps * get("batch_size") / count, 4), f"{steps:,} steps")
    decide("base_lr", PEAK_RATE * 256 / get("batch_size"), f"a peak of {PEAK_RATE:g} at any batch")
    decide("min_lr", 0.0, "the default")
    decide("weight_decay", 0.01, "the default")
    decide("betas", (0.9, 0.95), "as pretrain")
    decide("temperature", (1.0, 1 / 16), "as DALL-E's")
    decide("balance", 0.05, "keeps most of the codebook in use")
    decide("warmup_epochs", 0.05 * planned_epochs(decisions, count), "5 % of the steps")
    steps = planned_steps(decisions, count)
    decide_intervals(steps, decisions)
    decide("picture_every", max(1, min(5000, steps // 8)), "about 8 times")


def _decide_codebook(decisions: Decisions, facts: DataFacts, num_tokens: int) -> None:
    """The root of the number of patches, rounded down to a doubling of 512; less where there are hardly any patches."""
    samples = planned_steps(decisions, facts.count) * decisions.get("batch_size")
    patches = min(facts.count, samples) * num_tokens
    if patches < 4 * MIN_CODEBOOK:
        decisions.decide("codebook", largest_doubling(2, patches // 4), f"a quarter of {patches:,} patches")
        return
    codebook = largest_doubling(MIN_CODEBOOK, min(MAX_DECIDED_CODEBOOK, math.isqrt(patches)))
    decisions.decide("codebook", codebook, f"the root of {patches:,} patches, between 512 and 8192")


def _check(config: ResolvedTokenizerConfig, facts: DataFacts, num_tokens: int) -> None:
    """Raise RequestError where tokenizer and images do not fit each other."""
    check_tiles(config.tiles, config.size)
    message = f"--channels got {config.channels}, but the images have {facts.channels}"
    check_channels(facts, config.channels, message)
    if facts.short_side < config.patch_size:
        raise RequestError(
            f"the images' short side is about {facts.short_side} px, smaller than a patch of {config.patch_size} px: "
            "give a smaller --patch-size"
        )
    if config.stride > config.patch_size:
        raise RequestError(
            f"--stride got {config.stride}, more than a patch of {config.patch_size} px: that only enlarges images; "
            "give at most the patch size"
        )
    samples = total_steps(config, facts.count) * config.batch_size
    if config.codebook > samples * num_tokens:
        raise RequestError(
            f"--codebook got {config.codebook:,}, more than the {samples * num_tokens:,} patches that are seen in "
            "training: give a smaller one, or train for more steps"
        )
    if config.codebook > facts.count * num_tokens:
        raise RequestError(
            f"--codebook got {config.codebook:,}, more than the {facts.count * num_tokens:,} patches of "
            f"{facts.count:,} images: give a smaller one"
        )


def num_parameters(shape: TokenizerShape) -> int:
    """Numbers that are trained."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DiscreteVAE(shape).parameters())


def planned_memory(config: ResolvedTokenizerConfig, num_tokens: int, micro_batch_size: int) -> int:
    """Bytes for weights, gradients and AdamW's moments, and for the activations of a micro-batch, about.

    Of each place's codes, in float32 whatever the precision: logits, noise, their sum by the temperature, choice,
    probabilities, and two gradients at a time; of its pixels the maps of each layer.
    """
    codes = 7 * config.codebook
    maps = config.width * (4 * config.stride**2 + 2 * 8 * config.depth)
    return 16 * num_parameters(config.shape) + 4 * micro_batch_size * num_tokens * (codes + maps)


def checkpoint_bytes(shape: TokenizerShape) -> int:
    """The size of a checkpoint, about: weights and the optimiser's moments."""
    return CHECKPOINT_BYTES_PER_PARAMETER * num_parameters(shape)


def tokenizer_lines(plan: TokenizerPlan, facts: DataFacts, device: torch.device, held_out: int) -> list[str]:
    """The plan, one fact a line."""
    c, (rows, columns), own = plan.config, plan.grid, plan.preprocessing.image_size
    steps, bytes_needed = total_steps(c, facts.count), planned_memory(c, math.prod(plan.grid), c.micro_batch_size)
    lines = [
        f"data       {facts.count:,} {'images' if c.tiles is None else 'tiles'} to train on, {held_out:,} held out; "
        f"short side about {facts.short_side} px, {facts.channels} channels of {facts.dtype}",
        f"tokens     {rows} x {columns} an image, one of {c.codebook:,} for each patch of {c.patch_size} px of "
        f"{c.size[0]}x{c.size[1]}; it sees them as {own[0]}x{own[1]} px, {c.stride} px a token",
        f"model      {c.depth} residual block{'s' * (c.depth > 1)} of {c.width} channels on each side, "
        f"{num_parameters(plan.shape) / 1e6:.2f} M parameters",
        steps_line(c, steps, facts.count),
        f"rate       {format_rate(c)}",
        device_line(c, device),
        f"memory     about {format_bytes(bytes_needed)}",
        f"disk       {format_bytes(checkpoint_bytes(plan.shape))} a checkpoint, {c.keep} kept; "
        f"{format_bytes(shutil.disk_usage(nearest_existing(Path(c.out))).free)} free",
    ]
    return lines + nodata_lines(facts) + value_lines(plan.notes) + decided_lines(plan)
