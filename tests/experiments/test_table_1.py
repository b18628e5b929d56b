"""Table 1 against docs/paper.md: every number of it, scaled as it says, under names that are each their own."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from openmae.experiments.setup import model_of
from openmae.experiments.studies.figures import PAPER_SIZES
from openmae.experiments.studies.study import DEFAULT
from openmae.experiments.studies.table_1 import SECTIONS, table_1

PAPER = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")

# The page's name of each row, by ours; the default row's is bold there.
ROWS = {
    "a": {f"decoder depth {n}-8ths": str(n) for n in (1, 2, 4, 12)},
    "b": {f"decoder width {n}-8ths": str(128 * n) for n in (1, 2, 6, 8)},
    "c": {"mask tokens in the encoder": "through the encoder"},
    "d": {
        "norm-pixel": "normalised pixels",
        "pca": "96 largest PCA coefficients of a patch",
        "token": "dVAE tokens, cross-entropy",
    },
    "e": {
        "augment none": "none: centre crop, no flip",
        "augment crop-fixed": "crop of fixed size",
        "augment crop-jitter": "and colour jitter",
    },
    "f": {"block 50": "block, 50 %", "block 75": "block, 75 %", "grid 75": "grid, 75 %"},
}


def setup(width=128, decoder_depth=8, patch_values=48):
    """As much of an experiment's set-up as the rows ask for."""
    return SimpleNamespace(token_settings={}, width=width, decoder_depth=decoder_depth, patch_values=patch_values)


def page_tables():
    """Of docs/paper.md by letter: fine-tuned and linear probe by the name of the row."""
    part = PAPER.partition("### Table 1:")[2].partition("### Ratio")[0]
    tables, heads = {}, []
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if any(re.match(r"1[a-f]: ", cell) for cell in cells):
            heads = [(place, cell[1]) for place, cell in enumerate(cells) if re.match(r"1[a-f]: ", cell)]
        for place, letter in heads if cells else []:
            found = re.fullmatch(r"([\d.]+) / ([\d.]+)", cells[place + 1])
            if found:
                tables.setdefault(letter, {})[cells[place]] = (float(found[1]), float(found[2]))
    return tables


def test_the_page_was_read():
    assert {letter: len(rows) for letter, rows in page_tables().items()} == {
        letter: len(rows) + 1 for letter, rows in ROWS.items()
    }


@pytest.mark.parametrize("letter", ROWS)
def test_every_figure_is_the_papers(letter):
    study = table_1(f"table-1{letter}", setup())
    ours = {row.name: (row.paper["finetune"], row.paper["linear"]) for row in study.sections[0].rows}
    page = page_tables()[letter]
    default = next(page[name] for name in page if name.startswith("**"))
    assert ours == {DEFAULT: default, **{name: page[theirs] for name, theirs in ROWS[letter].items()}}
    assert {len(row.paper) for row in study.rows} == {2}


def test_rows_stand_in_the_papers_order():
    for letter, page in page_tables().items():
        by_page = {theirs: name for name, theirs in ROWS[letter].items()}
        wanted = [by_page.get(name, DEFAULT) for name in page]
        assert [row.name for row in table_1(f"table-1{letter}", setup()).sections[0].rows] == wanted


def test_costs_are_the_papers():
    row = next(row for row in table_1("table-1c", setup()).rows if row.name != DEFAULT)
    assert f"| {row.paper_cost['FLOPs']}× |" in PAPER
    assert f"| L | 8 | 84.9 | 15.4 | {row.paper_cost['time']}× |" in PAPER


def test_sizes_of_figure_8_are_those_of_table_3():
    part = PAPER.partition("### Table 3:")[2]
    rows = {name: re.search(rf"^\| {name} \| ([\d. |]+)", part, re.M)[1].split("|") for name in ("MAE", "from scratch")}
    mae, scratch = ([float(cell) for cell in cells[:3]] for cells in rows.values())
    assert dict(zip("BLH", zip(mae, scratch, strict=True), strict=True)) == PAPER_SIZES


@pytest.mark.parametrize(
    ("depth", "wanted"), [(8, [1, 2, 4, None, 12]), (4, [1, 1, 2, None, 6]), (16, [2, 4, 8, None, 24])]
)
def test_depths_are_eighths_of_the_default(depth, wanted):
    rows = table_1("table-1a", setup(decoder_depth=depth)).sections[0].rows
    assert [row.changes.get("decoder_depth") for row in rows] == wanted


@pytest.mark.parametrize(
    ("width", "wanted"), [(1024, [128, 256, 768, 1024]), (128, [16, 32, 96, 128]), (32, [4, 8, 24, 32])]
)
def test_widths_are_eighths_of_the_encoders(width, wanted):
    rows = [row for row in table_1("table-1b", setup(width=width)).rows if row.name != DEFAULT]
    assert [row.changes["decoder_width"] for row in rows] == wanted
    for row in rows:
        assert row.changes["decoder_width"] % row.changes["decoder_num_heads"] == 0


@pytest.mark.parametrize("width", [32, 36, 44, 52, 128])
def test_the_default_is_as_wide_as_its_label_says(width):
    row = next(row for row in table_1("table-1b", setup(width=width)).rows if row.name == DEFAULT)
    assert row.label.startswith(f"{model_of(width, 2)['decoder_width']} wide")


@pytest.mark.parametrize(("values", "count"), [(768, 96), (48, 6), (16, 2), (4, 1)])
def test_coefficients_are_an_eighth_of_a_patch(values, count):
    row = next(row for row in table_1("table-1d", setup(patch_values=values)).rows if row.name == "pca")
    assert row.changes == {"target": "pca", "pca_coefficients": count}


def test_labels_carry_both_numbers_where_they_differ():
    study = table_1("table-1", setup(width=64, decoder_depth=4))
    labels = [row.label for section in study.sections for row in section.rows]
    assert labels[:5] == [
        "1 block",
        "1 block (paper: 2)",
        "2 blocks (paper: 4)",
        "4 blocks (paper: 8), default",
        "6 blocks (paper: 12)",
    ]
    assert labels[5:7] == ["8 wide (paper: 128)", "16 wide (paper: 256)"]
    assert "PCA, 6 coefficients (paper: 96)" in labels
    paper = table_1("table-1", setup(width=1024, patch_values=768))
    assert not any("(paper: " in row.label for row in paper.rows if row.name != "token")


def test_the_whole_table_has_every_row_once():
    study = table_1("table-1", setup())
    names = [row.name for row in study.rows]
    assert len(names) == len(set(names)) == 1 + sum(map(len, ROWS.values())) == 19
    assert names[0] == DEFAULT
    parts = [table_1(name, setup()).sections[0] for name in SECTIONS]
    assert study.sections == tuple(parts)
    labels = [row.label for section in study.sections for row in section.rows]
    assert len(labels) == len(set(labels)) == 24


def test_each_row_but_the_default_changes_something():
    for row in table_1("table-1", setup()).rows:
        assert bool(row.changes) == (row.name != DEFAULT), row.name
