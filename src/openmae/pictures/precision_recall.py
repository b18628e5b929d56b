"""Precision over recall: the mean of the classes, and each class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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
    from matplotlib.figure import Figure

SIDE, LEFT, AXIS = 480, 64, 48  # of the plot; of what is left of it and below it, in pixels
LEGEND, LINE = 260, 18
MAX_NAMED = 20  # classes with a colour of their own; all others are grey
MEAN, REST = "#282828", "#c8c8c8"


def precision_recall(
    precision: NDArray[np.float64], objects: NDArray[np.int64], classes: Sequence[str], *, title: str, subtitle: str
) -> "Figure":
    """A curve for each class that occurs, and their mean; of more than 20 classes those with most objects are named.

    Args:
        precision: (K, R) in per cent, at recalls from 0 to 100 %; NaN of a class that does not occur.
        objects: (K,) of each class.
        subtitle: what is said before the remark on what is not named.
    """
    occurring = np.flatnonzero(~np.isnan(precision).any(1))
    order = occurring[np.argsort(-objects[occurring], kind="stable")]
    named, rest = order[:MAX_NAMED], order[MAX_NAMED:]
    remark = f" The {len(named)} classes with the most objects have names, the others are grey." * bool(len(rest))
    width = LEFT + SIDE + 24 + LEGEND + PAD
    lines = headings(title, subtitle + remark, width)
    top = heading_height(lines)
    figure = page(width, top + SIDE + AXIS + PAD)
    draw_heading(figure, lines)
    axes = figure.add_axes(box(figure, LEFT, top, SIDE, SIDE))
    recall = np.linspace(0, 100, precision.shape[1])
    for k in rest:
        axes.plot(recall, precision[k], color=REST, lw=0.7)
    legend = _legend(named, precision)
    for k, colour, style in legend:
        axes.plot(recall, precision[k], color=colour, ls=style, lw=1.2)
    mean = precision[occurring].mean(0) if len(occurring) else np.full(len(recall), np.nan)
    axes.plot(recall, mean, color=MEAN, lw=2.6)
    axes.set(xlim=(0, 100), ylim=(0, 102))
    axes.set_xlabel("recall in per cent", fontproperties=font_properties(9), color=INK)
    axes.set_ylabel("precision in per cent", fontproperties=font_properties(9), color=INK)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e2e2e2", lw=0.6)
    axes.set_axisbelow(True)
    x = LEFT + SIDE + 24
    entries = [("mean of the classes", float(mean.mean()), MEAN, "-", 2.6)] if len(occurring) else []
    entries += [(classes[k], float(precision[k].mean()), colour, style, 1.4) for k, colour, style in legend]
    for number, (name, value, colour, style, weight) in enumerate(entries):
        _draw_entry(figure, x, top + (number + 0.5) * LINE, name, value, colour, style, weight)
    if not entries:
        draw_text(figure, x, top + 0.5 * LINE, "no class occurs", 9, FAINT)
    return figure


def _legend(named: NDArray[np.int64], precision: NDArray[np.float64]) -> list[tuple[int, str, str]]:
    """Class, colour and line style: five colours with four styles each; in order of what is under the curve."""
    styles = ("-", "--", ":", "-.")
    chosen = [(int(k), COLOURS[n % len(COLOURS)], styles[n // len(COLOURS)]) for n, k in enumerate(named)]
    return sorted(chosen, key=lambda entry: -precision[entry[0]].mean())


def _draw_entry(
    figure: "Figure", x: float, y: float, name: str, value: float, colour: str, style: str, weight: float
) -> None:
    from matplotlib.lines import Line2D

    left, middle, across, _ = box(figure, x, y, 26, 0)
    figure.add_artist(Line2D((left, left + across), (middle, middle), color=colour, ls=style, lw=weight))
    draw_text(figure, x + 34, y, fitted(name, LEGEND - 34 - 56, 8.5), 8.5)
    draw_text(figure, x + LEGEND, y, f"{value:.1f} %", 8.5, FAINT, across="right")
