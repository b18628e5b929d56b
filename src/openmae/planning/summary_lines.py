"""The plan as a user reads it before a run: what was decided and why, and what it costs."""

import shutil
from pathlib import Path

import torch

from openmae.config import (
    MAEShape,
    ResolvedFinetuneConfig,
    ResolvedPretrainConfig,
    ResolvedTokenizerConfig,
    ResolvedTrainingConfig,
    flag_of,
)
from openmae.data.labels.labelled import LabelledData
from openmae.data.preprocess import DataFacts
from openmae.data.value_scale import value_lines
from openmae.errors import shown
from openmae.machine.device import describe_device
from openmae.machine.files import format_bytes, nearest_existing
from openmae.model import cost
from openmae.model.tokenizer_cost import stored_parameters
from openmae.planning.decisions import Plan, total_steps
from openmae.planning.finetune import FinetunePlan
from openmae.planning.image_size import coverage_text
from openmae.planning.pretrain import PretrainPlan, planned_memory
from openmae.planning.probe import ProbePlan
from openmae.planning.reader_memory import reader_lines
from openmae.planning.token_target import tokenizer_lines

# A checkpoint holds the weights and AdamW's two moments in float32.
CHECKPOINT_BYTES_PER_PARAMETER = 12

EMPTY_IN_PRETRAINING = "the model sees its mean there, patches mostly of them leave the loss"


def pretrain_lines(
    plan: PretrainPlan, facts: DataFacts, device: torch.device, visible: int, held_out: int
) -> list[str]:
    """The plan of a pre-training, one fact a line.

    Args:
        visible: how many patches of an image the encoder sees.
        held_out: how many images are held out.
    """
    config, shape = plan.config, plan.shape
    c, encoder, decoder = config, shape.encoder, shape.decoder
    steps = total_steps(c, facts.count)
    flops = cost.training_flops(shape, visible)
    parameters = cost.num_parameters(shape)
    height, width = encoder.image_size
    lines = [
        f"data       {facts.count:,} {'images' if c.tiles is None else 'tiles'} to train on, {held_out:,} held out; "
        f"short side about {facts.short_side} px, {facts.channels} channels of {facts.dtype}",
        f"seen       {coverage_text(facts, encoder.image_size)}",
        f"model      encoder {encoder.width} x {encoder.depth} ({encoder.num_heads} heads), decoder {decoder.width} x "
        f"{decoder.depth} ({decoder.num_heads} heads), {parameters / 1e6:.1f} M parameters to train",
        f"tokens     {height}x{width} px in {encoder.patch_size} px patches: {encoder.num_patches}, of which the "
        f"encoder sees {visible} ({c.mask} mask); it predicts {shape.target_name}",
        f"work       {flops / 1e9:.2f} GFLOP an image, {flops * steps * c.batch_size / 1e15:.3g} PFLOP in all",
        *tokenizer_lines(shape, flops, c.micro_batch_size),
        steps_line(c, steps, facts.count),
        f"rate       {format_rate(c)}",
        device_line(c, device),
        *reader_lines(facts.largest, c.workers),
        f"memory     about {format_bytes(planned_memory(shape, c, c.micro_batch_size))}",
        f"disk       {format_bytes(checkpoint_bytes(shape))} a checkpoint, {c.keep} kept; "
        f"{format_bytes(shutil.disk_usage(nearest_existing(Path(c.out))).free)} free",
    ]
    lines += nodata_lines(facts, EMPTY_IN_PRETRAINING) + value_lines(plan.notes)
    return lines + decided_lines(plan)


def nodata_lines(facts: DataFacts, effect: str = "the model sees its mean there") -> list[str]:
    """A line about values that stand for no data and what becomes of them; none where there are no such values."""
    if not facts.num_with_nodata:
        return []
    num_surveyed = len(facts.aspects)
    return [
        f"nodata     {facts.num_with_nodata:,} of {num_surveyed:,} images looked at have values that stand for none, "
        f"{facts.nodata_fraction:.2%} of all: {effect}"
    ]


def checkpoint_bytes(shape: MAEShape) -> int:
    """The size of a checkpoint, about: weights and the optimiser's moments."""
    fixed = cost.num_positions(shape) + stored_parameters(shape.tokenizer)
    return CHECKPOINT_BYTES_PER_PARAMETER * cost.num_parameters(shape) + 4 * fixed


def format_rate(config: ResolvedPretrainConfig | ResolvedFinetuneConfig | ResolvedTokenizerConfig) -> str:
    """The learning rate's schedule as text: how the peak is computed, the warm-up and the end."""
    peak = config.base_lr * config.batch_size / 256
    return (
        f"{peak:.3g} = base {config.base_lr:.3g} x batch {config.batch_size} / 256; {config.warmup_epochs:.3g} epochs "
        f"of warm-up, then a cosine to {config.min_lr:g}"
    )


