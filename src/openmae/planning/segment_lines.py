"""The plan of a segmentation as a user reads it before a run."""

import torch

from openmae.config import SegmenterShape
from openmae.data.masks.segmentation import SegmentationData
from openmae.data.preprocess import DataFacts
from openmae.data.value_scale import value_lines
from openmae.planning.reader_memory import reader_lines
from openmae.planning.segment import SegmentPlan, training_flops
from openmae.planning.summary_lines import (
    CHECKPOINT_BYTES_PER_PARAMETER,
    decided_lines,
    device_line,
    nodata_lines,
    steps_line,
)
from openmae.planning.transfer import AS_INIT
from openmae.transfer.segmentation.segmenter_cost import segmenter_parameters


def segment_lines(
    plan: SegmentPlan, data: SegmentationData, facts: DataFacts, device: torch.device, num_steps: int
) -> list[str]:
    """The plan of a segmentation, one fact a line."""
    c, shape, encoder = plan.config, plan.shape, plan.shape.encoder
    count, flops = len(data.train), training_flops(plan.shape)
    height, width = c.size
    blocks = ", ".join(str(block) for block in shape.pyramid_blocks)
    start = "from scratch" if c.is_from_scratch else f"from {c.init}" + (", frozen" if c.freeze else "")
    peak = c.base_lr * c.batch_size / 256
    lines = [
        *data.source_lines,
        *(f"masks      {note}" for note in data.notes),
        f"data       {count:,} images with masks to train on, {len(data.classes)} classes; short side about "
        f"{facts.short_side} px, {facts.channels} channels of {facts.dtype}",
        f"measured   on {len(data.final_source):,} images of {data.final_split}, each whole and at its own size"
        + (" (made here, see split.json)" if data.is_validation_split else ""),
        f"model      encoder {encoder.width} x {encoder.depth} ({encoder.num_heads} heads), {start}; pyramid of its "
        f"blocks {blocks} (from 0); UperNet {shape.head_width} wide; "
        f"{segmenter_parameters(shape) / 1e6:.1f} M parameters",
        f"tokens     crops of {height}x{width} px in {encoder.patch_size} px patches: {encoder.num_patches}",
        f"work       {flops / 1e9:.2f} GFLOP an image, {flops * num_steps * c.batch_size / 1e15:.3g} PFLOP in all",
        steps_line(c, num_steps, count),
        f"rate       {peak:.3g} = base {c.base_lr:.3g} x batch {c.batch_size} / 256; {c.warmup_epochs:.3g} epochs of "
        f"warm-up, then a line to {c.min_lr:g}; each layer's is {c.layer_decay:g} of the next one's",
        device_line(c, device),
        *reader_lines(facts.largest, c.workers),
    ]
    lines += nodata_lines(facts) + value_lines(plan.notes)
    return lines + decided_lines(plan, left_out=AS_INIT)


def checkpoint_bytes(shape: SegmenterShape) -> int:
    """The size of a checkpoint, about: weights and the optimiser's moments."""
    return CHECKPOINT_BYTES_PER_PARAMETER * segmenter_parameters(shape)
