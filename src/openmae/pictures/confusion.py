"""A confusion matrix as a picture: what each true class was taken for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openmae.pictures.text import (
    FAINT,
    INK,
    PAD,
    box,
    draw_heading,
    draw_text,
    fitted,
    heading_height,
    headings,
    page,
    per_cent,
    short_count,
    text_width,
)

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.colors import Colormap, PowerNorm
    from matplotlib.figure import Figure

MAX_WITH_NUMBERS = 30  # classes, up to which cells show numbers
MAX_NAME_WIDTH = 190  # of a class beside the matrix, in pixels
ABSENT = "#e4e4e4"  # colour of the row of a class without images
OTHERS = "all other classes"


def draw_confusion(
    counts: NDArray[np.int64],
    totals: NDArray[np.int64],
    classes: Sequence[str],
    *,
    title: str,
    subtitle: str,
    unit: str = "images",
) -> "Figure":
    """The matrix with a row for each true class, coloured and labelled by its share of the row.

    Args:
        counts: (classes, classes) by true and predicted class, or with one more column, of all other predictions.
        totals: (classes,) what the shares are of; a class whose total is 0 is grey.
        classes: their names.
        subtitle: what is said before the sentence that explains the cells.
        unit: what is counted.
    """
    assert counts.shape[1] - len(classes) in (0, 1) and len(counts) == len(totals) == len(classes), counts.shape
    with np.errstate(invalid="ignore"):
        shares = counts / totals[:, None]  # of a class without images: NaN, drawn grey
    has_numbers = len(classes) <= MAX_WITH_NUMBERS
    cell, size = (max(64, 140 // len(classes)), 10) if len(classes) <= 12 else (50, 9) if has_numbers else (16, 7)
    columns = [fitted(name, MAX_NAME_WIDTH, size) for name in classes]
    rows = [f"{name} ({short_count(total)})" for name, total in zip(columns, totals.tolist(), strict=True)]
    columns += [OTHERS] * (counts.shape[1] - len(classes))
    is_upright = any(text_width(name, size) > cell - 6 for name in columns)
    room = 8 + (max(text_width(name, size) for name in columns) if is_upright else 16)
    left, matrix = PAD + 32 + max(text_width(name, size) for name in rows), (counts.shape[1] * cell, len(rows) * cell)
    width = max(600, left + matrix[0] + PAD + (0 if has_numbers else 70))
    explanation = (
        f"{subtitle} Each row shows what the {unit} of one true class were taken for"
        + (f": per cent of the row, below it {unit}." if has_numbers else ", as a share of the row.")
        + f" Grey rows are classes without {unit}." * bool((totals == 0).any())
    )
    lines = headings(title, explanation, width)
    top = heading_height(lines)
    figure = page(width, top + matrix[1] + room + 24 + PAD)
    draw_heading(figure, lines)
    _draw_shares(figure, shares, left, top, matrix)
    for row, name in enumerate(rows):
        draw_text(figure, left - 8, top + (row + 0.5) * cell, name, size, across="right")
    for column, name in enumerate(columns):
        x, turn = left + (column + 0.5) * cell, 90 if is_upright else 0
        draw_text(figure, x, top + matrix[1] + 8, name, size, across="center", down="top", rotation=turn)
    draw_text(figure, PAD + 4, top + matrix[1] / 2, f"true class ({unit})", 10, FAINT, "center", rotation=90)
    draw_text(figure, left + matrix[0] / 2, top + matrix[1] + room + 18, "predicted class", 10, FAINT, "center")
    if has_numbers:
        _draw_numbers(figure, counts, shares, left, top, cell, size)
    else:
        _draw_scale(figure, left + matrix[0] + PAD, top, min(300, matrix[1]))
    return figure


def _draw_shares(
    figure: "Figure", shares: NDArray[np.float64], left: float, top: float, matrix: tuple[int, int]
) -> None:
    axes = figure.add_axes(box(figure, left, top, *matrix))
    colours, norm = _colours()
    axes.imshow(shares, cmap=colours, norm=norm, aspect="auto", interpolation="nearest", origin="upper")
    axes.set_xticks(np.arange(1, shares.shape[1]) - 0.5, [])
    axes.set_yticks(np.arange(1, shares.shape[0]) - 0.5, [])
    axes.tick_params(length=0)
    axes.grid(color="#dddddd", lw=0.5)


def _draw_numbers(
    figure: "Figure",
    counts: NDArray[np.int64],
    shares: NDArray[np.float64],
    left: float,
    top: float,
    cell: int,
    size: float,
) -> None:
    for row, column in np.argwhere(counts).tolist():
        x, y = left + (column + 0.5) * cell, top + (row + 0.5) * cell
        colour = "white" if shares[row, column] > 0.35 else INK
        draw_text(figure, x, y - cell * 0.15, per_cent(shares[row, column]), size, colour, "center")
        draw_text(figure, x, y + cell * 0.2, short_count(int(counts[row, column])), size - 2, colour, "center")


def _draw_scale(figure: "Figure", left: float, top: float, length: int) -> None:
    colours, norm = _colours()
    bar = figure.add_axes(box(figure, left, top, 12, length), xticks=[], yticks=[])
    bar.imshow(np.linspace(1, 0, length)[:, None] ** 2, cmap=colours, norm=norm, aspect="auto", origin="upper")
    for share in (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1):
        draw_text(figure, left + 18, top + length * (1 - share**0.5), f"{100 * share:.0f} %", 7)


def _colours() -> "tuple[Colormap, PowerNorm]":
    import matplotlib
    from matplotlib.colors import PowerNorm

    # The root makes a few per cent visible.
    return matplotlib.colormaps["Blues"].with_extremes(bad=ABSENT), PowerNorm(0.5, 0, 1)
