"""Tables 5 and 7: initialisations by semantic segmentation; targets of pre-training by how they transfer."""

import re
from typing import Any

from openmae.config.experiment import OWN_ROWS
from openmae.experiments.setup import GivenModel, Setup
from openmae.experiments.studies.study import DEFAULT, Row, Section, Study

MODELS = ("B", "L")
RANDOM, MAE = OWN_ROWS[:2]
# mIoU on ADE20K of B and L, by names without case and punctuation.
PAPER_MIOU = {"mae": (48.1, 53.6), "supervised": (47.4, 49.9), "mocov3": (47.3, 49.1), "beit": (47.1, 53.3)}
SPELLINGS = {"sup": "supervised", "moco": "mocov3"}
# Top-1 on ImageNet-1K and mIoU on ADE20K, of B and L.
PAPER_TARGETS = {
    "pixel": ((83.3, 85.1), (48.0, 51.8)),
    "norm-pixel": ((83.6, 85.9), (48.1, 53.6)),
    "token": ((83.6, 85.7), (48.1, 53.4)),
}
TARGETS = {"pixel": "pixels, default", "norm-pixel": "normalised pixels", "token": "tokens (paper: DALL-E's)"}
WIDE = 1024  # of ViT-L


def table_5(name: str, setup: Setup) -> Study:
    """Table 5: random weights, MAE, and the models of `--also`, each segmented with the same budget."""
    sections = []
    for number, model in _models(setup):
        suffix, size, changes = _of_model(setup, number)
        rows = [
            Row(name=RANDOM + suffix, label=RANDOM, changes=changes, size=size, is_scratch=True),
            Row(
                name=MAE + suffix,
                label=MAE,
                changes={**changes, "target": "norm-pixel"},
                paper=paper_miou(MAE, number),
                size=size,
            ),
        ]
        rows += [
            Row(name=one.name, label=one.name, paper=paper_miou(one.name, number), size=size, init=one.init)
            for one in setup.given
            if size is None or size == int(one.encoder.width >= WIDE)
        ]
        sections.append(Section("initialisation" if setup.scale != "paper" else f"ViT-{model}", tuple(rows)))
    return Study(
        name=name,
        title="Table 5: initialisations by segmentation",
        sections=tuple(sections),
        protocols=("miou",),
        baseline=MAE,
        remarks=(*_remarks(setup), *_remarks_5(setup)),
    )


def table_7(name: str, setup: Setup) -> Study:
    """Table 7: pixels, normalised pixels and tokens as the target, by fine-tuning, segmentation, or both."""
    protocols = ("finetune",) * setup.has_labels + ("miou",) * bool(setup.segment)
    sections = []
    for number, model in _models(setup):
        suffix, size, changes = _of_model(setup, number)
        rows = []
        for target, (top1, miou) in PAPER_TARGETS.items():
            figures = {"finetune": top1[number], "miou": miou[number]}
            own = {} if target == "pixel" and size is None else {"target": target}
            rows.append(
                Row(
                    name=(DEFAULT if target == "pixel" else target) + suffix,
                    label=TARGETS[target],
                    changes={**changes, **own},
                    paper={protocol: figures[protocol] for protocol in protocols},
                    size=size,
                )
            )
        sections.append(Section("target" if setup.scale != "paper" else f"ViT-{model}", tuple(rows)))
    return Study(
        name=name,
        title="Table 7: targets by transfer",
        sections=tuple(sections),
        protocols=protocols,
        remarks=(*(_remarks(setup) if setup.segment else ()), *_remarks_7(setup)),
    )


def _models(setup: Setup) -> list[tuple[int, str]]:
    """Which of the paper's models there are: B and L at its scale, else one that stands beside B's figures."""
    return list(enumerate(MODELS if setup.scale == "paper" else MODELS[:1]))


def _of_model(setup: Setup, number: int) -> tuple[str, int | None, dict[str, Any]]:
    """What is put behind the names of a model's rows, its number among the sizes, and its settings of pre-training."""
    if setup.scale != "paper":
        return "", None, {}
    size = setup.sizes[number]
    return f" {MODELS[number]}" * (number > 0), number, {**size.model, **size.pretrain}


def paper_miou(name: str, number: int) -> dict[str, float]:
    """The paper's figure of table 5 for a row of this name, of B (0) or L (1); empty where it has none."""
    key = re.sub(r"[\W_]", "", name).lower()
    figures = PAPER_MIOU.get(SPELLINGS.get(key, key))
    return {} if figures is None else {"miou": figures[number]}


def _remarks(setup: Setup) -> tuple[str, ...]:
    """About segmentation."""
    if setup.scale == "paper":
        return ()
    return (
        "The paper's figures are those of ViT-B on ADE20K (UperNet, crops of 512 px, 100 epochs of 20,210 images); no "
        "relative positions here, which the paper adds in transfer.",
        "mIoU is over all pixels of the split, at each image's own size, from one confusion matrix.",
    )


def _remarks_5(setup: Setup) -> tuple[str, ...]:
    given = tuple(_given(one) for one in setup.given)
    return (
        f"“{MAE}” is pre-trained here, on normalised pixels, on the training images alone: it sees no masks, and also "
        "those images that choose the rate.",
        f"“{RANDOM}” trains from random weights, with the others' steps and rates; the paper has no such row.",
        *given,
    )


def _given(one: GivenModel) -> str:
    shape = one.encoder
    return (
        f"“{one.name}” starts from {one.init}: {shape.width} wide, {shape.depth} blocks, patches of {shape.patch_size} "
        "px; what it was trained on, and for how long, is its own."
    )


def _remarks_7(setup: Setup) -> tuple[str, ...]:
    columns = [
        *(["fine-tuning beside the paper's on ImageNet-1K"] * setup.has_labels),
        *(["segmentation beside ADE20K's"] * bool(setup.segment)),
    ]
    seen = "DATA with a class an image" if setup.has_labels else "DATA with masks, which it does not see"
    tokens = ("The tokens are of a tokenizer trained on the same images, where the paper takes DALL-E's.",)
    return (
        f"Columns: {' and '.join(columns)}, of ViT-{' and '.join(m for _, m in _models(setup))}; pre-training is on "
        f"the training images of the {seen}. The paper's detection (COCO) is not measured here yet.",
        *(() if setup.token_settings else tokens),
    )
