"""Tables 4, 5 and 7: initialisations by detection and segmentation; targets of pre-training by how they transfer."""

import re
from collections.abc import Sequence
from typing import Any

from openmae.config.experiment import OWN_ROWS
from openmae.experiments.setup import GivenModel, Setup
from openmae.experiments.studies.study import DEFAULT, Row, Section, Study
from openmae.experiments.transfer_data import DETECT, SEGMENT

MODELS = ("B", "L")
RANDOM, MAE = OWN_ROWS[:2]
# Of B and L, by names without case and punctuation: mIoU on ADE20K, box AP and mask AP on COCO.
PAPER = {
    "miou": {"mae": (48.1, 53.6), "supervised": (47.4, 49.9), "mocov3": (47.3, 49.1), "beit": (47.1, 53.3)},
    "box_ap": {"mae": (50.3, 53.3), "supervised": (47.9, 49.3), "mocov3": (47.9, 49.3), "beit": (49.8, 53.3)},
    "mask_ap": {"mae": (44.9, 47.2), "supervised": (42.9, 43.9), "mocov3": (42.7, 44.0), "beit": (44.4, 47.1)},
}
SPELLINGS = {"sup": "supervised", "moco": "mocov3"}
# Of B and L: top-1 on ImageNet-1K, mIoU on ADE20K, box AP on COCO.
PAPER_TARGETS: dict[str, dict[str, tuple[float, float]]] = {
    "pixel": {"finetune": (83.3, 85.1), "miou": (48.0, 51.8), "box_ap": (49.5, 52.8)},
    "norm-pixel": {"finetune": (83.6, 85.9), "miou": (48.1, 53.6), "box_ap": (50.3, 53.3)},
    "token": {"finetune": (83.6, 85.7), "miou": (48.1, 53.4), "box_ap": (50.3, 53.2)},
}
SEEN = {SEGMENT: "masks", DETECT: "objects"}
TARGETS = {"pixel": "pixels, default", "norm-pixel": "normalised pixels", "token": "tokens (paper: DALL-E's)"}
WIDE = 1024  # of ViT-L


def table_4(name: str, setup: Setup) -> Study:
    """Table 4: random weights, MAE, and the models of `--also`, each trained to detect with the same budget."""
    return _initialisations(name, setup, DETECT, "Table 4: initialisations by detection")


def table_5(name: str, setup: Setup) -> Study:
    """Table 5: random weights, MAE, and the models of `--also`, each segmented with the same budget."""
    return _initialisations(name, setup, SEGMENT, "Table 5: initialisations by segmentation")


def _initialisations(name: str, setup: Setup, kind: str, title: str) -> Study:
    protocols, sections = setup.transfers[kind].protocols, []
    for number, model in _models(setup):
        suffix, size, changes = _of_model(setup, number)
        rows = [
            Row(name=RANDOM + suffix, label=RANDOM, changes=changes, size=size, is_scratch=True),
            Row(
                name=MAE + suffix,
                label=MAE,
                changes={**changes, "target": "norm-pixel"},
                paper=paper_figures(MAE, number, protocols),
                size=size,
            ),
        ]
        rows += [
            Row(
                name=one.name,
                label=one.name,
                paper=paper_figures(one.name, number, protocols),
                size=size,
                init=one.init,
            )
            for one in setup.given
            if size is None or size == int(one.encoder.width >= WIDE)
        ]
        sections.append(Section("initialisation" if setup.scale != "paper" else f"ViT-{model}", tuple(rows)))
    return Study(
        name=name,
        title=title,
        sections=tuple(sections),
        protocols=protocols,
        baseline=MAE,
        remarks=(*_remarks(setup), *_initialisation_remarks(setup, kind)),
    )


def table_7(name: str, setup: Setup) -> Study:
    """Table 7: pixels, normalised pixels and tokens as the target, by fine-tuning, segmentation and detection."""
    protocols = ("finetune",) * setup.has_labels + tuple(p for one in setup.transfers.values() for p in one.protocols)
    sections = []
    for number, model in _models(setup):
        suffix, size, changes = _of_model(setup, number)
        rows = []
        for target, figures in PAPER_TARGETS.items():
            own = {} if target == "pixel" and size is None else {"target": target}
            rows.append(
                Row(
                    name=(DEFAULT if target == "pixel" else target) + suffix,
                    label=TARGETS[target],
                    changes={**changes, **own},
                    paper={protocol: figures[protocol][number] for protocol in protocols if protocol in figures},
                    size=size,
                )
            )
        sections.append(Section("target" if setup.scale != "paper" else f"ViT-{model}", tuple(rows)))
    return Study(
        name=name,
        title="Table 7: targets by transfer",
        sections=tuple(sections),
        protocols=protocols,
        remarks=(*_remarks(setup), *_remarks_7(setup)),
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


def paper_figures(name: str, number: int, protocols: Sequence[str]) -> dict[str, float]:
    """The paper's figures of tables 4 and 5 for a row of this name, of B (0) or L (1); empty where it has none."""
    key = re.sub(r"[\W_]", "", name).lower()
    key = SPELLINGS.get(key, key)
    return {p: PAPER[p][key][number] for p in protocols if key in PAPER[p]}


def _remarks(setup: Setup) -> tuple[str, ...]:
    """About segmentation and detection."""
    if setup.scale == "paper":
        return ()
    segmentation = (
        "The paper's figures of segmentation are those of ViT-B on ADE20K (UperNet, crops of 512 px, 100 epochs of "
        "20,210 images); no relative positions here, which the paper adds in transfer.",
        "mIoU is over all pixels of the split, at each image's own size, from one confusion matrix.",
    )
    detection = (
        "The paper's figures of detection are those of ViT-B on COCO (Mask R-CNN, squares of 1024 px, up to 100 epochs "
        "of 118,287 images); no relative positions here, which the paper adds in transfer.",
        "AP is the mean over IoU .5 to .95 and over the classes, as COCO defines it.",
    )
    return segmentation * (SEGMENT in setup.transfers) + detection * (DETECT in setup.transfers)


def _initialisation_remarks(setup: Setup, kind: str) -> tuple[str, ...]:
    labels = "masks" if kind == SEGMENT else "objects"
    return (
        f"“{MAE}” is pre-trained here, on normalised pixels, on the training images alone: it sees no {labels}, and "
        "also those images that choose the rate.",
        f"“{RANDOM}” trains from random weights, with the others' steps and rates; the paper has no such row.",
        *(_given(one) for one in setup.given),
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
        *(["segmentation beside ADE20K's"] * (SEGMENT in setup.transfers)),
        *(["detection beside COCO's"] * (DETECT in setup.transfers)),
    ]
    unseen = next((SEEN[kind] for kind in setup.transfers), "")
    seen = "DATA with a class an image" if setup.has_labels else f"DATA with {unseen}, which it does not see"
    tokens = ("The tokens are of a tokenizer trained on the same images, where the paper takes DALL-E's.",)
    missing = [column for kind, column in ((SEGMENT, "ADE20K"), (DETECT, "COCO")) if kind not in setup.transfers]
    missing += ["ImageNet-1K"] * (not setup.has_labels)
    return (
        f"Columns: {', '.join(columns)}, of ViT-{' and '.join(m for _, m in _models(setup))}; pre-training is on "
        f"the training images of the {seen}."
        + (f" Not measured here, for no DATA is of their kind: {', '.join(missing)}." if missing else ""),
        *(() if setup.token_settings else tokens),
    )
