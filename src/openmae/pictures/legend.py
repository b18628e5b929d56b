"""A legend of classes below a sheet of images: the colour and name of each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openmae.pictures.text import FAINT, PAD, box, draw_text, fitted

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure

MAX_IN_LEGEND, COLUMNS, LINE = 20, 4, 20
REMARK = 70  # pixels for what stands behind a name


def legend_height(num_classes: int) -> int:
    """The height of a legend of so many classes, of which some may not be drawn; in pixels."""
    shown = min(num_classes, MAX_IN_LEGEND)
    return (-(-shown // COLUMNS) + (num_classes > shown)) * LINE


def draw_legend(
    figure: "Figure",
    top: float,
    width: int,
    classes: Sequence[str],
    colours: NDArray[np.uint8],
    entries: Sequence[tuple[int, str]],
    more: str,
) -> None:
    """A line of four classes after the other.

    Args:
        entries: the class and what stands behind its name; of more than 20 the first are drawn.
        more: what is said of those left out, behind "and 3 more classes".
    """
    from matplotlib.patches import Rectangle

    room, shown = (width - 2 * PAD) / COLUMNS, entries[:MAX_IN_LEGEND]
    for number, (k, remark) in enumerate(shown):
        line, column = divmod(number, COLUMNS)
        x, y = PAD + column * room, top + (line + 0.5) * LINE
        left, low, across, down = box(figure, x, y - 6, 12, 12)
        figure.add_artist(Rectangle((left, low), across, down, color=tuple(colours[k] / 255), lw=0))
        draw_text(figure, x + 18, y, fitted(classes[k], room - REMARK, 9) + remark, 9)
    if num_more := len(entries) - len(shown):
        y = top + (-(-len(shown) // COLUMNS) + 0.5) * LINE
        draw_text(figure, PAD, y, f"and {num_more} more classes {more}", 9, FAINT)
