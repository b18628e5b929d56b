"""The picture of an experiment: the paper's figures beside ours, from what is finished so far."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from openmae.experiments.results.differences import base_name, difference_of, images_behind
from openmae.experiments.results.statistics import noise_of
from openmae.experiments.studies.study import PROTOCOLS, UNITS, Measured, Row, RowResult, Section, Study
from openmae.pictures.comparison import Column, Group, Mark, draw_comparison
from openmae.pictures.paired_curves import CurvePanel, PairedCurve, PairedPoint, XAxis, draw_paired_curves

Rows = Mapping[str, RowResult]
REST = 10  # times what drawing took, until it is drawn again: a trial of a tiny experiment takes seconds


class Picture:
    """OUT/NAME.png, kept beside results.md.

    Args:
        num_test: images that the accuracies are of.
    """

    def __init__(self, out: Path, study: Study, num_test: int):
        self._out, self._study, self._num_test = out, study, num_test
        self._rests_until = 0.0

    def draw(self, rows: Sequence[RowResult], *, is_last: bool = False) -> str | None:
        """Draw what is finished, unless that was done just now and this is not the last time.

        Returns:
            The name of the file; None where there is none yet.
        """
        start = time.monotonic()
        if is_last or start >= self._rests_until:
            draw_picture(self._out, self._study, rows, self._num_test)
            end = time.monotonic()
            self._rests_until = end + REST * (end - start)
        name = f"{self._study.name}.png"
        return name if (self._out / name).exists() else None


def draw_picture(out: Path, study: Study, rows: Sequence[RowResult], num_test: int) -> bool:
    """Write OUT/NAME.png: of a table each row's difference to the default row, of a figure curves.

    Args:
        num_test: images that the accuracies are of.

    Returns:
        Whether enough is finished: the row that all are compared with and, of a table, another; else it writes nothing.
    """
    finished = {row.row.name: row for row in rows if any(_is_finite(found) for found in row.protocols.values())}
    base = finished.get(study.baseline)
    if base is None:
        return False
    names = [name for name in study.protocols if _has(base, name)]
    texts = {
        "title": study.title,
        "subtitle": _subtitle(study, len(finished), num_test),
        "chance": f"within chance of {base_name(study)} (95 %{_of_what(base)})",
    }
    path = out / f"{study.name}.png"
    if study.axis:
        panels = [_panel(study, name, finished, base.protocols[name], num_test) for name in names]
        draw_paired_curves(path, panels, _x_axis(study, finished), **texts)
        return True
    groups = [group for section in study.sections if (group := _group(study, section, names, finished, base))]
    if groups:
        draw_comparison(path, [_column(study, name, finished, base, num_test) for name in names], groups, **texts)
    return bool(groups)


def _is_finite(measured: Measured) -> bool:
    return all(math.isfinite(value) for value in measured.values)


def _has(row: RowResult, name: str) -> bool:
    return name in row.protocols and _is_finite(row.protocols[name])


def _of_what(base: RowResult) -> str:
    has_spread = any(measured.spread is not None for measured in base.protocols.values())
    return "" if has_spread else "; test images alone: it has one seed"


def _subtitle(study: Study, num_finished: int, num_test: int) -> str:
    if study.axis:
        what = f"Both axes of a panel have the same scale, and meet at {base_name(study)}"
    else:
        what = f"How far each row lies from {base_name(study)}, in the paper and here"
    parts = [what]
    if num_test and any(images_behind(name, num_test) for name in study.protocols):
        what = "top-1 " if {"miou", "box_ap"} & set(study.protocols) else ""
        parts.append(f"{what}measured on {num_test:,} images")
    if num_finished < len(study.rows):
        parts.append(f"{num_finished} of {len(study.rows)} rows so far")
    return "; ".join(parts) + "."


def _unit(name: str) -> str:
    """The unit of a difference."""
    return "points" if UNITS[name].endswith("%") else UNITS[name]


def _values(measured: Measured) -> str:
    spread = "" if measured.spread is None else f" ± {measured.spread:.1f}"
    ours = f"ours {measured.mean:.1f}{spread}"
    return ours if measured.paper is None else f"paper {measured.paper:.1f}, {ours}"


def _band(base: Measured, name: str, rows: Rows, baseline: str, num_test: int) -> float | None:
    """How far a row may lie from the base by chance, if it has as few seeds as the fewest that any row has."""
    counts = [len(row.protocols[name].values) for row in rows.values() if _has(row, name) and row.row.name != baseline]
    seeds = min(counts, default=1), len(base.values)
    return noise_of(base, images_behind(name, num_test), seeds=seeds).threshold


def _column(study: Study, name: str, rows: Rows, base: RowResult, num_test: int) -> Column:
    measured = base.protocols[name]
    title = f"{PROTOCOLS[name]} ({UNITS[name]})"
    subtitle = f"{base_name(study).removeprefix('the ')}: {_values(measured)}"
    noise = _band(measured, name, rows, base.row.name, num_test)
    band = None if noise is None else (-noise, noise)
    return Column(title=title, subtitle=subtitle, x_label=f"difference to {base_name(study)}, {_unit(name)}", band=band)


def _group(study: Study, section: Section, names: Sequence[str], rows: Rows, base: RowResult) -> Group | None:
    """A section's finished rows; None where there are none to compare."""
    shown = [row for row in section.rows if row.name in rows]
    if not any(row.name != study.baseline for row in shown):
        return None
    return Group(
        title=section.title,
        rows=tuple((row.label, tuple(_mark(name, rows[row.name], base) for name in names)) for row in shown),
    )


