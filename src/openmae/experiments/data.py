"""The data of an experiment: what it trains on and measures with, opened once to be checked before hours of work."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from openmae.config import ExperimentConfig, KnnConfig, PretrainConfig
from openmae.config.checks import MAX_PIXELS
from openmae.data.decoding.nodata import resolve_nodata
from openmae.data.labels.labelled import LabelledData, open_labelled
from openmae.data.preprocess import DataFacts, survey
from openmae.errors import RequestError, shown
from openmae.experiments.transfer_data import TransferData
from openmae.experiments.trials.unseen import NUM_DRAWN, unseen_images
from openmae.inference.features import check_readable
from openmae.tasks.pretrain.data import open_training_data

SURVEYED = 256  # images, at most
ADVICE = "this experiment measures classes, name them otherwise"


@dataclass(frozen=True)
class ExperimentData:
    """The data of an experiment.

    Attributes:
        facts: about the images that are pre-trained on.
        fingerprint: of all splits.
        num_classes: of the labels; 0 where they are not needed.
        num_test: images that accuracies are of; where labels are not needed, those that are drawn.
        final_split: the name of their split.
        chosen_on: what chooses rates.
        transfers: what is segmented ("segment") and detected in ("detect"); the others are of labelled data.
    """

    facts: DataFacts
    fingerprint: str
    num_classes: int = 0
    num_test: int = 0
    final_split: str = ""
    chosen_on: str = ""
    transfers: Mapping[str, TransferData] = field(default_factory=dict)


def open_data(config: ExperimentConfig, *, needs_labels: bool) -> ExperimentData:
    """Open DATA as pre-training and, where labels are needed, the protocols do.

    Raises:
        RequestError: DATA or its labels cannot be used.
    """
    labelled = open_labels(config) if needs_labels else None
    names = ("data", "train", "val", "test", "value_range", "axes", "nodata", "out")
    pretraining = PretrainConfig(**{name: getattr(config, name) for name in names})
    training = open_training_data(pretraining)
    others = () if training.held_out is None else (training.held_out,)
    facts = survey(training.train, SURVEYED, other_splits=others if labelled is None else labelled.parts)
    max_bad = KnnConfig.max_bad if config.max_bad is None else config.max_bad  # the default of every command
    check_readable(facts.bad, min(SURVEYED, facts.count), max_bad, "images looked at")
    if labelled is None:
        unseen, split = unseen_images(pretraining, training)
        return ExperimentData(
            facts=facts,
            fingerprint=f"{training.fingerprint} {'' if unseen is None else unseen.fingerprint()}",
            num_test=0 if unseen is None else min(NUM_DRAWN, len(unseen)),
            final_split=split,
        )
    return ExperimentData(
        facts=facts,
        fingerprint=f"{training.fingerprint} {labelled.fingerprint}",
        num_classes=labelled.num_classes,
        num_test=len(labelled.final_source),
        final_split=labelled.final_split,
        chosen_on="a split of train" if labelled.is_validation_split else "val",
    )


def open_labels(config: ExperimentConfig) -> LabelledData:
    """The labelled splits. Raises RequestError where they cannot be used; see `check_measurable`."""
    data = open_labelled(
        config.dataset,
        labels=config.labels[0] if config.labels else None,
        label_file=config.label_file,
        held_out=config.held_out,
        background=1.0,
        max_pixels=MAX_PIXELS,
        axes=config.axes,
        nodata=resolve_nodata(config.nodata, None),
        needs_validation=True,
        advice=ADVICE,
    )
    check_measurable(config, data)
    return data


def check_measurable(config: ExperimentConfig, data: LabelledData) -> None:
    """Raise RequestError where what chooses rates would measure them too, or the labels are not one class an image."""
    if data.test is None:
        raise RequestError(
            f"{shown(str(config.dataset))} has neither a test nor a val part: make one, so that all runs are measured "
            "alike"
        )
    if data.is_multi_label or data.scale is not None:
        what = "several classes an image" if data.is_multi_label else "numbers as labels"
        raise RequestError(f"{config.name} measures one class an image, and {shown(str(config.dataset))} has {what}")
