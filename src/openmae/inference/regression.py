"""Numbers as targets: onto the scale they are learnt on and back, their loss, and how well they were predicted."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.config import TargetScale

# In deviations of the training numbers; an error beyond it pulls no harder. Nothing that learns comes near it, and a
# rate that diverges beside others (`openmae probe`) stays finite.
MAX_ERROR = 1e4


def standardised(numbers: Tensor, scale: TargetScale) -> Tensor:
    """(number - mean) / std, (B, columns) float32; computed in double precision, where the numbers lie."""
    mean, std = torch.tensor((scale.mean, scale.std), dtype=torch.float64)
    return ((numbers.double() - mean) / std).float()


def in_own_units(outputs: Tensor, scale: TargetScale) -> Tensor:
    """What a model gives, as the numbers it means: (B, columns) float64 on the CPU."""
    mean, std = torch.tensor((scale.mean, scale.std), dtype=torch.float64)
    return outputs.detach().cpu().double() * std + mean


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum over images of the mean over columns of the squared error; both standardised, (B, columns)."""
    return (outputs - targets).clamp(-MAX_ERROR, MAX_ERROR).square().mean(dim=1).sum()


def r2_scores(targets: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """R2 of each column, 1 - residual / total sum of squares: (columns,); NaN where the targets do not vary."""
    residual = np.square(targets - found).sum(0)
    total = np.square(targets - targets.mean(0)).sum(0)
    varies = targets.min(0) < targets.max(0)
    return np.where(varies, 1 - residual / np.where(varies, total, 1), np.nan)


def regression_metrics(
    targets: NDArray[np.float64], found: NDArray[np.float64], columns: tuple[str, ...]
) -> dict[str, float]:
    """r2 and mae (mean absolute error, in each column's own units): means over columns, and r2_COLUMN, mae_COLUMN.

    An r2 that is not defined (the images all have the same number) is left out, and out of the mean.

    Args:
        targets, found: (n, columns), n > 0.
    """
    r2, mae = r2_scores(targets, found), np.abs(targets - found).mean(0)
    values = {"r2": float(np.nanmean(r2))} if not np.isnan(r2).all() else {}
    values["mae"] = float(mae.mean())
    for number, column in enumerate(columns):
        if not np.isnan(r2[number]):
            values[f"r2_{column}"] = float(r2[number])
        values[f"mae_{column}"] = float(mae[number])
    return values