def _mark(name: str, row: RowResult, base: RowResult) -> Mark:
    if not _has(row, name):
        return Mark()
    measured, compared = row.protocols[name], base.protocols[name]
    found = difference_of("", name, measured, compared, 0)
    return Mark(ours=found.ours, spread=measured.spread, paper=found.paper)


def _panel(study: Study, name: str, rows: Rows, base: Measured, num_test: int) -> CurvePanel:
    curves = []
    for curve in dict.fromkeys(row.curve for row in study.rows):
        own = [rows[row.name] for row in study.rows if row.curve == curve and row.name in rows]
        points = [_point(row, name) for row in own if row.row.position is not None and _has(row, name)]
        curves.append(PairedCurve(curve, tuple(sorted(points, key=lambda point: point.x))))
    noise = _band(base, name, rows, study.baseline, num_test)
    return CurvePanel(
        title=PROTOCOLS[name],
        subtitle=f"{base_name(study).removeprefix('the ')}: {_values(base)}",
        unit=UNITS[name],
        curves=tuple(curve for curve in curves if curve.points),
        shift=None if base.paper is None else base.paper - base.mean,
        band=None if noise is None else (base.mean - noise, base.mean + noise),
    )


def _point(row: RowResult, name: str) -> PairedPoint:
    measured = row.protocols[name]
    assert row.row.position is not None
    return PairedPoint(x=row.row.position, ours=measured.mean, spread=measured.spread, paper=measured.paper)


def _x_axis(study: Study, rows: Rows) -> XAxis:
    """A tick for every position, with the paper's number in brackets below ours where they differ."""
    texts = {row.position: _tick(row) for row in study.rows if row.name in rows and row.position is not None}
    label, units = study.axis, {paper.rpartition(" ")[2] for _, paper in texts.values()}
    if any(paper for _, paper in texts.values()):
        unit = f" {units.pop()}" if len(units) == 1 and len(texts) > 1 else ""
        label = f"{label} (in brackets: the paper's{unit})"
        texts = {x: (ours, f"\n({paper.removesuffix(unit)})") for x, (ours, paper) in texts.items()}
    ticks = tuple(sorted((x, ours + paper) for x, (ours, paper) in texts.items()))
    return XAxis(label=label, ticks=ticks, is_log=study.is_log_axis)


def _tick(row: Row) -> tuple[str, str]:
    """Our number, or words where these say more, and the paper's; empty where that is the same."""
    found = re.fullmatch(r"(.*) \(paper: (.*)\).*", row.label.removeprefix(f"{row.curve}, "))
    if found is None:
        return f"{row.position:g}", ""
    number = re.fullmatch(r"([\d,.]+) \w+", found[1])
    return number[1] if number else found[1], found[2]
