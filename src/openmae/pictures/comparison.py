"""Ours beside the paper's, row by row: how far each row lies from the one that all are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmae.machine.files import atomic_write, disk_faults
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
    text_width,
)

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, PAPER = COLOURS[:2]
BAND, LINE, JOINT = "#e4e4e4", "#8c8c8c", "#b5b5b5"
# In pixels: the height of a row, of a group's title, of a panel's title, of the legend, of the axis below;
# the width of a panel, of a number beside it, and of the longest label.
ROW, GROUP, TITLE, LEGEND, AXIS = 21, 27, 44, 26, 42
PANEL, NUMBER, GAP, MAX_LABEL = 250, 46, 26, 330
LABEL_SIZE, NUMBER_SIZE = 9.0, 8.5


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A row in a panel: its distance from the row that all are compared with; None where there is none.

    Attributes:
        spread: of ours, over seeds.
    """

    ours: float | None = None
    spread: float | None = None
    paper: float | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """Panels one below the other, which share their axis.

    Attributes:
        title, subtitle: above them.
        x_label: below them.
        reference: where the row lies that all are compared with.
        band: how far from there a distance may be chance; None: nothing is known of it.
        is_log: distances are ratios.
    """

    title: str
    subtitle: str
    x_label: str
    reference: float = 0.0
    band: tuple[float, float] | None = None
    is_log: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows under a title: each with its label, and a mark for every column."""

    title: str
    rows: tuple[tuple[str, tuple[Mark, ...]], ...]


def draw_comparison(
    path: Path, columns: Sequence[Column], groups: Sequence[Group], *, title: str, subtitle: str, chance: str
) -> None:
    """Write the picture as a PNG; see `comparison`."""
    figure = comparison(columns, groups, title=title, subtitle=subtitle, chance=chance)
    with disk_faults(path), atomic_write(path) as partial:
        figure.savefig(partial)


def comparison(
    columns: Sequence[Column], groups: Sequence[Group], *, title: str, subtitle: str, chance: str
) -> "Figure":
    """Groups one below the other, a panel for each column: the paper's marks are open, ours filled.

    Args:
        chance: what the grey bands are, for the legend.
    """
    labels = [label for group in groups for label, _ in group.rows]
    label_width = min(MAX_LABEL, max(text_width(label, LABEL_SIZE) for label in labels) + 2)
    has_paper = [_has_paper(groups, number) for number in range(len(columns))]
    lefts = [PAD + label_width + 12]
    for shown in has_paper:
        lefts.append(lefts[-1] + PANEL + (2 if shown else 1) * NUMBER + GAP)
    width = lefts.pop() - GAP + PAD
    lines = headings(title, subtitle, width)
    top = heading_height(lines) - 8 + LEGEND + TITLE
    starts, ys = _places(groups)
    height = top + sum(GROUP + ROW * len(group.rows) for group in groups) + AXIS
    figure = page(width, height)
    draw_heading(figure, lines)
    _legend(
        figure, heading_height(lines) - 12, any(has_paper), _has_spread(groups), chance if _has_band(columns) else ""
    )
    for number, (column, left) in enumerate(zip(columns, lefts, strict=True)):
        _titles(figure, column, left, top - TITLE, has_paper[number])
        limits = _limits(column, [marks[number] for group in groups for _, marks in group.rows])
        marks = [of_row[number] for group in groups for _, of_row in group.rows]
        axes = figure.add_axes(box(figure, left, top, PANEL, height - AXIS - top))
        _panel(axes, column, marks, ys, limits)
        _numbers(figure, column, marks, [top + y for y in ys], left + PANEL, has_paper[number])
        for y in starts[1:]:
            axes.axhline(y, color="white", lw=5, zorder=0.5)
    for group, start in zip(groups, starts, strict=True):
        draw_text(figure, PAD, top + start + GROUP / 2 + 2, fitted(group.title, lefts[0] - PAD, 10), 10)
    for label, y in zip(labels, ys, strict=True):
        text = fitted(label, label_width, LABEL_SIZE)
        draw_text(figure, lefts[0] - 12, top + y, text, LABEL_SIZE, across="right")
    return figure


def _places(groups: Sequence[Group]) -> tuple[list[float], list[float]]:
    """Where groups start, and the middles of all rows: pixels below the first group's upper edge."""
    starts, ys, y = [], [], 0.0
    for group in groups:
        starts.append(y)
        ys += [y + GROUP + ROW * (row + 0.5) for row in range(len(group.rows))]
        y += GROUP + ROW * len(group.rows)
    return starts, ys


def _has_paper(groups: Sequence[Group], number: int) -> bool:
    return any(marks[number].paper is not None for group in groups for _, marks in group.rows)


def _has_spread(groups: Sequence[Group]) -> bool:
    return any(mark.spread is not None for group in groups for _, marks in group.rows for mark in marks)


def _has_band(columns: Sequence[Column]) -> bool:
    return any(column.band is not None for column in columns)


