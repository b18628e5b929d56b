"""The plan of a detection as a user reads it before a run."""

import torch

from openmae.config import DetectorShape
from openmae.data.coco.detection_data import DetectionData
from openmae.data.preprocess import DataFacts
from openmae.data.value_scale import value_lines
from openmae.planning.detect import DetectPlan
from openmae.planning.reader_memory import reader_lines
from openmae.planning.summary_lines import (
    CHECKPOINT_BYTES_PER_PARAMETER,
    decided_lines,
    device_line,
    nodata_lines,
    steps_line,
)
from openmae.planning.transfer import AS_INIT
from openmae.transfer.detection.detector_cost import detector_parameters


def detect_lines(
    plan: DetectPlan, data: DetectionData, facts: DataFacts, device: torch.device, num_steps: int
) -> list[str]:
    """The plan of a detection, one fact a line."""
    c, shape, encoder = plan.config, plan.shape, plan.shape.encoder
    count, side = len(data.train), encoder.image_size[0]
    what = "boxes and masks" if shape.has_masks else "boxes"
    blocks = ", ".join(str(block) for block in shape.pyramid_blocks)
    maps = f"of its blocks {blocks} (from 0)" if len(shape.pyramid_blocks) > 1 else "of its last map"
    start = "from scratch" if c.is_from_scratch else f"from {c.init}" + (", frozen" if c.freeze else "")
    window = f", windows of {encoder.window_size} x {encoder.window_size}" if encoder.window_size else ""
    end = f"a cosine to {c.min_lr:g}" if c.schedule == "cosine" else "a tenth after 8/9, a hundredth after 26/27"
    lines = [
        *data.source_lines,
        *(f"objects    {note}" for note in data.notes),
        f"data       {count:,} images to train on with {int(data.objects.sum()):,} objects of {len(data.classes)} "
        f"classes, {what}; short side about {facts.short_side} px, {facts.channels} channels of {facts.dtype}",
        f"measured   on {len(data.final_source):,} images of {data.final_split}, each once and at its own size"
        + (" (made here, see split.json)" if data.is_validation_split else ""),
        f"model      encoder {encoder.width} x {encoder.depth} ({encoder.num_heads} heads{window}), {start}; pyramid "
        f"{maps}; Mask R-CNN {shape.head_width} wide; {detector_parameters(shape) / 1e6:.1f} M parameters",
        f"tokens     squares of {side} px in {encoder.patch_size} px patches: {encoder.num_patches}",
        steps_line(c, num_steps, count),
        f"rate       {c.base_lr * c.batch_size / 256:.3g} = base {c.base_lr:.3g} x batch {c.batch_size} / 256; "
        f"{c.warmup_epochs:.3g} epochs of warm-up, then {end}; each layer's is {c.layer_decay:g} of the next one's",
        device_line(c, device),
        *reader_lines(facts.largest, c.workers),
    ]
    lines += nodata_lines(facts) + value_lines(plan.notes)
    return lines + decided_lines(plan, left_out=AS_INIT)


def checkpoint_bytes(shape: DetectorShape) -> int:
    """The size of a checkpoint, about: weights and the optimiser's moments."""
    return CHECKPOINT_BYTES_PER_PARAMETER * detector_parameters(shape)
