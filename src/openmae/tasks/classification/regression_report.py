"""The report of predicted numbers: tables of the columns and of the images, a scatter plot, the images furthest off."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from openmae.config import Preprocessing
from openmae.data.sources.open import Source
from openmae.inference.metrics import Predictions, check, losses
from openmae.inference.regression import determination
from openmae.pictures.captioned import IMAGE_HEIGHT, CaptionedImage, captioned_grid
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
    text_width,
)
from openmae.tasks.classification.classification_report import save_picture, write_csv

MAX_WRONG = 24
MAX_COLUMNS = 12  # that are drawn
PANEL, LEFT, BELOW = 300, 56, 70  # of a scatter plot: its side, and the room for its scales, in pixels
POINT = "#1f5fa8"


def write_regression_report(
    run: Path, predictions: Predictions, source: Source, preprocessing: Preprocessing, title: str
) -> None:
    """Write RUN/columns.csv, RUN/predictions.csv, RUN/pictures/scatter.png and most-wrong.png.

    Numbers are in their own units; an R2 that is not defined is empty.

    Raises:
        RequestError: no image could be read.
        Fault: a prediction is not finite, or a file cannot be written.
    """
    check(predictions)
    write_csv(run / "columns.csv", _column_rows(predictions))
    write_csv(run / "predictions.csv", _rows(predictions, source))
    save_picture(run / "pictures" / "scatter.png", scatter_picture(predictions, title))
    save_picture(run / "pictures" / "most-wrong.png", furthest_picture(predictions, source, preprocessing, title))


def _columns(predictions: Predictions) -> tuple[str, ...]:
    assert predictions.scale is not None
    return predictions.scale.columns


def _column_rows(predictions: Predictions) -> Iterable[list[object]]:
    yield ["column", "images", "r2", "mae", "rmse", "mean_error", "mean", "deviation"]
    targets, found = predictions.targets.numpy(), predictions.numbers
    r2, errors = determination(targets, found), found - targets
    for k, column in enumerate(_columns(predictions)):
        own = (np.abs(errors[:, k]).mean(), np.sqrt(np.square(errors[:, k]).mean()), errors[:, k].mean())
        spread = (targets[:, k].mean(), targets[:, k].std())
        r2_text = "" if np.isnan(r2[k]) else f"{r2[k]:.6g}"
        yield [column, len(targets), r2_text, *(f"{value:.6g}" for value in (*own, *spread))]


def _rows(predictions: Predictions, source: Source) -> Iterable[list[object]]:
    """Each image's numbers and what was predicted; `loss` is the squared error on standardised targets.

    A heading that stands before already, as of a number called `name`, is followed by its place.
    """
    columns = _columns(predictions)
    headings = ["name", *columns, *(f"predicted_{column}" for column in columns), "loss", "unreadable"]
    yield [f"{text}_{i}" if text in headings[:i] else text for i, text in enumerate(headings)]
    rows = zip(predictions.indices, predictions.targets.tolist(), predictions.numbers, losses(predictions), strict=True)
    for index, true, found, loss in rows:
        yield [source.name(int(index)), *map(repr, true), *(f"{value:.9g}" for value in found), f"{loss:.6g}", ""]
    for name, reason in predictions.bad.items():
        yield [name, *[""] * (2 * len(columns) + 1), reason]


def scatter_picture(predictions: Predictions, title: str) -> Figure:
    """Each image's number against what was predicted, a plot for each column; on the line they are equal."""
    columns, targets, found = _columns(predictions), predictions.targets.numpy(), predictions.numbers
    r2 = determination(targets, found)
    if is_part := len(columns) > MAX_COLUMNS:  # the worst are those to look at
        shown = np.sort(np.argsort(np.nan_to_num(r2, nan=np.inf), kind="stable")[:MAX_COLUMNS])
    else:
        shown = np.arange(len(columns))
    across = min(4, len(shown))
    wide, high = LEFT + PANEL + PAD, PANEL + BELOW
    width = max(600, PAD + across * wide)
    part = f" of the {len(shown)} columns with the lowest R2, of {len(columns)}" if is_part else ""
    unreadable = f", {len(predictions.bad)} more cannot be read" if predictions.bad else ""
    below = f"{len(targets)} images{unreadable}. On the line what was predicted is what is true."
    lines = headings(f"Predicted against true{part}: {title}", below, width)
    top = heading_height(lines)
    figure = page(width, top + -(-len(shown) // across) * high)
    draw_heading(figure, lines)
    for place, k in enumerate(shown.tolist()):
        row, column = divmod(place, across)
        x, y = PAD + LEFT + column * wide, top + row * high
        axes = figure.add_axes(box(figure, x, y + 18, PANEL, PANEL))
        low, most = min(targets[:, k].min(), found[:, k].min()), max(targets[:, k].max(), found[:, k].max())
        room = 0.04 * (most - low) or max(abs(low), 1.0) * 0.04
        limits = (low - room, most + room)
        axes.plot(limits, limits, lw=1, color="#999999", zorder=1)
        axes.scatter(targets[:, k], found[:, k], s=9, color=POINT, alpha=_opacity(len(targets)), lw=0, zorder=2)
        axes.set(xlim=limits, ylim=limits)
        axes.tick_params(labelsize=7, length=2, colors=FAINT)
        axes.ticklabel_format(useOffset=False)
        r2_text = f"R2 {r2[k]:.3f}" if not np.isnan(r2[k]) else "R2 not defined"
        figures = f": {r2_text}, mae {np.abs(found[:, k] - targets[:, k]).mean():.4g}"
        name = fitted(columns[k], PANEL - text_width(figures, 9), 9)
        draw_text(figure, x, y + 8, name + figures, 9, INK)
        draw_text(figure, x + PANEL / 2, y + 18 + PANEL + 28, "true", 8, FAINT, "center")
        draw_text(figure, x - LEFT + 8, y + 18 + PANEL / 2, "predicted", 8, FAINT, "center", rotation=90)
    return figure


def _opacity(count: int) -> float:
    """Of a point, so that many of them show where they are dense."""
    return max(0.05, min(0.8, 400 / max(count, 1)))


def furthest_picture(predictions: Predictions, source: Source, preprocessing: Preprocessing, title: str) -> Figure:
    """Up to 24 images, those furthest off first; of several columns the one that is furthest off is named."""
    columns, loss = _columns(predictions), losses(predictions)
    rows = np.argsort(-loss, kind="stable")[:MAX_WRONG].tolist()
    scale, targets, found = predictions.scale, predictions.targets.numpy(), predictions.numbers
    assert scale is not None
    relative = np.abs(found - targets) / np.array(scale.std)
    tiles = []
    for row in rows:
        k = int(relative[row].argmax())
        name = f"{columns[k]} " if len(columns) > 1 else ""
        true = fitted(f"{name}true {targets[row, k]:.6g}", IMAGE_HEIGHT, 9)
        said = fitted(f"said {found[row, k]:.6g} ({found[row, k] - targets[row, k]:+.4g})", IMAGE_HEIGHT, 9)
        tiles.append(CaptionedImage(int(predictions.indices[row]), true, said, True))
    unreadable = f", {len(predictions.bad)} more cannot be read" if predictions.bad else ""
    several = ", and of it the number that is furthest off" if len(columns) > 1 else ""
    below = f"Of {len(loss)} images{unreadable}, the furthest off first{several}, as a share of the numbers' deviation."
    return captioned_grid(f"The {len(rows)} images furthest off: {title}", below, tiles, source, preprocessing)
