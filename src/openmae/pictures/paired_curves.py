"""Curves of ours, on the left axis, beside the paper's points on the right one, which has the same scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmae.machine.files import atomic_write, disk_faults
from openmae.pictures.comparison import BAND, LINE, OURS, PAPER, bar_style, ours_style, paper_style, place_legend
from openmae.pictures.curves import COLOURS
from openmae.pictures.text import (
    FAINT,
    INK,
    PAD,
    box,
    draw_heading,
    draw_text,
    fitted,
    font_properties,
    heading_height,
    headings,
    page,
)

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In pixels: a panel, what its axes take on both sides, its title, the legend, and the axis below.
PANEL, HEIGHT, LEFT, RIGHT, TITLE, LEGEND, AXIS = 350, 280, 54, 54, 44, 24, 62
ALONE = 640  # a single panel
CURVES = (COLOURS[0], COLOURS[2], COLOURS[3])  # of several; a single one has the colours of `comparison`


@dataclass(frozen=True, kw_only=True)
class PairedPoint:
    """A point of a curve: ours with its spread over seeds, and the paper's; None where there is none."""

    x: float
    ours: float
    spread: float | None = None
    paper: float | None = None


@dataclass(frozen=True)
class PairedCurve:
    """A curve's name, empty where it is the only one, and its points in the order of the axis."""

    label: str
    points: tuple[PairedPoint, ...]


@dataclass(frozen=True, kw_only=True)
class CurvePanel:
    """Curves of one unit.

    Attributes:
        title, subtitle: above it.
        unit: of both axes.
        shift: what the right axis says more than the left one at the same height; None: it has none.
        band: from where to where values differ from the one they are compared with by chance alone; None: not known.
    """

    title: str
    subtitle: str
    unit: str
    curves: tuple[PairedCurve, ...]
    shift: float | None = None
    band: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class XAxis:
    """What all panels have below them: ticks with their texts, of one line or two."""

    label: str
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False


def draw_paired_curves(
    path: Path, panels: Sequence[CurvePanel], x_axis: XAxis, *, title: str, subtitle: str, chance: str
) -> None:
    """Write the picture as a PNG; see `paired_curves`."""
    figure = paired_curves(panels, x_axis, title=title, subtitle=subtitle, chance=chance)
    with disk_faults(path), atomic_write(path) as partial:
        figure.savefig(partial)


def paired_curves(panels: Sequence[CurvePanel], x_axis: XAxis, *, title: str, subtitle: str, chance: str) -> "Figure":
    """Panels side by side: ours filled and joined; the paper's open, and joined where it gives every point.

    Args:
        chance: what the grey bands are, for the legend.
    """
    panel_width = PANEL if len(panels) > 1 else ALONE
    width = 2 * PAD + len(panels) * (LEFT + panel_width + RIGHT)
    lines = headings(title, subtitle, width)
    num_lines = 1 if len(panels[0].curves) == 1 else 3
    top = heading_height(lines) - 4 + num_lines * LEGEND + TITLE
    figure = page(width, top + HEIGHT + AXIS)
    draw_heading(figure, lines)
    _legend(figure, heading_height(lines) - 12, panels, chance, num_lines)
    for number, panel in enumerate(panels):
        left = PAD + LEFT + number * (LEFT + panel_width + RIGHT)
        draw_text(figure, left, top - TITLE + 12, panel.title, 10.5)
        draw_text(figure, left, top - TITLE + 30, fitted(panel.subtitle, panel_width, 8.5), 8.5, FAINT)
        _panel(figure.add_axes(box(figure, left, top, panel_width, HEIGHT)), panel, x_axis)
    return figure


