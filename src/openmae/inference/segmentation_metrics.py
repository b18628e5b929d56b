"""The confusion matrix of class maps, and what is read off it: mean IoU and accuracies."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Int64
from numpy.typing import NDArray
from torch import Tensor

from openmae.data.masks.palette import IGNORED


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """How many pixels of each true class were taken for each class; matrices of images or processes are added.

    The metrics are of the whole set, read off one matrix, never means of images' metrics; in per cent.

    Attributes:
        counts: a row for each true class, a column for each predicted one; on any device.
    """

    counts: Int64[Tensor, "k k"]

    def __post_init__(self) -> None:
        assert self.counts.ndim == 2 and self.counts.shape[0] == self.counts.shape[1], self.counts.shape
        assert self.counts.dtype == torch.int64, self.counts.dtype

    @staticmethod
    def empty(num_classes: int, device: torch.device | str = "cpu") -> "ConfusionMatrix":
        return ConfusionMatrix(torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device))

    @staticmethod
    def count(truth: Int[Tensor, "*shape"], prediction: Int[Tensor, "*shape"], num_classes: int) -> "ConfusionMatrix":
        """Count pairs of pixels, on their device; those whose true label is `IGNORED` do not count."""
        assert truth.shape == prediction.shape, (truth.shape, prediction.shape)
        does_count = truth != IGNORED
        truth, prediction = truth[does_count].long(), prediction[does_count].long()
        for labels in (truth, prediction):  # a class beyond the last would be counted as a pair of other classes
            assert not len(labels) or 0 <= int(labels.min()) <= int(labels.max()) < num_classes, "a class out of range"
        codes = truth * num_classes + prediction
        return ConfusionMatrix(torch.bincount(codes, minlength=num_classes**2).view(num_classes, num_classes))

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        assert self.num_classes == other.num_classes, (self.num_classes, other.num_classes)
        return ConfusionMatrix(self.counts + other.counts)

    def cpu(self) -> "ConfusionMatrix":
        return ConfusionMatrix(self.counts.cpu())

    @property
    def num_classes(self) -> int:
        return len(self.counts)

    @property
    def num_pixels(self) -> int:
        """The pixels that count."""
        return int(self.counts.sum())

    @property
    def pixels(self) -> NDArray[np.int64]:
        """(K,) pixels of each true class."""
        return self.counts.sum(1).cpu().numpy()

    @property
    def union(self) -> NDArray[np.int64]:
        """(K,) pixels that are of a class, in truth or as predicted; a class without any does not occur."""
        return (self.counts.sum(1) + self.counts.sum(0) - self.counts.diagonal()).cpu().numpy()

    @property
    def class_iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union, in per cent; NaN of a class that occurs neither in truth nor as predicted."""
        return _per_cent(self._right, self.union)

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """(K,) the share of a class's pixels that are predicted as it, in per cent; NaN of a class without pixels."""
        return _per_cent(self._right, self.pixels)

    @property
    def miou(self) -> float:
        """The mean IoU of the classes that occur, in per cent; NaN where no pixel counts."""
        return _mean(self.class_iou)

    @property
    def mean_accuracy(self) -> float:
        """The mean accuracy of the classes that have pixels, in per cent; NaN where no pixel counts."""
        return _mean(self.class_accuracy)

    @property
    def pixel_accuracy(self) -> float:
        """The share of pixels that are right, in per cent; NaN where no pixel counts."""
        return float(_per_cent(self._right.sum(), np.asarray(self.num_pixels)))

    @property
    def _right(self) -> NDArray[np.int64]:
        return self.counts.diagonal().cpu().numpy()


def _per_cent(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """NaN where the whole is 0."""
    with np.errstate(invalid="ignore"):
        return 100 * part / np.asarray(whole)


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
