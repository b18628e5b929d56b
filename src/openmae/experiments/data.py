"""The data of an experiment: what it trains on and measures with, opened once to be checked before hours of work."""

from dataclasses import dataclass

from openmae.config import ExperimentConfig
from openmae.config.checks import MAX_PIXELS
from openmae.data.decoding.nodata import resolve_nodata
from openmae.data.labels.labelled import open_labelled
from openmae.data.sources.open import Source
from openmae.errors import RequestError


@dataclass(frozen=True)
class ExperimentData:
    """The data of an experiment.

    Attributes:
        train: the training images.
        parts: all splits.
        num_classes: of the labels.
        num_test: images that accuracies are of.
        final_split: the name of their split.
        chosen_on: what chooses rates.
        fingerprint: of all splits.
    """

    train: Source
    parts: tuple[Source, ...]
    num_classes: int
    num_test: int
    final_split: str
    chosen_on: str
    fingerprint: str


def open_data(config: ExperimentConfig, *, needs_labels: bool) -> ExperimentData:
    """Open DATA as the protocols do.

    Raises:
        RequestError: DATA or its labels cannot be used.
    """
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
        advice="this experiment measures classes, name them otherwise",
    )
    if data.is_multi_label or data.scale is not None:
        raise RequestError(f"{config.name} measures one class an image, and {config.dataset} has other labels")
    return ExperimentData(
        train=data.train,
        parts=data.parts,
        num_classes=data.num_classes,
        num_test=len(data.final_source),
        final_split=data.final_split,
        chosen_on="a split of train" if data.is_validation_split else "val",
        fingerprint=data.fingerprint,
    )
