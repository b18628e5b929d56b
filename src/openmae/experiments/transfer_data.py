"""Data of transfer: which DATA has masks or objects, and what segmenters and detectors are trained and measured on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openmae.config import Dataset, DetectConfig, ExperimentConfig, KnnConfig, SegmentConfig
from openmae.data.coco.detection_data import DetectionData
from openmae.data.coco.files import has_annotations
from openmae.data.coco.training_folder import training_folder as folder_with_objects
from openmae.data.masks.pairs import has_masks
from openmae.data.masks.pairs import training_folder as folder_with_masks
from openmae.data.masks.segmentation import SegmentationData
from openmae.data.preprocess import DataFacts, survey
from openmae.errors import RequestError, shown
from openmae.experiments.setup import shared_settings
from openmae.inference.features import check_readable
from openmae.tasks.detect.detect import open_with_test as open_objects
from openmae.tasks.segment.segment import open_with_test as open_masks

SURVEYED = 256  # images, at most
LABELS, SEGMENT, DETECT = "labels", "segment", "detect"
# What DATA of a kind has, and what the training images of it have.
HAS = {LABELS: "a class an image", SEGMENT: "masks", DETECT: "objects in COCO's JSON"}


@dataclass(frozen=True, kw_only=True)
class TransferData:
    """The data that a row is segmented on, or that it detects objects in.

    Attributes:
        settings: what `segment` or `detect` is given of it.
        folder: of the training images alone, for pre-training.
        facts: about the training images that are trained on.
        num_test: images that the figures are of.
        final_split: the name of their split.
        chosen_on: what chooses rates.
        has_masks: whether there are masks of the objects, beside their boxes.
    """

    settings: dict[str, Any]
    folder: Path
    facts: DataFacts
    fingerprint: str
    num_classes: int
    num_test: int
    final_split: str
    chosen_on: str
    has_masks: bool = False


def divide(config: ExperimentConfig) -> dict[str, ExperimentConfig]:
    """The config with each DATA alone, by what that has: labels, segment (masks) or detect (objects).

    Raises:
        RequestError: there are two of one kind.
    """
    if len(config.kinds) == 1:
        return {config.kinds[0]: config}
    found: dict[str, ExperimentConfig] = {}
    for path in config.paths or (None,):
        one = config if path is None else replace(config, data=path)
        kind = kind_of(one.dataset)
        if kind in found:
            raise RequestError(
                f"{shown(str(found[kind].dataset))} and {shown(str(one.dataset))} both have {HAS[kind]}: {config.name} "
                "takes one with a class an image, one with masks and one with objects"
            )
        found[kind] = one
    if len(found) > 1 and config.base_lr is not None:
        raise RequestError(
            f"--base-lr would be that of {len(found)} columns, whose rates differ: leave it out, or give one DATA"
        )
    return found


def kind_of(dataset: Dataset) -> str:
    """What DATA has, one of `HAS`. Raises RequestError where it has COCO JSON that cannot be used as it is."""
    try:
        has_objects = has_annotations(dataset)
    except RequestError as error:
        raise RequestError(f"{error}; if masks or labels are meant, move its JSON away") from None
    return DETECT if has_objects else SEGMENT if has_masks(dataset) else LABELS


def open_transfer(kind: str, config: ExperimentConfig) -> TransferData:
    """Open DATA as `segment` or `detect` does.

    Raises:
        RequestError: it cannot be used, has no part to measure on, or its training images are not in one folder.
    """
    settings = transfer_settings(kind, config)
    data: SegmentationData | DetectionData
    if kind == SEGMENT:
        data = open_masks(SegmentConfig(**settings, init="none", out=config.out), None)
    else:
        data = open_objects(DetectConfig(**settings, init="none", out=config.out), None)
    if data.final_split == "split of train":
        raise RequestError(
            f"{shown(str(config.dataset))} has neither a test nor a val part with {HAS[kind]}: make one, so that all "
            "runs are measured alike"
        )
    facts = survey(data.train, SURVEYED, other_splits=data.parts)
    max_bad = KnnConfig.max_bad if config.max_bad is None else config.max_bad  # the default of every command
    check_readable(facts.bad, min(SURVEYED, facts.count), max_bad, "images looked at")
    bad = data.bad.get("train", {})
    check_readable(bad, len(data.train) + len(bad), max_bad, f"training images with {HAS[kind]}")
    has_masks_too = isinstance(data, DetectionData) and data.has_masks
    return TransferData(
        # What a row measures must show in its settings.
        settings=settings if kind == SEGMENT or has_masks_too else {**settings, "boxes_only": True},
        folder=(folder_with_masks if kind == SEGMENT else folder_with_objects)(config.dataset),
        facts=facts,
        fingerprint=data.fingerprint,
        num_classes=data.num_classes,
        num_test=len(data.final_source),
        final_split=data.final_split,
        chosen_on="a split of train" if data.is_validation_split else "val",
        has_masks=has_masks_too,
    )


def transfer_settings(kind: str, config: ExperimentConfig) -> dict[str, Any]:
    """What `segment` or `detect` is given about DATA; what measures its rates is not its final split."""
    given: dict[str, Any] = {**shared_settings(config), "held_out": config.held_out, "report": "held-out"}
    if kind == SEGMENT:
        given |= {name: getattr(config, name) for name in ("ignore_index", "palette")}
        given |= {"reduce_zero_label": True} if config.reduce_zero_label else {}
    return given


def images_alone(config: ExperimentConfig, data: TransferData) -> ExperimentConfig:
    """The config with the training images of such DATA in place of it: what pre-training sees."""
    return replace(config, data=None, train=str(data.folder), val=None, test=None)
