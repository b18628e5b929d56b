"""What every row of an experiment is given, for the screen and for results.md."""

from typing import Any

from openmae.experiments.data import ExperimentData
from openmae.experiments.setup import Setup
from openmae.experiments.studies.study import DEFAULT, Study

TARGETS = {"pixel": "pixels", "norm-pixel": "normalised pixels"}


def budget_lines(setup: Setup, data: ExperimentData, study: Study) -> list[str]:
    """Lines: the data, the default row's model, what each row is trained with, the scale."""
    p = setup.pretrain
    size = size_text(p["image_size"])
    measured = f", {data.num_test:,} to measure on ({data.final_split})" if data.num_test else ""
    scale = f"Scale {setup.scale}, {setup.threads} CPU thread{'s' * (setup.threads > 1)} a row."
    if study.budget:
        return [f"Data: {setup.count:,} images to pre-train on, at {size} px.", *study.budget, scale]
    base = next((row for row in study.rows if row.name == study.baseline), study.rows[0])
    model: dict[str, Any] = p if study.axis else {**p, **base.changes}
    name = "Default row" if study.axis or study.baseline == DEFAULT else base.label
    epochs = model["steps"] * p["batch_size"] / setup.count
    f = setup.finetune if base.size is None or study.axis else setup.sizes[base.size].finetune
    tuned = (
        f"; fine-tuning {f['steps']:,} steps of {f['batch_size']} with each of the base rates "
        f"{rates_text(setup.rates)}, of which {data.chosen_on} chooses"
    )
    return [
        f"Data: {setup.count:,} images to pre-train on{measured}, at {size} px.",
        *_mask_lines(data, setup),
        f"{name}: encoder {model['width']} wide, {model['depth']} blocks; decoder {model['decoder_width']} wide, "
        f"{model['decoder_depth']} blocks; patches of {model['patch_size']} px; {TARGETS[model['target']]}, random "
        "crops, 75 % hidden.",
        f"Every row{' that is pre-trained here' if _has_others(study) else ''}: {model['steps']:,} steps of "
        f"{p['batch_size']} images of pre-training ({epochs:.3g} epochs)"
        f"{tuned if 'finetune' in study.protocols else ''}.",
        scale,
    ]


def _has_others(study: Study) -> bool:
    return study.baseline != DEFAULT and not all(row.is_pretrained_here for row in study.rows) and not study.axis


def _mask_lines(data: ExperimentData, setup: Setup) -> list[str]:
    masked = data.masked
    if masked is None:
        return []
    s = setup.segment[0]
    crop = f"crops of {size_text(s['image_size'])} px" if "image_size" in s else "crops of 512 px"
    length = f"{s['steps']:,} steps of {s['batch_size']}" if "steps" in s else "100 epochs of batches of 16"
    head = f", a head {s['head_width']} wide" if "head_width" in s else ""
    return [
        f"Masks: {masked.facts.count:,} images to train on, {masked.num_test:,} to measure on ({masked.final_split}), "
        f"{masked.num_classes} classes. Segmentation of every row: {length} {crop}{head}, with the base rates "
        f"{rates_text(setup.segment_rates)}, of which {masked.chosen_on} chooses; the chosen run is measured on "
        f"{masked.final_split}.",
    ]


def rates_text(rates: tuple[float, ...]) -> str:
    """Base rates, with commas between them."""
    return ", ".join(f"{rate:g}" for rate in rates)


def size_text(size: int | tuple[int, int]) -> str:
    """A side in pixels, or height x width."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"