def finetune_lines(
    plan: FinetunePlan, data: LabelledData, facts: DataFacts, device: torch.device, num_steps: int
) -> list[str]:
    """The plan of a fine-tuning, one fact a line."""
    c, encoder = plan.config, plan.shape.encoder
    count = len(data.train)
    flops = cost.classifier_flops(plan.shape, c.blocks)
    trained = (
        "the head alone" if c.blocks == 0 else "everything" if c.blocks is None else f"the last {c.blocks:g} blocks"
    )
    lines = [
        f"data       {count:,} labelled images to train on, {target_text(data)}"
        + (", several labels an image" if data.is_multi_label else "")
        + f"; short side about {facts.short_side} px, {facts.channels} channels of {facts.dtype}",
        f"seen       {coverage_text(facts, encoder.image_size, plan.preprocessing.crop_fraction)}",
        f"measured   on {len(data.final_source):,} images of {data.final_split}"
        + (" (made here, see split.json)" if data.is_validation_split else ""),
        f"model      encoder {encoder.width} x {encoder.depth} ({encoder.num_heads} heads), "
        + (f"from {c.init}" if not c.is_from_scratch else "from scratch")
        + f"; {trained} of {cost.classifier_parameters(plan.shape) / 1e6:.1f} M parameters trained",
        f"work       {flops / 1e9:.2f} GFLOP an image, {flops * num_steps * c.batch_size / 1e15:.3g} PFLOP in all",
        steps_line(c, num_steps, count),
        f"rate       {format_rate(c)}; each layer's is {c.layer_decay:g} of the next one's",
        device_line(c, device),
        *reader_lines(facts.largest, c.workers),
    ]
    lines += nodata_lines(facts) + value_lines(plan.notes)
    return lines + label_lines(data) + decided_lines(plan, left_out="as --init")


def target_text(data: LabelledData) -> str:
    """What a model predicts of an image: the number of classes, or of numeric targets."""
    if data.scale is None:
        return f"{data.num_classes} classes"
    return f"{len(data.columns)} number{'s' * (len(data.columns) > 1)} to predict"


def label_lines(data: LabelledData) -> list[str]:
    """How the labels were interpreted, the scale of numbers, and which images are left out; one fact a line."""
    lines = [f"labels     {data.note}"] if data.note else []
    if data.scale is not None:
        numbers = zip(data.columns, data.scale.mean, data.scale.std, strict=True)
        lines += [f"numbers    {shown(name)}: mean {mean:.4g}, deviation {std:.4g}" for name, mean, std in numbers]
    if data.unlabelled:
        what = "a number in each column" if len(data.columns) > 1 else "a label"
        lines.append(f"left out   {data.unlabelled:,} images without {what}")
    if data.unmatched:
        lines.append(f"ignored    {data.unmatched:,} rows of --label-file that name no image")
    return lines


def steps_line(config: ResolvedTrainingConfig, steps: int, count: int) -> str:
    """The run's length, and how many micro-batches a step has where there are several."""
    batch, num_micro_batches = config.batch_size, -(-config.batch_size // config.micro_batch_size)
    micro_batches = f" ({num_micro_batches} x {config.micro_batch_size})" if num_micro_batches > 1 else ""
    return f"steps      {steps:,} of {batch} images{micro_batches}: {steps * batch / count:.4g} epochs"


def device_line(config: ResolvedTrainingConfig, device: torch.device) -> str:
    """The device, the precision, and how many reader processes there are."""
    readers = f"{config.workers} reader process{'es' if config.workers != 1 else ''}"
    return f"device     {describe_device(device)}, {config.precision}, {readers}"


def decided_lines(plan: Plan, left_out: str | None = None) -> list[str]:
    """A line for each setting that was decided: its flag, its value and the reason.

    Args:
        left_out: a reason whose settings get no line.
    """
    reasons = {name: why for name, why in plan.reasons.items() if why != left_out}
    return [f"  {flag_of(name)} {format_setting(plan.config, name)}: {why}" for name, why in reasons.items()]


def probe_lines(
    plan: ProbePlan, data: LabelledData, facts: DataFacts, device: torch.device, num_steps: int
) -> list[str]:
    """The plan of a linear probe, one fact a line."""
    c, encoder, count = plan.config, plan.shape.encoder, len(data.train)
    how = "computed once and kept" if c.augment == "none" else "computed as training goes, from augmented images"
    rates = " ".join(f"{rate * c.batch_size / 256:.3g}" for rate in c.base_lr)
    choice = "on a split of train, see split.json" if data.is_validation_split else "on val"
    lines = [
        f"data       {count:,} labelled images to train on, {target_text(data)}; short side about "
        f"{facts.short_side} px, {facts.channels} channels of {facts.dtype}",
        f"seen       {coverage_text(facts, encoder.image_size, plan.preprocessing.crop_fraction)}",
        f"measured   on {len(data.final_source):,} images of {data.final_split}",
        f"model      {c.init}: {encoder.width} x {encoder.depth} ({encoder.num_heads} heads), frozen; "
        f"{'class token' if c.pool == 'cls' else 'mean of the patch tokens'}; features {how}",
        f"steps      {num_steps:,} of {c.batch_size} images: {num_steps * c.batch_size / count:.4g} epochs",
        f"rate       {rates} = base rates x batch {c.batch_size} / 256 ({c.optimizer}); "
        f"{c.warmup_epochs:.3g} epochs of warm-up, then a cosine to {c.min_lr:g}"
        + (f"; the best is chosen {choice}" if len(c.base_lr) > 1 else ""),
        device_line(c, device),
        *reader_lines(facts.largest, c.workers),
    ]
    lines += nodata_lines(facts) + value_lines(plan.notes)
    return lines + label_lines(data) + decided_lines(plan, left_out="as --init")


def format_setting(config: ResolvedTrainingConfig, name: str) -> str:
    """A setting's value as text, floats to four significant digits."""
    value = getattr(config, name)
    if isinstance(value, tuple):
        return " ".join(f"{v:.4g}" for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
