"""results.md: what disagrees with the paper first, then its figures beside ours, and what so few seeds can show."""

from collections.abc import Sequence
from statistics import fmean

from openmae.experiments.results.differences import (
    Difference,
    base_name,
    difference_of,
    differences,
    full_label,
    images_behind,
    leads,
)
from openmae.experiments.results.statistics import chance_correlation, noise_of, rank_correlation
from openmae.experiments.studies.study import PROTOCOLS, UNITS, Measured, Row, RowResult, Section, Study
from openmae.pictures.comparison import signed


def report(
    study: Study, rows: Sequence[RowResult], budget: Sequence[str], num_test: int, picture: str | None = None
) -> str:
    """The text of results.md.

    Args:
        budget: lines that say what each row was given.
        num_test: images that the accuracies are of.
        picture: the file beside it to show; None: nothing is drawn yet.
    """
    found = differences(study, rows, num_test)
    lines = [f"# {study.title}", ""]
    if picture:
        lines += [f"![{study.title}: the paper's figures beside ours]({picture})", ""]
    if failed := [row for row in rows if row.failed]:
        lines += [f"**Failed**: {'; '.join(f'{full_label(study, row)} ({row.failed})' for row in failed)}.", ""]
    num_finished = sum(bool(row.protocols) for row in rows)
    if num_finished < len(study.rows):
        lines += [f"{num_finished} of {len(study.rows)} rows have figures so far.", ""]
    lines += [line for paragraph in against_paper(found) for line in (paragraph, "")]
    if (one_seed := _one_seed(study, rows)) and found:
        lines += [one_seed, ""]
    lines += [legend(study, rows), ""]
    for section in study.sections:
        joint = "" if ": " in section.title else ", "
        lines += [f"## {study.title.partition(':')[0]}{joint}{section.title}", ""] * (len(study.sections) > 1)
        lines += [*table(study, section, rows, num_test), ""]
    lines += lead_lines(study, rows, num_test)
    lines += ["## What this can show", "", *(f"- {line}" for line in cautions(study, rows, found, num_test)), ""]
    given = [*cost_remarks(study, rows), *study.remarks]
    lines += ["## How it was measured", "", *(f"- {line}" for line in [*budget, *given])]
    return "\n".join(lines) + "\n"


def against_paper(found: Sequence[Difference]) -> list[str]:
    """Paragraphs: what disagrees with the paper by more than chance, what of the paper's is not seen, what agrees."""
    known = [one for one in found if one.paper is not None and one.threshold is not None]
    if not known and any(one.paper is not None for one in found):
        return ["Nothing is known of chance yet, so that no difference can be held against the paper's."]
    if not known:
        return ["Nothing to compare with the paper yet."]
    against, missed = [one for one in known if one.is_against_paper], [one for one in known if one.is_missed]
    paragraphs = []
    if against:
        paragraphs.append(f"**Disagrees with the paper by more than chance**: {_listed(against)}.")
    else:
        paragraphs.append("**Nothing disagrees with the paper by more than chance.**")
    if missed:
        paragraphs.append(
            "**Not seen here**, though a difference as large as the paper's would be more than chance: "
            f"{_listed(missed)}."
        )
    counts = {
        "found here with the paper's sign by more than chance": sum(one.is_found for one in known),
        "disagreeing": len(against),
        "not seen here": len(missed),
    }
    counts["within chance both there and here"] = len(known) - sum(counts.values())
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    paragraphs.append(f"Differences whose size the paper gives: {len(known)}, of which {', '.join(parts)}.")
    return paragraphs


def _listed(found: Sequence[Difference], *, bold: bool = False) -> str:
    return "; ".join(
        f"{one.label}: {PROTOCOLS[one.protocol]} {_marked(one, bold)}"
        + ("" if one.paper is None else f" (paper {signed(one.paper)})")
        for one in found
    )


def _marked(one: Difference, bold: bool) -> str:
    text = signed(one.ours)
    return f"**{text}**" if bold and one.is_clear else text


def legend(study: Study, rows: Sequence[RowResult]) -> str:
    """How to read the columns."""
    base = base_name(study)
    sentences = [f"Δ is the difference to {base}, in the paper and here; bold where it is more than chance (95 %)."]
    if any(measured.spread is not None for row in rows for measured in row.protocols.values()):
        sentences.append("± is the standard deviation over seeds.")
    costs = ["FLOPs of an image"] * _has_flops(rows) + ["time (rows side by side share the machine)"] * _has_time(
        study, rows
    )
    if costs:
        sentences.append(f"Of pre-training, as multiples of those of {base}: {' and '.join(costs)}.")
    return " ".join(sentences)


