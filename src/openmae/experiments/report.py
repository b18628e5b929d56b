"""results.md: the paper's figures beside ours, what disagrees first, and what so few seeds can show."""

from collections.abc import Mapping, Sequence

from openmae.experiments.results import Measured, RowResult
from openmae.experiments.statistics import Noise, noise_of, rank_correlation
from openmae.experiments.study import PROTOCOLS, UNITS, Row, Section, Study


def report(study: Study, rows: Sequence[RowResult], budget: Sequence[str], num_test: int) -> str:
    """The text of results.md.

    Args:
        budget: lines that say what each row was given.
        num_test: images that the accuracies are of.
    """
    by_name = {row.row.name: row for row in rows}
    default = by_name.get(study.baseline)
    noises = {
        name: noise_of(measured, num_test if UNITS[name].endswith("%") else 0)
        for name, measured in (default.protocols if default else {}).items()
    }
    lines = [f"# {study.title}", ""]
    if failed := [row for row in rows if row.failed]:
        lines += [f"**Failed**: {'; '.join(f'{row.row.label} ({row.failed})' for row in failed)}.", ""]
    if default is not None and not study.axis:
        lines += [disagreements(study, rows, default, noises), ""]
    for section in study.sections:
        lines += [
            *(["", f"## {section.title}", ""] if len(study.sections) > 1 else []),
            *table(study, section, by_name),
        ]
    lines += ["", *(f"- {line}" for line in [*findings(study, rows, default, noises), *study.remarks, *budget])]
    return "\n".join(lines) + "\n"


def table(study: Study, section: Section, rows: Mapping[str, RowResult]) -> list[str]:
    """A section as a Markdown table; rows that have not run yet are left open."""
    default = rows.get(study.baseline)
    shown = [name for name in study.protocols if any(name in row.protocols for row in rows.values())]
    is_compared = any(row.name == study.baseline for row in section.rows)
    columns = []
    for name in shown:
        has_paper = any(name in row.paper for row in section.rows)
        title = f"{PROTOCOLS[name]} ({UNITS[name]})"
        columns += [f"{title}: paper"] * has_paper + [f"{title}: ours"]
        columns += ["to default: paper"] * (has_paper and is_compared) + ["to default: ours"] * is_compared
    has_cost = any("seconds" in row.cost for row in rows.values())
    columns += ["FLOPs", "time"] * has_cost
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for row in section.rows:
        cells = [cell for name in shown for cell in _cells(section, row, name, rows, default, is_compared)]
        cells += _costs(rows.get(row.name), default) if has_cost else []
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return lines


def _cells(
    section: Section, row: Row, name: str, rows: Mapping[str, RowResult], default: RowResult | None, is_compared: bool
) -> list[str]:
    measured = rows[row.name].protocols.get(name) if row.name in rows else None
    base = default.protocols.get(name) if default else None
    paper, has_paper = row.paper.get(name), any(name in other.paper for other in section.rows)
    cells = [f"{paper:.1f}" if paper is not None else ""] * has_paper + [text_of(measured)]
    if is_compared:
        is_default = default is not None and row.name == default.row.name
        has_both = has_paper and paper is not None and base is not None and base.paper is not None and not is_default
        cells += [f"{paper - base.paper:+.1f}" if has_both else ""] * has_paper  # type: ignore[operator, union-attr]
        cells += [f"{measured.mean - base.mean:+.1f}" if measured and base and not is_default else ""]
    return cells


def _costs(row: RowResult | None, default: RowResult | None) -> list[str]:
    """FLOPs and the time of pre-training, as multiples of the default row's."""
    if row is None:
        return ["", ""]
    seconds, base = row.cost.get("seconds"), default.cost.get("seconds") if default else None
    time = f"{mean(seconds) / mean(base):.2f}×" if seconds and base else ""
    return [f"{row.cost['flops_to_default']:.2f}×", time]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def text_of(measured: Measured | None) -> str:
    """The mean, with the spread where there are several seeds, to a decimal."""
    if measured is None:
        return ""
    return f"{measured.mean:.1f}" if measured.spread is None else f"{measured.mean:.1f} ± {measured.spread:.1f}"


def disagreements(study: Study, rows: Sequence[RowResult], default: RowResult, noises: Mapping[str, Noise]) -> str:
    """What disagrees with the paper by more than chance: rows on the other side of the default row than there."""
    found, num_compared = [], 0
    for row in rows:
        for name, measured in row.protocols.items():
            base, noise = default.protocols.get(name), noises.get(name)
            if row is default or measured.paper is None or base is None or base.paper is None or noise is None:
                continue
            num_compared += 1
            ours, theirs = measured.mean - base.mean, measured.paper - base.paper
            if noise.threshold is not None and abs(ours) > noise.threshold and ours * theirs < 0:
                found.append(f"{row.row.label}, {PROTOCOLS[name]} {ours:+.1f} (paper {theirs:+.1f})")
    if not num_compared:
        return "Nothing to compare with the paper yet."
    if not found:
        return "No row lies on the other side of the default row than in the paper by more than chance."
    return f"**Disagrees with the paper by more than chance**: {'; '.join(found)}."


def findings(
    study: Study, rows: Sequence[RowResult], default: RowResult | None, noises: Mapping[str, Noise]
) -> list[str]:
    """For each protocol the order of rows beside the paper's, and how many rows differ by more than chance."""
    lines = []
    for name in study.protocols:
        if (order := rank_correlation(rows, name)) is not None:
            lines.append(
                f"{PROTOCOLS[name]}: Spearman's rank correlation with the paper is {order[0]:.2f} over {order[1]} rows."
            )
        noise, base = noises.get(name), default.protocols.get(name) if default else None
        if noise is None or base is None or noise.threshold is None:
            continue
        others = [row.protocols[name].mean - base.mean for row in rows if row is not default and name in row.protocols]
        clear = sum(abs(difference) > noise.threshold for difference in others)
        seeds = (
            f"{noise.num_seeds} seeds of the default row spread by ± {noise.spread:.1f}"
            if noise.spread is not None
            else "the default row has one seed, so what seeds make of it is unknown"
        )
        lines.append(
            f"{PROTOCOLS[name]}: {seeds}; a row of one seed has to differ from it by {noise.threshold:.1f} to differ by "
            f"more than chance (95 %), as {clear} of {len(others)} do. The others are not told apart by this."
        )
    return lines
