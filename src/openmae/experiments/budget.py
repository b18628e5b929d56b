"""What every row of an experiment is given, for the screen and for results.md."""

from typing import Any, NamedTuple

from openmae.experiments.data import ExperimentData
from openmae.experiments.setup import Setup
from openmae.experiments.studies.study import DEFAULT, Study
from openmae.experiments.transfer_data import DETECT, SEGMENT


class TransferTexts(NamedTuple):
    """How a kind of transfer is told of."""

    data: str
    verb: str
    unit: str
    head: str
    paper_size: int
    paper_length: str


TRANSFERS = {
    SEGMENT: TransferTexts("Masks", "Segmentation", "crops", "a head", 512, "100 epochs of batches of 16"),
    DETECT: TransferTexts("Objects", "Detection", "squares", "heads", 1024, "100 epochs of batches of 64"),
}
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
        *_transfer_lines(data, setup),
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


def _transfer_lines(data: ExperimentData, setup: Setup) -> list[str]:
    """A line for what is segmented, and one for what is detected in."""
    lines = []
    for kind, found in data.transfers.items():
        transfer = setup.transfers[kind]
        s, texts = transfer.settings[0], TRANSFERS[kind]
        size = f"{texts.unit} of {size_text(s['image_size']) if 'image_size' in s else texts.paper_size} px"
        length = f"{s['steps']:,} steps of {s['batch_size']}" if "steps" in s else texts.paper_length
        head = f", {texts.head} {s['head_width']} wide" if "head_width" in s else ""
        lines.append(
            f"{texts.data}: {found.facts.count:,} images to train on, {found.num_test:,} to measure on "
            f"({found.final_split}), {found.num_classes} classes. {texts.verb} of every row: {length} {size}{head}, "
            f"with the base rates {rates_text(transfer.rates)}, of which {found.chosen_on} chooses; the chosen run is "
            f"measured on {found.final_split}."
        )
    return lines


def rates_text(rates: tuple[float, ...]) -> str:
    """Base rates, with commas between them."""
    return ", ".join(f"{rate:g}" for rate in rates)


def size_text(size: int | tuple[int, int]) -> str:
    """A side in pixels, or height x width."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"
