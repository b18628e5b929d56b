"""Chance and order, against numbers from tables and sums by hand."""

import math

import pytest
from scipy import stats

from openmae.experiments.results.statistics import chance_correlation, noise_of, rank_correlation
from openmae.experiments.studies.study import Measured, Row

from .samples import result


def test_seeds_give_a_prediction_interval():
    """Three runs of standard deviation 1: t of 2 degrees is 4.303, and √(1 + 1/3) is 1.1547."""
    noise = noise_of(Measured((69.0, 70.0, 71.0)), 0)
    assert (noise.spread, noise.num_seeds) == (1.0, 3)
    assert noise.threshold == pytest.approx(4.3027 * 1.1547, abs=1e-3)


def test_of_two_normal_rows_the_stated_share_lies_within():
    """With the spread known only from three runs, 5 % of single runs of the very same row are called different."""
    generator = stats.norm.rvs(size=(800, 4), random_state=0)
    beyond = 0
    for *base, other in generator:
        measured = Measured(tuple(map(float, base)))
        beyond += abs(other - measured.mean) > noise_of(measured, 0).threshold
    assert beyond / 800 == pytest.approx(0.05, abs=0.02)  # measured: 0.064; its standard deviation: 0.008


def test_rows_of_several_seeds_need_less():
    base = Measured((69.0, 70.0, 71.0))
    one, three = noise_of(base, 0, seeds=(1, 3)).threshold, noise_of(base, 0, seeds=(3, 3)).threshold
    assert one == noise_of(base, 0).threshold
    assert three == pytest.approx(one * math.sqrt(2 / 3) / math.sqrt(4 / 3))


def test_test_images_give_the_interval_of_two_shares():
    """50 % of 10,000: 1.96 · √(2 · .25 / 10000) is 1.386 points, where a χ² test has p = .05."""
    noise = noise_of(Measured((50.0,)), 10_000)
    assert noise.threshold == pytest.approx(1.386, abs=1e-3)
    assert noise.spread is None
    low, high = 0.5 - noise.threshold / 200, 0.5 + noise.threshold / 200
    right = [round(low * 10_000), round(high * 10_000)]
    table = [right, [10_000 - count for count in right]]
    assert stats.chi2_contingency(table, correction=False).pvalue == pytest.approx(0.05, abs=0.003)


def test_the_larger_of_both_counts():
    seeds = Measured((49.0, 50.0, 51.0))
    assert noise_of(seeds, 10_000).threshold == noise_of(seeds, 0).threshold
    assert noise_of(seeds, 40).threshold == noise_of(Measured((50.0,)), 40).threshold > noise_of(seeds, 0).threshold


@pytest.mark.parametrize("accuracy", [0.0, 100.0])
@pytest.mark.parametrize("values", [1, 3])
def test_none_or_all_right_still_leave_chance(accuracy, values):
    """Of 98 images one of 100 counts as the other: 1.96 · √(2 · .01 · .99 / 98) is 2.786 points."""
    assert noise_of(Measured((accuracy,) * values), 98).threshold == pytest.approx(2.786, abs=1e-3)


@pytest.mark.parametrize("values", [(50.0,), (50.0, 50.0, 50.0)])
def test_without_spread_and_images_nothing_is_known(values):
    assert noise_of(Measured(values), 0).threshold is None


@pytest.mark.parametrize("images", [1, 2])
def test_very_few_images_tell_nothing_apart(images):
    assert noise_of(Measured((100.0,)), images).threshold > 80


def rows(ours, theirs):
    papers = [{} if paper is None else {"linear": paper} for paper in theirs]
    made = [Row(name=str(number), label=str(number), paper=paper) for number, paper in enumerate(papers)]
    return [result(row) if value is None else result(row, linear=value) for row, value in zip(made, ours, strict=True)]


def test_ranks_are_compared():
    """Differences of rank 0, 1, 1, 0, 0: 1 − 6 · 2 / (5 · 24) is 0.9."""
    found = rank_correlation(rows([10.0, 30.0, 20.0, 40.0, 99.0], [60.0, 61.0, 62.0, 63.0, 64.0]), "linear")
    assert found == (pytest.approx(0.9), 5)


def test_ties_share_their_mean_rank():
    """Ranks 1, 2, 3 and 1.5, 1.5, 3: Pearson's correlation of these is 1.5 / √(2 · 1.5)."""
    found = rank_correlation(rows([1.0, 2.0, 3.0], [84.9, 84.9, 85.0]), "linear")
    assert found == (pytest.approx(1.5 / math.sqrt(3)), 3)


def test_rows_without_a_figure_do_not_count():
    found = rank_correlation(rows([1.0, 2.0, None, 3.0, 4.0], [1.0, 2.0, 9.0, None, 0.0]), "linear")
    assert found == (pytest.approx(-0.5), 3)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([1.0, 2.0], [1.0, 2.0]),
        ([], []),
        ([5.0, 5.0, 5.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]),
        ([1.0, 2.0, 3.0], [None, None, None]),
    ],
)
def test_too_few_or_equal_rows_have_no_order(recwarn, ours, theirs):
    assert rank_correlation(rows(ours, theirs), "linear") is None
    assert not recwarn.list


@pytest.mark.parametrize(("count", "exact"), [(6, 0.886), (8, 0.738), (10, 0.648), (20, 0.447)])
def test_chance_of_an_order_is_that_of_the_tables(count, exact):
    """Critical values of Spearman's ρ, two-sided 5 %, from the usual tables; ours are off by .011 at most."""
    assert chance_correlation(count) == pytest.approx(exact, abs=0.012)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_so_few_rows_can_be_in_any_order(count):
    assert chance_correlation(count) is None