def lead_lines(study: Study, rows: Sequence[RowResult], num_test: int) -> list[str]:
    """How far a figure's curves lie apart, ours beside the paper's."""
    base = next((row for row in rows if row.row.name == study.baseline), None)
    found = leads(study, rows, base, num_test) if base else []
    return [f"- {_listed([one], bold=True)}" for one in found] + [""] * bool(found)


def table(study: Study, section: Section, rows: Sequence[RowResult], num_test: int) -> list[str]:
    """A section as a Markdown table; rows that have not run yet are left open."""
    by_name = {row.row.name: row for row in rows}
    base = by_name.get(study.baseline)
    shown = [name for name in study.protocols if any(name in row.protocols for row in rows)] or list(study.protocols)
    with_paper = {name for name in shown if any(name in row.paper for row in section.rows)}
    columns = []
    for name in shown:
        title = f"{PROTOCOLS[name]}, {UNITS[name].removeprefix('top-1, ')}: "
        columns += [f"{title}paper", "ours", "Δ paper", "Δ ours"] if name in with_paper else [f"{title}ours", "Δ ours"]
    columns += ["FLOPs"] * _has_flops(rows) + ["time"] * _has_time(study, rows)
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for row in section.rows:
        result = by_name.get(row.name)
        cells = [
            cell for name in shown for cell in _cells(row, result, base, name, num_test, has_paper=name in with_paper)
        ]
        cells += [_flops(result)] * _has_flops(rows) + [_time(result, base)] * _has_time(study, rows)
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return lines


def _cells(
    row: Row, result: RowResult | None, base: RowResult | None, name: str, num_test: int, *, has_paper: bool
) -> list[str]:
    measured = result.protocols.get(name) if result else None
    compared = base.protocols.get(name) if base else None
    paper = row.paper.get(name)
    theirs, ours = "", ""
    if measured is not None and compared is not None and result is not base:
        found = difference_of("", name, measured, compared, num_test)
        ours = _marked(found, bold=True)
    base_paper = base.row.paper.get(name) if base else None
    if paper is not None and base_paper is not None and base is not None and row.name != base.row.name:
        theirs = signed(paper - base_paper)
    if not has_paper:
        return [text_of(measured), ours]
    return ["" if paper is None else f"{paper:.1f}", text_of(measured), theirs, ours]


def text_of(measured: Measured | None) -> str:
    """The mean, with the spread where there are several seeds, to a decimal."""
    if measured is None:
        return ""
    return f"{measured.mean:.1f}" if measured.spread is None else f"{measured.mean:.1f} ± {measured.spread:.1f}"


def _has_flops(rows: Sequence[RowResult]) -> bool:
    """Whether rows differ in them."""
    return len({row.cost.get("flops_to_default") for row in rows if row.protocols and row.row.is_pretrained_here}) > 1


def _has_time(study: Study, rows: Sequence[RowResult]) -> bool:
    return any(row.cost.get("seconds") for row in rows) and sum(row.is_pretrained_here for row in study.rows) > 1


def _flops(row: RowResult | None) -> str:
    if row is None or not row.row.is_pretrained_here or "flops_to_default" not in row.cost:
        return ""
    return f"{row.cost['flops_to_default']:.2f}×"


def time_to_base(row: RowResult, base: RowResult | None, of: str = "seconds") -> float | None:
    """The time of a row's pre-training as a multiple of the base's; None where either is unknown."""
    seconds, compared = row.cost.get(of), base.cost.get("seconds") if base else None
    return fmean(seconds) / fmean(compared) if seconds and compared and fmean(compared) > 0 else None


def _time(row: RowResult | None, base: RowResult | None) -> str:
    if row is None or (time := time_to_base(row, base)) is None:
        return ""
    tokenizer = time_to_base(row, base, "tokenizer_seconds")
    return f"{time:.2f}×" + ("" if tokenizer is None else f" + {tokenizer:.2f}× tokenizer")


def cost_remarks(study: Study, rows: Sequence[RowResult]) -> list[str]:
    """Rows whose cost the paper gives, beside ours."""
    base, lines = next((row for row in rows if row.row.name == study.baseline), None), []
    for row in rows:
        if not row.row.paper_cost or not row.protocols:
            continue
        ours = {"FLOPs": row.cost.get("flops_to_default"), "time": time_to_base(row, base)}
        parts = [
            f"{ours[name]:.1f} times the {name} (paper: {paper:g})"
            for name, paper in row.row.paper_cost.items()
            if ours.get(name) is not None
        ]
        if parts:
            lines.append(f"{row.row.label}: {' and '.join(parts)} of {base_name(study)}'s pre-training.")
    return lines


