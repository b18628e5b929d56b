"""The plan that a person reads before a run: what was decided and why, what it costs."""

import shutil
from pathlib import Path

import torch

from openmae.config import MAEShape, ResolvedFinetuneConfig, ResolvedPretrainConfig, ResolvedProbeConfig, flag_of
from openmae.data.labels.labelled import LabelledData
from openmae.data.preprocess import DataFacts
from openmae.data.value_scale import value_lines
from openmae.errors import shown
from openmae.machine.device import describe
from openmae.machine.files import existing, size_words
from openmae.model import cost
from openmae.planning.decisions import Plan, total_steps
from openmae.planning.finetune import FinetunePlan
from openmae.planning.image_size import seen_words
from openmae.planning.pretrain import PretrainPlan, planned_memory
from openmae.planning.probe import ProbePlan
from openmae.planning.reader_memory import reader_line

# A checkpoint holds the weights and AdamW's two moments in float32.
CHECKPOINT_BYTES_PER_PARAMETER = 12

ResolvedConfig = ResolvedPretrainConfig | ResolvedFinetuneConfig | ResolvedProbeConfig
OF_PRETRAINING = "the model sees its mean there, patches mostly of them leave the loss"


def plan_lines(settled: PretrainPlan, facts: DataFacts, device: torch.device, visible: int, held_out: int) -> list[str]:
    """The plan, a line a fact. `visible`: patches of an image that the encoder sees."""
    config, shape = settled.config, settled.shape
    c, encoder, decoder = config, shape.encoder, shape.decoder
    steps = total_steps(c, facts.count)
    flops = cost.training_flops(shape, visible)
    parameters = cost.num_parameters(shape)
    height, width = encoder.image_size
    lines = [
        f"data       {facts.count:,} {'images' if c.tiles is None else 'tiles'} to train on, {held_out:,} held out; "
        f"short side about {facts.short_side} px, {facts.channels} channels of {facts.dtype}",
        f"seen       {seen_words(facts, encoder.image_size)}",
        f"model      encoder {encoder.width} x {encoder.depth} ({encoder.num_heads} heads), decoder {decoder.width} x "
        f"{decoder.depth} ({decoder.num_heads} heads), {parameters / 1e6:.1f} M parameters to train",
        f"tokens     {height}x{width} px in {encoder.patch_size} px patches: {encoder.num_patches}, of which the "
        f"encoder sees {visible} ({c.mask} mask); it predicts {c.target}",
        f"work       {flops / 1e9:.2f} GFLOP an image, {flops * steps * c.batch_size / 1e15:.3g} PFLOP in all",
        steps_line(c, steps, facts.count),
        f"rate       {rate_words(c)}",
        device_line(c, device),
        *reader_line(facts.largest, c.workers),
        f"memory     about {size_words(planned_memory(shape, c, c.micro_batch_size))}",
        f"disk       {size_words(checkpoint_bytes(shape))} a checkpoint, {c.keep} kept; "
        f"{size_words(shutil.disk_usage(existing(Path(c.out))).free)} free",
    ]
    lines += nodata_lines(facts, OF_PRETRAINING) + value_lines(settled.notes)
    return lines + decided_lines(settled)


def nodata_lines(facts: DataFacts, becomes: str = "the model sees its mean there") -> list[str]:
    """What of the images stands for none, where something does, and what becomes of it."""
    if not facts.with_empty:
        return []
    looked = len(facts.aspects)
    return [
        f"nodata     {facts.with_empty:,} of {looked:,} images looked at have values that stand for none, "
        f"{facts.empty:.2%} of all: {becomes}"
    ]


def checkpoint_bytes(shape: MAEShape) -> int:
    """About how many bytes a checkpoint takes: weights and the optimiser's moments."""
    return CHECKPOINT_BYTES_PER_PARAMETER * cost.num_parameters(shape) + 4 * cost.num_positions(shape)


def rate_words(config: ResolvedPretrainConfig | ResolvedFinetuneConfig) -> str:
    """The learning rate and how it came about."""
    peak = config.base_lr * config.batch_size / 256
    return (
        f"{peak:.3g} = base {config.base_lr:.3g} x batch {config.batch_size} / 256; {config.warmup_epochs:.3g} epochs "
        f"of warm-up, then a cosine to {config.min_lr:g}"
    )


