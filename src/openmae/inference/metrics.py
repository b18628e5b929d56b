"""Metrics of a model's predictions: accuracy with its confidence interval, mean average precision, R2, loss."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from openmae.config import TargetScale
from openmae.errors import Fault, RequestError
from openmae.inference.regression import in_own_units, regression_metrics, standardised

ROWS_AT_ONCE = 4096  # of the logits that are converted to double precision at a time
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """The outputs of a classifier, or of a regression model, for the images of a source, beside the true labels.

    Attributes:
        logits: (n, K) float32 on the CPU; of a regression model its outputs, standardised.
        targets: (n,) int64, one class each; or (n, K) float32 of 0 and 1, several labels each; or (n, K) float64, the
            numbers in their own units.
        indices: (n,) int64, each image's index in the source.
        bad: name and reason of each image that could not be read. A test image is never replaced by another.
        scale: of the numbers that a regression model predicts; None of classes.
    """

    logits: Tensor
    targets: Tensor
    indices: NDArray[np.int64]
    bad: dict[str, str]
    scale: TargetScale | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.logits.shape)
        assert len(shape) == 2 and self.logits.dtype == torch.float32 and self.logits.device.type == "cpu", shape
        assert self.indices.shape == shape[:1] and self.indices.dtype == np.int64, self.indices.shape
        assert self.targets.device.type == "cpu"
        if self.scale is not None:
            assert tuple(self.targets.shape) == shape and self.targets.dtype == torch.float64
            assert len(self.scale.columns) == shape[1] and bool(self.targets.isfinite().all())
        elif self.is_multi_label:
            assert tuple(self.targets.shape) == shape and self.targets.dtype == torch.float32
            assert bool(((self.targets == 0) | (self.targets == 1)).all()), "labels are 0 or 1"
        else:
            assert tuple(self.targets.shape) == shape[:1] and self.targets.dtype == torch.int64
            assert not shape[0] or (int(self.targets.min()) >= 0 and int(self.targets.max()) < shape[1]), "a label >= K"

    @property
    def is_multi_label(self) -> bool:
        return self.targets.ndim == 2 and self.scale is None

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the numbers that a regression model predicts; none of classes."""
        return () if self.scale is None else self.scale.columns

    @property
    def numbers(self) -> NDArray[np.float64]:
        """(n, columns) the numbers that a regression model predicts, in their own units."""
        assert self.scale is not None, "predictions of classes are no numbers"
        return in_own_units(self.logits, self.scale).numpy()


def merge(parts: list[Predictions]) -> Predictions:
    """The predictions of several processes as one, sorted by index; some may be empty. No image may occur twice."""
    assert len({(part.num_classes, part.is_multi_label, part.scale) for part in parts}) == 1, "parts of one model"
    indices = np.concatenate([part.indices for part in parts])
    order = np.argsort(indices, kind="stable")
    indices = indices[order]
    assert (np.diff(indices) > 0).all(), f"image {indices[:-1][np.diff(indices) == 0][:1]} occurs twice"
    bad = {name: reason for part in parts for name, reason in part.bad.items()}
    assert len(bad) == sum(len(part.bad) for part in parts), "an unreadable image occurs twice"
    return Predictions(
        logits=torch.cat([part.logits for part in parts])[order],
        targets=torch.cat([part.targets for part in parts])[order],
        indices=indices,
        bad=dict(sorted(bad.items())),
        scale=parts[0].scale,
    )


def check(predictions: Predictions) -> None:
    """Raises RequestError: no image could be read. Raises Fault: a score is not finite."""
    if not len(predictions.indices):
        if not predictions.bad:
            raise RequestError("no image to evaluate on: give a split that holds some")
        reason, count = Counter(predictions.bad.values()).most_common(1)[0]
        raise RequestError(f"none of {len(predictions.bad)} images can be read ({count} of them: {reason})")
    broken = int((~torch.isfinite(predictions.logits)).any(1).sum())
    if broken:
        raise Fault(
            f"the scores of {broken} of {len(predictions.indices)} images are not finite: the model's weights are "
            "broken or its numbers overflow (--precision fp32 would tell)"
        )


def compute_metrics(predictions: Predictions, prefix: str = "") -> dict[str, float]:
    """The metrics of an evaluation by name, `prefix` before each; shares in per cent, losses in nats.

    One label: top1 with top1_low and top1_high (95 %, Wilson 1927), top5 (more than 5 classes), balanced_top1 (mean
    recall of the classes that have images), loss (plain cross-entropy); with unreadable images top1_lower_bound, which
    counts them as wrong. Several labels: map (mean average precision of the classes that have images; absent if none
    has), f1 (micro) and exact_match of the labels with a probability above 0.5, loss (binary cross-entropy, mean over
    classes).
    Numbers: see `regression_metrics`; loss (squared error on standardised targets, mean over columns).
    Always: images (the readable ones, over which all metrics are computed), unreadable. Of classes also absent_classes,
    those without an image.

    Raises:
        RequestError: no image could be read.
        Fault: a score is not finite.
    """
    check(predictions)
    if predictions.scale is not None:
        values = regression_metrics(predictions.targets.numpy(), predictions.numbers, predictions.scale.columns)
    else:
        values = _several_labels(predictions) if predictions.is_multi_label else _one_label(predictions)
    values |= {
        "loss": float(losses(predictions).mean()),
        "images": len(predictions.indices),
        "unreadable": len(predictions.bad),
    }
    if predictions.scale is None:
        values["absent_classes"] = int((class_counts(predictions) == 0).sum())
    return {prefix + name: value for name, value in values.items()}