def cautions(study: Study, rows: Sequence[RowResult], found: Sequence[Difference], num_test: int) -> list[str]:
    """For each protocol how much is chance and how far the order is the paper's; then what this comes to."""
    base = next((row for row in rows if row.row.name == study.baseline), None)
    lines = []
    for name in study.protocols:
        sentences = []
        if base is not None and name in base.protocols:
            sentences.append(_chance(study, name, base.protocols[name], found, num_test))
        if (order := rank_correlation(rows, name)) is not None:
            sentences.append(_order(*order))
        if sentences:
            lines.append(f"**{PROTOCOLS[name]}**: {' '.join(sentences)}")
    num_tested = sum(one.threshold is not None for one in found)
    if num_tested:
        by_chance = f"about {num_tested * 0.05:.0f} of these {num_tested}" if num_tested >= 10 else "sometimes one"
        lines.append(
            "A difference that is not bold speaks neither for the paper nor against it. "
            f"Of differences that are chance alone, one in twenty is bold all the same: {by_chance}."
        )
    lines += _at_the_edge(rows)
    if any(measured.spread is not None for row in rows for measured in row.protocols.values()):
        lines.append(
            "All seeds choose and measure on the same images: ± holds nothing of what other images would give."
        )
    lines.append(
        "The paper prints its figures without a spread. Where model, images or schedule are others than the paper's, "
        "signs and order can be compared, sizes hardly."
    )
    return lines


def _at_the_edge(rows: Sequence[RowResult]) -> list[str]:
    """A sentence about runs whose best rate was the largest or smallest tried: a better one may lie beyond it."""
    kinds = {"finetune": "fine-tuned runs", "miou": "segmenters", "box_ap": "detectors"}
    return [line for name, runs in kinds.items() for line in _at_the_edge_of(rows, name, runs)]


def _at_the_edge_of(rows: Sequence[RowResult], name: str, runs: str) -> list[str]:
    chosen = [rate for row in rows if (m := row.protocols.get(name)) for rate in m.details.get("base_lr", ())]
    if not chosen or len(set(chosen)) == 1 == len(chosen):
        return []
    largest, smallest = sum(rate == max(chosen) for rate in chosen), sum(rate == min(chosen) for rate in chosen)
    if max(chosen) == min(chosen):
        return [f"All {len(chosen)} {runs} chose the rate {max(chosen):g}: another may suit some of them better."]
    return [
        f"Of {len(chosen)} {runs} {largest} chose the rate {max(chosen):g} and {smallest} {min(chosen):g}, "
        "the largest and the smallest that any did: better ones may lie beyond."
    ]


def _order(value: float, num_rows: int) -> str:
    chance = chance_correlation(num_rows)
    text = f"Spearman's rank correlation with the paper is {signed(value, 2)} over {num_rows} rows; "
    if chance is None:
        return f"{text}so few can be in any order by chance."
    return f"{text}unrelated orders stay within ± {chance:.2f} in 95 % of cases."


def _chance(study: Study, name: str, base: Measured, found: Sequence[Difference], num_test: int) -> str:
    """What is known of chance, and how many differences are larger."""
    images, who = images_behind(name, num_test), base_name(study)
    unit = "points" if UNITS[name].endswith("%") else UNITS[name]
    noise = noise_of(base, images)
    others = [one for one in found if one.protocol == name]
    if noise.threshold is None:
        return "nothing is known of chance."
    clear = f": {sum(one.is_clear for one in others)} of {len(others)} differences are" if others else ""
    if noise.spread is None:
        return (
            f"{who} has one seed. Of the {images:,} test images alone, a difference is more than chance (95 %) from "
            f"{noise.threshold:.1f} {unit} on{clear}."
        )
    of_images = f" and of {images:,} test images" if images else ""
    return (
        f"{noise.num_seeds} seeds of {who} have a standard deviation of {noise.spread:.1f} {unit}. By the chance of "
        f"seeds{of_images}, the difference of a row of one seed is more than chance (95 %) from {noise.threshold:.1f} "
        f"{unit} on{clear}."
    )


def _one_seed(study: Study, rows: Sequence[RowResult]) -> str:
    """A warning where nothing is known of what seeds make of chance; else empty."""
    base = next((row for row in rows if row.row.name == study.baseline), None)
    if base is None or any(measured.spread is not None for measured in base.protocols.values()):
        return ""
    who = base_name(study, is_start=True)
    if not any(images_behind(name, 1) for name in base.protocols):
        return ""
    return f"{who} has one seed so far: “chance” is that of the test images alone, and in truth larger."
