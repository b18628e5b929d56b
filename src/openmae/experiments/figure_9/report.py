"""results.md and figure-9.png: protocols by shares of the labels, and top-1 over the number of trained blocks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from openmae.experiments.figure_9.study import ALL_LABELS
from openmae.experiments.results.report import text_of
from openmae.experiments.studies.study import Measured, Row, RowResult, Study
from openmae.pictures.curves import Curve, draw_curves

LEVELS = {"scratch": "from scratch", "kNN": "kNN"}  # drawn as levels: they have no number of fine-tuned blocks


def figure_9_report(study: Study, rows: Sequence[RowResult], budget: Sequence[str]) -> str:
    """The text of results.md.

    Args:
        budget: lines that say what each row was given.
    """
    lines = [f"# {study.title}", ""]
    if failed := [row for row in rows if row.failed]:
        lines += [f"**Failed**: {'; '.join(f'{row.row.name} ({row.failed})' for row in failed)}.", ""]
    lines += ["Top-1 in per cent; ± is the standard deviation over seeds.", "", *table(study, rows), ""]
    return "\n".join([*lines, *(f"- {line}" for line in [*study.remarks, *budget])]) + "\n"


def table(study: Study, rows: Sequence[RowResult]) -> list[str]:
    """Protocols are rows, shares of the labels columns; the paper's where there is a column to compare it with."""
    shares = list(dict.fromkeys(str(row.labels) for row in study.rows))
    paper = {row.label: value for row in study.rows for value in row.paper.values()}
    columns = [*shares, *([f"paper, {ALL_LABELS}"] if paper else [])]
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    measured = {(row.row.label, row.row.labels): _measured(row) for row in rows}
    for name in dict.fromkeys(row.label for row in study.rows):
        cells = [text_of(measured.get((name, share))) for share in shares]
        cells += [f"{paper[name]:.1f}" if name in paper else ""] if paper else []
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def draw_figure_9(path: Path, study: Study, rows: Sequence[RowResult]) -> None:
    """Draw top-1 over the number of trained blocks, a curve for each share of the labels; the others as levels."""
    found = {row.row.name: measured for row in rows if (measured := _measured(row))}
    if found:
        draw_curves(
            path,
            [_curve(section.rows, section.title, found) for section in study.sections],
            list(LEVELS.values()),
            x_label=study.axis,
            y_label="top-1 on the test part, %",
            title="Partial fine-tuning (figure 9)",
        )


def _curve(rows: Sequence[Row], title: str, found: Mapping[str, Measured]) -> Curve:
    own = [(row, found[row.name]) for row in rows if row.name in found]
    points = [(row.position, m.mean, m.spread or 0.0) for row, m in own if row.position is not None]
    return Curve(title, sorted(points), {LEVELS[row.label]: m.mean for row, m in own if row.label in LEVELS})


def _measured(row: RowResult) -> Measured | None:
    return next(iter(row.protocols.values()), None)