def _titles(figure: "Figure", column: Column, left: float, top: float, has_paper: bool) -> None:
    draw_text(figure, left, top + 10, column.title, 10.5)
    draw_text(figure, left, top + 28, fitted(column.subtitle, PANEL + NUMBER, 8.5), 8.5, FAINT)
    for place, (name, colour) in enumerate((("paper", PAPER), ("ours", OURS))[not has_paper :]):
        x = left + PANEL + NUMBER * (place + 1)
        draw_text(figure, x, top + TITLE + GROUP / 2 + 4, name, NUMBER_SIZE, colour, across="right")


def _limits(column: Column, marks: Sequence[Mark]) -> tuple[float, float]:
    """The ends of an axis that holds everything, with a margin."""
    values = [column.reference, *(column.band or ())]
    for mark in marks:
        values += [] if mark.paper is None else [mark.paper]
        spread = mark.spread or 0.0
        values += [] if mark.ours is None else [mark.ours - spread, mark.ours + spread]
    if column.is_log:
        values = [value for value in values if value > 0]
        return min(values) / 1.2, max(values) * 1.2
    low, high = min(values), max(values)
    margin = 0.05 * max(high - low, 1.0)
    return low - margin, high + margin


def _panel(
    axes: "Axes", column: Column, marks: Sequence[Mark], ys: Sequence[float], limits: tuple[float, float]
) -> None:
    """A column's marks, each at its height in pixels."""
    if column.is_log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.locator_params(axis="x", nbins=7, steps=[1, 2, 5, 10])
    axes.set(xlim=limits, ylim=(ys[-1] + ROW / 2, 0), yticks=[])
    if column.band is not None:
        axes.axvspan(*column.band, color=BAND, lw=0, zorder=0)
    axes.axvline(column.reference, color=LINE, lw=1, zorder=1)
    both = [(m.paper, m.ours, y) for m, y in zip(marks, ys, strict=True) if m.paper is not None and m.ours is not None]
    axes.hlines([y for *_, y in both], [x for x, *_ in both], [x for _, x, _ in both], color=JOINT, lw=1.5, zorder=2)
    papers = [(mark.paper, y) for mark, y in zip(marks, ys, strict=True) if mark.paper is not None]
    axes.plot([x for x, _ in papers], [y for _, y in papers], **paper_style())
    ours = [(m.ours, y, m.spread) for m, y in zip(marks, ys, strict=True) if m.ours is not None]
    axes.plot([x for x, *_ in ours], [y for _, y, _ in ours], **ours_style())
    bars = [(x, y, spread) for x, y, spread in ours if spread is not None]
    if bars:
        axes.errorbar([x for x, *_ in bars], [y for _, y, _ in bars], xerr=[s for *_, s in bars], **bar_style())
    axes.grid(axis="x", color="#d8d8d8", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_color("#c4c4c4")
    axes.tick_params(axis="x", labelsize=8, color=LINE)
    axes.set_xlabel(column.x_label, fontproperties=font_properties(8.5), color=INK)


def _numbers(
    figure: "Figure", column: Column, marks: Sequence[Mark], ys: Sequence[float], left: float, has_paper: bool
) -> None:
    """The distances of a column's rows, right of it; none beside the row that all are compared with."""
    for mark, y in zip(marks, ys, strict=True):
        shown = ((mark.paper, PAPER), (mark.ours, OURS))[not has_paper :]
        is_base = mark.ours == column.reference and mark.paper in (None, column.reference)
        for place, (value, colour) in enumerate(shown):
            if value is not None and not is_base:
                text = f"{value:.2f}×" if column.is_log else signed(value)
                draw_text(figure, left + NUMBER * (place + 1), y, text, NUMBER_SIZE, colour, across="right")


def signed(value: float, decimals: int = 1) -> str:
    """A difference to one decimal, with its sign where it is not 0."""
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text[1:]


def ours_style(colour: str = OURS) -> dict[str, Any]:
    """How `plot` draws ours: filled, and on top."""
    return {"marker": "o", "ls": "", "ms": 5, "color": colour, "zorder": 4}


def bar_style(colour: str = OURS) -> dict[str, Any]:
    """How `errorbar` draws the spread of ours."""
    return {"fmt": "none", "ecolor": colour, "capsize": 3, "elinewidth": 1.4, "zorder": 4}


def paper_style(colour: str = PAPER) -> dict[str, Any]:
    """How `plot` draws the paper's: open, and wide enough to be seen around ours."""
    return {"marker": "o", "ls": "", "ms": 8, "mfc": "white", "mec": colour, "mew": 1.5, "zorder": 3}


def _legend(figure: "Figure", top: float, has_paper: bool, has_spread: bool, chance: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    spread = " (bar: standard deviation over seeds)" if has_spread else ""
    handles: list[Any] = [Line2D([], [], **paper_style(), label="the paper")] if has_paper else []
    handles += [Line2D([], [], **ours_style(), label=f"ours{spread}")]
    handles += [Patch(color=BAND, label=chance)] if chance else []
    place_legend(figure, handles, top)


def place_legend(figure: "Figure", handles: Sequence[Any], top: float, columns: int | None = None) -> None:
    """A legend, its upper left corner at the left margin; in one line unless it is given columns."""
    left, high, _, _ = box(figure, PAD - 5, top, 0, 0)
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left, high),
        ncols=columns or len(handles),
        frameon=False,
        borderpad=0.2,
        columnspacing=1.6,
        handletextpad=0.5,
        prop=font_properties(9),
    )
