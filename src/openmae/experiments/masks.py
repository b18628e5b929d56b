"""Masked data of an experiment: which DATA it is, and what segmenters are trained and measured on."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openmae.config import Dataset, ExperimentConfig, KnnConfig, SegmentConfig
from openmae.data.masks.pairs import has_masks, training_folder
from openmae.data.preprocess import DataFacts, survey
from openmae.errors import RequestError, shown
from openmae.experiments.setup import shared_settings
from openmae.inference.features import check_readable
from openmae.tasks.segment.segment import open_with_test

SURVEYED = 256  # images, at most
COCO_KEYS = (b'"annotations"', b'"categories"', b'"images"')
COCO_HEAD = 4096  # bytes of a JSON file in which one of them is looked for


@dataclass(frozen=True, kw_only=True)
class MaskedData:
    """The masked data of an experiment.

    Attributes:
        settings: what `segment` is given of it.
        folder: of the training images alone, for pre-training.
        facts: about the training images that have masks and are not held out.
        num_test: images that mIoU is of.
        final_split: the name of their split.
        chosen_on: what chooses rates.
    """

    settings: dict[str, Any]
    folder: Path
    facts: DataFacts
    fingerprint: str
    num_classes: int
    num_test: int
    final_split: str
    chosen_on: str


def divide(config: ExperimentConfig) -> tuple[ExperimentConfig | None, ExperimentConfig | None]:
    """The config with the DATA that has no masks, and with the one that has; None where there is none.

    Raises:
        RequestError: there are two of one kind, or one of neither.
    """
    if not config.takes_masks:
        return config, None
    if not config.needs_labels:
        return None, config
    found: dict[bool, ExperimentConfig] = {}
    for path in config.paths or (None,):
        one = config if path is None else replace(config, data=path)
        check_no_coco(one.dataset)
        is_masked = has_masks(one.dataset)
        if is_masked in found:
            what = "have masks" if is_masked else "have no masks"
            raise RequestError(
                f"{shown(str(found[is_masked].dataset))} and {shown(str(one.dataset))} both {what}: {config.name} "
                "takes one with a class an image and one with masks"
            )
        found[is_masked] = one
    if len(found) == 2 and config.base_lr is not None:
        raise RequestError("--base-lr would be that of fine-tuning and of segmentation: leave it out, or give one DATA")
    return found.get(False), found.get(True)


def check_no_coco(dataset: Dataset) -> None:
    """Raise RequestError for a folder with COCO's JSON files, whose objects are for detection."""
    root = dataset if isinstance(dataset, str) else dataset.train
    if root is None or not os.path.isdir(root):
        return
    folder = Path(root)
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        try:
            with path.open("rb") as file:
                head = file.read(COCO_HEAD)
        except OSError:
            continue
        if any(key in head for key in COCO_KEYS):
            raise RequestError(f"{shown(path)} holds objects as COCO's: that column comes with detection; leave it out")


def open_masks(config: ExperimentConfig) -> MaskedData:
    """Open masked DATA as `segment` does.

    Raises:
        RequestError: it cannot be used, has no part to measure on, or its training images are not in one folder.
    """
    settings = mask_settings(config)
    data = open_with_test(SegmentConfig(**settings, init="none", out=config.out), None)
    if data.final_split == "split of train":
        raise RequestError(
            f"{shown(str(config.dataset))} has neither a test nor a val part with masks: make one, so that all runs "
            "are measured alike"
        )
    facts = survey(data.train, SURVEYED, other_splits=data.parts)
    max_bad = KnnConfig.max_bad if config.max_bad is None else config.max_bad  # the default of every command
    check_readable(facts.bad, min(SURVEYED, facts.count), max_bad, "images looked at")
    bad = data.bad.get("train", {})
    check_readable(bad, len(data.train) + len(bad), max_bad, "training images with masks")
    return MaskedData(
        settings=settings,
        folder=training_folder(config.dataset),
        facts=facts,
        fingerprint=data.fingerprint,
        num_classes=data.num_classes,
        num_test=len(data.final_source),
        final_split=data.final_split,
        chosen_on="a split of train" if data.is_validation_split else "val",
    )


def mask_settings(config: ExperimentConfig) -> dict[str, Any]:
    """What `segment` is given about DATA; what measures its rates is not its final split."""
    given = {name: getattr(config, name) for name in ("held_out", "ignore_index", "palette")}
    given |= {"reduce_zero_label": True} if config.reduce_zero_label else {}
    return {**shared_settings(config), **given, "report": "held-out"}


def images_alone(config: ExperimentConfig, masked: MaskedData) -> ExperimentConfig:
    """The config with the training images of masked DATA in place of it: what pre-training sees."""
    return replace(config, data=None, train=str(masked.folder), val=None, test=None)