def finetune_lines(
    tuned: FinetunePlan, data: LabelledData, facts: DataFacts, device: torch.device, num_steps: int
) -> list[str]:
    """The plan of a fine-tuning, a line a fact."""
    c, encoder = tuned.config, tuned.shape.encoder
    count = len(data.train)
    flops = cost.classifier_flops(tuned.shape, c.blocks)
    what = "the head alone" if c.blocks == 0 else "everything" if c.blocks is None else f"the last {c.blocks:g} blocks"
    lines = [
        f"data       {count:,} labelled images to train on, {target_words(data)}"
        + (", several labels an image" if data.is_multi_label else "")
        + f"; short side about {facts.short_side} px, {facts.channels} channels of {facts.dtype}",
        f"seen       {seen_words(facts, encoder.image_size, tuned.preprocessing.crop_fraction)}",
        f"measured   on {len(data.final_source):,} images of {data.final_split}"
        + (" (made here, see split.json)" if data.is_validation_split else ""),
        f"model      encoder {encoder.width} x {encoder.depth} ({encoder.num_heads} heads), "
        + (f"from {c.init}" if not c.is_from_scratch else "from scratch")
        + f"; {what} of {cost.classifier_parameters(tuned.shape) / 1e6:.1f} M parameters trained",
        f"work       {flops / 1e9:.2f} GFLOP an image, {flops * num_steps * c.batch_size / 1e15:.3g} PFLOP in all",
        steps_line(c, num_steps, count),
        f"rate       {rate_words(c)}; each layer's is {c.layer_decay:g} of the next one's",
        device_line(c, device),
        *reader_line(facts.largest, c.workers),
    ]
    lines += nodata_lines(facts) + value_lines(tuned.notes)
    return lines + label_lines(data) + decided_lines(tuned, left_out="as --init")


def target_words(data: LabelledData) -> str:
    """What a model for the data has to say of an image."""
    if data.scale is None:
        return f"{data.num_classes} classes"
    return f"{len(data.columns)} number{'s' * (len(data.columns) > 1)} to predict"


def label_lines(data: LabelledData) -> list[str]:
    """What a person has to know of the labels: how they were understood, and what is left out."""
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


def steps_line(config: ResolvedConfig, steps: int, count: int) -> str:
    """The run's length, and in how many parts a step is computed where it is not at once."""
    batch, parts = config.batch_size, -(-config.batch_size // config.micro_batch_size)
    in_parts = f" ({parts} x {config.micro_batch_size})" if parts > 1 else ""
    return f"steps      {steps:,} of {batch} images{in_parts}: {steps * batch / count:.4g} epochs"


def device_line(config: ResolvedConfig, device: torch.device) -> str:
    """What computes, and how many processes read."""
    readers = f"{config.workers} reader process{'es' if config.workers != 1 else ''}"
    return f"device     {describe(device)}, {config.precision}, {readers}"


def decided_lines(plan: Plan, left_out: str | None = None) -> list[str]:
    """What was decided and why.

    Args:
        left_out: the reason of what is not worth a line.
    """
    told = {name: why for name, why in plan.reasons.items() if why != left_out}
    return [f"  {flag_of(name)} {words(plan.config, name)}: {why}" for name, why in told.items()]


def probe_lines(
    settled: ProbePlan, data: LabelledData, facts: DataFacts, device: torch.device, num_steps: int
) -> list[str]:
    """The plan of a linear probe, a line a fact."""
    c, encoder, count = settled.config, settled.shape.encoder, len(data.train)
    how = "computed once and kept" if c.augment == "none" else "computed as training goes, from augmented images"
    rates = " ".join(f"{rate * c.batch_size / 256:.3g}" for rate in c.base_lr)
    chosen = "on a split of train, see split.json" if data.is_validation_split else "on val"
    lines = [
        f"data       {count:,} labelled images to train on, {target_words(data)}; short side about "
        f"{facts.short_side} px, {facts.channels} channels of {facts.dtype}",
        f"seen       {seen_words(facts, encoder.image_size, settled.preprocessing.crop_fraction)}",
        f"measured   on {len(data.final_source):,} images of {data.final_split}",
        f"model      {c.init}: {encoder.width} x {encoder.depth} ({encoder.num_heads} heads), frozen; "
        f"{'class token' if c.pool == 'cls' else 'mean of the patch tokens'}; features {how}",
        f"steps      {num_steps:,} of {c.batch_size} images: {num_steps * c.batch_size / count:.4g} epochs",
        f"rate       {rates} = base rates x batch {c.batch_size} / 256 ({c.optimizer}); "
        f"{c.warmup_epochs:.3g} epochs of warm-up, then a cosine to {c.min_lr:g}"
        + (f"; the best is chosen {chosen}" if len(c.base_lr) > 1 else ""),
        device_line(c, device),
        *reader_line(facts.largest, c.workers),
    ]
    lines += nodata_lines(facts) + value_lines(settled.notes)
    return lines + label_lines(data) + decided_lines(settled, left_out="as --init")


def words(config: ResolvedConfig, name: str) -> str:
    """A setting's value for a person, floats to four significant digits."""
    value = getattr(config, name)
    if isinstance(value, tuple):
        return " ".join(f"{v:.4g}" for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
