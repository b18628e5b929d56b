"""Numbers as targets: standardising them and the reverse, their loss and their metrics."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.config import TargetScale

# In standard deviations of the training numbers; a larger error has no gradient. No run that learns comes near
# it, and a learning rate that diverges beside others (`openmae probe`) stays finite.
MAX_ERROR = 1e4


def standardised(numbers: Tensor, scale: TargetScale) -> Tensor:
    """(number - mean) / std, (B, columns) float32; computed in float64, for numbers may be large."""
    mean, std = torch.tensor((scale.mean, scale.std), dtype=torch.float64)
    return ((numbers.double() - mean) / std).float()


def in_own_units(outputs: Tensor, scale: TargetScale) -> Tensor:
    """A model's standardised outputs as numbers in their own units: (B, columns) float64 on the CPU."""
    mean, std = torch.tensor((scale.mean, scale.std), dtype=torch.float64)
    return outputs.detach().cpu().double() * std + mean


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum over images of the mean over columns of the squared error; both standardised, (B, columns)."""
    return (outputs - targets).clamp(-MAX_ERROR, MAX_ERROR).square().mean(dim=1).sum()


def r2_scores(targets: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """R2 of each column, 1 - residual / total sum of squares: (columns,); NaN where the targets do not vary."""
    residual = np.square(targets - predicted).sum(0)
    total = np.square(targets - targets.mean(0)).sum(0)
    varies = targets.min(0) < targets.max(0)
    return np.where(varies, 1 - residual / np.where(varies, total, 1), np.nan)


def regression_metrics(
    targets: NDArray[np.float64], predicted: NDArray[np.float64], columns: tuple[str, ...]
) -> dict[str, float]:
    """r2 and mae (mean absolute error, in each column's own units): means over columns, and r2_COLUMN, mae_COLUMN.

    An r2 that is not defined (the images all have the same number) is left out, and out of the mean.

    Args:
        targets, predicted: (n, columns), n > 0.
    """
    r2, mae = r2_scores(targets, predicted), np.abs(targets - predicted).mean(0)
    values = {"r2": float(np.nanmean(r2))} if not np.isnan(r2).all() else {}
    values["mae"] = float(mae.mean())
    for number, column in enumerate(columns):
        if not np.isnan(r2[number]):
            values[f"r2_{column}"] = float(r2[number])
        values[f"mae_{column}"] = float(mae[number])
    return values