def _panel(axes: "Axes", panel: CurvePanel, x_axis: XAxis) -> None:
    low, high = _limits(panel)
    if x_axis.is_log:
        axes.set_xscale("log")
    positions = [x for x, _ in x_axis.ticks]
    axes.set_xticks(positions, [text for _, text in x_axis.ticks], fontproperties=font_properties(8))
    axes.set_xticks([], minor=True)
    axes.set(xlim=_ends(positions, x_axis.is_log), ylim=(low, high))
    if panel.band is not None:
        axes.axhspan(*panel.band, color=BAND, lw=0, zorder=0)
    for curve, (ours, paper) in zip(panel.curves, _colours(panel.curves), strict=True):
        if panel.shift is not None:
            given = [(point.x, point.paper - panel.shift) for point in curve.points if point.paper is not None]
            axes.plot([x for x, _ in given], [y for _, y in given], **_paper_line(curve, paper))
        x, y = [point.x for point in curve.points], [point.ours for point in curve.points]
        axes.plot(x, y, **_our_line(ours))
        bars = [(point.x, point.ours, point.spread) for point in curve.points if point.spread is not None]
        if bars:
            axes.errorbar([x for x, *_ in bars], [y for _, y, _ in bars], yerr=[s for *_, s in bars], **bar_style(ours))
    axes.grid(color="#d8d8d8", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_color("#c4c4c4")
    axes.tick_params(axis="y", labelsize=8, color=LINE)
    axes.set_xlabel(x_axis.label, fontproperties=font_properties(9), color=INK)
    is_alone = len(panel.curves) == 1
    axes.set_ylabel(f"ours, {panel.unit}", fontproperties=font_properties(9), color=OURS if is_alone else INK)
    if panel.shift is not None:
        ink = PAPER if is_alone else INK
        right = axes.twinx()  # nothing is drawn in it: it names the heights
        right.set_ylim(low + panel.shift, high + panel.shift)
        right.spines[:].set_color("#c4c4c4")
        right.tick_params(axis="y", labelsize=8, color=LINE, labelcolor=ink)
        right.set_ylabel(f"the paper, {panel.unit}", fontproperties=font_properties(9), color=ink)


def _our_line(colour: str) -> dict[str, Any]:
    return ours_style(colour) | {"ls": "-", "lw": 1.6}


def _paper_line(curve: PairedCurve, colour: str) -> dict[str, Any]:
    """Joined where the paper gives every point: a line between a few would claim what lies between."""
    is_joined = len(curve.points) > 1 and all(point.paper is not None for point in curve.points)
    return paper_style(colour) | ({"ls": "--", "lw": 1.2, "color": colour} if is_joined else {})


def _colours(curves: Sequence[PairedCurve]) -> list[tuple[str, str]]:
    """Of each curve: of ours and of the paper's."""
    return [(OURS, PAPER)] if len(curves) == 1 else [(colour, colour) for colour in CURVES[: len(curves)]]


def _limits(panel: CurvePanel) -> tuple[float, float]:
    """The ends of the left axis: ours, the band, and the paper's points as far as the right axis moves them."""
    values = [*(panel.band or ())]
    for point in (point for curve in panel.curves for point in curve.points):
        spread = point.spread or 0.0
        values += [point.ours - spread, point.ours + spread]
        if point.paper is not None and panel.shift is not None:
            values.append(point.paper - panel.shift)
    low, high = min(values), max(values)
    margin = 0.07 * max(high - low, 1.0)
    return low - margin, high + margin


def _ends(positions: Sequence[float], is_log: bool) -> tuple[float, float]:
    low, high = min(positions), max(positions)
    if is_log:
        margin = max(1.2, (high / low) ** 0.1)
        return low / margin, high * margin
    margin = 0.06 * (high - low) or 0.05 * max(1.0, math.fabs(high))
    return low - margin, high + margin


def _legend(figure: "Figure", top: float, panels: Sequence[CurvePanel], chance: str, num_lines: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    curves = panels[0].curves
    has_paper = any(panel.shift is not None for panel in panels)
    points = [point for panel in panels for curve in panel.curves for point in curve.points]
    bar = " (bar: standard deviation over seeds)" if any(point.spread is not None for point in points) else ""
    handles: list[Any] = []
    for curve, (ours, paper) in zip(curves, _colours(curves), strict=True):
        name = f", {curve.label}" if curve.label else ""
        handles.append(Line2D([], [], **_our_line(ours), label=f"ours{name}{bar}"))
        handles += [Line2D([], [], **_paper_line(curve, paper), label=f"the paper{name}")] if has_paper else []
        bar = ""
    if chance and any(panel.band is not None for panel in panels):
        handles.append(Patch(color=BAND, label=chance))
    place_legend(figure, handles, top, math.ceil(len(handles) / num_lines))
