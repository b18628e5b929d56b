"""What a few seeds can show: differences to the default row, how large they must be, and the order of rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from openmae.experiments.results import Measured, RowResult

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Noise:
    """How far a row must lie from the default row to differ from it by more than chance.

    Attributes:
        threshold: that difference, in the protocol's unit, at 95 %; None where nothing is known of chance.
        spread: the default row's standard deviation over seeds; None of a single one.
        num_seeds: of the default row.
    """

    threshold: float | None
    spread: float | None
    num_seeds: int


def noise_of(default: Measured, num_test: int) -> Noise:
    """The larger of what seeds and what the test images make of chance.

    Seeds: a new run of one seed lies within t · s · √(1 + 1/n) of the mean of n runs (a prediction interval). Images:
    two shares of right answers, of independent images, differ by 1.96 · √(2 p (1 − p) / images); both rows are measured
    on the same images, so that is more than it would have to be.

    Args:
        num_test: test images behind a share in per cent; 0 for other units.
    """
    count, spread = len(default.values), default.spread
    by_seeds = by_images = 0.0
    if spread is not None:
        by_seeds = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread * math.sqrt(1 + 1 / count)
    if num_test:
        share = min(max(default.mean / 100, 1 / (num_test + 2)), 1 - 1 / (num_test + 2))
        by_images = 100 * float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(2 * share * (1 - share) / num_test)
    threshold = max(by_seeds, by_images)
    return Noise(threshold or None, spread, count)


def rank_correlation(rows: Sequence[RowResult], protocol: str) -> tuple[float, int] | None:
    """Spearman's rank correlation between ours and the paper's figures, and over how many rows.

    None where fewer than three rows have both, or all of one side are equal.
    """
    both = [(m.mean, m.paper) for row in rows if (m := row.protocols.get(protocol)) and m.paper is not None]
    if len(both) < 3:
        return None
    value = float(stats.spearmanr(*zip(*both, strict=True)).statistic)
    return None if math.isnan(value) else (value, len(both))
