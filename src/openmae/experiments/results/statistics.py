"""What a few seeds can show: how large a difference must be to be more than chance, and the order of rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from openmae.experiments.studies.study import Measured, RowResult

CONFIDENCE = 0.95
NORMAL = 1.959964  # of the normal distribution, what 95 % lie within


@dataclass(frozen=True)
class Noise:
    """How far two rows must lie apart to differ by more than chance.

    Attributes:
        threshold: that difference, in the protocol's unit, at 95 %; None where nothing is known of chance.
        spread: the standard deviation of the row that others are compared with; None of a single seed.
        num_seeds: of that row.
    """

    threshold: float | None
    spread: float | None
    num_seeds: int


def noise_of(base: Measured, num_test: int, *, seeds: tuple[int, int] | None = None) -> Noise:
    """The larger of what seeds and what the test images make of chance.

    Seeds: means of m and of n runs lie within t · s · √(1/m + 1/n) of each other, where s is the standard deviation of
    the base's runs, and t has as many degrees of freedom as s; with m = 1 this is the prediction interval of a single
    run. Images: two shares of right answers, of independent images, differ by 1.96 · √(2 p (1 − p) / images). Both rows
    are measured on the same images, which makes this more than it has to be; so the two are not added.

    Args:
        base: the row that others are compared with.
        num_test: test images behind a share in per cent; 0 for other units.
        seeds: m and n of the two that are compared; None: one, and those of `base`.
    """
    count, spread = len(base.values), base.spread
    by_seeds = by_images = 0.0
    if spread is not None:
        from scipy import stats  # takes a second to import

        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
        by_seeds = quantile * spread * math.sqrt(sum(1 / number for number in seeds or (1, count)))
    if num_test:
        # None or all right of a few images is not yet a share of 0 or 1: one of n + 2 at least.
        share = min(max(base.mean / 100, 1 / (num_test + 2)), 1 - 1 / (num_test + 2))
        by_images = 100 * NORMAL * math.sqrt(2 * share * (1 - share) / num_test)
    return Noise(max(by_seeds, by_images) or None, spread, count)


def rank_correlation(rows: Sequence[RowResult], protocol: str) -> tuple[float, int] | None:
    """Spearman's rank correlation between ours and the paper's figures, and over how many rows.

    None where fewer than three rows have both, or all of one side are equal.
    """
    both = [(m.centre, m.paper) for row in rows if (m := row.protocols.get(protocol)) and m.paper is not None]
    if len(both) < 3 or any(len(set(side)) == 1 for side in zip(*both, strict=True)):
        return None
    from scipy import stats

    return float(stats.spearmanr(*zip(*both, strict=True)).statistic), len(both)


def chance_correlation(num_rows: int) -> float | None:
    """How far from 0 the rank correlation of unrelated orders lies in 95 % of cases; None where that is anything.

    The normal approximation 1.96 / √(n − 1), which is within .02 of the exact tables from five rows on.
    """
    value = NORMAL / math.sqrt(num_rows - 1) if num_rows > 1 else 1.0
    return None if value >= 1 else value
