"""Watching a pre-training on labelled data: how well its features separate the classes, every `--watch-every` steps.

The labels are only measured with: nothing of this reaches the training.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.config import Preprocessing, PretrainConfig, ResolvedPretrainConfig
from openmae.data.depths import survey_depths
from openmae.data.evaluation_loader import evaluation_batches
from openmae.data.labels.labelled import open_labelled
from openmae.data.labels.subsets import labels_of, stratified
from openmae.data.sources.open import Source, open_source
from openmae.data.sources.reading import reading_options
from openmae.data.sources.views import IndexedSubset
from openmae.data.value_scale import match_scale, value_lines
from openmae.errors import RequestError, shown
from openmae.inference.features import crop_fraction_for
from openmae.inference.neighbours import neighbour_votes
from openmae.machine.signals import StopRequest
from openmae.model.mae import MAE
from openmae.preflight.training import watch_error
from openmae.tasks.pretrain.held_out import pooled_features

ADVICE = "what is watched is classes, name them otherwise"
NEIGHBOURS, TEMPERATURE = 10, 0.07  # usual for such votes (Wu et al., 2018; DINO)
PROBE_ITERATIONS = 200  # of L-BFGS: later ones change the accuracy by less than its sampling error
READ_AT_ONCE = 64  # images


@dataclass(frozen=True)
class WatchData:
    """The labelled images to learn from, the bank, and those whose labels are predicted and compared, the queries.

    Attributes:
        source_lines: which folder or file was taken for which split (see `openmae.data.sources.open.Splits.lines`).
    """

    bank: Source
    queries: Source
    num_classes: int
    source_lines: tuple[str, ...] = ()


def open_watch(config: PretrainConfig) -> WatchData | None:
    """The data of `--watch`; None where it is off. Reads labels and no image, writes nothing.

    The bank is a fixed subset of the train split, stratified by class; the queries are a subset of the val split or,
    where there is none, of a fixed split of train. The test split stays unseen.

    Raises:
        RequestError: the data has no labels, or `--watch-images` is less than the number of classes.
    """
    if config.watch is None:
        return None
    data = config.watch_data or config.dataset
    options = {**reading_options(config, None, config.background), "split_rules": config.split_rules}
    if config.watch_data is not None:  # another data set has axes of its own
        options["axes"], options["default_axes"] = None, config.axes
    try:
        train = open_source(data, "train", **options)
        assert train is not None
        if all(train.label(index) is None for index in range(len(train))):
            raise RequestError(f"{shown(str(data))} has no labels")
        labelled = open_labelled(
            data, labels=None, label_file=None, held_out=None, needs_validation=True, advice=ADVICE, **options
        )
    except RequestError as error:
        raise watch_error(config.watch, error) from None
    queries = labelled.test if labelled.final_split == "val" else labelled.validation
    assert queries is not None
    if config.watch_images < labelled.num_classes:
        raise RequestError(
            f"--watch-images {config.watch_images}: {shown(str(data))} has {labelled.num_classes} classes, and each "
            "needs one"
        )
    return WatchData(
        _at_most(labelled.train, config.watch_images),
        _at_most(queries, config.watch_images),
        labelled.num_classes,
        labelled.source_lines,
    )


def _at_most(source: Source, count: int) -> Source:
    """The source, or a stratified subset of `count` images where it has more."""
    return source if len(source) <= count else IndexedSubset(source, stratified(labels_of(source), count))


class Watch:
    """Labelled images in memory, centre-cropped and not yet normalised.

    Attributes:
        bad: name and reason of each image that could not be read and is left out.

    Raises:
        RequestError: none of the bank, or of the queries, can be read.
    """

    def __init__(self, data: WatchData, config: ResolvedPretrainConfig, preprocessing: Preprocessing) -> None:
        self.config, self.num_classes = config, data.num_classes
        self.bad: dict[str, str] = {}
        own, lines = match_scale(preprocessing, survey_depths([data.bank, data.queries]), None)
        if own != preprocessing and lines:  # its images are of another type than those trained on
            print("\n".join(value_lines(lines)), flush=True)
        self.preprocessing = own
        try:
            crop_fraction = crop_fraction_for(data.bank, preprocessing.image_size)  # as `openmae knn` crops them
        except RequestError as error:
            raise RequestError(f"--watch {config.watch}: {error}") from None
        self.bank, self.bank_labels = self._read(data.bank, crop_fraction)
        self.queries, self.query_labels = self._read(data.queries, crop_fraction)
        if not (len(self.bank) and len(self.queries)):
            name, reason = next(iter(self.bad.items()))
            raise RequestError(
                f"--watch {config.watch}: none of its images can be used, the first {name!r} ({reason}): give images "
                "like those trained on with --watch-data"
            )

    @property
    def every(self) -> int:
        """Steps between two measurements."""
        return self.config.watch_every or self.config.evaluate_every

    def measure(self, model: MAE, device: torch.device, stop: StopRequest) -> dict[str, float]:
        """`knn_top1` or `probe_top1`, in per cent of the queries.

        Raises:
            EvaluationStopped: a signal came.
        """
        bank, queries = (
            pooled_features(model.encoder, images, self.config, self.preprocessing, device, stop)
            for images in (self.bank, self.queries)
        )
        if not (bank.isfinite().all() and queries.isfinite().all()):
            return {}
        if self.config.watch == "knn":
            predictions = predict_by_neighbours(bank, self.bank_labels, queries, self.num_classes)
        else:
            predictions = predict_by_probe(bank, self.bank_labels, queries)
        return {f"{self.config.watch}_top1": round(100 * float((predictions == self.query_labels).mean()), 4)}

    def _read(self, source: Source, crop_fraction: float) -> tuple[Tensor, NDArray[np.int64]]:
        images, labels = [], []
        for batch in evaluation_batches(
            source,
            self.preprocessing,
            range(len(source)),
            batch_size=READ_AT_ONCE,
            workers=self.config.workers,
            crop_fraction=crop_fraction,
            patch_size=self.config.patch_size,
            with_labels=True,
        ):
            images.append(batch.images)
            self.bad |= batch.bad
            if batch.labels is not None:
                labels.append(batch.labels.numpy())
        return torch.cat(images), np.concatenate([np.empty(0, np.int64), *labels])


def predict_by_neighbours(
    bank: Tensor, bank_labels: NDArray[np.int64], queries: Tensor, num_classes: int
) -> NDArray[np.int64]:
    """The class that the nearest neighbours in the bank vote for: (n,)."""
    k = min(NEIGHBOURS, len(bank))
    votes = neighbour_votes(
        bank,
        torch.from_numpy(bank_labels),
        queries,
        ks=(k,),
        temperature=TEMPERATURE,
        num_classes=num_classes,
    )
    return votes[k].numpy()


def predict_by_probe(bank: Tensor, bank_labels: NDArray[np.int64], queries: Tensor) -> NDArray[np.int64]:
    """The class that a logistic regression (C = 1) on standardised features predicts: (n,)."""
    from sklearn.exceptions import ConvergenceWarning  # takes a second
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(bank_labels)) == 1:  # the others could not be read
        return np.full(len(queries), bank_labels[0])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=PROBE_ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(bank.numpy(), bank_labels)
    return probe.predict(queries.numpy())