def _one_label(predictions: Predictions) -> dict[str, float]:
    ranks = true_ranks(predictions)
    count, right = len(ranks), int((ranks == 0).sum())
    low, high = interval(right, count)
    values = {"top1": 100 * right / count, "top1_low": 100 * low, "top1_high": 100 * high}
    if predictions.num_classes > 5:
        values["top5"] = 100 * float((ranks < 5).mean())
    images = class_counts(predictions)
    right_of_classes = np.bincount(predictions.targets.numpy()[ranks == 0], minlength=predictions.num_classes)
    values["balanced_top1"] = 100 * float((right_of_classes[images > 0] / images[images > 0]).mean())
    if predictions.bad:
        values["top1_lower_bound"] = 100 * right / (count + len(predictions.bad))
    return values


def _several_labels(predictions: Predictions) -> dict[str, float]:
    predicted, true = predicted_labels(predictions), predictions.targets.numpy() > 0
    hits, positives = int((predicted & true).sum()), int(predicted.sum()) + int(true.sum())
    values = {
        "f1": 100 * 2 * hits / positives if positives else 0.0,
        "exact_match": 100 * float((predicted == true).all(1).mean()),
    }
    precisions = average_precisions(predictions)
    if not np.isnan(precisions).all():
        values["map"] = 100 * float(np.nanmean(precisions))
    return values


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share, if `right` of `count` independent images are right (Wilson score)."""
    from scipy.stats import binomtest

    bounds = binomtest(right, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(bounds.low), float(bounds.high)


def true_ranks(predictions: Predictions) -> NDArray[np.int64]:
    """(n,) the rank of the true class, 0 for the highest score; of equal scores the lower class comes first."""
    scores, targets = predictions.logits.numpy(), predictions.targets.numpy()
    true = np.take_along_axis(scores, targets[:, None], 1)
    lower = np.arange(predictions.num_classes) < targets[:, None]
    return ((scores > true) | ((scores == true) & lower)).sum(1)


def predicted_labels(predictions: Predictions) -> NDArray:
    """(n,) the class with the highest score; several labels: (n, K) bool, those with a probability above 0.5."""
    scores = predictions.logits.numpy()
    return scores > 0 if predictions.is_multi_label else scores.argmax(1)


def losses(predictions: Predictions) -> NDArray[np.float64]:
    """The loss of each image, (n,).

    Classes: cross-entropy in nats; several labels: binary cross-entropy, mean over classes; numbers: squared error on
    standardised targets, mean over columns.
    """
    if predictions.scale is not None:
        targets = standardised(predictions.targets, predictions.scale)
        return (predictions.logits.double() - targets.double()).square().mean(1).numpy()
    parts = []
    for scores, targets in zip(
        predictions.logits.split(ROWS_AT_ONCE), predictions.targets.split(ROWS_AT_ONCE), strict=True
    ):
        if predictions.is_multi_label:
            each = F.binary_cross_entropy_with_logits(scores.double(), targets.double(), reduction="none").mean(1)
        else:
            each = F.cross_entropy(scores.double(), targets, reduction="none")
        parts.append(each)
    return torch.cat(parts).numpy()


def class_counts(predictions: Predictions) -> NDArray[np.int64]:
    """(K,) how many images have each label."""
    if predictions.is_multi_label:
        return predictions.targets.numpy().sum(0, dtype=np.int64)
    return np.bincount(predictions.targets.numpy(), minlength=predictions.num_classes)


def average_precisions(predictions: Predictions) -> NDArray[np.float64]:
    """(K,) each class's average precision, 0..1; NaN where no image has the label."""
    from sklearn.metrics import average_precision_score

    scores, true = predictions.logits.numpy(), predictions.targets.numpy()
    return np.array(
        [
            average_precision_score(true[:, k], scores[:, k]) if true[:, k].any() else np.nan
            for k in range(true.shape[1])
        ]
    )


def confusion_counts(predictions: Predictions) -> NDArray[np.int64]:
    """The confusion matrix's entries above 0: (pairs, 3) of true class, predicted class and number of images.

    A dense matrix of many classes may not fit into memory.
    """
    codes, counts = np.unique(
        predictions.targets.numpy() * predictions.num_classes + predicted_labels(predictions), return_counts=True
    )
    return np.stack([*np.divmod(codes, predictions.num_classes), counts], axis=1)
