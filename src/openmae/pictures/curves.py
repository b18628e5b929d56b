"""A plot of curves with their spread, and horizontal lines to compare them with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openmae.machine.files import atomic_write, disk_faults

COLOURS = ("#c2452d", "#2d6cc2", "#3c8f4e", "#8e5aa8", "#b8860b")
STYLES = ("--", ":")  # of the horizontal lines
GREY = "#666666"


@dataclass(frozen=True)
class Curve:
    """Points (x, y, spread of y), and y values of horizontal lines (`levels`) by name; either may be empty."""

    label: str
    points: list[tuple[float, float, float]]
    levels: dict[str, float]


def draw_curves(
    path: Path, curves: Sequence[Curve], levels: Sequence[str], *, x_label: str, y_label: str, title: str
) -> None:
    """Write a PNG of curves; each has a colour, which its horizontal lines share, and each level has a line style.

    Args:
        levels: names of the levels, for the legend.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        if curve.points:
            x, y, spread = (list(values) for values in zip(*curve.points, strict=True))
            axes.errorbar(x, y, yerr=spread, fmt="o-", ms=4, color=colour, label=curve.label)
        for name, style in zip(levels, STYLES, strict=True):
            if name in curve.levels:
                axes.axhline(curve.levels[name], ls=style, lw=1, color=colour)
    for name, style in zip(levels, STYLES, strict=True):
        axes.plot([], [], ls=style, lw=1, color=GREY, label=name)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    with disk_faults(path), atomic_write(path) as partial:
        figure.savefig(partial)
