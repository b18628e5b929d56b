"""The report of predicted numbers: tables of the columns and of the images, a scatter plot, the images furthest off."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from openmae.config import Preprocessing
from openmae.data.sources.open import Source
from openmae.inference.metrics import Predictions, check, losses
from openmae.inference.regression import r2_scores
from openmae.machine.files import write_csv
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
    save_picture,
    text_width,
)

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure

MAX_WRONG = 24
MAX_COLUMNS = 12  # of numbers that get a scatter plot
PANEL, LEFT, BELOW = 300, 56, 70  # of a scatter plot, in pixels: its side, and the space for its axes
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
    save_picture(run / "pictures" / "most-wrong.png", largest_errors_picture(predictions, source, preprocessing, title))


def _column_rows(predictions: Predictions) -> Iterable[list[object]]:
    yield ["column", "images", "r2", "mae", "rmse", "mean_error", "mean", "deviation"]
    targets, predicted = predictions.targets.numpy(), predictions.numbers
    r2, errors = r2_scores(targets, predicted), predicted - targets
    for k, column in enumerate(predictions.columns):
        own = (np.abs(errors[:, k]).mean(), np.sqrt(np.square(errors[:, k]).mean()), errors[:, k].mean())
        spread = (targets[:, k].mean(), targets[:, k].std())
        r2_text = "" if np.isnan(r2[k]) else f"{r2[k]:.6g}"
        yield [column, len(targets), r2_text, *(f"{value:.6g}" for value in (*own, *spread))]


def _rows(predictions: Predictions, source: Source) -> Iterable[list[object]]:
    """A row for each image: its numbers and the predicted ones; `loss` is the squared error on standardised targets.

    A heading that occurs before it, as that of a number called `name`, gets the index of its column appended.
    """
    columns = predictions.columns
    headings = ["name", *columns, *(f"predicted_{column}" for column in columns), "loss", "unreadable"]
    yield [f"{text}_{i}" if text in headings[:i] else text for i, text in enumerate(headings)]
    rows = zip(predictions.indices, predictions.targets.tolist(), predictions.numbers, losses(predictions), strict=True)
    for index, true, predicted, loss in rows:
        yield [source.name(int(index)), *map(repr, true), *(f"{value:.9g}" for value in predicted), f"{loss:.6g}", ""]
    for name, reason in predictions.bad.items():
        yield [name, *[""] * (2 * len(columns) + 1), reason]


def scatter_picture(predictions: Predictions, title: str) -> "Figure":
    """Scatter plots of predicted against true numbers, one for each column; on the line they are equal."""
    columns, targets, predicted = predictions.columns, predictions.targets.numpy(), predictions.numbers
    r2 = r2_scores(targets, predicted)
    if is_part := len(columns) > MAX_COLUMNS:  # those with the lowest R2 are drawn
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
    for panel, k in enumerate(shown.tolist()):
        row, column = divmod(panel, across)
        x, y = PAD + LEFT + column * wide, top + row * high
        axes = figure.add_axes(box(figure, x, y + 18, PANEL, PANEL))
        lowest, highest = (
            min(targets[:, k].min(), predicted[:, k].min()),
            max(targets[:, k].max(), predicted[:, k].max()),
        )
        room = 0.04 * (highest - lowest) or max(abs(lowest), 1.0) * 0.04
        limits = (lowest - room, highest + room)
        axes.plot(limits, limits, lw=1, color="#999999", zorder=1)
        axes.scatter(targets[:, k], predicted[:, k], s=9, color=POINT, alpha=_opacity(len(targets)), lw=0, zorder=2)
        axes.set(xlim=limits, ylim=limits)
        axes.tick_params(labelsize=7, length=2, colors=FAINT)
        axes.ticklabel_format(useOffset=False)
        r2_text = f"R2 {r2[k]:.3f}" if not np.isnan(r2[k]) else "R2 not defined"
        metrics = f": {r2_text}, mae {np.abs(predicted[:, k] - targets[:, k]).mean():.4g}"
        name = fitted(columns[k], PANEL - text_width(metrics, 9), 9)
        draw_text(figure, x, y + 8, name + metrics, 9, INK)
        draw_text(figure, x + PANEL / 2, y + 18 + PANEL + 28, "true", 8, FAINT, "center")
        draw_text(figure, x - LEFT + 8, y + 18 + PANEL / 2, "predicted", 8, FAINT, "center", rotation=90)
    return figure


def _opacity(count: int) -> float:
    """The opacity of a point: low where there are many, so that dense regions can be seen."""
    return max(0.05, min(0.8, 400 / max(count, 1)))


def largest_errors_picture(
    predictions: Predictions, source: Source, preprocessing: Preprocessing, title: str
) -> "Figure":
    """Up to 24 images, the largest errors first; of several columns the one with the largest error is named."""
    columns, loss = predictions.columns, losses(predictions)
    rows = np.argsort(-loss, kind="stable")[:MAX_WRONG].tolist()
    scale, targets, predicted = predictions.scale, predictions.targets.numpy(), predictions.numbers
    assert scale is not None, "predictions of numbers have a scale"
    relative = np.abs(predicted - targets) / np.array(scale.std)
    tiles = []
    for row in rows:
        k = int(relative[row].argmax())
        name = f"{columns[k]} " if len(columns) > 1 else ""
        true = fitted(f"{name}true {targets[row, k]:.6g}", IMAGE_HEIGHT, 9)
        prediction = fitted(
            f"predicted {predicted[row, k]:.6g} ({predicted[row, k] - targets[row, k]:+.4g})", IMAGE_HEIGHT, 9
        )
        tiles.append(CaptionedImage(int(predictions.indices[row]), true, prediction, True))
    unreadable = f", {len(predictions.bad)} more cannot be read" if predictions.bad else ""
    several = ", and of it the number that is furthest off" if len(columns) > 1 else ""
    below = f"Of {len(loss)} images{unreadable}, the furthest off first{several}, as a share of the numbers' deviation."
    return captioned_grid(f"The {len(rows)} images furthest off: {title}", below, tiles, source, preprocessing)
