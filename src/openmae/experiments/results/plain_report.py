"""results.md of an experiment that compares its rows with no default row: the figures, and what follows from them."""

from collections.abc import Sequence

from openmae.experiments.results.report import text_of
from openmae.experiments.results.statistics import rank_correlation
from openmae.experiments.studies.study import PROTOCOLS, UNITS, Measured, Row, RowResult, Section, Study


def plain_report(study: Study, rows: Sequence[RowResult], budget: Sequence[str]) -> str:
    """The text of results.md.

    Args:
        budget: lines that say what each row was given.
    """
    lines = [f"# {study.title}", "", f"![{study.title}]({study.name}.png)", ""]
    if failed := [row for row in rows if row.failed]:
        lines += [f"**Failed**: {'; '.join(f'{row.row.name} ({row.failed})' for row in failed)}.", ""]
    num_finished = sum(bool(row.protocols) for row in rows)
    if num_finished < len(study.rows):
        lines += [f"{num_finished} of {len(study.rows)} rows have figures so far.", ""]
    for section in study.sections:
        lines += [f"## {section.title}", ""] if len(study.sections) > 1 else []
        lines += [*_table(study, section, rows), ""]
    found = [*_orders(study, rows), *([] if study.findings is None else study.findings(rows))]
    return "\n".join([*lines, *(f"- {line}" for line in [*found, *study.remarks, *budget])]) + "\n"


def _table(study: Study, section: Section, rows: Sequence[RowResult]) -> list[str]:
    """A section as a Markdown table; rows that have not run yet are left open."""
    by_name = {row.row.name: row for row in rows}
    with_paper = {name for name in study.protocols if any(name in row.paper for row in section.rows)}
    columns = []
    for name in study.protocols:
        title = f"{PROTOCOLS[name]}, {UNITS[name]}"
        columns += [f"{title}: paper", "ours"] if name in with_paper else [title]
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for row in section.rows:
        found = by_name[row.name].protocols if row.name in by_name else {}
        cells = [cell for name in study.protocols for cell in _cells(row, found.get(name), name, name in with_paper)]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return lines


def _cells(row: Row, measured: Measured | None, name: str, has_paper: bool) -> list[str]:
    ours = "" if measured is None else _median_text(measured) if measured.is_median else text_of(measured)
    paper = row.paper.get(name)
    return [*(["" if paper is None else f"{paper:.1f}"] if has_paper else []), ours]


def _median_text(measured: Measured) -> str:
    """A time or a speed: its median, with the range where there are several rounds."""
    text = _short(measured.centre)
    return f"{text} ({_short(min(measured.values))} to {_short(max(measured.values))})" if measured.spread else text


def _short(value: float) -> str:
    """To a decimal; below 1 to two digits."""
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _orders(study: Study, rows: Sequence[RowResult]) -> list[str]:
    """For each protocol that the paper gives figures of, how far the order of rows is the paper's."""
    found = {name: rank_correlation(rows, name) for name in study.protocols}
    return [
        f"{PROTOCOLS[name]}: Spearman's rank correlation with the paper is {order[0]:.2f} over {order[1]} rows."
        for name, order in found.items()
        if order is not None
    ]
