"""results.md: what disagrees first, one decimal, and what is honest to say."""

import math

import pytest

from openmae.experiments.results.differences import base_name, differences
from openmae.experiments.results.report import report

from .samples import DEFAULT_ROW, FIGURE, ODD, SMALL, TABLE, figure_results, result, table_results

IMAGES = 100_000


def text(rows=None, study=TABLE, images=IMAGES, picture=None):
    return report(study, table_results() if rows is None else rows, ["A budget."], images, picture)


def cells(written, label):
    """The cells of a row of a table."""
    line = next(line for line in written.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_it_says_first_what_disagrees():
    """Fine-tuning of `small` is 10 points worse, in the paper equal; the probe of `odd` 6 better, there 0.4."""
    lines = [line for line in text(picture="table-9.png").splitlines() if line]
    assert lines[0] == "# Table 9: sizes"
    assert lines[1] == "![Table 9: sizes: the paper's figures beside ours](table-9.png)"
    assert lines[2] == (
        "**Disagrees with the paper by more than chance**: size, small (paper: smaller): fine-tuning −10.0 (paper 0.0)."
    )
    assert lines[3].startswith("**Not seen here**")
    assert lines[3].endswith(": size, small (paper: smaller): linear probe −1.0 (paper −8.0).")
    assert lines[4] == (
        "Differences whose size the paper gives: 4, of which 1 found here with the paper's sign by more than chance, "
        "1 disagreeing, 1 not seen here, 1 within chance both there and here."
    )


def test_a_row_has_both_figures_and_both_differences():
    written = text()
    head = next(line for line in written.splitlines() if line.startswith("| |"))
    columns = ["paper", "ours", "Δ paper", "Δ ours"]
    titles = [f"fine-tuning, %: {columns[0]}", *columns[1:], f"linear probe, %: {columns[0]}", *columns[1:]]
    assert [cell.strip() for cell in head.split("|")[2:-1]] == [*titles, "kNN, %: ours", "Δ ours", "FLOPs", "time"]
    default = ["84.9", "70.0 ± 1.0", "", "", "73.5", "50.0 ± 0.5", "", "", "40.0 ± 0.0", "", "1.00×", "1.00×"]
    assert cells(written, "large, default") == default
    small = ["84.9", "60.0", "0.0", "**−10.0**", "65.5", "49.0", "−8.0", "−1.0", "39.0", "**−1.0**", "0.50×", "0.50×"]
    assert cells(written, "small (paper: smaller)") == small
    odd = ["84.0", "69.0", "−0.9", "−1.0", "73.9", "56.0", "+0.4", "**+6.0**", "47.0", "**+7.0**", "3.25×", "3.00×"]
    assert cells(written, "odd") == odd
    assert "## Table 9a: size" in written
    assert "## Table 9b: form" in written


def test_rows_that_have_not_run_are_open():
    written = text(table_results()[:1])
    assert "1 of 3 rows have figures so far." in written
    assert cells(written, "small (paper: smaller)")[:4] == ["84.9", "", "0.0", ""]
    assert "Nothing to compare with the paper yet." in written


def test_before_anything_is_finished():
    written = text([])
    assert "0 of 3 rows" in written
    assert "![" not in written
    assert cells(written, "odd") == ["84.0", "", "", "", "73.9", "", "", "", "", ""]


def test_a_failed_row_is_named():
    assert "**Failed**: form, odd (no memory)." in text([*table_results()[:2], result(ODD, failed="no memory")])


def test_it_says_what_chance_makes():
    """4.303 · 1 · √(4/3) is 4.97; the ranks of the three rows, 1, 2, 3 and 2.5, 1, 2.5, are unrelated."""
    written = text()
    seeds = "3 seeds of the default row have a standard deviation of 1.0 points. By the chance of seeds and of 100,000 "
    threshold = "test images, the difference of a row of one seed is more than chance (95 %) from 5.0 points on: "
    order = "Spearman's rank correlation with the paper is 0.00 over 3 rows; so few can be in any order by chance.\n"
    assert f"- **fine-tuning**: {seeds}{threshold}1 of 2 differences are. {order}" in written
    assert "one in twenty is bold all the same: sometimes one." in written
    assert "without a spread" in written
    cost = (
        "odd: 3.2 times the FLOPs (paper: 3.3) and 3.0 times the time (paper: 2.8) of the default row's pre-training."
    )
    assert written.endswith(f"- A budget.\n- {cost}\n- A remark.\n")


def test_one_seed_is_owned_up_to():
    written = text([result(DEFAULT_ROW, finetune=70.0), result(SMALL, finetune=60.0)], images=10_000)
    assert "The default row has one seed so far: “chance” is that of the test images alone" in written
    alone = (
        "the default row has one seed. Of the 10,000 test images alone, a difference is more than chance (95 %) from"
    )
    assert f"{alone} 1.3 points on: 1 of 1 differences are" in written
    assert "±" not in written


def test_without_seeds_and_images_nothing_is_called_clear():
    written = text([result(DEFAULT_ROW, finetune=70.0), result(SMALL, finetune=10.0)], images=0)
    assert "**fine-tuning**: nothing is known of chance." in written
    assert cells(written, "small (paper: smaller)")[:4] == ["84.9", "10.0", "0.0", "−60.0"]
    assert "Nothing is known of chance yet, so that no difference can be held against the paper's." in written


def test_columns_of_cost_stand_only_where_rows_differ():
    equal = [result(DEFAULT_ROW, finetune=70.0), result(SMALL, finetune=60.0)]
    assert "FLOPs |" not in text(equal)
    assert "time |" not in text(equal)


def test_a_tokenizers_time_is_added_beside():
    rows = table_results()
    rows[2].cost["tokenizer_seconds"] = [31.0]
    assert cells(text(rows), "odd")[-1] == "3.00× + 0.31× tokenizer"


def test_a_figure_compares_its_curves_and_calls_its_row_by_name():
    written = text(figure_results(), FIGURE)
    assert base_name(FIGURE) == "“MAE, 8 wide”"
    assert "default" not in written
    assert "Δ is the difference to “MAE, 8 wide”" in written
    assert "- MAE − plain, 8 wide (paper: 10 large): fine-tuning +10.0 (paper +1.0)" in written
    assert "- MAE − plain, 16 wide (paper: 100 large): fine-tuning −1.0 (paper +3.0)" in written


def test_a_lead_is_compared_with_the_chance_of_its_own_seeds():
    """The first row's two seeds have a spread of .707; a lead of one seed over one has 12.706 · .707 · √2 of it."""
    found = differences(FIGURE, figure_results(), 0)
    by_label = {one.label: one for one in found}
    assert by_label["MAE, 16 wide (paper: 100 large)"].threshold == pytest.approx(
        12.706 * math.sqrt(0.5 * 1.5), abs=1e-2
    )
    lead = by_label["MAE − plain, 16 wide (paper: 100 large)"]
    assert (lead.ours, lead.paper) == (-1.0, 3.0)
    assert lead.threshold == pytest.approx(12.706, abs=1e-2)
