"""A bar for each class: how well it is found, and how much of the data it is."""

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
    text_width,
)

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure

MAX_DRAWN = 200  # classes; of more than these, those with the most pixels are drawn
LINE, HEADER, AXIS = 17, 22, 34  # heights in pixels: of a bar, of the columns' titles, of the axis below
BARS, NUMBER, MAX_NAME_WIDTH = 380, 62, 220  # widths: of the longest bar, of a number, of a name
MEAN = "#8c8c8c"


def class_bars(
    values: NDArray[np.float64],
    shares: NDArray[np.float64],
    classes: Sequence[str],
    *,
    title: str,
    subtitle: str,
    measure: str = "IoU",
    unit: str = "pixels",
) -> "Figure":
    """Bars of the classes' IoU, the highest first, with their mean as a line and each class's share of the pixels.

    Args:
        values: (K,) IoU in per cent; a class with NaN does not occur and is not drawn.
        shares: (K,) per cent of the pixels.
        subtitle: what is said before the remark on what is left out.
        measure, unit: what the values are, and the shares of what, where these are others.
    """
    occurring = np.flatnonzero(~np.isnan(values))
    drawn = np.sort(occurring[np.argsort(-shares[occurring], kind="stable")][:MAX_DRAWN])
    drawn = drawn[np.argsort(-values[drawn], kind="stable")]
    left_out = f" {len(values) - len(occurring)} classes do not occur." * bool(len(occurring) < len(values))
    left_out += f" The {len(drawn)} classes with the most {unit} are drawn." * bool(len(drawn) < len(occurring))
    names = [fitted(classes[k], MAX_NAME_WIDTH, 8.5) for k in drawn]
    left = PAD + max([40, *(text_width(name, 8.5) for name in names)]) + 10
    width = left + BARS + 2 * NUMBER + PAD
    lines = headings(title, subtitle + left_out, width)
    top = heading_height(lines) + HEADER
    figure = page(width, top + max(1, len(drawn)) * LINE + AXIS + PAD)
    draw_heading(figure, lines)
    for text, x in ((measure, left + BARS + NUMBER), (unit, left + BARS + 2 * NUMBER + 8)):
        draw_text(figure, x, top - 10, text, 8.5, FAINT, across="right")
    axes = figure.add_axes(box(figure, left, top, BARS, max(1, len(drawn)) * LINE))
    axes.barh(np.arange(len(drawn)) + 0.5, values[drawn], height=0.72, color=COLOURS[1])
    axes.set(xlim=(0, 100), ylim=(max(1, len(drawn)), 0), yticks=[])
    axes.axvline(float(values[occurring].mean()) if len(occurring) else 0, color=MEAN, lw=1)
    axes.grid(axis="x", color="#d8d8d8", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_color("#c4c4c4")
    axes.tick_params(axis="x", labelsize=8, color=MEAN)
    axes.set_xlabel(f"{measure} in per cent; the line is the mean", fontproperties=font_properties(8.5), color=INK)
    for number, (k, name) in enumerate(zip(drawn, names, strict=True)):
        y = top + (number + 0.5) * LINE
        draw_text(figure, left - 8, y, name, 8.5, across="right")
        draw_text(figure, left + BARS + NUMBER, y, f"{values[k]:.1f} %", 8.5, across="right")
        share = "<0.01 %" if 0 < shares[k] < 0.005 else f"{shares[k]:.2f} %"
        draw_text(figure, left + BARS + 2 * NUMBER + 8, y, share, 8.5, FAINT, across="right")
    return figure
